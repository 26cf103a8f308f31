//! Samples of calls on sockets: their entry, the hook of security modules, and their return.
//!
//! The entry of a system call shows the file descriptor, and its return the result. The socket and the arguments are sampled where
//! the kernel calls its security modules. All calls pass there, also those of io_uring, and addresses are already in kernel memory.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use socktrail_kprobes::{Array, SignedWord, Text, Word, sample};

use super::{Decoded, Interpret, ipv6_if_known};
use crate::model::event::EventKind;
use crate::model::kernel_address::SockAddress;
use crate::model::socket_event::step::{Call, Entered, Layer, Operation, SocketSnapshot, Step};
use crate::model::socket_event::{Address, Family, IpEnd, SocketId, SocketState, SocketType, ThreadName};

/// A sample of a `struct socket`: its own fields, and those of [`SocketSnapshot`]. The two templates name the socket and the
/// sock.
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
                /// Remote port, in memory order.
                pub dport: u16 = concat!("+{sock_common.skc_dport}(", $sk, ")"),
                /// Local IPv4 address, in memory order.
                pub rcv_saddr: u32 = concat!("+{sock_common.skc_rcv_saddr}(", $sk, ")"),
                /// Remote IPv4 address, in memory order.
                pub daddr: u32 = concat!("+{sock_common.skc_daddr}(", $sk, ")"),
                /// Local IPv6 address, in memory order: its first 8 bytes.
                pub v6_rcv_saddr_high: Option<u64> = concat!("+{sock_common.skc_v6_rcv_saddr}(", $sk, ")"),
                /// Its last 8 bytes.
                pub v6_rcv_saddr_low: Option<u64> = concat!("+{sock_common.skc_v6_rcv_saddr+8}(", $sk, ")"),
                /// Remote IPv6 address, in memory order: its first 8 bytes.
                pub v6_daddr_high: Option<u64> = concat!("+{sock_common.skc_v6_daddr}(", $sk, ")"),
                /// Its last 8 bytes.
                pub v6_daddr_low: Option<u64> = concat!("+{sock_common.skc_v6_daddr+8}(", $sk, ")"),
            }
        }

        impl $name {
            fn thread_name(&self, raw: &[u8]) -> Option<ThreadName> {
                thread_name(self.comm, raw)
            }

            fn snapshot(&self) -> SocketSnapshot {
                let ends = Ends {
                    family: Family(self.family),
                    bound_dev_if: self.bound_dev_if,
                    num: self.num,
                    dport: self.dport,
                    raw: SocketType(self.sock_type) == SocketType::RAW,
                    ipv4: [self.rcv_saddr, self.daddr],
                    ipv6: [
                        ipv6_if_known([self.v6_rcv_saddr_high, self.v6_rcv_saddr_low]),
                        ipv6_if_known([self.v6_daddr_high, self.v6_daddr_low]),
                    ],
                };
                SocketSnapshot {
                    id: SocketId(self.i_ino),
                    sock: SockAddress::new(self.sk),
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
    /// `security_socket_post_create`: a socket was created.
    pub struct CreateHook of "{sock}", "+{socket.sk}({sock})" {
        /// The requested protocol.
        pub asked: i32 = "{protocol}",
        /// Whether it is for the kernel itself.
        pub kern: i32 = "{kern}",
    }

    /// `security_socket_bind`.
    pub struct BindHook of "{sock}", "+{socket.sk}({sock})" {
        /// The length of the address in bytes.
        pub addrlen: i32 = "{addrlen}",
        /// The `struct sockaddr` of any family. The kernel's buffer is larger than this.
        pub address: Array<u64, 14> = "+0({address})",
    }

    /// `security_socket_listen`.
    pub struct ListenHook of "{sock}", "+{socket.sk}({sock})" {
        /// The backlog.
        pub backlog: i32 = "{backlog}",
    }

    /// `security_socket_accept`, on the listener.
    pub struct AcceptHook of "{sock}", "+{socket.sk}({sock})" {}

    /// `security_sock_graft`: an accepted connection gets its `struct socket`.
    pub struct GraftHook of "{parent}", "{sk}" {}

    /// `security_socket_connect`.
    pub struct ConnectHook of "{sock}", "+{socket.sk}({sock})" {
        /// The length of the address in bytes.
        pub addrlen: i32 = "{addrlen}",
        /// The `struct sockaddr` of any family. The kernel's buffer is larger than this.
        pub address: Array<u64, 14> = "+0({address})",
    }

    /// `security_socket_setsockopt`.
    pub struct SetSockOptHook of "{sock}", "+{socket.sk}({sock})" {
        /// The level.
        pub level: i32 = "{level}",
        /// The option.
        pub option: i32 = "{optname}",
    }

    /// `__sock_release`: a socket is released. The argument `inode` is null if the socket never had a file descriptor, as with the
    /// kernel's own sockets. The probe's filter leaves those out.
    pub struct SockRelease of "{sock}", "+{socket.sk}({sock})" {
        /// The argument `inode`.
        pub inode: Word = "{inode}",
    }

    /// `sock_release` before Linux 4.18, or `inet_release` where the compiler inlined it. They have no argument `inode`, so the
    /// kernel's own sockets are sampled, too.
    pub struct SockReleaseWithoutInode of "{sock}", "+{socket.sk}({sock})" {}
}

sample! {
    /// `__sys_socket`, `sys_socket` before Linux 4.17.
    pub struct SocketEntry {
        /// Address family.
        pub family: i32 = "{family}",
        /// Type, with flags.
        pub kind: i32 = "{type}",
        /// Protocol.
        pub protocol: i32 = "{protocol}",
        /// The running thread's name.
        pub comm: Option<Text> = "$comm",
    }

    /// `__sys_socket_file`, which io_uring calls instead.
    pub struct SocketFileEntry {
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
    pub struct ListenEntry {
        /// The descriptor.
        pub fd: i32 = "{fd}",
        /// The requested backlog.
        pub backlog: i32 = "{backlog}",
    }

    /// `tcp_connect`: the SYN is about to be sent; local address and port have been chosen.
    pub struct TcpConnect {
        /// Address family.
        pub family: u16 = "+{sock_common.skc_family}({sk})",
        /// The device that the socket is bound to.
        pub bound_dev_if: Option<u32> = "+{sock_common.skc_bound_dev_if}({sk})",
        /// Local port, host byte order.
        pub num: u16 = "+{sock_common.skc_num}({sk})",
        /// Local IPv4 address, in memory order.
        pub rcv_saddr: u32 = "+{sock_common.skc_rcv_saddr}({sk})",
        /// Local IPv6 address, in memory order: its first 8 bytes.
        pub v6_rcv_saddr_high: Option<u64> = "+{sock_common.skc_v6_rcv_saddr}({sk})",
        /// Its last 8 bytes.
        pub v6_rcv_saddr_low: Option<u64> = "+{sock_common.skc_v6_rcv_saddr+8}({sk})",
    }
}

/// Samples of entries of system calls. Only the file descriptor is sampled.
macro_rules! entries {
    ($( $(#[$meta:meta])* $name:ident = $call:expr; )*) => {$(
        sample! {
            $(#[$meta])*
            pub struct $name {
                /// The descriptor.
                pub fd: i32 = "{fd}",
            }
        }

        impl Interpret for $name {
            fn interpret(&self, _: &[u8]) -> Decoded {
                step(Step::Entered(Entered::Other { call: $call, fd: self.fd }))
            }
        }
    )*};
}

entries! {
    /// `__sys_bind`.
    BindEntry = Call::Bind;
    /// `__sys_accept4`.
    AcceptEntry = Call::Accept;
    /// `__sys_connect`.
    ConnectEntry = Call::Connect;
    /// `__sys_setsockopt`.
    SetSockOptEntry = Call::SetSockOpt;
}

/// Samples of returns.
macro_rules! returns {
    ($( $(#[$meta:meta])* $name:ident: $kind:ty = $call:expr, $layer:expr; )*) => {$(
        sample! {
            $(#[$meta])*
            pub struct $name {
                /// A file descriptor, 0, a pointer, or a negative errno.
                pub value: $kind = "$retval",
            }
        }

        impl Interpret for $name {
            fn interpret(&self, _: &[u8]) -> Decoded {
                step(Step::Returned { call: $call, layer: $layer, value: without_pointer(self.value.into()) })
            }
        }
    )*};
}

/// `MAX_ERRNO` of `include/linux/err.h`: values from -4095 to -1 are errors, not pointers.
const MAX_ERRNO: i64 = 4095;

/// The return value, with 0 instead of a pointer.
fn without_pointer(value: i64) -> i64 {
    if value < -MAX_ERRNO { 0 } else { value }
}

returns! {
    /// The return of `__sys_socket`.
    SocketReturn: i32 = Call::Create, Layer::SystemCall;
    /// The return of `__sys_socket_file`, a `struct file`.
    SocketFileReturn: SignedWord = Call::Create, Layer::Socket;
    /// The return of `__sys_bind`.
    BindReturn: i32 = Call::Bind, Layer::SystemCall;
    /// The return of `__sys_bind_socket`.
    BindSocketReturn: i32 = Call::Bind, Layer::Socket;
    /// The return of `__sys_listen`.
    ListenReturn: i32 = Call::Listen, Layer::SystemCall;
    /// The return of `__sys_listen_socket`.
    ListenSocketReturn: i32 = Call::Listen, Layer::Socket;
    /// The return of `__sys_accept4`.
    AcceptReturn: i32 = Call::Accept, Layer::SystemCall;
    /// The return of `do_accept`, a `struct file`.
    DoAcceptReturn: SignedWord = Call::Accept, Layer::Socket;
    /// The return of `__sys_accept4_file`, a descriptor.
    AcceptFileReturn: i32 = Call::Accept, Layer::Socket;
    /// The return of `__sys_connect`.
    ConnectReturn: i32 = Call::Connect, Layer::SystemCall;
    /// The return of `__sys_connect_file`.
    ConnectFileReturn: i32 = Call::Connect, Layer::Socket;
    /// The return of `__sys_setsockopt`.
    SetSockOptReturn: i32 = Call::SetSockOpt, Layer::SystemCall;
    /// The return of `do_sock_setsockopt`.
    DoSetSockOptReturn: i32 = Call::SetSockOpt, Layer::Socket;
}

impl Interpret for SocketEntry {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        let Self { family, kind, protocol, comm } = *self;
        let step = Step::Entered(Entered::Create { layer: Layer::SystemCall, family, kind, protocol });
        step_of(thread_name(comm, raw), step)
    }
}

impl Interpret for SocketFileEntry {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        let Self { family, kind, protocol, comm } = *self;
        let step = Step::Entered(Entered::Create { layer: Layer::Socket, family, kind, protocol });
        step_of(thread_name(comm, raw), step)
    }
}

impl Interpret for ListenEntry {
    fn interpret(&self, _: &[u8]) -> Decoded {
        step(Step::Entered(Entered::Listen { fd: self.fd, backlog: self.backlog }))
    }
}

impl Interpret for CreateHook {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        reached(self.thread_name(raw), self.snapshot(), Operation::Create { protocol: self.asked })
    }
}

impl Interpret for BindHook {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        reached(self.thread_name(raw), self.snapshot(), Operation::Bind(address(self.address.bytes(raw), self.addrlen)))
    }
}

impl Interpret for ListenHook {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        reached(self.thread_name(raw), self.snapshot(), Operation::Listen { backlog: self.backlog })
    }
}

impl Interpret for AcceptHook {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        reached(self.thread_name(raw), self.snapshot(), Operation::Accept)
    }
}

impl Interpret for ConnectHook {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        reached(
            self.thread_name(raw),
            self.snapshot(),
            Operation::Connect(address(self.address.bytes(raw), self.addrlen)),
        )
    }
}

impl Interpret for SetSockOptHook {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        reached(
            self.thread_name(raw),
            self.snapshot(),
            Operation::SetSockOpt { level: self.level, option: self.option },
        )
    }
}

impl Interpret for GraftHook {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        step_of(self.thread_name(raw), Step::Accepted { socket: self.snapshot() })
    }
}

impl Interpret for TcpConnect {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let ends = Ends {
            family: Family(self.family),
            bound_dev_if: self.bound_dev_if,
            num: self.num,
            dport: 0,
            raw: false,
            ipv4: [self.rcv_saddr, 0],
            ipv6: [ipv6_if_known([self.v6_rcv_saddr_high, self.v6_rcv_saddr_low]), None],
        };
        step(Step::Connecting { local: ends.local() })
    }
}

impl Interpret for SockRelease {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        step_of(self.thread_name(raw), Step::Released { socket: self.snapshot() })
    }
}

impl Interpret for SockReleaseWithoutInode {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        step_of(self.thread_name(raw), Step::Released { socket: self.snapshot() })
    }
}

fn step(step: Step) -> Decoded {
    step_of(None, step)
}

fn step_of(thread_name: Option<ThreadName>, step: Step) -> Decoded {
    Decoded::Event(EventKind::Step { step: Box::new(step), thread_name })
}

fn reached(thread_name: Option<ThreadName>, socket: SocketSnapshot, operation: Operation) -> Decoded {
    step_of(thread_name, Step::Reached { socket, operation })
}

fn thread_name(comm: Option<Text>, raw: &[u8]) -> Option<ThreadName> {
    ThreadName::new(comm?.bytes(raw))
}

/// The first `addrlen` bytes of a `struct sockaddr`. The kernel has checked that the length is from 0 to 128.
fn address(bytes: &[u8], addrlen: i32) -> Option<Address> {
    let length = usize::try_from(addrlen).ok()?.min(bytes.len());
    Address::of_sockaddr(bytes.get(..length)?)
}

/// Both endpoints of a `struct sock`, the local one first. Addresses and `dport` are in memory order.
struct Ends {
    family: Family,
    /// `None` if it is not known.
    bound_dev_if: Option<u32>,
    num: u16,
    dport: u16,
    /// Whether the socket is a raw socket, which has no ports: `num` is its protocol's number.
    raw: bool,
    ipv4: [u32; 2],
    /// `None` if they are not known.
    ipv6: [Option<Ipv6Addr>; 2],
}

impl Ends {
    fn local(&self) -> Option<IpEnd> {
        self.end(0, if self.raw { 0 } else { self.num })
    }

    fn remote(&self) -> Option<IpEnd> {
        // After a failed connection, the address is still set, but the port is not.
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

/// Whether an address is valid on one link only (RFC 4291, section 2.5.6).
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if Ipv6Addr::is_unicast_link_local(&ip))
}
