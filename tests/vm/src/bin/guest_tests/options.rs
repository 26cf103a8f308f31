//! Keys of the agent's configuration whose effect only a kernel shows. `tests/options.rs` names the test of each key.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::helpers::document::{endpoint, time};
use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::tracefs::Tracefs;
use crate::helpers::wait::wait_until;
use crate::wall_clock::step_clock;

tests![
    what_is_watched,
    where_the_layout_comes_from,
    where_names_are_listened_to,
    how_far_the_wall_clock_may_move,
    how_often_clocks_are_compared,
    the_disk_gets_it_when_it_should,
];

const FOLDER: &str = "/tmp/options";
const PAGE: usize = 4096;

fn what_is_watched() -> Result<()> {
    let refused = refused("socket.tracefs_path: /proc\n")?;
    ensure!(refused.contains("/proc"), "{refused}");

    let usual = agent("")?;
    let narrow = agent("socket: {ring_size_exponent: 3, enable_ipv6: false, mask: [tcp_v4_connect]}\n")?;
    let rings = |agent: &Socktrail| -> Result<Vec<usize>> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", agent.pid))?;
        maps.lines().filter(|line| line.contains("[perf_event]")).map(length).collect()
    };
    // A ring has one page of metadata before its 2^n pages.
    ensure!(rings(&usual)?.contains(&(129 * PAGE)), "{:?}", rings(&usual)?);
    ensure!(rings(&narrow)?.contains(&(9 * PAGE)), "{:?}", rings(&narrow)?);
    ensure!(
        narrow.log().contains("missing or limited: ") && narrow.log().contains("tcp_v4_connect"),
        "{}",
        narrow.log()
    );
    ensure!(!usual.log().contains("tcp_v4_connect"), "{}", usual.log());

    let (v4, v6) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("[::1]:0")?);
    let mut ends = Vec::new();
    for listener in [&v6, &v4] {
        let client = TcpStream::connect(listener.local_addr()?)?;
        ends.push((client.local_addr()?, client.peer_addr()?));
    }
    let is = |document: &Value, ends: (_, _)| {
        endpoint(document, "source") == Some(ends.0) && endpoint(document, "destination") == Some(ends.1)
    };
    usual.wait_for("a flow of IPv6", |document| is(document, ends[0]))?;
    narrow.wait_for("a flow of IPv4", |document| is(document, ends[1]))?;
    let narrow = narrow.stop()?;
    ensure!(!narrow.documents.iter().any(|document| is(document, ends[0])), "{:#?}", narrow.documents);
    Ok(())
}

/// The length of a mapping in a line of `/proc/PID/maps`, in bytes.
fn length(line: &str) -> Result<usize> {
    let (start, rest) = line.split_once('-').context("no address range")?;
    let stop = rest.split(' ').next().context("no end of the range")?;
    Ok(usize::from_str_radix(stop, 16)? - usize::from_str_radix(start, 16)?)
}

fn where_the_layout_comes_from() -> Result<()> {
    let missing = refused("socket.source: file:/no/such/layout\n")?;
    ensure!(missing.contains("/no/such/layout"), "{missing}");
    let hasty = refused("socket: {source: guess, guess_timeout: 1us}\n")?;
    ensure!(hasty.contains("could be seen on this kernel"), "guesses within 1 µs: {hasty}");
    ensure!(agent("socket.source: guess\n")?.stop()?.status.success(), "the agent with guesses failed");
    Ok(())
}

fn where_names_are_listened_to() -> Result<()> {
    let before = packet_sockets()?;
    let with = |configuration: &str| -> Result<Vec<String>> {
        let agent = agent(configuration)?;
        let mut sockets = packet_sockets()?;
        sockets.retain(|socket| !before.contains(socket));
        agent.stop()?;
        Ok(sockets.iter().filter_map(|line| line.split_whitespace().nth(4)).map(str::to_owned).collect())
    };
    ensure!(with("")? == ["0"], "not one socket for all interfaces");
    ensure!(with("socket.dns.enabled: false\n")?.is_empty(), "there is a socket");
    // The index of loopback is 1 in every namespace.
    ensure!(with("socket.dns.af_packet.interface: lo\n")? == ["1"], "not one socket for lo");
    Ok(())
}

/// The `packet(7)` sockets: `sk RefCnt Type Proto Iface R Rmem User Inode`.
fn packet_sockets() -> Result<Vec<String>> {
    Ok(fs::read_to_string("/proc/net/packet")?.lines().skip(1).map(str::to_owned).collect())
}

/// The clock is set an hour forward. The times of flows follow, unless a drift of a day is allowed.
fn how_far_the_wall_clock_may_move() -> Result<()> {
    const HOUR: i64 = 3600;
    let agents = [agent("")?, agent("socket.clock_max_drift: 1day\n")?];
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let before = SystemTime::now();
    let _restore = step_clock(HOUR)?;
    // Clocks are compared ten times a second.
    std::thread::sleep(Duration::from_millis(500));
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (here, there) = (client.local_addr()?, client.peer_addr()?);
    drop((client, listener.accept()?));
    let half_an_hour = before + Duration::from_secs(1800);
    for (agent, follows) in agents.into_iter().zip([true, false]) {
        let document = agent.wait_for("the flow after the step", |document| {
            endpoint(document, "source") == Some(here) && endpoint(document, "destination") == Some(there)
        })?;
        ensure!((time(&document, "/event/start")? > half_an_hour) == follows, "{document:#}");
        agent.stop()?;
    }
    Ok(())
}

/// Without `use_clockid`, each comparison of clocks starts threads, which the test counts. This works after the agent
/// has dropped privileges, too.
fn how_often_clocks_are_compared() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let threads = |period: &str, meanwhile: &dyn Fn() -> Result<()>| -> Result<u64> {
        let agent = agent(&format!("socket: {{mask: [use_clockid], clock_sync_period: {period}}}\n"))?;
        let begun = tracefs.hits("wake_up_new_task", meanwhile)?;
        ensure!(!agent.log().contains("clock cannot be compared"), "{}", agent.log());
        agent.stop()?;
        Ok(begun)
    };
    let started = Instant::now();
    let often = threads("100ms", &|| wait_until("twenty threads", || Ok(tracefs.hits_so_far()? >= 20)))?;
    // The agent with the long period gets the same time.
    let as_long = started.elapsed();
    let seldom = threads("1h", &|| {
        std::thread::sleep(as_long);
        Ok(())
    })?;
    ensure!(often >= seldom + 10, "{often} threads with `100ms`, {seldom} with `1h`");
    Ok(())
}

/// Counts calls of `fdatasync(2)`; only the agent makes them.
fn the_disk_gets_it_when_it_should() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let calls = |configuration: &str| -> Result<usize> {
        let agent =
            agent(&format!("output.stdout.enabled: false\nsocket.flow_termination_timeout: 50ms\n{configuration}"))?;
        tracefs.write("trace", "")?;
        tracefs.write("events/syscalls/sys_enter_fdatasync/enable", "1")?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let file = format!("{FOLDER}/flows.json");
        for round in 1..=5 {
            drop((TcpStream::connect(listener.local_addr()?)?, listener.accept()?));
            let lines = || anyhow::Ok(fs::read_to_string(&file).unwrap_or_default().lines().count());
            wait_until("two more flows", || Ok(lines()? >= 2 * round))?;
        }
        // Time for a sync interval to pass.
        std::thread::sleep(Duration::from_millis(600));
        let count = tracefs.read("trace")?.lines().filter(|line| line.contains("sys_fdatasync(")).count();
        tracefs.write("events/syscalls/sys_enter_fdatasync/enable", "0")?;
        agent.end(Signal::SIGKILL)?;
        for left in ["flows.json", "spool/elasticsearch/position"] {
            fs::remove_file(format!("{FOLDER}/{left}")).ok();
        }
        Ok(count)
    };
    let file = |sync: &str| calls(&format!("output.file: {{path: {FOLDER}/flows.json, sync: {sync}}}\n"));
    let [never, always, often, seldom] = [file("never")?, file("always")?, file("10ms")?, file("1h")?];
    ensure!(never == 0 && seldom == 0, "{never} calls with `never`, {seldom} with `1h`");
    ensure!(always >= 5 && often >= 1, "{always} calls with `always`, {often} with `10ms`");
    let spool = |sync: &str| {
        calls(&format!(
            "output.file: {{path: {FOLDER}/flows.json, sync: never}}
output.elasticsearch.hosts: ['http://127.0.0.1:1']
spool: {{path: {FOLDER}/spool, sync: {sync}}}
"
        ))
    };
    let [often, seldom] = [spool("10ms")?, spool("1h")?];
    ensure!(often >= 1 && seldom == 0, "{often} calls with `10ms`, {seldom} with `1h`");
    Ok(())
}

/// Starts an agent that writes to standard output, and waits until it is ready.
fn agent(configuration: &str) -> Result<Socktrail> {
    Socktrail::start(&["agent", "--config", &write_configuration(configuration)?])
}

/// The standard error of an agent that must not start.
fn refused(configuration: &str) -> Result<String> {
    let ended = Process::start(&["socktrail", "agent", "--config", &write_configuration(configuration)?])?.finish()?;
    ensure!(ended.status != 0, "it started: {ended:?}");
    Ok(ended.stderr)
}

/// Writes the configuration; returns its path.
fn write_configuration(configuration: &str) -> Result<String> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(FOLDER)?;
    let path = format!("{FOLDER}/socktrail.yml");
    let output = if configuration.contains("output.stdout") { "" } else { "output.stdout.enabled: true\n" };
    fs::write(&path, format!("{output}{configuration}")).with_context(|| format!("write {path}"))?;
    Ok(path)
}
