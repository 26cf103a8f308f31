//! Filters that drop packets, and slow queues, as `tc(8)` makes them.
//!
//! The structures and numbers are those of `linux/rtnetlink.h`, `pkt_sched.h`, `pkt_cls.h` and `tc_act/tc_gact.h`.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result};

use super::netlink::{Attributes, rtnetlink};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const TC_H_ROOT: u32 = 0xffff_ffff;
const TC_H_CLSACT: u32 = 0xffff_fff1;
/// The major number of `clsact`.
const CLSACT: u32 = 0xffff_0000;
/// `TC_H_CLSACT` and `TC_H_MIN_EGRESS`.
const EGRESS: u32 = 0xffff_fff3;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_GACT_PARMS: u16 = 2;
const TCA_GACT_PROB: u16 = 3;
const TC_ACT_OK: u32 = 0;
const TC_ACT_SHOT: u32 = 2;
const PGACT_DETERM: u16 = 2;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;
const TCA_FQ_CODEL_TARGET: u16 = 1;
const TCA_FQ_CODEL_INTERVAL: u16 = 3;
const TCA_CAKE_BASE_RATE64: u16 = 2;
const TCA_CAKE_RTT: u16 = 7;
const TCA_CAKE_TARGET: u16 = 8;

/// Puts `clsact` on an interface of the calling thread's namespace, which filters need.
pub(crate) fn add_clsact(interface: &str) -> Result<()> {
    load(&["sch_ingress", "cls_u32", "act_gact"]);
    let mut request = message(interface, CLSACT, TC_H_CLSACT, 0)?;
    request.string(TCA_KIND, "clsact");
    rtnetlink(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &request.0).context("add clsact")
}

/// Removes `clsact` with all filters.
pub(crate) fn remove_clsact(interface: &str) -> Result<()> {
    rtnetlink(RTM_DELQDISC, 0, &message(interface, CLSACT, TC_H_CLSACT, 0)?.0).context("remove clsact")
}

/// Adds a filter that drops every `nth` outgoing packet to a port: all of them if it is 1.
pub(crate) fn drop_every_nth(interface: &str, nth: u16, to: SocketAddr) -> Result<()> {
    let (ipv6, port) = (to.is_ipv6(), to.port());
    let (protocol, ports): (u16, u32) = if ipv6 { (ETH_P_IPV6, 40) } else { (ETH_P_IP, 20) };
    let mut select = vec![1, 0, 1, 0]; // struct tc_u32_sel: TC_U32_TERMINAL, no shift, one key
    select.extend([0; 12]);
    for word in [0x0000_ffff_u32.to_be(), u32::from(port).to_be(), ports, 0] {
        select.extend(word.to_ne_bytes()); // struct tc_u32_key: mask, value, offset, mask of offset
    }
    let mut gact = Attributes::default();
    let verdict = if nth == 1 { TC_ACT_SHOT } else { TC_ACT_OK };
    gact.put(TCA_GACT_PARMS, &[0, 0, verdict, 0, 0].map(u32::to_ne_bytes).concat());
    if nth > 1 {
        let probability = [PGACT_DETERM.to_ne_bytes(), nth.to_ne_bytes()].concat();
        gact.put(TCA_GACT_PROB, &[&probability[..], &TC_ACT_SHOT.to_ne_bytes()].concat());
    }
    let mut action = Attributes::default();
    action.string(TCA_ACT_KIND, "gact");
    action.put(TCA_ACT_OPTIONS, &gact.0);
    let mut actions = Attributes::default();
    actions.put(1, &action.0);
    let mut options = Attributes::default();
    options.put(TCA_U32_SEL, &select);
    options.put(TCA_U32_ACT, &actions.0);
    let priority = if ipv6 { 2 } else { 1 };
    let mut request = message(interface, 0, EGRESS, priority << 16 | u32::from(protocol.to_be()))?;
    request.string(TCA_KIND, "u32");
    request.put(TCA_OPTIONS, &options.0);
    rtnetlink(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &request.0).context("add a filter")
}

/// A rate limit, and the parameters of a CoDel queue (RFC 8289) in front of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlowLink {
    /// In bytes per second.
    pub(crate) rate: u32,
    /// The burst of `tbf` in bytes: it segments larger packets before it queues them.
    pub(crate) burst: u32,
    pub(crate) target_us: u32,
    pub(crate) interval_us: u32,
}

/// Puts `tbf` on an interface, with `fq_codel` as its queue.
pub(crate) fn add_tbf_with_fq_codel(interface: &str, link: SlowLink) -> Result<()> {
    load(&["sch_fq_codel"]);
    tbf(interface, link)?;
    let mut options = Attributes::default();
    options.put(TCA_FQ_CODEL_TARGET, &link.target_us.to_ne_bytes());
    options.put(TCA_FQ_CODEL_INTERVAL, &link.interval_us.to_ne_bytes());
    let mut request = message(interface, 0x2_0000, 0x1_0001, 0)?;
    request.string(TCA_KIND, "fq_codel");
    request.put(TCA_OPTIONS, &options.0);
    rtnetlink(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &request.0).context("add fq_codel")
}

/// Puts `tbf` on an interface, with a queue of another kind.
pub(crate) fn add_tbf_with(interface: &str, link: SlowLink, kind: &str) -> Result<()> {
    load(&[&format!("sch_{kind}")]);
    tbf(interface, link)?;
    let mut request = message(interface, 0x2_0000, 0x1_0001, 0)?;
    request.string(TCA_KIND, kind);
    rtnetlink(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &request.0).with_context(|| format!("add {kind}"))
}

fn tbf(interface: &str, link: SlowLink) -> Result<()> {
    load(&["sch_tbf"]);
    let mut parameters = rate(link.rate);
    parameters.extend(rate(0));
    parameters.extend([1_000_000_u32, 0, 0].into_iter().flat_map(u32::to_ne_bytes)); // limit, buffer, mtu
    let mut options = Attributes::default();
    options.put(TCA_TBF_PARMS, &parameters);
    options.put(TCA_TBF_BURST, &link.burst.to_ne_bytes());
    let mut request = message(interface, 0x1_0000, TC_H_ROOT, 0)?;
    request.string(TCA_KIND, "tbf");
    request.put(TCA_OPTIONS, &options.0);
    rtnetlink(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &request.0).context("add tbf")
}

/// Puts `cake` on an interface. It limits the rate and segments packets by itself.
pub(crate) fn cake(interface: &str, link: SlowLink) -> Result<()> {
    load(&["sch_cake"]);
    let mut options = Attributes::default();
    options.put(TCA_CAKE_BASE_RATE64, &u64::from(link.rate).to_ne_bytes());
    options.put(TCA_CAKE_TARGET, &link.target_us.to_ne_bytes());
    options.put(TCA_CAKE_RTT, &link.interval_us.to_ne_bytes());
    let mut request = message(interface, 0x1_0000, TC_H_ROOT, 0)?;
    request.string(TCA_KIND, "cake");
    request.put(TCA_OPTIONS, &options.0);
    rtnetlink(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &request.0).context("add cake")
}

/// Removes an interface's queue with the packets in it.
pub(crate) fn remove_qdisc(interface: &str) -> Result<()> {
    rtnetlink(RTM_DELQDISC, 0, &message(interface, 0, TC_H_ROOT, 0)?.0).context("remove the queue")
}

/// `struct tc_ratespec`.
fn rate(bytes_per_second: u32) -> Vec<u8> {
    let mut spec = vec![0, TC_LINKLAYER_ETHERNET];
    spec.extend([0; 6]);
    spec.extend(bytes_per_second.to_ne_bytes());
    spec
}

/// `struct tcmsg`.
fn message(interface: &str, handle: u32, parent: u32, info: u32) -> Result<Attributes> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    Ok(Attributes([0, index, handle, parent, info].into_iter().flat_map(u32::to_ne_bytes).collect()))
}

/// Loads modules. Errors are ignored: a module may be built in, and a missing one makes a later request fail.
fn load(modules: &[&str]) {
    for module in modules {
        Command::new("modprobe").arg(module).output().ok();
    }
}
