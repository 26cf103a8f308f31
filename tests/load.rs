//! Load: 50,000 documents per second into a file and a server, with constant memory.
//!
//! `cargo test --release --test load -- --ignored --nocapture` prints the costs; `SOCKTRAIL_LOAD_RATE` and
//! `SOCKTRAIL_LOAD_SECONDS` set rate and duration. Files are in `/dev/shm`, if there is one, so that the disk's speed does not
//! matter.

#![allow(clippy::print_stdout, reason = "prints the measured costs")]

mod support;

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use serde_json::Value;
use support::{Agent, RECORDING, Running, last_stats};

/// A server for bulk requests that accepts a limited number of documents per second.
struct Sink {
    port: u16,
    ids: Arc<Mutex<HashSet<String>>>,
}

impl Sink {
    fn start(pace: Option<usize>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let ids = Arc::<Mutex<HashSet<String>>>::default();
        let shared = Arc::clone(&ids);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let ids = Arc::clone(&shared);
                thread::spawn(move || serve(stream, &ids, pace));
            }
        });
        Self { port, ids }
    }

    fn count(&self) -> usize {
        self.ids.lock().expect("no thread has panicked").len()
    }
}

/// Answers requests until the client disconnects.
fn serve(stream: TcpStream, ids: &Mutex<HashSet<String>>, pace: Option<usize>) {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while head != "\r\n" {
            head.clear();
            if stream.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = head.to_ascii_lowercase().strip_prefix("content-length: ") {
                length = value.trim().parse().expect("a number");
            }
        }
        let mut compressed = vec![0; length];
        if stream.read_exact(&mut compressed).is_err() {
            return;
        }
        let mut body = String::new();
        GzDecoder::new(&compressed[..]).read_to_string(&mut body).expect("gzip");
        let actions = body.lines().step_by(2);
        let new: Vec<&str> = actions.map(|line| line.rsplit('"').nth(1).expect("an id")).collect();
        if let Some(pace) = pace {
            thread::sleep(Duration::from_secs_f64(new.len() as f64 / pace as f64));
        }
        let items: Vec<_> =
            new.iter().map(|id| format!("{{\"create\":{{\"_id\":\"{id}\",\"status\":201}}}}")).collect();
        ids.lock().expect("no thread has panicked").extend(new.into_iter().map(str::to_owned));
        let answer = format!("{{\"items\":[{}]}}", items.join(","));
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len());
        if stream.get_mut().write_all((head + &answer).as_bytes()).is_err() {
            return;
        }
    }
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number")))
}

/// The agent's resident memory in KiB, from `proc(5)`.
fn resident(agent: &Running) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().trim_end_matches(" kB").parse().ok()
}

/// The CPU time of the agent in seconds.
fn cpu(agent: &Running) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// The result of a run.
struct Run {
    stats: Value,
    took: Duration,
    cpu: f64,
    /// The resident memory in KiB, every tenth of a second.
    memory: Vec<u64>,
}

fn run(sink: &Sink, rate: usize, documents: usize, more: &str) -> Run {
    let folder = Path::new("/dev/shm").is_dir().then(|| tempfile::tempdir_in("/dev/shm").expect("a folder"));
    let agent = Agent::configured(&format!(
        "output.file: {{path: '{{folder}}/documents.json', rotate_size: 64MiB, keep: 1}}
output.elasticsearch.hosts: ['http://127.0.0.1:{}']
spool.path: '{{folder}}/spool'
{more}",
        sink.port
    ));
    let files = folder.as_ref().map_or(agent.folder(), tempfile::TempDir::path).display().to_string();
    let (file, spool) = (format!("output.file.path={files}/documents.json"), format!("spool.path={files}/spool"));
    let pass = include_str!("data/recordings/6.1-x86_64.json").lines().count();
    let (rate, times) = (rate.to_string(), documents.div_ceil(pass).to_string());
    let started = Instant::now();
    let running = agent.start(&[
        "--stats",
        "--replay",
        RECORDING,
        "--replay-times",
        &times,
        "--replay-rate",
        &rate,
        "--set",
        &file,
        "--set",
        &spool,
    ]);
    let (mut memory, mut used) = (Vec::new(), 0.0);
    while let (Some(kib), false) = (resident(&running), running.has_ended()) {
        memory.push(kib);
        used = cpu(&running).max(used);
        thread::sleep(Duration::from_millis(100));
    }
    let took = started.elapsed();
    let ended = running.finish();
    assert!(ended.status.success(), "{}", ended.stderr);
    Run { stats: last_stats(&ended.stderr), took, cpu: used, memory }
}

impl Run {
    fn number(&self, output: usize, name: &str) -> usize {
        self.stats["outputs"][output][name].as_u64().unwrap_or(0) as usize
    }

    fn print(&self, what: &str) {
        let offered = self.number(0, "offered");
        let (file, sent, pending) = (self.number(0, "written"), self.number(1, "written"), self.number(1, "pending"));
        let each = self.cpu / offered as f64 * 1e6;
        let rate = offered as f64 / self.took.as_secs_f64();
        let (most, last) = (self.memory.iter().max().unwrap_or(&0), self.memory.last().unwrap_or(&0));
        println!(
            "{what}: {offered} documents in {:.1} s, {rate:.0} a second with start and end; {file} in the file, {sent} sent, \
             {pending} spooled; {each:.1} µs of CPU each; {most} KiB at most, {last} KiB at last",
            self.took.as_secs_f64()
        );
    }

    /// Checks that memory never held more than the program and two full queues, however many documents there were.
    fn assert_flat(&self) {
        const PROGRAM: u64 = 32 << 10;
        const QUEUES: u64 = 2 * (32 << 10);
        let most = self.memory.iter().max().copied().unwrap_or(0);
        assert!(most > 0 && most <= PROGRAM + QUEUES, "{most} KiB");
    }
}

#[test]
#[ignore = "needs an idle machine and a release build: see above"]
fn fifty_thousand_a_second_into_a_file_and_a_server() {
    let (rate, seconds) = (setting("SOCKTRAIL_LOAD_RATE", 50_000), setting("SOCKTRAIL_LOAD_SECONDS", 10));
    let sink = Sink::start(None);
    let run = run(&sink, rate, rate * seconds, "agent.shutdown_timeout: 1m\n");
    run.print("a server that takes every document");
    let documents = run.number(0, "offered");
    assert!(documents >= rate * seconds);
    assert_eq!((run.number(0, "dropped"), run.number(1, "dropped"), run.number(1, "spool_dropped")), (0, 0, 0));
    assert_eq!((run.number(0, "written"), run.number(1, "spooled")), (documents, documents));
    assert_eq!(sink.count() + run.number(1, "pending"), documents, "each once");
    run.assert_flat();
    let late = run.took.as_secs_f64() - seconds as f64;
    assert!(late < 1.0 + seconds as f64 / 20.0, "{late:.1} s late");
}

#[test]
#[ignore = "needs an idle machine and a release build: see above"]
fn what_a_slow_server_cannot_take_is_spooled() {
    let (rate, seconds) = (setting("SOCKTRAIL_LOAD_RATE", 50_000), setting("SOCKTRAIL_LOAD_SECONDS", 10));
    let sink = Sink::start(Some(rate / 5));
    let run = run(
        &sink,
        rate,
        rate * seconds,
        &format!("agent.shutdown_timeout: 1s\nspool.max_size: {}MiB\n", rate * seconds / 250),
    );
    run.print("a server that takes a fifth");
    let documents = run.number(0, "offered");
    assert_eq!((run.number(0, "dropped"), run.number(1, "dropped"), run.number(1, "spool_dropped")), (0, 0, 0));
    assert_eq!(run.number(1, "spooled"), documents);
    assert!(run.number(1, "pending") > documents / 3, "{}", run.stats);
    // The server may have stored documents that were being sent at the end. They are still pending, because they have no answer.
    let unsure = 2 * 1600;
    assert!((documents..documents + unsure).contains(&(sink.count() + run.number(1, "pending"))), "{}", run.stats);
    run.assert_flat();
}
