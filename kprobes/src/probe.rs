//! The target of a probe, its fetch arguments, and the line of text that declares both.

use std::borrow::Cow;

use crate::expression::{Arguments, Expression, Problem, Scope, parse};
use crate::pieces::{Order, PIECE_INFIX, Part, is_array, single_values};
use crate::{Error, Features, Hook, Resolver, Term, Type, WordSize};

/// The maximum number of fetch arguments of one probe (`MAX_TRACE_ARGS` in the kernel).
const MAX_FETCHES: usize = 128;
/// The maximum length of one line in bytes, without its newline (`WRITE_BUFSIZE`).
const MAX_LINE: usize = 4094;
/// The maximum length of what comes before the colon of a line: `r4096`.
const MAX_START: usize = 5;
/// The maximum size of a record's fixed part in bytes: perf's buffer on the oldest kernels, minus what perf puts around
/// a record.
const MAX_RECORD: usize = 2000;
/// The bytes of a record before its first value: `common_type` to `__probe_ip`. A kretprobe has 8 more, for which
/// [`MAX_RECORD`] leaves room.
const HEAD: usize = 16;
/// The bytes of a record that are kept free for a string: the word that locates it, and a name of 255 bytes with its NUL.
const STRING_ROOM: usize = 4 + 256;
/// Why an array cannot be fetched as single values.
const NO_OFFSET: &str = "without arrays, an array's template must begin with an offset";
/// Why no BPF program can run at a static tracepoint.
pub(crate) const STATIC: &str = "it is a static tracepoint";
/// The maximum number of calls in progress that a kretprobe can follow (`KRETPROBE_MAXACTIVE_MAX`).
const MAX_MAXACTIVE: u32 = 4096;

/// The place of a probe.
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
        /// The number of calls that may be in progress at once, at most 4096. Further calls are missed and counted.
        /// With `None`, and on kernels that accept no number, the kernel's default applies: twice the CPUs, at least
        /// 10.
        maxactive: Option<u32>,
    },
    /// A static tracepoint, which the kernel already has.
    Tracepoint {
        /// `sock`
        category: &'a str,
        /// `inet_sock_set_state`
        name: &'a str,
    },
    /// A place where a BPF program runs and writes the records: see [`Hooks`](crate::Hooks).
    Hook(Hook),
}

/// One value to fetch: its name in the record, a template for the expression, and its type.
///
/// A template is a fetch argument as in kprobetrace.rst. A [`Resolver`] replaces each `{name}` in it:
///
/// | template | fetches |
/// |---|---|
/// | `{skb}` | an argument of the function |
/// | `+{sk_buff.len}({skb})` | memory at an offset from it |
/// | `+12(+{sk_buff.data}({skb}))` | memory that a pointer points to |
/// | `+{sock.a+b.c-8}({sk})` | memory at a sum of offsets and numbers; `-{…}(…)` subtracts it |
/// | `+{sk_buff.data-word}({skb})` | the same, where `word` is the size of a pointer |
/// | `+u0({filename})` | the user's memory |
/// | `$retval` | the function's return value |
/// | `$caller` | the return address at the function's entry, for which the kernel has no variable: a register or a stack word |
/// | `$comm` | the name of the running thread, from Linux 4.8 on |
///
/// If a name stands for a [bit-field](crate::Term::BitField), only its bits are fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch<'a> {
    /// Its name: at most 31 letters, digits and underscores.
    pub name: Cow<'a, str>,
    /// The template.
    pub template: Cow<'a, str>,
    /// The type.
    pub kind: Type,
    /// Whether the probe can do without it: if the resolver does not know a name in its template, or if it is `$comm` and the
    /// kernel does not have that, the record lacks the field. For a value that is not optional, this is an error.
    pub optional: bool,
}

impl<'a> Fetch<'a> {
    /// A fetch argument whose parts are known only at run time.
    pub fn new(name: impl Into<Cow<'a, str>>, template: impl Into<Cow<'a, str>>, kind: Type) -> Self {
        Self { name: name.into(), template: template.into(), kind, optional: false }
    }

    /// Sets whether the probe may be installed without it.
    #[must_use]
    pub const fn optional(mut self, optional: bool) -> Self {
        self.optional = optional;
        self
    }
}

impl Fetch<'_> {
    /// Whether the resolver knows every name in its template, in a probe on `function`.
    pub fn is_resolved(&self, function: &str, resolver: &dyn Resolver) -> bool {
        let names = |term: &str| resolver.resolve(function, term);
        let word = WordSize::default();
        let scope = Scope { arguments: Arguments::at_entry(function, word), word, resolve: &names };
        !matches!(parse(&self.template, self.kind, &scope), Err(Problem::Unknown(_)))
    }

    /// The expression that it stands for in a probe named `probe`, for a [BPF program](crate::bpf) that runs there.
    /// Words have the size that they have in this program.
    ///
    /// # Errors
    /// [`Error::Unresolved`], [`Error::BadTemplate`]; [`Error::NotProgrammable`] for a tracepoint.
    pub fn expression(&self, probe: &str, target: Target<'_>, resolver: &dyn Resolver) -> Result<Expression, Error> {
        let word = WordSize::OURS;
        let (function, arguments) = match target {
            Target::Kprobe { function } => (function, Arguments::at_entry(function, word)),
            Target::Kretprobe { function, .. } => (function, Arguments::Numbered),
            Target::Hook(hook) => (hook.name(), hook.arguments()),
            Target::Tracepoint { name, .. } => return Err(Error::not_programmable(name, STATIC)),
        };
        let names = |term: &str| match target {
            Target::Hook(hook) if hook.argument(term).is_some() => hook.argument(term).map(Term::Argument),
            _ => resolver.resolve(function, term),
        };
        let scope = Scope { arguments, word, resolve: &names };
        parse(&self.template, self.kind.resolved(word), &scope)
            .map_err(|problem| template_error(probe, function, self, problem))
    }
}

impl Fetch<'static> {
    /// A fetch argument known at compile time. [`sample!`](crate::sample!) expands to this.
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

    /// The same probe with the kernel's default maxactive. `None` if it already uses the default.
    pub(crate) fn without_maxactive(&self) -> Option<String> {
        self.maxactive.map(|_| format!("{}{}", self.letter, self.rest))
    }
}

/// The kind of a probe on a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeKind {
    /// At the function's entry.
    Kprobe,
    /// At its return.
    Kretprobe {
        /// As in [`Target::Kretprobe`].
        maxactive: Option<u32>,
    },
}

/// A requested probe.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) group: &'a str,
    pub(crate) name: &'a str,
    pub(crate) function: &'a str,
    pub(crate) kind: ProbeKind,
    pub(crate) fetches: &'a [Fetch<'a>],
    pub(crate) resolver: &'a dyn Resolver,
    pub(crate) features: Features,
}

/// One event of a probe: its name, its line, and the values that it fetches.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) line: Line,
    pub(crate) parts: Vec<Part>,
}

/// A fetch argument: ` name=expression:type`.
struct Argument {
    text: String,
    part: Part,
}

impl Request<'_> {
    /// The arguments that can be fetched here, with the types of this kernel: all except optional ones that this kernel
    /// lacks.
    pub(crate) fn fetchable(&self) -> Vec<Fetch<'_>> {
        let fetches = self.fetches.iter().filter(|fetch| !fetch.optional || self.can_fetch(fetch));
        fetches.map(|fetch| Fetch { kind: fetch.kind.resolved(self.features.word), ..fetch.clone() }).collect()
    }

    /// Whether the kernel supports it and all names in it are known.
    fn can_fetch(&self, fetch: &Fetch<'_>) -> bool {
        let is_supported = self.features.comm || fetch.template != "$comm";
        is_supported && fetch.is_resolved(self.function, self.resolver)
    }

    /// The order in which its events write their records. The kernel runs the newest kprobe on a function first
    /// (`add_new_kprobe`). So the newest kretprobe is also the first to see a call begin. When the call returns, the kernel
    /// runs the kretprobes in reverse, the oldest first.
    pub(crate) fn order(&self) -> Order {
        match self.kind {
            ProbeKind::Kprobe => Order::Reversed,
            ProbeKind::Kretprobe { .. } => Order::Added,
        }
    }

    /// The events that it takes: one if the kernel has arrays, or if the probe fetches none. `place` is the beginning
    /// of the function: its symbol or its address. Checks everything that can be checked without the kernel.
    ///
    /// Strings have events of their own, which write their records before the first event does.
    pub(crate) fn events(&self, place: &str) -> Result<Vec<Event>, Error> {
        check_name("a probe", self.name, 63)?;
        check_function(place)?;
        let fetches = self.fetchable();
        let may_divide = !self.features.arrays && fetches.iter().any(|fetch| is_array(fetch.kind));
        let (strings, numbers): (Vec<_>, Vec<_>) =
            self.arguments(&fetches)?.into_iter().partition(|argument| argument.part.is_string);
        let mut events = vec![self.draft(0, place)];
        for arguments in [numbers, strings] {
            for argument in arguments {
                let event = events.last().filter(|event| !may_divide || event.has_room(&argument));
                if event.is_none() {
                    events.push(self.draft(events.len(), place));
                }
                if let Some(event) = events.last_mut() {
                    event.add(argument);
                }
            }
        }
        events.into_iter().map(|event| self.checked(event)).collect()
    }

    /// The arguments of all fetches: several of one fetch where an array is fetched as single values.
    fn arguments(&self, fetches: &[Fetch<'_>]) -> Result<Vec<Argument>, Error> {
        let (mut arguments, mut at) = (Vec::new(), 0);
        for fetch in fetches {
            for (within, name, value) in self.values(fetch)? {
                check_name("a fetch argument", &name, 31)?;
                let text = format!(" {name}={}:{}", value.text(self.features.user_memory), value.type_text());
                let is_string = is_array(fetch.kind) && value.kind == Type::String;
                let size = if is_string { fetch.kind.size() } else { value.kind.size() };
                arguments.push(Argument { text, part: Part { at: at + within, size, is_string } });
            }
            at += fetch.kind.size();
        }
        Ok(arguments)
    }

    /// The values that one fetch takes on this kernel, each with its offset in the fetch and its name.
    fn values(&self, fetch: &Fetch<'_>) -> Result<Vec<(usize, String, Expression)>, Error> {
        let failed = |problem| template_error(self.name, self.function, fetch, problem);
        let word = self.features.word;
        let arguments = match self.kind {
            ProbeKind::Kprobe => Arguments::at_entry(self.function, word),
            ProbeKind::Kretprobe { .. } => Arguments::Numbered,
        };
        let names = |term: &str| self.resolver.resolve(self.function, term);
        let whole = parse(&fetch.template, fetch.kind, &Scope { arguments, word, resolve: &names }).map_err(failed)?;
        if self.features.arrays || !is_array(fetch.kind) {
            return Ok(vec![(0, fetch.name.to_string(), whole)]);
        }
        let values = single_values(&whole).ok_or_else(|| failed(Problem::Malformed(NO_OFFSET.to_owned())))?;
        if self.may_be_string(fetch.kind) {
            return Ok(vec![(0, fetch.name.to_string(), Expression { kind: Type::String, ..whole })]);
        }
        Ok(values.into_iter().map(|(at, value)| (at, format!("{}_{at}", fetch.name), value)).collect())
    }

    /// Whether it is a window of a string, and the string itself may be fetched in its place. Events with strings must
    /// write their records before the first event does: see [`Self::order`].
    fn may_be_string(&self, kind: Type) -> bool {
        self.features.strings && self.order() == Order::Reversed && matches!(kind, Type::StringWindow(_))
    }

    fn draft(&self, number: usize, place: &str) -> Draft {
        let piece = if number == 0 { String::new() } else { format!("{PIECE_INFIX}{number}") };
        let name = format!("{}{piece}", self.name);
        let rest = format!(":{}/{name} {place}", self.group);
        Draft { name, rest, parts: Vec::new(), record: HEAD }
    }

    fn checked(&self, Draft { name, rest, parts, record }: Draft) -> Result<Event, Error> {
        check_max(&name, "fetch arguments", parts.len(), MAX_FETCHES)?;
        check_max(&name, "bytes in a record", record, MAX_RECORD)?;
        let (letter, maxactive) = match self.kind {
            ProbeKind::Kprobe => ('p', None),
            ProbeKind::Kretprobe { maxactive } => ('r', maxactive.filter(|_| self.features.maxactive)),
        };
        let line = Line { letter, maxactive: maxactive.map(|count| count.clamp(1, MAX_MAXACTIVE)), rest };
        check_max(&name, "bytes of text", line.text().len(), MAX_LINE)?;
        Ok(Event { name, line, parts })
    }
}

/// An event whose arguments are not complete.
struct Draft {
    name: String,
    rest: String,
    parts: Vec<Part>,
    /// The size of its records, in bytes.
    record: usize,
}

impl Argument {
    /// The bytes that it takes in a record.
    fn size(&self) -> usize {
        if self.part.is_string { STRING_ROOM } else { self.part.size }
    }
}

impl Draft {
    fn has_room(&self, argument: &Argument) -> bool {
        self.parts.len() < MAX_FETCHES
            && self.record + argument.size() <= MAX_RECORD
            && MAX_START + self.rest.len() + argument.text.len() <= MAX_LINE
            && (argument.part.is_string == self.has_strings())
    }

    fn has_strings(&self) -> bool {
        self.parts.last().is_some_and(|part| part.is_string)
    }

    fn add(&mut self, argument: Argument) {
        self.record += argument.size();
        self.rest.push_str(&argument.text);
        self.parts.push(argument.part);
    }
}

/// Checks a name that becomes an identifier in the kernel.
pub(crate) fn check_name(what: &'static str, name: &str, most: usize) -> Result<(), Error> {
    let is_start_valid = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let are_all_valid = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if is_start_valid && are_all_valid && name.len() <= most {
        return Ok(());
    }
    let rule = format!("at most {most} letters, digits and underscores, no digit first");
    Err(Error::BadName { what, name: name.to_owned(), rule })
}

/// Checks that a function's text cannot be mistaken for another part of the line. It may contain dots (`.isra.0`), a module and
/// an offset.
fn check_function(function: &str) -> Result<(), Error> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.$:+".contains(&byte);
    if !function.is_empty() && function.bytes().all(is_allowed) {
        return Ok(());
    }
    let rule = "only letters, digits and the characters _ . $ : +".to_owned();
    Err(Error::BadName { what: "a kernel function", name: function.to_owned(), rule })
}

fn check_max(probe: &str, what: &'static str, count: usize, most: usize) -> Result<(), Error> {
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

#[cfg(test)]
mod tests;
