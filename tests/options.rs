//! Every key of the configuration has an effect, and a test that shows it: [`EFFECTS`] says which.
//!
//! Effects that need no kernel are shown here, by agents that replay a recording.

#[path = "support/fake.rs"]
mod fake;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fake::{Fake, Fault};
use nix::sys::signal::Signal;
use serde_json::Value;
use socktrail::config::Loader;
use socktrail::event::{Event, EventKind, Packet, PacketDirection, PacketSize, Tuple};
use socktrail::flow::{Endpoint, Transport};
use socktrail::state::{State, StateConfig};
use socktrail::{MonotonicTime, NetAddress, SockAddress};
use support::{Agent, RECORDING, eventually, json_lines, text};

/// Each key with the test that shows its effect: a file and a function. `every_option_reaches_the_monitor` in
/// `src/config/tests.rs` shows that all of them reach the monitor.
const EFFECTS: [(&str, &str, &str); 73] = [
    ("agent.harden", GUEST_PRIVILEGES, "an_agent_can_be_told_to_keep_everything"),
    ("agent.name", "tests/agent.rs", "flows_of_different_runs_and_passes_have_different_ids"),
    ("agent.nice", "tests/agent.rs", "sigusr1_prints_statistics_and_the_niceness_is_set"),
    ("agent.shutdown_timeout", HERE, "shutting_down_takes_at_most_the_timeout"),
    ("document.direction", "tests/agent.rs", "flows_of_different_runs_and_passes_have_different_ids"),
    ("events.actions", GUEST_AGENT, "flows_events_and_sensors_reach_a_file_and_a_server"),
    ("events.where", GUEST_AGENT, "flows_events_and_sensors_reach_a_file_and_a_server"),
    ("filter.exclude_loopback", HERE, "filters_exclude_flows"),
    ("filter.networks.exclude", HERE, "filters_exclude_flows"),
    ("filter.networks.only", HERE, "filters_exclude_flows"),
    ("filter.pids.exclude", HERE, "filters_exclude_flows"),
    ("filter.pids.only", HERE, "filters_exclude_flows"),
    ("filter.ports.exclude", HERE, "filters_exclude_flows"),
    ("filter.ports.only", HERE, "filters_exclude_flows"),
    ("filter.uids.exclude", HERE, "filters_exclude_flows"),
    ("filter.uids.only", HERE, "filters_exclude_flows"),
    ("metrics.listen", "tests/agent.rs", "metrics_are_served_on_loopback_and_on_a_unix_socket"),
    ("output.elasticsearch.api_key", ELASTICSEARCH, "secrets_go_to_the_server_and_nowhere_else"),
    ("output.elasticsearch.backoff.init", HERE, "waits_after_failures_double_up_to_the_maximum"),
    ("output.elasticsearch.backoff.max", HERE, "waits_after_failures_double_up_to_the_maximum"),
    ("output.elasticsearch.bulk_max_size", ELASTICSEARCH, "when_a_server_dies_in_the_middle_another_takes_over"),
    ("output.elasticsearch.compression_level", ELASTICSEARCH, "a_configured_index_and_uncompressed_requests"),
    ("output.elasticsearch.data_stream", HERE, "an_index_need_not_be_a_data_stream"),
    ("output.elasticsearch.hosts", ELASTICSEARCH, "when_a_server_dies_in_the_middle_another_takes_over"),
    ("output.elasticsearch.index", ELASTICSEARCH, "a_configured_index_and_uncompressed_requests"),
    ("output.elasticsearch.password", ELASTICSEARCH, "secrets_go_to_the_server_and_nowhere_else"),
    ("output.elasticsearch.ssl.ca_trusted_fingerprint", ELASTICSEARCH, "tls_trusts_only_configured_certificates"),
    ("output.elasticsearch.ssl.certificate", ELASTICSEARCH, "tls_trusts_only_configured_certificates"),
    ("output.elasticsearch.ssl.certificate_authorities", ELASTICSEARCH, "tls_trusts_only_configured_certificates"),
    ("output.elasticsearch.ssl.key", ELASTICSEARCH, "tls_trusts_only_configured_certificates"),
    ("output.elasticsearch.timeout", ELASTICSEARCH, "a_request_that_times_out_is_sent_again"),
    ("output.elasticsearch.username", ELASTICSEARCH, "secrets_go_to_the_server_and_nowhere_else"),
    ("output.file.gzip", HERE, "files_are_rotated_compressed_and_removed"),
    ("output.file.keep", HERE, "files_are_rotated_compressed_and_removed"),
    ("output.file.path", "tests/agent.rs", "every_output_gets_every_document"),
    ("output.file.rotate_every", HERE, "files_are_rotated_by_age"),
    ("output.file.rotate_size", HERE, "files_are_rotated_compressed_and_removed"),
    ("output.file.sync", GUEST_OPTIONS, "the_disk_gets_it_when_it_should"),
    ("output.queue_size", HERE, "the_queue_of_an_output_is_bounded"),
    ("output.stdout.enabled", "tests/agent.rs", "every_output_gets_every_document"),
    ("sensors.control", GUEST_AGENT, "locked_events_of_sensors_are_unlocked"),
    ("sensors.files", GUEST_AGENT, "flows_events_and_sensors_reach_a_file_and_a_server"),
    ("sensors.profiles", HERE, "sensor_files_are_checked_with_the_configuration"),
    ("socket.accounting", "src/config/tests.rs", "every_option_reaches_the_monitor"),
    ("socket.backend", "tests/cgroup.rs", "flows_of_a_control_group"),
    ("socket.cgroup", "tests/cgroup.rs", "flows_of_a_control_group"),
    ("socket.clock_max_drift", GUEST_OPTIONS, "how_far_the_wall_clock_may_move"),
    ("socket.clock_sync_period", GUEST_OPTIONS, "how_often_clocks_are_compared"),
    ("socket.dns.af_packet.interface", GUEST_OPTIONS, "where_names_are_listened_to"),
    ("socket.dns.af_packet.snaplen", "dns/tests/capture.rs", "long_datagrams_are_truncated"),
    ("socket.dns.enabled", GUEST_OPTIONS, "where_names_are_listened_to"),
    ("socket.dns.ports", "dns/tests/capture.rs", "other_traffic_stays_in_the_kernel"),
    ("socket.dns.type", "tests/config.rs", "each_broken_file_has_its_expected_error"),
    ("socket.enable_ipv6", GUEST_OPTIONS, "what_is_watched"),
    ("socket.flow_inactive_timeout", HERE, "flows_end_and_are_reported_after_the_configured_times"),
    ("socket.flow_report_interval", HERE, "flows_end_and_are_reported_after_the_configured_times"),
    ("socket.flow_termination_timeout", HERE, "closed_flows_and_idle_sockets_expire_after_the_configured_times"),
    ("socket.guess_timeout", GUEST_OPTIONS, "where_the_layout_comes_from"),
    ("socket.lost_queue_size", "src/monitor/losses.rs", "a_full_queue_joins_losses_and_forgets_none"),
    ("socket.mask", GUEST_OPTIONS, "what_is_watched"),
    ("socket.max_conversations", "src/config/tests.rs", "every_option_reaches_the_monitor"),
    ("socket.max_flows", HERE, "tables_are_bounded"),
    ("socket.max_processes", HERE, "tables_are_bounded"),
    ("socket.max_sockets", HERE, "tables_are_bounded"),
    ("socket.perf_queue_size", "src/monitor/mod.rs", "the_queue_of_samples_is_bounded"),
    ("socket.ring_size_exponent", GUEST_OPTIONS, "what_is_watched"),
    ("socket.socket_inactive_timeout", HERE, "closed_flows_and_idle_sockets_expire_after_the_configured_times"),
    ("socket.source", GUEST_OPTIONS, "where_the_layout_comes_from"),
    ("socket.tracefs_path", GUEST_OPTIONS, "what_is_watched"),
    ("spool.max_size", ELASTICSEARCH, "a_full_spool_loses_its_oldest_documents_and_counts_them"),
    ("spool.path", ELASTICSEARCH, "documents_around_damaged_bytes_of_the_spool_are_sent"),
    ("spool.segment_size", HERE, "segments_of_the_spool_are_bounded"),
    ("spool.sync", GUEST_OPTIONS, "the_disk_gets_it_when_it_should"),
];

const HERE: &str = "tests/options.rs";
const ELASTICSEARCH: &str = "tests/elasticsearch.rs";
const GUEST_AGENT: &str = "tests/vm/src/bin/guest_tests/agent.rs";
const GUEST_PRIVILEGES: &str = "tests/vm/src/bin/guest_tests/privileges.rs";
const GUEST_OPTIONS: &str = "tests/vm/src/bin/guest_tests/options.rs";

#[test]
fn every_key_has_a_test_that_shows_its_effect() {
    let resolved = Loader::new().load().expect("the defaults are valid").resolved;
    let keys: BTreeSet<_> = resolved.iter().map(|resolved| &*resolved.key).collect();
    let named: BTreeSet<_> = EFFECTS.iter().map(|(key, ..)| *key).collect();
    assert_eq!(named, keys, "EFFECTS has the keys of the configuration");
    assert_eq!(named.len(), EFFECTS.len(), "EFFECTS has each key once");
    for (key, file, test) in EFFECTS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{key}: {file}: {error}"));
        assert!(source.contains(&format!("fn {test}(")), "{key}: there is no {test} in {file}");
    }
}

/// The documents of one pass through the recording, with these settings.
fn replayed(settings: &[&str]) -> Vec<Value> {
    let agent = Agent::configured("output.stdout.enabled: true\n");
    let set = settings.iter().flat_map(|setting| ["--set", *setting]);
    let ended = agent.start(&["--replay", RECORDING].into_iter().chain(set).collect::<Vec<_>>()).finish();
    assert!(ended.status.success(), "{settings:?}: {}", ended.stderr);
    json_lines(&ended.stdout)
}

fn port_of(document: &Value, end: &str) -> u64 {
    document[end]["port"].as_u64().expect("a port")
}

#[test]
fn filters_exclude_flows() {
    let all = replayed(&[]);
    let is_v6 = |document: &Value| document["network"]["type"] == "ipv6";
    let has_port = |document: &Value, port| ["source", "destination"].iter().any(|end| port_of(document, end) == port);
    let uid = |document: &Value| document["user"]["id"].as_str().map(str::to_owned);
    let pid = |document: &Value| document["process"]["pid"].as_u64();
    let last = pid(all.last().expect("documents")).expect("an owner");
    type Keeps<'a> = &'a dyn Fn(&Value) -> bool;
    // All traffic in the recording is over loopback.
    let cases: [(String, Keeps<'_>); 9] = [
        ("filter.exclude_loopback=true".to_owned(), &|_| false),
        ("filter.ports.only=9000".to_owned(), &|document| has_port(document, 9000)),
        ("filter.ports.exclude=8080".to_owned(), &|document| !has_port(document, 8080)),
        ("filter.networks.only=::1/128".to_owned(), &is_v6),
        ("filter.networks.exclude=::1/128".to_owned(), &|document| !is_v6(document)),
        ("filter.uids.only=1000".to_owned(), &|document| uid(document).as_deref() == Some("1000")),
        ("filter.uids.exclude=1000".to_owned(), &|document| uid(document).as_deref() != Some("1000")),
        (format!("filter.pids.only={last}"), &|document| pid(document) == Some(last)),
        (format!("filter.pids.exclude={last}"), &|document| pid(document) != Some(last)),
    ];
    for (setting, keeps) in cases {
        let kept = replayed(&[&setting]);
        assert!(kept.iter().all(keeps), "{setting}");
        assert_eq!(kept.len(), all.iter().filter(|document| keeps(document)).count(), "{setting}");
        assert!(kept.len() < all.len(), "{setting}");
    }
}

#[test]
fn flows_end_and_are_reported_after_the_configured_times() {
    let reasons = |documents: &[Value]| -> Vec<String> {
        documents.iter().map(|document| document["event"]["reason"].as_str().expect("a reason").to_owned()).collect()
    };
    let all = replayed(&[]);
    assert!(!reasons(&all).contains(&"inactive".to_owned()) && !reasons(&all).contains(&"interim".to_owned()));
    let short = replayed(&["socket.flow_inactive_timeout=10ms"]);
    assert!(reasons(&short).contains(&"inactive".to_owned()), "{:?}", reasons(&short));
    let reported = replayed(&["socket.flow_report_interval=20ms"]);
    let interim = reasons(&reported).into_iter().filter(|reason| reason == "interim").count();
    assert!(interim > 0 && reported.len() == all.len() + interim, "{:?}", reasons(&reported));
}

#[test]
fn tables_are_bounded() {
    let all = replayed(&[]);
    let evicted = |documents: &[Value]| documents.iter().filter(|it| it["event"]["reason"] == "evicted").count();
    assert_eq!(evicted(&all), 0);
    assert!(evicted(&replayed(&["socket.max_flows=1"])) > 0);
    assert!(replayed(&["socket.max_sockets=1"]).len() < all.len(), "a flow needs a socket");
    let named = |documents: &[Value]| documents.iter().filter(|document| document["process"].is_object()).count();
    assert!(
        named(&replayed(&["socket.max_processes=1"])) < named(&all),
        "a process without room in the table is not known"
    );
}

const SECOND: u64 = 1_000_000_000;

/// A state machine that has seen one packet of a socket with an unknown creator.
fn after_a_packet(config: StateConfig) -> State {
    let mut state = State::new(config);
    state.ingest(&packet(SECOND));
    state
}

fn at(nanos: u64) -> MonotonicTime {
    MonotonicTime::from_nanos(nanos)
}

fn packet(nanos: u64) -> Event {
    let (local, remote) = (Endpoint::new([192, 0, 2, 1], 4000), Endpoint::new([192, 0, 2, 2], 53));
    let (direction, transport, sock) = (PacketDirection::Inbound, Transport::Udp, SockAddress::new(64));
    let (tuple, size) = (Tuple { net: NetAddress::new(1), local, remote }, PacketSize { bytes: 100, headers: 28 });
    let packet = Packet::new(direction, transport, sock, tuple, size);
    Event { time: at(nanos), pid: 1, tid: 1, kind: EventKind::Packet(packet) }
}

#[test]
fn closed_flows_and_idle_sockets_expire_after_the_configured_times() {
    let config = |setting: &str| {
        let options = Loader::new().set([setting.to_owned()]).load().expect("a valid configuration").config.monitor();
        let mut config = StateConfig::default();
        config.flow_termination_timeout = options.flow_termination_timeout;
        config.socket_inactive_timeout = options.socket_inactive_timeout;
        config
    };
    for (setting, counted) in [("socket.flow_termination_timeout=1s", 1), ("socket.flow_termination_timeout=3s", 2)] {
        let mut state = after_a_packet(config(setting));
        let released = EventKind::SocketReleased { sock: SockAddress::new(64).unwrap() };
        state.ingest(&Event { time: at(2 * SECOND), pid: 1, tid: 1, kind: released });
        state.expire(at(4 * SECOND));
        state.ingest(&packet(4 * SECOND));
        state.shutdown();
        let first = state.finished().next().expect("a flow");
        assert_eq!(first.received.packets, counted, "{setting}: a packet two seconds after the close");
    }
    for (setting, known) in [("socket.socket_inactive_timeout=40s", 0), ("socket.socket_inactive_timeout=1h", 1)] {
        let mut state = after_a_packet(config(setting));
        // Its flow ends after 30 s.
        (2..100).for_each(|second| state.expire(at(second * SECOND)));
        assert_eq!(state.stats().sockets_live, known, "{setting}");
    }
}

#[test]
fn files_are_rotated_compressed_and_removed() {
    let agent =
        Agent::configured("output.file: {path: '{folder}/flows.json', rotate_size: 20KiB, keep: 2, gzip: true}\n");
    let passes = 1000.to_string();
    let running = agent.start(&["--replay", RECORDING, "--replay-times", &passes, "--replay-rate", "3000"]);
    let names = || -> Vec<String> {
        let entries = fs::read_dir(agent.folder()).expect("the folder").map(|entry| entry.expect("an entry"));
        let names = entries.map(|entry| entry.file_name().into_string().expect("UTF-8"));
        names.filter(|name| name.starts_with("flows.json.")).collect()
    };
    let number = |name: &str| name.split('.').nth(2).and_then(|number| number.parse::<u32>().ok()).unwrap_or(0);
    eventually("many files were rotated", || names().iter().any(|name| number(name) > 5));
    assert!(running.end(Signal::SIGTERM).status.success());
    let done: Vec<_> = names().into_iter().filter(|name| !name.ends_with(".part")).collect();
    let numbers: BTreeSet<_> = done.iter().map(|name| number(name)).collect();
    assert_eq!(numbers.len(), 2, "two are kept: {done:?}");
    // The next agent compresses the files that the first one left uncompressed. It runs until that is done, because it may take
    // long on a busy machine.
    let endless = ["--replay", RECORDING, "--replay-times", "1000000", "--replay-rate", "10"];
    let running = agent.start(&[&endless[..], &["--set", "output.file.rotate_size=1GiB"]].concat());
    eventually("all are compressed", || names().iter().all(|name| name.ends_with(".gz")));
    running.end(Signal::SIGTERM);
    let size = fs::metadata(agent.folder().join("flows.json")).expect("the file").len();
    assert!(size > 0, "the current file is not compressed");
}

#[test]
fn files_are_rotated_by_age() {
    let agent = Agent::configured("output.file: {path: '{folder}/flows.json', rotate_every: 1s}\n");
    let running = agent.start(&["--replay", RECORDING, "--replay-times", "1000000", "--replay-rate", "50"]);
    eventually("the file is rotated", || agent.folder().join("flows.json.000001").exists());
    assert!(running.lines("flows.json.000001") < 5000, "the file was rotated although it was small");
    running.end(Signal::SIGTERM);
}

/// A limit on file sizes keeps the output from writing, so that documents wait: as many as the queue takes, and one batch.
#[test]
fn the_queue_of_an_output_is_bounded() {
    let offered = |queue: &str| {
        let agent = Agent::configured(&format!(
            "output: {{file: {{path: '{{folder}}/flows.json', sync: never}}, queue_size: {queue}}}
agent.shutdown_timeout: 10ms
"
        ));
        let arguments = ["--replay", RECORDING, "--replay-times", "1000000"].map(str::to_owned);
        let running = agent.spawn_under("trap '' XFSZ; ulimit -f 8; exec \"$@\"", &arguments);
        running.wait_for_log("raise the limit of a file's size");
        let mut counts = Vec::new();
        // The replay waits when the queue is full. From then on, the count does not change.
        eventually("the queue is full", || {
            let lines = running.log().matches("socktrail: stats ").count();
            running.signal(Signal::SIGUSR1);
            eventually("statistics are printed", || running.log().matches("socktrail: stats ").count() > lines);
            let stats = support::last_stats(&running.log());
            counts.push(stats["outputs"][0]["offered"].as_u64().expect("a number"));
            counts.len() > 20 && counts.iter().rev().take(20).all(|offered| Some(offered) == counts.last())
        });
        running.end(Signal::SIGTERM);
        counts.pop().expect("a number")
    };
    let (small, large) = (offered("1MiB"), offered("6MiB"));
    // A document has 1.5 to 2.5 kB, a batch 256 KiB.
    assert!((300..900).contains(&small), "{small}");
    assert!((2400..4500).contains(&large), "{large}");
}

#[test]
fn segments_of_the_spool_are_bounded() {
    let port = Fake::free_port();
    let agent = Agent::configured(&format!(
        "output.elasticsearch.hosts: ['http://127.0.0.1:{port}']
spool: {{path: '{{folder}}/spool', segment_size: 64KiB, max_size: 1GiB}}
agent.shutdown_timeout: 100ms
"
    ));
    agent.start(&["--replay", RECORDING, "--replay-times", "50"]).finish();
    let entries = fs::read_dir(agent.folder().join("spool/elasticsearch/flow")).expect("the spool");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let segments = paths.filter(|path| path.extension().is_some_and(|extension| extension == "spool"));
    let sizes: Vec<_> = segments.map(|path| fs::metadata(path).expect("a segment").len()).collect();
    assert!(sizes.len() > 10 && sizes.iter().all(|&size| size <= 64 << 10), "{sizes:?}");
}

#[test]
fn shutting_down_takes_at_most_the_timeout() {
    let took = |timeout: &str| {
        let server = Fake::start();
        server.seen().always = Some(Fault::Status(503));
        let agent = Agent::configured(&format!(
            "output.elasticsearch: {{hosts: ['{}'], backoff: {{init: 10ms, max: 10ms}}}}
spool.path: '{{folder}}/spool'
agent.shutdown_timeout: {timeout}
",
            server.url()
        ));
        let ended = agent.start(&["--replay", RECORDING]).finish();
        assert!(ended.stderr.contains("documents wait in the spool"), "{}", ended.stderr);
        ended.took
    };
    let (short, long) = (took("100ms"), took("4s"));
    assert!(long >= Duration::from_secs(4) && short < Duration::from_secs(4), "{short:?} {long:?}");
}

#[test]
fn waits_after_failures_double_up_to_the_maximum() {
    let took = |backoff: &str, faults: usize| {
        let server = Fake::start();
        server.seen().faults = vec![Fault::Status(503); faults].into();
        let agent = Agent::configured(&format!(
            "output.elasticsearch: {{hosts: ['{}'], backoff: {backoff}}}
spool.path: '{{folder}}/spool'
agent.shutdown_timeout: 2m
",
            server.url()
        ));
        let started = Instant::now();
        let ended = agent.start(&["--replay", RECORDING]).finish();
        assert_eq!(server.seen().requests, faults + 1, "{}", ended.stderr);
        started.elapsed()
    };
    // Waits are shortened at random by up to half. Without a maximum, sixteen doubled waits would take at least five minutes.
    assert!(took("{init: 2s, max: 10s}", 1) >= Duration::from_secs(1));
    assert!(took("{init: 10ms, max: 20ms}", 16) < Duration::from_secs(60));
    assert!(took("{init: 10ms, max: 1s}", 9) >= Duration::from_millis(5 + 10 + 20 + 40 + 80 + 160 + 320 + 500 + 500));
}

#[test]
fn an_index_need_not_be_a_data_stream() {
    for data_stream in [true, false] {
        let server = Fake::start();
        let agent = Agent::configured(&format!(
            "output.elasticsearch: {{hosts: ['{}'], index: mine, data_stream: {data_stream}, compression_level: 0}}\n",
            server.url()
        ));
        let output = agent.command(&["setup", "--config"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let seen = server.seen();
        let template =
            seen.others.iter().find(|(_, path, _)| path == "/_index_template/socktrail").expect("a template");
        assert_eq!(template.2["index_patterns"], serde_json::json!(["mine"]));
        assert_eq!(template.2.get("data_stream").is_some(), data_stream, "{}", template.2);
    }
}

/// `config check` and the agent report mistakes in the sensor files that the configuration names.
#[test]
fn sensor_files_are_checked_with_the_configuration() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("web.yml"), "web:\n  profile: [web]\n  listener: net.socket\n").expect("a file");
    fs::write(path("broken.yml"), "web:\n  listener: net.socket\n  args: { patterns: ['tcp [*'] }\n").expect("a file");
    let check_and_start = |sensors: String| {
        fs::write(path("a.yml"), format!("output.stdout.enabled: true\nsensors: {sensors}\n")).expect("a file");
        let run = |arguments: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_socktrail"));
            command.env_clear().args(arguments).output().expect("the binary was built")
        };
        let checked = run(&["config", "check", &path("a.yml")]);
        let started = run(&["agent", "--replay", RECORDING, "--config", &path("a.yml")]);
        assert_eq!(checked.status.code(), started.status.code());
        (checked.status.code(), text(&checked.stderr).to_owned(), text(&started.stderr).to_owned())
    };
    let files = |name: &str, more: &str| format!("{{files: ['{}'], control: '{}'{more}}}", path(name), path("sock"));
    assert_eq!(check_and_start(files("web.yml", "")).0, Some(0));
    assert_eq!(check_and_start(files("web.yml", ", profiles: [web]")).0, Some(0));
    for (sensors, expected) in [
        (files("web.yml", ", profiles: [db]"), "web.yml: no sensor has one of the profiles in sensors.profiles"),
        (files("broken.yml", ""), "broken.yml:3: web.args.patterns[0]: bad glob"),
        (files("missing.yml", ""), "missing.yml: No such file"),
    ] {
        let (status, checked, started) = check_and_start(sensors);
        assert_eq!(status, Some(2), "{checked}");
        assert!(checked.contains(expected) && started.contains(expected), "{checked}\n{started}");
    }
}
