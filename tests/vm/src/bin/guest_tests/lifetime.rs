//! How the monitor starts, how it ends, and what is left of it then: nothing.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::actors::{ACT, PROGRAM};
use crate::helpers::document::is_between;
use crate::helpers::patience::until;
use crate::helpers::process::{Finished, Process};
use crate::helpers::socktrail::{Socktrail, Watched};
use crate::helpers::tracefs::Tracefs;
use crate::helpers::traffic::{Connection, converse, on_cpu};

tests![
    nothing_is_left_after_an_end,
    what_was_mounted_is_unmounted,
    the_next_start_sweeps_up_after_a_kill,
    what_a_dying_monitor_still_uses_is_removed_later,
    two_at_once_do_not_disturb_each_other,
    a_duration_ends_it_with_what_is_alive,
    a_count_ends_it,
    sigterm_flushes,
    a_reader_that_goes_away_is_a_success,
    a_cpu_that_comes_online_is_watched,
    a_cpu_that_goes_offline_loses_nothing,
    no_root,
    a_tracefs_path_that_does_not_exist,
    a_tracefs_path_that_is_another_file_system,
    too_few_open_files,
];

/// Exit statuses, as `--help` has them.
const PRIVILEGES: i32 = 4;
const TRACEFS: i32 = 5;
const LIMIT: i32 = 6;

fn nothing_is_left_after_an_end() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let watch = Socktrail::flows(&[])?;
    ensure!(!tracefs.kprobe_events()?.is_empty(), "a running monitor has probes");
    ended_well(&watch.stop()?)?;
    no_probes(&tracefs)
}

fn what_was_mounted_is_unmounted() -> Result<()> {
    let before = fs::read_to_string("/proc/mounts")?;
    ensure!(!before.contains("tracefs"), "tracefs is mounted already:\n{before}");
    ended_well(&Socktrail::flows(&[])?.stop()?)?;
    let after = fs::read_to_string("/proc/mounts")?;
    ensure!(before == after, "mounts before:\n{before}\nafter:\n{after}");
    no_probes(&Tracefs::mount()?)
}

fn the_next_start_sweeps_up_after_a_kill() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    for _ in 0..2 {
        Socktrail::flows(&[])?.kill()?;
        let left = tracefs.kprobe_events()?;
        ensure!(!left.is_empty(), "a killed monitor cannot have removed its probes");
        let watch = Socktrail::flows(&[])?;
        let now = tracefs.kprobe_events()?;
        let kept: Vec<_> = left.lines().filter(|probe| now.contains(probe)).collect();
        ensure!(kept.is_empty(), "still there beside the new ones: {kept:#?}");
        ended_well(&watch.stop()?)?;
        no_probes(&tracefs)?;
    }
    Ok(())
}

/// A probe that is switched on by other means stands for one that a killed monitor has not closed yet. Beside it a
/// monitor is killed while the next one starts, when it still looks alive.
fn what_a_dying_monitor_still_uses_is_removed_later() -> Result<()> {
    const GROUP: &str = "socktrail_4000000_1_0";
    let tracefs = Tracefs::mount()?;
    tracefs.append("kprobe_events", &format!("p:{GROUP}/a do_exit"))?;
    tracefs.append("kprobe_events", &format!("p:{GROUP}/b do_exit"))?;
    tracefs.write(&format!("events/{GROUP}/a/enable"), "1")?;
    let killed = Socktrail::flows(&[])?;
    let group_of_killed = format!("socktrail_{}_", killed.pid);
    let watch = Socktrail::flows(&[])?;
    let has = |group: &str| tracefs.kprobe_events().map(|events| events.contains(group));
    ensure!(has(GROUP)?, "a probe that is in use cannot be removed");
    killed.kill()?;
    ensure!(has(&group_of_killed)?, "a killed monitor cannot have removed its probes");
    until("the killed monitor's probes to be removed", || Ok(!has(&group_of_killed)?))?;
    tracefs.write(&format!("events/{GROUP}/a/enable"), "0")?;
    until("probes that were in use to be removed", || Ok(!has(GROUP)?))?;
    ended_well(&watch.stop()?)?;
    no_probes(&tracefs)
}

fn two_at_once_do_not_disturb_each_other() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let first = Socktrail::flows(&["--flow-termination-timeout", "500ms"])?;
    let second = Socktrail::flows(&["--flow-termination-timeout", "500ms"])?;
    let ends = converse()?;
    let seen = [wait_for_both_sides(&first, ends)?, wait_for_both_sides(&second, ends)?];
    ensure!(counts(&seen[0]) == counts(&seen[1]), "they do not agree: {seen:#?}");

    ended_well(&first.stop()?)?;
    wait_for_both_sides(&second, converse()?)?;
    let third = Socktrail::flows(&["--flow-termination-timeout", "500ms"])?;
    let ends = converse()?;
    wait_for_both_sides(&second, ends)?;
    wait_for_both_sides(&third, ends)?;
    third.kill()?;
    wait_for_both_sides(&second, converse()?)?;
    ended_well(&second.stop()?)?;

    // A live one removes only what was there before it, so the killed one's probes wait for the next start.
    ended_well(&Socktrail::flows(&[])?.stop()?)?;
    no_probes(&tracefs)
}

fn a_duration_ends_it_with_what_is_alive() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let watch = Socktrail::flows(&["--duration", "2s"])?;
    let ready = Instant::now();
    let connection = Connection::open()?;
    let watched = watch.finish()?;
    ended_well(&watched)?;
    let took = ready.elapsed();
    ensure!(took > Duration::from_millis(1500) && took < Duration::from_secs(6), "2 s took {took:?}");
    unfinished(&watched, &connection)?;
    no_probes(&tracefs)
}

fn sigterm_flushes() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let watch = Socktrail::flows(&[])?;
    let connection = Connection::open()?;
    let watched = watch.end(Signal::SIGTERM)?;
    ended_well(&watched)?;
    unfinished(&watched, &connection)?;
    no_probes(&tracefs)
}

/// Both sides of a connection that was alive at the end are there, and are not final.
fn unfinished(watched: &Watched, connection: &Connection) -> Result<()> {
    let documents = both_sides(&watched.documents, connection.ends)
        .with_context(|| format!("not both sides of {:?} in {:#?}", connection.ends, watched.documents))?;
    for document in documents {
        let is_unfinished = document["flow"]["final"] == false && document["event"]["reason"] == "shutdown";
        ensure!(is_unfinished && document["event"]["type"][1] == "info", "not said to be alive: {document:#}");
    }
    Ok(())
}

fn a_count_ends_it() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let watch = Socktrail::flows(&["--count", "1", "--flow-termination-timeout", "100ms"])?;
    converse()?; // two flows
    let watched = watch.finish()?;
    ended_well(&watched)?;
    ensure!(watched.documents.len() == 1, "one was asked for: {:#?}", watched.documents);
    no_probes(&tracefs)
}

/// `head` takes one line and goes; whether another flow comes then or not.
fn a_reader_that_goes_away_is_a_success() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let status = "/tmp/status-of-socktrail";
    fs::remove_file(status).ok();
    let script = format!("(socktrail flows --flow-termination-timeout 100ms; echo $? >{status}) | head -n 1");
    let shell = Process::start(&["sh", "-c", &script])?;
    until("probes", || Ok(tracefs.kprobe_events()?.contains("socket_free")))?;
    until("a line", || {
        converse()?;
        sleep(Duration::from_millis(200));
        Ok(Path::new(status).exists())
    })?;
    let shell = shell.finish()?;
    let line: Value = serde_json::from_str(&shell.stdout).with_context(|| format!("not one document: {shell:?}"))?;
    ensure!(line["event"]["action"] == "network_flow", "{line}");
    let status = fs::read_to_string(status)?;
    ensure!(status == "0\n", "socktrail ended with {status}: {shell:?}");
    no_probes(&tracefs)
}

fn a_cpu_that_comes_online_is_watched() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let cpu = Offline::take(1)?;
    let watch = Socktrail::start(&["-v", "flows", "--format", "ecs", "--flow-termination-timeout", "500ms"])?;
    ensure!(watch.log().contains("on 1 CPUs"), "one CPU is online:\n{}", watch.log());
    cpu.back()?;
    until("the new CPU to be noticed", || Ok(watch.log().contains("CPUs changed")))?;
    let ends = on_cpu(1, converse)?;
    for document in wait_for_both_sides(&watch, ends)? {
        ensure!(document["flow"]["complete"] == true, "its beginning was not seen: {document:#}");
    }
    ended_well(&watch.stop()?)?;
    no_probes(&tracefs)
}

/// What a CPU has seen just before it goes is still read; and it is watched again when it is back.
fn a_cpu_that_goes_offline_loses_nothing() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let watch = Socktrail::start(&["-v", "flows", "--format", "ecs", "--flow-termination-timeout", "500ms"])?;
    let ends = on_cpu(1, converse)?;
    let cpu = Offline::take(1)?;
    wait_for_both_sides(&watch, ends)?;
    wait_for_both_sides(&watch, on_cpu(0, converse)?)?;
    until("the lost CPU to be noticed", || Ok(watch.log().contains("CPUs changed")))?;
    cpu.back()?;
    until("the CPU's return to be noticed", || Ok(watch.log().matches("CPUs changed").count() == 2))?;
    wait_for_both_sides(&watch, on_cpu(1, converse)?)?;
    ended_well(&watch.stop()?)?;
    no_probes(&tracefs)
}

/// A CPU that was switched off; it is switched on again when this is dropped.
pub(crate) struct Offline(String);

impl Offline {
    pub(crate) fn take(cpu: usize) -> Result<Self> {
        let switch = format!("/sys/devices/system/cpu/cpu{cpu}/online");
        fs::write(&switch, "0").with_context(|| format!("write 0 to {switch}"))?;
        Ok(Self(switch))
    }

    pub(crate) fn back(&self) -> Result<()> {
        fs::write(&self.0, "1").with_context(|| format!("write 1 to {}", self.0))
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        self.back().ok();
    }
}

fn no_root() -> Result<()> {
    let refused = Process::start_as_user(&["socktrail", "flows"])?.finish()?;
    refusal(&refused, PRIVILEGES, &["tracefs", "not permitted", "run as root"])?;
    nothing_is_left()
}

fn a_tracefs_path_that_does_not_exist() -> Result<()> {
    let refused = Process::start(&["socktrail", "flows", "--tracefs-path", "/nonexistent"])?.finish()?;
    refusal(&refused, TRACEFS, &["/nonexistent is no tracefs", "No such file or directory", "/sys/kernel/tracing"])?;
    nothing_is_left()
}

fn a_tracefs_path_that_is_another_file_system() -> Result<()> {
    let refused = Process::start(&["socktrail", "flows", "--tracefs-path", "/proc"])?.finish()?;
    refusal(&refused, TRACEFS, &["/proc is no tracefs", "another file system", "/sys/kernel/tracing"])?;
    nothing_is_left()
}

/// Without the capability to raise a limit; at each number of files something else is the first to fail.
fn too_few_open_files() -> Result<()> {
    for files in ["6", "8", "10", "16", "32"] {
        let args = [PROGRAM, ACT, "with-few-files", files, "socktrail", "flows"];
        let refused = Process::start(&args)?.finish()?;
        refusal(&refused, LIMIT, &[files, "ulimit -n", "LimitNOFILE="])
            .with_context(|| format!("with {files} files"))?;
    }
    nothing_is_left()
}

/// Fails unless a start was refused with this status and all of these words: what, why, and what to do.
pub(crate) fn refusal(refused: &Finished, status: i32, words: &[&str]) -> Result<()> {
    ensure!(refused.status == status, "status {} instead of {status}: {refused:?}", refused.status);
    ensure!(refused.stdout.is_empty(), "something on standard output: {refused:?}");
    for word in words {
        ensure!(refused.stderr.contains(word), "`{word}` is missing in:\n{}", refused.stderr);
    }
    ensure!(!refused.stderr.contains("panicked"), "a panic:\n{}", refused.stderr);
    Ok(())
}

/// Fails if a monitor that did not start left anything behind.
fn nothing_is_left() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    ensure!(!mounts.contains("tracefs"), "tracefs is still mounted:\n{mounts}");
    no_probes(&Tracefs::mount()?)
}

pub(crate) fn no_probes(tracefs: &Tracefs) -> Result<()> {
    let left = tracefs.kprobe_events()?;
    ensure!(left.is_empty(), "probes are left:\n{left}");
    Ok(())
}

pub(crate) fn ended_well(watched: &Watched) -> Result<()> {
    ensure!(watched.status.success(), "socktrail ended with {}:\n{}", watched.status, watched.log);
    Ok(())
}

/// The documents of the client's and of the server's side of a conversation.
pub(crate) fn both_sides(documents: &[Value], (client, server): (SocketAddr, SocketAddr)) -> Option<[Value; 2]> {
    let of = |direction: &str| {
        let is_it =
            |document: &&Value| is_between(document, client, server) && document["network"]["direction"] == direction;
        documents.iter().find(is_it).cloned()
    };
    Some([of("egress")?, of("ingress")?])
}

fn wait_for_both_sides(watch: &Socktrail, ends: (SocketAddr, SocketAddr)) -> Result<[Value; 2]> {
    let mut found = None;
    until(&format!("both sides of {ends:?}"), || {
        found = both_sides(&watch.documents()?, ends);
        Ok(found.is_some())
    })?;
    let Some(found) = found else { bail!("they were there") };
    Ok(found)
}

/// What two monitors must agree on.
fn counts(documents: &[Value; 2]) -> Vec<&Value> {
    documents.iter().flat_map(|document| [&document["source"], &document["destination"]]).collect()
}
