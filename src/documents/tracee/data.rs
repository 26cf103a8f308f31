//! The data fields of Tracee's events, the same in both forms.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::model::socket_event::{Action, Address, EventSocket, Family, SocketEvent, SocketType, UnixName};

/// One data field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// Its name, such as `sockfd`.
    pub name: &'static str,
    /// Its value.
    pub value: Value,
}

/// The value of a data field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `int32`.
    Int32(i32),
    /// `sockaddr`.
    SockAddr(SockAddr),
}

/// A socket address. [`SockAddr::fields`] has its fields as Tracee names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SockAddr {
    /// `sockaddr_in`.
    Inet {
        /// `sin_addr`.
        ip: Ipv4Addr,
        /// `sin_port`.
        port: u16,
    },
    /// `sockaddr_in6`.
    Inet6 {
        /// `sin6_addr`.
        ip: Ipv6Addr,
        /// `sin6_port`.
        port: u16,
        /// `sin6_flowinfo`.
        flow_info: u32,
        /// `sin6_scope_id`.
        scope_id: u32,
    },
    /// `sockaddr_un`: the path, or `@` and the abstract name. Unprintable bytes are escaped as in [`Address`].
    Unix(String),
    /// Another family: only its name is written.
    Other(Family),
}

/// The data that Tracee reports for an event.
pub struct EventData {
    /// The number of the event, relative to that of `security_socket_create`.
    pub offset: u32,
    pub name: &'static str,
    pub data: Vec<Data>,
}

/// Converts an event; `None` if Tracee does not report such events.
pub fn event_data(event: &SocketEvent) -> Option<EventData> {
    let socket = &event.socket;
    let kind = socket.kind.map_or(0, |kind| kind.0.into());
    let local = || address("local_addr", socket.family, socket.local.as_ref());
    let (offset, name, own) = match &event.action {
        Action::Create { protocol } => (0, "security_socket_create", created(socket, *protocol)),
        Action::Listen { backlog } => (1, "security_socket_listen", vec![local(), int("backlog", *backlog)]),
        Action::Connect => {
            let remote = socket.remote.as_ref().filter(|_| is_covered(socket.kind))?;
            if matches!(remote, Address::Other(_)) {
                return None;
            }
            let remote = address("remote_addr", socket.family, Some(remote));
            (2, "security_socket_connect", vec![int("type", kind), remote])
        }
        Action::Accept { listener, .. } => {
            let local = address("local_addr", socket.family, listener.local.as_ref());
            (3, "security_socket_accept", vec![local])
        }
        Action::Bind => (4, "security_socket_bind", vec![local()]),
        Action::SetSockOpt { level, option } => {
            (5, "security_socket_setsockopt", vec![int("level", *level), int("optname", *option), local()])
        }
        Action::Close | Action::State => return None,
    };
    let sockfd = event.fd.filter(|_| !matches!(event.action, Action::Create { .. })).map(|fd| int("sockfd", fd));
    Some(EventData { offset, name, data: sockfd.into_iter().chain(own).collect() })
}

fn created(socket: &EventSocket, protocol: i32) -> Vec<Data> {
    let kind = socket.kind.map_or(0, |kind| kind.0.into());
    vec![int("family", socket.family.0.into()), int("type", kind), int("protocol", protocol), int("kern", 0)]
}

fn is_covered(kind: Option<SocketType>) -> bool {
    matches!(kind, None | Some(SocketType::STREAM | SocketType::DGRAM | SocketType::SEQPACKET))
}

fn int(name: &'static str, value: i32) -> Data {
    Data { name, value: Value::Int32(value) }
}

/// An end of a socket. If the socket does not have this end, it is the unspecified address, or an empty name, as in the kernel.
fn address(name: &'static str, family: Family, address: Option<&Address>) -> Data {
    let value = match (address, family) {
        (Some(Address::Ip(end)), _) => match end.ip {
            IpAddr::V4(ip) => SockAddr::Inet { ip, port: end.port },
            IpAddr::V6(ip) => SockAddr::Inet6 { ip, port: end.port, flow_info: end.flow_info, scope_id: end.scope_id },
        },
        (Some(Address::Unix(name)), _) => SockAddr::Unix(name.to_string()),
        (Some(Address::Other(family)), _) => SockAddr::Other(*family),
        (None, Family::INET) => SockAddr::Inet { ip: Ipv4Addr::UNSPECIFIED, port: 0 },
        (None, Family::INET6) => SockAddr::Inet6 { ip: Ipv6Addr::UNSPECIFIED, port: 0, flow_info: 0, scope_id: 0 },
        (None, Family::UNIX) => SockAddr::Unix(UnixName::Unnamed.to_string()),
        (None, family) => SockAddr::Other(family),
    };
    Data { name, value: Value::SockAddr(value) }
}

/// `{"name":"sockfd","int32":5}`.
impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("name", self.name)?;
        match &self.value {
            Value::Int32(value) => map.serialize_entry("int32", value)?,
            Value::SockAddr(value) => map.serialize_entry("sockaddr", value)?,
        }
        map.end()
    }
}

/// A field of an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Field {
    /// A port, or another number.
    Number(u32),
    /// Anything else.
    Text(String),
}

impl SockAddr {
    /// The fields, with Tracee's names: those of the C structure, except `sa_family` and `sin6_scopeid`.
    pub fn fields(&self) -> Vec<(&'static str, Field)> {
        let family = |name: &str| ("sa_family", Field::Text(name.to_owned()));
        match self {
            Self::Inet { ip, port } => vec![
                family("AF_INET"),
                ("sin_addr", Field::Text(ip.to_string())),
                ("sin_port", Field::Number((*port).into())),
            ],
            Self::Inet6 { ip, port, flow_info, scope_id } => vec![
                family("AF_INET6"),
                ("sin6_addr", Field::Text(ip.to_string())),
                ("sin6_port", Field::Number((*port).into())),
                ("sin6_flowinfo", Field::Number(*flow_info)),
                ("sin6_scopeid", Field::Number(*scope_id)),
            ],
            Self::Unix(path) => vec![family("AF_UNIX"), ("sun_path", Field::Text(path.clone()))],
            Self::Other(other) => vec![family(&other.name())],
        }
    }
}

/// `{"sa_family":"AF_INET","sin_addr":"192.0.2.1","sin_port":80}`: ports are numbers.
impl Serialize for SockAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.fields())
    }
}
