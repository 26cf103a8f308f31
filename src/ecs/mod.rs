//! Documents in the Elastic Common Schema.
//!
//! [`network_flow()`] turns a [`Flow`] into what leaves the program: one struct per ECS field set, which borrows from the
//! flow and serializes to JSON. Nothing here reads a clock, a file or a table of its own: the same flow in the same
//! [`Context`] is the same document, byte for byte.
//!
//! # Conventions
//! - Keys never hold empty strings or nulls; what is not known is left out.
//! - `@timestamp` is the flow's end, with milliseconds. `event.start` and `event.end` have nanoseconds; so has
//!   `event.duration`, which comes from the kernel's clock alone and may differ from what they say when the wall clock
//!   was set meanwhile.
//! - Where ECS says keyword, a number is written as a string (`user.id`, `network.iana_number`); the same ids stand as
//!   numbers under `system.audit.socket`.
//! - `process.start` and `process.created` are the same moment; the first is ECS's name, the second Beats'.
//! - `process.entity_id` is the first 96 bits, in hexadecimal, of the SHA-256 of the host's id, the id of its present
//!   boot, the pid and the start time in ticks of 10 ms after boot: see `entity_id` in `process.rs`.
//! - `flow.id` is the first 16 hexadecimal digits of `agent.ephemeral_id`, a dash, and the flow's number.
//! - `system.audit.socket.owner` says whose the flow is: a `process`, the `kernel`, or `unknown`.

mod endpoint;
mod event;
mod identity;
mod loss;
mod network;
mod network_flow;
mod process;
mod sensor_event;
mod socket_event;
mod system;

use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use crate::clock::Clock;
use crate::flow::Flow;
use crate::host::Host;
use crate::loss::Loss;
use crate::sensors::SensorEvent;
use crate::socket_event::SocketEvent;
use crate::users::Names;

pub use endpoint::Endpoint;
pub(crate) use event::errno_name;
pub use event::{ErrorFields, EventFields, NoticeFields};
pub use identity::{Effective, Group, User};
pub use loss::{LossDocument, LossFields, LossOwn};
pub use network::Network;
pub use network_flow::{Ecs, FlowFields, NetworkFlow, Related, Service};
pub use process::{Container, Parent, Process, Thread};
pub use sensor_event::{SensorDocument, SensorEnd};
pub use socket_event::{
    End, RelatedToSocket, SocketAudit, SocketDocument, SocketEventFields, SocketFields, SocketNetwork, SocketSystem,
};
pub use system::{Audit, LastUser, Owner, Socket, System};

/// The ECS release whose field names and types the documents have.
pub const ECS_VERSION: &str = "8.17.0";

/// What a document says beside the flow itself.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The host that it was seen on.
    pub host: &'a Host,
    /// The program that saw it.
    pub agent: &'a Agent,
    /// Ties kernel time to wall time.
    pub clock: Clock,
    /// Gives names to users and groups; `&()` knows none.
    pub names: &'a dyn Names,
    /// How to call the directions.
    pub directions: Directions,
}

/// What `network.direction` is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Directions {
    /// `ingress` and `egress`, as ECS asks of a view from the host.
    #[default]
    Ingress,
    /// `inbound` and `outbound`, as older documents have it.
    Inbound,
}

/// The document of a flow.
///
/// ```
/// # use socktrail::{agent::Agent, clock::Clock, ecs, event::*, flow::*, host::Host};
/// # let flow = Flow {
/// #     number: 1, transport: Transport::Udp, sock: 0, net: 0, direction: Direction::Egress, owner: Owner::Unknown, last_user: None,
/// #     local: Endpoint::new([192, 0, 2, 1], 4000), remote: Endpoint::new([192, 0, 2, 2], 53), start: 0, end: 0,
/// #     sent: Counters::default(), received: Counters::default(), dropped: Counters::default(), complete: true,
/// #     is_final: true,
/// #     outcome: Outcome::Success, reason: Reason::Inactive, inexact: Default::default(), domain: None,
/// # };
/// let host = Host::gather();
/// let agent = Agent::of(&host);
/// let context = ecs::Context {
///     host: &host,
///     agent: &agent,
///     clock: Clock::now()?,
///     names: &(),
///     directions: ecs::Directions::Ingress,
/// };
/// let document = serde_json::to_value(ecs::network_flow(&flow, &context))?;
/// assert_eq!(document["destination"]["ip"], "192.0.2.2");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn network_flow<'a>(flow: &'a Flow, context: &Context<'a>) -> NetworkFlow<'a> {
    NetworkFlow::new(flow, context)
}

/// The document of a socket event.
pub fn socket_event<'a>(event: &'a SocketEvent, context: &Context<'a>) -> SocketDocument<'a> {
    SocketDocument::new(event, context)
}

/// The document of a sensor event: sysinspect's form as it is, and ECS around it.
pub fn sensor_event<'a>(event: &'a SensorEvent, context: &Context<'a>) -> SensorDocument<'a> {
    SensorDocument::new(event, context)
}

/// The document of a loss.
pub fn loss<'a>(loss: &Loss, context: &Context<'a>) -> LossDocument<'a> {
    LossDocument::new(loss, context)
}
