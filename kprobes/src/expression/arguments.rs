//! The places of a function's arguments, by architecture.

use super::Base;
use crate::WordSize;

/// How a probe reads the arguments of its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// At the entry of a function on x86_64: registers, then the stack above the return address.
    X86_64,
    /// The same on 32-bit x86 (`-mregparm=3`), counted in words: a 64-bit number takes two.
    X86,
    /// A system call on 32-bit x86 before Linux 4.17 (`asmlinkage`): all on the stack, above the return address.
    X86SystemCall,
    /// At the entry of a function on aarch64: registers, then the stack.
    Aarch64,
    /// The context of a program at a hook, which is the address of the only argument.
    Context,
    /// The words of the context of a program at a raw tracepoint.
    ContextWords,
    /// `$argN`, which the kernel resolves. For all other machines, and for the return of a function (Linux 6.9).
    Numbered,
}

const X86_64: [&str; 6] = ["di", "si", "dx", "cx", "r8", "r9"];
const X86: [&str; 3] = ["ax", "dx", "cx"];
const AARCH64: [&str; 8] = ["x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7"];

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

    /// The return address at the function's entry. `None` if we do not know how to read it on this machine.
    pub(crate) const fn caller(self) -> Option<Base> {
        match self {
            Self::X86_64 | Self::X86 | Self::X86SystemCall => Some(Base::Stack(0)),
            Self::Aarch64 => Some(Base::Register("lr")),
            Self::Context | Self::ContextWords | Self::Numbered => None,
        }
    }

    /// The argument of this number, counted from 1; `None` for 0.
    pub(crate) fn argument(self, number: u8) -> Option<Base> {
        let index = number.checked_sub(1)?;
        let (registers, above): (&[&'static str], u8) = match self {
            Self::X86_64 => (&X86_64, 1),
            Self::X86 => (&X86, 1),
            Self::X86SystemCall => (&[], 1),
            Self::Aarch64 => (&AARCH64, 0),
            Self::Context => return (index == 0).then_some(Base::Context),
            Self::ContextWords => return Some(Base::ContextWord(i16::from(index) * 8)),
            Self::Numbered => return Some(Base::Argument(number)),
        };
        Some(match registers.get(usize::from(index)) {
            Some(register) => Base::Register(register),
            None => Base::Stack(index - registers.len() as u8 + above),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_machine_has_its_own_arguments() {
        let text = |arguments: Arguments, number| arguments.argument(number).unwrap().to_string();
        assert_eq!(text(Arguments::X86_64, 4), "%cx");
        assert_eq!(text(Arguments::X86_64, 8), "$stack2");
        assert_eq!(
            [1, 2, 3, 4, 5].map(|number| text(Arguments::X86, number)),
            ["%ax", "%dx", "%cx", "$stack1", "$stack2"]
        );
        assert_eq!(text(Arguments::X86SystemCall, 1), "$stack1");
        assert_eq!(text(Arguments::Aarch64, 1), "%x0");
        assert_eq!(text(Arguments::Aarch64, 8), "%x7");
        assert_eq!(text(Arguments::Aarch64, 9), "$stack0");
        assert_eq!(text(Arguments::Numbered, 9), "$arg9");
        assert_eq!(Arguments::X86_64.argument(0), None);
        assert_eq!(text(Arguments::X86SystemCall, 255), "$stack255");
    }
}
