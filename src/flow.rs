//! Flows: what the state machine hands out.

use std::fmt;
use std::sync::Arc;

use crate::event::{Endpoint, KernelAddress, KernelTime, Transport};
use crate::process::Process;

/// One transport conversation of one socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Counts up over a monitor's life: with the monitor's own id it names the flow.
    pub number: u64,
    /// Its transport.
    pub transport: Transport,
    /// This host's end.
    pub local: Endpoint,
    /// The other end.
    pub remote: Endpoint,
    /// The `struct sock` it belonged to (the listener's for a connection that nobody accepted).
    pub sock: KernelAddress,
    /// The `struct net` it lives in.
    pub net: KernelAddress,
    /// Who began it.
    pub direction: Direction,
    /// Whose it is.
    pub owner: Owner,
    /// Who gave up the socket's last descriptor, where that is known and another than the owner: a child that went on with
    /// the socket, or a process that it was passed to.
    pub last_user: Option<Arc<Process>>,
    /// Its first packet, or the call that began it.
    pub start: KernelTime,
    /// Its last packet, or the call that ended it. Never before `start`.
    pub end: KernelTime,
    /// What left this host.
    pub sent: Counters,
    /// What arrived.
    pub received: Counters,
    /// Outgoing packets that this host dropped, because of a firewall, a queue, or a neighbour that did not answer.
    /// They are not in `sent`.
    pub dropped: Counters,
    /// Whether it was watched from its first packet on.
    pub complete: bool,
    /// Whether this is its last report.
    pub is_final: bool,
    /// The name that its owner looked up for the remote's address.
    pub domain: Option<Arc<str>>,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it is reported now.
    pub reason: Reason,
    /// Why its counters may not be exact.
    pub inexact: Inexact,
}

/// Why a flow's counters may not be those of the wire; nothing where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Inexact {
    /// Samples of it may have been lost or missed by probes: packets and bytes are a lower bound, and what is known of
    /// its owner may be out of date.
    pub samples_lost: bool,
    /// Some of its packets had IP options or IPv6 extension headers, and were not counted.
    pub headers_unread: bool,
    /// Some of its packets travelled as IP fragments. How many is reckoned from the size of one of them.
    pub fragments: bool,
    /// What was counted as one datagram may have been several: `UDP_SEGMENT`, `UDP_GRO`, a tunnel of the kernel's.
    pub datagram_segments: bool,
    /// Segments that arrived merged may have had headers of other lengths than was assumed. Bytes may be off either
    /// way; packets are exact.
    pub merged_segments: bool,
    /// Data arrived when its socket was closed and counted no more: what came merged counts as one packet.
    pub late_data: bool,
    /// This host dropped outgoing packets that could not be counted exactly: some may be counted as sent.
    pub dropped_locally: bool,
}

impl Inexact {
    /// The reasons by name, as they are written.
    pub fn reasons(self) -> impl Iterator<Item = &'static str> {
        let Self {
            samples_lost,
            headers_unread,
            fragments,
            datagram_segments,
            merged_segments,
            late_data,
            dropped_locally,
        } = self;
        let all = [
            (samples_lost, "samples_lost"),
            (headers_unread, "headers_unread"),
            (fragments, "fragments"),
            (datagram_segments, "datagram_segments"),
            (merged_segments, "merged_segments"),
            (late_data, "late_data"),
            (dropped_locally, "dropped_locally"),
        ];
        all.into_iter().filter_map(|(applies, name)| applies.then_some(name))
    }
}

/// Wire packets and wire bytes (IP header, transport header and payload).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// IP packets, as a capture with offloads off would show.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Who began a flow, seen from this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The other side did.
    Ingress,
    /// This host did.
    Egress,
    /// Nobody saw it.
    Unknown,
}

/// Whose a flow is. A wrong owner is worse than none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// This process's: it made, connected or accepted the socket.
    Process(Arc<Process>),
    /// The kernel's own: no process stands behind it.
    Kernel,
    /// Not known: the socket is older than the monitor, or the event that names its owner was lost.
    Unknown,
}

impl fmt::Display for Owner {
    /// A process as `name[pid]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(process) => write!(f, "{}[{}]", process.image.name().unwrap_or("?"), process.pid),
            Self::Kernel => f.write_str("kernel"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// What became of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was a conversation.
    Success,
    /// The connection did not come to be. Holds the positive errno, 0 where it is not known.
    Failure(i32),
    /// Nothing said.
    Unknown,
}

/// Why a flow is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its socket was closed, and it stayed quiet for `flow_termination_timeout`.
    Closed,
    /// It was quiet for `flow_inactive_timeout`.
    Inactive,
    /// Another conversation took over its addresses.
    Replaced,
    /// It goes on, and `flow_report_interval` is over.
    Interim,
    /// A table was full.
    Evicted,
    /// The monitor stops.
    Shutdown,
}
