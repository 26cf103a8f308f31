//! Packets that the kernel counts, without a sample of each.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::helpers::document::{is_between, number};
use crate::helpers::socktrail::{Output, Socktrail};
use crate::helpers::sys::bpf_objects;
use crate::helpers::traffic::on_cpu;
use crate::helpers::wait::wait_until;
use crate::lifetime::OfflineCpu;

tests![
    masked_bpf,
    datagrams,
    a_server_with_many_peers,
    connections,
    two_monitors,
    a_killed_monitor,
    a_cpu_that_goes_offline_and_comes_back,
    a_full_table,
    a_filter;
    long: a_million_datagrams
];

/// How many payloads each end sends.
const COUNT: u64 = 1000;
/// The size of a payload in bytes.
const PAYLOAD: usize = 64;
/// Fewer packets than this may be samples: the first and the last ones of each flow.
const MAX_SAMPLES: u64 = 100;
const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

/// Two sockets that send each other datagrams. Each datagram is answered before the next one is sent, so no queue fills up and
/// none is dropped.
struct Pair {
    client: UdpSocket,
    server: UdpSocket,
}

impl Pair {
    fn open(loopback: &str) -> Result<Self> {
        let [client, server] = [UdpSocket::bind(loopback)?, UdpSocket::bind(loopback)?];
        client.connect(server.local_addr()?)?;
        Ok(Self { client, server })
    }

    fn exchange(&self, count: u64) -> Result<()> {
        let mut payload = [7; PAYLOAD];
        for _ in 0..count {
            self.client.send(&payload)?;
            let (_, from) = self.server.recv_from(&mut payload)?;
            self.server.send_to(&payload, from)?;
            self.client.recv(&mut payload)?;
        }
        Ok(())
    }

    fn ends(&self) -> Result<(SocketAddr, SocketAddr)> {
        Ok((self.client.local_addr()?, self.server.local_addr()?))
    }
}

/// Sends `count` datagrams each way, over IPv4 and then over IPv6. Returns the ends of both conversations.
fn exchange_datagrams(count: u64) -> Result<Vec<(SocketAddr, SocketAddr)>> {
    let exchange = |loopback| {
        let pair = Pair::open(loopback)?;
        pair.exchange(count)?;
        pair.ends()
    };
    LOOPBACKS.into_iter().map(exchange).collect()
}

/// Fails unless both sockets of a conversation have a document with this number of datagrams each way.
fn expect_datagrams(output: &Output, (one, other): (SocketAddr, SocketAddr), count: u64) -> Result<()> {
    let headers = if one.is_ipv4() { 20 + 8 } else { 40 + 8 };
    let bytes = count * (PAYLOAD as u64 + headers);
    for document in documents_of(output, one, other)? {
        for end in ["source", "destination"] {
            let counted = (number(document, &format!("/{end}/packets"))?, number(document, &format!("/{end}/bytes"))?);
            ensure!(counted == (count, bytes), "{counted:?} of {end} in {document:#}");
        }
        ensure!(document["flow"]["inexact"].is_null(), "{document:#}");
    }
    Ok(())
}

/// A monitor that lets the kernel count packets.
fn counting_monitor() -> Result<Socktrail> {
    Socktrail::flows(&["--accounting", "kernel", "--stats"])
}

fn datagrams() -> Result<()> {
    let monitor = counting_monitor()?;
    let ends = exchange_datagrams(COUNT)?;
    let output = monitor.stop()?;
    ends.iter().try_for_each(|ends| expect_datagrams(&output, *ends, COUNT))?;
    expect_few_samples(&output, 4 * LOOPBACKS.len() as u64 * COUNT)
}

/// A socket that exchanges datagrams with many others in turn. Most of these conversations are counted by the kernel.
fn a_server_with_many_peers() -> Result<()> {
    const PEERS: usize = 20;
    const EACH: u64 = 100;
    let monitor = counting_monitor()?;
    let mut ends = Vec::new();
    for loopback in LOOPBACKS {
        let server = UdpSocket::bind(loopback)?;
        let clients = (0..PEERS).map(|_| UdpSocket::bind(loopback)).collect::<Result<Vec<_>, _>>()?;
        let mut payload = [7; PAYLOAD];
        for client in (0..EACH).flat_map(|_| &clients) {
            client.send_to(&payload, server.local_addr()?)?;
            let (_, from) = server.recv_from(&mut payload)?;
            server.send_to(&payload, from)?;
            client.recv(&mut payload)?;
        }
        for client in clients {
            ends.push((client.local_addr()?, server.local_addr()?));
        }
    }
    let output = monitor.stop()?;
    ends.iter().try_for_each(|ends| expect_datagrams(&output, *ends, EACH))?;
    let (sampled, counted) = (statistic(&output, "packets")?, statistic(&output, "packets_counted")?);
    // By the hash of their ends, some peers get the same way as an earlier one.
    ensure!(sampled * 3 < counted, "{sampled} sampled, {counted} counted");
    Ok(())
}

/// A single flow makes fewer than twenty samples, however long it is.
#[allow(clippy::print_stdout, reason = "shows the figures")]
fn a_million_datagrams() -> Result<()> {
    const MILLION: u64 = 1_000_000;
    let monitor = counting_monitor()?;
    let pair = Pair::open(LOOPBACKS[0])?;
    pair.exchange(MILLION / 2)?;
    let ends = pair.ends()?;
    drop(pair);
    let output = monitor.stop()?;
    expect_datagrams(&output, ends, MILLION / 2)?;
    let (sampled, counted) = (statistic(&output, "packets")?, statistic(&output, "packets_counted")?);
    ensure!(sampled < 20 && counted + sampled >= 2 * MILLION, "{sampled} sampled, {counted} counted");
    println!("{MILLION} datagrams, each sent and received: {sampled} samples, {counted} counted by the kernel");
    Ok(())
}

/// Two monitors count the same packets, each with programs of its own.
fn two_monitors() -> Result<()> {
    let monitors = [counting_monitor()?, counting_monitor()?];
    let ends = exchange_datagrams(COUNT)?;
    for monitor in monitors {
        let output = monitor.stop()?;
        ends.iter().try_for_each(|ends| expect_datagrams(&output, *ends, COUNT))?;
    }
    Ok(())
}

/// The programs and maps of a killed monitor are freed.
fn a_killed_monitor() -> Result<()> {
    // Others may exist: the kernel may still be freeing those of the previous test.
    let before = bpf_objects()?;
    let monitor = counting_monitor()?;
    exchange_datagrams(10)?;
    let [programs, maps] = bpf_objects()?;
    let own = [&programs - &before[0], &maps - &before[1]];
    ensure!(own[0].len() == 11 && own[1].len() == 4, "{} programs, {} maps", own[0].len(), own[1].len());
    monitor.kill()?;
    wait_until("programs and maps to be freed", || {
        let [programs, maps] = bpf_objects()?;
        Ok(own[0].is_disjoint(&programs) && own[1].is_disjoint(&maps))
    })
}

/// A conversation continues while its CPU goes offline and comes back.
fn a_cpu_that_goes_offline_and_comes_back() -> Result<()> {
    let monitor = Socktrail::start(&["-v", "flows", "--format", "ecs", "--accounting", "kernel"])?;
    let pair = Pair::open(LOOPBACKS[0])?;
    on_cpu(1, || pair.exchange(COUNT))?;
    let cpu = OfflineCpu::new(1)?;
    on_cpu(0, || pair.exchange(COUNT))?;
    wait_until("the offline CPU to be noticed", || Ok(monitor.log().contains("CPUs changed")))?;
    cpu.bring_online()?;
    on_cpu(1, || pair.exchange(COUNT))?;
    wait_until("the CPU's return to be noticed", || Ok(monitor.log().matches("CPUs changed").count() == 2))?;
    on_cpu(1, || pair.exchange(COUNT))?;
    let ends = pair.ends()?;
    // The report of the socket's end comes from the CPU that is back.
    on_cpu(1, || {
        drop(pair);
        Ok(())
    })?;
    expect_datagrams(&monitor.stop()?, ends, 4 * COUNT)
}

/// Packets of conversations that have no room in the table are sampled, and the counts are the same.
fn a_full_table() -> Result<()> {
    const PAIRS: usize = 40;
    let monitor = Socktrail::flows(&["--accounting", "kernel", "--max-conversations", "8", "--stats"])?;
    let pairs: Vec<_> = (0..PAIRS).map(|_| Pair::open(LOOPBACKS[0])).collect::<Result<_>>()?;
    pairs.iter().try_for_each(|pair| pair.exchange(20))?;
    let ends: Vec<_> = pairs.iter().map(Pair::ends).collect::<Result<_>>()?;
    drop(pairs);
    let output = monitor.stop()?;
    ends.iter().try_for_each(|ends| expect_datagrams(&output, *ends, 20))?;
    let (refused, counted) = (statistic(&output, "conversations_refused")?, statistic(&output, "packets_counted")?);
    ensure!(refused > 0 && counted > 0, "{refused} refused, {counted} counted");
    Ok(())
}

/// Packets that the filter rejects do not become samples.
fn a_filter() -> Result<()> {
    let wanted = Pair::open(LOOPBACKS[0])?;
    let excluded = Pair::open(LOOPBACKS[1])?;
    let port = excluded.ends()?.1.port().to_string();
    let monitor = Socktrail::flows(&["--accounting", "kernel", "--exclude-port", &port, "--stats"])?;
    excluded.exchange(COUNT)?;
    wanted.exchange(10)?;
    let (one, other) = wanted.ends()?;
    drop((wanted, excluded));
    let output = monitor.stop()?;
    expect_datagrams(&output, (one, other), 10)?;
    ensure!(output.documents.iter().all(|document| document["network"]["type"] != "ipv6"), "{:#?}", output.documents);
    let sampled = statistic(&output, "packets")? + statistic(&output, "packets_filtered")?;
    ensure!(sampled < MAX_SAMPLES, "{sampled} packets were sampled:\n{}", output.log);
    Ok(())
}

/// Both sockets of a connection have a document with the same counts. Each request and each answer is a segment.
fn connections() -> Result<()> {
    let monitor = counting_monitor()?;
    let mut ends = Vec::new();
    for loopback in LOOPBACKS {
        let listener = TcpListener::bind(loopback)?;
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        let (mut server, _) = listener.accept()?;
        [&client, &server].into_iter().try_for_each(|stream| stream.set_nodelay(true))?;
        let mut payload = [7; PAYLOAD];
        for _ in 0..COUNT {
            client.write_all(&payload)?;
            server.read_exact(&mut payload)?;
            server.write_all(&payload)?;
            client.read_exact(&mut payload)?;
        }
        ends.push((client.local_addr()?, client.peer_addr()?));
    }
    let output = monitor.stop()?;
    for (one, other) in ends {
        let documents = documents_of(&output, one, other)?;
        let [first, second] = documents[..] else { unreachable!("there are two") };
        for path in ["/source/packets", "/source/bytes", "/destination/packets", "/destination/bytes"] {
            let (counted, other) = (number(first, path)?, number(second, path)?);
            ensure!(counted == other, "{path} is {counted} and {other} in {first:#} {second:#}");
        }
        let (packets, bytes) = (number(first, "/source/packets")?, number(first, "/source/bytes")?);
        let ip = if one.is_ipv4() { 20 } else { 40 };
        // The header of a segment has 20 bytes, and 12 more for timestamps, unless they are switched off. Segments without a
        // payload of their own, and those that a busy machine sends again, have other options.
        let least = COUNT * PAYLOAD as u64 + packets * (ip + 20);
        let most = COUNT * (PAYLOAD as u64 + ip + 20 + 12) + packets.saturating_sub(COUNT) * (PAYLOAD as u64 + ip + 60);
        ensure!(packets > COUNT && (least..=most).contains(&bytes), "{packets} packets, {bytes} bytes: {first:#}");
    }
    expect_few_samples(&output, 4 * LOOPBACKS.len() as u64 * COUNT)
}

/// If BPF is masked, `auto` samples each packet.
fn masked_bpf() -> Result<()> {
    let monitor = Socktrail::flows(&["--accounting", "auto", "--mask", "bpf", "--stats"])?;
    let [client, server] = [UdpSocket::bind(LOOPBACKS[0])?, UdpSocket::bind(LOOPBACKS[0])?];
    (0..10).try_for_each(|_| client.send_to(b"datagram", server.local_addr()?).map(drop))?;
    let (one, other) = (client.local_addr()?, server.local_addr()?);
    let output = monitor.stop()?;
    for document in documents_of(&output, one, other)? {
        ensure!(number(document, "/network/packets")? == 10, "{document:#}");
    }
    ensure!(statistic(&output, "packets_counted")? == 0, "{}", output.log);
    Ok(())
}

/// The documents of both sockets of a conversation.
fn documents_of(output: &Output, one: SocketAddr, other: SocketAddr) -> Result<Vec<&Value>> {
    let documents: Vec<_> = output.documents.iter().filter(|document| is_between(document, one, other)).collect();
    ensure!(documents.len() == 2, "{} documents between {one} and {other}: {documents:#?}", documents.len());
    Ok(documents)
}

/// Fails if [`MAX_SAMPLES`] or more of `packets` packets were sampled, or not counted.
fn expect_few_samples(output: &Output, packets: u64) -> Result<()> {
    let (sampled, counted) = (statistic(output, "packets")?, statistic(output, "packets_counted")?);
    ensure!(sampled < MAX_SAMPLES, "{sampled} packets were sampled:\n{}", output.log);
    ensure!(counted + MAX_SAMPLES > packets, "only {counted} of {packets} packets were counted:\n{}", output.log);
    Ok(())
}

/// A number of the statistics (`--stats`).
fn statistic(output: &Output, name: &str) -> Result<u64> {
    let stats = output.statistics()?;
    stats[name].as_u64().with_context(|| format!("no {name} in {stats}"))
}
