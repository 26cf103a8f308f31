/// A virtio port between guest and host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// The command's standard output, guest to host.
    Stdout = 1,
    /// The command's standard error, guest to host.
    Stderr = 2,
    /// A tar archive of [`OUT_DIR`](crate::OUT_DIR), guest to host.
    Out = 3,
    /// An [`Ending`](crate::Ending) to the host, then [`ACKNOWLEDGED`](crate::ACKNOWLEDGED) to the guest.
    Status = 4,
}

/// Every port, in the order of their numbers.
pub const ALL_PORTS: [Port; 4] = [Port::Stdout, Port::Stderr, Port::Out, Port::Status];

impl Port {
    /// The port's number on the bus; number 0 is reserved for consoles.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The port's device in the guest.
    pub fn device(self) -> String {
        format!("/dev/vport0p{}", self.number())
    }

    /// The port's name for QEMU.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Out => "out",
            Self::Status => "status",
        }
    }
}
