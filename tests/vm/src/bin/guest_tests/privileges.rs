//! What the agent may still do once it watches, as the kernel tells; and that this is enough.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::helpers::patience::until;
use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::tracefs::Tracefs;
use crate::helpers::traffic::{converse, on_cpu};
use crate::lifetime::{Offline, both_sides, ended_well, no_probes};

tests![
    an_agent_keeps_three_capabilities_and_they_are_enough,
    a_strict_kernel_takes_another_capability,
    an_agent_can_be_told_to_keep_everything,
];

/// Of `include/uapi/linux/capability.h`.
const DAC_READ_SEARCH: u64 = 1 << 2;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;
const PERFMON: u64 = 1 << 38;

const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";
const FOLDER: &str = "/tmp/agent";
const PORT: u16 = 8123;

fn an_agent_keeps_three_capabilities_and_they_are_enough() -> Result<()> {
    // Linux 5.8 brought CAP_PERFMON.
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap")?.trim().parse()?;
    let perf = if last < PERFMON.trailing_zeros() { SYS_ADMIN } else { PERFMON };
    let before = fs::read_to_string(PARANOID)?;
    fs::write(PARANOID, "2")?;
    let result = works_with(DAC_READ_SEARCH | SYS_PTRACE | perf);
    fs::write(PARANOID, before)?;
    result
}

/// Debian's kernels know a level 3, at which `CAP_PERFMON` is not enough; it is their default.
fn a_strict_kernel_takes_another_capability() -> Result<()> {
    let level = fs::read_to_string(PARANOID)?;
    ensure!(level.trim() == "3", "perf_event_paranoid is {level}");
    works_with(DAC_READ_SEARCH | SYS_PTRACE | SYS_ADMIN)
}

/// An agent with just these does all that it has to.
fn works_with(capabilities: u64) -> Result<()> {
    fs::remove_dir_all(FOLDER).ok();
    let tracefs = Tracefs::mount()?;
    fs::create_dir_all(FOLDER)?;
    let config = configuration("")?;
    // Another user's process that is there before: its program is known from /proc alone.
    let _server = Process::start_as_user(&["httpd", "-f", "-p", &PORT.to_string(), "-h", "/tmp"])?;
    let cpu = Offline::take(1)?;
    let agent = Socktrail::start(&["-v", "agent", "--config", &config])?;
    let threads = threads_of(agent.pid)?;
    ensure!(threads.len() >= 4, "monitor and outputs have threads: {threads:?}");
    for thread in &threads {
        ensure!(
            thread.effective == capabilities && thread.permitted == thread.effective,
            "{thread:x?}\n{}",
            agent.log()
        );
        ensure!(thread.no_new_privs == 1 && thread.seccomp == 2, "{thread:x?}\n{}", agent.log());
    }
    says_what_it_keeps(agent.pid)?;

    let ends = converse()?;
    wait_for(ends)?;
    until("a flow of a process that was there before", || {
        let _ = Process::start(&["wget", "-q", "-O", "/dev/null", &format!("http://127.0.0.1:{PORT}/")])?.finish()?;
        let documents = documents()?;
        Ok(documents.iter().any(|document| {
            let program = document["process"]["executable"].as_str().unwrap_or_default();
            document["source"]["port"] != PORT
                && document["destination"]["port"] == PORT
                && document["network"]["direction"] == "ingress"
                && program.ends_with("/busybox")
        }))
    })?;

    cpu.back()?;
    until("the new CPU to be noticed", || Ok(agent.log().contains("CPUs changed")))?;
    let ends = on_cpu(1, converse)?;
    for document in wait_for(ends)? {
        ensure!(document["flow"]["complete"] == true, "its beginning was not seen: {document:#}");
    }

    reload(&agent, "document.direction: inbound\n", "was read again")?;
    let ends = converse()?;
    let directions = || {
        Ok(documents()?.iter().any(|document| {
            document["network"]["direction"] == "inbound" && document["source"]["port"] == ends.0.port()
        }))
    };
    until("a document by the new configuration", directions)?;
    if has_landlock()? {
        fs::create_dir_all("/tmp/elsewhere")?;
        reload_file(&agent, "/tmp/elsewhere/flows.json", "takes a restart")?;
        ensure!(!Path::new("/tmp/elsewhere/flows.json").exists(), "Landlock does not hold:\n{}", agent.log());
        let ends = converse()?;
        wait_for_port(ends.0)?;
    }

    ended_well(&agent.end(Signal::SIGTERM)?)?;
    no_probes(&tracefs)
}

fn an_agent_can_be_told_to_keep_everything() -> Result<()> {
    fs::create_dir_all(FOLDER)?;
    let config = configuration("agent.harden: false\n")?;
    let agent = Socktrail::start(&["-v", "agent", "--config", &config])?;
    let ours = Thread::of(&fs::read_to_string("/proc/thread-self/status")?)?;
    for thread in threads_of(agent.pid)? {
        ensure!(thread == ours, "{thread:x?} instead of {ours:x?}");
    }
    ended_well(&agent.end(Signal::SIGTERM)?)
}

/// Doctor sees the same.
fn says_what_it_keeps(pid: u32) -> Result<()> {
    let doctor = Process::start(&["socktrail", "doctor"])?.finish()?;
    let line = format!("process {pid} keeps CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE");
    let told = doctor.stdout.lines().find(|line_of| line_of.contains(&line)).context("no word of the agent")?;
    ensure!(told.contains("system calls filtered; no new privileges"), "{told}");
    ensure!(doctor.stdout.contains("confinement"), "{}", doctor.stdout);
    Ok(())
}

/// A thread's rights.
#[derive(Debug, PartialEq, Eq)]
struct Thread {
    effective: u64,
    permitted: u64,
    no_new_privs: u64,
    seccomp: u64,
}

impl Thread {
    /// From `/proc/PID/task/TID/status`.
    fn of(status: &str) -> Result<Self> {
        let value = |key: &str, radix| {
            let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            let value = value.with_context(|| format!("no {key} in {status}"))?;
            u64::from_str_radix(value.trim(), radix).with_context(|| format!("{key}: {value}"))
        };
        Ok(Self {
            effective: value("CapEff", 16)?,
            permitted: value("CapPrm", 16)?,
            no_new_privs: value("NoNewPrivs", 10)?,
            seccomp: value("Seccomp", 10)?,
        })
    }
}

fn threads_of(pid: u32) -> Result<Vec<Thread>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    tasks.map(|task| Thread::of(&fs::read_to_string(task?.path().join("status"))?)).collect()
}

/// Whether the kernel says that Landlock is on.
fn has_landlock() -> Result<bool> {
    const PLACE: &str = "/sys/kernel/security";
    mount(Some("securityfs"), PLACE, Some("securityfs"), MsFlags::empty(), None::<&str>)?;
    let modules = fs::read_to_string(format!("{PLACE}/lsm"));
    umount2(PLACE, MntFlags::MNT_DETACH)?;
    Ok(modules?.split(',').any(|module| module.trim() == "landlock"))
}

fn configuration(more: &str) -> Result<String> {
    write(&format!("{FOLDER}/flows.json"), more)
}

fn write(file: &str, more: &str) -> Result<String> {
    let path = "/tmp/agent.yml";
    let text = format!("output.file.path: {file}\nsocket.flow_termination_timeout: 300ms\n{more}");
    fs::write(path, text)?;
    Ok(path.to_owned())
}

fn reload(agent: &Socktrail, more: &str, answer: &str) -> Result<()> {
    configuration(more)?;
    hang_up(agent, answer)
}

fn reload_file(agent: &Socktrail, file: &str, answer: &str) -> Result<()> {
    write(file, "")?;
    hang_up(agent, answer)
}

fn hang_up(agent: &Socktrail, answer: &str) -> Result<()> {
    kill(Pid::from_raw(agent.pid.cast_signed()), Signal::SIGHUP)?;
    until("the reload", || Ok(agent.log().contains(answer))).with_context(|| agent.log())
}

/// What the file holds so far.
fn documents() -> Result<Vec<Value>> {
    let text = fs::read_to_string(format!("{FOLDER}/flows.json")).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn wait_for(ends: (SocketAddr, SocketAddr)) -> Result<[Value; 2]> {
    let mut found = None;
    until(&format!("both sides of {ends:?}"), || {
        found = both_sides(&documents()?, ends);
        Ok(found.is_some())
    })?;
    let Some(found) = found else { bail!("they were there") };
    Ok(found)
}

fn wait_for_port(client: SocketAddr) -> Result<()> {
    until("a flow after a refused reload", || {
        Ok(documents()?.iter().any(|document| document["source"]["port"] == client.port()))
    })
}
