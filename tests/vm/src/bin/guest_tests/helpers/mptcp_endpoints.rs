//! Configures MPTCP's in-kernel path manager, as `ip-mptcp(8)` does.
//!
//! The numbers are those of `linux/genetlink.h` and `linux/mptcp_pm.h`.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, SockProtocol};

use super::netlink::{Attributes, Netlink};

/// `GENL_ID_CTRL`, with its command and attributes.
const CONTROLLER: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const MPTCP_PM_NAME: &str = "mptcp_pm";
const MPTCP_PM_CMD_ADD_ADDR: u8 = 1;
const MPTCP_PM_CMD_FLUSH_ADDRS: u8 = 4;
const MPTCP_PM_CMD_SET_LIMITS: u8 = 5;
const MPTCP_PM_ATTR_ADDR: u16 = 1;
const MPTCP_PM_ATTR_RCV_ADD_ADDRS: u16 = 2;
const MPTCP_PM_ATTR_SUBFLOWS: u16 = 3;
const MPTCP_PM_ADDR_ATTR_FAMILY: u16 = 1;
const MPTCP_PM_ADDR_ATTR_ADDR4: u16 = 3;
const MPTCP_PM_ADDR_ATTR_ADDR6: u16 = 4;
const MPTCP_PM_ADDR_ATTR_FLAGS: u16 = 6;
const NLA_F_NESTED: u16 = 0x8000;

/// The use of an address.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Use {
    /// It is announced to the peer (`MPTCP_PM_ADDR_FLAG_SIGNAL`).
    Signal = 1,
    /// Subflows are made from it (`MPTCP_PM_ADDR_FLAG_SUBFLOW`).
    Subflow = 2,
}

/// Lets each connection in the calling thread's namespace have `count` further subflows, and accept as many announced
/// addresses.
pub(crate) fn allow_subflows(count: u32) -> Result<()> {
    let mut limits = Attributes::default();
    limits.put(MPTCP_PM_ATTR_RCV_ADD_ADDRS, &count.to_ne_bytes());
    limits.put(MPTCP_PM_ATTR_SUBFLOWS, &count.to_ne_bytes());
    request(MPTCP_PM_CMD_SET_LIMITS, &limits).context("set MPTCP's limits")
}

/// Removes all endpoints of the calling thread's namespace.
pub(crate) fn remove_endpoints() -> Result<()> {
    request(MPTCP_PM_CMD_FLUSH_ADDRS, &Attributes::default()).context("remove MPTCP's endpoints")
}

/// Adds an endpoint in the calling thread's namespace.
pub(crate) fn add_endpoint(address: IpAddr, used: Use) -> Result<()> {
    let mut endpoint = Attributes::default();
    let (family, kind, octets) = match address {
        IpAddr::V4(ip) => (AddressFamily::Inet, MPTCP_PM_ADDR_ATTR_ADDR4, ip.octets().to_vec()),
        IpAddr::V6(ip) => (AddressFamily::Inet6, MPTCP_PM_ADDR_ATTR_ADDR6, ip.octets().to_vec()),
    };
    endpoint.put(MPTCP_PM_ADDR_ATTR_FAMILY, &(family as u16).to_ne_bytes());
    endpoint.put(kind, &octets);
    endpoint.put(MPTCP_PM_ADDR_ATTR_FLAGS, &(used as u32).to_ne_bytes());
    let mut attributes = Attributes::default();
    attributes.put(MPTCP_PM_ATTR_ADDR | NLA_F_NESTED, &endpoint.0);
    request(MPTCP_PM_CMD_ADD_ADDR, &attributes).with_context(|| format!("add the endpoint {address}"))
}

fn request(command: u8, attributes: &Attributes) -> Result<()> {
    let netlink = Netlink::open(SockProtocol::NetlinkGeneric)?;
    netlink.request(family(&netlink)?, 0, &message(command, attributes))
}

/// The generic netlink family number of the path manager.
fn family(netlink: &Netlink) -> Result<u16> {
    let mut name = Attributes::default();
    name.string(CTRL_ATTR_FAMILY_NAME, MPTCP_PM_NAME);
    let answer = netlink
        .get(CONTROLLER, &message(CTRL_CMD_GETFAMILY, &name))
        .context("look up MPTCP's generic netlink family")?;
    // struct nlmsghdr, struct genlmsghdr
    let mut attributes = answer.get(16 + 4..).context("a short answer")?;
    while let [a, b, c, d, rest @ ..] = attributes {
        let (length, kind) = (u16::from_ne_bytes([*a, *b]), u16::from_ne_bytes([*c, *d]));
        if let (CTRL_ATTR_FAMILY_ID, [low, high, ..]) = (kind, rest) {
            return Ok(u16::from_ne_bytes([*low, *high]));
        }
        let next = usize::from(length).next_multiple_of(4);
        ensure!(next >= 4, "an attribute of {length} bytes");
        attributes = attributes.get(next..).unwrap_or_default();
    }
    anyhow::bail!("the kernel's answer has no family number")
}

/// struct genlmsghdr: command, version, reserved.
fn message(command: u8, attributes: &Attributes) -> Vec<u8> {
    [&[command, 1, 0, 0], attributes.0.as_slice()].concat()
}
