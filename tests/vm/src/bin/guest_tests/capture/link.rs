//! The networks of the tests: loopback, and two hosts with a router between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::helpers::netlink::{Faults, set_gso_max_segs, set_netem, veth_pair};
use crate::helpers::netns::Netns;
use crate::helpers::sys::ethtool;

/// A host: a network namespace with one interface.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) netns: Arc<Netns>,
    /// The interface of all of its traffic.
    pub(crate) interface: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Host {
    /// Adds an address to its interface.
    pub(crate) fn add_address(&self, address: IpAddr) -> Result<()> {
        let length = if address.is_ipv4() { 24 } else { 64 };
        ip(&self.netns, &format!("addr add {address}/{length} dev {}", self.interface))
    }

    /// Runs `work` in its network namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.netns.run(work)
    }

    /// Its address.
    pub(crate) fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Sets the conditions of its interface, without faults: the router makes those.
    pub(crate) fn set(&self, conditions: Conditions) -> Result<()> {
        set(&self.netns, &self.interface, conditions)
    }
}

/// The conditions of a network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conditions {
    /// The MTU between the client and the router.
    pub(crate) mtu: u32,
    /// The MTU between the router and the server.
    pub(crate) far_mtu: u32,
    /// Whether interfaces accept GSO packets, and compute checksums.
    pub(crate) gso: bool,
    /// Whether interfaces merge received packets (GRO).
    pub(crate) gro: bool,
    /// Whether the kernel segments GSO packets before they reach an interface with GSO (`gso_max_segs` is 1).
    pub(crate) software_gso: bool,
    pub(crate) faults: Faults,
}

/// A version of the Internet Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// The client's and the server's host, which may be the same.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) client: Host,
    pub(crate) server: Host,
}

/// The loopback interface of the guest.
pub(crate) fn loopback() -> Result<Link> {
    let host = Host {
        netns: Arc::new(Netns::current()?),
        interface: "lo".to_owned(),
        v4: Ipv4Addr::LOCALHOST,
        v6: Ipv6Addr::LOCALHOST,
    };
    Ok(Link { client: host.clone(), server: host })
}

/// Two hosts, and a router with an interface for each.
pub(crate) struct Routed {
    pub(crate) link: Link,
    router: Arc<Netns>,
}

const TO_CLIENT: &str = "to-client";
const TO_SERVER: &str = "to-server";

impl Routed {
    pub(crate) fn new() -> Result<Self> {
        for module in ["veth", "sch_netem"] {
            run(Command::new("modprobe").arg(module))?;
        }
        let router = Arc::new(Netns::new()?);
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            router.set_sysctl(setting, "1")?;
        }
        let client = host(&router, TO_CLIENT, 1)?;
        let server = host(&router, TO_SERVER, 2)?;
        Ok(Self { link: Link { client, server }, router })
    }

    /// Makes the router drop all IPv4 packets.
    pub(crate) fn stop_forwarding(&self) -> Result<()> {
        self.router.set_sysctl("ipv4/ip_forward", "0")
    }

    /// Sets the conditions of all interfaces.
    pub(crate) fn set(&self, conditions: Conditions) -> Result<()> {
        let far = Conditions { mtu: conditions.far_mtu, ..conditions };
        self.link.client.set(conditions)?;
        self.link.server.set(far)?;
        for (interface, conditions) in [(TO_CLIENT, conditions), (TO_SERVER, far)] {
            set(&self.router, interface, conditions)?;
            self.router.run(|| set_netem(interface, conditions.faults))?;
        }
        Ok(())
    }
}

/// Makes a host on network `number`, connected to the router's interface `peer`.
fn host(router: &Netns, peer: &str, number: u8) -> Result<Host> {
    let netns = Arc::new(Netns::new()?);
    for netns in [&*netns, router] {
        // Without duplicate address detection, addresses can be used at once.
        netns.set_sysctl("ipv6/conf/default/accept_dad", "0")?;
    }
    let interface = "veth".to_owned();
    netns.run(|| veth_pair(&interface, peer, router))?;
    for (netns, name, host) in [(router, peer, 1), (&*netns, interface.as_str(), 2)] {
        ip(netns, &format!("addr add 10.9.{number}.{host}/24 dev {name}"))?;
        ip(netns, &format!("link set {name} up"))?;
        ip(netns, &format!("addr add fd09:{number}::{host}/64 dev {name}"))?;
    }
    ip(&netns, "link set lo up")?;
    ip(&netns, &format!("route add default via 10.9.{number}.1"))?;
    ip(&netns, &format!("-6 route add default via fd09:{number}::1"))?;
    let v6 = Ipv6Addr::new(0xfd09, number.into(), 0, 0, 0, 0, 0, 2);
    Ok(Host { netns, interface, v4: Ipv4Addr::new(10, 9, number, 2), v6 })
}

/// Sets the conditions of an interface. On loopback, only TCP segmentation and GRO can be switched off.
pub(crate) fn set(netns: &Netns, interface: &str, conditions: Conditions) -> Result<()> {
    /// `ETHTOOL_STXCSUM`, `ETHTOOL_STSO`, `ETHTOOL_SGSO`, `ETHTOOL_SGRO` of `linux/ethtool.h`.
    const CHECKSUMS: u32 = 0x17;
    const TCP_SEGMENTATION: u32 = 0x1f;
    const SEGMENTATION: u32 = 0x24;
    const RECEIVING: u32 = 0x2c;
    let Conditions { mtu, gso, gro, software_gso, .. } = conditions;
    ip(netns, &format!("link set {interface} mtu {mtu}"))?;
    netns.run(|| {
        if interface != "lo" {
            ethtool(interface, CHECKSUMS, gso.into())?;
            ethtool(interface, SEGMENTATION, gso.into())?;
        }
        ethtool(interface, TCP_SEGMENTATION, gso.into())?;
        ethtool(interface, RECEIVING, gro.into())?;
        set_gso_max_segs(interface, if software_gso { 1 } else { 65_535 })
    })
}

/// Runs busybox's `ip` in a namespace.
pub(crate) fn ip(netns: &Netns, arguments: &str) -> Result<()> {
    netns.run(|| run(Command::new("ip").args(arguments.split(' '))))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {stderr}", output.status);
    Ok(())
}
