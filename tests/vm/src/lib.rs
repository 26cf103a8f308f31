//! The protocol between the runner on the host (`vm`), process 1 of the guest (`vm-init`) and the tests in the guest.
//!
//! A guest sends data to its host over virtio ports, one for each purpose, so that a command's output arrives
//! unchanged. The kernel's console is a serial port. See [`Port`] for the ports, and [`Ending`] for the line at the end
//! of a run.

mod ending;
mod port;

pub use ending::{Ending, ParseEndingError};
pub use port::{ALL_PORTS, Port};

/// The file of the initramfs with the command that the guest runs.
pub const COMMAND_FILE: &str = "/etc/vm-command";

/// The kernel argument that makes systemd process 1 of the guest. The guest needs Debian's package `systemd`.
pub const SYSTEMD: &str = "socktrail.systemd";

/// The folder of the guest that is copied to the host.
pub const OUT_DIR: &str = "/out";

/// The host's answer on [`Port::Status`] when everything has arrived. The guest then powers off.
pub const ACKNOWLEDGED: &[u8] = b"ok\n";

/// The environment variable that selects tests: prefixes of their names, separated by spaces. A `-` before a prefix
/// leaves tests out; if all prefixes have one, all other tests run.
pub const TESTS_VARIABLE: &str = "GUEST_TESTS";

/// The file in [`OUT_DIR`] with the tests' results.
pub const RESULT_FILE: &str = "result.json";

/// The file in [`OUT_DIR`] with the result of the layout test.
pub const LAYOUT_FILE: &str = "layout.json";

/// The name of the program with the kernel tests of `kprobes/`.
pub const KPROBES_TESTS: &str = "kprobes-tests";

/// The environment variable with an older kernel's release, for Socktrail's option `--as-of`.
pub const AS_OF_VARIABLE: &str = "AS_OF";

/// The environment variable that says how `socktrail flows` observes the kernel: the value of its option `--backend`.
pub const BACKEND_VARIABLE: &str = "BACKEND";
/// The environment variable that says how `socktrail flows` counts packets: the value of its option `--accounting`.
pub const ACCOUNTING_VARIABLE: &str = "ACCOUNTING";

/// The environment variable with the seed of random traffic. Without it, a new seed is chosen.
pub const TORTURE_SEED_VARIABLE: &str = "TORTURE_SEED";

/// The environment variable with the duration of random traffic in seconds.
pub const TORTURE_SECONDS_VARIABLE: &str = "TORTURE_SECONDS";

/// The environment variable with the kinds of random traffic to leave out, separated by commas.
pub const TORTURE_WITHOUT_VARIABLE: &str = "TORTURE_WITHOUT";
