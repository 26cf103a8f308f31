//! Steps: what a source says of a call while it goes on. The state machine makes [`SocketEvent`]s of them.
//!
//! [`SocketEvent`]: super::SocketEvent

use super::{Address, Family, IpEnd, SocketId, SocketState, SocketType};
use crate::event::KernelAddress;

/// What happened on the way of a call, in the thread that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A call begins.
    Entered(Entered),
    /// A call has come to its socket, by whatever way.
    Reached {
        /// The socket as it is before anything is done to it; of [`Call::Create`] as it was made.
        socket: Seen,
        /// What is to be done to it.
        what: Reached,
    },
    /// A TCP socket that connects has its own address, and its first packet leaves.
    Connecting {
        /// Its own end.
        local: Option<IpEnd>,
    },
    /// A connection was accepted.
    Accepted {
        /// The connection's socket.
        socket: Seen,
    },
    /// A call comes back.
    Returned {
        /// Which.
        call: Call,
        /// From where.
        layer: Layer,
        /// With what: a descriptor, zero, or a negative errno.
        value: i64,
    },
    /// The last descriptor of a socket is gone.
    Released {
        /// The socket as it was until then.
        socket: Seen,
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

/// Who is told by a return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// The program, by a system call.
    SystemCall,
    /// The kernel's own caller: the system call on its way, or io_uring, which makes calls without one.
    Socket,
}

/// The beginning of a call, with the arguments that are not seen where it comes to its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// `socket(2)`, or what io_uring does in its place.
    Create {
        /// Who is told by its return.
        layer: Layer,
        /// Family.
        family: i32,
        /// Type, with flags.
        kind: i32,
        /// Protocol.
        protocol: i32,
    },
    /// `listen(2)`.
    Listen {
        /// Descriptor.
        fd: i32,
        /// Backlog as it was asked for.
        backlog: i32,
    },
    /// One of the others.
    Other {
        /// Which.
        call: Call,
        /// Descriptor.
        fd: i32,
    },
}

impl Entered {
    /// Who is told what comes of it.
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

/// What a call is to do to the socket that it has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reached {
    /// It was made.
    Create {
        /// The protocol as it was asked for.
        protocol: i32,
    },
    /// It gets this address.
    Bind(Option<Address>),
    /// It will listen.
    Listen {
        /// Backlog as the kernel allows it.
        backlog: i32,
    },
    /// A connection is taken from its queue.
    Accept,
    /// It is to reach this address.
    Connect(Option<Address>),
    /// An option of it is set.
    SetSockOpt {
        /// Layer.
        level: i32,
        /// Option.
        option: i32,
    },
}

impl Reached {
    /// Which call has come there.
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
pub struct Seen {
    /// Which one.
    pub id: SocketId,
    /// Its `struct sock`; 0 when it has none, and then the rest means nothing.
    pub sock: KernelAddress,
    /// Family.
    pub family: Family,
    /// Type.
    pub kind: SocketType,
    /// Protocol; `None` where it is not known.
    pub protocol: Option<u16>,
    /// State.
    pub state: SocketState,
    /// Its own end, if it is one of IP and has one.
    pub local: Option<IpEnd>,
    /// The other end.
    pub remote: Option<IpEnd>,
}
