//! The agent: real traffic, from the kernel to a file and to a server.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::helpers::bulk::BulkServer;
use crate::helpers::document::{Wanted, expect, number};
use crate::helpers::patience::until;
use crate::helpers::process::{Finished, Process};
use crate::helpers::socktrail::Socktrail;
use crate::helpers::traffic::{Connection, on_cpu};
use crate::helpers::web::WebServer;

tests![
    flows_events_and_sensors_reach_a_file_and_a_server,
    a_reload_misses_no_flow,
    locked_events_of_sensors_are_unlocked,
    losses_become_documents,
    a_full_disk_loses_nothing,
    a_full_disk_is_left_for_another,
    a_read_only_disk_is_named,
];

const FOLDER: &str = "/tmp/agent";
const PORT: u16 = 8093;
const METRICS: &str = "127.0.0.1:9479";

/// All kinds of documents, both outputs, numbers as soon as it is ready, and what is alive at the end.
fn flows_events_and_sensors_reach_a_file_and_a_server() -> Result<()> {
    let (web, server) = (WebServer::start(PORT)?, BulkServer::start(0)?);
    write("sensors.yaml", &sensor("web", PORT, ", dns: true"))?;
    let _hosts = Hosts::with(&format!("127.0.0.1 {HOST}\n"))?;
    let agent = agent(&format!(
        "events: {{actions: [connect, close], where: 'process.name == \"curl\"'}}
sensors.files: [{FOLDER}/sensors.yaml]
output.file.path: {FOLDER}/documents.json
{}metrics.listen: {METRICS}
agent.shutdown_timeout: 25s
",
        to_server(&server)
    ))?;
    // It listens when it says that it is ready: nobody waits for it here.
    let numbers = scraped()?;
    ensure!(
        numbers.contains("socktrail_flows_live ") && numbers.contains("socktrail_sensor_events_total 0"),
        "{numbers}"
    );
    let curl = curl()?;
    ensure!(curl.stdout == web.page(), "{curl:?}");
    let alive = Connection::open()?;
    let of_curl = |document: &Value| document["process"]["pid"] == curl.pid;
    // The flow ends some seconds after the connection: its document is the last of this curl.
    until("the flow at the server", || Ok(in_index(&server, "flow")?.iter().any(of_curl)))?;
    // Numbers are a second old at most.
    until("numbers of the outputs", || {
        let text = scraped()?;
        let has = |output: &str| {
            let name = format!("socktrail_output_written_total{{output=\"{output}\"}} ");
            text.lines().any(|line| line.strip_prefix(&*name).is_some_and(|number| number != "0"))
        };
        Ok(has("file") && has("elasticsearch") && !text.contains("socktrail_sensor_events_total 0"))
    })?;
    let ended = agent.end(Signal::SIGTERM)?;
    ensure!(ended.status.success(), "{}", ended.log);

    let file = read(&format!("{FOLDER}/documents.json"))?;
    let sent = server.documents()?;
    let lines = |documents: &mut dyn Iterator<Item = &Value>| documents.map(Value::to_string).collect::<BTreeSet<_>>();
    ensure!(file.len() == sent.len(), "{} in the file, {} at the server", file.len(), sent.len());
    ensure!(lines(&mut file.iter()) == lines(&mut sent.iter().map(|(_, document)| document)), "not the same documents");

    let flows = in_index(&server, "flow")?;
    let own: Vec<_> = flows.iter().filter(|document| of_curl(document)).collect();
    let [flow] = own[..] else { anyhow::bail!("not one flow of curl: {own:#?}") };
    expect(
        flow,
        &vec![("/destination/port", json!(PORT)), ("/flow/final", json!(true)), ("/process/name", json!("curl"))],
    )?;
    let ends = [alive.ends.0.port(), alive.ends.1.port()];
    let live: Vec<_> = flows.iter().filter(|document| ends.iter().all(|port| has_port(document, *port))).collect();
    let is_live = live.len() == 2 && live.iter().all(|document| document["flow"]["final"] == false);
    ensure!(
        is_live,
        "the flows that were alive: {live:#?}
{}",
        ended.log
    );

    let events = in_index(&server, "event")?;
    let of_curl_alone = !events.is_empty() && events.iter().all(|event| event["process"]["name"] == "curl");
    ensure!(of_curl_alone, "events: {events:#?}\n{}", ended.log);
    let of_connect = |event: &&Value| of_curl(event) && event["event"]["action"] == "socket_connect";
    let connects: Vec<_> = events.iter().filter(of_connect).filter(|event| has_port(event, PORT)).collect();
    ensure!(connects.len() == 1, "{connects:#?}");

    let sensors = in_index(&server, "sensor")?;
    for action in ["opened", "closed"] {
        let is_it = |event: &&Value| of_curl(event) && event["data"]["action"] == action;
        let found: Vec<_> = sensors.iter().filter(is_it).collect();
        let [event] = found[..] else { anyhow::bail!("not one {action}: {sensors:#?}") };
        expect(event, &of_sensor(action, curl.pid))?;
    }
    Ok(())
}

/// What a sensor document of the one curl should have.
fn of_sensor(action: &str, pid: u32) -> Wanted {
    vec![
        ("/eid", json!(format!("web|net.socket|{action}@127.0.0.1:{PORT}|0"))),
        ("/data/process/pid", json!(pid)),
        ("/event/action", json!(format!("socket_{action}"))),
        ("/destination/ip", json!("127.0.0.1")),
        ("/destination/port", json!(PORT)),
        ("/destination/domain", json!(HOST)),
        ("/data/remote_host", json!(HOST)),
        ("/process/args/0", json!("curl")),
        ("/network/transport", json!("tcp")),
    ]
}

/// What this machine calls itself.
const HOST: &str = "here.example.test";

/// Another list of hosts, until it is dropped.
struct Hosts(String);

impl Hosts {
    const PLACE: &str = "/etc/hosts";

    fn with(text: &str) -> Result<Self> {
        let before = fs::read_to_string(Self::PLACE).unwrap_or_default();
        fs::write(Self::PLACE, text).context("write the list of hosts")?;
        Ok(Self(before))
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        fs::write(Self::PLACE, &self.0).ok();
    }
}

/// Outputs change while curl goes on: the document of each is in one of both files.
fn a_reload_misses_no_flow() -> Result<()> {
    let _web = WebServer::start(PORT)?;
    let to = |name: &str| format!("output.file.path: {FOLDER}/{name}.json\n");
    let agent = agent(&to("before"))?;
    let mut pids = Vec::new();
    for round in 0..9 {
        if round == 3 {
            write("socktrail.yml", &to("after"))?;
            kill(Pid::from_raw(agent.pid.cast_signed()), Signal::SIGHUP)?;
        }
        pids.push(curl()?.pid);
    }
    until("the reload", || Ok(agent.log().contains("the configuration was read again")))?;
    let ended = agent.end(Signal::SIGTERM)?;
    ensure!(ended.status.success(), "{}", ended.log);
    let (before, after) = (read(&format!("{FOLDER}/before.json"))?, read(&format!("{FOLDER}/after.json"))?);
    ensure!(!after.is_empty(), "nothing after the reload:\n{}", ended.log);
    for pid in pids {
        let times = before.iter().chain(&after).filter(|document| document["process"]["pid"] == pid).count();
        ensure!(times == 1, "{times} documents of {pid}");
    }
    Ok(())
}

fn locked_events_of_sensors_are_unlocked() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    write("sensors.yaml", &sensor("all", port, ", locked: true"))?;
    let path = format!("{FOLDER}/documents.json");
    let agent = agent(&format!(
        "sensors: {{files: [{FOLDER}/sensors.yaml], control: {FOLDER}/control.sock}}\noutput.file.path: {path}\n"
    ))?;
    let opened = || {
        let is_it = |document: &Value| document["data"]["action"] == "opened";
        anyhow::Ok(read(&path)?.iter().filter(|document| is_it(document)).count())
    };
    let unlocked = |pattern: &str| {
        let control = format!("{FOLDER}/control.sock");
        Process::start(&["socktrail", "unlock", "--control", &control, pattern])?.finish()
    };
    drop((TcpStream::connect(listener.local_addr()?)?, TcpStream::connect(listener.local_addr()?)?));
    until("the first event", || Ok(opened()? == 1))?;
    let unlock = unlocked(&format!("all|net.socket|opened@127.0.0.1:{port}|0"))?;
    ensure!(unlock.status == 0 && unlock.stdout == "1 unlocked\n", "{unlock:?}");
    drop(TcpStream::connect(listener.local_addr()?)?);
    until("the event after it was unlocked", || Ok(opened()? == 2))?;
    let ended = agent.end(Signal::SIGTERM)?;
    ensure!(ended.status.success(), "{}", ended.log);
    ensure!(ended.log.contains("\"sensor_events_muted\":"), "{}", ended.log);
    ensure!(opened()? == 2, "each once, and once more");
    let gone = unlocked("*")?;
    ensure!(gone.status == 1 && gone.stderr.contains("nobody listens"), "{gone:?}");
    Ok(())
}

/// A file system of 64 KiB holds both the file and the spool; there is no server at first. It fills up, and gets room. In
/// the end every document is in both places.
fn a_full_disk_loses_nothing() -> Result<()> {
    let _web = WebServer::start(PORT)?;
    let small = Small::mount()?;
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let agent = agent(&format!(
        "output.file: {{path: {SMALL}/documents.json, sync: always}}
spool.path: {SMALL}/spool
output.elasticsearch:
  {{hosts: ['http://127.0.0.1:{free}'], compression_level: 0, backoff: {{init: 50ms, max: 200ms}}}}
socket.flow_termination_timeout: 50ms
"
    ))?;
    let mut pids = Vec::new();
    let said = |what: &str| agent.log().contains(what);
    until("the file system is full", || {
        pids.push(curl()?.pid);
        Ok(said("make room on its file system") && said("writing to the spool"))
    })?;
    small.remount("size=16m", MsFlags::empty())?;
    until("both work again", || {
        pids.push(curl()?.pid);
        let documents = read(&format!("{SMALL}/documents.json"))?;
        Ok(pids.iter().rev().skip(4).all(|pid| documents.iter().any(|document| document["process"]["pid"] == *pid)))
    })?;
    let server = BulkServer::start(free)?;
    let last = *pids.last().context("curl has run")?;
    until("the last flow", || {
        Ok(in_index(&server, "flow")?.iter().any(|document| document["process"]["pid"] == last))
    })?;
    let ended = agent.end(Signal::SIGTERM)?;
    ensure!(ended.status.success(), "{}", ended.log);
    let (file, sent) = (read(&format!("{SMALL}/documents.json"))?, in_index(&server, "flow")?);
    for (place, documents) in [("the file", file), ("the server", sent)] {
        for pid in &pids {
            let times = documents.iter().filter(|document| document["process"]["pid"] == *pid).count();
            ensure!(times == 1, "{times} documents of {pid} in {place}:\n{}", ended.log);
        }
    }
    Ok(())
}

/// What found no room in one file goes to the one that a reload puts in its place.
fn a_full_disk_is_left_for_another() -> Result<()> {
    let _web = WebServer::start(PORT)?;
    let _small = Small::mount()?;
    // Else no folder is open to it that was not configured at the start.
    let open = "agent.harden: false\nsocket.flow_termination_timeout: 50ms\n";
    let agent = agent(&format!("output.file.path: {SMALL}/documents.json\n{open}"))?;
    let mut pids = Vec::new();
    until("the file system is full", || {
        pids.push(curl()?.pid);
        Ok(agent.log().contains("make room on its file system"))
    })?;
    write("socktrail.yml", &format!("output.file.path: {FOLDER}/after.json\n"))?;
    kill(Pid::from_raw(agent.pid.cast_signed()), Signal::SIGHUP)?;
    until("the reload", || Ok(agent.log().contains("the configuration was read again")))?;
    pids.push(curl()?.pid);
    let ended = agent.end(Signal::SIGTERM)?;
    ensure!(ended.status.success() && !ended.log.contains("were lost"), "{}", ended.log);
    let (before, after) = (read(&format!("{SMALL}/documents.json"))?, read(&format!("{FOLDER}/after.json"))?);
    for pid in pids {
        let times = before.iter().chain(&after).filter(|document| document["process"]["pid"] == pid).count();
        ensure!(times == 1, "{times} documents of {pid}:\n{}", ended.log);
    }
    Ok(())
}

/// What found no room while the agent stood still is said in documents, as often as the agent counts it.
fn losses_become_documents() -> Result<()> {
    const CPU: usize = 1;
    const DATAGRAMS: usize = 2000;
    let path = format!("{FOLDER}/documents.json");
    let agent = agent(&format!("socket.ring_size_exponent: 1\noutput.file.path: {path}\n"))?;
    let signal = |signal| kill(Pid::from_raw(agent.pid.cast_signed()), signal);
    on_cpu(CPU, || {
        let (from, to) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
        signal(Signal::SIGSTOP)?;
        for _ in 0..DATAGRAMS {
            from.send_to(b"x", to.local_addr()?)?;
            to.recv(&mut [0])?;
        }
        Ok(signal(Signal::SIGCONT)?)
    })?;
    let of_ring = |document: &Value| document["socktrail"]["loss"]["cause"] == "ring";
    until("a document of the loss", || Ok(read(&path)?.iter().any(of_ring)))?;
    let ended = agent.end(Signal::SIGTERM)?;
    ensure!(ended.log.contains("samples found no room in the ring of CPU 1"), "{}", ended.log);
    let mut said = BTreeMap::new();
    for document in read(&path)?.iter().filter(|document| of_ring(document)) {
        ensure!(document["event"]["kind"] == "pipeline_error", "{document:#}");
        let cpu = number(document, "/socktrail/loss/cpu")?.to_string();
        *said.entry(cpu).or_default() += number(document, "/socktrail/loss/count")?;
    }
    let (_, stats) = ended.log.rsplit_once("stats ").context("no line of statistics")?;
    let stats: Value = serde_json::from_str(stats.lines().next().unwrap_or_default())?;
    let counted: BTreeMap<String, u64> = serde_json::from_value(stats["monitor"]["lost_by_cpu"].clone())?;
    ensure!(said == counted, "{said:?} is said, {counted:?} counted");
    ensure!(said.get("1").is_some_and(|count| *count > DATAGRAMS as u64 / 2), "of {DATAGRAMS}: {said:?}");
    Ok(())
}

/// Neither a file nor a spool can be there: that is said, and nothing is started.
fn a_read_only_disk_is_named() -> Result<()> {
    let small = Small::mount()?;
    small.remount("", MsFlags::MS_RDONLY)?;
    for (configuration, place) in [
        (format!("output.file.path: {SMALL}/documents.json\n"), "documents.json"),
        (format!("output.elasticsearch.hosts: ['http://127.0.0.1:1']\nspool.path: {SMALL}/spool\n"), "spool"),
    ] {
        write("socktrail.yml", &configuration)?;
        let config = format!("{FOLDER}/socktrail.yml");
        let refused = Process::start(&["socktrail", "agent", "--config", &config])?.finish()?;
        ensure!(refused.status == 1, "{refused:?}");
        let said = format!("{SMALL}/{place}");
        ensure!(refused.stderr.contains(&said) && refused.stderr.contains("read-only: remount it"), "{refused:?}");
    }
    Ok(())
}

const SMALL: &str = "/tmp/small";

/// A small file system, unmounted when dropped.
struct Small;

impl Small {
    fn mount() -> Result<Self> {
        fs::create_dir_all(SMALL)?;
        mount(Some("tmpfs"), SMALL, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).context("mount a tmpfs")?;
        Ok(Self)
    }

    fn remount(&self, options: &str, flags: MsFlags) -> Result<()> {
        mount(None::<&str>, SMALL, None::<&str>, MsFlags::MS_REMOUNT | flags, Some(options)).context("remount")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        umount2(SMALL, MntFlags::MNT_DETACH).ok();
    }
}

/// Starts an agent with this configuration in a folder of its own, and waits until it is ready.
fn agent(configuration: &str) -> Result<Socktrail> {
    for left in ["documents.json", "before.json", "after.json", "spool"] {
        let path = Path::new(FOLDER).join(left);
        fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path)).ok();
    }
    write("socktrail.yml", configuration)?;
    Socktrail::start(&["agent", "--stats", "--config", &format!("{FOLDER}/socktrail.yml")])
}

fn write(name: &str, text: &str) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(FOLDER)?;
    fs::write(format!("{FOLDER}/{name}"), text).with_context(|| format!("write {name}"))
}

fn to_server(server: &BulkServer) -> String {
    format!("output.elasticsearch: {{hosts: ['{}'], compression_level: 0}}\nspool.path: {FOLDER}/spool\n", server.url())
}

/// A file with one sensor, of connections to a port.
fn sensor(id: &str, port: u16, more: &str) -> String {
    format!("{id}:\n  listener: net.socket\n  args: {{ patterns: ['tcp * *:{port} * ESTABLISHED']{more} }}\n")
}

fn curl() -> Result<Finished> {
    let curl = Process::start(&["curl", "-sS", "--ipv4", &format!("http://127.0.0.1:{PORT}/")])?.finish()?;
    ensure!(curl.status == 0, "{curl:?}");
    Ok(curl)
}

/// The documents of a file, whole lines only.
fn read(path: &str) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| format!("{path}: {line}"))).collect()
}

/// The documents of one kind that the server has.
fn in_index(server: &BulkServer, kind: &str) -> Result<Vec<Value>> {
    let index = format!("logs-socktrail.{kind}-default");
    Ok(server.documents()?.into_iter().filter(|(of, _)| *of == index).map(|(_, document)| document).collect())
}

fn has_port(document: &Value, port: u16) -> bool {
    ["source", "destination"].iter().any(|end| document[end]["port"] == port)
}

/// What is served to Prometheus.
fn scraped() -> Result<String> {
    let mut stream = TcpStream::connect(METRICS).context("ask for numbers")?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(answer)
}
