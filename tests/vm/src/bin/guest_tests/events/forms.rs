//! The forms that other systems read, field by field, against what the actor did.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::lines;
use crate::actors::{ACT, EXECUTABLE, PROGRAM};
use crate::helpers::process::{Finished, Process};
use crate::helpers::socktrail::Socktrail;

/// What a part's calls look like in a form: the lines of which the value at a path is the actor's pid.
fn told(form: &[&str], part: &str, pid: &str) -> Result<(Vec<Value>, Finished)> {
    let watch = Socktrail::start(&[&["events", "--format"], form].concat())?;
    let actor = Process::start(&[PROGRAM, ACT, part])?.finish()?;
    ensure!(actor.status == 0, "{actor:?}");
    let watched = watch.stop()?;
    ensure!(watched.status.success(), "{}", watched.log);
    let own = watched.documents.into_iter().filter(|line| line.pointer(pid) == Some(&json!(actor.pid)));
    Ok((own.collect(), actor))
}

/// The diary's entries of some actions.
fn diary(actor: &Finished, actions: &[&str]) -> Result<Vec<Value>> {
    let all = lines(actor)?.into_iter();
    Ok(all.filter(|entry| actions.iter().any(|action| entry["/event/action"] == format!("socket_{action}"))).collect())
}

/// CAR's objects and both of Tracee's forms.
pub(crate) fn forms() -> Result<()> {
    for part in ["calls-tcp", "calls-unix"] {
        car(part)?;
        tracee(part, false)?;
        tracee(part, true)?;
    }
    Ok(())
}

fn car(part: &str) -> Result<()> {
    let (objects, actor) = told(&["car"], part, "/pid")?;
    let diary = diary(&actor, &["bind", "listen", "close"])?;
    ensure!(objects.len() == diary.len(), "{} of {}: {objects:#?}", objects.len(), diary.len());
    for (object, entry) in objects.iter().zip(&diary) {
        let action = entry["/event/action"].as_str().and_then(|action| action.strip_prefix("socket_"));
        let mut wanted = json!({
            "timestamp": object["timestamp"],
            "object": "socket",
            "action": action,
            "family": entry["/system/audit/socket/family"],
            "image_path": EXECUTABLE,
            "pid": actor.pid,
            "success": entry["/event/outcome"] == "success",
        });
        if entry["/system/audit/socket/family"] == "AF_INET" {
            // An end that a socket does not have is nowhere.
            let or = |path: &str, nowhere: Value| entry.get(path).filter(|v| !v.is_null()).cloned().unwrap_or(nowhere);
            wanted["protocol"] = json!("TCP");
            for (end, name) in [("source", "local"), ("destination", "remote")] {
                wanted[format!("{name}_address")] = or(&format!("/{end}/ip"), json!("0.0.0.0"));
                wanted[format!("{name}_port")] = or(&format!("/{end}/port"), json!(0));
            }
        } else if let Some(path) = entry["/system/audit/socket/local_path"].as_str() {
            wanted["local_path"] = json!(path);
        }
        ensure!(*object == wanted, "{object:#} is not {wanted:#}");
    }
    Ok(())
}

/// Every connect: descriptor, type and address.
fn tracee(part: &str, legacy: bool) -> Result<()> {
    let form: &[&str] = if legacy { &["tracee", "--tracee-version", "legacy"] } else { &["tracee"] };
    let pid = if legacy { "/hostProcessId" } else { "/workload/process/host_pid" };
    let (events, actor) = told(form, part, pid)?;
    let name = if legacy { "eventName" } else { "name" };
    let connects: Vec<_> = events.iter().filter(|event| event[name] == "security_socket_connect").collect();
    let diary = diary(&actor, &["connect"])?;
    ensure!(!diary.is_empty() && connects.len() == diary.len(), "{} of {}", connects.len(), diary.len());
    for (event, entry) in connects.iter().zip(&diary) {
        let kind = match entry["/system/audit/socket/type"].as_str().context("a type")? {
            "SOCK_STREAM" => 1,
            "SOCK_DGRAM" => 2,
            _ => 5,
        };
        let remote = if entry["/system/audit/socket/family"] == "AF_INET" {
            let port = &entry["/destination/port"];
            let port = if legacy { json!(port.to_string()) } else { port.clone() };
            json!({ "sa_family": "AF_INET", "sin_addr": entry["/destination/ip"], "sin_port": port })
        } else {
            json!({ "sa_family": "AF_UNIX", "sun_path": entry["/system/audit/socket/remote_path"] })
        };
        let fd = &entry["/system/audit/socket/fd"];
        let (data, wanted) = if legacy {
            let typed = |name: &str, kind: &str, value: Value| json!({ "name": name, "type": kind, "value": value });
            let args = [
                typed("sockfd", "int32", fd.clone()),
                typed("type", "int32", json!(kind)),
                typed("remote_addr", "trace.SockAddr", remote),
            ];
            (&event["args"], json!(args))
        } else {
            let data = [
                json!({ "name": "sockfd", "int32": fd }),
                json!({ "name": "type", "int32": kind }),
                json!({ "name": "remote_addr", "sockaddr": remote }),
            ];
            (&event["data"], json!(data))
        };
        ensure!(*data == wanted, "{data:#} is not {wanted:#}");
    }
    Ok(())
}

/// Events contain the name that the thread has at the time of the call, and its process's name.
pub(crate) fn thread_names() -> Result<()> {
    const ECS: [&str; 4] = ["/process/pid", "/destination/port", "/process/thread/name", "/process/thread/id"];
    const TRACEE: [&str; 4] = [
        "/workload/process/host_pid",
        "/data/2/sockaddr/sin_port",
        "/workload/process/thread/name",
        "/workload/process/thread/host_tid",
    ];
    const LEGACY: [&str; 4] = ["/hostProcessId", "/args/2/value/sin_port", "/processName", "/hostThreadId"];
    let forms: [(&[&str], _); 3] =
        [(&["ecs"], ECS), (&["tracee"], TRACEE), (&["tracee", "--tracee-version", "legacy"], LEGACY)];
    for (form, [pid, port, name, thread]) in forms {
        let (events, actor) = told(form, "calls-named-threads", pid)?;
        for line in actor.stdout.lines() {
            let mut words = line.splitn(3, ' ');
            let (wanted_port, tid) = (words.next().context("a port")?, words.next().context("a thread")?);
            let wanted = (Some(json!(tid.parse::<u32>()?)), Some(json!(words.next().context("a name")?)));
            let is_of_port = |event: &&Value| {
                event.pointer(port).is_some_and(|found| found.to_string().trim_matches('"') == wanted_port)
            };
            let of_port: Vec<_> = events.iter().filter(is_of_port).collect();
            ensure!(!of_port.is_empty(), "nothing of {line} in {events:#?}");
            for event in of_port {
                let found = (event.pointer(thread).cloned(), event.pointer(name).cloned());
                ensure!(found == wanted, "{found:?} is not {wanted:?}: {event:#}");
                ensure!(form != ["ecs"] || event["process"]["name"] == PROGRAM, "{event:#}");
            }
        }
    }
    Ok(())
}
