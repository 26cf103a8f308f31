//! Options of a monitor.

use std::path::PathBuf;
use std::time::Duration;

use socktrail_guess::LayoutSource;

use crate::model::accounting::Accounting;
use crate::model::backend::Backend;
use crate::model::clock::TimeSource;
use crate::model::filter::Filter;
use crate::model::socket_event::Actions;
use crate::source::Error;
use crate::source::options::{self as source, nonzero, within};
use crate::state::StateConfig;

/// Options of a monitor. [`Monitor::start`](super::Monitor::start) validates them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// The mount point of tracefs. `None`: tracefs is searched for in the usual places, and mounted if it is not mounted.
    pub tracefs_path: Option<PathBuf>,
    /// Whether to watch IPv6. `None`: if the kernel has it.
    pub enable_ipv6: Option<bool>,
    /// The source of the kernel's layout: where its structures keep their fields.
    pub source: LayoutSource,
    /// The maximum time for one guess of the layout.
    pub guess_timeout: Duration,
    /// A flow ends after this time without traffic.
    pub flow_inactive_timeout: Duration,
    /// A flow whose socket was closed ends after this time without a packet.
    pub flow_termination_timeout: Duration,
    /// How often a live flow with traffic is reported; `None`: only at its end.
    pub flow_report_interval: Option<Duration>,
    /// A socket without flows and without a known owner is forgotten after this time. If the table of sockets is nearly full,
    /// so is any idle socket.
    pub socket_inactive_timeout: Duration,
    /// The size of a ring is 2^n pages, and each CPU has one: 512 KiB each with the default of 7 and pages of 4 KiB.
    pub ring_size_exponent: u8,
    /// How the kernel is observed.
    pub backend: Backend,
    /// The control group (v2) to which what is reported is restricted, by its directory; `None` for the whole host. With
    /// kprobes, the processes in it and in the groups below it count, and with [`Backend::Cgroup`] the sockets that were
    /// created there.
    pub cgroup: Option<PathBuf>,
    /// How packets are counted.
    pub accounting: Accounting,
    /// The maximum number of conversations that the kernel counts at once. Beyond it, each packet of a
    /// new conversation is sampled.
    pub max_conversations: usize,
    /// The maximum number of samples that wait between the rings and the state machine. When it is reached, samples wait in
    /// the rings.
    pub perf_queue_size: usize,
    /// The maximum number of flows, names and socket events that wait to be [received](super::Monitor::recv). When it is
    /// reached, further ones are dropped and counted ([`MonitorStats::flows_dropped`](super::MonitorStats::flows_dropped)).
    pub flow_queue_size: usize,
    /// The maximum number of [losses](crate::model::loss::Loss) that wait to be received. When it is reached, later losses of one
    /// cause are merged into one. None is forgotten, but their times are less exact.
    pub lost_queue_size: usize,
    /// The maximum number of live flows. Beyond it, the flow whose timeout or interim report is due first is ended early.
    pub max_flows: usize,
    /// The maximum number of sockets. Beyond it, new sockets have no flows, unless they are connections to known listeners.
    pub max_sockets: usize,
    /// The maximum number of processes, and of threads besides the main threads. Beyond it, new ones are not known.
    pub max_processes: usize,
    /// The source of wall time. The kernel stamps events with its own clock; their times are converted to this one.
    pub time: TimeSource,
    /// The maximum drift between the wall clock and the kernel's clock. If they drift apart further, the wall clock has been
    /// set, and later times follow it.
    pub clock_max_drift: Duration,
    /// How often the clock of samples is compared with the monotonic clock on kernels before Linux 4.1, where programs cannot
    /// read the former.
    pub clock_sync_period: Duration,
    /// Which flows are reported.
    pub filter: Filter,
    /// Whether DNS traffic is captured, and how.
    pub dns: socktrail_dns::Options,
    /// How many DNS names are remembered.
    pub names: socktrail_dns::NamesOptions,
    /// Whether [`Received::Name`](super::Received::Name) is wanted.
    pub report_names: bool,
    /// Whether flows are wanted. If not, packets are not sampled, except outgoing datagrams if [`Actions::STATE`] is wanted.
    pub flows: bool,
    /// The calls that are reported as [`Received::Socket`](super::Received::Socket). None by default.
    pub socket_events: Actions,
    /// Whether flows and calls of this process itself are reported. By default they are not: if a program sent each flow over
    /// the network, each report would make another flow, without end.
    pub own_process: bool,
    /// Kernel functions that are not probed, as if the kernel did not have them: for tests of what is lost without them.
    /// With `use_clockid`, samples have times of a clock that programs cannot read. The names of the fields of
    /// [`socktrail_kprobes::Features`], such as `arrays`, stand for abilities of probes.
    pub mask: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        let config = StateConfig::default();
        Self {
            tracefs_path: None,
            enable_ipv6: None,
            source: LayoutSource::Auto,
            guess_timeout: Duration::from_secs(15),
            flow_inactive_timeout: config.flow_inactive_timeout,
            flow_termination_timeout: config.flow_termination_timeout,
            flow_report_interval: config.flow_report_interval,
            socket_inactive_timeout: config.socket_inactive_timeout,
            ring_size_exponent: 7,
            backend: Backend::default(),
            cgroup: None,
            accounting: Accounting::default(),
            max_conversations: 65_536,
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
    /// Checks the options.
    ///
    /// # Errors
    /// [`Error::Option`], with the name of the field.
    pub fn validate(&self) -> Result<(), Error> {
        source::Options::from(self).validate()?;
        self.validate_own()
    }

    /// [`Options::validate`], except for the options that the source validates itself.
    pub(super) fn validate_own(&self) -> Result<(), Error> {
        let size = |name, value: usize| within(name, value, 1, 100_000_000);
        size("perf_queue_size", self.perf_queue_size)?;
        size("flow_queue_size", self.flow_queue_size)?;
        size("lost_queue_size", self.lost_queue_size)?;
        size("max_conversations", self.max_conversations)?;
        size("max_flows", self.max_flows)?;
        size("max_sockets", self.max_sockets)?;
        size("max_processes", self.max_processes)?;
        nonzero("flow_inactive_timeout", self.flow_inactive_timeout)?;
        nonzero("flow_termination_timeout", self.flow_termination_timeout)?;
        self.flow_report_interval.map_or(Ok(()), |interval| nonzero("flow_report_interval", interval))
    }
}

/// The options of the source.
impl From<&Options> for source::Options {
    fn from(options: &Options) -> Self {
        Self {
            tracefs_path: options.tracefs_path.clone(),
            enable_ipv6: options.enable_ipv6,
            backend: options.backend,
            cgroup: options.cgroup.clone(),
            source: options.source.clone(),
            guess_timeout: options.guess_timeout,
            ring_size_exponent: options.ring_size_exponent,
            time: options.time.clone(),
            clock_max_drift: options.clock_max_drift,
            clock_sync_period: options.clock_sync_period,
            dns: options.dns.clone(),
            flows: options.flows,
            socket_events: options.socket_events,
            mask: options.mask.clone(),
            filter: options.filter.clone(),
            accounting: options.accounting,
            max_conversations: options.max_conversations,
            // A flow may end after this time. The next packet must be sampled, because it begins another flow.
            pause: options.flow_inactive_timeout.min(options.flow_termination_timeout),
        }
    }
}

/// The options of the state machine.
impl From<&Options> for StateConfig {
    fn from(options: &Options) -> Self {
        Self {
            flow_inactive_timeout: options.flow_inactive_timeout,
            flow_termination_timeout: options.flow_termination_timeout,
            flow_report_interval: options.flow_report_interval,
            socket_inactive_timeout: options.socket_inactive_timeout,
            max_flows: options.max_flows,
            max_sockets: options.max_sockets,
            max_processes: options.max_processes,
            own_pid: if options.own_process { 0 } else { std::process::id() },
            filter: options.filter.clone(),
            dns_ports: options.dns.ports.clone(),
            names: options.names.clone(),
            report_names: options.report_names,
            socket_events: options.socket_events,
            flows: options.flows,
        }
    }
}
