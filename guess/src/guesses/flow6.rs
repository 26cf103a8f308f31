//! The addresses and the transport of a `flowi6`.

use super::talk;
use super::views::{self, Addresses};
use crate::engine::{Clues, Guess, Probe, Scene, Shot, Window};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockType, setsockopt, sockopt};
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

/// `struct flowi6` is not larger than this.
const FLOW: u32 = 96;
/// How many arguments are looked at.
const ARGUMENTS: u32 = 3;

/// A connection is tried from a random link-local address to `::1`: `ip6_xmit(sk, skb, fl6)` sends its first packet.
///
/// `lo` does not have that address, but a socket may be bound to one that is not there yet (`IP_FREEBIND`). That it is
/// link-local keeps whatever answers it on `lo`, where there is no way to it. So both addresses differ, and nothing is
/// configured.
#[derive(Debug)]
pub(super) struct Flow6;

impl Guess for Flow6 {
    type Sent = Addresses;

    fn name(&self) -> &'static str {
        "flow6"
    }

    fn needs(&self) -> Vec<String> {
        [views::NEEDS6, views::NEEDS_SKB].concat().into_iter().map(str::to_owned).collect()
    }

    fn gives(&self) -> Vec<String> {
        let fields = ["saddr", "daddr", "flowi6_proto"].map(|field| format!("flowi6.{field}"));
        fields.into_iter().chain(["sk", "skb", "fl6"].map(|name| format!("ip6_xmit({name})"))).collect()
    }

    fn ipv6(&self) -> bool {
        true
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        let mut probe = Probe::on("ip6_xmit").arguments(ARGUMENTS);
        for position in 1..=ARGUMENTS {
            probe = views::skb(views::sock(probe, position, true), position);
            probe = probe.words(&flow(position), &views::argument(position), 0..FLOW);
        }
        vec![probe]
    }

    fn trigger(&mut self, stage: &mut dyn Scene) -> io::Result<Addresses> {
        let socket = talk::socket(SockType::Stream, AddressFamily::Inet6, None)?;
        talk::do_not_wait(&socket)?;
        setsockopt(&socket, sockopt::IpFreebind, &true)?;
        let [a, b, c] = [(); 3].map(|()| stage.random().within(1..=0xffff) as u16);
        let nobody = Ipv6Addr::new(0xfe80, 0, 0, 0, a, b, c, 1);
        let port = talk::port(stage.random());
        let local = SocketAddrV6::new(nobody, port, 0, if_nametoindex("lo")?);
        let remote = SocketAddr::from((Ipv6Addr::LOCALHOST, talk::port(stage.random())));
        talk::bind(&socket, local.into())?;
        talk::try_to_connect(&socket, remote)?;
        Ok(Addresses { local: local.into(), remote: Some(remote) })
    }

    fn solve(&self, sent: &Addresses, shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        for shot in shots {
            let skb = (1..=ARGUMENTS).find(|&position| views::carries(shot, position, sent));
            let sk = (1..=ARGUMENTS).find(|&position| views::is_sock(shot, position, sent));
            let Some((sk, skb)) = sk.zip(skb) else { continue };
            clues.allow("ip6_xmit(sk)", [sk]);
            clues.allow("ip6_xmit(skb)", [skb]);
            let others = (1..=ARGUMENTS).filter(|position| ![sk, skb].contains(position));
            find(sent, shot, others, &mut clues);
        }
        clues
    }
}

fn flow(position: u32) -> String {
    format!("flow {position}")
}

/// The first of these arguments that is a structure with both addresses, and what it holds.
fn find(sent: &Addresses, shot: &Shot, positions: impl Iterator<Item = u32>, clues: &mut Clues) {
    let (Some(SocketAddr::V6(remote)), SocketAddr::V6(local)) = (sent.remote, sent.local) else { return };
    let places = |window: &Window| {
        let saddr = window.find(&local.ip().octets(), 4);
        let daddr = window.find(&remote.ip().octets(), 4);
        (!saddr.is_empty() && !daddr.is_empty()).then_some((saddr, daddr))
    };
    for position in positions {
        let window = shot.view(&flow(position));
        if let Some((saddr, daddr)) = places(window) {
            // The addresses follow what flows of all families share.
            let common = window.part(0, saddr[0].min(daddr[0]));
            clues.allow("ip6_xmit(fl6)", [position]);
            clues.allow("flowi6.saddr", saddr);
            clues.allow("flowi6.daddr", daddr);
            clues.allow("flowi6.flowi6_proto", common.find(&[libc::IPPROTO_TCP as u8], 1));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_and_the_transport_are_found() {
        let sent = Addresses {
            local: "[fe80::1:2:3:1%1]:4660".parse().unwrap(),
            remote: Some("[::1]:17185".parse().unwrap()),
        };
        let mut shot = Shot::blank(&Flow6.probes(0)[0]);
        let (SocketAddr::V6(local), Some(SocketAddr::V6(remote))) = (sent.local, sent.remote) else { unreachable!() };
        for position in 1..=3 {
            shot.pass(position, 0xffff_8880_0000_0000 + u64::from(position) * 4096);
        }
        // The sock holds both addresses as well.
        shot.put("address 1", 0, &local.ip().octets());
        shot.put("port 1", 0, &4660u16.to_ne_bytes());
        shot.put("flow 1", 56, &remote.ip().octets());
        shot.put("flow 1", 72, &local.ip().octets());
        shot.put("pointer to data 2", 0, &0xffff_8880_0000_9000u64.to_ne_bytes());
        shot.put("begin 2", 0, &[0x12, 0x34, 0x43, 0x21]);
        shot.put("flow 3", 18, &[6]);
        shot.put("flow 3", 40, &remote.ip().octets());
        shot.put("flow 3", 56, &local.ip().octets());
        shot.put("flow 3", 91, &[6]);
        let clues = Flow6.solve(&sent, &[shot]);
        for (key, value) in [
            ("ip6_xmit(sk)", 1),
            ("ip6_xmit(skb)", 2),
            ("ip6_xmit(fl6)", 3),
            ("flowi6.flowi6_proto", 18),
            ("flowi6.daddr", 40),
            ("flowi6.saddr", 56),
        ] {
            assert_eq!(clues.of(key), [value], "{key}");
        }
    }
}
