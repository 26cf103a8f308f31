//! Addresses, ports and transports of packets.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// An address, and a port in host byte order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
}

impl Endpoint {
    /// An endpoint. An IPv4-mapped IPv6 address (`::ffff:a.b.c.d`) becomes IPv4.
    pub fn new(ip: impl Into<IpAddr>, port: u16) -> Self {
        Self { ip: ip.into().to_canonical(), port }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip(), address.port())
    }
}

impl fmt::Display for Endpoint {
    /// `192.0.2.1:53` or `[2001:db8::1]:53`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.ip, self.port).fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The transport protocol of a packet or a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Each message is one datagram (RFC 1035, section 4.2.1).
    Udp,
    /// A stream of messages, each after its length (RFC 1035, section 4.2.2; RFC 7766).
    Tcp,
}

/// An address that a name resolves to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// The address. An IPv4-mapped IPv6 address is converted to IPv4.
    pub ip: IpAddr,
    /// For how many seconds the answer may be cached: the smallest time to live of the aliases and the address
    /// record. A value with the top bit set counts as 0 (RFC 2181, section 8).
    pub ttl: u32,
}
