//! The hosts: two pairs of network namespaces, each connected by veth devices. Both pairs have the same addresses. Host
//! 0 is the guest's own namespace, the only one whose DNS packets the monitor sees.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};

pub(super) use crate::capture::link::Family;
use crate::capture::link::{Conditions, ip, set};
use crate::capture::sniffer::{SegmentInfo, Sniffer};
use crate::capture::wire::{Count, Key, Wire};
use crate::helpers::mptcp_endpoints::{Use, add_endpoint, allow_subflows, remove_endpoints};
use crate::helpers::netlink::{Faults, remove_link, veth_pair};
use crate::helpers::netns::Netns;
use crate::helpers::nft::nft;
use crate::helpers::wait::wait_until;

/// The number of hosts.
pub(super) const HOSTS: usize = 4;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The address that a host has on the link to its neighbour.
pub(super) fn own(host: usize, family: Family) -> IpAddr {
    let number = 1 + (host % 2) as u8;
    match family {
        Family::V4 => [10, 77, 0, number].into(),
        Family::V6 => [0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number)].into(),
    }
}

/// The second address of a host on the link. MPTCP makes further subflows from it.
fn second(host: usize, family: Family) -> IpAddr {
    let number = 1 + (host % 2) as u8;
    match family {
        Family::V4 => [10, 77, 1, number].into(),
        Family::V6 => [0xfd77, 1, 0, 0, 0, 0, 0, u16::from(number)].into(),
    }
}

/// Whether an address is the second one of a host.
pub(super) fn is_second(address: IpAddr) -> bool {
    [0, 1].iter().any(|&host| FAMILIES.iter().any(|&family| second(host, family) == address))
}

/// Loopback's address.
pub(super) fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => [127, 0, 0, 1].into(),
        Family::V6 => [0, 0, 0, 0, 0, 0, 0, 1_u16].into(),
    }
}

/// The host at the other end of the link.
pub(super) fn neighbour(host: usize) -> usize {
    host ^ 1
}

/// The host with an address, seen from a host.
pub(super) fn host_of(host: usize, address: IpAddr) -> usize {
    let is_own = |&family: &Family| own(host, family) == address || second(host, family) == address;
    let is_here = address.is_loopback() || FAMILIES.iter().any(is_own);
    if is_here { host } else { neighbour(host) }
}

/// The hosts.
pub(super) struct Hosts {
    namespaces: Vec<Arc<Netns>>,
    /// Whether GSO and GRO are on, for each pair of hosts.
    offloads: [bool; HOSTS / 2],
}

/// TCP ports that nftables rejects: two on the client's host, by an ICMP error and by a reset, and three on the other
/// host, by an ICMP error, by a reset and by another ICMP error.
pub(super) const REJECTS: [u16; 5] = [7921, 7922, 7931, 7932, 7933];
/// UDP ports that nftables rejects: the first on the client's host, the second on the other host.
pub(super) const UDP_REJECTS: [u16; 2] = [7923, 7934];

/// The nftables rules of each host.
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

impl Hosts {
    pub(super) fn new(offloads: [bool; HOSTS / 2]) -> Result<Self> {
        let status = Command::new("modprobe").arg("veth").status().context("load veth")?;
        ensure!(status.success(), "modprobe ended with {status}");
        wait_until("the last round's connections to be over", no_connections)?;
        let mut namespaces = vec![Arc::new(Netns::current()?)];
        for _ in 1..HOSTS {
            namespaces.push(Arc::new(Netns::new()?));
        }
        for (first, second) in [(0, 1), (2, 3)] {
            namespaces[first].run(|| veth_pair(LINK, LINK, &namespaces[second]))?;
        }
        for (host, netns) in namespaces.iter().enumerate() {
            ip(netns, "link set lo up")?;
            match offloads[host / 2] {
                true => ["lo", LINK].into_iter().try_for_each(|interface| set(netns, interface, OFFLOADED))?,
                false => {
                    set(netns, "lo", Conditions { mtu: LOOPBACK_MTU, ..SINGLE })?;
                    set(netns, LINK, SINGLE)?;
                }
            }
            netns.set(&format!("ipv6/conf/{LINK}/accept_dad"), "0")?;
            ip(netns, &format!("link set {LINK} up"))?;
            for address in [own, second].map(|address| address(host, Family::V4)) {
                ip(netns, &format!("addr add {address}/24 dev {LINK}"))?;
            }
            for address in [own, second].map(|address| address(host, Family::V6)) {
                ip(netns, &format!("addr add {address}/64 dev {LINK}"))?;
            }
            // Without this route the kernel would choose the second address as source.
            ip(netns, &format!("-6 route replace fd77::/64 dev {LINK} src {}", own(host, Family::V6)))?;
            netns.run(|| nft(&rules()))?;
            if Path::new("/proc/sys/net/mptcp").exists() {
                netns.run(|| allow_subflows(2))?;
                netns
                    .run(|| FAMILIES.iter().try_for_each(|&family| add_endpoint(second(host, family), Use::Subflow)))?;
            }
        }
        Ok(Self { namespaces, offloads })
    }

    /// Runs `work` on a host.
    pub(super) fn run<T: Send>(&self, host: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.namespaces[host].run(work)
    }

    /// Starts captures on all interfaces.
    pub(super) fn capture(&self) -> Result<Captures> {
        let of_host = |(host, netns): (usize, &Arc<Netns>)| {
            let segment_info = if self.offloads[host / 2] { SegmentInfo::FromKernel } else { SegmentInfo::NoSegments };
            ["lo", LINK].into_iter().map(|interface| Sniffer::inside(netns, interface, segment_info)).collect()
        };
        self.namespaces.iter().enumerate().map(of_host).collect::<Result<_>>().map(Captures)
    }
}

/// Whether host 0 has no TCP connection that may still send: MPTCP keeps some for up to a minute after their programs
/// have ended.
fn no_connections() -> Result<bool> {
    const TIME_WAIT: &str = "06";
    const LISTEN: &str = "0A";
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let table = fs::read_to_string(table).context("read the guest's connections")?;
        let mut states = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(3));
        if states.any(|state| ![TIME_WAIT, LISTEN].contains(&state)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The default MTU of loopback.
const LOOPBACK_MTU: u32 = 65_536;
/// Without GSO and GRO.
const SINGLE: Conditions =
    Conditions { mtu: 1500, far_mtu: 1500, gso: false, gro: false, software_gso: false, faults: Faults::NONE };
/// With GSO and GRO of TCP, which the kernel describes to a capture.
const OFFLOADED: Conditions = Conditions { gso: true, gro: true, ..SINGLE };

impl Drop for Hosts {
    /// Restores the guest's namespace for other tests and the next round.
    fn drop(&mut self) {
        let before = Conditions { mtu: LOOPBACK_MTU, ..OFFLOADED };
        set(&self.namespaces[0], "lo", before).ok();
        // The kernel removes the link with its peer's namespace, but later.
        self.namespaces[0].run(|| remove_link(LINK)).ok();
        self.namespaces[0].run(|| nft("delete table inet torture")).ok();
        self.namespaces[0].run(remove_endpoints).ok();
    }
}

/// The name of the veth device of each host.
const LINK: &str = "torture";

/// Running captures, by host.
pub(super) struct Captures(Vec<Vec<Sniffer>>);

impl Captures {
    pub(super) fn stop(self) -> Result<CapturedByHost> {
        let of_host = |sniffers: Vec<Sniffer>| sniffers.into_iter().map(Sniffer::stop).collect();
        self.0.into_iter().map(of_host).collect::<Result<_>>().map(CapturedByHost)
    }
}

/// The captured packets, by host.
pub(super) struct CapturedByHost(Vec<Vec<Wire>>);

impl CapturedByHost {
    /// The packets of one direction of a flow on all interfaces of a host.
    pub(super) fn of(&self, host: usize, key: Key) -> Count {
        let mut sum = Count::default();
        self.0[host].iter().for_each(|wire| sum += wire.of(key));
        sum
    }

    /// The packets of one direction of a flow up to a time.
    pub(super) fn until(&self, host: usize, key: Key, time: SystemTime) -> Count {
        let mut sum = Count::default();
        self.0[host].iter().for_each(|wire| sum += wire.until(key, time));
        sum
    }

    /// The last packets of one direction of a flow, at most this many, each with its time.
    pub(super) fn last(&self, host: usize, key: Key, most: usize) -> Vec<(SystemTime, Count)> {
        let mut packets: Vec<_> = self.0[host].iter().flat_map(|wire| wire.timed(key)).copied().collect();
        packets.sort_by_key(|(time, _)| *time);
        packets.split_off(packets.len().saturating_sub(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_pairs_have_the_same_addresses() {
        let first = own(0, Family::V4);
        assert_eq!(first, own(2, Family::V4), "both pairs have the same addresses");
        assert_eq!([0, 1, 2, 3].map(|host| host_of(host, first)), [0, 0, 2, 2]);
        assert_eq!([0, 1, 2, 3].map(|host| host_of(host, [127, 0, 1, 9].into())), [0, 1, 2, 3]);
    }
}
