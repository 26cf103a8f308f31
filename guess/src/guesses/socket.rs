//! `struct socket` and its `sock`: which arguments carry them, and how one leads to the other.

use crate::engine::{Clues, Guess, Probe, Scene, Shot, is_kernel_pointer};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};

/// `struct socket` is smaller than this.
const SOCKET: u32 = 128;

/// When a socket is made, `sock_init_data(sock, sk)` is given both pointers; when it is released, `inet_release(sock)` is
/// given the first again, and then the second is found within what it points to.
///
/// Two sockets live at a time, so that a pointer that all sockets share, such as that to their operations, is not
/// mistaken for their own.
#[derive(Debug)]
pub(super) struct Socket;

impl Guess for Socket {
    type Sent = ();

    fn name(&self) -> &'static str {
        "socket"
    }

    fn needs(&self) -> Vec<String> {
        Vec::new()
    }

    fn gives(&self) -> Vec<String> {
        ["sock_init_data(sock)", "sock_init_data(sk)", "inet_release(sock)", "socket.sk"].map(str::to_owned).into()
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        let release = Probe::on("inet_release").arguments(3);
        let release = release.words("argument 1", "{arg1}", 0..SOCKET).words("argument 2", "{arg2}", 0..SOCKET);
        vec![Probe::on("sock_init_data").arguments(5), release]
    }

    fn trigger(&mut self, _stage: &mut dyn Scene) -> io::Result<()> {
        let made = [(); 2].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)));
        let [first, second] = made;
        drop(first?);
        drop(second?);
        Ok(())
    }

    fn solve(&self, (): &(), shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        let [made @ .., first, second] = shots else { return clues };
        let released = [first, second];
        let [made_first, made_second] = made else { return clues };
        let made = [made_first, made_second];
        let in_order = made.iter().all(|shot| shot.function == "sock_init_data")
            && released.iter().all(|shot| shot.function == "inet_release");
        if in_order {
            find(made, released, &mut clues);
        }
        clues
    }
}

/// What is given when a socket is made, and what when it is released, for two sockets.
fn find(made: [&Shot; 2], released: [&Shot; 2], clues: &mut Clues) {
    let own = |words: [u64; 2]| words[0] != words[1] && words.iter().all(|&word| is_kernel_pointer(word));
    let given = |position: u32| [made[0].argument(position), made[1].argument(position)];
    let view = ["argument 1", "argument 2"];
    for (sock, release) in (1..=5).flat_map(|sock| [(sock, 1), (sock, 2)]) {
        let socket = [released[0].argument(release), released[1].argument(release)];
        if given(sock) != socket || !own(socket) {
            continue;
        }
        let inside = view[release as usize - 1];
        let offsets = |sk: u32| {
            let at = |index: usize| released[index].view(inside).find_word(given(sk)[index]);
            let second = at(1);
            at(0).into_iter().filter(|offset| second.contains(offset)).collect::<Vec<_>>()
        };
        let with_offsets = |sk: &u32| *sk != sock && own(given(*sk)) && !offsets(*sk).is_empty();
        let sks: Vec<u32> = (1..=5).filter(with_offsets).collect();
        if let Some(&first) = sks.first() {
            clues.allow("sock_init_data(sock)", [sock]);
            clues.allow("inet_release(sock)", [release]);
            clues.allow("socket.sk", offsets(first));
            clues.allow("sock_init_data(sk)", sks);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{ARGUMENTS, Window};

    const OPERATIONS: u64 = 0xffff_ffff_8200_0000;

    fn arguments(words: &[u64]) -> Window {
        Window::new(8, words.iter().flat_map(|word| word.to_ne_bytes()).collect())
    }

    fn made(socket: u64, sk: u64) -> Shot {
        Shot::of("sock_init_data", vec![(ARGUMENTS, arguments(&[socket, sk, 2, sk, OPERATIONS]))])
    }

    fn released(socket: u64, sk: u64) -> Shot {
        let mut inside = Window::new(0, vec![0; SOCKET as usize]);
        inside.write(24, &sk.to_ne_bytes());
        inside.write(32, &OPERATIONS.to_ne_bytes());
        let views =
            vec![(ARGUMENTS, arguments(&[socket, socket, 0])), ("argument 1", inside.clone()), ("argument 2", inside)];
        Shot::of("inet_release", views)
    }

    #[test]
    fn pointers_lead_to_each_other() {
        let [a, b, c, d] = [1, 2, 3, 4].map(|number| 0xffff_8880_0000_0000 + number * 0x1000);
        let clues = Socket.solve(&(), &[made(a, b), made(c, d), released(a, b), released(c, d)]);
        assert_eq!(clues.of("sock_init_data(sock)"), [1]);
        assert_eq!(clues.of("sock_init_data(sk)"), [2, 4]);
        assert_eq!(clues.of("inet_release(sock)"), [1]);
        assert_eq!(clues.of("socket.sk"), [24]);
    }

    #[test]
    fn a_run_with_a_call_too_few_tells_nothing() {
        let [a, b] = [0xffff_8880_0000_1000, 0xffff_8880_0000_2000];
        assert_eq!(Socket.solve(&(), &[made(a, b), released(a, b)]), Clues::default());
        assert_eq!(Socket.solve(&(), &[]), Clues::default());
    }
}
