//! The state machine: events in, flows out.
//!
//! Pure: no clock but the events' own, no threads, nothing read or written. Whoever drives it calls
//! [`State::ingest`] with each event in order of time, [`State::expire`] with the time up to which all events have
//! been given, and takes finished flows with [`State::finished`].

mod adopted;
mod calls;
mod counting;
mod dropped;
mod flows;
mod idle;
mod losses;
mod names;
mod packets;
mod processes;
#[cfg(test)]
mod properties;
mod socket_events;
mod sockets;
mod sockless;
mod subflows;
#[cfg(test)]
mod tests;
mod unread;
mod wheel;

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use serde::Serialize;
use socktrail_dns::NamesOptions;

pub use self::adopted::OldSocket;
pub use self::names::NameLearned;
pub use self::processes::{Found, OldProcess};

use self::adopted::Adopted;
use self::calls::Connecting;
use self::dropped::SentByOthers;
use self::flows::{FlowKey, Flows};
use self::idle::IdleConnections;
use self::losses::History;
use self::names::Correlation;
use self::processes::Processes;
use self::socket_events::SocketEvents;
use self::sockets::{SocketKey, Sockets};
use self::sockless::LastNamespaces;
use self::unread::Unread;
use self::wheel::Wheel;
use crate::event::{Event, EventKind, Fork, KernelTime, Sight};
use crate::filter::Filter;
use crate::flow::{Flow, Owner, Reason};
use crate::loss::{Harm, Loss, Losses};
use crate::process::Process;
use crate::socket_event::{Actions, Socket, SocketEvent};

/// When flows end, and how much may be kept.
#[derive(Debug, Clone)]
pub struct Config {
    /// A flow without traffic for so long is over.
    pub flow_inactive_timeout: Duration,
    /// A flow whose socket was closed is over when no packet came for so long.
    pub flow_termination_timeout: Duration,
    /// How often a flow with traffic is reported while it lives; `None`: only when it is over.
    pub flow_report_interval: Option<Duration>,
    /// A socket without flows and without a known owner is forgotten after so long; when the table of sockets is
    /// crowded, any idle socket.
    pub socket_inactive_timeout: Duration,
    /// Live flows at most; beyond, the flow closest to its timeout is reported early.
    pub max_flows: usize,
    /// Sockets at most; beyond, new sockets have no known owner.
    pub max_sockets: usize,
    /// The maximum number of processes, and of threads besides the leading ones; beyond it, new ones are not known.
    pub max_processes: usize,
    /// The monitor's own process id: what it does is not reported.
    pub own_pid: u32,
    /// What else is not reported.
    pub filter: Filter,
    /// The ports that servers of names listen on.
    pub dns_ports: Vec<u16>,
    /// How much is remembered of what was looked up.
    pub names: NamesOptions,
    /// Whether names are handed out as they are learned.
    pub report_names: bool,
    /// Of which calls socket events are handed out.
    pub socket_events: Actions,
    /// Whether flows are made of packets.
    pub flows: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            flow_inactive_timeout: Duration::from_secs(30),
            flow_termination_timeout: Duration::from_secs(5),
            flow_report_interval: None,
            socket_inactive_timeout: Duration::from_secs(60),
            max_flows: 1_000_000,
            max_sockets: 1_000_000,
            max_processes: 262_144,
            own_pid: 0,
            filter: Filter::default(),
            dns_ports: vec![53],
            names: NamesOptions::default(),
            report_names: false,
            socket_events: Actions::NONE,
            flows: true,
        }
    }
}

/// What happened so far, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Stats {
    /// Events taken in.
    pub events: u64,
    /// Of these, packets.
    pub packets: u64,
    /// Packets that name neither a socket nor a live flow.
    pub packets_without_flow: u64,
    /// Packets that the filter left out.
    pub packets_filtered: u64,
    /// Conversations with packets that could not be read, and that were too many to be remembered.
    pub unread_forgotten: u64,
    /// Samples that the source lost.
    pub samples_lost: u64,
    /// Flows begun.
    pub flows_started: u64,
    /// Flows handed out, final or not.
    pub flows_reported: u64,
    /// Flows that the filter left out for their owner.
    pub flows_filtered: u64,
    /// Flows of the monitor itself.
    pub flows_own: u64,
    /// Conversations that no socket of this host took part in, such as a knock on a closed port.
    pub flows_without_socket: u64,
    /// Flows reported early because there were too many.
    pub flows_evicted: u64,
    /// Live flows now.
    pub flows_live: u64,
    /// Connections known now that go on although their flow has ended.
    pub idle_connections_live: u64,
    /// Connections without a socket that found no room: the other side's last packets then have no known owner.
    pub idle_connections_evicted: u64,
    /// Sockets known now.
    pub sockets_live: u64,
    /// Sockets that found no room.
    pub sockets_refused: u64,
    /// Idle sockets forgotten.
    pub sockets_evicted: u64,
    /// Answers with names whose asker is known.
    pub names_learned: u64,
    /// Answers with names that nobody here is known to have asked for.
    pub names_without_owner: u64,
    /// Processes known now.
    pub processes_live: u64,
    /// Processes that found no room.
    pub processes_refused: u64,
    /// Threads known now, besides the leading ones.
    pub threads_live: u64,
    /// Threads that found no room: if such a thread is the last of its process, the process seems to end too early.
    pub threads_refused: u64,
    /// Socket events handed out.
    pub socket_events: u64,
    /// Sockets of which earlier calls are known now, for socket events.
    pub event_sockets_live: u64,
    /// Sockets that found no room there: their events tell less.
    pub event_sockets_refused: u64,
    /// Calls whose return was not seen.
    pub calls_unfinished: u64,
}

/// The state machine. See the [module](self).
#[derive(Debug)]
pub struct State {
    config: Config,
    processes: Processes,
    sockets: Sockets,
    flows: Flows,
    idle: IdleConnections,
    flow_timers: Wheel<FlowKey>,
    socket_timers: Wheel<SocketKey>,
    connecting: HashMap<u32, Connecting, foldhash::fast::RandomState>,
    history: History,
    unread: Unread,
    sent_by_others: SentByOthers,
    last_namespaces: LastNamespaces,
    adopted: Adopted,
    correlation: Correlation,
    socket_events: SocketEvents,
    finished: Vec<Flow>,
    names: Vec<NameLearned>,
    losses: Losses,
    sight: Sight,
    stats: Stats,
}

impl State {
    /// An empty machine.
    pub fn new(config: Config) -> Self {
        Self {
            processes: Processes::new(config.max_processes),
            sockets: Sockets::new(config.max_sockets),
            flows: Flows::default(),
            idle: IdleConnections::default(),
            flow_timers: Wheel::new(),
            socket_timers: Wheel::new(),
            connecting: HashMap::default(),
            history: History::default(),
            unread: Unread::default(),
            sent_by_others: SentByOthers::default(),
            last_namespaces: LastNamespaces::default(),
            correlation: Correlation::new(config.dns_ports.clone(), &config.names),
            adopted: Adopted::default(),
            socket_events: SocketEvents::new(config.socket_events, config.own_pid, config.max_sockets),
            finished: Vec::new(),
            names: Vec::new(),
            losses: Losses::default(),
            sight: Sight::default(),
            stats: Stats::default(),
            config,
        }
    }

    /// Handles an event. Events come in order of their time, except for answers of name servers, which may come up to a
    /// tenth of a second late.
    pub fn ingest(&mut self, event: &Event) {
        self.stats.events += 1;
        let (now, pid) = (event.time, event.pid);
        match &event.kind {
            EventKind::Packet(packet) => {
                self.socket_events.datagram(event, packet);
                if self.config.flows {
                    self.packet(now, packet);
                }
            }
            EventKind::Fragmented(packet) => self.fragmented(packet),
            EventKind::Dropped(packet) => self.dropped(packet),
            EventKind::Unreadable(packet) => self.unreadable(now, packet),
            EventKind::Fork(fork) => self.forked(event, *fork),
            EventKind::ThreadStarted(started) => {
                self.processes.acts(pid, event.tid);
                self.processes.thread(*started);
            }
            EventKind::Name(learned) => self.learned(learned),
            EventKind::NamesMissed { since } => self.correlation.missed(*since, now),
            EventKind::Exec(exec) => self.processes.exec(pid, exec),
            EventKind::Ran(ran) => self.processes.ran(pid, ran),
            EventKind::Exit => self.exit(event),
            EventKind::ControlGroupLookup(group) => self.processes.group_looked_up(event.tid, group.clone()),
            EventKind::ForkElsewhere { child } => self.processes.fork_elsewhere(event.tid, *child),
            EventKind::Moved(moved) => self.processes.moved(moved),
            EventKind::Credentials(credentials) => self.processes.credentials(pid, event.tid, *credentials),
            EventKind::SocketCreated { sock, for_program } => self.created(event, *sock, *for_program),
            EventKind::TakesMerged { sock } => self.takes_merged(now, *sock),
            EventKind::SendsJoined { sock } => self.sends_joined(now, *sock),
            EventKind::ConnectBegins { sock, remote } => self.connect_begins(event, *sock, *remote),
            EventKind::ConnectReturns { result } => self.connect_returns(now, event.tid, *result),
            EventKind::Accepted { sock, tuple } => self.accepted(event, *sock, tuple),
            EventKind::ConnectionRequested { listener, tuple } => self.connection_requested(*listener, tuple),
            EventKind::TcpState { sock, tuple, state, segments } => {
                self.socket_events.tcp_state(event, *sock, tuple, *state);
                self.tcp_state(now, *sock, tuple, *state, *segments);
            }
            EventKind::Subflow { sock, mptcp, joined } => self.subflow(now, *sock, *mptcp, *joined),
            EventKind::SocketReleased { sock } => self.released(now, pid, *sock),
            EventKind::SocketFreed { sock } => self.closed(now, *sock, true, None),
            EventKind::SocketError { sock, error } => self.socket_error(*sock, *error),
            EventKind::IcmpError { tuple, error } => self.icmp_error(tuple, *error),
            EventKind::Step { step, thread_name } => {
                self.socket_events.step(event, step, *thread_name, &mut self.processes);
            }
            EventKind::Lost { cause, count, since, harm } => {
                self.losses.add(Loss { cause: *cause, count: *count, first: now, last: now });
                self.stats.samples_lost = self.stats.samples_lost.saturating_add(*count);
                self.lost(now, *since, *harm);
            }
        }
    }

    /// Ends what is due. All events up to `now` have been taken in.
    pub fn expire(&mut self, now: KernelTime) {
        self.name_flows(now);
        while let Some((tick, key)) = self.flow_timers.pop(now) {
            self.flow_timer(now, tick, key);
        }
        while let Some((tick, key)) = self.socket_timers.pop(now) {
            self.socket_timer(now, tick, key);
        }
        self.idle.expire(now);
        self.processes.expire(now);
        self.processes.doubt_what_is_pending(now);
        self.correlation.expire(now);
    }

    /// Hands out every live flow, because the monitor stops.
    pub fn shutdown(&mut self) {
        for key in self.flows.keys() {
            let over = self.flows.get(key).is_some_and(|live| live.closing);
            self.finish(key, if over { Reason::Closed } else { Reason::Shutdown });
        }
    }

    /// Returns the flows that ended since the last call. Those that ended before their name was known get it now.
    pub fn finished(&mut self) -> std::vec::Drain<'_, Flow> {
        for flow in self.finished.iter_mut().filter(|flow| flow.domain.is_none()) {
            if let Owner::Process(owner) = &flow.owner
                && names::begins_with_its_start(flow.transport, flow.complete)
            {
                flow.domain = self.correlation.name(owner, flow.remote.ip, flow.start).cloned();
            }
        }
        self.finished.drain(..)
    }

    /// Takes the names that were learned since the last call, if they are to be handed out.
    pub fn names(&mut self) -> std::vec::Drain<'_, NameLearned> {
        self.names.drain(..)
    }

    /// Takes what the source lost since the last call: one entry for each cause.
    pub fn losses(&mut self) -> std::vec::Drain<'_, Loss> {
        self.losses.drain()
    }

    /// Something of `harm` was lost between `since` and `now`.
    fn lost(&mut self, now: KernelTime, since: KernelTime, harm: Harm) {
        self.history.add(since, now, harm);
        if harm.intersects(Harm::OUTCOMES.or(Harm::OWNERS)) {
            // The result of a pending connect may be lost; a later one's must not be taken for it.
            self.connecting.clear();
        }
        if harm.intersects(Harm::PROCESSES) {
            self.processes.samples_lost();
            self.processes.doubt(now);
        }
    }

    fn forked(&mut self, event: &Event, fork: Fork) {
        let parent = event.pid;
        self.processes.acts(parent, event.tid);
        self.correlation.fork(event.time, self.processes.get(parent), fork);
        self.processes.fork(parent, fork);
    }

    fn exit(&mut self, event: &Event) {
        self.socket_events.exit(event.tid);
        self.processes.exit(event.pid, event.tid, event.time);
    }

    /// Takes the socket events that were made since the last call.
    pub fn socket_events(&mut self) -> std::vec::Drain<'_, SocketEvent> {
        self.socket_events.events()
    }

    /// Takes in a socket that was there before events were, for socket events, and says whose it is.
    pub fn adopt_event_socket(&mut self, mut socket: Socket, pid: Option<u32>) -> Socket {
        socket.owner = pid.and_then(|pid| self.processes.known(pid));
        self.socket_events.adopt(socket.clone());
        socket
    }

    /// Takes in a process that was there before events were.
    pub fn adopt(&mut self, process: OldProcess) {
        self.processes.adopt(process);
    }

    /// A process that should be looked up, because the event of its end may have been lost. If it does not exist any
    /// more, call [`State::gone`].
    pub fn next_unchecked(&mut self) -> Option<Arc<Process>> {
        self.processes.next_unchecked()
    }

    /// This process does not exist any more.
    pub fn gone(&mut self, process: &Process) {
        self.processes.gone(process);
    }

    /// Takes in a socket that was there before events were. Its process must have been [adopted](Self::adopt) before.
    pub fn adopt_socket(&mut self, socket: &OldSocket) {
        if let Some(process) = self.processes.known(socket.pid) {
            self.adopted.add(socket, process);
        }
    }

    /// A process that has come to matter and whose details somebody should look up; answer with [`State::learn`].
    pub fn next_wanted(&mut self) -> Option<Arc<Process>> {
        self.processes.next_wanted()
    }

    /// The process of this id, which a source has looked up unasked or in another order.
    pub fn take_wanted(&mut self, pid: u32) -> Option<Arc<Process>> {
        self.processes.take_wanted(pid)
    }

    /// Takes in what was looked up. It must be about that very process running that very program. Where execs are no
    /// events, nobody can make sure of the program, and the state machine does.
    pub fn learn(&mut self, process: &Arc<Process>, found: Found) {
        self.processes.learn(process, found);
    }

    /// Takes in what the source of events can tell; without, it is nothing.
    pub fn learn_sight(&mut self, sight: Sight) {
        self.processes.see_moves(sight.moves);
        self.processes.see_execs(sight.execs);
        self.sight = sight;
    }

    /// The numbers so far.
    pub fn stats(&self) -> Stats {
        Stats {
            flows_live: self.flows.len() as u64,
            idle_connections_live: self.idle.len() as u64,
            idle_connections_evicted: self.idle.evicted,
            sockets_live: self.sockets.len() as u64,
            sockets_refused: self.sockets.refused,
            unread_forgotten: self.unread.forgotten,
            processes_live: self.processes.len() as u64,
            processes_refused: self.processes.refused,
            threads_live: self.processes.threads() as u64,
            threads_refused: self.processes.threads_refused,
            event_sockets_live: self.socket_events.len() as u64,
            event_sockets_refused: self.socket_events.refused,
            calls_unfinished: self.socket_events.unfinished,
            socket_events: self.socket_events.told,
            ..self.stats
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
