//! Outgoing packets that this host drops at the device: by a `tc` filter, and by a queue when it dequeues packets.
//!
//! As in [dropped](super::dropped), a capture on the client's interface shows which packets were sent: those that the
//! queue passes to the driver.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use super::dropped::{DropCase, DropTest, Dropped, SENT, bulk, connect, datagrams, send};
use super::link::{Conditions, Family, ip};
use super::phases::OFFLOADED;
use super::testbed::{ExpectedFlow, Side, of_client};
use super::wire::Transport;
use crate::helpers::netlink::{Faults, ipip, set_netem};
use crate::helpers::tc::{
    SlowLink, add_clsact, add_tbf_with, add_tbf_with_fq_codel, cake, drop_every_nth, remove_qdisc,
};

/// Longer than the slow link needs to send what is in the senders' buffers.
const DRAIN: Duration = Duration::from_secs(1);

/// The number of datagrams that fill a queue.
const MANY: u64 = 100;

/// A full packet takes 6 ms. CoDel drops packets after 20 ms above the target.
const LINK: SlowLink = SlowLink { rate: 250_000, burst: 2_000, target_us: 5_000, interval_us: 20_000 };

/// The target is so high that CoDel drops nothing.
const NO_DROPS: SlowLink = SlowLink { target_us: 100_000_000, interval_us: 200_000_000, ..LINK };

/// So slow that packets are still queued when the queue is removed.
const SLOW: SlowLink = SlowLink { rate: 10_000, burst: 4_000, ..NO_DROPS };
/// The number of packets in a queue that is removed.
const WAITING: u64 = 20;

/// A `tc` filter on egress drops packets.
pub(crate) fn by_a_filter_of_tc() -> Result<()> {
    let test = DropTest::new(OFFLOADED)?;
    let client = &test.network.link.client;
    client.run(|| add_clsact(&client.interface))?;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let testbed = test.testbed(family);
        testbed.pair()?; // so that the router's link address is known
        for (every, port) in [(1, 5001), (1, 5003), (2, 5006), (7, 5005)] {
            client.run(|| drop_every_nth(&client.interface, every, SocketAddr::new(testbed.ip(Side::Server), port)))?;
        }
        let to = |port| SocketAddr::new(testbed.ip(Side::Server), port);
        cases.push(DropCase::new("UDP, tc", datagrams(&testbed, to(5001), 300)?, Dropped::Exactly(SENT)));
        cases.push(DropCase::new(
            "UDP, every second, tc",
            datagrams(&testbed, to(5006), 300)?,
            Dropped::Exactly(SENT / 2),
        ));
        cases.push(DropCase::new("TCP, tc", connect(&testbed, to(5003))?, Dropped::AtLeast(1)));
        cases
            .push(DropCase::new("TCP, a share of it, tc", bulk(&testbed, 1_000_000)?, Dropped::AtLeast(1)).or_marked());
    }
    cases.push(DropCase::new(
        "UDP, tc, without a link header",
        send_into_filtered_tunnel(&test)?,
        Dropped::Exactly(SENT),
    ));
    test.judge(&cases)
}

/// Sends datagrams that a filter on a tunnel drops. None of them leaves the host.
fn send_into_filtered_tunnel(test: &DropTest) -> Result<ExpectedFlow> {
    open_tunnel(test, Ipv4Addr::new(10, 9, 1, 1))?;
    test.network.link.client.run(|| {
        add_clsact(TUNNEL)?;
        drop_every_nth(TUNNEL, 1, ([10, 6, 0, 1], 5001).into())
    })?;
    send_into_tunnel(test)
}

const TUNNEL: &str = "inside";

/// Makes the client's end of an IPv4-in-IPv4 tunnel.
fn open_tunnel(test: &DropTest, to: Ipv4Addr) -> Result<()> {
    let client = &test.network.link.client;
    let IpAddr::V4(outside) = client.ip(Family::V4) else { bail!("no IPv4 address") };
    client.run(|| ipip(TUNNEL, outside, to))?;
    ip(&client.netns, &format!("addr add 10.6.0.2/24 dev {TUNNEL}"))?;
    ip(&client.netns, &format!("link set {TUNNEL} up"))
}

fn send_into_tunnel(test: &DropTest) -> Result<ExpectedFlow> {
    let there = SocketAddr::from(([10, 6, 0, 1], 5001));
    let socket = test.network.link.client.run(|| Ok(UdpSocket::bind(("10.6.0.2", 0))?))?;
    for _ in 0..SENT {
        socket.send_to(&[0; 300], there).ok();
    }
    Ok(of_client(Transport::Udp, socket.local_addr()?, there))
}

/// A tunnel's driver drops datagrams, because there is no route to the tunnel's other end. A capture on the tunnel shows
/// the datagrams, so they count as sent.
pub(crate) fn by_a_driver() -> Result<()> {
    let (test, flow) = send_into_tunnel_without_route(&[])?;
    test.judge(&[DropCase::new("UDP, by the driver of a tunnel", flow, Dropped::Exactly(0))])
}

fn send_into_tunnel_without_route(options: &[&str]) -> Result<(DropTest, ExpectedFlow)> {
    let mut test = DropTest::with(OFFLOADED, options)?;
    let netns = Arc::clone(&test.network.link.client.netns);
    ip(&netns, "route del default")?;
    open_tunnel(&test, Ipv4Addr::new(203, 0, 113, 9))?;
    test.capture_instead(TUNNEL)?;
    let flow = send_into_tunnel(&test)?;
    Ok((test, flow))
}

/// A queue is removed, with the packets in it.
pub(crate) fn with_their_queue() -> Result<()> {
    /// `netem` keeps reordered packets in a tree.
    const DELAYED: Faults = Faults { delay_ms: 20_000, reordered: 0.3, ..Faults::NONE };
    let test = DropTest::new(OFFLOADED)?;
    let client = &test.network.link.client;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let testbed = test.testbed(family);
        for what in ["fq_codel", "pfifo_fast", "pfifo", "fq", "netem"] {
            testbed.pair()?; // so that the router's link address is known
            client.run(|| match what {
                "fq_codel" => add_tbf_with_fq_codel(&client.interface, SLOW),
                "netem" => set_netem(&client.interface, DELAYED),
                kind => add_tbf_with(&client.interface, SLOW, kind),
            })?;
            let to = SocketAddr::new(testbed.ip(Side::Server), 5001);
            let waiting = send(&testbed, to, 1_000, WAITING)?;
            client.run(|| remove_qdisc(&client.interface))?;
            cases.push(DropCase::new(what, waiting, Dropped::AllBut(WAITING)));
        }
    }
    test.judge(&cases)
}

/// The monitor does not know the function that drops the packets of a removed queue. Drops of a driver, a filter and a
/// removed queue then look the same.
pub(crate) fn with_unknown_drop_functions() -> Result<()> {
    const HIDDEN: &[&str] = &["--mask", "rtnl_kfree_skbs"];
    let test = DropTest::with(OFFLOADED, HIDDEN)?;
    let client = &test.network.link.client;
    client.run(|| add_clsact(&client.interface))?;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let testbed = test.testbed(family);
        let there = |port| SocketAddr::new(testbed.ip(Side::Server), port);
        testbed.pair()?; // so that the router's link address is known
        client.run(|| add_tbf_with(&client.interface, SLOW, "pfifo_fast"))?;
        let waiting = send(&testbed, there(5001), 1_000, WAITING)?;
        client.run(|| remove_qdisc(&client.interface))?;
        cases.push(DropCase::new("a removed queue", waiting, Dropped::AllBut(WAITING)).or_marked());
        client.run(|| drop_every_nth(&client.interface, 1, there(5003)))?;
        cases.push(DropCase::new("tc", datagrams(&testbed, there(5003), 300)?, Dropped::Exactly(SENT)).or_marked());
        cases.push(DropCase::new("nothing", datagrams(&testbed, there(5004), 300)?, Dropped::Exactly(0)));
    }
    test.judge(&cases)?;
    let (test, flow) = send_into_tunnel_without_route(HIDDEN)?;
    test.judge(&[DropCase::new("the driver of a tunnel", flow, Dropped::Exactly(0)).or_marked()])
}

/// CoDel drops packets behind `tbf`, which segments GSO packets.
pub(crate) fn by_codel() -> Result<()> {
    with_queue(add_tbf_with_fq_codel, OFFLOADED, LINK)
}

/// CoDel drops packets that are as large as GSO packets.
pub(crate) fn by_codel_when_large() -> Result<()> {
    let conditions = Conditions { mtu: 20_000, far_mtu: 20_000, ..OFFLOADED };
    with_queue(
        add_tbf_with_fq_codel,
        conditions,
        SlowLink { rate: 800_000, burst: 20_050, target_us: 1_000, interval_us: 2_000 },
    )
}

/// The CoDel of `cake` drops packets.
pub(crate) fn by_cake() -> Result<()> {
    with_queue(cake, OFFLOADED, LINK)
}

fn with_queue(add_queue: fn(&str, SlowLink) -> Result<()>, conditions: Conditions, slow: SlowLink) -> Result<()> {
    let test = DropTest::new(conditions)?;
    let client = &test.network.link.client;
    let length = conditions.mtu as usize - 500;
    // TCP keeps few packets in a queue. CoDel may then have none to drop if packets are large.
    let least = if conditions.mtu > 1500 { 0 } else { 1 };
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let testbed = test.testbed(family);
        testbed.pair()?; // so that the router's link address is known
        client.run(|| add_queue(&client.interface, slow))?;
        let to = SocketAddr::new(testbed.ip(Side::Server), 5001);
        cases.push(DropCase::new("UDP, CoDel", send(&testbed, to, length, MANY)?, Dropped::AllBut(MANY)));
        thread::sleep(DRAIN);
        let bulk = DropCase::new("TCP, CoDel", bulk(&testbed, 200 * length)?, Dropped::AtLeast(least));
        // CoDel may drop a GSO packet, whose number of segments is an estimate.
        cases.push(if conditions.mtu > 1500 { bulk.or_marked() } else { bulk });
        thread::sleep(DRAIN);
        client.run(|| remove_qdisc(&client.interface))?;
    }
    test.judge(&cases)
}
