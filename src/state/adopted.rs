//! Sockets older than the monitor: whose their flows are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hashbrown::HashMap;

use super::flows::FlowId;
use crate::event::{Endpoint, Transport};
use crate::process::Process;

/// A socket that was there before events were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldSocket {
    /// The inode of its network namespace.
    pub namespace: u64,
    /// Its transport.
    pub transport: Transport,
    /// Its own end; the address may be unspecified.
    pub local: Endpoint,
    /// The other end of a connection; a listener and an unconnected datagram socket have none.
    pub remote: Option<Endpoint>,
    /// Who holds it.
    pub pid: u32,
}

type Map<K> = HashMap<K, Option<Arc<Process>>, foldhash::fast::RandomState>;

/// Old sockets by their ends. What two sockets share (in two network namespaces, or by SO_REUSEPORT) is nobody's.
#[derive(Debug, Default)]
pub struct Adopted {
    connected: Map<(Transport, Endpoint, Endpoint)>,
    bound: Map<(Transport, Endpoint)>,
}

impl Adopted {
    /// Remembers a socket.
    pub fn add(&mut self, socket: &OldSocket, owner: Arc<Process>) {
        let OldSocket { transport, local, remote, .. } = *socket;
        match remote {
            Some(remote) => put(&mut self.connected, (transport, local, remote), owner),
            None => put(&mut self.bound, (transport, local), owner),
        }
    }

    /// The owner of the old connection, or else of the old listener or unconnected socket, that a flow belongs to.
    pub fn owner(&self, id: &FlowId) -> Option<Arc<Process>> {
        match self.connected.get(&(id.transport, id.local, id.remote)) {
            Some(owner) => owner.clone(),
            None => self.listener(id)?.clone(),
        }
    }

    /// Whether somebody listens, or receives datagrams, at a flow's own end.
    pub fn listens(&self, id: &FlowId) -> bool {
        self.listener(id).is_some()
    }

    fn listener(&self, id: &FlowId) -> Option<&Option<Arc<Process>>> {
        let at = |ip: IpAddr| self.bound.get(&(id.transport, Endpoint::new(ip, id.local.port)));
        let any_ipv4 = || at(Ipv4Addr::UNSPECIFIED.into()).filter(|_| id.local.ip.is_ipv4());
        // `::` takes IPv4 too, unless it was told not to; then another socket may have the IPv4 port, and is asked first.
        at(id.local.ip).or_else(any_ipv4).or_else(|| at(Ipv6Addr::UNSPECIFIED.into()))
    }
}

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
