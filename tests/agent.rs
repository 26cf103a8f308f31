//! `socktrail agent`, replaying a recording: outputs, signals, the service manager.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::{Agent, RECORDING, eventually, json_lines, text};

/// The documents of `socktrail replay`, without fields that differ from run to run.
fn replayed() -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_socktrail")).args(["replay", "--format", "ecs", RECORDING]).output();
    json_lines(text(&output.expect("the binary was built").stdout)).into_iter().map(without_run).collect()
}

/// Removes the fields that differ: those of the agent's run, and names of users, which the agent does not know for the recorded
/// host.
fn without_run(mut document: Value) -> Value {
    document["agent"]["ephemeral_id"].take();
    document["flow"]["id"].take();
    for set in ["user", "group", "related"] {
        document[set].take();
    }
    document
}

#[test]
fn every_output_gets_every_document() {
    let agent = Agent::configured(&format!("output.stdout.enabled: true\noutput.file.path: {FOLDER}/flows.json\n"));
    let ended = agent.start(&["--replay", RECORDING]).finish();
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(ended.stderr.contains("socktrail: ready"), "{}", ended.stderr);
    let expected = replayed();
    assert!(expected.len() > 8);
    let written: Vec<_> = json_lines(&ended.stdout).into_iter().map(without_run).collect();
    assert_eq!(written, expected);
    assert_eq!(ended.stdout, fs::read_to_string(ended.folder().join("flows.json")).expect("the file"));
}

/// The placeholder for the test's directory in configurations.
const FOLDER: &str = "{folder}";

#[test]
fn flows_of_different_runs_and_passes_have_different_ids() {
    let agent =
        Agent::configured("output.stdout.enabled: true\nagent.name: number seven\ndocument.direction: inbound\n");
    let (one, other) = (
        agent.start(&["--replay", RECORDING, "--replay-times", "3"]).finish(),
        agent.start(&["--replay", RECORDING]).finish(),
    );
    let mut seen = BTreeMap::new();
    for document in json_lines(&one.stdout).into_iter().chain(json_lines(&other.stdout)) {
        *seen.entry(document["flow"]["id"].to_string()).or_insert(0) += 1;
        assert_eq!(document["agent"]["name"], "number seven");
        let direction = document["network"]["direction"].as_str().expect("a direction");
        assert!(["inbound", "outbound", "unknown"].contains(&direction), "{direction}");
    }
    assert_eq!(seen.len(), 4 * replayed().len());
    assert!(seen.values().all(|&times| times == 1));
}

#[test]
fn sigterm_writes_every_document_and_ends_in_time() {
    let agent = Agent::configured(&format!("output.file.path: {FOLDER}/flows.json\nagent.shutdown_timeout: 5s\n"));
    let running = agent.start(&["--stats", "--replay", RECORDING, "--replay-times", "1000000", "--replay-rate", "500"]);
    eventually("documents are written", || running.lines("flows.json") > 100);
    let ended = running.end(Signal::SIGTERM);
    assert!(ended.status.success() && ended.took < Duration::from_secs(5), "{:?} {}", ended.took, ended.stderr);
    let stats = ended.stats();
    let file = &stats["outputs"][0];
    assert_eq!(file["offered"], file["written"], "{stats}");
    let content = fs::read_to_string(ended.folder().join("flows.json")).expect("the file");
    assert_eq!(file["written"], content.lines().count());
    assert!(content.ends_with("}\n"));
}

/// The host does not answer, so the agent would try to send spooled documents until its time is up.
#[test]
fn a_second_signal_ends_the_agent_at_once() {
    let agent = Agent::configured(&format!(
        "output.elasticsearch.hosts: ['http://127.0.0.1:1']\nspool.path: {FOLDER}/spool\nagent.shutdown_timeout: 10m\n"
    ));
    let running = agent.start(&["--stats", "--replay", RECORDING, "--replay-times", "1000000", "--replay-rate", "500"]);
    running.wait_for_log("http://127.0.0.1:1");
    running.signal(Signal::SIGTERM);
    // Two signals that are pending at once are delivered as one, and a test cannot see when the first was delivered.
    let mut ended = false;
    eventually("it ends", || {
        ended = ended || running.has_ended();
        if !ended {
            running.signal(Signal::SIGTERM);
        }
        ended
    });
    let ended = running.finish();
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(
        ended.stats()["outputs"][0]["pending"].as_u64() > Some(0),
        "they wait for the next start: {}",
        ended.stderr
    );
}

#[test]
fn a_reload_loses_no_document_and_an_invalid_configuration_changes_nothing() {
    let agent = Agent::configured(&format!("output.file.path: {FOLDER}/a.json\n"));
    let running = agent.start(&["--replay", RECORDING, "--replay-times", "1000000", "--replay-rate", "500"]);
    eventually("documents are in the first file", || running.lines("a.json") > 20);

    running.reconfigure("output.file.path: [1]\n");
    running.signal(Signal::SIGHUP);
    running.wait_for_log("the new configuration is not used");
    let before = running.lines("a.json");
    eventually("more documents are in the first file", || running.lines("a.json") > before);

    running.reconfigure(&format!("output.file.path: {FOLDER}/b.json\nsocket.max_flows: 7\n"));
    running.signal(Signal::SIGHUP);
    running.wait_for_log("socket.max_flows: the change takes effect when the agent is restarted");
    eventually("documents are in the second file", || running.lines("b.json") > 20);

    running.reconfigure("output.file.path: /no/such/folder/c.json\n");
    running.signal(Signal::SIGHUP);
    running.wait_for_log("create its directory");
    let before = running.lines("b.json");
    eventually("the second file is used again", || running.lines("b.json") > before);

    let ended = running.end(Signal::SIGTERM);
    assert!(ended.status.success(), "{}", ended.stderr);
    let read = |name: &str| json_lines(&fs::read_to_string(ended.folder().join(name)).expect("a file"));
    let numbers = |documents: Vec<Value>| -> Vec<String> {
        documents.iter().map(|document| document["flow"]["id"].to_string()).collect()
    };
    let both = [numbers(read("a.json")), numbers(read("b.json"))].concat();
    // Flows are numbered from 1 on, through all passes, in the order in which they are reported.
    let number = |id: &String| id.rsplit('-').next().and_then(|text| text.trim_matches('"').parse::<u64>().ok());
    let mut found: Vec<_> = both.iter().map(|id| number(id).expect("a number")).collect();
    found.sort_unstable();
    assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "a document was written twice");
    assert_eq!(found.last(), Some(&(found.len() as u64)), "a document was lost");
}

#[test]
fn the_service_manager_is_notified() {
    let agent = Agent::configured(&format!("output.file.path: {FOLDER}/a.json\n"));
    let socket = agent.folder().join("notify");
    let manager = UnixDatagram::bind(&socket).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let environment = [("NOTIFY_SOCKET", socket.to_str().expect("UTF-8")), ("WATCHDOG_USEC", "400000")];
    let running =
        agent.start_with(&["--replay", RECORDING, "--replay-times", "1000000", "--replay-rate", "100"], &environment);
    let wait_for = |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let length = manager.recv(&mut buffer).unwrap_or_else(|error| panic!("waiting for {wanted}: {error}"));
            let message = text(&buffer[..length]);
            if message.lines().any(|line| line.starts_with(wanted)) {
                return message.to_owned();
            }
        }
    };
    wait_for("READY=1");
    assert!(wait_for("STATUS=").contains("0 samples or flows lost; file: "));
    wait_for("WATCHDOG=1");
    wait_for("WATCHDOG=1");
    running.signal(Signal::SIGHUP);
    assert!(wait_for("RELOADING=1").contains("MONOTONIC_USEC="));
    wait_for("READY=1");
    running.signal(Signal::SIGTERM);
    wait_for("STOPPING=1");
    assert!(running.finish().status.success());
}

#[test]
fn sigusr1_prints_statistics_and_the_niceness_is_set() {
    let agent = Agent::configured(&format!("output.file.path: {FOLDER}/a.json\nagent.nice: 5\n"));
    let running = agent.start(&["--replay", RECORDING, "--replay-times", "1000000", "--replay-rate", "100"]);
    eventually("something is written", || running.lines("a.json") > 0);
    running.signal(Signal::SIGUSR1);
    running.wait_for_log("socktrail: stats ");
    let stat = fs::read_to_string(format!("/proc/{}/stat", running.pid())).expect("it runs");
    let nice = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(16)).expect("proc(5): field 19");
    assert_eq!(nice, "5");
    running.end(Signal::SIGINT);
}

#[test]
fn an_unusable_configuration_or_recording_is_an_error() {
    for (configuration, status, expected) in [
        ("", 1, "no output is on: set "),
        ("output.file.path: /no/such/flows.json\n", 1, "create its directory"),
        ("output.file.path: /tmp\n", 1, "output.file: opening /tmp: Is a directory"),
        ("output.fil.path: /x\n", 2, "output.fil.path: is not known"),
    ] {
        let ended = Agent::configured(configuration).start(&["--replay", RECORDING]).finish();
        assert_eq!(ended.status.code(), Some(status), "{configuration}: {}", ended.stderr);
        assert!(ended.stderr.contains(expected), "{configuration}: {}", ended.stderr);
        assert!(ended.stdout.is_empty());
    }
    let agent = Agent::configured("output.stdout.enabled: true\n");
    let damaged = agent.folder().join("damaged.strec");
    let mut bytes = fs::read(Path::new(RECORDING)).expect("the recording");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).expect("a writable folder");
    let ended = agent.start(&["--replay", damaged.to_str().expect("UTF-8")]).finish();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("the recording is damaged at byte"), "{}", ended.stderr);
}

/// Sends a request to the metrics server. Returns the status line and the metrics by name and labels.
fn request_metrics(mut stream: impl Read + Write, request: &str) -> (String, BTreeMap<String, f64>) {
    stream.write_all(request.as_bytes()).expect("it listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let samples = body.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    let numbers = samples.map(|(name, value)| (name.to_owned(), value.parse().unwrap_or(f64::NAN)));
    (head.lines().next().unwrap_or_default().to_owned(), numbers.collect())
}

#[test]
fn metrics_are_served_on_loopback_and_on_a_unix_socket() {
    const GET: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|it| it.local_addr()).expect("a free port").port();
    let endless = ["--replay", RECORDING, "--replay-times", "1000000", "--replay-rate", "200"];
    let tcp = format!("output.file.path: {FOLDER}/a.json\nmetrics.listen: 127.0.0.1:{port}\n");
    let unix = format!("output.file.path: {FOLDER}/a.json\nmetrics.listen: unix:{FOLDER}/metrics\n");
    for configuration in [tcp, unix] {
        let running = Agent::configured(&configuration).start(&endless);
        running.wait_for_log("socktrail: ready");
        let socket = running.folder().join("metrics");
        let listens = || UnixStream::connect(&socket).is_ok() || TcpStream::connect(("127.0.0.1", port)).is_ok();
        assert!(listens(), "it listens once it is ready");
        let ask = |request: &str| match UnixStream::connect(&socket) {
            Ok(stream) => request_metrics(stream, request),
            Err(_) => request_metrics(TcpStream::connect(("127.0.0.1", port)).expect("it listens"), request),
        };
        let written = "socktrail_output_written_total{output=\"file\"}";
        eventually("the metric counts documents", || ask(GET).1.get(written).is_some_and(|&number| number > 50.0));
        let (status, numbers) = ask(GET);
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert!(numbers[written] <= running.lines("a.json") as f64, "no more than is in the file");
        assert!(numbers["process_resident_memory_bytes"] > 1e6 && numbers["process_open_fds"] > 3.0);
        assert_eq!(numbers["socktrail_output_dropped_total{output=\"file\"}"], 0.0);
        assert_eq!(ask("GET /etc/passwd HTTP/1.1\r\n\r\n").0, "HTTP/1.1 404 Not Found");
        running.end(Signal::SIGTERM);
    }
}
