//! A socket event as MITRE CAR's `socket` object.
//!
//! CAR knows the actions bind, listen and close, and ten fields. Each is there wherever the socket's family has it: of an IP
//! socket an end that it does not have is written as it is in the kernel, `0.0.0.0` or `::` and port 0, which is what
//! `netstat(8)` shows; an `AF_UNIX` socket has a `local_path`, and neither addresses nor a protocol.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Serialize, Serializer};

use super::{Action, Address, Family, IpEnd, SocketEvent, SocketType, UnixName, protocol_name};
use crate::clock::{Clock, Timestamp};

/// CAR's object. Serialize it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CarSocket<'a> {
    /// When it happened. Not one of CAR's fields, which leave time to whoever keeps the objects.
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
    /// The own IP address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_address: Option<IpAddr>,
    /// The own name of an `AF_UNIX` socket; see [`Address`] for how its bytes are written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_path: Option<String>,
    /// The own port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_port: Option<u16>,
    /// The process that acted, or, where the kernel closes a socket on its own, that owned it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// `TCP`, `UDP`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Cow<'static, str>>,
    /// The other IP address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_address: Option<IpAddr>,
    /// The other port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_port: Option<u16>,
    /// Whether the call did what it was to do; not there if its return was missed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success: Option<bool>,
}

impl<'a> CarSocket<'a> {
    /// The object of an event; `None` for an action that CAR does not know.
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

/// An end of an IP socket, which may be nowhere.
fn ip_end(family: Family, address: Option<&Address>) -> Option<IpEnd> {
    let nowhere: IpAddr = match family {
        Family::INET => Ipv4Addr::UNSPECIFIED.into(),
        Family::INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    Some(address.and_then(Address::ip).copied().unwrap_or_else(|| IpEnd::new(nowhere, 0)))
}

/// The protocol of an IP socket. A call that was refused may have left it at 0, for the one that its type usually has.
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
