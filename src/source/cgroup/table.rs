//! The probes that serve each feature: hooks and tracepoints.

use socktrail_kprobes::{Fetch, Hook, Target, Type};

use super::packets::{Ipv4Arrives, Ipv4Leaves, Ipv4Request, Ipv6Arrives, Ipv6Leaves, Ipv6Request};
use super::processes::{OwnCredentials, ProcessExecuted};
use super::sockets::{AcceptedFile, SockReleased, StateEntered, SynSentIpv4, SynSentIpv6};
use crate::model::feature::Feature;
use crate::source::kprobes::Probe;
use crate::source::kprobes::processes::{ProcessExit, WakeUpNewTask};
use crate::source::kprobes::program::{ExecFile, ExecMounts};
use crate::source::kprobes::sockets::{SockDestruct, SockInitData};

const FORK: Hook = Hook::RawTracepoint { name: "sched_process_fork", arguments: &["parent", "p"] };
const EXEC: Hook = Hook::RawTracepoint { name: "sched_process_exec", arguments: &["p", "old_pid", "bprm"] };
const SET_STATE: Hook = Hook::RawTracepoint { name: "inet_sock_set_state", arguments: &["sk", "old_state", "state"] };
const DESTROY: Hook = Hook::RawTracepoint { name: "tcp_destroy_sock", arguments: &["sk"] };

/// Fields that only conditions use: no sample has them.
pub(super) const FURTHER_FIELDS: &[Fetch<'static>] = &[
    Fetch::constant("sk_protocol", "+{sock.sk_protocol}({sk})", Type::U16),
    Fetch::constant("accepted_protocol", "+{sock.sk_protocol}(+{socket.sk}(+{file.private_data}($file)))", Type::U16),
    Fetch::constant("receiver_type", "+{sock.sk_type}(+{sk_buff.sk}({skb}))", Type::U16),
];

/// The first byte of an IPv4 header: version, and header length in units of 4 bytes.
const IPV4: &[i32] = &[0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e, 0x4f];
/// The first byte of an IPv6 header: version, and a part of the traffic class.
const IPV6: &[i32] = &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f];
/// TCP and UDP, and the extension headers that may come before them, but neither ESP, which is encrypted, nor AH, behind which the
/// transport header is not where the kernel says.
const NEXT_HEADER: &[i32] = &[6, 17, 0, 43, 44, 60];
/// `SOCK_STREAM`, `SOCK_DGRAM`: raw sockets get copies of packets that other sockets receive.
const STREAM_OR_DGRAM: &[i32] = &[1, 2];
/// `SOCK_STREAM`
const STREAM: &[i32] = &[1];
const TCP: &[i32] = &[6];
const UDP: &[i32] = &[17];
const TCP_OR_UDP: &[i32] = &[6, 17];
/// `TCP_ESTABLISHED`, `TCP_CLOSE`.
const BEGIN_OR_END: &[i32] = &[1, 7];
const TCP_SYN_SENT: &[i32] = &[2];
/// TCP's flags of a request: SYN, with or without ECN's flags (RFC 3168).
const SYN: &[i32] = &[0x02, 0xc2];

/// All probes. Those of processes are attached first, so that a socket's owner is known before the socket; then those that
/// count packets, in the order of `attach_order`; then the rest, as listed. Several may serve one feature, all of them at once.
pub(in crate::source) const PROBES: &[(Feature, Probe)] = &[
    (Feature::ProcessFork, Probe::hook::<WakeUpNewTask>(FORK)),
    // New credentials are the first event of an exec.
    (Feature::Credentials, Probe::hook::<OwnCredentials>(EXEC)),
    (Feature::ProcessExec, Probe::hook::<ProcessExecuted>(EXEC)),
    (Feature::ProcessFile, Probe::hook::<ExecFile>(EXEC)),
    (Feature::ProcessMounts, Probe::hook::<ExecMounts>(EXEC)),
    (Feature::Credentials, Probe::hook::<OwnCredentials>(returns("sys_exit_setuid"))),
    (Feature::Credentials, Probe::hook::<OwnCredentials>(returns("sys_exit_setgid"))),
    (Feature::Credentials, Probe::hook::<OwnCredentials>(returns("sys_exit_setreuid"))),
    (Feature::Credentials, Probe::hook::<OwnCredentials>(returns("sys_exit_setregid"))),
    (Feature::Credentials, Probe::hook::<OwnCredentials>(returns("sys_exit_setresuid"))),
    (Feature::Credentials, Probe::hook::<OwnCredentials>(returns("sys_exit_setresgid"))),
    (
        Feature::ProcessExit,
        Probe::at::<ProcessExit>(Target::Tracepoint { category: "sched", name: "sched_process_exit" }),
    ),
    (Feature::SocketCreate, Probe::hook::<SockInitData>(Hook::SocketCreate).when(&[("sk_protocol", TCP_OR_UDP)])),
    (
        Feature::ConnectIpv4,
        Probe::hook::<SynSentIpv4>(SET_STATE).when(&[("sk_protocol", TCP), ("state", TCP_SYN_SENT), ("family", &[2])]),
    ),
    (
        Feature::ConnectIpv6,
        Probe::hook::<SynSentIpv6>(SET_STATE).when(&[("sk_protocol", TCP), ("state", TCP_SYN_SENT), ("family", &[10])]),
    ),
    (Feature::Accept, Probe::hook::<AcceptedFile>(returns("sys_exit_accept4")).when(&[("accepted_protocol", TCP)])),
    (Feature::Accept, Probe::hook::<AcceptedFile>(returns("sys_exit_accept")).when(&[("accepted_protocol", TCP)])),
    (Feature::TcpState, Probe::hook::<StateEntered>(SET_STATE).when(&[("sk_protocol", TCP), ("state", BEGIN_OR_END)])),
    (Feature::SocketRelease, Probe::hook::<SockReleased>(Hook::SocketRelease).when(&[("sk_protocol", TCP_OR_UDP)])),
    (Feature::SocketFree, Probe::hook::<SockDestruct>(DESTROY)),
    // UDP sockets do not have this tracepoint: their entries end at the release, although datagrams may still arrive for a moment.
    (Feature::SocketFree, Probe::hook::<SockReleased>(Hook::SocketRelease).when(&[("sk_protocol", UDP)])),
    // TCP and UDP share these hooks; the features are named after TCP. If nothing is counted, arriving packets are attached first,
    // as `attach_order` has it else.
    (
        Feature::TcpIpv4In,
        Probe::hook::<Ipv4Arrives>(Hook::Ingress).when(&[
            ("version", IPV4),
            ("protocol", TCP_OR_UDP),
            ("next_header", TCP_OR_UDP),
            ("receiver_type", STREAM_OR_DGRAM),
        ]),
    ),
    (
        Feature::TcpIpv6In,
        Probe::hook::<Ipv6Arrives>(Hook::Ingress).when(&[
            ("version", IPV6),
            ("protocol", TCP_OR_UDP),
            ("next_header", NEXT_HEADER),
            ("receiver_type", STREAM_OR_DGRAM),
        ]),
    ),
    // Attached after the packets, so that the flow exists when its request is sampled.
    (
        Feature::ConnectionRequest,
        Probe::hook::<Ipv4Request>(Hook::Ingress).when(&[
            ("version", IPV4),
            ("protocol", TCP),
            ("receiver_type", STREAM),
            ("flags", SYN),
        ]),
    ),
    (
        Feature::ConnectionRequest,
        Probe::hook::<Ipv6Request>(Hook::Ingress).when(&[
            ("version", IPV6),
            ("protocol", TCP),
            ("receiver_type", STREAM),
            ("flags", SYN),
        ]),
    ),
    (
        Feature::Ipv4Out,
        Probe::hook::<Ipv4Leaves>(Hook::Egress).when(&[
            ("version", IPV4),
            ("protocol", TCP_OR_UDP),
            ("next_header", TCP_OR_UDP),
        ]),
    ),
    (
        Feature::TcpIpv6Out,
        Probe::hook::<Ipv6Leaves>(Hook::Egress).when(&[
            ("version", IPV6),
            ("protocol", TCP_OR_UDP),
            ("next_header", NEXT_HEADER),
        ]),
    ),
];

/// The return of a system call.
const fn returns(name: &'static str) -> Hook {
    Hook::SyscallExit { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_condition_is_about_a_field() {
        for (feature, probe) in PROBES {
            for (name, values) in probe.conditions {
                let mut fields = probe.fetches.iter().chain(FURTHER_FIELDS);
                assert!(fields.any(|fetch| fetch.name == *name) && !values.is_empty(), "{feature}: {name}");
            }
        }
    }
}
