//! Where the agent's flows come from.

use std::io::{self, Write};
use std::time::Duration;

use socktrail::clock::Clock;
use socktrail::config::Config;
use socktrail::host::Host;
use socktrail::monitor::{self, Monitor, Received, Stats};
use socktrail::output::Reading;
use socktrail::users::{Names, Users};

use super::super::args::AgentArgs;
use super::super::exit::Status;
use super::super::flows;
use super::super::source::FlowSource;
use super::Playback;

/// Where flows come from.
pub enum Source {
    /// The kernel.
    Kernel(Monitor),
    /// A recording.
    Recording(Box<Playback>),
}

/// A source that takes no more privileges to start.
pub enum Prepared<'a> {
    /// Probes are in place.
    Kernel(Box<monitor::Prepared>),
    /// A recording is there to be played.
    Recording(&'a AgentArgs, &'a Config),
}

impl<'a> Prepared<'a> {
    /// Prepares what the command line and the configuration ask for.
    /// Users' names are asked for ahead of time.
    pub fn new(args: &'a AgentArgs, config: &'a Config, users: &Users) -> anyhow::Result<Self> {
        if args.replay.is_some() {
            return Ok(Self::Recording(args, config));
        }
        Ok(Self::Kernel(Box::new(Monitor::builder().options(config.monitor()).users(users.clone()).prepare()?)))
    }

    /// Starts it.
    pub fn start(self) -> anyhow::Result<Source> {
        Ok(match self {
            Self::Kernel(prepared) => Source::Kernel(prepared.start()?),
            Self::Recording(args, config) => Source::Recording(Box::new(Playback::start(args, config)?)),
        })
    }
}

impl Source {
    /// Says what is watched. The line that begins with `socktrail: ready` can be waited for.
    pub fn announce(&self, quiet: bool) {
        match self {
            Self::Kernel(monitor) => flows::announce(monitor, quiet),
            Self::Recording(_) if !quiet => drop(writeln!(io::stderr(), "socktrail: ready, replaying")),
            Self::Recording(_) => {}
        }
    }

    /// The host that is seen.
    pub fn host(&self) -> Host {
        match self {
            Self::Kernel(_) => Host::gather(),
            Self::Recording(playback) => playback.host().clone(),
        }
    }

    /// Who knows the names of its users: of a recorded host, nobody here.
    pub fn names<'a>(&self, here: &'a dyn Names) -> &'a dyn Names {
        match self {
            Self::Kernel(_) => here,
            Self::Recording(_) => &(),
        }
    }

    /// Whether flows are lost that nobody takes in time. A recording can wait.
    pub fn can_lose(&self) -> bool {
        matches!(self, Self::Kernel(_))
    }

    /// What was counted.
    pub fn stats(&self) -> Option<Stats> {
        match self {
            Self::Kernel(monitor) => Some(monitor.stats()),
            Self::Recording(_) => None,
        }
    }

    /// A line about how things stand.
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

    /// Why it came to its end.
    pub fn ended(&mut self) -> anyhow::Result<Status> {
        match self {
            Self::Recording(playback) => playback.ended().map(|()| Status::Success),
            Self::Kernel(_) => {
                anyhow::bail!("the monitor ended by itself; this is a bug: please report what was said before")
            }
        }
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
}
