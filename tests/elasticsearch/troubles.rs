//! What the agent says while a server fails or refuses documents, and which document is at fault.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::fake::{Fake, Fault};
use super::support::{RECORDING, Running, eventually, json_lines, last_stats};
use super::{PASS, agent, number, replay, replay_and_send_all};

/// Lines of the log about the server.
fn lines_about_server(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("elasticsearch: ")).collect()
}

/// The output's statistics at this moment.
fn output_now(running: &Running) -> Value {
    let before = running.log().matches("socktrail: stats ").count();
    running.signal(Signal::SIGUSR1);
    eventually("statistics are printed", || running.log().matches("socktrail: stats ").count() > before);
    last_stats(&running.log())["outputs"][0].clone()
}

const ENDLESS: [&str; 5] = ["--replay", RECORDING, "--replay-times", "1000000", "--replay-rate"];

#[test]
fn a_server_that_is_down_makes_two_log_lines_and_one_trouble() {
    let port = Fake::free_port();
    let metrics = "metrics.listen: unix:{folder}/metrics\nagent.shutdown_timeout: 30s\n";
    let running = agent(&[format!("http://127.0.0.1:{port}")], metrics).start(&[&ENDLESS[..], &["100"]].concat());
    running.wait_for_log(&format!("http://127.0.0.1:{port}"));
    let troubles_metric = || {
        let mut stream = UnixStream::connect(running.folder().join("metrics")).expect("it listens");
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("it listens");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("UTF-8");
        let line = "socktrail_output_troubles{output=\"elasticsearch\"} ";
        text.lines().find_map(|it| it.strip_prefix(line)).expect("the metric").to_owned()
    };
    eventually("the metric shows the trouble", || troubles_metric() == "1");
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(200));
        let output = output_now(&running);
        assert_eq!((troubles_metric(), &output["troubles"]), ("1".to_owned(), &1.into()), "{output}");
        assert!(output["trouble"].as_str().is_some_and(|it| it.contains("Connection refused")), "{output}");
    }
    let waited = output_now(&running)["pending"].as_u64().expect("a number");
    let server = Fake::start_at(port, None);
    running.wait_for_log("it works again");
    eventually("the metric shows no trouble", || troubles_metric() == "0");
    let output = output_now(&running);
    assert_eq!((&output["troubles"], &output["trouble"]), (&Value::Null, &Value::Null), "{output}");
    let ended = running.end(Signal::SIGTERM);
    let lines = lines_about_server(&ended.stderr);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].contains("WARN") && lines[0].contains(&format!("http://127.0.0.1:{port}: ")), "{lines:#?}");
    let figure = |line: &str, after: &str| line.split(after).nth(1)?.split(' ').next()?.parse::<f64>().ok();
    assert!(figure(lines[1], "works again after ").is_some_and(|seconds| seconds >= 4.0), "{lines:#?}");
    assert!(figure(lines[1], "s; ").is_some_and(|documents| documents >= waited as f64), "{waited} {lines:#?}");
    let highest = server.seen().order.iter().map(|id| number(id)).max();
    assert_eq!(highest, Some(server.count() as u64), "no gap");
}

#[test]
fn a_server_that_refuses_now_and_then_is_one_trouble() {
    let server = Fake::start();
    let answers = [Fault::Status(503), Fault::Slow(Duration::ZERO)];
    server.seen().faults = answers.into_iter().cycle().take(60).collect();
    let running = agent(&[server.url()], "").start(&[&ENDLESS[..], &["500"]].concat());
    eventually("many requests were refused", || server.seen().faults.is_empty());
    let ended = running.end(Signal::SIGTERM);
    // On a busy machine, some documents are not sent before the agent ends, and the log says so.
    let is_of_trouble = |line: &&str| !line.contains("for the next start");
    let lines: Vec<_> = lines_about_server(&ended.stderr).into_iter().filter(is_of_trouble).collect();
    assert!(lines.len() <= 2 && lines[0].contains("answers 503"), "{lines:#?}");
}

#[test]
fn a_reload_does_not_say_that_documents_wait_for_the_next_start() {
    let port = Fake::free_port();
    let running = agent(&[format!("http://127.0.0.1:{port}")], "agent.shutdown_timeout: 300ms\n")
        .start(&[&ENDLESS[..], &["200"]].concat());
    running.wait_for_log(&format!("http://127.0.0.1:{port}"));
    for reload in 1..3 {
        running.signal(Signal::SIGHUP);
        eventually("it reloads", || running.log().matches("the configuration was read again").count() == reload);
        assert!(output_now(&running)["pending"].as_u64() > Some(0));
    }
    assert!(!running.log().contains("for the next start"), "{}", running.log());
    let ended = running.end(Signal::SIGTERM);
    assert_eq!(ended.stderr.matches("documents wait in the spool for the next start").count(), 1, "{}", ended.stderr);
}

#[test]
fn a_document_that_a_proxy_refuses_goes_to_the_dead_letter_file() {
    for (status, bad) in [(400, 1), (401, 30), (403, 17), (404, 25), (413, 26), (422, 59)] {
        let server = Fake::start();
        server.seen().blocked = Some((format!("-{bad}\""), status));
        let ended = replay_and_send_all(&agent(&[server.url()], ""), 6);
        let dead = fs::read_to_string(ended.folder().join("spool/elasticsearch/rejected.json")).expect("dead letters");
        let dead = json_lines(&dead);
        let [letter] = &dead[..] else { panic!("{status}: {} dead letters: {}", dead.len(), ended.stderr) };
        assert_eq!(number(letter["document"]["flow"]["id"].as_str().expect("an id")), bad);
        let (index, id) = ("logs-socktrail.flow-default", letter["id"].as_str().expect("its id"));
        assert_eq!((&letter["status"], &letter["index"]), (&status.into(), &index.into()));
        let reason = letter["reason"].as_str().expect("a reason");
        assert!(reason.contains(&format!("{} answers {status}: <html>Blocked", server.url())), "{reason}");
        assert!(
            ended.stderr.contains(&format!("index {index}: the document {id} is refused for good")),
            "{}",
            ended.stderr
        );
        assert_eq!(server.count(), 6 * PASS - 1, "all others are stored");
        assert_eq!(server.seen().violations, [] as [&str; 0]);
        assert_eq!(server.seen().duplicates, 0);
        let stats = ended.stats();
        let output = &stats["outputs"][0];
        assert_eq!((&output["written"], &output["rejected"]), (&(6 * PASS - 1).into(), &1.into()), "{stats}");
        assert_eq!((&output["pending"], &output["troubles"]), (&Value::Null, &Value::Null), "{stats}");
        assert!(server.seen().refusals < 20, "{}", server.seen().refusals);
    }
}

/// Until another document is taken, a document at fault looks the same as a wrong key.
#[test]
fn a_refused_document_waits_for_another_to_compare_with() {
    let server = Fake::start();
    server.seen().blocked = Some((format!("-{PASS}\""), 403));
    let agent = agent(&[server.url()], "agent.shutdown_timeout: 4s\n");
    let first = replay(&agent, 1);
    assert_eq!((server.count(), &first.stats()["outputs"][0]["pending"]), (PASS - 1, &1.into()), "{}", first.stderr);
    let rejected = agent.folder().join("spool/elasticsearch/rejected.json");
    assert!(!rejected.exists());
    assert!(first.stderr.contains("index logs-socktrail.flow-default: "), "{}", first.stderr);
    let second = replay(&agent, 1);
    // Only the first run's document was set aside. The second run's last one is refused too, and no other comes after
    // it.
    assert_eq!(json_lines(&fs::read_to_string(rejected).expect("dead letters")).len(), 1, "{}", second.stderr);
    assert_eq!(server.count(), 2 * PASS - 2);
}

#[test]
fn if_every_document_is_refused_none_is_at_fault() {
    for status in [400, 401, 403, 404, 413] {
        let server = Fake::start();
        server.seen().always = Some(Fault::Status(status));
        let running = agent(&[server.url()], "agent.shutdown_timeout: 30s\n").start(&[&ENDLESS[..], &["300"]].concat());
        running.wait_for_log(&format!("answers {status}: "));
        eventually("many requests were sent", || server.seen().requests > 40);
        assert_eq!(server.count(), 0);
        server.seen().always = None;
        running.wait_for_log("it works again");
        let ended = running.end(Signal::SIGTERM);
        assert!(!ended.folder().join("spool/elasticsearch/rejected.json").exists(), "{status}: {}", ended.stderr);
        assert_eq!(lines_about_server(&ended.stderr).len(), 2, "{}", ended.stderr);
        let highest = server.seen().order.iter().map(|id| number(id)).max();
        assert_eq!(highest, Some(server.count() as u64), "{status}: no gap: {}", ended.stderr);
    }
}
