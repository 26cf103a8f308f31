//! The document of a sensor event: sysinspect's form, with what ECS and a data stream ask for around it.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::{
    Container, Context, ECS_VERSION, Ecs, Group, NoticeFields, Process, RelatedToSocket, Service, SocketNetwork, User,
};
use crate::agent::Agent;
use crate::clock::Millis;
use crate::event::{self, Transport};
use crate::host::Host;
use crate::sensors::{Row, SensorAction, SensorEvent};

/// A sensor event as an ECS document. Serialize it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SensorDocument<'a> {
    /// When the socket appeared or disappeared.
    #[serde(rename = "@timestamp")]
    pub timestamp: Millis,
    /// What happened to it.
    pub event: NoticeFields,
    /// The event itself, under the names that it has on standard output: `eid`, `sensor`, `listener`, `data`.
    #[serde(flatten)]
    pub said: &'a SensorEvent,
    /// The socket's own end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SensorEnd>,
    /// The other end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<SensorEnd>,
    /// Protocols.
    pub network: SocketNetwork,
    /// Whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process<'a>>,
    /// Who that acted as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// Who that acted as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// Where it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Container<'a>>,
    /// All addresses and users of the document.
    #[serde(skip_serializing_if = "RelatedToSocket::is_empty")]
    pub related: RelatedToSocket,
    /// What kind of service the data is of.
    pub service: Service,
    /// Where it was seen.
    pub host: &'a Host,
    /// Who saw it.
    pub agent: &'a Agent,
    /// The schema.
    pub ecs: Ecs,
}

/// `source.*` or `destination.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SensorEnd {
    /// The address; left out where it is the unspecified one.
    #[serde(skip_serializing_if = "IpAddr::is_unspecified")]
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// The name of its host, where a sensor asked for it.
    #[serde(serialize_with = "text", skip_serializing_if = "Option::is_none")]
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
            event: noticed(event.data.action),
            said: event,
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

/// What happened to the socket, in ECS's words.
const fn noticed(action: SensorAction) -> NoticeFields {
    match action {
        SensorAction::Opened => NoticeFields::new("event", "socket_opened", "start"),
        SensorAction::Closed => NoticeFields::new("event", "socket_closed", "end"),
    }
}

impl SensorEnd {
    /// `None` for the end that a socket does not have.
    fn of(end: event::Endpoint) -> Option<Self> {
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

fn text<S: Serializer>(text: &Option<Arc<str>>, serializer: S) -> Result<S::Ok, S::Error> {
    text.as_deref().serialize(serializer)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::clock::{Clock, Readings, Timestamp};
    use crate::ecs::{self, Directions};
    use crate::process::{self, Details, Image};
    use crate::sensors::{Engine, Limits, parse};
    use crate::socket_event::{Action, CallResult, SocketEvent};
    use crate::socket_event::{Address, Family, IpEnd, Socket, SocketId, SocketState, SocketType};
    use std::sync::OnceLock;
    use std::time::Instant;

    fn said(remote: Option<Address>, state: SocketState) -> SensorEvent {
        let local = Some(Address::Ip(IpEnd::new([192, 0, 2, 1], 40_000)));
        let socket = Socket {
            id: SocketId(1),
            sock: 1,
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
            time: 2_000_000_000,
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
        let clock = Clock::from_readings(Readings { kernel: 0, boot: 0, wall: Timestamp::default() });
        let context = Context { host: &host, agent: &agent, clock, names: &(), directions: Directions::Ingress };
        serde_json::to_value(ecs::sensor_event(event, &context)).unwrap()
    }

    #[test]
    fn the_event_stays_as_it_is_and_a_data_stream_finds_what_it_needs() {
        let remote = Some(Address::Ip(IpEnd::new([198, 51, 100, 7], 443)));
        let mut event = said(remote, SocketState::ESTABLISHED);
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
    fn it_names_the_container_of_its_process() {
        let mut event = said(None, SocketState::LISTEN);
        assert_eq!(document(&event).get("container"), None);
        let details = Details { container_id: Some("0123abcd".into()), ..Details::default() };
        let image = Image { details: OnceLock::from(details), ..Image::default() };
        event.row.process = Some(Arc::new(process::Process {
            pid: 7,
            parent_pid: None,
            start: None,
            kernel: false,
            credentials: None,
            containers: None,
            image: Arc::new(image),
        }));
        assert_eq!(document(&event)["container"], json!({"id": "0123abcd"}));
    }

    #[test]
    fn a_listener_has_no_other_end() {
        let document = document(&said(None, SocketState::LISTEN));
        assert!(document.get("destination").is_none());
        assert_eq!(document["data"]["remote"], "0.0.0.0:0");
        assert_eq!(document["related"]["ip"], json!(["192.0.2.1"]));
    }
}
