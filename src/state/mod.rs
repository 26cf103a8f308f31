//! The state machine: events in, flows out.
//!
//! It is pure: no clock except the events' times, no threads, no I/O. The caller passes each event to [`State::ingest`] in
//! order of time, calls [`State::expire`] with the time up to which it has passed all events, and takes finished flows
//! from [`State::finished`].

mod calls;
pub(crate) mod counted;
pub(crate) mod counting;
mod dropped;
pub(crate) mod flows;
mod idle;
mod losses;
mod names;
mod packets;
mod preexisting;
mod processes;
#[cfg(test)]
mod properties;
mod questions;
mod socket_events;
mod sockets;
mod sockless;
mod subflows;
#[cfg(test)]
mod tests;
mod totals;
mod unclaimed;
mod unreadable;
mod wheel;

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use serde::Serialize;
use socktrail_dns::NamesOptions;

pub use self::preexisting::PreexistingSocket;
pub use self::processes::{FoundProcess, PreexistingProcess};
pub use self::questions::Question;

use self::calls::{Connecting, SocketEnd};
use self::counted::Counted;
use self::dropped::SentByOthers;
use self::flows::{FlowKey, Flows};
use self::idle::IdleConnections;
use self::losses::LossHistory;
use self::names::NameTracker;
use self::preexisting::PreexistingSockets;
use self::processes::Processes;
use self::questions::Questions;
use self::socket_events::SocketEvents;
use self::sockets::{SocketKey, Sockets};
use self::sockless::LastNamespaces;
use self::unreadable::UnreadablePackets;
use self::wheel::Wheel;
use crate::model::event::{Event, EventKind, Fork, SourceCapabilities};
use crate::model::filter::Filter;
use crate::model::flow::{Flow, Owner, Reason};
use crate::model::loss::{Loss, Losses, LostFacts};
use crate::model::names::NameLearned;
use crate::model::process::Process;
use crate::model::socket_event::{Actions, EventSocket, SocketEvent};
use crate::model::time::MonotonicTime;

/// Timeouts, sizes of tables, and what is reported.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StateConfig {
    /// A flow ends after this time without traffic.
    pub flow_inactive_timeout: Duration,
    /// A flow whose socket was closed ends after this time without a packet.
    pub flow_termination_timeout: Duration,
    /// How often a live flow with traffic is reported; `None`: only at its end.
    pub flow_report_interval: Option<Duration>,
    /// A socket without flows and without a known owner is forgotten after this time. If the table of sockets is nearly full,
    /// so is any idle socket.
    pub socket_inactive_timeout: Duration,
    /// The maximum number of live flows; beyond it, the flow whose timer is due first is reported early.
    pub max_flows: usize,
    /// The maximum number of sockets; beyond it, new ones have no flows, except connections to known listeners.
    pub max_sockets: usize,
    /// The maximum number of processes, and of threads besides main threads; beyond it, new ones are not known.
    pub max_processes: usize,
    /// The process id of the monitor, whose own flows and calls are not reported; 0 if they are.
    pub own_pid: u32,
    /// Which of the other flows are reported.
    pub filter: Filter,
    /// The ports of DNS servers.
    pub dns_ports: Vec<u16>,
    /// How many DNS names are remembered.
    pub names: NamesOptions,
    /// Whether [`State::names`] hands out DNS names as they are learned.
    pub report_names: bool,
    /// The calls that [`State::socket_events`] hands out.
    pub socket_events: Actions,
    /// Whether flows are wanted.
    pub flows: bool,
}

impl Default for StateConfig {
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

/// Counters of the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct StateStats {
    /// Processed events.
    pub events: u64,
    /// Packets among them.
    pub packets: u64,
    /// Packets that are in no flow: datagrams of sockets that found no room, resets of unknown connections, and packets that the
    /// kernel has counted for unknown sockets.
    pub packets_without_flow: u64,
    /// Packets that the kernel has counted without an event. Those that are not in any flow yet are missing here.
    pub packets_counted: u64,
    /// Packets that the filter rejected.
    pub packets_filtered: u64,
    /// The kernel's counts that found no room, so that they are not in any flow.
    pub totals_refused: u64,
    /// The kernel's counts of a socket that came after those of a later socket at the same address. They are not in any flow.
    pub totals_outdated: u64,
    /// Forgotten conversations with packets whose headers could not be read: there were too many.
    pub unread_forgotten: u64,
    /// Samples that the source lost.
    pub samples_lost: u64,
    /// Flows begun.
    pub flows_started: u64,
    /// Flows handed out, final or not.
    pub flows_reported: u64,
    /// Flows that the filter rejected because of their owner.
    pub flows_filtered: u64,
    /// Flows of the monitor itself.
    pub flows_own: u64,
    /// Conversations without a socket of this host, such as a SYN to a closed port and its RST.
    pub flows_without_socket: u64,
    /// Flows reported early because there were too many.
    pub flows_evicted: u64,
    /// Live flows now.
    pub flows_live: u64,
    /// Connections that go on now although their flow has ended.
    pub idle_connections_live: u64,
    /// Connections without a socket that found no room: their last packets then have no known owner.
    pub idle_connections_evicted: u64,
    /// Connects in progress that found no room: there is no flow of them if they fail before a packet leaves.
    pub pending_connects_refused: u64,
    /// Sockets known now.
    pub sockets_live: u64,
    /// Sockets that found no room.
    pub sockets_refused: u64,
    /// Idle sockets forgotten.
    pub sockets_evicted: u64,
    /// DNS answers whose asking process is known.
    pub names_learned: u64,
    /// DNS answers whose asking process is not known.
    pub names_without_owner: u64,
    /// Addresses in such answers that were forgotten, because there were too many. Flows that began shortly before have
    /// no name then, and names that were looked up before are no longer used.
    pub names_without_owner_forgotten: u64,
    /// Processes whose DNS names were forgotten, because too many processes knew too many names.
    pub name_owners_evicted: u64,
    /// Addresses whose DNS names were forgotten, because their process knew too many.
    pub name_addresses_evicted: u64,
    /// Forks that were forgotten, because there were too many at once. Names that were looked up before are no longer used.
    pub forks_forgotten: u64,
    /// Processes known now.
    pub processes_live: u64,
    /// Processes that found no room.
    pub processes_refused: u64,
    /// Lookups in `/proc` for which there was no room: what only `/proc` shows may be missing. A lookup that was not made is
    /// requested again when its process does something.
    pub process_lookups_refused: u64,
    /// Control groups for new processes that were forgotten, because there were too many: the container of such a process may
    /// be missing.
    pub control_groups_forgotten: u64,
    /// Threads known now, besides main threads.
    pub threads_live: u64,
    /// Threads that found no room: if such a thread is the last of its process, the process seems to end too early.
    pub threads_refused: u64,
    /// Socket events handed out.
    pub socket_events: u64,
    /// Sockets known now for socket events.
    pub event_sockets_live: u64,
    /// Sockets that found no room in that table: their events have fewer fields.
    pub event_sockets_refused: u64,
    /// Calls whose return was not seen, or that were not tracked because too many were in progress.
    pub calls_unfinished: u64,
}

/// The state machine. See the [module](self).
#[derive(Debug)]
pub struct State {
    config: StateConfig,
    processes: Processes,
    sockets: Sockets,
    flows: Flows,
    /// Connections that go on although their flow has ended.
    idle: IdleConnections,
    flow_timers: Wheel<FlowKey>,
    socket_timers: Wheel<SocketKey>,
    /// The connects in progress, by thread.
    connecting: HashMap<u32, Connecting, foldhash::fast::RandomState>,
    loss_history: LossHistory,
    /// Conversations with packets whose headers could not be read.
    unreadable: UnreadablePackets,
    sent_by_others: SentByOthers,
    last_namespaces: LastNamespaces,
    /// The kernel's counts.
    counted: Counted,
    questions: Questions,
    /// All events up to this time have been processed.
    horizon: MonotonicTime,
    /// Whether no more events come.
    is_ending: bool,
    preexisting: PreexistingSockets,
    name_tracker: NameTracker,
    socket_events: SocketEvents,
    /// Flows, names and losses that were not taken yet.
    finished: Vec<Flow>,
    /// See `finished`.
    names: Vec<NameLearned>,
    /// See `finished`.
    losses: Losses,
    capabilities: SourceCapabilities,
    stats: StateStats,
}

impl State {
    /// An empty machine.
    pub fn new(config: StateConfig) -> Self {
        Self {
            processes: Processes::new(config.max_processes),
            sockets: Sockets::new(config.max_sockets),
            flows: Flows::default(),
            idle: IdleConnections::default(),
            flow_timers: Wheel::new(),
            socket_timers: Wheel::new(),
            connecting: HashMap::default(),
            loss_history: LossHistory::default(),
            unreadable: UnreadablePackets::default(),
            sent_by_others: SentByOthers::default(),
            last_namespaces: LastNamespaces::default(),
            counted: Counted::new(config.max_flows.saturating_add(config.max_sockets)),
            questions: Questions::default(),
            horizon: MonotonicTime::ZERO,
            is_ending: false,
            name_tracker: NameTracker::new(config.dns_ports.clone(), &config.names),
            preexisting: PreexistingSockets::default(),
            socket_events: SocketEvents::new(config.socket_events, config.own_pid, config.max_sockets),
            finished: Vec::new(),
            names: Vec::new(),
            losses: Losses::default(),
            capabilities: SourceCapabilities::default(),
            stats: StateStats::default(),
            config,
        }
    }

    /// Processes an event. Events come in order of their time, except for DNS answers, which may come up to a tenth of a second
    /// late.
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
            EventKind::Dropped(packet) => self.dropped(now, packet),
            EventKind::Totals(totals) => self.totals(totals, now),
            EventKind::UnreadablePacket(packet) => self.unreadable_packet(now, packet),
            EventKind::Fork(fork) => self.forked(event, *fork),
            EventKind::ThreadStarted(started) => {
                self.processes.note_alive(pid, event.tid);
                self.processes.thread_started(*started);
            }
            EventKind::Name(lookup) => self.dns_answer(lookup),
            EventKind::NamesMissed { since } => self.name_tracker.answers_missed(*since, now),
            EventKind::Exec(exec) => self.processes.exec(pid, exec),
            EventKind::ExecutedFile(file) => self.processes.executed_file(pid, file),
            EventKind::Exit => {
                self.connecting.remove(&event.tid); // a source may not see how its connects return
                self.exit(event);
            }
            EventKind::ControlGroupLookup(group) => self.processes.group_looked_up(event.tid, group.clone()),
            EventKind::ForkElsewhere { child } => self.processes.fork_elsewhere(event.tid, *child),
            EventKind::Moved(moved) => self.processes.moved(moved),
            EventKind::Credentials(credentials) => self.processes.credentials(pid, event.tid, *credentials),
            EventKind::SocketCreated { sock, user } => self.created(event, *sock, *user),
            EventKind::UdpGroEnabled { sock } => self.udp_gro_enabled(now, *sock),
            EventKind::UdpGsoEnabled { sock } => self.udp_gso_enabled(now, *sock),
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
            EventKind::SocketFreed { sock } => self.closed(now, Some(*sock), SocketEnd::Freed),
            EventKind::SocketError { sock, error } => self.socket_error(*sock, *error),
            EventKind::IcmpError { tuple, error } => self.icmp_error(tuple, *error),
            EventKind::Step { step, thread_name } => {
                self.socket_events.step(event, step, *thread_name, &mut self.processes);
            }
            EventKind::Lost { cause, count, since, facts } => {
                self.losses.add(Loss { cause: *cause, count: *count, first: now, last: now });
                self.stats.samples_lost = self.stats.samples_lost.saturating_add(*count);
                self.lost(now, *since, *facts);
            }
        }
    }

    /// Runs the timers that are due at `now`. All events up to then must have been processed.
    pub fn expire(&mut self, now: MonotonicTime) {
        self.horizon = self.horizon.max(now);
        self.use_answers();
        self.name_flows(now);
        while let Some((tick, flow_key)) = self.flow_timers.pop(now) {
            self.flow_timer_fired(now, tick, flow_key);
        }
        while let Some((tick, socket_key)) = self.socket_timers.pop(now) {
            self.socket_timer_fired(now, tick, socket_key);
        }
        self.idle.expire(now);
        self.processes.expire(now, |process| self.name_tracker.forget(process));
        self.processes.begin_postponed_epoch(now);
        self.name_tracker.expire(now);
    }

    /// Ends every live flow, because the monitor stops.
    pub fn shutdown(&mut self) {
        for flow_key in self.flows.keys() {
            let over = self.flows.get(flow_key).is_some_and(|flow| flow.closing);
            self.finish(flow_key, if over { Reason::Closed } else { Reason::Shutdown });
        }
    }

    /// Takes the flows that ended since the last call. A flow that ended before its name was known gets the name now.
    pub fn finished(&mut self) -> std::vec::Drain<'_, Flow> {
        for flow in self.finished.iter_mut().filter(|flow| flow.domain.is_none()) {
            if let Owner::Process(owner) = &flow.owner
                && names::began_with_flow(flow.transport, flow.complete)
            {
                flow.domain = self.name_tracker.name(owner, flow.remote.ip, flow.start).cloned();
            }
        }
        self.finished.drain(..)
    }

    /// Takes the DNS names that were learned since the last call, if [`StateConfig::report_names`] is set.
    pub fn names(&mut self) -> std::vec::Drain<'_, NameLearned> {
        if let Some(group) = &self.capabilities.control_group {
            self.names.retain(|name| self.processes.is_in_group(Some(&name.process), group));
        }
        self.names.drain(..)
    }

    /// Takes the losses of the source since the last call, one for each cause.
    pub fn losses(&mut self) -> std::vec::Drain<'_, Loss> {
        self.losses.drain()
    }

    /// Facts of the kinds in `facts` may have been lost between `since` and `now`.
    fn lost(&mut self, now: MonotonicTime, since: MonotonicTime, facts: LostFacts) {
        self.loss_history.add(since, now, facts);
        if facts.intersects(LostFacts::OUTCOMES.or(LostFacts::OWNERS)) {
            // The return of a pending connect may be lost. The return of a later one must not be taken for it.
            self.connecting.clear();
        }
        if facts.intersects(LostFacts::PROCESSES) {
            self.processes.samples_lost();
            self.processes.doubt(now);
        }
    }

    fn forked(&mut self, event: &Event, fork: Fork) {
        let parent = event.pid;
        self.processes.note_alive(parent, event.tid);
        self.name_tracker.fork(event.time, self.processes.get(parent), fork);
        self.processes.fork(parent, fork);
    }

    fn exit(&mut self, event: &Event) {
        self.socket_events.exit(event.tid);
        self.processes.exit(event.pid, event.tid, event.time);
    }

    /// Takes the socket events that were made since the last call.
    pub fn socket_events(&mut self) -> std::vec::Drain<'_, SocketEvent> {
        if let Some(group) = &self.capabilities.control_group {
            self.socket_events.retain(|event| self.processes.is_in_group(event.process.as_ref(), group));
        }
        self.socket_events.events()
    }

    /// Adds a socket that existed before the first event, for socket events. Returns it with its owner.
    pub fn add_preexisting_event_socket(&mut self, mut socket: EventSocket, pid: Option<u32>) -> EventSocket {
        socket.owner = pid.and_then(|pid| self.processes.known(pid));
        self.socket_events.add_preexisting(socket.clone());
        socket
    }

    /// Adds a process that existed before the first event.
    pub fn add_preexisting(&mut self, process: PreexistingProcess) {
        self.processes.add_preexisting(process);
    }

    /// The next process whose end may have been missed. If it no longer exists, call [`State::gone`].
    pub fn next_unchecked(&mut self) -> Option<Arc<Process>> {
        self.processes.next_unchecked()
    }

    /// This process no longer exists.
    pub fn gone(&mut self, process: &Process) {
        self.processes.gone(process);
    }

    /// Adds a socket that existed before the first event. Its process must have been
    /// [added](Self::add_preexisting) before.
    pub fn add_preexisting_socket(&mut self, socket: &PreexistingSocket) {
        if let Some(process) = self.processes.known(socket.pid) {
            self.preexisting.add(socket, process);
        }
    }

    /// The next process to look up in `/proc`, most often because it owns a socket. Pass the result to [`State::learn`].
    pub fn next_wanted(&mut self) -> Option<Arc<Process>> {
        self.processes.next_wanted()
    }

    /// The process with this id, which a source has looked up without being asked, or in another order. It need not be looked up
    /// again.
    pub fn take_wanted(&mut self, pid: u32) -> Option<Arc<Process>> {
        self.processes.take_wanted(pid)
    }

    /// Applies the result of a lookup. The caller has verified that it is about this process, running this program. If execs
    /// are not seen, the caller cannot verify the program, and the state machine does.
    pub fn learn(&mut self, process: &Arc<Process>, found: FoundProcess) {
        self.processes.learn(process, found);
    }

    /// Sets what the source can observe. Call it before any event; the default is nothing.
    pub fn set_capabilities(&mut self, capabilities: SourceCapabilities) {
        self.processes.set_moves_seen(capabilities.control_group_moves);
        self.processes.set_execs_seen(capabilities.execs);
        self.capabilities = capabilities;
    }

    /// The counters.
    pub fn stats(&self) -> StateStats {
        let forgotten_names = self.name_tracker.forgotten();
        StateStats {
            flows_live: self.flows.len() as u64,
            idle_connections_live: self.idle.len() as u64,
            idle_connections_evicted: self.idle.evicted,
            sockets_live: self.sockets.len() as u64,
            sockets_refused: self.sockets.refused,
            unread_forgotten: self.unreadable.forgotten,
            totals_refused: self.counted.refused,
            names_without_owner_forgotten: forgotten_names.unclaimed,
            name_owners_evicted: forgotten_names.names.evicted_owners,
            name_addresses_evicted: forgotten_names.names.evicted_addresses,
            forks_forgotten: forgotten_names.forks,
            processes_live: self.processes.len() as u64,
            processes_refused: self.processes.refused,
            process_lookups_refused: self.processes.lookups_refused(),
            control_groups_forgotten: self.processes.control_groups_forgotten(),
            threads_live: self.processes.threads() as u64,
            threads_refused: self.processes.threads_refused,
            event_sockets_live: self.socket_events.len() as u64,
            event_sockets_refused: self.socket_events.not_remembered,
            calls_unfinished: self.socket_events.unfinished,
            socket_events: self.socket_events.emitted,
            ..self.stats
        }
    }
}
