//! What the runner on the host (`vm`) and process 1 of the guest (`vm-init`) must agree on.
//!
//! A guest talks to its host over virtio ports, one a purpose, so that what a command writes arrives byte for
//! byte; the kernel's console has a serial line of its own. See [`Port`] for the ports and [`Ending`] for the
//! one line that ends a run.

mod ending;
mod port;

pub use ending::{Ending, ParseEndingError};
pub use port::{ALL_PORTS, Port};

/// The file of the initramfs that holds the command that the guest is to run.
pub const COMMAND_FILE: &str = "/etc/vm-command";

/// The kernel argument that makes systemd, of the package of this name, process 1 of the guest.
pub const SYSTEMD: &str = "socktrail.systemd";

/// The folder of the guest that comes back to the host.
pub const OUT_DIR: &str = "/out";

/// What the host writes to [`Port::Status`] once everything has arrived, and the guest may power off.
pub const ACKNOWLEDGED: &[u8] = b"ok\n";

/// The environment variable that tells the guest's tests which of them to run: the beginnings of their names, with
/// spaces between them. A `-` before a beginning leaves tests out; if there are only such, all others run.
pub const TESTS_VARIABLE: &str = "GUEST_TESTS";

/// The file of [`OUT_DIR`] in which the tests leave how many of them passed.
pub const RESULT_FILE: &str = "result.json";

/// The file of [`OUT_DIR`] in which the test of the kernel's layout leaves what it found.
pub const LAYOUT_FILE: &str = "layout.json";

/// The program with the kernel tests of `kprobes/`.
pub const KPROBES_TESTS: &str = "kprobes-tests";

/// The environment variable with the release of an older kernel that Socktrail is to behave as of (`--as-of`).
pub const AS_OF_VARIABLE: &str = "AS_OF";

/// The environment variable with the seed of random traffic; without it a new one is chosen.
pub const TORTURE_SEED_VARIABLE: &str = "TORTURE_SEED";

/// The environment variable that says for how many seconds random traffic is made.
pub const TORTURE_SECONDS_VARIABLE: &str = "TORTURE_SECONDS";

/// The environment variable with the kinds of random traffic that are left out, with commas between them.
pub const TORTURE_WITHOUT_VARIABLE: &str = "TORTURE_WITHOUT";
