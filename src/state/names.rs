//! Names: which one a process looked up for the address that it talks to.
//!
//! A name belongs to the process that asked for it: to the owner of the flow that carried the query. So two processes
//! may know one address by different names, and what a local resolver asks the world on behalf of others counts for
//! that resolver only, not for the asker, whose own query to the resolver does.
//!
//! A flow has the name from the last answer that its owner got before the flow began, by their times. Answers arrive
//! here later than other events of the same time. So a flow waits a little for its name, and a late answer is passed on
//! to the children that the asking process has forked since.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use socktrail_dns::{Address, Learned, Names, NamesOptions};

use super::State;
use super::flows::{FlowKey, Flows, Live};
use crate::event::{Endpoint, Fork, KernelTime, Transport};
use crate::process::Process;

/// How late an answer may arrive here, in nanoseconds: flows wait this long for their name.
const LATE: KernelTime = 100_000_000;
/// How many forks are remembered for late answers.
const MOST_FORKS: usize = 65_536;
/// For how many waiting flows room is kept when none waits.
const KEPT_WAITING: usize = 1024;
/// How often to forget names that are too old, in nanoseconds.
const EXPIRY: KernelTime = 10_000_000_000;

/// A process over all its programs and credentials: id and start.
type ProcessId = (u32, u64);

/// Which flows ask name servers, and which names each process knows.
#[derive(Debug)]
pub struct Correlation {
    names: Names<ProcessId>,
    /// The live flow between these ends, by the ports that servers of names listen on; `None` when there are several,
    /// in namespaces that use the same addresses: then it cannot be told who asked.
    askers: HashMap<(Transport, Endpoint, Endpoint), Option<FlowKey>, foldhash::fast::RandomState>,
    ports: Vec<u16>,
    /// The latest forks, in order of time: parent and child.
    forks: VecDeque<(KernelTime, ProcessId, ProcessId)>,
    /// Flows that wait for late answers from before their start, in order of their start.
    waiting: VecDeque<(KernelTime, FlowKey)>,
    expires: KernelTime,
}

/// A name, and who learned it.
#[derive(Debug, Clone)]
pub struct NameLearned {
    /// Who asked.
    pub process: Arc<Process>,
    /// What was asked and answered.
    pub learned: Arc<Learned>,
}

impl Correlation {
    /// Nobody knows anything; servers listen on these ports.
    pub fn new(ports: Vec<u16>, options: &NamesOptions) -> Self {
        Self {
            names: Names::new(options),
            askers: HashMap::default(),
            ports,
            forks: VecDeque::new(),
            waiting: VecDeque::new(),
            expires: 0,
        }
    }

    /// A flow begins, which may carry queries.
    pub fn begins(&mut self, key: FlowKey, flows: &Flows) {
        let Some(live) = flows.get(key) else { return };
        self.waiting.push_back((live.start, key));
        if !self.ports.contains(&live.id.remote.port) {
            return;
        }
        let asker = self.askers.entry((live.id.transport, live.id.local, live.id.remote));
        asker
            .and_modify(|other| {
                // A closed socket sends no more queries.
                let is_over = other.and_then(|other| flows.get(other)).is_some_and(|other| other.closing);
                *other = is_over.then_some(key);
            })
            .or_insert(Some(key));
    }

    /// A flow ends. Where there were several, none of them asks any more: which of them is left is not known.
    pub fn ends(&mut self, key: FlowKey, live: &Live) {
        let ends = (live.id.transport, live.id.local, live.id.remote);
        if self.ports.contains(&live.id.remote.port)
            && self.askers.get(&ends).is_some_and(|asker| asker.is_none_or(|asker| asker == key))
        {
            self.askers.remove(&ends);
        }
    }

    /// A process makes another, which knows what its parent knew. Names are kept by pid and start: without a start there
    /// are none.
    pub fn fork(&mut self, now: KernelTime, parent: Option<&Process>, fork: Fork) {
        let Some((parent, start)) = parent.and_then(id).zip(fork.start) else { return };
        let child = (fork.child, start);
        if self.forks.len() >= MOST_FORKS {
            self.forks.pop_front();
            // A late answer can no longer be passed on to the child of a forgotten fork.
            self.names.missed(now.saturating_sub(LATE), now);
        }
        self.names.inherit(&parent, &child);
        self.forks.push_back((now, parent, child));
    }

    /// A process learns a name, and so do the children that it has forked since.
    fn learn(&mut self, process: ProcessId, name: &Arc<str>, address: Address, time: KernelTime) {
        self.names.learn(&process, name, address, time);
        let since = self.forks.partition_point(|(forked, ..)| *forked <= time);
        let mut knowing = vec![process];
        for (_, parent, child) in self.forks.range(since..) {
            if knowing.contains(parent) {
                knowing.push(*child);
                self.names.learn(child, name, address, time);
            }
        }
    }

    /// Answers that came between `since` and `until` may be missing.
    pub fn missed(&mut self, since: KernelTime, until: KernelTime) {
        self.names.missed(since, until);
    }

    /// The name by which a process knew an address at a moment.
    pub fn name(&self, process: &Process, ip: IpAddr, at: KernelTime) -> Option<&Arc<str>> {
        self.names.find(&id(process)?, ip, at)
    }

    /// Forgets what is too old.
    pub fn expire(&mut self, now: KernelTime) {
        let recent = now.saturating_sub(LATE);
        let old = self.forks.partition_point(|(forked, ..)| *forked < recent);
        self.forks.drain(..old);
        if now >= self.expires {
            self.expires = now.saturating_add(EXPIRY);
            self.names.expire(now);
        }
    }

    /// A flow for which all answers from before its start have arrived.
    fn next_ready(&mut self, now: KernelTime) -> Option<FlowKey> {
        let (start, _) = self.waiting.front()?;
        if start.saturating_add(LATE) > now {
            return None;
        }
        let ready = self.waiting.pop_front().map(|(_, flow)| flow);
        if self.waiting.is_empty() {
            self.waiting.shrink_to(KEPT_WAITING);
        }
        ready
    }
}

impl State {
    /// An answer came: it names addresses for whoever asked.
    pub(super) fn learned(&mut self, learned: &Arc<Learned>) {
        let Some(owner) = self.asker(learned) else {
            self.stats.names_without_owner += 1;
            return;
        };
        self.stats.names_learned += 1;
        if let Some(process) = id(&owner) {
            for address in &learned.addresses {
                self.correlation.learn(process, &learned.name, *address, learned.time);
            }
        }
        if self.config.report_names {
            self.names.push(NameLearned { process: owner, learned: Arc::clone(learned) });
        }
    }

    fn asker(&self, learned: &Learned) -> Option<Arc<Process>> {
        let transport = match learned.transport {
            socktrail_dns::Transport::Udp => Transport::Udp,
            socktrail_dns::Transport::Tcp => Transport::Tcp,
        };
        let asker = self.correlation.askers.get(&(transport, learned.client, learned.server)).copied().flatten()?;
        // A flow that began after the query did not carry it: another socket had the same port before.
        let live = self.flows.get(asker).filter(|live| live.start <= learned.asked)?;
        live.owner.clone()
    }

    /// Names the flows for which all answers that count have arrived.
    pub(super) fn name_flows(&mut self, now: KernelTime) {
        while let Some(flow) = self.correlation.next_ready(now) {
            let nameless =
                |live: &&mut Live| live.domain.is_none() && begins_with_its_start(live.id.transport, live.complete);
            let Some(live) = self.flows.get_mut(flow).filter(nameless) else { continue };
            let owner = live.owner.as_deref();
            let name = owner.and_then(|owner| self.correlation.name(owner, live.id.remote.ip, live.start));
            live.domain = name.cloned().map(Box::new);
        }
    }
}

/// Whether a conversation began when its flow did, so that the answers before it are known. A TCP connection may be
/// older than its flow.
pub(super) fn begins_with_its_start(transport: Transport, complete: bool) -> bool {
    transport == Transport::Udp || complete
}

/// `None` for a process whose start is not known: another one may have had its id before.
fn id(process: &Process) -> Option<ProcessId> {
    Some((process.pid, process.start?))
}

#[cfg(test)]
mod tests {
    use super::super::processes::nameless;
    use super::*;

    #[test]
    fn after_too_many_forks_what_was_known_before_is_not_certain() {
        let mut options = NamesOptions::default();
        options.owners = 2 * MOST_FORKS;
        let mut known = Correlation::new(vec![53], &options);
        let parent = Process { start: Some(1), ..nameless(1) };
        let (ip, time) = (IpAddr::from([192, 0, 2, 1]), 1_000_000_000);
        known.learn((1, 1), &Arc::from("a.example"), Address { ip, ttl: 300 }, time);
        for fork in 0..=MOST_FORKS as u32 {
            assert!(known.name(&parent, ip, time + LATE).is_some(), "after {fork} forks");
            known.fork(time + LATE, Some(&parent), Fork { child: 10 + fork, start: Some(9) });
        }
        assert_eq!(known.name(&parent, ip, time + LATE), None, "a late answer would not reach the first child");
    }
}
