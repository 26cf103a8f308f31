//! DNS names: the name that a process looked up for the address that it talks to.
//!
//! A name belongs to the process that asked for it, which is the owner of the flow that carried the query. So two processes
//! may know one address by different names. The queries of a local resolver name only the resolver's own flows. The
//! client's query to the resolver names the client's flows.
//!
//! A flow gets the name from the last answer that its owner received before the flow began, by the kernel's timestamps.
//! Answers arrive here later than other events of the same time. So a flow waits for up to [`MAX_ANSWER_DELAY`] before it
//! is named, and a late answer also names the address for the children that the asking process has forked since.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use socktrail_dns::{Address, KnownNames, Lookup, NamesCounters, NamesOptions};

use super::State;
use super::flows::{FlowKey, Flows, LiveFlow};
use super::unclaimed::{Room, Transaction, Unclaimed};
use crate::model::event::Fork;
use crate::model::flow::{Endpoint, Transport};
use crate::model::names::NameLearned;
use crate::model::process::Process;
use crate::model::time::{BootTime, MonotonicTime};

/// How late an answer may arrive here. Flows wait this long for their name.
const MAX_ANSWER_DELAY: Duration = Duration::from_millis(100);
/// How many forks are remembered for late answers.
const MAX_FORKS: usize = 65_536;
/// The capacity that the queue of waiting flows keeps when it is empty.
const WAITING_CAPACITY: usize = 1024;
/// The time between two searches for names that are too old.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(10);

/// Process id and start time: the same for all programs that the process executes.
type ProcessId = (u32, BootTime);

/// The flows that carry queries to name servers, and the names that each process knows.
#[derive(Debug)]
pub struct NameTracker {
    names: KnownNames<ProcessId>,
    /// The live flows to the ports of name servers, by local and remote end.
    askers: HashMap<(Transport, Endpoint, Endpoint), Askers, foldhash::fast::RandomState>,
    ports: Vec<u16>,
    unclaimed: Unclaimed,
    /// The latest forks, in order of time: parent and child.
    forks: VecDeque<(MonotonicTime, ProcessId, ProcessId)>,
    /// Flows that wait for late answers from before their start, in order of their start.
    waiting: VecDeque<(MonotonicTime, FlowKey)>,
    next_expiry: MonotonicTime,
    forks_forgotten: u64,
}

/// What a [`NameTracker`] has forgotten, because there was too much of it.
#[derive(Debug, Clone, Copy)]
pub struct Forgotten {
    /// Processes that knew names, and addresses of their names.
    pub names: NamesCounters,
    /// Addresses in answers without a known asker.
    pub unclaimed: u64,
    /// Forks.
    pub forks: u64,
}

/// The live flows between the same two ends. There are several if network namespaces use the same addresses.
#[derive(Debug)]
struct Askers {
    /// How many there are.
    flows: u32,
    /// The flow that carries the queries; `None` if it is not known which of them does. It then stays unknown until all
    /// of them have ended.
    only: Option<FlowKey>,
}

impl NameTracker {
    /// A tracker that knows no names yet. Name servers listen on `ports`.
    pub fn new(ports: Vec<u16>, options: &NamesOptions) -> Self {
        Self {
            names: KnownNames::new(options),
            askers: HashMap::default(),
            ports,
            unclaimed: Unclaimed::default(),
            forks: VecDeque::new(),
            waiting: VecDeque::new(),
            next_expiry: MonotonicTime::ZERO,
            forks_forgotten: 0,
        }
    }

    /// A flow begins. It waits for its name, and may carry queries itself.
    pub fn flow_begins(&mut self, flow_key: FlowKey, flows: &Flows) {
        let Some(flow) = flows.get(flow_key) else { return };
        self.waiting.push_back((flow.start, flow_key));
        if !self.ports.contains(&flow.id.remote.port) {
            return;
        }
        let only = Askers { flows: 0, only: Some(flow_key) };
        let askers = self.askers.entry((flow.id.transport, flow.id.local, flow.id.remote)).or_insert(only);
        askers.flows += 1;
        if askers.only != Some(flow_key) {
            // A closed socket sends no more queries.
            let is_over = askers.only.and_then(|other| flows.get(other)).is_some_and(|other| other.closing);
            askers.only = is_over.then_some(flow_key);
        }
    }

    /// A flow ends.
    pub fn flow_ends(&mut self, flow_key: FlowKey, flow: &LiveFlow) {
        if !self.ports.contains(&flow.id.remote.port) {
            return;
        }
        let Entry::Occupied(mut askers) = self.askers.entry((flow.id.transport, flow.id.local, flow.id.remote)) else {
            return;
        };
        let left = askers.get_mut();
        left.flows = left.flows.saturating_sub(1);
        left.only = left.only.filter(|only| *only != flow_key);
        if left.flows == 0 {
            askers.remove();
        }
    }

    /// `parent` has forked a child, which knows all names that its parent knows. A process whose start time is not known
    /// has no names: see [`id`].
    pub fn fork(&mut self, now: MonotonicTime, parent: Option<&Process>, fork: Fork) {
        let Some((parent, start)) = parent.and_then(id).zip(fork.start) else { return };
        let child = (fork.child, start);
        if self.forks.len() >= MAX_FORKS {
            self.forks.pop_front();
            self.forks_forgotten += 1;
            // A late answer can no longer be passed on to the child of a forgotten fork.
            self.names.missed(now.saturating_sub(MAX_ANSWER_DELAY).as_nanos(), now.as_nanos());
        }
        self.names.inherit(&parent, &child);
        self.forks.push_back((now, parent, child));
    }

    /// A process has received the answer to its query.
    fn answered(&mut self, process: ProcessId, lookup: &Lookup) {
        let (time, transaction) = (MonotonicTime::from_nanos(lookup.time), transaction(lookup));
        for address in &lookup.addresses {
            self.unclaimed.claim(address.ip.to_canonical(), &transaction, time);
            self.learn(process, &lookup.name, *address, time);
        }
    }

    /// A process learns a name at `time`, and so do the children that it has forked since.
    fn learn(&mut self, process: ProcessId, name: &Arc<str>, address: Address, time: MonotonicTime) {
        self.names.learn(&process, name, address, time.as_nanos());
        let since = self.forks.partition_point(|(forked, ..)| *forked <= time);
        let mut knowing = vec![process];
        for (_, parent, child) in self.forks.range(since..) {
            if knowing.contains(parent) {
                knowing.push(*child);
                self.names.learn(child, name, address, time.as_nanos());
            }
        }
    }

    /// There was an answer, but the process that asked for it is not known.
    fn answered_unknown(&mut self, lookup: &Lookup) {
        let time = MonotonicTime::from_nanos(lookup.time);
        for address in &lookup.addresses {
            let room = self.unclaimed.insert(address.ip.to_canonical(), transaction(lookup), time);
            if room == Room::Cleared {
                // Flows that began a moment ago still wait for their names.
                self.names.missed(time.saturating_sub(2 * MAX_ANSWER_DELAY).as_nanos(), lookup.time);
            }
        }
    }

    /// Answers that came between `since` and `until` may have been missed.
    pub fn answers_missed(&mut self, since: MonotonicTime, until: MonotonicTime) {
        self.names.missed(since.as_nanos(), until.as_nanos());
    }

    /// The name by which a process knew an address at the time `at`; `None` if there is none, or it is uncertain.
    pub fn name(&self, process: &Process, ip: IpAddr, at: MonotonicTime) -> Option<&Arc<str>> {
        let (name, since) = self.names.find_with_time(&id(process)?, ip, at.as_nanos())?;
        let since = MonotonicTime::from_nanos(since);
        let is_certain = !self.unclaimed.may_rename(ip.to_canonical(), name, since, at);
        is_certain.then_some(name)
    }

    /// Forgets the names of a process that ended a while ago, so that no more events about it will come.
    pub fn forget(&mut self, process: &Process) {
        if let Some(id) = id(process) {
            self.names.forget(&id);
        }
    }

    /// What was forgotten.
    pub fn forgotten(&self) -> Forgotten {
        Forgotten { names: self.names.counters(), unclaimed: self.unclaimed.forgotten, forks: self.forks_forgotten }
    }

    /// The number of processes that know names.
    #[cfg(test)]
    pub fn knowing(&self) -> usize {
        self.names.owners()
    }

    /// Forgets forks and names that are too old.
    pub fn expire(&mut self, now: MonotonicTime) {
        // An answer that still comes is from this time or later, so a fork from before it is of no use.
        let earliest_answer = now.saturating_sub(MAX_ANSWER_DELAY);
        let old = self.forks.partition_point(|(forked, ..)| *forked <= earliest_answer);
        self.forks.drain(..old);
        if now >= self.next_expiry {
            self.next_expiry = now.saturating_add(EXPIRY_INTERVAL);
            self.names.expire(now.as_nanos());
        }
    }

    /// The next flow for which all answers from before its start have arrived.
    fn next_ready(&mut self, now: MonotonicTime) -> Option<FlowKey> {
        let (start, _) = self.waiting.front()?;
        if start.saturating_add(MAX_ANSWER_DELAY) > now {
            return None;
        }
        let ready = self.waiting.pop_front().map(|(_, flow_key)| flow_key);
        if self.waiting.is_empty() {
            self.waiting.shrink_to(WAITING_CAPACITY);
        }
        ready
    }
}

impl State {
    /// A DNS answer: it gives addresses a name for the process that asked.
    pub(super) fn dns_answer(&mut self, lookup: &Arc<Lookup>) {
        let Some(owner) = self.asker(lookup) else {
            self.stats.names_without_owner += 1;
            self.name_tracker.answered_unknown(lookup);
            return;
        };
        self.stats.names_learned += 1;
        if let Some(process) = id(&owner) {
            self.name_tracker.answered(process, lookup);
        }
        if self.config.report_names {
            self.names.push(NameLearned { process: owner, lookup: Arc::clone(lookup) });
        }
    }

    /// The process that sent the query.
    fn asker(&self, lookup: &Lookup) -> Option<Arc<Process>> {
        let transport = match lookup.transport {
            socktrail_dns::Transport::Udp => Transport::Udp,
            socktrail_dns::Transport::Tcp => Transport::Tcp,
        };
        let asker = self.name_tracker.askers.get(&(transport, lookup.client, lookup.server))?.only?;
        // A flow that began after the query did not carry it: another socket had the same port before.
        let flow = self.flows.get(asker).filter(|flow| flow.start <= MonotonicTime::from_nanos(lookup.query_time))?;
        flow.owner.clone()
    }

    /// Gives a name to each flow for which all answers from before its start have arrived.
    pub(super) fn name_flows(&mut self, now: MonotonicTime) {
        while let Some(flow_key) = self.name_tracker.next_ready(now) {
            let nameless =
                |flow: &&mut LiveFlow| flow.domain.is_none() && began_with_flow(flow.id.transport, flow.complete);
            let Some(flow) = self.flows.get_mut(flow_key).filter(nameless) else { continue };
            let owner = flow.owner.as_deref();
            let name = owner.and_then(|owner| self.name_tracker.name(owner, flow.id.remote.ip, flow.start));
            flow.domain = name.cloned().map(Box::new);
        }
    }
}

/// Whether the conversation began with its flow, so that the answers from before it are known. A TCP connection may be
/// older than its flow, if its first packets were not seen.
pub(super) fn began_with_flow(transport: Transport, complete: bool) -> bool {
    transport == Transport::Udp || complete
}

fn transaction(lookup: &Lookup) -> Transaction {
    Transaction { id: lookup.id, name: Arc::clone(&lookup.name) }
}

/// The id by which names are kept; `None` if the start is not known, because an earlier process may have had the same pid.
fn id(process: &Process) -> Option<ProcessId> {
    Some((process.pid, process.start?))
}

#[cfg(test)]
mod tests {
    use super::super::unclaimed::MAX_ADDRESSES;
    use super::*;
    use crate::model::testing::{monotonic, since_boot};

    /// An answer with one address.
    fn answer_with(name: &str, time: MonotonicTime, ip: IpAddr) -> Lookup {
        let end = Endpoint::new(ip, 53);
        Lookup {
            time: time.as_nanos(),
            query_time: time.as_nanos(),
            client: end,
            server: end,
            transport: socktrail_dns::Transport::Udp,
            interface: 1,
            id: 7,
            name: Arc::from(name),
            query_type: socktrail_dns::QueryType::A,
            addresses: Box::new([Address { ip, ttl: 300 }]),
        }
    }

    #[test]
    fn an_answer_without_a_known_asker_makes_other_names_of_its_address_doubtful() {
        let (ip, other_ip) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let process = Process { start: Some(since_boot(1)), ..Process::new(1) };
        let second = 1_000_000_000;
        let mut tracker = NameTracker::new(vec![53], &NamesOptions::default());
        for ip in [ip, other_ip] {
            tracker.learn((1, since_boot(1)), &Arc::from("a.example"), Address { ip, ttl: 300 }, monotonic(second));
        }
        let name = |tracker: &NameTracker, ip, at| tracker.name(&process, ip, at).map(ToString::to_string);
        tracker.answered_unknown(&answer_with("b.example", monotonic(3 * second), ip));
        assert_eq!(name(&tracker, ip, monotonic(2 * second)).as_deref(), Some("a.example"), "before");
        assert_eq!(name(&tracker, ip, monotonic(4 * second)), None, "it may be b.example by now");
        assert_eq!(name(&tracker, other_ip, monotonic(4 * second)).as_deref(), Some("a.example"), "another address");
        tracker.learn((1, since_boot(1)), &Arc::from("c.example"), Address { ip, ttl: 300 }, monotonic(5 * second));
        assert_eq!(name(&tracker, ip, monotonic(6 * second)).as_deref(), Some("c.example"), "it has asked since");
        tracker.answered_unknown(&answer_with("c.example", monotonic(7 * second), ip));
        assert_eq!(name(&tracker, ip, monotonic(8 * second)).as_deref(), Some("c.example"), "the same name");
        // With NAT, an answer is captured twice: first without a known asker, then on its way to the process that asked.
        tracker.answered_unknown(&answer_with("d.example", monotonic(9 * second), ip));
        tracker.answered((2, since_boot(1)), &answer_with("d.example", monotonic(9 * second + 1000), ip));
        assert_eq!(name(&tracker, ip, monotonic(10 * second)).as_deref(), Some("c.example"), "a copy");
        for number in 0..=MAX_ADDRESSES as u32 {
            tracker.answered_unknown(&answer_with(
                "x.example",
                monotonic(11 * second),
                IpAddr::from(number.to_be_bytes()),
            ));
        }
        assert_eq!(name(&tracker, ip, monotonic(12 * second)), None, "too many to remember");
        assert_eq!(tracker.forgotten().unclaimed, MAX_ADDRESSES as u64);
    }

    #[test]
    fn after_too_many_forks_what_was_known_before_is_not_certain() {
        let mut options = NamesOptions::default();
        options.owners = 2 * MAX_FORKS;
        let mut tracker = NameTracker::new(vec![53], &options);
        let parent = Process { start: Some(since_boot(1)), ..Process::new(1) };
        let (ip, time) = (IpAddr::from([192, 0, 2, 1]), monotonic(1_000_000_000));
        let later = time.saturating_add(MAX_ANSWER_DELAY);
        tracker.learn((1, since_boot(1)), &Arc::from("a.example"), Address { ip, ttl: 300 }, time);
        for fork in 0..=MAX_FORKS as u32 {
            assert!(tracker.name(&parent, ip, later).is_some(), "after {fork} forks");
            tracker.fork(later, Some(&parent), Fork { child: 10 + fork, start: Some(since_boot(9)) });
        }
        assert_eq!(tracker.name(&parent, ip, later), None, "a late answer would not reach the first child");
        assert_eq!(tracker.forgotten().forks, 1);
    }

    #[test]
    fn forks_and_names_are_forgotten_when_they_are_too_old() {
        let mut tracker = NameTracker::new(vec![53], &NamesOptions::default());
        let parent = Process { start: Some(since_boot(1)), ..Process::new(1) };
        let at = |seconds: u64| monotonic(seconds * 1_000_000_000);
        let address = Address { ip: IpAddr::from([192, 0, 2, 1]), ttl: 300 };
        tracker.learn((1, since_boot(1)), &Arc::from("a.example"), address, at(1));
        tracker.fork(at(2), Some(&parent), Fork { child: 10, start: Some(since_boot(9)) });
        tracker.expire(at(2));
        assert_eq!((tracker.forks.len(), tracker.knowing()), (1, 2));
        tracker.expire(at(2).saturating_add(MAX_ANSWER_DELAY));
        assert_eq!(tracker.forks.len(), 0, "all answers from before the fork have come");
        tracker.expire(at(300));
        assert_eq!(tracker.knowing(), 2);
        tracker.expire(at(320));
        assert_eq!(tracker.knowing(), 0, "both processes know only names that have expired");
    }
}
