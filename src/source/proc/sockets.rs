//! The sockets that existed before the monitor and their owners, for flows.
//!
//! `/proc/PID/net` lists the sockets of a network namespace with their inodes, `/proc/PID/fd` the inodes that a process holds.

use std::collections::{HashMap, HashSet};

use procfs::net::{TcpState, UdpState};
use procfs::process::{FDTarget, Process as ProcEntry};

use super::living::LivingProcess;
use crate::model::flow::{Endpoint, Transport};
use crate::state::PreexistingSocket;

/// The TCP and UDP sockets that processes hold, in all network namespaces.
///
/// If several processes hold a socket, its owner is the one that all the others descend from. Without such a process, the creator
/// cannot be determined, and the socket is not returned.
pub fn sockets() -> Vec<PreexistingSocket> {
    let living = LivingProcess::all();
    let holders = holders(&living);
    let mut seen = HashSet::new();
    let mut sockets = Vec::new();
    for entry in living.iter().map(LivingProcess::directory) {
        let Some(namespace) = network_namespace(entry).filter(|id| seen.insert(*id)) else { continue };
        for ListedSocket { inode, transport, local, remote } in listed_sockets(entry) {
            let owner = holders.pids.get(&inode).and_then(|pids| common_ancestor(pids, &holders.parents));
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

pub(super) fn holders(living: &[LivingProcess]) -> Holders {
    let mut holders = Holders::default();
    for process in living {
        let pid = process.pid;
        holders.parents.insert(pid, process.stat.ppid);
        for descriptor in process.directory().fd().into_iter().flatten().filter_map(Result::ok) {
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

/// The process in `pids` that all the others in it descend from.
pub(super) fn common_ancestor(pids: &[u32], parents: &HashMap<u32, u32>) -> Option<u32> {
    let descends_from = |mut pid: u32, ancestor: u32| {
        // `/proc` is not read at one instant. If a pid is reused meanwhile, the parents may form a cycle.
        for _ in 0..parents.len() {
            if pid == ancestor {
                return true;
            }
            match parents.get(&pid) {
                Some(parent) => pid = *parent,
                None => return false,
            }
        }
        false
    };
    pids.iter().copied().find(|ancestor| pids.iter().all(|pid| descends_from(*pid, *ancestor)))
}

pub(super) fn network_namespace(entry: &ProcEntry) -> Option<u64> {
    entry.namespaces().ok()?.0.get(std::ffi::OsStr::new("net")).map(|namespace| namespace.identifier)
}

/// A socket in a list of `/proc/PID/net`.
pub(super) struct ListedSocket {
    inode: u64,
    transport: Transport,
    local: Endpoint,
    /// `None` for a listener, and for a datagram socket that is not connected.
    remote: Option<Endpoint>,
}

/// The sockets of a process's network namespace.
pub(super) fn listed_sockets(entry: &ProcEntry) -> Vec<ListedSocket> {
    let tcp = [entry.tcp(), entry.tcp6()].into_iter().filter_map(Result::ok).flatten();
    let udp = [entry.udp(), entry.udp6()].into_iter().filter_map(Result::ok).flatten();
    let tcp = tcp.filter(|socket| socket.inode != 0).map(|socket| {
        let remote = (socket.state != TcpState::Listen).then_some(socket.remote_address.into());
        ListedSocket { inode: socket.inode, transport: Transport::Tcp, local: socket.local_address.into(), remote }
    });
    let udp = udp.map(|socket| {
        let remote = (socket.state == UdpState::Established).then_some(socket.remote_address.into());
        ListedSocket { inode: socket.inode, transport: Transport::Udp, local: socket.local_address.into(), remote }
    });
    tcp.chain(udp).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn sockets_of_this_process_belong_to_it() {
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
        assert_eq!(common_ancestor(&[10], &parents), Some(10));
        assert_eq!(common_ancestor(&[13, 12, 10], &parents), Some(10));
        assert_eq!(common_ancestor(&[11, 12], &parents), None, "siblings");
        assert_eq!(common_ancestor(&[10, 20], &parents), None);
    }
}
