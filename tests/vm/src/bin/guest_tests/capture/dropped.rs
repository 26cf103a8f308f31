//! Outgoing packets that this host drops do not count as sent, whatever drops them.
//!
//! A capture on the client's interface shows which packets were sent. The client's flow must have these packets, even
//! if there are none.

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
use super::phases::OFFLOADED;
use super::sniffer::{SegmentInfo, Sniffer};
use super::testbed::{ExpectedFlow, Pair, Side, Testbed, of_client};
use super::wire::{Count, Direction, Key, Transport, Wire};
use crate::helpers::document::{endpoint, number};
use crate::helpers::netlink::{Faults, set_netem};
use crate::helpers::nft::nft;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::wait::wait_until_within;

/// nftables rules: each hook drops the packets to some ports.
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

/// The number of datagrams that a case sends.
pub(super) const SENT: u64 = 6;

/// Longer than the kernel waits for a neighbour's answer before it drops packets to it.
const NEIGHBOUR_TIMEOUT: Duration = Duration::from_secs(5);

/// A flow, and the number of its packets that the test expects to be dropped.
pub(super) struct DropCase {
    what: &'static str,
    flow: ExpectedFlow,
    dropped: Dropped,
    /// Whether its document may be marked `dropped_locally`.
    may_be_marked: bool,
    /// Whether its document may be missing.
    may_be_unreported: bool,
}

/// The expected number of dropped packets.
pub(super) enum Dropped {
    Exactly(u64),
    AtLeast(u64),
    /// All of this many packets that the capture does not have; at least one.
    AllBut(u64),
}

impl DropCase {
    pub(super) fn new(what: &'static str, flow: ExpectedFlow, dropped: Dropped) -> Self {
        Self { what, flow, dropped, may_be_marked: false, may_be_unreported: false }
    }

    /// For a flow whose document may be marked `dropped_locally` instead of being exact.
    pub(super) fn or_marked(self) -> Self {
        Self { may_be_marked: true, ..self }
    }

    /// For a flow that may never send a packet.
    pub(super) fn or_unreported(self) -> Self {
        Self { may_be_unreported: true, ..self }
    }

    /// The differences between the document and the capture.
    fn differences(&self, documents: &[Value], wire: &Wire) -> Result<Vec<String>> {
        let ExpectedFlow { transport, local, remote, .. } = self.flow;
        let captured = wire.of(Key { direction: Direction::Outbound, transport, from: local, to: remote });
        let of_flow = documents_of(documents, &self.flow);
        if of_flow.is_empty() && self.may_be_unreported && captured.packets == 0 {
            return Ok(Vec::new());
        }
        let [document] = &of_flow[..] else {
            let is_remote = |document: &Value, of: &str| endpoint(document, of) == Some(remote);
            let of_remote = documents.iter().filter(|one| is_remote(one, "source") || is_remote(one, "destination"));
            let of_remote: Vec<_> = of_remote.map(Value::to_string).collect();
            return Ok(vec![format!(
                "{}: {} documents of {local} instead of one; documents of {remote}: {of_remote:?}",
                self.what,
                of_flow.len()
            )]);
        };
        let sender = if self.flow.side == Side::Client { "source" } else { "destination" };
        let counted = |what: &str| number(document, &format!("/{sender}/{what}"));
        let reported = Count { packets: counted("packets")?, bytes: counted("bytes")? };
        let dropped = document.pointer("/flow/dropped/packets").and_then(Value::as_u64).unwrap_or(0);
        let is_wrong = match self.dropped {
            Dropped::Exactly(count) => dropped != count,
            Dropped::AtLeast(count) => dropped < count,
            Dropped::AllBut(sent) => dropped == 0 || dropped + captured.packets != sent,
        };
        let mut marks = document["flow"]["inexact"].as_array().into_iter().flatten();
        let is_marked = marks.any(|mark| mark == "dropped_locally");
        let is_excused = is_marked && self.may_be_marked;
        let mut differences = Vec::new();
        if reported != captured && !is_excused {
            differences.push(format!("{}: {reported:?}, not {captured:?}: {document}", self.what));
        }
        if is_wrong && !is_excused {
            differences.push(format!("{}: the document has {dropped} dropped packets: {document}", self.what));
        }
        if is_marked && !self.may_be_marked {
            differences.push(format!("{}: marked dropped_locally: {document}", self.what));
        }
        Ok(differences)
    }
}

/// A network whose client drops packets, a monitor, and a capture on the client's interface.
pub(super) struct DropTest {
    pub(super) network: Routed,
    monitor: Socktrail,
    sniffer: Sniffer,
}

impl DropTest {
    pub(super) fn new(conditions: Conditions) -> Result<Self> {
        Self::with(conditions, &[])
    }

    /// Starts the monitor with more options.
    pub(super) fn with(conditions: Conditions, options: &[&str]) -> Result<Self> {
        let network = Routed::new()?;
        network.set(conditions)?;
        let options = [&["--flow-termination-timeout", "5s", "--ring-size-exponent", "10"], options].concat();
        let monitor = Socktrail::flows(&options)?;
        let sniffer = Sniffer::start(&network.link.client, SegmentInfo::FromKernel)?;
        Ok(Self { network, monitor, sniffer })
    }

    /// Captures on another interface of the client instead.
    pub(super) fn capture_instead(&mut self, interface: &str) -> Result<()> {
        self.sniffer = Sniffer::inside(&self.network.link.client.netns, interface, SegmentInfo::FromKernel)?;
        Ok(())
    }

    pub(super) fn testbed(&self, family: Family) -> Testbed<'_> {
        Testbed { link: &self.network.link, family }
    }

    /// Loads nftables rules on the client.
    pub(super) fn filter(&self, rules: &str) -> Result<()> {
        self.network.link.client.run(|| nft(rules))
    }

    /// Fails with all differences; with [`Lossy`] if documents are marked as lossy.
    pub(super) fn judge(self, cases: &[DropCase]) -> Result<()> {
        let is_there = |documents: &[Value], case: &DropCase| !documents_of(documents, &case.flow).is_empty();
        let all_there =
            |documents: &[Value]| cases.iter().all(|case| case.may_be_unreported || is_there(documents, case));
        wait_until_within(Duration::from_secs(60), "all documents", || Ok(all_there(&self.monitor.documents()?))).ok();
        let wire = self.sniffer.stop()?;
        let output = self.monitor.stop()?;
        let differences: Vec<_> =
            cases.iter().map(|case| case.differences(&output.documents, &wire)).collect::<Result<_>>()?;
        let differences = differences.concat();
        if !differences.is_empty() && output.documents.iter().any(is_lossy) {
            return Err(Lossy(differences).into());
        }
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    }
}

/// The differences of documents that are marked as lossy.
#[derive(Debug)]
pub(crate) struct Lossy(Vec<String>);

impl fmt::Display for Lossy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "samples were lost: {}", self.0.join("\n"))
    }
}

impl Error for Lossy {}

/// The maximum number of times that a test runs if samples are lost.
const ATTEMPTS: usize = 5;

/// Repeats a test if samples were lost: probes may miss hits at any time, and documents are then marked.
pub(super) fn retry_if_lossy(test: fn() -> Result<()>) -> Result<()> {
    for _ in 1..ATTEMPTS {
        match test() {
            Err(error) if error.is::<Lossy>() => {}
            result => return result,
        }
    }
    test()
}

/// nftables drops packets in each hook, of both transports and IP versions.
pub(crate) fn by_a_packet_filter() -> Result<()> {
    let test = DropTest::new(OFFLOADED)?;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let testbed = test.testbed(family);
        let to = |port| SocketAddr::new(testbed.ip(Side::Server), port);
        let mut established = testbed.pair()?;
        test.filter(RULES)?;
        test.filter(&format!("add rule inet test output tcp dport {} drop", established.client.peer_addr()?.port()))?;
        for (what, port, length, dropped) in [
            ("UDP, output drop", 5001, 300, SENT),
            ("UDP, larger than packets, output drop", 5001, 4000, SENT),
            ("UDP, output reject", 5002, 300, SENT),
            ("UDP, every second", 5006, 300, SENT / 2),
            ("UDP, postrouting drop", 5010, 300, SENT),
        ] {
            cases.push(DropCase::new(what, datagrams(&testbed, to(port), length)?, Dropped::Exactly(dropped)));
        }
        if family == Family::V4 {
            let translated = datagrams(&testbed, to(5011), 300)?;
            cases.push(
                DropCase::new("UDP, translated, postrouting drop", translated, Dropped::Exactly(SENT)).or_marked(),
            );
        }
        cases.push(DropCase::new("TCP, output drop", connect(&testbed, to(5003))?, Dropped::AtLeast(1)));
        cases.push(DropCase::new("TCP, output reject", connect(&testbed, to(5004))?, Dropped::AtLeast(1)));
        established.client.write_all(&[0; 30_000])?;
        thread::sleep(Duration::from_secs(1));
        cases.push(DropCase::new("TCP, established", established.flows[0], Dropped::AtLeast(1)).or_marked());
        test.filter("flush ruleset")?;
        // The connection continues without the rules.
        close(established)?;
    }
    test.judge(&cases)
}

/// nftables drops a share of the packets, most of which are GSO packets.
pub(crate) fn now_and_then() -> Result<()> {
    let test = DropTest::new(OFFLOADED)?;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let testbed = test.testbed(family);
        test.filter(RULES)?;
        cases.push(DropCase::new("TCP, a share of it", bulk(&testbed, 4_000_000)?, Dropped::AtLeast(1)).or_marked());
        test.filter("flush ruleset")?;
    }
    test.judge(&cases)
}

/// The kernel drops packets after netfilter: in a queue, and because no neighbour has the address.
pub(crate) fn by_a_queue_or_without_a_neighbour() -> Result<()> {
    let test = DropTest::new(OFFLOADED)?;
    let mut cases = Vec::new();
    let absent: [IpAddr; 2] =
        [Ipv4Addr::new(10, 9, 1, 77).into(), Ipv6Addr::new(0xfd09, 1, 0, 0, 0, 0, 0, 0x77).into()];
    for (family, absent) in [Family::V4, Family::V6].into_iter().zip(absent) {
        let testbed = test.testbed(family);
        let to = SocketAddr::new(absent, 5001);
        cases.push(DropCase::new("UDP, no neighbour", datagrams(&testbed, to, 300)?, Dropped::Exactly(SENT)));
    }
    thread::sleep(NEIGHBOUR_TIMEOUT);
    for family in [Family::V4, Family::V6] {
        test.testbed(family).pair()?; // so that the router's link address is known
    }
    let client = &test.network.link.client;
    client.run(|| set_netem(&client.interface, Faults { loss: 1.0, ..Faults::NONE }))?;
    for family in [Family::V4, Family::V6] {
        let testbed = test.testbed(family);
        for (what, length) in [("UDP, queue", 300), ("UDP, larger than packets, queue", 4000)] {
            let to = SocketAddr::new(testbed.ip(Side::Server), 5001);
            let dropped = if length > 1500 { 3 * SENT } else { SENT };
            cases.push(DropCase::new(what, datagrams(&testbed, to, length)?, Dropped::Exactly(dropped)).or_marked());
        }
        let to = SocketAddr::new(testbed.ip(Side::Server), 5003);
        cases.push(DropCase::new("TCP, queue", connect(&testbed, to)?, Dropped::AtLeast(1)));
    }
    client.run(|| set_netem(&client.interface, Faults::NONE))?;
    test.judge(&cases)
}

/// Sends [`SENT`] datagrams from the client. The kernel may refuse to send them.
pub(super) fn datagrams(testbed: &Testbed<'_>, to: SocketAddr, length: usize) -> Result<ExpectedFlow> {
    send(testbed, to, length, SENT)
}

/// Sends `count` datagrams from the client.
pub(super) fn send(testbed: &Testbed<'_>, to: SocketAddr, length: usize, count: u64) -> Result<ExpectedFlow> {
    let socket = testbed.udp(Side::Client)?;
    for _ in 0..count {
        socket.send_to(&vec![0; length], to).ok();
    }
    Ok(of_client(Transport::Udp, socket.local_addr()?, to))
}

/// Starts a connection that is never established.
pub(super) fn connect(testbed: &Testbed<'_>, to: SocketAddr) -> Result<ExpectedFlow> {
    testbed.host(Side::Client).run(|| {
        let stream = begin(to)?;
        let here = stream.local_addr()?;
        // The kernel sends a second SYN.
        thread::sleep(Duration::from_millis(1500));
        Ok(of_client(Transport::Tcp, here, to))
    })
}

/// Starts a nonblocking connect, which must be in progress.
pub(super) fn begin(to: SocketAddr) -> Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    let begun = nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to));
    ensure!(begun == Err(Errno::EINPROGRESS), "the connect is not in progress: {begun:?}");
    Ok(TcpStream::from(socket))
}

/// Sends `bytes` bytes over a connection to port 5005, for which the tests drop a share of the packets.
pub(super) fn bulk(testbed: &Testbed<'_>, bytes: usize) -> Result<ExpectedFlow> {
    let to = SocketAddr::new(testbed.ip(Side::Server), 5005);
    let listener = testbed.host(Side::Server).run(|| TcpListener::bind(to).context("listen"))?;
    let reader = thread::spawn(move || -> Result<usize> {
        let mut all = Vec::new();
        Ok(listener.accept()?.0.read_to_end(&mut all)?)
    });
    let mut client = testbed.connect(to)?;
    let flow = of_client(Transport::Tcp, client.local_addr()?, to);
    client.write_all(&vec![0; bytes])?;
    client.shutdown(Shutdown::Write)?;
    ensure!(reader.join().map_err(|_| anyhow!("the reader panicked"))?? == bytes);
    client.read_to_end(&mut Vec::new())?;
    Ok(flow)
}

/// Closes a connection whose packets are no longer dropped.
pub(super) fn close(mut pair: Pair) -> Result<()> {
    pair.client.shutdown(Shutdown::Write)?;
    pair.server.read_to_end(&mut Vec::new())?;
    drop(pair.server);
    pair.client.read_to_end(&mut Vec::new())?;
    Ok(())
}
