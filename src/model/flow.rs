//! Flows, as the state machine hands them out.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
pub use socktrail_dns::Endpoint;

use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::model::process::Process;
use crate::model::time::MonotonicTime;

/// One transport conversation of one socket.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Flow {
    /// The number of the flow. Together with the monitor's id it identifies the flow.
    pub number: u64,
    /// Its transport.
    pub transport: Transport,
    /// This host's end.
    pub local: Endpoint,
    /// The other end.
    pub remote: Endpoint,
    /// The `struct sock` of its socket; the listener's if the connection was never accepted.
    pub sock: Option<SockAddress>,
    /// The `struct net` of its network namespace.
    pub net: Option<NetAddress>,
    /// Which side began it.
    pub direction: Direction,
    /// The owner.
    pub owner: Owner,
    /// The process that closed the socket's last descriptor, if it is known and not the owner: a child that inherited the
    /// socket, or a process that it was passed to.
    pub last_user: Option<Arc<Process>>,
    /// Its first packet, or the call that began it.
    pub start: MonotonicTime,
    /// Its last packet, or the call that ended it. Never before `start`.
    pub end: MonotonicTime,
    /// Packets that left this host.
    pub sent: Counters,
    /// Packets that arrived.
    pub received: Counters,
    /// Outgoing packets that this host dropped, because of a firewall, a queue, or a neighbour that did not answer.
    /// They are not in `sent`.
    pub dropped: Counters,
    /// Whether it was observed from its first packet on.
    pub complete: bool,
    /// Whether it has ended: false if `reason` is [`Reason::Interim`] or [`Reason::Shutdown`].
    pub is_final: bool,
    /// The name that its owner looked up for the remote's address.
    pub domain: Option<Arc<str>>,
    /// Its outcome.
    pub outcome: Outcome,
    /// The reason why it is reported now.
    pub reason: Reason,
    /// The reasons why its counters may not be exact.
    pub inexact: Inexact,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// The IANA protocol number.
    pub const fn iana_number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// The name, as ECS writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl Flow {
    /// A flow with these ends and default values: for tests of code that takes flows. Set its fields as needed.
    ///
    /// ```
    /// use socktrail::{Endpoint, Flow, Transport};
    ///
    /// let mut flow = Flow::new(Transport::Udp, Endpoint::new([192, 0, 2, 1], 4000), Endpoint::new([192, 0, 2, 2], 53));
    /// flow.sent.packets = 1;
    /// assert!(flow.is_final && !flow.complete);
    /// ```
    pub fn new(transport: Transport, local: Endpoint, remote: Endpoint) -> Self {
        Self {
            number: 1,
            transport,
            local,
            remote,
            sock: None,
            net: None,
            direction: Direction::Unknown,
            owner: Owner::Unknown,
            last_user: None,
            start: MonotonicTime::ZERO,
            end: MonotonicTime::ZERO,
            sent: Counters::default(),
            received: Counters::default(),
            dropped: Counters::default(),
            complete: false,
            is_final: true,
            domain: None,
            outcome: Outcome::Unknown,
            reason: Reason::Inactive,
            inexact: Inexact::default(),
        }
    }
}

/// Why a flow's counters may differ from those on the wire; all `false` if they do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Inexact {
    /// Samples of it may have been lost or missed by probes: packets and bytes are a lower bound, and what is known of
    /// its owner may be out of date.
    pub samples_lost: bool,
    /// Some of its packets had IP options or IPv6 extension headers, and were not counted.
    pub headers_unread: bool,
    /// Some of its packets travelled as IP fragments. Their number is computed from the size of one of them.
    pub fragments: bool,
    /// A packet that was counted as one datagram may have been several: `UDP_SEGMENT`, `UDP_GRO`, or a tunnel of the kernel.
    pub datagram_segments: bool,
    /// Segments that arrived merged may have had headers of other lengths than assumed. Bytes may be inexact; packets are exact.
    pub merged_segments: bool,
    /// Data arrived after its socket was closed and no longer counted segments: merged segments count as one packet.
    pub late_data: bool,
    /// This host dropped outgoing packets that could not be counted exactly: some may be counted as sent.
    pub dropped_locally: bool,
    /// Some of its packets belong to a small socket, which the source does not see: a FIN that arrives after the close, with its
    /// acknowledgement, or a SYN-ACK.
    pub unseen_packets: bool,
}

impl Inexact {
    /// The names of the reasons, as documents have them.
    pub fn reasons(self) -> impl Iterator<Item = &'static str> {
        let Self {
            samples_lost,
            headers_unread,
            fragments,
            datagram_segments,
            merged_segments,
            late_data,
            dropped_locally,
            unseen_packets,
        } = self;
        let all = [
            (samples_lost, "samples_lost"),
            (headers_unread, "headers_unread"),
            (fragments, "fragments"),
            (datagram_segments, "datagram_segments"),
            (merged_segments, "merged_segments"),
            (late_data, "late_data"),
            (dropped_locally, "dropped_locally"),
            (unseen_packets, "unseen_packets"),
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

/// Which side began a flow, seen from this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The other side did.
    Ingress,
    /// This host did.
    Egress,
    /// The beginning was not seen.
    Unknown,
}

/// The owner of a flow. A wrong owner is worse than an unknown one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// This process, which created, connected or accepted the socket.
    Process(Arc<Process>),
    /// The kernel itself; no process is behind it.
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

/// The outcome of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Both sides have sent packets, or the connection was established.
    Success,
    /// The connection was not established. Holds the positive errno, or 0 if it is not known.
    Failure(i32),
    /// Neither of these is known.
    Unknown,
}

/// Why a flow is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Its socket was closed, and it had no packets for `flow_termination_timeout`.
    Closed,
    /// It had no packets for `flow_inactive_timeout`.
    Inactive,
    /// Another conversation took over its addresses.
    Replaced,
    /// It goes on, and `flow_report_interval` has passed.
    Interim,
    /// A table was full.
    Evicted,
    /// The monitor stops.
    Shutdown,
}
