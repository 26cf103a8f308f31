//! Outgoing packets that this host drops do not count as sent, whatever drops them.
//!
//! The oracle is the capture, which shows what has left the client's interface. It is compared with the client's flow,
//! even if the capture has no packets of it at all.

use std::error::Error;
use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, socket};
use serde_json::Value;

use super::compare::{documents_of, is_lossy};
use super::link::{Conditions, Family, Routed};
use super::sniffer::{Learn, Sniffer};
use super::stage::{Expected, Side, Stage, of_client};
use super::wire::{Count, Key, Transport, Way, Wire};
use crate::helpers::document::{end, number};
use crate::helpers::netlink::{Faults, degrade};
use crate::helpers::nft::nft;
use crate::helpers::patience::until_within;
use crate::helpers::socktrail::Socktrail;

/// The packet filter's rules: for each hook, the ports whose packets it drops.
const RULES: &str = "
    table inet test {
        chain output {
            type filter hook output priority 0;
            udp dport 5001 drop
            udp dport 5002 reject
            tcp dport 5003 drop
            tcp dport 5004 reject with tcp reset
            tcp dport 5005 numgen random mod 8 == 0 drop
            udp dport 5006 numgen inc mod 2 == 0 drop
        }
        chain postrouting {
            type filter hook postrouting priority 0;
            udp dport 5010 drop
            udp dport 5012 drop
        }
    }
    table ip translation {
        chain output {
            type nat hook output priority -100;
            udp dport 5011 dnat to :5012
        }
    }
";

/// How many datagrams a scenario sends.
pub(super) const SENT: u64 = 6;

/// How long the kernel waits for a neighbour before it drops packets to it, and some more.
const NEIGHBOUR: Duration = Duration::from_secs(5);

/// A flow that must be there, and how many of its packets must have been dropped.
pub(super) struct Case {
    what: &'static str,
    flow: Expected,
    dropped: Dropped,
    /// Whether it may be marked `dropped_locally`.
    may_be_marked: bool,
    /// Whether there need not be a document.
    may_be_unreported: bool,
}

/// How many packets were dropped.
pub(super) enum Dropped {
    Exactly(u64),
    AtLeast(u64),
    /// Of so many, all that were not captured; one at least.
    AllBut(u64),
}

impl Case {
    pub(super) fn new(what: &'static str, flow: Expected, dropped: Dropped) -> Self {
        Self { what, flow, dropped, may_be_marked: false, may_be_unreported: false }
    }

    pub(super) fn or_marked(self) -> Self {
        Self { may_be_marked: true, ..self }
    }

    /// For flows that may never send a packet.
    pub(super) fn or_unreported(self) -> Self {
        Self { may_be_unreported: true, ..self }
    }

    /// What differs from the capture, in words.
    fn differences(&self, documents: &[Value], wire: &Wire) -> Result<Vec<String>> {
        let Expected { transport, local, remote, .. } = self.flow;
        let wanted = wire.of(Key { way: Way::Out, transport, from: local, to: remote });
        let of_flow = documents_of(documents, &self.flow);
        if of_flow.is_empty() && self.may_be_unreported && wanted.packets == 0 {
            return Ok(Vec::new());
        }
        let [document] = &of_flow[..] else {
            let is_there = |document: &Value, of: &str| end(document, of) == Some(remote);
            let of_there = documents.iter().filter(|one| is_there(one, "source") || is_there(one, "destination"));
            let of_there: Vec<_> = of_there.map(Value::to_string).collect();
            return Ok(vec![format!(
                "{}: {} documents of {local}; of {remote} {of_there:?}",
                self.what,
                of_flow.len()
            )]);
        };
        let sender = if self.flow.side == Side::Client { "source" } else { "destination" };
        let counted = |what: &str| number(document, &format!("/{sender}/{what}"));
        let said = Count { packets: counted("packets")?, bytes: counted("bytes")? };
        let dropped = document.pointer("/flow/dropped/packets").and_then(Value::as_u64).unwrap_or(0);
        let is_wrong = match self.dropped {
            Dropped::Exactly(count) => dropped != count,
            Dropped::AtLeast(count) => dropped < count,
            Dropped::AllBut(sent) => dropped == 0 || dropped + wanted.packets != sent,
        };
        let mut marks = document["flow"]["inexact"].as_array().into_iter().flatten();
        let is_marked = marks.any(|mark| mark == "dropped_locally");
        let is_told = is_marked && self.may_be_marked;
        let mut differences = Vec::new();
        if said != wanted && !is_told {
            differences.push(format!("{}: {said:?}, not {wanted:?}: {document}", self.what));
        }
        if is_wrong && !is_told {
            differences.push(format!("{}: {dropped} packets were dropped: {document}", self.what));
        }
        if is_marked && !self.may_be_marked {
            differences.push(format!("{}: it is marked: {document}", self.what));
        }
        Ok(differences)
    }
}

/// A network whose client drops packets.
pub(super) struct Scene {
    pub(super) network: Routed,
    watch: Socktrail,
    sniffer: Sniffer,
}

impl Scene {
    pub(super) fn new(conditions: Conditions) -> Result<Self> {
        let network = Routed::new()?;
        network.set(conditions)?;
        let watch = Socktrail::flows(&["--flow-termination-timeout", "5s", "--ring-size-exponent", "10"])?;
        let sniffer = Sniffer::start(&network.link.client, Learn::FromKernel)?;
        Ok(Self { network, watch, sniffer })
    }

    /// Captures what passes another of the client's interfaces, from now on.
    pub(super) fn capture_instead(&mut self, interface: &str) -> Result<()> {
        self.sniffer = Sniffer::inside(&self.network.link.client.netns, interface, Learn::FromKernel)?;
        Ok(())
    }

    pub(super) fn stage(&self, family: Family) -> Stage<'_> {
        Stage { link: &self.network.link, family }
    }

    /// Gives the client a set of rules.
    pub(super) fn filter(&self, rules: &str) -> Result<()> {
        self.network.link.client.run(|| nft(rules))
    }

    /// Fails with all that differs, as [`Lossy`] if documents say that samples were lost.
    pub(super) fn judge(self, cases: &[Case]) -> Result<()> {
        let is_there = |documents: &[Value], case: &Case| !documents_of(documents, &case.flow).is_empty();
        let all_there =
            |documents: &[Value]| cases.iter().all(|case| case.may_be_unreported || is_there(documents, case));
        until_within(Duration::from_secs(60), "all documents", || Ok(all_there(&self.watch.documents()?))).ok();
        let wire = self.sniffer.stop()?;
        let watched = self.watch.stop()?;
        let differences: Vec<_> =
            cases.iter().map(|case| case.differences(&watched.documents, &wire)).collect::<Result<_>>()?;
        let differences = differences.concat();
        if !differences.is_empty() && watched.documents.iter().any(is_lossy) {
            return Err(Lossy(differences).into());
        }
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    }
}

/// What differs where documents say that samples were lost.
#[derive(Debug)]
pub(crate) struct Lossy(Vec<String>);

impl fmt::Display for Lossy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "samples were lost: {}", self.0.join("\n"))
    }
}

impl Error for Lossy {}

/// How often a test is tried whose samples were lost.
const TRIES: usize = 5;

/// Tries a test again if samples were lost: the kernel may miss hits of probes at any time, and documents then say so.
pub(super) fn tried(test: fn() -> Result<()>) -> Result<()> {
    for _ in 1..TRIES {
        match test() {
            Err(error) if error.is::<Lossy>() => {}
            result => return result,
        }
    }
    test()
}

pub(super) const CONDITIONS: Conditions =
    Conditions { mtu: 1500, far_mtu: 1500, merged_out: true, merged_in: true, cut: false, faults: Faults::NONE };

/// By each hook of a packet filter, for both transports and families.
pub(crate) fn by_a_packet_filter() -> Result<()> {
    let scene = Scene::new(CONDITIONS)?;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let stage = scene.stage(family);
        let to = |port| SocketAddr::new(stage.ip(Side::Server), port);
        let mut midway = stage.pair()?;
        scene.filter(RULES)?;
        scene.filter(&format!("add rule inet test output tcp dport {} drop", midway.client.peer_addr()?.port()))?;
        for (what, port, length, dropped) in [
            ("UDP, output drop", 5001, 300, SENT),
            ("UDP, larger than packets, output drop", 5001, 4000, SENT),
            ("UDP, output reject", 5002, 300, SENT),
            ("UDP, every second", 5006, 300, SENT / 2),
            ("UDP, postrouting drop", 5010, 300, SENT),
        ] {
            cases.push(Case::new(what, datagrams(&stage, to(port), length)?, Dropped::Exactly(dropped)));
        }
        if family == Family::V4 {
            let translated = datagrams(&stage, to(5011), 300)?;
            cases.push(Case::new("UDP, translated, postrouting drop", translated, Dropped::Exactly(SENT)).or_marked());
        }
        cases.push(Case::new("TCP, output drop", connect(&stage, to(5003))?, Dropped::AtLeast(1)));
        cases.push(Case::new("TCP, output reject", connect(&stage, to(5004))?, Dropped::AtLeast(1)));
        midway.client.write_all(&[0; 30_000])?;
        thread::sleep(Duration::from_secs(1));
        cases.push(Case::new("TCP, midway", midway.flows[0], Dropped::AtLeast(1)).or_marked());
        scene.filter("flush ruleset")?;
        // It continues when the rules are gone.
        midway.client.shutdown(Shutdown::Write)?;
        midway.server.read_to_end(&mut Vec::new())?;
        drop(midway.server);
        midway.client.read_to_end(&mut Vec::new())?;
    }
    scene.judge(&cases)
}

/// Drops a share of the packets, each of which carries several segments.
pub(crate) fn now_and_then() -> Result<()> {
    let scene = Scene::new(CONDITIONS)?;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let stage = scene.stage(family);
        scene.filter(RULES)?;
        cases.push(Case::new("TCP, a share of it", bulk(&stage, 4_000_000)?, Dropped::AtLeast(1)).or_marked());
        scene.filter("flush ruleset")?;
    }
    scene.judge(&cases)
}

/// Drops after netfilter: by a queue, and because no neighbour answers for an address.
pub(crate) fn by_a_queue_or_for_want_of_a_neighbour() -> Result<()> {
    let scene = Scene::new(CONDITIONS)?;
    let mut cases = Vec::new();
    let nobody: [IpAddr; 2] =
        [Ipv4Addr::new(10, 9, 1, 77).into(), Ipv6Addr::new(0xfd09, 1, 0, 0, 0, 0, 0, 0x77).into()];
    for (family, nobody) in [Family::V4, Family::V6].into_iter().zip(nobody) {
        let stage = scene.stage(family);
        let to = SocketAddr::new(nobody, 5001);
        cases.push(Case::new("UDP, no neighbour", datagrams(&stage, to, 300)?, Dropped::Exactly(SENT)));
    }
    thread::sleep(NEIGHBOUR);
    for family in [Family::V4, Family::V6] {
        scene.stage(family).pair()?; // so that the router's link address is known
    }
    let client = &scene.network.link.client;
    client.run(|| degrade(&client.interface, Faults { loss: 1.0, ..Faults::NONE }))?;
    for family in [Family::V4, Family::V6] {
        let stage = scene.stage(family);
        for (what, length) in [("UDP, queue", 300), ("UDP, larger than packets, queue", 4000)] {
            let to = SocketAddr::new(stage.ip(Side::Server), 5001);
            let dropped = if length > 1500 { 3 * SENT } else { SENT };
            cases.push(Case::new(what, datagrams(&stage, to, length)?, Dropped::Exactly(dropped)).or_marked());
        }
        let to = SocketAddr::new(stage.ip(Side::Server), 5003);
        cases.push(Case::new("TCP, queue", connect(&stage, to)?, Dropped::AtLeast(1)));
    }
    client.run(|| degrade(&client.interface, Faults::NONE))?;
    scene.judge(&cases)
}

/// A client's datagrams, whether or not the kernel takes them.
pub(super) fn datagrams(stage: &Stage<'_>, to: SocketAddr, length: usize) -> Result<Expected> {
    send(stage, to, length, SENT)
}

/// So many datagrams of a client.
pub(super) fn send(stage: &Stage<'_>, to: SocketAddr, length: usize, count: u64) -> Result<Expected> {
    let socket = stage.udp(Side::Client)?;
    for _ in 0..count {
        socket.send_to(&vec![0; length], to).ok();
    }
    Ok(of_client(Transport::Udp, socket.local_addr()?, to))
}

/// A connection that is never established.
pub(super) fn connect(stage: &Stage<'_>, to: SocketAddr) -> Result<Expected> {
    stage.host(Side::Client).run(|| {
        let stream = begin(to)?;
        let here = stream.local_addr()?;
        // Time for a second attempt.
        thread::sleep(Duration::from_millis(1500));
        Ok(of_client(Transport::Tcp, here, to))
    })
}

/// A connection that is on its way.
pub(super) fn begin(to: SocketAddr) -> Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    let begun = nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to));
    ensure!(begun == Err(Errno::EINPROGRESS), "the connect is not under way: {begun:?}");
    Ok(TcpStream::from(socket))
}

/// Sends much over a connection to the port for which rules drop a share of the packets.
pub(super) fn bulk(stage: &Stage<'_>, bytes: usize) -> Result<Expected> {
    let to = SocketAddr::new(stage.ip(Side::Server), 5005);
    let listener = stage.host(Side::Server).run(|| TcpListener::bind(to).context("listen"))?;
    let reader = thread::spawn(move || -> Result<usize> {
        let mut all = Vec::new();
        Ok(listener.accept()?.0.read_to_end(&mut all)?)
    });
    let mut client = stage.connect(to)?;
    let flow = of_client(Transport::Tcp, client.local_addr()?, to);
    client.write_all(&vec![0; bytes])?;
    client.shutdown(Shutdown::Write)?;
    ensure!(reader.join().map_err(|_| anyhow!("the reader panicked"))?? == bytes);
    client.read_to_end(&mut Vec::new())?;
    Ok(flow)
}
