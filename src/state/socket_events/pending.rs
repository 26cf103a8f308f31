//! A call in progress, and its outcome.

use std::sync::Arc;

use nix::libc;

use super::{
    Action, Address, Call, CallContext, CallResult, Entered, EventSocket, Family, Layer, Listener, Operation, Process,
    SocketState, SocketType, ThreadName,
};

/// `TYPE & SOCK_TYPE_MASK` of `include/linux/net.h`: without flags.
const SOCK_TYPE_MASK: i32 = 0xf;

/// A call in progress in a thread.
#[derive(Debug)]
pub struct Pending {
    pub call: Call,
    /// Its entry; `None` for a call without a system call.
    pub start: Option<CallStart>,
    /// Its socket, once the call has reached it.
    pub target: Option<CallTarget>,
    /// The thread's name, once a step has shown it.
    pub thread_name: Option<ThreadName>,
}

/// The entry of a call, and the descriptor that the call returned.
#[derive(Debug, Clone, Copy)]
pub struct CallStart {
    entered: Entered,
    descriptor: Option<i32>,
}

/// The socket of a call, and what the call does to it.
#[derive(Debug)]
pub struct CallTarget {
    /// The socket as it was before the call.
    pub socket: EventSocket,
    pub before: SocketState,
    pub operation: Operation,
    /// The local address that a connect has chosen.
    pub connected_from: Option<Address>,
    /// The connection that the call accepted.
    pub accepted: Option<EventSocket>,
    pub context: CallContext,
}

/// The outcome of a call.
pub struct CallOutcome {
    pub action: Action,
    pub fd: Option<i32>,
    /// The socket of the event.
    pub socket: EventSocket,
    pub before: Option<SocketState>,
    /// The socket as it is after the call; `None` if there is none.
    pub remember: Option<EventSocket>,
}

impl Pending {
    /// The layer whose return ends the call.
    pub fn outermost(&self) -> Layer {
        self.start.map_or(Layer::Socket, |start| start.entered.layer())
    }

    pub fn entered(entered: Entered, thread_name: Option<ThreadName>) -> Self {
        let start = CallStart { entered, descriptor: None };
        Self { call: entered.call(), start: Some(start), target: None, thread_name }
    }

    pub fn reached(call: Call, target: CallTarget, thread_name: Option<ThreadName>) -> Self {
        Self { call, start: None, target: Some(target), thread_name }
    }
}

impl CallStart {
    pub fn with_descriptor(self, descriptor: Option<i32>) -> Self {
        Self { descriptor, ..self }
    }

    /// Family, type and protocol of the socket that the call was to create; `None` for other calls.
    pub fn requested_socket(self) -> Option<(Family, SocketType, i32)> {
        let Entered::Create { family, kind, protocol, .. } = self.entered else { return None };
        let number = |number: i32| u16::try_from(number).unwrap_or(u16::MAX);
        Some((Family(number(family)), SocketType(number(kind & SOCK_TYPE_MASK)), protocol))
    }

    /// The descriptor that was passed to the call; for a creation, the descriptor that it returned.
    fn fd(self) -> Option<i32> {
        match self.entered {
            Entered::Create { .. } => self.descriptor,
            Entered::Listen { fd, .. } | Entered::Other { fd, .. } => Some(fd),
        }
    }

    fn backlog(self) -> Option<i32> {
        match self.entered {
            Entered::Listen { backlog, .. } => Some(backlog),
            Entered::Create { .. } | Entered::Other { .. } => None,
        }
    }
}

impl CallTarget {
    /// The outcome of the call, which has returned `result`.
    pub fn outcome(self, start: Option<CallStart>, result: CallResult, process: Option<Arc<Process>>) -> CallOutcome {
        let Self { mut socket, before, operation, connected_from, accepted, .. } = self;
        let fd = start.and_then(CallStart::fd);
        let succeeded = result == CallResult::Success;
        let mut remember = None;
        let action = match operation {
            Operation::Create { protocol } => {
                socket.owner = process;
                remember = succeeded.then(|| socket.clone());
                return CallOutcome { action: Action::Create { protocol }, fd, socket, before: None, remember };
            }
            Operation::Accept => {
                let listener = Listener { id: socket.id, local: socket.local.clone() };
                let descriptor = start.and_then(|start| start.descriptor);
                let action = Action::Accept { listener, accepted: descriptor };
                let Some(connection) = accepted.filter(|_| succeeded) else {
                    return CallOutcome { action, fd, socket, before: Some(before), remember };
                };
                remember = Some(connection.clone());
                return CallOutcome { action, fd, socket: connection, before: None, remember };
            }
            Operation::Bind(address) => {
                let bound = EventSocket { local: address.or_else(|| socket.local.clone()), ..socket.clone() };
                remember = Some(if succeeded { bound.clone() } else { socket });
                socket = bound;
                Action::Bind
            }
            Operation::Listen { backlog } => {
                if succeeded {
                    socket.state = Some(SocketState::LISTEN);
                }
                Action::Listen { backlog: start.and_then(CallStart::backlog).unwrap_or(backlog) }
            }
            Operation::Connect(address) => {
                socket.state = Some(after_connect(before, &socket, address.as_ref(), result));
                let reached = succeeded || result == CallResult::Failure(libc::EINPROGRESS);
                let connected = EventSocket {
                    local: connected_from.or_else(|| socket.local.clone()),
                    remote: address.or_else(|| socket.remote.clone()),
                    ..socket.clone()
                };
                let unspecified = matches!(connected.remote, Some(Address::Other(Family(0))));
                remember = Some(match () {
                    () if reached && unspecified => EventSocket { remote: None, ..socket },
                    () if reached => connected.clone(),
                    () => socket,
                });
                socket = connected;
                Action::Connect
            }
            Operation::SetSockOpt { level, option } => Action::SetSockOpt { level, option },
        };
        let remember = remember.or_else(|| Some(socket.clone()));
        CallOutcome { action, fd, socket, before: Some(before), remember }
    }
}

/// The state that a connect leaves a socket in. A connection that fails is over; a call that found a connection under way, or
/// was interrupted while it waited, changes nothing.
fn after_connect(before: SocketState, socket: &EventSocket, to: Option<&Address>, result: CallResult) -> SocketState {
    let is_stream = socket.kind == Some(SocketType::STREAM);
    match result {
        CallResult::Success if matches!(to, Some(Address::Other(Family(0)))) => SocketState::CLOSE,
        CallResult::Success => SocketState::ESTABLISHED,
        CallResult::Failure(libc::EINPROGRESS | libc::EINTR) if socket.family.is_ip() && is_stream => {
            SocketState::SYN_SENT
        }
        CallResult::Failure(
            libc::ECONNREFUSED
            | libc::ECONNRESET
            | libc::ECONNABORTED
            | libc::ETIMEDOUT
            | libc::ENETUNREACH
            | libc::EHOSTUNREACH,
        ) if before == SocketState::SYN_SENT => SocketState::CLOSE,
        CallResult::Failure(_) | CallResult::Unknown => before,
    }
}
