//! Socket events in the form of Tracee's `security_socket_*` events.
//!
//! [`TraceeEvent`] is the current form, [`legacy::TraceEvent`] the older `trace.Event`. Both have the same data fields in the
//! same order. Tracee reports a call when it begins; here, it is reported when it has returned. As in Tracee, connects are
//! reported only for the families `AF_INET`, `AF_INET6` and `AF_UNIX` and for the types stream, datagram and seqpacket.
//! `unique_id`, a hash that Tracee computes, is left out.

mod data;
pub mod legacy;

use std::borrow::Cow;

use serde::Serialize;

use crate::model::clock::{Clock, Timestamp};
use crate::model::process::Process;
use crate::model::socket_event::{SocketEvent, ThreadName};

pub use self::data::{Data, Field, SockAddr, Value};

/// An event in the current form, to be serialized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TraceeEvent<'a> {
    /// When the call returned.
    pub timestamp: Timestamp,
    /// Tracee's number of the event.
    pub id: u32,
    /// The name of the event, such as `security_socket_connect`.
    pub name: &'static str,
    /// The matching policies: always empty, because Socktrail has no policies.
    pub policies: Policies,
    /// The process that made the call.
    pub workload: Workload<'a>,
    /// The data fields of the event.
    pub data: Vec<Data>,
}

/// `policies`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Policies {
    /// Empty.
    pub matched: [&'static str; 0],
}

/// `workload`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Workload<'a> {
    /// The process, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<WorkloadProcess<'a>>,
    /// The container of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Container<'a>>,
}

/// `workload.process`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkloadProcess<'a> {
    /// The program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executable: Option<Executable<'a>>,
    /// The pid in the monitor's pid namespace.
    pub host_pid: u32,
    /// The same as `host_pid`. The pid in the process's own namespace is not known.
    pub pid: u32,
    /// The real user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub real_user: Option<User>,
    /// The thread that made the call.
    pub thread: Thread<'a>,
    /// The parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ancestors: Option<[Ancestor; 1]>,
}

/// A program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Executable<'a> {
    /// Its path.
    pub path: Cow<'a, str>,
}

/// A user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct User {
    /// Its id.
    pub id: u32,
}

/// A thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Thread<'a> {
    /// When the process was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// The name of the thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Cow<'a, str>>,
    /// The thread id in the monitor's pid namespace.
    pub host_tid: u32,
    /// The same as `host_tid`.
    pub tid: u32,
    /// The name of the system call; empty if the event has none.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub syscall: &'static str,
}

/// The parent of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ancestor {
    /// The pid in the monitor's pid namespace.
    pub host_pid: u32,
    /// The same as `host_pid`.
    pub pid: u32,
}

/// A container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Container<'a> {
    /// Its id.
    pub id: &'a str,
}

impl<'a> TraceeEvent<'a> {
    /// Converts an event; `None` if Tracee does not report such events.
    pub fn of(event: &'a SocketEvent, clock: Clock) -> Option<Self> {
        let data::EventData { offset, name, data } = data::event_data(event)?;
        Some(Self {
            timestamp: clock.wall(event.time),
            id: 1034 + offset,
            name,
            policies: Policies::default(),
            workload: Workload {
                process: event.process.as_ref().map(|process| WorkloadProcess::of(process, event, clock)),
                container: event.process.as_deref().and_then(container_id).map(|id| Container { id }),
            },
            data,
        })
    }
}

impl<'a> WorkloadProcess<'a> {
    fn of(process: &'a Process, event: &'a SocketEvent, clock: Clock) -> Self {
        let path = process.image.executable().map(|path| path.to_string_lossy());
        Self {
            executable: path.map(|path| Executable { path }),
            host_pid: process.pid,
            pid: process.pid,
            real_user: process.credentials.map(|credentials| User { id: credentials.uid }),
            thread: Thread {
                start_time: process.start.map(|boot| clock.wall_of_boot(boot)),
                name: event.thread_name.as_ref().map(ThreadName::text),
                host_tid: event.tid,
                tid: event.tid,
                syscall: system_call(event),
            },
            ancestors: process.parent_pid.map(|pid| [Ancestor { host_pid: pid, pid }]),
        }
    }
}

fn container_id(process: &Process) -> Option<&str> {
    process.container_id().filter(|id| !id.is_empty())
}

/// The name of the system call that caused the event; empty if none did. An event without a file descriptor has no system call,
/// except for a failed creation.
fn system_call(event: &SocketEvent) -> &'static str {
    use crate::model::socket_event::Action::{Accept, Bind, Close, Connect, Create, Listen, SetSockOpt, State};
    match event.action {
        Create { .. } if event.fd.is_some() || event.result.errno().is_some() => "socket",
        _ if event.fd.is_none() => "",
        Bind => "bind",
        Listen { .. } => "listen",
        Accept { .. } => "accept",
        Connect => "connect",
        SetSockOpt { .. } => "setsockopt",
        Create { .. } | Close | State => "",
    }
}
