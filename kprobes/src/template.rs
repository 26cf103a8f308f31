//! Fetch arguments that name layout instead of numbers.
//!
//! `+{sk_buff.len}({skb})` becomes `+112(%di)` once a [`Resolver`] has said that `sk_buff.len` is at 112 and
//! that `skb` is the first argument. Whatever stands outside braces is copied.

use std::fmt::Write;

use crate::WordSize;

/// What a name in a template stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Term {
    /// Bytes from the start of a structure: `{sk_buff.len}`.
    Offset(i64),
    /// A bit-field that starts at a byte boundary: the offset of that byte, and the width in bits. A template that begins
    /// with it fetches these bits alone.
    BitField {
        /// Bytes from the start of the structure.
        offset: i64,
        /// How many bits it has.
        bits: u8,
    },
    /// The function's argument of this number, counted from 1: `{skb}`.
    Argument(u8),
}

/// Knows what the names in templates mean.
///
/// Closures are resolvers too:
///
/// ```
/// use socktrail_kprobes::{Resolver, Term};
/// let resolver = |_function: &str, name: &str| (name == "skb").then_some(Term::Argument(1));
/// assert_eq!(resolver.resolve("ip_local_out", "skb"), Some(Term::Argument(1)));
/// ```
pub trait Resolver {
    /// What `{name}` means in a probe on `function`; `None` when it is not known.
    fn resolve(&self, function: &str, name: &str) -> Option<Term>;
}

impl<F: Fn(&str, &str) -> Option<Term>> Resolver for F {
    fn resolve(&self, function: &str, name: &str) -> Option<Term> {
        self(function, name)
    }
}

/// Why a template could not be expanded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The resolver does not know this name.
    Unknown(String),
    /// The template does not follow the syntax.
    Malformed(String),
}

/// In a sum, the bytes of a word of the kernel: `+{word}(…)` is the second of two pointers.
const WORD: &str = "word";

/// How a probe reads the arguments of its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// At the entry of a function on x86_64: registers, then the stack above the return address.
    X86_64,
    /// The same on 32-bit x86 (`-mregparm=3`), counted in words: a number of 64 bits is two of them.
    X86,
    /// A system call on 32-bit x86 before Linux 4.17 (`asmlinkage`): all on the stack, above the return address.
    X86SystemCall,
    /// At the entry of a function on aarch64: registers, then the stack.
    Aarch64,
    /// `$argN`: the kernel knows. Any other machine, and the return of a function (Linux 6.9).
    Numbered,
}

impl Arguments {
    /// At the entry of a function on this machine, with a kernel of this word size.
    pub(crate) fn at_entry(function: &str, word: WordSize) -> Self {
        match word {
            WordSize::Four
                if cfg!(any(target_arch = "x86_64", target_arch = "x86")) && function.starts_with("sys_") =>
            {
                Self::X86SystemCall
            }
            WordSize::Four if cfg!(any(target_arch = "x86_64", target_arch = "x86")) => Self::X86,
            WordSize::Eight if cfg!(any(target_arch = "x86_64", target_arch = "x86")) => Self::X86_64,
            WordSize::Eight if cfg!(target_arch = "aarch64") => Self::Aarch64,
            _ => Self::Numbered,
        }
    }

    /// Where the function returns to, at its entry; `None` where it is not known how to read that.
    pub(crate) const fn caller(self) -> Option<&'static str> {
        match self {
            Self::X86_64 | Self::X86 | Self::X86SystemCall => Some("$stack0"),
            Self::Aarch64 => Some("%lr"),
            Self::Numbered => None,
        }
    }

    fn text(self, number: u8) -> String {
        const X86_64: [&str; 6] = ["%di", "%si", "%dx", "%cx", "%r8", "%r9"];
        const X86: [&str; 3] = ["%ax", "%dx", "%cx"];
        let index = usize::from(number) - 1;
        let or_stack = |registers: &[&str]| match registers.get(index) {
            Some(register) => (*register).to_owned(),
            None => format!("$stack{}", index - registers.len() + 1),
        };
        match self {
            Self::X86_64 => or_stack(&X86_64),
            Self::X86 => or_stack(&X86),
            Self::X86SystemCall => or_stack(&[]),
            Self::Aarch64 if index < 8 => format!("%x{index}"),
            Self::Aarch64 => format!("$stack{}", index - 8),
            Self::Numbered => format!("$arg{number}"),
        }
    }
}

/// What a template has become.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expression {
    /// As the kernel reads it.
    pub(crate) text: String,
    /// How many bits of the value count, where it is a bit-field.
    pub(crate) bits: Option<u8>,
}

/// Replaces every `{…}` of `template`.
pub(crate) fn expand(
    template: &str,
    arguments: Arguments,
    word: WordSize,
    resolve: &dyn Fn(&str) -> Option<Term>,
) -> Result<Expression, Problem> {
    let resolve: &dyn Fn(&str) -> Option<Term> =
        &|name| if name == WORD { Some(Term::Offset(word.bytes().into())) } else { resolve(name) };
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    let mut bits = None;
    while let Some(open) = rest.find('{') {
        let (before, braced) = rest.split_at(open);
        let close = braced.find('}').ok_or_else(|| malformed("a brace is not closed"))?;
        let inside = &braced[1..close];
        if let Some((copied, sign, user)) = ends_in_sign(before) {
            let sum = match resolve(inside) {
                // What comes first in the text is fetched last: its bits are the value.
                Some(Term::BitField { offset, bits: width }) if text.is_empty() && copied.is_empty() => {
                    bits = Some(width);
                    offset
                }
                _ => sum(inside, resolve)?,
            };
            let sum = if sign == '-' { sum.checked_neg().ok_or_else(overflow)? } else { sum };
            text.push_str(copied);
            let sign = if sum < 0 { '-' } else { '+' };
            let _ = write!(text, "{sign}{user}{}", sum.unsigned_abs());
        } else {
            text.push_str(before);
            match resolve(inside) {
                None => return Err(Problem::Unknown(inside.to_owned())),
                Some(Term::Argument(0)) => return Err(malformed("arguments are counted from 1")),
                Some(Term::Argument(number)) => text.push_str(&arguments.text(number)),
                Some(Term::Offset(_) | Term::BitField { .. }) => {
                    return Err(Problem::Malformed(format!(
                        "{inside} is an offset: it needs a sign, +{{{inside}}}(…)"
                    )));
                }
            }
        }
        rest = &braced[close + 1..];
    }
    text.push_str(rest);
    if text.contains('}') {
        return Err(malformed("a brace is not opened"));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(malformed("white space would begin another argument"));
    }
    Ok(Expression { text, bits })
}

/// Splits a trailing `+`, `-`, `+u` or `-u` off.
fn ends_in_sign(text: &str) -> Option<(&str, char, &'static str)> {
    let (text, user) = match text.strip_suffix('u') {
        Some(shorter) => (shorter, "u"),
        None => (text, ""),
    };
    let sign = text.chars().next_back().filter(|c| matches!(c, '+' | '-'))?;
    Some((&text[..text.len() - 1], sign, user))
}

/// The value of `name+8-other`: offsets and decimal numbers, added and subtracted.
fn sum(expression: &str, resolve: &dyn Fn(&str) -> Option<Term>) -> Result<i64, Problem> {
    let mut total = 0_i64;
    let mut rest = expression;
    let mut negative = false;
    loop {
        let end = rest.find(['+', '-']).unwrap_or(rest.len());
        let value = offset(&rest[..end], resolve)?;
        let value = if negative { value.checked_neg().ok_or_else(overflow)? } else { value };
        total = total.checked_add(value).ok_or_else(overflow)?;
        if end == rest.len() {
            return Ok(total);
        }
        negative = rest.as_bytes()[end] == b'-';
        rest = &rest[end + 1..];
    }
}

fn offset(term: &str, resolve: &dyn Fn(&str) -> Option<Term>) -> Result<i64, Problem> {
    if term.is_empty() {
        return Err(malformed("a term is empty"));
    }
    if term.bytes().all(|byte| byte.is_ascii_digit()) {
        return term.parse().map_err(|_| overflow());
    }
    match resolve(term) {
        None => Err(Problem::Unknown(term.to_owned())),
        Some(Term::Offset(offset)) => Ok(offset),
        Some(Term::BitField { .. }) => {
            Err(Problem::Malformed(format!("{term} is a bit-field: no pointer, part of no sum")))
        }
        Some(Term::Argument(_)) => {
            Err(Problem::Malformed(format!("{term} is an argument: no sign before it, none after it")))
        }
    }
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

    fn on_x86(template: &str) -> Result<String, Problem> {
        expand(template, Arguments::X86_64, WordSize::Eight, &names).map(|expression| expression.text)
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
        ] {
            assert_eq!(on_x86(template).as_deref(), Ok(text), "{template}");
        }
    }

    #[test]
    fn a_bit_field_is_what_is_fetched_last() {
        let expanded = |template| {
            expand(template, Arguments::X86_64, WordSize::Eight, &names).map(|Expression { text, bits }| (text, bits))
        };
        let field = ("+517(+112(%di))".to_owned(), Some(8));
        assert_eq!(expanded("+{sock.sk_protocol}(+{sk_buff.len}({skb}))"), Ok(field));
        assert_eq!(expanded("+{sk_buff.len}({skb})"), Ok(("+112(%di)".to_owned(), None)));
        for template in ["+8(+{sock.sk_protocol}({skb}))", "+{sock.sk_protocol+1}({skb})"] {
            assert!(matches!(expanded(template), Err(Problem::Malformed(_))), "{template}");
        }
    }

    #[test]
    fn each_machine_has_its_own_arguments() {
        let all = |arguments: Arguments, number| arguments.text(number);
        assert_eq!(all(Arguments::X86_64, 4), "%cx");
        assert_eq!(all(Arguments::X86_64, 8), "$stack2");
        assert_eq!(
            [1, 2, 3, 4, 5].map(|number| all(Arguments::X86, number)),
            ["%ax", "%dx", "%cx", "$stack1", "$stack2"]
        );
        assert_eq!(all(Arguments::Aarch64, 1), "%x0");
        assert_eq!(all(Arguments::Aarch64, 8), "%x7");
        assert_eq!(all(Arguments::Aarch64, 9), "$stack0");
        assert_eq!(all(Arguments::Numbered, 9), "$arg9");
    }

    #[test]
    fn a_word_is_as_long_as_the_kernels() {
        let on =
            |arguments, word| expand("+{word}(+{sk_buff.data-word}({skb}))", arguments, word, &names).unwrap().text;
        assert_eq!(on(Arguments::X86_64, WordSize::Eight), "+8(+200(%di))");
        assert_eq!(on(Arguments::X86, WordSize::Four), "+4(+204(%ax))");
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
            "{skb} p:a/b c",
            "{skb}\n",
        ] {
            assert!(matches!(on_x86(template), Err(Problem::Malformed(_))), "{template}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_template_panics(template in "[+\\-u{}()a-z0-9.$ é]{0,40}") {
            let _ = expand(&template, Arguments::X86_64, WordSize::Eight, &|name| names(name).or(Some(Term::Offset(name.len() as i64))));
        }
    }
}
