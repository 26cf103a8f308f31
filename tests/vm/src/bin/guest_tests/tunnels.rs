//! VXLAN tunnels: their outer datagrams belong to the kernel, and may be GSO packets.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::flows::fragments_created;
use crate::helpers::document::endpoint;
use crate::helpers::netlink::{veth_pair, vxlan};
use crate::helpers::netns::Netns;
use crate::helpers::socktrail::Socktrail;

tests![a_datagram_in_a_tunnel, a_datagram_fragmented_outside, a_connection_in_a_tunnel];

const PORT: u16 = 4789;
/// Bytes of the outer headers of a VXLAN packet: IPv4, UDP and VXLAN (RFC 7348).
const OUTER_HEADERS: u64 = 20 + 8 + 8;
const ETHERNET: u64 = 14;

/// A tunnel between two hosts. It is set up while the monitor runs, by processes that must not own its flows.
struct Tunnel {
    near: Arc<Netns>,
    far: Arc<Netns>,
}

/// The largest MTU inside the tunnel without fragments outside.
const INNER_MTU: u32 = 1450;

/// The hosts' addresses outside the tunnel.
const OUTSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 8, 0, 1), Ipv4Addr::new(10, 8, 0, 2)];
/// The hosts' addresses inside the tunnel.
const INSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 7, 0, 1), Ipv4Addr::new(10, 7, 0, 2)];

impl Tunnel {
    /// `mtu` is the MTU inside the tunnel.
    fn new(mtu: u32) -> Result<Self> {
        for module in ["veth", "vxlan"] {
            run(Command::new("modprobe").arg(module))?;
        }
        let (near, far) = (Arc::new(Netns::new()?), Arc::new(Netns::new()?));
        near.run(|| veth_pair("outside", "outside", &far))?;
        for (netns, number, other) in [(&near, 0, 1), (&far, 1, 0)] {
            ip(netns, &format!("addr add {}/24 dev outside", OUTSIDE[number]))?;
            ip(netns, "link set outside up")?;
            netns.run(|| vxlan("inside", 42, OUTSIDE[other], PORT))?;
            ip(netns, &format!("addr add {}/24 dev inside", INSIDE[number]))?;
            ip(netns, &format!("link set inside mtu {mtu} up"))?;
        }
        Ok(Self { near, far })
    }
}

/// The outer flow has no process, and exact counts.
fn a_datagram_in_a_tunnel() -> Result<()> {
    let monitor = Socktrail::flows(&["--flow-termination-timeout", "500ms"])?;
    let tunnel = Tunnel::new(INNER_MTU)?;
    let server = tunnel.far.run(|| Ok(UdpSocket::bind((INSIDE[1], 0))?))?;
    let client = tunnel.near.run(|| Ok(UdpSocket::bind((INSIDE[0], 0))?))?;
    server.set_read_timeout(Some(Duration::from_secs(20)))?;
    client.send_to(&[0; 500], server.local_addr()?)?;
    server.recv(&mut [0; 1000]).context("receive")?;
    drop(tunnel);
    let output = monitor.stop()?;
    let bytes = outer_bytes(500);
    for direction in ["egress", "ingress"] {
        let of_tunnel = |document: &&Value| {
            is_of_tunnel(document)
                && document["network"]["direction"] == direction
                && document["source"]["bytes"] == bytes
        };
        let document = output.documents.iter().find(of_tunnel);
        let document = document.with_context(|| format!("no {direction} of {bytes} bytes: {:#?}", output.documents))?;
        ensure!(document["source"]["packets"] == 1, "{document:#}");
        ensure!(document["flow"]["inexact"] == Value::Null, "{document:#}");
    }
    expect_kernel_owner(&output.documents)
}

/// The outer datagram is fragmented. Only the outer flow is marked, not the inner one.
fn a_datagram_fragmented_outside() -> Result<()> {
    const PAYLOAD: usize = 1460;
    let monitor = Socktrail::flows(&["--flow-termination-timeout", "500ms"])?;
    let tunnel = Tunnel::new(1500)?;
    let server = tunnel.far.run(|| Ok(UdpSocket::bind((INSIDE[1], 0))?))?;
    let client = tunnel.near.run(|| Ok(UdpSocket::bind((INSIDE[0], 0))?))?;
    server.set_read_timeout(Some(Duration::from_secs(20)))?;
    let there = server.local_addr()?;
    client.send_to(&[0; PAYLOAD], there)?;
    server.recv(&mut [0; 2000]).context("receive")?;
    let made = tunnel.near.run(fragments_created)?;
    ensure!(made == 2, "the kernel made {made} fragments");
    drop((client, server, tunnel));
    let output = monitor.stop()?;
    for direction in ["egress", "ingress"] {
        let of = |bytes: u64, to: SocketAddr| {
            let mut all = output.documents.iter();
            let found = all.find(|document| {
                endpoint(document, "destination") == Some(to)
                    && document["network"]["direction"] == direction
                    && document["source"]["bytes"] == bytes
            });
            found.with_context(|| format!("no {direction} of {bytes} bytes: {:#?}", output.documents))
        };
        let outside = of(outer_bytes(PAYLOAD as u64) + 20, SocketAddr::new(OUTSIDE[1].into(), PORT))?;
        ensure!(outside["source"]["packets"] == made, "{outside:#}");
        ensure!(outside["flow"]["inexact"] == json!(["fragments"]), "{outside:#}");
        let inside = of(PAYLOAD as u64 + 28, there)?;
        ensure!(inside["flow"]["inexact"] == Value::Null, "{inside:#}");
    }
    expect_kernel_owner(&output.documents)
}

/// The bytes of the outer packet of a datagram with this payload.
fn outer_bytes(payload: u64) -> u64 {
    OUTER_HEADERS + ETHERNET + 20 + 8 + payload
}

/// If the tunnel carries GSO packets of a connection, the outer flow is marked.
fn a_connection_in_a_tunnel() -> Result<()> {
    const BYTES: usize = 1_000_000;
    let monitor = Socktrail::flows(&["--flow-termination-timeout", "500ms"])?;
    let tunnel = Tunnel::new(INNER_MTU)?;
    let listener = tunnel.far.run(|| Ok(TcpListener::bind((INSIDE[1], 0))?))?;
    let there = listener.local_addr()?;
    let reader = thread::spawn(move || -> Result<usize> {
        let mut all = Vec::new();
        Ok(listener.accept()?.0.read_to_end(&mut all)?)
    });
    let mut client = tunnel.near.run(|| Ok(TcpStream::connect(there)?))?;
    client.write_all(&vec![0; BYTES])?;
    drop(client);
    ensure!(reader.join().map_err(|_| anyhow!("the reader panicked"))?? == BYTES);
    drop(tunnel);
    let output = monitor.stop()?;
    let large = |document: &&Value| is_of_tunnel(document) && document["source"]["bytes"].as_u64() > Some(BYTES as u64);
    let large: Vec<_> = output.documents.iter().filter(large).collect();
    ensure!(large.len() == 2, "not one for each host: {:#?}", output.documents);
    for document in large {
        let few = document["source"]["packets"].as_u64() < Some((BYTES / 1500) as u64);
        ensure!(few, "no GSO packets, so there is nothing to test: {document:#}");
        ensure!(document["flow"]["inexact"] == json!(["datagram_segments"]), "not marked: {document:#}");
    }
    expect_kernel_owner(&output.documents)
}

fn is_of_tunnel(document: &Value) -> bool {
    endpoint(document, "destination") == Some(SocketAddr::new(OUTSIDE[1].into(), PORT))
}

fn expect_kernel_owner(documents: &[Value]) -> Result<()> {
    for document in documents.iter().filter(|document| is_of_tunnel(document)) {
        ensure!(document["system"]["audit"]["socket"]["owner"] == "kernel", "{document:#}");
        ensure!(document["process"]["name"] == Value::Null, "{document:#}");
        ensure!(document["system"]["audit"]["socket"]["last_user"] == Value::Null, "{document:#}");
    }
    Ok(())
}

/// Runs busybox's `ip` in a namespace.
fn ip(netns: &Netns, arguments: &str) -> Result<()> {
    netns.run(|| run(Command::new("ip").args(arguments.split(' '))))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
