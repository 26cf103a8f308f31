//! Packets that the kernel counts, without a sample of each.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::helpers::document::{is_between, number};
use crate::helpers::socktrail::{Output, Socktrail};

tests![a_masked_program, datagrams, connections];

/// How many packets of 64 bytes each end sends.
const COUNT: u64 = 1000;
const PAYLOAD: usize = 64;
/// The most packets that may be samples: the first and the last ones of each flow.
const MAX_SAMPLES: u64 = 100;
const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

/// Each datagram is answered, so nothing waits and all are delivered.
fn datagrams() -> Result<()> {
    let monitor = Socktrail::flows(&["--accounting", "kernel", "--stats"])?;
    let mut ends = Vec::new();
    for loopback in LOOPBACKS {
        let [client, server] = [UdpSocket::bind(loopback)?, UdpSocket::bind(loopback)?];
        let (mine, theirs) = (client.local_addr()?, server.local_addr()?);
        client.connect(theirs)?;
        let mut payload = [7; PAYLOAD];
        for _ in 0..COUNT {
            client.send(&payload)?;
            let (_, from) = server.recv_from(&mut payload)?;
            server.send_to(&payload, from)?;
            client.recv(&mut payload)?;
        }
        ends.push((mine, theirs));
    }
    let output = monitor.stop()?;
    for (one, other) in ends {
        let headers = if one.is_ipv4() { 20 + 8 } else { 40 + 8 };
        let bytes = COUNT * (PAYLOAD as u64 + headers);
        for document in documents_of(&output, one, other)? {
            for end in ["source", "destination"] {
                let counted =
                    (number(document, &format!("/{end}/packets"))?, number(document, &format!("/{end}/bytes"))?);
                ensure!(counted == (COUNT, bytes), "{counted:?} of {end} in {document:#}");
            }
        }
    }
    few_were_sampled(&output, 4 * LOOPBACKS.len() as u64 * COUNT)
}

/// A document of either end: what one sent, the other received. Requests and answers are segments of their own.
fn connections() -> Result<()> {
    let monitor = Socktrail::flows(&["--accounting", "kernel", "--stats"])?;
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
        // The header of a segment has 20 bytes, and 12 more for timestamps, unless they are switched off.
        let least = COUNT * PAYLOAD as u64 + packets * (ip + 20);
        let most = COUNT * PAYLOAD as u64 + packets * (ip + 20 + 12) + 2 * 8;
        ensure!(packets > COUNT && (least..=most).contains(&bytes), "{packets} packets, {bytes} bytes: {first:#}");
    }
    few_were_sampled(&output, 4 * LOOPBACKS.len() as u64 * COUNT)
}

/// Without programs, `auto` samples each packet.
fn a_masked_program() -> Result<()> {
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

/// The final documents of both ends of a flow.
fn documents_of(output: &Output, one: SocketAddr, other: SocketAddr) -> Result<Vec<&Value>> {
    let documents: Vec<_> = output.documents.iter().filter(|document| is_between(document, one, other)).collect();
    ensure!(documents.len() == 2, "{} documents between {one} and {other}: {documents:#?}", documents.len());
    Ok(documents)
}

/// Fails if at least so many packets were not counted, or many were sampled.
fn few_were_sampled(output: &Output, packets: u64) -> Result<()> {
    let (sampled, counted) = (statistic(output, "packets")?, statistic(output, "packets_counted")?);
    ensure!(sampled < MAX_SAMPLES, "{sampled} packets were sampled:\n{}", output.log);
    ensure!(counted + MAX_SAMPLES > packets, "only {counted} of {packets} packets were counted:\n{}", output.log);
    Ok(())
}

/// A number of the statistics (`--stats`).
fn statistic(output: &Output, name: &str) -> Result<u64> {
    let stats = output.log.lines().rev().find_map(|line| line.strip_prefix("socktrail: stats "));
    let stats: Value = serde_json::from_str(stats.with_context(|| format!("no statistics in {}", output.log))?)?;
    stats[name].as_u64().with_context(|| format!("no {name} in {stats}"))
}
