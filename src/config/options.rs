//! What can be configured. Field names are the keys.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socktrail_guess::Source;

use super::elasticsearch::Spool;
use super::outputs::{Agent, Events, Metrics, Outputs, Sensors};
use super::values::Time;
use crate::ecs::Directions;
use crate::filter::Filter;
use crate::monitor::Options;
use crate::socket_event::Actions;

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// How flows are watched.
    pub socket: Socket,
    /// Which calls on sockets are told beside flows.
    pub events: Events,
    /// Which sensors tell of sockets.
    pub sensors: Sensors,
    /// Which flows are of no interest.
    pub filter: Filter,
    /// How documents are written.
    pub document: Document,
    /// Where they go.
    pub output: Outputs,
    /// Where they wait.
    pub spool: Spool,
    /// The program itself.
    pub agent: Agent,
    /// Numbers of it.
    pub metrics: Metrics,
}

/// `socket.*`: the options of Auditbeat's `system/socket` dataset, with its names and defaults, and more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Socket {
    /// The mount point of tracefs, or the tracing directory of debugfs; none: found, else mounted.
    pub tracefs_path: Option<PathBuf>,
    /// Whether IPv6 is watched; none: where the kernel has it.
    pub enable_ipv6: Option<bool>,
    /// A flow without traffic for so long has ended.
    pub flow_inactive_timeout: Time,
    /// How long packets are still counted in after a socket was closed.
    pub flow_termination_timeout: Time,
    /// A socket without traffic for so long is forgotten.
    pub socket_inactive_timeout: Time,
    /// How many samples may wait to be taken in.
    pub perf_queue_size: usize,
    /// How many reports of losses may wait; beyond, they are joined.
    pub lost_queue_size: usize,
    /// Each CPU's ring has 2^n pages.
    pub ring_size_exponent: u8,
    /// By how much the wall clock may move against the kernel's before times follow it.
    pub clock_max_drift: Time,
    /// How often the kernel's clock is compared with ours where programs cannot read it.
    pub clock_sync_period: Time,
    /// The time that one guess may take.
    pub guess_timeout: Time,
    /// How names are listened to.
    pub dns: Dns,
    /// How often a flow with traffic is reported while it lives; none: never.
    pub flow_report_interval: Option<Time>,
    /// Where the kernel's layout comes from: `auto`, `guess`, `btf`, `btf:PATH` or `file:PATH`.
    #[serde(with = "super::values::text")]
    pub source: Source,
    /// Live flows at most; beyond, those closest to their end are written early.
    pub max_flows: usize,
    /// Known sockets at most.
    pub max_sockets: usize,
    /// Known processes at most.
    pub max_processes: usize,
    /// Kernel functions to do without, as if the kernel did not have them.
    pub mask: Vec<String>,
}

/// `socket.dns.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Dns {
    /// Whether names that processes look up are listened to.
    pub enabled: bool,
    /// How.
    #[serde(rename = "type")]
    pub kind: DnsType,
    /// How packets are captured.
    pub af_packet: AfPacket,
    /// Ports that servers of names listen on.
    pub ports: Vec<u16>,
}

/// `socket.dns.type`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsType {
    /// Packets are captured: `packet(7)`. There is no other way yet.
    #[default]
    AfPacket,
}

/// `socket.dns.af_packet.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct AfPacket {
    /// Only this interface; `any`: all of them.
    pub interface: String,
    /// Bytes read of each packet.
    pub snaplen: u32,
}

/// `document.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Document {
    /// What `network.direction` is called: `ingress` (and `egress`, as ECS asks) or `inbound` (and `outbound`).
    pub direction: Directions,
}

/// The word for all interfaces.
const ANY: &str = "any";

impl Default for Socket {
    fn default() -> Self {
        let options = Options::default();
        Self {
            tracefs_path: options.tracefs_path,
            enable_ipv6: options.enable_ipv6,
            flow_inactive_timeout: options.flow_inactive_timeout.into(),
            flow_termination_timeout: options.flow_termination_timeout.into(),
            socket_inactive_timeout: options.socket_inactive_timeout.into(),
            perf_queue_size: options.perf_queue_size,
            lost_queue_size: options.lost_queue_size,
            ring_size_exponent: options.ring_size_exponent,
            clock_max_drift: options.clock_max_drift.into(),
            clock_sync_period: options.clock_sync_period.into(),
            guess_timeout: options.guess_timeout.into(),
            dns: Dns::default(),
            flow_report_interval: options.flow_report_interval.map(Time::from),
            source: options.source,
            max_flows: options.max_flows,
            max_sockets: options.max_sockets,
            max_processes: options.max_processes,
            mask: options.mask,
        }
    }
}

impl Default for Dns {
    fn default() -> Self {
        let options = socktrail_dns::Options::default();
        let interface = options.interface.unwrap_or_else(|| ANY.to_owned());
        let af_packet = AfPacket { interface, snaplen: options.snaplen };
        Self { enabled: options.enabled, kind: DnsType::default(), af_packet, ports: options.ports }
    }
}

impl Default for AfPacket {
    fn default() -> Self {
        Dns::default().af_packet
    }
}

impl Config {
    /// What the monitor is to do.
    pub fn monitor(&self) -> Options {
        let socket = self.socket.clone();
        let of_sensors = if self.sensors.files.is_empty() { Actions::NONE } else { Actions::SENSORS };
        let dns = socktrail_dns::Options::from(socket.dns);
        Options {
            tracefs_path: socket.tracefs_path,
            enable_ipv6: socket.enable_ipv6,
            flow_inactive_timeout: socket.flow_inactive_timeout.into(),
            flow_termination_timeout: socket.flow_termination_timeout.into(),
            socket_inactive_timeout: socket.socket_inactive_timeout.into(),
            perf_queue_size: socket.perf_queue_size,
            lost_queue_size: socket.lost_queue_size,
            ring_size_exponent: socket.ring_size_exponent,
            clock_max_drift: socket.clock_max_drift.into(),
            clock_sync_period: socket.clock_sync_period.into(),
            guess_timeout: socket.guess_timeout.into(),
            flow_report_interval: socket.flow_report_interval.map(Duration::from),
            source: socket.source,
            max_flows: socket.max_flows,
            max_sockets: socket.max_sockets,
            max_processes: socket.max_processes,
            mask: socket.mask,
            filter: self.filter.clone(),
            socket_events: self.events.set().or(of_sensors),
            dns,
            ..Options::default()
        }
    }
}

impl From<Dns> for socktrail_dns::Options {
    fn from(dns: Dns) -> Self {
        let mut options = Self::default();
        options.enabled = dns.enabled;
        options.interface = Some(dns.af_packet.interface).filter(|name| name != ANY);
        options.snaplen = dns.af_packet.snaplen;
        options.ports = dns.ports;
        options
    }
}
