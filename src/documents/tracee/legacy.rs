//! The older form of Tracee's events, `trace.Event`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::data::{self, Data, Field, Value};
use super::{container_id, system_call};
use crate::model::clock::Clock;
use crate::model::socket_event::{SocketEvent, ThreadName};

/// An event in the older form, to be serialized. Unknown ids are 0 and unknown texts empty, as in Tracee's own events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceEvent<'a> {
    /// Nanoseconds of Unix time.
    pub timestamp: u64,
    /// When the process was created, in nanoseconds of Unix time.
    pub thread_start_time: u64,
    /// The pid in the monitor's pid namespace. The pid in the process's own namespace is not known.
    pub process_id: u32,
    /// The thread id.
    pub thread_id: u32,
    /// The parent's pid.
    pub parent_process_id: u32,
    /// The same as `process_id`.
    pub host_process_id: u32,
    /// The same as `thread_id`.
    pub host_thread_id: u32,
    /// The same as `parent_process_id`.
    pub host_parent_process_id: u32,
    /// The real user id.
    pub user_id: u32,
    /// The thread's name.
    pub process_name: Cow<'a, str>,
    /// The program.
    pub executable: File<'a>,
    /// The host's name.
    pub host_name: &'a str,
    /// The container's id.
    pub container_id: &'a str,
    /// Tracee's number of the event, as a string.
    pub event_id: String,
    /// The name of the event, such as `security_socket_connect`.
    pub event_name: &'static str,
    /// The number of arguments.
    pub args_num: usize,
    /// The return value of the call: 0, or the negative errno.
    pub return_value: i32,
    /// The name of the system call; empty if the event has none.
    pub syscall: &'static str,
    /// The arguments of the event.
    pub args: Vec<Argument>,
}

/// A program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct File<'a> {
    /// Its path.
    pub path: Cow<'a, str>,
}

/// A data field as an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument(Data);

impl<'a> TraceEvent<'a> {
    /// Converts an event on the host `host_name`; `None` if Tracee does not report such events.
    pub fn of(event: &'a SocketEvent, clock: Clock, host_name: &'a str) -> Option<Self> {
        let data::EventData { offset, name, data } = data::event_data(event)?;
        let process = event.process.as_deref();
        let parent = process.and_then(|process| process.parent_pid).unwrap_or_default();
        let pid = process.map_or(0, |process| process.pid);
        let executable = process.and_then(|process| process.image.executable());
        Some(Self {
            timestamp: clock.wall(event.time).unix_nanos(),
            thread_start_time: process
                .and_then(|process| process.start)
                .map_or(0, |boot| clock.wall_of_boot(boot).unix_nanos()),
            process_id: pid,
            thread_id: event.tid,
            parent_process_id: parent,
            host_process_id: pid,
            host_thread_id: event.tid,
            host_parent_process_id: parent,
            user_id: process.and_then(|process| process.credentials).map_or(0, |credentials| credentials.uid),
            process_name: event.thread_name.as_ref().map(ThreadName::text).unwrap_or_default(),
            executable: File { path: executable.map(|path| path.to_string_lossy()).unwrap_or_default() },
            host_name,
            container_id: process.and_then(container_id).unwrap_or_default(),
            event_id: (734 + offset).to_string(),
            event_name: name,
            args_num: data.len(),
            return_value: event.result.errno().map_or(0, |errno| -errno),
            syscall: system_call(event),
            args: data.into_iter().map(Argument).collect(),
        })
    }
}

/// `{"name":"sockfd","type":"int32","value":5}`.
impl Serialize for Argument {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("name", self.0.name)?;
        match &self.0.value {
            Value::Int32(value) => {
                map.serialize_entry("type", "int32")?;
                map.serialize_entry("value", value)?;
            }
            Value::SockAddr(value) => {
                map.serialize_entry("type", "trace.SockAddr")?;
                // Every field is a string.
                let text = |(name, field)| match field {
                    Field::Number(number) => (name, number.to_string()),
                    Field::Text(text) => (name, text),
                };
                map.serialize_entry("value", &value.fields().into_iter().map(text).collect::<BTreeMap<_, _>>())?;
            }
        }
        map.end()
    }
}
