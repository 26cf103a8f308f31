//! Checks what a program that embeds the library relies on: it gets flows; two monitors in it see the same ones; dropping one
//! removes its probes and threads, and does not affect the other.
//!
//! `embedding TRACEFS` runs as root. It ends with status 0 if all of this is true, and otherwise prints what is not.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use socktrail::clock::TimeSource;
use socktrail::{Clock, Endpoint, Flow, Handler, Monitor, Owner, Received, Timestamp};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The timeout of each wait.
const TIMEOUT: Duration = Duration::from_secs(20);
/// 2001-09-09T01:46:40Z, by `date -u -d @1000000000`.
const LONG_AGO: u64 = 1_000_000_000_000_000_000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => {
            println!("embedding: all holds");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("embedding: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let tracefs: PathBuf = std::env::args_os().nth(1).ok_or("where is tracefs?")?.into();
    check_failed_start()?;

    let builder = Monitor::builder()
        .tracefs_path(&tracefs)
        .flow_termination_timeout(Duration::from_millis(200))
        .own_process(true);
    let first = builder.clone().time(TimeSource::new(|| Timestamp::from_unix_nanos(LONG_AGO))).start()?;
    let threads_of_one = threads()?;
    let second = builder.start()?;
    expect(groups(&tracefs)?.len() == 2, "each monitor has probes of its own")?;

    let endpoints = connect_to_self()?;
    let (by_first, by_second) = (both_flows(&first, endpoints)?, both_flows(&second, endpoints)?);
    for (one, other) in by_first.iter().zip(&by_second) {
        let facts = |flow: &Flow| (flow.local, flow.remote, flow.sent, flow.received, flow.direction, flow.complete);
        expect(facts(one) == facts(other), &format!("both monitors see the same flow: {one:?} and {other:?}"))?;
        expect(is_ours(one) && is_ours(other), "both flows belong to this process")?;
    }
    let wall = first.clock().wall(by_first[0].end).unix_nanos();
    expect(wall.abs_diff(LONG_AGO) < 60_000_000_000, "a monitor uses its own time source")?;
    let wall = second.clock().wall(by_second[0].end).unix_nanos();
    expect(wall > LONG_AGO + 1_000_000_000_000_000, "the other monitor uses the wall clock")?;

    let both = groups(&tracefs)?;
    drop(first);
    let left = groups(&tracefs)?;
    expect(left.len() == 1 && left.is_subset(&both), &format!("one group of {both:?} is left, not {left:?}"))?;
    expect(wait_for_thread_count(threads_of_one)?, "the threads of the dropped monitor are gone")?;

    let endpoints = connect_to_self()?;
    let mut counter = FlowCounter { endpoints, seen: 0, deadline: Instant::now() + TIMEOUT };
    second.run(&mut counter);
    expect(counter.seen == 2, "the other monitor continues, and hands both flows to a handler")?;

    second.stop();
    expect(second.flows().count() < 100, "the flows of a stopped monitor come to an end")?;
    drop(second);
    expect(groups(&tracefs)?.is_empty(), "no probe is left")?;
    expect(wait_for_thread_count(1)?, "no thread is left")
}

/// A failed start returns an error with a type and the reason.
fn check_failed_start() -> Result<()> {
    let error = Monitor::builder().tracefs_path("/proc").start().err().ok_or("/proc was taken for a tracefs")?;
    expect(matches!(error, socktrail::Error::Kprobes(_)), "the error has a type")?;
    expect(error.to_string().contains("/proc"), "the error names the path")
}

/// Waits for the client's and the server's flow of a conversation, in this order.
fn both_flows(monitor: &Monitor, (client, server): (Endpoint, Endpoint)) -> Result<[Flow; 2]> {
    let (mut of_client, mut of_server) = (None, None);
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        let Received::Flow(flow) = monitor.recv(Duration::from_millis(100)) else { continue };
        match (flow.local, flow.remote) {
            endpoints if endpoints == (client, server) => of_client = Some(*flow),
            endpoints if endpoints == (server, client) => of_server = Some(*flow),
            _ => {}
        }
        if let (Some(_), Some(_)) = (&of_client, &of_server) {
            break;
        }
    }
    Ok([of_client.ok_or("the client's flow did not come")?, of_server.ok_or("the server's flow did not come")?])
}

fn is_ours(flow: &Flow) -> bool {
    matches!(&flow.owner, Owner::Process(process) if process.pid == std::process::id())
}

/// Counts the flows of one conversation.
struct FlowCounter {
    endpoints: (Endpoint, Endpoint),
    seen: usize,
    deadline: Instant,
}

impl Handler for FlowCounter {
    fn flow(&mut self, flow: Flow, _clock: Clock) -> ControlFlow<()> {
        let (client, server) = self.endpoints;
        self.seen += usize::from([(client, server), (server, client)].contains(&(flow.local, flow.remote)));
        if self.seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn idle(&mut self) -> ControlFlow<()> {
        if Instant::now() < self.deadline { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

/// Opens a TCP connection to this process and sends data over it. Returns the endpoints of client and server.
fn connect_to_self() -> Result<(Endpoint, Endpoint)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, from) = listener.accept()?;
    client.write_all(b"what is the time?")?;
    let mut question = [0; 17];
    server.read_exact(&mut question)?;
    let endpoint = |address: SocketAddr| Endpoint::new(address.ip(), address.port());
    Ok((endpoint(from), endpoint(listener.local_addr()?)))
}

/// The groups of probes that the kernel knows.
fn groups(tracefs: &Path) -> Result<BTreeSet<String>> {
    let probes = fs::read_to_string(tracefs.join("kprobe_events"))?;
    // `p:GROUP/EVENT function arguments`
    let group = |line: &str| Some(line.split_once(':')?.1.split_once('/')?.0.to_owned());
    Ok(probes.lines().filter_map(group).collect())
}

/// How many threads this process has.
fn threads() -> Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

/// Waits until this process has this many threads, because the kernel still lists a joined thread for a moment. Returns whether it
/// has.
fn wait_for_thread_count(count: usize) -> Result<bool> {
    let deadline = Instant::now() + TIMEOUT;
    while threads()? != count {
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(true)
}

fn expect(holds: bool, what: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(format!("does not hold: {what}").into()) }
}
