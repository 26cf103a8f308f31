//! The kernels that guests can boot, and the matrix of tested ones.

use std::fmt;

use clap::ValueEnum;

/// The tested kernels. By default, every test runs on the first one.
pub const MATRIX: &[(Kernel, Arch)] = &[
    (Kernel::V6_1, Arch::X86_64),
    (Kernel::V5_10, Arch::X86_64),
    (Kernel::V6_12, Arch::X86_64),
    (Kernel::V7_2, Arch::X86_64),
    (Kernel::V6_1, Arch::Aarch64),
    (Kernel::V6_12, Arch::Aarch64),
    (Kernel::V6_1, Arch::I686),
    (Kernel::V5_10, Arch::I686),
];

/// A kernel series that Debian ships.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kernel {
    /// Debian 11.
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13, also in Debian 12.
    #[value(name = "6.12")]
    V6_12,
    /// Debian unstable.
    #[value(name = "7.2")]
    V7_2,
}

/// A Debian release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suite {
    /// Its code name.
    pub name: &'static str,
    /// The suite of its security updates.
    pub security: Option<&'static str>,
}

const BULLSEYE: Suite = Suite { name: "bullseye", security: Some("bullseye-security") };
const BOOKWORM: Suite = Suite { name: "bookworm", security: Some("bookworm-security") };
const SID: Suite = Suite { name: "sid", security: None };

/// The release of the guest's programs, with every kernel.
pub const USERLAND: Suite = BOOKWORM;

impl Kernel {
    /// The series' number, as users write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_2 => "7.2",
        }
    }

    /// The release that ships it.
    pub const fn suite(self) -> Suite {
        match self {
            Self::V5_10 => BULLSEYE,
            Self::V6_1 | Self::V6_12 => BOOKWORM,
            Self::V7_2 => SID,
        }
    }

    /// The package that depends on the newest kernel of the series.
    pub fn meta_package(self, arch: Arch) -> String {
        let series = if self == Self::V6_12 { "-6.12" } else { "" };
        match arch {
            // There is no cloud kernel.
            Arch::I686 => format!("linux-image{series}-686-pae"),
            Arch::X86_64 | Arch::Aarch64 => format!("linux-image{series}-cloud-{}", arch.debian()),
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A processor architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// 64-bit x86.
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    #[value(name = "aarch64")]
    Aarch64,
    /// 32-bit x86.
    #[value(name = "i686")]
    I686,
}

impl Arch {
    /// The name that Rust and QEMU use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
            Self::I686 => "i686",
        }
    }

    /// The name that Debian uses.
    pub const fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
            Self::I686 => "i386",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
