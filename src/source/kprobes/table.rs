//! The table of probes for flows and processes.

use socktrail_kprobes::Target;

use super::probe::Probe;
use super::self_test::Traffic;
use super::{child_group, packets, processes, program, sockets};
use crate::model::feature::Feature;

/// Traffic of the self-test that hits probes on creating, binding and closing sockets, and on receiving datagrams.
pub(super) const UDP_IPV4: &[Traffic] = &[Traffic::UdpIpv4];
/// Traffic of the self-test that hits probes on listening, connecting, accepting, socket options and resets.
pub(super) const TCP_IPV4: &[Traffic] = &[Traffic::TcpIpv4];
const UDP_IPV6: &[Traffic] = &[Traffic::UdpIpv6];
const TCP_IPV6: &[Traffic] = &[Traffic::TcpIpv6];
const SENT_IPV4: &[Traffic] = &[Traffic::UdpIpv4, Traffic::TcpIpv4];

/// All features for flows and processes, each with the probes that can serve it, the best first.
pub const FLOW_PROBES: &[(Feature, &[Probe])] = {
    use child_group::GroupLookup;
    use packets::{
        EarlyPacketFreed, EarlyPacketsFreed, IcmpIpv4, IcmpIpv6, Ipv4Fragmented, Ipv4FragmentedWithoutSk, Ipv4Out,
        Ipv4OutWithoutNet, Ipv4OutWithoutSk, Ipv6Fragmented, Ipv6FragmentedWithoutSk, Ipv6Headers, PacketDropped,
        PacketDroppedForReason, PacketFreed, PacketFreedForReason, PacketsFreed, TcpIpv4In, TcpIpv6In, TcpIpv6Out,
        UdpIpv4In, UdpIpv6In, UdpIpv6Out, UdpIpv6OutWithoutNet, UdpIpv6OutWithoutSk,
    };
    use processes::{BprmCommittedCreds, CgroupAttach, CgroupPostFork, CommitCreds, ProcessExit, WakeUpNewTask};
    use program::{ExecFile, ExecMounts};
    use sockets::{
        AddSubflow, ConnRequest, ConnectIpv4, ConnectIpv6, ControlMessage, CskAcceptReturn, DatagramOption,
        ErrorReport, InetRelease, SetState, SockDestruct, SockGraft, SockInitData, SubflowEvent, TcpConnectReturn,
    };
    // Extension headers: routing, fragment, destination options (RFC 8200). Hop-by-hop options occur only in the messages by
    // which hosts join multicast groups (MLD).
    const UDP_OR_EXTENSION: &str = "next_header==17||next_header==43||next_header==44||next_header==60";
    // Both addresses are 127.0.0.1, in the memory order of a little-endian machine, or ::1. Filters have no `!` before Linux 3.19.
    const NOT_LOOPBACK_IPV4: &str = "addresses!=0x0100007f0100007f";
    const NOT_LOOPBACK_IPV6: &str =
        "(source_high!=0||source_low!=0x0100000000000000||destination_high!=0||destination_low!=0x0100000000000000)";
    // Forwarded packets have no socket.
    const OF_A_SOCKET: &str = "sk!=0";
    // Packets that have not come to a device yet (no `sk_buff.mac_header`). This excludes packets that a driver has sent and
    // now frees, and all incoming packets, also forwarded ones. The kernel's own resets and replies (TCP over IPv6, SYN
    // cookies) have no sending socket, but a protocol (the lowest 16 bits).
    macro_rules! before_device {
        () => {
            "places>=0xffff000000000000&&(sk!=0||places&0xffff)"
        };
    }
    const BEFORE_DEVICE: &str = concat!("skb!=0&&", before_device!());
    // Before Linux 3.18. Filters of RHEL 7's 3.10 have no `&`.
    const EARLY_BEFORE_DEVICE: &str = "skb!=0&&sk!=0&&mac==0xffff";
    // Packets that a queue has not passed to its driver, as far as a filter can tell: see `AtDevice`. In a segment that was made
    // for the driver, `pkt_len` is the size of the whole packet, which is mostly larger than a frame. The decoder compares it with
    // `len`.
    macro_rules! before_driver {
        () => {
            "((mac_len==0&&prev==0)||(mac_len!=0&&(pkt_len<10000||len>=10000)))"
        };
    }
    // Sent by this host, not forwarded: the packet has a socket, or it is a reply that the kernel made without one. A forwarded
    // packet has a `mac_len` from the device that it arrived at, a reply has none. Clones are excluded, because the copies for a
    // packet socket look the same.
    macro_rules! made_here {
        () => {
            "(sk!=0||(mac_len==0&&!(cloned&1)&&places<0xffff000000000000))"
        };
    }
    // Drivers free sent packets without a reason, or as consumed (up to 2 in `enum skb_drop_reason`). From 5.18 on, `tc` filters
    // always give a reason. Only a packet that was in a queue has an enqueue time.
    const DROPPED: &str = concat!(
        "skb!=0&&((",
        before_device!(),
        ")||(",
        made_here!(),
        "&&({from_drop_function}||(enqueued!=0&&",
        before_driver!(),
        "))))"
    );
    const DROPPED_OR_FOR_REASON: &str = concat!(
        "skb!=0&&((",
        before_device!(),
        ")||(",
        made_here!(),
        "&&(reason>2||{from_drop_function}||(enqueued!=0&&",
        before_driver!(),
        "))))"
    );
    // The same if function addresses are hidden.
    const DROPPED_WITHOUT_CALLERS: &str =
        concat!("skb!=0&&((", before_device!(), ")||(", made_here!(), "&&", before_driver!(), "))");
    const DROPPED_OR_FOR_REASON_WITHOUT_CALLERS: &str =
        concat!("skb!=0&&((", before_device!(), ")||(", made_here!(), "&&(reason>2||", before_driver!(), ")))");
    const BEFORE_DEVICE_OR_FOR_REASON: &str = concat!("skb!=0&&((", before_device!(), ")||(sk!=0&&reason>2))");
    // Lists of packets that have not come to a device are left to the function for single packets, which older kernels call for
    // each of them. Forwarded packets are excluded, because they count as sent by the host or container that made them.
    const AT_DEVICE: &str = concat!("skb!=0&&places<0xffff000000000000&&", made_here!());
    // Before Linux 3.19, where filters have no `!`.
    const AT_DEVICE_OF_SOCKET: &str = "skb!=0&&sk!=0&&places<0xffff000000000000";
    // Before Linux 3.18.
    const EARLY_AT_DEVICE: &str = "skb!=0&&sk!=0&&mac!=0xffff";
    const QUEUED_WITHOUT_SOCKET_UNSEEN: &str = "packets without a socket that a queue drops count as sent";
    const AT_DEVICE_UNSEEN: &str =
        "packets that tc filters drop, or that a queue drops after it has accepted them, count as sent";
    const BEFORE_4_2: &str = "received IPv4 fragments without the DF flag count as one packet";
    // UDP_SEGMENT, UDP_GRO.
    const GSO_OR_GRO: &str = "optname==103||optname==104";
    // CLONE_INTO_CGROUP.
    const INTO_CGROUP: &str = "flags&0x200000000";
    const INET: &str = "family==2||family==10";
    // MPTCP_EVENT_CREATED, MPTCP_EVENT_SUB_ESTABLISHED.
    const ESTABLISHED: &str = "kind==1||kind==10";
    &[
        // Processes come first, so that a socket's owner is known before the socket.
        (Feature::ProcessFork, &[Probe::entry::<WakeUpNewTask>("wake_up_new_task")]),
        (Feature::ProcessExec, &[Probe::entry::<BprmCommittedCreds>("security_bprm_committed_creds")]),
        (Feature::ProcessFile, &[Probe::entry::<ExecFile>("security_bprm_committed_creds")]),
        (Feature::ProcessMounts, &[Probe::entry::<ExecMounts>("security_bprm_committed_creds")]),
        (
            Feature::ProcessExit,
            &[
                Probe::at::<ProcessExit>(Target::Tracepoint { category: "sched", name: "sched_process_exit" }),
                Probe::entry::<ProcessExit>("do_exit"),
            ],
        ),
        (Feature::Credentials, &[Probe::entry::<CommitCreds>("commit_creds")]),
        (
            Feature::ControlGroup,
            &[Probe::at::<CgroupAttach>(Target::Tracepoint { category: "cgroup", name: "cgroup_attach_task" })],
        ),
        (Feature::ControlGroupOfChild, &[Probe::entry::<CgroupPostFork>("cgroup_post_fork").only(INTO_CGROUP)]),
        (Feature::ControlGroupLookup, &[Probe::entry::<GroupLookup>("css_tryget_online_from_dir").only("ss==0")]),
        (Feature::SocketCreate, &[Probe::entry::<SockInitData>("sock_init_data").hit_by(UDP_IPV4).only(INET)]),
        (Feature::ConnectIpv4, &[Probe::entry::<ConnectIpv4>("tcp_v4_connect").hit_by(TCP_IPV4)]),
        (Feature::ConnectIpv4Result, &[Probe::exit::<TcpConnectReturn>("tcp_v4_connect").hit_by(TCP_IPV4)]),
        (Feature::ConnectIpv6, &[Probe::entry::<ConnectIpv6>("tcp_v6_connect").hit_by(TCP_IPV6)]),
        (Feature::ConnectIpv6Result, &[Probe::exit::<TcpConnectReturn>("tcp_v6_connect").hit_by(TCP_IPV6)]),
        (
            Feature::Accept,
            &[
                Probe::entry::<SockGraft>("security_sock_graft").hit_by(TCP_IPV4).only(INET),
                Probe::exit::<CskAcceptReturn>("inet_csk_accept")
                    .hit_by(TCP_IPV4)
                    .with_weakness("accepts are missed if more tasks wait in accept(2) than maxactive of the return probe allows"),
            ],
        ),
        (Feature::ConnectionRequest, &[Probe::entry::<ConnRequest>("security_inet_conn_request").hit_by(TCP_IPV4)]),
        (Feature::TcpState, &[Probe::entry::<SetState>("tcp_set_state").hit_by(TCP_IPV4).only("state==1||state==7")]),
        (Feature::SocketErrors, &[Probe::entry::<ErrorReport>("sock_def_error_report").hit_by(TCP_IPV4).only("error!=0")]),
        (Feature::IcmpErrorIpv4, &[Probe::entry::<IcmpIpv4>("tcp_v4_err")]),
        (Feature::IcmpErrorIpv6, &[Probe::entry::<IcmpIpv6>("tcp_v6_err")]),
        (
            Feature::SubflowCreate,
            &[
                Probe::entry::<AddSubflow>("security_mptcp_add_subflow"),
                // For kernels before 6.5. They call this function only for subflows that join.
                Probe::entry::<AddSubflow>("mptcp_sockopt_sync"),
            ],
        ),
        (Feature::SubflowEstablish, &[Probe::entry::<SubflowEvent>("mptcp_event").only(ESTABLISHED)]),
        (Feature::SocketRelease, &[Probe::entry::<InetRelease>("inet_release").hit_by(UDP_IPV4)]),
        (Feature::SocketFree, &[Probe::entry::<SockDestruct>("inet_sock_destruct").hit_by(TCP_IPV4)]),
        (
            Feature::Ipv4Out,
            &[
                // `sk` is null for packets of tunnels and IGMP.
                // `ip_local_out` is small enough to be inlined into some of its callers (on 6.1 where SYN-ACKs are sent).
                // `__ip_local_out`, which it calls, is not.
                Probe::entry::<Ipv4Out>("__ip_local_out")
                    .hit_by(SENT_IPV4)
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .of_tcp_or_udp()
                    .nullable("sk"),
                Probe::entry::<Ipv4OutWithoutNet>("__ip_local_out_sk")
                    .hit_by(SENT_IPV4)
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .of_tcp_or_udp()
                    .nullable("sk"),
                Probe::entry::<Ipv4OutWithoutSk>("__ip_local_out")
                    .hit_by(SENT_IPV4)
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .of_tcp_or_udp()
                    .nullable("sk"),
                Probe::entry::<Ipv4Out>("ip_local_out")
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .of_tcp_or_udp()
                    .nullable("sk")
                    .hit_by(SENT_IPV4)
                    .unless_inlined(),
                Probe::entry::<Ipv4OutWithoutNet>("ip_local_out_sk")
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .of_tcp_or_udp()
                    .nullable("sk")
                    .hit_by(SENT_IPV4)
                    .unless_inlined(),
            ],
        ),
        (
            Feature::TcpIpv4In,
            &[Probe::entry::<TcpIpv4In>("tcp_v4_rcv").hit_by(TCP_IPV4).not_loopback(NOT_LOOPBACK_IPV4)],
        ),
        (
            Feature::UdpIpv4In,
            &[
                Probe::entry::<UdpIpv4In>("udp_queue_rcv_one_skb").hit_by(UDP_IPV4).not_loopback(NOT_LOOPBACK_IPV4),
                Probe::entry::<UdpIpv4In>("udp_queue_rcv_skb")
                    .hit_by(UDP_IPV4)
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .before_gro_split(),
            ],
        ),
        (
            Feature::TcpIpv6Out,
            &[Probe::entry::<TcpIpv6Out>("ip6_xmit")
                .hit_by(TCP_IPV6)
                .not_loopback(NOT_LOOPBACK_IPV6)
                .only("protocol==6")],
        ),
        (
            Feature::UdpIpv6Out,
            &[
                Probe::entry::<UdpIpv6Out>("__ip6_local_out")
                    .hit_by(UDP_IPV6)
                    .not_loopback(NOT_LOOPBACK_IPV6)
                    .only(UDP_OR_EXTENSION),
                Probe::entry::<UdpIpv6Out>("ip6_local_out")
                    .not_loopback(NOT_LOOPBACK_IPV6)
                    .only(UDP_OR_EXTENSION)
                    .hit_by(UDP_IPV6)
                    .unless_inlined(),
                // Before 4.4, `ip6_local_out` sends datagrams, and the packet is its only argument. The function that it calls
                // may be inlined into it: `__ip6_local_out_sk` from 4.1 on and in RHEL 7, `__ip6_local_out` before.
                Probe::entry::<UdpIpv6OutWithoutNet>("__ip6_local_out_sk")
                    .hit_by(UDP_IPV6)
                    .not_loopback(NOT_LOOPBACK_IPV6)
                    .only(UDP_OR_EXTENSION),
                Probe::entry::<UdpIpv6OutWithoutSk>("ip6_local_out")
                    .hit_by(UDP_IPV6)
                    .not_loopback(NOT_LOOPBACK_IPV6)
                    .only(UDP_OR_EXTENSION),
                Probe::entry::<UdpIpv6OutWithoutSk>("__ip6_local_out")
                    .hit_by(UDP_IPV6)
                    .not_loopback(NOT_LOOPBACK_IPV6)
                    .only(UDP_OR_EXTENSION),
            ],
        ),
        (
            Feature::TcpIpv6In,
            &[Probe::entry::<TcpIpv6In>("tcp_v6_rcv").hit_by(TCP_IPV6).not_loopback(NOT_LOOPBACK_IPV6)],
        ),
        (
            Feature::UdpIpv6In,
            &[
                Probe::entry::<UdpIpv6In>("udpv6_queue_rcv_one_skb").hit_by(UDP_IPV6).not_loopback(NOT_LOOPBACK_IPV6),
                Probe::entry::<UdpIpv6In>("udpv6_queue_rcv_skb")
                    .hit_by(UDP_IPV6)
                    .not_loopback(NOT_LOOPBACK_IPV6)
                    .before_gro_split(),
            ],
        ),
        // These functions are rarely called: packets with these headers are rare.
        (Feature::Ipv6DestinationOptions, &[Probe::entry::<Ipv6Headers>("ipv6_push_frag_opts")]),
        (Feature::Ipv6RoutingHeaders, &[Probe::entry::<Ipv6Headers>("ipv6_push_nfrag_opts")]),
        (
            Feature::Ipv4Fragments,
            &[
                Probe::entry::<Ipv4Fragmented>("ip_do_fragment").not_loopback(NOT_LOOPBACK_IPV4).only(OF_A_SOCKET),
                Probe::entry::<Ipv4FragmentedWithoutSk>("ip_do_fragment").not_loopback(NOT_LOOPBACK_IPV4).only(OF_A_SOCKET),
                Probe::entry::<Ipv4Fragmented>("ip_fragment")
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .only(OF_A_SOCKET)
                    .with_weakness(BEFORE_4_2),
                Probe::entry::<Ipv4FragmentedWithoutSk>("ip_fragment")
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .only(OF_A_SOCKET)
                    .with_weakness(BEFORE_4_2),
            ],
        ),
        (
            Feature::Ipv6Fragments,
            &[
                Probe::entry::<Ipv6Fragmented>("ip6_fragment").not_loopback(NOT_LOOPBACK_IPV6).only(OF_A_SOCKET),
                Probe::entry::<Ipv6FragmentedWithoutSk>("ip6_fragment").not_loopback(NOT_LOOPBACK_IPV6).only(OF_A_SOCKET),
            ],
        ),
        (
            Feature::LocalDrops,
            &[
                Probe::entry::<PacketDroppedForReason>("sk_skb_reason_drop").only(DROPPED_OR_FOR_REASON),
                Probe::entry::<PacketDroppedForReason>("sk_skb_reason_drop")
                    .only(DROPPED_OR_FOR_REASON_WITHOUT_CALLERS)
                    .with_driver_drops(),
                Probe::entry::<PacketFreedForReason>("sk_skb_reason_drop")
                    .only(BEFORE_DEVICE_OR_FOR_REASON)
                    .with_weakness(AT_DEVICE_UNSEEN),
                Probe::entry::<PacketDroppedForReason>("kfree_skb_reason").only(DROPPED_OR_FOR_REASON),
                Probe::entry::<PacketDroppedForReason>("kfree_skb_reason")
                    .only(DROPPED_OR_FOR_REASON_WITHOUT_CALLERS)
                    .with_driver_drops(),
                Probe::entry::<PacketFreed>("kfree_skb_reason").only(BEFORE_DEVICE).with_weakness(AT_DEVICE_UNSEEN),
                Probe::entry::<PacketDropped>("kfree_skb").only(DROPPED).since(3, 18),
                Probe::entry::<PacketDropped>("kfree_skb")
                    .only(DROPPED_WITHOUT_CALLERS)
                    .since(3, 18)
                    .with_driver_drops(),
                Probe::entry::<PacketFreed>("kfree_skb").only(BEFORE_DEVICE).since(3, 18).with_weakness(AT_DEVICE_UNSEEN),
                Probe::entry::<EarlyPacketFreed>("kfree_skb").only(EARLY_BEFORE_DEVICE).with_weakness(
                    "packets without a socket, those that tc filters drop, and those that a queue drops (on RHEL 7, after \
                     it has accepted them), count as sent",
                ),
            ],
        ),
        (
            Feature::QueueDrops,
            &[
                Probe::entry::<PacketsFreed>("kfree_skb_list_reason").only(AT_DEVICE),
                Probe::entry::<PacketsFreed>("kfree_skb_list").only(AT_DEVICE).since(3, 18),
                Probe::entry::<PacketsFreed>("kfree_skb_list")
                    .only(AT_DEVICE_OF_SOCKET)
                    .since(3, 18)
                    .with_weakness(QUEUED_WITHOUT_SOCKET_UNSEEN),
                Probe::entry::<EarlyPacketsFreed>("kfree_skb_list")
                    .only(EARLY_AT_DEVICE)
                    .with_weakness(QUEUED_WITHOUT_SOCKET_UNSEEN),
            ],
        ),
        (Feature::ControlMessages, &[Probe::entry::<ControlMessage>("udp_cmsg_send")]),
        (Feature::DatagramOptions, &[Probe::entry::<DatagramOption>("udp_lib_setsockopt").only(GSO_OR_GRO)]),
    ]
};

#[cfg(test)]
mod tests {
    use socktrail_kprobes::Format;

    use super::*;

    /// There, `inner_mac_header` precedes the offsets of the headers, and `protocol` is elsewhere.
    #[test]
    fn before_linux_3_18_nothing_reads_the_protocol_beside_the_headers() {
        let mut early = 0;
        for probe in FLOW_PROBES.iter().flat_map(|(_, probes)| probes.iter()) {
            let is_adjacent = probe.fetches.iter().any(|fetch| fetch.template.contains("{sk_buff.headers-2}"));
            // The functions with a reason came with Linux 5.17.
            if probe.function().starts_with("kfree_skb") && !probe.function().ends_with("_reason") {
                assert_eq!(is_adjacent, probe.since >= (3, 18), "{}: {:?}", probe.function(), probe.filter);
                early += u32::from(!is_adjacent);
            }
        }
        assert_eq!(early, 2, "one for packets, one for lists");
    }

    /// The reads through a null socket: the counters of TCP and, on older kernels, the namespace.
    #[test]
    fn reads_through_a_socket_that_may_be_null() {
        let (_, probes) = FLOW_PROBES.iter().find(|(feature, _)| *feature == Feature::Ipv4Out).unwrap();
        let format = |fields: &[&str]| {
            let lines = fields.iter().map(|name| format!("\tfield:u64 {name};\toffset:8;\tsize:8;\tsigned:0;\n"));
            let text = format!("name: probe\nID: 1\nformat:\n{}", lines.collect::<String>());
            Format::parse(text.as_bytes()).unwrap()
        };
        let all = format(&["net", "sk", "lengths", "segs_in", "segs_out"]);
        let reads: Vec<_> = probes.iter().map(|probe| (probe.function(), probe.reads_through_nullable(&all))).collect();
        let expected = [
            ("__ip_local_out", 2),
            ("__ip_local_out_sk", 3),
            ("__ip_local_out", 3),
            ("ip_local_out", 2),
            ("ip_local_out_sk", 3),
        ];
        assert_eq!(reads, expected);
        assert_eq!(probes[0].reads_through_nullable(&format(&["net", "sk"])), 0, "without optional fields");
    }
}
