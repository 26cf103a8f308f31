//! Calls of probed functions, assembled from the records of their kprobes.

use super::installer::InstalledPart;
use super::probe::{ARGUMENTS, Probe};
#[cfg(test)]
use super::window::bytes_of;
use super::window::{WORD, Window};

/// One call of a probed function: the arguments and the memory that its probe captured.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// The function that was called.
    pub(crate) function: String,
    views: Vec<CapturedView>,
}

/// One view of a probe, as captured in a call.
#[derive(Debug, Clone)]
pub(crate) struct CapturedView {
    pub(crate) name: String,
    pub(crate) window: Window,
}

impl Call {
    /// A call with these views.
    #[cfg(test)]
    pub(crate) fn of(function: &str, views: Vec<(&str, Window)>) -> Self {
        let view = |(name, window): (&str, Window)| CapturedView { name: name.to_owned(), window };
        Self { function: function.to_owned(), views: views.into_iter().map(view).collect() }
    }

    /// A call in which the probe captured only zeros.
    #[cfg(test)]
    pub(crate) fn blank(probe: &Probe) -> Self {
        Self { function: probe.function.clone(), views: probe.blank() }
    }

    /// Writes bytes into the view with this name.
    #[cfg(test)]
    pub(crate) fn put(&mut self, name: &str, offset: u32, bytes: &[u8]) {
        let view = self.views.iter_mut().find(|view| view.name == name);
        view.expect("the probe has this view").window.write(offset, bytes);
    }

    /// Sets an argument of the function. The first is 1.
    #[cfg(test)]
    pub(crate) fn pass(&mut self, position: u32, value: u64) {
        self.put(ARGUMENTS, WORD * position, &bytes_of(value));
    }

    /// The view with this name.
    ///
    /// # Panics
    ///
    /// When the probe has no such view, which is an error in the guess.
    pub(crate) fn view(&self, name: &str) -> &Window {
        let found = self.views.iter().find(|view| view.name == name);
        &found.unwrap_or_else(|| panic!("the probe on {} has no view {name}", self.function)).window
    }

    /// An argument of the function, the first is 1. An argument that was not captured is 0.
    pub(crate) fn argument(&self, position: u32) -> u64 {
        self.view(ARGUMENTS).word(WORD * position).unwrap_or(0)
    }

    /// The positions of the captured arguments that have this value.
    pub(crate) fn positions(&self, value: u64) -> Vec<u32> {
        let words = self.view(ARGUMENTS).words();
        words.filter(|&(_, word)| word == value).map(|(offset, _)| offset / WORD).collect()
    }
}

/// A call with its time in nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct TimedCall {
    pub(crate) time: u64,
    pub(crate) call: Call,
}

/// Assembles calls from the records of a probe's kprobes. Each call makes each of them write one record, in the same
/// order.
#[derive(Debug)]
pub(crate) struct CallAssembler {
    probe: Probe,
    parts: Vec<InstalledPart>,
    /// The calls so far, each with the time of its first record.
    calls: Vec<TimedCall>,
    /// How many records each part has written.
    records: Vec<usize>,
}

impl CallAssembler {
    /// An assembler for a probe that was installed as these parts.
    pub(crate) fn new(probe: Probe, parts: Vec<InstalledPart>) -> Self {
        let records = vec![0; parts.len()];
        Self { probe, parts, calls: Vec::new(), records }
    }

    /// Adds a record that the part with this index wrote.
    pub(crate) fn add(&mut self, part: usize, time: u64, raw: &[u8]) {
        let index = self.records[part];
        self.records[part] += 1;
        if index == self.calls.len() {
            let call = Call { function: self.probe.function.clone(), views: self.probe.blank() };
            self.calls.push(TimedCall { time, call });
        }
        let InstalledPart { part, offsets } = &self.parts[part];
        part.read(raw, offsets, &mut self.calls[index].call.views);
    }

    /// Takes the calls so far. There are none if a record is missing, because it is not known which call it belongs to.
    pub(crate) fn finish(&mut self) -> Vec<TimedCall> {
        let calls = std::mem::take(&mut self.calls);
        let is_complete = self.records.iter().all(|&records| records == calls.len());
        self.records.fill(0);
        if is_complete { calls } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembler() -> CallAssembler {
        let probe = Probe::on("f").words("w", "{arg1}", 0..1040);
        let parts = probe.parts().into_iter();
        let installed = parts.map(|part| {
            let offsets = (0..part.fetches.len() as u16).map(|index| 8 * index).collect();
            InstalledPart { part, offsets }
        });
        CallAssembler::new(probe, installed.collect())
    }

    fn record(word: u64, words: usize) -> Vec<u8> {
        std::iter::repeat_n(word.to_ne_bytes(), words).flatten().collect()
    }

    #[test]
    fn records_of_one_call_are_assembled() {
        let mut assembler = assembler();
        for (part, time, word, words) in [(0, 10, 1, 127), (1, 11, 2, 3), (0, 20, 3, 127), (1, 21, 4, 3)] {
            assembler.add(part, time, &record(word, words));
        }
        let calls = assembler.finish();
        let seen = |index: usize| {
            (calls[index].time, calls[index].call.view("w").u64(0), calls[index].call.view("w").u64(1032))
        };
        assert_eq!((calls.len(), seen(0), seen(1)), (2, (10, Some(1), Some(2)), (20, Some(3), Some(4))));
        assert!(assembler.finish().is_empty());
    }

    #[test]
    fn calls_with_a_missing_record_are_not_used() {
        let mut assembler = assembler();
        assembler.add(0, 10, &record(1, 127));
        assembler.add(0, 20, &record(3, 127));
        assembler.add(1, 21, &record(4, 3));
        assert!(assembler.finish().is_empty());
    }

    #[test]
    fn arguments_are_counted_from_one() {
        let bytes = [7u64, 8, 7].map(u64::to_ne_bytes).concat();
        let call = Call::of("f", vec![(ARGUMENTS, Window::new(8, bytes))]);
        assert_eq!((call.argument(1), call.argument(2), call.argument(4)), (7, 8, 0));
        assert_eq!(call.positions(7), [1, 3]);
    }
}
