//! MPTCP (RFC 8684): a program's socket, and its subflows, which are TCP connections.
//!
//! Packets are seen with the `struct sock` of a subflow, which no program ever holds. Programs connect, accept and close
//! the MPTCP socket. So subflows belong to the owner of the MPTCP socket, whoever created them: the kernel creates
//! further ones in a thread of its own.

use std::sync::Arc;

use super::State;
use super::calls::SocketEnd;
use super::sockets::SocketKey;
use crate::model::kernel_address::SockAddress;
use crate::model::process::Process;
use crate::model::time::MonotonicTime;

impl State {
    /// A TCP socket turns out to be a subflow of an MPTCP socket.
    pub(super) fn subflow(&mut self, now: MonotonicTime, sock: SockAddress, mptcp: SockAddress, joined: bool) {
        let Some(socket_key) = self.socket_at(now, Some(sock)) else { return };
        let Some(subflow) = self.sockets.get(socket_key) else { return };
        let (created, owner, was_joined) = (subflow.created, subflow.owner.clone(), subflow.joined);
        if !joined && !created && self.sockets.at(Some(mptcp)).is_some_and(|key| self.has_owner(key)) {
            // An MPTCP socket reported with its first, incoming connection is new and has no owner before it is
            // accepted: the owner known at this address is an earlier socket's.
            self.closed(now, Some(mptcp), SocketEnd::Freed);
        }
        let joined = joined || was_joined || owner.as_ref().is_some_and(|creator| creator.kernel);
        let Some(mptcp_key) = self.socket_at(now, Some(mptcp)) else { return };
        let known = self.owner_of_mptcp(mptcp_key, socket_key);
        self.sockets.add_subflow(mptcp_key, socket_key);
        if let Some(subflow) = self.sockets.get_mut(socket_key) {
            subflow.joined = joined;
        }
        match (known, owner) {
            // It is the same process. What the subflow's own calls have shown of it may be newer, so nothing changes.
            (Some(known), Some(owner)) if known.pid == owner.pid => {}
            (Some(known), _) => self.set_owner_of(socket_key, Some(&known)),
            // It got its owner before, and the MPTCP socket has been closed since.
            (None, Some(_)) if was_joined => {}
            // The task that created it, or the listener at which it arrived, need not be the owner of the MPTCP socket.
            (None, _) if joined => self.set_owner_of(socket_key, None),
            (None, _) => {}
        }
    }

    /// Gives the subflows of an MPTCP socket its owner.
    pub(super) fn set_owner_of_subflows(&mut self, mptcp: SocketKey, owner: &Arc<Process>) {
        for subflow in self.sockets.subflows(mptcp) {
            self.set_owner_of(subflow, Some(owner));
        }
    }

    /// Closes the subflows of an MPTCP socket that ends. `user` is the process that closed its last descriptor, if it is known.
    pub(super) fn close_subflows(&mut self, now: MonotonicTime, mptcp: SocketKey, user: Option<&Arc<Process>>) {
        for subflow in self.sockets.take_subflows(mptcp) {
            // The kernel may have freed it, and given its address to another socket.
            if let Some(sock) = self.sockets.get(subflow).map(|socket| socket.sock)
                && self.sockets.at(sock) == Some(subflow)
            {
                self.closed(now, sock, SocketEnd::Released { user: user.cloned() });
            }
        }
    }

    fn has_owner(&self, socket_key: SocketKey) -> bool {
        self.sockets.get(socket_key).is_some_and(|socket| socket.owner.is_some())
    }

    /// The owner of an MPTCP socket: its own or, if it was not accepted yet or is older than the monitor, that of a
    /// subflow other than `new`.
    fn owner_of_mptcp(&self, mptcp: SocketKey, new: SocketKey) -> Option<Arc<Process>> {
        let own = self.sockets.get(mptcp)?.owner.clone();
        let of_subflow = |socket_key: SocketKey| {
            let socket = self.sockets.get(socket_key)?;
            let of_flows = || self.flows.chain(socket.flows).find_map(|key| self.flows.get(key)?.owner.clone());
            let of_idle = || self.idle.get(socket.idle?)?.owner.clone();
            socket.owner.clone().or_else(of_flows).or_else(of_idle)
        };
        let others =
            || self.sockets.subflows(mptcp).into_iter().filter(|socket_key| *socket_key != new).find_map(of_subflow);
        own.or_else(others).map(|owner| self.processes.latest(&owner))
    }

    /// Sets or removes the owner of a subflow, its idle connection and its flows.
    fn set_owner_of(&mut self, socket_key: SocketKey, owner: Option<&Arc<Process>>) {
        let Some(socket) = self.sockets.get_mut(socket_key) else { return };
        socket.owner = owner.cloned();
        if let Some(idle) = socket.idle.and_then(|idle| self.idle.get_mut(idle)) {
            idle.set_owner(owner.cloned());
        }
        let flows: Vec<_> = self.flows.chain(socket.flows).collect();
        for flow_key in flows {
            if let Some(flow) = self.flows.get_mut(flow_key) {
                flow.set_owner(owner.cloned());
            }
        }
    }
}
