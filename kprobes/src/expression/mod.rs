//! Fetch expressions: a base value, and the memory reads that start from it.
//!
//! A [template](template) becomes an [`Expression`] once its names are resolved. An expression has two forms: the text
//! of a fetch argument for tracefs, and the instructions of a BPF program ([`crate::bpf`]).

mod arguments;
mod template;

use std::fmt;

pub(crate) use self::arguments::Arguments;
pub(crate) use self::template::{Problem, Scope, parse};
pub use self::template::{Resolver, Term};

use crate::Type;

/// A fetch argument with all names resolved.
///
/// ```
/// use socktrail_kprobes::{Fetch, Target, Term, Type};
///
/// let layout = |_: &str, name: &str| match name {
///     "skb" => Some(Term::Argument(1)),
///     "sk_buff.data" => Some(Term::Offset(208)),
///     _ => None,
/// };
/// let target = Target::Kprobe { function: "tcp_v4_rcv" };
/// let ports = Fetch::new("ports", "+0(+{sk_buff.data}({skb}))", Type::U32).expression("tcp_in", target, &layout)?;
/// # #[cfg(target_arch = "x86_64")]
/// assert_eq!(ports.to_string(), "+0(+208(%di))");
/// # Ok::<(), socktrail_kprobes::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Expression {
    /// The value that it begins with.
    pub(crate) base: Base,
    /// The memory reads, in order. Each read except the last yields the pointer for the next one.
    pub(crate) reads: Vec<Read>,
    /// The type of the value.
    pub(crate) kind: Type,
    /// For a bit-field, how many of the value's lowest bits belong to it.
    pub(crate) bits: Option<u8>,
}

/// A value that needs no read at an address: a register, or a word of the stack.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Base {
    /// The register of this name: `%di`.
    Register(&'static str),
    /// A word of the stack, counted from the top: `$stack1`.
    Stack(u8),
    /// The argument with this number, wherever it is: `$arg1`.
    Argument(u8),
    /// The return value of the function: `$retval`.
    Returned,
    /// The context of a program at a [hook](crate::Hook): the address of an object.
    Context,
    /// A word of that context, at this offset in bytes.
    ContextWord(i16),
    /// The running thread's `struct task_struct`: `$task`.
    Task,
    /// The `struct file` of the descriptor that a system call returns: `$file`. The offsets of `task_struct.files`,
    /// `files_struct.fdt` and `fdtable.fd`.
    File([i64; 3]),
    /// The first byte of a packet's transport header: `$transport`. The offsets of `sk_buff.transport_header`,
    /// `sk_buff.network_header` and `sk_buff.data`.
    Transport([i64; 3]),
    /// How many packets on the wire a packet stands for (GSO, GRO); 0 for an ordinary one: `$gso_segs`.
    GsoSegments,
    /// The payload of each of these packets in bytes; 0 for an ordinary packet: `$gso_size`.
    GsoSize,
    /// Text that only the kernel interprets: `$comm`, `\1`.
    Verbatim(String),
}

/// A read at an offset from a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Read {
    /// Bytes from the pointer.
    pub(crate) offset: i64,
    /// Whether it reads user memory.
    pub(crate) user: bool,
}

impl Expression {
    /// The type of the value.
    pub fn kind(&self) -> Type {
        self.kind
    }

    /// The pointer of the last read, and the offset of that read in bytes. `None` if nothing is read. Expressions with
    /// equal pointers read the same object.
    pub fn pointer(&self) -> Option<(Self, i64)> {
        let (last, before) = self.reads.split_last()?;
        let pointer = Self { base: self.base.clone(), reads: before.to_vec(), kind: Type::U64, bits: None };
        Some((pointer, last.offset))
    }

    /// A part of this value, or a value after it: `by` bytes after its start in memory. `None` if nothing is read.
    pub fn part(&self, by: usize, kind: Type) -> Option<Self> {
        let mut shifted = Self { kind, bits: None, ..self.clone() };
        let last = shifted.reads.last_mut()?;
        last.offset = last.offset.checked_add(i64::try_from(by).ok()?)?;
        Some(shifted)
    }

    /// The text of a fetch argument. Kernels before 5.3 have the same syntax for kernel and user memory. `user_memory`
    /// says whether this kernel distinguishes them.
    pub(crate) fn text(&self, user_memory: bool) -> String {
        let mut text = String::new();
        for Read { offset, user } in self.reads.iter().rev() {
            text.push(if *offset < 0 { '-' } else { '+' });
            text.push_str(if *user && user_memory { "u" } else { "" });
            text.push_str(&offset.unsigned_abs().to_string());
            text.push('(');
        }
        text.push_str(&self.base.to_string());
        text.extend(self.reads.iter().map(|_| ')'));
        text
    }

    /// The type as the kernel spells it.
    pub(crate) fn type_text(&self) -> String {
        self.bits.and_then(|bits| self.kind.of_bits(bits)).unwrap_or_else(|| self.kind.to_string())
    }
}

/// The text of the fetch argument.
impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(true))
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register(name) => write!(f, "%{name}"),
            Self::Stack(index) => write!(f, "$stack{index}"),
            Self::Argument(number) => write!(f, "$arg{number}"),
            Self::Returned => f.write_str("$retval"),
            Self::Context => f.write_str("$context"),
            Self::ContextWord(offset) => write!(f, "$context[{offset}]"),
            Self::Task => f.write_str("$task"),
            Self::File(_) => f.write_str("$file"),
            Self::Transport(_) => f.write_str("$transport"),
            Self::GsoSegments => f.write_str("$gso_segs"),
            Self::GsoSize => f.write_str("$gso_size"),
            Self::Verbatim(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WordSize;

    /// The templates of all probes of Socktrail, and the text of each on x86_64 with the made-up layout of [`names`].
    const DECLARED: &str = include_str!("declared.txt");

    fn names(name: &str) -> Option<Term> {
        Some(match name.split_once('.') {
            None => Term::Argument(1 + name.len() as u8 % 9),
            Some(("sock", "sk_protocol")) => Term::BitField { offset: 517, bits: 8 },
            Some((whole, field)) => Term::Offset((8 * whole.len() + field.len()) as i64),
        })
    }

    fn on_x86(template: &str) -> Expression {
        let scope = Scope { arguments: Arguments::X86_64, word: WordSize::Eight, resolve: &names };
        parse(template, Type::U64, &scope).unwrap()
    }

    #[test]
    fn the_text_of_declared_probes() {
        let lines: Vec<_> = DECLARED.lines().collect();
        assert!(lines.len() > 200);
        for line in lines {
            let (template, text) = line.split_once('\t').unwrap();
            assert_eq!(on_x86(template).text(true), text, "{template}");
        }
    }

    #[test]
    fn expressions_of_one_object_have_one_pointer() {
        let (addresses, ports) = (on_x86("+12(+{sk_buff.data}({skb}))"), on_x86("-8(+{sk_buff.data}({skb}))"));
        let data = on_x86("+{sk_buff.data}({skb})");
        assert_eq!(addresses.pointer(), Some((data.clone(), 12)));
        assert_eq!(ports.pointer(), Some((data.clone(), -8)));
        assert_eq!(data.pointer().unwrap().0.to_string(), "%cx");
        assert_eq!(data.pointer().unwrap().0.pointer(), None);
    }

    #[test]
    fn older_kernels_have_one_syntax_for_all_memory() {
        let path = on_x86("+u0(+8({skb}))");
        assert_eq!((path.text(true), path.text(false)), ("+u0(+8(%cx))".to_owned(), "+0(+8(%cx))".to_owned()));
    }
}
