//! A call under way, and what it comes to.

use std::sync::Arc;

use nix::libc;

use super::{
    Action, Address, Call, CallResult, Entered, Family, Layer, Listener, Moment, Process, Reached, Socket, SocketState,
    SocketType, ThreadName,
};

/// `TYPE & SOCK_TYPE_MASK` of `include/linux/net.h`: without flags.
const SOCK_TYPE_MASK: i32 = 0xf;

/// What a thread is doing.
#[derive(Debug)]
pub struct Pending {
    pub call: Call,
    /// What its beginning told; `None` for a call that no system call began.
    pub entered: Option<Begun>,
    /// The socket that it is about, once it has come there.
    pub aim: Option<Aim>,
    /// The thread's name, once a step has had it.
    pub thread_name: Option<ThreadName>,
}

/// How a system call began, and the descriptor that it brought.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    entered: Entered,
    descriptor: Option<i32>,
}

/// What a call is about.
#[derive(Debug)]
pub struct Aim {
    /// The socket as it was before the call.
    pub socket: Socket,
    pub before: SocketState,
    pub what: Reached,
    /// The address that the socket got to connect from.
    pub from: Option<Address>,
    /// The connection that it got.
    pub accepted: Option<Socket>,
    pub moment: Moment,
}

/// What became of a call.
pub struct Outcome {
    pub action: Action,
    pub fd: Option<i32>,
    /// The socket that the event tells of.
    pub socket: Socket,
    pub before: Option<SocketState>,
    /// The socket as it is from now on; `None` when there is none.
    pub remember: Option<Socket>,
}

impl Pending {
    /// Whose return is the call's end.
    pub fn outermost(&self) -> Layer {
        self.entered.map_or(Layer::Socket, |begun| begun.entered.layer())
    }

    pub fn entered(entered: Entered, thread_name: Option<ThreadName>) -> Self {
        let begun = Begun { entered, descriptor: None };
        Self { call: entered.call(), entered: Some(begun), aim: None, thread_name }
    }

    pub fn reached(call: Call, aim: Aim, thread_name: Option<ThreadName>) -> Self {
        Self { call, entered: None, aim: Some(aim), thread_name }
    }
}

impl Begun {
    pub fn with_descriptor(self, descriptor: Option<i32>) -> Self {
        Self { descriptor, ..self }
    }

    /// Family, type and protocol of the socket that is to be made.
    pub fn asked(self) -> Option<(Family, SocketType, i32)> {
        let Entered::Create { family, kind, protocol, .. } = self.entered else { return None };
        let number = |number: i32| u16::try_from(number).unwrap_or(u16::MAX);
        Some((Family(number(family)), SocketType(number(kind & SOCK_TYPE_MASK)), protocol))
    }

    /// The descriptor that the call was given; of a creation the one that it gave.
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

impl Aim {
    /// What the call comes to, being back with `result`.
    pub fn outcome(self, begun: Option<Begun>, result: CallResult, process: Option<Arc<Process>>) -> Outcome {
        let Self { mut socket, before, what, from, accepted, .. } = self;
        let fd = begun.and_then(Begun::fd);
        let succeeded = result == CallResult::Success;
        let mut remember = None;
        let action = match what {
            Reached::Create { protocol } => {
                socket.owner = process;
                remember = succeeded.then(|| socket.clone());
                return Outcome { action: Action::Create { protocol }, fd, socket, before: None, remember };
            }
            Reached::Accept => {
                let listener = Listener { id: socket.id, local: socket.local.clone() };
                let descriptor = begun.and_then(|begun| begun.descriptor);
                let action = Action::Accept { listener, accepted: descriptor };
                let Some(connection) = accepted.filter(|_| succeeded) else {
                    return Outcome { action, fd, socket, before: Some(before), remember };
                };
                remember = Some(connection.clone());
                return Outcome { action, fd, socket: connection, before: None, remember };
            }
            Reached::Bind(address) => {
                let bound = Socket { local: address.or_else(|| socket.local.clone()), ..socket.clone() };
                remember = Some(if succeeded { bound.clone() } else { socket });
                socket = bound;
                Action::Bind
            }
            Reached::Listen { backlog } => {
                if succeeded {
                    socket.state = Some(SocketState::LISTEN);
                }
                Action::Listen { backlog: begun.and_then(Begun::backlog).unwrap_or(backlog) }
            }
            Reached::Connect(address) => {
                socket.state = Some(after_connect(before, &socket, address.as_ref(), result));
                let reached = succeeded || result == CallResult::Failure(libc::EINPROGRESS);
                let connected = Socket {
                    local: from.or_else(|| socket.local.clone()),
                    remote: address.or_else(|| socket.remote.clone()),
                    ..socket.clone()
                };
                let unspecified = matches!(connected.remote, Some(Address::Other(Family(0))));
                remember = Some(match () {
                    () if reached && unspecified => Socket { remote: None, ..socket },
                    () if reached => connected.clone(),
                    () => socket,
                });
                socket = connected;
                Action::Connect
            }
            Reached::SetSockOpt { level, option } => Action::SetSockOpt { level, option },
        };
        let remember = remember.or_else(|| Some(socket.clone()));
        Outcome { action, fd, socket, before: Some(before), remember }
    }
}

/// The state that a connect leaves a socket in. A connection that fails is over; a call that only found one under way, or
/// was interrupted while it waited, changes nothing.
fn after_connect(before: SocketState, socket: &Socket, to: Option<&Address>, result: CallResult) -> SocketState {
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
