//! The documents of real programs' flows have the right process and traffic.

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

use crate::helpers::community_id::{TCP, UDP, community_id};
use crate::helpers::document::{ExpectedFields, endpoint, expect, expect_times, is_between, number, time};
use crate::helpers::process::{Process, USER_ID};
use crate::helpers::socktrail::Socktrail;
use crate::helpers::sys::fork;
use crate::helpers::web::WebServer;
use crate::workloads::{EXECUTABLE, PROGRAM, RUN};

tests![
    curl_over_ipv4,
    curl_over_ipv6,
    curl_of_a_normal_user_over_ipv4,
    curl_of_a_normal_user_over_ipv6,
    udp_over_ipv4,
    udp_over_ipv6,
    a_fragmented_datagram,
    long_and_empty_arguments,
    arguments_larger_than_a_sample,
    empty_arguments_larger_than_a_sample,
    a_refused_connect_over_ipv4,
    a_refused_connect_over_ipv6,
    a_program_that_lives_for_milliseconds,
    a_process_without_an_exec,
    a_server_younger_than_the_monitor,
    no_flow_is_reported_twice,
];

/// The port of the web server that is older than the monitor.
const PORT: u16 = 8080;
/// The port of a web server that is younger.
const YOUNG_PORT: u16 = 8081;
const V4: &str = "127.0.0.1:8080";
const V6: &str = "[::1]:8080";

/// The user who runs a program.
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

/// More than 600 bytes of arguments, and an empty argument.
fn long_and_empty_arguments() -> Result<()> {
    let header = format!("X-Long: {}", "0123456789".repeat(64));
    curl(Account::Root, V4, &["--user-agent", "", "--header", &header])
}

/// curl gets a page from the web server that is older than the monitor.
fn curl(account: Account, address: &str, more: &[&str]) -> Result<()> {
    let fixture = fixture()?;
    let url = format!("http://{address}/");
    let args = [&["curl", "-sS", "-o", "/dev/null", "-w", "%{local_port}", &url], more].concat();
    let curl = match account {
        Account::Root => Process::start(&args)?,
        Account::User => Process::start_as_user(&args)?,
    };
    let client = ExpectedProcess::of(&curl, "curl", "/usr/bin/curl", account);
    let curl = curl.finish()?;
    let there: SocketAddr = address.parse()?;
    let port = curl.stdout.parse().with_context(|| format!("{curl:?}"))?;
    let exchange = Exchange { protocol: TCP, client: SocketAddr::new(there.ip(), port), server: there };
    exchange.check(&fixture, &client, &web_server(&fixture.server))
}

fn udp_over_ipv4() -> Result<()> {
    udp("127.0.0.1:0")
}

fn udp_over_ipv6() -> Result<()> {
    udp("[::1]:0")
}

/// A datagram that is larger than loopback's MTU counts as fragments and is marked; a smaller one is not.
fn a_fragmented_datagram() -> Result<()> {
    let _small = LoopbackMtu::set(1280)?;
    let monitor = Socktrail::flows(&["--flow-termination-timeout", "500ms"])?;
    for (payload, fragments, marks) in [(1400, 2, json!(["fragments"])), (1200, 0, Value::Null)] {
        let (from, to) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
        let before = fragments_created()?;
        from.send_to(&vec![0; payload], to.local_addr()?)?;
        to.recv(&mut [0])?;
        let made = fragments_created()? - before;
        ensure!(made == fragments, "the kernel made {made} fragments of {payload} bytes");
        let ends = (Some(from.local_addr()?), Some(to.local_addr()?));
        drop((from, to));
        let document = monitor.wait_for("the datagram's flow", |document| {
            (endpoint(document, "source"), endpoint(document, "destination")) == ends
                && document["network"]["direction"] == "egress"
        })?;
        ensure!(document["flow"]["inexact"] == marks, "{payload} bytes: {document:#}");
        ensure!(document["source"]["packets"] == made.max(1), "{made} fragments: {document:#}");
    }
    let output = monitor.stop()?;
    ensure!(output.status.success(), "socktrail ended with {}:\n{}", output.status, output.log);
    Ok(())
}

/// `FragCreates` of `/proc/net/snmp` in the calling thread's network namespace.
pub(crate) fn fragments_created() -> Result<u64> {
    let snmp = fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut of_ip = snmp.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = of_ip.next().zip(of_ip.next()).context("no Ip lines")?;
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(name, _)| *name == "FragCreates").context("no FragCreates")?;
    Ok(value.parse()?)
}

/// Sets the MTU of loopback; dropping it restores the default.
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

/// A datagram and its answer, between processes that start while the monitor runs.
fn udp(address: &str) -> Result<()> {
    let fixture = fixture()?;
    let mut answer = Process::start(&[PROGRAM, RUN, "udp-answer", address])?;
    let server = workload_process(&answer);
    let there = answer.first_line()?;
    let mut ask = Process::start(&[PROGRAM, RUN, "udp-ask", &there])?;
    let client = workload_process(&ask);
    let exchange = Exchange { protocol: UDP, client: ask.first_line()?.parse()?, server: there.parse()? };
    expect_success(ask)?;
    expect_success(answer)?;
    exchange.check(&fixture, &client, &server)
}

fn arguments_larger_than_a_sample() -> Result<()> {
    long_arguments(&["last"])
}

fn empty_arguments_larger_than_a_sample() -> Result<()> {
    long_arguments(&["", "last", ""])
}

/// More arguments than a sample holds. The program lives long enough for the monitor to read `/proc`.
fn long_arguments(more: &[&str]) -> Result<()> {
    let fixture = fixture()?;
    let mut serve = Process::start(&[PROGRAM, RUN, "tcp-serve", "127.0.0.1:0", "1"])?;
    let server = workload_process(&serve);
    let there = serve.first_line()?;
    let long = "argument ".repeat(1000);
    let mut ask = Process::start(&[&[PROGRAM, RUN, "tcp-ask", &there, "1000", &long], more].concat())?;
    let client = workload_process(&ask);
    let exchange = Exchange { protocol: TCP, client: ask.first_line()?.parse()?, server: there.parse()? };
    expect_success(ask)?;
    expect_success(serve)?;
    exchange.check(&fixture, &client, &server)
}

/// `nc -z` closes as soon as it is connected.
fn a_program_that_lives_for_milliseconds() -> Result<()> {
    let fixture = fixture()?;
    let mut serve = Process::start(&[PROGRAM, RUN, "tcp-serve", "127.0.0.1:0", "1"])?;
    let server = workload_process(&serve);
    let there: SocketAddr = serve.first_line()?.parse()?;
    let nc = Process::start(&["nc.openbsd", "-n", "-z", "127.0.0.1", &there.port().to_string()])?;
    let client = ExpectedProcess::of(&nc, "nc.openbsd", "/usr/bin/nc.openbsd", Account::Root);
    expect_success(nc)?;
    expect_success(serve)?;
    let here =
        fixture.monitor.wait_for("the client's document", |document| document["process"]["pid"] == client.pid)?;
    let port = number(&here, "/source/port")?.try_into()?;
    let exchange = Exchange { protocol: TCP, client: SocketAddr::new(there.ip(), port), server: there };
    exchange.check(&fixture, &client, &server)
}

/// A forked child connects and ends without an exec: it has its parent's program, and its own pid.
fn a_process_without_an_exec() -> Result<()> {
    let fixture = fixture()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let there = listener.local_addr()?;
    let before_start = SystemTime::now();
    let child = fork(|| TcpStream::connect(there).is_ok())?;
    let after_start = SystemTime::now();
    let (connection, here) = listener.accept()?;
    waitpid(child, None)?;
    drop(connection);
    let server = ExpectedProcess::this_process();
    let client = ExpectedProcess {
        pid: child.as_raw().cast_unsigned(),
        parent: server.pid,
        before_start,
        after_start,
        ..server.clone()
    };
    Exchange { protocol: TCP, client: here, server: there }.check(&fixture, &client, &server)
}

/// A server that starts, listens and forks while the monitor runs.
fn a_server_younger_than_the_monitor() -> Result<()> {
    let fixture = fixture()?;
    let server = WebServer::start(YOUNG_PORT)?;
    let url = format!("http://127.0.0.1:{YOUNG_PORT}/");
    let curl = Process::start(&["curl", "-sS", "-o", "/dev/null", "-w", "%{local_port}", &url])?;
    let client = ExpectedProcess::of(&curl, "curl", "/usr/bin/curl", Account::Root);
    let curl = curl.finish()?;
    let (here, there) = (format!("127.0.0.1:{}", curl.stdout).parse()?, SocketAddr::from(([127, 0, 0, 1], YOUNG_PORT)));
    Exchange { protocol: TCP, client: here, server: there }.check(&fixture, &client, &web_server(&server))
}

fn a_refused_connect_over_ipv4() -> Result<()> {
    refused("127.0.0.1:1")
}

fn a_refused_connect_over_ipv6() -> Result<()> {
    refused("[::1]:1")
}

/// A connect to a closed port has one document, with the error.
fn refused(address: &str) -> Result<()> {
    let fixture = fixture()?;
    let curl = Process::start(&["curl", "-sS", &format!("http://{address}/")])?;
    let client = ExpectedProcess::of(&curl, "curl", "/usr/bin/curl", Account::Root);
    let curl = curl.finish()?;
    ensure!(curl.status == 7, "curl must end with 7 (refused): {curl:?}");
    let found = fixture.monitor.wait_for("the document", |document| document["process"]["pid"] == client.pid)?;
    let there: SocketAddr = address.parse()?;
    let here = SocketAddr::new(there.ip(), number(&found, "/source/port")?.try_into()?);

    let exchange = Exchange { protocol: TCP, client: here, server: there };
    let document = exchange.documents_since(client.before_start, &fixture.monitor)?;
    let [document] = &document[..] else { bail!("not exactly one document: {document:#?}") };
    expect(document, &exchange.wanted(Side::Client, "failure"))?;
    expect(document, &client.wanted())?;
    expect(document, &vec![("/error/code", json!("ECONNREFUSED")), ("/error/message", json!("Connection refused"))])?;
    expect_times(document, client.before_start, curl.after_end)
}

/// The last test: the monitor ends with success, has not reported itself, and has reported no flow twice.
fn no_flow_is_reported_twice() -> Result<()> {
    let Fixture { monitor, .. } = take_fixture()?;
    let own = monitor.pid;
    let output = monitor.stop()?;
    ensure!(output.status.success(), "socktrail ended with {}:\n{}", output.status, output.log);
    ensure!(!output.documents.is_empty(), "there are no documents");
    ensure!(output.of_pid(own).is_empty(), "socktrail reports itself: {:#?}", output.of_pid(own));
    let mut seen = HashSet::new();
    for document in &output.documents {
        let ends = (endpoint(document, "source"), endpoint(document, "destination"));
        let flow = (ends, document["process"]["pid"].as_u64(), document["event"]["start"].as_str());
        ensure!(seen.insert(flow), "a second document of {flow:?}: {:#?}", output.documents);
    }
    Ok(())
}

/// Shared by all tests of this module, because starting a monitor takes longer than a test.
struct Fixture {
    /// Older than the monitor.
    server: WebServer,
    /// It has a short termination timeout.
    monitor: Socktrail,
}

static FIXTURE: Mutex<Option<Arc<Fixture>>> = Mutex::new(None);

/// The fixture; the first call sets it up.
fn fixture() -> Result<Arc<Fixture>> {
    let mut fixture = FIXTURE.lock().unwrap_or_else(PoisonError::into_inner);
    if fixture.is_none() {
        let server = WebServer::start(PORT)?;
        *fixture =
            Some(Arc::new(Fixture { server, monitor: Socktrail::flows(&["--flow-termination-timeout", "500ms"])? }));
    }
    fixture.clone().context("the fixture is not set up")
}

/// Takes the fixture, for the last test.
fn take_fixture() -> Result<Fixture> {
    let fixture = fixture()?;
    FIXTURE.lock().unwrap_or_else(PoisonError::into_inner).take();
    Arc::into_inner(fixture).context("a test still uses the fixture")
}

fn expect_success(process: Process) -> Result<()> {
    let finished = process.finish()?;
    ensure!(finished.status == 0, "{finished:?}");
    Ok(())
}

/// An exchange between a client and a server.
#[derive(Debug)]
struct Exchange {
    protocol: u8,
    client: SocketAddr,
    server: SocketAddr,
}

/// The side of a document's flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

impl Exchange {
    /// Waits for the documents of both sides. Fails unless each side has one, with the expected fields.
    fn check(&self, fixture: &Fixture, client: &ExpectedProcess, server: &ExpectedProcess) -> Result<()> {
        for known in [client, server] {
            let what = format!("the document of {}", known.name);
            let is_of = |document: &Value| self.is_of(document) && document["process"]["pid"] == known.pid;
            fixture.monitor.wait_for(&what, is_of)?;
        }
        let latest = SystemTime::now();
        let documents = self.documents_since(client.before_start, &fixture.monitor)?;
        let [one, other] = &documents[..] else { bail!("not two documents: {documents:#?}") };
        let (of_client, of_server) = if one["process"]["pid"] == client.pid { (one, other) } else { (other, one) };
        for (document, side, known) in [(of_client, Side::Client, client), (of_server, Side::Server, server)] {
            expect(document, &self.wanted(side, "success"))?;
            expect(document, &known.wanted())?;
            known.check_start(document)?;
            // The server's flow starts after the client.
            expect_times(document, client.before_start, latest)?;
            check_counts(document)?;
        }
        Ok(())
    }

    /// All documents of this exchange so far, without those of an earlier one with the same ports.
    fn documents_since(&self, earliest: SystemTime, monitor: &Socktrail) -> Result<Vec<Value>> {
        let is_since = |document: &Value| time(document, "/event/start").is_ok_and(|start| start >= earliest);
        Ok(monitor.documents()?.into_iter().filter(|document| self.is_of(document) && is_since(document)).collect())
    }

    fn is_of(&self, document: &Value) -> bool {
        is_between(document, self.client, self.server)
    }

    /// The fields of the exchange in the document of a side.
    fn wanted(&self, side: Side, outcome: &str) -> ExpectedFields {
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

/// Fails unless there are packets in both directions, `network.*` has the sums, and `client` and `server` are copies.
fn check_counts(document: &Value) -> Result<()> {
    for what in ["packets", "bytes"] {
        let from = number(document, &format!("/source/{what}"))?;
        let to = number(document, &format!("/destination/{what}"))?;
        ensure!(from > 0 && to > 0, "no {what} in one direction: {document:#}");
        ensure!(number(document, &format!("/network/{what}"))? == from + to, "{what} do not add up: {document:#}");
    }
    ensure!(document["client"] == document["source"], "client is not source: {document:#}");
    ensure!(document["server"] == document["destination"], "server is not destination: {document:#}");
    Ok(())
}

/// The expected process of a document.
#[derive(Debug, Clone)]
struct ExpectedProcess {
    pid: u32,
    parent: u32,
    name: String,
    executable: String,
    args: Vec<String>,
    account: Account,
    /// A time before its start.
    before_start: SystemTime,
    /// A time after its start.
    after_start: SystemTime,
}

impl ExpectedProcess {
    fn of(process: &Process, name: &str, executable: &str, account: Account) -> Self {
        Self {
            pid: process.pid,
            parent: std::process::id(),
            name: name.to_owned(),
            executable: executable.to_owned(),
            args: process.args.clone(),
            account,
            before_start: process.before_start,
            after_start: process.after_start,
        }
    }

    /// This process.
    fn this_process() -> Self {
        Self {
            pid: std::process::id(),
            parent: getppid().as_raw().cast_unsigned(),
            name: PROGRAM.to_owned(),
            executable: EXECUTABLE.to_owned(),
            args: std::env::args().collect(),
            account: Account::Root,
            before_start: SystemTime::UNIX_EPOCH,
            after_start: SystemTime::now(),
        }
    }

    /// The fields of the process in a document.
    fn wanted(&self) -> ExpectedFields {
        let (id, name) = match self.account {
            Account::Root => ("0".to_owned(), "root"),
            Account::User => (USER_ID.to_string(), "user"),
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

    /// Fails unless `process.start` is right.
    fn check_start(&self, document: &Value) -> Result<()> {
        // The start of a process older than the monitor is known in ticks of 10 ms, and documents have milliseconds.
        let start = time(document, "/process/start")?;
        let is_right = start + Duration::from_millis(11) > self.before_start && start <= self.after_start;
        ensure!(
            is_right,
            "the process started between {:?} and {:?}: {document:#}",
            self.before_start,
            self.after_start
        );
        Ok(())
    }
}

/// The process of a workload.
fn workload_process(process: &Process) -> ExpectedProcess {
    ExpectedProcess::of(process, PROGRAM, EXECUTABLE, Account::Root)
}

/// busybox's web server: the process that accepts connections, although a child answers them.
fn web_server(server: &WebServer) -> ExpectedProcess {
    ExpectedProcess::of(&server.process, "httpd", "/usr/bin/busybox", Account::Root)
}
