//! Network namespaces.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace. The kernel keeps it while this value, or a process or socket in it, exists.
#[derive(Debug)]
pub(crate) struct Netns(File);

impl Netns {
    /// The calling thread's namespace.
    pub(crate) fn current() -> Result<Self> {
        File::open("/proc/thread-self/ns/net").map(Self).context("open this thread's network namespace")
    }

    /// A new namespace, whose loopback interface is down.
    pub(crate) fn new() -> Result<Self> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
                Self::current()
            });
            inside.join().map_err(|_| anyhow!("a thread panicked"))?
        })
    }

    /// Runs `work` in a thread in the namespace: sockets, programs and settings made there belong to it.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
                work()
            });
            inside.join().map_err(|_| anyhow!("a thread in a network namespace panicked"))?
        })
    }

    /// Sets a sysctl of the namespace. `name` is its path below `/proc/sys/net`, such as `ipv4/ip_forward`.
    pub(crate) fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.run(|| fs::write(&path, value).with_context(|| format!("write {value} to {path}")))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
