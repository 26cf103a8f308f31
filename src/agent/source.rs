//! The agent's source of flows and events: a monitor or a recording.

use std::io::{self, Write};
use std::time::Duration;

use socktrail::clock::Clock;
use socktrail::config::Config;
use socktrail::host::Host;
use socktrail::monitor::{self, Monitor, MonitorStats, Received};
use socktrail::output::Reading;
use socktrail::users::{UserNames, Users};

use super::ReplayOptions;
use super::playback::Playback;
use crate::receive::{FlowSource, announce};

/// The source of flows and events.
pub enum Source {
    /// A monitor of this host.
    Kernel(Monitor),
    /// A recording.
    Recording(Box<Playback>),
}

/// A source that is ready to start without further privileges.
pub enum Prepared<'a> {
    /// A monitor whose probes are installed.
    Kernel(Box<monitor::Prepared>),
    /// A recording to replay.
    Recording(&'a ReplayOptions, &'a Config),
}

impl<'a> Prepared<'a> {
    /// Prepares the recording, if there is one, or else a monitor. The monitor has `users` look up names ahead of time.
    pub fn new(replay: Option<&'a ReplayOptions>, config: &'a Config, users: &Users) -> anyhow::Result<Self> {
        Ok(match replay {
            Some(replay) => Self::Recording(replay, config),
            None => {
                let monitor = Monitor::builder().options(config.monitor()).users(users.clone());
                Self::Kernel(Box::new(monitor.prepare()?))
            }
        })
    }

    /// Whether BPF programs run.
    pub fn runs_bpf(&self) -> bool {
        match self {
            Self::Kernel(prepared) => prepared.summary().bpf,
            Self::Recording(..) => false,
        }
    }

    /// Starts the source.
    pub fn start(self) -> anyhow::Result<Source> {
        Ok(match self {
            Self::Kernel(prepared) => Source::Kernel(prepared.start()?),
            Self::Recording(replay, config) => Source::Recording(Box::new(Playback::start(replay, config)?)),
        })
    }
}

impl Source {
    /// Prints that the source is ready. Programs can wait for the line that begins with `socktrail: ready`.
    pub fn announce(&self, quiet: bool) {
        match self {
            Self::Kernel(monitor) => announce(monitor, quiet),
            Self::Recording(_) if !quiet => drop(writeln!(io::stderr(), "socktrail: ready, replaying")),
            Self::Recording(_) => {}
        }
    }

    /// The host that flows come from.
    pub fn host(&self) -> Host {
        match self {
            Self::Kernel(_) => Host::gather(),
            Self::Recording(playback) => playback.host().clone(),
        }
    }

    /// The names of its users; none for a recorded host.
    pub fn names<'a>(&self, here: &'a dyn UserNames) -> &'a dyn UserNames {
        match self {
            Self::Kernel(_) => here,
            Self::Recording(_) => &(),
        }
    }

    /// Whether flows are lost if they are not received in time. A recording can wait.
    pub fn can_lose(&self) -> bool {
        matches!(self, Self::Kernel(_))
    }

    /// The statistics of the monitor; `None` for a recording.
    pub fn stats(&self) -> Option<MonitorStats> {
        match self {
            Self::Kernel(monitor) => Some(monitor.stats()),
            Self::Recording(_) => None,
        }
    }

    /// The status line for the service manager.
    pub fn status(&self, outputs: &[Reading]) -> String {
        let lost = self.stats().map_or(0, |stats| stats.lost_by_cpu.values().sum::<u64>() + stats.flows_dropped);
        let mut status = format!("{lost} samples or flows lost");
        for output in outputs {
            status += &format!("; {}: {} written, {} waiting", output.output, output.written, output.pending);
            if let Some(trouble) = &output.trouble {
                status += &format!(" ({trouble})");
            }
        }
        status
    }
}

impl FlowSource for Source {
    fn recv(&self, timeout: Duration) -> Received {
        match self {
            Self::Kernel(monitor) => monitor.recv(timeout),
            Self::Recording(playback) => playback.recv(timeout),
        }
    }

    fn stop(&self) {
        match self {
            Self::Kernel(monitor) => monitor.stop(),
            Self::Recording(playback) => playback.stop(),
        }
    }

    fn clock(&self) -> Clock {
        match self {
            Self::Kernel(monitor) => monitor.clock(),
            Self::Recording(playback) => playback.clock(),
        }
    }

    fn check_end(&self) -> anyhow::Result<()> {
        match self {
            Self::Kernel(monitor) => FlowSource::check_end(monitor),
            Self::Recording(playback) => playback.check_end(),
        }
    }
}
