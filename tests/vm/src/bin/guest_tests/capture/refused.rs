//! Outgoing packets that a control group's program, IPsec's policy or a filter at the device refuses, and dropped
//! answers of the kernel that have no socket.
//!
//! The oracle is the same as in [dropped](super::dropped): a capture on the client's interface.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::dropped::{CONDITIONS, Case, Dropped, SENT, Scene, begin, connect, datagrams};
use super::link::Family;
use super::stage::{Pair, Side, Stage, of_server};
use super::wire::Transport;
use crate::helpers::bpf::DropsAll;
use crate::helpers::cgroups::Hierarchy;
use crate::helpers::ipsec::{Policies, Policy};
use crate::helpers::netlink::{Faults, degrade};
use crate::helpers::tc::{drop_every, remove_filters, take_filters};

const UDP: u8 = 17;
const TCP: u8 = 6;

/// Time for TCP to send something more than once.
const RETRIES: Duration = Duration::from_secs(1);

/// By a BPF program of the control group in which the sockets were made.
pub(crate) fn by_a_control_group() -> Result<()> {
    const GROUP: &str = "dropping";
    let scene = Scene::new(CONDITIONS)?;
    let groups = Hierarchy::v2()?;
    let group = groups.make(GROUP)?;
    groups.put(std::process::id(), GROUP)?;
    let cases = [Family::V4, Family::V6].map(|family| in_a_control_group(&scene, family, &group));
    groups.put(std::process::id(), "/")?;
    let cases: Vec<Vec<Case>> = cases.into_iter().collect::<Result<_>>()?;
    scene.judge(&cases.into_iter().flatten().collect::<Vec<_>>())
}

fn in_a_control_group(scene: &Scene, family: Family, group: &Path) -> Result<Vec<Case>> {
    let stage = scene.stage(family);
    let to = |port| SocketAddr::new(stage.ip(Side::Server), port);
    let mut midway = stage.pair()?;
    let drops = DropsAll::of(group)?;
    let mut cases = Vec::new();
    for (what, length) in [("UDP, control group", 300), ("UDP, larger than packets, control group", 4000)] {
        cases.push(Case::new(what, datagrams(&stage, to(5001), length)?, Dropped::Exactly(SENT)));
    }
    cases.push(Case::new("TCP, control group", connect(&stage, to(5003))?, Dropped::AtLeast(1)));
    midway.client.write_all(&[0; 30_000])?;
    thread::sleep(RETRIES);
    drop(drops);
    cases.push(Case::new("TCP, midway, control group", midway.flows[0], Dropped::AtLeast(1)).or_marked());
    end(midway)?;
    Ok(cases)
}

/// By IPsec's policies: one that blocks, and one that nobody has keys for.
pub(crate) fn by_ipsec() -> Result<()> {
    let scene = Scene::new(CONDITIONS)?;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let stage = scene.stage(family);
        let to = |port| SocketAddr::new(stage.ip(Side::Server), port);
        let mut midway = stage.pair()?;
        let policies = scene.network.link.client.run(Policies::new)?;
        policies.set(Policy::Block, UDP, to(5001))?;
        policies.set(Policy::Block, TCP, midway.client.peer_addr()?)?;
        policies.set(Policy::Encrypt, UDP, to(5002))?;
        policies.set(Policy::Encrypt, TCP, to(5004))?;
        // These datagrams never become packets, so there need not be a document.
        let blocked = datagrams(&stage, to(5001), 300)?;
        cases.push(Case::new("UDP, blocked by IPsec", blocked, Dropped::Exactly(0)).or_unreported());
        cases.push(Case::new("UDP, IPsec without keys", datagrams(&stage, to(5002), 300)?, Dropped::Exactly(SENT)));
        cases.push(Case::new("TCP, IPsec without keys", connect(&stage, to(5004))?, Dropped::AtLeast(1)));
        midway.client.write_all(&[0; 3000])?;
        thread::sleep(RETRIES);
        drop(policies);
        cases.push(Case::new("TCP, midway, blocked by IPsec", midway.flows[0], Dropped::AtLeast(0)).or_marked());
        end(midway)?;
    }
    scene.judge(&cases)
}

/// By a packet filter at the device, which kernels have since Linux 5.16. On others this checks nothing, and says so.
pub(crate) fn at_the_device() -> Result<()> {
    if !has_hook()? {
        writeln!(io::stdout(), "dropped_at_the_device checks nothing: this kernel has no hook there")?;
        return Ok(());
    }
    let scene = Scene::new(CONDITIONS)?;
    let device = &scene.network.link.client.interface;
    let rules = format!(
        "table netdev test {{ chain egress {{ type filter hook egress device {device} priority 0;
            udp dport 5001 drop
            tcp dport 5003 drop
        }}; }}"
    );
    scene.filter(&rules)?;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let stage = scene.stage(family);
        stage.pair()?; // so that the router's link address is known
        let to = |port| SocketAddr::new(stage.ip(Side::Server), port);
        cases.push(Case::new("UDP, at the device", datagrams(&stage, to(5001), 300)?, Dropped::Exactly(SENT)));
        cases.push(Case::new("TCP, at the device", connect(&stage, to(5003))?, Dropped::AtLeast(1)));
    }
    scene.judge(&cases)
}

/// Whether the kernel has netfilter's `egress` hook: since that release.
fn has_hook() -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map(str::parse::<u32>);
    let version = numbers.next().transpose()?.zip(numbers.next().transpose()?);
    Ok(version >= Some((5, 16)))
}

/// Resets and answers in TIME_WAIT, which the kernel sends for connections without a socket: by a packet filter.
pub(crate) fn without_a_socket() -> Result<()> {
    let scene = Scene::new(CONDITIONS)?;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let pairs = answering(&scene.stage(family))?;
        scene.filter("table inet test { chain output { type filter hook output priority 0; }; }")?;
        for flow in pairs.iter().map(|pair| pair.flows[0]) {
            scene.filter(&format!("add rule inet test output tcp dport {} drop", flow.remote.port()))?;
        }
        cases.extend(unanswered(pairs, || scene.filter("flush ruleset"))?);
    }
    scene.judge(&cases)
}

/// The same by a filter of `tc`.
pub(crate) fn without_a_socket_by_tc() -> Result<()> {
    let scene = Scene::new(CONDITIONS)?;
    let client = &scene.network.link.client;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let pairs = answering(&scene.stage(family))?;
        client.run(|| {
            take_filters(&client.interface)?;
            let mut ports = pairs.iter().map(|pair| pair.flows[0].remote.port());
            ports.try_for_each(|port| drop_every(&client.interface, 1, family == Family::V6, port))
        })?;
        cases.extend(unanswered(pairs, || client.run(|| remove_filters(&client.interface)))?);
    }
    scene.judge(&cases)
}

/// The same by a queue that drops all, and with SYN cookies.
pub(crate) fn without_a_socket_by_a_queue() -> Result<()> {
    let scene = Scene::new(CONDITIONS)?;
    let client = &scene.network.link.client;
    client.netns.set("ipv4/tcp_syncookies", "2")?; // for every connection
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let stage = scene.stage(family);
        let pairs = answering(&stage)?;
        let listener = client.run(|| Ok(TcpListener::bind((client.ip(family), 0))?))?;
        let here = listener.local_addr()?;
        client.run(|| degrade(&client.interface, Faults { loss: 1.0, ..Faults::NONE }))?;
        let requests = stage.host(Side::Server).run(|| begin(here))?;
        thread::sleep(RETRIES);
        let requested = of_server(Transport::Tcp, requests.local_addr()?, here);
        cases.push(Case::new("TCP, answers with SYN cookies", requested, Dropped::AtLeast(1)));
        let answer_again = || client.run(|| degrade(&client.interface, Faults::NONE));
        cases.extend(unanswered(pairs, answer_again)?);
        // It asks again. Before that it is no flow: over IPv4 nothing says whose.
        let (mut accepted, _) = listener.accept()?;
        drop(requests);
        accepted.read_to_end(&mut Vec::new())?;
    }
    scene.judge(&cases)
}

/// A capture that ends before it has read its copies of what was sent: the kernel frees them like packets that it drops.
pub(crate) fn nothing_by_an_unread_capture() -> Result<()> {
    let scene = Scene::new(CONDITIONS)?;
    let client = &scene.network.link.client;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let [_reset, waiting] = answering(&scene.stage(family))?;
        let every = SockProtocol::EthAll;
        let capture =
            client.run(|| Ok(socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, every)?))?;
        drop(waiting.client);
        // The kernel acknowledges the FIN in TIME_WAIT.
        waiting.server.shutdown(Shutdown::Write)?;
        thread::sleep(RETRIES);
        drop(capture);
        cases.push(Case::new("TCP, an unread capture", waiting.flows[0], Dropped::Exactly(0)));
    }
    scene.judge(&cases)
}

/// Two connections for whose next packets the kernel answers without a socket.
fn answering(stage: &Stage<'_>) -> Result<[Pair; 2]> {
    let (reset, mut waiting) = (stage.pair()?, stage.pair()?);
    // Its FIN arrives and is acknowledged.
    waiting.client.shutdown(Shutdown::Write)?;
    waiting.server.read_to_end(&mut Vec::new())?;
    thread::sleep(Duration::from_millis(200));
    Ok([reset, waiting])
}

/// Has the kernel answer for them while it drops the answers, until it is told otherwise.
fn unanswered([reset, waiting]: [Pair; 2], answer_again: impl FnOnce() -> Result<()>) -> Result<[Case; 2]> {
    let mut server = reset.server;
    server.write_all(&[0; 100])?;
    thread::sleep(Duration::from_millis(200));
    drop(reset.client); // it has data that it did not read
    drop(waiting.client);
    server.write_all(&[0; 100])?;
    waiting.server.shutdown(Shutdown::Write)?;
    thread::sleep(RETRIES);
    answer_again()?;
    ensure!(server.read(&mut [0]).is_err(), "the connection was not reset");
    Ok([
        Case::new("TCP, resets", reset.flows[0], Dropped::AtLeast(2)),
        Case::new("TCP, answers in TIME_WAIT", waiting.flows[0], Dropped::AtLeast(2)),
    ])
}

/// Ends a connection whose packets leave again.
fn end(mut pair: Pair) -> Result<()> {
    pair.client.shutdown(Shutdown::Write)?;
    pair.server.read_to_end(&mut Vec::new())?;
    drop(pair.server);
    pair.client.read_to_end(&mut Vec::new())?;
    Ok(())
}
