//! One round: hosts, servers, captures and a monitor, then clients for a while, then the verdict.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;

use super::judge::{Case, Verdict, judge, places};
use super::ledger::{Entry, entries};
use super::plan::{PROGRAMS, RESOLVER, SERVERS, Step, offloads, step};
use super::scene::{Family, PLACES, Scene, loopback};
use crate::actors::{ACT, EXECUTABLE, PROGRAM};
use crate::capture::wire::Transport;
use crate::helpers::patience::until;
use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;

/// How many clients there are at once.
const LANES: usize = 6;
/// The monitor's options: short timeouts, so that idle flows end soon.
const OPTIONS: &[&str] = &[
    "--flow-inactive-timeout",
    "5s",
    "--flow-report-interval",
    "4s",
    "--socket-inactive-timeout",
    "8s",
    "--flow-termination-timeout",
    "3s",
    "--ring-size-exponent",
    "9",
    "--stats",
];
/// How long after the last packet all documents have come that do not need the monitor to stop.
const QUIET: Duration = Duration::from_secs(9);

/// Makes traffic for a while and judges the documents about it.
pub(super) fn round(seed: u64, time: Duration, without: &[String]) -> Result<Verdict> {
    programs()?;
    let scene = Scene::new(offloads(seed, without))?;
    let captures = scene.capture()?;
    let watch = Socktrail::flows(OPTIONS)?;
    let beacons = (0..PLACES).map(|place| scene.run(place, || beacon(place))).collect::<Result<Vec<_>>>()?;
    let servers = servers(&scene)?;
    let mut told = clients(&scene, seed, time, without)?;
    until("all servers to have told of all connections", || {
        let accepted = servers.iter().map(|(place, server)| entries(*place, &server.said()));
        let accepted: Vec<Entry> = accepted.collect::<Result<Vec<_>>>()?.concat();
        Ok(are_reported_by_both_ends(&told, &accepted))
    })
    .ok();
    thread::sleep(QUIET);
    for (place, server) in servers {
        server.signal(Signal::SIGTERM)?;
        let server = server.finish()?;
        ensure!(server.stderr.is_empty(), "a server said: {}", server.stderr);
        told.extend(entries(place, &server.stdout)?);
    }
    let watched = watch.stop()?;
    ensure!(watched.status.success(), "socktrail ended with {}:\n{}", watched.status, watched.log);
    let missed = missed(&watched.log)?;
    let captured = captures.stop()?;
    let is_beacon = |document: &serde_json::Value| {
        beacons.iter().any(|beacon| crate::helpers::document::end(document, "destination") == Some(*beacon))
    };
    let places = places(&watched.documents, &beacons)?;
    let documents: Vec<_> = watched.documents.into_iter().filter(|document| !is_beacon(document)).collect();
    judge(Case { entries: told, documents: &documents, places, captured: &captured, missed })
}

/// The hits that each probe missed, from the monitor's statistics (`--stats`).
fn missed(log: &str) -> Result<BTreeMap<String, u64>> {
    let stats = log.lines().rev().find_map(|line| line.strip_prefix("socktrail: stats "));
    let mut stats: serde_json::Value = serde_json::from_str(stats.with_context(|| format!("no statistics in {log}"))?)?;
    serde_json::from_value(stats["misses_by_probe"].take()).context("misses by probe")
}

/// Links the actors' program under other names, so that it can be run as another program.
fn programs() -> Result<()> {
    fs::create_dir_all(PROGRAMS)?;
    for name in ["one", "two"] {
        let path = format!("{PROGRAMS}/{name}");
        fs::remove_file(&path).ok();
        fs::hard_link(EXECUTABLE, &path).with_context(|| format!("make {path}"))?;
    }
    Ok(())
}

/// Sends a datagram to a port of the host's own, where nothing listens: its document shows which namespace is which
/// host.
fn beacon(place: usize) -> Result<SocketAddr> {
    let to = SocketAddr::new(loopback(Family::V4), 7900 + place as u16);
    UdpSocket::bind((loopback(Family::V4), 0))?.send_to(b"here", to)?;
    Ok(to)
}

fn servers(scene: &Scene) -> Result<Vec<(usize, Process)>> {
    let mut servers = Vec::new();
    let mut start = |place: usize, arguments: Vec<String>| -> Result<()> {
        let args: Vec<&str> =
            [PROGRAM, ACT, "torture"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        servers.push((place, scene.run(place, || Process::start(&args))?));
        Ok(())
    };
    for place in 0..PLACES {
        for server in SERVERS {
            let at = format!("at={}", (server.at)(place));
            let words = server.words.iter().map(|word| (*word).to_owned());
            start(place, [server.role.to_owned(), at].into_iter().chain(words).collect())?;
        }
    }
    for place in 0..PLACES {
        start(place, vec!["names".to_owned(), format!("at={RESOLVER}")])?;
    }
    for (_, server) in &mut servers {
        let line = server.first_line()?;
        ensure!(line == "ready", "a server said {line}");
    }
    Ok(servers)
}

/// Runs clients, several at a time, each for one step after the other. Returns what they reported.
fn clients(scene: &Scene, seed: u64, time: Duration, without: &[String]) -> Result<Vec<Entry>> {
    let (next, until) = (AtomicU64::new(0), Instant::now() + time);
    let told = Mutex::new(Vec::new());
    let lane = || -> Result<()> {
        while Instant::now() < until {
            let step = step(seed, next.fetch_add(1, Ordering::Relaxed), without);
            let entries = client(scene, &step).with_context(|| format!("{step:?}"))?;
            told.lock().unwrap_or_else(PoisonError::into_inner).extend(entries);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().try_for_each(|lane| lane.join().map_err(|_| anyhow!("a lane panicked"))?)
    })?;
    Ok(told.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn client(scene: &Scene, step: &Step) -> Result<Vec<Entry>> {
    let args: Vec<&str> =
        [PROGRAM, ACT, "torture", "client"].into_iter().chain(step.words.iter().map(String::as_str)).collect();
    let start = if step.by_user { Process::start_as_user } else { Process::start };
    let finished = scene.run(step.place, || start(&args))?.finish()?;
    ensure!(finished.status == 0 && finished.stderr.is_empty(), "a client failed: {finished:?}");
    entries(step.place, &finished.stdout)
}

/// Whether each connection was reported by both ends.
fn are_reported_by_both_ends(told: &[Entry], accepted: &[Entry]) -> bool {
    let is_first = |entry: &&Entry| entry.end.transport == Transport::Tcp && !entry.is_subflow();
    let connections =
        told.iter().filter(is_first).filter(|entry| entry.is_begun_here() && entry.text("outcome") == Some("success"));
    let accepted = accepted.iter().filter(is_first);
    connections.count() <= accepted.count()
}
