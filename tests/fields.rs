//! `docs/fields.md` names every field of documents, and none that there is not.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde_json::Value;
use socktrail::agent::Agent;
use socktrail::clock::{Clock, Readings, Timestamp};
use socktrail::ecs::{Context, Directions, loss, network_flow};
use socktrail::event::{Credentials, Endpoint, Transport};
use socktrail::flow::{Counters, Direction, Flow, Inexact, Outcome, Owner, Reason};
use socktrail::host::{Boot, Host, Os};
use socktrail::loss::{Loss, LossCause};
use socktrail::probes::Feature;
use socktrail::process::{Details, Image, Process};
use socktrail::users::Names;

/// Everybody has a name.
struct Named;

impl Names for Named {
    fn user(&self, _uid: u32) -> Option<Arc<str>> {
        Some("user".into())
    }

    fn group(&self, _gid: u32) -> Option<Arc<str>> {
        Some("group".into())
    }
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
    let missing: Vec<_> = there.iter().filter(|field| !flows.contains(*field) && !events.contains(*field)).collect();
    assert_eq!(missing, Vec::<&String>::new());
    let of_agents_alone = "event.sequence";
    let invented: Vec<_> = events.iter().filter(|field| !there.contains(*field) && *field != of_agents_alone).collect();
    assert_eq!(invented, Vec::<&String>::new());
}

#[test]
fn fields_of_losses_are_on_the_page() {
    let (flows, losses) = (named("## Flows"), named("## Losses"));
    let host = Host::default();
    let agent = Agent::of(&host);
    let clock = Clock::from_readings(Readings { kernel: 0, boot: 0, wall: Timestamp::from_unix_nanos(0) });
    let context = Context { host: &host, agent: &agent, clock, names: &(), directions: Directions::Ingress };
    let causes = [LossCause::Ring { cpu: 1 }, LossCause::Probes { feature: Feature::TcpState }];
    let there = causes.map(|cause| {
        let lost = Loss { cause, count: 1, first: 1, last: 1 };
        fields(&serde_json::to_value(loss(&lost, &context)).unwrap())
    });
    let there: BTreeSet<_> = there.into_iter().flatten().collect();
    let missing: Vec<_> = there.iter().filter(|field| !flows.contains(*field) && !losses.contains(*field)).collect();
    assert_eq!(missing, Vec::<&String>::new());
    let of_agents_alone = "event.sequence";
    let invented: Vec<_> = losses.iter().filter(|field| !there.contains(*field) && *field != of_agents_alone).collect();
    assert_eq!(invented, Vec::<&String>::new());
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

/// A document that has all there is.
fn document(direction: Direction) -> Value {
    let text = |text: &str| Some(text.to_owned());
    let details = Details {
        working_directory: Some("/srv".into()),
        container_id: Some("0123456789abcdef".repeat(4)),
        ..Details::default()
    };
    let image = Image {
        name: "curl".into(),
        executable: Some("/usr/bin/curl".into()),
        args: vec!["curl".into()],
        args_cut: true,
        details: OnceLock::from(details),
        ..Image::default()
    };
    let process = Process {
        pid: 7,
        parent_pid: Some(6),
        start: Some(1),
        kernel: false,
        credentials: Some(Credentials { uid: 1, gid: 2, euid: 3, egid: 4 }),
        containers: None,
        image: Arc::new(image),
    };
    let flow = Flow {
        number: 1,
        transport: Transport::Tcp,
        local: Endpoint::new([192, 0, 2, 1], 40_000),
        remote: Endpoint::new([192, 0, 2, 2], 443),
        sock: 1,
        net: 2,
        direction,
        last_user: Some(Arc::new(Process { pid: 8, ..process.clone() })),
        owner: Owner::Process(Arc::new(process)),
        start: 1,
        end: 2,
        sent: Counters { packets: 1, bytes: 60 },
        received: Counters { packets: 1, bytes: 40 },
        dropped: Counters { packets: 1, bytes: 40 },
        complete: true,
        is_final: true,
        domain: Some("example.org".into()),
        outcome: Outcome::Failure(111),
        reason: Reason::Closed,
        inexact: Inexact { samples_lost: true, ..Inexact::default() },
    };
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
    let wall = Timestamp::from_unix_nanos(1_000_000_000_000_000_000);
    let clock = Clock::from_readings(Readings { kernel: 0, boot: 0, wall });
    let context = Context { host: &host, agent: &agent, clock, names: &Named, directions: Directions::Ingress };
    serde_json::to_value(network_flow(&flow, &context)).unwrap()
}
