//! Processes and threads: a process lives while any of its threads lives, whatever program that executes.
//!
//! All actors start together and talk only once, so late that an ended process would have been forgotten. Two monitors
//! watch: one is started before them, and one after those threads have ended that end early.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::actors::{ACT, EXECUTABLE, PROGRAM};
use crate::helpers::document::{expect, is_between};
use crate::helpers::process::{Finished, Process, USER};
use crate::helpers::socktrail::Socktrail;

tests![a_process_lives_while_one_of_its_threads_does];

/// Longer than ended processes are kept, and long enough for the second monitor to begin, in milliseconds.
const PAUSE: &str = "20000";
/// When all threads that end early have ended.
const EARLY: Duration = Duration::from_secs(2);

/// How an actor must be known while it talks.
enum Known {
    /// As it was started.
    Itself,
    /// `later`, with this pause, under the same process id.
    Later(&'static str),
    /// As it was started, but under the process id that it has printed.
    Child,
    /// `later`, under another process id.
    ChildLater,
}

const ACTORS: &[(&str, Known)] = &[
    ("later", Known::Itself),
    ("leader-gone", Known::Itself),
    ("leader-gone-connected", Known::Itself),
    ("leader-gone-exec", Known::Later("0")),
    ("exec-by-thread", Known::Later(PAUSE)),
    ("clone-with-memory", Known::Child),
    ("spawn-and-wait", Known::ChildLater),
    ("crowd", Known::Itself),
    ("crowd", Known::Itself),
];

fn a_process_lives_while_one_of_its_threads_does() -> Result<()> {
    let mut server = Process::start(&[PROGRAM, ACT, "tcp-serve-all", "127.0.0.1:0"])?;
    let there: SocketAddr = server.first_line()?.parse()?;
    let early = watch()?;
    let start = |part: &str| Process::start_as_user(&[PROGRAM, ACT, part, &there.to_string(), PAUSE]);
    let actors = ACTORS.iter().map(|(part, _)| start(part)).collect::<Result<Vec<_>>>()?;
    sleep(EARLY);
    let late = watch()?;
    for (process, (part, known)) in actors.into_iter().zip(ACTORS) {
        let finished = process.finish()?;
        ensure!(finished.status == 0 && finished.stderr.is_empty(), "{finished:?}");
        for (watch, when) in [(&early, "before"), (&late, "after")] {
            check(watch, &finished, there, known)
                .with_context(|| format!("`{part}`, by the monitor that began {when} it"))?;
        }
    }
    Ok(())
}

fn watch() -> Result<Socktrail> {
    Socktrail::flows(&["--flow-termination-timeout", "500ms"])
}

fn check(watch: &Socktrail, actor: &Finished, there: SocketAddr, known: &Known) -> Result<()> {
    let mut lines = actor.stdout.lines();
    let here: SocketAddr = lines.next().context("it says its address")?.parse()?;
    let later = |pause: &str| [PROGRAM, ACT, "later", &there.to_string(), pause].map(str::to_owned).to_vec();
    let (pid, args) = match known {
        Known::Itself => (Some(actor.pid), actor.args.clone()),
        Known::Later(pause) => (Some(actor.pid), later(pause)),
        Known::Child => (Some(lines.next().context("it says its process id")?.parse()?), actor.args.clone()),
        Known::ChildLater => (None, later(PAUSE)),
    };
    let document = watch.wait_for(&format!("the client's document of {here}"), |document| {
        is_between(document, here, there) && document["network"]["direction"] != "ingress"
    })?;
    let mut wanted = vec![
        ("/system/audit/socket/owner", json!("process")),
        ("/process/name", json!(PROGRAM)),
        ("/process/executable", json!(EXECUTABLE)),
        ("/process/args", json!(args)),
        ("/user/id", json!(USER.to_string())),
        ("/user/effective/id", json!(USER.to_string())),
    ];
    match pid {
        Some(pid) => wanted.push(("/process/pid", json!(pid))),
        None => wanted.push(("/process/parent/pid", json!(actor.pid))),
    }
    expect(&document, &wanted)?;
    let has = |path: &str| document.pointer(path).is_some();
    ensure!(has("/process/start") && has("/process/entity_id") && has("/process/parent/pid"), "{document:#}");
    Ok(())
}
