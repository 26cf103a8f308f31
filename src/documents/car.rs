//! Socket events as MITRE CAR's `socket` objects.
//!
//! CAR defines the actions bind, listen and close, and ten fields. An object has all fields that its socket's family has. If
//! an IP socket has no local or remote end, its address is `0.0.0.0` or `::` with port 0, as in the kernel and in
//! `netstat(8)`. An `AF_UNIX` socket has a `local_path`, but no addresses and no protocol.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Serialize, Serializer};

use crate::model::clock::{Clock, Timestamp};
use crate::model::socket_event::{Action, Address, Family, IpEnd, SocketEvent, SocketType, UnixName, protocol_name};

/// CAR's `socket` object, to be serialized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CarSocket<'a> {
    /// The time of the event. CAR itself has no field for it.
    pub timestamp: Timestamp,
    /// `socket`.
    pub object: &'static str,
    /// `bind`, `listen` or `close`.
    pub action: &'static str,
    /// `AF_UNIX`, `AF_INET`, `AF_INET6`, …
    #[serde(serialize_with = "name")]
    pub family: Family,
    /// The path of the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_path: Option<Cow<'a, str>>,
    /// The local IP address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_address: Option<IpAddr>,
    /// The local address of an `AF_UNIX` socket, with unprintable bytes escaped as in [`Address`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_path: Option<String>,
    /// The local port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_port: Option<u16>,
    /// The process that made the call. If the kernel closed the socket by itself, the process that owned it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// `TCP`, `UDP`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Cow<'static, str>>,
    /// The remote IP address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_address: Option<IpAddr>,
    /// The remote port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_port: Option<u16>,
    /// Whether the call succeeded; `None` if its return was missed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success: Option<bool>,
}

impl<'a> CarSocket<'a> {
    /// The object of an event; `None` for an action that CAR does not define.
    pub fn of(event: &'a SocketEvent, clock: Clock) -> Option<Self> {
        let (Action::Bind | Action::Listen { .. } | Action::Close) = event.action else { return None };
        let socket = &event.socket;
        let process = event.process.as_ref().or(socket.owner.as_ref());
        let (local, remote) =
            (ip_end(socket.family, socket.local.as_ref()), ip_end(socket.family, socket.remote.as_ref()));
        Some(Self {
            timestamp: clock.wall(event.time),
            object: "socket",
            action: event.action.name(),
            family: socket.family,
            image_path: process.and_then(|process| process.image.executable()).map(|path| path.to_string_lossy()),
            local_address: local.map(|end| end.ip),
            local_path: socket.local.as_ref().and_then(Address::unix).map(UnixName::to_string),
            local_port: local.map(|end| end.port),
            pid: process.map(|process| process.pid),
            protocol: protocol(socket.family, socket.kind, socket.protocol),
            remote_address: remote.map(|end| end.ip),
            remote_port: remote.map(|end| end.port),
            success: event.result.succeeded(),
        })
    }
}

/// An end of an IP socket; the unspecified address and port 0 if it has none.
fn ip_end(family: Family, address: Option<&Address>) -> Option<IpEnd> {
    let unspecified: IpAddr = match family {
        Family::INET => Ipv4Addr::UNSPECIFIED.into(),
        Family::INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    Some(address.and_then(Address::ip).copied().unwrap_or_else(|| IpEnd::new(unspecified, 0)))
}

/// The protocol of an IP socket. After a refused call it may be 0, which stands for the usual protocol of the type.
fn protocol(family: Family, kind: Option<SocketType>, number: Option<u16>) -> Option<Cow<'static, str>> {
    if !family.is_ip() {
        return None;
    }
    let usual = match kind {
        Some(SocketType::STREAM) => Some(6),
        Some(SocketType::DGRAM) => Some(17),
        _ => None,
    };
    let number = number.filter(|number| *number != 0).or(usual)?;
    Some(protocol_name(number).map_or_else(|| number.to_string().into(), Cow::Borrowed))
}

fn name<S: Serializer>(family: &Family, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&family.name())
}
