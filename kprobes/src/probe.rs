//! What is probed, what is fetched there, and the line of text that says so.

use std::borrow::Cow;

use crate::pieces::{PIECE, is_array, single_values};
use crate::template::{Arguments, Expression, Problem, expand};
use crate::{Error, Features, Resolver, Type, WordSize};

/// Fetch arguments of one probe (`MAX_TRACE_ARGS` of the kernel).
const MOST_FETCHES: usize = 128;
/// Bytes of one line, its newline not counted (`WRITE_BUFSIZE`).
const MOST_TEXT: usize = 4094;
/// Bytes of a record's fixed part: what perf's buffer takes on the oldest kernels, less what stands around it.
const MOST_RECORD: usize = 2000;
/// Bytes before its first value: `common_type` to `__probe_ip`.
const HEAD: usize = 16;
/// Why an array cannot be fetched word by word.
const NO_OFFSET: &str = "without arrays, an array's template must begin with +offset(";
/// The template of where a function returns to.
const CALLER: &str = "$caller";
/// Why a bit-field cannot be fetched as it is declared.
const BITS: &str = "a bit-field is fetched as an unsigned number that has room for it";
/// Calls in progress that a kretprobe may follow (`KRETPROBE_MAXACTIVE_MAX`).
const MOST_ACTIVE: u32 = 4096;

/// Where a probe sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target<'a> {
    /// At the entry of a kernel function.
    Kprobe {
        /// The function's symbol.
        function: &'a str,
    },
    /// At the return of a kernel function; `$retval` may be fetched, arguments only from Linux 6.9 on.
    Kretprobe {
        /// The function's symbol.
        function: &'a str,
        /// How many calls may be in progress at once, 4096 at most; further ones are missed and counted. `None`
        /// leaves the kernel's default (twice the CPUs, at least 10), and so does a kernel that takes no number.
        maxactive: Option<u32>,
    },
    /// A static tracepoint, which is there already.
    Tracepoint {
        /// `sock`
        category: &'a str,
        /// `inet_sock_set_state`
        name: &'a str,
    },
}

/// One value to fetch: its name in the record, a template of the expression, and its type.
///
/// A template is a fetch argument of kprobetrace.rst in which `{name}` stands for what a [`Resolver`] knows:
///
/// | template | fetches |
/// |---|---|
/// | `{skb}` | an argument of the function |
/// | `+{sk_buff.len}({skb})` | memory at an offset from it |
/// | `+12(+{sk_buff.data}({skb}))` | memory behind a pointer |
/// | `+{sock.a+b.c-8}({sk})` | memory at a sum of offsets and numbers; `-{…}(…)` subtracts it |
/// | `+{sk_buff.data-word}({skb})` | the same, where `word` is the size of a pointer |
/// | `+u0({filename})` | the user's memory |
/// | `$retval` | what the kernel calls by this name |
/// | `$caller` | the return address at the function's entry: a register or the top of the stack, because the kernel has no such word |
/// | `$comm` | the name of the running thread, from Linux 4.8 on |
///
/// Where a name stands for a [bit-field](crate::Term::BitField), only its bits are fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch<'a> {
    /// Its name: at most 31 letters, digits and underscores.
    pub name: Cow<'a, str>,
    /// The template.
    pub template: Cow<'a, str>,
    /// The type.
    pub kind: Type,
    /// Whether the probe does without it where the resolver does not know a name in its template, or the kernel does not
    /// take what the template asks for. The field is then missing in the record.
    pub optional: bool,
}

impl<'a> Fetch<'a> {
    /// A fetch of parts known only at run time.
    pub fn new(name: impl Into<Cow<'a, str>>, template: impl Into<Cow<'a, str>>, kind: Type) -> Self {
        Self { name: name.into(), template: template.into(), kind, optional: false }
    }

    /// The same, and whether the probe does without it.
    #[must_use]
    pub const fn optional(mut self, optional: bool) -> Self {
        self.optional = optional;
        self
    }
}

impl Fetch<'_> {
    /// Whether the resolver knows every name in its template, in a probe on `function`.
    pub fn is_resolved(&self, function: &str, resolver: &dyn Resolver) -> bool {
        let word = WordSize::default();
        let names = |term: &str| resolver.resolve(function, term);
        let expanded = expand(&self.template, Arguments::at_entry(function, word), word, &names);
        !matches!(expanded, Err(Problem::Unknown(_)))
    }
}

impl Fetch<'static> {
    /// A fetch known at compile time: what [`sample!`](crate::sample!) writes.
    pub const fn constant(name: &'static str, template: &'static str, kind: Type) -> Self {
        Self { name: Cow::Borrowed(name), template: Cow::Borrowed(template), kind, optional: false }
    }
}

/// A probe's line, in two parts around the place where a kretprobe's maxactive may stand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    letter: char,
    maxactive: Option<u32>,
    rest: String,
}

impl Line {
    /// The line for `kprobe_events`, without newline.
    pub(crate) fn text(&self) -> String {
        match self.maxactive {
            Some(count) => format!("{}{count}{}", self.letter, self.rest),
            None => format!("{}{}", self.letter, self.rest),
        }
    }

    /// The same probe with the kernel's own maxactive; `None` when it asks for no other.
    pub(crate) fn without_maxactive(&self) -> Option<String> {
        self.maxactive.map(|_| format!("{}{}", self.letter, self.rest))
    }
}

/// A probe that is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) group: &'a str,
    pub(crate) name: &'a str,
    pub(crate) function: &'a str,
    /// Of a kretprobe, its maxactive.
    pub(crate) at_return: Option<Option<u32>>,
    pub(crate) fetches: &'a [Fetch<'a>],
    pub(crate) resolver: &'a dyn Resolver,
    pub(crate) features: Features,
}

/// One event of a probe: its name, its line, and how many values it fetches.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) line: Line,
    pub(crate) count: usize,
}

impl Request<'_> {
    /// What can be fetched of it, by the types of this kernel: all but what it does without here.
    pub(crate) fn asked(&self) -> Vec<Fetch<'_>> {
        let asked = self.fetches.iter().filter(|fetch| !fetch.optional || self.can_fetch(fetch));
        asked.map(|fetch| Fetch { kind: fetch.kind.resolved(self.features.word), ..fetch.clone() }).collect()
    }

    /// Whether the kernel takes it, and all names in it are known.
    fn can_fetch(&self, fetch: &Fetch<'_>) -> bool {
        let is_taken = self.features.comm || fetch.template != "$comm";
        is_taken && fetch.is_resolved(self.function, self.resolver)
    }

    /// The events that it takes: one if the kernel has arrays, or if there are none in it. `place` is where the function
    /// begins: its symbol or its address. Checks everything that can be checked without the kernel.
    pub(crate) fn events(&self, place: &str) -> Result<Vec<Event>, Error> {
        check_name("probe", self.name, 63)?;
        check_function(place)?;
        let mut fetches = self.asked();
        let may_divide = !self.features.arrays && fetches.iter().any(|fetch| is_array(fetch.kind));
        if may_divide {
            fetches = single_values(&fetches).map_err(|fetch| {
                template_error(self.name, self.function, fetch, Problem::Malformed(NO_OFFSET.to_owned()))
            })?;
        }
        let mut events: Vec<Draft> = Vec::new();
        for fetch in &fetches {
            let (text, size) = (self.argument(fetch)?, fetch.kind.size());
            match events.last_mut().filter(|event| !may_divide || event.has_room(text.len(), size)) {
                Some(event) => event.add(&text, size),
                None => events.push(self.draft(events.len(), place, &text, size)),
            }
        }
        if events.is_empty() {
            events.push(self.draft(0, place, "", 0));
        }
        events.into_iter().map(|event| self.checked(event)).collect()
    }

    /// ` name=expression:type`
    fn argument(&self, fetch: &Fetch<'_>) -> Result<String, Error> {
        check_name("fetch argument", &fetch.name, 31)?;
        let failed = |problem| template_error(self.name, self.function, fetch, problem);
        let word = self.features.word;
        let arguments =
            if self.at_return.is_some() { Arguments::Numbered } else { Arguments::at_entry(self.function, word) };
        let template = match (&*fetch.template, arguments.caller()) {
            (CALLER, Some(caller)) => caller,
            (CALLER, None) => return Err(failed(Problem::Unknown(CALLER.to_owned()))),
            (template, _) => template,
        };
        let names = |term: &str| self.resolver.resolve(self.function, term);
        let Expression { text, bits } = expand(template, arguments, word, &names).map_err(failed)?;
        let text = if self.features.user_memory { text } else { of_kernel_memory(&text) };
        let kind = match bits {
            None => fetch.kind.to_string(),
            Some(bits) => fetch.kind.of_bits(bits).ok_or_else(|| failed(Problem::Malformed(BITS.to_owned())))?,
        };
        Ok(format!(" {}={text}:{kind}", fetch.name))
    }

    fn draft(&self, number: usize, place: &str, argument: &str, size: usize) -> Draft {
        let piece = if number == 0 { String::new() } else { format!("{PIECE}{number}") };
        let name = format!("{}{piece}", self.name);
        let rest = format!(":{}/{name} {place}{argument}", self.group);
        Draft { name, rest, count: usize::from(!argument.is_empty()), record: HEAD + size }
    }

    fn checked(&self, Draft { name, rest, count, record }: Draft) -> Result<Event, Error> {
        check_most(&name, "fetch arguments", count, MOST_FETCHES)?;
        check_most(&name, "bytes in a record", record, MOST_RECORD)?;
        let most = |count: u32| count.clamp(1, MOST_ACTIVE);
        let maxactive = self.at_return.flatten().filter(|_| self.features.maxactive).map(most);
        let line = Line { letter: if self.at_return.is_some() { 'r' } else { 'p' }, maxactive, rest };
        check_most(&name, "bytes of text", line.text().len(), MOST_TEXT)?;
        Ok(Event { name, line, count })
    }
}

/// An event whose arguments are not complete.
struct Draft {
    name: String,
    rest: String,
    count: usize,
    record: usize,
}

impl Draft {
    fn has_room(&self, text: usize, size: usize) -> bool {
        self.count < MOST_FETCHES && self.record + size <= MOST_RECORD && 1 + self.rest.len() + text <= MOST_TEXT
    }

    fn add(&mut self, text: &str, size: usize) {
        self.rest.push_str(text);
        self.count += 1;
        self.record += size;
    }
}

/// Checks what becomes an identifier in the kernel.
pub(crate) fn check_name(what: &'static str, name: &str, most: usize) -> Result<(), Error> {
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let goes_on_well = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if starts_well && goes_on_well && name.len() <= most {
        return Ok(());
    }
    Err(Error::BadName { what, name: name.to_owned(), most })
}

/// Checks that a symbol cannot be taken for anything else: it may have dots (`.isra.0`), a module, an offset.
fn check_function(function: &str) -> Result<(), Error> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"_.$:+".contains(&byte);
    if !function.is_empty() && function.bytes().all(fine) {
        return Ok(());
    }
    Err(Error::BadName { what: "kernel function", name: function.to_owned(), most: MOST_TEXT })
}

fn check_most(probe: &str, what: &'static str, count: usize, most: usize) -> Result<(), Error> {
    if count <= most {
        return Ok(());
    }
    Err(Error::TooLarge { probe: probe.to_owned(), what, count, most })
}

fn template_error(probe: &str, function: &str, fetch: &Fetch<'_>, problem: Problem) -> Error {
    let (probe, argument) = (probe.to_owned(), fetch.name.clone().into_owned());
    match problem {
        Problem::Unknown(name) => Error::Unresolved { probe, function: function.to_owned(), argument, name },
        Problem::Malformed(problem) => {
            Error::BadTemplate { probe, argument, template: fetch.template.clone().into_owned(), problem }
        }
    }
}

/// `+u8(…)` as `+8(…)`: before Linux 5.3 a probe reads either memory by the same words.
fn of_kernel_memory(expression: &str) -> String {
    expression.replace("+u", "+").replace("-u", "-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, Term};

    const ALL: Features = Features {
        arrays: true,
        user_memory: true,
        arguments: true,
        maxactive: true,
        comm: true,
        constants: true,
        word: WordSize::Eight,
    };

    fn names(_: &str, name: &str) -> Option<Term> {
        match name {
            "a" => Some(Term::Argument(1)),
            "s.f" => Some(Term::Offset(16)),
            "s.bits" => Some(Term::BitField { offset: 17, bits: 8 }),
            _ => None,
        }
    }

    fn built(at_return: Option<Option<u32>>, fetches: &[Fetch<'_>], features: Features) -> Result<Line, Error> {
        let mut events = request(at_return, fetches, features).events("ip_local_out")?;
        assert_eq!(events.len(), 1);
        Ok(events.remove(0).line)
    }

    fn request<'a>(at_return: Option<Option<u32>>, fetches: &'a [Fetch<'a>], features: Features) -> Request<'a> {
        let (group, name, function) = ("g_1_2_0", "probe", "ip_local_out");
        Request { group, name, function, at_return, fetches, resolver: &names, features }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_line_of_every_type() {
        let fetches = [
            Fetch::new("one", "{a}", Type::U64),
            Fetch::new("two", "+{s.f}({a})", Type::S16),
            Fetch::new("three", "+0({a})", Type::Words(64)),
            Fetch::new("four", "+0({a})", Type::Bytes(16)),
            Fetch::new("five", "+u0(+{s.f}({a}))", Type::String),
        ];
        let line = built(None, &fetches, ALL).unwrap();
        assert_eq!(
            line.text(),
            "p:g_1_2_0/probe ip_local_out one=%di:u64 two=+16(%di):s16 three=+0(%di):x64[64] four=+0(%di):x8[16] \
             five=+u0(+16(%di)):string"
        );
        assert_eq!(line.without_maxactive(), None);
        let comm = [Fetch::new("comm", "$comm", Type::String).optional(true)];
        assert_eq!(built(None, &comm, ALL).unwrap().text(), "p:g_1_2_0/probe ip_local_out comm=$comm:string");
        assert_eq!(built(None, &comm, Features::default()).unwrap().text(), "p:g_1_2_0/probe ip_local_out");
        let line = built(None, &fetches[4..], Features::default()).unwrap();
        assert_eq!(line.text(), "p:g_1_2_0/probe ip_local_out five=+0(+16(%di)):string");
    }

    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    fn on_a_kernel_of_32_bits_words_are_short() {
        let fetches = [
            Fetch::new("one", "{a}", Type::Word),
            Fetch::new("two", "+{word}(+{s.f}({a}))", Type::Word),
            Fetch::new("three", "+{s.f}({a})", Type::U64),
        ];
        let features = Features { word: WordSize::Four, ..ALL };
        let text = built(None, &fetches, features).unwrap().text();
        assert_eq!(text, "p:g_1_2_0/probe ip_local_out one=%ax:u32 two=+4(+16(%ax)):u32 three=+16(%ax):u64");
        let value = [Fetch::new("rv", "$retval", Type::SignedWord)];
        assert_eq!(built(Some(None), &value, features).unwrap().text(), "r:g_1_2_0/probe ip_local_out rv=$retval:s32");
        assert_eq!(built(Some(None), &value, ALL).unwrap().text(), "r:g_1_2_0/probe ip_local_out rv=$retval:s64");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn what_a_probe_may_do_without_is_left_out_where_it_is_not_known() {
        let fetches = [
            Fetch::new("one", "{a}", Type::U64),
            Fetch::new("two", "+{s.no_such}({a})", Type::U32).optional(true),
            Fetch::new("three", "+{s.f}({a})", Type::U32).optional(true),
        ];
        let line = built(None, &fetches, ALL).unwrap();
        assert_eq!(line.text(), "p:g_1_2_0/probe ip_local_out one=%di:u64 three=+16(%di):u32");
        let needed = [fetches[1].clone().optional(false)];
        assert_eq!(built(None, &needed, ALL).unwrap_err().kind(), Kind::Unresolved);
        let malformed = [Fetch::new("two", "+{s.f+}({a})", Type::U32).optional(true)];
        assert_eq!(built(None, &malformed, ALL).unwrap_err().kind(), Kind::Declaration, "a mistake stays one");
    }

    /// As `parse_probe_arg` of the kernel's trace_probe.c reads it: width, first bit, and the number that it is fetched as.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn of_a_bit_field_its_bits_are_fetched() {
        let of = |kind| built(None, &[Fetch::new("one", "+{s.bits}({a})", kind)], ALL).map(|line| line.text());
        assert_eq!(of(Type::U16).unwrap(), "p:g_1_2_0/probe ip_local_out one=+17(%di):b8@0/16");
        assert_eq!(of(Type::U8).unwrap(), "p:g_1_2_0/probe ip_local_out one=+17(%di):b8@0/8");
        for kind in [Type::S16, Type::Words(2), Type::String] {
            assert_eq!(of(kind).unwrap_err().kind(), Kind::Declaration, "{kind}");
        }
    }

    #[test]
    fn returns() {
        let fetches = [Fetch::new("rv", "$retval", Type::S32)];
        let text = |maxactive, features| built(Some(maxactive), &fetches, features).unwrap().text();
        assert_eq!(text(None, ALL), "r:g_1_2_0/probe ip_local_out rv=$retval:s32");
        assert_eq!(text(Some(512), ALL), "r512:g_1_2_0/probe ip_local_out rv=$retval:s32");
        assert_eq!(text(Some(512), Features::default()), text(None, ALL));
        assert_eq!(text(Some(1 << 30), ALL), "r4096:g_1_2_0/probe ip_local_out rv=$retval:s32");
        let line = built(Some(Some(9)), &[Fetch::new("first", "{a}", Type::U64)], ALL).unwrap();
        assert_eq!(line.text(), "r9:g_1_2_0/probe ip_local_out first=$arg1:u64");
        assert_eq!(line.without_maxactive().unwrap(), "r:g_1_2_0/probe ip_local_out first=$arg1:u64");
    }

    #[test]
    fn too_much_is_refused_before_the_kernel_sees_it() {
        let many = |count, kind| (0..count).map(|i| Fetch::new(format!("v{i}"), "{a}", kind)).collect::<Vec<_>>();
        assert!(built(None, &many(128, Type::U64), ALL).is_ok());
        for (fetches, what) in [
            (many(129, Type::U64), "fetch arguments"),
            (many(4, Type::Words(64)), "bytes in a record"),
            (vec![Fetch::new("v", format!("+{}(%di)", "0".repeat(4100)), Type::U64)], "bytes of text"),
        ] {
            match built(None, &fetches, ALL) {
                Err(Error::TooLarge { what: said, .. }) => assert_eq!(said, what),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn without_arrays_a_probe_is_as_many_events_as_it_takes() {
        let fetches = [
            Fetch::new("count", "+8({a})", Type::S32),
            Fetch::new("path", "+0(+{s.f}({a}))", Type::Words(64)),
            Fetch::new("more", "+u512(+{s.f}({a}))", Type::Words(64)),
            Fetch::new("odd", "+{s.f}({a})", Type::Bytes(7)),
        ];
        let events = request(None, &fetches, Features::default()).events("ip_local_out").unwrap();
        let counts: Vec<_> = events.iter().map(|event| (event.name.as_str(), event.count)).collect();
        assert_eq!(counts, [("probe", 128), ("probe_piece_1", 4)]);
        let text = events[0].line.text();
        assert!(
            text.starts_with("p:g_1_2_0/probe ip_local_out count=+8(%di):s32 path_0=+0(+16(%di)):u64 path_8=+8("),
            "{text}"
        );
        assert!(text.ends_with(" more_496=+1008(+16(%di)):u64"), "{text}");
        assert_eq!(
            events[1].line.text(),
            "p:g_1_2_0/probe_piece_1 ip_local_out more_504=+1016(+16(%di)):u64 \
             odd_0=+16(%di):u32 odd_4=+20(%di):u16 odd_6=+22(%di):u8"
        );
        assert!(events.iter().all(|event| event.line.text().len() <= MOST_TEXT));
        assert_eq!(request(None, &fetches[1..2], ALL).events("ip_local_out").unwrap().len(), 1);
    }

    #[test]
    fn errors_name_probe_argument_and_field() {
        let error = built(None, &[Fetch::new("dport", "+{sock.dport}({a})", Type::U16)], ALL).unwrap_err();
        assert_eq!(error.kind(), Kind::Unresolved);
        assert_eq!(error.to_string(), "probe probe on ip_local_out, argument dport: the layout has no sock.dport");
        let error = built(None, &[Fetch::new("dport", "+{s.f}", Type::U16), Fetch::new("x", "{", Type::U8)], ALL);
        assert_eq!(error.unwrap_err().kind(), Kind::Declaration);
    }

    #[test]
    fn names_that_the_kernel_would_not_take() {
        for name in ["", "1a", "a-b", "a b", "a\n", "é", "r#type", &"x".repeat(64)] {
            assert!(check_name("probe", name, 63).is_err(), "{name:?}");
        }
        assert!(check_name("probe", &"x".repeat(63), 63).is_ok());
        for function in ["", "a b", "a\np:x/y z"] {
            assert!(request(None, &[], ALL).events(function).is_err(), "{function:?}");
        }
        assert!(request(None, &[], ALL).events("tcp_v4_rcv.isra.0").is_ok());
        assert!(built(None, &[Fetch::new("x".repeat(32), "{a}", Type::U8)], ALL).is_err());
    }
}
