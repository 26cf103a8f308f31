//! Sockets that existed before the monitor started.

use super::*;

#[test]
fn an_unlisted_preexisting_socket_has_an_unknown_owner_and_is_forgotten() {
    let mut story = Story::new();
    story.udp(PacketDirection::Inbound, 0x7, tuple(53, 40000), 60);
    story.tcp(PacketDirection::Inbound, 0, tuple(22, 41000), 100, ACK);
    story.tcp(PacketDirection::Outbound, 0x8, tuple(22, 41000), 100, ACK);
    story.wait(31);
    assert_eq!(story.out.len(), 2);
    for flow in std::mem::take(&mut story.out) {
        assert_eq!((&flow.owner, flow.direction), (&Owner::Unknown, Direction::Unknown));
        assert!(!flow.complete);
    }
    story.wait(100);
    assert_eq!(story.state.stats().sockets_live, 0);
}

#[test]
fn the_flows_of_a_preexisting_socket_belong_to_its_holder() {
    let mut story = Story::new();
    let old = |local: Endpoint, remote: Option<Endpoint>, transport, pid| PreexistingSocket {
        namespace: 1,
        transport,
        local,
        remote,
        pid,
    };
    let ssh = tuple(22, 41000);
    let any = Endpoint::new(Ipv6Addr::UNSPECIFIED, 53);
    story.state.add_preexisting_socket(&old(ssh.local, Some(ssh.remote), Transport::Tcp, SHELL));
    story.state.add_preexisting_socket(&old(any, None, Transport::Udp, SERVER));
    // Two processes have a socket at one address: no known owner.
    story.state.add_preexisting_socket(&old(tuple(9, 1).local, None, Transport::Udp, SERVER));
    story.state.add_preexisting_socket(&old(tuple(9, 1).local, None, Transport::Udp, CURL));
    story.tcp(PacketDirection::Inbound, 0, ssh, 100, ACK);
    story.tcp(PacketDirection::Outbound, 0x8, ssh, 100, ACK);
    story.udp(PacketDirection::Inbound, 0x7, tuple(53, 40000), 60);
    story.udp(PacketDirection::Inbound, 0x9, tuple(9, 40000), 60);
    story.wait(31);
    story.out.sort_by_key(|flow| flow.local.port);
    let [shared, shell, asked] = &story.out[..] else { panic!("{:#?}", story.out) };
    assert_eq!(shared.owner, Owner::Unknown);
    assert_eq!((owner(asked).0, asked.direction), (SERVER, Direction::Ingress));
    assert_eq!((owner(shell).0, shell.complete), (SHELL, false));
}

#[test]
fn a_new_socket_with_the_addresses_of_a_preexisting_one_has_its_own_owner() {
    let mut story = Story::new();
    let old = PreexistingSocket {
        namespace: 1,
        transport: Transport::Tcp,
        local: tuple(40000, 80).local,
        remote: Some(tuple(40000, 80).remote),
        pid: SERVER,
    };
    story.state.add_preexisting_socket(&old);
    story.conversation(CURL, 0xa, tuple(40000, 80));
    story.tcp(PacketDirection::Outbound, 0x77, tuple(40000, 80), 60, SYN);
    story.wait(31);
    let owners: Vec<_> = story.out.iter().map(|flow| matches!(flow.owner, Owner::Unknown)).collect();
    assert_eq!(owners, [false, true]);
}
