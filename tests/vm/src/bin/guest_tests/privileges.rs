//! What the agent may still do once it watches, as the kernel tells; and that this is enough.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::actors::{ACT, PROGRAM};
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
    a_user_of_the_service_managers_has_a_name,
    a_user_that_only_getent_knows_has_a_name,
];

/// Of `include/uapi/linux/capability.h`.
const DAC_READ_SEARCH: u64 = 1 << 2;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;
const PERFMON: u64 = 1 << 38;

const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";
const FOLDER: &str = "/tmp/agent";
const PORT: u16 = 8123;
/// Of the ids that systemd gives to services with `DynamicUser=`.
const DYNAMIC: u32 = 61_184;

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

/// The agent has given up much by the time that it asks, and the flow is soon over.
fn a_user_of_the_service_managers_has_a_name() -> Result<()> {
    const USERDB: &str = "/run/systemd/userdb";
    fs::remove_dir_all(FOLDER).ok();
    fs::create_dir_all(FOLDER)?;
    fs::create_dir_all(USERDB)?;
    let listener = UnixListener::bind(format!("{USERDB}/io.systemd.DynamicUser")).context("stand in for systemd")?;
    // Ends with the last test.
    thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(tell_of_dynamic_user(stream))));
    let agent = Socktrail::start(&["-v", "agent", "--config", &configuration("")?])?;
    let document = flow_of(DYNAMIC)?;
    fs::remove_dir_all(USERDB)?;
    ensure!(document["user"]["name"] == "dynamic-user", "{document:#}");
    let group = DYNAMIC.to_string();
    ensure!(document["group"]["id"] == group && document["group"]["name"].is_null(), "{document:#}");
    ended_well(&agent.end(Signal::SIGTERM)?)
}

/// The agent can no longer start `getent`, but its helper can. The agent goes on when the helper hangs or is killed.
fn a_user_that_only_getent_knows_has_a_name() -> Result<()> {
    const GETENT: &str = "/usr/bin/getent";
    ensure!(!Path::new(GETENT).exists(), "the guest has a getent of its own");
    fs::remove_dir_all(FOLDER).ok();
    fs::create_dir_all(FOLDER)?;
    // Knows everybody, says as whom it runs, and has no environment.
    let script = "#!/bin/sh\n[ -z \"$HOME\" ] || exit 1\nPATH=/bin:/usr/bin\n\
                  touch /tmp/agent/by-getent 2>/dev/null && exit 1\n\
                  echo \"$1-$2-by-$(id -u)-$(id -g):x:$2:\"\n";
    fs::write(GETENT, script)?;
    fs::set_permissions(GETENT, fs::Permissions::from_mode(0o755))?;
    let result = getent_is_asked();
    fs::remove_file(GETENT)?;
    result
}

fn getent_is_asked() -> Result<()> {
    let agent = Socktrail::start(&["-v", "agent", "--config", &configuration("")?])?;
    let document = flow_of(70_001)?;
    let by = "by-2100044411-2100044411";
    ensure!(document["user"]["name"] == format!("passwd-70001-{by}"), "{document:#}\n{}", agent.log());
    ensure!(document["group"]["name"] == format!("group-70001-{by}"), "{document:#}");

    let helper = Pid::from_raw(the_one_that_asks()?);
    kill(helper, Signal::SIGSTOP)?;
    for user in [70_002, 70_003] {
        ensure!(flow_of(user)?["user"]["name"].is_null());
    }
    until("word of who does not answer", || Ok(agent.log().contains("does not answer")))?;
    kill(helper, Signal::SIGCONT)?;
    kill(helper, Signal::SIGKILL)?;
    for user in [70_004, 70_005] {
        ensure!(flow_of(user)?["user"]["name"].is_null());
    }
    until("word of who is gone", || Ok(agent.log().contains("has ended")))?;
    let log = agent.log();
    ensure!(log.matches("does not answer").count() == 1 && log.matches("has ended").count() == 1, "{log}");
    ended_well(&agent.end(Signal::SIGTERM)?)
}

/// The getent helper.
fn the_one_that_asks() -> Result<i32> {
    let processes = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let asks = |pid: &i32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments == b"socktrail\0ask-getent\0"
    };
    processes.into_iter().find(asks).context("there is no getent helper")
}

/// The document of a user's connection.
fn flow_of(user: u32) -> Result<Value> {
    let mut server = Process::start(&[PROGRAM, ACT, "tcp-serve", "127.0.0.1:8098", "1"])?;
    let (there, user) = (server.first_line()?, user.to_string());
    let client = Process::start(&[PROGRAM, ACT, "setuid-then-connect", there.trim(), &user])?.finish()?;
    ensure!(client.status == 0, "{client:?}");
    let mut found = None;
    until(&format!("the flow of user {user}"), || {
        found = documents()?.into_iter().find(|document| document["user"]["id"] == user);
        Ok(found.is_some())
    })?;
    found.context("it was there")
}

/// Knows one user, and no group.
fn tell_of_dynamic_user(mut stream: UnixStream) -> Result<()> {
    let mut request = Vec::new();
    BufReader::new(&stream).read_until(0, &mut request)?;
    let request: Value = serde_json::from_slice(request.strip_suffix(b"\0").context("cut")?)?;
    let reply = match request["parameters"]["uid"] == DYNAMIC {
        true => {
            json!({ "parameters": { "record": { "userName": "dynamic-user", "uid": DYNAMIC }, "incomplete": false } })
        }
        false => json!({ "error": "io.systemd.UserDatabase.NoRecordFound", "parameters": {} }),
    };
    Ok(stream.write_all(format!("{reply}\0").as_bytes())?)
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
