//! The formats for other systems, compared field by field with the workloads' expected events.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::lines;
use crate::helpers::process::{Finished, Process};
use crate::helpers::socktrail::Socktrail;
use crate::workloads::{EXECUTABLE, PROGRAM, RUN};

/// Runs a workload while `socktrail events` runs with a format. Returns the lines that have the workload's pid at the
/// JSON pointer `pid`.
fn events_of(format: &[&str], workload: &str, pid: &str) -> Result<(Vec<Value>, Finished)> {
    let monitor = Socktrail::start(&[&["events", "--format"], format].concat())?;
    let workload = Process::start(&[PROGRAM, RUN, workload])?.finish()?;
    ensure!(workload.status == 0, "{workload:?}");
    let output = monitor.stop()?;
    ensure!(output.status.success(), "{}", output.log);
    let own = output.documents.into_iter().filter(|line| line.pointer(pid) == Some(&json!(workload.pid)));
    Ok((own.collect(), workload))
}

/// The workload's expected events of some actions.
fn expected_events(workload: &Finished, actions: &[&str]) -> Result<Vec<Value>> {
    let all = lines(workload)?.into_iter();
    Ok(all.filter(|entry| actions.iter().any(|action| entry["/event/action"] == format!("socket_{action}"))).collect())
}

/// MITRE CAR's objects, and both of Tracee's formats.
pub(crate) fn formats() -> Result<()> {
    for workload in ["calls-tcp", "calls-unix"] {
        car(workload)?;
        tracee(workload, TraceeFormat::Current)?;
        tracee(workload, TraceeFormat::Legacy)?;
    }
    Ok(())
}

fn car(workload: &str) -> Result<()> {
    let (objects, workload) = events_of(&["car"], workload, "/pid")?;
    let expected = expected_events(&workload, &["bind", "listen", "close"])?;
    ensure!(objects.len() == expected.len(), "{} of {}: {objects:#?}", objects.len(), expected.len());
    for (object, entry) in objects.iter().zip(&expected) {
        let action = entry["/event/action"].as_str().and_then(|action| action.strip_prefix("socket_"));
        let mut wanted = json!({
            "timestamp": object["timestamp"],
            "object": "socket",
            "action": action,
            "family": entry["/system/audit/socket/family"],
            "image_path": EXECUTABLE,
            "pid": workload.pid,
            "success": entry["/event/outcome"] == "success",
        });
        if entry["/system/audit/socket/family"] == "AF_INET" {
            // A socket without an address or a peer has the unspecified address.
            let or = |path: &str, unspecified: Value| {
                entry.get(path).filter(|v| !v.is_null()).cloned().unwrap_or(unspecified)
            };
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

/// A version of Tracee's format.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TraceeFormat {
    Current,
    Legacy,
}

/// Compares descriptor, type and address of every connect.
fn tracee(workload: &str, format: TraceeFormat) -> Result<()> {
    let legacy = format == TraceeFormat::Legacy;
    let options: &[&str] = if legacy { &["tracee", "--tracee-version", "legacy"] } else { &["tracee"] };
    let pid = if legacy { "/hostProcessId" } else { "/workload/process/host_pid" };
    let (events, workload) = events_of(options, workload, pid)?;
    let name = if legacy { "eventName" } else { "name" };
    let connects: Vec<_> = events.iter().filter(|event| event[name] == "security_socket_connect").collect();
    let expected = expected_events(&workload, &["connect"])?;
    ensure!(!expected.is_empty() && connects.len() == expected.len(), "{} of {}", connects.len(), expected.len());
    for (event, entry) in connects.iter().zip(&expected) {
        let kind = match entry["/system/audit/socket/type"].as_str().context("no type")? {
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

/// Events have the thread's name at the time of the call, and the process's name.
pub(crate) fn thread_names() -> Result<()> {
    const ECS: [&str; 4] = ["/process/pid", "/destination/port", "/process/thread/name", "/process/thread/id"];
    const TRACEE: [&str; 4] = [
        "/workload/process/host_pid",
        "/data/2/sockaddr/sin_port",
        "/workload/process/thread/name",
        "/workload/process/thread/host_tid",
    ];
    const LEGACY: [&str; 4] = ["/hostProcessId", "/args/2/value/sin_port", "/processName", "/hostThreadId"];
    let formats: [(&[&str], _); 3] =
        [(&["ecs"], ECS), (&["tracee"], TRACEE), (&["tracee", "--tracee-version", "legacy"], LEGACY)];
    for (format, [pid, port, name, thread]) in formats {
        let (events, workload) = events_of(format, "calls-named-threads", pid)?;
        for line in workload.stdout.lines() {
            let mut words = line.splitn(3, ' ');
            let (wanted_port, tid) = (words.next().context("no port")?, words.next().context("no thread id")?);
            let wanted = (Some(json!(tid.parse::<u32>()?)), Some(json!(words.next().context("no thread name")?)));
            let is_of_port = |event: &&Value| {
                event.pointer(port).is_some_and(|found| found.to_string().trim_matches('"') == wanted_port)
            };
            let of_port: Vec<_> = events.iter().filter(is_of_port).collect();
            ensure!(!of_port.is_empty(), "no event of {line} in {events:#?}");
            for event in of_port {
                let found = (event.pointer(thread).cloned(), event.pointer(name).cloned());
                ensure!(found == wanted, "{found:?} is not {wanted:?}: {event:#}");
                ensure!(format != ["ecs"] || event["process"]["name"] == PROGRAM, "{event:#}");
            }
        }
    }
    Ok(())
}
