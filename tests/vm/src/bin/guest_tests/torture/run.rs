//! One round: hosts, servers, captures and a monitor, then clients for a while, then the verdict.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;

use super::hosts::{Family, HOSTS, Hosts, loopback};
use super::judge::{RoundData, judge, namespaces};
use super::plan::{PROGRAMS, RESOLVER, SERVERS, Step, offloads, step};
use super::reports::{Report, parse_reports};
use super::verdict::Verdict;
use crate::capture::wire::Transport;
use crate::helpers::process::Process;
use crate::helpers::socktrail::{Output, Socktrail};
use crate::helpers::wait::wait_until;
use crate::workloads::{EXECUTABLE, PROGRAM, RUN};

/// The number of concurrent clients.
const CLIENTS: usize = 6;
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
/// How long to wait after the last packet, so that timeouts end the flows before the monitor stops.
const QUIET: Duration = Duration::from_secs(9);

/// Makes traffic for a while and judges the documents about it.
pub(super) fn round(seed: u64, time: Duration, without: &[String]) -> Result<Verdict> {
    link_programs()?;
    let hosts = Hosts::new(offloads(seed, without))?;
    let captures = hosts.capture()?;
    let monitor = Socktrail::flows(OPTIONS)?;
    let beacons = (0..HOSTS).map(|host| hosts.run(host, || beacon(host))).collect::<Result<Vec<_>>>()?;
    let servers = servers(&hosts)?;
    let mut reports = clients(&hosts, seed, time, without)?;
    wait_until("all servers to report all connections", || {
        let accepted = servers.iter().map(|(host, server)| parse_reports(*host, &server.stdout_so_far()));
        let accepted: Vec<Report> = accepted.collect::<Result<Vec<_>>>()?.concat();
        Ok(are_reported_by_both_ends(&reports, &accepted))
    })
    .ok();
    thread::sleep(QUIET);
    for (host, server) in servers {
        server.signal(Signal::SIGTERM)?;
        let server = server.finish()?;
        ensure!(server.stderr.is_empty(), "a server printed an error: {}", server.stderr);
        reports.extend(parse_reports(host, &server.stdout)?);
    }
    let stopped = SystemTime::now();
    let output = monitor.stop()?;
    ensure!(output.status.success(), "socktrail ended with {}:\n{}", output.status, output.log);
    let missed = misses_by_probe(&output)?;
    let captured = captures.stop()?;
    let is_beacon = |document: &serde_json::Value| {
        beacons.iter().any(|beacon| crate::helpers::document::endpoint(document, "destination") == Some(*beacon))
    };
    let namespaces = namespaces(&output.documents, &beacons)?;
    let documents: Vec<_> = output.documents.into_iter().filter(|document| !is_beacon(document)).collect();
    judge(RoundData { reports, documents: &documents, namespaces, captured: &captured, missed, stopped })
}

/// The hits that each probe missed, from the monitor's statistics (`--stats`).
fn misses_by_probe(output: &Output) -> Result<BTreeMap<String, u64>> {
    let mut statistics = output.statistics()?;
    serde_json::from_value(statistics["misses_by_probe"].take()).context("misses by probe")
}

/// Links this program under other names, so that workloads can execute another program.
fn link_programs() -> Result<()> {
    fs::create_dir_all(PROGRAMS)?;
    for name in ["one", "two"] {
        let path = format!("{PROGRAMS}/{name}");
        fs::remove_file(&path).ok();
        fs::hard_link(EXECUTABLE, &path).with_context(|| format!("make {path}"))?;
    }
    Ok(())
}

/// Sends a datagram to a port of the host itself, without a listener: its document shows the host's namespace.
fn beacon(host: usize) -> Result<SocketAddr> {
    let to = SocketAddr::new(loopback(Family::V4), 7900 + host as u16);
    UdpSocket::bind((loopback(Family::V4), 0))?.send_to(b"here", to)?;
    Ok(to)
}

fn servers(hosts: &Hosts) -> Result<Vec<(usize, Process)>> {
    let mut servers = Vec::new();
    let mut start = |host: usize, arguments: Vec<String>| -> Result<()> {
        let args: Vec<&str> =
            [PROGRAM, RUN, "torture"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        servers.push((host, hosts.run(host, || Process::start(&args))?));
        Ok(())
    };
    for host in 0..HOSTS {
        for server in SERVERS {
            let at = format!("at={}", (server.at)(host));
            let arguments = server.arguments.iter().map(|argument| (*argument).to_owned());
            start(host, [server.role.to_owned(), at].into_iter().chain(arguments).collect())?;
        }
    }
    for host in 0..HOSTS {
        start(host, vec!["names".to_owned(), format!("at={RESOLVER}")])?;
    }
    for (_, server) in &mut servers {
        let line = server.first_line()?;
        ensure!(line == "ready", "a server printed {line}");
    }
    Ok(servers)
}

/// Runs the clients of the steps, several at once. Returns their reports.
fn clients(hosts: &Hosts, seed: u64, time: Duration, without: &[String]) -> Result<Vec<Report>> {
    let (next, until) = (AtomicU64::new(0), Instant::now() + time);
    let reports = Mutex::new(Vec::new());
    let run_steps = || -> Result<()> {
        while Instant::now() < until {
            let step = step(seed, next.fetch_add(1, Ordering::Relaxed), without);
            let of_client = client(hosts, &step).with_context(|| format!("{step:?}"))?;
            reports.lock().unwrap_or_else(PoisonError::into_inner).extend(of_client);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(run_steps)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?)
    })?;
    Ok(reports.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn client(hosts: &Hosts, step: &Step) -> Result<Vec<Report>> {
    let args: Vec<&str> =
        [PROGRAM, RUN, "torture", "client"].into_iter().chain(step.arguments.iter().map(String::as_str)).collect();
    let start = if step.by_user { Process::start_as_user } else { Process::start };
    let finished = hosts.run(step.host, || start(&args))?.finish()?;
    ensure!(finished.status == 0 && finished.stderr.is_empty(), "a client failed: {finished:?}");
    parse_reports(step.host, &finished.stdout)
}

/// Whether the accepting ends have reported as many connections as the other ends.
fn are_reported_by_both_ends(reports: &[Report], accepted: &[Report]) -> bool {
    let is_first = |report: &&Report| report.end.transport == Transport::Tcp && !report.is_subflow();
    let connections = reports
        .iter()
        .filter(is_first)
        .filter(|report| report.is_initiator() && report.text("outcome") == Some("success"));
    let accepted = accepted.iter().filter(is_first);
    connections.count() <= accepted.count()
}
