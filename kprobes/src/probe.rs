//! What is probed, what is fetched there, and the line of text that says so.

use std::borrow::Cow;
use std::fmt::Write;

use crate::template::{Arguments, Problem, expand};
use crate::{Error, Features, Resolver, Type};

/// Fetch arguments of one probe (`MAX_TRACE_ARGS` of the kernel).
const MOST_FETCHES: usize = 128;
/// Bytes of one line, its newline not counted (`WRITE_BUFSIZE`).
const MOST_TEXT: usize = 4094;
/// Bytes of a record's fixed part: what perf's buffer takes on the oldest kernels, less what stands around it.
const MOST_RECORD: usize = 2000;
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
/// | `+u0({filename})` | the user's memory |
/// | `$retval` | what the kernel calls by this name |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch<'a> {
    /// Its name: at most 31 letters, digits and underscores.
    pub name: Cow<'a, str>,
    /// The template.
    pub template: Cow<'a, str>,
    /// The type.
    pub kind: Type,
}

impl<'a> Fetch<'a> {
    /// A fetch of parts known only at run time.
    pub fn new(name: impl Into<Cow<'a, str>>, template: impl Into<Cow<'a, str>>, kind: Type) -> Self {
        Self { name: name.into(), template: template.into(), kind }
    }
}

impl Fetch<'static> {
    /// A fetch known at compile time: what [`sample!`](crate::sample!) writes.
    pub const fn constant(name: &'static str, template: &'static str, kind: Type) -> Self {
        Self { name: Cow::Borrowed(name), template: Cow::Borrowed(template), kind }
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

/// The line that installs `group`/`name` on a function, which begins at `place`: its symbol or its address. Checks
/// everything that can be checked without the kernel.
#[allow(clippy::too_many_arguments, reason = "the parts of a line, each of its own kind")]
pub(crate) fn line(
    group: &str,
    name: &str,
    function: &str,
    place: &str,
    at_return: Option<Option<u32>>,
    fetches: &[Fetch<'_>],
    resolver: &dyn Resolver,
    features: Features,
) -> Result<Line, Error> {
    check_name("probe", name, 63)?;
    check_function(place)?;
    check_most(name, "fetch arguments", fetches.len(), MOST_FETCHES)?;
    let record = 16 + fetches.iter().map(|fetch| fetch.kind.size()).sum::<usize>();
    check_most(name, "bytes in a record", record, MOST_RECORD)?;

    let arguments = if at_return.is_some() { Arguments::Numbered } else { Arguments::ENTRY };
    let mut rest = format!(":{group}/{name} {place}");
    for fetch in fetches {
        check_name("fetch argument", &fetch.name, 31)?;
        let expression = expand(&fetch.template, arguments, &|term| resolver.resolve(function, term))
            .map_err(|problem| template_error(name, function, fetch, problem))?;
        let expression = if features.user_memory { expression } else { of_kernel_memory(&expression) };
        let _ = write!(rest, " {}={expression}:{}", fetch.name, fetch.kind);
    }
    let maxactive = at_return.flatten().filter(|_| features.maxactive).map(|count| count.clamp(1, MOST_ACTIVE));
    let line = Line { letter: if at_return.is_some() { 'r' } else { 'p' }, maxactive, rest };
    check_most(name, "bytes of text", line.text().len(), MOST_TEXT)?;
    Ok(line)
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

    const ALL: Features = Features { arrays: true, user_memory: true, arguments: true, maxactive: true };

    fn names(_: &str, name: &str) -> Option<Term> {
        match name {
            "a" => Some(Term::Argument(1)),
            "s.f" => Some(Term::Offset(16)),
            _ => None,
        }
    }

    fn built(at_return: Option<Option<u32>>, fetches: &[Fetch<'_>], features: Features) -> Result<Line, Error> {
        line("g_1_2_0", "probe", "ip_local_out", "ip_local_out", at_return, fetches, &names, features)
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
        let line = built(None, &fetches[4..], Features::default()).unwrap();
        assert_eq!(line.text(), "p:g_1_2_0/probe ip_local_out five=+0(+16(%di)):string");
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
            assert!(line("g", "p", "f", function, None, &[], &names, ALL).is_err(), "{function:?}");
        }
        assert!(line("g", "p", "tcp_v4_rcv", "tcp_v4_rcv.isra.0", None, &[], &names, ALL).is_ok());
        assert!(built(None, &[Fetch::new("x".repeat(32), "{a}", Type::U8)], ALL).is_err());
    }
}
