//! Processes and threads: a process lives while any of its threads lives, even if that executes another program.
//!
//! All workloads start together. Each makes a request so late that a monitor would have forgotten a process that ended early.
//! One monitor starts before the workloads, and one when the threads that end early have ended.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::helpers::document::{expect, is_between};
use crate::helpers::process::{Finished, Process, USER_ID};
use crate::helpers::socktrail::Socktrail;
use crate::workloads::{EXECUTABLE, PROGRAM, RUN};

tests![a_process_lives_while_one_of_its_threads_does];

/// Milliseconds before a workload's last request: longer than a monitor remembers ended processes, and than the second
/// monitor needs to start.
const PAUSE: &str = "20000";
/// The time after which all threads that end early have ended.
const EARLY: Duration = Duration::from_secs(2);

/// The expected process of a workload's flow.
enum ExpectedIdentity {
    /// The process as it was started.
    Itself,
    /// The workload `later` with this pause, and the same pid.
    Later(&'static str),
    /// The process as it was started, but with the pid that it has printed.
    Child,
    /// The workload `later`, with another pid.
    ChildLater,
}

const WORKLOADS: &[(&str, ExpectedIdentity)] = &[
    ("later", ExpectedIdentity::Itself),
    ("leader-gone", ExpectedIdentity::Itself),
    ("leader-gone-connected", ExpectedIdentity::Itself),
    ("leader-gone-exec", ExpectedIdentity::Later("0")),
    ("exec-by-thread", ExpectedIdentity::Later(PAUSE)),
    ("clone-sharing-memory", ExpectedIdentity::Child),
    ("spawn-and-wait", ExpectedIdentity::ChildLater),
    ("crowd", ExpectedIdentity::Itself),
    ("crowd", ExpectedIdentity::Itself),
];

fn a_process_lives_while_one_of_its_threads_does() -> Result<()> {
    let mut server = Process::start(&[PROGRAM, RUN, "tcp-serve-all", "127.0.0.1:0"])?;
    let there: SocketAddr = server.first_line()?.parse()?;
    let early = start_monitor()?;
    let start = |workload: &str| Process::start_as_user(&[PROGRAM, RUN, workload, &there.to_string(), PAUSE]);
    let processes = WORKLOADS.iter().map(|(workload, _)| start(workload)).collect::<Result<Vec<_>>>()?;
    sleep(EARLY);
    let late = start_monitor()?;
    for (process, (workload, expected)) in processes.into_iter().zip(WORKLOADS) {
        let finished = process.finish()?;
        ensure!(finished.status == 0 && finished.stderr.is_empty(), "{finished:?}");
        for (monitor, when) in [(&early, "before"), (&late, "after")] {
            check(monitor, &finished, there, expected)
                .with_context(|| format!("`{workload}`, by the monitor that started {when} it"))?;
        }
    }
    Ok(())
}

fn start_monitor() -> Result<Socktrail> {
    Socktrail::flows(&["--flow-termination-timeout", "500ms"])
}

fn check(monitor: &Socktrail, workload: &Finished, there: SocketAddr, expected: &ExpectedIdentity) -> Result<()> {
    let mut lines = workload.stdout.lines();
    let here: SocketAddr = lines.next().context("no address")?.parse()?;
    let later = |pause: &str| [PROGRAM, RUN, "later", &there.to_string(), pause].map(str::to_owned).to_vec();
    let (pid, args) = match expected {
        ExpectedIdentity::Itself => (Some(workload.pid), workload.args.clone()),
        ExpectedIdentity::Later(pause) => (Some(workload.pid), later(pause)),
        ExpectedIdentity::Child => (Some(lines.next().context("no pid")?.parse()?), workload.args.clone()),
        ExpectedIdentity::ChildLater => (None, later(PAUSE)),
    };
    let document = monitor.wait_for(&format!("the client's document of {here}"), |document| {
        is_between(document, here, there) && document["network"]["direction"] != "ingress"
    })?;
    let mut wanted = vec![
        ("/system/audit/socket/owner", json!("process")),
        ("/process/name", json!(PROGRAM)),
        ("/process/executable", json!(EXECUTABLE)),
        ("/process/args", json!(args)),
        ("/user/id", json!(USER_ID.to_string())),
        ("/user/effective/id", json!(USER_ID.to_string())),
    ];
    match pid {
        Some(pid) => wanted.push(("/process/pid", json!(pid))),
        None => wanted.push(("/process/parent/pid", json!(workload.pid))),
    }
    expect(&document, &wanted)?;
    let has = |path: &str| document.pointer(path).is_some();
    ensure!(has("/process/start") && has("/process/entity_id") && has("/process/parent/pid"), "{document:#}");
    Ok(())
}
