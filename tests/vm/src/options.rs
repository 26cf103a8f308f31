//! The command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser, Subcommand};

use crate::matrix::{Arch, Kernel};

/// Exit status: the guest's kernel broke (oops, BUG, panic, stall).
pub const EXIT_KERNEL: u8 = 123;
/// Exit status: the guest did not end in time.
pub const EXIT_TIMEOUT: u8 = 124;
/// Exit status: the runner itself failed, to build, to fetch or to boot.
pub const EXIT_RUNNER: u8 = 125;
/// Exit status: Ctrl-C.
pub const EXIT_INTERRUPTED: u8 = 130;

/// Boots Debian kernels under QEMU and runs Socktrail in them.
#[derive(Debug, Parser)]
#[command(
    name = "vm",
    bin_name = "cargo vm",
    after_help = "Kernels and packages are fetched with apt once and kept in ${SOCKTRAIL_VM_CACHE:-~/.cache/socktrail}; \
                  QEMU is installed with apt when it is missing.\n\n\
                  Exit status: that of the guest's command; 123 a kernel oops, panic or stall; 124 timeout; \
                  125 the runner could not build, fetch or boot."
)]
pub struct Options {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Boot a guest and run one shell command in it.
    Run(RunOptions),
    /// Run the kernel tests in guests.
    Test(TestOptions),
    /// Make real traffic, here or in a guest, and print the documents that socktrail makes of it.
    Demo(DemoOptions),
    /// Count the instructions that packets and processes cost with and without a monitor.
    Bench(BenchOptions),
    /// Make the recordings of tests/data again, and the documents of their replay.
    Record(RecordOptions),
}

/// Options of `vm run`.
#[derive(Debug, Args)]
pub struct RunOptions {
    /// The machine to boot.
    #[command(flatten)]
    pub machine: MachineOptions,
    /// A Debian package to unpack in the guest, with everything it depends on; no maintainer script runs.
    #[arg(long = "package", value_name = "DEBIAN_PACKAGE")]
    pub packages: Vec<String>,
    /// Let systemd (with --package systemd) be process 1 and manage services while the command runs beside it.
    #[arg(long)]
    pub systemd: bool,
    /// An example of the library to put into the guest's PATH, such as `embed`; may be repeated.
    #[arg(long = "example", value_name = "NAME")]
    pub examples: Vec<String>,
    /// A file or folder of this host to put into the guest.
    #[arg(long, value_name = "HOST_PATH:GUEST_PATH")]
    pub add: Vec<Addition>,
    /// The folder for the files that the command writes to the guest's /out.
    #[arg(long, value_name = "HOST_DIR")]
    pub out: Option<PathBuf>,
    /// How long the guest may take in all.
    #[arg(long, default_value = "120s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// The command, run with `sh -c`; several words are joined with spaces.
    #[arg(last = true, required = true, value_name = "SHELL COMMAND")]
    pub command: Vec<String>,
}

/// Which machine to boot.
#[derive(Debug, Clone, Args)]
pub struct MachineOptions {
    /// The kernel series.
    #[arg(long, value_enum, default_value_t = Kernel::V6_1)]
    pub kernel: Kernel,
    /// The processor's architecture.
    #[arg(long, value_enum, default_value_t = Arch::X86_64)]
    pub arch: Arch,
    /// Number of processors [default: 2, or 1 with --icount].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub smp: Option<u8>,
    /// Memory in MiB [default: 512, more where the guest's files need it].
    #[arg(long, value_name = "MiB")]
    pub mem: Option<u64>,
    /// Let guest time count instructions, one nanosecond each, on one processor: for repeatable measurements.
    #[arg(long)]
    pub icount: bool,
    /// More kernel arguments.
    #[arg(long, value_name = "KERNEL_ARGS", allow_hyphen_values = true)]
    pub append: Option<String>,
}

impl MachineOptions {
    /// The machine of tests and the demo.
    pub fn standard(kernel: Kernel, arch: Arch) -> Self {
        Self { kernel, arch, smp: None, mem: None, icount: false, append: None }
    }

    /// The number of CPUs. By default more than one, so that samples of several rings must be sorted.
    pub fn processors(&self) -> anyhow::Result<u8> {
        match (self.icount, self.smp) {
            (false, smp) => Ok(smp.unwrap_or(2)),
            (true, None | Some(1)) => Ok(1),
            (true, Some(more)) => bail!("--icount counts on one processor, but --smp asks for {more}"),
        }
    }
}

/// A release of Linux: major and minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(pub u32, pub u32);

impl FromStr for Release {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (major, minor) = text.split_once('.').context("not a release of two numbers, such as 4.18")?;
        Ok(Self(major.parse()?, minor.parse()?))
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Options of `vm test`.
#[derive(Debug, Clone, Args)]
pub struct TestOptions {
    /// A kernel series to run every test on; may be repeated [default: every test on 6.1, and on the other kernels
    /// of the matrix those that depend on the kernel most].
    #[arg(long = "kernel", value_enum, value_name = "KERNEL")]
    pub kernels: Vec<Kernel>,
    /// Run every test, on this architecture only.
    #[arg(long, value_enum)]
    pub arch: Option<Arch>,
    /// Run every test on every kernel of the matrix.
    #[arg(long)]
    pub full: bool,
    /// Also run the tests that take many minutes, which are skipped by default.
    #[arg(long)]
    pub long: bool,
    /// How many guests run at once. Each uses at most one processor, and often waits [default: three for every two processors].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    pub jobs: Option<u8>,
    /// Run Socktrail on 6.1 without the features that a kernel of this release, such as 4.18, does not have. Runs the tests of
    /// flows, owners, threads, ends, programs, events and sensors.
    #[arg(long, value_name = "RELEASE")]
    pub as_of: Option<Release>,
    /// The seed of random traffic, to repeat an earlier run [default: a new one].
    #[arg(long)]
    pub seed: Option<u64>,
    /// A kind of random traffic to leave out; may be repeated.
    #[arg(long, value_name = "KIND")]
    pub without: Vec<String>,
    /// How `socktrail flows` counts packets [default: its own default].
    #[arg(long, value_name = "HOW", value_parser = ["kernel", "samples", "auto"])]
    pub accounting: Option<String>,
    /// How `socktrail flows` observes the kernel [default: its own default].
    #[arg(long, value_name = "BACKEND", value_parser = ["kprobes", "cgroup", "auto"])]
    pub backend: Option<String>,
    /// How long each guest may take [default: 45m, or 2h with --long].
    #[arg(long, value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
    /// Run only the tests whose name contains this, or begins with one of several separated by commas; on 6.1 when no
    /// kernel is named.
    pub filter: Option<String>,
}

/// Options of `cargo demo`. Without the first three, it runs on this machine if that can show flows of a control group.
#[derive(Debug, Args)]
pub struct DemoOptions {
    /// Boot a guest with a kernel of this series [default: 6.1]
    #[arg(long, value_enum)]
    pub kernel: Option<Kernel>,
    /// Boot a guest with this architecture [default: x86_64]
    #[arg(long, value_enum)]
    pub arch: Option<Arch>,
    /// Boot a guest, and take the kernel's layout from this source [default: socktrail's own].
    #[arg(long, value_parser = ["guess", "btf", "auto"])]
    pub source: Option<String>,
    /// How long it may take in all, not counting builds.
    #[arg(long, default_value = "120s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// Options of `vm bench`.
#[derive(Debug, Args)]
pub struct BenchOptions {
    /// The kernel series.
    #[arg(long, value_enum, default_value_t = Kernel::V6_1)]
    pub kernel: Kernel,
    /// The processor's architecture.
    #[arg(long, value_enum, default_value_t = Arch::X86_64)]
    pub arch: Arch,
    /// Measure only loads with this in their name, such as `TCP` or `process`.
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub only: String,
    /// How long the guest may take in all.
    #[arg(long, default_value = "20m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// Arguments for `socktrail flows`, such as `--mask FUNCTION`, to see what a probe costs.
    #[arg(last = true, value_name = "ARGUMENTS")]
    pub arguments: Vec<String>,
}

/// Options of `vm record`.
#[derive(Debug, Args)]
pub struct RecordOptions {
    /// A kernel series to record on; may be repeated [default: every kernel of the matrix].
    #[arg(long = "kernel", value_enum, value_name = "KERNEL")]
    pub kernels: Vec<Kernel>,
    /// Record on this architecture only.
    #[arg(long, value_enum)]
    pub arch: Option<Arch>,
    /// Only replay existing recordings, after a change of documents.
    #[arg(long)]
    pub replay_only: bool,
    /// How long each guest may take.
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// A file or folder to copy into the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addition {
    /// The file or folder on this host.
    pub host: PathBuf,
    /// Its absolute path in the guest.
    pub guest: String,
}

impl FromStr for Addition {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (host, guest) = text.rsplit_once(':').context("expected HOST_PATH:GUEST_PATH")?;
        ensure!(!host.is_empty(), "the path on the host is empty");
        ensure!(guest.starts_with('/') && guest.len() > 1, "the path in the guest must be absolute");
        Ok(Self { host: host.into(), guest: guest.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Options::command().debug_assert();
    }

    #[test]
    fn a_run_takes_all_of_its_options() {
        let options = Options::parse_from([
            "vm",
            "run",
            "--kernel",
            "5.10",
            "--arch",
            "aarch64",
            "--mem",
            "700",
            "--icount",
            "--package",
            "curl",
            "--package",
            "jq",
            "--add",
            "/a:/b",
            "--out",
            "o",
            "--timeout",
            "30s",
            "--append",
            "ipv6.disable=1",
            "--",
            "echo",
            "hello",
        ]);
        let Action::Run(run) = options.action else { panic!("not a run") };
        assert_eq!(run.machine.kernel, Kernel::V5_10);
        assert_eq!(run.machine.arch, Arch::Aarch64);
        assert_eq!(run.packages, ["curl", "jq"]);
        assert_eq!(run.timeout, Duration::from_secs(30));
        assert_eq!(run.command, ["echo", "hello"]);
    }

    #[test]
    fn counting_instructions_takes_one_processor() {
        let mut machine = MachineOptions::standard(Kernel::V6_1, Arch::X86_64);
        assert_eq!(machine.processors().unwrap(), 2);
        machine.icount = true;
        assert_eq!(machine.processors().unwrap(), 1);
        machine.smp = Some(2);
        assert!(machine.processors().is_err());
    }

    #[test]
    fn an_addition_names_two_paths() {
        let addition: Addition = "target/x:y:/usr/bin/x".parse().unwrap();
        assert_eq!(addition, Addition { host: "target/x:y".into(), guest: "/usr/bin/x".into() });
        for bad in ["x", ":/x", "x:", "x:y", "x:/"] {
            assert!(bad.parse::<Addition>().is_err(), "{bad}");
        }
    }
}
