//! Socket events: one for every socket call of a program, with its arguments and result.
//!
//! The workloads print the expected event of each call. There must be exactly these events, in the same order.

mod formats;

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;

use anyhow::{Context, Result, ensure};
use nix::libc;
use serde_json::Value;

use crate::helpers::process::{Finished, Process};
use crate::helpers::socktrail::{Output, Socktrail};
use crate::helpers::tracefs::Tracefs;
use crate::workloads::{PROGRAM, PROGRAM_32, RUN};

pub(crate) use formats::{formats, thread_names};

/// The tests of this subject.
pub(crate) fn tests() -> Vec<libtest_mimic::Trial> {
    crate::harness::runnable(every_test())
}

tests![every_test:
    tcp_calls,
    refused_calls,
    ipv6_calls,
    unix_calls,
    other_families,
    io_uring_calls,
    io_uring_calls_that_fail,
    every_kind_of_close,
    a_thousand_short_connections,
    preexisting_sockets,
    only_requested_calls_are_probed,
    conditions_select_events,
    formats,
    thread_names,
    calls_of_32_bit_programs,
    io_uring_calls_of_32_bit_programs,
    io_uring_calls_of_32_bit_programs_that_fail,
];

/// An event's action, and the inode of its socket.
fn key(document: &Value) -> (String, u64) {
    let action = document["event"]["action"].as_str().unwrap_or_default();
    (action.to_owned(), document["system"]["audit"]["socket"]["inode"].as_u64().unwrap_or_default())
}

/// Fails unless the monitor has ended with success, and its statistics show no loss.
fn expect_no_losses(output: &Output) -> Result<()> {
    ensure!(output.status.success(), "{}\n{}", output.status, output.log);
    let stats = output.statistics()?;
    for loss in ["samples_lost", "samples_unreadable", "flows_dropped", "probe_misses", "event_sockets_refused"] {
        ensure!(stats[loss] == 0, "{loss} is {} in {stats}", stats[loss]);
    }
    Ok(())
}

/// Starts `socktrail events` writing ECS documents.
fn start_monitor(more: &[&str]) -> Result<Socktrail> {
    Socktrail::start(&[&["events", "--format", "ecs", "--stats"], more].concat())
}

/// Runs a workload while `socktrail events` runs. Returns the output of both.
fn run(workload: &[&str], user: RunAs) -> Result<(Output, Finished)> {
    run_program(PROGRAM, workload, user)
}

/// The user of a workload.
#[derive(Clone, Copy)]
enum RunAs {
    Root,
    User,
}

fn run_program(program: &str, workload: &[&str], user: RunAs) -> Result<(Output, Finished)> {
    let monitor = start_monitor(&[])?;
    let args = [&[program, RUN], workload].concat();
    let process = match user {
        RunAs::Root => Process::start(&args)?,
        RunAs::User => Process::start_as_user(&args)?,
    };
    let finished = process.finish()?;
    ensure!(finished.status == 0, "{finished:?}");
    let output = monitor.stop()?;
    expect_no_losses(&output)?;
    Ok((output, finished))
}

fn lines(finished: &Finished) -> Result<Vec<Value>> {
    finished.stdout.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Fails unless a workload's events are those that it expects, followed only by closes at its end.
fn expect_events(workload: &str, user: RunAs) -> Result<()> {
    expect_events_of(PROGRAM, workload, user)
}

fn expect_events_of(program: &str, workload: &str, user: RunAs) -> Result<()> {
    let (output, workload) = run_program(program, &[workload], user)?;
    let expected = lines(&workload)?;
    let inodes: BTreeSet<_> = expected.iter().map(inode).collect();
    // The standard library has a socket for the error of a failed exec, which a successful exec closes.
    let is_own = |event: &&Value| event["event"]["action"] != "socket_close" || inodes.contains(&key(event).1);
    let events: Vec<_> = output.of_pid(workload.pid).into_iter().filter(is_own).collect();
    let list = || format!("events {:#?}", events.iter().map(|event| key(event)).collect::<Vec<_>>());
    ensure!(
        !expected.is_empty() && events.len() >= expected.len(),
        "{} of {}; {}",
        events.len(),
        expected.len(),
        list()
    );
    for (entry, event) in expected.iter().zip(&events) {
        for (path, value) in entry.as_object().context("an expected event is not an object")? {
            let found = event.pointer(path).unwrap_or(&Value::Null);
            ensure!(found == value, "{path} is {found}, not {value}\nin {event:#}\nfor {entry:#}\n{}", list());
        }
    }
    let closed: BTreeSet<_> =
        expected.iter().filter(|entry| entry["/event/action"] == "socket_close").map(inode).collect();
    for event in &events[expected.len()..] {
        let (action, inode) = key(event);
        ensure!(action == "socket_close" && !closed.contains(&inode), "unexpected event: {event:#}");
    }
    Ok(())
}

fn inode(entry: &Value) -> u64 {
    entry["/system/audit/socket/inode"].as_u64().unwrap_or_default()
}

fn tcp_calls() -> Result<()> {
    expect_events("calls-tcp", RunAs::Root)
}

fn refused_calls() -> Result<()> {
    expect_events("calls-refused", RunAs::User)
}

fn ipv6_calls() -> Result<()> {
    expect_events("calls-ipv6", RunAs::Root)
}

fn unix_calls() -> Result<()> {
    expect_events("calls-unix", RunAs::Root)
}

fn other_families() -> Result<()> {
    expect_events("calls-netlink", RunAs::Root)
}

/// 32-bit programs use another system call (`socketcall(2)`), which calls the same kernel functions.
fn calls_of_32_bit_programs() -> Result<()> {
    for (workload, user) in [
        ("calls-tcp", RunAs::Root),
        ("calls-refused", RunAs::User),
        ("calls-ipv6", RunAs::Root),
        ("calls-unix", RunAs::Root),
    ] {
        expect_events_of(PROGRAM_32, workload, user).with_context(|| workload.to_owned())?;
    }
    Ok(())
}

fn io_uring_calls() -> Result<()> {
    io_uring_calls_of(PROGRAM)
}

fn io_uring_calls_of_32_bit_programs() -> Result<()> {
    io_uring_calls_of(PROGRAM_32)
}

/// The kernel may try to connect several times. The last try has the ring's result, and no try has a descriptor.
fn io_uring_calls_of(program: &str) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let there = listener.local_addr()?;
    let (output, workload) = run_program(program, &["calls-io-uring", &there.to_string()], RunAs::Root)?;
    let report = &lines(&workload)?[0];
    ensure!(report["result"] == 0, "{report}");
    let events = of_socket(&output, report["inode"].as_u64().context("no inode")?);
    let connects: Vec<_> = events.iter().filter(|event| key(event).0 == "socket_connect").collect();
    let last = connects.last().with_context(|| format!("no connect among {events:#?}"))?;
    ensure!(last["event"]["outcome"] == "success", "{last:#}");
    for event in connects {
        ensure!(event["system"]["audit"]["socket"]["fd"].is_null(), "{event:#}");
        ensure!(event["destination"]["port"] == there.port(), "{event:#}");
        let local = format!("{}:{}", event["source"]["ip"].as_str().unwrap_or("-"), event["source"]["port"]);
        ensure!(report["local"] == local, "{} is not {local}", report["local"]);
    }
    let closes = events.iter().filter(|event| key(event).0 == "socket_close").count();
    ensure!(closes == 1, "{closes} closes");
    Ok(())
}

fn io_uring_calls_that_fail() -> Result<()> {
    failing_io_uring_calls_of(PROGRAM)
}

fn io_uring_calls_of_32_bit_programs_that_fail() -> Result<()> {
    failing_io_uring_calls_of(PROGRAM_32)
}

/// Each event has the ring's errno. If the kernel's io_uring cannot make sockets, there is no event for them.
fn failing_io_uring_calls_of(program: &str) -> Result<()> {
    let (output, workload) = run_program(program, &["calls-io-uring-failing"], RunAs::Root)?;
    let report = &lines(&workload)?[0];
    let result = |name: &str| report[name].as_i64().with_context(|| format!("no {name}: {report}"));
    let (accepted, refused, made) = (result("accepted")?, result("refused")?, result("made")?);
    ensure!(accepted == -i64::from(libc::EINVAL), "{report}");
    let accepts = of_socket(&output, report["inode"].as_u64().context("no inode")?);
    let accepts: Vec<_> = accepts.into_iter().filter(|event| key(event).0 == "socket_accept").collect();
    ensure!(accepts.len() == 1 && failure(accepts[0]) == Some("EINVAL"), "{accepts:#?}");
    let by_workload = |event: &&Value| key(event).0 == "socket_create" && event["process"]["pid"] == workload.pid;
    let creations: Vec<_> = output.documents.iter().filter(by_workload).collect();
    let failed: Vec<_> = creations.iter().filter(|event| failure(event).is_some()).collect();
    if made < 0 {
        ensure!(failed.is_empty(), "this kernel's io_uring makes no sockets: {failed:#?}");
        return Ok(());
    }
    ensure!(refused == -i64::from(libc::EPROTONOSUPPORT), "{report}");
    ensure!(failed.len() == 1 && failure(failed[0]) == Some("EPROTONOSUPPORT"), "{creations:#?}");
    let is_new = |event: &&&Value| event["system"]["audit"]["socket"]["type"] == "SOCK_DGRAM";
    let new: Vec<_> = creations.iter().filter(is_new).collect();
    ensure!(new.len() == 1 && new[0]["system"]["audit"]["socket"]["fd"].is_null(), "{creations:#?}");
    Ok(())
}

fn failure(event: &Value) -> Option<&str> {
    event["error"]["code"].as_str()
}

fn of_socket(output: &Output, inode: u64) -> Vec<&Value> {
    output.documents.iter().filter(|event| key(event).1 == inode).collect()
}

/// Descriptors that are duplicated, inherited by a child, open at the end of the process, or closed by an exec: each
/// socket has one close event, of the process that closed the last descriptor.
fn every_kind_of_close() -> Result<()> {
    let (output, workload) = run(&["calls-ends"], RunAs::Root)?;
    let reports = lines(&workload)?;
    ensure!(reports.len() == 4, "{reports:?}");
    for end in reports {
        let closes: Vec<_> = of_socket(&output, end["inode"].as_u64().context("no inode")?)
            .into_iter()
            .filter(|event| key(event).0 == "socket_close")
            .collect();
        ensure!(closes.len() == 1, "{end}: {closes:#?}");
        ensure!(closes[0]["process"]["pid"] == end["pid"], "{end}: {:#}", closes[0]);
    }
    Ok(())
}

fn a_thousand_short_connections() -> Result<()> {
    const COUNT: usize = 1000;
    let (output, workload) = run(&["short-connections", "127.0.0.1:7020", &COUNT.to_string()], RunAs::Root)?;
    let mut sockets: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for event in output.of_pid(workload.pid) {
        let (action, inode) = key(event);
        ensure!(event["event"]["outcome"] == "success", "{event:#}");
        sockets.entry(inode).or_default().push(action);
    }
    let of = |wanted: &[&str]| sockets.values().filter(|actions| **actions == wanted).count();
    let connected = of(&["socket_create", "socket_connect", "socket_close"]);
    let accepted = of(&["socket_accept", "socket_close"]);
    ensure!((connected, accepted) == (COUNT, COUNT), "{connected} connected, {accepted} accepted");
    ensure!(sockets.len() == 2 * COUNT + 1, "{} sockets", sockets.len()); // and the listener
    Ok(())
}

/// Sockets that are older than the monitor have no creation event. Their close event has their address.
fn preexisting_sockets() -> Result<()> {
    let path = "/tmp/socket-from-before";
    let _ = std::fs::remove_file(path);
    let mut holder = Process::start(&[PROGRAM, RUN, "hold", path])?;
    let inodes: Value = serde_json::from_str(&holder.first_line()?)?;
    let monitor = start_monitor(&[])?;
    // An event of a later process shows that the monitor has listed the old sockets.
    let later = Process::start(&[PROGRAM, RUN, "calls-netlink"])?.finish()?;
    monitor.wait_for("an event", |event| event["process"]["pid"] == later.pid)?;
    holder.signal(nix::sys::signal::Signal::SIGKILL)?;
    let pid = holder.pid;
    holder.finish()?;
    let output = monitor.stop()?;
    expect_no_losses(&output)?;
    let found = |name: &str| {
        let events = of_socket(&output, inodes[name].as_u64().unwrap_or_default());
        ensure!(events.len() == 1, "{name}: {events:#?}");
        let (event, socket) = (events[0], &events[0]["system"]["audit"]["socket"]);
        ensure!(event["event"]["action"] == "socket_close" && event["process"]["pid"] == pid, "{event:#}");
        ensure!(socket["existing"] == true, "{event:#}");
        Ok(event)
    };
    let (tcp, unix) = (found("tcp")?, found("unix")?);
    ensure!(tcp["source"]["port"] == 7010 && tcp["system"]["audit"]["socket"]["state_before"] == "LISTEN", "{tcp:#}");
    ensure!(unix["system"]["audit"]["socket"]["local_path"] == path, "{unix:#}");
    Ok(())
}

fn only_requested_calls_are_probed() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let probes = |args: &[&str]| {
        let monitor = Socktrail::start(args)?;
        let events = tracefs.kprobe_events()?;
        monitor.stop()?;
        Ok::<_, anyhow::Error>(events)
    };
    let flows = probes(&["flows"])?;
    // Checks the names of probes, because functions may be listed by address.
    ensure!(!flows.contains("_socket ") && !flows.contains("_call "), "{flows}");
    let connects = probes(&["events", "--only", "connect"])?;
    ensure!(connects.contains("/connect_socket ") && connects.contains("/socket_close "), "{connects}");
    for other in ["/create_", "/bind_", "/listen_", "/accept_", "/set_sock_opt_", "/tcp_ipv4_in "] {
        ensure!(!connects.contains(other), "{other} in {connects}");
    }
    Ok(())
}

fn conditions_select_events() -> Result<()> {
    let condition =
        r#"action == "bind" && (errno == "EADDRINUSE" || local.port in [7002]) && local.ip in "127.0.0.0/8""#;
    let monitor = start_monitor(&["--where", condition])?;
    let workload = Process::start(&[PROGRAM, RUN, "calls-tcp"])?.finish()?;
    ensure!(workload.status == 0, "{workload:?}");
    let output = monitor.stop()?;
    expect_no_losses(&output)?;
    let event = output.only_of_pid(workload.pid)?;
    ensure!(event["error"]["code"] == "EADDRINUSE", "{event:#}");

    let wrong = Process::start(&["socktrail", "events", "--where", "remot.port == 1"])?.finish()?;
    ensure!(wrong.status == 2 && wrong.stderr.contains("column 1: there is no field remot.port"), "{wrong:?}");
    Ok(())
}
