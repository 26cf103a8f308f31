//! `socket.sk`, and the arguments of `sock_init_data` and `inet_release`.

use crate::engine::{Call, Context, Evidence, Guess, Probe, is_kernel_pointer};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};

/// How many bytes of a `struct socket` are captured: more than its size.
const SOCKET: u32 = 128;

/// When a socket is created, `sock_init_data(sock, sk)` gets `sock`, which points to its `struct socket`, and `sk`, which
/// points to its `struct sock`. When the socket is released, `inet_release(sock)` gets `sock` again, and the
/// `struct socket` holds `sk`.
///
/// Two sockets exist at the same time, so both pointers differ between them. A pointer that all sockets share, such as the
/// one to their operations, is not mistaken for `sk`.
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
        let [first, second] = [(); 2].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)));
        drop(first?);
        drop(second?);
        Ok(())
    }

    fn solve(&self, (): &(), calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        let [created_first, created_second, released_first, released_second] = calls else { return evidence };
        let (created, released) = ([created_first, created_second], [released_first, released_second]);
        let in_order = created.iter().all(|call| call.function == "sock_init_data")
            && released.iter().all(|call| call.function == "inet_release");
        if in_order {
            add_evidence(created, released, &mut evidence);
        }
        evidence
    }
}

/// Finds arguments and offsets from the calls that created and released two sockets.
fn add_evidence(created: [&Call; 2], released: [&Call; 2], evidence: &mut Evidence) {
    let are_two_pointers = |words: [u64; 2]| words[0] != words[1] && words.into_iter().all(is_kernel_pointer);
    let created_with = |position: u32| created.map(|call| call.argument(position));
    let views = ["argument 1", "argument 2"];
    for (sock_position, release_position) in (1..=5).flat_map(|position| [(position, 1), (position, 2)]) {
        let sockets = released.map(|call| call.argument(release_position));
        if created_with(sock_position) != sockets || !are_two_pointers(sockets) {
            continue;
        }
        let view = views[release_position as usize - 1];
        // The offsets at which both `struct socket`s hold this argument.
        let offsets = |sk_position: u32| {
            let sks = created_with(sk_position);
            let offsets_in = |index: usize| released[index].view(view).find_word(sks[index]);
            let second = offsets_in(1);
            offsets_in(0).into_iter().filter(|offset| second.contains(offset)).collect::<Vec<_>>()
        };
        let may_be_sk = |position: &u32| {
            *position != sock_position && are_two_pointers(created_with(*position)) && !offsets(*position).is_empty()
        };
        // Several positions, if a register without an argument happens to hold `sk` too.
        let sk_positions: Vec<u32> = (1..=5).filter(may_be_sk).collect();
        if let Some(&first) = sk_positions.first() {
            evidence.one_of("sock_init_data(sock)", [sock_position]);
            evidence.one_of("inet_release(sock)", [release_position]);
            evidence.one_of("socket.sk", offsets(first));
            evidence.one_of("sock_init_data(sk)", sk_positions);
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

    fn created(socket: u64, sk: u64) -> Call {
        Call::of("sock_init_data", vec![(ARGUMENTS, arguments(&[socket, sk, 2, sk, OPERATIONS]))])
    }

    fn released(socket: u64, sk: u64) -> Call {
        let mut target = Window::new(0, vec![0; SOCKET as usize]);
        target.write(24, &sk.to_ne_bytes());
        target.write(32, &OPERATIONS.to_ne_bytes());
        let views =
            vec![(ARGUMENTS, arguments(&[socket, socket, 0])), ("argument 1", target.clone()), ("argument 2", target)];
        Call::of("inet_release", views)
    }

    #[test]
    fn both_arguments_and_the_pointer_to_the_sock_are_found() {
        let [a, b, c, d] = [1, 2, 3, 4].map(|number| 0xffff_8880_0000_0000 + number * 0x1000);
        let evidence = Socket.solve(&(), &[created(a, b), created(c, d), released(a, b), released(c, d)]);
        assert_eq!(evidence.values("sock_init_data(sock)"), [1]);
        assert_eq!(evidence.values("sock_init_data(sk)"), [2, 4]);
        assert_eq!(evidence.values("inet_release(sock)"), [1]);
        assert_eq!(evidence.values("socket.sk"), [24]);
    }

    #[test]
    fn a_missing_call_gives_no_evidence() {
        let [a, b] = [0xffff_8880_0000_1000, 0xffff_8880_0000_2000];
        assert_eq!(Socket.solve(&(), &[created(a, b), released(a, b)]), Evidence::default());
        assert_eq!(Socket.solve(&(), &[]), Evidence::default());
    }
}
