//! The words for where packets come from and go to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// An address and a port in host byte order. An IPv4 address is never kept in its IPv6-mapped form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
}

impl Endpoint {
    /// An endpoint; `::ffff:a.b.c.d` becomes `a.b.c.d`.
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

/// What carries a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// One message, one datagram (RFC 1035, section 4.2.1).
    Udp,
    /// A stream of messages, each behind its length (RFC 1035, section 4.2.2; RFC 7766).
    Tcp,
}

/// An address that a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// The address; an IPv4-mapped one is given as IPv4.
    pub ip: IpAddr,
    /// For how many seconds the answer may be kept: the least time to live on the way from the question to the
    /// address. A value with the top bit set is 0 (RFC 2181, section 8).
    pub ttl: u32,
}
