//! IPsec policies for outgoing packets.
//!
//! `struct xfrm_userpolicy_info`, `xfrm_user_tmpl` and the numbers are those of `linux/xfrm.h`.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use nix::sys::socket::AddressFamily;

use super::netlink::{Attributes, Netlink};
use super::sys::netlink_socket;

const NETLINK_XFRM: i32 = 6;
const XFRMGRP_ACQUIRE: u32 = 1;
const XFRM_MSG_NEWPOLICY: u16 = 0x13;
const XFRM_MSG_FLUSHPOLICY: u16 = 0x1d;
const XFRMA_TMPL: u16 = 5;
const XFRM_POLICY_OUT: u8 = 1;
const XFRM_INF: u64 = u64::MAX;
const IPPROTO_ESP: u8 = 50;

/// The action of a policy.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Policy {
    /// It blocks them.
    Block,
    /// It requires encryption, but there are no keys.
    Encrypt,
}

/// Policies of a network namespace, removed on drop. The socket subscribes to requests for keys, as a key daemon does,
/// but never answers them.
pub(crate) struct Policies(Netlink);

impl Policies {
    /// For the calling thread's namespace.
    pub(crate) fn new() -> Result<Self> {
        let socket = netlink_socket(NETLINK_XFRM).context("open a socket for policies")?;
        Netlink::bind(socket, XFRMGRP_ACQUIRE).map(Self)
    }

    /// Adds a policy for packets of a protocol to an address and port.
    pub(crate) fn set(&self, policy: Policy, protocol: u8, to: SocketAddr) -> Result<()> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 } as u16;
        let (address, length) = match to.ip() {
            IpAddr::V4(ip) => ([&ip.octets()[..], &[0; 12]].concat(), 32),
            IpAddr::V6(ip) => (ip.octets().to_vec(), 128),
        };
        // struct xfrm_selector
        let mut body = address;
        body.extend([0; 16]);
        body.extend(to.port().to_be_bytes());
        body.extend([0xff, 0xff, 0, 0, 0, 0]);
        body.extend(family.to_ne_bytes());
        body.extend([length, 0, protocol, 0, 0, 0]);
        body.extend([0; 8]);
        // Limits of bytes and packets, no expiry, nothing used; priority and index.
        body.extend([XFRM_INF; 4].map(u64::to_ne_bytes).concat());
        body.extend([0; 32 + 32 + 8]);
        body.extend([XFRM_POLICY_OUT, u8::from(matches!(policy, Policy::Block)), 0, 0]);
        // The structure is padded to the alignment of its 64-bit fields, which is 4 bytes on i686.
        body.resize(body.len().next_multiple_of(align_of::<u64>()), 0);
        let mut request = Attributes(body);
        if matches!(policy, Policy::Encrypt) {
            request.put(XFRMA_TMPL, &template(family));
        }
        self.0.request(XFRM_MSG_NEWPOLICY, 0, &request.0).with_context(|| format!("{policy:?} {to}"))
    }
}

impl Drop for Policies {
    fn drop(&mut self) {
        self.0.request(XFRM_MSG_FLUSHPOLICY, 0, &[]).ok();
    }
}

/// `struct xfrm_user_tmpl`: ESP in transport mode, with any algorithm.
fn template(family: u16) -> Vec<u8> {
    let mut template = vec![0; 20];
    template.extend([IPPROTO_ESP, 0, 0, 0]);
    template.extend(family.to_ne_bytes());
    template.extend([0; 2 + 16 + 4 + 4]);
    template.extend([0xff; 12]);
    template
}
