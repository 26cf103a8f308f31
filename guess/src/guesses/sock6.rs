//! The IPv6 addresses of a `sock`.

use super::loopback;
use super::sock::{SOCK_COMMON, released_sock, released_sock_needs};
use crate::engine::{Call, Context, Evidence, Guess, Probe};
use nix::sys::socket::{AddressFamily, SockType, setsockopt, sockopt};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

/// Connects an IPv6 socket over IPv4. `lo` has only one IPv6 address, but such a socket has an address `::ffff:127.x.y.z`,
/// and there are millions of these.
#[derive(Debug)]
pub(super) struct Sock6;

/// The IPv4 addresses of a socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    local: Ipv4Addr,
    remote: Ipv4Addr,
}

impl Guess for Sock6 {
    type Expected = Pair;

    fn name(&self) -> &'static str {
        "sock6"
    }

    fn needs(&self) -> Vec<String> {
        released_sock_needs()
    }

    fn gives(&self) -> Vec<String> {
        ["sock_common.skc_v6_daddr", "sock_common.skc_v6_rcv_saddr"].map(str::to_owned).into()
    }

    fn ipv6(&self) -> bool {
        true
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        vec![released_sock()]
    }

    fn trigger(&mut self, context: &mut dyn Context) -> io::Result<Pair> {
        let (local, remote) = (context.random().loopback_address(), context.random().loopback_address());
        let mapped = |address: Ipv4Addr, port: u16| SocketAddr::from((address.to_ipv6_mapped(), port));
        let socket = loopback::socket(SockType::Datagram, AddressFamily::Inet6, None)?;
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
        loopback::bind(&socket, mapped(local, 0))?;
        loopback::connect(&socket, mapped(remote, loopback::port(context.random())))?;
        Ok(Pair { local, remote })
    }

    fn solve(&self, Pair { local, remote }: &Pair, calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        if let [call] = calls {
            let common = call.view("sk").part(0, SOCK_COMMON);
            let find = |address: &Ipv4Addr| common.find(&address.to_ipv6_mapped().octets(), 4);
            evidence.one_of("sock_common.skc_v6_daddr", find(remote));
            evidence.one_of("sock_common.skc_v6_rcv_saddr", find(local));
        }
        evidence
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Window;

    #[test]
    fn mapped_addresses_are_found() {
        let (local, remote) = (Ipv4Addr::new(127, 1, 2, 3), Ipv4Addr::new(127, 4, 5, 6));
        let mut sk = Window::new(0, vec![0; 1016]);
        sk.write(0, &remote.octets());
        sk.write(56, &remote.to_ipv6_mapped().octets());
        sk.write(72, &local.to_ipv6_mapped().octets());
        sk.write(1000, &local.to_ipv6_mapped().octets());
        let evidence = Sock6.solve(&Pair { local, remote }, &[Call::of("inet_release", vec![("sk", sk)])]);
        assert_eq!(evidence.values("sock_common.skc_v6_daddr"), [56]);
        assert_eq!(evidence.values("sock_common.skc_v6_rcv_saddr"), [72]);
    }
}
