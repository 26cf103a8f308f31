//! Keys of the agent's configuration whose effect only a kernel shows.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::helpers::document::{end, time};
use crate::helpers::patience::until;
use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::tracefs::Tracefs;
use crate::wall_clock::set_clock;

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
    // A page of the kernel's own before the 2^n of samples.
    ensure!(rings(&usual)?.contains(&(129 * PAGE)), "{:?}", rings(&usual)?);
    ensure!(rings(&narrow)?.contains(&(9 * PAGE)), "{:?}", rings(&narrow)?);
    ensure!(narrow.log().contains("not seen: ") && narrow.log().contains("tcp_v4_connect"), "{}", narrow.log());
    ensure!(!usual.log().contains("tcp_v4_connect"), "{}", usual.log());

    let (v4, v6) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("[::1]:0")?);
    let mut ends = Vec::new();
    for listener in [&v6, &v4] {
        let client = TcpStream::connect(listener.local_addr()?)?;
        ends.push((client.local_addr()?, client.peer_addr()?));
    }
    let is = |document: &Value, ends: (_, _)| {
        end(document, "source") == Some(ends.0) && end(document, "destination") == Some(ends.1)
    };
    usual.wait_for("a flow of IPv6", |document| is(document, ends[0]))?;
    narrow.wait_for("a flow of IPv4", |document| is(document, ends[1]))?;
    let narrow = narrow.stop()?;
    ensure!(!narrow.documents.iter().any(|document| is(document, ends[0])), "{:#?}", narrow.documents);
    Ok(())
}

/// The bytes of a mapping: `START-END …`.
fn length(line: &str) -> Result<usize> {
    let (start, rest) = line.split_once('-').context("a range")?;
    let stop = rest.split(' ').next().context("its end")?;
    Ok(usize::from_str_radix(stop, 16)? - usize::from_str_radix(start, 16)?)
}

fn where_the_layout_comes_from() -> Result<()> {
    let missing = refused("socket.source: file:/no/such/layout\n")?;
    ensure!(missing.contains("/no/such/layout"), "{missing}");
    let hasty = refused("socket: {source: guess, guess_timeout: 1us}\n")?;
    ensure!(hasty.contains("could be seen on this kernel"), "no guess is that quick: {hasty}");
    ensure!(agent("socket.source: guess\n")?.stop()?.status.success(), "with time enough it is found");
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
    ensure!(with("")? == ["0"], "one, for every interface");
    ensure!(with("socket.dns.enabled: false\n")?.is_empty(), "none");
    // The loopback interface is the first of every namespace.
    ensure!(with("socket.dns.af_packet.interface: lo\n")? == ["1"], "one, for this interface");
    Ok(())
}

/// `packet(7)` sockets of this machine: `sk RefCnt Type Proto Iface R Rmem User Inode`.
fn packet_sockets() -> Result<Vec<String>> {
    Ok(fs::read_to_string("/proc/net/packet")?.lines().skip(1).map(str::to_owned).collect())
}

/// An hour forward: times follow, unless a day is allowed.
fn how_far_the_wall_clock_may_move() -> Result<()> {
    const HOUR: i64 = 3600;
    let agents = [agent("")?, agent("socket.clock_max_drift: 1day\n")?];
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let before = SystemTime::now();
    let _back = set_clock(HOUR)?;
    // Clocks are compared ten times a second.
    std::thread::sleep(Duration::from_millis(500));
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (here, there) = (client.local_addr()?, client.peer_addr()?);
    drop((client, listener.accept()?));
    let half_an_hour = before + Duration::from_secs(1800);
    for (agent, follows) in agents.into_iter().zip([true, false]) {
        let document = agent.wait_for("the flow after the step", |document| {
            end(document, "source") == Some(here) && end(document, "destination") == Some(there)
        })?;
        ensure!((time(&document, "/event/start")? > half_an_hour) == follows, "{document:#}");
        agent.stop()?;
    }
    Ok(())
}

/// Where programs cannot read the kernel's clock, each comparison begins threads, which the kernel counts; so it does
/// after privileges were given up.
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
    let often = threads("100ms", &|| until("twenty threads", || Ok(tracefs.hits_so_far()? >= 20)))?;
    // That nothing happens takes a while to see: as long as all of that took.
    let as_long = started.elapsed();
    let seldom = threads("1h", &|| {
        std::thread::sleep(as_long);
        Ok(())
    })?;
    ensure!(often >= seldom + 10, "{often} threads with every 100 ms, {seldom} with every hour");
    Ok(())
}

/// The kernel is asked how often the agent calls `fdatasync(2)`.
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
            until("two more flows", || Ok(lines()? >= 2 * round))?;
        }
        // A policy by time has its chance.
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
    ensure!(never == 0 && seldom == 0, "{never} never, {seldom} within an hour");
    ensure!(always >= 5 && often >= 1, "{always} always, {often} every 10 ms");
    let spool = |sync: &str| {
        calls(&format!(
            "output.file: {{path: {FOLDER}/flows.json, sync: never}}
output.elasticsearch.hosts: ['http://127.0.0.1:1']
spool: {{path: {FOLDER}/spool, sync: {sync}}}
"
        ))
    };
    let [often, seldom] = [spool("10ms")?, spool("1h")?];
    ensure!(often >= 1 && seldom == 0, "{often} every 10 ms, {seldom} within an hour");
    Ok(())
}

/// Starts an agent that writes to standard output, and waits until it is ready.
fn agent(configuration: &str) -> Result<Socktrail> {
    Socktrail::start(&["agent", "--config", &written(configuration)?])
}

/// What an agent says that does not start.
fn refused(configuration: &str) -> Result<String> {
    let ended = Process::start(&["socktrail", "agent", "--config", &written(configuration)?])?.finish()?;
    ensure!(ended.status != 0, "it started: {ended:?}");
    Ok(ended.stderr)
}

fn written(configuration: &str) -> Result<String> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(FOLDER)?;
    let path = format!("{FOLDER}/socktrail.yml");
    let output = if configuration.contains("output.stdout") { "" } else { "output.stdout.enabled: true\n" };
    fs::write(&path, format!("{output}{configuration}")).with_context(|| format!("write {path}"))?;
    Ok(path)
}
