//! Steps: what a source reports about a call in progress. The state machine turns them into [`SocketEvent`]s.
//!
//! [`SocketEvent`]: super::SocketEvent

use super::{Address, Family, IpEnd, SocketId, SocketState, SocketType};
use crate::model::kernel_address::SockAddress;

/// A step of a call, in the thread that makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A call begins.
    Entered(Entered),
    /// A call has reached its socket, through a system call or io_uring.
    Reached {
        /// The socket before the call changes it; for [`Call::Create`] the new socket.
        socket: SocketSnapshot,
        /// What the call will do to it.
        operation: Operation,
    },
    /// A connecting TCP socket has got its local address and sends its first packet.
    Connecting {
        /// Its own end.
        local: Option<IpEnd>,
    },
    /// A connection was accepted.
    Accepted {
        /// The connection's socket.
        socket: SocketSnapshot,
    },
    /// A call returns.
    Returned {
        /// Which call.
        call: Call,
        /// The layer that it returns to.
        layer: Layer,
        /// The return value: a descriptor, zero, or a negative errno.
        value: i64,
    },
    /// The last descriptor of a socket is closed.
    Released {
        /// The socket before that.
        socket: SocketSnapshot,
    },
}

/// The calls that have steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `socket(2)`.
    Create,
    /// `bind(2)`.
    Bind,
    /// `listen(2)`.
    Listen,
    /// `accept(2)`.
    Accept,
    /// `connect(2)`.
    Connect,
    /// `setsockopt(2)`.
    SetSockOpt,
}

/// The caller that a probed function returns to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// The program, through a system call.
    SystemCall,
    /// A caller in the kernel: the system call's implementation, or io_uring, which makes no system call.
    Socket,
}

/// The beginning of a call, with the arguments that are not visible where it reaches its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// `socket(2)`, or its counterpart in io_uring.
    Create {
        /// The layer that it returns to.
        layer: Layer,
        /// The address family.
        family: i32,
        /// The type, with flags such as `SOCK_NONBLOCK`.
        kind: i32,
        /// The protocol; 0 for the default of the type.
        protocol: i32,
    },
    /// `listen(2)`.
    Listen {
        /// Descriptor.
        fd: i32,
        /// The backlog that was asked for.
        backlog: i32,
    },
    /// Any other call.
    Other {
        /// Which call.
        call: Call,
        /// Descriptor.
        fd: i32,
    },
}

impl Entered {
    /// The layer that it returns to.
    pub const fn layer(&self) -> Layer {
        match self {
            Self::Create { layer, .. } => *layer,
            Self::Listen { .. } | Self::Other { .. } => Layer::SystemCall,
        }
    }

    /// Which call begins.
    pub const fn call(&self) -> Call {
        match self {
            Self::Create { .. } => Call::Create,
            Self::Listen { .. } => Call::Listen,
            Self::Other { call, .. } => *call,
        }
    }
}

/// What a call will do to the socket that it has reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// The socket was created.
    Create {
        /// The protocol that was asked for.
        protocol: i32,
    },
    /// Binds it to this address.
    Bind(Option<Address>),
    /// Makes it listen.
    Listen {
        /// The backlog that the kernel allows.
        backlog: i32,
    },
    /// Takes a connection from its queue.
    Accept,
    /// Connects it to this address.
    Connect(Option<Address>),
    /// Sets an option.
    SetSockOpt {
        /// The level, such as `SOL_SOCKET`.
        level: i32,
        /// The option's number.
        option: i32,
    },
}

impl Operation {
    /// The call that does this.
    pub const fn call(&self) -> Call {
        match self {
            Self::Create { .. } => Call::Create,
            Self::Bind(_) => Call::Bind,
            Self::Listen { .. } => Call::Listen,
            Self::Accept => Call::Accept,
            Self::Connect(_) => Call::Connect,
            Self::SetSockOpt { .. } => Call::SetSockOpt,
        }
    }
}

/// A socket as a sample shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketSnapshot {
    /// The socket's id.
    pub id: SocketId,
    /// Its `struct sock`; `None` if it has none, in which case the other fields are meaningless.
    pub sock: Option<SockAddress>,
    /// Its address family.
    pub family: Family,
    /// Its type.
    pub kind: SocketType,
    /// Its protocol; `None` if it is not known.
    pub protocol: Option<u16>,
    /// Its state.
    pub state: SocketState,
    /// Its local address, if it is an IP socket and bound.
    pub local: Option<IpEnd>,
    /// Its remote address, if it is an IP socket and connected.
    pub remote: Option<IpEnd>,
}
