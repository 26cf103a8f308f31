//! Helpers that several tests use.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use socktrail_kprobes::{Fetch, Group, Installed, Record, Rings, Target, Term, Text, Tracefs, sample};

sample! {
    /// `do_sys_openat2(dfd, filename, how)`
    pub struct Open {
        /// The path that is opened.
        pub path: Text = "+u0({filename})",
    }
}

/// The positions of the arguments of `do_sys_openat2`, and the offset of a field.
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

/// A filter for hits of this thread.
pub fn thread_filter() -> String {
    format!("common_pid == {}", gettid())
}

/// Opens a path, which need not exist.
pub fn open(path: impl AsRef<Path>) {
    let _ = File::open(path);
}

/// Binds this thread to a CPU.
pub fn on_cpu(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
}

/// The records that were in the rings.
#[derive(Debug, PartialEq, Eq)]
pub struct Contents {
    pub samples: Vec<OwnedSample>,
    /// The number of lost records that the kernel reported.
    pub lost: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub struct OwnedSample {
    pub time: u64,
    pub cpu: u32,
    pub raw: Vec<u8>,
}

/// Reads all records in the rings.
pub fn drain_all(rings: &mut Rings) -> Contents {
    let mut contents = Contents { samples: Vec::new(), lost: 0 };
    let drained = rings.drain(u64::MAX, &mut |record| match record {
        Record::Sample { time, cpu, raw, .. } => contents.samples.push(OwnedSample { time, cpu, raw: raw.to_vec() }),
        Record::Lost { count, .. } => contents.lost += count,
        _ => {}
    });
    assert_eq!(drained.malformed, 0);
    contents
}
