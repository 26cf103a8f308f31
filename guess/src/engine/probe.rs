//! What a guess wants to see at a kernel function, and how that is cut into fetch arguments.

use super::shot::Piece;
use super::window::{WORD, Window};
use socktrail_kprobes::{Error, Fetch, Format, Type};
use std::ops::Range;

/// Values that one kprobe may fetch, less one that the board needs: what the kernel takes is 128.
const MOST_FETCHES: usize = 127;
/// The bytes of a structure that one kprobe can show.
pub(crate) const WINDOW: u32 = MOST_FETCHES as u32 * 8;
/// Bytes of text for them, with room for the probe's own name; a template is never shorter than what it becomes.
const MOST_TEXT: usize = 3900;

/// The name of the view of arguments.
pub(crate) const ARGUMENTS: &str = "arguments";

/// What is seen of each call of a kernel function.
///
/// What cannot be read, because a pointer on the way leads nowhere, keeps what an earlier record had in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) function: String,
    /// Whether the guess can go on when the function cannot be probed.
    pub(crate) optional: bool,
    views: Vec<View>,
}

/// Something to see: words of memory, or what they point to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct View {
    name: String,
    kind: Kind,
    from: u32,
    to: u32,
    /// How many bytes before the base this view begins.
    back: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// The first arguments as they are.
    Arguments,
    /// The words of a structure, or those from one of its fields on.
    Words { base: String, field: Option<&'static str> },
    /// The values found by following each word of a structure as a pointer: the word at an offset behind that pointer,
    /// and so on.
    Through { base: String, offsets: Vec<String> },
}

impl Probe {
    pub(crate) fn on(function: &str) -> Self {
        Self { function: function.to_owned(), optional: false, views: Vec::new() }
    }

    /// The guess has others and can do without.
    pub(crate) fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// The first `count` arguments.
    pub(crate) fn arguments(self, count: u32) -> Self {
        self.view(ARGUMENTS, Kind::Arguments, WORD..WORD * (count + 1))
    }

    /// The bytes in `range` of the structure at `base`, a template such as `{arg1}` or `+{socket.sk}({sock})`.
    pub(crate) fn words(self, name: &str, base: &str, range: Range<u32>) -> Self {
        self.view(name, Kind::Words { base: base.to_owned(), field: None }, range)
    }

    /// The first `size` bytes, a multiple of 8, of a field of the structure at `base`, and of what follows it.
    pub(crate) fn field(self, name: &str, base: &str, field: &'static str, size: u32) -> Self {
        self.view(name, Kind::Words { base: base.to_owned(), field: Some(field) }, 0..size)
    }

    /// For each word in `range` of the structure at `base`: the first 8 bytes of what it points to, at its offset.
    pub(crate) fn targets(self, name: &str, base: &str, range: Range<u32>) -> Self {
        self.through(name, base, range, &["0"])
    }

    /// For each word in `range` of the structure at `base`: follows it as a pointer, reads the word at the first of
    /// `offsets` there, follows that, and so on. The view shows the last word read.
    pub(crate) fn through(self, name: &str, base: &str, range: Range<u32>, offsets: &[&str]) -> Self {
        let offsets = offsets.iter().map(|&offset| offset.to_owned()).collect();
        self.view(name, Kind::Through { base: base.to_owned(), offsets }, range)
    }

    /// Makes the last view show the bytes that end where its base points to, instead of those that begin there.
    pub(crate) fn before(mut self) -> Self {
        let view = self.views.last_mut().expect("there is a view");
        view.back = view.to;
        self
    }

    fn view(mut self, name: &str, kind: Kind, range: Range<u32>) -> Self {
        self.views.push(View { name: name.to_owned(), kind, from: range.start, to: range.end, back: 0 });
        self
    }

    /// Cuts it into as few kprobes as the kernel's limits allow, all of them on the same function.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let mut parts = vec![Part::default()];
        for (view, what) in self.views.iter().enumerate() {
            for (from, template) in what.fetches() {
                if !parts.last_mut().is_some_and(|part| part.takes(&template)) {
                    parts.push(Part::default());
                }
                let part = parts.last_mut().expect("there is always a part");
                part.push(Place { view, from, size: what.kind.step() }, template);
            }
        }
        parts
    }

    /// The views, all of them blank.
    pub(crate) fn blank(&self) -> Vec<Piece> {
        let blank = |view: &View| {
            let window = Window::new(view.from, vec![0; (view.to - view.from) as usize]);
            Piece { name: view.name.clone(), window }
        };
        self.views.iter().map(blank).collect()
    }
}

impl Kind {
    /// How far its fetches are apart, and how many bytes of each count. All fetch 8 bytes, since probes that share an event
    /// must fetch alike.
    fn step(&self) -> u32 {
        match self {
            Self::Words { .. } => 8,
            Self::Arguments | Self::Through { .. } => WORD,
        }
    }
}

impl View {
    /// The offset and the template of each fetch. Scalars, since older kernels have no arrays.
    fn fetches(&self) -> impl Iterator<Item = (u32, String)> {
        (self.from..self.to).step_by(self.kind.step() as usize).map(|from| {
            let place = i64::from(from) - i64::from(self.back);
            let template = match &self.kind {
                Kind::Arguments => format!("{{arg{}}}", from / WORD),
                Kind::Words { base, field: None } => format!("{place:+}({base})"),
                Kind::Words { base, field: Some(field) } => format!("+{{{field}+{from}}}({base})"),
                Kind::Through { base, offsets } => {
                    let word = format!("{place:+}({base})");
                    offsets.iter().fold(word, |word, offset| format!("+{offset}({word})"))
                }
            };
            (from, template)
        })
    }
}

/// One kprobe of a probe: its fetches, and what each of them is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    pub(crate) fetches: Vec<Fetch<'static>>,
    places: Vec<Place>,
    text: usize,
}

/// Where what was fetched belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    view: usize,
    from: u32,
    size: u32,
}

impl Part {
    fn takes(&self, template: &str) -> bool {
        self.fetches.len() < MOST_FETCHES && self.text + text(template) <= MOST_TEXT
    }

    fn push(&mut self, place: Place, template: String) {
        self.text += text(&template);
        self.fetches.push(Fetch::new(Self::name(self.fetches.len()), template, Type::U64));
        self.places.push(place);
    }

    /// What the fetch of that number is called.
    pub(super) fn name(index: usize) -> String {
        format!("f{index}")
    }

    /// Where in a record each fetch is.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when the format is not that of this part.
    pub(crate) fn offsets(&self, format: &Format) -> Result<Vec<u16>, Error> {
        let offset = |fetch: &Fetch<'_>| {
            let found = format.field(&fetch.name).filter(|found| usize::from(found.size) == fetch.kind.size());
            found.map(|found| found.offset).ok_or_else(|| Error::Mismatch {
                event: format.name.clone(),
                field: fetch.name.clone().into_owned(),
                problem: format!("it should have {} bytes", fetch.kind.size()),
            })
        };
        self.fetches.iter().map(offset).collect()
    }

    /// Copies a record into the views. A record that is too short leaves them as they are.
    pub(crate) fn read(&self, raw: &[u8], offsets: &[u16], into: &mut [Piece]) {
        for (place, &offset) in self.places.iter().zip(offsets) {
            let offset = usize::from(offset);
            if let Some(bytes) = raw.get(offset..offset + place.size as usize) {
                into[place.view].window.write(place.from, bytes);
            }
        }
    }
}

/// How long a fetch is as text: ` f126=TEMPLATE:u64`.
fn text(template: &str) -> usize {
    template.len() + 10
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(probe: &Probe) -> Vec<usize> {
        probe.parts().iter().map(|part| part.fetches.len()).collect()
    }

    #[test]
    fn a_small_view_is_one_kprobe() {
        let probe = Probe::on("f").arguments(3).field("x", "{arg1}", "a.b", 8).words("w", "{arg1}", 16..32).targets(
            "t",
            "{arg2}",
            8..16,
        );
        let parts = probe.parts();
        let templates: Vec<_> = parts[0].fetches.iter().map(|fetch| fetch.template.as_ref()).collect();
        let expected =
            ["{arg1}", "{arg2}", "{arg3}", "+{a.b+0}({arg1})", "+16({arg1})", "+24({arg1})", "+0(+8({arg2}))"];
        assert_eq!((parts.len(), &templates[..]), (1, &expected[..]));
    }

    #[test]
    fn a_large_view_is_cut_at_the_kernels_limits() {
        assert_eq!(shape(&Probe::on("f").words("w", "{arg1}", 0..WINDOW)), [127]);
        assert_eq!(shape(&Probe::on("f").words("w", "{arg1}", 0..2 * WINDOW + 8)), [127, 127, 1]);
        let far = Probe::on("f").words("w", "+{some_long_structure.some_long_field}({argument})", 0..1016);
        assert!(shape(&far)[0] < 127, "the text is full before the count is");
    }

    #[test]
    fn records_are_put_together_again() {
        let probe = Probe::on("f").words("w", "{arg1}", 0..1040);
        let mut pieces = probe.blank();
        for part in probe.parts() {
            let offsets: Vec<u16> = (0..part.fetches.len() as u16).map(|index| 8 + 8 * index).collect();
            let first = part.places[0].from;
            let raw: Vec<u8> = (0..)
                .map(|index| u64::from(first) + 8 * index)
                .flat_map(u64::to_ne_bytes)
                .take(part.fetches.len() * 8)
                .collect();
            part.read(&[vec![0; 8], raw].concat(), &offsets, &mut pieces);
        }
        assert!(pieces[0].window.words().all(|(offset, word)| u64::from(offset) == word));
    }
}
