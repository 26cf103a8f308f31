//! The agent keeps exactly the privileges that it needs, as the kernel reports them, and works with them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::mount::MsFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::hazards::Mounted;
use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::tracefs::Tracefs;
use crate::helpers::traffic::{converse, on_cpu};
use crate::helpers::wait::wait_until;
use crate::lifetime::{OfflineCpu, both_sides, expect_no_probes, expect_success};
use crate::workloads::{PROGRAM, RUN};

tests![
    an_agent_keeps_three_capabilities_and_they_are_enough,
    a_strict_kernel_requires_another_capability,
    an_agent_can_be_told_to_keep_everything,
    a_dynamic_user_has_a_name,
    a_user_that_only_getent_knows_has_a_name,
];

/// Capabilities of `linux/capability.h`, as masks.
const DAC_READ_SEARCH: u64 = 1 << 2;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;
const PERFMON: u64 = 1 << 38;

const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";
const FOLDER: &str = "/tmp/agent";
const PORT: u16 = 8123;
/// A user id of the range for systemd's `DynamicUser=`.
const DYNAMIC: u32 = 61_184;

fn an_agent_keeps_three_capabilities_and_they_are_enough() -> Result<()> {
    // CAP_PERFMON exists since Linux 5.8.
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap")?.trim().parse()?;
    let perf = if last < PERFMON.trailing_zeros() { SYS_ADMIN } else { PERFMON };
    let before = fs::read_to_string(PARANOID)?;
    fs::write(PARANOID, "2")?;
    let result = works_with(DAC_READ_SEARCH | SYS_PTRACE | perf);
    fs::write(PARANOID, before)?;
    result
}

/// Debian's kernels set `kernel.perf_event_paranoid` to 3. At this level, `CAP_PERFMON` is not enough.
fn a_strict_kernel_requires_another_capability() -> Result<()> {
    let level = fs::read_to_string(PARANOID)?;
    ensure!(level.trim() == "3", "perf_event_paranoid is {level}");
    works_with(DAC_READ_SEARCH | SYS_PTRACE | SYS_ADMIN)
}

/// Fails unless an agent keeps exactly these capabilities, and all of its features work.
fn works_with(capabilities: u64) -> Result<()> {
    fs::remove_dir_all(FOLDER).ok();
    let tracefs = Tracefs::mount()?;
    fs::create_dir_all(FOLDER)?;
    let config = configuration("")?;
    // A preexisting process of another user: its program is known from /proc only.
    let _server = Process::start_as_user(&["httpd", "-f", "-p", &PORT.to_string(), "-h", "/tmp"])?;
    let cpu = OfflineCpu::new(1)?;
    let agent = Socktrail::start(&["-v", "agent", "--config", &config])?;
    let threads = threads_of(agent.pid)?;
    ensure!(threads.len() >= 4, "too few threads: {threads:?}");
    for thread in &threads {
        ensure!(
            thread.effective == capabilities && thread.permitted == thread.effective,
            "{thread:x?}\n{}",
            agent.log()
        );
        ensure!(thread.no_new_privs == 1 && thread.seccomp == 2, "{thread:x?}\n{}", agent.log());
    }
    doctor_reports_capabilities(agent.pid)?;

    let ends = converse()?;
    wait_for(ends)?;
    wait_until("a flow of a preexisting process", || {
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

    cpu.bring_online()?;
    wait_until("the new CPU to be noticed", || Ok(agent.log().contains("CPUs changed")))?;
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
    wait_until("a document by the new configuration", directions)?;
    if has_landlock()? {
        fs::create_dir_all("/tmp/elsewhere")?;
        reload_file(&agent, "/tmp/elsewhere/flows.json", "restart the agent")?;
        ensure!(!Path::new("/tmp/elsewhere/flows.json").exists(), "Landlock does not work:\n{}", agent.log());
        let ends = converse()?;
        wait_for_port(ends.0)?;
    }

    expect_success(&agent.end(Signal::SIGTERM)?)?;
    expect_no_probes(&tracefs)
}

fn an_agent_can_be_told_to_keep_everything() -> Result<()> {
    fs::create_dir_all(FOLDER)?;
    let config = configuration("agent.harden: false\n")?;
    let agent = Socktrail::start(&["-v", "agent", "--config", &config])?;
    let ours = Thread::of(&fs::read_to_string("/proc/thread-self/status")?)?;
    for thread in threads_of(agent.pid)? {
        ensure!(thread == ours, "{thread:x?} instead of {ours:x?}");
    }
    expect_success(&agent.end(Signal::SIGTERM)?)
}

/// The agent has dropped privileges before it looks up the name, and the flow is short.
fn a_dynamic_user_has_a_name() -> Result<()> {
    const USERDB: &str = "/run/systemd/userdb";
    fs::remove_dir_all(FOLDER).ok();
    fs::create_dir_all(FOLDER)?;
    fs::create_dir_all(USERDB)?;
    let listener =
        UnixListener::bind(format!("{USERDB}/io.systemd.DynamicUser")).context("listen in the place of systemd")?;
    // The thread runs until the test process ends.
    thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(serve_dynamic_user(stream))));
    let agent = Socktrail::start(&["-v", "agent", "--config", &configuration("")?])?;
    let document = flow_of(DYNAMIC)?;
    fs::remove_dir_all(USERDB)?;
    ensure!(document["user"]["name"] == "dynamic-user", "{document:#}");
    let group = DYNAMIC.to_string();
    ensure!(document["group"]["id"] == group && document["group"]["name"].is_null(), "{document:#}");
    expect_success(&agent.end(Signal::SIGTERM)?)
}

/// The agent can no longer start `getent`, but its helper process can. The agent continues if the helper hangs or is
/// killed.
fn a_user_that_only_getent_knows_has_a_name() -> Result<()> {
    const GETENT: &str = "/usr/bin/getent";
    ensure!(!Path::new(GETENT).exists(), "the guest has a getent of its own");
    fs::remove_dir_all(FOLDER).ok();
    fs::create_dir_all(FOLDER)?;
    // Names every user, prints its own user and group, and fails if it has an environment or may write.
    let script = "#!/bin/sh\n[ -z \"$HOME\" ] || exit 1\nPATH=/bin:/usr/bin\n\
                  touch /tmp/agent/by-getent 2>/dev/null && exit 1\n\
                  echo \"$1-$2-by-$(id -u)-$(id -g):x:$2:\"\n";
    fs::write(GETENT, script)?;
    fs::set_permissions(GETENT, fs::Permissions::from_mode(0o755))?;
    let result = getent_names_users();
    fs::remove_file(GETENT)?;
    result
}

fn getent_names_users() -> Result<()> {
    let agent = Socktrail::start(&["-v", "agent", "--config", &configuration("")?])?;
    let document = flow_of(70_001)?;
    // The user and the group of the helper, which nothing else uses.
    let by = "by-2100044411-2100044411";
    ensure!(document["user"]["name"] == format!("passwd-70001-{by}"), "{document:#}\n{}", agent.log());
    ensure!(document["group"]["name"] == format!("group-70001-{by}"), "{document:#}");

    let helper = Pid::from_raw(getent_helper()?);
    kill(helper, Signal::SIGSTOP)?;
    for user in [70_002, 70_003] {
        ensure!(flow_of(user)?["user"]["name"].is_null());
    }
    wait_until("a message that the helper does not answer", || Ok(agent.log().contains("does not answer")))?;
    kill(helper, Signal::SIGCONT)?;
    kill(helper, Signal::SIGKILL)?;
    for user in [70_004, 70_005] {
        ensure!(flow_of(user)?["user"]["name"].is_null());
    }
    wait_until("a message that the helper has ended", || Ok(agent.log().contains("has ended")))?;
    let log = agent.log();
    ensure!(log.matches("does not answer").count() == 1 && log.matches("has ended").count() == 1, "{log}");
    expect_success(&agent.end(Signal::SIGTERM)?)
}

/// The pid of the agent's getent helper.
fn getent_helper() -> Result<i32> {
    let processes = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_helper = |pid: &i32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments == b"socktrail\0ask-getent\0"
    };
    processes.into_iter().find(is_helper).context("there is no getent helper")
}

/// Makes a connection as a user; returns its document.
fn flow_of(user: u32) -> Result<Value> {
    let mut server = Process::start(&[PROGRAM, RUN, "tcp-serve", "127.0.0.1:8098", "1"])?;
    let (there, user) = (server.first_line()?, user.to_string());
    let client = Process::start(&[PROGRAM, RUN, "setuid-then-connect", there.trim(), &user])?.finish()?;
    ensure!(client.status == 0, "{client:?}");
    let mut found = None;
    wait_until(&format!("the flow of user {user}"), || {
        found = documents()?.into_iter().find(|document| document["user"]["id"] == user);
        Ok(found.is_some())
    })?;
    found.context("the document was not found")
}

/// Answers one request of the userdb protocol: it knows one user, and no group.
fn serve_dynamic_user(mut stream: UnixStream) -> Result<()> {
    let mut request = Vec::new();
    BufReader::new(&stream).read_until(0, &mut request)?;
    let request: Value = serde_json::from_slice(request.strip_suffix(b"\0").context("no NUL at the end")?)?;
    let reply = match request["parameters"]["uid"] == DYNAMIC {
        true => {
            json!({ "parameters": { "record": { "userName": "dynamic-user", "uid": DYNAMIC }, "incomplete": false } })
        }
        false => json!({ "error": "io.systemd.UserDatabase.NoRecordFound", "parameters": {} }),
    };
    Ok(stream.write_all(format!("{reply}\0").as_bytes())?)
}

/// Fails unless doctor reports the agent's capabilities.
fn doctor_reports_capabilities(pid: u32) -> Result<()> {
    let doctor = Process::start(&["socktrail", "doctor"])?.finish()?;
    let start = format!("process {pid} keeps CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE");
    let line = doctor.stdout.lines().find(|line| line.contains(&start)).context("doctor does not name the agent")?;
    ensure!(line.contains("system calls are filtered; it cannot gain privileges"), "{line}");
    ensure!(doctor.stdout.contains("confinement"), "{}", doctor.stdout);
    Ok(())
}

/// The privileges of a thread.
#[derive(Debug, PartialEq, Eq)]
struct Thread {
    effective: u64,
    permitted: u64,
    no_new_privs: u64,
    seccomp: u64,
}

impl Thread {
    /// Parses `/proc/PID/task/TID/status`.
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

/// Whether Landlock is enabled in the kernel.
fn has_landlock() -> Result<bool> {
    const SECURITYFS: &str = "/sys/kernel/security";
    let _mounted = Mounted::new("securityfs", SECURITYFS, MsFlags::empty())?;
    let modules = fs::read_to_string(format!("{SECURITYFS}/lsm"))?;
    Ok(modules.split(',').any(|module| module.trim() == "landlock"))
}

fn configuration(more: &str) -> Result<String> {
    write_configuration(&format!("{FOLDER}/flows.json"), more)
}

/// Writes the agent's configuration; returns its path.
fn write_configuration(file: &str, more: &str) -> Result<String> {
    let path = "/tmp/agent.yml";
    let text = format!("output.file.path: {file}\nsocket.flow_termination_timeout: 300ms\n{more}");
    fs::write(path, text)?;
    Ok(path.to_owned())
}

fn reload(agent: &Socktrail, more: &str, message: &str) -> Result<()> {
    configuration(more)?;
    send_sighup(agent, message)
}

fn reload_file(agent: &Socktrail, file: &str, message: &str) -> Result<()> {
    write_configuration(file, "")?;
    send_sighup(agent, message)
}

/// Sends SIGHUP, and waits until the log contains a message.
fn send_sighup(agent: &Socktrail, message: &str) -> Result<()> {
    kill(Pid::from_raw(agent.pid.cast_signed()), Signal::SIGHUP)?;
    wait_until("the reload", || Ok(agent.log().contains(message))).with_context(|| agent.log())
}

/// The documents in the output file so far.
fn documents() -> Result<Vec<Value>> {
    let text = fs::read_to_string(format!("{FOLDER}/flows.json")).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn wait_for(ends: (SocketAddr, SocketAddr)) -> Result<[Value; 2]> {
    let mut found = None;
    wait_until(&format!("both sides of {ends:?}"), || {
        found = both_sides(&documents()?, ends);
        Ok(found.is_some())
    })?;
    found.context("the documents were not found")
}

fn wait_for_port(client: SocketAddr) -> Result<()> {
    wait_until("a flow after a refused reload", || {
        Ok(documents()?.iter().any(|document| document["source"]["port"] == client.port()))
    })
}
