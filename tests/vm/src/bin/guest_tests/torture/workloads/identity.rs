//! The process identity of a workload, and its reports about flows.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::process;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use nix::unistd::{getegid, geteuid, getgid, getuid};
use serde_json::{Value, json};

use super::super::arguments::Arguments;
use crate::helpers::sys::subflows;
use crate::workloads::print_line;

/// A process at the time when it makes or accepts a socket.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pid: u32,
    program: &'static str,
}

impl Identity {
    /// The calling process.
    pub(super) fn now() -> Self {
        Self { pid: process::id(), program: program() }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn to_json(&self) -> Value {
        json!({ "pid": self.pid, "args": std::env::args().collect::<Vec<_>>(), "executable": self.program })
    }
}

/// This process's executable. It is read early, because the link is gone once the main thread has ended.
fn program() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let link = std::fs::read_link("/proc/thread-self/exe");
        link.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
    })
}

/// A workload's report about a flow. It is printed when the flow is over.
#[derive(Debug, Clone)]
pub(super) struct FlowReport(Value);

impl FlowReport {
    /// A flow that begins now.
    pub(super) fn begin(arguments: &Arguments, transport: &str, direction: &str, owner: &Identity) -> Self {
        Self(json!({
            "transport": transport,
            "direction": direction,
            "owner": owner.to_json(),
            "uid": getuid().as_raw(), "gid": getgid().as_raw(),
            "euid": geteuid().as_raw(), "egid": getegid().as_raw(),
            "since": now(),
            "outcome": "success",
            "step": arguments.text("step"),
        }))
    }

    pub(super) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0[key] = value.into();
    }

    /// Sets the flow's addresses. An IPv4-mapped IPv6 address is an IPv4 address on the wire.
    pub(super) fn set_addresses(&mut self, local: SocketAddr, remote: SocketAddr) {
        for (key, end) in [("local", local), ("remote", remote)] {
            self.set(key, SocketAddr::new(end.ip().to_canonical(), end.port()).to_string());
        }
    }

    /// Prints the report, and a copy of it for each other subflow of an MPTCP connection.
    pub(super) fn print_with(self, subflows: &Subflows) -> Result<()> {
        for [local, remote] in &subflows.0 {
            let mut other = self.clone();
            other.set_addresses(*local, *remote);
            if ["local", "remote"].iter().any(|key| other.0[key] != self.0[key]) {
                other.set("subflow", true);
                other.print()?;
            }
        }
        self.print()
    }

    pub(super) fn print(mut self) -> Result<()> {
        self.set("until", now());
        print_line(json!({ "flow": self.0 }))
    }
}

/// The addresses of all subflows that the kernel has listed for an MPTCP connection.
#[derive(Debug, Default)]
pub(super) struct Subflows(HashSet<[SocketAddr; 2]>);

impl Subflows {
    /// Adds the current subflows.
    pub(super) fn update(&mut self, socket: &impl AsFd) -> Result<()> {
        self.0.extend(subflows(socket)?);
        Ok(())
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
