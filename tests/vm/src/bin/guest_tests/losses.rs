//! What the rings had no room for is counted, CPU by CPU, and said of the flows that were open then.

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::helpers::document::{end, number};
use crate::helpers::socktrail::Socktrail;
use crate::helpers::traffic::on_cpu;

tests![a_full_ring];

/// Many more than two pages hold samples.
const DATAGRAMS: u64 = 2000;
/// One that no test's process has to run on.
const CPU: usize = 1;

/// A monitor that does not read is sent more than its rings hold; what is lost and what is seen is all there was.
fn a_full_ring() -> Result<()> {
    // The close may be among what is lost: then a flow ends when it has been quiet for long enough.
    let timeouts = ["--flow-termination-timeout", "500ms", "--flow-inactive-timeout", "10s"];
    let watch = Socktrail::flows(&[&["--ring-size-exponent", "1", "--stats"][..], &timeouts].concat())?;
    let flood = on_cpu(CPU, || {
        let pair = Pair::open()?;
        pair.send(1)?;
        signal(&watch, Signal::SIGSTOP)?;
        pair.send(DATAGRAMS)?;
        signal(&watch, Signal::SIGCONT)?;
        // A loss is told with the first sample that finds room again.
        pair.send(1)?;
        Ok(pair.ends)
    })?;
    let seen = |direction| {
        let document = document(&watch, flood, direction)?;
        ensure!(document["flow"]["inexact"] == json!(["samples_lost"]), "not marked: {document:#}");
        number(&document, "/source/packets")
    };
    let (sent, received) = (seen("egress")?, seen("ingress")?);

    let after = on_cpu(CPU, || {
        let pair = Pair::open()?;
        pair.send(1)?;
        Ok(pair.ends)
    })?;
    for direction in ["egress", "ingress"] {
        let document = document(&watch, after, direction)?;
        ensure!(document["flow"]["inexact"].is_null(), "nothing was lost any more: {document:#}");
    }

    let watched = watch.stop()?;
    let line = watched.log.lines().rev().find_map(|line| line.split_once("stats ")).context("no line of statistics")?;
    let stats: Value = serde_json::from_str(line.1)?;
    let lost = number(&stats, "/samples_lost")?;
    let misses = number(&stats, "/probe_misses")?;
    let by_cpu = stats["lost_by_cpu"].as_object().context("losses by CPU")?;
    let sum: u64 = by_cpu.values().filter_map(Value::as_u64).sum();
    ensure!(by_cpu.contains_key(&CPU.to_string()), "nothing was lost on CPU {CPU}: {stats}");
    ensure!(sum + misses == lost, "{sum} on the CPUs and {misses} missed are not {lost}: {stats}");
    let all = 2 * (DATAGRAMS + 2);
    ensure!(sent < DATAGRAMS && received < DATAGRAMS, "{sent} and {received} of {DATAGRAMS} were seen");
    ensure!(sent + received + lost >= all, "{sent} and {received} were seen and {lost} lost, of {all}");
    Ok(())
}

/// Two connected datagram sockets.
struct Pair {
    from: UdpSocket,
    to: UdpSocket,
    ends: (SocketAddr, SocketAddr),
}

impl Pair {
    fn open() -> Result<Self> {
        let [from, to] = [UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?];
        from.connect(to.local_addr()?)?;
        let ends = (from.local_addr()?, to.local_addr()?);
        Ok(Self { from, to, ends })
    }

    fn send(&self, count: u64) -> Result<()> {
        for _ in 0..count {
            self.from.send(b"x")?;
            self.to.recv(&mut [0])?;
        }
        Ok(())
    }
}

fn signal(watch: &Socktrail, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(watch.pid.cast_signed()), signal).with_context(|| format!("send {signal}"))
}

fn document(watch: &Socktrail, (from, to): (SocketAddr, SocketAddr), direction: &str) -> Result<Value> {
    watch.wait_for(&format!("the document of {from} to {to}, {direction}"), |document| {
        end(document, "source") == Some(from)
            && end(document, "destination") == Some(to)
            && document["network"]["direction"] == direction
    })
}
