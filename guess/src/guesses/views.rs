//! Recognises arguments by the structures that they point to.
//!
//! An argument may be anything, so each is captured as each of these structures. Memory that is not such a structure
//! does not hold the expected addresses and ports.
//!
//! If a probe cannot read a value, the record still holds the value of the previous record, which may be such an
//! address. So a value that was read through a pointer counts only if the pointer is a kernel address.

use crate::engine::{Call, Probe, is_kernel_pointer};
use std::net::{IpAddr, SocketAddr};

/// The keys that are needed to recognise an IPv4 `sock`.
pub(super) const NEEDS4: &[&str] = &["sock_common.skc_rcv_saddr"];
/// The keys that are needed to recognise an IPv6 `sock`.
pub(super) const NEEDS6: &[&str] = &["sock_common.skc_v6_rcv_saddr", "sock_common.skc_num"];
/// The keys that are needed to recognise an `sk_buff`.
pub(super) const NEEDS_SKB: &[&str] = &["sk_buff.data"];

/// The size of an IPv4 header without options.
const IPV4_HEADER: u32 = 20;
/// The size of an IPv6 header.
const IPV6_HEADER: u32 = 40;

/// The addresses of a socket. Only a connected one has a remote address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) local: SocketAddr,
    pub(super) remote: Option<SocketAddr>,
}

/// The template that reads an argument.
pub(super) fn argument(position: u32) -> String {
    format!("{{arg{position}}}")
}

fn name(what: &str, position: u32) -> String {
    format!("{what} {position}")
}

/// Captures an argument as a `sock`.
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
pub(super) fn is_sock(call: &Call, position: u32, of: &Addresses) -> bool {
    let bytes = |what| call.view(&name(what, position)).bytes();
    let matches = match of.local.ip() {
        IpAddr::V4(address) => bytes("address").starts_with(&address.octets()),
        // All IPv6 sockets of a guess have the address `::1`, but each has its own port.
        IpAddr::V6(address) => {
            bytes("address").starts_with(&address.octets()) && bytes("port").starts_with(&of.local.port().to_ne_bytes())
        }
    };
    matches && is_kernel_pointer(call.argument(position))
}

/// Captures an argument as an `sk_buff`: the data where the ports are, with or without an IP header before them.
pub(super) fn skb(probe: Probe, position: u32) -> Probe {
    let data = format!("+{{sk_buff.data}}({})", argument(position));
    let probe = probe.field(&name("pointer to data", position), &argument(position), "sk_buff.data", 8);
    let at = |offset: u32| offset..offset + 8;
    let probe = probe.words(&name("begin", position), &data, at(0));
    let probe = probe.words(&name("after IPv4", position), &data, at(IPV4_HEADER));
    probe.words(&name("after IPv6", position), &data, at(IPV6_HEADER))
}

/// Whether an argument is an `sk_buff` from `local` to `remote`.
pub(super) fn carries(call: &Call, position: u32, of: &Addresses) -> bool {
    let Some(remote) = of.remote else { return false };
    let pointer = call.view(&name("pointer to data", position)).word(0);
    if !pointer.is_some_and(is_kernel_pointer) || !is_kernel_pointer(call.argument(position)) {
        return false;
    }
    let bytes = |what| call.view(&name(what, position)).bytes();
    let ports = [of.local.port(), remote.port()].map(u16::to_be_bytes).concat();
    let after_header = match bytes("begin").first().map(|first| first >> 4) {
        Some(4) => Some("after IPv4"),
        Some(6) => Some("after IPv6"),
        _ => None,
    };
    bytes("begin").starts_with(&ports) || after_header.is_some_and(|view| bytes(view).starts_with(&ports))
}

/// Captures the network namespace of an argument that may be a `sock`.
pub(super) fn net(probe: Probe, position: u32) -> Probe {
    probe.field(&name("net", position), &argument(position), "sock_common.skc_net", 8)
}

/// The positions of arguments that are the network namespace of the `sock` at position `sock`.
pub(super) fn net_of(call: &Call, sock: u32) -> Vec<u32> {
    let net = call.view(&name("net", sock)).word(0).filter(|&net| is_kernel_pointer(net));
    net.map(|net| call.positions(net)).unwrap_or_default()
}

/// Captures an argument as a `socket`.
pub(super) fn socket(probe: Probe, position: u32) -> Probe {
    probe.field(&name("socket", position), &argument(position), "socket.sk", 8)
}

/// Whether an argument is the `socket` of this `sock`.
pub(super) fn is_socket_of(call: &Call, position: u32, sock: u64) -> bool {
    [sock, call.argument(position)].into_iter().all(is_kernel_pointer)
        && call.view(&name("socket", position)).word(0) == Some(sock)
}

/// Captures the beginning of an argument as a `sockaddr`.
pub(super) fn address(probe: Probe, position: u32) -> Probe {
    probe.words(&name("sockaddr", position), &argument(position), 0..8)
}

/// Whether an argument is a `sockaddr` with this address and port. For IPv6 only the port is compared.
pub(super) fn is_address(call: &Call, position: u32, of: SocketAddr) -> bool {
    let family = if of.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u16;
    let mut begin = [family.to_ne_bytes(), of.port().to_be_bytes()].concat();
    if let IpAddr::V4(address) = of.ip() {
        begin.extend(address.octets());
    }
    is_kernel_pointer(call.argument(position)) && call.view(&name("sockaddr", position)).bytes().starts_with(&begin)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTER: u64 = 0xffff_8880_1234_5000;

    fn of(local: &str, remote: &str) -> Addresses {
        Addresses { local: local.parse().unwrap(), remote: Some(remote.parse().unwrap()) }
    }

    /// A call whose second argument is a kernel address, captured as every structure.
    fn call(ipv6: bool) -> Call {
        let mut probe = Probe::on("f").arguments(2);
        for position in 1..=2 {
            probe = net(skb(sock(probe, position, ipv6), position), position);
            probe = address(socket(probe, position), position);
        }
        let mut call = Call::blank(&probe);
        call.pass(2, POINTER);
        call
    }

    #[test]
    fn a_sock_is_recognised_by_its_address() {
        let of = of("127.1.2.3:4660", "127.9.8.7:17185");
        let mut call = call(false);
        call.put("address 1", 0, &[127, 1, 2, 3]);
        call.put("address 2", 0, &[127, 1, 2, 3]);
        assert!(is_sock(&call, 2, &of));
        assert!(!is_sock(&call, 1, &of), "an argument that is not a pointer is not a sock");
        call.put("address 2", 0, &[127, 1, 2, 4]);
        assert!(!is_sock(&call, 2, &of));
    }

    #[test]
    fn an_ipv6_sock_is_recognised_by_its_port_too() {
        let of = of("[::1]:4660", "[::1]:17185");
        let mut call = call(true);
        call.put("address 2", 15, &[1]);
        assert!(!is_sock(&call, 2, &of));
        call.put("port 2", 0, &4660u16.to_ne_bytes());
        assert!(is_sock(&call, 2, &of));
    }

    #[test]
    fn a_packet_is_recognised_by_its_ports_with_or_without_an_ip_header() {
        let of = of("127.1.2.3:4660", "127.9.8.7:17185");
        let ports = [0x12, 0x34, 0x43, 0x21];
        for (first, place, offset) in
            [(0, "begin 2", 0), (0x45, "after IPv4 2", IPV4_HEADER), (0x60, "after IPv6 2", IPV6_HEADER)]
        {
            let mut call = call(false);
            call.put("begin 2", 0, &[first]);
            call.put(place, offset, &ports);
            assert!(!carries(&call, 2, &of), "its pointer to data is null");
            call.put("pointer to data 2", 0, &POINTER.to_ne_bytes());
            assert!(carries(&call, 2, &of), "{place}");
            assert!(!carries(&call, 1, &of));
        }
        let mut call = call(false);
        call.put("pointer to data 2", 0, &POINTER.to_ne_bytes());
        call.put("after IPv4 2", IPV4_HEADER, &ports);
        assert!(!carries(&call, 2, &of), "ports count only after a header");
    }

    #[test]
    fn a_namespace_is_recognised_by_the_sock() {
        let mut call = call(false);
        call.pass(1, POINTER + 64);
        call.put("net 2", 0, &(POINTER + 64).to_ne_bytes());
        assert_eq!(net_of(&call, 2), [1]);
        call.put("net 2", 0, &[0; 8]);
        assert!(net_of(&call, 2).is_empty());
    }

    #[test]
    fn a_socket_is_recognised_by_its_sock() {
        let mut call = call(false);
        call.put("socket 2", 0, &(POINTER + 64).to_ne_bytes());
        assert!(is_socket_of(&call, 2, POINTER + 64));
        assert!(!is_socket_of(&call, 2, POINTER));
        assert!(!is_socket_of(&call, 1, 0));
    }

    #[test]
    fn a_sockaddr_is_recognised_by_its_address() {
        let mut call = call(false);
        let family = (libc::AF_INET as u16).to_ne_bytes();
        call.put("sockaddr 2", 0, &[family[0], family[1], 0x12, 0x34, 127, 1, 2, 3]);
        assert!(is_address(&call, 2, "127.1.2.3:4660".parse().unwrap()));
        assert!(!is_address(&call, 2, "127.1.2.4:4660".parse().unwrap()));
        assert!(!is_address(&call, 2, "[::1]:4660".parse().unwrap()));
    }
}
