//! The part of the layout that is fixed by the kernel's interface to programs or by a network standard. It is never
//! guessed.
//!
//! Ports and addresses in these structures are in network byte order.

/// Fields, as `struct.field`, and their offsets in bytes. `kernel_clone_args` is the kernel's copy of the arguments of
/// `clone3(2)` and begins with the same fields.
pub const FIELDS: &[(&str, u32)] = &[
    ("sockaddr.sa_family", 0),
    ("sockaddr_in.sin_family", 0),
    ("sockaddr_in.sin_port", 2),
    ("sockaddr_in.sin_addr", 4),
    ("sockaddr_in6.sin6_family", 0),
    ("sockaddr_in6.sin6_port", 2),
    ("sockaddr_in6.sin6_addr", 8),
    ("sockaddr_un.sun_path", 2),
    ("iphdr.ihl", 0),
    ("iphdr.tot_len", 2),
    ("iphdr.protocol", 9),
    ("iphdr.saddr", 12),
    ("iphdr.daddr", 16),
    ("ipv6hdr.version", 0),
    ("ipv6hdr.payload_len", 4),
    ("ipv6hdr.nexthdr", 6),
    ("ipv6hdr.saddr", 8),
    ("ipv6hdr.daddr", 24),
    ("tcphdr.source", 0),
    ("tcphdr.dest", 2),
    ("tcphdr.seq", 4),
    ("tcphdr.ack_seq", 8),
    ("tcphdr.doff", 12),
    ("tcphdr.flags", 13),
    ("udphdr.source", 0),
    ("udphdr.dest", 2),
    ("udphdr.len", 4),
    ("kernel_clone_args.flags", 0),
];

/// Arguments, as `function(argument)`, and their positions. The first is 1.
///
/// These are functions that implement a system call, or that call the hooks of security modules. Their arguments are
/// those of the system call or the hook, and have not changed for as long as the functions exist. The same holds for
/// `tcp_connect`, `sock_release`, `__sock_release`, `udp_cmsg_send` and `udp_lib_setsockopt`, for the functions of MPTCP,
/// for those that add IPv6 extension headers, for those that free packets, and for those through which TCP receives ICMP
/// errors. It also holds for `cgroup_post_fork` since Linux 5.7, which added `kargs`, and for
/// `css_tryget_online_from_dir` since 3.16, when it got this name.
pub const ARGUMENTS: &[(&str, u8)] = &[
    ("__sys_socket(family)", 1),
    ("sys_socket(family)", 1),
    ("__sys_socket(type)", 2),
    ("sys_socket(type)", 2),
    ("__sys_socket(protocol)", 3),
    ("sys_socket(protocol)", 3),
    ("__sys_socket_file(family)", 1),
    ("__sys_socket_file(type)", 2),
    ("__sys_socket_file(protocol)", 3),
    ("__sys_bind(fd)", 1),
    ("sys_bind(fd)", 1),
    ("__sys_listen(fd)", 1),
    ("sys_listen(fd)", 1),
    ("__sys_listen(backlog)", 2),
    ("sys_listen(backlog)", 2),
    ("__sys_accept4(fd)", 1),
    ("sys_accept4(fd)", 1),
    ("__sys_connect(fd)", 1),
    ("sys_connect(fd)", 1),
    ("__sys_setsockopt(fd)", 1),
    ("sys_setsockopt(fd)", 1),
    ("security_socket_post_create(sock)", 1),
    ("security_socket_post_create(protocol)", 4),
    ("security_socket_post_create(kern)", 5),
    ("security_socket_bind(sock)", 1),
    ("security_socket_bind(address)", 2),
    ("security_socket_bind(addrlen)", 3),
    ("security_socket_listen(sock)", 1),
    ("security_socket_listen(backlog)", 2),
    ("security_socket_accept(sock)", 1),
    ("security_socket_connect(sock)", 1),
    ("security_socket_connect(address)", 2),
    ("security_socket_connect(addrlen)", 3),
    ("security_socket_setsockopt(sock)", 1),
    ("security_socket_setsockopt(level)", 2),
    ("security_socket_setsockopt(optname)", 3),
    ("security_inet_conn_request(sk)", 1),
    ("security_inet_conn_request(req)", 3),
    ("security_mptcp_add_subflow(sk)", 1),
    ("security_mptcp_add_subflow(ssk)", 2),
    // The kernel names it `msk`. A `struct mptcp_sock` begins with its `struct sock`; likewise in `mptcp_event`.
    ("mptcp_sockopt_sync(sk)", 1),
    ("mptcp_sockopt_sync(ssk)", 2),
    ("mptcp_event(type)", 1),
    ("mptcp_event(sk)", 2),
    ("mptcp_event(ssk)", 3),
    ("udp_cmsg_send(sk)", 1),
    ("udp_lib_setsockopt(sk)", 1),
    ("udp_lib_setsockopt(optname)", 3),
    ("__sock_release(sock)", 1),
    ("__sock_release(inode)", 2),
    ("sock_release(sock)", 1),
    ("tcp_connect(sk)", 1),
    ("tcp_v4_err(skb)", 1),
    ("tcp_v6_err(skb)", 1),
    ("cgroup_post_fork(child)", 1),
    ("cgroup_post_fork(kargs)", 2),
    ("css_tryget_online_from_dir(dentry)", 1),
    ("css_tryget_online_from_dir(ss)", 2),
    ("ipv6_push_frag_opts(skb)", 1),
    ("ipv6_push_nfrag_opts(skb)", 1),
    ("kfree_skb(skb)", 1),
    ("kfree_skb_reason(skb)", 1),
    ("kfree_skb_reason(reason)", 2),
    ("sk_skb_reason_drop(skb)", 2),
    ("sk_skb_reason_drop(reason)", 3),
    ("kfree_skb_list(segs)", 1),
    ("kfree_skb_list_reason(segs)", 1),
];

/// Functions, each with other functions that have `net`, `sk` and `skb` at the same positions, because the kernel
/// changed them together. The first of these whose `skb` is known gives the positions.
///
/// Functions that fragment have the arguments `(skb)` before Linux 4.1, `(sk, skb)` from 4.1 to 4.3, and `(net, sk, skb)`
/// since 4.4. So have the functions of `OUTPUT`, but from 4.1 to 4.3 `__ip_local_out` still has only `(skb)`. These
/// kernels also have `__ip_local_out_sk(sk, skb)`, so it comes first. `ip_local_out_sk` is not listed: it has had the
/// arguments `(sk, skb)` since 3.15, when functions that fragment still had `(skb)`.
pub const SAME_ARGUMENTS: &[(&str, &[&str])] = &[
    ("ip_do_fragment", OUTPUT),
    ("ip_fragment", OUTPUT),
    ("ip6_fragment", OUTPUT),
    ("udp_queue_rcv_one_skb", &["udp_queue_rcv_skb"]),
    ("udpv6_queue_rcv_one_skb", &["udpv6_queue_rcv_skb"]),
];

/// Functions that send a packet of this host.
const OUTPUT: &[&str] = &["__ip_local_out_sk", "__ip_local_out", "ip_local_out"];
