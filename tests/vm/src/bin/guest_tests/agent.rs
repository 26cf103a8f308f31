//! The agent, from real traffic to a file and to a server.

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
use crate::helpers::document::{ExpectedFields, expect, number};
use crate::helpers::process::{Finished, Process};
use crate::helpers::socktrail::Socktrail;
use crate::helpers::traffic::{Connection, on_cpu};
use crate::helpers::wait::wait_until;
use crate::helpers::web::WebServer;

tests![
    flows_events_and_sensors_reach_a_file_and_a_server,
    a_reload_misses_no_flow,
    locked_events_of_sensors_are_unlocked,
    losses_become_documents,
    a_full_disk_loses_nothing,
    after_a_reload_documents_leave_a_full_disk,
    a_path_on_a_read_only_disk_is_named,
];

const FOLDER: &str = "/tmp/agent";
const PORT: u16 = 8093;
const METRICS: &str = "127.0.0.1:9479";

/// Flows, socket events and sensor events reach both outputs, also flows that are live at the end. Metrics are served as
/// soon as the agent is ready.
fn flows_events_and_sensors_reach_a_file_and_a_server() -> Result<()> {
    let (web, server) = (WebServer::start(PORT)?, BulkServer::start(0)?);
    write("sensors.yaml", &sensor("web", PORT, ", dns: true"))?;
    let _hosts = HostsFile::with(&format!("127.0.0.1 {HOST}\n"))?;
    let agent = agent(&format!(
        "events: {{actions: [connect, close], where: 'process.name == \"curl\"'}}
sensors.files: [{FOLDER}/sensors.yaml]
output.file.path: {FOLDER}/documents.json
{}metrics.listen: {METRICS}
agent.shutdown_timeout: 25s
",
        server_output(&server)
    ))?;
    // The metrics port listens before the agent is ready, so this does not wait.
    let metrics = scrape()?;
    ensure!(
        metrics.contains("socktrail_flows_live ") && metrics.contains("socktrail_sensor_events_total 0"),
        "{metrics}"
    );
    let curl = curl()?;
    ensure!(curl.stdout == web.page(), "{curl:?}");
    let open_connection = Connection::open()?;
    let of_curl = |document: &Value| document["process"]["pid"] == curl.pid;
    // The flow's document is the last one of this curl, some seconds after the connection.
    wait_until("the flow at the server", || Ok(in_index(&server, "flow")?.iter().any(of_curl)))?;
    // Metrics are at most one second old.
    wait_until("metrics of the outputs", || {
        let text = scrape()?;
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
    let [flow] = own[..] else { anyhow::bail!("not exactly one flow of curl: {own:#?}") };
    expect(
        flow,
        &vec![("/destination/port", json!(PORT)), ("/flow/final", json!(true)), ("/process/name", json!("curl"))],
    )?;
    let ends = [open_connection.ends.0.port(), open_connection.ends.1.port()];
    let live: Vec<_> = flows.iter().filter(|document| ends.iter().all(|port| has_port(document, *port))).collect();
    let is_live = live.len() == 2 && live.iter().all(|document| document["flow"]["final"] == false);
    ensure!(
        is_live,
        "the live flows: {live:#?}
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
        let is_action = |event: &&Value| of_curl(event) && event["data"]["action"] == action;
        let found: Vec<_> = sensors.iter().filter(is_action).collect();
        let [event] = found[..] else { anyhow::bail!("not exactly one {action}: {sensors:#?}") };
        expect(event, &sensor_fields(action, curl.pid))?;
    }
    Ok(())
}

/// The expected sensor document of curl's socket.
fn sensor_fields(action: &str, pid: u32) -> ExpectedFields {
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

/// The host name of 127.0.0.1.
const HOST: &str = "here.example.test";

/// Replaces `/etc/hosts`; dropping it restores the file.
struct HostsFile(String);

impl HostsFile {
    const PATH: &str = "/etc/hosts";

    fn with(text: &str) -> Result<Self> {
        let before = fs::read_to_string(Self::PATH).unwrap_or_default();
        fs::write(Self::PATH, text).context("write /etc/hosts")?;
        Ok(Self(before))
    }
}

impl Drop for HostsFile {
    fn drop(&mut self) {
        fs::write(Self::PATH, &self.0).ok();
    }
}

/// The output file changes while curl runs repeatedly: the document of each is in one of the files.
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
    wait_until("the reload", || Ok(agent.log().contains("the configuration was read again")))?;
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

/// A sensor with `locked: true` reports an event id once, and again after `socktrail unlock`.
fn locked_events_of_sensors_are_unlocked() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    write("sensors.yaml", &sensor("all", port, ", locked: true"))?;
    let path = format!("{FOLDER}/documents.json");
    let agent = agent(&format!(
        "sensors: {{files: [{FOLDER}/sensors.yaml], control: {FOLDER}/control.sock}}\noutput.file.path: {path}\n"
    ))?;
    let opened = || {
        let is_opened = |document: &Value| document["data"]["action"] == "opened";
        anyhow::Ok(read(&path)?.iter().filter(|document| is_opened(document)).count())
    };
    let unlock = |pattern: &str| {
        let control = format!("{FOLDER}/control.sock");
        Process::start(&["socktrail", "unlock", "--control", &control, pattern])?.finish()
    };
    drop((TcpStream::connect(listener.local_addr()?)?, TcpStream::connect(listener.local_addr()?)?));
    wait_until("the first event", || Ok(opened()? == 1))?;
    let unlocked = unlock(&format!("all|net.socket|opened@127.0.0.1:{port}|0"))?;
    ensure!(unlocked.status == 0 && unlocked.stdout == "1 unlocked\n", "{unlocked:?}");
    drop(TcpStream::connect(listener.local_addr()?)?);
    wait_until("the event after it was unlocked", || Ok(opened()? == 2))?;
    let ended = agent.end(Signal::SIGTERM)?;
    ensure!(ended.status.success(), "{}", ended.log);
    ensure!(ended.log.contains("\"sensor_events_muted\":"), "{}", ended.log);
    let events = opened()?;
    ensure!(events == 2, "{events} events, not one before the unlock and one after it");
    let without_agent = unlock("*")?;
    ensure!(without_agent.status == 1 && without_agent.stderr.contains("no process listens"), "{without_agent:?}");
    Ok(())
}

/// The output file and the spool are on a file system of 64 KiB, and there is no server. The file system becomes full, is
/// enlarged, and then a server starts. In the end every document is in the file and at the server.
fn a_full_disk_loses_nothing() -> Result<()> {
    let _web = WebServer::start(PORT)?;
    let small = SmallFileSystem::mount()?;
    let unused_port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let agent = agent(&format!(
        "output.file: {{path: {SMALL}/documents.json, sync: always}}
spool.path: {SMALL}/spool
output.elasticsearch:
  {{hosts: ['http://127.0.0.1:{unused_port}'], compression_level: 0, backoff: {{init: 50ms, max: 200ms}}}}
socket.flow_termination_timeout: 50ms
"
    ))?;
    let mut pids = Vec::new();
    let has_logged = |text: &str| agent.log().contains(text);
    wait_until("the file system is full", || {
        pids.push(curl()?.pid);
        Ok(has_logged("make room on its file system") && has_logged("writing to the spool"))
    })?;
    small.remount("size=16m", MsFlags::empty())?;
    wait_until("the file and the spool work again", || {
        pids.push(curl()?.pid);
        let documents = read(&format!("{SMALL}/documents.json"))?;
        // The flows of the last four may not have ended yet.
        Ok(pids.iter().rev().skip(4).all(|pid| documents.iter().any(|document| document["process"]["pid"] == *pid)))
    })?;
    let server = BulkServer::start(unused_port)?;
    let last = *pids.last().context("curl has not run")?;
    wait_until("the last flow", || {
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

/// Documents that did not fit into one file go to the file of the reloaded configuration.
fn after_a_reload_documents_leave_a_full_disk() -> Result<()> {
    let _web = WebServer::start(PORT)?;
    let _small = SmallFileSystem::mount()?;
    // With hardening, the agent could not open a folder that was not configured at the start.
    let settings = "agent.harden: false\nsocket.flow_termination_timeout: 50ms\n";
    let agent = agent(&format!("output.file.path: {SMALL}/documents.json\n{settings}"))?;
    let mut pids = Vec::new();
    wait_until("the file system is full", || {
        pids.push(curl()?.pid);
        Ok(agent.log().contains("make room on its file system"))
    })?;
    write("socktrail.yml", &format!("output.file.path: {FOLDER}/after.json\n"))?;
    kill(Pid::from_raw(agent.pid.cast_signed()), Signal::SIGHUP)?;
    wait_until("the reload", || Ok(agent.log().contains("the configuration was read again")))?;
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

/// Samples that did not fit into the ring while the agent was stopped are reported in documents, in the same number as
/// in its statistics.
fn losses_become_documents() -> Result<()> {
    const CPU: usize = 1;
    const DATAGRAMS: usize = 2000;
    let path = format!("{FOLDER}/documents.json");
    let agent = agent(&format!("socket: {{ring_size_exponent: 1, accounting: samples}}\noutput.file.path: {path}\n"))?;
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
    wait_until("a document of the loss", || Ok(read(&path)?.iter().any(of_ring)))?;
    let ended = agent.end(Signal::SIGTERM)?;
    ensure!(ended.log.contains("samples found no room in the ring of CPU 1"), "{}", ended.log);
    let mut reported = BTreeMap::new();
    for document in read(&path)?.iter().filter(|document| of_ring(document)) {
        ensure!(document["event"]["kind"] == "pipeline_error", "{document:#}");
        let cpu = number(document, "/socktrail/loss/cpu")?.to_string();
        *reported.entry(cpu).or_default() += number(document, "/socktrail/loss/count")?;
    }
    let stats = ended.statistics()?;
    let counted: BTreeMap<String, u64> = serde_json::from_value(stats["monitor"]["lost_by_cpu"].clone())?;
    ensure!(reported == counted, "{reported:?} reported, {counted:?} counted");
    ensure!(reported.get("1").is_some_and(|count| *count > DATAGRAMS as u64 / 2), "of {DATAGRAMS}: {reported:?}");
    Ok(())
}

/// The output file or the spool is on a read-only file system: the agent does not start, and names the path.
fn a_path_on_a_read_only_disk_is_named() -> Result<()> {
    let small = SmallFileSystem::mount()?;
    small.remount("", MsFlags::MS_RDONLY)?;
    for (configuration, place) in [
        (format!("output.file.path: {SMALL}/documents.json\n"), "documents.json"),
        (format!("output.elasticsearch.hosts: ['http://127.0.0.1:1']\nspool.path: {SMALL}/spool\n"), "spool"),
    ] {
        write("socktrail.yml", &configuration)?;
        let config = format!("{FOLDER}/socktrail.yml");
        let refused = Process::start(&["socktrail", "agent", "--config", &config])?.finish()?;
        ensure!(refused.status == 1, "{refused:?}");
        let path = format!("{SMALL}/{place}");
        ensure!(refused.stderr.contains(&path) && refused.stderr.contains("read-only: remount it"), "{refused:?}");
    }
    Ok(())
}

const SMALL: &str = "/tmp/small";

/// A tmpfs of 64 KiB; dropping it unmounts it.
struct SmallFileSystem;

impl SmallFileSystem {
    fn mount() -> Result<Self> {
        fs::create_dir_all(SMALL)?;
        mount(Some("tmpfs"), SMALL, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).context("mount a tmpfs")?;
        Ok(Self)
    }

    fn remount(&self, options: &str, flags: MsFlags) -> Result<()> {
        mount(None::<&str>, SMALL, None::<&str>, MsFlags::MS_REMOUNT | flags, Some(options)).context("remount")
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        umount2(SMALL, MntFlags::MNT_DETACH).ok();
    }
}

/// Starts an agent with this configuration, after removing the output of earlier tests, and waits until it is ready.
fn agent(configuration: &str) -> Result<Socktrail> {
    for leftover in ["documents.json", "before.json", "after.json", "spool"] {
        let path = Path::new(FOLDER).join(leftover);
        fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path)).ok();
    }
    write("socktrail.yml", configuration)?;
    Socktrail::start(&["agent", "--stats", "--config", &format!("{FOLDER}/socktrail.yml")])
}

fn write(name: &str, text: &str) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(FOLDER)?;
    fs::write(format!("{FOLDER}/{name}"), text).with_context(|| format!("write {name}"))
}

fn server_output(server: &BulkServer) -> String {
    format!("output.elasticsearch: {{hosts: ['{}'], compression_level: 0}}\nspool.path: {FOLDER}/spool\n", server.url())
}

/// The text of a sensor file with one sensor, for connections to a port.
fn sensor(id: &str, port: u16, more: &str) -> String {
    format!("{id}:\n  listener: net.socket\n  args: {{ patterns: ['tcp * *:{port} * ESTABLISHED']{more} }}\n")
}

fn curl() -> Result<Finished> {
    let curl = Process::start(&["curl", "-sS", "--ipv4", &format!("http://127.0.0.1:{PORT}/")])?.finish()?;
    ensure!(curl.status == 0, "{curl:?}");
    Ok(curl)
}

/// The documents in the complete lines of a file.
fn read(path: &str) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| format!("{path}: {line}"))).collect()
}

/// The documents of one kind at the server.
fn in_index(server: &BulkServer, kind: &str) -> Result<Vec<Value>> {
    let index = format!("logs-socktrail.{kind}-default");
    Ok(server.documents()?.into_iter().filter(|(of, _)| *of == index).map(|(_, document)| document).collect())
}

fn has_port(document: &Value, port: u16) -> bool {
    ["source", "destination"].iter().any(|end| document[end]["port"] == port)
}

/// Gets the metrics as Prometheus does.
fn scrape() -> Result<String> {
    let mut stream = TcpStream::connect(METRICS).context("connect to the metrics port")?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(answer)
}
