//! Documents in the Elastic Common Schema.
//!
//! [`network_flow()`] turns a [`Flow`] into a document: one struct per ECS field set, which borrows from the flow and
//! serializes to JSON. No function here reads a clock or a file: the same flow with the same [`Context`] yields the same
//! document, byte for byte.
//!
//! # Conventions
//! - Values are never empty strings or null. Unknown values are left out.
//! - `@timestamp` is the flow's end, in milliseconds. `event.start`, `event.end` and `event.duration` are in nanoseconds. The
//!   duration comes from the kernel's monotonic clock, so it differs from their difference if the wall clock was set meanwhile.
//! - A number that ECS defines as a keyword is written as a string (`user.id`, `network.iana_number`). `system.audit.socket`
//!   has the same ids as numbers.
//! - `process.start` and `process.created` are the same time. The first is ECS's name, the second that of Beats.
//! - `process.entity_id` is the first 96 bits, in hexadecimal, of the SHA-256 of the host's id, the boot's id, the pid and the
//!   start time in ticks of 10 ms since boot: see `entity_id` in `process.rs`.
//! - `flow.id` is the first 16 hexadecimal digits of `agent.ephemeral_id`, a dash, and the flow's number.
//! - `system.audit.socket.owner` is the kind of owner: `process`, `kernel` or `unknown`.

mod endpoint;
mod event;
mod identity;
mod loss;
mod network;
mod network_flow;
mod process;
#[cfg(feature = "sensors")]
mod sensor_event;
mod socket_event;
mod system;

use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::host::agent::Agent;
use crate::model::clock::Clock;
use crate::model::flow::Flow;
use crate::model::loss::Loss;
use crate::model::names::UserNames;
use crate::model::socket_event::SocketEvent;
#[cfg(feature = "sensors")]
use crate::sensors::SensorEvent;

use endpoint::Endpoint;
use event::{ErrorFields, EventFields, NoticeFields};
use identity::{Group, User};
pub use loss::LossDocument;
use network::Network;
pub use network_flow::NetworkFlow;
use network_flow::{Ecs, Service};
use process::{Container, Process, Thread};
#[cfg(feature = "sensors")]
pub use sensor_event::SensorDocument;
pub use socket_event::SocketDocument;
use system::System;

/// The ECS version of the documents.
pub const ECS_VERSION: &str = "8.17.0";

/// The input of a document in addition to the flow or event.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The host that is monitored.
    pub host: &'a Host,
    /// The program that makes the document.
    pub agent: &'a Agent,
    /// Converts kernel times to wall-clock times.
    pub clock: Clock,
    /// Looks up names of users and groups; `&()` has none.
    pub names: &'a dyn UserNames,
    /// The values of `network.direction`.
    pub directions: Directions,
}

/// The values of `network.direction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Directions {
    /// `ingress` and `egress`, as ECS defines for the view of a host.
    #[default]
    Ingress,
    /// `inbound` and `outbound`, as in older documents.
    Inbound,
}

/// The document of a flow.
///
/// ```
/// use socktrail::documents::ecs;
/// use socktrail::flow::Direction;
/// use socktrail::host::{Host, agent::Agent};
/// use socktrail::{Clock, Endpoint, Flow, Transport};
///
/// let mut flow = Flow::new(Transport::Udp, Endpoint::new([192, 0, 2, 1], 4000), Endpoint::new([192, 0, 2, 2], 53));
/// flow.direction = Direction::Egress;
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

/// The document of a sensor event: sysinspect's form, with ECS fields in addition.
#[cfg(feature = "sensors")]
pub fn sensor_event<'a>(event: &'a SensorEvent, context: &Context<'a>) -> SensorDocument<'a> {
    SensorDocument::new(event, context)
}

/// The document of a loss.
pub fn loss<'a>(loss: &Loss, context: &Context<'a>) -> LossDocument<'a> {
    LossDocument::new(loss, context)
}
