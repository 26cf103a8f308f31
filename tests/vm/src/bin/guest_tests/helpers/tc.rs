//! What `tc(8)` does: filters that drop, and slow queues.
//!
//! The structures and numbers are those of `linux/rtnetlink.h`, `pkt_sched.h`, `pkt_cls.h` and `tc_act/tc_gact.h`.

use std::process::Command;

use anyhow::{Context, Result};

use super::netlink::{Attributes, ask};

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

/// Has an interface of the calling thread's namespace take filters.
pub(crate) fn take_filters(interface: &str) -> Result<()> {
    load(&["sch_ingress", "cls_u32", "act_gact"]);
    let mut request = message(interface, CLSACT, TC_H_CLSACT, 0)?;
    request.string(TCA_KIND, "clsact");
    ask(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &request.0).context("add clsact")
}

/// Takes its filters away.
pub(crate) fn remove_filters(interface: &str) -> Result<()> {
    ask(RTM_DELQDISC, 0, &message(interface, CLSACT, TC_H_CLSACT, 0)?.0).context("take clsact away")
}

/// Has it drop of what leaves for a port every packet of this number: all if it is 1.
pub(crate) fn drop_every(interface: &str, number: u16, ipv6: bool, port: u16) -> Result<()> {
    let (protocol, ports): (u16, u32) = if ipv6 { (ETH_P_IPV6, 40) } else { (ETH_P_IP, 20) };
    let mut select = vec![1, 0, 1, 0]; // struct tc_u32_sel: TC_U32_TERMINAL, no shift, one key
    select.extend([0; 12]);
    for word in [0x0000_ffff_u32.to_be(), u32::from(port).to_be(), ports, 0] {
        select.extend(word.to_ne_bytes()); // struct tc_u32_key: mask, value, offset, mask of offset
    }
    let mut gact = Attributes::default();
    let verdict = if number == 1 { TC_ACT_SHOT } else { TC_ACT_OK };
    gact.put(TCA_GACT_PARMS, &[0, 0, verdict, 0, 0].map(u32::to_ne_bytes).concat());
    if number > 1 {
        let often = [PGACT_DETERM.to_ne_bytes(), number.to_ne_bytes()].concat();
        gact.put(TCA_GACT_PROB, &[&often[..], &TC_ACT_SHOT.to_ne_bytes()].concat());
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
    ask(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &request.0).context("add a filter")
}

/// A slow link behind a queue that drops what waits too long in it, when it takes the next packet out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlowLink {
    /// Bytes a second.
    pub(crate) rate: u32,
    /// Larger packets are cut into segments before they are queued, in bytes.
    pub(crate) largest: u32,
    pub(crate) target_us: u32,
    pub(crate) interval_us: u32,
}

/// Puts `tbf` on an interface, and `fq_codel` into it.
pub(crate) fn slow_down(interface: &str, link: SlowLink) -> Result<()> {
    load(&["sch_fq_codel"]);
    tbf(interface, link)?;
    let mut options = Attributes::default();
    options.put(TCA_FQ_CODEL_TARGET, &link.target_us.to_ne_bytes());
    options.put(TCA_FQ_CODEL_INTERVAL, &link.interval_us.to_ne_bytes());
    let mut request = message(interface, 0x2_0000, 0x1_0001, 0)?;
    request.string(TCA_KIND, "fq_codel");
    request.put(TCA_OPTIONS, &options.0);
    ask(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &request.0).context("add fq_codel")
}

/// Puts `tbf` on an interface, and a queue of another kind into it.
pub(crate) fn slow_down_behind(interface: &str, link: SlowLink, kind: &str) -> Result<()> {
    load(&[&format!("sch_{kind}")]);
    tbf(interface, link)?;
    let mut request = message(interface, 0x2_0000, 0x1_0001, 0)?;
    request.string(TCA_KIND, kind);
    ask(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &request.0).with_context(|| format!("add {kind}"))
}

fn tbf(interface: &str, link: SlowLink) -> Result<()> {
    load(&["sch_tbf"]);
    let mut parameters = rate(link.rate);
    parameters.extend(rate(0));
    parameters.extend([1_000_000_u32, 0, 0].into_iter().flat_map(u32::to_ne_bytes)); // limit, buffer, mtu
    let mut options = Attributes::default();
    options.put(TCA_TBF_PARMS, &parameters);
    options.put(TCA_TBF_BURST, &link.largest.to_ne_bytes());
    let mut request = message(interface, 0x1_0000, TC_H_ROOT, 0)?;
    request.string(TCA_KIND, "tbf");
    request.put(TCA_OPTIONS, &options.0);
    ask(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &request.0).context("add tbf")
}

/// Puts `cake` on an interface, which cuts what TCP sends into segments by itself.
pub(crate) fn cake(interface: &str, link: SlowLink) -> Result<()> {
    load(&["sch_cake"]);
    let mut options = Attributes::default();
    options.put(TCA_CAKE_BASE_RATE64, &u64::from(link.rate).to_ne_bytes());
    options.put(TCA_CAKE_TARGET, &link.target_us.to_ne_bytes());
    options.put(TCA_CAKE_RTT, &link.interval_us.to_ne_bytes());
    let mut request = message(interface, 0x1_0000, TC_H_ROOT, 0)?;
    request.string(TCA_KIND, "cake");
    request.put(TCA_OPTIONS, &options.0);
    ask(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &request.0).context("add cake")
}

/// Takes an interface's queue away, with what waits in it.
pub(crate) fn speed_up(interface: &str) -> Result<()> {
    ask(RTM_DELQDISC, 0, &message(interface, 0, TC_H_ROOT, 0)?.0).context("take the queue away")
}

/// `struct tc_ratespec`.
fn rate(bytes_a_second: u32) -> Vec<u8> {
    let mut spec = vec![0, TC_LINKLAYER_ETHERNET];
    spec.extend([0; 6]);
    spec.extend(bytes_a_second.to_ne_bytes());
    spec
}

/// `struct tcmsg`.
fn message(interface: &str, handle: u32, parent: u32, info: u32) -> Result<Attributes> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    Ok(Attributes([0, index, handle, parent, info].into_iter().flat_map(u32::to_ne_bytes).collect()))
}

/// Loads modules. Those that are built in cannot be loaded; those that are missing are missed later.
fn load(modules: &[&str]) {
    for module in modules {
        Command::new("modprobe").arg(module).output().ok();
    }
}
