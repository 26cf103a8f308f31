//! A kernel that lacks a function costs what that function serves, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::helpers::document::{end, expect, number};
use crate::helpers::process::Process;
use crate::helpers::requests::Seen;
use crate::helpers::tracefs::Tracefs;

tests![
    each_function_in_turn,
    without_connects_over_ipv4,
    without_what_tcp_receives_over_ipv6,
    without_programs_that_start,
    without_grafted_sockets,
    without_what_udp_receives_over_ipv4,
    without_what_leaves_over_ipv4,
    socket_events_that_cannot_be_seen,
];

/// The functions with a substitute, what that is, and the state of the feature then; all others have none. A substitute
/// that this kernel never calls is none.
const SUBSTITUTES: &[(&str, &str, &str)] = &[
    ("__ip_local_out", "ip_local_out", "degraded"),
    ("__ip6_local_out", "ip6_local_out", "degraded"),
    ("udp_queue_rcv_one_skb", "udp_queue_rcv_skb", "degraded"),
    ("udpv6_queue_rcv_one_skb", "udpv6_queue_rcv_skb", "degraded"),
    ("security_sock_graft", "inet_csk_accept", "degraded"),
    ("sched_process_exit", "do_exit", "ok"),
];

/// Exactly the features of a masked function are lost or served by its substitute.
fn each_function_in_turn() -> Result<()> {
    let (status, whole) = doctor(&[])?;
    ensure!(status == 0 && whole.values().all(|served| served.0 == "ok"), "status {status}: {whole:#?}");
    let uncalled = uncalled()?;
    let functions: BTreeSet<_> = whole.values().filter_map(|served| served.1.clone()).collect();
    ensure!(functions.len() >= 15, "no more than these? {functions:?}");
    for function in functions {
        let (status, found) = doctor(&["--mask", &function])?;
        // How small segments look is learnt where packets leave, by a datagram that its substitute may not see.
        let is_of_use = |name: &str| function != "__ip_local_out" || name != "control_messages";
        let wanted: Capabilities = whole
            .iter()
            .filter(|(name, _)| is_of_use(name))
            .map(|(name, served)| (name.clone(), masked(served, &function, &uncalled)))
            .collect();
        ensure!(found == wanted, "without {function}: {found:#?}, not {wanted:#?}");
        let all_is_well = wanted.values().all(|served| served.0 == "ok");
        ensure!((status == 0) == all_is_well, "without {function} the exit status is {status}");
    }
    Ok(())
}

/// The state of each feature and the function that serves it.
pub(crate) type Capabilities = BTreeMap<String, (String, Option<String>)>;

/// The substitutes that were inlined into all of their callers, as the kernel counts calls.
fn uncalled() -> Result<Vec<&'static str>> {
    let tracefs = Tracefs::mount()?;
    let mut uncalled = Vec::new();
    for (function, ip) in [("ip_local_out", "127.0.0.1"), ("ip6_local_out", "::1")] {
        let send = || {
            let (udp, tcp) = (UdpSocket::bind((ip, 0))?, TcpListener::bind((ip, 0))?);
            UdpSocket::bind((ip, 0))?.send_to(b"?", udp.local_addr()?)?;
            TcpStream::connect(tcp.local_addr()?)?;
            Ok(())
        };
        if tracefs.hits(function, send)? == 0 {
            uncalled.push(function);
        }
    }
    Ok(uncalled)
}

/// What becomes of a feature without a function.
fn masked(served: &(String, Option<String>), function: &str, uncalled: &[&str]) -> (String, Option<String>) {
    if served.1.as_deref() != Some(function) {
        return served.clone();
    }
    match SUBSTITUTES.iter().find(|(of, by, _)| *of == function && !uncalled.contains(by)) {
        Some((_, substitute, state)) => ((*state).to_owned(), Some((*substitute).to_owned())),
        None => ("lost".to_owned(), None),
    }
}

/// The exit status of `socktrail doctor`, and what it says.
pub(crate) fn doctor(more: &[&str]) -> Result<(i32, Capabilities)> {
    let doctor = Process::start(&[&["socktrail", "doctor", "--json"], more].concat())?.finish()?;
    let json: Value = serde_json::from_str(&doctor.stdout).with_context(|| format!("no JSON: {doctor:?}"))?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut capabilities = Capabilities::new();
    for one in json["capabilities"].as_array().context("doctor names no capabilities")? {
        let feature = text(&one["feature"]).with_context(|| format!("no feature: {one}"))?;
        let state = text(&one["state"]).with_context(|| format!("no state: {one}"))?;
        capabilities.insert(feature, (state, text(&one["function"])));
    }
    Ok((doctor.status, capabilities))
}

/// The other family is whole, and the owner of an IPv4 connection is still known from its socket's creation.
fn without_connects_over_ipv4() -> Result<()> {
    let seen = without("tcp_v4_connect")?;
    seen.v6.check(&seen.watched)?;
    seen.v4.check(&seen.watched)
}

/// Nothing is known of what arrives over IPv6; IPv4 is whole.
fn without_what_tcp_receives_over_ipv6() -> Result<()> {
    let seen = without("tcp_v6_rcv")?;
    seen.v4.check(&seen.watched)?;
    let document = seen.watched.only_of_pid(seen.v6.pid)?;
    ensure!(number(document, "/source/packets")? > 0, "what leaves is still seen: {document:#}");
    let received = document.pointer("/destination/packets").and_then(Value::as_u64).unwrap_or(0);
    ensure!(received == 0, "what arrives cannot be seen: {document:#}");
    Ok(())
}

/// Which process is still known, and what was sent and received.
fn without_programs_that_start() -> Result<()> {
    let seen = without("security_bprm_committed_creds")?;
    for client in [&seen.v4, &seen.v6] {
        expect(seen.watched.only_of_pid(client.pid)?, &client.wanted()?)?;
    }
    Ok(())
}

/// The substitute names the owners of accepted connections.
fn without_grafted_sockets() -> Result<()> {
    let seen = without("security_sock_graft")?;
    for client in [&seen.v4, &seen.v6] {
        client.check(&seen.watched)?;
        let from_there = |document: &&&Value| end(document, "source") == Some(client.here);
        let of_server = seen.watched.of_pid(seen.server);
        let accepted: Vec<_> = of_server.iter().filter(from_there).collect();
        ensure!(accepted.len() == 1, "the server's documents: {of_server:#?}");
        expect(accepted[0], &vec![("/network/direction", json!("ingress")), ("/process/name", json!("httpd"))])?;
    }
    Ok(())
}

/// TCP is whole.
fn without_what_udp_receives_over_ipv4() -> Result<()> {
    const FUNCTIONS: [&str; 2] = ["udp_queue_rcv_one_skb", "udp_queue_rcv_skb"];
    let seen = Seen::with(&["--mask", FUNCTIONS[0], "--mask", FUNCTIONS[1]])?;
    ensure!(FUNCTIONS.iter().all(|function| seen.watched.log.contains(function)), "{}", seen.watched.log);
    seen.v4.check(&seen.watched)?;
    seen.v6.check(&seen.watched)
}

/// What leaves is seen just when doctor says that it is.
fn without_what_leaves_over_ipv4() -> Result<()> {
    const FUNCTION: &str = "__ip_local_out";
    let (_, capabilities) = doctor(&["--mask", FUNCTION])?;
    let is_lost = capabilities.get("ipv4_out").context("no ipv4_out")?.0 == "lost";
    let seen = without(FUNCTION)?;
    seen.v6.check(&seen.watched)?;
    let document = seen.watched.only_of_pid(seen.v4.pid)?;
    ensure!(number(document, "/destination/packets")? > 0, "what arrives is still seen: {document:#}");
    let sent = document.pointer("/source/packets").and_then(Value::as_u64).unwrap_or(0);
    ensure!((sent == 0) == is_lost, "lost: {is_lost}, and yet: {document:#}");
    Ok(())
}

/// `doctor --events` says what serves them, and what is lost; where nothing of what is asked for is left, `events` ends.
fn socket_events_that_cannot_be_seen() -> Result<()> {
    let (status, whole) = doctor(&["--events"])?;
    ensure!(status == 0 && whole.values().all(|served| served.0 == "ok"), "status {status}: {whole:#?}");
    for (function, feature, state, next) in [
        ("security_socket_bind", "bind_socket", "lost", None),
        ("__sock_release", "socket_close", "degraded", Some("inet_release")),
    ] {
        let (status, found) = doctor(&["--events", "--mask", function])?;
        let mut wanted = whole.clone();
        let served = (state.to_owned(), next.map(str::to_owned));
        wanted.insert(feature.to_owned(), served).with_context(|| format!("no {feature}"))?;
        ensure!(status == 1 && found == wanted, "without {function}, status {status}: {found:#?}");
    }
    // The other probes that a listen has tell more of it, and are no use alone.
    let events = ["socktrail", "events", "--only", "listen", "--mask", "security_socket_listen"];
    ends_for_want_of(&events, "security_socket_listen")?;
    // As before, with nothing but the calls and their results, and what becomes of sockets without a call.
    let named = |name: &str| ["_socket", "accept_connection", "socket_close"].iter().any(|end| name.ends_with(end));
    let functions = whole.iter().filter(|(name, _)| named(name)).filter_map(|(_, served)| served.1.as_deref());
    let others = ["__sys_socket", "sock_release", "inet_release"];
    let masks: Vec<_> = functions.chain(others).flat_map(|name| ["--mask", name]).collect();
    let sensors = "/tmp/sensors.yaml";
    std::fs::write(sensors, "all:\n  listener: net.socket\n").context("writing sensors")?;
    for command in [&["socktrail", "events"][..], &["socktrail", "sensors", sensors]] {
        ends_for_want_of(&[command, &masks].concat(), "security_socket_connect")?;
    }
    Ok(())
}

/// It ends at once, says which function it would need, and has the status of a kernel whose layout will not do.
fn ends_for_want_of(command: &[&str], function: &str) -> Result<()> {
    let ended = Process::start(command)?.finish()?;
    ensure!(ended.status == 7 && ended.stderr.contains("nothing could be seen on this kernel"), "{ended:?}");
    ensure!(ended.stderr.contains(function) && !ended.stderr.contains("socktrail: ready"), "{ended:?}");
    Ok(())
}

/// What a monitor sees without a function, of which it tells.
fn without(function: &str) -> Result<Seen> {
    let seen = Seen::with(&["--mask", function])?;
    ensure!(seen.watched.log.contains(function), "the log is silent about {function}:\n{}", seen.watched.log);
    Ok(seen)
}
