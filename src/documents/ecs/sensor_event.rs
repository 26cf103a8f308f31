//! The document of a sensor event: sysinspect's form, with the fields that ECS and data streams require in addition.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use super::socket_event::{RelatedToSocket, SocketNetwork};
use super::{Container, Context, ECS_VERSION, Ecs, Group, NoticeFields, Process, Service, User};
use crate::host::Host;
use crate::host::agent::Agent;
use crate::model::clock::Millis;
use crate::model::flow;
use crate::model::flow::Transport;
use crate::sensors::{Row, SensorAction, SensorEvent};

/// A sensor event as an ECS document, to be serialized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SensorDocument<'a> {
    /// When the socket opened or closed.
    #[serde(rename = "@timestamp")]
    pub timestamp: Millis,
    /// The kind of event.
    pub event: NoticeFields,
    /// The event in sysinspect's form: `eid`, `sensor`, `listener`, `data`.
    #[serde(flatten)]
    pub sensor_event: &'a SensorEvent,
    /// The local end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SensorEnd>,
    /// The remote end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<SensorEnd>,
    /// The protocols.
    pub network: SocketNetwork,
    /// The process that owns the socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process<'a>>,
    /// The user of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// The group of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// The container of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Container<'a>>,
    /// All addresses and users of the document.
    #[serde(skip_serializing_if = "RelatedToSocket::is_empty")]
    pub related: RelatedToSocket,
    /// The type of service that the data is about.
    pub service: Service,
    /// The host that was monitored.
    pub host: &'a Host,
    /// The program that made the document.
    pub agent: &'a Agent,
    /// The version of the schema.
    pub ecs: Ecs,
}

/// `source.*` or `destination.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SensorEnd {
    /// The address; left out if it is unspecified.
    #[serde(skip_serializing_if = "IpAddr::is_unspecified")]
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// The host name, if the sensor looks it up.
    #[serde(serialize_with = "super::identity::name", skip_serializing_if = "Option::is_none")]
    pub domain: Option<Arc<str>>,
}

impl<'a> SensorDocument<'a> {
    pub(super) fn new(event: &'a SensorEvent, context: &Context<'a>) -> Self {
        let process = event.row.process.as_deref();
        let credentials = process.and_then(|process| process.credentials.as_ref());
        let user = credentials.map(|credentials| User::of(credentials, context.names));
        let (source, mut destination) = (SensorEnd::of(event.row.local), SensorEnd::of(event.row.remote));
        if let Some(destination) = &mut destination {
            destination.domain = event.data.remote_host.as_deref().map(Arc::from);
        }
        let mut ip: Vec<_> = [&source, &destination].into_iter().flatten().map(|end| end.ip).collect();
        ip.retain(|ip| !ip.is_unspecified());
        ip.dedup();
        Self {
            timestamp: context.clock.wall(event.time).millis(),
            event: notice(event.data.action),
            sensor_event: event,
            source,
            destination,
            network: network(&event.row),
            process: process.map(|process| Process::of(process, context)),
            group: credentials.map(|credentials| Group::of(credentials, context.names)),
            container: process.and_then(Container::of),
            related: RelatedToSocket { ip, user: user.as_ref().map(User::related).unwrap_or_default() },
            user,
            service: Service { kind: "system" },
            host: context.host,
            agent: context.agent,
            ecs: Ecs { version: ECS_VERSION },
        }
    }
}

/// `event.*` of an action.
const fn notice(action: SensorAction) -> NoticeFields {
    match action {
        SensorAction::Opened => NoticeFields::new("event", "socket_opened", "start"),
        SensorAction::Closed => NoticeFields::new("event", "socket_closed", "end"),
    }
}

impl SensorEnd {
    /// `None` if the socket does not have this end.
    fn of(end: flow::Endpoint) -> Option<Self> {
        let is_there = !end.ip.is_unspecified() || end.port != 0;
        is_there.then_some(Self { ip: end.ip, port: end.port, domain: None })
    }
}

fn network(row: &Row) -> SocketNetwork {
    let (transport, number) = match row.transport {
        Transport::Tcp => ("tcp", "6"),
        Transport::Udp => ("udp", "17"),
    };
    SocketNetwork {
        direction: None,
        kind: if row.proto().ends_with('6') { "ipv6" } else { "ipv4" },
        transport: Some(transport.to_owned()),
        iana_number: Some(number.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::documents::ecs::{self, Directions};
    use crate::model::clock::{Clock, Readings, Timestamp};
    use crate::model::kernel_address::SockAddress;
    use crate::model::process::{self, Details, Image};
    use crate::model::socket_event::{
        Action, Address, CallResult, EventSocket, Family, IpEnd, SocketEvent, SocketId, SocketState, SocketType,
    };
    use crate::model::testing::{monotonic, since_boot};
    use crate::sensors::{Engine, Limits, parse};
    use std::sync::OnceLock;
    use std::time::Instant;

    fn sensor_event(remote: Option<Address>, state: SocketState) -> SensorEvent {
        let local = Some(Address::Ip(IpEnd::new([192, 0, 2, 1], 40_000)));
        let socket = EventSocket {
            id: SocketId(1),
            sock: SockAddress::new(1),
            family: Family::INET,
            kind: Some(SocketType::STREAM),
            protocol: Some(6),
            local,
            remote,
            state: Some(state),
            owner: None,
            existing: false,
        };
        let (action, result) = (Action::Connect, CallResult::Success);
        let event = SocketEvent {
            time: monotonic(2_000_000_000),
            action,
            result,
            fd: None,
            socket,
            before: None,
            process: None,
            tid: 0,
            thread_name: None,
        };
        let mut engine = Engine::new(parse("all: { listener: net.socket }\n").unwrap(), 1, Limits::default());
        engine.ingest(&event, Instant::now());
        engine.take_events().remove(0)
    }

    fn document(event: &SensorEvent) -> Value {
        let host = Host::default();
        let agent = Agent::of(&host);
        let clock =
            Clock::from_readings(Readings { kernel: monotonic(0), boot: since_boot(0), wall: Timestamp::default() });
        let context = Context { host: &host, agent: &agent, clock, names: &(), directions: Directions::Ingress };
        serde_json::to_value(ecs::sensor_event(event, &context)).unwrap()
    }

    #[test]
    fn ecs_fields_are_added_to_sysinspects_form() {
        let remote = Some(Address::Ip(IpEnd::new([198, 51, 100, 7], 443)));
        let mut event = sensor_event(remote, SocketState::ESTABLISHED);
        event.data.remote_host = Some("www.example.org".to_owned());
        let document = document(&event);
        let bare = serde_json::to_value(&event).unwrap();
        for (key, value) in bare.as_object().unwrap() {
            assert_eq!(&document[key], value, "{key}");
        }
        assert_eq!(bare.as_object().unwrap().len(), 4, "sysinspect's form has four keys");
        assert_eq!(document["@timestamp"], "1970-01-01T00:00:02.000Z");
        assert_eq!(document["event"]["action"], "socket_opened");
        assert_eq!(document["event"]["type"], json!(["start"]));
        assert_eq!(document["source"], json!({"ip": "192.0.2.1", "port": 40_000}));
        assert_eq!(document["destination"], json!({"ip": "198.51.100.7", "port": 443, "domain": "www.example.org"}));
        assert_eq!(document["network"], json!({"type": "ipv4", "transport": "tcp", "iana_number": "6"}));
        assert_eq!(document["related"]["ip"], json!(["192.0.2.1", "198.51.100.7"]));
    }

    #[test]
    fn the_container_of_the_process_is_included() {
        let mut event = sensor_event(None, SocketState::LISTEN);
        assert_eq!(document(&event).get("container"), None);
        let details = Details { container_id: Some("0123abcd".into()), ..Details::default() };
        let image = Image { details: OnceLock::from(details), ..Image::default() };
        event.row.process = Some(Arc::new(process::Process {
            pid: 7,
            parent_pid: None,
            start: None,
            kernel: false,
            credentials: None,
            control_groups: None,
            image: Arc::new(image),
        }));
        assert_eq!(document(&event)["container"], json!({"id": "0123abcd"}));
    }

    #[test]
    fn a_listener_has_no_destination() {
        let document = document(&sensor_event(None, SocketState::LISTEN));
        assert!(document.get("destination").is_none());
        assert_eq!(document["data"]["remote"], "0.0.0.0:0");
        assert_eq!(document["related"]["ip"], json!(["192.0.2.1"]));
    }
}
