//! Layout that is part of the kernel's promise to programs, or of a network standard: known, never guessed.
//!
//! Ports and addresses in these structures are in network byte order.

/// `struct.field` and its offset in bytes. `kernel_clone_args` is the kernel's own copy of the arguments of
/// `clone3(2)`, and begins with the same fields.
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

/// Arguments of functions that stand for a system call, or that the kernel calls its security modules by, and their
/// positions, the first being 1. They follow the system call or the hook, and have been the same for as long as there
/// are such functions. The same holds for the functions that add IPv6's extension headers, MPTCP's, those that TCP
/// receives ICMP errors by, those that free packets, the one that puts a new task into its control group, since Linux 5.7
/// gave it `kargs`, and the one that finds the control group of a directory, since it has its name (3.16).
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

/// Functions that have `net`, `sk` and `skb`, as far as they have them, where others have them, and these others: the
/// kernel changed them together. Of the others the first counts that is known to have `skb`.
///
/// They are `(skb)` before Linux 4.1, `(sk, skb)` up to 4.3 and `(net, sk, skb)` since. `__ip_local_out_sk` comes first,
/// since 4.1 to 4.3, which alone have it, have `__ip_local_out(skb)` as well. `ip_local_out_sk` is none of them: it was
/// `(sk, skb)` since 3.15 already.
pub const FOLLOWERS: &[(&str, &[&str])] = &[
    ("ip_do_fragment", OUTPUT),
    ("ip_fragment", OUTPUT),
    ("ip6_fragment", OUTPUT),
    ("udp_queue_rcv_one_skb", &["udp_queue_rcv_skb"]),
    ("udpv6_queue_rcv_one_skb", &["udpv6_queue_rcv_skb"]),
];

const OUTPUT: &[&str] = &["__ip_local_out_sk", "__ip_local_out", "ip_local_out"];
