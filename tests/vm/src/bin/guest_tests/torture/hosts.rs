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
use crate::capture::phases::{OFFLOADED, PLAIN};
use crate::capture::sniffer::{SegmentInfo, Sniffer};
use crate::capture::wire::{Count, Key, Wire};
use crate::helpers::mptcp_endpoints::{Use, add_endpoint, allow_subflows, remove_endpoints};
use crate::helpers::netlink::{remove_link, veth_pair};
use crate::helpers::netns::Netns;
use crate::helpers::nft::nft;
use crate::helpers::wait::wait_until;

/// The number of hosts.
pub(super) const HOSTS: usize = 4;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The address that a host has on the link to its neighbour.
pub(super) fn first_address(host: usize, family: Family) -> IpAddr {
    let number = 1 + (host % 2) as u8;
    match family {
        Family::V4 => [10, 77, 0, number].into(),
        Family::V6 => [0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number)].into(),
    }
}

/// The second address of a host on the link. MPTCP opens additional subflows from it.
fn second_address(host: usize, family: Family) -> IpAddr {
    let number = 1 + (host % 2) as u8;
    match family {
        Family::V4 => [10, 77, 1, number].into(),
        Family::V6 => [0xfd77, 1, 0, 0, 0, 0, 0, u16::from(number)].into(),
    }
}

/// Whether an address is the second one of a host.
pub(super) fn is_second_address(address: IpAddr) -> bool {
    [0, 1].iter().any(|&host| FAMILIES.iter().any(|&family| second_address(host, family) == address))
}

/// The loopback address that the workloads use.
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

/// The host that `address` means when `host` uses it.
pub(super) fn host_of(host: usize, address: IpAddr) -> usize {
    let is_own = |&family: &Family| first_address(host, family) == address || second_address(host, family) == address;
    let is_here = address.is_loopback() || FAMILIES.iter().any(is_own);
    if is_here { host } else { neighbour(host) }
}

/// The network namespaces of all hosts.
pub(super) struct Hosts {
    namespaces: Vec<Arc<Netns>>,
    /// Whether GSO and GRO are on, for each pair of hosts.
    offloads: [bool; HOSTS / 2],
}

/// TCP ports that nftables rejects on the client's host, where the packets leave. Each name says with which answer.
const OUT_PORT_UNREACHABLE: u16 = 7921;
const OUT_RESET: u16 = 7922;
/// TCP ports that nftables rejects on the server's host, where the packets arrive. Each name says with which answer.
const IN_PORT_UNREACHABLE: u16 = 7931;
const IN_RESET: u16 = 7932;
const IN_PROHIBITED: u16 = 7933;
/// All TCP ports that nftables rejects.
pub(super) const REJECTED: [u16; 5] = [OUT_PORT_UNREACHABLE, OUT_RESET, IN_PORT_UNREACHABLE, IN_RESET, IN_PROHIBITED];

/// The UDP port that nftables drops on the client's host. The sender gets `EPERM`.
const UDP_OUT_DROP: u16 = 7923;
/// The UDP port that nftables rejects on the server's host.
const UDP_IN_REJECT: u16 = 7934;
/// All UDP ports that nftables blocks.
pub(super) const UDP_BLOCKED: [u16; 2] = [UDP_OUT_DROP, UDP_IN_REJECT];

/// The nftables rules of each host.
fn rules() -> String {
    format!(
        "table inet torture {{
            chain output {{
                type filter hook output priority 0;
                tcp dport {OUT_PORT_UNREACHABLE} reject with icmpx type port-unreachable
                tcp dport {OUT_RESET} reject with tcp reset
                udp dport {UDP_OUT_DROP} drop
            }}
            chain input {{
                type filter hook input priority 0;
                tcp dport {IN_PORT_UNREACHABLE} reject with icmpx type port-unreachable
                tcp dport {IN_RESET} reject with tcp reset
                tcp dport {IN_PROHIBITED} reject with icmpx type admin-prohibited
                udp dport {UDP_IN_REJECT} reject with icmpx type port-unreachable
            }}
        }}"
    )
}

impl Hosts {
    pub(super) fn new(offloads: [bool; HOSTS / 2]) -> Result<Self> {
        let status = Command::new("modprobe").arg("veth").status().context("load veth")?;
        ensure!(status.success(), "modprobe ended with {status}");
        wait_until("the last round's connections to be over", no_active_connections)?;
        let mut namespaces = vec![Arc::new(Netns::current()?)];
        for _ in 1..HOSTS {
            namespaces.push(Arc::new(Netns::new()?));
        }
        for (first, second) in [(0, 1), (2, 3)] {
            namespaces[first].run(|| veth_pair(LINK, LINK, &namespaces[second]))?;
        }
        for (host, netns) in namespaces.iter().enumerate() {
            ip(netns, "link set lo up")?;
            if offloads[host / 2] {
                ["lo", LINK].into_iter().try_for_each(|interface| set(netns, interface, OFFLOADED))?;
            } else {
                // Loopback keeps its default MTU, for packets of up to 64 KiB. With offloads, an MTU of 1500 makes those GSO
                // packets.
                set(netns, "lo", Conditions { mtu: LOOPBACK_MTU, ..PLAIN })?;
                set(netns, LINK, PLAIN)?;
            }
            netns.set_sysctl(&format!("ipv6/conf/{LINK}/accept_dad"), "0")?;
            ip(netns, &format!("link set {LINK} up"))?;
            for address in [first_address, second_address].map(|address| address(host, Family::V4)) {
                ip(netns, &format!("addr add {address}/24 dev {LINK}"))?;
            }
            for address in [first_address, second_address].map(|address| address(host, Family::V6)) {
                ip(netns, &format!("addr add {address}/64 dev {LINK}"))?;
            }
            // Without this route the kernel would choose the second address as source.
            ip(netns, &format!("-6 route replace fd77::/64 dev {LINK} src {}", first_address(host, Family::V6)))?;
            netns.run(|| nft(&rules()))?;
            if Path::new("/proc/sys/net/mptcp").exists() {
                netns.run(|| allow_subflows(2))?;
                netns.run(|| {
                    FAMILIES.iter().try_for_each(|&family| add_endpoint(second_address(host, family), Use::Subflow))
                })?;
            }
        }
        Ok(Self { namespaces, offloads })
    }

    /// Runs `work` on a host.
    pub(super) fn run<T: Send>(&self, host: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.namespaces[host].run(work)
    }

    /// Starts captures on all interfaces. With offloads, they learn the segment size of TCP packets from the kernel.
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
fn no_active_connections() -> Result<bool> {
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

impl Drop for Hosts {
    /// Restores the guest's namespace for other tests and the next round.
    fn drop(&mut self) {
        let defaults = Conditions { mtu: LOOPBACK_MTU, ..OFFLOADED };
        set(&self.namespaces[0], "lo", defaults).ok();
        // The kernel would remove the link together with the peer's namespace, but only later: too late for the next round.
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
    pub(super) fn count(&self, host: usize, key: Key) -> Count {
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

    /// The last packets of one direction of a flow, at most `limit`, each with its time.
    pub(super) fn last(&self, host: usize, key: Key, limit: usize) -> Vec<(SystemTime, Count)> {
        let mut packets: Vec<_> = self.0[host].iter().flat_map(|wire| wire.packets_with_times(key)).copied().collect();
        packets.sort_by_key(|(time, _)| *time);
        packets.split_off(packets.len().saturating_sub(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_pairs_have_the_same_addresses() {
        let first = first_address(0, Family::V4);
        assert_eq!(first, first_address(2, Family::V4));
        assert_eq!([0, 1, 2, 3].map(|host| host_of(host, first)), [0, 0, 2, 2]);
        assert_eq!([0, 1, 2, 3].map(|host| host_of(host, [127, 0, 1, 9].into())), [0, 1, 2, 3]);
    }
}
