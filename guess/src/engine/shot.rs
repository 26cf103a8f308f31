//! What was seen of one call of a kernel function.

use super::probe::{ARGUMENTS, Part, Probe};
#[cfg(test)]
use super::window::bytes_of;
use super::window::{WORD, Window};

/// One call of a probed function, as its probe saw it.
#[derive(Debug, Clone)]
pub(crate) struct Shot {
    /// The function that was called.
    pub(crate) function: String,
    pieces: Vec<Piece>,
}

/// One view of a shot.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) name: String,
    pub(crate) window: Window,
}

impl Shot {
    /// A shot as a probe would make it.
    #[cfg(test)]
    pub(crate) fn of(function: &str, views: Vec<(&str, Window)>) -> Self {
        let piece = |(name, window): (&str, Window)| Piece { name: name.to_owned(), window };
        Self { function: function.to_owned(), pieces: views.into_iter().map(piece).collect() }
    }

    /// A shot of a probe that has seen nothing but zeros.
    #[cfg(test)]
    pub(crate) fn blank(probe: &Probe) -> Self {
        Self { function: probe.function.clone(), pieces: probe.blank() }
    }

    /// Puts bytes into the view of that name.
    #[cfg(test)]
    pub(crate) fn put(&mut self, name: &str, offset: u32, bytes: &[u8]) {
        let piece = self.pieces.iter_mut().find(|piece| piece.name == name);
        piece.expect("the probe has such a view").window.write(offset, bytes);
    }

    /// Gives the function an argument, the first being 1.
    #[cfg(test)]
    pub(crate) fn pass(&mut self, position: u32, value: u64) {
        self.put(ARGUMENTS, WORD * position, &bytes_of(value));
    }

    /// The view of that name.
    ///
    /// # Panics
    ///
    /// When the probe has no such view: a guess knows what it asked for.
    pub(crate) fn view(&self, name: &str) -> &Window {
        let found = self.pieces.iter().find(|piece| piece.name == name);
        &found.unwrap_or_else(|| panic!("the probe on {} has no view {name}", self.function)).window
    }

    /// An argument of the function, the first being 1; 0 when it was not seen.
    pub(crate) fn argument(&self, position: u32) -> u64 {
        self.view(ARGUMENTS).word(WORD * position).unwrap_or(0)
    }

    /// At which of the arguments that were seen a value stands.
    pub(crate) fn positions(&self, value: u64) -> Vec<u32> {
        let words = self.view(ARGUMENTS).words();
        words.filter(|&(_, word)| word == value).map(|(offset, _)| offset / WORD).collect()
    }
}

/// Puts the records of a probe's kprobes together: each call gives one record of each of them, in the same order.
#[derive(Debug)]
pub(crate) struct Assembler {
    probe: Probe,
    parts: Vec<(Part, Vec<u16>)>,
    /// The shots under way, with the time of the first record of each.
    open: Vec<(u64, Shot)>,
    /// How many records of each part came.
    seen: Vec<usize>,
}

impl Assembler {
    /// For a probe whose kprobes have their fetches at these offsets.
    pub(crate) fn new(probe: Probe, parts: Vec<(Part, Vec<u16>)>) -> Self {
        let seen = vec![0; parts.len()];
        Self { probe, parts, open: Vec::new(), seen }
    }

    /// Takes a record of the kprobe number `part`.
    pub(crate) fn take(&mut self, part: usize, time: u64, raw: &[u8]) {
        let index = self.seen[part];
        self.seen[part] += 1;
        if index == self.open.len() {
            let shot = Shot { function: self.probe.function.clone(), pieces: self.probe.blank() };
            self.open.push((time, shot));
        }
        let (part, offsets) = &self.parts[part];
        part.read(raw, offsets, &mut self.open[index].1.pieces);
    }

    /// The shots so far with their times. Nothing when a record is missing: then it is not known which.
    pub(crate) fn finish(&mut self) -> Vec<(u64, Shot)> {
        let shots = std::mem::take(&mut self.open);
        let complete = self.seen.iter().all(|&seen| seen == shots.len());
        self.seen.fill(0);
        if complete { shots } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembler() -> Assembler {
        let probe = Probe::on("f").words("w", "{arg1}", 0..1040);
        let parts = probe.parts().into_iter();
        let with_offsets = parts.map(|part| {
            let offsets = (0..part.fetches.len() as u16).map(|index| 8 * index).collect();
            (part, offsets)
        });
        Assembler::new(probe, with_offsets.collect())
    }

    fn record(word: u64, words: usize) -> Vec<u8> {
        std::iter::repeat_n(word.to_ne_bytes(), words).flatten().collect()
    }

    #[test]
    fn records_of_one_call_become_one_shot() {
        let mut assembler = assembler();
        for (part, time, word, words) in [(0, 10, 1, 127), (1, 11, 2, 3), (0, 20, 3, 127), (1, 21, 4, 3)] {
            assembler.take(part, time, &record(word, words));
        }
        let shots = assembler.finish();
        let seen = |index: usize| (shots[index].0, shots[index].1.view("w").u64(0), shots[index].1.view("w").u64(1032));
        assert_eq!((shots.len(), seen(0), seen(1)), (2, (10, Some(1), Some(2)), (20, Some(3), Some(4))));
        assert!(assembler.finish().is_empty());
    }

    #[test]
    fn shots_with_a_missing_record_are_not_used() {
        let mut assembler = assembler();
        assembler.take(0, 10, &record(1, 127));
        assembler.take(0, 20, &record(3, 127));
        assembler.take(1, 21, &record(4, 3));
        assert!(assembler.finish().is_empty());
    }

    #[test]
    fn arguments_are_counted_from_one() {
        let bytes = [7u64, 8, 7].map(u64::to_ne_bytes).concat();
        let shot = Shot::of("f", vec![(ARGUMENTS, Window::new(8, bytes))]);
        assert_eq!((shot.argument(1), shot.argument(2), shot.argument(4)), (7, 8, 0));
        assert_eq!(shot.positions(7), [1, 3]);
    }
}
