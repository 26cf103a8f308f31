//! The sections `socket`, `document` and `filter`, and the whole configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use socktrail_guess::LayoutSource;

use super::elasticsearch::Spool;
use super::outputs::{Agent, Events, Metrics, Outputs, Sensors};
use super::section::{Flag, Key, Section, join, section};
use crate::documents::ecs::Directions;
use crate::model::accounting::Accounting;
use crate::model::backend::Backend;
use crate::model::filter::Filter;
use crate::model::socket_event::Actions;
use crate::model::units::Time;
use crate::monitor::Options;

section! {
    /// The whole configuration.
    pub struct Config {
    } with {
        /// Monitoring: names and defaults are those of Auditbeat's system/socket dataset
        socket: Socket,
        /// Socket events: documents about calls on sockets, in addition to flows
        events: Events,
        /// Sensors: documents about sockets that open and close, selected by patterns, in addition to flows
        sensors: Sensors,
        /// Filters: which flows are reported. An empty list lets every flow pass, and exclude wins over only
        filter: Filter,
        /// Documents: their contents
        #[reloadable(true)]
        document: Document,
        /// Outputs: where documents go. Several may be on at once
        #[reloadable(true)]
        output: Outputs,
        /// Spool: where documents wait on disk until Elasticsearch has taken them
        #[reloadable(true)]
        spool: Spool,
        /// Agent: the process itself
        agent: Agent,
        /// Metrics: the agent's counters, for Prometheus
        metrics: Metrics,
    }
}

section! {
    /// `socket.*`: the options of Auditbeat's `system/socket` dataset, with its names and defaults, and others.
    pub struct Socket sets Options {
        /// The mount point of tracefs, or the `tracing` directory of debugfs. If not set, Socktrail looks for it, and
        /// mounts tracefs if it is not mounted.
        #[flag("tracefs-path", "PATH")]
        tracefs_path: Option<PathBuf>,
        /// Whether to monitor IPv6. If not set, IPv6 is monitored if the kernel supports it.
        #[flag("enable-ipv6", "BOOL")]
        enable_ipv6: Option<bool>,
        /// A flow ends after this time without traffic.
        #[flag("flow-inactive-timeout", "TIME")]
        flow_inactive_timeout: Time,
        /// A flow whose socket was closed ends after this time without traffic. Until then, late packets still count.
        #[flag("flow-termination-timeout", "TIME")]
        flow_termination_timeout: Time,
        /// Socktrail drops its record of a socket whose owner it does not know after this time without traffic. Sockets
        /// with a known owner are kept until they close, unless the table of sockets (`max_sockets`) is nearly full.
        #[flag("socket-inactive-timeout", "TIME")]
        socket_inactive_timeout: Time,
        /// How many samples may wait in memory between the kernel's rings and flow tracking.
        #[flag("perf-queue-size", "N")]
        perf_queue_size: usize,
        /// How many reports of losses may wait to be processed. When the queue is full, new reports are merged with a
        /// waiting one of the same cause.
        #[flag("lost-queue-size", "N")]
        lost_queue_size: usize,
        /// Each CPU's perf ring has 2^N memory pages; the default is 512 KiB with pages of 4 KiB.
        #[flag("ring-size-exponent", "N")]
        ring_size_exponent: u8,
        /// How the kernel is observed. `kprobes`: by kprobes. `cgroup` (Linux 5.9): by eBPF programs at a control group (v2), for
        /// kernels without kprobes. `auto`: `kprobes` if the kernel has any, else `cgroup`.
        #[flag("backend", "BACKEND")]
        backend: Backend,
        /// The directory of a control group (v2): only what happens in it and in the groups below it is reported.
        #[flag("cgroup", "PATH")]
        cgroup: Option<PathBuf>,
        /// How packets are counted. `samples`: each packet is sampled. `kernel` (Linux 5.5): eBPF programs count packets in
        /// the kernel, and sample only packets that say something new. `auto`: `kernel` if possible, else `samples`.
        #[flag("accounting", "HOW")]
        accounting: Accounting,
        /// About how many conversations the kernel can count at once. Each takes about 350 bytes of kernel memory, which
        /// are reserved at the start: 22 MiB with the default. Beyond it, each packet of a new conversation is sampled.
        #[flag("max-conversations", "N")]
        max_conversations: usize,
        /// How far the wall clock may drift from the kernel's monotonic clock before timestamps are corrected.
        clock_max_drift: Time,
        /// How often the clock of samples is compared with the monotonic clock before Linux 4.1, where programs cannot read
        /// the clock of samples. From 4.1 on, clocks are compared ten times a second.
        clock_sync_period: Time,
        /// How long one guess about the layout of kernel structures may take.
        #[flag("guess-timeout", "TIME")]
        guess_timeout: Time,
        /// How often to report a live flow that has traffic, with `flow.final` false. If not set, a flow is reported only
        /// when it ends.
        #[flag("flow-report-interval", "TIME")]
        flow_report_interval: Option<Time>,
        /// Where the layout of kernel structures comes from: `auto`, `guess`, `btf`, `btf:PATH` or `file:PATH`. `auto`
        /// reads BTF, guesses what BTF does not give, and takes the rest from a saved layout.
        #[flag("source", "SOURCE")]
        #[serde(with = "super::values::text")]
        source: LayoutSource,
        /// The maximum number of live flows. Each takes up to 440 bytes, with its socket. Beyond it, the flow whose
        /// timeout or interim report is due first is ended early.
        #[flag("max-flows", "N")]
        max_flows: usize,
        /// The maximum number of sockets that are tracked. Beyond it, new sockets have no flows, unless
        /// they are connections to known listeners.
        #[flag("max-sockets", "N")]
        max_sockets: usize,
        /// The maximum number of processes that are tracked. Beyond it, new processes are not known.
        #[flag("max-processes", "N")]
        max_processes: usize,
        /// Kernel functions to ignore, as if this kernel lacked them. Shows what would be missing on such a kernel.
        #[flag("mask", "FUNCTION")]
        mask: Vec<String>,
    } with {
        /// DNS: names that processes look up
        dns: Dns,
    }
}

section! {
    /// `socket.dns.*`.
    pub struct Dns sets socktrail_dns::Options {
        /// Whether to capture DNS traffic, so that flows get the names that processes look up.
        #[flag("dns-enabled", "BOOL")]
        enabled: bool,
        /// How DNS traffic is captured. `af_packet` is the only value.
        r#type: DnsType = DnsType::AfPacket,
        /// Ports that DNS servers listen on.
        #[flag("dns-port", "PORT")]
        ports: Vec<u16>,
    } with {
        /// Packet sockets: `packet(7)`
        af_packet: AfPacket,
    }
}

/// `socket.dns.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsType {
    /// With a packet socket: `packet(7)`.
    AfPacket,
}

section! {
    /// `socket.dns.af_packet.*`.
    pub struct AfPacket sets socktrail_dns::Options {
        /// The network interface on which DNS traffic is captured; `any` is all of them.
        #[flag("dns-interface", "NAME")]
        interface: String = ANY.to_owned(),
        /// How many bytes of each UDP packet are captured, from its IP header on. Names and addresses beyond that are
        /// missed. DNS over TCP is always captured whole.
        #[flag("dns-snaplen", "BYTES")]
        snaplen: u32,
    }
}

/// The value that stands for all interfaces.
const ANY: &str = "any";

section! {
    /// `document.*`.
    pub struct Document {
        /// The values of `network.direction`: with `ingress`, they are `ingress` and `egress`, as ECS defines for a host;
        /// with `inbound`, they are `inbound` and `outbound`.
        direction: Directions = Directions::default(),
    }
}

/// `filter.*`: key, flag, name of the flag's value, description. The structure belongs to the library, and its lists share
/// one type, so [`section!`] cannot describe them.
const FILTER: [(&str, &str, &str, &str); 9] = [
    (
        "exclude_loopback",
        "exclude-loopback",
        "BOOL",
        "Whether to leave out traffic of this host with itself: both addresses are the same, or both are loopback \
         addresses.",
    ),
    ("ports.only", "only-port", "PORT", "Report only flows with one of these ports at either end."),
    ("ports.exclude", "exclude-port", "PORT", "Report no flows with one of these ports at either end."),
    (
        "networks.only",
        "only-network",
        "NETWORK",
        "Report only flows whose remote address is in one of these networks, such as `192.0.2.0/24`.",
    ),
    (
        "networks.exclude",
        "exclude-network",
        "NETWORK",
        "Report no flows whose remote address is in one of these networks.",
    ),
    ("uids.only", "only-uid", "UID", "Report only flows of processes with one of these user ids."),
    ("uids.exclude", "exclude-uid", "UID", "Report no flows of processes with one of these user ids."),
    ("pids.only", "only-pid", "PID", "Report only flows of processes with one of these process ids."),
    ("pids.exclude", "exclude-pid", "PID", "Report no flows of processes with one of these process ids."),
];

impl Section for Filter {
    type Target = ();

    const INNER: &'static [(&'static str, &'static str)] = &[];

    fn keys(section: &str, keys: &mut Vec<Key>) {
        keys.extend(FILTER.iter().map(|&(key, flag, value, description)| Key {
            name: join(section, key),
            description,
            flag: Some(Flag { name: flag, value }),
            bounds: None,
            needs: None,
            reloadable: false,
        }));
    }

    fn check(&self, _section: &str, _problems: &mut Vec<(String, String)>) {}

    fn apply_to(&self, _target: &mut ()) {}
}

impl Config {
    /// The options of the monitor.
    pub fn monitor(&self) -> Options {
        let mut options = Options::default();
        let Socket { dns, .. } = &self.socket;
        self.socket.apply_to(&mut options);
        dns.apply_to(&mut options.dns);
        dns.af_packet.apply_to(&mut options.dns);
        options.dns.interface = Some(dns.af_packet.interface.clone()).filter(|name| name != ANY);
        options.filter = self.filter.clone();
        let for_sensors = if self.sensors.files.is_empty() { Actions::NONE } else { Actions::SENSORS };
        options.socket_events = self.events.action_set().or(for_sensors);
        options
    }
}
