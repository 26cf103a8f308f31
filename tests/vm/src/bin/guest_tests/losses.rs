//! Samples that do not fit into the rings, and missed hits, are counted, and flows that were open then are marked.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
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

use crate::helpers::document::{endpoint, number};
use crate::helpers::socktrail::Socktrail;
use crate::helpers::tracefs::Tracefs;
use crate::helpers::traffic::on_cpu;
use crate::helpers::wait::wait_until;

tests![
    a_full_ring,
    a_loss_without_later_samples,
    a_flow_whose_first_packets_were_lost,
    more_waiting_tasks_than_kretprobe_instances,
    packets_without_a_socket,
];

/// Each packet is a sample, and the rings have room for few.
const SMALL_RINGS: [&str; 4] = ["--accounting", "samples", "--ring-size-exponent", "1"];
/// The name of the threads that accept one connection each.
const SERVER: &str = "accepts-one";
/// Many more than the samples that two pages hold.
const DATAGRAMS: u64 = 2000;
/// The feature whose return probe misses hits; its probe has the same name.
const ACCEPT: &str = "accept";
/// The CPU that the tests send on. Nothing else needs to run on it.
const CPU: usize = 1;

/// A stopped monitor gets more samples than its rings hold. Each packet is either counted or reported as lost.
fn a_full_ring() -> Result<()> {
    // The sample of the close may be lost, too. Then the flow ends by the inactivity timeout.
    let timeouts = ["--flow-termination-timeout", "500ms", "--flow-inactive-timeout", "10s"];
    let monitor = Socktrail::flows(&[&SMALL_RINGS[..], &["--stats"], &timeouts].concat())?;
    let flood = on_cpu(CPU, || {
        let pair = Pair::open()?;
        pair.send(1)?;
        signal(&monitor, Signal::SIGSTOP)?;
        pair.send(DATAGRAMS)?;
        signal(&monitor, Signal::SIGCONT)?;
        pair.send(1)?;
        Ok(pair.ends)
    })?;
    let seen = |direction| {
        let document = document(&monitor, flood, direction)?;
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
        let document = document(&monitor, after, direction)?;
        ensure!(document["flow"]["inexact"].is_null(), "marked, but nothing was lost then: {document:#}");
    }

    let output = monitor.stop()?;
    let message = format!("samples found no room in the ring of CPU {CPU}");
    ensure!(output.log.contains(&message), "{}", output.log);
    let stats = output.statistics()?;
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

/// IGMP's packets have no socket. Linux before 5.14 counts a read through a null pointer as a missed hit, but nothing is missed.
fn packets_without_a_socket() -> Result<()> {
    const GROUPS: u8 = 5;
    let tracefs = Tracefs::mount()?;
    let options = ["--accounting", "samples", "--flow-termination-timeout", "500ms"];
    let monitor = Socktrail::flows(&options)?;
    let pair = Pair::open()?;
    pair.send(1)?;
    let missed = || tracefs.missed_by("ipv4_out");
    let before = missed()?;
    let join_and_leave = || {
        for group in (1..=GROUPS).map(|group| Ipv4Addr::new(239, 1, 2, group)) {
            let member = UdpSocket::bind("0.0.0.0:0")?;
            let reports = tracefs.hits_so_far()?;
            member.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST)?;
            wait_until("an IGMP packet", || Ok(tracefs.hits_so_far()? > reports))?;
        }
        Ok(())
    };
    tracefs.hits("ip_local_out", join_and_leave)?;
    let misses = missed()? - before;
    let has_faults = fs::read_to_string("/proc/sys/kernel/osrelease")?.starts_with("5.10");
    ensure!(!has_faults || misses >= GROUPS.into(), "the kernel has counted {misses} faults for {GROUPS} packets");
    pair.send(1)?;
    let ends = pair.ends;
    drop(pair);
    let document = document(&monitor, ends, "egress")?;
    let log = monitor.stop()?.log;
    ensure!(!log.contains("missed"), "nothing was missed:\n{log}");
    ensure!(document["flow"]["inexact"].is_null(), "marked, but nothing was lost: {document:#}");
    Ok(())
}

/// The time within which a loss must be reported.
const SOON: Duration = Duration::from_secs(2);

/// The end of a burst is lost, and no sample follows on that CPU. The loss is still reported, once, and the open flow
/// is marked.
fn a_loss_without_later_samples() -> Result<()> {
    let monitor = Socktrail::flows(&[&SMALL_RINGS[..], &["--stats", "--flow-inactive-timeout", "4s"]].concat())?;
    let message = format!("samples found no room in the ring of CPU {CPU}");
    let (pair, continued) = on_cpu(CPU, || {
        let pair = Pair::open()?;
        signal(&monitor, Signal::SIGSTOP)?;
        pair.send(DATAGRAMS)?;
        signal(&monitor, Signal::SIGCONT)?;
        Ok((pair, Instant::now()))
    })?;
    wait_until("the loss to be reported", || Ok(monitor.log().contains(&message)))?;
    let took = continued.elapsed();
    ensure!(took < SOON, "the loss was reported after {took:?}");
    // The sockets are still open and idle.
    let document = document(&monitor, pair.ends, "egress")?;
    ensure!(document["flow"]["inexact"] == json!(["samples_lost"]), "not marked: {document:#}");
    let seen = number(&document, "/network/packets")?;
    let stats = monitor.stop()?.statistics()?;
    let lost = number(&stats, &format!("/lost_by_cpu/{CPU}"))?;
    // Apart from the datagrams, there are few samples.
    ensure!((DATAGRAMS - seen..2 * DATAGRAMS + 1000).contains(&lost), "{seen} seen, {lost} lost: {stats}");
    Ok(())
}

/// A flow begins while samples are lost, and continues after the loss was reported. It is not reported as complete.
fn a_flow_whose_first_packets_were_lost() -> Result<()> {
    let monitor = Socktrail::flows(&[&SMALL_RINGS[..], &["--flow-inactive-timeout", "4s"]].concat())?;
    let message = format!("samples found no room in the ring of CPU {CPU}");
    let pair = on_cpu(CPU, || {
        let before = Pair::open()?;
        signal(&monitor, Signal::SIGSTOP)?;
        before.send(DATAGRAMS)?;
        let pair = Pair::open()?;
        pair.send(5)?;
        signal(&monitor, Signal::SIGCONT)?;
        wait_until("the loss to be reported", || Ok(monitor.log().contains(&message)))?;
        pair.send(2)?;
        Ok(pair)
    })?;
    let (from, to) = (pair.ends.0.port(), pair.ends.1.port());
    let is_of_both = |document: &Value| {
        let ports = ["source", "destination"].map(|end| document[end]["port"].as_u64());
        ports.contains(&Some(from.into())) && ports.contains(&Some(to.into()))
    };
    let mut documents = Vec::new();
    wait_until("the flows of both ends", || {
        documents = monitor.documents()?.into_iter().filter(is_of_both).collect();
        Ok(documents.len() == 2)
    })?;
    for document in documents {
        ensure!(document["flow"]["inexact"] == json!(["samples_lost"]), "not marked: {document:#}");
        ensure!(document["flow"]["complete"] == json!(false), "its beginning was not seen: {document:#}");
        ensure!(number(&document, "/network/packets")? < 7, "all packets were counted: {document:#}");
    }
    let output = monitor.stop()?;
    ensure!(output.status.success(), "socktrail ended with {}:\n{}", output.status, output.log);
    Ok(())
}

/// `maxactive` of the kretprobe that replaces the best probe for accepts.
const MAX_ACTIVE: usize = 1024;
/// The number of tasks in `accept(2)`.
const WAITING: usize = MAX_ACTIVE + 40;

/// More tasks wait in `accept(2)` than the kretprobe has instances. The misses that the kernel counts are reported,
/// with the probe. They mark no flow whose packets were all counted; owners are right or unknown.
fn more_waiting_tasks_than_kretprobe_instances() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let monitor = Socktrail::flows(&["--stats", "--mask", "security_sock_graft", "--flow-termination-timeout", "3s"])?;
    // Before Linux 5.13 a waiting task already has its new descriptor.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most.min(4 * WAITING as u64), most)?;
    let listener = Arc::new(TcpListener::bind("127.0.0.1:0")?);
    let _shutdown = ShutdownOnDrop(Arc::clone(&listener));
    let there = listener.local_addr()?;
    let before = TcpStream::connect(there)?;
    let (_accepted, open) = listener.accept()?;
    let servers = (0..WAITING).map(|_| answer_one(Arc::clone(&listener))).collect::<Result<Vec<_>>>()?;
    wait_until("all of them to wait", || Ok(waiting_in_accept()? == WAITING))?;
    let missed = tracefs.missed_by(ACCEPT)?;
    ensure!(missed >= (WAITING - MAX_ACTIVE) as u64, "only {missed} were missed");
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
    wait_until("a document of each", || {
        documents = monitor.documents()?;
        Ok(documents.iter().filter(|one| is_direction(one, "ingress")).count() >= WAITING)
    })?;
    let accepted: BTreeMap<_, _> = documents.iter().filter(|one| is_direction(one, "ingress")).map(by_source).collect();
    for client in clients {
        let document = accepted.get(&Some(client)).with_context(|| format!("no document of {client}"))?;
        let owner = &document["process"]["pid"];
        ensure!(owner.is_null() || *owner == ours, "not this process: {document:#}");
    }
    let is_marked = |document: &Value| document["flow"]["inexact"] == json!(["samples_lost"]);
    let unowned = accepted.values().filter(|document| document["process"].is_null()).count() as u64;
    drop(before);
    let before = document(&monitor, (open, there), "egress")?;
    let missed = tracefs.missed_by(ACCEPT)?;
    let stats = monitor.stop()?.statistics()?;
    let misses = number(&stats, "/probe_misses")?;
    let accepts = number(&stats, &format!("/misses_by_probe/{ACCEPT}"))?;
    ensure!(accepts >= missed, "{accepts} of {missed} missed hits are reported");
    ensure!(accepts >= (WAITING - MAX_ACTIVE) as u64, "only {accepts} misses are reported for the probe");
    ensure!(unowned <= accepts, "{unowned} have no owner, and {accepts} accepts were missed");
    // An interrupt while a probe is handled may make other probes miss hits, too.
    let free = stats["misses_by_probe"]["socket_free"].as_u64().unwrap_or_default();
    if accepts + free == misses {
        let marked: Vec<_> = accepted.values().filter(|one| one["process"].is_null() && is_marked(one)).collect();
        ensure!(marked.is_empty(), "marked, although only the owner is unknown: {marked:#?}");
        ensure!(!is_marked(&before), "marked, but this end accepts nothing: {before:#}");
    }
    Ok(())
}

/// Shuts the listener down on drop, which ends threads in `accept(2)`.
struct ShutdownOnDrop(Arc<TcpListener>);

impl Drop for ShutdownOnDrop {
    fn drop(&mut self) {
        shutdown(self.0.as_raw_fd(), Shutdown::Both).ok();
    }
}

fn by_source(document: &Value) -> (Option<SocketAddr>, &Value) {
    (endpoint(document, "source"), document)
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

/// The number of [`SERVER`] threads in `accept(2)`. Threads of earlier tests have other names.
fn waiting_in_accept() -> Result<usize> {
    let threads = fs::read_dir("/proc/self/task")?.flatten();
    let read = |thread: &fs::DirEntry, file: &str| fs::read_to_string(thread.path().join(file)).ok();
    let servers = threads.filter(|thread| read(thread, "comm").is_some_and(|name| name.trim_end() == SERVER));
    let calls = servers.filter_map(|thread| read(&thread, "syscall"));
    let accept = libc::SYS_accept4.to_string();
    Ok(calls.filter(|call| call.split(' ').next() == Some(&*accept)).count())
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

fn signal(monitor: &Socktrail, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(monitor.pid.cast_signed()), signal).with_context(|| format!("send {signal}"))
}

fn is_direction(document: &Value, direction: &str) -> bool {
    document["network"]["direction"] == direction
}

fn document(monitor: &Socktrail, (from, to): (SocketAddr, SocketAddr), direction: &str) -> Result<Value> {
    monitor.wait_for(&format!("the document of {from} to {to}, {direction}"), |document| {
        endpoint(document, "source") == Some(from)
            && endpoint(document, "destination") == Some(to)
            && is_direction(document, direction)
    })
}
