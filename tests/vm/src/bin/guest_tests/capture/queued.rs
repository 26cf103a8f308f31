//! Outgoing packets that this host drops at the device: by a filter of `tc`, and by a queue when it takes packets out.
//!
//! The oracle is the same as in [dropped](super::dropped): a capture on the client's interface, which sees what the queue
//! hands to the driver.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use super::dropped::{CONDITIONS, Case, Dropped, SENT, Scene, bulk, connect, datagrams, send};
use super::link::{Conditions, Family, ip};
use super::stage::{Expected, Side, of_client};
use super::wire::Transport;
use crate::helpers::netlink::{Faults, degrade, ipip};
use crate::helpers::tc::{SlowLink, cake, drop_every, slow_down, slow_down_behind, speed_up, take_filters};

/// Longer than what the senders' buffers hold takes on the slow link.
const EMPTY: Duration = Duration::from_secs(1);

/// Datagrams that fill a queue.
const MANY: u64 = 100;

/// Full packets take 6 ms; after 20 ms above the target, packets are dropped.
const LINK: SlowLink = SlowLink { rate: 250_000, largest: 2_000, target_us: 5_000, interval_us: 20_000 };

/// Nothing is dropped for waiting.
const NEVER: SlowLink = SlowLink { target_us: 100_000_000, interval_us: 200_000_000, ..LINK };

/// A filter of `clsact`.
pub(crate) fn by_a_filter_of_tc() -> Result<()> {
    let scene = Scene::new(CONDITIONS)?;
    let client = &scene.network.link.client;
    client.run(|| take_filters(&client.interface))?;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let stage = scene.stage(family);
        stage.pair()?; // so that the router's link address is known
        for (every, port) in [(1, 5001), (1, 5003), (2, 5006), (7, 5005)] {
            client.run(|| drop_every(&client.interface, every, family == Family::V6, port))?;
        }
        let to = |port| SocketAddr::new(stage.ip(Side::Server), port);
        cases.push(Case::new("UDP, tc", datagrams(&stage, to(5001), 300)?, Dropped::Exactly(SENT)));
        cases.push(Case::new("UDP, every second, tc", datagrams(&stage, to(5006), 300)?, Dropped::Exactly(SENT / 2)));
        cases.push(Case::new("TCP, tc", connect(&stage, to(5003))?, Dropped::AtLeast(1)));
        cases.push(Case::new("TCP, a share of it, tc", bulk(&stage, 1_000_000)?, Dropped::AtLeast(1)).or_marked());
    }
    cases.push(Case::new("UDP, tc, without a link header", into_a_tunnel(&scene)?, Dropped::Exactly(SENT)));
    scene.judge(&cases)
}

/// Datagrams that a filter on a tunnel drops, so that none is captured.
fn into_a_tunnel(scene: &Scene) -> Result<Expected> {
    open_tunnel(scene, Ipv4Addr::new(10, 9, 1, 1))?;
    scene.network.link.client.run(|| {
        take_filters(TUNNEL)?;
        drop_every(TUNNEL, 1, false, 5001)
    })?;
    into_the_tunnel(scene)
}

const TUNNEL: &str = "inside";

/// Makes the client's end of a tunnel.
fn open_tunnel(scene: &Scene, to: Ipv4Addr) -> Result<()> {
    let client = &scene.network.link.client;
    let IpAddr::V4(outside) = client.ip(Family::V4) else { bail!("no IPv4 address") };
    client.run(|| ipip(TUNNEL, outside, to))?;
    ip(&client.netns, &format!("addr add 10.6.0.2/24 dev {TUNNEL}"))?;
    ip(&client.netns, &format!("link set {TUNNEL} up"))
}

fn into_the_tunnel(scene: &Scene) -> Result<Expected> {
    let there = SocketAddr::from(([10, 6, 0, 1], 5001));
    let socket = scene.network.link.client.run(|| Ok(UdpSocket::bind(("10.6.0.2", 0))?))?;
    for _ in 0..SENT {
        socket.send_to(&[0; 300], there).ok();
    }
    Ok(of_client(Transport::Udp, socket.local_addr()?, there))
}

/// Datagrams into a tunnel whose driver drops them, because there is no way to its other end. A capture on the tunnel shows
/// them, so they count as sent.
pub(crate) fn by_a_driver() -> Result<()> {
    let mut scene = Scene::new(CONDITIONS)?;
    let netns = Arc::clone(&scene.network.link.client.netns);
    ip(&netns, "route del default")?;
    open_tunnel(&scene, Ipv4Addr::new(203, 0, 113, 9))?;
    scene.capture_instead(TUNNEL)?;
    let flow = into_the_tunnel(&scene)?;
    scene.judge(&[Case::new("UDP, by the driver of a tunnel", flow, Dropped::Exactly(0))])
}

/// Queues that are removed while packets wait in them.
pub(crate) fn with_their_queue() -> Result<()> {
    const SLOW: SlowLink = SlowLink { rate: 10_000, largest: 4_000, ..NEVER };
    /// Some packets overtake others, which has the queue keep a tree.
    const LATE: Faults = Faults { delay_ms: 20_000, reordered: 0.3, ..Faults::NONE };
    const WAITING: u64 = 20;
    let scene = Scene::new(CONDITIONS)?;
    let client = &scene.network.link.client;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let stage = scene.stage(family);
        for what in ["fq_codel", "pfifo_fast", "pfifo", "fq", "netem"] {
            stage.pair()?; // so that the router's link address is known
            client.run(|| match what {
                "fq_codel" => slow_down(&client.interface, SLOW),
                "netem" => degrade(&client.interface, LATE),
                kind => slow_down_behind(&client.interface, SLOW, kind),
            })?;
            let to = SocketAddr::new(stage.ip(Side::Server), 5001);
            let waiting = send(&stage, to, 1_000, WAITING)?;
            client.run(|| speed_up(&client.interface))?;
            cases.push(Case::new(what, waiting, Dropped::AllBut(WAITING)));
        }
    }
    scene.judge(&cases)
}

/// CoDel, which gets packets one by one, also if `tbf` has to cut what TCP sends.
pub(crate) fn by_codel() -> Result<()> {
    behind(slow_down, CONDITIONS, LINK)
}

/// CoDel, with packets so large that the kernel could take them for several.
pub(crate) fn by_codel_when_large() -> Result<()> {
    let conditions = Conditions { mtu: 20_000, far_mtu: 20_000, ..CONDITIONS };
    behind(slow_down, conditions, SlowLink { rate: 800_000, largest: 20_050, target_us: 1_000, interval_us: 2_000 })
}

/// CoDel as `cake` has it.
pub(crate) fn by_cake() -> Result<()> {
    behind(cake, CONDITIONS, LINK)
}

fn behind(put_queue: fn(&str, SlowLink) -> Result<()>, conditions: Conditions, slow: SlowLink) -> Result<()> {
    let scene = Scene::new(conditions)?;
    let client = &scene.network.link.client;
    let length = conditions.mtu as usize - 500;
    // TCP keeps few packets in a queue. Where one of them fills it as CoDel sees it, there may be none to drop.
    let least = if conditions.mtu > 1500 { 0 } else { 1 };
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let stage = scene.stage(family);
        stage.pair()?; // so that the router's link address is known
        client.run(|| put_queue(&client.interface, slow))?;
        let to = SocketAddr::new(stage.ip(Side::Server), 5001);
        cases.push(Case::new("UDP, CoDel", send(&stage, to, length, MANY)?, Dropped::AllBut(MANY)));
        thread::sleep(EMPTY);
        cases.push(Case::new("TCP, CoDel", bulk(&stage, 200 * length)?, Dropped::AtLeast(least)));
        thread::sleep(EMPTY);
        client.run(|| speed_up(&client.interface))?;
    }
    scene.judge(&cases)
}
