//! Templates: fetch arguments with names of the layout in place of numbers.
//!
//! `+{sk_buff.len}({skb})` is `+112(%di)` once a [`Resolver`] has said that `sk_buff.len` is at 112 and that `skb` is the
//! first argument.

use super::{Arguments, Base, Expression, Read};
use crate::{Type, WordSize};

/// The meaning of a name in a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Term {
    /// Bytes from the start of a structure: `{sk_buff.len}`.
    Offset(i64),
    /// A bit-field that starts at a byte boundary. A template that begins with it fetches only these bits.
    BitField {
        /// Bytes from the start of the structure.
        offset: i64,
        /// Its width in bits.
        bits: u8,
    },
    /// The function's argument with this number, counted from 1: `{skb}`.
    Argument(u8),
}

/// Resolves the names in templates.
///
/// Closures are resolvers too:
///
/// ```
/// use socktrail_kprobes::{Resolver, Term};
/// let resolver = |_function: &str, name: &str| (name == "skb").then_some(Term::Argument(1));
/// assert_eq!(resolver.resolve("ip_local_out", "skb"), Some(Term::Argument(1)));
/// ```
pub trait Resolver {
    /// The meaning of `{name}` in a probe on `function`. `None` if it is unknown.
    fn resolve(&self, function: &str, name: &str) -> Option<Term>;
}

impl<F: Fn(&str, &str) -> Option<Term>> Resolver for F {
    fn resolve(&self, function: &str, name: &str) -> Option<Term> {
        self(function, name)
    }
}

/// Why a template could not be parsed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The resolver does not know this name.
    Unknown(String),
    /// The template does not follow the syntax.
    Malformed(String),
}

/// In a sum, the size of a kernel word in bytes: `+{word}(…)` reads the second of two pointers.
const WORD: &str = "word";
/// The return address of a function, at its entry.
const CALLER: &str = "$caller";
/// The return value of a function.
const RETURNED: &str = "$retval";
/// The running thread's `struct task_struct`. Only programs can read it.
const TASK: &str = "$task";
/// The `struct file` of the descriptor that a system call returns. Only programs can read it.
const FILE: &str = "$file";
/// A packet's transport header, at a hook where `skb->data` points to the IP header. Only programs can read it.
const TRANSPORT: &str = "$transport";
/// `skb_shared_info.gso_segs` of the packet. Only programs at the hooks of packets can read it.
const GSO_SEGMENTS: &str = "$gso_segs";
/// `skb_shared_info.gso_size` of the packet, likewise.
const GSO_SIZE: &str = "$gso_size";

/// The scope in which the names of a template are looked up.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    /// The places of the function's arguments.
    pub(crate) arguments: Arguments,
    /// The size of a kernel word.
    pub(crate) word: WordSize,
    /// Resolves a name.
    pub(crate) resolve: &'a dyn Fn(&str) -> Option<Term>,
}

impl Scope<'_> {
    fn resolve(&self, name: &str) -> Result<Term, Problem> {
        if name == WORD {
            return Ok(Term::Offset(self.word.bytes().into()));
        }
        (self.resolve)(name).ok_or_else(|| Problem::Unknown(name.to_owned()))
    }
}

/// Parses a template for a value of this type.
pub(crate) fn parse(template: &str, kind: Type, scope: &Scope<'_>) -> Result<Expression, Problem> {
    if template.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(malformed("white space would begin another argument"));
    }
    let (mut rest, mut reads, mut bits) = (template, Vec::new(), None);
    // The last read comes first in the text.
    while let Some(Sign { is_negative, user, rest: after }) = sign(rest) {
        let (text, inside) = after.split_once('(').ok_or_else(|| malformed("an offset needs a pointer: +8(…)"))?;
        let offset = match offset_between(text, scope)? {
            Offset::Plain(offset) => offset,
            Offset::OfBits { offset, width } if reads.is_empty() => {
                bits = Some(width);
                offset
            }
            Offset::OfBits { .. } => return Err(misplaced_bit_field(text)),
        };
        reads.push(Read { offset: if is_negative { negated(offset)? } else { offset }, user });
        rest = inside.strip_suffix(')').ok_or_else(|| malformed("a parenthesis is not closed"))?;
    }
    reads.reverse();
    if bits.is_some_and(|bits| kind.of_bits(bits).is_none()) {
        return Err(malformed("a bit-field is fetched as an unsigned number that has room for it"));
    }
    Ok(Expression { base: base(rest, scope)?, reads, kind, bits })
}

/// Parses the value that an expression begins with.
fn base(text: &str, scope: &Scope<'_>) -> Result<Base, Problem> {
    if text == CALLER {
        return scope.arguments.caller().ok_or_else(|| Problem::Unknown(CALLER.to_owned()));
    }
    if text == RETURNED {
        return Ok(Base::Returned);
    }
    if text == TASK {
        return Ok(Base::Task);
    }
    if text == FILE {
        let [files, fdt, fd] = ["task_struct.files", "files_struct.fdt", "fdtable.fd"].map(|name| offset(name, scope));
        return Ok(Base::File([files?, fdt?, fd?]));
    }
    if text == TRANSPORT {
        let [transport, network, data] =
            ["sk_buff.transport_header", "sk_buff.network_header", "sk_buff.data"].map(|name| offset(name, scope));
        return Ok(Base::Transport([transport?, network?, data?]));
    }
    if text == GSO_SEGMENTS {
        return Ok(Base::GsoSegments);
    }
    if text == GSO_SIZE {
        return Ok(Base::GsoSize);
    }
    let Some(name) = in_braces(text)? else {
        return match text {
            "" => Err(malformed("there is nothing to fetch")),
            text if text.contains(['{', '}', '(', ')']) => {
                Err(malformed("a brace or parenthesis is in the wrong place"))
            }
            text => Ok(Base::Verbatim(text.to_owned())),
        };
    };
    match scope.resolve(name)? {
        Term::Argument(number) => {
            scope.arguments.argument(number).ok_or_else(|| malformed("arguments are counted from 1"))
        }
        Term::Offset(_) | Term::BitField { .. } => {
            Err(Problem::Malformed(format!("{name} is an offset: it needs a sign, +{{{name}}}(…)")))
        }
    }
}

/// A `+`, `-`, `+u` or `-u`, and the text after it.
struct Sign<'a> {
    is_negative: bool,
    /// Whether it stands for user memory.
    user: bool,
    rest: &'a str,
}

/// Splits off a leading sign.
fn sign(text: &str) -> Option<Sign<'_>> {
    let (is_negative, after) = match text.split_at_checked(1)? {
        ("+", after) => (false, after),
        ("-", after) => (true, after),
        _ => return None,
    };
    let of_user_memory = after.strip_prefix('u');
    Some(Sign { is_negative, user: of_user_memory.is_some(), rest: of_user_memory.unwrap_or(after) })
}

/// The text between a sign and a parenthesis.
enum Offset {
    Plain(i64),
    /// The offset of a bit-field.
    OfBits {
        offset: i64,
        width: u8,
    },
}

/// A decimal number, or a sum in braces.
fn offset_between(text: &str, scope: &Scope<'_>) -> Result<Offset, Problem> {
    let Some(inside) = in_braces(text)? else {
        let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        let number = text.parse().ok().filter(|_| is_decimal);
        return number.map(Offset::Plain).ok_or_else(|| malformed("an offset is a decimal number of 64 bits, or {…}"));
    };
    match scope.resolve(inside) {
        Ok(Term::BitField { offset, bits: width }) => Ok(Offset::OfBits { offset, width }),
        _ => sum(inside, scope).map(Offset::Plain),
    }
}

/// The text in braces, if the text begins with a brace.
fn in_braces(text: &str) -> Result<Option<&str>, Problem> {
    let Some(inside) = text.strip_prefix('{') else { return Ok(None) };
    let inside = inside.strip_suffix('}').filter(|inside| !inside.contains(['{', '}']));
    inside.map(Some).ok_or_else(|| malformed("a brace is not closed"))
}

/// The value of `name+8-other`: offsets and decimal numbers, added and subtracted.
fn sum(expression: &str, scope: &Scope<'_>) -> Result<i64, Problem> {
    let mut total = 0_i64;
    let mut rest = expression;
    let mut negative = false;
    loop {
        let end = rest.find(['+', '-']).unwrap_or(rest.len());
        let value = offset(&rest[..end], scope)?;
        let value = if negative { negated(value)? } else { value };
        total = total.checked_add(value).ok_or_else(overflow)?;
        if end == rest.len() {
            return Ok(total);
        }
        negative = rest.as_bytes()[end] == b'-';
        rest = &rest[end + 1..];
    }
}

fn negated(offset: i64) -> Result<i64, Problem> {
    offset.checked_neg().ok_or_else(overflow)
}

fn offset(term: &str, scope: &Scope<'_>) -> Result<i64, Problem> {
    if term.is_empty() {
        return Err(malformed("a term is empty"));
    }
    if term.bytes().all(|byte| byte.is_ascii_digit()) {
        return term.parse().map_err(|_| overflow());
    }
    match scope.resolve(term)? {
        Term::Offset(offset) => Ok(offset),
        Term::BitField { .. } => Err(misplaced_bit_field(term)),
        Term::Argument(_) => {
            Err(Problem::Malformed(format!("{term} is an argument: it cannot be added or subtracted")))
        }
    }
}

fn misplaced_bit_field(name: &str) -> Problem {
    Problem::Malformed(format!("{name} is a bit-field: it is not a pointer and cannot be part of a sum"))
}

fn malformed(problem: &str) -> Problem {
    Problem::Malformed(problem.to_owned())
}

fn overflow() -> Problem {
    malformed("an offset does not fit 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str) -> Option<Term> {
        Some(match name {
            "skb" => Term::Argument(1),
            "len" => Term::Argument(3),
            "seventh" => Term::Argument(7),
            "zeroth" => Term::Argument(0),
            "sk_buff.len" => Term::Offset(112),
            "sk_buff.data" => Term::Offset(208),
            "before" => Term::Offset(-8),
            "least" => Term::Offset(i64::MIN),
            "sock.sk_protocol" => Term::BitField { offset: 517, bits: 8 },
            _ => return None,
        })
    }

    fn on(arguments: Arguments, word: WordSize, template: &str) -> Result<Expression, Problem> {
        parse(template, Type::U64, &Scope { arguments, word, resolve: &names })
    }

    fn on_x86(template: &str) -> Result<String, Problem> {
        on(Arguments::X86_64, WordSize::Eight, template).map(|expression| expression.to_string())
    }

    #[test]
    fn names_become_numbers_and_registers() {
        for (template, text) in [
            ("{skb}", "%di"),
            ("+{sk_buff.len}({skb})", "+112(%di)"),
            ("+12(+{sk_buff.data}({skb}))", "+12(+208(%di))"),
            ("-8(+{sk_buff.data}({skb}))", "-8(+208(%di))"),
            ("+{sk_buff.data+8}({len})", "+216(%dx)"),
            ("+{sk_buff.data-sk_buff.len-8}({len})", "+88(%dx)"),
            ("+{sk_buff.len-sk_buff.data}({skb})", "-96(%di)"),
            ("+{before}({skb})", "-8(%di)"),
            ("-{before}({skb})", "+8(%di)"),
            ("-{before+8}({skb})", "+0(%di)"),
            ("+u{sk_buff.len}({skb})", "+u112(%di)"),
            ("-u{sk_buff.len}({skb})", "-u112(%di)"),
            ("+u0(+{sk_buff.len}({skb}))", "+u0(+112(%di))"),
            ("{seventh}", "$stack1"),
            ("$retval", "$retval"),
            ("+8($retval)", "+8($retval)"),
            ("+8(%di)", "+8(%di)"),
            ("$comm", "$comm"),
            ("\\7", "\\7"),
            ("-0({skb})", "+0(%di)"),
        ] {
            assert_eq!(on_x86(template).as_deref(), Ok(text), "{template}");
        }
    }

    #[test]
    fn a_bit_field_is_fetched_last() {
        let parsed =
            |template| on(Arguments::X86_64, WordSize::Eight, template).map(|parsed| (parsed.to_string(), parsed.bits));
        let field = ("+517(+112(%di))".to_owned(), Some(8));
        assert_eq!(parsed("+{sock.sk_protocol}(+{sk_buff.len}({skb}))"), Ok(field));
        assert_eq!(parsed("+{sk_buff.len}({skb})"), Ok(("+112(%di)".to_owned(), None)));
        for template in ["+8(+{sock.sk_protocol}({skb}))", "+{sock.sk_protocol+1}({skb})"] {
            assert!(matches!(parsed(template), Err(Problem::Malformed(_))), "{template}");
        }
    }

    #[test]
    fn a_word_is_as_long_as_the_kernels() {
        let text = |arguments, word| on(arguments, word, "+{word}(+{sk_buff.data-word}({skb}))").unwrap().to_string();
        assert_eq!(text(Arguments::X86_64, WordSize::Eight), "+8(+200(%di))");
        assert_eq!(text(Arguments::X86, WordSize::Four), "+4(+204(%ax))");
    }

    #[test]
    fn the_return_address_depends_on_the_machine() {
        let text = |arguments| on(arguments, WordSize::Eight, "$caller").map(|caller| caller.to_string());
        assert_eq!(text(Arguments::X86_64).as_deref(), Ok("$stack0"));
        assert_eq!(text(Arguments::Aarch64).as_deref(), Ok("%lr"));
        assert_eq!(text(Arguments::Numbered), Err(Problem::Unknown("$caller".to_owned())));
    }

    #[test]
    fn a_missing_name_is_named() {
        for template in ["{sock}", "+{sock}({skb})", "+{sk_buff.len+sock}({skb})"] {
            assert_eq!(on_x86(template), Err(Problem::Unknown("sock".to_owned())), "{template}");
        }
    }

    #[test]
    fn malformed_templates_are_refused() {
        for template in [
            "{skb",
            "skb}",
            "+{}({skb})",
            "+{sk_buff.len+}({skb})",
            "{sk_buff.len}",
            "+{skb}({skb})",
            "{zeroth}",
            "-{least}({skb})",
            "+{sk_buff.len+9223372036854775807}({skb})",
            "+{99999999999999999999}({skb})",
            "",
            "+8()",
            "+8{skb}",
            "+({skb})",
            "+010({skb})",
            "+8({skb}",
            "+8({skb}))",
            "{skb}{skb}",
            "+{sk_buff.len}8({skb})",
            "{skb} p:a/b c",
            "{skb}\n",
        ] {
            assert!(matches!(on_x86(template), Err(Problem::Malformed(_))), "{template}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_template_panics(template in "[+\\-u{}()a-z0-9.$ é]{0,40}") {
            let resolve = |name: &str| names(name).or(Some(Term::Offset(name.len() as i64)));
            let scope = Scope { arguments: Arguments::X86_64, word: WordSize::Eight, resolve: &resolve };
            let _ = parse(&template, Type::U64, &scope);
        }
    }
}
