//! Sockets that more than one process has had.

use super::*;

#[test]
fn who_gave_a_socket_up_is_told_where_that_is_another_than_its_owner() {
    for (user, last_user) in [(CURL, None), (SHELL, Some(SHELL)), (4_000_000, None)] {
        let mut story = Story::new();
        let tuple = tuple(40000, 80);
        story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
        story.udp(Way::Out, 0xa, tuple, 60);
        // The same process, with another program.
        story.say(CURL, exec("/usr/bin/wget", b"wget\0"));
        story.say(user, EventKind::SocketReleased { sock: 0xa });
        story.say(user, EventKind::SocketFreed { sock: 0xa });
        story.wait(6);
        let flow = story.only();
        assert!(matches!(&flow.owner, Owner::Process(owner) if owner.pid == CURL), "{:?}", flow.owner);
        assert_eq!(flow.last_user.map(|user| user.pid), last_user);
    }
}
