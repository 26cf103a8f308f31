//! A monitor's start and end. It leaves nothing behind.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::helpers::document::is_between;
use crate::helpers::process::{Finished, Process};
use crate::helpers::socktrail::{Output, Socktrail};
use crate::helpers::tracefs::Tracefs;
use crate::helpers::traffic::{Connection, converse, on_cpu};
use crate::helpers::wait::wait_until;
use crate::workloads::{PROGRAM, RUN};

tests![
    nothing_is_left_after_an_end,
    tracefs_is_unmounted,
    the_next_start_removes_probes_after_a_kill,
    probes_in_use_are_removed_later,
    concurrent_monitors_do_not_disturb_each_other,
    a_duration_ends_it_and_reports_live_flows,
    a_count_ends_it,
    sigterm_flushes,
    a_closed_pipe_is_a_success,
    a_cpu_that_comes_online_is_monitored,
    a_cpu_that_goes_offline_loses_nothing,
    without_root,
    a_tracefs_path_that_does_not_exist,
    a_tracefs_path_that_is_another_file_system,
    too_few_open_files,
];

/// Exit statuses, as `--help` has them.
pub(crate) const KERNEL: i32 = 3;
pub(crate) const PRIVILEGES: i32 = 4;
const TRACEFS: i32 = 5;
pub(crate) const LIMIT: i32 = 6;

fn nothing_is_left_after_an_end() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let monitor = Socktrail::flows(&[])?;
    ensure!(!tracefs.kprobe_events()?.is_empty(), "a running monitor has probes");
    expect_success(&monitor.stop()?)?;
    expect_no_probes(&tracefs)
}

fn tracefs_is_unmounted() -> Result<()> {
    let before = fs::read_to_string("/proc/mounts")?;
    ensure!(!before.contains("tracefs"), "tracefs is mounted already:\n{before}");
    expect_success(&Socktrail::flows(&[])?.stop()?)?;
    let after = fs::read_to_string("/proc/mounts")?;
    ensure!(before == after, "mounts before:\n{before}\nafter:\n{after}");
    expect_no_probes(&Tracefs::mount()?)
}

fn the_next_start_removes_probes_after_a_kill() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    for _ in 0..2 {
        Socktrail::flows(&[])?.kill()?;
        let left = tracefs.kprobe_events()?;
        ensure!(!left.is_empty(), "a killed monitor cannot have removed its probes");
        let monitor = Socktrail::flows(&[])?;
        let now = tracefs.kprobe_events()?;
        let kept: Vec<_> = left.lines().filter(|probe| now.contains(probe)).collect();
        ensure!(kept.is_empty(), "still there beside the new ones: {kept:#?}");
        expect_success(&monitor.stop()?)?;
        expect_no_probes(&tracefs)?;
    }
    Ok(())
}

/// Two kinds of probes cannot be removed at the start. Those of a killed monitor are in use until the kernel has closed its
/// perf events; a probe that is enabled through tracefs stands for them. Those of another monitor are still needed, until it
/// is killed.
fn probes_in_use_are_removed_later() -> Result<()> {
    const GROUP: &str = "socktrail_4000000_1_0";
    let tracefs = Tracefs::mount()?;
    tracefs.append("kprobe_events", &format!("p:{GROUP}/a do_exit"))?;
    tracefs.append("kprobe_events", &format!("p:{GROUP}/b do_exit"))?;
    tracefs.write(&format!("events/{GROUP}/a/enable"), "1")?;
    let killed = Socktrail::flows(&[])?;
    let group_of_killed = format!("socktrail_{}_", killed.pid);
    let monitor = Socktrail::flows(&[])?;
    let has = |group: &str| tracefs.kprobe_events().map(|events| events.contains(group));
    ensure!(has(GROUP)?, "a probe that is in use cannot be removed");
    killed.kill()?;
    ensure!(has(&group_of_killed)?, "a killed monitor cannot have removed its probes");
    wait_until("the killed monitor's probes to be removed", || Ok(!has(&group_of_killed)?))?;
    tracefs.write(&format!("events/{GROUP}/a/enable"), "0")?;
    wait_until("probes that were in use to be removed", || Ok(!has(GROUP)?))?;
    expect_success(&monitor.stop()?)?;
    expect_no_probes(&tracefs)
}

fn concurrent_monitors_do_not_disturb_each_other() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let first = Socktrail::flows(&["--flow-termination-timeout", "500ms"])?;
    let second = Socktrail::flows(&["--flow-termination-timeout", "500ms"])?;
    let ends = converse()?;
    let seen = [wait_for_both_sides(&first, ends)?, wait_for_both_sides(&second, ends)?];
    ensure!(counts(&seen[0]) == counts(&seen[1]), "the monitors do not agree: {seen:#?}");

    expect_success(&first.stop()?)?;
    wait_for_both_sides(&second, converse()?)?;
    let third = Socktrail::flows(&["--flow-termination-timeout", "500ms"])?;
    let ends = converse()?;
    wait_for_both_sides(&second, ends)?;
    wait_for_both_sides(&third, ends)?;
    third.kill()?;
    wait_for_both_sides(&second, converse()?)?;
    expect_success(&second.stop()?)?;

    // A monitor removes only probes that are older than itself, so those of the killed one remain until the next start.
    expect_success(&Socktrail::flows(&[])?.stop()?)?;
    expect_no_probes(&tracefs)
}

fn a_duration_ends_it_and_reports_live_flows() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let monitor = Socktrail::flows(&["--duration", "2s"])?;
    let ready = Instant::now();
    let connection = Connection::open()?;
    let output = monitor.finish()?;
    expect_success(&output)?;
    let took = ready.elapsed();
    ensure!(took > Duration::from_millis(1500) && took < Duration::from_secs(6), "2 s took {took:?}");
    expect_live(&output, &connection)?;
    expect_no_probes(&tracefs)
}

fn sigterm_flushes() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let monitor = Socktrail::flows(&[])?;
    let connection = Connection::open()?;
    let output = monitor.end(Signal::SIGTERM)?;
    expect_success(&output)?;
    expect_live(&output, &connection)?;
    expect_no_probes(&tracefs)
}

/// Fails unless the flows of both sides of a connection were reported as live at the monitor's end.
fn expect_live(output: &Output, connection: &Connection) -> Result<()> {
    let documents = both_sides(&output.documents, connection.ends)
        .with_context(|| format!("not both sides of {:?} in {:#?}", connection.ends, output.documents))?;
    for document in documents {
        let is_live = document["flow"]["final"] == false && document["event"]["reason"] == "shutdown";
        ensure!(is_live && document["event"]["type"][1] == "info", "not reported as live: {document:#}");
    }
    Ok(())
}

fn a_count_ends_it() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let monitor = Socktrail::flows(&["--count", "1", "--flow-termination-timeout", "100ms"])?;
    converse()?; // two flows
    let output = monitor.finish()?;
    expect_success(&output)?;
    ensure!(output.documents.len() == 1, "one was asked for: {:#?}", output.documents);
    expect_no_probes(&tracefs)
}

/// `head` reads one line and ends. Then socktrail ends, with success.
fn a_closed_pipe_is_a_success() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let status = "/tmp/status-of-socktrail";
    fs::remove_file(status).ok();
    let script = format!("(socktrail flows --flow-termination-timeout 100ms; echo $? >{status}) | head -n 1");
    let shell = Process::start(&["sh", "-c", &script])?;
    wait_until("probes", || Ok(tracefs.kprobe_events()?.contains("socket_free")))?;
    wait_until("a line", || {
        converse()?;
        sleep(Duration::from_millis(200));
        Ok(Path::new(status).exists())
    })?;
    let shell = shell.finish()?;
    let line: Value = serde_json::from_str(&shell.stdout).with_context(|| format!("not one document: {shell:?}"))?;
    ensure!(line["event"]["action"] == "network_flow", "{line}");
    let status = fs::read_to_string(status)?;
    ensure!(status == "0\n", "socktrail ended with {status}: {shell:?}");
    expect_no_probes(&tracefs)
}

fn a_cpu_that_comes_online_is_monitored() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let cpu = OfflineCpu::new(1)?;
    let monitor = Socktrail::start(&["-v", "flows", "--format", "ecs", "--flow-termination-timeout", "500ms"])?;
    ensure!(monitor.log().contains("on 1 CPUs"), "not one CPU is monitored:\n{}", monitor.log());
    cpu.bring_online()?;
    wait_until("the new CPU to be noticed", || Ok(monitor.log().contains("CPUs changed")))?;
    let ends = on_cpu(1, converse)?;
    for document in wait_for_both_sides(&monitor, ends)? {
        ensure!(document["flow"]["complete"] == true, "its beginning was not seen: {document:#}");
    }
    expect_success(&monitor.stop()?)?;
    expect_no_probes(&tracefs)
}

/// Samples of a CPU that goes offline are still read. When it is back, it is monitored again.
fn a_cpu_that_goes_offline_loses_nothing() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let monitor = Socktrail::start(&["-v", "flows", "--format", "ecs", "--flow-termination-timeout", "500ms"])?;
    let ends = on_cpu(1, converse)?;
    let cpu = OfflineCpu::new(1)?;
    wait_for_both_sides(&monitor, ends)?;
    wait_for_both_sides(&monitor, on_cpu(0, converse)?)?;
    wait_until("the lost CPU to be noticed", || Ok(monitor.log().contains("CPUs changed")))?;
    cpu.bring_online()?;
    wait_until("the CPU's return to be noticed", || Ok(monitor.log().matches("CPUs changed").count() == 2))?;
    wait_for_both_sides(&monitor, on_cpu(1, converse)?)?;
    expect_success(&monitor.stop()?)?;
    expect_no_probes(&tracefs)
}

/// Takes a CPU offline; it comes back online on drop.
pub(crate) struct OfflineCpu(String);

impl OfflineCpu {
    pub(crate) fn new(cpu: usize) -> Result<Self> {
        let switch = format!("/sys/devices/system/cpu/cpu{cpu}/online");
        fs::write(&switch, "0").with_context(|| format!("write 0 to {switch}"))?;
        Ok(Self(switch))
    }

    pub(crate) fn bring_online(&self) -> Result<()> {
        fs::write(&self.0, "1").with_context(|| format!("write 1 to {}", self.0))
    }
}

impl Drop for OfflineCpu {
    fn drop(&mut self) {
        self.bring_online().ok();
    }
}

fn without_root() -> Result<()> {
    let refused = Process::start_as_user(&["socktrail", "flows"])?.finish()?;
    expect_refusal(&refused, PRIVILEGES, &["tracefs", "not permitted", "run as root"])?;
    expect_nothing_left()
}

fn a_tracefs_path_that_does_not_exist() -> Result<()> {
    let refused = Process::start(&["socktrail", "flows", "--tracefs-path", "/nonexistent"])?.finish()?;
    expect_refusal(
        &refused,
        TRACEFS,
        &["/nonexistent is not a tracefs", "No such file or directory", "/sys/kernel/tracing"],
    )?;
    expect_nothing_left()
}

fn a_tracefs_path_that_is_another_file_system() -> Result<()> {
    let refused = Process::start(&["socktrail", "flows", "--tracefs-path", "/proc"])?.finish()?;
    expect_refusal(&refused, TRACEFS, &["/proc is not a tracefs", "another file system", "/sys/kernel/tracing"])?;
    expect_nothing_left()
}

/// socktrail lacks the capability to raise its limit. With each number of files, another call is the first to fail.
fn too_few_open_files() -> Result<()> {
    for files in ["6", "8", "10", "16", "32"] {
        let args = [PROGRAM, RUN, "with-few-files", files, "socktrail", "flows"];
        let refused = Process::start(&args)?.finish()?;
        expect_refusal(&refused, LIMIT, &[files, "ulimit -n", "LimitNOFILE="])
            .with_context(|| format!("with {files} files"))?;
    }
    expect_nothing_left()
}

/// Fails unless a start failed with this exit status, and a message that contains all of these words.
pub(crate) fn expect_refusal(refused: &Finished, status: i32, words: &[&str]) -> Result<()> {
    ensure!(refused.status == status, "status {} instead of {status}: {refused:?}", refused.status);
    ensure!(refused.stdout.is_empty(), "standard output is not empty: {refused:?}");
    for word in words {
        ensure!(refused.stderr.contains(word), "`{word}` is missing in:\n{}", refused.stderr);
    }
    ensure!(!refused.stderr.contains("panicked"), "a panic:\n{}", refused.stderr);
    Ok(())
}

/// Fails if tracefs is mounted or probes exist.
fn expect_nothing_left() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    ensure!(!mounts.contains("tracefs"), "tracefs is still mounted:\n{mounts}");
    expect_no_probes(&Tracefs::mount()?)
}

/// Fails if there are probes of any monitor.
pub(crate) fn expect_no_probes(tracefs: &Tracefs) -> Result<()> {
    let left = tracefs.kprobe_events()?;
    ensure!(left.is_empty(), "probes are left:\n{left}");
    Ok(())
}

/// Fails unless a monitor has ended with success.
pub(crate) fn expect_success(output: &Output) -> Result<()> {
    ensure!(output.status.success(), "socktrail ended with {}:\n{}", output.status, output.log);
    Ok(())
}

/// The documents of the client's and the server's side of a connection.
pub(crate) fn both_sides(documents: &[Value], (client, server): (SocketAddr, SocketAddr)) -> Option<[Value; 2]> {
    let of = |direction: &str| {
        let is_it =
            |document: &&Value| is_between(document, client, server) && document["network"]["direction"] == direction;
        documents.iter().find(is_it).cloned()
    };
    Some([of("egress")?, of("ingress")?])
}

fn wait_for_both_sides(monitor: &Socktrail, ends: (SocketAddr, SocketAddr)) -> Result<[Value; 2]> {
    let mut found = None;
    wait_until(&format!("both sides of {ends:?}"), || {
        found = both_sides(&monitor.documents()?, ends);
        Ok(found.is_some())
    })?;
    found.context("the documents were not found")
}

/// The fields that two monitors must agree on.
fn counts(documents: &[Value; 2]) -> Vec<&Value> {
    documents.iter().flat_map(|document| [&document["source"], &document["destination"]]).collect()
}
