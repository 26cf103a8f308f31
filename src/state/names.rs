//! Names: which one a process looked up for the address that it talks to.
//!
//! A name belongs to the process that asked for it: to the owner of the flow that carried the query. So two processes
//! may know one address by different names, and what a local resolver asks the world on behalf of others counts for
//! that resolver only, not for the asker, whose own query to the resolver does.

use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use socktrail_dns::{Learned, Names, NamesOptions};

use super::State;
use super::flows::{FlowKey, Live};
use crate::event::{Endpoint, KernelTime, Transport};
use crate::process::Process;

/// A process over all its programs and credentials: id and start.
type ProcessId = (u32, u64);

/// Who asks, and who knows what.
#[derive(Debug)]
pub struct Correlation {
    names: Names<ProcessId>,
    /// The live flow between these ends, by the ports that servers of names listen on; `None` when there are several,
    /// in namespaces that use the same addresses: then it cannot be told who asked.
    askers: HashMap<(Transport, Endpoint, Endpoint), Option<FlowKey>, foldhash::fast::RandomState>,
    ports: Vec<u16>,
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
        Self { names: Names::new(options), askers: HashMap::default(), ports }
    }

    /// A flow begins: perhaps it asks for names.
    pub fn begins(&mut self, key: FlowKey, live: &Live) {
        if !self.ports.contains(&live.id.remote.port) {
            return;
        }
        match self.askers.entry((live.id.transport, live.id.local, live.id.remote)) {
            Entry::Occupied(mut other) => drop(other.insert(None)),
            Entry::Vacant(place) => drop(place.insert(Some(key))),
        }
    }

    /// A flow ends. Where there were several, none of them asks any more: which of them is left is not known.
    pub fn ends(&mut self, live: &Live) {
        if self.ports.contains(&live.id.remote.port) {
            self.askers.remove(&(live.id.transport, live.id.local, live.id.remote));
        }
    }

    /// A process makes another, which knows what its parent knew.
    pub fn fork(&mut self, parent: Option<&Process>, child: u32, start: u64) {
        if let Some(parent) = parent {
            self.names.inherit(&id(parent), &(child, start));
        }
    }

    /// The name by which the owner of a flow knows its remote.
    pub fn name(&self, live: &Live, at: KernelTime) -> Option<Arc<str>> {
        let owner = live.owner.as_deref()?;
        self.names.find(&id(owner), live.id.remote.ip, at).cloned()
    }

    /// Forgets what is too old.
    pub fn expire(&mut self, now: KernelTime) {
        self.names.expire(now);
    }
}

impl State {
    /// An answer came: it names addresses for whoever asked.
    pub(super) fn learned(&mut self, learned: &Arc<Learned>) {
        let transport = match learned.transport {
            socktrail_dns::Transport::Udp => Transport::Udp,
            socktrail_dns::Transport::Tcp => Transport::Tcp,
        };
        let asker = self.correlation.askers.get(&(transport, learned.client, learned.server)).copied().flatten();
        let Some(owner) = asker.and_then(|flow| self.flows.get(flow)).and_then(|live| live.owner.clone()) else {
            self.stats.names_without_owner += 1;
            return;
        };
        self.stats.names_learned += 1;
        for address in &learned.addresses {
            self.correlation.names.learn(&id(&owner), &learned.name, *address, learned.time);
        }
        if self.config.report_names {
            self.names.push(NameLearned { process: owner, learned: Arc::clone(learned) });
        }
    }

    /// Gives a flow the name of its remote, once it is known: answers can come late.
    pub(super) fn name_flow(&mut self, flow: FlowKey) {
        let Some(live) = self.flows.get_mut(flow).filter(|live| live.domain.is_none()) else { return };
        live.domain = self.correlation.name(live, live.start.max(live.last)).map(Box::new);
    }
}

fn id(process: &Process) -> ProcessId {
    (process.pid, process.start.unwrap_or_default())
}
