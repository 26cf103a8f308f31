//! The table of probes on calls: what makes socket events.

use super::calls::{
    Accepts, Binds, Connecting, Connects, Created, EntersAccept, EntersBind, EntersConnect, EntersListen,
    EntersSetSockOpt, EntersSocket, EntersSocketFile, Grafted, Listens, Released, ReleasedWithoutInode, ReturnsAccept,
    ReturnsAcceptFile, ReturnsBind, ReturnsBindSocket, ReturnsConnect, ReturnsConnectFile, ReturnsDoAccept,
    ReturnsDoSetSockOpt, ReturnsListen, ReturnsListenSocket, ReturnsSetSockOpt, ReturnsSocket, ReturnsSocketFile, Sets,
};
use super::table::{Feature, Probe};
use super::trial;

/// Every feature of socket events with the probes that can serve it, the best first.
pub const CALLS: &[(Feature, &[Probe])] = &[
    (Feature::CreateCall, &[Probe::entry::<EntersSocket>("__sys_socket")]),
    (Feature::CreateSocket, &[Probe::entry::<Created>("security_socket_post_create").only("kern==0")]),
    (Feature::CreateResult, &[Probe::exit::<ReturnsSocket>("__sys_socket")]),
    (Feature::CreateUringCall, &[Probe::entry::<EntersSocketFile>("__sys_socket_file")]),
    (Feature::CreateUringResult, &[Probe::exit::<ReturnsSocketFile>("__sys_socket_file")]),
    (Feature::BindCall, &[Probe::entry::<EntersBind>("__sys_bind")]),
    (Feature::BindSocket, &[Probe::entry::<Binds>("security_socket_bind")]),
    (Feature::BindResult, &[Probe::exit::<ReturnsBind>("__sys_bind")]),
    (Feature::BindUringResult, &[Probe::exit::<ReturnsBindSocket>("__sys_bind_socket")]),
    (Feature::ListenCall, &[Probe::entry::<EntersListen>("__sys_listen")]),
    (Feature::ListenSocket, &[Probe::entry::<Listens>("security_socket_listen")]),
    (Feature::ListenResult, &[Probe::exit::<ReturnsListen>("__sys_listen")]),
    (Feature::ListenUringResult, &[Probe::exit::<ReturnsListenSocket>("__sys_listen_socket")]),
    (Feature::AcceptCall, &[Probe::entry::<EntersAccept>("__sys_accept4")]),
    (Feature::AcceptSocket, &[Probe::entry::<Accepts>("security_socket_accept")]),
    (Feature::AcceptConnection, &[Probe::entry::<Grafted>("security_sock_graft")]),
    (Feature::AcceptResult, &[Probe::exit::<ReturnsAccept>("__sys_accept4")]),
    (
        Feature::AcceptUringResult,
        &[Probe::exit::<ReturnsDoAccept>("do_accept"), Probe::exit::<ReturnsAcceptFile>("__sys_accept4_file")],
    ),
    (Feature::ConnectCall, &[Probe::entry::<EntersConnect>("__sys_connect")]),
    (Feature::ConnectSocket, &[Probe::entry::<Connects>("security_socket_connect")]),
    (Feature::ConnectLocal, &[Probe::entry::<Connecting>("tcp_connect")]),
    (Feature::ConnectResult, &[Probe::exit::<ReturnsConnect>("__sys_connect")]),
    (Feature::ConnectUringResult, &[Probe::exit::<ReturnsConnectFile>("__sys_connect_file")]),
    (Feature::SetSockOptCall, &[Probe::entry::<EntersSetSockOpt>("__sys_setsockopt")]),
    (Feature::SetSockOptSocket, &[Probe::entry::<Sets>("security_socket_setsockopt")]),
    (Feature::SetSockOptResult, &[Probe::exit::<ReturnsSetSockOpt>("__sys_setsockopt")]),
    (Feature::SetSockOptUringResult, &[Probe::exit::<ReturnsDoSetSockOpt>("do_sock_setsockopt")]),
    (
        Feature::SocketClose,
        &[
            Probe::entry::<Released>("__sock_release").only("inode!=0"),
            // Before Linux 4.19 a close comes here, too.
            Probe::entry::<ReleasedWithoutInode>("sock_release").tried_by(trial::close_socket),
        ],
    ),
];
