//! Events of sensors, in sysinspect's form.

use std::borrow::Cow;

use serde::Serialize;

use super::config::{LISTENER, Sensor};
use super::row::Row;
use crate::model::time::MonotonicTime;

/// What happened to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SensorAction {
    /// It opened.
    Opened,
    /// It closed.
    Closed,
}

/// An event of a sensor. Unknown values are null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SensorEvent {
    /// `<sensor-id>|net.socket[@tag]|<action>@<remote-ip:port>|0`.
    pub eid: String,
    /// The sensor's id.
    pub sensor: String,
    /// [`LISTENER`].
    pub listener: &'static str,
    /// The socket.
    pub data: Data,
    /// When the call returned or the socket closed. Not part of sysinspect's form.
    #[serde(skip)]
    pub time: MonotonicTime,
    /// The socket as typed values. Not part of sysinspect's form.
    #[serde(skip)]
    pub row: Row,
}

/// The socket of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Data {
    /// What happened to it.
    pub action: SensorAction,
    /// `tcp`, `tcp6`, `udp` or `udp6`.
    pub proto: &'static str,
    /// The local end: `192.0.2.1:80`, `[2001:db8::1]:80`.
    pub local: String,
    /// The remote end.
    pub remote: String,
    /// The name of the remote host, if it was looked up and has one.
    pub remote_host: Option<String>,
    /// The state of a TCP socket.
    pub state: Option<Cow<'static, str>>,
    /// The process of the socket.
    pub process: Option<ProcessFields>,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcessFields {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub name: Option<String>,
}

impl SensorEvent {
    /// The event of a sensor about a socket.
    pub fn new(
        sensor: &Sensor,
        action: SensorAction,
        time: MonotonicTime,
        row: &Row,
        remote_host: Option<&str>,
    ) -> Self {
        let process = row.process.as_ref();
        Self {
            eid: eid(sensor, action, row),
            sensor: sensor.id.clone(),
            listener: LISTENER,
            data: Data {
                action,
                proto: row.proto(),
                local: row.local.to_string(),
                remote: row.remote.to_string(),
                remote_host: remote_host.map(str::to_owned),
                state: row.state_name(),
                process: process
                    .map(|process| ProcessFields { pid: process.pid, name: process.image.name().map(str::to_owned) }),
            },
            time,
            row: row.clone(),
        }
    }
}

fn eid(sensor: &Sensor, action: SensorAction, row: &Row) -> String {
    let (at, tag) = sensor.tag.as_deref().map_or(("", ""), |tag| ("@", tag));
    let action = match action {
        SensorAction::Opened => "opened",
        SensorAction::Closed => "closed",
    };
    format!("{}|{LISTENER}{at}{tag}|{action}@{}|0", sensor.id, row.remote)
}
