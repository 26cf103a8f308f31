//! The fields that socket events need besides addresses: inode, type, protocol, state and device.

use super::loopback;
use super::sock::{SOCK_COMMON, released_sock_needs};
use crate::engine::{Call, Context, Evidence, Guess, MAX_WINDOW, Probe};
use nix::sys::socket::{AddressFamily, SockType, listen, setsockopt, sockopt};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

/// How many bytes are captured from the beginning of a `struct socket_alloc`: a `struct socket` and then its inode, up to and
/// including the inode's number.
const SOCKET_ALLOC: u32 = 512;
/// The `struct socket` at the beginning of a `struct socket_alloc` is smaller than this.
const SOCKET: u32 = 128;

/// `TCP_ESTABLISHED`, `TCP_CLOSE` and `TCP_LISTEN`. Their numbers are part of the kernel's interface.
const STATES: [u8; 3] = [1, 7, 10];

/// Closes sockets with known type, protocol, state and device, two of them bound to the loopback device, and captures
/// `struct socket` and `struct sock` when they are released. `fstat(2)` gives the number of the inode.
#[derive(Debug)]
pub(super) struct SocketEvents;

/// What is known about a socket that was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClosedSocket {
    inode: u64,
    kind: u16,
    protocol: u16,
    state: u8,
    /// The index of the device that it is bound to; 0 if it is not bound.
    device: u32,
}

impl Guess for SocketEvents {
    type Expected = Vec<ClosedSocket>;

    fn name(&self) -> &'static str {
        "socket_events"
    }

    fn needs(&self) -> Vec<String> {
        released_sock_needs()
    }

    fn gives(&self) -> Vec<String> {
        let keys = [
            "socket.type",
            "socket_alloc.i_ino",
            "sock_common.skc_state",
            "sock_common.skc_bound_dev_if",
            "sock.sk_protocol",
            "sock.sk_protocol:8",
        ];
        keys.map(str::to_owned).into()
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        let socket = Probe::on("inet_release").words("socket", "{sock}", 0..SOCKET_ALLOC);
        vec![socket.words("sk", "+{socket.sk}({sock})", 0..MAX_WINDOW)]
    }

    fn trigger(&mut self, context: &mut dyn Context) -> io::Result<Vec<ClosedSocket>> {
        let mut open = |kind| {
            let local = loopback::ipv4_address(context.random());
            loopback::socket(kind, AddressFamily::Inet, Some(local))
        };
        let [established, closed, listening] = STATES;
        let (datagrams, stream, listener) =
            (open(SockType::Datagram)?, open(SockType::Stream)?, open(SockType::Stream)?);
        let connected = open(SockType::Datagram)?;
        let mut remote = loopback::ipv4_address(context.random());
        remote.set_port(loopback::port(context.random()));
        loopback::connect(&connected, remote)?;
        listen(&listener, nix::sys::socket::Backlog::new(1)?)?;
        let device = loopback_index()?;
        for bound in [&datagrams, &stream] {
            setsockopt(bound, sockopt::BindToDevice, &"lo".into())?;
        }
        let (tcp, udp) = ((SockType::Stream as u16, 6), (SockType::Datagram as u16, 17));
        [
            (datagrams, udp, closed, device),
            (stream, tcp, closed, device),
            (listener, tcp, listening, 0),
            (connected, udp, established, 0),
        ]
        .into_iter()
        .map(|(socket, (kind, protocol), state, device)| {
            Ok(ClosedSocket { inode: close(socket)?, kind, protocol, state, device })
        })
        .collect()
    }

    fn solve(&self, expected: &Vec<ClosedSocket>, calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        if expected.len() == calls.len() {
            for (closed, call) in expected.iter().zip(calls) {
                add_evidence(closed, call, &mut evidence);
            }
        }
        evidence
    }
}

/// Closes a socket, which hits the probe, and returns the number of its inode.
fn close(socket: OwnedFd) -> io::Result<u64> {
    Ok(File::from(socket).metadata()?.ino())
}

fn loopback_index() -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex("lo")?)
}

fn add_evidence(closed: &ClosedSocket, call: &Call, evidence: &mut Evidence) {
    let (socket, sk) = (call.view("socket"), call.view("sk"));
    let common = sk.part(0, SOCK_COMMON);
    evidence.one_of("socket.type", socket.part(0, SOCKET).find_u16(closed.kind));
    evidence.one_of("socket_alloc.i_ino", socket.find_word(closed.inode));
    evidence.one_of("sock_common.skc_state", common.find(&[closed.state], 1));
    evidence.one_of("sock_common.skc_bound_dev_if", common.find_u32(closed.device));
    let after_common = sk.part(SOCK_COMMON, MAX_WINDOW);
    evidence.one_of("sock.sk_protocol", after_common.find_u16(closed.protocol));
    // Before Linux 5.6: `sk_protocol : 8, sk_type : 16`. Since then the type comes first.
    let [protocol, _] = closed.protocol.to_le_bytes();
    let [low, high] = closed.kind.to_le_bytes();
    evidence.one_of("sock.sk_protocol:8", after_common.find(&[protocol, low, high], 1));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Window;

    /// The call that closes a socket. Its `sock` has `type_and_protocol` at offset 514.
    fn call(closed: &ClosedSocket, type_and_protocol: &[u8]) -> Call {
        let mut socket = Window::new(0, vec![0; SOCKET_ALLOC as usize]);
        socket.write(4, &closed.kind.to_ne_bytes());
        socket.write(192, &closed.inode.to_ne_bytes());
        let mut sk = Window::new(0, vec![0; MAX_WINDOW as usize]);
        sk.write(18, &[closed.state]);
        sk.write(20, &closed.device.to_ne_bytes());
        sk.write(514, type_and_protocol);
        Call::of("inet_release", vec![("socket", socket), ("sk", sk)])
    }

    fn expected() -> Vec<ClosedSocket> {
        let closed = |inode, kind, protocol, state, device| ClosedSocket { inode, kind, protocol, state, device };
        vec![closed(70_001, 2, 17, 7, 1), closed(70_002, 1, 6, 10, 0), closed(70_003, 2, 17, 1, 0)]
    }

    /// `sk_type` and `sk_protocol`, each of 16 bits.
    fn since_5_6(closed: &ClosedSocket) -> Vec<u8> {
        [closed.kind, closed.protocol].map(u16::to_ne_bytes).concat()
    }

    /// A word of bit-fields: flags, `sk_userlocks : 4`, `sk_protocol : 8`, `sk_type : 16`.
    fn before_5_6(closed: &ClosedSocket) -> Vec<u8> {
        [vec![0x40, closed.protocol as u8], closed.kind.to_le_bytes().to_vec()].concat()
    }

    #[test]
    fn each_field_is_found_from_several_kinds_of_sockets() {
        for (bytes, protocol_of_16_bits, protocol_of_8_bits) in
            [(since_5_6 as fn(&ClosedSocket) -> Vec<u8>, &[516][..], &[][..]), (before_5_6, &[], &[515])]
        {
            let expected = expected();
            let calls: Vec<_> = expected.iter().map(|closed| call(closed, &bytes(closed))).collect();
            let evidence = SocketEvents.solve(&expected, &calls);
            for (key, offsets) in [
                ("socket.type", &[4][..]),
                ("socket_alloc.i_ino", &[192]),
                ("sock_common.skc_state", &[18]),
                ("sock_common.skc_bound_dev_if", &[20]),
                ("sock.sk_protocol", protocol_of_16_bits),
                ("sock.sk_protocol:8", protocol_of_8_bits),
            ] {
                assert_eq!(evidence.values(key), offsets, "{key}");
            }
        }
    }

    #[test]
    fn a_missing_call_gives_no_evidence() {
        let one = ClosedSocket { inode: 9, kind: 1, protocol: 6, state: 7, device: 0 };
        assert_eq!(SocketEvents.solve(&vec![one], &[]), Evidence::default());
    }
}
