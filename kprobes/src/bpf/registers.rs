//! The offsets of registers in `struct pt_regs`, the context of a program at a kprobe. They are ABI of each
//! architecture (`asm/ptrace.h`).

/// The architectures whose registers are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    X86_64,
    Aarch64,
}

/// The registers in the order of `struct pt_regs`, eight bytes each.
const X86_64: [&str; 21] = [
    "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di", "orig_ax", "ip",
    "cs", "flags", "sp", "ss",
];

impl Architecture {
    /// The architecture of this build, if its registers are known. x32 and big-endian aarch64 are not supported.
    pub(super) const OURS: Option<Self> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
        Some(Self::X86_64)
    } else if cfg!(all(target_arch = "aarch64", target_pointer_width = "64", target_endian = "little")) {
        Some(Self::Aarch64)
    } else {
        None
    };

    /// The offset in bytes of the register with this name in tracefs.
    pub(super) fn register(self, name: &str) -> Option<i16> {
        let index = match self {
            Self::X86_64 => X86_64.iter().position(|register| *register == name)?,
            Self::Aarch64 => match name {
                "lr" => 30,
                "sp" => 31,
                "pc" => 32,
                numbered => numbered.strip_prefix('x')?.parse().ok().filter(|number| *number <= 30)?,
            },
        };
        i16::try_from(8 * index).ok()
    }

    /// The register that holds the return value of a function.
    pub(super) const fn returned(self) -> &'static str {
        match self {
            Self::X86_64 => "ax",
            Self::Aarch64 => "x0",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expression::{Arguments, Base};

    /// `ptrace(2)` returns the layout of `struct pt_regs`.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn registers_are_where_ptrace_has_them() {
        use std::mem::offset_of;

        use libc::user_regs_struct as regs;
        for (name, offset) in [
            ("r15", offset_of!(regs, r15)),
            ("r14", offset_of!(regs, r14)),
            ("r13", offset_of!(regs, r13)),
            ("r12", offset_of!(regs, r12)),
            ("bp", offset_of!(regs, rbp)),
            ("bx", offset_of!(regs, rbx)),
            ("r11", offset_of!(regs, r11)),
            ("r10", offset_of!(regs, r10)),
            ("r9", offset_of!(regs, r9)),
            ("r8", offset_of!(regs, r8)),
            ("ax", offset_of!(regs, rax)),
            ("cx", offset_of!(regs, rcx)),
            ("dx", offset_of!(regs, rdx)),
            ("si", offset_of!(regs, rsi)),
            ("di", offset_of!(regs, rdi)),
            ("orig_ax", offset_of!(regs, orig_rax)),
            ("ip", offset_of!(regs, rip)),
            ("cs", offset_of!(regs, cs)),
            ("flags", offset_of!(regs, eflags)),
            ("sp", offset_of!(regs, rsp)),
            ("ss", offset_of!(regs, ss)),
        ] {
            assert_eq!(Architecture::X86_64.register(name), i16::try_from(offset).ok(), "{name}");
        }
        assert_eq!(Architecture::X86_64.register("x0"), None);
    }

    /// `struct user_pt_regs`: 31 registers, sp, pc, pstate.
    #[test]
    fn registers_of_aarch64_are_in_order() {
        let of = |name| Architecture::Aarch64.register(name);
        assert_eq!([of("x0"), of("x7"), of("x30"), of("lr")], [Some(0), Some(56), Some(240), Some(240)]);
        assert_eq!([of("sp"), of("pc")], [Some(248), Some(256)]);
        assert_eq!([of("x31"), of("x"), of("di"), of("")], [None; 4]);
    }

    #[test]
    fn every_register_of_an_argument_is_known() {
        for (architecture, arguments) in
            [(Architecture::X86_64, Arguments::X86_64), (Architecture::Aarch64, Arguments::Aarch64)]
        {
            let bases = (1..=20).filter_map(|number| arguments.argument(number)).chain(arguments.caller());
            for base in bases {
                if let Base::Register(name) = base {
                    assert!(architecture.register(name).is_some(), "{name}");
                }
            }
            assert!(architecture.register(architecture.returned()).is_some());
        }
    }
}
