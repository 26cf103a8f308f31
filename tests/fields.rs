//! `docs/fields.md` lists exactly the fields that documents have.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde_json::Value;
use socktrail::clock::{Clock, Readings, Timestamp};
use socktrail::documents::ecs::{Context, Directions, loss, network_flow, socket_event};
use socktrail::flow::{Counters, Direction, Endpoint, Flow, Outcome, Owner, Reason, Transport};
use socktrail::host::agent::Agent;
use socktrail::host::{Boot, Host, Os};
use socktrail::loss::{Loss, LossCause};
use socktrail::probes::Feature;
use socktrail::process::{Credentials, Details, Image, Process};
use socktrail::socket_event::{Action, Address, CallResult, EventSocket, Family, IpEnd, SocketEvent, SocketId};
use socktrail::users::UserNames;
use socktrail::{BootTime, MonotonicTime, NetAddress, SockAddress};

/// All users and groups have a name.
struct Named;

impl UserNames for Named {
    fn user(&self, _uid: u32) -> Option<Arc<str>> {
        Some("user".into())
    }

    fn group(&self, _gid: u32) -> Option<Arc<str>> {
        Some("group".into())
    }
}

/// This many nanoseconds after the start of the kernel's clock.
fn at(nanos: u64) -> MonotonicTime {
    MonotonicTime::from_nanos(nanos)
}

#[test]
fn fields_of_flows_are_those_of_the_page() {
    let mut there = fields(&document(Direction::Egress));
    there.extend(fields(&document(Direction::Ingress)));
    let recordings = files("tests/data/recordings", "json");
    assert!(recordings.len() >= 5);
    recordings.iter().flat_map(|file| documents(file)).for_each(|document| there.extend(fields(&document)));
    let named = named("## Flows");
    assert_eq!(there.difference(&named).collect::<Vec<_>>(), Vec::<&String>::new(), "not on the page");
    assert_eq!(named.difference(&there).collect::<Vec<_>>(), Vec::<&String>::new(), "in no document");
}

#[test]
fn fields_of_socket_events_are_on_the_page() {
    let (flows, events) = (named("## Flows"), named("## Socket events"));
    let mut there = BTreeSet::new();
    documents(&root().join("tests/data/events/ecs.jsonl")).iter().for_each(|document| there.extend(fields(document)));
    there.extend(fields(&link_local_bind()));
    let missing: Vec<_> = there.iter().filter(|field| !flows.contains(*field) && !events.contains(*field)).collect();
    assert_eq!(missing, Vec::<&String>::new());
    let only_from_agents = "event.sequence";
    let invented: Vec<_> =
        events.iter().filter(|field| !there.contains(*field) && *field != only_from_agents).collect();
    assert_eq!(invented, Vec::<&String>::new());
}

#[test]
fn fields_of_losses_are_on_the_page() {
    let (flows, losses) = (named("## Flows"), named("## Losses"));
    let host = Host::default();
    let agent = Agent::of(&host);
    let context = Context { host: &host, agent: &agent, clock: clock(), names: &(), directions: Directions::Ingress };
    let causes = [LossCause::Ring { cpu: 1 }, LossCause::Probes { feature: Feature::TcpState }];
    let there = causes.map(|cause| {
        let lost = Loss { cause, count: 1, first: at(1), last: at(1) };
        fields(&serde_json::to_value(loss(&lost, &context)).unwrap())
    });
    let there: BTreeSet<_> = there.into_iter().flatten().collect();
    let missing: Vec<_> = there.iter().filter(|field| !flows.contains(*field) && !losses.contains(*field)).collect();
    assert_eq!(missing, Vec::<&String>::new());
    let only_from_agents = "event.sequence";
    let invented: Vec<_> =
        losses.iter().filter(|field| !there.contains(*field) && *field != only_from_agents).collect();
    assert_eq!(invented, Vec::<&String>::new());
}

/// A clock that starts at the Unix epoch.
fn clock() -> Clock {
    let wall = Timestamp::from_unix_nanos(0);
    Clock::from_readings(Readings { kernel: MonotonicTime::ZERO, boot: BootTime::ZERO, wall })
}

/// The document of a bind to a link-local address, which no document of `tests/data/events` has.
fn link_local_bind() -> Value {
    let mut end = IpEnd::new(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), 53);
    end.scope_id = 2;
    let mut socket = EventSocket::new(SocketId(1), Family::INET6);
    socket.local = Some(Address::Ip(end));
    let event = SocketEvent::new(at(1), Action::Bind, CallResult::Success, socket);
    let host = Host::default();
    let agent = Agent::of(&host);
    let context = Context { host: &host, agent: &agent, clock: clock(), names: &(), directions: Directions::Ingress };
    serde_json::to_value(socket_event(&event, &context)).unwrap()
}

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

fn documents(file: &Path) -> Vec<Value> {
    fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The names in the first column of a section's table.
fn named(section: &str) -> BTreeSet<String> {
    let page = fs::read_to_string(root().join("docs/fields.md")).unwrap();
    let (_, rest) = page.split_once(section).expect("the section is there");
    let table = rest.split("\n## ").next().unwrap_or_default();
    let column = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" | ")).map(|(names, _)| names);
    column.flat_map(|names| names.split(", ")).map(|name| name.trim_matches('`').to_owned()).collect()
}

/// The paths of a document's values.
fn fields(document: &Value) -> BTreeSet<String> {
    fn walk(path: &str, value: &Value, into: &mut BTreeSet<String>) {
        match value {
            Value::Object(inner) => inner.iter().for_each(|(key, value)| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(&path, value, into);
            }),
            _ => drop(into.insert(path.to_owned())),
        }
    }
    let mut into = BTreeSet::new();
    walk("", document, &mut into);
    into
}

/// A document with all fields.
fn document(direction: Direction) -> Value {
    let text = |text: &str| Some(text.to_owned());
    let mut details = Details::default();
    details.working_directory = Some("/srv".into());
    details.container_id = Some("0123456789abcdef".repeat(4));
    let mut image = Image::default();
    image.name = "curl".into();
    image.executable = Some("/usr/bin/curl".into());
    image.args = vec!["curl".into()];
    image.args_cut = true;
    image.details = OnceLock::from(details);
    let mut process = Process::new(7);
    process.parent_pid = Some(6);
    process.start = Some(BootTime::from_nanos(1));
    process.credentials = Some(Credentials { uid: 1, gid: 2, euid: 3, egid: 4 });
    process.image = Arc::new(image);
    let mut last_user = process.clone();
    last_user.pid = 8;
    let (local, remote) = (Endpoint::new([192, 0, 2, 1], 40_000), Endpoint::new([192, 0, 2, 2], 443));
    let mut flow = Flow::new(Transport::Tcp, local, remote);
    flow.sock = SockAddress::new(1);
    flow.net = NetAddress::new(2);
    flow.direction = direction;
    flow.last_user = Some(Arc::new(last_user));
    flow.owner = Owner::Process(Arc::new(process));
    (flow.start, flow.end) = (at(1), at(2));
    flow.sent = Counters { packets: 1, bytes: 60 };
    flow.received = Counters { packets: 1, bytes: 40 };
    flow.dropped = Counters { packets: 1, bytes: 40 };
    flow.complete = true;
    flow.domain = Some("example.org".into());
    flow.outcome = Outcome::Failure(111);
    flow.reason = Reason::Closed;
    flow.inexact.samples_lost = true;
    let os = Os {
        kernel: text("6.1"),
        name: text("Debian"),
        version: text("12"),
        codename: text("bookworm"),
        platform: text("debian"),
        family: Some("debian".into()),
        ..Os::default()
    };
    let host = Host {
        name: text("h"),
        hostname: text("h"),
        id: text("1"),
        architecture: text("x86_64"),
        os,
        containerized: false,
        boot: Some(Boot { id: "b".into() }),
    };
    let agent = Agent::of(&host);
    let context =
        Context { host: &host, agent: &agent, clock: clock(), names: &Named, directions: Directions::Ingress };
    serde_json::to_value(network_flow(&flow, &context)).unwrap()
}
