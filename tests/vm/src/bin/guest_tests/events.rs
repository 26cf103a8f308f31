//! Socket events: every call that a program made, with what it did and what it got back.
//!
//! The actors keep a diary of what their calls did, as the calls themselves told them; each of them must be an event, in
//! the same order, and there must be no others.

mod forms;

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::libc;
use serde_json::Value;

use crate::actors::{ACT, EXECUTABLE_32, PROGRAM, PROGRAM_32};
use crate::helpers::process::{Finished, Process};
use crate::helpers::socktrail::{Socktrail, Watched};
use crate::helpers::tracefs::Tracefs;

pub(crate) use forms::{forms, thread_names};

/// The tests of this subject; those of 32-bit programs where there is one.
pub(crate) fn tests() -> Vec<libtest_mimic::Trial> {
    let is_there = Path::new(EXECUTABLE_32).exists();
    every_test().into_iter().filter(|trial| is_there || !trial.name().contains("32_bit")).collect()
}

tests![every_test:
    tcp_calls,
    refused_calls,
    ipv6_calls,
    unix_calls,
    other_families,
    io_uring_calls,
    io_uring_calls_that_fail,
    every_way_to_end,
    a_thousand_short_connections,
    sockets_from_before,
    only_what_is_asked_for_is_probed,
    conditions_choose,
    forms,
    thread_names,
    calls_of_32_bit_programs,
    io_uring_calls_of_32_bit_programs,
    io_uring_calls_of_32_bit_programs_that_fail,
];

/// An action, and the socket that it was done to.
fn key(document: &Value) -> (String, u64) {
    let action = document["event"]["action"].as_str().unwrap_or_default();
    (action.to_owned(), document["system"]["audit"]["socket"]["inode"].as_u64().unwrap_or_default())
}

fn ended_well(watched: &Watched) -> Result<()> {
    ensure!(watched.status.success(), "{}\n{}", watched.status, watched.log);
    let stats = watched.log.lines().find_map(|line| line.split_once("stats ")).context("no statistics")?.1;
    let stats: Value = serde_json::from_str(stats)?;
    for loss in ["samples_lost", "samples_unreadable", "flows_dropped", "probe_misses", "event_sockets_refused"] {
        ensure!(stats[loss] == 0, "{loss} is {} in {stats}", stats[loss]);
    }
    Ok(())
}

/// Starts `socktrail events` writing ECS documents.
fn watch(more: &[&str]) -> Result<Socktrail> {
    Socktrail::start(&[&["events", "--format", "ecs", "--stats"], more].concat())
}

/// Plays a part under the eyes of socktrail; what came out, and what the part wrote.
fn play(part: &[&str], as_user: bool) -> Result<(Watched, Finished)> {
    play_by(PROGRAM, part, as_user)
}

fn play_by(program: &str, part: &[&str], as_user: bool) -> Result<(Watched, Finished)> {
    let watch = watch(&[])?;
    let args = [&[program, ACT], part].concat();
    let actor = if as_user { Process::start_as_user(&args)? } else { Process::start(&args)? };
    let finished = actor.finish()?;
    ensure!(finished.status == 0, "{finished:?}");
    let watched = watch.stop()?;
    ended_well(&watched)?;
    Ok((watched, finished))
}

fn lines(finished: &Finished) -> Result<Vec<Value>> {
    finished.stdout.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Fails unless the events of the actor are those of its diary, and no others but those of a kind that comes with its end.
fn matches_diary(part: &str, as_user: bool) -> Result<()> {
    matches_diary_of(PROGRAM, part, as_user)
}

fn matches_diary_of(program: &str, part: &str, as_user: bool) -> Result<()> {
    let (watched, actor) = play_by(program, &[part], as_user)?;
    let diary = lines(&actor)?;
    let named: BTreeSet<_> = diary.iter().map(inode).collect();
    // The socket by which the standard library hears of a failed exec is closed by a successful one.
    let is_own = |event: &&Value| event["event"]["action"] != "socket_close" || named.contains(&key(event).1);
    let events: Vec<_> = watched.of_pid(actor.pid).into_iter().filter(is_own).collect();
    let tell = || format!("events {:#?}", events.iter().map(|event| key(event)).collect::<Vec<_>>());
    ensure!(!diary.is_empty() && events.len() >= diary.len(), "{} of {}; {}", events.len(), diary.len(), tell());
    for (entry, event) in diary.iter().zip(&events) {
        for (path, value) in entry.as_object().context("an entry is an object")? {
            let found = event.pointer(path).unwrap_or(&Value::Null);
            ensure!(found == value, "{path} is {found}, not {value}\nin {event:#}\nfor {entry:#}\n{}", tell());
        }
    }
    let closed: BTreeSet<_> =
        diary.iter().filter(|entry| entry["/event/action"] == "socket_close").map(inode).collect();
    for event in &events[diary.len()..] {
        let (action, inode) = key(event);
        ensure!(action == "socket_close" && !closed.contains(&inode), "one too many: {event:#}");
    }
    Ok(())
}

fn inode(entry: &Value) -> u64 {
    entry["/system/audit/socket/inode"].as_u64().unwrap_or_default()
}

fn tcp_calls() -> Result<()> {
    matches_diary("calls-tcp", false)
}

fn refused_calls() -> Result<()> {
    matches_diary("calls-refused", true)
}

fn ipv6_calls() -> Result<()> {
    matches_diary("calls-ipv6", false)
}

fn unix_calls() -> Result<()> {
    matches_diary("calls-unix", false)
}

fn other_families() -> Result<()> {
    matches_diary("calls-netlink", false)
}

/// They come by another system call (`socketcall(2)`), and find the same functions.
fn calls_of_32_bit_programs() -> Result<()> {
    for (part, as_user) in [("calls-tcp", false), ("calls-refused", true), ("calls-ipv6", false), ("calls-unix", false)]
    {
        matches_diary_of(PROGRAM_32, part, as_user).with_context(|| part.to_owned())?;
    }
    Ok(())
}

fn io_uring_calls() -> Result<()> {
    io_uring_calls_of(PROGRAM)
}

fn io_uring_calls_of_32_bit_programs() -> Result<()> {
    io_uring_calls_of(PROGRAM_32)
}

/// The kernel tries more than once; the last try ends as the ring said, and no try has a descriptor.
fn io_uring_calls_of(program: &str) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let there = listener.local_addr()?;
    let (watched, actor) = play_by(program, &["calls-io-uring", &there.to_string()], false)?;
    let told = &lines(&actor)?[0];
    ensure!(told["result"] == 0, "{told}");
    let tries: Vec<_> = of_socket(&watched, told["inode"].as_u64().context("an inode")?);
    let (last, connects) = (tries.iter().rfind(|event| key(event).0 == "socket_connect"), &tries);
    let last = last.with_context(|| format!("no connect among {connects:#?}"))?;
    ensure!(last["event"]["outcome"] == "success", "{last:#}");
    for event in connects.iter().filter(|event| key(event).0 == "socket_connect") {
        ensure!(event["system"]["audit"]["socket"]["fd"].is_null(), "{event:#}");
        ensure!(event["destination"]["port"] == there.port(), "{event:#}");
        let local = format!("{}:{}", event["source"]["ip"].as_str().unwrap_or("-"), event["source"]["port"]);
        ensure!(told["local"] == local, "{} is not {local}", told["local"]);
    }
    let closes = connects.iter().filter(|event| key(event).0 == "socket_close").count();
    ensure!(closes == 1, "{closes} closes");
    Ok(())
}

fn io_uring_calls_that_fail() -> Result<()> {
    failing_io_uring_calls_of(PROGRAM)
}

fn io_uring_calls_of_32_bit_programs_that_fail() -> Result<()> {
    failing_io_uring_calls_of(PROGRAM_32)
}

/// Each is told with the errno that the ring gave; a kernel whose io_uring makes no sockets tells of none.
fn failing_io_uring_calls_of(program: &str) -> Result<()> {
    let (watched, actor) = play_by(program, &["calls-io-uring-failing"], false)?;
    let told = &lines(&actor)?[0];
    let result = |name: &str| told[name].as_i64().with_context(|| format!("no {name}: {told}"));
    let (accepted, refused, made) = (result("accepted")?, result("refused")?, result("made")?);
    ensure!(accepted == -i64::from(libc::EINVAL), "{told}");
    let accepts = of_socket(&watched, told["inode"].as_u64().context("an inode")?);
    let accepts: Vec<_> = accepts.into_iter().filter(|event| key(event).0 == "socket_accept").collect();
    ensure!(accepts.len() == 1 && failure(accepts[0]) == Some("EINVAL"), "{accepts:#?}");
    let by_actor = |event: &&Value| key(event).0 == "socket_create" && event["process"]["pid"] == actor.pid;
    let creations: Vec<_> = watched.documents.iter().filter(by_actor).collect();
    let failed: Vec<_> = creations.iter().filter(|event| failure(event).is_some()).collect();
    if made < 0 {
        ensure!(failed.is_empty(), "this kernel's io_uring makes no sockets: {failed:#?}");
        return Ok(());
    }
    ensure!(refused == -i64::from(libc::EPROTONOSUPPORT), "{told}");
    ensure!(failed.len() == 1 && failure(failed[0]) == Some("EPROTONOSUPPORT"), "{creations:#?}");
    let is_new = |event: &&&Value| event["system"]["audit"]["socket"]["type"] == "SOCK_DGRAM";
    let new: Vec<_> = creations.iter().filter(is_new).collect();
    ensure!(new.len() == 1 && new[0]["system"]["audit"]["socket"]["fd"].is_null(), "{creations:#?}");
    Ok(())
}

fn failure(event: &Value) -> Option<&str> {
    event["error"]["code"].as_str()
}

fn of_socket(watched: &Watched, inode: u64) -> Vec<&Value> {
    watched.documents.iter().filter(|event| key(event).1 == inode).collect()
}

/// A descriptor that was copied, shared with a child, left to the end of the process, closed by an exec: each socket is
/// closed once, by whoever gave up the last.
fn every_way_to_end() -> Result<()> {
    let (watched, actor) = play(&["calls-ends"], false)?;
    let told = lines(&actor)?;
    ensure!(told.len() == 4, "{told:?}");
    for end in told {
        let closes: Vec<_> = of_socket(&watched, end["inode"].as_u64().context("an inode")?)
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
    let (watched, actor) = play(&["short-connections", "127.0.0.1:7020", &COUNT.to_string()], false)?;
    let mut sockets: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for event in watched.of_pid(actor.pid) {
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

/// What was there before is not announced; its close is told, with its name.
fn sockets_from_before() -> Result<()> {
    let path = "/tmp/socket-from-before";
    let _ = std::fs::remove_file(path);
    let mut holder = Process::start(&[PROGRAM, ACT, "hold", path])?;
    let inodes: Value = serde_json::from_str(&holder.first_line()?)?;
    let watch = watch(&[])?;
    // Whoever's calls are told is later than the look at what was there.
    let later = Process::start(&[PROGRAM, ACT, "calls-netlink"])?.finish()?;
    watch.wait_for("an event", |event| event["process"]["pid"] == later.pid)?;
    holder.signal(nix::sys::signal::Signal::SIGKILL)?;
    let pid = holder.pid;
    holder.finish()?;
    let watched = watch.stop()?;
    ended_well(&watched)?;
    let found = |name: &str| {
        let events = of_socket(&watched, inodes[name].as_u64().unwrap_or_default());
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

fn only_what_is_asked_for_is_probed() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let probes = |args: &[&str]| {
        let watch = Socktrail::start(args)?;
        let events = tracefs.kprobe_events()?;
        watch.stop()?;
        Ok::<_, anyhow::Error>(events)
    };
    let flows = probes(&["flows"])?;
    // By the names of the probes, since functions may be listed by their addresses.
    ensure!(!flows.contains("_socket ") && !flows.contains("_call "), "{flows}");
    let connects = probes(&["events", "--only", "connect"])?;
    ensure!(connects.contains("/connect_socket ") && connects.contains("/socket_close "), "{connects}");
    for other in ["/create_", "/bind_", "/listen_", "/accept_", "/set_sock_opt_", "/tcp_ipv4_in "] {
        ensure!(!connects.contains(other), "{other} in {connects}");
    }
    Ok(())
}

fn conditions_choose() -> Result<()> {
    let condition =
        r#"action == "bind" && (errno == "EADDRINUSE" || local.port in [7002]) && local.ip in "127.0.0.0/8""#;
    let watch = watch(&["--where", condition])?;
    let actor = Process::start(&[PROGRAM, ACT, "calls-tcp"])?.finish()?;
    ensure!(actor.status == 0, "{actor:?}");
    let watched = watch.stop()?;
    ended_well(&watched)?;
    let event = watched.only_of_pid(actor.pid)?;
    ensure!(event["error"]["code"] == "EADDRINUSE", "{event:#}");

    let wrong = Process::start(&["socktrail", "events", "--where", "remot.port == 1"])?.finish()?;
    ensure!(wrong.status == 2 && wrong.stderr.contains("column 1: there is no field remot.port"), "{wrong:?}");
    Ok(())
}
