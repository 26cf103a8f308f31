//! `socket.sk`, and the arguments of `sock_init_data` and `inet_release`.

use crate::engine::{Call, Context, Evidence, Guess, Probe, is_kernel_pointer};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};

/// How many bytes of a `struct socket` are captured: more than its size.
const SOCKET: u32 = 128;

/// When a socket is created, `sock_init_data(sock, sk)` gets both pointers. When it is released, `inet_release(sock)`
/// gets `sock` again, and `sk` is in the `struct socket` that `sock` points to.
///
/// Two sockets exist at the same time, so that a pointer that all sockets share, such as that to their operations, is
/// not mistaken for the `sock`.
#[derive(Debug)]
pub(super) struct Socket;

impl Guess for Socket {
    type Expected = ();

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

    fn trigger(&mut self, _context: &mut dyn Context) -> io::Result<()> {
        let made = [(); 2].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)));
        let [first, second] = made;
        drop(first?);
        drop(second?);
        Ok(())
    }

    fn solve(&self, (): &(), calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        let [made @ .., first, second] = calls else { return evidence };
        let released = [first, second];
        let [made_first, made_second] = made else { return evidence };
        let made = [made_first, made_second];
        let in_order = made.iter().all(|call| call.function == "sock_init_data")
            && released.iter().all(|call| call.function == "inet_release");
        if in_order {
            add_evidence(made, released, &mut evidence);
        }
        evidence
    }
}

/// Finds arguments and offsets from the calls that created and released two sockets.
fn add_evidence(made: [&Call; 2], released: [&Call; 2], evidence: &mut Evidence) {
    let are_own = |words: [u64; 2]| words[0] != words[1] && words.iter().all(|&word| is_kernel_pointer(word));
    let argument = |position: u32| [made[0].argument(position), made[1].argument(position)];
    let view = ["argument 1", "argument 2"];
    for (sock, release) in (1..=5).flat_map(|sock| [(sock, 1), (sock, 2)]) {
        let socket = [released[0].argument(release), released[1].argument(release)];
        if argument(sock) != socket || !are_own(socket) {
            continue;
        }
        let inside = view[release as usize - 1];
        let offsets = |sk: u32| {
            let at = |index: usize| released[index].view(inside).find_word(argument(sk)[index]);
            let second = at(1);
            at(0).into_iter().filter(|offset| second.contains(offset)).collect::<Vec<_>>()
        };
        let with_offsets = |sk: &u32| *sk != sock && are_own(argument(*sk)) && !offsets(*sk).is_empty();
        let sks: Vec<u32> = (1..=5).filter(with_offsets).collect();
        if let Some(&first) = sks.first() {
            evidence.one_of("sock_init_data(sock)", [sock]);
            evidence.one_of("inet_release(sock)", [release]);
            evidence.one_of("socket.sk", offsets(first));
            evidence.one_of("sock_init_data(sk)", sks);
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

    fn made(socket: u64, sk: u64) -> Call {
        Call::of("sock_init_data", vec![(ARGUMENTS, arguments(&[socket, sk, 2, sk, OPERATIONS]))])
    }

    fn released(socket: u64, sk: u64) -> Call {
        let mut inside = Window::new(0, vec![0; SOCKET as usize]);
        inside.write(24, &sk.to_ne_bytes());
        inside.write(32, &OPERATIONS.to_ne_bytes());
        let views =
            vec![(ARGUMENTS, arguments(&[socket, socket, 0])), ("argument 1", inside.clone()), ("argument 2", inside)];
        Call::of("inet_release", views)
    }

    #[test]
    fn pointers_lead_to_each_other() {
        let [a, b, c, d] = [1, 2, 3, 4].map(|number| 0xffff_8880_0000_0000 + number * 0x1000);
        let evidence = Socket.solve(&(), &[made(a, b), made(c, d), released(a, b), released(c, d)]);
        assert_eq!(evidence.values("sock_init_data(sock)"), [1]);
        assert_eq!(evidence.values("sock_init_data(sk)"), [2, 4]);
        assert_eq!(evidence.values("inet_release(sock)"), [1]);
        assert_eq!(evidence.values("socket.sk"), [24]);
    }

    #[test]
    fn a_missing_call_gives_no_evidence() {
        let [a, b] = [0xffff_8880_0000_1000, 0xffff_8880_0000_2000];
        assert_eq!(Socket.solve(&(), &[made(a, b), released(a, b)]), Evidence::default());
        assert_eq!(Socket.solve(&(), &[]), Evidence::default());
    }
}
