//! The fields of a `flowi6`, and the arguments of `ip6_xmit`.

use super::loopback;
use super::views::{self, Addresses};
use crate::engine::{Call, Context, Evidence, Guess, Probe, Window};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockType, setsockopt, sockopt};
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

/// How many bytes of a `flowi6` are captured: at least its size on every known kernel.
const FLOW: u32 = 96;
/// How many arguments are captured.
const ARGUMENTS: u32 = 3;

/// Tries to connect from a random link-local address to `::1`. `ip6_xmit(sk, skb, fl6)` sends the first packet.
///
/// The two addresses must differ, and `lo` has only `::1`. A socket may be bound to an address that no interface has
/// (`IP_FREEBIND`), so nothing has to be configured. Because the address is link-local on `lo`, answers to it do not
/// leave the host.
#[derive(Debug)]
pub(super) struct Flow6;

impl Guess for Flow6 {
    type Expected = Addresses;

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

    fn trigger(&mut self, context: &mut dyn Context) -> io::Result<Addresses> {
        let socket = loopback::socket(SockType::Stream, AddressFamily::Inet6, None)?;
        loopback::set_nonblocking(&socket)?;
        setsockopt(&socket, sockopt::IpFreebind, &true)?;
        let [a, b, c] = [(); 3].map(|()| context.random().within(1..=0xffff) as u16);
        let unused = Ipv6Addr::new(0xfe80, 0, 0, 0, a, b, c, 1);
        let port = loopback::port(context.random());
        let local = SocketAddrV6::new(unused, port, 0, if_nametoindex("lo")?);
        let remote = SocketAddr::from((Ipv6Addr::LOCALHOST, loopback::port(context.random())));
        loopback::bind(&socket, local.into())?;
        loopback::try_to_connect(&socket, remote)?;
        Ok(Addresses { local: local.into(), remote: Some(remote) })
    }

    fn solve(&self, expected: &Addresses, calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        for call in calls {
            let skb = (1..=ARGUMENTS).find(|&position| views::carries(call, position, expected));
            let sk = (1..=ARGUMENTS).find(|&position| views::is_sock(call, position, expected));
            let Some((sk, skb)) = sk.zip(skb) else { continue };
            evidence.one_of("ip6_xmit(sk)", [sk]);
            evidence.one_of("ip6_xmit(skb)", [skb]);
            let others = (1..=ARGUMENTS).filter(|position| ![sk, skb].contains(position));
            add_evidence(expected, call, others, &mut evidence);
        }
        evidence
    }
}

fn flow(position: u32) -> String {
    format!("flow {position}")
}

/// Finds the first of these arguments that points to a structure with both addresses, and its fields.
fn add_evidence(expected: &Addresses, call: &Call, positions: impl Iterator<Item = u32>, evidence: &mut Evidence) {
    let (Some(SocketAddr::V6(remote)), SocketAddr::V6(local)) = (expected.remote, expected.local) else { return };
    let offsets = |window: &Window| {
        let saddr = window.find(&local.ip().octets(), 4);
        let daddr = window.find(&remote.ip().octets(), 4);
        (!saddr.is_empty() && !daddr.is_empty()).then_some((saddr, daddr))
    };
    for position in positions {
        let window = call.view(&flow(position));
        if let Some((saddr, daddr)) = offsets(window) {
            // The addresses come after the `flowi_common`, in which the protocol is.
            let common = window.part(0, saddr[0].min(daddr[0]));
            evidence.one_of("ip6_xmit(fl6)", [position]);
            evidence.one_of("flowi6.saddr", saddr);
            evidence.one_of("flowi6.daddr", daddr);
            evidence.one_of("flowi6.flowi6_proto", common.find(&[libc::IPPROTO_TCP as u8], 1));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_and_the_transport_are_found() {
        let expected = Addresses {
            local: "[fe80::1:2:3:1%1]:4660".parse().unwrap(),
            remote: Some("[::1]:17185".parse().unwrap()),
        };
        let mut call = Call::blank(&Flow6.probes(0)[0]);
        let (SocketAddr::V6(local), Some(SocketAddr::V6(remote))) = (expected.local, expected.remote) else {
            unreachable!()
        };
        for position in 1..=3 {
            call.pass(position, 0xffff_8880_0000_0000 + u64::from(position) * 4096);
        }
        // The sock has both addresses as well.
        call.put("address 1", 0, &local.ip().octets());
        call.put("port 1", 0, &4660u16.to_ne_bytes());
        call.put("flow 1", 56, &remote.ip().octets());
        call.put("flow 1", 72, &local.ip().octets());
        call.put("pointer to data 2", 0, &0xffff_8880_0000_9000u64.to_ne_bytes());
        call.put("begin 2", 0, &[0x12, 0x34, 0x43, 0x21]);
        call.put("flow 3", 18, &[6]);
        call.put("flow 3", 40, &remote.ip().octets());
        call.put("flow 3", 56, &local.ip().octets());
        call.put("flow 3", 91, &[6]);
        let evidence = Flow6.solve(&expected, &[call]);
        for (key, value) in [
            ("ip6_xmit(sk)", 1),
            ("ip6_xmit(skb)", 2),
            ("ip6_xmit(fl6)", 3),
            ("flowi6.flowi6_proto", 18),
            ("flowi6.daddr", 40),
            ("flowi6.saddr", 56),
        ] {
            assert_eq!(evidence.values(key), [value], "{key}");
        }
    }
}
