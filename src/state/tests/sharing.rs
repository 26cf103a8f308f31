//! Owners of sockets that were idle, or that more than one process has had.

use super::*;

#[test]
fn an_idle_socket_keeps_its_owner() {
    let mut story = Story::new();
    story.say(SERVER, EventKind::SocketCreated { sock: sock_at(0x5), user: SocketUser::Program });
    story.wait(100_000);
    story.udp(PacketDirection::Inbound, 0x5, tuple(53, 40000), 60);
    story.wait(31);
    assert_eq!(owner(&story.only()).0, SERVER);
}

#[test]
fn a_socket_that_is_passed_on_still_belongs_to_its_creator() {
    let mut story = Story::new();
    story.say(SHELL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.say(CURL, EventKind::ConnectBegins { sock: sock_at(0xa), remote: tuple(40000, 80).remote });
    story.tcp(PacketDirection::Outbound, 0xa, tuple(40000, 80), 60, SYN);
    story.wait(31);
    assert_eq!(owner(&story.only()).0, SHELL);
}

#[test]
fn the_closing_process_is_reported_if_it_is_not_the_owner() {
    for (user, last_user) in [(CURL, None), (SHELL, Some(SHELL)), (4_000_000, None)] {
        let mut story = Story::new();
        let tuple = tuple(40000, 80);
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
        story.udp(PacketDirection::Outbound, 0xa, tuple, 60);
        // The same process, with another program.
        story.say(CURL, exec("/usr/bin/wget", b"wget\0"));
        story.say(user, EventKind::SocketReleased { sock: sock_at(0xa) });
        story.say(user, EventKind::SocketFreed { sock: sock_at(0xa) });
        story.wait(6);
        let flow = story.only();
        assert!(matches!(&flow.owner, Owner::Process(owner) if owner.pid == CURL), "{:?}", flow.owner);
        assert_eq!(flow.last_user.map(|user| user.pid), last_user);
    }
}
