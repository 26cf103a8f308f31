//! How arguments are recognised once the structures that they point to are known.
//!
//! Every argument that is looked at may be anything. So each is taken for each of the structures in turn: memory that is
//! none of them does not hold the addresses and ports that were chosen.
//!
//! What a probe cannot read keeps what the record before had in its place, which may be just such an address. So what is
//! read through a pointer counts only if that looks like a pointer.

use crate::engine::{Probe, Shot, is_kernel_pointer};
use std::net::{IpAddr, SocketAddr};

/// What recognising an IPv4 `sock` takes.
pub(super) const NEEDS4: &[&str] = &["sock_common.skc_rcv_saddr"];
/// What recognising an IPv6 `sock` takes.
pub(super) const NEEDS6: &[&str] = &["sock_common.skc_v6_rcv_saddr", "sock_common.skc_num"];
/// What recognising an `sk_buff` takes.
pub(super) const NEEDS_SKB: &[&str] = &["sk_buff.data"];

/// Sizes of headers: of IPv4 without options, and of IPv6.
const IPV4: u32 = 20;
const IPV6: u32 = 40;

/// The addresses of a socket, as far as it has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) local: SocketAddr,
    pub(super) remote: Option<SocketAddr>,
}

/// The template of an argument.
pub(super) fn argument(position: u32) -> String {
    format!("{{arg{position}}}")
}

fn name(what: &str, position: u32) -> String {
    format!("{what} {position}")
}

/// Looks at an argument as a `sock`.
pub(super) fn sock(probe: Probe, position: u32, ipv6: bool) -> Probe {
    let (base, name) = (argument(position), |what| name(what, position));
    if ipv6 {
        let probe = probe.field(&name("address"), &base, "sock_common.skc_v6_rcv_saddr", 16);
        probe.field(&name("port"), &base, "sock_common.skc_num", 8)
    } else {
        probe.field(&name("address"), &base, "sock_common.skc_rcv_saddr", 8)
    }
}

/// Whether an argument is the `sock` with these addresses.
pub(super) fn is_sock(shot: &Shot, position: u32, of: &Addresses) -> bool {
    let bytes = |what| shot.view(&name(what, position)).bytes();
    let is = match of.local.ip() {
        IpAddr::V4(address) => bytes("address").starts_with(&address.octets()),
        // All have the same address, but a port is of one of them.
        IpAddr::V6(address) => {
            bytes("address").starts_with(&address.octets()) && bytes("port").starts_with(&of.local.port().to_ne_bytes())
        }
    };
    is && is_kernel_pointer(shot.argument(position))
}

/// Looks at an argument as an `sk_buff`: at where the ports are in its data, without an IP header or behind one.
pub(super) fn skb(probe: Probe, position: u32) -> Probe {
    let data = format!("+{{sk_buff.data}}({})", argument(position));
    let probe = probe.field(&name("pointer to data", position), &argument(position), "sk_buff.data", 8);
    let at = |offset: u32| offset..offset + 8;
    let probe = probe.words(&name("begin", position), &data, at(0));
    let probe = probe.words(&name("behind IPv4", position), &data, at(IPV4));
    probe.words(&name("behind IPv6", position), &data, at(IPV6))
}

/// Whether an argument is an `sk_buff` that goes out from a socket with these addresses.
pub(super) fn carries(shot: &Shot, position: u32, of: &Addresses) -> bool {
    let Some(remote) = of.remote else { return false };
    let pointer = shot.view(&name("pointer to data", position)).word(0);
    if !pointer.is_some_and(is_kernel_pointer) || !is_kernel_pointer(shot.argument(position)) {
        return false;
    }
    let bytes = |what| shot.view(&name(what, position)).bytes();
    let ports = [of.local.port(), remote.port()].map(u16::to_be_bytes).concat();
    let behind = match bytes("begin").first().map(|first| first >> 4) {
        Some(4) => Some("behind IPv4"),
        Some(6) => Some("behind IPv6"),
        _ => None,
    };
    bytes("begin").starts_with(&ports) || behind.is_some_and(|behind| bytes(behind).starts_with(&ports))
}

/// Looks at the network namespace of an argument as a `sock`.
pub(super) fn net(probe: Probe, position: u32) -> Probe {
    probe.field(&name("net", position), &argument(position), "sock_common.skc_net", 8)
}

/// Which arguments are the network namespace of the argument `sock`.
pub(super) fn net_of(shot: &Shot, sock: u32) -> Vec<u32> {
    let net = shot.view(&name("net", sock)).word(0).filter(|&net| is_kernel_pointer(net));
    net.map(|net| shot.positions(net)).unwrap_or_default()
}

/// Looks at an argument as a `socket`.
pub(super) fn socket(probe: Probe, position: u32) -> Probe {
    probe.field(&name("socket", position), &argument(position), "socket.sk", 8)
}

/// Whether an argument is the `socket` of that `sock`.
pub(super) fn is_socket_of(shot: &Shot, position: u32, sock: u64) -> bool {
    [sock, shot.argument(position)].into_iter().all(is_kernel_pointer)
        && shot.view(&name("socket", position)).word(0) == Some(sock)
}

/// Looks at the beginning of an argument as a `sockaddr`.
pub(super) fn address(probe: Probe, position: u32) -> Probe {
    probe.words(&name("sockaddr", position), &argument(position), 0..8)
}

/// Whether an argument is a `sockaddr` of this address; of IPv6, with this port.
pub(super) fn is_address(shot: &Shot, position: u32, of: SocketAddr) -> bool {
    let family = if of.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u16;
    let mut begin = [family.to_ne_bytes(), of.port().to_be_bytes()].concat();
    if let IpAddr::V4(address) = of.ip() {
        begin.extend(address.octets());
    }
    is_kernel_pointer(shot.argument(position)) && shot.view(&name("sockaddr", position)).bytes().starts_with(&begin)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTER: u64 = 0xffff_8880_1234_5000;

    fn of(local: &str, remote: &str) -> Addresses {
        Addresses { local: local.parse().unwrap(), remote: Some(remote.parse().unwrap()) }
    }

    /// A call whose second argument points somewhere, looked at as everything.
    fn shot(ipv6: bool) -> Shot {
        let mut probe = Probe::on("f").arguments(2);
        for position in 1..=2 {
            probe = net(skb(sock(probe, position, ipv6), position), position);
            probe = address(socket(probe, position), position);
        }
        let mut shot = Shot::blank(&probe);
        shot.pass(2, POINTER);
        shot
    }

    #[test]
    fn a_sock_is_known_by_its_address() {
        let of = of("127.1.2.3:4660", "127.9.8.7:17185");
        let mut shot = shot(false);
        shot.put("address 1", 0, &[127, 1, 2, 3]);
        shot.put("address 2", 0, &[127, 1, 2, 3]);
        assert!(is_sock(&shot, 2, &of));
        assert!(!is_sock(&shot, 1, &of), "nothing that is no pointer is a sock");
        shot.put("address 2", 0, &[127, 1, 2, 4]);
        assert!(!is_sock(&shot, 2, &of));
    }

    #[test]
    fn an_ipv6_sock_is_known_by_its_port_too() {
        let of = of("[::1]:4660", "[::1]:17185");
        let mut shot = shot(true);
        shot.put("address 2", 15, &[1]);
        assert!(!is_sock(&shot, 2, &of));
        shot.put("port 2", 0, &4660u16.to_ne_bytes());
        assert!(is_sock(&shot, 2, &of));
    }

    #[test]
    fn a_packet_is_known_by_its_ports_with_a_header_before_them_or_without() {
        let of = of("127.1.2.3:4660", "127.9.8.7:17185");
        let ports = [0x12, 0x34, 0x43, 0x21];
        for (first, place, offset) in [(0, "begin 2", 0), (0x45, "behind IPv4 2", IPV4), (0x60, "behind IPv6 2", IPV6)]
        {
            let mut shot = shot(false);
            shot.put("begin 2", 0, &[first]);
            shot.put(place, offset, &ports);
            assert!(!carries(&shot, 2, &of), "its data is nowhere");
            shot.put("pointer to data 2", 0, &POINTER.to_ne_bytes());
            assert!(carries(&shot, 2, &of), "{place}");
            assert!(!carries(&shot, 1, &of));
        }
        let mut shot = shot(false);
        shot.put("pointer to data 2", 0, &POINTER.to_ne_bytes());
        shot.put("behind IPv4 2", IPV4, &ports);
        assert!(!carries(&shot, 2, &of), "without a header there is nothing behind it");
    }

    #[test]
    fn a_namespace_is_what_the_sock_holds() {
        let mut shot = shot(false);
        shot.pass(1, POINTER + 64);
        shot.put("net 2", 0, &(POINTER + 64).to_ne_bytes());
        assert_eq!(net_of(&shot, 2), [1]);
        shot.put("net 2", 0, &[0; 8]);
        assert!(net_of(&shot, 2).is_empty());
    }

    #[test]
    fn a_socket_is_known_by_its_sock() {
        let mut shot = shot(false);
        shot.put("socket 2", 0, &(POINTER + 64).to_ne_bytes());
        assert!(is_socket_of(&shot, 2, POINTER + 64));
        assert!(!is_socket_of(&shot, 2, POINTER));
        assert!(!is_socket_of(&shot, 1, 0));
    }

    #[test]
    fn an_address_is_known_by_what_it_says() {
        let mut shot = shot(false);
        let family = (libc::AF_INET as u16).to_ne_bytes();
        shot.put("sockaddr 2", 0, &[family[0], family[1], 0x12, 0x34, 127, 1, 2, 3]);
        assert!(is_address(&shot, 2, "127.1.2.3:4660".parse().unwrap()));
        assert!(!is_address(&shot, 2, "127.1.2.4:4660".parse().unwrap()));
        assert!(!is_address(&shot, 2, "[::1]:4660".parse().unwrap()));
    }
}
