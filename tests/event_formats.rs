//! Socket events in every format, compared with the reviewed files in `tests/data/events`.
//!
//! When a format changes, the test writes its result to a file in the target folder, and names it. Review the difference, then
//! replace the expected file.

use std::fmt::Write;
use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde::Serialize;
use socktrail::clock::{Clock, Readings, Timestamp};
use socktrail::documents::car::CarSocket;
use socktrail::documents::ecs::{self, Context, Directions};
use socktrail::documents::event_text as text;
use socktrail::documents::json::JsonFormatter;
use socktrail::documents::tracee::TraceeEvent;
use socktrail::documents::tracee::legacy::TraceEvent;
use socktrail::host::Host;
use socktrail::host::agent::Agent;
use socktrail::process::{Credentials, Details, Image, Process};
use socktrail::socket_event::{
    Action, Address, CallResult, EventSocket, Family, IpEnd, Listener, SocketEvent, SocketId, SocketState, SocketType,
    ThreadName, UnixName,
};
use socktrail::{BootTime, MonotonicTime, SockAddress};

const SECOND: u64 = 1_000_000_000;

/// 2026-01-02T03:04:05Z is 1767323045 by `date +%s`.
fn clock() -> Clock {
    Clock::from_readings(Readings {
        kernel: MonotonicTime::ZERO,
        boot: BootTime::ZERO,
        wall: Timestamp::from_unix_nanos(1_767_323_045 * SECOND),
    })
}

fn host() -> Host {
    Host { name: Some("web".into()), hostname: Some("web".into()), id: Some("5cc7".into()), ..Host::default() }
}

fn agent(host: &Host) -> Agent {
    let id = "88862e07-b13a-4166-b1ef-b3e55b4a0cf2";
    Agent { id: id.into(), ephemeral_id: id.into(), ..Agent::of(host) }
}

/// A program whose name contains a terminal escape.
fn process() -> Arc<Process> {
    let mut details = Details::default();
    details.container_id = Some("c0ffee".into());
    let mut image = Image::default();
    image.name = "ev\u{1b}il".into();
    image.executable = Some("/opt/ev\u{1b}il".into());
    image.args = vec!["evil".into()];
    image.details = OnceLock::from(details);
    let mut process = Process::new(4242);
    process.parent_pid = Some(1);
    process.start = Some(BootTime::from_nanos(SECOND));
    process.credentials = Some(Credentials { uid: 1000, gid: 100, euid: 0, egid: 100 });
    process.image = Arc::new(image);
    Arc::new(process)
}

fn socket(id: u64, family: Family, kind: SocketType, protocol: u16) -> EventSocket {
    let mut socket = EventSocket::new(SocketId(id), family);
    socket.sock = SockAddress::new(0xffff_8880_0000_0000 + id);
    socket.kind = Some(kind);
    socket.protocol = Some(protocol);
    socket.state = Some(SocketState::CLOSE);
    socket.owner = Some(process());
    socket
}

fn with(mut socket: EventSocket, change: impl FnOnce(&mut EventSocket)) -> EventSocket {
    change(&mut socket);
    socket
}

fn end(ip: &str, port: u16) -> Option<Address> {
    Some(Address::Ip(IpEnd::new(ip.parse::<std::net::IpAddr>().expect("an address"), port)))
}

fn event(action: Action, result: CallResult, fd: Option<i32>, socket: EventSocket) -> SocketEvent {
    let mut event = SocketEvent::new(MonotonicTime::from_nanos(SECOND + socket.id.0), action, result, socket);
    event.fd = fd;
    event.before = Some(SocketState::CLOSE);
    event.process = Some(process());
    event.tid = 4243;
    event.thread_name = ThreadName::new(b"\x1bworker \xff");
    event
}

/// Events with every action, family and kind of address.
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
    let connection = with(tcp(4), |it| {
        it.local = here.clone();
        it.remote = end("198.51.100.7", 40000);
        it.state = Some(SocketState::ESTABLISHED);
    });
    let mut unknown = event(Action::Connect, CallResult::Unknown, None, with(tcp(12), |it| it.remote = here.clone()));
    unknown.process = None;
    let mut created = event(Action::Create { protocol: 0 }, ok, Some(3), tcp(1));
    created.before = None;
    let mut accepted =
        event(Action::Accept { listener: listener.clone(), accepted: Some(4) }, ok, Some(3), connection.clone());
    accepted.before = None;
    let mut closed = event(Action::Close, ok, None, with(connection, |it| it.state = Some(SocketState::CLOSE)));
    closed.before = Some(SocketState::CLOSE_WAIT);
    vec![
        created,
        event(
            Action::Create { protocol: 1 },
            failed(1),
            None,
            with(socket(0, Family::INET, SocketType::RAW, 1), |it| {
                it.id = SocketId(0);
                it.sock = None;
                it.owner = None;
            }),
        ),
        event(Action::SetSockOpt { level: 1, option: 2 }, ok, Some(3), tcp(1)),
        event(Action::Bind, failed(98), Some(3), with(tcp(1), |it| it.local = here.clone())),
        event(
            Action::Listen { backlog: 128 },
            ok,
            Some(3),
            with(tcp(1), |it| {
                it.local = here.clone();
                it.state = Some(SocketState::LISTEN);
            }),
        ),
        accepted,
        event(
            Action::Accept { listener, accepted: None },
            failed(11),
            Some(3),
            with(tcp(1), |it| {
                it.local = here;
                it.state = Some(SocketState::LISTEN);
            }),
        ),
        event(
            Action::Connect,
            failed(115),
            Some(5),
            with(tcp(5), |it| {
                it.local = end("192.0.2.1", 5000);
                it.remote = end("203.0.113.9", 443);
                it.state = Some(SocketState::SYN_SENT);
            }),
        ),
        event(
            Action::Connect,
            ok,
            Some(6),
            with(socket(6, Family::INET6, SocketType::DGRAM, 17), |it| it.remote = Some(scoped)),
        ),
        event(
            Action::Connect,
            ok,
            None,
            with(socket(7, Family::INET6, SocketType::STREAM, 6), |it| it.remote = end("::ffff:192.0.2.9", 80)),
        ),
        event(Action::Bind, ok, Some(8), with(unix(8), |it| it.local = named(&[b'x'; 107]))),
        event(
            Action::Connect,
            failed(2),
            Some(9),
            with(unix(9), |it| it.remote = named(b"/run/\xe2\x82\xac\xc3\\\xe2\x80\xae")),
        ),
        event(Action::Connect, ok, Some(10), with(unix(10), |it| it.remote = abstract_name.clone())),
        event(
            Action::Close,
            ok,
            None,
            with(unix(11), |it| {
                it.local = abstract_name;
                it.existing = true;
                it.owner = None;
            }),
        ),
        unknown,
        event(
            Action::Bind,
            ok,
            Some(13),
            with(socket(13, Family(16), SocketType::RAW, 0), |it| it.local = Some(Address::Other(Family(16)))),
        ),
        closed,
    ]
}

fn json(document: Option<impl Serialize>) -> Option<String> {
    let mut line = Vec::new();
    document?.serialize(&mut serde_json::Serializer::with_formatter(&mut line, JsonFormatter)).expect("it serializes");
    Some(String::from_utf8(line).expect("JSON is UTF-8"))
}

fn lines(format: impl Fn(&SocketEvent) -> Option<String>) -> String {
    events().iter().filter_map(format).fold(String::new(), |mut all, line| {
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
        let result = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::write(&result, found).expect("it can be written");
        panic!("{} differs from {}: {differs:#?}", result.display(), file.display());
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
fn text_lines() {
    compare("text.txt", &lines(|event| Some(text::line(event, clock(), &()))));
}
