//! What a condition can ask of an event.

use std::borrow::Cow;
use std::net::IpAddr;

use crate::ecs::errno_name;
use crate::process::Process;
use crate::socket_event::{Action, Address, SocketEvent, SocketState, SocketType, protocol_name};

/// A field of events.
#[derive(Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub sort: Sort,
    /// What it tells.
    pub tells: &'static str,
    of: fn(&SocketEvent) -> Option<Value<'_>>,
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// Text.
    Text,
    /// A number.
    Number,
    /// An IP address.
    Address,
    /// True or false.
    Bool,
}

/// The value of a field.
#[derive(Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Text(Cow<'a, str>),
    Number(i64),
    Address(IpAddr),
    Bool(bool),
}

impl Field {
    /// The field of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        FIELDS.iter().find(|field| field.name == name)
    }

    /// Its value; `None` when the event does not have it.
    pub(super) fn of<'a>(&self, event: &'a SocketEvent) -> Option<Value<'a>> {
        (self.of)(event)
    }
}

macro_rules! fields {
    ($($name:literal, $sort:ident, $tells:literal, $of:expr;)*) => {
        &[$(Field { name: $name, sort: Sort::$sort, tells: $tells, of: $of }),*]
    };
}

/// Every field.
pub const FIELDS: &[Field] = fields! {
    "action", Text, "create, bind, listen, accept, connect, setsockopt or close", |event| text(event.action.name());
    "success", Bool, "whether the call did what it was to do", |event| event.result.succeeded().map(Value::Bool);
    "errno", Text, "why not: ECONNREFUSED, …", |event| owned(errno_name(event.result.errno()?));
    "fd", Number, "the descriptor", |event| number(event.fd?);
    "family", Text, "AF_INET, AF_INET6, AF_UNIX, …", |event| some(event.socket.family.name());
    "type", Text, "SOCK_STREAM, SOCK_DGRAM, …", |event| some(event.socket.kind.map(SocketType::name)?);
    "protocol", Text, "TCP, UDP, …", |event| text(protocol_name(event.socket.protocol?)?);
    "state", Text, "the state after the call: LISTEN, …", |event| some(event.socket.state.map(SocketState::name)?);
    "state_before", Text, "the state before it", |event| some(event.before.map(SocketState::name)?);
    "existing", Bool, "whether the socket was there before the monitor", |event| Some(Value::Bool(event.socket.existing));
    "inode", Number, "the socket's inode", |event| i64::try_from(event.socket.id.0).ok().map(Value::Number);
    "local.ip", Address, "the own address", |event| ip(event.socket.local.as_ref());
    "local.port", Number, "the own port", |event| port(event.socket.local.as_ref());
    "local.path", Text, "the own AF_UNIX name", |event| path(event.socket.local.as_ref());
    "remote.ip", Address, "the other address", |event| ip(event.socket.remote.as_ref());
    "remote.port", Number, "the other port", |event| port(event.socket.remote.as_ref());
    "remote.path", Text, "the other AF_UNIX name", |event| path(event.socket.remote.as_ref());
    "backlog", Number, "what a listen asked for", |event| match event.action {
        Action::Listen { backlog } => number(backlog),
        _ => None,
    };
    "level", Number, "the layer of an option", |event| match event.action {
        Action::SetSockOpt { level, .. } => number(level),
        _ => None,
    };
    "option", Number, "the option", |event| match event.action {
        Action::SetSockOpt { option, .. } => number(option),
        _ => None,
    };
    "process.pid", Number, "who acted", |event| Some(Value::Number(process(event)?.pid.into()));
    "process.name", Text, "the program's name", |event| text(process(event)?.image.name()?);
    "process.executable", Text, "its path", |event| some(process(event)?.image.executable()?.to_string_lossy());
    "process.parent.pid", Number, "its parent", |event| Some(Value::Number(process(event)?.parent_pid?.into()));
    "process.thread.id", Number, "the thread", |event| Some(Value::Number(event.tid.into()));
    "process.thread.name", Text, "its own name", |event| some(event.thread_name.as_ref()?.text());
    "user.id", Number, "its real user", |event| Some(Value::Number(process(event)?.credentials?.uid.into()));
    "user.effective.id", Number, "its effective user", |event| {
        Some(Value::Number(process(event)?.credentials?.euid.into()))
    };
    "group.id", Number, "its real group", |event| Some(Value::Number(process(event)?.credentials?.gid.into()));
    "container.id", Text, "its container", |event| {
        text(process(event)?.container_id()?)
    };
};

fn process(event: &SocketEvent) -> Option<&Process> {
    event.process.as_deref()
}

fn some(text: Cow<'_, str>) -> Option<Value<'_>> {
    Some(Value::Text(text))
}

fn text(text: &str) -> Option<Value<'_>> {
    some(Cow::Borrowed(text))
}

fn owned<'a>(text: String) -> Option<Value<'a>> {
    some(Cow::Owned(text))
}

fn number<'a>(number: i32) -> Option<Value<'a>> {
    Some(Value::Number(number.into()))
}

/// An IPv4 address on an IPv6 socket is an IPv4 one.
fn ip(address: Option<&Address>) -> Option<Value<'_>> {
    address?.endpoint().map(|end| Value::Address(end.ip))
}

fn port(address: Option<&Address>) -> Option<Value<'_>> {
    address?.ip().map(|end| Value::Number(end.port.into()))
}

/// As it is written: `/run/socket`, `@abstract`.
fn path(address: Option<&Address>) -> Option<Value<'_>> {
    address?.unix().map(ToString::to_string).filter(|name| !name.is_empty()).and_then(owned)
}
