//! Socket events in every form: the same bytes as in `tests/data/events`, which were read by people.
//!
//! When a form changes, the test writes what it found beside what it wanted; read the difference, then take it over.

use std::fmt::Write;
use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde::Serialize;
use socktrail::agent::Agent;
use socktrail::clock::{Clock, Readings, Timestamp};
use socktrail::ecs::{self, Context, Directions};
use socktrail::event::Credentials;
use socktrail::host::Host;
use socktrail::output::JsonFormatter;
use socktrail::process::{Details, Image, Process};
use socktrail::socket_event::car::CarSocket;
use socktrail::socket_event::tracee::TraceeEvent;
use socktrail::socket_event::tracee::legacy::TraceEvent;
use socktrail::socket_event::{
    Action, Address, CallResult, Family, IpEnd, Listener, Socket, SocketEvent, SocketId, SocketState, SocketType,
    ThreadName, UnixName, text,
};

const SECOND: u64 = 1_000_000_000;

/// 2026-01-02T03:04:05Z is 1767323045 by `date +%s`.
fn clock() -> Clock {
    Clock::from_readings(Readings { kernel: 0, boot: 0, wall: Timestamp::from_unix_nanos(1_767_323_045 * SECOND) })
}

fn host() -> Host {
    Host { name: Some("web".into()), hostname: Some("web".into()), id: Some("5cc7".into()), ..Host::default() }
}

fn agent(host: &Host) -> Agent {
    let id = "88862e07-b13a-4166-b1ef-b3e55b4a0cf2";
    Agent { id: id.into(), ephemeral_id: id.into(), ..Agent::of(host) }
}

/// A program with a name that would like to steer the terminal.
fn process() -> Arc<Process> {
    let details = Details { container_id: Some("c0ffee".into()), ..Details::default() };
    Arc::new(Process {
        pid: 4242,
        parent_pid: Some(1),
        start: Some(SECOND),
        kernel: false,
        credentials: Some(Credentials { uid: 1000, gid: 100, euid: 0, egid: 100 }),
        containers: None,
        image: Arc::new(Image {
            name: "ev\u{1b}il".into(),
            executable: Some("/opt/ev\u{1b}il".into()),
            args: vec!["evil".into()],
            details: OnceLock::from(details),
            ..Image::default()
        }),
    })
}

fn socket(id: u64, family: Family, kind: SocketType, protocol: u16) -> Socket {
    Socket {
        id: SocketId(id),
        sock: 0xffff_8880_0000_0000 + id,
        family,
        kind: Some(kind),
        protocol: Some(protocol),
        local: None,
        remote: None,
        state: Some(SocketState::CLOSE),
        owner: Some(process()),
        existing: false,
    }
}

fn end(ip: &str, port: u16) -> Option<Address> {
    Some(Address::Ip(IpEnd::new(ip.parse::<std::net::IpAddr>().expect("an address"), port)))
}

fn event(action: Action, result: CallResult, fd: Option<i32>, socket: Socket) -> SocketEvent {
    SocketEvent {
        time: SECOND + socket.id.0,
        action,
        result,
        fd,
        before: Some(SocketState::CLOSE),
        process: Some(process()),
        tid: 4243,
        thread_name: Some(ThreadName::new(b"\x1bworker \xff")),
        socket,
    }
}

/// One of each: every action, family, and sort of name.
fn events() -> Vec<SocketEvent> {
    let tcp = |id| socket(id, Family::INET, SocketType::STREAM, 6);
    let unix = |id| socket(id, Family::UNIX, SocketType::SEQPACKET, 0);
    let (ok, failed) = (CallResult::Success, CallResult::Failure);
    let named = |name: &[u8]| Some(Address::Unix(UnixName::Path(name.into())));
    let abstract_name = Some(Address::Unix(UnixName::Abstract(Box::from(*b"a\0\n\x1b\xff"))));
    let scoped = Address::Ip(IpEnd {
        ip: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
        port: 53,
        scope_id: 2,
        flow_info: 7,
    });
    let here = end("192.0.2.1", 8080);
    let listener = Listener { id: SocketId(1), local: here.clone() };
    let connection = Socket {
        local: here.clone(),
        remote: end("198.51.100.7", 40000),
        state: Some(SocketState::ESTABLISHED),
        ..tcp(4)
    };
    let mut unknown = event(Action::Connect, CallResult::Unknown, None, Socket { remote: here.clone(), ..tcp(12) });
    unknown.process = None;
    let mut created = event(Action::Create { protocol: 0 }, ok, Some(3), tcp(1));
    created.before = None;
    let mut accepted =
        event(Action::Accept { listener: listener.clone(), accepted: Some(4) }, ok, Some(3), connection.clone());
    accepted.before = None;
    let mut closed = event(Action::Close, ok, None, Socket { state: Some(SocketState::CLOSE), ..connection });
    closed.before = Some(SocketState::CLOSE_WAIT);
    vec![
        created,
        event(
            Action::Create { protocol: 1 },
            failed(1),
            None,
            Socket { id: SocketId(0), sock: 0, owner: None, ..socket(0, Family::INET, SocketType::RAW, 1) },
        ),
        event(Action::SetSockOpt { level: 1, option: 2 }, ok, Some(3), tcp(1)),
        event(Action::Bind, failed(98), Some(3), Socket { local: here.clone(), ..tcp(1) }),
        event(
            Action::Listen { backlog: 128 },
            ok,
            Some(3),
            Socket { local: here.clone(), state: Some(SocketState::LISTEN), ..tcp(1) },
        ),
        accepted,
        event(
            Action::Accept { listener, accepted: None },
            failed(11),
            Some(3),
            Socket { local: here, state: Some(SocketState::LISTEN), ..tcp(1) },
        ),
        event(
            Action::Connect,
            failed(115),
            Some(5),
            Socket {
                local: end("192.0.2.1", 5000),
                remote: end("203.0.113.9", 443),
                state: Some(SocketState::SYN_SENT),
                ..tcp(5)
            },
        ),
        event(
            Action::Connect,
            ok,
            Some(6),
            Socket { remote: Some(scoped), ..socket(6, Family::INET6, SocketType::DGRAM, 17) },
        ),
        event(
            Action::Connect,
            ok,
            None,
            Socket { remote: end("::ffff:192.0.2.9", 80), ..socket(7, Family::INET6, SocketType::STREAM, 6) },
        ),
        event(Action::Bind, ok, Some(8), Socket { local: named(&[b'x'; 107]), ..unix(8) }),
        event(
            Action::Connect,
            failed(2),
            Some(9),
            Socket { remote: named(b"/run/\xe2\x82\xac\xc3\\\xe2\x80\xae"), ..unix(9) },
        ),
        event(Action::Connect, ok, Some(10), Socket { remote: abstract_name.clone(), ..unix(10) }),
        event(Action::Close, ok, None, Socket { local: abstract_name, existing: true, owner: None, ..unix(11) }),
        unknown,
        event(
            Action::Bind,
            ok,
            Some(13),
            Socket { local: Some(Address::Other(Family(16))), ..socket(13, Family(16), SocketType::RAW, 0) },
        ),
        closed,
    ]
}

fn json(document: Option<impl Serialize>) -> Option<String> {
    let mut line = Vec::new();
    document?.serialize(&mut serde_json::Serializer::with_formatter(&mut line, JsonFormatter)).expect("it serializes");
    Some(String::from_utf8(line).expect("JSON is UTF-8"))
}

fn lines(form: impl Fn(&SocketEvent) -> Option<String>) -> String {
    events().iter().filter_map(form).fold(String::new(), |mut all, line| {
        assert!(!line.chars().any(char::is_control), "{line:?}");
        let _ = writeln!(all, "{line}");
        all
    })
}

fn compare(name: &str, found: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/events").join(name);
    let wanted = fs::read_to_string(&file).unwrap_or_default();
    let differs = found.lines().zip(wanted.lines()).find(|(found, wanted)| found != wanted);
    if found != wanted {
        let beside = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::write(&beside, found).expect("it can be written");
        panic!("{} is not {}: {differs:#?}", beside.display(), file.display());
    }
}

#[test]
fn ecs_documents() {
    let host = host();
    let agent = agent(&host);
    let context = Context { host: &host, agent: &agent, clock: clock(), names: &(), directions: Directions::Ingress };
    let found = lines(|event| json(Some(ecs::socket_event(event, &context))));
    compare("ecs.jsonl", &found.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
}

#[test]
fn car_objects() {
    compare("car.jsonl", &lines(|event| json(CarSocket::of(event, clock()))));
}

#[test]
fn tracee_events() {
    compare("tracee.jsonl", &lines(|event| json(TraceeEvent::of(event, clock()))));
}

#[test]
fn older_tracee_events() {
    compare("tracee-legacy.jsonl", &lines(|event| json(TraceEvent::of(event, clock(), "web"))));
}

#[test]
fn text_for_people() {
    compare("text.txt", &lines(|event| Some(text::line(event, clock(), &()))));
}
