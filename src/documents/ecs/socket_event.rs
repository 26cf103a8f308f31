//! The document of a socket event.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use super::network_flow::strings;
use super::system::{address, is_false};
use super::{Container, Context, ECS_VERSION, Ecs, ErrorFields, Group, Process, Service, Thread, User};
use crate::host::Host;
use crate::host::agent::Agent;
use crate::model::clock::Millis;
use crate::model::kernel_address::SockAddress;
use crate::model::socket_event::{
    Action, Address, CallResult, Family, IpEnd, SocketEvent, SocketState, SocketType, ThreadName, protocol_name,
};

/// A socket event as an ECS document, to be serialized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SocketDocument<'a> {
    /// When the call returned.
    #[serde(rename = "@timestamp")]
    pub timestamp: Millis,
    /// The call and its outcome.
    pub event: SocketEventFields,
    /// The local end; for an accept, the remote end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<End>,
    /// The remote end; for an accept, the local end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<End>,
    /// Protocols and direction, for an IP socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<SocketNetwork>,
    /// The process that made the call.
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
    /// Why the call failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorFields>,
    /// All addresses and users of the document.
    #[serde(skip_serializing_if = "RelatedToSocket::is_empty")]
    pub related: RelatedToSocket,
    /// Fields that ECS does not define.
    pub system: SocketSystem,
    /// The type of service that the data is about.
    pub service: Service,
    /// The host that was monitored.
    pub host: &'a Host,
    /// The program that made the document.
    pub agent: &'a Agent,
    /// The version of the schema.
    pub ecs: Ecs,
}

/// `event.*` of a socket event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SocketEventFields {
    /// `event`.
    pub kind: &'static str,
    /// `socket_bind`, …
    pub action: &'static str,
    /// `[network]`.
    pub category: [&'static str; 1],
    /// `start` for calls that create a socket or connection, `end` for a close, `change` for a change of state, else `info`;
    /// preceded by `connection` for connect and accept.
    #[serde(rename = "type")]
    pub kinds: &'static [&'static str],
    /// `system`.
    pub module: &'static str,
    /// `socket`.
    pub dataset: &'static str,
    /// `success`, `failure`, or `unknown` for a connect in progress or a missed return.
    pub outcome: &'static str,
    /// The number of the event since the start of the agent, which tells otherwise identical calls apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

/// `source.*` or `destination.*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct End {
    /// The address. An IPv4-mapped address is written as IPv4.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
}

/// `network.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SocketNetwork {
    /// `egress` for a connect, `ingress` for an accept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<&'static str>,
    /// `ipv4` or `ipv6`: that of the addresses, or else that of the socket's family.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `tcp`, `udp`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// The IANA protocol number, written as a string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iana_number: Option<String>,
}

/// `related.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RelatedToSocket {
    /// The addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip: Vec<IpAddr>,
    /// The user's and the effective user's name, or id.
    #[serde(serialize_with = "strings", skip_serializing_if = "Vec::is_empty")]
    pub user: Vec<Arc<str>>,
}

/// `system.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SocketSystem {
    /// `system.audit.*`.
    pub audit: SocketAudit,
}

/// `system.audit.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SocketAudit {
    /// `system.audit.socket.*`.
    pub socket: SocketFields,
}

/// `system.audit.socket.*`: fields that ECS does not define.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SocketFields {
    /// `AF_INET`, …
    pub family: Cow<'static, str>,
    /// `SOCK_STREAM`, …
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<Cow<'static, str>>,
    /// The file descriptor that was passed to the call, or that it created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// The file descriptor of the accepted connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_fd: Option<i32>,
    /// The backlog argument of listen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog: Option<i32>,
    /// The level argument of setsockopt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<i32>,
    /// The optname argument of setsockopt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub option: Option<i32>,
    /// The local address of an `AF_UNIX` socket; `@name` if it is abstract. Unprintable bytes are escaped as in
    /// [`Address`](crate::model::socket_event::Address).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_path: Option<String>,
    /// The remote address of an `AF_UNIX` socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_path: Option<String>,
    /// The interface index of the local end's link-local address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_scope_id: Option<u32>,
    /// The interface index of the remote end's link-local address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_scope_id: Option<u32>,
    /// The state after the call: `LISTEN`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Cow<'static, str>>,
    /// The state before the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_before: Option<Cow<'static, str>>,
    /// The socket's inode number: the same in all its events.
    #[serde(skip_serializing_if = "is_zero")]
    pub inode: u64,
    /// The address of its `struct sock`, in hexadecimal: the same as in documents of its flows.
    #[serde(serialize_with = "address", skip_serializing_if = "Option::is_none")]
    pub kernel_sock_address: Option<SockAddress>,
    /// Present, and `true`, if the socket is older than the monitor.
    #[serde(skip_serializing_if = "is_false")]
    pub existing: bool,
}

impl<'a> SocketDocument<'a> {
    pub(super) fn new(event: &'a SocketEvent, context: &Context<'a>) -> Self {
        let process = event.process.as_deref();
        let credentials = process.and_then(|process| process.credentials.as_ref());
        let user = credentials.map(|credentials| User::of(credentials, context.names));
        let (local, remote) = (end(event.socket.local.as_ref()), end(event.socket.remote.as_ref()));
        let (source, destination) = match event.action {
            Action::Accept { .. } => (remote, local),
            _ => (local, remote),
        };
        let mut ip: Vec<_> = [source, destination].into_iter().flatten().map(|end| end.ip).collect();
        ip.retain(|ip| !ip.is_unspecified());
        ip.dedup();
        Self {
            timestamp: context.clock.wall(event.time).millis(),
            event: SocketEventFields::of(event),
            source,
            destination,
            network: SocketNetwork::of(event, remote.or(local)),
            process: process.map(|process| Process { thread: thread(event), ..Process::of(process, context) }),
            group: credentials.map(|credentials| Group::of(credentials, context.names)),
            container: process.and_then(Container::of),
            error: event.result.errno().map(ErrorFields::of_errno),
            related: RelatedToSocket { ip, user: user.as_ref().map(User::related).unwrap_or_default() },
            user,
            system: SocketSystem { audit: SocketAudit { socket: SocketFields::of(event) } },
            service: Service { kind: "system" },
            host: context.host,
            agent: context.agent,
            ecs: Ecs { version: ECS_VERSION },
        }
    }
}

impl SocketEventFields {
    fn of(event: &SocketEvent) -> Self {
        let (action, kinds): (_, &[_]) = match event.action {
            Action::Create { .. } => ("socket_create", &["start"]),
            Action::Bind => ("socket_bind", &["info"]),
            Action::Listen { .. } => ("socket_listen", &["info"]),
            Action::Accept { .. } => ("socket_accept", &["connection", "start"]),
            Action::Connect => ("socket_connect", &["connection", "start"]),
            Action::SetSockOpt { .. } => ("socket_setsockopt", &["info"]),
            Action::Close => ("socket_close", &["end"]),
            Action::State => ("socket_state", &["change"]),
        };
        Self {
            kind: "event",
            action,
            category: ["network"],
            kinds,
            module: "system",
            dataset: "socket",
            outcome: match event.result {
                CallResult::Success => "success",
                CallResult::Failure(nix::libc::EINPROGRESS) | CallResult::Unknown => "unknown",
                CallResult::Failure(_) => "failure",
            },
            sequence: None,
        }
    }
}

impl SocketNetwork {
    fn of(event: &SocketEvent, end: Option<End>) -> Option<Self> {
        let socket = &event.socket;
        let number = socket.protocol.filter(|number| *number != 0);
        let is_ipv4 = end.map_or(socket.family == Family::INET, |end| end.ip.is_ipv4());
        socket.family.is_ip().then(|| Self {
            direction: match event.action {
                Action::Connect => Some("egress"),
                Action::Accept { .. } => Some("ingress"),
                _ => None,
            },
            kind: if is_ipv4 { "ipv4" } else { "ipv6" },
            transport: number.and_then(protocol_name).map(str::to_ascii_lowercase),
            iana_number: number.map(|number| number.to_string()),
        })
    }
}

impl SocketFields {
    fn of(event: &SocketEvent) -> Self {
        let socket = &event.socket;
        let name = |address: &Option<Address>| {
            let name = address.as_ref().and_then(Address::unix).map(ToString::to_string);
            name.filter(|name| !name.is_empty())
        };
        let scope = |address: &Option<Address>| {
            address.as_ref().and_then(Address::ip).map(|end: &IpEnd| end.scope_id).filter(|scope| *scope != 0)
        };
        let (backlog, accepted_fd, level, option) = match event.action {
            Action::Listen { backlog } => (Some(backlog), None, None, None),
            Action::Accept { accepted, .. } => (None, accepted, None, None),
            Action::SetSockOpt { level, option } => (None, None, Some(level), Some(option)),
            _ => (None, None, None, None),
        };
        Self {
            family: socket.family.name(),
            kind: socket.kind.map(SocketType::name),
            fd: event.fd,
            accepted_fd,
            backlog,
            level,
            option,
            local_path: name(&socket.local),
            remote_path: name(&socket.remote),
            local_scope_id: scope(&socket.local),
            remote_scope_id: scope(&socket.remote),
            state: socket.state.map(SocketState::name),
            state_before: event.before.map(SocketState::name),
            inode: socket.id.0,
            kernel_sock_address: socket.sock,
            existing: socket.existing,
        }
    }
}

impl RelatedToSocket {
    pub(super) fn is_empty(&self) -> bool {
        self.ip.is_empty() && self.user.is_empty()
    }
}

fn thread(event: &SocketEvent) -> Option<Thread<'_>> {
    let name = event.thread_name.as_ref().map(ThreadName::text);
    (event.tid != 0).then_some(Thread { id: event.tid, name })
}

fn end(address: Option<&Address>) -> Option<End> {
    address?.endpoint().map(|end| End { ip: end.ip, port: end.port })
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
