//! Socket events: the calls that programs make on sockets, with their results.
//!
//! A [flow](crate::model::flow) describes a conversation; a socket event describes one call: a socket was created, bound,
//! connected, closed. A consumer gets each as [`Received::Socket`](crate::monitor::Received::Socket) from a monitor whose
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
//! - A [`SocketId`] identifies a socket from its first event to its close. The close comes exactly once: when the last
//!   descriptor is closed, by `close(2)`, by the end of the process or by an exec.
//! - A call that did not reach a socket (its descriptor was invalid, or a file's) makes no event.
//! - Sockets that existed before the monitor are handed out once, before any event, as
//!   [`Received::Existing`](crate::monitor::Received::Existing); they have [`EventSocket::existing`] set, also in later events.
//! - An event has what is known when the call returns. The port that the kernel chooses for a bind to port 0, or
//!   for a datagram socket that is connected or sends without having been bound, is known from the socket's next event on.

mod address;
mod names;
#[doc(hidden)]
pub mod step;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

pub use self::address::{Address, IpEnd, UnixName};
pub use self::names::{Family, SocketState, SocketType, protocol_name};
use crate::model::kernel_address::SockAddress;
use crate::model::process::Process;
use crate::model::time::MonotonicTime;

/// One call on a socket, or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketEvent {
    /// When the call returned; for a close, when the socket was released.
    pub time: MonotonicTime,
    /// The call.
    pub action: Action,
    /// Its result.
    pub result: CallResult,
    /// The descriptor that was passed to the call, or that [`Action::Create`] returned. `None` if there is none: in
    /// calls through io_uring, the two ends of a `socketpair(2)`, and a close.
    pub fd: Option<i32>,
    /// The socket after the call. For an [`Action::Accept`] this is the new connection's socket if the call succeeded, else
    /// the listener.
    pub socket: EventSocket,
    /// The state of the socket before the call; for a close, its last state. `None` for a socket that the call created.
    pub before: Option<SocketState>,
    /// The process that made the call or closed the last descriptor, as it was then. `None` if it is not known, or if the
    /// kernel acted on its own.
    pub process: Option<Arc<Process>>,
    /// The thread that made the call; 0 if it is not known.
    pub tid: u32,
    /// That thread's own name when the call reached its socket. `None` if it is empty or not known, as before Linux 4.8.
    pub thread_name: Option<ThreadName>,
}

/// The name of a thread (`comm` of the kernel's `struct task_struct`): its program's name, truncated to 15 bytes, until
/// the thread gets another, by `pthread_setname_np(3)` for instance. May contain any bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ThreadName {
    bytes: [u8; Self::MAX_LEN],
    length: u8,
}

impl ThreadName {
    /// `TASK_COMM_LEN` without its NUL.
    const MAX_LEN: usize = 15;

    /// The name at the beginning of these bytes, at most 15 of them. `None` if it is empty: a thread may give itself an empty name.
    pub fn new(name: &[u8]) -> Option<Self> {
        let mut bytes = [0; Self::MAX_LEN];
        let length = name.len().min(Self::MAX_LEN);
        bytes[..length].copy_from_slice(&name[..length]);
        (length > 0).then_some(Self { bytes, length: length as u8 })
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
#[non_exhaustive]
pub struct EventSocket {
    /// Its id.
    pub id: SocketId,
    /// Its `struct sock`, as in flows. `None` if it is not known.
    pub sock: Option<SockAddress>,
    /// Its address family.
    pub family: Family,
    /// Its type; `None` where it is not known.
    pub kind: Option<SocketType>,
    /// The number of its protocol: an IANA number for IP, 0 if the family has only one protocol. `None` if it is not known.
    pub protocol: Option<u16>,
    /// Its local address. `None` if it has none yet, or it is not known.
    pub local: Option<Address>,
    /// The remote address; for a connect that failed, the address that was wanted. `None` if there is none, or it is not
    /// known.
    pub remote: Option<Address>,
    /// Its state. After a close it is [`SocketState::CLOSE`].
    pub state: Option<SocketState>,
    /// The process that created or accepted it; `None` if it is not known.
    pub owner: Option<Arc<Process>>,
    /// Whether it existed before the monitor.
    pub existing: bool,
}

impl EventSocket {
    /// A socket with this id and family; nothing else is known of it.
    pub const fn new(id: SocketId, family: Family) -> Self {
        Self {
            id,
            sock: None,
            family,
            kind: None,
            protocol: None,
            local: None,
            remote: None,
            state: None,
            owner: None,
            existing: false,
        }
    }
}

impl SocketEvent {
    /// An event with these values and no process: for tests of code that takes events.
    pub const fn new(time: MonotonicTime, action: Action, result: CallResult, socket: EventSocket) -> Self {
        Self { time, action, result, fd: None, socket, before: None, process: None, tid: 0, thread_name: None }
    }
}

/// The number of a socket's inode, as `/proc/PID/fd` and `/proc/net/tcp` show it: no two living sockets have the same.
/// 0 stands for a socket that was never created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SocketId(pub u64);

/// A call on a socket, or a change of its state.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// `socket(2)`, and each end of `socketpair(2)`.
    Create {
        /// The protocol that was asked for; 0 for the default of the type.
        protocol: i32,
    },
    /// `bind(2)`. [`EventSocket::local`] is the address asked for.
    Bind,
    /// `listen(2)`.
    Listen {
        /// How many connections may wait, as the call asked; the kernel may allow fewer.
        backlog: i32,
    },
    /// `accept(2)`, once there is a connection or the call has failed.
    Accept {
        /// The listening socket.
        listener: Listener,
        /// The connection's descriptor, if it is known.
        accepted: Option<i32>,
    },
    /// `connect(2)`. A call that does not wait fails with `EINPROGRESS`; then [`EventSocket::state`] is
    /// [`SocketState::SYN_SENT`].
    Connect,
    /// `setsockopt(2)`.
    SetSockOpt {
        /// The level: `SOL_SOCKET` is 1, else a protocol's number.
        level: i32,
        /// The option's number at that level.
        option: i32,
    },
    /// The last descriptor is closed. This always succeeds.
    Close,
    /// Not a call: a known TCP socket became [established](SocketState::ESTABLISHED) or [closed](SocketState::CLOSE) for any
    /// reason, or a known UDP socket got its local port by sending. This may come before the event of the call that caused it.
    State,
}

/// The socket that a connection was accepted from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its id.
    pub id: SocketId,
    /// The address that it listens on.
    pub local: Option<Address>,
}

/// The result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallResult {
    /// The call succeeded.
    Success,
    /// The call failed with this positive errno.
    Failure(i32),
    /// The return of the call was missed.
    Unknown,
}

impl CallResult {
    /// The result for a system call's return value: a descriptor, zero, or a negative errno.
    pub const fn of(returned: i64) -> Self {
        match returned {
            -4095..0 => Self::Failure(-returned as i32),
            _ => Self::Success,
        }
    }

    /// Whether the call succeeded; `None` if that is not known.
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
    /// [`Action::State`]. Each outgoing datagram is sampled, to see the ports that UDP sockets get by sending.
    pub const STATE: Self = Self(1 << 7);
    /// All calls and the close, without [`Action::State`].
    pub const ALL: Self = Self(0x7f);
    /// The actions that [sensors](crate::sensors) need. Creation shows which process owns a socket.
    pub const SENSORS: Self =
        Self::CREATE.or(Self::BIND).or(Self::LISTEN).or(Self::ACCEPT).or(Self::CONNECT).or(Self::CLOSE).or(Self::STATE);

    /// The union of both.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the set contains all actions of `other`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the set contains any action of `other`.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The set of the action with this name, as in `event.action` after `socket_`. `None` for other names and for `state`,
    /// which is not a call.
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

    /// Whether the set contains no action.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn return_values_become_results() {
        assert_eq!(CallResult::of(0), CallResult::Success);
        assert_eq!(CallResult::of(7), CallResult::Success);
        assert_eq!(CallResult::of(-98), CallResult::Failure(98));
        assert_eq!(CallResult::of(0xffff_8880_1234_5678_u64 as i64), CallResult::Success, "a pointer");
    }

    #[test]
    fn a_threads_name_may_be_any_bytes_and_is_bounded() {
        assert_eq!(ThreadName::new(b"a\xff name \n").unwrap().text(), "a\u{fffd} name \n");
        assert_eq!(ThreadName::new(b"0123456789abcdefgh").unwrap().text(), "0123456789abcde");
        assert_eq!(ThreadName::new(b""), None);
    }

    #[test]
    fn sets_of_actions() {
        let both = Actions::BIND.or(Actions::CLOSE);
        assert!(both.contains(Actions::BIND) && both.intersects(Actions::ALL) && !both.contains(Actions::ALL));
        assert!(Actions::NONE.is_empty() && !both.intersects(Actions::LISTEN.or(Actions::CONNECT)));
    }
}
