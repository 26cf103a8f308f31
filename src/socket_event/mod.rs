//! Socket events: what programs do with sockets, call by call, and what the call came back with.
//!
//! Where a [flow](crate::flow) tells of a conversation, an event tells of one call: a socket was made, bound, connected,
//! closed. A consumer gets each as [`Received::Socket`](crate::monitor::Received::Socket) from a monitor whose
//! [`Options::socket_events`](crate::monitor::Options::socket_events) names the [`Actions`] that it wants:
//!
//! ```no_run
//! use std::time::Duration;
//! use socktrail::monitor::{Monitor, Options, Received};
//! use socktrail::socket_event::{Action, Actions};
//!
//! let mut options = Options::default();
//! options.flows = false;
//! options.socket_events = Actions::ALL;
//! let monitor = Monitor::start(&options)?;
//! loop {
//!     match monitor.recv(Duration::from_secs(1)) {
//!         Received::Existing(sockets) => println!("{} sockets were there before", sockets.len()),
//!         Received::Socket(event) if event.action == Action::Close => println!("closed: {:?}", event.socket.remote),
//!         Received::Socket(event) => println!("{} {:?}", event.action.name(), event.result),
//!         Received::Ended => break,
//!         _ => {}
//!     }
//! }
//! # Ok::<(), socktrail::Error>(())
//! ```
//!
//! - A socket is known by its [`SocketId`] from its first event to its close, which comes exactly once: when its last
//!   descriptor is gone, be that by `close(2)`, by the end of the process or by an exec.
//! - A call that never got to a socket (its descriptor was bad, or a file's) is no event.
//! - Sockets that were there before the monitor are handed out once, before any event, as
//!   [`Received::Existing`](crate::monitor::Received::Existing); they have [`Socket::existing`] set, also in later events.
//! - An event tells what is known when the call has come back. The port that the kernel chooses for a bind to port 0, or
//!   for a datagram socket that is connected or sends without having been bound, is known from the socket's next event on.

mod address;
pub mod car;
pub mod condition;
mod names;
pub mod step;
pub mod text;
pub mod tracee;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

pub use self::address::{Address, IpEnd, UnixName};
pub use self::names::{Family, SocketState, SocketType, protocol_name};
use crate::event::{KernelAddress, KernelTime};
use crate::process::Process;

/// One call on a socket, or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketEvent {
    /// When the call came back; of a close, when the socket was released.
    pub time: KernelTime,
    /// What was done.
    pub action: Action,
    /// What came of it.
    pub result: CallResult,
    /// The descriptor that the call was given; of [`Action::Create`] the one that it gave. `None` where there is none:
    /// calls through io_uring, the two ends of a `socketpair(2)`, and a close.
    pub fd: Option<i32>,
    /// The socket as it is after the call. Of an [`Action::Accept`] that succeeded it is the new connection's, else the
    /// listener's.
    pub socket: Socket,
    /// The state that the socket was in before the call; of a close, its last one. `None` for a socket that the call made.
    pub before: Option<SocketState>,
    /// Who made the call, or gave up the last descriptor, as it was then. `None`: not known, or the kernel on its own.
    pub process: Option<Arc<Process>>,
    /// The thread that did; 0 where it is not known.
    pub tid: u32,
    /// That thread's own name when the call reached its socket. `None` if it is not known, as before Linux 4.8.
    pub thread_name: Option<ThreadName>,
}

/// The name of a thread (`comm` of the kernel's `struct task_struct`): its program's name, truncated to 15 bytes, until
/// the thread gets another, by `pthread_setname_np(3)` for instance. May contain any bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ThreadName {
    bytes: [u8; Self::MOST],
    length: u8,
}

impl ThreadName {
    /// `TASK_COMM_LEN` without its NUL.
    const MOST: usize = 15;

    /// The name at the beginning of these bytes, at most 15 of them.
    pub fn new(name: &[u8]) -> Self {
        let mut bytes = [0; Self::MOST];
        let length = name.len().min(Self::MOST);
        bytes[..length].copy_from_slice(&name[..length]);
        Self { bytes, length: length as u8 }
    }

    /// The name as text; invalid UTF-8 is replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes[..usize::from(self.length)])
    }
}

impl fmt::Debug for ThreadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text(), f)
    }
}

/// What is known of a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Which one.
    pub id: SocketId,
    /// Its `struct sock`: the same as a flow's. 0 where it is not known.
    pub sock: KernelAddress,
    /// Its address family.
    pub family: Family,
    /// Its type; `None` where it is not known.
    pub kind: Option<SocketType>,
    /// Its protocol's number, of IP an IANA one; 0 where the family has only one. `None` where it is not known.
    pub protocol: Option<u16>,
    /// Its own end. `None` for a socket that has none yet, or where it is not known.
    pub local: Option<Address>,
    /// The other end, or, of a connect that failed, whom it wanted. `None` where there is none, or it is not known.
    pub remote: Option<Address>,
    /// Its state. After a close it is [`SocketState::CLOSE`].
    pub state: Option<SocketState>,
    /// Who made or accepted it; `None` where it is not known.
    pub owner: Option<Arc<Process>>,
    /// Whether it was there before the monitor.
    pub existing: bool,
}

/// The number of a socket's inode, as `/proc/PID/fd` and `/proc/net/tcp` show it: no two living sockets have the same.
/// 0 stands for a socket that never came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SocketId(pub u64);

/// What is done to a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `socket(2)`, and each end of `socketpair(2)`.
    Create {
        /// The protocol as it was asked for: 0 for the one that the type usually has.
        protocol: i32,
    },
    /// `bind(2)`. [`Socket::local`] is the address asked for.
    Bind,
    /// `listen(2)`.
    Listen {
        /// How many connections may wait, as the call asked; the kernel may allow fewer.
        backlog: i32,
    },
    /// `accept(2)`, once there is a connection or the call has failed.
    Accept {
        /// Whose connections are accepted.
        listener: Listener,
        /// The connection's descriptor, where it is known.
        accepted: Option<i32>,
    },
    /// `connect(2)`. A call that does not wait fails with `EINPROGRESS`; then [`Socket::state`] is
    /// [`SocketState::SYN_SENT`].
    Connect,
    /// `setsockopt(2)`.
    SetSockOpt {
        /// The layer: `SOL_SOCKET` is 1, else a protocol's number.
        level: i32,
        /// The option's number in that layer.
        option: i32,
    },
    /// The last descriptor is gone. It always succeeds.
    Close,
    /// No call: a TCP socket that is known became [established](SocketState::ESTABLISHED) or [closed](SocketState::CLOSE),
    /// whatever brought it there. It may come before the event of the call that began it.
    State,
}

/// The socket that a connection was accepted from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Which one.
    pub id: SocketId,
    /// Where it listens.
    pub local: Option<Address>,
}

/// What a call came back with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallResult {
    /// It did what it was to do.
    Success,
    /// It did not: the positive errno.
    Failure(i32),
    /// Its return was missed.
    Unknown,
}

impl CallResult {
    /// Of what a system call returns: a descriptor, zero, or a negative errno.
    pub const fn of(returned: i64) -> Self {
        match returned {
            -4095..0 => Self::Failure(-returned as i32),
            _ => Self::Success,
        }
    }

    /// Whether it did; `None` where that is not known.
    pub const fn succeeded(self) -> Option<bool> {
        match self {
            Self::Success => Some(true),
            Self::Failure(_) => Some(false),
            Self::Unknown => None,
        }
    }

    /// The positive errno of a failure.
    pub const fn errno(self) -> Option<i32> {
        match self {
            Self::Failure(errno) => Some(errno),
            Self::Success | Self::Unknown => None,
        }
    }
}

impl Action {
    /// `create`, `bind`, `listen`, `accept`, `connect`, `setsockopt`, `close` or `state`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Bind => "bind",
            Self::Listen { .. } => "listen",
            Self::Accept { .. } => "accept",
            Self::Connect => "connect",
            Self::SetSockOpt { .. } => "setsockopt",
            Self::Close => "close",
            Self::State => "state",
        }
    }

    /// The set that holds this action alone.
    pub const fn as_set(&self) -> Actions {
        match self {
            Self::Create { .. } => Actions::CREATE,
            Self::Bind => Actions::BIND,
            Self::Listen { .. } => Actions::LISTEN,
            Self::Accept { .. } => Actions::ACCEPT,
            Self::Connect => Actions::CONNECT,
            Self::SetSockOpt { .. } => Actions::SETSOCKOPT,
            Self::Close => Actions::CLOSE,
            Self::State => Actions::STATE,
        }
    }
}

/// A set of actions: which events are wanted. Only their probes are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Actions(u8);

impl Actions {
    /// None: socket events are off.
    pub const NONE: Self = Self(0);
    /// [`Action::Create`].
    pub const CREATE: Self = Self(1);
    /// [`Action::Bind`].
    pub const BIND: Self = Self(1 << 1);
    /// [`Action::Listen`].
    pub const LISTEN: Self = Self(1 << 2);
    /// [`Action::Accept`].
    pub const ACCEPT: Self = Self(1 << 3);
    /// [`Action::Connect`].
    pub const CONNECT: Self = Self(1 << 4);
    /// [`Action::SetSockOpt`].
    pub const SETSOCKOPT: Self = Self(1 << 5);
    /// [`Action::Close`].
    pub const CLOSE: Self = Self(1 << 6);
    /// [`Action::State`]. For the ports that sending gives, each datagram that leaves is sampled.
    pub const STATE: Self = Self(1 << 7);
    /// All calls, and the close.
    pub const ALL: Self = Self(0x7f);
    /// What [sensors](crate::sensors) need to hear of. Creation says whose a socket is.
    pub const SENSORS: Self =
        Self::CREATE.or(Self::BIND).or(Self::LISTEN).or(Self::ACCEPT).or(Self::CONNECT).or(Self::CLOSE).or(Self::STATE);

    /// What is in either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is in it.
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The action of this name, as it stands in `event.action` after `socket_`; none of a state, which is no call.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "create" => Self::CREATE,
            "bind" => Self::BIND,
            "listen" => Self::LISTEN,
            "accept" => Self::ACCEPT,
            "connect" => Self::CONNECT,
            "setsockopt" => Self::SETSOCKOPT,
            "close" => Self::CLOSE,
            _ => return None,
        })
    }

    /// Whether there is none in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_told_from_what_calls_return() {
        assert_eq!(CallResult::of(0), CallResult::Success);
        assert_eq!(CallResult::of(7), CallResult::Success);
        assert_eq!(CallResult::of(-98), CallResult::Failure(98));
        assert_eq!(CallResult::of(0xffff_8880_1234_5678_u64 as i64), CallResult::Success, "a pointer");
    }

    #[test]
    fn a_threads_name_is_any_bytes_and_bounded() {
        assert_eq!(ThreadName::new(b"a\xff name \n").text(), "a\u{fffd} name \n");
        assert_eq!(ThreadName::new(b"0123456789abcdefgh").text(), "0123456789abcde");
        assert_eq!(ThreadName::new(b"").text(), "");
    }

    #[test]
    fn sets_of_actions() {
        let both = Actions::BIND.or(Actions::CLOSE);
        assert!(both.contains(Actions::BIND) && both.meets(Actions::ALL) && !both.contains(Actions::ALL));
        assert!(Actions::NONE.is_empty() && !both.meets(Actions::LISTEN.or(Actions::CONNECT)));
    }
}
