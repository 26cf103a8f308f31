//! The self-test at the start of a monitor: probes must be hit by traffic over loopback.

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;

use anyhow::{Context, Result, ensure};
use nix::mount::MsFlags;
use serde_json::{Value, json};

use crate::hazards::Mounted;
use crate::helpers::document::endpoint;
use crate::helpers::layout::without_guesses;
use crate::helpers::netlink::{LinkState, set_link_state};
use crate::helpers::netns::Netns;
use crate::helpers::nft::nft;
use crate::helpers::process::{Finished, Process};
use crate::helpers::socktrail::Socktrail;
use crate::helpers::tracefs::Tracefs;
use crate::lifetime::{KERNEL, expect_no_probes, expect_refusal};

tests![an_ordinary_start, no_probe_is_hit, one_probe_is_not_hit, dropped_traffic_proves_nothing];

/// Another monitor reports the traffic of the self-test. The monitor itself does not, and leaves no socket.
fn an_ordinary_start() -> Result<()> {
    let source = without_guesses()?;
    let observer = Socktrail::flows(&[])?;
    let before = sockets()?;
    let monitor = Socktrail::flows(&["--source", &source])?;
    let after = sockets()?;
    // Connections of earlier tests may end meanwhile.
    let is_left = |socket: &&str| !before.lines().any(|line| line == *socket);
    let left: Vec<_> = after.lines().filter(is_left).collect();
    ensure!(left.is_empty(), "these sockets are left: {left:?}");
    let pid = monitor.pid;
    let output = monitor.stop()?;
    ensure!(output.documents.is_empty(), "unexpected documents: {:#?}", output.documents);

    let observed = observer.stop()?.documents;
    let of_monitor = observed.iter().filter(|document| document.pointer("/process/pid") == Some(&json!(pid)));
    let kinds: BTreeSet<_> = of_monitor
        .filter(|document| endpoint(document, "source").is_some_and(|end| end.ip().is_loopback()))
        .map(|document| {
            format!("{} {}", document["network"]["transport"], document["network"]["type"]).replace('"', "")
        })
        .collect();
    ensure!(kinds == ["tcp ipv4", "tcp ipv6", "udp ipv4", "udp ipv6"].map(str::to_owned).into(), "{observed:#?}");

    let (status, report) = doctor(&["--source", &without_guesses()?])?;
    ensure!(status == 0, "status {status}: {report:#}");
    let wanted = json!({ "went_through": ["udp_ipv4", "tcp_ipv4", "udp_ipv6", "tcp_ipv6"], "failed": [] });
    ensure!(report["self_test"] == wanted, "{:#}", report["self_test"]);
    let hit = features(&report, |one| one["hit"] == true)?;
    ensure!(hit.len() >= 15 && hit.contains("tcp_ipv4_in") && hit.contains("udp_ipv6_out"), "{hit:?}");
    Ok(())
}

/// Without debugfs, only the self-test shows that kprobes are disabled.
fn no_probe_is_hit() -> Result<()> {
    let switch = |to: &str| {
        let _debugfs = Mounted::new("debugfs", "/sys/kernel/debug", MsFlags::empty())?;
        fs::write("/sys/kernel/debug/kprobes/enabled", to).context("write to kprobes/enabled")
    };
    let source = without_guesses()?;
    let run_flows = || -> Result<Finished> { Process::start(&["socktrail", "flows", "--source", &source])?.finish() };
    switch("0")?;
    let (doctor, flows) = (doctor(&["--source", &source]), run_flows());
    switch("1")?;
    let (status, report) = doctor?;
    ensure!(status == KERNEL, "status {status}: {report:#}");
    for (feature, traffic) in [
        ("tcp_ipv4_in", "a TCP connection over IPv4"),
        ("udp_ipv6_in", "a datagram over IPv6"),
        ("socket_create", "a datagram over IPv4"),
        ("accept", "a TCP connection over IPv4"),
    ] {
        let capability = capability(&report, feature)?;
        let reason = capability["reason"].as_str().unwrap_or_default();
        let wanted = format!("was installed, but not hit by {traffic}");
        ensure!(capability["state"] == "lost" && reason.contains(&wanted), "{capability:#}");
    }
    let fork = capability(&report, "process_fork")?;
    ensure!(fork["state"] == "ok", "a feature without test traffic is lost: {fork:#}");
    expect_refusal(&flows?, KERNEL, &["nothing could be seen on this kernel", "was installed, but not hit by"])?;
    expect_no_probes(&Tracefs::mount()?)
}

/// `sock_release` exists, but since Linux 4.18 closing a program's socket does not call it. The next function of the table is
/// probed instead.
fn one_probe_is_not_hit() -> Result<()> {
    const FUNCTION: &str = "sock_release";
    let close = || UdpSocket::bind(("127.0.0.1", 0)).map(drop).context("make a socket");
    let hits = Tracefs::mount()?.hits(FUNCTION, close)?;
    ensure!(hits == 0, "this kernel closes sockets by {FUNCTION}");
    let (status, report) = doctor(&["--source", &without_guesses()?, "--events", "--mask", "__sock_release"])?;
    ensure!(status == 1, "status {status}");
    let degraded = features(&report, |one| one["state"] != "ok")?;
    ensure!(degraded == ["socket_close".to_owned()].into(), "{degraded:?}");
    let close = capability(&report, "socket_close")?;
    ensure!(close["function"] == "inet_release", "{close:#}");
    let reason = close["reason"].as_str().unwrap_or_default().to_owned();
    let wanted = format!("the probe on {FUNCTION} was installed, but not hit by a datagram over IPv4");
    ensure!(reason.contains("__sock_release is masked") && reason.contains(&wanted), "{reason}");
    Ok(())
}

/// If nftables drops all packets over loopback, no feature is lost.
fn dropped_traffic_proves_nothing() -> Result<()> {
    let source = without_guesses()?;
    let report = Netns::new()?.run(|| {
        set_link_state("lo", LinkState::Up)?;
        nft("table inet t { chain c { type filter hook input priority 0; policy drop; }; }")?;
        Ok(doctor(&["--source", &source])?.1)
    })?;
    let test = &report["self_test"];
    let failed = test["failed"].as_array().context("no `failed`")?;
    ensure!(test["went_through"] == json!([]) && failed.len() == 4, "{test:#}");
    ensure!(failed.iter().all(|one| one["reason"].as_str().is_some_and(|reason| !reason.is_empty())), "{test:#}");
    ensure!(capability(&report, "tcp_ipv4_in")?["hit"] == false, "a dropped packet was received: {report:#}");
    let lost = features(&report, |one| one["state"] != "ok")?;
    ensure!(lost.is_empty(), "{lost:?}");
    Ok(())
}

/// Runs `socktrail doctor --json`; returns its exit status and its report.
fn doctor(more: &[&str]) -> Result<(i32, Value)> {
    let ended = Process::start(&[&["socktrail", "doctor", "--json"], more].concat())?.finish()?;
    let report = serde_json::from_str(&ended.stdout).with_context(|| format!("not JSON: {ended:?}"))?;
    Ok((ended.status, report))
}

fn capabilities(report: &Value) -> Result<&Vec<Value>> {
    report["capabilities"].as_array().context("no capabilities in doctor's report")
}

fn capability<'a>(report: &'a Value, feature: &str) -> Result<&'a Value> {
    let found = capabilities(report)?.iter().find(|one| one["feature"] == feature);
    found.with_context(|| format!("no {feature}"))
}

fn features(report: &Value, condition: impl Fn(&Value) -> bool) -> Result<BTreeSet<String>> {
    let chosen = capabilities(report)?.iter().filter(|one| condition(one));
    Ok(chosen.filter_map(|one| one["feature"].as_str()).map(str::to_owned).collect())
}

/// Every TCP and UDP socket of this network namespace, TIME_WAIT included: local and remote address.
fn sockets() -> Result<String> {
    let mut all = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = fs::read_to_string(format!("/proc/net/{table}"))?;
        let ends = |line: &str| line.split_whitespace().skip(1).take(2).collect::<Vec<_>>().join(" ");
        all.extend(text.lines().skip(1).map(|line| format!("{table} {}", ends(line))));
    }
    all.sort();
    Ok(all.join("\n"))
}
