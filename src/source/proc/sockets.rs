//! The sockets that existed before the monitor, and their owners.
//!
//! `/proc/PID/net` lists the sockets of a network namespace with their inodes, `/proc/PID/fd` the inodes that a process holds.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use procfs::net::{TcpState, UdpState};
use procfs::process::{FDTarget, Process as ProcEntry};

use super::living::Living;
use crate::model::flow::{Endpoint, Transport};
use crate::state::PreexistingSocket;

/// Every TCP and UDP socket of every network namespace that a process holds.
///
/// A socket that several processes hold belongs to the one that all others descend from. If there is none, it is left out,
/// because its creator cannot be determined.
pub fn sockets() -> Vec<PreexistingSocket> {
    let living = Living::all();
    let holders = holders(&living);
    let mut seen = HashSet::new();
    let mut sockets = Vec::new();
    for entry in living.iter().map(Living::folder) {
        let Some(namespace) = network_namespace(entry).filter(|id| seen.insert(*id)) else { continue };
        for (inode, transport, local, remote) in listed(entry) {
            let owner = holders.pids.get(&inode).and_then(|pids| eldest(pids, &holders.parents));
            if let Some(pid) = owner {
                sockets.push(PreexistingSocket { namespace, transport, local, remote, pid });
            }
        }
    }
    sockets
}

/// The holders of each socket, and the parents of processes.
#[derive(Default)]
pub(super) struct Holders {
    pub(super) pids: HashMap<u64, Vec<u32>>,
    pub(super) parents: HashMap<u32, u32>,
}

pub(super) fn holders(living: &[Living]) -> Holders {
    let mut holders = Holders::default();
    for process in living {
        let pid = process.pid;
        holders.parents.insert(pid, process.stat.ppid);
        for descriptor in process.folder().fd().into_iter().flatten().filter_map(Result::ok) {
            if let FDTarget::Socket(inode) = descriptor.target {
                let pids = holders.pids.entry(inode).or_default();
                if pids.last() != Some(&pid) {
                    pids.push(pid);
                }
            }
        }
    }
    holders
}

/// The process from which all others descend.
pub(super) fn eldest(pids: &[u32], parents: &HashMap<u32, u32>) -> Option<u32> {
    let descends = |mut pid: u32, from: u32| {
        // The depth of a process tree is bounded by the number of processes.
        for _ in 0..parents.len() {
            if pid == from {
                return true;
            }
            match parents.get(&pid) {
                Some(parent) => pid = *parent,
                None => return false,
            }
        }
        false
    };
    pids.iter().copied().find(|eldest| pids.iter().all(|pid| descends(*pid, *eldest)))
}

pub(super) fn network_namespace(entry: &ProcEntry) -> Option<u64> {
    entry.namespaces().ok()?.0.get(std::ffi::OsStr::new("net")).map(|namespace| namespace.identifier)
}

/// Inode, transport and ends of each socket of a process's network namespace. A listener, like a datagram socket that
/// is not connected, has no remote.
pub(super) fn listed(entry: &ProcEntry) -> Vec<(u64, Transport, Endpoint, Option<Endpoint>)> {
    let tcp = [entry.tcp(), entry.tcp6()].into_iter().filter_map(Result::ok).flatten();
    let udp = [entry.udp(), entry.udp6()].into_iter().filter_map(Result::ok).flatten();
    let tcp = tcp.filter(|socket| socket.inode != 0).map(|socket| {
        let remote = (socket.state != TcpState::Listen).then_some(socket.remote_address);
        (socket.inode, Transport::Tcp, socket.local_address, remote)
    });
    let udp = udp.map(|socket| {
        let remote = (socket.state == UdpState::Established).then_some(socket.remote_address);
        (socket.inode, Transport::Udp, socket.local_address, remote)
    });
    let end = |address: SocketAddr| Endpoint::new(address.ip(), address.port());
    tcp.chain(udp).map(|(inode, transport, local, remote)| (inode, transport, end(local), remote.map(end))).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn own_sockets_are_found_as_ones_own() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let datagrams = UdpSocket::bind("[::]:0").unwrap();
        let found = sockets();
        let has = |transport, local: SocketAddr, remote: Option<SocketAddr>| {
            let local = Endpoint::from(local);
            let remote = remote.map(Endpoint::from);
            found.iter().any(|socket| {
                (socket.transport, socket.local, socket.remote) == (transport, local, remote)
                    && socket.pid == std::process::id()
            })
        };
        assert!(has(Transport::Tcp, listener.local_addr().unwrap(), None));
        assert!(has(Transport::Tcp, client.local_addr().unwrap(), Some(client.peer_addr().unwrap())));
        assert!(has(Transport::Udp, datagrams.local_addr().unwrap(), None));
    }

    #[test]
    fn a_shared_socket_belongs_to_the_common_ancestor_if_there_is_one() {
        let parents = HashMap::from([(10, 1), (11, 10), (12, 10), (13, 11), (20, 1)]);
        assert_eq!(eldest(&[10], &parents), Some(10));
        assert_eq!(eldest(&[13, 12, 10], &parents), Some(10));
        assert_eq!(eldest(&[11, 12], &parents), None, "siblings");
        assert_eq!(eldest(&[10, 20], &parents), None);
    }
}
