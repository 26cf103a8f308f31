//! Tracefs: the kernel's list of kprobe events, and their counters.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// tracefs, mounted by the test and unmounted on drop. Guests boot without it.
#[derive(Debug)]
pub(crate) struct Tracefs(());

impl Tracefs {
    /// The mount point.
    pub(crate) const PATH: &str = "/sys/kernel/tracing";

    /// Mounts it.
    pub(crate) fn mount() -> Result<Self> {
        mount(Some("tracefs"), Self::PATH, Some("tracefs"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount tracefs at {}", Self::PATH))?;
        Ok(Self(()))
    }

    /// The kprobe events that exist, one per line.
    pub(crate) fn kprobe_events(&self) -> Result<String> {
        self.read("kprobe_events")
    }

    /// The number of missed hits of all kprobes.
    pub(crate) fn missed(&self) -> Result<u64> {
        self.missed_where(|_| true)
    }

    /// The number of missed hits of the kprobes with this name.
    pub(crate) fn missed_by(&self, name: &str) -> Result<u64> {
        self.missed_where(|one| one == name)
    }

    /// The sum of the missed hits in `kprobe_profile`, whose lines are name, hits, missed hits.
    fn missed_where(&self, is_wanted: impl Fn(&str) -> bool) -> Result<u64> {
        let profile = self.read("kprobe_profile")?;
        let misses = profile.lines().map(|line| {
            let words: Vec<_> = line.split_ascii_whitespace().collect();
            let [name, _, count] = words[..] else { bail!("no misses in `{line}`") };
            let count: u64 = count.parse().with_context(|| format!("no number of misses in `{line}`"))?;
            Ok(if is_wanted(name) { count } else { 0 })
        });
        misses.sum()
    }

    /// The number of calls of a kernel function while `work` runs.
    pub(crate) fn hits(&self, function: &str, work: impl FnOnce() -> Result<()>) -> Result<u64> {
        const EVENT: &str = "socktrail_tests/counted";
        let switch = format!("events/{EVENT}/enable");
        self.append("kprobe_events", &format!("p:{EVENT} {function}"))?;
        let counted = self.write(&switch, "1").and_then(|()| work()).and_then(|()| self.read("kprobe_profile"));
        self.write(&switch, "0")?;
        self.append("kprobe_events", &format!("-:{EVENT}"))?;
        hits_in(&counted?)
    }

    /// The number of calls so far, while [`hits`](Self::hits) counts.
    pub(crate) fn hits_so_far(&self) -> Result<u64> {
        hits_in(&self.read("kprobe_profile")?)
    }

    /// Writes to a file.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = Path::new(Self::PATH).join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Appends to a file. [`write`](Self::write) would remove the probes of other monitors.
    pub(crate) fn append(&self, name: &str, text: &str) -> Result<()> {
        let path = Path::new(Self::PATH).join(name);
        let file = fs::OpenOptions::new().append(true).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("write {text:?} to {}", path.display()))
    }

    /// The content of a file.
    pub(crate) fn read(&self, name: &str) -> Result<String> {
        let path = Path::new(Self::PATH).join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }
}

fn hits_in(profile: &str) -> Result<u64> {
    let hits = profile.lines().find_map(|line| line.trim().strip_prefix("counted")?.split_whitespace().next());
    hits.with_context(|| format!("no hits in {profile}"))?.parse().context("a number of hits")
}

impl Drop for Tracefs {
    fn drop(&mut self) {
        umount2(Self::PATH, MntFlags::MNT_DETACH).ok();
    }
}
