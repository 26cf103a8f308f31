//! Calls on sockets: where they begin, where they come to their socket, and what they come back with.
//!
//! A system call is seen at its entry, for the descriptor, and at its return. What it does to which socket is seen where
//! the kernel asks its security modules, which every call passes, io_uring's too: by then addresses are in kernel memory.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use socktrail_kprobes::{Array, SignedWord, Text, Word, sample};

use super::{Decoded, IntoEvent, known_ipv6};
use crate::event::EventKind;
use crate::socket_event::step::{Call, Entered, Layer, Reached, Seen, Step};
use crate::socket_event::{Address, Family, IpEnd, SocketId, SocketState, SocketType, ThreadName};

/// A sample of a `struct socket`: its own fields, and what [`Seen`] takes, of the socket and the sock that the two
/// templates name.
macro_rules! socket_sample {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident of $socket:literal, $sk:literal {
            $( $(#[$field_meta:meta])* pub $field:ident : $kind:ty = $template:expr ),* $(,)?
        }
    )*) => {$(
        sample! {
            $(#[$meta])*
            pub struct $name {
                $( $(#[$field_meta])* pub $field: $kind = $template, )*
                /// The running thread's name.
                pub comm: Option<Text> = "$comm",
                /// The inode's number.
                pub i_ino: Word = concat!("+{socket_alloc.i_ino}(", $socket, ")"),
                /// `SOCK_STREAM`, …
                pub sock_type: u16 = concat!("+{socket.type}(", $socket, ")"),
                /// The `struct sock`; null when there is none.
                pub sk: Word = $sk,
                /// Address family.
                pub family: u16 = concat!("+{sock_common.skc_family}(", $sk, ")"),
                /// Protocol.
                pub protocol: Option<u16> = concat!("+{sock.sk_protocol}(", $sk, ")"),
                /// State.
                pub state: u8 = concat!("+{sock_common.skc_state}(", $sk, ")"),
                /// The device that it is bound to.
                pub bound_dev_if: Option<u32> = concat!("+{sock_common.skc_bound_dev_if}(", $sk, ")"),
                /// Local port, host byte order.
                pub num: u16 = concat!("+{sock_common.skc_num}(", $sk, ")"),
                /// Remote port, as it lies in memory.
                pub dport: u16 = concat!("+{sock_common.skc_dport}(", $sk, ")"),
                /// Local IPv4 address, as it lies in memory.
                pub rcv_saddr: u32 = concat!("+{sock_common.skc_rcv_saddr}(", $sk, ")"),
                /// Remote IPv4 address, as it lies in memory.
                pub daddr: u32 = concat!("+{sock_common.skc_daddr}(", $sk, ")"),
                /// Local IPv6 address, as it lies in memory.
                pub v6_rcv_saddr_high: Option<u64> = concat!("+{sock_common.skc_v6_rcv_saddr}(", $sk, ")"),
                /// Its second half.
                pub v6_rcv_saddr_low: Option<u64> = concat!("+{sock_common.skc_v6_rcv_saddr+8}(", $sk, ")"),
                /// Remote IPv6 address, as it lies in memory.
                pub v6_daddr_high: Option<u64> = concat!("+{sock_common.skc_v6_daddr}(", $sk, ")"),
                /// Its second half.
                pub v6_daddr_low: Option<u64> = concat!("+{sock_common.skc_v6_daddr+8}(", $sk, ")"),
            }
        }

        impl $name {
            fn thread_name(&self, raw: &[u8]) -> Option<ThreadName> {
                thread_name(self.comm, raw)
            }

            fn seen(&self) -> Seen {
                let ends = Ends {
                    family: Family(self.family),
                    bound_dev_if: self.bound_dev_if,
                    num: self.num,
                    dport: self.dport,
                    raw: SocketType(self.sock_type) == SocketType::RAW,
                    ipv4: [self.rcv_saddr, self.daddr],
                    ipv6: [
                        known_ipv6([self.v6_rcv_saddr_high, self.v6_rcv_saddr_low]),
                        known_ipv6([self.v6_daddr_high, self.v6_daddr_low]),
                    ],
                };
                Seen {
                    id: SocketId(self.i_ino),
                    sock: self.sk,
                    family: Family(self.family),
                    kind: SocketType(self.sock_type),
                    protocol: self.protocol,
                    state: SocketState(self.state),
                    local: ends.local(),
                    remote: ends.remote(),
                }
            }
        }
    )*};
}

socket_sample! {
    /// `security_socket_post_create`: a socket was made.
    pub struct Created of "{sock}", "+{socket.sk}({sock})" {
        /// The protocol as it was asked for.
        pub asked: i32 = "{protocol}",
        /// Whether for the kernel itself.
        pub kern: i32 = "{kern}",
    }

    /// `security_socket_bind`.
    pub struct Binds of "{sock}", "+{socket.sk}({sock})" {
        /// Bytes of the address that count.
        pub addrlen: i32 = "{addrlen}",
        /// The `struct sockaddr`, whatever family it is of; the kernel keeps room for more than this.
        pub address: Array<u64, 14> = "+0({address})",
    }

    /// `security_socket_listen`.
    pub struct Listens of "{sock}", "+{socket.sk}({sock})" {
        /// How many connections may wait.
        pub backlog: i32 = "{backlog}",
    }

    /// `security_socket_accept`, on the listener.
    pub struct Accepts of "{sock}", "+{socket.sk}({sock})" {}

    /// `security_sock_graft`: an accepted connection gets its `struct socket`.
    pub struct Grafted of "{parent}", "{sk}" {}

    /// `security_socket_connect`.
    pub struct Connects of "{sock}", "+{socket.sk}({sock})" {
        /// Bytes of the address that count.
        pub addrlen: i32 = "{addrlen}",
        /// The `struct sockaddr`, whatever family it is of; the kernel keeps room for more than this.
        pub address: Array<u64, 14> = "+0({address})",
    }

    /// `security_socket_setsockopt`.
    pub struct Sets of "{sock}", "+{socket.sk}({sock})" {
        /// The layer.
        pub level: i32 = "{level}",
        /// The option.
        pub option: i32 = "{optname}",
    }

    /// `__sock_release`: the last descriptor of a socket is gone. Without an inode it is one that no program ever had.
    pub struct Released of "{sock}", "+{socket.sk}({sock})" {
        /// The `struct inode`.
        pub inode: Word = "{inode}",
    }

    /// `sock_release`: the same before Linux 4.19.
    pub struct ReleasedWithoutInode of "{sock}", "+{socket.sk}({sock})" {}
}

sample! {
    /// `__sys_socket`, `sys_socket` before Linux 4.17.
    pub struct EntersSocket {
        /// Address family.
        pub family: i32 = "{family}",
        /// Type, with flags.
        pub kind: i32 = "{type}",
        /// Protocol.
        pub protocol: i32 = "{protocol}",
        /// The running thread's name.
        pub comm: Option<Text> = "$comm",
    }

    /// `__sys_socket_file`: what io_uring calls instead.
    pub struct EntersSocketFile {
        /// Address family.
        pub family: i32 = "{family}",
        /// Type, with flags.
        pub kind: i32 = "{type}",
        /// Protocol.
        pub protocol: i32 = "{protocol}",
        /// The running thread's name.
        pub comm: Option<Text> = "$comm",
    }

    /// `__sys_listen`.
    pub struct EntersListen {
        /// The descriptor.
        pub fd: i32 = "{fd}",
        /// The backlog as it was asked for.
        pub backlog: i32 = "{backlog}",
    }

    /// `tcp_connect`: the SYN is about to leave; address and port have been chosen by now.
    pub struct Connecting {
        /// Its address family.
        pub family: u16 = "+{sock_common.skc_family}({sk})",
        /// The device that it is bound to.
        pub bound_dev_if: Option<u32> = "+{sock_common.skc_bound_dev_if}({sk})",
        /// Local port, host byte order.
        pub num: u16 = "+{sock_common.skc_num}({sk})",
        /// Local IPv4 address, as it lies in memory.
        pub rcv_saddr: u32 = "+{sock_common.skc_rcv_saddr}({sk})",
        /// Local IPv6 address, as it lies in memory.
        pub v6_rcv_saddr_high: Option<u64> = "+{sock_common.skc_v6_rcv_saddr}({sk})",
        /// Its second half.
        pub v6_rcv_saddr_low: Option<u64> = "+{sock_common.skc_v6_rcv_saddr+8}({sk})",
    }
}

/// Entries of system calls of which the descriptor is all that matters there.
macro_rules! enters {
    ($( $(#[$meta:meta])* $name:ident = $call:expr; )*) => {$(
        sample! {
            $(#[$meta])*
            pub struct $name {
                /// The descriptor.
                pub fd: i32 = "{fd}",
            }
        }

        impl IntoEvent for $name {
            fn event(&self, _: &[u8]) -> Decoded {
                step(Step::Entered(Entered::Other { call: $call, fd: self.fd }))
            }
        }
    )*};
}

enters! {
    /// `__sys_bind`.
    EntersBind = Call::Bind;
    /// `__sys_accept4`.
    EntersAccept = Call::Accept;
    /// `__sys_connect`.
    EntersConnect = Call::Connect;
    /// `__sys_setsockopt`.
    EntersSetSockOpt = Call::SetSockOpt;
}

/// Returns.
macro_rules! returns {
    ($( $(#[$meta:meta])* $name:ident: $kind:ty = $call:expr, $layer:expr; )*) => {$(
        sample! {
            $(#[$meta])*
            pub struct $name {
                /// A descriptor, 0, a pointer, or a negative errno.
                pub value: $kind = "$retval",
            }
        }

        impl IntoEvent for $name {
            fn event(&self, _: &[u8]) -> Decoded {
                step(Step::Returned { call: $call, layer: $layer, value: without_pointer(self.value.into()) })
            }
        }
    )*};
}

/// `MAX_ERRNO` of `include/linux/err.h`: what is negative and not so far from zero is no pointer.
const MAX_ERRNO: i64 = 4095;

/// 0 for a pointer.
fn without_pointer(value: i64) -> i64 {
    if value < -MAX_ERRNO { 0 } else { value }
}

returns! {
    /// The return of `__sys_socket`.
    ReturnsSocket: i32 = Call::Create, Layer::SystemCall;
    /// The return of `__sys_socket_file`, a `struct file`.
    ReturnsSocketFile: SignedWord = Call::Create, Layer::Socket;
    /// The return of `__sys_bind`.
    ReturnsBind: i32 = Call::Bind, Layer::SystemCall;
    /// The return of `__sys_bind_socket`.
    ReturnsBindSocket: i32 = Call::Bind, Layer::Socket;
    /// The return of `__sys_listen`.
    ReturnsListen: i32 = Call::Listen, Layer::SystemCall;
    /// The return of `__sys_listen_socket`.
    ReturnsListenSocket: i32 = Call::Listen, Layer::Socket;
    /// The return of `__sys_accept4`.
    ReturnsAccept: i32 = Call::Accept, Layer::SystemCall;
    /// The return of `do_accept`, a `struct file`.
    ReturnsDoAccept: SignedWord = Call::Accept, Layer::Socket;
    /// The return of `__sys_accept4_file`, a descriptor.
    ReturnsAcceptFile: i32 = Call::Accept, Layer::Socket;
    /// The return of `__sys_connect`.
    ReturnsConnect: i32 = Call::Connect, Layer::SystemCall;
    /// The return of `__sys_connect_file`.
    ReturnsConnectFile: i32 = Call::Connect, Layer::Socket;
    /// The return of `__sys_setsockopt`.
    ReturnsSetSockOpt: i32 = Call::SetSockOpt, Layer::SystemCall;
    /// The return of `do_sock_setsockopt`.
    ReturnsDoSetSockOpt: i32 = Call::SetSockOpt, Layer::Socket;
}

impl IntoEvent for EntersSocket {
    fn event(&self, raw: &[u8]) -> Decoded {
        let Self { family, kind, protocol, comm } = *self;
        let step = Step::Entered(Entered::Create { layer: Layer::SystemCall, family, kind, protocol });
        step_of(thread_name(comm, raw), step)
    }
}

impl IntoEvent for EntersSocketFile {
    fn event(&self, raw: &[u8]) -> Decoded {
        let Self { family, kind, protocol, comm } = *self;
        let step = Step::Entered(Entered::Create { layer: Layer::Socket, family, kind, protocol });
        step_of(thread_name(comm, raw), step)
    }
}

impl IntoEvent for EntersListen {
    fn event(&self, _: &[u8]) -> Decoded {
        step(Step::Entered(Entered::Listen { fd: self.fd, backlog: self.backlog }))
    }
}

impl IntoEvent for Created {
    fn event(&self, raw: &[u8]) -> Decoded {
        reached(self.thread_name(raw), self.seen(), Reached::Create { protocol: self.asked })
    }
}

impl IntoEvent for Binds {
    fn event(&self, raw: &[u8]) -> Decoded {
        reached(self.thread_name(raw), self.seen(), Reached::Bind(address(self.address.bytes(raw), self.addrlen)))
    }
}

impl IntoEvent for Listens {
    fn event(&self, raw: &[u8]) -> Decoded {
        reached(self.thread_name(raw), self.seen(), Reached::Listen { backlog: self.backlog })
    }
}

impl IntoEvent for Accepts {
    fn event(&self, raw: &[u8]) -> Decoded {
        reached(self.thread_name(raw), self.seen(), Reached::Accept)
    }
}

impl IntoEvent for Connects {
    fn event(&self, raw: &[u8]) -> Decoded {
        reached(self.thread_name(raw), self.seen(), Reached::Connect(address(self.address.bytes(raw), self.addrlen)))
    }
}

impl IntoEvent for Sets {
    fn event(&self, raw: &[u8]) -> Decoded {
        reached(self.thread_name(raw), self.seen(), Reached::SetSockOpt { level: self.level, option: self.option })
    }
}

impl IntoEvent for Grafted {
    fn event(&self, raw: &[u8]) -> Decoded {
        step_of(self.thread_name(raw), Step::Accepted { socket: self.seen() })
    }
}

impl IntoEvent for Connecting {
    fn event(&self, _: &[u8]) -> Decoded {
        let ends = Ends {
            family: Family(self.family),
            bound_dev_if: self.bound_dev_if,
            num: self.num,
            dport: 0,
            raw: false,
            ipv4: [self.rcv_saddr, 0],
            ipv6: [known_ipv6([self.v6_rcv_saddr_high, self.v6_rcv_saddr_low]), None],
        };
        step(Step::Connecting { local: ends.local() })
    }
}

impl IntoEvent for Released {
    fn event(&self, raw: &[u8]) -> Decoded {
        step_of(self.thread_name(raw), Step::Released { socket: self.seen() })
    }
}

impl IntoEvent for ReleasedWithoutInode {
    fn event(&self, raw: &[u8]) -> Decoded {
        step_of(self.thread_name(raw), Step::Released { socket: self.seen() })
    }
}

fn step(step: Step) -> Decoded {
    step_of(None, step)
}

fn step_of(thread_name: Option<ThreadName>, step: Step) -> Decoded {
    Decoded::Event(EventKind::Step { step: Box::new(step), thread_name })
}

fn reached(thread_name: Option<ThreadName>, socket: Seen, what: Reached) -> Decoded {
    step_of(thread_name, Step::Reached { socket, what })
}

fn thread_name(comm: Option<Text>, raw: &[u8]) -> Option<ThreadName> {
    comm.map(|comm| ThreadName::new(comm.bytes(raw)))
}

/// As much of a `struct sockaddr` as counts. The kernel has checked that the length is from 0 to 128.
fn address(bytes: &[u8], addrlen: i32) -> Option<Address> {
    let length = usize::try_from(addrlen).ok()?.min(bytes.len());
    Address::of_sockaddr(bytes.get(..length)?)
}

/// Both ends of a `struct sock`, own first, as they lie in memory.
struct Ends {
    family: Family,
    /// `None` where it is not known.
    bound_dev_if: Option<u32>,
    num: u16,
    dport: u16,
    /// Whether it has no ports: the local one is its protocol's number.
    raw: bool,
    ipv4: [u32; 2],
    /// `None` where they are not known.
    ipv6: [Option<Ipv6Addr>; 2],
}

impl Ends {
    fn local(&self) -> Option<IpEnd> {
        self.end(0, if self.raw { 0 } else { self.num })
    }

    fn remote(&self) -> Option<IpEnd> {
        // Of a connection that failed the address is left, but not the port.
        self.end(1, u16::from_be(self.dport)).filter(|end| end.port != 0 || self.raw)
    }

    fn end(&self, which: usize, port: u16) -> Option<IpEnd> {
        let ip: IpAddr = match self.family {
            Family::INET => Ipv4Addr::from(self.ipv4[which].to_ne_bytes()).into(),
            Family::INET6 => self.ipv6[which]?.into(),
            _ => return None,
        };
        let scope_id = if is_link_local(ip) { self.bound_dev_if.unwrap_or(0) } else { 0 };
        (port != 0 || !ip.is_unspecified()).then_some(IpEnd { ip, port, scope_id, flow_info: 0 })
    }
}

/// Whether an address means something on one link only (RFC 4291, section 2.5.6).
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if Ipv6Addr::is_unicast_link_local(&ip))
}
