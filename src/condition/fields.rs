//! The fields of events that conditions can use.

use std::borrow::Cow;
use std::net::IpAddr;

use crate::model::errno::errno_name;
use crate::model::process::Process;
use crate::model::socket_event::{Action, Address, SocketEvent, SocketState, SocketType, protocol_name};

/// A field of events.
#[derive(Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// The type of its values.
    pub value_type: ValueType,
    /// What its values mean.
    pub description: &'static str,
    value: fn(&SocketEvent) -> Option<Value<'_>>,
}

/// The type of a field's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
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
    /// The field with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        FIELDS.iter().find(|field| field.name == name)
    }

    /// The field's value; `None` if the event does not have the field.
    pub(super) fn value_in<'a>(&self, event: &'a SocketEvent) -> Option<Value<'a>> {
        (self.value)(event)
    }
}

macro_rules! fields {
    ($($name:literal, $type:ident, $description:literal, $value:expr;)*) => {
        &[$(Field { name: $name, value_type: ValueType::$type, description: $description, value: $value }),*]
    };
}

/// Every field.
pub const FIELDS: &[Field] = fields! {
    "action", Text, "create, bind, listen, accept, connect, setsockopt or close", |event| text(event.action.name());
    "success", Bool, "whether the call succeeded", |event| event.result.succeeded().map(Value::Bool);
    "errno", Text, "the error of a failed call: ECONNREFUSED, …", |event| owned(errno_name(event.result.errno()?));
    "fd", Number, "the file descriptor", |event| number(event.fd?);
    "family", Text, "AF_INET, AF_INET6, AF_UNIX, …", |event| some(event.socket.family.name());
    "type", Text, "SOCK_STREAM, SOCK_DGRAM, …", |event| some(event.socket.kind.map(SocketType::name)?);
    "protocol", Text, "TCP, UDP, …", |event| text(protocol_name(event.socket.protocol?)?);
    "state", Text, "the state after the call: LISTEN, …", |event| some(event.socket.state.map(SocketState::name)?);
    "state_before", Text, "the state before the call", |event| some(event.before.map(SocketState::name)?);
    "existing", Bool, "whether the socket is older than the monitor", |event| Some(Value::Bool(event.socket.existing));
    "inode", Number, "the socket's inode", |event| i64::try_from(event.socket.id.0).ok().map(Value::Number);
    "local.ip", Address, "the local address", |event| ip(event.socket.local.as_ref());
    "local.port", Number, "the local port", |event| port(event.socket.local.as_ref());
    "local.path", Text, "the local AF_UNIX address", |event| path(event.socket.local.as_ref());
    "remote.ip", Address, "the remote address", |event| ip(event.socket.remote.as_ref());
    "remote.port", Number, "the remote port", |event| port(event.socket.remote.as_ref());
    "remote.path", Text, "the remote AF_UNIX address", |event| path(event.socket.remote.as_ref());
    "backlog", Number, "the backlog argument of listen", |event| match event.action {
        Action::Listen { backlog } => number(backlog),
        _ => None,
    };
    "level", Number, "the level argument of setsockopt", |event| match event.action {
        Action::SetSockOpt { level, .. } => number(level),
        _ => None,
    };
    "option", Number, "the optname argument of setsockopt", |event| match event.action {
        Action::SetSockOpt { option, .. } => number(option),
        _ => None,
    };
    "process.pid", Number, "the process id", |event| Some(Value::Number(process(event)?.pid.into()));
    "process.name", Text, "the program's name", |event| text(process(event)?.image.name()?);
    "process.executable", Text, "the path of the program", |event| some(process(event)?.image.executable()?.to_string_lossy());
    "process.parent.pid", Number, "the process id of the parent", |event| Some(Value::Number(process(event)?.parent_pid?.into()));
    "process.thread.id", Number, "the thread id", |event| Some(Value::Number(event.tid.into()));
    "process.thread.name", Text, "the name of the thread", |event| some(event.thread_name.as_ref()?.text());
    "user.id", Number, "the real user id", |event| Some(Value::Number(process(event)?.credentials?.uid.into()));
    "user.effective.id", Number, "the effective user id", |event| {
        Some(Value::Number(process(event)?.credentials?.euid.into()))
    };
    "group.id", Number, "the real group id", |event| Some(Value::Number(process(event)?.credentials?.gid.into()));
    "container.id", Text, "the container id", |event| {
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

/// An IPv4-mapped address counts as IPv4.
fn ip(address: Option<&Address>) -> Option<Value<'_>> {
    address?.endpoint().map(|end| Value::Address(end.ip))
}

fn port(address: Option<&Address>) -> Option<Value<'_>> {
    address?.ip().map(|end| Value::Number(end.port.into()))
}

/// An `AF_UNIX` address as documents show it: `/run/socket`, `@abstract`.
fn path(address: Option<&Address>) -> Option<Value<'_>> {
    address?.unix().map(ToString::to_string).filter(|name| !name.is_empty()).and_then(owned)
}
