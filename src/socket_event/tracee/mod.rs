//! A socket event in the form of Tracee's `security_socket_*` events.
//!
//! [`TraceeEvent`] is today's form, [`legacy::TraceEvent`] the older `trace.Event`. Both have the same data fields in the
//! same order. Other than Tracee's own, which tell of attempts when they begin, these are told when the call is back. What
//! Tracee does not tell is not told either: connects of other families than `AF_INET`, `AF_INET6` and `AF_UNIX`, or of
//! other types than stream, datagram and seqpacket. `unique_id`, a hash of Tracee's own, is left out.

mod data;
pub mod legacy;

use std::borrow::Cow;

use serde::Serialize;

use super::{SocketEvent, ThreadName};
use crate::clock::{Clock, Timestamp};
use crate::process::Process;

pub use self::data::{Data, Field, SockAddr, Value};

/// Today's form. Serialize it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TraceeEvent<'a> {
    /// When.
    pub timestamp: Timestamp,
    /// Tracee's number of the event.
    pub id: u32,
    /// `security_socket_connect`.
    pub name: &'static str,
    /// None matches: there are none here.
    pub policies: Policies,
    /// Who acted.
    pub workload: Workload<'a>,
    /// What was done.
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
    /// The process, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<WorkloadProcess<'a>>,
    /// Its container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Container<'a>>,
}

/// `workload.process`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkloadProcess<'a> {
    /// Its program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executable: Option<Executable<'a>>,
    /// Its pid in the monitor's pid namespace.
    pub host_pid: u32,
    /// The same: its pid in its own namespace is not known.
    pub pid: u32,
    /// Its real user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub real_user: Option<User>,
    /// The thread that made the call.
    pub thread: Thread<'a>,
    /// Its parent.
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
    /// When its process began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// Its own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Cow<'a, str>>,
    /// Its id in the monitor's pid namespace.
    pub host_tid: u32,
    /// The same.
    pub tid: u32,
    /// The system call; empty where the call came without one.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub syscall: &'static str,
}

/// The parent of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ancestor {
    /// Its pid in the monitor's pid namespace.
    pub host_pid: u32,
    /// The same.
    pub pid: u32,
}

/// A container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Container<'a> {
    /// Its id.
    pub id: &'a str,
}

impl<'a> TraceeEvent<'a> {
    /// The form of an event; `None` for what Tracee does not tell.
    pub fn of(event: &'a SocketEvent, clock: Clock) -> Option<Self> {
        let data::Told { offset, name, data } = data::told(event)?;
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

/// What the call is called as a system call; nothing for one that had no descriptor, since that was none. A socket that was
/// not made is the only one of which a system call tells no descriptor.
fn system_call(event: &SocketEvent) -> &'static str {
    use super::Action::{Accept, Bind, Close, Connect, Create, Listen, SetSockOpt, State};
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
