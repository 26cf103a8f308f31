//! Sockets that existed before the monitor started: they show the owners of their flows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hashbrown::HashMap;

use super::flows::FlowId;
use crate::model::flow::{Endpoint, Transport};
use crate::model::process::Process;

/// A socket that existed before the first event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreexistingSocket {
    /// The inode of its network namespace.
    pub namespace: u64,
    /// Its transport.
    pub transport: Transport,
    /// Its local address, which may be unspecified.
    pub local: Endpoint,
    /// The other end of a connection; a listener and an unconnected datagram socket have none.
    pub remote: Option<Endpoint>,
    /// The process that holds it.
    pub pid: u32,
}

/// Owners by address; `None` if there are several.
type Map<K> = HashMap<K, Option<Arc<Process>>, foldhash::fast::RandomState>;

/// Preexisting sockets by their addresses. If several processes have sockets at one address (in several network namespaces, or
/// by `SO_REUSEPORT`), its owner is unknown.
#[derive(Debug, Default)]
pub struct PreexistingSockets {
    connected: Map<(Transport, Endpoint, Endpoint)>,
    unconnected: Map<(Transport, Endpoint)>,
}

impl PreexistingSockets {
    /// Remembers a socket.
    pub fn add(&mut self, socket: &PreexistingSocket, owner: Arc<Process>) {
        let PreexistingSocket { transport, local, remote, .. } = *socket;
        match remote {
            Some(remote) => put(&mut self.connected, (transport, local, remote), owner),
            None => put(&mut self.unconnected, (transport, local), owner),
        }
    }

    /// The owner of the preexisting connection with a flow's addresses; if there is none, of the listener or unconnected socket
    /// at its local address.
    pub fn owner(&self, id: &FlowId) -> Option<Arc<Process>> {
        match self.connected.get(&(id.transport, id.local, id.remote)) {
            Some(owner) => owner.clone(),
            None => self.listener(id)?.clone(),
        }
    }

    /// Whether a preexisting socket listens or receives datagrams at a flow's local address.
    pub fn listens(&self, id: &FlowId) -> bool {
        self.listener(id).is_some()
    }

    fn listener(&self, id: &FlowId) -> Option<&Option<Arc<Process>>> {
        let at = |ip: IpAddr| self.unconnected.get(&(id.transport, Endpoint::new(ip, id.local.port)));
        let any_ipv4 = || at(Ipv4Addr::UNSPECIFIED.into()).filter(|_| id.local.ip.is_ipv4());
        // A socket at `::` receives IPv4 as well, unless it has `IPV6_V6ONLY`. In that case another socket may have the port for
        // IPv4, so that one is looked up first.
        at(id.local.ip).or_else(any_ipv4).or_else(|| at(Ipv6Addr::UNSPECIFIED.into()))
    }
}

/// Adds the owner of an address. The address loses its owner if another process has it, too.
fn put<K: std::hash::Hash + Eq>(map: &mut Map<K>, key: K, owner: Arc<Process>) {
    let mut fresh = false;
    let entry = map.entry(key).or_insert_with(|| {
        fresh = true;
        Some(Arc::clone(&owner))
    });
    if !fresh && entry.as_ref().is_none_or(|other| other.pid != owner.pid) {
        *entry = None;
    }
}
