//! The networks that traffic goes over: loopback, and two hosts with a router between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::helpers::netlink::{Faults, degrade, limit_segments, veth_pair};
use crate::helpers::netns::Netns;
use crate::helpers::sys::ethtool;

/// A host's end of a network.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) netns: Arc<Netns>,
    /// The interface that all of its traffic passes.
    pub(crate) interface: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Host {
    /// Gives its interface another address.
    pub(crate) fn add_address(&self, address: IpAddr) -> Result<()> {
        let length = if address.is_ipv4() { 24 } else { 64 };
        ip(&self.netns, &format!("addr add {address}/{length} dev {}", self.interface))
    }

    /// Does something on this host.
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

    /// Brings its interface into a state. Faults are the network's between hosts.
    pub(crate) fn set(&self, conditions: Conditions) -> Result<()> {
        set(&self.netns, &self.interface, conditions)
    }
}

/// The state of a network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conditions {
    /// The largest packet.
    pub(crate) mtu: u32,
    /// The same behind the router, where the server is.
    pub(crate) far_mtu: u32,
    /// Whether interfaces take several packets as one.
    pub(crate) merged_out: bool,
    /// Whether interfaces give several packets as one, that came one by one.
    pub(crate) merged_in: bool,
    /// Whether what is several packets is cut before it reaches an interface that would take it as one.
    pub(crate) cut: bool,
    pub(crate) faults: Faults,
}

/// An Internet Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// A client's and a server's host, which may be one.
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
            router.set(setting, "1")?;
        }
        let client = host(&router, TO_CLIENT, 1)?;
        let server = host(&router, TO_SERVER, 2)?;
        Ok(Self { link: Link { client, server }, router })
    }

    /// From now on the router takes packets and gives them to nobody.
    pub(crate) fn stop_forwarding(&self) -> Result<()> {
        self.router.set("ipv4/ip_forward", "0")
    }

    /// Brings all interfaces into a state.
    pub(crate) fn set(&self, conditions: Conditions) -> Result<()> {
        let far = Conditions { mtu: conditions.far_mtu, ..conditions };
        self.link.client.set(conditions)?;
        self.link.server.set(far)?;
        for (interface, conditions) in [(TO_CLIENT, conditions), (TO_SERVER, far)] {
            set(&self.router, interface, conditions)?;
            self.router.run(|| degrade(interface, conditions.faults))?;
        }
        Ok(())
    }
}

/// A new host, behind the router's interface `peer`, on network `number`.
fn host(router: &Netns, peer: &str, number: u8) -> Result<Host> {
    let netns = Arc::new(Netns::new()?);
    for netns in [&*netns, router] {
        // So that addresses can be used at once.
        netns.set("ipv6/conf/default/accept_dad", "0")?;
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

/// Loopback can only be kept from segmentation, pairs of interfaces from computing checksums too.
pub(crate) fn set(netns: &Netns, interface: &str, conditions: Conditions) -> Result<()> {
    /// `ETHTOOL_STXCSUM`, `ETHTOOL_STSO`, `ETHTOOL_SGSO`, `ETHTOOL_SGRO` of `linux/ethtool.h`.
    const CHECKSUMS: u32 = 0x17;
    const TCP_SEGMENTATION: u32 = 0x1f;
    const SEGMENTATION: u32 = 0x24;
    const RECEIVING: u32 = 0x2c;
    let Conditions { mtu, merged_out, merged_in, cut, .. } = conditions;
    ip(netns, &format!("link set {interface} mtu {mtu}"))?;
    netns.run(|| {
        if interface != "lo" {
            ethtool(interface, CHECKSUMS, merged_out.into())?;
            ethtool(interface, SEGMENTATION, merged_out.into())?;
        }
        ethtool(interface, TCP_SEGMENTATION, merged_out.into())?;
        ethtool(interface, RECEIVING, merged_in.into())?;
        limit_segments(interface, if cut { 1 } else { 65_535 })
    })
}

/// busybox's `ip` in a namespace.
pub(crate) fn ip(netns: &Netns, arguments: &str) -> Result<()> {
    netns.run(|| run(Command::new("ip").args(arguments.split(' '))))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {said}", output.status);
    Ok(())
}
