//! A missing kernel function affects only the features that it serves. `--mask FUNCTION` makes Socktrail treat it as missing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::helpers::document::{endpoint, expect, number};
use crate::helpers::process::Process;
use crate::helpers::requests::Requests;
use crate::helpers::tracefs::Tracefs;

tests![
    each_function_in_turn,
    without_connects_over_ipv4,
    without_tcp_receive_over_ipv6,
    without_execs,
    without_grafted_sockets,
    without_udp_receive_over_ipv4,
    without_output_over_ipv4,
    without_socket_event_functions,
];

/// A function that serves a feature if another one is missing.
struct Substitute {
    missing: &'static str,
    function: &'static str,
    /// The state of the feature that the substitute serves.
    state: &'static str,
}

/// All substitutes. A feature is lost if this kernel never calls its substitute.
const SUBSTITUTES: &[Substitute] = &[
    Substitute { missing: "__ip_local_out", function: "ip_local_out", state: "degraded" },
    Substitute { missing: "__ip6_local_out", function: "ip6_local_out", state: "degraded" },
    Substitute { missing: "udp_queue_rcv_one_skb", function: "udp_queue_rcv_skb", state: "degraded" },
    Substitute { missing: "udpv6_queue_rcv_one_skb", function: "udpv6_queue_rcv_skb", state: "degraded" },
    Substitute { missing: "security_sock_graft", function: "inet_csk_accept", state: "degraded" },
    Substitute { missing: "sched_process_exit", function: "do_exit", state: "ok" },
];

/// With each function masked, exactly its features are lost or served by a substitute.
fn each_function_in_turn() -> Result<()> {
    let (status, whole) = doctor(&[])?;
    ensure!(status == 0 && whole.values().all(|status| status.state == "ok"), "status {status}: {whole:#?}");
    let uncalled = uncalled()?;
    let functions: BTreeSet<_> = whole.values().filter_map(|status| status.function.clone()).collect();
    ensure!(functions.len() >= 15, "only these functions: {functions:?}");
    for function in functions {
        let (status, found) = doctor(&["--mask", &function])?;
        // `control_messages` is a feature only of kernels where a sample of an outgoing UDP GSO packet shows that it is
        // needed. Without `__ip_local_out` there is no such sample.
        let is_feature = |name: &str| function != "__ip_local_out" || name != "control_messages";
        let wanted: Capabilities = whole
            .iter()
            .filter(|(name, _)| is_feature(name))
            .map(|(name, status)| (name.clone(), masked(status, &function, &uncalled)))
            .collect();
        ensure!(found == wanted, "without {function}: {found:#?}, not {wanted:#?}");
        let all_is_well = wanted.values().all(|status| status.state == "ok");
        ensure!((status == 0) == all_is_well, "without {function} the exit status is {status}");
    }
    Ok(())
}

/// The status of a feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FeatureStatus {
    pub(crate) state: String,
    /// The function that serves it.
    pub(crate) function: Option<String>,
}

/// The status of each feature.
pub(crate) type Capabilities = BTreeMap<String, FeatureStatus>;

/// The substitutes that this kernel never calls, because its compiler inlined them.
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

/// The expected status of a feature if a function is masked.
fn masked(status: &FeatureStatus, function: &str, uncalled: &[&str]) -> FeatureStatus {
    if status.function.as_deref() != Some(function) {
        return status.clone();
    }
    match SUBSTITUTES.iter().find(|one| one.missing == function && !uncalled.contains(&one.function)) {
        Some(Substitute { function, state, .. }) => {
            FeatureStatus { state: (*state).to_owned(), function: Some((*function).to_owned()) }
        }
        None => FeatureStatus { state: "lost".to_owned(), function: None },
    }
}

/// The exit status of `socktrail doctor`, and the status of each feature.
pub(crate) fn doctor(more: &[&str]) -> Result<(i32, Capabilities)> {
    let doctor = Process::start(&[&["socktrail", "doctor", "--json"], more].concat())?.finish()?;
    let json: Value = serde_json::from_str(&doctor.stdout).with_context(|| format!("not JSON: {doctor:?}"))?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut capabilities = Capabilities::new();
    for one in json["capabilities"].as_array().context("no capabilities in doctor's report")? {
        let feature = text(&one["feature"]).with_context(|| format!("no feature: {one}"))?;
        let state = text(&one["state"]).with_context(|| format!("no state: {one}"))?;
        capabilities.insert(feature, FeatureStatus { state, function: text(&one["function"]) });
    }
    Ok((doctor.status, capabilities))
}

/// IPv6 is not affected, and the owner of an IPv4 connection is known from its socket's creation.
fn without_connects_over_ipv4() -> Result<()> {
    let requests = without("tcp_v4_connect")?;
    requests.v6.check(&requests.output)?;
    requests.v4.check(&requests.output)
}

/// Received TCP packets over IPv6 are not counted; IPv4 is not affected.
fn without_tcp_receive_over_ipv6() -> Result<()> {
    let requests = without("tcp_v6_rcv")?;
    requests.v4.check(&requests.output)?;
    let document = requests.output.only_of_pid(requests.v6.pid)?;
    ensure!(number(document, "/source/packets")? > 0, "sent packets must be counted: {document:#}");
    let received = document.pointer("/destination/packets").and_then(Value::as_u64).unwrap_or(0);
    ensure!(received == 0, "received packets cannot be counted: {document:#}");
    Ok(())
}

/// Flows and their processes are known, but not the programs.
fn without_execs() -> Result<()> {
    let requests = without("security_bprm_committed_creds")?;
    for client in [&requests.v4, &requests.v6] {
        expect(requests.output.only_of_pid(client.pid)?, &client.flow_fields()?)?;
    }
    Ok(())
}

/// The substitute names the owners of accepted connections.
fn without_grafted_sockets() -> Result<()> {
    let requests = without("security_sock_graft")?;
    for client in [&requests.v4, &requests.v6] {
        client.check(&requests.output)?;
        let is_from_client = |document: &&&Value| endpoint(document, "source") == Some(client.here);
        let of_server = requests.output.of_pid(requests.server);
        let accepted: Vec<_> = of_server.iter().filter(is_from_client).collect();
        ensure!(accepted.len() == 1, "the server's documents: {of_server:#?}");
        expect(accepted[0], &vec![("/network/direction", json!("ingress")), ("/process/name", json!("httpd"))])?;
    }
    Ok(())
}

/// TCP is not affected.
fn without_udp_receive_over_ipv4() -> Result<()> {
    const FUNCTIONS: [&str; 2] = ["udp_queue_rcv_one_skb", "udp_queue_rcv_skb"];
    let requests = Requests::with(&["--mask", FUNCTIONS[0], "--mask", FUNCTIONS[1]])?;
    ensure!(FUNCTIONS.iter().all(|function| requests.output.log.contains(function)), "{}", requests.output.log);
    requests.v4.check(&requests.output)?;
    requests.v6.check(&requests.output)
}

/// Sent packets are counted if and only if doctor says so.
fn without_output_over_ipv4() -> Result<()> {
    const FUNCTION: &str = "__ip_local_out";
    let (_, capabilities) = doctor(&["--mask", FUNCTION])?;
    let is_lost = capabilities.get("ipv4_out").context("no ipv4_out")?.state == "lost";
    let requests = without(FUNCTION)?;
    requests.v6.check(&requests.output)?;
    let document = requests.output.only_of_pid(requests.v4.pid)?;
    ensure!(number(document, "/destination/packets")? > 0, "received packets must be counted: {document:#}");
    let sent = document.pointer("/source/packets").and_then(Value::as_u64).unwrap_or(0);
    ensure!((sent == 0) == is_lost, "lost: {is_lost}, but: {document:#}");
    Ok(())
}

/// `doctor --events` reports substitutes and lost features. If all requested events are lost, `events` fails.
fn without_socket_event_functions() -> Result<()> {
    let (status, whole) = doctor(&["--events"])?;
    ensure!(status == 0 && whole.values().all(|status| status.state == "ok"), "status {status}: {whole:#?}");
    for (function, feature, state, next) in [
        ("security_socket_bind", "bind_socket", "lost", None),
        ("__sock_release", "socket_close", "degraded", Some("inet_release")),
    ] {
        let (status, found) = doctor(&["--events", "--mask", function])?;
        let mut wanted = whole.clone();
        let expected = FeatureStatus { state: state.to_owned(), function: next.map(str::to_owned) };
        wanted.insert(feature.to_owned(), expected).with_context(|| format!("no {feature}"))?;
        ensure!(status == 1 && found == wanted, "without {function}, status {status}: {found:#?}");
    }
    // Without this function there are no listen events: the other probes of `listen(2)` only add details to them.
    let events = ["socktrail", "events", "--only", "listen", "--mask", "security_socket_listen"];
    fails_without(&events, "security_socket_listen")?;
    // Masks all functions that events come from: those that show the socket of a call, accepted connections and closes, and
    // two that can take their place. `__sys_socket` shows sockets that could not be created.
    let makes_events =
        |name: &str| ["_socket", "accept_connection", "socket_close"].iter().any(|end| name.ends_with(end));
    let functions =
        whole.iter().filter(|(name, _)| makes_events(name)).filter_map(|(_, status)| status.function.as_deref());
    let others = ["__sys_socket", "sock_release", "inet_release"];
    let masks: Vec<_> = functions.chain(others).flat_map(|name| ["--mask", name]).collect();
    let sensors = "/tmp/sensors.yaml";
    std::fs::write(sensors, "all:\n  listener: net.socket\n").context("writing sensors")?;
    for command in [&["socktrail", "events"][..], &["socktrail", "sensors", sensors]] {
        fails_without(&[command, &masks].concat(), "security_socket_connect")?;
    }
    // Sensors do not report sockets that could not be created.
    let masks: Vec<_> = masks.chunks(2).filter(|mask| mask[1] != "__sys_socket").flatten().copied().collect();
    fails_without(&[&["socktrail", "sensors", sensors], &masks[..]].concat(), "security_socket_connect")
}

/// Checks that a command fails at its start with status 7, and that its message names this masked function.
fn fails_without(command: &[&str], function: &str) -> Result<()> {
    let ended = Process::start(command)?.finish()?;
    ensure!(ended.status == 7 && ended.stderr.contains("nothing could be seen on this kernel"), "{ended:?}");
    ensure!(ended.stderr.contains(function) && !ended.stderr.contains("socktrail: ready"), "{ended:?}");
    Ok(())
}

/// Makes requests while a function is masked. The log must name the function.
fn without(function: &str) -> Result<Requests> {
    let requests = Requests::with(&["--mask", function])?;
    ensure!(requests.output.log.contains(function), "the log does not name {function}:\n{}", requests.output.log);
    Ok(requests)
}
