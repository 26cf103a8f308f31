//! What a monitor can be told.

use std::path::PathBuf;
use std::time::Duration;

use socktrail_guess::Source;

use crate::clock::TimeSource;
use crate::error::Error;
use crate::filter::Filter;
use crate::socket_event::Actions;
use crate::state::Config;

/// How to monitor.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Where tracefs is; `None`: at one of its usual places, where it is mounted when missing.
    pub tracefs_path: Option<PathBuf>,
    /// Whether to watch IPv6; `None`: if the kernel has it.
    pub enable_ipv6: Option<bool>,
    /// Where the layout of kernel structures is learnt from.
    pub source: Source,
    /// How long one guess may take.
    pub guess_timeout: Duration,
    /// See [`Config::flow_inactive_timeout`].
    pub flow_inactive_timeout: Duration,
    /// See [`Config::flow_termination_timeout`].
    pub flow_termination_timeout: Duration,
    /// See [`Config::flow_report_interval`].
    pub flow_report_interval: Option<Duration>,
    /// See [`Config::socket_inactive_timeout`].
    pub socket_inactive_timeout: Duration,
    /// A ring has 2^n pages, one ring per CPU: 512 KiB with the default of 7.
    pub ring_size_exponent: u8,
    /// How many samples may wait between the rings and the state machine.
    pub perf_queue_size: usize,
    /// How many flows may wait for whoever receives them.
    pub flow_queue_size: usize,
    /// How many [losses](crate::loss::Loss) may wait for whoever receives them. While there is no room, those of one cause are
    /// joined into one: then it is told less closely when they happened, and none is forgotten.
    pub lost_queue_size: usize,
    /// See [`Config::max_flows`].
    pub max_flows: usize,
    /// See [`Config::max_sockets`].
    pub max_sockets: usize,
    /// See [`Config::max_processes`].
    pub max_processes: usize,
    /// The wall clock that times of documents are of. The kernel stamps events with its own clock, whatever this says.
    pub time: TimeSource,
    /// By how much the wall clock may move against the kernel's before that is a step: times after it follow.
    pub clock_max_drift: Duration,
    /// How often to compare the kernel's clock with ours where programs cannot read it: before Linux 4.1.
    pub clock_sync_period: Duration,
    /// What is of no interest.
    pub filter: Filter,
    /// Whether and how names are learned.
    pub dns: socktrail_dns::Options,
    /// How much is remembered of them.
    pub names: socktrail_dns::NamesOptions,
    /// Whether [`Received::Name`](super::Received::Name) is wanted.
    pub report_names: bool,
    /// Whether flows are wanted. Without them no packet is sampled, but for [`Actions::STATE`] the datagrams that leave.
    pub flows: bool,
    /// Of which calls [`Received::Socket`](super::Received::Socket) is wanted: none, unless asked for.
    pub socket_events: Actions,
    /// Whether what this very process does is reported, too. By default it is not: a program that sends each flow somewhere
    /// would report that it does, without end.
    pub own_process: bool,
    /// Kernel functions to do without, as if the kernel did not have them: to see what would be lost. `use_clockid` stands
    /// for samples' times of a clock that programs can read, and the names of the fields of
    /// [`socktrail_kprobes::Features`], such as `arrays`, for what probes can do.
    pub mask: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        let config = Config::default();
        Self {
            tracefs_path: None,
            enable_ipv6: None,
            source: Source::Auto,
            guess_timeout: Duration::from_secs(15),
            flow_inactive_timeout: config.flow_inactive_timeout,
            flow_termination_timeout: config.flow_termination_timeout,
            flow_report_interval: config.flow_report_interval,
            socket_inactive_timeout: config.socket_inactive_timeout,
            ring_size_exponent: 7,
            perf_queue_size: 4096,
            flow_queue_size: 65_536,
            lost_queue_size: 128,
            max_flows: config.max_flows,
            max_sockets: config.max_sockets,
            max_processes: config.max_processes,
            time: TimeSource::default(),
            clock_max_drift: Duration::from_millis(100),
            clock_sync_period: Duration::from_secs(10),
            filter: config.filter,
            dns: socktrail_dns::Options::default(),
            names: config.names,
            report_names: config.report_names,
            flows: true,
            socket_events: Actions::NONE,
            own_process: false,
            mask: Vec::new(),
        }
    }
}

impl Options {
    /// Says which option makes no sense, and why.
    ///
    /// # Errors
    /// [`Error::Option`], with the name of the field.
    pub fn validate(&self) -> Result<(), Error> {
        let size = |name, value: usize| within(name, value, 1, 100_000_000);
        within("ring_size_exponent", self.ring_size_exponent.into(), 1, 14)?;
        size("perf_queue_size", self.perf_queue_size)?;
        size("flow_queue_size", self.flow_queue_size)?;
        size("lost_queue_size", self.lost_queue_size)?;
        size("max_flows", self.max_flows)?;
        size("max_sockets", self.max_sockets)?;
        size("max_processes", self.max_processes)?;
        for (name, time) in [
            ("guess_timeout", Some(self.guess_timeout)),
            ("flow_inactive_timeout", Some(self.flow_inactive_timeout)),
            ("flow_termination_timeout", Some(self.flow_termination_timeout)),
            ("flow_report_interval", self.flow_report_interval),
            ("clock_sync_period", Some(self.clock_sync_period)),
        ] {
            if time.is_some_and(|time| time.is_zero()) {
                return Err(Error::Option { name, problem: "must be longer than nothing".to_owned() });
            }
        }
        self.dns.validate().map_err(|error| match error {
            socktrail_dns::Error::Option { option: "snaplen", problem } => {
                Error::Option { name: "dns.snaplen", problem }
            }
            socktrail_dns::Error::Option { option: "ports", problem } => Error::Option { name: "dns.ports", problem },
            other => Error::Option { name: "dns", problem: other.to_string() },
        })
    }
}

fn within(name: &'static str, value: usize, least: usize, most: usize) -> Result<(), Error> {
    let problem = || format!("{value} is not within {least} to {most}");
    if (least..=most).contains(&value) { Ok(()) } else { Err(Error::Option { name, problem: problem() }) }
}
