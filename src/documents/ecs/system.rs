//! `system.audit.socket.*` of a flow: fields that ECS does not define.

use std::borrow::Cow;
use std::fmt::LowerHex;

use serde::{Serialize, Serializer};

use super::Context;
use crate::model::flow::{self, Flow};
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::model::process::Process;

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
    pub socket: AuditSocket<'a>,
}

/// `system.audit.socket.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditSocket<'a> {
    /// The address of the flow's `struct sock`, in hexadecimal. It is unique among the sockets that exist at one time.
    #[serde(serialize_with = "address", skip_serializing_if = "Option::is_none")]
    pub kernel_sock_address: Option<SockAddress>,
    /// The address of its `struct net`, in hexadecimal, which identifies the network namespace.
    #[serde(serialize_with = "address", skip_serializing_if = "Option::is_none")]
    pub kernel_net_address: Option<NetAddress>,
    /// The kind of owner.
    pub owner: Owner,
    /// The process that closed the socket, if it is not the owner.
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
    /// Present, and `true`, if `process.args` is truncated: there were more arguments than a sample holds, and the process ended
    /// before `/proc` was read.
    #[serde(skip_serializing_if = "is_false")]
    pub args_cut: bool,
}

/// `system.audit.socket.last_user.*`: fields as under `process`.
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
    /// An id of the process that is unique over all hosts and boots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity_id: Option<String>,
}

/// The kind of a flow's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The process under `process`.
    Process,
    /// The kernel itself. If the kernel thread is known, it is under `process`.
    Kernel,
    /// The owner is unknown.
    Unknown,
}

impl<'a> System<'a> {
    pub(super) fn of(flow: &'a Flow, context: &Context<'_>) -> Self {
        let process = match &flow.owner {
            flow::Owner::Process(process) => Some(&**process),
            flow::Owner::Kernel | flow::Owner::Unknown => None,
        };
        let credentials = process.and_then(|process| process.credentials);
        let socket = AuditSocket {
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

/// Serializes a kernel address in hexadecimal.
pub(super) fn address<S: Serializer>(address: &Option<impl LowerHex>, serializer: S) -> Result<S::Ok, S::Error> {
    match address {
        Some(address) => serializer.collect_str(&format_args!("{address:#x}")),
        None => serializer.serialize_none(),
    }
}

pub(super) fn is_false(flag: &bool) -> bool {
    !flag
}
