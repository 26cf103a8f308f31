//! Where a `sock` keeps IPv6 addresses.

use super::sock::{COMMON, window, window_needs};
use super::talk;
use crate::engine::{Clues, Guess, Probe, Scene, Shot};
use nix::sys::socket::{AddressFamily, SockType, setsockopt, sockopt};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

/// `lo` has one IPv6 address only, but an IPv6 socket may also talk IPv4: then it holds `::ffff:127.x.y.z`, of which
/// this host has millions.
#[derive(Debug)]
pub(super) struct Sock6;

/// The IPv4 addresses of a socket, its own first.
type Pair = (Ipv4Addr, Ipv4Addr);

impl Guess for Sock6 {
    type Sent = Pair;

    fn name(&self) -> &'static str {
        "sock6"
    }

    fn needs(&self) -> Vec<String> {
        window_needs()
    }

    fn gives(&self) -> Vec<String> {
        ["sock_common.skc_v6_daddr", "sock_common.skc_v6_rcv_saddr"].map(str::to_owned).into()
    }

    fn ipv6(&self) -> bool {
        true
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        vec![window()]
    }

    fn trigger(&mut self, stage: &mut dyn Scene) -> io::Result<Pair> {
        let (local, remote) = (stage.random().loopback(), stage.random().loopback());
        let mapped = |address: Ipv4Addr, port: u16| SocketAddr::from((address.to_ipv6_mapped(), port));
        let socket = talk::socket(SockType::Datagram, AddressFamily::Inet6, None)?;
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
        talk::bind(&socket, mapped(local, 0))?;
        talk::connect(&socket, mapped(remote, talk::port(stage.random())))?;
        Ok((local, remote))
    }

    fn solve(&self, (local, remote): &Pair, shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        if let [shot] = shots {
            let common = shot.view("sk").part(0, COMMON);
            let find = |address: &Ipv4Addr| common.find(&address.to_ipv6_mapped().octets(), 4);
            clues.allow("sock_common.skc_v6_daddr", find(remote));
            clues.allow("sock_common.skc_v6_rcv_saddr", find(local));
        }
        clues
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
        let clues = Sock6.solve(&(local, remote), &[Shot::of("inet_release", vec![("sk", sk)])]);
        assert_eq!(clues.of("sock_common.skc_v6_daddr"), [56]);
        assert_eq!(clues.of("sock_common.skc_v6_rcv_saddr"), [72]);
    }
}
