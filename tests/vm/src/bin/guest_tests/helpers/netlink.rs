//! Interfaces and queueing disciplines that busybox's `ip` cannot make, over rtnetlink.
//!
//! `struct nlmsghdr`, `ifinfomsg`, `tcmsg` and the numbers are those of `linux/netlink.h`, `rtnetlink.h`, `if_link.h`,
//! `if_tunnel.h`, `veth.h` and `pkt_sched.h`.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use super::netns::Netns;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWQDISC: u16 = 36;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;

const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_GSO_MAX_SEGS: u16 = 40;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_IPTUN_LOCAL: u16 = 2;
const IFLA_IPTUN_REMOTE: u16 = 3;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_GROUP: u16 = 2;
const IFLA_VXLAN_PORT: u16 = 15;

const TC_H_ROOT: u32 = 0xffff_ffff;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_NETEM_REORDER: u16 = 3;

/// Makes a pair of veth devices: `name` in the calling thread's namespace, and `peer` in another one.
pub(crate) fn veth_pair(name: &str, peer: &str, peer_netns: &Netns) -> Result<()> {
    let mut peer_request = Attributes(vec![0; 16]); // struct ifinfomsg
    peer_request.string(IFLA_IFNAME, peer);
    peer_request.put(IFLA_NET_NS_FD, &peer_netns.as_fd().as_raw_fd().to_ne_bytes());
    let mut data = Attributes::default();
    data.put(VETH_INFO_PEER, &peer_request.0);
    let mut info = Attributes::default();
    info.string(IFLA_INFO_KIND, "veth");
    info.put(IFLA_INFO_DATA, &data.0);
    let mut request = Attributes(vec![0; 16]);
    request.string(IFLA_IFNAME, name);
    request.put(IFLA_LINKINFO, &info.0);
    rtnetlink(RTM_NEWLINK, NLM_F_CREATE, &request.0).with_context(|| format!("make the interfaces {name} and {peer}"))
}

/// Removes an interface of the calling thread's namespace, and its peer.
pub(crate) fn remove_link(name: &str) -> Result<()> {
    let mut request = Attributes(vec![0; 16]); // struct ifinfomsg
    request.string(IFLA_IFNAME, name);
    rtnetlink(RTM_DELLINK, 0, &request.0).with_context(|| format!("remove the interface {name}"))
}

/// Makes one end of a VXLAN tunnel (RFC 7348) in the calling thread's namespace.
pub(crate) fn vxlan(name: &str, id: u32, remote: Ipv4Addr, port: u16) -> Result<()> {
    let mut data = Attributes::default();
    data.put(IFLA_VXLAN_ID, &id.to_ne_bytes());
    data.put(IFLA_VXLAN_GROUP, &remote.octets());
    data.put(IFLA_VXLAN_PORT, &port.to_be_bytes());
    let mut info = Attributes::default();
    info.string(IFLA_INFO_KIND, "vxlan");
    info.put(IFLA_INFO_DATA, &data.0);
    let mut request = Attributes(vec![0; 16]);
    request.string(IFLA_IFNAME, name);
    request.put(IFLA_LINKINFO, &info.0);
    rtnetlink(RTM_NEWLINK, NLM_F_CREATE, &request.0).with_context(|| format!("make the tunnel {name}"))
}

/// Makes one end of an IPv4-in-IPv4 tunnel (RFC 2003) in the calling thread's namespace.
pub(crate) fn ipip(name: &str, local: Ipv4Addr, remote: Ipv4Addr) -> Result<()> {
    Command::new("modprobe").arg("ipip").output()?;
    let mut data = Attributes::default();
    data.put(IFLA_IPTUN_LOCAL, &local.octets());
    data.put(IFLA_IPTUN_REMOTE, &remote.octets());
    let mut info = Attributes::default();
    info.string(IFLA_INFO_KIND, "ipip");
    info.put(IFLA_INFO_DATA, &data.0);
    let mut request = Attributes(vec![0; 16]);
    request.string(IFLA_IFNAME, name);
    request.put(IFLA_LINKINFO, &info.0);
    rtnetlink(RTM_NEWLINK, NLM_F_CREATE, &request.0).with_context(|| format!("make the tunnel {name}"))
}

/// The administrative state of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkState {
    Up,
    Down,
}

/// Sets the state of an interface of the calling thread's namespace.
pub(crate) fn set_link_state(interface: &str, state: LinkState) -> Result<()> {
    const IFF_UP: u32 = 1;
    let index = nix::net::if_::if_nametoindex(interface)?;
    let header = [0, index, u32::from(state == LinkState::Up) * IFF_UP, IFF_UP]; // struct ifinfomsg
    let request: Vec<u8> = header.into_iter().flat_map(u32::to_ne_bytes).collect();
    rtnetlink(RTM_NEWLINK, 0, &request).with_context(|| format!("set {interface} {state:?}"))
}

/// Sets the most segments that a GSO packet may have at an interface of the calling thread's namespace.
pub(crate) fn set_gso_max_segs(interface: &str, segments: u32) -> Result<()> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    let header = [0, index, 0, 0]; // struct ifinfomsg: family and type, index, flags, change
    let mut request = Attributes(header.into_iter().flat_map(u32::to_ne_bytes).collect());
    request.put(IFLA_GSO_MAX_SEGS, &segments.to_ne_bytes());
    rtnetlink(RTM_NEWLINK, 0, &request.0).with_context(|| format!("set gso_max_segs of {interface}"))
}

/// Faults of a network, as `tc-netem(8)` makes them. All but the delay are shares of packets, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Faults {
    pub(crate) delay_ms: u32,
    pub(crate) loss: f64,
    pub(crate) duplicates: f64,
    /// Packets sent at once, so that they overtake delayed ones.
    pub(crate) reordered: f64,
}

impl Faults {
    pub(crate) const NONE: Self = Self { delay_ms: 0, loss: 0.0, duplicates: 0.0, reordered: 0.0 };

    pub(crate) fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

/// Puts `netem` on an interface of the calling thread's namespace.
pub(crate) fn set_netem(interface: &str, faults: Faults) -> Result<()> {
    let share = |share: f64| (share * f64::from(u32::MAX)) as u32;
    let ticks = faults.delay_ms * (1_000_000 / 64); // of 64 ns
    let limit = 10_000;
    let qopt = [ticks, limit, share(faults.loss), 0, share(faults.duplicates), 0]; // struct tc_netem_qopt
    let mut options = Attributes(qopt.into_iter().flat_map(u32::to_ne_bytes).collect());
    if faults.reordered > 0.0 {
        options.put(TCA_NETEM_REORDER, &[share(faults.reordered), 0].map(u32::to_ne_bytes).concat());
    }

    let index = nix::net::if_::if_nametoindex(interface)?;
    let header = [0, index, 0, TC_H_ROOT, 0]; // struct tcmsg: family, interface, handle, parent, info
    let mut request = Attributes(header.into_iter().flat_map(u32::to_ne_bytes).collect());
    request.string(TCA_KIND, "netem");
    request.put(TCA_OPTIONS, &options.0);
    rtnetlink(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, &request.0)
        .with_context(|| format!("put netem on {interface}"))
}

/// The body of a netlink message: a fixed part, then attributes.
#[derive(Default)]
pub(super) struct Attributes(pub(super) Vec<u8>);

impl Attributes {
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) {
        let length = 4 + value.len();
        self.0.extend((length as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn string(&mut self, kind: u16, value: &str) {
        self.put(kind, format!("{value}\0").as_bytes());
    }
}

/// Sends an rtnetlink request.
pub(super) fn rtnetlink(kind: u16, flags: u16, body: &[u8]) -> Result<()> {
    Netlink::open(SockProtocol::NetlinkRoute)?.request(kind, flags, body)
}

/// A netlink socket.
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    pub(super) fn open(protocol: SockProtocol) -> Result<Self> {
        Self::bind(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?, 0)
    }

    /// Binds a socket and subscribes it to multicast groups, given as a mask.
    pub(super) fn bind(netlink: OwnedFd, groups: u32) -> Result<Self> {
        bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, groups)).context("bind a netlink socket")?;
        Ok(Self(netlink))
    }

    /// Sends a request and waits for the kernel's acknowledgement.
    pub(super) fn request(&self, kind: u16, flags: u16, body: &[u8]) -> Result<()> {
        let answer = self.exchange(kind, flags | NLM_F_ACK, body)?;
        ensure!(answer.len() >= 20 && answer[4..6] == NLMSG_ERROR.to_ne_bytes(), "unexpected answer {answer:?}");
        match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
            0 => Ok(()),
            error => Err(Errno::from_raw(-error)).context("the kernel's answer"),
        }
    }

    /// Sends a request and returns the message that answers it.
    pub(super) fn get(&self, kind: u16, body: &[u8]) -> Result<Vec<u8>> {
        let answer = self.exchange(kind, 0, body)?;
        ensure!(answer.get(4..6) == Some(&kind.to_ne_bytes()), "unexpected answer {answer:?}");
        Ok(answer)
    }

    fn exchange(&self, kind: u16, flags: u16, body: &[u8]) -> Result<Vec<u8>> {
        let mut message = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        message.extend([0; 8]); // sequence number, port
        message.extend(body);
        send(self.0.as_raw_fd(), &message, MsgFlags::empty()).context("send")?;
        let mut answer = vec![0; 4096];
        let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty()).context("receive")?;
        answer.truncate(length);
        Ok(answer)
    }
}
