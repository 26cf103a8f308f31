//! Sensor events of sockets that programs open and close.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::config::parse;
use super::*;
use crate::model::kernel_address::SockAddress;
use crate::model::process::{Image, Process};
use crate::model::socket_event::{Address, Family, IpEnd, Listener, SocketType};
use crate::model::testing::monotonic;

const SAMPLE: &str = include_str!("../../../tests/data/net-socket.yaml");
const ALL: &str = "all:\n  listener: net.socket\n";
const SERVER: &str = "198.51.100.7:443";

/// An engine and the current time.
struct Harness {
    engine: Engine,
    now: Instant,
}

impl Harness {
    fn new(file: &str) -> Self {
        Self::with_limits(file, Limits::default())
    }

    fn with_limits(file: &str, limits: Limits) -> Self {
        Self { engine: Engine::new(parse(file).unwrap(), 1, limits), now: Instant::now() }
    }

    fn event(&mut self, action: Action, result: CallResult, socket: EventSocket, before: Option<SocketState>) {
        let event = SocketEvent {
            time: monotonic(0),
            action,
            result,
            fd: Some(3),
            socket,
            before,
            process: None,
            tid: 0,
            thread_name: None,
        };
        self.engine.ingest(&event, self.now);
    }

    fn connect(&mut self, id: u64, remote: &str) {
        self.event(Action::Connect, CallResult::Success, socket(id, remote, SocketState::ESTABLISHED), None);
    }

    fn close(&mut self, id: u64, remote: &str, last: SocketState) {
        self.event(Action::Close, CallResult::Success, socket(id, remote, SocketState::CLOSE), Some(last));
    }

    /// Of each event since the last call: the action, the remote end, the name of the remote host, and the state.
    fn emitted(&mut self) -> Vec<String> {
        let events = self.engine.take_events();
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let line = |event| {
            let event = serde_json::to_value(&event).unwrap();
            let data = &event["data"];
            ["action", "remote", "remote_host", "state"].map(|key| text(&data[key])).join(" ")
        };
        events.into_iter().map(line).collect()
    }
}

fn end(text: &str) -> Option<Address> {
    let address = text.parse::<SocketAddr>().ok()?;
    Some(Address::Ip(IpEnd::new(address.ip(), address.port())))
}

/// A TCP socket of process 7.
fn socket(id: u64, remote: &str, state: SocketState) -> EventSocket {
    let is_ipv6 = remote.starts_with('[');
    let process = Process {
        pid: 7,
        parent_pid: None,
        start: None,
        kernel: false,
        credentials: None,
        control_groups: None,
        image: Arc::new(Image { name: "curl".into(), ..Image::default() }),
    };
    EventSocket {
        id: SocketId(id),
        sock: SockAddress::new(id),
        family: if is_ipv6 { Family::INET6 } else { Family::INET },
        kind: Some(SocketType::STREAM),
        protocol: Some(6),
        local: end(if is_ipv6 { "[2001:db8::1]:40000" } else { "192.0.2.1:40000" }),
        remote: end(remote),
        state: Some(state),
        owner: Some(Arc::new(process)),
        existing: false,
    }
}

fn udp(id: u64, local: &str, remote: &str) -> EventSocket {
    let state = SocketState::CLOSE;
    EventSocket { protocol: Some(17), local: end(local), ..socket(id, remote, state) }
}

#[test]
fn an_event_is_written_as_documented() {
    let mut harness = Harness::new("web:\n  listener: net.socket\n  tag: out\n");
    harness.connect(1, "[2001:db8::2]:443");
    let events = harness.engine.take_events();
    assert_eq!(
        serde_json::to_value(&events).unwrap(),
        json!([{
            "eid": "web|net.socket@out|opened@[2001:db8::2]:443|0",
            "sensor": "web",
            "listener": "net.socket",
            "data": {
                "action": "opened",
                "proto": "tcp6",
                "local": "[2001:db8::1]:40000",
                "remote": "[2001:db8::2]:443",
                "remote_host": null,
                "state": "ESTABLISHED",
                "process": { "pid": 7, "name": "curl" },
            },
        }])
    );
    let mut untagged = Harness::new(ALL);
    untagged.connect(1, SERVER);
    untagged.close(1, SERVER, SocketState::ESTABLISHED);
    let eids: Vec<_> = untagged.engine.take_events().into_iter().map(|event| event.eid).collect();
    assert_eq!(eids, ["all|net.socket|opened@198.51.100.7:443|0", "all|net.socket|closed@198.51.100.7:443|0"]);
}

#[test]
fn each_socket_opens_and_closes_once_whatever_its_states() {
    let mut harness = Harness::new(ALL);
    let change_state = |harness: &mut Harness, state| {
        harness.event(Action::Connect, CallResult::Success, socket(1, SERVER, state), None);
    };
    harness.event(
        Action::Connect,
        CallResult::Failure(nix::libc::EINPROGRESS),
        socket(1, SERVER, SocketState::SYN_SENT),
        Some(SocketState::CLOSE),
    );
    assert_eq!(harness.emitted(), ["opened 198.51.100.7:443 - SYN_SENT"]);
    change_state(&mut harness, SocketState::ESTABLISHED);
    change_state(&mut harness, SocketState::CLOSE_WAIT);
    assert!(harness.emitted().is_empty(), "a change of state is no event");
    harness.close(1, SERVER, SocketState::CLOSE_WAIT);
    harness.close(1, SERVER, SocketState::CLOSE_WAIT);
    assert_eq!(harness.emitted(), ["closed 198.51.100.7:443 - CLOSE_WAIT"]);
}

#[test]
fn a_sensor_follows_a_socket_from_the_first_match_on() {
    let mut harness = Harness::new(&SAMPLE.replace("dns: true", "dns: false"));
    let connecting = socket(1, SERVER, SocketState::SYN_SENT);
    harness.event(Action::Connect, CallResult::Failure(nix::libc::EINPROGRESS), connecting, None);
    assert!(harness.emitted().is_empty(), "not yet established");
    harness.connect(1, SERVER);
    assert_eq!(harness.emitted(), ["opened 198.51.100.7:443 - ESTABLISHED"]);
    harness.close(1, SERVER, SocketState::CLOSE_WAIT);
    assert_eq!(harness.emitted(), ["closed 198.51.100.7:443 - CLOSE_WAIT"], "though no pattern has this state");
    harness.connect(2, "[2001:db8::2]:443");
    harness.event(Action::Listen { backlog: 1 }, CallResult::Success, socket(3, "-", SocketState::LISTEN), None);
    harness.event(Action::Bind, CallResult::Success, udp(4, "192.0.2.1:53", "-"), None);
    assert!(harness.emitted().is_empty(), "neither IPv6, nor listeners, nor UDP");
}

#[test]
fn existing_sockets_are_known_and_only_their_end_is_reported() {
    let mut harness = Harness::new(ALL);
    let old = EventSocket { existing: true, ..socket(1, SERVER, SocketState::ESTABLISHED) };
    harness.engine.existing(std::slice::from_ref(&old), harness.now);
    harness.event(Action::Connect, CallResult::Success, old, None);
    assert!(harness.emitted().is_empty());
    harness.close(1, SERVER, SocketState::ESTABLISHED);
    assert_eq!(harness.emitted(), ["closed 198.51.100.7:443 - ESTABLISHED"]);
    harness.connect(1, SERVER);
    assert_eq!(harness.emitted().len(), 1, "a new socket may get the same id, because inode numbers are used again");
}

/// The search for existing sockets takes a while. A socket that begins during the search is new, even if the search finds it.
#[test]
fn sockets_that_begin_during_the_search_are_new() {
    let mut harness = Harness::new(ALL);
    let found = |id| EventSocket { existing: true, ..socket(id, SERVER, SocketState::ESTABLISHED) };
    harness.engine.existing(&[found(1), found(2)], harness.now);
    harness.event(Action::Create { protocol: 0 }, CallResult::Success, socket(1, "-", SocketState::CLOSE), None);
    harness.event(Action::Connect, CallResult::Success, found(1), Some(SocketState::CLOSE));
    let action = Action::Accept { listener: Listener { id: SocketId(9), local: None }, accepted: Some(4) };
    harness.event(action, CallResult::Success, found(2), None);
    assert_eq!(harness.emitted(), ["opened 198.51.100.7:443 - ESTABLISHED"; 2]);
}

#[test]
fn failed_calls_open_nothing() {
    let mut harness = Harness::new(ALL);
    let refused = CallResult::Failure(nix::libc::ECONNREFUSED);
    harness.event(Action::Connect, refused, socket(1, SERVER, SocketState::CLOSE), Some(SocketState::CLOSE));
    let in_use = CallResult::Failure(nix::libc::EADDRINUSE);
    harness.event(Action::Bind, in_use, udp(2, "192.0.2.1:53", "-"), None);
    harness.close(1, SERVER, SocketState::CLOSE);
    assert!(harness.emitted().is_empty());
    harness.connect(3, SERVER);
    let again = CallResult::Failure(nix::libc::EISCONN);
    harness.event(Action::Connect, again, socket(3, "203.0.113.1:1", SocketState::ESTABLISHED), None);
    harness.close(3, SERVER, SocketState::ESTABLISHED);
    assert_eq!(harness.emitted(), ["opened 198.51.100.7:443 - ESTABLISHED", "closed 198.51.100.7:443 - ESTABLISHED"]);
}

#[test]
fn a_reset_is_reported_as_closed_and_the_later_close_of_the_descriptor_is_not() {
    let mut harness = Harness::new(ALL);
    harness.connect(1, SERVER);
    harness.event(
        Action::Connect,
        CallResult::Failure(nix::libc::ECONNRESET),
        socket(1, SERVER, SocketState::CLOSE),
        Some(SocketState::ESTABLISHED),
    );
    assert_eq!(harness.emitted(), ["opened 198.51.100.7:443 - ESTABLISHED", "closed 198.51.100.7:443 - ESTABLISHED"]);
    harness.close(1, SERVER, SocketState::CLOSE);
    assert!(harness.emitted().is_empty());
}

#[test]
fn udp_sockets_have_no_state() {
    let mut harness = Harness::new(ALL);
    harness.event(Action::Bind, CallResult::Success, udp(1, "192.0.2.1:53", "-"), None);
    harness.event(Action::Connect, CallResult::Success, udp(1, "192.0.2.1:53", "192.0.2.9:9"), None);
    harness.close(1, "192.0.2.9:9", SocketState::CLOSE);
    assert_eq!(harness.emitted(), ["opened 0.0.0.0:0 - -", "closed 192.0.2.9:9 - -"]);
}

#[test]
fn opts_choose_the_reported_events() {
    for (opts, expected) in [("opened", "opened"), ("closed", "closed")] {
        let mut harness = Harness::new(&format!("{ALL}  opts: [{opts}]\n"));
        harness.connect(1, SERVER);
        harness.close(1, SERVER, SocketState::ESTABLISHED);
        assert_eq!(harness.emitted(), [format!("{expected} 198.51.100.7:443 - ESTABLISHED")]);
    }
}

#[test]
fn an_ignored_socket_is_not_reported_even_if_a_pattern_matches() {
    let args = "  args:\n    patterns: ['tcp * * * *']\n    ignore: ['* *:443 * *']\n";
    let mut harness = Harness::new(&format!("{ALL}{args}"));
    harness.connect(1, SERVER);
    harness.connect(2, "198.51.100.7:80");
    assert_eq!(harness.emitted(), ["opened 198.51.100.7:80 - ESTABLISHED"]);
}

#[test]
fn sensors_are_independent_of_each_other() {
    let mut harness =
        Harness::new("a:\n  listener: net.socket\n  opts: [opened]\nb:\n  listener: net.socket\n  tag: t\n");
    harness.connect(1, SERVER);
    harness.close(1, SERVER, SocketState::ESTABLISHED);
    let eids: Vec<_> = harness.engine.take_events().into_iter().map(|event| event.eid).collect();
    let expected = ["a|net.socket|opened@", "b|net.socket@t|opened@", "b|net.socket@t|closed@"];
    assert_eq!(eids, expected.map(|eid| format!("{eid}{SERVER}|0")));
}

#[test]
fn our_own_sockets_are_ignored() {
    let mut harness = Harness::new(ALL);
    let mut own = socket(1, SERVER, SocketState::ESTABLISHED);
    own.owner = own.owner.map(|owner| Arc::new(Process { pid: 1, ..(*owner).clone() }));
    harness.event(Action::Connect, CallResult::Success, own, None);
    harness.close(1, SERVER, SocketState::ESTABLISHED);
    assert!(harness.emitted().is_empty());
}

#[test]
fn a_locked_event_is_reported_once_until_it_is_unlocked() {
    let mut harness = Harness::new(&format!("{ALL}  opts: [opened]\n  args: {{ locked: true }}\n"));
    harness.connect(1, SERVER);
    harness.connect(2, SERVER);
    harness.connect(3, "198.51.100.8:443");
    assert_eq!(harness.emitted().len(), 2, "one for each event id (`eid`): sockets 1 and 2 have the same");
    assert_eq!(harness.engine.stats().sensor_events_muted, 1);
    assert_eq!(harness.engine.unlock("all|net.socket|opened@198.51.100.7:443|0"), Ok(1));
    harness.connect(4, SERVER);
    harness.connect(5, "198.51.100.8:443");
    assert_eq!(harness.emitted(), ["opened 198.51.100.7:443 - ESTABLISHED"]);
    assert_eq!(harness.engine.unlock("all|*"), Ok(2));
}

#[test]
fn events_wait_for_a_name_in_order_while_other_events_continue() {
    let mut harness = Harness::new(&format!("{ALL}  args: {{ dns: true }}\n"));
    let ip: IpAddr = "198.51.100.7".parse().unwrap();
    harness.connect(1, SERVER);
    harness.close(1, SERVER, SocketState::ESTABLISHED);
    harness.event(Action::Listen { backlog: 1 }, CallResult::Success, socket(2, "-", SocketState::LISTEN), None);
    assert_eq!(harness.emitted(), ["opened 0.0.0.0:0 - LISTEN"], "a listener has no remote host to look up");
    assert_eq!(harness.engine.take_wanted(), [ip]);
    harness.engine.answer(ip, Some("www.example.org".into()), harness.now);
    let named = ["opened", "closed"].map(|action| format!("{action} 198.51.100.7:443 www.example.org ESTABLISHED"));
    assert_eq!(harness.emitted(), named);
    harness.connect(3, SERVER);
    assert_eq!(harness.emitted(), named[..1], "the name is cached");
    harness.now += Duration::from_secs(60);
    harness.connect(4, SERVER);
    assert!(
        harness.emitted().is_empty() && harness.engine.take_wanted() == [ip],
        "the cached name has expired (dns-ttl)"
    );
}

#[test]
fn without_an_answer_events_continue_without_a_name() {
    let mut harness = Harness::new(&format!("{ALL}  args: {{ dns: true }}\n"));
    harness.connect(1, SERVER);
    harness.engine.expire(harness.now + Duration::from_secs(1));
    assert!(harness.emitted().is_empty());
    harness.engine.expire(harness.now + Duration::from_secs(2));
    assert_eq!(harness.emitted(), ["opened 198.51.100.7:443 - ESTABLISHED"]);
    assert_eq!(harness.engine.stats().reverse_lookups_unanswered, 1);
    harness.connect(2, "198.51.100.8:443");
    harness.engine.drop_lookup("198.51.100.8".parse().unwrap());
    harness.connect(3, "198.51.100.9:443");
    harness.engine.finish();
    assert_eq!(harness.emitted().len(), 2);
    assert_eq!(harness.engine.stats().reverse_lookups_dropped, 1);
}

#[test]
fn names_that_are_skipped_or_cannot_matter_are_not_looked_up() {
    let mut harness = Harness::new(SAMPLE);
    harness.connect(1, "10.0.0.7:443");
    assert_eq!(harness.emitted(), ["opened 10.0.0.7:443 - ESTABLISHED"], "skip-reverse-dns: the address is private");
    harness.connect(2, "[2001:db8::2]:443");
    assert!(harness.engine.take_wanted().is_empty(), "no pattern has this protocol");
    harness.connect(3, SERVER);
    assert_eq!(harness.engine.take_wanted().len(), 1);
}

#[test]
fn patterns_see_the_name() {
    let mut harness = Harness::new(&format!("{ALL}  args: {{ dns: true, patterns: ['* * * *.example.org *'] }}\n"));
    let name = |harness: &mut Harness, ip: &str, name: &str| {
        let now = harness.now;
        harness.engine.answer(ip.parse().unwrap(), Some(name.into()), now);
    };
    harness.connect(1, SERVER);
    harness.connect(2, "198.51.100.8:443");
    name(&mut harness, "198.51.100.7", "www.example.org");
    name(&mut harness, "198.51.100.8", "www.example.net");
    harness.close(2, "198.51.100.8:443", SocketState::ESTABLISHED);
    assert_eq!(harness.emitted(), ["opened 198.51.100.7:443 www.example.org ESTABLISHED"]);
}

#[test]
fn the_table_of_sockets_is_bounded() {
    let mut harness = Harness::with_limits(ALL, Limits { sockets: 1, ..Limits::default() });
    harness.connect(1, SERVER);
    harness.connect(2, SERVER);
    harness.close(2, SERVER, SocketState::ESTABLISHED);
    harness.close(1, SERVER, SocketState::ESTABLISHED);
    assert_eq!(harness.emitted().len(), 2);
    assert_eq!(harness.engine.stats().sensor_sockets_refused, 1);
}

proptest::proptest! {
    /// In any sequence of events, `opened` and `closed` of a socket alternate, and `opened` comes first.
    #[test]
    fn opened_comes_before_closed(steps in proptest::collection::vec((0_u64..3, 0_u8..13, proptest::bool::ANY), 0..40)) {
        let mut harness = Harness::new(&format!("{ALL}  args: {{ dns: true }}\n"));
        for (id, state, closes) in steps {
            let remote = format!("198.51.100.{id}:1");
            if closes {
                harness.close(id, &remote, SocketState(state));
            } else {
                harness.event(Action::Connect, CallResult::Unknown, socket(id, &remote, SocketState(state)), None);
            }
            if state == 12 {
                let now = harness.now;
                harness.engine.answer(format!("198.51.100.{id}").parse().unwrap(), None, now);
            }
        }
        harness.engine.finish();
        let mut open = [0_i32; 3];
        for line in harness.emitted() {
            let id = line.split("198.51.100.").nth(1).and_then(|rest| rest[..1].parse::<usize>().ok()).unwrap();
            open[id] += if line.starts_with("opened") { 1 } else { -1 };
            proptest::prop_assert!((0..=1).contains(&open[id]), "{}", line);
        }
    }
}
