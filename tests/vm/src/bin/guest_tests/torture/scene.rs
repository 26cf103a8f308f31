//! Where traffic is made: two pairs of hosts, each joined by veth devices. Both pairs have the same addresses. The
//! first host of the first pair is the guest itself, the only one whose DNS packets the monitor sees.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};

use crate::capture::link::{Conditions, ip, set};
use crate::capture::sniffer::{Learn, Sniffer};
use crate::capture::wire::{Count, Key, Wire};
use crate::helpers::netlink::{Faults, remove_link, veth_pair};
use crate::helpers::netns::Netns;
use crate::helpers::nft::nft;
use crate::helpers::path_manager::{Use, add_endpoint, allow_subflows, remove_endpoints};

/// How many hosts there are.
pub(super) const PLACES: usize = 4;

/// Which address of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The address that a host has on the link to its neighbour.
pub(super) fn own(place: usize, family: Family) -> IpAddr {
    let host = 1 + (place % 2) as u8;
    match family {
        Family::V4 => [10, 77, 0, host].into(),
        Family::V6 => [0xfd77, 0, 0, 0, 0, 0, 0, u16::from(host)].into(),
    }
}

/// Another address that a host has on the link. MPTCP makes further subflows from it.
fn second(place: usize, family: Family) -> IpAddr {
    let host = 1 + (place % 2) as u8;
    match family {
        Family::V4 => [10, 77, 1, host].into(),
        Family::V6 => [0xfd77, 1, 0, 0, 0, 0, 0, u16::from(host)].into(),
    }
}

/// Whether an address is one from which MPTCP makes further subflows.
pub(super) fn is_second(address: IpAddr) -> bool {
    [0, 1].iter().any(|&place| FAMILIES.iter().any(|&family| second(place, family) == address))
}

/// Loopback's address.
pub(super) fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => [127, 0, 0, 1].into(),
        Family::V6 => [0, 0, 0, 0, 0, 0, 0, 1_u16].into(),
    }
}

/// The host at the other end of the link.
pub(super) fn neighbour(place: usize) -> usize {
    place ^ 1
}

/// The host that an address means, seen from a host.
pub(super) fn host_of(place: usize, address: IpAddr) -> usize {
    let is_own = |&family: &Family| own(place, family) == address || second(place, family) == address;
    let is_here = address.is_loopback() || FAMILIES.iter().any(is_own);
    if is_here { place } else { neighbour(place) }
}

/// The hosts.
pub(super) struct Scene {
    places: Vec<Arc<Netns>>,
    /// Which pairs of hosts have offloads on.
    offloads: [bool; PLACES / 2],
}

/// TCP ports that a packet filter refuses: two on the client's host, by ICMP and by a reset, and three on the other
/// host, by ICMP, by a reset and by another ICMP error.
pub(super) const REJECTS: [u16; 5] = [7921, 7922, 7931, 7932, 7933];
/// UDP ports that a packet filter refuses: the first on the client's host, the second on the other host.
pub(super) const UDP_REJECTS: [u16; 2] = [7923, 7934];

/// The rules of each host's packet filter.
fn rules() -> String {
    let [out_icmp, out_reset, in_icmp, in_reset, in_prohibited] = REJECTS;
    let [out_udp, in_udp] = UDP_REJECTS;
    format!(
        "table inet torture {{
            chain output {{
                type filter hook output priority 0;
                tcp dport {out_icmp} reject with icmpx type port-unreachable
                tcp dport {out_reset} reject with tcp reset
                udp dport {out_udp} drop
            }}
            chain input {{
                type filter hook input priority 0;
                tcp dport {in_icmp} reject with icmpx type port-unreachable
                tcp dport {in_reset} reject with tcp reset
                tcp dport {in_prohibited} reject with icmpx type admin-prohibited
                udp dport {in_udp} reject with icmpx type port-unreachable
            }}
        }}"
    )
}

impl Scene {
    pub(super) fn new(offloads: [bool; PLACES / 2]) -> Result<Self> {
        let status = Command::new("modprobe").arg("veth").status().context("load veth")?;
        ensure!(status.success(), "modprobe ended with {status}");
        let mut places = vec![Arc::new(Netns::current()?)];
        for _ in 1..PLACES {
            places.push(Arc::new(Netns::new()?));
        }
        for (first, second) in [(0, 1), (2, 3)] {
            places[first].run(|| veth_pair(LINK, LINK, &places[second]))?;
        }
        for (place, netns) in places.iter().enumerate() {
            ip(netns, "link set lo up")?;
            match offloads[place / 2] {
                true => ["lo", LINK].into_iter().try_for_each(|interface| set(netns, interface, OFFLOADED))?,
                false => {
                    set(netns, "lo", Conditions { mtu: LOOPBACK_MTU, ..SINGLE })?;
                    set(netns, LINK, SINGLE)?;
                }
            }
            netns.set(&format!("ipv6/conf/{LINK}/accept_dad"), "0")?;
            ip(netns, &format!("link set {LINK} up"))?;
            for address in [own, second].map(|address| address(place, Family::V4)) {
                ip(netns, &format!("addr add {address}/24 dev {LINK}"))?;
            }
            for address in [own, second].map(|address| address(place, Family::V6)) {
                ip(netns, &format!("addr add {address}/64 dev {LINK}"))?;
            }
            // The kernel would choose the latest address as a source.
            ip(netns, &format!("-6 route replace fd77::/64 dev {LINK} src {}", own(place, Family::V6)))?;
            netns.run(|| nft(&rules()))?;
            if Path::new("/proc/sys/net/mptcp").exists() {
                netns.run(|| allow_subflows(2))?;
                netns.run(|| {
                    FAMILIES.iter().try_for_each(|&family| add_endpoint(second(place, family), Use::Subflow))
                })?;
            }
        }
        Ok(Self { places, offloads })
    }

    /// Runs something on a host.
    pub(super) fn run<T: Send>(&self, place: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.places[place].run(work)
    }

    /// Starts captures on all interfaces.
    pub(super) fn capture(&self) -> Result<Captures> {
        let of_place = |(place, netns): (usize, &Arc<Netns>)| {
            let learn = if self.offloads[place / 2] { Learn::FromKernel } else { Learn::Single };
            ["lo", LINK].into_iter().map(|interface| Sniffer::inside(netns, interface, learn)).collect()
        };
        self.places.iter().enumerate().map(of_place).collect::<Result<_>>().map(Captures)
    }
}

/// The default MTU of loopback.
const LOOPBACK_MTU: u32 = 65_536;
/// No packet stands for several segments.
const SINGLE: Conditions =
    Conditions { mtu: 1500, far_mtu: 1500, merged_out: false, merged_in: false, cut: false, faults: Faults::NONE };
/// Packets stand for several segments of TCP, which the kernel describes to a capture.
const OFFLOADED: Conditions = Conditions { merged_out: true, merged_in: true, ..SINGLE };

impl Drop for Scene {
    /// Leaves the guest's own namespace to other tests, and to the next round, as it was.
    fn drop(&mut self) {
        let before = Conditions { mtu: LOOPBACK_MTU, ..OFFLOADED };
        set(&self.places[0], "lo", before).ok();
        // It would go with its peer's namespace, but the kernel removes that later.
        self.places[0].run(|| remove_link(LINK)).ok();
        self.places[0].run(|| nft("delete table inet torture")).ok();
        self.places[0].run(remove_endpoints).ok();
    }
}

/// The name of the veth device of each host.
const LINK: &str = "torture";

/// Running captures, by host.
pub(super) struct Captures(Vec<Vec<Sniffer>>);

impl Captures {
    pub(super) fn stop(self) -> Result<Captured> {
        let of_place = |sniffers: Vec<Sniffer>| sniffers.into_iter().map(Sniffer::stop).collect();
        self.0.into_iter().map(of_place).collect::<Result<_>>().map(Captured)
    }
}

/// What was captured, by host.
pub(super) struct Captured(Vec<Vec<Wire>>);

impl Captured {
    /// What a host's interfaces carried in one direction of a flow.
    pub(super) fn of(&self, place: usize, key: Key) -> Count {
        let mut sum = Count::default();
        self.0[place].iter().for_each(|wire| sum += wire.of(key));
        sum
    }

    /// The same up to a time.
    pub(super) fn until(&self, place: usize, key: Key, time: SystemTime) -> Count {
        let mut sum = Count::default();
        self.0[place].iter().for_each(|wire| sum += wire.until(key, time));
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_means_another_host_from_elsewhere() {
        let first = own(0, Family::V4);
        assert_eq!(first, own(2, Family::V4), "both pairs have the same addresses");
        assert_eq!([0, 1, 2, 3].map(|place| host_of(place, first)), [0, 0, 2, 2]);
        assert_eq!([0, 1, 2, 3].map(|place| host_of(place, [127, 0, 1, 9].into())), [0, 1, 2, 3]);
    }
}
