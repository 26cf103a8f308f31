//! Conditions against an event of which everything is known.

use std::sync::Arc;

use super::*;
use crate::container::Containers;
use crate::event::Credentials;
use crate::process::{Image, Process};
use crate::socket_event::{
    Action, Address, CallResult, Family, IpEnd, Socket, SocketId, SocketState, SocketType, ThreadName, UnixName,
};

fn event() -> SocketEvent {
    let curl = Process {
        pid: 4242,
        parent_pid: Some(1),
        start: None,
        kernel: false,
        credentials: Some(Credentials { uid: 1000, gid: 100, euid: 0, egid: 0 }),
        containers: Some(Arc::new(Containers::of_proc(b"0::/lxc/web"))),
        image: Arc::new(Image { name: "curl".into(), executable: Some("/usr/bin/curl".into()), ..Image::default() }),
    };
    SocketEvent {
        time: 0,
        action: Action::Connect,
        result: CallResult::Failure(111),
        fd: Some(5),
        socket: Socket {
            id: SocketId(77),
            sock: 0,
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
        thread_name: Some(ThreadName::new(b"worker")),
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
fn what_holds() {
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
        "fd < 10", // as text it would not
        r#"fd == 99 && fd == 99 || fd == 5"#,
    ] {
        assert!(holds(condition), "{condition}");
    }
}

#[test]
fn what_does_not() {
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
fn what_an_event_does_not_have_fulfils_nothing() {
    for condition in
        ["local.port == 0", "local.port != 0", r#"local.path like "*""#, "backlog >= 0", "local.port in [0]"]
    {
        assert!(!holds(condition), "{condition}");
        assert!(holds(&format!("!({condition})")), "{condition}");
    }
}

#[test]
fn names_are_compared_as_they_are_written() {
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
        ("", 1, "a field is expected"),
        ("remot.port == 1", 1, "there is no field remot.port; there are action,"),
        ("fd == 1 && é", 12, "does not belong here"),
        (r#"remote.port == "443""#, 16, "remote.port takes a number"),
        ("process.name == curl", 17, "process.name takes text in quotes"),
        ("remote.port = 443", 13, "write `==`"),
        ("remote.port", 12, "a comparison is expected after remote.port"),
        ("remote.ip == 10.0.0.1", 14, "is no whole number; addresses and networks stand in quotes"),
        (r#"remote.ip == "10.0.0.0/8""#, 14, "networks are for `in`"),
        (r#"remote.ip in "10.0.0.0/33""#, 14, "10.0.0.0/33"),
        (r#"fd in [1, "2"]"#, 11, "fd takes a number"),
        ("fd in [1 2]", 10, "`,` or `]` is expected"),
        ("(fd == 1", 9, "`)` is expected: column 1 opened it"),
        ("fd == 1)", 8, "an operator is expected"),
        (r#"process.name like "[a""#, 19, "bad glob"),
        (r#"fd like "1*""#, 4, "fd is no text"),
        (r#"process.name == "a"#, 17, "no closing quote"),
        (r#"process.name == "\q""#, 18, "escapes are"),
        ("success == 1", 12, "success takes true or false"),
        ("fd == 99999999999999999999", 7, "no whole number"),
        ("fd & 1", 4, "write `&&`"),
    ] {
        let (found, problem) = error(condition);
        assert_eq!(found, column, "{condition}: {problem}");
        assert!(problem.contains(part), "{condition}: {problem}");
    }
    assert!(error(&"!".repeat(100)).1.contains("nested deeper"));
    assert!(error(&" ".repeat(70_000)).1.contains("longer than"));
}

#[test]
fn every_field_has_a_name_of_its_own() {
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
