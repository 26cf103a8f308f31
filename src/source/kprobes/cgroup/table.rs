//! The hooks that serve each feature.

use socktrail_kprobes::{Decoder, Error, Fetch, Format, Hook, Type};

use super::super::packets::{Ipv4OutWithoutSk, UdpIpv6OutWithoutSk};
use super::super::processes::WakeUpNewTask;
use super::super::program::{ExecFile, ExecMounts};
use super::super::sockets::{SetState, SockDestruct, SockInitData};
use super::super::{Decode, Interpret};
use super::packets::{Ipv4Arrives, Ipv4Request, Ipv6Arrives, Ipv6Request, TcpIpv6Leaves};
use super::processes::{OwnCredentials, ProcessExecuted};
use super::sockets::{AcceptedFile, SockReleased, SynSentIpv4, SynSentIpv6};
use crate::model::feature::Feature;

/// A hook that serves a feature.
pub(super) struct HookProbe {
    pub(super) feature: Feature,
    pub(super) hook: Hook,
    pub(super) fetches: &'static [Fetch<'static>],
    /// A hit makes a record only if each of these fields has one of the values: a field of the record, or one of
    /// [`FURTHER_FIELDS`].
    pub(super) conditions: &'static [(&'static str, &'static [i32])],
    pub(super) decoder: fn(&Format) -> Result<Box<dyn Decode>, Error>,
}

impl HookProbe {
    const fn at<S: Interpret + 'static>(feature: Feature, hook: Hook) -> Self {
        Self {
            feature,
            hook,
            fetches: S::FETCHES,
            conditions: &[],
            decoder: |format| Ok(Box::new(Decoder::<S>::new(format)?)),
        }
    }

    const fn only(mut self, conditions: &'static [(&'static str, &'static [i32])]) -> Self {
        self.conditions = conditions;
        self
    }
}

const FORK: Hook = Hook::RawTracepoint { name: "sched_process_fork", arguments: &["parent", "p"] };
const EXEC: Hook = Hook::RawTracepoint { name: "sched_process_exec", arguments: &["p", "old_pid", "bprm"] };
const SET_STATE: Hook = Hook::RawTracepoint { name: "inet_sock_set_state", arguments: &["sk", "old_state", "state"] };
const DESTROY: Hook = Hook::RawTracepoint { name: "tcp_destroy_sock", arguments: &["sk"] };

/// Fields for conditions that records do not have.
pub(super) const FURTHER_FIELDS: &[Fetch<'static>] = &[
    Fetch::constant("version", "+0(+{sk_buff.data}({skb}))", Type::U8),
    Fetch::constant("sk_protocol", "+{sock.sk_protocol}({sk})", Type::U16),
];

/// The first byte of an IPv4 header: version, and header length in words.
const IPV4: &[i32] = &[0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e, 0x4f];
/// The first byte of an IPv6 header: version, and a part of the traffic class.
const IPV6: &[i32] = &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f];
const TCP: &[i32] = &[6];
const UDP: &[i32] = &[17];
const TCP_OR_UDP: &[i32] = &[6, 17];
/// UDP, and the extension headers that may come before it.
const UDP_OR_EXTENSION: &[i32] = &[17, 43, 44, 60];
/// `TCP_ESTABLISHED`, `TCP_CLOSE`.
const BEGIN_OR_END: &[i32] = &[1, 7];
const TCP_SYN_SENT: &[i32] = &[2];
/// TCP's flags of a request: SYN, with or without ECN's flags (RFC 3168).
const SYN: &[i32] = &[0x02, 0xc2];

/// All hooks, in the order in which they are attached: processes come first, so that a socket's owner is known before the socket.
pub(super) const HOOKS: &[HookProbe] = &[
    HookProbe::at::<WakeUpNewTask>(Feature::ProcessFork, FORK),
    // New credentials are the first event of an exec.
    HookProbe::at::<OwnCredentials>(Feature::Credentials, EXEC),
    HookProbe::at::<ProcessExecuted>(Feature::ProcessExec, EXEC),
    HookProbe::at::<ExecFile>(Feature::ProcessFile, EXEC),
    HookProbe::at::<ExecMounts>(Feature::ProcessMounts, EXEC),
    HookProbe::at::<OwnCredentials>(Feature::Credentials, Hook::SyscallExit { name: "sys_exit_setuid" }),
    HookProbe::at::<OwnCredentials>(Feature::Credentials, Hook::SyscallExit { name: "sys_exit_setgid" }),
    HookProbe::at::<OwnCredentials>(Feature::Credentials, Hook::SyscallExit { name: "sys_exit_setreuid" }),
    HookProbe::at::<OwnCredentials>(Feature::Credentials, Hook::SyscallExit { name: "sys_exit_setregid" }),
    HookProbe::at::<OwnCredentials>(Feature::Credentials, Hook::SyscallExit { name: "sys_exit_setresuid" }),
    HookProbe::at::<OwnCredentials>(Feature::Credentials, Hook::SyscallExit { name: "sys_exit_setresgid" }),
    HookProbe::at::<SockInitData>(Feature::SocketCreate, Hook::SocketCreate).only(&[("sk_protocol", TCP_OR_UDP)]),
    HookProbe::at::<SynSentIpv4>(Feature::ConnectIpv4, SET_STATE).only(&[("state", TCP_SYN_SENT), ("family", &[2])]),
    HookProbe::at::<SynSentIpv6>(Feature::ConnectIpv6, SET_STATE).only(&[("state", TCP_SYN_SENT), ("family", &[10])]),
    HookProbe::at::<AcceptedFile>(Feature::Accept, Hook::SyscallExit { name: "sys_exit_accept4" }),
    HookProbe::at::<AcceptedFile>(Feature::Accept, Hook::SyscallExit { name: "sys_exit_accept" }),
    HookProbe::at::<SetState>(Feature::TcpState, SET_STATE).only(&[("state", BEGIN_OR_END)]),
    HookProbe::at::<SockReleased>(Feature::SocketRelease, Hook::SocketRelease).only(&[("sk_protocol", TCP_OR_UDP)]),
    HookProbe::at::<SockDestruct>(Feature::SocketFree, DESTROY),
    // A UDP socket has no connection that could outlive it.
    HookProbe::at::<SockDestruct>(Feature::SocketFree, Hook::SocketRelease).only(&[("sk_protocol", UDP)]),
    HookProbe::at::<Ipv4OutWithoutSk>(Feature::Ipv4Out, Hook::Egress)
        .only(&[("version_ihl", IPV4), ("protocol", TCP_OR_UDP)]),
    HookProbe::at::<TcpIpv6Leaves>(Feature::TcpIpv6Out, Hook::Egress).only(&[("version", IPV6), ("protocol", TCP)]),
    HookProbe::at::<UdpIpv6OutWithoutSk>(Feature::UdpIpv6Out, Hook::Egress)
        .only(&[("version", IPV6), ("next_header", UDP_OR_EXTENSION)]),
    HookProbe::at::<Ipv4Arrives>(Feature::TcpIpv4In, Hook::Ingress)
        .only(&[("version", IPV4), ("protocol", TCP_OR_UDP)]),
    HookProbe::at::<Ipv6Arrives>(Feature::TcpIpv6In, Hook::Ingress)
        .only(&[("version", IPV6), ("protocol", TCP_OR_UDP)]),
    // After the packet itself.
    HookProbe::at::<Ipv4Request>(Feature::ConnectionRequest, Hook::Ingress).only(&[
        ("version", IPV4),
        ("protocol", TCP),
        ("flags", SYN),
    ]),
    HookProbe::at::<Ipv6Request>(Feature::ConnectionRequest, Hook::Ingress).only(&[
        ("version", IPV6),
        ("protocol", TCP),
        ("flags", SYN),
    ]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_condition_is_about_a_field() {
        for probe in HOOKS {
            for (name, values) in probe.conditions {
                let mut fields = probe.fetches.iter().chain(FURTHER_FIELDS);
                assert!(fields.any(|fetch| fetch.name == *name) && !values.is_empty(), "{}: {name}", probe.feature);
            }
        }
    }
}
