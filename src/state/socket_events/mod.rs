//! Turns the steps of calls into socket events. For this it keeps the call in progress of each thread, and what is known of each
//! socket.

mod pending;
mod states;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use nix::libc;

use hashbrown::HashMap;

use self::pending::{CallTarget, Pending};
use super::processes::Processes;
use crate::model::event::Event;
use crate::model::kernel_address::SockAddress;
use crate::model::process::Process;
use crate::model::socket_event::step::{Call, Entered, Layer, Operation, SocketSnapshot, Step};
use crate::model::socket_event::{
    Action, Actions, Address, CallResult, EventSocket, Family, IpEnd, Listener, SocketEvent, SocketId, SocketState,
    SocketType, ThreadName,
};
use crate::model::time::MonotonicTime;

/// The maximum number of calls in progress, each in a thread of its own.
const MAX_PENDING: usize = 65_536;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// The known sockets and the calls in progress. See the [module](self).
#[derive(Debug)]
pub struct SocketEvents {
    wanted: Actions,
    own_pid: u32,
    limit: usize,
    sockets: Map<SocketId, EventSocket>,
    /// The ids of sockets by their `struct sock`, if changes of state are wanted.
    by_sock: Map<SockAddress, SocketId>,
    /// The calls in progress, by thread.
    pending: Map<u32, Pending>,
    events: Vec<SocketEvent>,
    /// Events made.
    pub emitted: u64,
    /// How often a socket was not remembered because the table was full. Later events of such a socket lack what only its earlier
    /// calls have shown, such as its owner.
    pub not_remembered: u64,
    /// Calls that were not tracked because too many were in progress, and calls with a socket whose return was not seen.
    pub unfinished: u64,
}

/// The time, thread and process of a step.
#[derive(Debug, Clone)]
struct CallContext {
    time: MonotonicTime,
    tid: u32,
    thread_name: Option<ThreadName>,
    process: Option<Arc<Process>>,
}

impl SocketEvents {
    /// Makes events of the `wanted` actions of all processes except `own_pid`; knows at most `limit` sockets at once.
    pub fn new(wanted: Actions, own_pid: u32, limit: usize) -> Self {
        Self {
            wanted,
            own_pid,
            limit,
            sockets: HashMap::default(),
            by_sock: HashMap::default(),
            pending: HashMap::default(),
            events: Vec::new(),
            emitted: 0,
            not_remembered: 0,
            unfinished: 0,
        }
    }

    /// How many sockets are known.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Takes the events that were made since the last call.
    pub fn events(&mut self) -> std::vec::Drain<'_, SocketEvent> {
        self.events.drain(..)
    }

    /// Keeps the events that are accepted, of those that the next call of [`Self::events`] takes.
    pub fn retain(&mut self, accepts: impl FnMut(&SocketEvent) -> bool) {
        self.events.retain(accepts);
    }

    /// Adds a socket that existed before the first event.
    pub fn add_preexisting(&mut self, socket: EventSocket) {
        if !self.sockets.contains_key(&socket.id) {
            self.remember(socket);
        }
    }

    /// A thread has ended, so its call does not return.
    pub fn exit(&mut self, tid: u32) {
        self.pending.remove(&tid);
    }

    /// Applies a step.
    pub fn step(&mut self, event: &Event, step: &Step, thread_name: Option<ThreadName>, processes: &mut Processes) {
        if event.pid == self.own_pid {
            return;
        }
        let mut context = CallContext { time: event.time, tid: event.tid, thread_name, process: None };
        match step {
            Step::Entered(entered) => self.entered(context, *entered),
            Step::Reached { socket, operation } => {
                context.process = unless_kernel(processes.process_of_running_thread(event.pid, event.tid));
                self.reached(context, socket, operation);
            }
            Step::Connecting { local } => self.connecting(event.tid, *local),
            Step::Accepted { socket } => {
                context.process = unless_kernel(processes.process_of_running_thread(event.pid, event.tid));
                self.accepted(context, socket);
            }
            Step::Returned { call, layer, value } => {
                context.process = unless_kernel(processes.process_of_running_thread(event.pid, event.tid));
                self.returned(context, *call, *layer, *value);
            }
            Step::Released { socket } => {
                context.process = unless_kernel(processes.process_that_may_have_ended(event.pid));
                self.released(context, socket);
            }
        }
    }

    fn entered(&mut self, context: CallContext, entered: Entered) {
        self.begin_call(context.tid, Pending::entered(entered, context.thread_name));
    }

    fn reached(&mut self, context: CallContext, snapshot: &SocketSnapshot, operation: &Operation) {
        // A new socket has no history. If it is known already, `/proc` was read after its creation and may show a later state.
        let is_new = operation.call() == Call::Create;
        let socket = if is_new { from_snapshot(snapshot) } else { self.known(snapshot) };
        // A nonblocking connect may be established before the call returns; `tcp_state` must find the socket then.
        if operation.call() == Call::Connect && self.wanted.intersects(Actions::STATE) {
            self.remember(socket.clone());
        }
        let target = CallTarget {
            socket,
            before: snapshot.state,
            operation: operation.clone(),
            connected_from: None,
            accepted: None,
            context: context.clone(),
        };
        match self.pending.get_mut(&context.tid) {
            Some(pending)
                if pending.call == operation.call() && pending.start.is_some() && pending.target.is_none() =>
            {
                pending.target = Some(target);
                pending.thread_name = pending.thread_name.or(context.thread_name);
            }
            // A socket that is created without a system call of its own (one of a pair, or by io_uring): no return will be
            // sampled. This sample is taken after the creation, so the creation succeeded.
            _ if operation.call() == Call::Create => self.emit_outcome(context, None, target, CallResult::Success),
            _ => self.begin_call(context.tid, Pending::reached(operation.call(), target, context.thread_name)),
        }
    }

    fn connecting(&mut self, tid: u32, local: Option<IpEnd>) {
        let target = self.pending.get_mut(&tid).and_then(|pending| pending.target.as_mut());
        let Some(target) = target.filter(|target| matches!(target.operation, Operation::Connect(_))) else { return };
        target.connected_from = merged_address(local, target.socket.local.clone());
    }

    fn accepted(&mut self, context: CallContext, snapshot: &SocketSnapshot) {
        let mut socket = from_snapshot(snapshot);
        socket.owner.clone_from(&context.process);
        let Some(pending) = self.pending.get_mut(&context.tid).filter(|pending| pending.call == Call::Accept) else {
            return self.accepted_by_unseen_call(context, socket);
        };
        let Some(target) = &mut pending.target else { return };
        if socket.family == Family::UNIX {
            socket.local.clone_from(&target.socket.local);
        }
        target.accepted = Some(socket);
        // io_uring: no system call returns, so the call ends here.
        if pending.start.is_none() {
            self.end_call(context, CallResult::Success, None);
        }
    }

    /// The connection of an accept whose entry was not seen, for instance because it began before the monitor. Its listener is not
    /// known.
    fn accepted_by_unseen_call(&mut self, context: CallContext, socket: EventSocket) {
        // A kernel thread accepts for the kernel itself, not for a program, so there is no event.
        let CallContext { time, tid, thread_name, process: Some(process) } = context else { return };
        self.remember(socket.clone());
        let listener = Listener { id: SocketId::default(), local: None };
        self.emit(SocketEvent {
            time,
            action: Action::Accept { listener, accepted: None },
            result: CallResult::Success,
            fd: None,
            socket,
            before: None,
            process: Some(process),
            tid,
            thread_name,
        });
    }

    fn returned(&mut self, context: CallContext, call: Call, layer: Layer, value: i64) {
        let Some(pending) = self.pending.get(&context.tid) else { return };
        if pending.call != call || layer != pending.ending_layer() {
            return;
        }
        if (call, layer, value) == (Call::Accept, Layer::Socket, -i64::from(libc::EAGAIN)) {
            self.pending.remove(&context.tid); // io_uring tries again when a connection has come
            return;
        }
        let descriptor = i32::try_from(value).ok().filter(|fd| layer == Layer::SystemCall && *fd >= 0);
        self.end_call(context, CallResult::of(value), descriptor);
    }

    fn released(&mut self, context: CallContext, snapshot: &SocketSnapshot) {
        let known = self.sockets.remove(&snapshot.id);
        self.unindex(snapshot.sock, snapshot.id);
        let mut socket = match known {
            Some(known) => updated(known, snapshot),
            None if snapshot.sock.is_none() => return, // made for an accept that got no connection
            None => from_snapshot(snapshot),
        };
        let before = socket.state.replace(SocketState::CLOSE);
        self.emit(SocketEvent {
            time: context.time,
            action: Action::Close,
            result: CallResult::Success,
            fd: None,
            socket,
            before,
            process: context.process,
            tid: context.tid,
            thread_name: context.thread_name,
        });
    }

    /// A call begins. If a call before it in the same thread is pending, its return was missed.
    fn begin_call(&mut self, tid: u32, pending: Pending) {
        if self.pending.len() >= MAX_PENDING && !self.pending.contains_key(&tid) {
            self.unfinished += 1;
            return;
        }
        if let Some(Pending { start, target: Some(target), .. }) = self.pending.insert(tid, pending) {
            self.unfinished += 1;
            let result = if target.accepted.is_some() { CallResult::Success } else { CallResult::Unknown };
            self.emit_outcome(target.context.clone(), start, target, result);
        }
    }

    /// A thread's call ends. `descriptor` is the file descriptor that the call returned, if it returned one.
    fn end_call(&mut self, mut context: CallContext, result: CallResult, descriptor: Option<i32>) {
        let Some(Pending { start, target, thread_name, .. }) = self.pending.remove(&context.tid) else { return };
        // A return sample does not contain the thread's name.
        context.thread_name = context.thread_name.or(thread_name);
        let start = start.map(|start| start.with_descriptor(descriptor));
        match (target, start.and_then(pending::SystemCall::requested_socket)) {
            (Some(target), _) => self.emit_outcome(context, start, target, result),
            // The call failed before it had created a socket.
            (None, Some((family, kind, protocol))) if result != CallResult::Success => {
                let number = u16::try_from(protocol).ok();
                let socket =
                    EventSocket { kind: Some(kind), protocol: number, ..EventSocket::new(SocketId::default(), family) };
                let before = SocketState::CLOSE;
                let target = CallTarget {
                    socket,
                    before,
                    operation: Operation::Create { protocol },
                    connected_from: None,
                    accepted: None,
                    context: context.clone(),
                };
                self.emit_outcome(context, start, target, result);
            }
            (None, _) => {} // no socket, or a socket whose creation was not sampled
        }
    }

    /// Remembers the socket as the call left it, and emits the call's event.
    fn emit_outcome(
        &mut self,
        context: CallContext,
        start: Option<pending::SystemCall>,
        target: CallTarget,
        result: CallResult,
    ) {
        let process = context.process.clone();
        let mut outcome = target.outcome(start, result, process);
        if let Some(mut socket) = outcome.socket_in_table {
            self.keep_established(&mut socket);
            self.keep_established(&mut outcome.socket_in_event);
            self.remember(socket);
        }
        let CallContext { time, tid, thread_name, process } = context;
        let (action, socket, before) = (outcome.action, outcome.socket_in_event, outcome.before);
        self.emit(SocketEvent { time, action, result, fd: outcome.fd, socket, before, process, tid, thread_name });
    }

    fn emit(&mut self, event: SocketEvent) {
        if self.wanted.contains(event.action.as_set()) {
            self.emitted += 1;
            self.events.push(event);
        }
    }

    /// The socket of a sample, with what is known of it from earlier.
    fn known(&self, snapshot: &SocketSnapshot) -> EventSocket {
        match self.sockets.get(&snapshot.id) {
            Some(known) => updated(known.clone(), snapshot),
            None => from_snapshot(snapshot),
        }
    }

    fn remember(&mut self, socket: EventSocket) {
        if self.sockets.len() >= self.limit && !self.sockets.contains_key(&socket.id) {
            self.not_remembered += 1;
            return;
        }
        self.index(&socket);
        self.sockets.insert(socket.id, socket);
    }
}

/// The process, unless it is a kernel thread.
fn unless_kernel(process: Arc<Process>) -> Option<Arc<Process>> {
    Some(process).filter(|process| !process.kernel)
}

/// A socket that is known only from this sample.
fn from_snapshot(snapshot: &SocketSnapshot) -> EventSocket {
    updated(EventSocket::new(snapshot.id, snapshot.family), snapshot)
}

/// A known socket, updated by a sample.
fn updated(known: EventSocket, snapshot: &SocketSnapshot) -> EventSocket {
    if snapshot.sock.is_none() {
        return known;
    }
    EventSocket {
        sock: snapshot.sock,
        family: snapshot.family,
        kind: Some(snapshot.kind),
        protocol: snapshot.protocol.or(known.protocol),
        local: merged_address(snapshot.local, known.local),
        remote: merged_address(snapshot.remote, known.remote),
        state: Some(snapshot.state),
        ..known
    }
}

/// The address of a sample, with the scope id and flow label of the known address. If the sample is of a closed connection,
/// which has no port any more, the known port is kept.
fn merged_address(now: Option<IpEnd>, known: Option<Address>) -> Option<Address> {
    let Some(now) = now else { return known };
    match known {
        Some(Address::Ip(known)) if known.ip == now.ip && now.port == 0 => Some(Address::Ip(known)),
        Some(Address::Ip(known)) if known.ip == now.ip => Some(Address::Ip(IpEnd { port: now.port, ..known })),
        _ => Some(Address::Ip(now)),
    }
}
