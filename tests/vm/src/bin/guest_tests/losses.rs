//! What the rings had no room for, and what probes missed, is counted, and said of the flows that were open then.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::helpers::document::{end, number};
use crate::helpers::patience::until;
use crate::helpers::socktrail::{Socktrail, Watched};
use crate::helpers::tracefs::Tracefs;
use crate::helpers::traffic::on_cpu;

tests![a_full_ring, returns_that_the_kernel_set_no_room_aside_for];

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
    let said = format!("samples found no room in the ring of CPU {CPU}");
    ensure!(watched.log.contains(&said), "{}", watched.log);
    let stats = stats(&watched)?;
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

/// Returns that are set aside for the probe that takes the place of the best one for accepts, and tasks that wait.
const RETURNS: usize = 1024;
const WAITING: usize = RETURNS + 40;

/// More tasks wait in accept(2) than the kernel sets returns aside for. What it missed by its own count is told, and marks
/// the flows that were open then; whose they are is right or unknown.
fn returns_that_the_kernel_set_no_room_aside_for() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let watch = Socktrail::flows(&["--stats", "--mask", "security_sock_graft", "--flow-termination-timeout", "3s"])?;
    // Before Linux 5.13 a task that waits has its new descriptor already.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most.min(4 * WAITING as u64), most)?;
    let listener = Arc::new(TcpListener::bind("127.0.0.1:0")?);
    let _end = Ended(Arc::clone(&listener));
    let there = listener.local_addr()?;
    let before = TcpStream::connect(there)?;
    let (_accepted, open) = listener.accept()?;
    let servers = (0..WAITING).map(|_| answer_one(Arc::clone(&listener))).collect::<Result<Vec<_>>>()?;
    until("all of them to wait", || Ok(waiting_in_accept()? == WAITING))?;
    let missed = tracefs.missed()?;
    ensure!(missed >= (WAITING - RETURNS) as u64, "only {missed} were missed");
    let mut clients = Vec::new();
    for _ in 0..WAITING {
        let mut client = TcpStream::connect(there)?;
        client.write_all(b"?")?;
        clients.push(client.local_addr()?);
        client.read_exact(&mut [0])?;
    }
    for server in servers {
        server.join().map_err(|_| anyhow!("a server panicked"))??;
    }
    let ours = json!(std::process::id());
    let mut documents = Vec::new();
    until("a document of each", || {
        documents = watch.documents()?;
        Ok(documents.iter().filter(|one| is_direction(one, "ingress")).count() >= WAITING)
    })?;
    let accepted: BTreeMap<_, _> = documents.iter().filter(|one| is_direction(one, "ingress")).map(by_source).collect();
    for client in clients {
        let document = accepted.get(&Some(client)).with_context(|| format!("no document of {client}"))?;
        let owner = &document["process"]["pid"];
        ensure!(owner.is_null() || *owner == ours, "not ours: {document:#}");
    }
    drop(before);
    let document = document(&watch, (open, there), "egress")?;
    ensure!(document["flow"]["inexact"] == json!(["samples_lost"]), "it was open, and is not marked: {document:#}");
    let missed = tracefs.missed()?;
    let told = number(&stats(&watch.stop()?)?, "/probe_misses")?;
    ensure!(told >= missed, "{told} of {missed} missed returns are told");
    Ok(())
}

/// Ends what still waits to accept, once it is dropped.
struct Ended(Arc<TcpListener>);

impl Drop for Ended {
    fn drop(&mut self) {
        shutdown(self.0.as_raw_fd(), Shutdown::Both).ok();
    }
}

fn by_source(document: &Value) -> (Option<SocketAddr>, &Value) {
    (end(document, "source"), document)
}

/// A thread that accepts one connection and answers it.
fn answer_one(listener: Arc<TcpListener>) -> Result<JoinHandle<Result<()>>> {
    let serve = move || {
        let (mut connection, _) = listener.accept()?;
        connection.read_exact(&mut [0])?;
        Ok(connection.write_all(b"!")?)
    };
    Ok(thread::Builder::new().stack_size(64 << 10).spawn(serve)?)
}

/// How many of this process's threads sleep in accept(2).
fn waiting_in_accept() -> Result<usize> {
    let threads = fs::read_dir("/proc/self/task")?.flatten();
    let calls = threads.filter_map(|thread| fs::read_to_string(thread.path().join("syscall")).ok());
    let accept = libc::SYS_accept4.to_string();
    Ok(calls.filter(|call| call.split(' ').next() == Some(&*accept)).count())
}

/// The last line of `--stats`.
fn stats(watched: &Watched) -> Result<Value> {
    let line = watched.log.lines().rev().find_map(|line| line.split_once("stats ")).context("no line of statistics")?;
    Ok(serde_json::from_str(line.1)?)
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

fn is_direction(document: &Value, direction: &str) -> bool {
    document["network"]["direction"] == direction
}

fn document(watch: &Socktrail, (from, to): (SocketAddr, SocketAddr), direction: &str) -> Result<Value> {
    watch.wait_for(&format!("the document of {from} to {to}, {direction}"), |document| {
        end(document, "source") == Some(from)
            && end(document, "destination") == Some(to)
            && is_direction(document, direction)
    })
}
