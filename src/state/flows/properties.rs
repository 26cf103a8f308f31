//! The table of flows and the chains of flows of each socket, compared with maps and vectors.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::sockets::Socket;
use super::*;
use crate::model::kernel_address::SockAddress;

impl Flows {
    /// Panics if a flow cannot be found by its id, if a link of a chain has no link back, or if a flow is in two chains or
    /// in none although it has a socket.
    pub fn check(&self, sockets: &Sockets) {
        assert_eq!(self.index.len(), self.slots.len(), "each flow is in the index once");
        let mut chained = HashSet::new();
        for (socket, Socket { flows: head, .. }) in sockets.iter() {
            let (mut previous, mut next) = (None, *head);
            while let Some(key) = next {
                let flow = self.slots.get(key).expect("a chain holds live flows only");
                assert!(chained.insert(key), "{key:?} is in two chains, or twice in one");
                assert_eq!(flow.socket, Some(socket), "{key:?} is in the chain of another socket");
                assert_eq!(flow.previous, previous, "{key:?} has no link back");
                (previous, next) = (Some(key), flow.next);
            }
        }
        for (key, flow) in &self.slots {
            assert_eq!(self.find(&flow.id), Some(key), "{:?} cannot be found", flow.id);
            assert_eq!(flow.socket.is_some(), chained.contains(&key), "{key:?} is lost from its chain");
            if flow.socket.is_none() {
                assert_eq!((flow.previous, flow.next), (None, None), "{key:?} has neighbours but no socket");
            }
        }
    }
}

/// One change of the table. An index selects one of the flows or sockets that exist.
#[derive(Debug, Clone)]
enum Change {
    Insert { port: u16 },
    Remove { flow: Index },
    Link { flow: Index, socket: Index },
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        2 => (0..20_u16).prop_map(|port| Change::Insert { port }),
        1 => any::<Index>().prop_map(|flow| Change::Remove { flow }),
        3 => any::<(Index, Index)>().prop_map(|(flow, socket)| Change::Link { flow, socket }),
    ];
    vec(change, 0..200)
}

/// The table of flows as maps and vectors.
#[derive(Debug, Default)]
struct Model {
    /// By id, in order of insertion.
    flows: Vec<(FlowId, FlowKey)>,
    /// The flows of each socket, the one that was linked last first.
    chains: HashMap<SocketKey, Vec<FlowKey>>,
}

impl Model {
    fn unlink(&mut self, flow_key: FlowKey) {
        self.chains.values_mut().for_each(|chain| chain.retain(|other| *other != flow_key));
    }

    fn link(&mut self, flow_key: FlowKey, socket_key: SocketKey) {
        if !self.chains[&socket_key].contains(&flow_key) {
            self.unlink(flow_key);
            self.chains.entry(socket_key).or_default().insert(0, flow_key);
        }
    }
}

fn id(port: u16) -> FlowId {
    let end = |port| Endpoint::new(Ipv4Addr::LOCALHOST, port);
    FlowId { scope: NetAddress::new(1).into(), transport: Transport::Tcp, local: end(port), remote: end(80) }
}

fn live(id: FlowId) -> LiveFlow {
    LiveFlow::new(id, MonotonicTime::ZERO)
}

proptest! {
    #[test]
    fn every_change_keeps_the_table_as_the_model_has_it(changes in changes()) {
        let (mut flows, mut sockets, mut model) = (Flows::default(), Sockets::new(3), Model::default());
        let keys: Vec<_> =
            (1..=3).map(|sock| sockets.insert(SockAddress::new(sock), MonotonicTime::ZERO).unwrap()).collect();
        model.chains.extend(keys.iter().map(|key| (*key, Vec::new())));
        for change in changes {
            match change {
                Change::Insert { port } if flows.find(&id(port)).is_none() => {
                    let key = flows.insert(live(id(port)));
                    model.flows.push((id(port), key));
                }
                Change::Remove { flow } if !model.flows.is_empty() => {
                    let (id, key) = model.flows.remove(flow.index(model.flows.len()));
                    model.unlink(key);
                    prop_assert_eq!(flows.remove(key, &mut sockets).map(|flow| flow.id), Some(id));
                }
                Change::Link { flow, socket } if !model.flows.is_empty() => {
                    let ((_, key), socket) = (*flow.get(&model.flows), *socket.get(&keys));
                    flows.link(key, socket, &mut sockets);
                    model.link(key, socket);
                }
                _ => {}
            }
            flows.check(&sockets);
            prop_assert_eq!(flows.len(), model.flows.len());
            for (id, key) in &model.flows {
                prop_assert_eq!(flows.find(id), Some(*key));
            }
            for (socket, chain) in &model.chains {
                let head = sockets.get(*socket).and_then(|socket| socket.flows);
                prop_assert_eq!(&flows.chain(head).collect::<Vec<_>>(), chain);
            }
        }
    }
}
