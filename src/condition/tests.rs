//! Conditions on one event: a refused connect of a socket without a local address.

use std::sync::Arc;

use super::*;
use crate::model::control_groups::ControlGroups;
use crate::model::process::{Credentials, Image, Process};
use crate::model::socket_event::{
    Action, Address, CallResult, EventSocket, Family, IpEnd, SocketId, SocketState, SocketType, ThreadName, UnixName,
};
use crate::model::testing::monotonic;

fn event() -> SocketEvent {
    let curl = Process {
        pid: 4242,
        parent_pid: Some(1),
        start: None,
        kernel: false,
        credentials: Some(Credentials { uid: 1000, gid: 100, euid: 0, egid: 0 }),
        control_groups: Some(Arc::new(ControlGroups::of_proc(b"0::/lxc/web"))),
        image: Arc::new(Image { name: "curl".into(), executable: Some("/usr/bin/curl".into()), ..Image::default() }),
    };
    SocketEvent {
        time: monotonic(0),
        action: Action::Connect,
        result: CallResult::Failure(111),
        fd: Some(5),
        socket: EventSocket {
            id: SocketId(77),
            sock: None,
            family: Family::INET6,
            kind: Some(SocketType::STREAM),
            protocol: Some(6),
            local: None,
            remote: Some(Address::Ip(IpEnd::new("::ffff:192.0.2.9".parse::<IpAddr>().unwrap(), 443))),
            state: Some(SocketState::CLOSE),
            owner: None,
            existing: false,
        },
        before: Some(SocketState::CLOSE),
        process: Some(Arc::new(curl)),
        tid: 4243,
        thread_name: ThreadName::new(b"worker"),
    }
}

fn holds(condition: &str) -> bool {
    condition.parse::<Condition>().unwrap_or_else(|error| panic!("{condition}: {error}")).matches(&event())
}

fn error(condition: &str) -> (usize, String) {
    let error = condition.parse::<Condition>().expect_err(condition);
    (error.column, error.problem)
}

#[test]
fn true_conditions() {
    for condition in [
        r#"remote.port == 443 && process.name in ["curl","wget"]"#,
        "remote.port in [80, 443]",
        "remote.port > 80 && remote.port <= 443 && remote.port != 44",
        r#"remote.ip == "192.0.2.9""#,
        r#"remote.ip in "192.0.2.0/24""#,
        r#"remote.ip in ["2001:db8::/32", "192.0.2.8/31"]"#,
        r#"process.executable like "/usr/*/curl""#,
        r#"process.executable like ["*wget", "*{curl,nc}"]"#,
        r#"errno == "ECONNREFUSED" && !success && success == false && success != true"#,
        r#"action == "connect" && family == "AF_INET6" && type == "SOCK_STREAM" && protocol == "TCP""#,
        r#"(fd == 99 || user.id == 1000) && !(user.effective.id != 0)"#,
        r#"process.pid == 4242 && process.parent.pid == 1 && process.thread.id == 4243 && process.thread.name == "worker" && inode == 77 && group.id==100"#,
        r#"container.id == "web""#,
        r#"state == "CLOSE" && state_before == "CLOSE" && !existing"#,
        "fd < 10", // As text, "5" is greater than "10".
        r#"fd == 99 && fd == 99 || fd == 5"#,
    ] {
        assert!(holds(condition), "{condition}");
    }
}

#[test]
fn false_conditions() {
    for condition in [
        "remote.port == 44",
        r#"process.name in ["cur", "curly"]"#,
        r#"process.name like "cur""#,
        r#"remote.ip in ["192.0.2.8/32", "::ffff:0:0/96"]"#,
        "success",
        "fd == 5 && fd == 6",
    ] {
        assert!(!holds(condition), "{condition}");
    }
}

#[test]
fn comparisons_with_missing_fields_are_false() {
    for condition in
        ["local.port == 0", "local.port != 0", r#"local.path like "*""#, "backlog >= 0", "local.port in [0]"]
    {
        assert!(!holds(condition), "{condition}");
        assert!(holds(&format!("!({condition})")), "{condition}");
    }
}

#[test]
fn names_are_compared_as_documents_show_them() {
    let mut event = event();
    let name = UnixName::Abstract(Box::from(*b"a\0\"\\\xff"));
    event.socket.remote = Some(Address::Unix(name));
    let condition: Condition = r#"remote.path == "@a\x00\"\x5c\xff""#.parse().unwrap();
    assert!(condition.matches(&event));
    let condition: Condition = r#"remote.path like "@a*""#.parse().unwrap();
    assert!(condition.matches(&event));
}

#[test]
fn errors_say_where_and_what() {
    for (condition, column, part) in [
        ("", 1, "expected a field"),
        ("remot.port == 1", 1, "there is no field remot.port; the fields are action,"),
        ("fd == 1 && é", 12, "unexpected `"),
        (r#"remote.port == "443""#, 16, "remote.port needs a number"),
        ("process.name == curl", 17, "process.name needs text in quotes"),
        ("remote.port = 443", 13, "write `==`"),
        ("remote.port", 12, "expected a comparison after remote.port"),
        ("remote.ip == 10.0.0.1", 14, "is not a whole number; write addresses and networks in quotes"),
        (r#"remote.ip == "10.0.0.0/8""#, 14, "use `in` for networks"),
        (r#"remote.ip in "10.0.0.0/33""#, 14, "10.0.0.0/33"),
        (r#"fd in [1, "2"]"#, 11, "fd needs a number"),
        ("fd in [1 2]", 10, "expected `,` or `]`"),
        ("fd in []", 8, "expected a value before `]`"),
        ("fd in [1,]", 10, "expected a value before `]`"),
        ("(fd == 1", 9, "expected `)` for the `(` in column 1"),
        ("fd == 1)", 8, "expected an operator"),
        (r#"process.name like "[a""#, 19, "bad glob"),
        (r#"fd like "1*""#, 4, "fd is not text"),
        (r#"process.name == "a"#, 17, "no closing quote"),
        (r#"process.name == "\q""#, 18, "escapes are"),
        ("success == 1", 12, "success needs true or false"),
        ("fd == 99999999999999999999", 7, "not a whole number"),
        ("fd & 1", 4, "write `&&`"),
    ] {
        let (found, problem) = error(condition);
        assert_eq!(found, column, "{condition}: {problem}");
        assert!(problem.contains(part), "{condition}: {problem}");
    }
    assert!(error(&" ".repeat(70_000)).1.contains("longer than"));
}

#[test]
fn nesting_is_limited_to_64() {
    for (open, close) in [("!", ""), ("(", ")"), ("!(", ")")] {
        let nested = |depth: usize| {
            let count = depth / open.len();
            format!("{}{}{}", open.repeat(count), "fd == 1", close.repeat(count))
        };
        assert!(nested(64).parse::<Condition>().is_ok(), "{open}");
        let (column, problem) = error(&nested(66));
        assert_eq!((column, &*problem), (65, "nested more than 64 deep"), "{open}");
    }
}

#[test]
fn names_of_fields_are_unique() {
    let names: std::collections::BTreeSet<_> = FIELDS.iter().map(|field| field.name).collect();
    assert_eq!(names.len(), FIELDS.len());
    assert!(names.iter().all(|name| Field::named(name).is_some_and(|field| field.name == *name)));
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in r#"[a-z.!&|=<>()\[\],"\\{}0-9 ux]{0,60}"#) {
        let _ = text.parse::<Condition>();
    }
}
