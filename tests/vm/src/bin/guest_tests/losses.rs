//! What the rings had no room for, and what probes missed, is counted, and said of the flows that were open then.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

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

tests![
    a_full_ring,
    a_loss_that_nothing_follows,
    a_flow_whose_first_packets_were_lost,
    returns_that_the_kernel_set_no_room_aside_for,
];

/// The name of the threads that accept one connection each.
const SERVER: &str = "accepts-one";
/// Many more than two pages hold samples.
const DATAGRAMS: u64 = 2000;
/// The feature whose probe misses returns; its probe has the same name.
const ACCEPT: &str = "accept";
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

/// How soon a loss must be reported.
const SOON: Duration = Duration::from_secs(2);

/// The end of a burst is lost, and no sample follows on that CPU: the loss is still reported, once, and the flow that
/// was open is marked.
fn a_loss_that_nothing_follows() -> Result<()> {
    let watch = Socktrail::flows(&["--ring-size-exponent", "1", "--stats", "--flow-inactive-timeout", "4s"])?;
    let said = format!("samples found no room in the ring of CPU {CPU}");
    let (pair, took) = on_cpu(CPU, || {
        let pair = Pair::open()?;
        signal(&watch, Signal::SIGSTOP)?;
        pair.send(DATAGRAMS)?;
        signal(&watch, Signal::SIGCONT)?;
        Ok((pair, Instant::now()))
    })?;
    until("the loss to be told", || Ok(watch.log().contains(&said)))?;
    let took = took.elapsed();
    ensure!(took < SOON, "the loss was told after {took:?}");
    // The sockets are open still, and silent.
    let document = document(&watch, pair.ends, "egress")?;
    ensure!(document["flow"]["inexact"] == json!(["samples_lost"]), "not marked: {document:#}");
    let seen = number(&document, "/network/packets")?;
    let stats = stats(&watch.stop()?)?;
    let lost = number(&stats, &format!("/lost_by_cpu/{CPU}"))?;
    // Besides the datagrams, a process causes few samples.
    ensure!((DATAGRAMS - seen..2 * DATAGRAMS + 1000).contains(&lost), "{seen} seen, {lost} lost: {stats}");
    Ok(())
}

/// A flow begins while samples are lost, and goes on after the loss was reported: the part seen is not taken for the
/// whole flow.
fn a_flow_whose_first_packets_were_lost() -> Result<()> {
    let watch = Socktrail::flows(&["--ring-size-exponent", "1", "--flow-inactive-timeout", "4s"])?;
    let said = format!("samples found no room in the ring of CPU {CPU}");
    let pair = on_cpu(CPU, || {
        let before = Pair::open()?;
        signal(&watch, Signal::SIGSTOP)?;
        before.send(DATAGRAMS)?;
        let pair = Pair::open()?;
        pair.send(5)?;
        signal(&watch, Signal::SIGCONT)?;
        until("the loss to be told", || Ok(watch.log().contains(&said)))?;
        pair.send(2)?;
        Ok(pair)
    })?;
    let (from, to) = (pair.ends.0.port(), pair.ends.1.port());
    let is_of_both = |document: &Value| {
        let ports = ["source", "destination"].map(|end| document[end]["port"].as_u64());
        ports.contains(&Some(from.into())) && ports.contains(&Some(to.into()))
    };
    let mut documents = Vec::new();
    until("the flows of both ends", || {
        documents = watch.documents()?.into_iter().filter(is_of_both).collect();
        Ok(documents.len() == 2)
    })?;
    for document in documents {
        ensure!(document["flow"]["inexact"] == json!(["samples_lost"]), "not marked: {document:#}");
        ensure!(document["flow"]["complete"] == json!(false), "its beginning was not seen: {document:#}");
        ensure!(number(&document, "/network/packets")? < 7, "all of it was seen: {document:#}");
    }
    Ok(())
}

/// Returns that are set aside for the probe that takes the place of the best one for accepts, and tasks that wait.
const RETURNS: usize = 1024;
const WAITING: usize = RETURNS + 40;

/// More tasks wait in accept(2) than the kernel sets returns aside for. What it missed by its own count is told, with the
/// probe that missed it, and marks no flow whose packets were all seen; owners are right or unknown.
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
    let missed = tracefs.missed_by(ACCEPT)?;
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
    let is_marked = |document: &Value| document["flow"]["inexact"] == json!(["samples_lost"]);
    let unowned = accepted.values().filter(|document| document["process"].is_null()).count() as u64;
    drop(before);
    let before = document(&watch, (open, there), "egress")?;
    let missed = tracefs.missed_by(ACCEPT)?;
    let stats = stats(&watch.stop()?)?;
    let told = number(&stats, "/probe_misses")?;
    let accepts = number(&stats, &format!("/misses_by_probe/{ACCEPT}"))?;
    ensure!(accepts >= missed, "{accepts} of {missed} missed returns are told");
    ensure!(accepts >= (WAITING - RETURNS) as u64, "only {accepts} are said of the probe that missed them");
    ensure!(unowned <= accepts, "{unowned} have no owner, and {accepts} accepts were missed");
    // An interrupt within a probe's hit may make others miss as well.
    let free = stats["misses_by_probe"]["socket_free"].as_u64().unwrap_or_default();
    if accepts + free == told {
        let marked: Vec<_> = accepted.values().filter(|one| one["process"].is_null() && is_marked(one)).collect();
        ensure!(marked.is_empty(), "no packet was missed, and that the owner is not known is said: {marked:#?}");
        ensure!(!is_marked(&before), "nobody accepts at this end: {before:#}");
    }
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
    Ok(thread::Builder::new().name(SERVER.to_owned()).stack_size(64 << 10).spawn(serve)?)
}

/// How many of these threads sleep in accept(2). Those of earlier tests may do so, too, and do not count.
fn waiting_in_accept() -> Result<usize> {
    let threads = fs::read_dir("/proc/self/task")?.flatten();
    let said = |thread: &fs::DirEntry, file: &str| fs::read_to_string(thread.path().join(file)).ok();
    let servers = threads.filter(|thread| said(thread, "comm").is_some_and(|name| name.trim_end() == SERVER));
    let calls = servers.filter_map(|thread| said(&thread, "syscall"));
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
