//! What a kernel may do to a monitor, and a host's end to one.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::tracefs::Tracefs;
use crate::lifetime::refusal;

tests![
    a_tracefs_that_is_read_only, kprobes_that_are_switched_off, a_hundred_ends_without_warning;
    long: no_number_left_for_an_event
];

/// Exit statuses, as `--help` has them.
pub(crate) const KERNEL: i32 = 3;
const PRIVILEGES: i32 = 4;
const LIMIT: i32 = 6;

fn a_tracefs_that_is_read_only() -> Result<()> {
    let place = "/tmp/read-only-tracefs";
    fs::create_dir_all(place)?;
    let mounted = Mounted::new("tracefs", place, MsFlags::MS_RDONLY)?;
    let refused = Process::start(&["socktrail", "flows", "--tracefs-path", place])?.finish()?;
    drop(mounted);
    refusal(&refused, PRIVILEGES, &[place, "read-only", "remount,rw"])
}

/// `flows` does not wait for what never comes, and `doctor` says the same.
fn kprobes_that_are_switched_off() -> Result<()> {
    let _debugfs = Mounted::new("debugfs", "/sys/kernel/debug", MsFlags::empty())?;
    let switch = "/sys/kernel/debug/kprobes/enabled";
    fs::write(switch, "0").with_context(|| format!("write to {switch}"))?;
    let ends = [&["socktrail", "flows"][..], &["socktrail", "doctor"]].map(|args| Process::start(args)?.finish());
    fs::write(switch, "1").with_context(|| format!("write to {switch}"))?;
    let [flows, doctor] = ends;
    refusal(&flows?, KERNEL, &["kprobes are switched off", "echo 1 > /sys/kernel/debug/kprobes/enabled"])?;
    let doctor = doctor?;
    ensure!(doctor.status == KERNEL && doctor.stdout.contains("kprobes are switched off"), "{doctor:?}");
    ensure!(Tracefs::mount()?.kprobe_events()?.is_empty(), "probes are left");
    Ok(())
}

/// Killed at any moment of its start and, each fifth and the last, while it watches: the next start leaves nothing of all
/// of them.
fn a_hundred_ends_without_warning() -> Result<()> {
    const STEP: Duration = Duration::from_millis(4);
    // The whole machine stops for each probe that is set on Arm, which takes long in emulation.
    let ends = 100;
    for end in 1..=ends {
        if end % 5 == 0 {
            Socktrail::flows(&[])?.kill()?;
        } else {
            kill_after(STEP * end)?;
        }
    }
    let tracefs = Tracefs::mount()?;
    let left = tracefs.kprobe_events()?;
    ensure!(!left.is_empty(), "a killed monitor cannot have removed its probes");
    let watched = Socktrail::flows(&[])?.stop()?;
    ensure!(watched.status.success(), "it ended with {}:\n{}", watched.status, watched.log);
    let left = tracefs.kprobe_events()?;
    ensure!(left.is_empty(), "probes are left:\n{left}");
    Ok(())
}

/// All 65,535 numbers that the kernel has for trace events are taken. That is said, and nothing is left behind. The kernel
/// compares each new event with all before it, so it takes minutes to get there.
fn no_number_left_for_an_event() -> Result<()> {
    let (tracefs, events) = (Tracefs::mount()?, "uprobe_events");
    let program = std::env::current_exe()?;
    let mut taken = 0_u32;
    let full = loop {
        // Names that begin differently are told apart sooner.
        let name = format!("{}_{taken}", char::from(b'a' + (taken % 26) as u8));
        let line = format!("p:socktrail_tests/{name} {}:0x1000", program.display());
        match tracefs.append(events, &line) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    let [flows, doctor] = ["flows", "doctor"].map(|command| Process::start(&["socktrail", command])?.finish());
    tracefs.write(events, "")?;
    ensure!(taken > 50_000, "{taken} events could be made, and then: {full:?}");
    refusal(&flows?, LIMIT, &["the number of trace events", "all are taken", "remove probes that nobody needs"])?;
    let doctor = doctor?;
    ensure!(doctor.status == KERNEL && doctor.stdout.contains("all are taken"), "{doctor:?}");
    ensure!(tracefs.kprobe_events()?.is_empty(), "probes are left");
    let watched = Socktrail::flows(&[])?.stop()?;
    ensure!(watched.status.success(), "it ended with {}:\n{}", watched.status, watched.log);
    Ok(())
}

fn kill_after(time: Duration) -> Result<()> {
    let mut socktrail = Command::new("socktrail")
        .args(["flows", "--format", "ecs"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start socktrail")?;
    sleep(time);
    socktrail.kill()?;
    socktrail.wait()?;
    Ok(())
}

/// A file system, until it is dropped.
pub(crate) struct Mounted(&'static str);

impl Mounted {
    pub(crate) fn new(kind: &str, place: &'static str, flags: MsFlags) -> Result<Self> {
        mount(Some(kind), place, Some(kind), flags, None::<&str>)
            .with_context(|| format!("mount {kind} at {place}"))?;
        Ok(Self(place))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(self.0, MntFlags::MNT_DETACH).ok();
    }
}
