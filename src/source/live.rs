//! The source that observes this kernel: kprobes, or programs at a control group.

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::kprobes::cgroup::CgroupSource;
use super::kprobes::options::Options;
use super::kprobes::source::{KprobeSource, Summary};
use super::{Batch, Counts, Error, EventSockets, Existing, Source, Tap, TotalsReader, Waker};
use crate::model::backend::Backend;
use crate::model::clock::Clock;
use crate::model::event::SourceCapabilities;
use crate::model::process::Process;
use crate::model::time::MonotonicTime;
use crate::model::totals::{Conversation, Totals};
use crate::state::FoundProcess;

/// The source that observes this kernel.
#[derive(Debug)]
pub(crate) enum LiveSource {
    /// By kprobes.
    Kprobes(Box<KprobeSource>),
    /// By programs at a control group.
    Cgroup(Box<CgroupSource>),
}

impl LiveSource {
    /// Opens the source that the options choose.
    ///
    /// # Errors
    /// Those of [`KprobeSource::open`] or [`CgroupSource::open`].
    pub(crate) fn open(options: &Options) -> Result<Self, Error> {
        let cgroup = || {
            let path = options.cgroup.clone().or_else(root_group);
            let path = path.ok_or_else(|| Error::Option {
                name: "cgroup",
                problem: "no hierarchy of control groups v2 is mounted: mount one (mount -t cgroup2 none /mnt)".into(),
            })?;
            CgroupSource::open(options, &path).map(|source| Self::Cgroup(Box::new(source)))
        };
        let kprobes = || KprobeSource::open(options).map(|source| Self::Kprobes(Box::new(source)));
        match options.backend {
            Backend::Cgroup => cgroup(),
            Backend::Kprobes => kprobes(),
            Backend::Auto if options.cgroup.is_some() => cgroup(),
            Backend::Auto => match kprobes() {
                Err(Error::Kprobes(socktrail_kprobes::Error::NoKprobes { .. })) if options.flows => {
                    tracing::info!("this kernel has no kprobes: flows are observed by programs at a control group");
                    cgroup()
                }
                opened => opened,
            },
        }
    }

    /// What it observes.
    pub(crate) fn summary(&self) -> &Summary {
        match self {
            Self::Kprobes(source) => source.summary(),
            Self::Cgroup(source) => source.summary(),
        }
    }

    /// The path of tracefs, for this process.
    pub(crate) fn tracefs(&self) -> &Path {
        match self {
            Self::Kprobes(source) => source.tracefs(),
            Self::Cgroup(source) => source.tracefs(),
        }
    }
}

/// Where the first file system of control groups v2 is mounted.
fn root_group() -> Option<PathBuf> {
    let mounts = procfs::process::Process::myself().and_then(|own| own.mountinfo()).ok()?;
    mounts.into_iter().find(|mount| mount.fs_type == "cgroup2").map(|mount| mount.mount_point)
}

/// Calls the same method of the source.
macro_rules! each {
    ($self:expr, $source:ident => $call:expr) => {
        match $self {
            Self::Kprobes($source) => $call,
            Self::Cgroup($source) => $call,
        }
    };
}

impl Source for LiveSource {
    type Error = Infallible;

    fn capabilities(&self) -> SourceCapabilities {
        each!(self, source => source.capabilities())
    }

    fn now(&self) -> MonotonicTime {
        each!(self, source => source.now())
    }

    fn clock(&self) -> Clock {
        each!(self, source => source.clock())
    }

    fn counts(&self) -> Counts {
        each!(self, source => source.counts())
    }

    fn existing(&mut self, event_sockets: EventSockets) -> Result<Existing, Infallible> {
        each!(self, source => source.existing(event_sockets))
    }

    fn wait(&mut self) {
        each!(self, source => source.wait());
    }

    fn hand_over<T: Tap>(
        &mut self,
        tap: &mut T,
        take: &mut dyn FnMut(&mut Batch),
    ) -> Result<ControlFlow<()>, Infallible> {
        each!(self, source => source.hand_over(tap, take))
    }

    fn stop(&mut self) {
        each!(self, source => source.stop());
    }

    fn waker(&self) -> Waker {
        each!(self, source => source.waker())
    }

    fn look_up(&mut self, process: &Process) -> Option<FoundProcess> {
        each!(self, source => source.look_up(process))
    }

    fn is_gone(&mut self, process: &Process) -> bool {
        each!(self, source => source.is_gone(process))
    }

    fn totals(&mut self, of: &Conversation) -> Option<Totals> {
        each!(self, source => source.totals(of))
    }

    fn answered(&self) -> MonotonicTime {
        each!(self, source => source.answered())
    }

    fn totals_reader(&self) -> TotalsReader {
        each!(self, source => source.totals_reader())
    }
}
