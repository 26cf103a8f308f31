//! The documents of real programs' flows say what was run.

use std::collections::HashSet;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::wait::waitpid;
use nix::unistd::getppid;
use serde_json::{Value, json};

use crate::actors::{ACT, EXECUTABLE, PROGRAM};
use crate::helpers::community_id::{TCP, UDP, community_id};
use crate::helpers::document::{Wanted, end, expect, expect_times, is_between, number, time};
use crate::helpers::process::{Process, USER};
use crate::helpers::socktrail::Socktrail;
use crate::helpers::sys::fork;
use crate::helpers::web::WebServer;

tests![
    curl_over_ipv4,
    curl_over_ipv6,
    curl_of_a_normal_user_over_ipv4,
    curl_of_a_normal_user_over_ipv6,
    udp_over_ipv4,
    udp_over_ipv6,
    a_datagram_that_a_link_cuts,
    long_and_empty_arguments,
    arguments_beyond_a_sample,
    empty_arguments_beyond_a_sample,
    a_refused_connect_over_ipv4,
    a_refused_connect_over_ipv6,
    a_program_that_lives_for_milliseconds,
    a_process_without_a_program_of_its_own,
    a_server_younger_than_the_monitor,
    the_whole_story,
];

/// Where the web server listens that is older than the monitor.
const PORT: u16 = 8080;
/// Where one listens that is younger.
const YOUNG_PORT: u16 = 8081;
const V4: &str = "127.0.0.1:8080";
const V6: &str = "[::1]:8080";

/// Who runs a program.
#[derive(Debug, Clone, Copy)]
enum Account {
    Root,
    User,
}

fn curl_over_ipv4() -> Result<()> {
    curl(Account::Root, V4, &[])
}

fn curl_over_ipv6() -> Result<()> {
    curl(Account::Root, V6, &[])
}

fn curl_of_a_normal_user_over_ipv4() -> Result<()> {
    curl(Account::User, V4, &[])
}

fn curl_of_a_normal_user_over_ipv6() -> Result<()> {
    curl(Account::User, V6, &[])
}

/// More than 600 bytes, and an argument of no bytes.
fn long_and_empty_arguments() -> Result<()> {
    let header = format!("X-Long: {}", "0123456789".repeat(64));
    curl(Account::Root, V4, &["--user-agent", "", "--header", &header])
}

/// A real client of a web server that was there before the monitor.
fn curl(account: Account, address: &str, more: &[&str]) -> Result<()> {
    let stage = stage()?;
    let url = format!("http://{address}/");
    let args = [&["curl", "-sS", "-o", "/dev/null", "-w", "%{local_port}", &url], more].concat();
    let curl = match account {
        Account::Root => Process::start(&args)?,
        Account::User => Process::start_as_user(&args)?,
    };
    let client = Known::of(&curl, "curl", "/usr/bin/curl", account);
    let curl = curl.finish()?;
    let there: SocketAddr = address.parse()?;
    let port = curl.stdout.parse().with_context(|| format!("{curl:?}"))?;
    let exchange = Exchange { protocol: TCP, client: SocketAddr::new(there.ip(), port), server: there };
    exchange.check(&stage, &client, &web_server(&stage.server))
}

fn udp_over_ipv4() -> Result<()> {
    udp("127.0.0.1:0")
}

fn udp_over_ipv6() -> Result<()> {
    udp("[::1]:0")
}

/// What loopback has to cut is counted so and marked, though it would fit an Ethernet frame; what it carries whole is not.
fn a_datagram_that_a_link_cuts() -> Result<()> {
    let _small = LoopbackMtu::set(1280)?;
    let watch = Socktrail::flows(&["--flow-termination-timeout", "500ms"])?;
    for (payload, fragments, marks) in [(1400, 2, json!(["fragments"])), (1200, 0, Value::Null)] {
        let (from, to) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
        let before = fragments_made()?;
        from.send_to(&vec![0; payload], to.local_addr()?)?;
        to.recv(&mut [0])?;
        let made = fragments_made()? - before;
        ensure!(made == fragments, "the kernel made {made} fragments of {payload} bytes");
        let ends = (Some(from.local_addr()?), Some(to.local_addr()?));
        drop((from, to));
        let document = watch.wait_for("the datagram's flow", |document| {
            (end(document, "source"), end(document, "destination")) == ends
                && document["network"]["direction"] == "egress"
        })?;
        ensure!(document["flow"]["inexact"] == marks, "{payload} bytes: {document:#}");
        ensure!(document["source"]["packets"] == made.max(1), "{made} fragments: {document:#}");
    }
    Ok(())
}

/// `FragCreates` of `/proc/net/snmp`, of this thread's network namespace.
pub(crate) fn fragments_made() -> Result<u64> {
    let snmp = fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut of_ip = snmp.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = of_ip.next().zip(of_ip.next()).context("two lines of Ip")?;
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(name, _)| *name == "FragCreates").context("FragCreates")?;
    Ok(value.parse()?)
}

/// Another MTU of loopback, until it is dropped.
struct LoopbackMtu;

impl LoopbackMtu {
    fn set(mtu: u32) -> Result<Self> {
        let changed = Command::new("ip").args(["link", "set", "lo", "mtu", &mtu.to_string()]).status()?;
        ensure!(changed.success(), "ip ended with {changed}");
        Ok(Self)
    }
}

impl Drop for LoopbackMtu {
    fn drop(&mut self) {
        let _ = Self::set(65_536).map(std::mem::forget);
    }
}

/// A question and its answer, both of processes that the monitor sees start.
fn udp(address: &str) -> Result<()> {
    let stage = stage()?;
    let mut answer = Process::start(&[PROGRAM, ACT, "udp-answer", address])?;
    let server = actor(&answer);
    let there = answer.first_line()?;
    let mut ask = Process::start(&[PROGRAM, ACT, "udp-ask", &there])?;
    let client = actor(&ask);
    let exchange = Exchange { protocol: UDP, client: ask.first_line()?.parse()?, server: there.parse()? };
    ended_well(ask)?;
    ended_well(answer)?;
    exchange.check(&stage, &client, &server)
}

fn arguments_beyond_a_sample() -> Result<()> {
    long_arguments(&["last"])
}

fn empty_arguments_beyond_a_sample() -> Result<()> {
    long_arguments(&["", "last", ""])
}

/// More than any sample holds; the program lives long enough for a look at `/proc`.
fn long_arguments(more: &[&str]) -> Result<()> {
    let stage = stage()?;
    let mut serve = Process::start(&[PROGRAM, ACT, "tcp-serve", "127.0.0.1:0", "1"])?;
    let server = actor(&serve);
    let there = serve.first_line()?;
    let long = "argument ".repeat(1000);
    let mut ask = Process::start(&[&[PROGRAM, ACT, "tcp-ask", &there, "1000", &long], more].concat())?;
    let client = actor(&ask);
    let exchange = Exchange { protocol: TCP, client: ask.first_line()?.parse()?, server: there.parse()? };
    ended_well(ask)?;
    ended_well(serve)?;
    exchange.check(&stage, &client, &server)
}

/// One that does nothing but connect: `nc -z` closes as soon as it is connected.
fn a_program_that_lives_for_milliseconds() -> Result<()> {
    let stage = stage()?;
    let mut serve = Process::start(&[PROGRAM, ACT, "tcp-serve", "127.0.0.1:0", "1"])?;
    let server = actor(&serve);
    let there: SocketAddr = serve.first_line()?.parse()?;
    let knock = Process::start(&["nc.openbsd", "-n", "-z", "127.0.0.1", &there.port().to_string()])?;
    let client = Known::of(&knock, "nc.openbsd", "/usr/bin/nc.openbsd", Account::Root);
    ended_well(knock)?;
    ended_well(serve)?;
    let here = stage.watch.wait_for("the client's document", |document| document["process"]["pid"] == client.pid)?;
    let port = number(&here, "/source/port")?.try_into()?;
    let exchange = Exchange { protocol: TCP, client: SocketAddr::new(there.ip(), port), server: there };
    exchange.check(&stage, &client, &server)
}

/// A child that connects and ends, without an exec in between: it has its parent's program, and its own id.
fn a_process_without_a_program_of_its_own() -> Result<()> {
    let stage = stage()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let there = listener.local_addr()?;
    let started = SystemTime::now();
    let child = fork(|| TcpStream::connect(there).is_ok())?;
    let running = SystemTime::now();
    let (connection, here) = listener.accept()?;
    waitpid(child, None)?;
    drop(connection);
    let server = Known::this_process();
    let client = Known { pid: child.as_raw().cast_unsigned(), parent: server.pid, started, running, ..server.clone() };
    Exchange { protocol: TCP, client: here, server: there }.check(&stage, &client, &server)
}

/// A server that starts, listens and forks under the monitor's eyes.
fn a_server_younger_than_the_monitor() -> Result<()> {
    let stage = stage()?;
    let server = WebServer::start(YOUNG_PORT)?;
    let url = format!("http://127.0.0.1:{YOUNG_PORT}/");
    let curl = Process::start(&["curl", "-sS", "-o", "/dev/null", "-w", "%{local_port}", &url])?;
    let client = Known::of(&curl, "curl", "/usr/bin/curl", Account::Root);
    let curl = curl.finish()?;
    let (here, there) = (format!("127.0.0.1:{}", curl.stdout).parse()?, SocketAddr::from(([127, 0, 0, 1], YOUNG_PORT)));
    Exchange { protocol: TCP, client: here, server: there }.check(&stage, &client, &web_server(&server))
}

fn a_refused_connect_over_ipv4() -> Result<()> {
    refused("127.0.0.1:1")
}

fn a_refused_connect_over_ipv6() -> Result<()> {
    refused("[::1]:1")
}

/// A knock on a port that nobody listens on: one document, which says so.
fn refused(address: &str) -> Result<()> {
    let stage = stage()?;
    let curl = Process::start(&["curl", "-sS", &format!("http://{address}/")])?;
    let client = Known::of(&curl, "curl", "/usr/bin/curl", Account::Root);
    let curl = curl.finish()?;
    ensure!(curl.status == 7, "curl's status for a refused connect is 7: {curl:?}");
    let found = stage.watch.wait_for("the document", |document| document["process"]["pid"] == client.pid)?;
    let there: SocketAddr = address.parse()?;
    let here = SocketAddr::new(there.ip(), number(&found, "/source/port")?.try_into()?);

    let exchange = Exchange { protocol: TCP, client: here, server: there };
    let document = exchange.documents_since(client.started, &stage.watch)?;
    let [document] = &document[..] else { bail!("not one document: {document:#?}") };
    expect(document, &exchange.wanted(Side::Client, "failure"))?;
    expect(document, &client.wanted())?;
    expect(document, &vec![("/error/code", json!("ECONNREFUSED")), ("/error/message", json!("Connection refused"))])?;
    expect_times(document, client.started, curl.ended)
}

/// The monitor was well all the time, has not seen itself, and has told no flow twice.
fn the_whole_story() -> Result<()> {
    let Stage { watch, .. } = take_stage()?;
    let own = watch.pid;
    let watched = watch.stop()?;
    ensure!(watched.status.success(), "socktrail ended with {}:\n{}", watched.status, watched.log);
    ensure!(!watched.documents.is_empty(), "there was nothing to see");
    ensure!(watched.of_pid(own).is_empty(), "socktrail reports itself: {:#?}", watched.of_pid(own));
    let mut seen = HashSet::new();
    for document in &watched.documents {
        let ends = (end(document, "source"), end(document, "destination"));
        let flow = (ends, document["process"]["pid"].as_u64(), document["event"]["start"].as_str());
        ensure!(seen.insert(flow), "a second document of {flow:?}: {:#?}", watched.documents);
    }
    Ok(())
}

/// What all tests here have in common: starting a monitor takes longer than a test.
struct Stage {
    /// Older than the monitor.
    server: WebServer,
    /// A monitor that does not wait long for packets that come after the end.
    watch: Socktrail,
}

static STAGE: Mutex<Option<Arc<Stage>>> = Mutex::new(None);

/// The stage, set up by the first who asks.
fn stage() -> Result<Arc<Stage>> {
    let mut stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
    if stage.is_none() {
        let server = WebServer::start(PORT)?;
        *stage = Some(Arc::new(Stage { server, watch: Socktrail::flows(&["--flow-termination-timeout", "500ms"])? }));
    }
    stage.clone().context("the stage is set up")
}

/// The stage, for the last who asks.
fn take_stage() -> Result<Stage> {
    let stage = stage()?;
    STAGE.lock().unwrap_or_else(PoisonError::into_inner).take();
    Arc::into_inner(stage).context("a test still uses the stage")
}

fn ended_well(process: Process) -> Result<()> {
    let finished = process.finish()?;
    ensure!(finished.status == 0, "{finished:?}");
    Ok(())
}

/// The two ends of a conversation.
#[derive(Debug)]
struct Exchange {
    protocol: u8,
    client: SocketAddr,
    server: SocketAddr,
}

/// Whose document it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

impl Exchange {
    /// Waits for the documents of both sides, and checks them: one each, and each as it should be.
    fn check(&self, stage: &Stage, client: &Known, server: &Known) -> Result<()> {
        for known in [client, server] {
            let what = format!("the document of {}", known.name);
            let is_of = |document: &Value| self.is_of(document) && document["process"]["pid"] == known.pid;
            stage.watch.wait_for(&what, is_of)?;
        }
        let latest = SystemTime::now();
        let documents = self.documents_since(client.started, &stage.watch)?;
        let [one, other] = &documents[..] else { bail!("not two documents: {documents:#?}") };
        let (of_client, of_server) = if one["process"]["pid"] == client.pid { (one, other) } else { (other, one) };
        for (document, side, known) in [(of_client, Side::Client, client), (of_server, Side::Server, server)] {
            expect(document, &self.wanted(side, "success"))?;
            expect(document, &known.wanted())?;
            known.check_start(document)?;
            // The server's side begins when the client is there.
            expect_times(document, client.started, latest)?;
            mirrored(document)?;
        }
        Ok(())
    }

    /// All documents of this conversation so far, not of one that had the same ports earlier.
    fn documents_since(&self, earliest: SystemTime, watch: &Socktrail) -> Result<Vec<Value>> {
        let is_since = |document: &Value| time(document, "/event/start").is_ok_and(|start| start >= earliest);
        Ok(watch.documents()?.into_iter().filter(|document| self.is_of(document) && is_since(document)).collect())
    }

    fn is_of(&self, document: &Value) -> bool {
        is_between(document, self.client, self.server)
    }

    /// What a document of this conversation says of it.
    fn wanted(&self, side: Side, outcome: &str) -> Wanted {
        vec![
            ("/event/kind", json!("event")),
            ("/event/action", json!("network_flow")),
            ("/event/category", json!(["network"])),
            ("/event/type", json!(["connection", "end"])),
            ("/event/outcome", json!(outcome)),
            ("/flow/final", json!(true)),
            ("/flow/complete", json!(true)),
            ("/source/ip", json!(self.client.ip().to_string())),
            ("/source/port", json!(self.client.port())),
            ("/destination/ip", json!(self.server.ip().to_string())),
            ("/destination/port", json!(self.server.port())),
            ("/network/transport", json!(if self.protocol == TCP { "tcp" } else { "udp" })),
            ("/network/iana_number", json!(self.protocol.to_string())),
            ("/network/type", json!(if self.client.is_ipv4() { "ipv4" } else { "ipv6" })),
            ("/network/direction", json!(if side == Side::Client { "egress" } else { "ingress" })),
            ("/network/community_id", json!(community_id(self.protocol, self.client, self.server))),
        ]
    }
}

/// Fails unless something went both ways, sums are sums, and mirrors are mirrors.
fn mirrored(document: &Value) -> Result<()> {
    for what in ["packets", "bytes"] {
        let from = number(document, &format!("/source/{what}"))?;
        let to = number(document, &format!("/destination/{what}"))?;
        ensure!(from > 0 && to > 0, "no {what} one way: {document:#}");
        ensure!(number(document, &format!("/network/{what}"))? == from + to, "{what} do not add up: {document:#}");
    }
    ensure!(document["client"] == document["source"], "client is not source: {document:#}");
    ensure!(document["server"] == document["destination"], "server is not destination: {document:#}");
    Ok(())
}

/// What the test knows of a process, because it started it.
#[derive(Debug, Clone)]
struct Known {
    pid: u32,
    parent: u32,
    name: String,
    executable: String,
    args: Vec<String>,
    account: Account,
    /// Before its start.
    started: SystemTime,
    /// After its start.
    running: SystemTime,
}

impl Known {
    fn of(process: &Process, name: &str, executable: &str, account: Account) -> Self {
        Self {
            pid: process.pid,
            parent: std::process::id(),
            name: name.to_owned(),
            executable: executable.to_owned(),
            args: process.args.clone(),
            account,
            started: process.started,
            running: process.running,
        }
    }

    /// The tests themselves.
    fn this_process() -> Self {
        Self {
            pid: std::process::id(),
            parent: getppid().as_raw().cast_unsigned(),
            name: PROGRAM.to_owned(),
            executable: EXECUTABLE.to_owned(),
            args: std::env::args().collect(),
            account: Account::Root,
            started: SystemTime::UNIX_EPOCH,
            running: SystemTime::now(),
        }
    }

    /// What a document of this process's says of it.
    fn wanted(&self) -> Wanted {
        let (id, name) = match self.account {
            Account::Root => ("0".to_owned(), "root"),
            Account::User => (USER.to_string(), "user"),
        };
        vec![
            ("/system/audit/socket/owner", json!("process")),
            ("/system/audit/socket/args_cut", Value::Null),
            ("/process/pid", json!(self.pid)),
            ("/process/parent/pid", json!(self.parent)),
            ("/process/name", json!(self.name)),
            ("/process/executable", json!(self.executable)),
            ("/process/args", json!(self.args)),
            ("/process/args_count", json!(self.args.len())),
            ("/user/id", json!(id)),
            ("/user/name", json!(name)),
            ("/user/effective/id", json!(id)),
            ("/group/id", json!(id)),
            ("/group/name", json!(name)),
        ]
    }

    /// Fails unless the process is said to have started when it did.
    fn check_start(&self, document: &Value) -> Result<()> {
        // The start of a process older than the monitor is known in ticks of 10 ms, and documents say it in milliseconds.
        let start = time(document, "/process/start")?;
        let is_right = start + Duration::from_millis(11) > self.started && start <= self.running;
        ensure!(is_right, "the process started between {:?} and {:?}: {document:#}", self.started, self.running);
        Ok(())
    }
}

/// One of the tests' own child processes.
fn actor(process: &Process) -> Known {
    Known::of(process, PROGRAM, EXECUTABLE, Account::Root)
}

/// busybox's web server: the process that accepts, whichever child of its answers.
fn web_server(server: &WebServer) -> Known {
    Known::of(&server.process, "httpd", "/usr/bin/busybox", Account::Root)
}
