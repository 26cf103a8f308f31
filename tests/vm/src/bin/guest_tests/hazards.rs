//! Kernels that refuse probes, and monitors that are killed.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::tracefs::Tracefs;
use crate::lifetime::{KERNEL, LIMIT, PRIVILEGES, expect_no_probes, expect_refusal, expect_success};

tests![
    a_read_only_tracefs, disabled_kprobes, a_hundred_kills;
    long: no_number_left_for_an_event
];

fn a_read_only_tracefs() -> Result<()> {
    let place = "/tmp/read-only-tracefs";
    fs::create_dir_all(place)?;
    let mounted = Mounted::new("tracefs", place, MsFlags::MS_RDONLY)?;
    let refused = Process::start(&["socktrail", "flows", "--tracefs-path", place])?.finish()?;
    drop(mounted);
    expect_refusal(&refused, PRIVILEGES, &[place, "read-only", "remount,rw"])
}

/// `flows` fails at once, and `doctor` reports the same reason.
fn disabled_kprobes() -> Result<()> {
    let _debugfs = Mounted::new("debugfs", "/sys/kernel/debug", MsFlags::empty())?;
    let switch = "/sys/kernel/debug/kprobes/enabled";
    fs::write(switch, "0").with_context(|| format!("write to {switch}"))?;
    let results = [&["socktrail", "flows"][..], &["socktrail", "doctor"]].map(|args| Process::start(args)?.finish());
    fs::write(switch, "1").with_context(|| format!("write to {switch}"))?;
    let [flows, doctor] = results;
    expect_refusal(&flows?, KERNEL, &["kprobes are switched off", "echo 1 > /sys/kernel/debug/kprobes/enabled"])?;
    let doctor = doctor?;
    ensure!(doctor.status == KERNEL && doctor.stdout.contains("kprobes are switched off"), "{doctor:?}");
    expect_no_probes(&Tracefs::mount()?)
}

/// Every fifth monitor is killed when it is ready, and the others at various moments of their start. The next start removes
/// the probes of all.
fn a_hundred_kills() -> Result<()> {
    const KILLS: u32 = 100;
    const STEP: Duration = Duration::from_millis(4);
    for kill in 1..=KILLS {
        if kill % 5 == 0 {
            Socktrail::flows(&[])?.kill()?;
        } else {
            kill_after(STEP * kill)?;
        }
    }
    let tracefs = Tracefs::mount()?;
    let left = tracefs.kprobe_events()?;
    ensure!(!left.is_empty(), "a killed monitor cannot have removed its probes");
    expect_success(&Socktrail::flows(&[])?.stop()?)?;
    expect_no_probes(&tracefs)
}

/// The kernel has 65,535 ids for trace events. If all are in use, the error says so, and no probes are left. Using all ids
/// takes minutes, because the kernel compares each new event with all others.
fn no_number_left_for_an_event() -> Result<()> {
    let (tracefs, events) = (Tracefs::mount()?, "uprobe_events");
    let program = std::env::current_exe()?;
    let mut taken = 0_u32;
    let full = loop {
        // Different first letters make the kernel's string comparisons short.
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
    expect_refusal(&flows?, LIMIT, &["the limit on trace events", "all are taken", "remove unused probes"])?;
    let doctor = doctor?;
    ensure!(doctor.status == KERNEL && doctor.stdout.contains("all are taken"), "{doctor:?}");
    expect_no_probes(&tracefs)?;
    expect_success(&Socktrail::flows(&[])?.stop()?)
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

/// Mounts a file system; dropping it unmounts it.
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
