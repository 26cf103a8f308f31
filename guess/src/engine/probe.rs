//! What a guess wants to capture in calls of a kernel function, split into fetch arguments of kprobes.

use super::call::CapturedView;
use super::window::{WORD, Window};
use socktrail_kprobes::{Error, Fetch, Format, Type};
use std::ops::Range;

/// How many values one kprobe may fetch. The kernel allows 128, and the installer needs one of them.
const MAX_FETCHES: usize = 127;
/// How many bytes of a structure one kprobe can capture.
pub(crate) const MAX_WINDOW: u32 = MAX_FETCHES as u32 * 8;
/// How long the text of the fetches may be, so that the probe's own name fits beside them. A template is never shorter
/// than the text that it expands to.
const MAX_TEXT: usize = 3900;

/// The name of the view that holds the function's arguments.
pub(crate) const ARGUMENTS: &str = "arguments";

/// What is captured in each call of a kernel function.
///
/// Where the kernel cannot read a value, because a pointer on the way is not valid, the record still holds what an
/// earlier record had there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) function: String,
    /// Whether the guess can do without the probe if the function cannot be probed.
    pub(crate) optional: bool,
    views: Vec<View>,
}

/// A range of memory to capture, or what the words in it point to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct View {
    name: String,
    kind: ViewKind,
    /// The offset of the first byte that is captured.
    from: u32,
    /// The offset after the last byte.
    to: u32,
    /// Offset 0 is this many bytes before the base: 0, unless the view ends at its base.
    bytes_before_base: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ViewKind {
    /// The values of the first arguments.
    Arguments,
    /// The words of a structure, or those from one of its fields on.
    Words { base: String, field: Option<&'static str> },
    /// The values at the end of chains of pointers that begin with the words of a structure. Each offset leads from one
    /// pointer to the next value.
    Through { base: String, offsets: Vec<String> },
}

impl Probe {
    pub(crate) fn on(function: &str) -> Self {
        Self { function: function.to_owned(), optional: false, views: Vec::new() }
    }

    /// Makes the probe optional: the guess has others and can do without it.
    pub(crate) fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// Captures the first `count` arguments.
    pub(crate) fn arguments(self, count: u32) -> Self {
        self.view(ARGUMENTS, ViewKind::Arguments, WORD..WORD * (count + 1))
    }

    /// Captures the bytes in `range` of the structure at `base`, a template such as `{arg1}` or `+{socket.sk}({sock})`.
    pub(crate) fn words(self, name: &str, base: &str, range: Range<u32>) -> Self {
        self.view(name, ViewKind::Words { base: base.to_owned(), field: None }, range)
    }

    /// Captures `size` bytes, a multiple of 8, from the beginning of a field of the structure at `base`.
    pub(crate) fn field(self, name: &str, base: &str, field: &'static str, size: u32) -> Self {
        self.view(name, ViewKind::Words { base: base.to_owned(), field: Some(field) }, 0..size)
    }

    /// For each word in `range` of the structure at `base`, captures the first 8 bytes that it points to. They are at
    /// the word's offset in the view.
    pub(crate) fn targets(self, name: &str, base: &str, range: Range<u32>) -> Self {
        self.through(name, base, range, &["0"])
    }

    /// For each word in `range` of the structure at `base`, follows it as a pointer, reads the word at the first of
    /// `offsets` there, follows that, and so on. Captures the last word that is read.
    pub(crate) fn through(self, name: &str, base: &str, range: Range<u32>, offsets: &[&str]) -> Self {
        let offsets = offsets.iter().map(|&offset| offset.to_owned()).collect();
        self.view(name, ViewKind::Through { base: base.to_owned(), offsets }, range)
    }

    /// Makes the last view capture the bytes that end at its base, instead of those that begin there.
    pub(crate) fn ending_at_base(mut self) -> Self {
        let view = self.views.last_mut().expect("there is a view");
        view.bytes_before_base = view.to;
        self
    }

    fn view(mut self, name: &str, kind: ViewKind, range: Range<u32>) -> Self {
        self.views.push(View { name: name.to_owned(), kind, from: range.start, to: range.end, bytes_before_base: 0 });
        self
    }

    /// Splits the probe into as few kprobes as the kernel's limits allow, all of them on the same function.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let mut parts = vec![Part::default()];
        for (view, what) in self.views.iter().enumerate() {
            for (from, template) in what.fetches() {
                if !parts.last_mut().is_some_and(|part| part.has_room_for(&template)) {
                    parts.push(Part::default());
                }
                let part = parts.last_mut().expect("there is always a part");
                part.push(FetchTarget { view, offset: from, size: what.kind.step() }, template);
            }
        }
        parts
    }

    /// The views, filled with zeros.
    pub(crate) fn blank(&self) -> Vec<CapturedView> {
        let blank = |view: &View| {
            let window = Window::new(view.from, vec![0; (view.to - view.from) as usize]);
            CapturedView { name: view.name.clone(), window }
        };
        self.views.iter().map(blank).collect()
    }
}

impl ViewKind {
    /// The distance between the fetches, and how many bytes of each are used. All fetch 8 bytes, because probes that
    /// share an event must fetch the same types.
    fn step(&self) -> u32 {
        match self {
            Self::Words { .. } => 8,
            Self::Arguments | Self::Through { .. } => WORD,
        }
    }
}

impl View {
    /// The offset and the template of each fetch. They fetch scalars, because older kernels cannot fetch arrays.
    fn fetches(&self) -> impl Iterator<Item = (u32, String)> {
        (self.from..self.to).step_by(self.kind.step() as usize).map(|from| {
            let offset = i64::from(from) - i64::from(self.bytes_before_base);
            let template = match &self.kind {
                ViewKind::Arguments => format!("{{arg{}}}", from / WORD),
                ViewKind::Words { base, field: None } => format!("{offset:+}({base})"),
                ViewKind::Words { base, field: Some(field) } => format!("+{{{field}+{from}}}({base})"),
                ViewKind::Through { base, offsets } => {
                    let word = format!("{offset:+}({base})");
                    offsets.iter().fold(word, |pointer, offset| format!("+{offset}({pointer})"))
                }
            };
            (from, template)
        })
    }
}

/// One kprobe of a probe: its fetches, and where in the views their values belong.
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    pub(crate) fetches: Vec<Fetch<'static>>,
    targets: Vec<FetchTarget>,
    text: usize,
}

/// Where in the views a fetched value belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FetchTarget {
    view: usize,
    offset: u32,
    size: u32,
}

impl Part {
    fn has_room_for(&self, template: &str) -> bool {
        self.fetches.len() < MAX_FETCHES && self.text + text_length(template) <= MAX_TEXT
    }

    fn push(&mut self, target: FetchTarget, template: String) {
        self.text += text_length(&template);
        self.fetches.push(Fetch::new(Self::fetch_name(self.fetches.len()), template, Type::U64));
        self.targets.push(target);
    }

    /// The name of the fetch with this index.
    pub(super) fn fetch_name(index: usize) -> String {
        format!("f{index}")
    }

    /// The offset of each fetched value in a record.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when the format does not fit this part.
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

    /// Copies the values in a record into the views. Values beyond the end of a record that is too short are not copied.
    pub(crate) fn read(&self, raw: &[u8], offsets: &[u16], into: &mut [CapturedView]) {
        for (target, &offset) in self.targets.iter().zip(offsets) {
            let offset = usize::from(offset);
            if let Some(bytes) = raw.get(offset..offset + target.size as usize) {
                into[target.view].window.write(target.offset, bytes);
            }
        }
    }
}

/// The length of a fetch as text: ` f126=TEMPLATE:u64`.
fn text_length(template: &str) -> usize {
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
    fn a_large_view_is_split_at_the_kernels_limits() {
        assert_eq!(shape(&Probe::on("f").words("w", "{arg1}", 0..MAX_WINDOW)), [127]);
        assert_eq!(shape(&Probe::on("f").words("w", "{arg1}", 0..2 * MAX_WINDOW + 8)), [127, 127, 1]);
        let far = Probe::on("f").words("w", "+{some_long_structure.some_long_field}({argument})", 0..1016);
        assert!(shape(&far)[0] < 127, "the limit of text is reached before that of fetches");
    }

    #[test]
    fn records_fill_the_views() {
        let probe = Probe::on("f").words("w", "{arg1}", 0..1040);
        let mut views = probe.blank();
        for part in probe.parts() {
            let offsets: Vec<u16> = (0..part.fetches.len() as u16).map(|index| 8 + 8 * index).collect();
            let first = part.targets[0].offset;
            let raw: Vec<u8> = (0..)
                .map(|index| u64::from(first) + 8 * index)
                .flat_map(u64::to_ne_bytes)
                .take(part.fetches.len() * 8)
                .collect();
            part.read(&[vec![0; 8], raw].concat(), &offsets, &mut views);
        }
        assert!(views[0].window.words().all(|(offset, word)| u64::from(offset) == word));
    }
}
