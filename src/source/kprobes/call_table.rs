//! The table of probes for socket events.
//!
//! Before Linux 4.17 there are no `__sys_*` functions. There, `sys_connect` and the like are the system calls themselves,
//! and a probe finds the arguments in registers, as in any function, or on the stack on 32-bit x86 (newer kernels pass a
//! `pt_regs` instead). Symbol tables list them also as `SyS_connect`.

use super::calls::{
    AcceptEntry, AcceptFileReturn, AcceptHook, AcceptReturn, BindEntry, BindHook, BindReturn, BindSocketReturn,
    ConnectEntry, ConnectFileReturn, ConnectHook, ConnectReturn, CreateHook, DoAcceptReturn, DoSetSockOptReturn,
    GraftHook, ListenEntry, ListenHook, ListenReturn, ListenSocketReturn, SetSockOptEntry, SetSockOptHook,
    SetSockOptReturn, SockRelease, SockReleaseWithoutInode, SocketEntry, SocketFileEntry, SocketFileReturn,
    SocketReturn, TcpConnect,
};
use super::probe::Probe;
use super::table::{TCP_IPV4, UDP_IPV4};
use crate::model::feature::Feature;

/// All features for socket events, each with the probes that can serve it, the best first.
pub const SOCKET_EVENT_PROBES: &[(Feature, &[Probe])] = &[
    (
        Feature::CreateCall,
        &[
            Probe::entry::<SocketEntry>("__sys_socket").hit_by(UDP_IPV4),
            Probe::entry::<SocketEntry>("sys_socket").hit_by(UDP_IPV4),
        ],
    ),
    (
        Feature::CreateSocket,
        &[Probe::entry::<CreateHook>("security_socket_post_create").hit_by(UDP_IPV4).only("kern==0")],
    ),
    (
        Feature::CreateResult,
        &[
            Probe::exit::<SocketReturn>("__sys_socket").hit_by(UDP_IPV4),
            Probe::exit::<SocketReturn>("sys_socket").hit_by(UDP_IPV4),
        ],
    ),
    (Feature::CreateUringCall, &[Probe::entry::<SocketFileEntry>("__sys_socket_file")]),
    (Feature::CreateUringResult, &[Probe::exit::<SocketFileReturn>("__sys_socket_file")]),
    (
        Feature::BindCall,
        &[
            Probe::entry::<BindEntry>("__sys_bind").hit_by(UDP_IPV4),
            Probe::entry::<BindEntry>("sys_bind").hit_by(UDP_IPV4),
        ],
    ),
    (Feature::BindSocket, &[Probe::entry::<BindHook>("security_socket_bind").hit_by(UDP_IPV4)]),
    (
        Feature::BindResult,
        &[
            Probe::exit::<BindReturn>("__sys_bind").hit_by(UDP_IPV4),
            Probe::exit::<BindReturn>("sys_bind").hit_by(UDP_IPV4),
        ],
    ),
    (Feature::BindUringResult, &[Probe::exit::<BindSocketReturn>("__sys_bind_socket")]),
    (
        Feature::ListenCall,
        &[
            Probe::entry::<ListenEntry>("__sys_listen").hit_by(TCP_IPV4),
            Probe::entry::<ListenEntry>("sys_listen").hit_by(TCP_IPV4),
        ],
    ),
    (Feature::ListenSocket, &[Probe::entry::<ListenHook>("security_socket_listen").hit_by(TCP_IPV4)]),
    (
        Feature::ListenResult,
        &[
            Probe::exit::<ListenReturn>("__sys_listen").hit_by(TCP_IPV4),
            Probe::exit::<ListenReturn>("sys_listen").hit_by(TCP_IPV4),
        ],
    ),
    (Feature::ListenUringResult, &[Probe::exit::<ListenSocketReturn>("__sys_listen_socket")]),
    (
        Feature::AcceptCall,
        &[
            Probe::entry::<AcceptEntry>("__sys_accept4").hit_by(TCP_IPV4),
            Probe::entry::<AcceptEntry>("sys_accept4").hit_by(TCP_IPV4),
        ],
    ),
    (Feature::AcceptSocket, &[Probe::entry::<AcceptHook>("security_socket_accept").hit_by(TCP_IPV4)]),
    (Feature::AcceptConnection, &[Probe::entry::<GraftHook>("security_sock_graft").hit_by(TCP_IPV4)]),
    (
        Feature::AcceptResult,
        &[
            Probe::exit::<AcceptReturn>("__sys_accept4").hit_by(TCP_IPV4),
            Probe::exit::<AcceptReturn>("sys_accept4").hit_by(TCP_IPV4),
        ],
    ),
    (
        Feature::AcceptUringResult,
        &[Probe::exit::<DoAcceptReturn>("do_accept"), Probe::exit::<AcceptFileReturn>("__sys_accept4_file")],
    ),
    (
        Feature::ConnectCall,
        &[
            Probe::entry::<ConnectEntry>("__sys_connect").hit_by(TCP_IPV4),
            Probe::entry::<ConnectEntry>("sys_connect").hit_by(TCP_IPV4),
        ],
    ),
    (Feature::ConnectSocket, &[Probe::entry::<ConnectHook>("security_socket_connect").hit_by(TCP_IPV4)]),
    (Feature::ConnectLocal, &[Probe::entry::<TcpConnect>("tcp_connect").hit_by(TCP_IPV4)]),
    (
        Feature::ConnectResult,
        &[
            Probe::exit::<ConnectReturn>("__sys_connect").hit_by(TCP_IPV4),
            Probe::exit::<ConnectReturn>("sys_connect").hit_by(TCP_IPV4),
        ],
    ),
    (Feature::ConnectUringResult, &[Probe::exit::<ConnectFileReturn>("__sys_connect_file")]),
    (
        Feature::SetSockOptCall,
        &[
            Probe::entry::<SetSockOptEntry>("__sys_setsockopt").hit_by(TCP_IPV4),
            Probe::entry::<SetSockOptEntry>("sys_setsockopt").hit_by(TCP_IPV4),
        ],
    ),
    (Feature::SetSockOptSocket, &[Probe::entry::<SetSockOptHook>("security_socket_setsockopt").hit_by(TCP_IPV4)]),
    (
        Feature::SetSockOptResult,
        &[
            Probe::exit::<SetSockOptReturn>("__sys_setsockopt").hit_by(TCP_IPV4),
            Probe::exit::<SetSockOptReturn>("sys_setsockopt").hit_by(TCP_IPV4),
        ],
    ),
    (Feature::SetSockOptUringResult, &[Probe::exit::<DoSetSockOptReturn>("do_sock_setsockopt")]),
    (
        Feature::SocketClose,
        &[
            Probe::entry::<SockRelease>("__sock_release").hit_by(UDP_IPV4).only("inode!=0"),
            // Before Linux 4.18 there is no `__sock_release`: `sock_close` calls `sock_release`, as the kernel does for its own
            // sockets. (Stable releases of older kernels have `__sock_release` since June 2018.)
            Probe::entry::<SockReleaseWithoutInode>("sock_release").hit_by(UDP_IPV4),
            // For kernels whose compiler inlined `sock_release` (or `__sock_release`) into `sock_close`.
            Probe::entry::<SockReleaseWithoutInode>("inet_release")
                .hit_by(UDP_IPV4)
                .with_weakness("closes of sockets of other families than IPv4 and IPv6 are not seen"),
        ],
    ),
];
