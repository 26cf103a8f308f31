//! A call in progress, and its outcome.

use std::sync::Arc;

use nix::libc;

use super::{
    Action, Address, Call, CallContext, CallResult, Entered, EventSocket, Family, Layer, Listener, Operation, Process,
    SocketState, SocketType, ThreadName,
};

/// Removes `SOCK_CLOEXEC` and `SOCK_NONBLOCK` from the type argument of `socket(2)` (`include/linux/net.h`).
const SOCK_TYPE_MASK: i32 = 0xf;

/// A call in progress in a thread.
#[derive(Debug)]
pub struct Pending {
    pub call: Call,
    /// The entry of the call, if it was seen. io_uring makes no system call, so there is none.
    pub start: Option<SystemCall>,
    /// The socket of the call, once the call has reached it.
    pub target: Option<CallTarget>,
    /// The thread's name, once a step has shown it.
    pub thread_name: Option<ThreadName>,
}

/// A system call: its entry, and the descriptor that it returned.
#[derive(Debug, Clone, Copy)]
pub struct SystemCall {
    entered: Entered,
    returned_fd: Option<i32>,
}

/// The socket of a call, and what the call does to it.
#[derive(Debug)]
pub struct CallTarget {
    /// The socket as it was before the call.
    pub socket: EventSocket,
    /// The state before the call.
    pub before: SocketState,
    pub operation: Operation,
    /// The local address that the kernel has chosen for a connect.
    pub connected_from: Option<Address>,
    /// The connection that the call accepted.
    pub accepted: Option<EventSocket>,
    pub context: CallContext,
}

/// The outcome of a call.
pub struct CallOutcome {
    pub action: Action,
    pub fd: Option<i32>,
    /// The socket as the event shows it: with the requested address, even if the call failed.
    pub socket_in_event: EventSocket,
    /// The state before the call.
    pub before: Option<SocketState>,
    /// The socket as the table keeps it: created, accepted or changed. `None` if the call made none.
    pub socket_in_table: Option<EventSocket>,
}

impl Pending {
    /// The layer whose return ends the call.
    pub fn ending_layer(&self) -> Layer {
        self.start.map_or(Layer::Socket, |start| start.entered.layer())
    }

    pub fn entered(entered: Entered, thread_name: Option<ThreadName>) -> Self {
        let start = SystemCall { entered, returned_fd: None };
        Self { call: entered.call(), start: Some(start), target: None, thread_name }
    }

    pub fn reached(call: Call, target: CallTarget, thread_name: Option<ThreadName>) -> Self {
        Self { call, start: None, target: Some(target), thread_name }
    }
}

impl SystemCall {
    pub fn with_descriptor(self, returned_fd: Option<i32>) -> Self {
        Self { returned_fd, ..self }
    }

    /// Family, type and protocol of the socket that the call should create; `None` for other calls.
    pub fn requested_socket(self) -> Option<(Family, SocketType, i32)> {
        let Entered::Create { family, kind, protocol, .. } = self.entered else { return None };
        let to_u16 = |value: i32| u16::try_from(value).unwrap_or(u16::MAX); // not a valid family or type
        Some((Family(to_u16(family)), SocketType(to_u16(kind & SOCK_TYPE_MASK)), protocol))
    }

    /// The descriptor that was passed to the call; for a creation, the descriptor that it returned.
    fn fd(self) -> Option<i32> {
        match self.entered {
            Entered::Create { .. } => self.returned_fd,
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
    pub fn outcome(self, start: Option<SystemCall>, result: CallResult, process: Option<Arc<Process>>) -> CallOutcome {
        let Self { mut socket, before, operation, connected_from, accepted, .. } = self;
        let fd = start.and_then(SystemCall::fd);
        let succeeded = result == CallResult::Success;
        let mut socket_in_table = None;
        let action = match operation {
            Operation::Create { protocol } => {
                socket.owner = process; // the creator owns the socket
                socket_in_table = succeeded.then(|| socket.clone());
                return CallOutcome {
                    action: Action::Create { protocol },
                    fd,
                    socket_in_event: socket,
                    before: None,
                    socket_in_table,
                };
            }
            Operation::Accept => {
                let listener = Listener { id: socket.id, local: socket.local.clone() };
                let returned_fd = start.and_then(|start| start.returned_fd);
                let action = Action::Accept { listener, accepted: returned_fd };
                let Some(connection) = accepted.filter(|_| succeeded) else {
                    return CallOutcome { action, fd, socket_in_event: socket, before: Some(before), socket_in_table };
                };
                socket_in_table = Some(connection.clone());
                return CallOutcome { action, fd, socket_in_event: connection, before: None, socket_in_table };
            }
            Operation::Bind(address) => {
                let bound = EventSocket { local: address.or_else(|| socket.local.clone()), ..socket.clone() };
                socket_in_table = Some(if succeeded { bound.clone() } else { socket });
                socket = bound; // the event shows the address that was asked for
                Action::Bind
            }
            Operation::Listen { backlog } => {
                if succeeded {
                    socket.state = Some(SocketState::LISTEN);
                }
                Action::Listen { backlog: start.and_then(SystemCall::backlog).unwrap_or(backlog) }
            }
            Operation::Connect(address) => {
                socket.state = Some(after_connect(before, &socket, address.as_ref(), result));
                let takes_effect = succeeded || result == CallResult::Failure(libc::EINPROGRESS);
                let connected = EventSocket {
                    local: connected_from.or_else(|| socket.local.clone()),
                    remote: address.or_else(|| socket.remote.clone()),
                    ..socket.clone()
                };
                let disconnects = is_unspec(connected.remote.as_ref());
                socket_in_table = Some(if takes_effect && disconnects {
                    EventSocket { remote: None, ..socket }
                } else if takes_effect {
                    connected.clone()
                } else {
                    socket
                });
                socket = connected; // the event shows the address that was asked for
                Action::Connect
            }
            Operation::SetSockOpt { level, option } => Action::SetSockOpt { level, option },
        };
        let socket_in_table = socket_in_table.or_else(|| Some(socket.clone()));
        CallOutcome { action, fd, socket_in_event: socket, before: Some(before), socket_in_table }
    }
}

/// Whether an address is of `AF_UNSPEC`: a connect to it disconnects the socket (`connect(2)`).
fn is_unspec(address: Option<&Address>) -> bool {
    matches!(address, Some(Address::Other(Family(0))))
}

/// The state that a connect leaves a socket in. A TCP connect that is still going on (`EINPROGRESS`, `EINTR`) leaves
/// `SYN_SENT`; an attempt that fails returns to `CLOSE`; `AF_UNSPEC` disconnects; any other error changes nothing.
fn after_connect(before: SocketState, socket: &EventSocket, to: Option<&Address>, result: CallResult) -> SocketState {
    let is_stream = socket.kind == Some(SocketType::STREAM);
    match result {
        CallResult::Success if is_unspec(to) => SocketState::CLOSE,
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
