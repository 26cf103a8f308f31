//! Sends documents to a real server, a node of OpenSearch, and searches for them there.
//!
//! Needs a JDK and Maven. Maven fetches the libraries of the node once, from the repositories in its settings. They are kept in the
//! cache.

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use socktrail::MonotonicTime;
use socktrail::clock::Clock;
use socktrail::config::Loader;
use socktrail::documents::ecs::{self, Context, Directions};
use socktrail::host::Host;
use socktrail::host::agent::Agent as Identity;
use socktrail::output::elasticsearch::Elasticsearch;
use socktrail::output::{Batch, Kind, Meter, Outputs};
use socktrail::sensors::{self, Engine, Limits};
use socktrail::socket_event::{
    Action, Address, CallResult, EventSocket, Family, IpEnd, SocketEvent, SocketId, SocketState, SocketType,
};
use support::{Agent, RECORDING, eventually, json_lines};
use tempfile::TempDir;

const NODE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/node");
/// The goal of Maven that fetches the libraries. Its version is fixed, so that the result stays the same.
const COPY: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies";

/// A running node. It is killed when it is dropped.
struct Node {
    process: Child,
    port: u16,
    _home: TempDir,
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}: install a JDK and Maven"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stdout));
}

/// The folder with the node's libraries and its launcher.
fn libraries() -> PathBuf {
    let cache = std::env::var_os("SOCKTRAIL_VM_CACHE").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache/socktrail");
    let folder = cache.unwrap_or_else(home).join("opensearch-2.17.0");
    if !folder.join("complete").exists() {
        let jars = format!("-DoutputDirectory={}", folder.join("lib").display());
        run(Command::new("mvn").args(["-q", "-B", COPY, &jars, "-f"]).arg(Path::new(NODE).join("pom.xml")));
        fs::write(folder.join("complete"), "").expect("a writable cache");
    }
    let classes = folder.join("classes");
    run(Command::new("javac")
        .arg("-cp")
        .arg(folder.join("lib/*"))
        .arg("-d")
        .arg(classes)
        .arg(Path::new(NODE).join("Node.java")));
    folder
}

impl Node {
    fn start() -> Self {
        let libraries = libraries();
        let home = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(home.path().join("config")).expect("a writable folder");
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let mut java = Command::new("java");
        java.args(["-Xms256m", "-Xmx512m", "-cp"]);
        java.arg(format!("{0}/classes:{0}/lib/*", libraries.display()))
            .arg("Node")
            .arg(home.path())
            .arg(port.to_string());
        let process = java.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("java");
        let node = Self { process, port, _home: home };
        eventually("the node answers", || {
            node.try_ask("GET", "_cluster/health?wait_for_status=yellow", None).is_some()
        });
        node
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn try_ask(&self, method: &str, path: &str, body: Option<Value>) -> Option<Value> {
        use ureq::http::Request;
        let request = Request::builder().method(method).uri(format!("{}/{path}", self.url()));
        let request = request.header("content-type", "application/json");
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let agent = ureq::Agent::new_with_config(
            ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(60))).build(),
        );
        let mut answer = agent.run(request.body(body).expect("a request")).ok()?;
        serde_json::from_reader(answer.body_mut().as_reader()).ok()
    }

    fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        self.try_ask(method, path, body).unwrap_or_else(|| panic!("{method} {path}"))
    }

    /// The documents of an index that match a query, by `_id`.
    fn search(&self, index: &str, query: &Value) -> BTreeMap<String, Value> {
        self.ask("POST", &format!("{index}/_refresh"), None);
        let found = self.ask("POST", &format!("{index}/_search"), Some(json!({ "size": 10_000, "query": query })));
        let hits = found["hits"]["hits"].as_array().unwrap_or_else(|| panic!("{found}"));
        hits.iter().map(|hit| (hit["_id"].to_string(), hit["_source"].clone())).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn by_flow(documents: impl IntoIterator<Item = Value>) -> BTreeMap<String, Value> {
    documents.into_iter().map(|document| (document["flow"]["id"].to_string(), document)).collect()
}

/// All checks are in one test, because a node takes long to start.
#[test]
#[ignore = "needs a JDK, Maven and a minute; scripts/test runs it"]
fn a_real_server_has_each_document_once_as_it_was_sent() {
    let node = Node::start();
    let hosts = format!("output.elasticsearch.hosts: ['{}']\n", node.url());
    let common = "output.file.path: {folder}/flows.json\nspool.path: {folder}/spool\nagent.shutdown_timeout: 60s\n";
    let agent = Agent::configured(&(hosts.clone() + common));
    let setup = agent.command(&["setup", "--config"]);
    assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));

    let ended = agent.start(&["--stats", "--replay", RECORDING, "--replay-times", "100"]).finish();
    let index = "logs-socktrail.flow-default";
    let found = node.search(index, &json!({ "match_all": {} }));
    let sent = by_flow(json_lines(&fs::read_to_string(ended.folder().join("flows.json")).expect("the file")));
    assert!(sent.len() >= 1000, "{}", sent.len());
    assert_eq!(ended.stats()["outputs"][1]["written"], sent.len(), "{}", ended.stderr);
    assert_eq!(found.len(), sent.len());
    assert_eq!(by_flow(found.into_values()), sent, "field by field");

    // The fields have the types that `setup` has installed, so that networks, numbers and times can be searched for.
    let count = |query: Value| node.search(index, &query).len();
    let expected = |is: &dyn Fn(&Value) -> bool| sent.values().filter(|document| is(document)).count();
    let loopback = expected(&|document| document["source"]["ip"].as_str().is_some_and(|ip| ip.starts_with("127.")));
    assert!(loopback > 0 && loopback < sent.len());
    assert_eq!(count(json!({ "term": { "source.ip": "127.0.0.0/8" } })), loopback);
    let small = expected(&|document| document["network"]["bytes"].as_u64().is_some_and(|bytes| bytes < 500));
    assert!(small > 0 && small < sent.len());
    assert_eq!(count(json!({ "range": { "network.bytes": { "lt": 500 } } })), small);
    let curl = expected(&|document| document["process"]["name"] == "curl");
    assert_eq!(count(json!({ "term": { "process.name": "curl" } })), curl);
    assert_eq!(
        count(json!({ "term": { "flow.final": true } })),
        expected(&|document| document["flow"]["final"] == true)
    );
    assert_eq!(count(json!({ "range": { "@timestamp": { "gte": "2100-01-01T00:00:00Z" } } })), 0);

    events_and_sensors(&node);
    kill_while_sending(&node, &agent, sent.len());
    documents_that_do_not_fit(&node, &hosts);
}

/// Sends documents of socket events and sensors through the library, because recordings have none.
fn events_and_sensors(node: &Node) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let host = Host::gather();
    let agent = Identity::of(&host);
    let clock = Clock::now().expect("a clock");
    let context = Context { host: &host, agent: &agent, clock, names: &(), directions: Directions::default() };
    let sensors = sensors::parse("web:\n  listener: net.socket\n  tag: out\n").expect("a sensor");
    let mut engine = Engine::new(sensors, std::process::id(), Limits::default());
    let mut batch = Batch::default();
    for (event, number) in [connect([192, 0, 2, 7]), connect([198, 51, 100, 7])].into_iter().zip(1..) {
        let mut document = ecs::socket_event(&event, &context);
        document.event.sequence = Some(number);
        batch.push(Kind::SocketEvent, &document).expect("JSON");
        engine.ingest(&event, Instant::now());
    }
    for event in engine.take_events() {
        batch.push(Kind::Sensor, &ecs::sensor_event(&event, &context)).expect("JSON");
    }
    let set = [
        format!("output.elasticsearch.hosts={}", node.url()),
        format!("spool.path={}", folder.path().join("spool").display()),
    ];
    let config = Loader::new().set(set).load().expect("a valid configuration").config;
    let options = config.output.elasticsearch.options(&config.spool, 1 << 20);
    let meter = Arc::<Meter>::default();
    let output = Elasticsearch::start(options, Arc::clone(&meter)).expect("a spool");
    let mut outputs = Outputs::new();
    outputs.start("elasticsearch", Box::new(output), 1 << 20, meter).expect("a thread");
    let sent: Vec<Value> = batch.documents().map(|(_, json)| serde_json::from_slice(json).expect("JSON")).collect();
    outputs.send(&Arc::new(batch));
    let readings = outputs.close(Duration::from_secs(60));
    assert_eq!((readings[0].written, readings[0].rejected), (4, 0), "{readings:?}");
    for (index, sent) in ["logs-socktrail.event-default", "logs-socktrail.sensor-default"].iter().zip(sent.chunks(2)) {
        let found: Vec<Value> = node.search(index, &json!({ "match_all": {} })).into_values().collect();
        assert_eq!(found.len(), 2);
        assert!(sent.iter().all(|document| found.contains(document)), "{found:#?}");
        // Addresses have the type of addresses, and ports that of numbers.
        assert_eq!(node.search(index, &json!({ "term": { "destination.ip": "192.0.2.0/24" } })).len(), 1);
        assert_eq!(node.search(index, &json!({ "range": { "destination.port": { "gte": 443 } } })).len(), 2);
    }
    let opened = json!({ "term": { "eid": "web|net.socket@out|opened@192.0.2.7:443|0" } });
    assert_eq!(node.search("logs-socktrail.sensor-default", &opened).len(), 1);
}

/// A successful connect to port 443.
fn connect(remote: [u8; 4]) -> SocketEvent {
    let end = |ip: [u8; 4], port| Some(Address::Ip(IpEnd::new(ip, port)));
    let mut socket = EventSocket::new(SocketId(u64::from(remote[0])), Family::INET);
    socket.kind = Some(SocketType::STREAM);
    socket.protocol = Some(6);
    socket.local = end([192, 0, 2, 1], 40_000);
    socket.remote = end(remote, 443);
    socket.state = Some(SocketState::ESTABLISHED);
    let mut event = SocketEvent::new(MonotonicTime::ZERO, Action::Connect, CallResult::Success, socket);
    event.fd = Some(3);
    event
}

/// Kills the agent while it sends. The next one sends the rest.
fn kill_while_sending(node: &Node, agent: &Agent, before: usize) {
    for _ in 0..5 {
        let running = agent.start(&["--replay", RECORDING, "--replay-times", "100000", "--replay-rate", "3000"]);
        let written = running.lines("flows.json");
        eventually("documents are written", || running.lines("flows.json") > written + 300);
        running.end(Signal::SIGKILL);
    }
    let ended = agent.start(&["--stats", "--replay", RECORDING]).finish();
    assert_eq!(ended.stats()["outputs"][1]["pending"], Value::Null, "{}", ended.stderr);
    let index = "logs-socktrail.flow-default";
    node.ask("POST", &format!("{index}/_refresh"), None);
    let counts = node.ask(
        "POST",
        &format!("{index}/_search"),
        Some(json!({ "size": 0, "track_total_hits": true, "aggs": {
            "flows": { "terms": { "field": "flow.id", "size": 60_000, "min_doc_count": 2 } }
        } })),
    );
    let total = counts["hits"]["total"]["value"].as_u64().expect("a number");
    assert!(total > (before + 5 * 300) as u64, "{total}");
    assert_eq!(counts["aggregations"]["flows"]["buckets"], json!([]), "a flow is stored twice");
}

/// An index whose mapping says that names are addresses refuses most documents one by one.
fn documents_that_do_not_fit(node: &Node, hosts: &str) {
    let mappings =
        json!({ "mappings": { "properties": { "process": { "properties": { "name": { "type": "ip" } } } } } });
    node.ask("PUT", "narrow", Some(mappings));
    let more = "output.elasticsearch.index: narrow\nspool.path: {folder}/spool\nagent.shutdown_timeout: 60s\n";
    let agent = Agent::configured(&format!("{hosts}{more}"));
    let ended = agent.start(&["--stats", "--replay", RECORDING, "--replay-times", "3"]).finish();
    let dead = fs::read_to_string(ended.folder().join("spool/elasticsearch/rejected.json")).expect("dead letters");
    let dead = json_lines(&dead);
    assert!(dead.len() > 10, "{}", ended.stderr);
    for letter in &dead {
        let reason = letter["reason"].as_str().expect("text");
        assert!(reason.starts_with("400: mapper_parsing_exception: failed to parse field [process.name]"), "{reason}");
        assert!(letter["document"]["process"]["name"].is_string());
    }
    let sent = 3 * include_str!("data/recordings/6.1-x86_64.json").lines().count();
    assert_eq!(node.search("narrow", &json!({ "match_all": {} })).len() + dead.len(), sent);
}
