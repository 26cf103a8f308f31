//! What the tests have in common.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use socktrail_kprobes::{Fetch, Group, Installed, Record, Rings, Target, Term, Text, Tracefs, sample};

sample! {
    /// `do_sys_openat2(dfd, filename, how)`
    pub struct Open {
        /// What was opened.
        pub path: Text = "+u0({filename})",
    }
}

/// Where `do_sys_openat2` has what.
pub fn layout(_: &str, name: &str) -> Option<Term> {
    match name {
        "dfd" => Some(Term::Argument(1)),
        "filename" => Some(Term::Argument(2)),
        "how" => Some(Term::Argument(3)),
        "open_how.mode" => Some(Term::Offset(8)),
        _ => None,
    }
}

pub const OPEN: Target<'static> = Target::Kprobe { function: "do_sys_openat2" };

pub fn group() -> Group {
    Group::create(&tracefs(), "kt").unwrap()
}

pub fn tracefs() -> Arc<Tracefs> {
    Arc::new(Tracefs::find().unwrap())
}

pub fn install(group: &Group, name: &str, target: Target<'_>, fetches: &[Fetch<'_>]) -> Installed {
    group.install(name, target, fetches, &layout).unwrap()
}

/// The lines of `kprobe_events`.
pub fn kprobe_events(tracefs: &Tracefs) -> Vec<String> {
    let text = fs::read_to_string(tracefs.path("kprobe_events")).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// A filter for this thread alone.
pub fn here() -> String {
    format!("common_pid == {}", gettid())
}

/// Opens a path, which need not be there.
pub fn open(path: impl AsRef<Path>) {
    let _ = File::options().read(true).custom_flags(0).open(path);
}

/// Runs on this CPU from now on.
pub fn on_cpu(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
}

/// Everything in the rings: time, CPU and raw bytes of samples, and what was lost.
pub fn drain_all(rings: &mut Rings) -> (Vec<(u64, u32, Vec<u8>)>, u64) {
    let (mut samples, mut lost) = (Vec::new(), 0);
    let drained = rings.drain(u64::MAX, &mut |record| match record {
        Record::Sample { time, cpu, raw, .. } => samples.push((time, cpu, raw.to_vec())),
        Record::Lost { count, .. } => lost += count,
        _ => {}
    });
    assert_eq!(drained.malformed, 0);
    (samples, lost)
}
