//! Sockets in the form of rows of `/proc/net/{tcp,tcp6,udp,udp6}`, with their processes.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::model::flow::{Endpoint, Transport};
use crate::model::process::Process;
use crate::model::socket_event::{EventSocket, Family, SocketState};

/// A socket at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its transport.
    pub transport: Transport,
    /// The local end.
    pub local: Endpoint,
    /// The remote end. If there is none, the unspecified address and port 0, as in `/proc`.
    pub remote: Endpoint,
    /// The state of a TCP socket; a UDP socket has none.
    pub state: Option<SocketState>,
    /// Its process, if known.
    pub process: Option<Arc<Process>>,
}

impl Row {
    /// The row of a socket. `None` for a socket that `/proc/net` does not list: one that is neither TCP nor UDP, a closed TCP
    /// socket, or a UDP socket without an address. `process` is used if the socket's owner is unknown.
    pub fn of(socket: &EventSocket, process: Option<&Arc<Process>>) -> Option<Self> {
        let end = |address: &Option<_>| address.as_ref().and_then(crate::model::socket_event::Address::endpoint);
        let (local, remote) = (end(&socket.local), end(&socket.remote));
        let (transport, state) = match socket.protocol? {
            6 => (Transport::Tcp, Some(socket.state.filter(|state| *state != SocketState::CLOSE)?)),
            17 => (Transport::Udp, None),
            _ => return None,
        };
        if transport == Transport::Udp && local.or(remote).is_none() {
            return None;
        }
        // If an IPv6 socket uses IPv4, its missing end is an IPv4 one.
        let known = local.or(remote).map(|end| end.ip).filter(|ip| !ip.is_unspecified());
        let unspecified = match (socket.family, known) {
            (Family::INET, _) | (Family::INET6, Some(IpAddr::V4(_))) => Endpoint::new(Ipv4Addr::UNSPECIFIED, 0),
            (Family::INET6, _) => Endpoint::new(Ipv6Addr::UNSPECIFIED, 0),
            _ => return None,
        };
        Some(Self {
            transport,
            local: local.unwrap_or(unspecified),
            remote: remote.unwrap_or(unspecified),
            state,
            process: socket.owner.as_ref().or(process).cloned(),
        })
    }

    /// `tcp`, `tcp6`, `udp` or `udp6`. An IPv6 socket that uses IPv4 counts as IPv4.
    pub fn proto(&self) -> &'static str {
        match (self.transport, self.local.ip.is_ipv6() || self.remote.ip.is_ipv6()) {
            (Transport::Tcp, false) => "tcp",
            (Transport::Tcp, true) => "tcp6",
            (Transport::Udp, false) => "udp",
            (Transport::Udp, true) => "udp6",
        }
    }

    /// The name of its state.
    pub fn state_name(&self) -> Option<Cow<'static, str>> {
        self.state.map(SocketState::name)
    }

    /// Replaces `out` with the tuple that patterns match: `<proto> <local> <remote> <remote-host> <state>`, with `-` for a missing
    /// part.
    pub fn write_tuple(&self, remote_host: Option<&str>, out: &mut String) {
        out.clear();
        let (host, state) = (remote_host.unwrap_or("-"), self.state_name().unwrap_or("-".into()));
        // Writing to a string cannot fail.
        let _ = write!(out, "{} {} {} {host} {state}", self.proto(), self.local, self.remote);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::model::kernel_address::SockAddress;
    use crate::model::socket_event::{Address, IpEnd, SocketId, SocketType};

    fn socket(family: Family, protocol: u16, ends: [&str; 2], state: SocketState) -> EventSocket {
        let end = |text: &str| {
            let parsed = text.parse::<SocketAddr>().ok()?;
            Some(Address::Ip(IpEnd::new(parsed.ip(), parsed.port())))
        };
        EventSocket {
            id: SocketId(1),
            sock: SockAddress::new(1),
            family,
            kind: Some(SocketType::STREAM),
            protocol: Some(protocol),
            local: end(ends[0]),
            remote: end(ends[1]),
            state: Some(state),
            owner: None,
            existing: false,
        }
    }

    fn tuple(socket: &EventSocket) -> Option<String> {
        let mut out = "what was there".to_owned();
        Row::of(socket, None)?.write_tuple(None, &mut out);
        Some(out)
    }

    #[test]
    fn tuples_have_five_parts() {
        use SocketState as S;
        for (family, protocol, ends, state, expected) in [
            (
                Family::INET,
                6,
                ["192.0.2.1:4", "198.51.100.7:443"],
                S::ESTABLISHED,
                "tcp 192.0.2.1:4 198.51.100.7:443 - ESTABLISHED",
            ),
            (Family::INET6, 6, ["[::]:80", "-"], S::LISTEN, "tcp6 [::]:80 [::]:0 - LISTEN"),
            (Family::INET, 6, ["0.0.0.0:80", "-"], S::LISTEN, "tcp 0.0.0.0:80 0.0.0.0:0 - LISTEN"),
            (Family::INET6, 17, ["[::1]:53", "[::1]:5353"], S::ESTABLISHED, "udp6 [::1]:53 [::1]:5353 - -"),
            (Family::INET, 17, ["-", "192.0.2.1:53"], S::ESTABLISHED, "udp 0.0.0.0:0 192.0.2.1:53 - -"),
            (
                Family::INET6,
                6,
                ["[::ffff:192.0.2.1]:80", "[::ffff:192.0.2.9]:99"],
                S::ESTABLISHED,
                "tcp 192.0.2.1:80 192.0.2.9:99 - ESTABLISHED",
            ),
            (Family::INET6, 17, ["-", "[::ffff:192.0.2.9]:99"], S::ESTABLISHED, "udp 0.0.0.0:0 192.0.2.9:99 - -"),
        ] {
            assert_eq!(tuple(&socket(family, protocol, ends, state)).as_deref(), Some(expected));
        }
    }

    #[test]
    fn the_fourth_part_is_the_name_of_the_remote_host() {
        let row = Row::of(&socket(Family::INET, 6, ["192.0.2.1:4", "192.0.2.2:80"], SocketState::ESTABLISHED), None);
        let mut out = String::new();
        row.unwrap().write_tuple(Some("www.example.org"), &mut out);
        assert_eq!(out, "tcp 192.0.2.1:4 192.0.2.2:80 www.example.org ESTABLISHED");
    }

    #[test]
    fn sockets_that_proc_does_not_list_have_no_row() {
        let bound = socket(Family::INET, 6, ["192.0.2.1:80", "-"], SocketState::CLOSE);
        assert_eq!(tuple(&bound), None, "TCP that is bound only");
        assert_eq!(tuple(&socket(Family::INET, 17, ["-", "-"], SocketState::CLOSE)), None, "UDP without a port");
        assert_eq!(tuple(&socket(Family::INET, 1, ["192.0.2.1:1", "-"], SocketState::CLOSE)), None, "ICMP");
        assert_eq!(tuple(&EventSocket { protocol: None, ..bound }), None);
    }
}
