//! Sends documents to a server that misbehaves in many ways: none is lost, and none is stored twice.

#[path = "support/fake.rs"]
mod fake;
#[path = "elasticsearch/indices.rs"]
mod indices;
mod support;
#[path = "elasticsearch/troubles.rs"]
mod troubles;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use fake::{CERTIFICATES, Fake, Fault};
use nix::sys::signal::Signal;
use serde_json::Value;
use support::{Agent, Ended, RECORDING, eventually, json_lines};

/// The number of flows in one pass through the recording. The expected documents have one line for each.
const PASS: usize = lines(include_bytes!("data/recordings/6.1-x86_64.json"));

const fn lines(text: &[u8]) -> usize {
    let (mut count, mut at) = (0, 0);
    while at < text.len() {
        count += (text[at] == b'\n') as usize;
        at += 1;
    }
    count
}

/// An agent that sends to these hosts and does not wait long after a failure.
fn agent(hosts: &[String], more: &str) -> Agent {
    Agent::configured(&format!(
        "output.elasticsearch:
  hosts: {hosts:?}
  backoff: {{init: 20ms, max: 100ms}}
  bulk_max_size: 25
spool.path: {{folder}}/spool
{more}"
    ))
}

fn arguments(times: usize) -> Vec<String> {
    ["--stats", "--replay", RECORDING, "--replay-times", &times.to_string()].map(str::to_owned).into()
}

/// Replays the recording this many times, and waits until the agent ends.
fn replay(agent: &Agent, times: usize) -> Ended {
    replay_with(agent, arguments(times))
}

/// Like [`replay`], with enough time at the end to send all waiting documents, even on a slow machine.
fn replay_and_send_all(agent: &Agent, times: usize) -> Ended {
    replay_with(agent, [arguments(times), ["--set", "agent.shutdown_timeout=10m"].map(str::to_owned).into()].concat())
}

fn replay_with(agent: &Agent, arguments: Vec<String>) -> Ended {
    let ended = agent.start(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).finish();
    assert!(ended.status.success(), "{}", ended.stderr);
    ended
}

/// The flow's number in its `flow.id`.
fn number(id: &str) -> u64 {
    id.rsplit('-').next().and_then(|number| number.parse().ok()).expect("RUN-NUMBER")
}

/// Checks that the server has each document of this many passes once.
fn assert_complete(server: &Fake, times: usize) {
    let seen = server.seen();
    assert_eq!(seen.violations, [] as [&str; 0]);
    assert_eq!(seen.documents.len(), times * PASS);
    let ids: BTreeSet<_> = seen.documents.values().map(|document| document["flow"]["id"].to_string()).collect();
    assert_eq!(ids.len(), times * PASS, "a document is stored under two ids");
}

/// Checks that no document arrived before one of an earlier pass.
fn assert_in_order(server: &Fake) {
    let seen = server.seen();
    let passes: Vec<_> = seen.order.iter().map(|id| (number(id) - 1) / PASS as u64).collect();
    assert!(passes.is_sorted(), "{passes:?}");
}

#[test]
fn documents_arrive_unchanged_and_once() {
    let server = Fake::start();
    let agent = agent(&[server.url()], "output.file.path: {folder}/flows.json\n");
    let ended = replay(&agent, 7);
    assert_complete(&server, 7);
    assert_in_order(&server);
    let seen = server.seen();
    assert_eq!(seen.compressed, seen.requests, "requests are compressed");
    assert!(seen.documents.keys().all(|(index, _)| index == "logs-socktrail.flow-default"));
    let by_id = |documents: Vec<Value>| {
        let mut documents: Vec<_> = documents.into_iter().map(|document| document.to_string()).collect();
        documents.sort();
        documents
    };
    let file = json_lines(&fs::read_to_string(ended.folder().join("flows.json")).expect("the file"));
    assert_eq!(by_id(seen.documents.values().cloned().collect()), by_id(file), "the file has the same documents");
    let stats = ended.stats();
    let output = &stats["outputs"][1];
    assert_eq!((&output["output"], &output["written"]), (&"elasticsearch".into(), &(7 * PASS).into()), "{stats}");
    assert_eq!((&output["pending"], &output["dropped"]), (&Value::Null, &0.into()), "{stats}");
}

#[test]
fn a_configured_index_and_uncompressed_requests() {
    let server = Fake::start();
    let more = "output.elasticsearch.index: mine-{kind}\noutput.elasticsearch.compression_level: 0\n";
    replay(&agent(&[server.url()], more), 1);
    assert_complete(&server, 1);
    let seen = server.seen();
    assert!(seen.documents.keys().all(|(index, _)| index == "mine-flow"));
    assert_eq!(seen.compressed, 0);
}

#[test]
fn after_any_fault_each_document_is_stored_once() {
    for fault in [
        Fault::Unprocessed,
        Fault::Unanswered,
        Fault::Truncated,
        Fault::Slow(Duration::from_millis(300)),
        Fault::Status(429),
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(401),
        Fault::Status(403),
        Fault::Status(404),
        Fault::Status(301),
        Fault::Status(400),
        Fault::EverySecond(429),
        Fault::EverySecond(503),
        Fault::EverySecond(403),
        Fault::Unrelated("{\"items\":[]}"),
        Fault::Unrelated("{\"errors\":false,\"items\":[{\"create\":{\"_id\":\"x\",\"status\":201}}]}"),
        Fault::Unrelated("<html>Welcome to our hotel</html>"),
    ] {
        let server = Fake::start();
        server.seen().faults = [fault.clone(), fault.clone()].into();
        let ended = replay(&agent(&[server.url()], ""), 6);
        assert_complete(&server, 6);
        let done_twice = matches!(fault, Fault::Unanswered | Fault::Truncated);
        let stats = ended.stats();
        let output = &stats["outputs"][0];
        // The agent counts duplicates in the answers that it got. Lost answers may have been about duplicates, too.
        let duplicates = output["duplicates"].as_u64().unwrap_or(0);
        assert_eq!(duplicates > 0, done_twice, "{fault:?}: {stats}");
        assert!(duplicates <= server.seen().duplicates as u64, "{fault:?}: {stats}");
        assert_eq!(output["written"], 6 * PASS, "{fault:?}: {stats}");
        let slow = matches!(fault, Fault::Slow(_));
        assert_eq!(output["failures"].as_u64(), Some(if slow { 0 } else { 2 }), "{fault:?}: {stats}");
    }
}

#[test]
fn a_request_that_times_out_is_sent_again() {
    let server = Fake::start();
    server.seen().faults = [Fault::Slow(Duration::from_secs(3))].into();
    let ended = replay(&agent(&[server.url()], "output.elasticsearch.timeout: 300ms\n"), 2);
    assert_complete(&server, 2);
    assert!(ended.stderr.contains("timeout"), "{}", ended.stderr);
}

#[test]
fn requests_that_are_too_large_are_halved() {
    let server = Fake::start();
    // Enough for four documents of about 2 kB.
    server.seen().always = Some(Fault::LargerThan(10_000));
    replay_and_send_all(&agent(&[server.url()], "output.elasticsearch.compression_level: 0\n"), 50);
    assert_complete(&server, 50);
    assert!(server.seen().too_large > 0);
}

#[test]
fn refused_documents_go_to_the_dead_letter_file_with_the_reason() {
    let server = Fake::start();
    server.seen().unwanted = Some("curl".to_owned());
    let ended = replay(&agent(&[server.url()], ""), 3);
    let file = fs::read_to_string(ended.folder().join("spool/elasticsearch/rejected.json")).expect("dead letters");
    let dead = json_lines(&file);
    assert_eq!(dead.len() + server.count(), 3 * PASS);
    assert!(dead.len() > 3);
    for letter in &dead {
        assert_eq!(letter["document"]["process"]["name"], "curl");
        assert_eq!((&letter["status"], &letter["index"]), (&400.into(), &"logs-socktrail.flow-default".into()));
        assert!(letter["reason"].as_str().expect("text").starts_with("400: document_parsing_exception: about "));
    }
    assert_eq!(ended.stats()["outputs"][0]["rejected"], dead.len());
}

#[test]
fn a_server_that_is_down_at_the_start_gets_everything_later() {
    let port = Fake::free_port();
    let agent = agent(&[format!("http://127.0.0.1:{port}")], "agent.shutdown_timeout: 30s\n");
    let running = agent.start(&["--replay", RECORDING, "--replay-times", "1000000", "--replay-rate", "200"]);
    running.wait_for_log(&format!("http://127.0.0.1:{port}"));
    let server = Fake::start_at(port, None);
    eventually("documents arrive", || server.count() > 100);
    let ended = running.end(Signal::SIGTERM);
    assert!(ended.status.success() && ended.stderr.contains("it works again"), "{}", ended.stderr);
    let whole = server.count();
    let highest = server.seen().order.iter().map(|id| number(id)).max();
    assert_eq!(highest, Some(whole as u64), "no gap");
    assert_in_order(&server);
}

#[test]
fn what_is_not_sent_at_the_end_is_sent_after_the_next_start() {
    let port = Fake::free_port();
    let agent = agent(&[format!("http://127.0.0.1:{port}")], "agent.shutdown_timeout: 300ms\n");
    let first = replay(&agent, 5);
    assert!(first.stderr.contains(&format!("{} documents wait in the spool", 5 * PASS)), "{}", first.stderr);
    assert_eq!(first.stats()["outputs"][0]["pending"], 5 * PASS);
    let server = Fake::start_at(port, None);
    let second = replay_and_send_all(&agent, 1);
    assert_eq!(server.count(), 6 * PASS, "{}", second.stderr);
    assert_eq!(server.seen().duplicates, 0);
}

#[test]
fn when_a_server_dies_in_the_middle_another_takes_over() {
    let (one, other) = (Fake::start(), Fake::start());
    one.seen().faults = [Fault::Unanswered].into();
    one.seen().always = Some(Fault::Unprocessed);
    let agent = agent(&["http://127.0.0.1:1".to_owned(), one.url(), other.url()], "");
    let ended = replay(&agent, 8);
    // Servers of one cluster share their documents. These two do not, so both have the batch that the first one stored.
    assert_eq!(other.count(), 8 * PASS, "{}", ended.stderr);
    assert_eq!(one.count(), 25);
}

#[test]
fn a_full_spool_loses_its_oldest_documents_and_counts_them() {
    let port = Fake::free_port();
    let more = "spool.max_size: 256KiB\nspool.segment_size: 64KiB\nagent.shutdown_timeout: 300ms\n";
    let agent = agent(&[format!("http://127.0.0.1:{port}")], more);
    let first = replay(&agent, 100);
    let stats = first.stats();
    let output = &stats["outputs"][0];
    let (dropped, pending) =
        (output["spool_dropped"].as_u64().expect("a number"), output["pending"].as_u64().expect("a number"));
    assert!(dropped > 0 && dropped + pending == 100 * PASS as u64, "{stats}");
    assert!(first.stderr.contains("set a larger spool.max_size"), "{}", first.stderr);
    let server = Fake::start_at(port, None);
    let second = replay_and_send_all(&agent, 1);
    // New documents may evict more of the waiting ones, even some that are being sent.
    let more = second.stats()["outputs"][0]["spool_dropped"].as_u64().unwrap_or(0);
    assert!(server.count() as u64 + more >= pending + PASS as u64, "{}", second.stderr);
    let numbers: Vec<_> = server.seen().order.iter().map(|id| number(id)).collect();
    let of_first = numbers.len() - PASS;
    assert!(!numbers[..of_first].contains(&1), "the oldest were dropped");
    assert_eq!(numbers[of_first..], (1..=PASS as u64).collect::<Vec<_>>(), "the newest are there");
}

/// A limit on the size of files simulates a full disk: the spool has room for only a few documents.
#[test]
fn on_a_full_disk_documents_go_through_memory() {
    let server = Fake::start();
    server.seen().faults = vec![Fault::Status(503); 3].into();
    let agent = agent(&[server.url()], "");
    let ended = agent.start_under("trap '' XFSZ; ulimit -f 8; exec \"$@\"", &arguments(20));
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(ended.stderr.contains("writing to the spool"), "{}", ended.stderr);
    assert_complete(&server, 20);
    assert_in_order(&server);
}

#[test]
fn documents_around_damaged_bytes_of_the_spool_are_sent() {
    let port = Fake::free_port();
    let agent = agent(&[format!("http://127.0.0.1:{port}")], "agent.shutdown_timeout: 300ms\n");
    replay(&agent, 5);
    let spool = agent.folder().join("spool/elasticsearch/flow");
    let segment = fs::read_dir(&spool).expect("the spool").map(|entry| entry.expect("an entry").path());
    let segment = segment.filter(|path| path.extension().is_some_and(|it| it == "spool")).min().expect("a segment");
    let mut bytes = fs::read(&segment).expect("it can be read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes).expect("it can be written");
    let server = Fake::start_at(port, None);
    let ended = replay_and_send_all(&agent, 1);
    assert_eq!(server.count(), 6 * PASS - 1);
    assert_eq!(ended.stats()["outputs"][0]["spool_damaged"], 1);
    let expected = format!("{} is damaged at byte", segment.display());
    assert!(ended.stderr.contains(&expected), "{}", ended.stderr);
    assert_eq!(fs::read_dir(spool.join("damaged")).expect("set aside").count(), 1);
}

#[test]
fn tls_trusts_only_configured_certificates() {
    let fingerprint = "output.elasticsearch.ssl.ca_trusted_fingerprint: ";
    let sha256_of = |name: &str| {
        use rustls::pki_types::pem::PemObject;
        use sha2::{Digest, Sha256};
        let file = format!("{CERTIFICATES}/{name}.pem");
        let certificate = rustls::pki_types::CertificateDer::from_pem_file(file).expect("a certificate");
        Sha256::digest(&certificate).iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
    };
    let authority =
        |name: &str| format!("output.elasticsearch.ssl.certificate_authorities: [{CERTIFICATES}/{name}.pem]\n");
    let pinned = |name: &str| format!("{fingerprint}'{}'\n", sha256_of(name));
    let client = format!(
        "output.elasticsearch.ssl.certificate: {CERTIFICATES}/client.pem\noutput.elasticsearch.ssl.key: {CERTIFICATES}/client.key\n"
    );
    for (clients, more, refused) in [
        (false, authority("authority"), None),
        (false, pinned("authority"), None),
        (false, pinned("server"), None),
        (true, authority("authority") + &client, None),
        (
            false,
            authority("stranger"),
            Some("name the authority that has signed it in output.elasticsearch.ssl.certificate_authorities"),
        ),
        (false, pinned("stranger"), Some("check output.elasticsearch.ssl.ca_trusted_fingerprint")),
        (true, authority("authority"), Some("ertificate")),
    ] {
        let server = Fake::with_tls(clients);
        let url = format!("https://127.0.0.1:{}", server.port);
        // The agent tries again until this timeout: long enough for a handshake on a busy machine.
        let ended = replay(&agent(&[url], &format!("{more}agent.shutdown_timeout: 8s\n")), 2);
        match refused {
            None => assert_complete(&server, 2),
            Some(expected) => {
                assert_eq!(server.count(), 0, "{more}");
                assert!(ended.stderr.contains(expected), "{more}: {}", ended.stderr);
                assert_eq!(ended.stats()["outputs"][0]["pending"], 2 * PASS);
            }
        }
    }
}

#[test]
fn secrets_go_to_the_server_and_nowhere_else() {
    for (more, header) in [
        ("output.elasticsearch.api_key: 'name:s3cr3t'\n", "ApiKey bmFtZTpzM2NyM3Q="),
        ("output.elasticsearch.api_key: s3cr3t==\n", "ApiKey s3cr3t=="),
        ("output.elasticsearch.username: me\noutput.elasticsearch.password: s3cr3t\n", "Basic bWU6czNjcjN0"),
    ] {
        let server = Fake::start();
        // An answer may contain the credentials of the request.
        server.seen().faults = [vec![Fault::Status(401); 30], vec![Fault::Echo(403); 30]].concat().into();
        let agent = agent(&[server.url()], more);
        let arguments = [arguments(1), ["--set", "agent.shutdown_timeout=1m"].map(str::to_owned).into()].concat();
        let mut arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        arguments.insert(0, "-vv");
        let ended = agent.start(&arguments).finish();
        assert_eq!(server.seen().authorization.as_deref(), Some(header));
        assert_complete(&server, 1);
        assert!(ended.stderr.contains("check output.elasticsearch.api_key"), "{}", ended.stderr);
        assert!(ended.stderr.contains("answers 403: you said "), "{}", ended.stderr);
        let encoded = header.split(' ').nth(1).expect("two words");
        assert!(!ended.stderr.contains("s3cr3t") && !ended.stderr.contains(encoded), "{}", ended.stderr);
        let shown = agent.command(&["config", "show", "--config"]);
        let shown = String::from_utf8(shown.stdout).expect("UTF-8");
        assert!(shown.contains("\"********\"") && !shown.contains("s3cr3t"), "{shown}");
    }
}

#[test]
fn setup_installs_templates_and_a_policy() {
    let server = Fake::start();
    let agent = agent(&[server.url()], "");
    let output = agent.command(&["setup", "--config"]);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        stdout,
        "index templates socktrail-flow, socktrail-event, socktrail-sensor, socktrail-loss; lifecycle policy socktrail\n"
    );
    let seen = server.seen();
    let puts: Vec<_> = seen.others.iter().filter(|(method, ..)| method == "PUT").map(|(_, path, _)| &**path).collect();
    let templates = ["flow", "event", "sensor", "loss"].map(|kind| format!("/_index_template/socktrail-{kind}"));
    assert_eq!(puts[0], "/_ilm/policy/socktrail");
    assert_eq!(puts[1..], templates);
}

/// Kills the agent at many different moments. All documents that a run has spooled arrive, without a gap from the first flow on.
fn kill_repeatedly(times: usize) {
    let server = Fake::start();
    let agent = agent(&[server.url()], "");
    let mut spooled = Vec::new();
    for round in 0..times {
        {
            let mut seen = server.seen();
            seen.faults.clear();
            let faults = [Fault::Unanswered, Fault::EverySecond(429), Fault::Truncated, Fault::Status(503)];
            seen.faults.extend(faults.into_iter().cycle().skip(round).take(3));
        }
        let rate = ["300", "1000", "3000", "20000"][round % 4];
        let name = format!("agent.name=round {round}");
        let endless = ["--replay", RECORDING, "--replay-times", "1000000", "--replay-rate", rate];
        let running = agent.start(&[&["--set", &*name], &endless[..]].concat());
        running.wait_for_log("socktrail: ready");
        // The moment differs from round to round, but not from one run of the test to the next.
        let moment = Duration::from_micros((round as u64 * 7919) % 250_000);
        std::thread::sleep(moment);
        running.signal(Signal::SIGUSR1);
        eventually("statistics are printed", || running.log().contains("stats ") || running.has_ended());
        std::thread::sleep(moment / 7);
        let ended = running.end(Signal::SIGKILL);
        spooled.push(ended.stats()["outputs"][0]["spooled"].as_u64().unwrap_or(0));
    }
    server.seen().faults.clear();
    let last = replay_and_send_all(&agent, 1);
    assert_eq!(last.stats()["outputs"][0]["pending"], Value::Null, "{}", last.stderr);
    let seen = server.seen();
    assert_eq!(seen.violations, [] as [&str; 0]);
    let mut rounds: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for document in seen.documents.values() {
        let (name, id) = (document["agent"]["name"].as_str(), document["flow"]["id"].as_str());
        let numbers = rounds.entry(name.expect("a name")).or_default();
        assert!(numbers.insert(number(id.expect("an id"))), "{id:?} is stored twice");
    }
    for (round, spooled) in spooled.into_iter().enumerate() {
        let numbers = rounds.remove(&*format!("round {round}")).unwrap_or_default();
        assert!(numbers.len() as u64 >= spooled, "round {round}: {} of at least {spooled} documents", numbers.len());
        let whole = numbers.len() - numbers.len() % PASS;
        let expected: Vec<u64> = (1..=whole as u64).collect();
        assert_eq!(numbers.into_iter().take(whole).collect::<Vec<_>>(), expected, "round {round} has a gap");
    }
}

#[test]
fn an_agent_killed_at_any_moment_loses_and_repeats_nothing() {
    kill_repeatedly(4);
}

#[test]
#[ignore = "takes a minute; scripts/test runs it"]
fn an_agent_killed_fifty_times_loses_and_repeats_nothing() {
    kill_repeatedly(50);
}
