//! The table of probes for socket events.
//!
//! Before Linux 4.17 there is no `__sys_connect`. `sys_connect`, another name of `SyS_connect`, is the system call itself, and
//! takes its arguments in registers like any function.

use super::calls::{
    Accepts, Binds, Connecting, Connects, Created, EntersAccept, EntersBind, EntersConnect, EntersListen,
    EntersSetSockOpt, EntersSocket, EntersSocketFile, Grafted, Listens, Released, ReleasedWithoutInode, ReturnsAccept,
    ReturnsAcceptFile, ReturnsBind, ReturnsBindSocket, ReturnsConnect, ReturnsConnectFile, ReturnsDoAccept,
    ReturnsDoSetSockOpt, ReturnsListen, ReturnsListenSocket, ReturnsSetSockOpt, ReturnsSocket, ReturnsSocketFile, Sets,
};
use super::probe::Probe;
use super::table::{TCP_IPV4, UDP_IPV4};
use crate::model::feature::Feature;

/// All features for socket events, each with the probes that can serve it, the best first.
pub const CALLS: &[(Feature, &[Probe])] = &[
    (
        Feature::CreateCall,
        &[
            Probe::entry::<EntersSocket>("__sys_socket").hit_by(UDP_IPV4),
            Probe::entry::<EntersSocket>("sys_socket").hit_by(UDP_IPV4),
        ],
    ),
    (Feature::CreateSocket, &[Probe::entry::<Created>("security_socket_post_create").hit_by(UDP_IPV4).only("kern==0")]),
    (
        Feature::CreateResult,
        &[
            Probe::exit::<ReturnsSocket>("__sys_socket").hit_by(UDP_IPV4),
            Probe::exit::<ReturnsSocket>("sys_socket").hit_by(UDP_IPV4),
        ],
    ),
    (Feature::CreateUringCall, &[Probe::entry::<EntersSocketFile>("__sys_socket_file")]),
    (Feature::CreateUringResult, &[Probe::exit::<ReturnsSocketFile>("__sys_socket_file")]),
    (
        Feature::BindCall,
        &[
            Probe::entry::<EntersBind>("__sys_bind").hit_by(UDP_IPV4),
            Probe::entry::<EntersBind>("sys_bind").hit_by(UDP_IPV4),
        ],
    ),
    (Feature::BindSocket, &[Probe::entry::<Binds>("security_socket_bind").hit_by(UDP_IPV4)]),
    (
        Feature::BindResult,
        &[
            Probe::exit::<ReturnsBind>("__sys_bind").hit_by(UDP_IPV4),
            Probe::exit::<ReturnsBind>("sys_bind").hit_by(UDP_IPV4),
        ],
    ),
    (Feature::BindUringResult, &[Probe::exit::<ReturnsBindSocket>("__sys_bind_socket")]),
    (
        Feature::ListenCall,
        &[
            Probe::entry::<EntersListen>("__sys_listen").hit_by(TCP_IPV4),
            Probe::entry::<EntersListen>("sys_listen").hit_by(TCP_IPV4),
        ],
    ),
    (Feature::ListenSocket, &[Probe::entry::<Listens>("security_socket_listen").hit_by(TCP_IPV4)]),
    (
        Feature::ListenResult,
        &[
            Probe::exit::<ReturnsListen>("__sys_listen").hit_by(TCP_IPV4),
            Probe::exit::<ReturnsListen>("sys_listen").hit_by(TCP_IPV4),
        ],
    ),
    (Feature::ListenUringResult, &[Probe::exit::<ReturnsListenSocket>("__sys_listen_socket")]),
    (
        Feature::AcceptCall,
        &[
            Probe::entry::<EntersAccept>("__sys_accept4").hit_by(TCP_IPV4),
            Probe::entry::<EntersAccept>("sys_accept4").hit_by(TCP_IPV4),
        ],
    ),
    (Feature::AcceptSocket, &[Probe::entry::<Accepts>("security_socket_accept").hit_by(TCP_IPV4)]),
    (Feature::AcceptConnection, &[Probe::entry::<Grafted>("security_sock_graft").hit_by(TCP_IPV4)]),
    (
        Feature::AcceptResult,
        &[
            Probe::exit::<ReturnsAccept>("__sys_accept4").hit_by(TCP_IPV4),
            Probe::exit::<ReturnsAccept>("sys_accept4").hit_by(TCP_IPV4),
        ],
    ),
    (
        Feature::AcceptUringResult,
        &[Probe::exit::<ReturnsDoAccept>("do_accept"), Probe::exit::<ReturnsAcceptFile>("__sys_accept4_file")],
    ),
    (
        Feature::ConnectCall,
        &[
            Probe::entry::<EntersConnect>("__sys_connect").hit_by(TCP_IPV4),
            Probe::entry::<EntersConnect>("sys_connect").hit_by(TCP_IPV4),
        ],
    ),
    (Feature::ConnectSocket, &[Probe::entry::<Connects>("security_socket_connect").hit_by(TCP_IPV4)]),
    (Feature::ConnectLocal, &[Probe::entry::<Connecting>("tcp_connect").hit_by(TCP_IPV4)]),
    (
        Feature::ConnectResult,
        &[
            Probe::exit::<ReturnsConnect>("__sys_connect").hit_by(TCP_IPV4),
            Probe::exit::<ReturnsConnect>("sys_connect").hit_by(TCP_IPV4),
        ],
    ),
    (Feature::ConnectUringResult, &[Probe::exit::<ReturnsConnectFile>("__sys_connect_file")]),
    (
        Feature::SetSockOptCall,
        &[
            Probe::entry::<EntersSetSockOpt>("__sys_setsockopt").hit_by(TCP_IPV4),
            Probe::entry::<EntersSetSockOpt>("sys_setsockopt").hit_by(TCP_IPV4),
        ],
    ),
    (Feature::SetSockOptSocket, &[Probe::entry::<Sets>("security_socket_setsockopt").hit_by(TCP_IPV4)]),
    (
        Feature::SetSockOptResult,
        &[
            Probe::exit::<ReturnsSetSockOpt>("__sys_setsockopt").hit_by(TCP_IPV4),
            Probe::exit::<ReturnsSetSockOpt>("sys_setsockopt").hit_by(TCP_IPV4),
        ],
    ),
    (Feature::SetSockOptUringResult, &[Probe::exit::<ReturnsDoSetSockOpt>("do_sock_setsockopt")]),
    (
        Feature::SocketClose,
        &[
            Probe::entry::<Released>("__sock_release").hit_by(UDP_IPV4).only("inode!=0"),
            // Before Linux 4.19, a close passes here, too.
            Probe::entry::<ReleasedWithoutInode>("sock_release").hit_by(UDP_IPV4),
            // The compiler may have inlined it into the only caller for a close.
            Probe::entry::<ReleasedWithoutInode>("inet_release")
                .hit_by(UDP_IPV4)
                .but("the close of sockets of other families than IPv4 and IPv6"),
        ],
    ),
];
