//! Steps of calls to socket events: what each thread is doing, and what is known of each socket.

mod pending;
mod states;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use nix::libc;

use hashbrown::HashMap;

use self::pending::{Aim, Pending};
use super::processes::Processes;
use crate::event::{Event, KernelAddress, KernelTime};
use crate::process::Process;
use crate::socket_event::step::{Call, Entered, Layer, Reached, Seen, Step};
use crate::socket_event::{
    Action, Actions, Address, CallResult, Family, IpEnd, Listener, Socket, SocketEvent, SocketId, SocketState,
    SocketType, ThreadName,
};

/// How many calls may be under way at once, each in a thread of its own.
const MAX_PENDING: usize = 65_536;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// What is known of sockets and of the calls that are under way. See the [module](self).
#[derive(Debug)]
pub struct SocketEvents {
    wanted: Actions,
    own_pid: u32,
    limit: usize,
    sockets: Map<SocketId, Socket>,
    /// The same by their `struct sock`, where changes of state are asked for.
    by_sock: Map<KernelAddress, SocketId>,
    pending: Map<u32, Pending>,
    events: Vec<SocketEvent>,
    /// Events made.
    pub told: u64,
    /// Sockets that found no room: what only their earlier calls told is missing in their later events.
    pub refused: u64,
    /// Calls whose return was not seen.
    pub unfinished: u64,
}

/// Who is in a call, and when.
#[derive(Debug, Clone)]
struct Moment {
    time: KernelTime,
    tid: u32,
    thread_name: Option<ThreadName>,
    process: Option<Arc<Process>>,
}

impl SocketEvents {
    /// Events of the `wanted` actions of everybody but `own_pid`, with at most `limit` sockets known at once.
    pub fn new(wanted: Actions, own_pid: u32, limit: usize) -> Self {
        Self {
            wanted,
            own_pid,
            limit,
            sockets: HashMap::default(),
            by_sock: HashMap::default(),
            pending: HashMap::default(),
            events: Vec::new(),
            told: 0,
            refused: 0,
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

    /// Takes in a socket that was there before events were.
    pub fn adopt(&mut self, socket: Socket) {
        if !self.sockets.contains_key(&socket.id) {
            self.remember(socket);
        }
    }

    /// A thread has ended: it comes back from no call any more.
    pub fn exit(&mut self, tid: u32) {
        self.pending.remove(&tid);
    }

    /// Takes in a step.
    pub fn step(&mut self, event: &Event, step: &Step, thread_name: Option<ThreadName>, processes: &mut Processes) {
        if event.pid == self.own_pid {
            return;
        }
        let mut moment = Moment { time: event.time, tid: event.tid, thread_name, process: None };
        match step {
            Step::Entered(entered) => self.enter(moment, *entered),
            Step::Reached { socket, what } => {
                moment.process = not_the_kernels(processes.actor(event.pid, event.tid));
                self.reach(moment, socket, what);
            }
            Step::Connecting { local } => self.connecting(event.tid, *local),
            Step::Accepted { socket } => {
                moment.process = not_the_kernels(processes.actor(event.pid, event.tid));
                self.accepted(moment, socket);
            }
            Step::Returned { call, layer, value } => {
                moment.process = not_the_kernels(processes.actor(event.pid, event.tid));
                self.back(moment, *call, *layer, *value);
            }
            Step::Released { socket } => {
                moment.process = not_the_kernels(processes.leaver(event.pid));
                self.released(moment, socket);
            }
        }
    }

    fn enter(&mut self, moment: Moment, entered: Entered) {
        self.put(moment.tid, Pending::entered(entered, moment.thread_name));
    }

    fn reach(&mut self, moment: Moment, seen: &Seen, what: &Reached) {
        // What /proc said of a socket that is made only now, it said too early.
        let is_new = what.call() == Call::Create;
        let socket = if is_new { of_sample(seen) } else { self.known(seen) };
        if what.call() == Call::Connect && self.wanted.meets(Actions::STATE) {
            self.remember(socket.clone());
        }
        let aim =
            Aim { socket, before: seen.state, what: what.clone(), from: None, accepted: None, moment: moment.clone() };
        match self.pending.get_mut(&moment.tid) {
            Some(pending) if pending.call == what.call() && pending.entered.is_some() && pending.aim.is_none() => {
                pending.aim = Some(aim);
                pending.thread_name = pending.thread_name.or(moment.thread_name);
            }
            // A socket that is made by no call of its own, one of a pair or io_uring's, is there by now.
            _ if what.call() == Call::Create => self.finish(moment, None, aim, CallResult::Success),
            _ => self.put(moment.tid, Pending::reached(what.call(), aim, moment.thread_name)),
        }
    }

    fn connecting(&mut self, tid: u32, local: Option<IpEnd>) {
        let aim = self.pending.get_mut(&tid).and_then(|pending| pending.aim.as_mut());
        let Some(aim) = aim.filter(|aim| matches!(aim.what, Reached::Connect(_))) else { return };
        aim.from = merged(local, aim.socket.local.clone());
    }

    fn accepted(&mut self, moment: Moment, seen: &Seen) {
        let mut socket = of_sample(seen);
        socket.owner.clone_from(&moment.process);
        let Some(pending) = self.pending.get_mut(&moment.tid).filter(|pending| pending.call == Call::Accept) else {
            return self.accepted_late(moment, socket);
        };
        let Some(aim) = &mut pending.aim else { return };
        if socket.family == Family::UNIX {
            socket.local.clone_from(&aim.socket.local);
        }
        aim.accepted = Some(socket);
        if pending.entered.is_none() {
            self.end(moment, CallResult::Success, None);
        }
    }

    /// A connection for a call that began before calls were watched: nothing is known of its listener.
    fn accepted_late(&mut self, moment: Moment, socket: Socket) {
        // Without a process the kernel accepts for itself.
        let Moment { time, tid, thread_name, process: Some(process) } = moment else { return };
        self.remember(socket.clone());
        let listener = Listener { id: SocketId::default(), local: None };
        self.tell(SocketEvent {
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

    fn back(&mut self, moment: Moment, call: Call, layer: Layer, value: i64) {
        let Some(pending) = self.pending.get(&moment.tid) else { return };
        if pending.call != call || layer != pending.outermost() {
            return;
        }
        if (call, layer, value) == (Call::Accept, Layer::Socket, -i64::from(libc::EAGAIN)) {
            self.pending.remove(&moment.tid); // io_uring asks again when a connection has come
            return;
        }
        let descriptor = i32::try_from(value).ok().filter(|fd| layer == Layer::SystemCall && *fd >= 0);
        self.end(moment, CallResult::of(value), descriptor);
    }

    fn released(&mut self, moment: Moment, seen: &Seen) {
        let known = self.sockets.remove(&seen.id);
        self.unindex(seen.sock, seen.id);
        let mut socket = match known {
            Some(known) => updated(known, seen),
            None if seen.sock == 0 => return, // an accept that got no connection
            None => of_sample(seen),
        };
        let before = socket.state.replace(SocketState::CLOSE);
        self.tell(SocketEvent {
            time: moment.time,
            action: Action::Close,
            result: CallResult::Success,
            fd: None,
            socket,
            before,
            process: moment.process,
            tid: moment.tid,
            thread_name: moment.thread_name,
        });
    }

    /// A call begins; the one before it in the same thread must be over.
    fn put(&mut self, tid: u32, pending: Pending) {
        if self.pending.len() >= MAX_PENDING && !self.pending.contains_key(&tid) {
            self.unfinished += 1;
            return;
        }
        if let Some(Pending { entered, aim: Some(aim), .. }) = self.pending.insert(tid, pending) {
            self.unfinished += 1;
            let result = if aim.accepted.is_some() { CallResult::Success } else { CallResult::Unknown };
            self.finish(aim.moment.clone(), entered, aim, result);
        }
    }

    /// The call that a thread is in ends. `descriptor` is what it brought.
    fn end(&mut self, mut moment: Moment, result: CallResult, descriptor: Option<i32>) {
        let Some(Pending { entered, aim, thread_name, .. }) = self.pending.remove(&moment.tid) else { return };
        // A return sample does not contain the thread's name.
        moment.thread_name = moment.thread_name.or(thread_name);
        let entered = entered.map(|entered| entered.with_descriptor(descriptor));
        match (aim, entered.and_then(pending::Begun::asked)) {
            (Some(aim), _) => self.finish(moment, entered, aim, result),
            // It failed before there was a socket.
            (None, Some((family, kind, protocol))) if result != CallResult::Success => {
                let number = u16::try_from(protocol).ok();
                let socket = Socket { kind: Some(kind), protocol: number, ..nothing(family) };
                let before = SocketState::CLOSE;
                let aim = Aim {
                    socket,
                    before,
                    what: Reached::Create { protocol },
                    from: None,
                    accepted: None,
                    moment: moment.clone(),
                };
                self.finish(moment, entered, aim, result);
            }
            (None, _) => {} // no socket, or one whose creation was not seen
        }
    }

    fn finish(&mut self, moment: Moment, entered: Option<pending::Begun>, aim: Aim, result: CallResult) {
        let process = moment.process.clone();
        let mut outcome = aim.outcome(entered, result, process);
        if let Some(mut socket) = outcome.remember {
            self.catch_up(&mut socket);
            self.catch_up(&mut outcome.socket);
            self.remember(socket);
        }
        let Moment { time, tid, thread_name, process } = moment;
        let (action, socket, before) = (outcome.action, outcome.socket, outcome.before);
        self.tell(SocketEvent { time, action, result, fd: outcome.fd, socket, before, process, tid, thread_name });
    }

    fn tell(&mut self, event: SocketEvent) {
        if self.wanted.contains(event.action.as_set()) {
            self.told += 1;
            self.events.push(event);
        }
    }

    /// What is known of a socket that a sample shows.
    fn known(&self, seen: &Seen) -> Socket {
        match self.sockets.get(&seen.id) {
            Some(known) => updated(known.clone(), seen),
            None => of_sample(seen),
        }
    }

    fn remember(&mut self, socket: Socket) {
        if self.sockets.len() >= self.limit && !self.sockets.contains_key(&socket.id) {
            self.refused += 1;
            return;
        }
        self.index(&socket);
        self.sockets.insert(socket.id, socket);
    }
}

/// Who acts, unless it is one of the kernel's own threads.
fn not_the_kernels(process: Arc<Process>) -> Option<Arc<Process>> {
    Some(process).filter(|process| !process.kernel)
}

/// A socket of which only the family is known.
fn nothing(family: Family) -> Socket {
    Socket {
        id: SocketId::default(),
        sock: 0,
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

/// A socket of which nothing is known but what a sample shows.
fn of_sample(seen: &Seen) -> Socket {
    updated(Socket { id: seen.id, ..nothing(seen.family) }, seen)
}

/// What was known of a socket, and what a sample shows of it now.
fn updated(known: Socket, seen: &Seen) -> Socket {
    if seen.sock == 0 {
        return known;
    }
    Socket {
        sock: seen.sock,
        family: seen.family,
        kind: Some(seen.kind),
        protocol: seen.protocol.or(known.protocol),
        local: merged(seen.local, known.local),
        remote: merged(seen.remote, known.remote),
        state: Some(seen.state),
        ..known
    }
}

/// An end as it is now, with what only a program's own address said of it. The port of a connection that is over is
/// no longer the socket's, but was.
fn merged(now: Option<IpEnd>, known: Option<Address>) -> Option<Address> {
    let Some(now) = now else { return known };
    match known {
        Some(Address::Ip(known)) if known.ip == now.ip && now.port == 0 => Some(Address::Ip(known)),
        Some(Address::Ip(known)) if known.ip == now.ip => Some(Address::Ip(IpEnd { port: now.port, ..known })),
        _ => Some(Address::Ip(now)),
    }
}
