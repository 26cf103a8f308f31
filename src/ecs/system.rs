//! `system.audit.socket.*`: what ECS has no name for.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use super::Context;
use crate::event::KernelAddress;
use crate::flow::{self, Flow};
use crate::process::Process;

/// `system.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct System<'a> {
    /// `system.audit.*`.
    pub audit: Audit<'a>,
}

/// `system.audit.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Audit<'a> {
    /// `system.audit.socket.*`.
    pub socket: Socket<'a>,
}

/// `system.audit.socket.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Socket<'a> {
    /// The address of the flow's `struct sock`, in hexadecimal. It tells sockets apart, for as long as they live.
    #[serde(serialize_with = "address", skip_serializing_if = "is_null")]
    pub kernel_sock_address: KernelAddress,
    /// The address of its `struct net`, in hexadecimal. It tells network namespaces apart.
    #[serde(serialize_with = "address", skip_serializing_if = "is_null")]
    pub kernel_net_address: KernelAddress,
    /// Whose the flow is.
    pub owner: Owner,
    /// Who gave the socket up, where that is another than its owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_user: Option<LastUser<'a>>,
    /// The owner's real user id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The owner's real group id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The owner's effective user id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub euid: Option<u32>,
    /// The owner's effective group id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egid: Option<u32>,
    /// Only ever true: `process.args` is cut, because more was given than is captured, and the process was gone before
    /// `/proc` could tell the rest.
    #[serde(skip_serializing_if = "is_false")]
    pub args_cut: bool,
}

/// `system.audit.socket.last_user.*`: who that was, as under `process`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastUser<'a> {
    /// The process id.
    pub pid: u32,
    /// The program's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    /// The program's absolute path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executable: Option<Cow<'a, str>>,
    /// Names this process among all of all hosts and boots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity_id: Option<String>,
}

/// Whose a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The process under `process`.
    Process,
    /// The kernel's own; if one of its threads is known, that is under `process`.
    Kernel,
    /// Nobody knows.
    Unknown,
}

impl<'a> System<'a> {
    pub(super) fn of(flow: &'a Flow, context: &Context<'_>) -> Self {
        let process = match &flow.owner {
            flow::Owner::Process(process) => Some(&**process),
            flow::Owner::Kernel | flow::Owner::Unknown => None,
        };
        let credentials = process.and_then(|process| process.credentials);
        let socket = Socket {
            kernel_sock_address: flow.sock,
            kernel_net_address: flow.net,
            owner: match (&flow.owner, process) {
                (flow::Owner::Kernel, _) | (_, Some(Process { kernel: true, .. })) => Owner::Kernel,
                (_, Some(_)) => Owner::Process,
                (_, None) => Owner::Unknown,
            },
            last_user: flow.last_user.as_deref().map(|process| LastUser::of(process, context)),
            uid: credentials.map(|credentials| credentials.uid),
            gid: credentials.map(|credentials| credentials.gid),
            euid: credentials.map(|credentials| credentials.euid),
            egid: credentials.map(|credentials| credentials.egid),
            args_cut: process.is_some_and(|process| process.image.lacks_args()),
        };
        Self { audit: Audit { socket } }
    }
}

impl<'a> LastUser<'a> {
    fn of(process: &'a Process, context: &Context<'_>) -> Self {
        let super::Process { pid, name, executable, entity_id, .. } = super::Process::of(process, context);
        Self { pid, name, executable, entity_id }
    }
}

pub(super) fn address<S: Serializer>(address: &KernelAddress, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{address:#x}"))
}

pub(super) fn is_null(address: &KernelAddress) -> bool {
    *address == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}
