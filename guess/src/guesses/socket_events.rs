//! What socket events say beside addresses: inode, type, protocol, state, device.

use super::sock::{COMMON, window_needs};
use super::talk;
use crate::engine::{Clues, Guess, Probe, Scene, Shot, WINDOW};
use nix::sys::socket::{AddressFamily, SockType, listen, setsockopt, sockopt};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// A `struct socket` and as much of the inode behind it as its number is in.
const SOCKET: u32 = 512;
/// `struct socket` is smaller than this.
const ITSELF: u32 = 128;

/// `TCP_ESTABLISHED`, `TCP_CLOSE` and `TCP_LISTEN`, which are part of the kernel's interface.
const STATES: [u8; 3] = [1, 7, 10];

/// Closes sockets of which all this is known, two of them bound to the loopback device, and looks at `struct socket` and
/// `struct sock` as they are released. The inode's number is what `fstat(2)` says.
#[derive(Debug)]
pub(super) struct SocketEvents;

/// What is known of a socket that was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closed {
    inode: u64,
    kind: u16,
    protocol: u16,
    state: u8,
    /// Of the device that it is bound to; 0 for any.
    device: u32,
}

impl Guess for SocketEvents {
    type Sent = Vec<Closed>;

    fn name(&self) -> &'static str {
        "socket_events"
    }

    fn needs(&self) -> Vec<String> {
        window_needs()
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
        let socket = Probe::on("inet_release").words("socket", "{sock}", 0..SOCKET);
        vec![socket.words("sk", "+{socket.sk}({sock})", 0..WINDOW)]
    }

    fn trigger(&mut self, stage: &mut dyn Scene) -> io::Result<Vec<Closed>> {
        let mut open = |kind| {
            let local = talk::address(stage.random(), false);
            talk::socket(kind, AddressFamily::Inet, Some(local))
        };
        let [established, close, listening] = STATES;
        let (datagrams, stream, listener) =
            (open(SockType::Datagram)?, open(SockType::Stream)?, open(SockType::Stream)?);
        let connected = open(SockType::Datagram)?;
        let mut remote = talk::address(stage.random(), false);
        remote.set_port(talk::port(stage.random()));
        talk::connect(&connected, remote)?;
        listen(&listener, nix::sys::socket::Backlog::new(1)?)?;
        let device = loopback()?;
        for bound in [&datagrams, &stream] {
            setsockopt(bound, sockopt::BindToDevice, &"lo".into())?;
        }
        let (tcp, udp) = ((SockType::Stream as u16, 6), (SockType::Datagram as u16, 17));
        [
            (datagrams, udp, close, device),
            (stream, tcp, close, device),
            (listener, tcp, listening, 0),
            (connected, udp, established, 0),
        ]
        .into_iter()
        .map(|(socket, (kind, protocol), state, device)| {
            Ok(Closed { inode: inode(socket.as_fd().try_clone_to_owned()?)?, kind, protocol, state, device })
        })
        .collect()
    }

    fn solve(&self, sent: &Vec<Closed>, shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        if sent.len() == shots.len() {
            for (closed, shot) in sent.iter().zip(shots) {
                find(closed, shot, &mut clues);
            }
        }
        clues
    }
}

fn inode(socket: OwnedFd) -> io::Result<u64> {
    Ok(File::from(socket).metadata()?.ino())
}

fn loopback() -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex("lo")?)
}

fn find(closed: &Closed, shot: &Shot, clues: &mut Clues) {
    let (socket, sk) = (shot.view("socket"), shot.view("sk"));
    let common = sk.part(0, COMMON);
    clues.allow("socket.type", socket.part(0, ITSELF).find_u16(closed.kind));
    clues.allow("socket_alloc.i_ino", socket.find_word(closed.inode));
    clues.allow("sock_common.skc_state", common.find(&[closed.state], 1));
    clues.allow("sock_common.skc_bound_dev_if", common.find_u32(closed.device));
    let behind_common = sk.part(COMMON, WINDOW);
    clues.allow("sock.sk_protocol", behind_common.find_u16(closed.protocol));
    // `sk_protocol : 8, sk_type : 16`, before Linux 5.6. Since then the type comes first.
    let [protocol, _] = closed.protocol.to_le_bytes();
    let [low, high] = closed.kind.to_le_bytes();
    clues.allow("sock.sk_protocol:8", behind_common.find(&[protocol, low, high], 1));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Window;

    /// With the bytes around the protocol as some kernel has them, which are given with their offset.
    fn shot(closed: &Closed, (at, protocol): (u32, &[u8])) -> Shot {
        let mut socket = Window::new(0, vec![0; SOCKET as usize]);
        socket.write(4, &closed.kind.to_ne_bytes());
        socket.write(192, &closed.inode.to_ne_bytes());
        let mut sk = Window::new(0, vec![0; WINDOW as usize]);
        sk.write(18, &[closed.state]);
        sk.write(20, &closed.device.to_ne_bytes());
        sk.write(at, protocol);
        Shot::of("inet_release", vec![("socket", socket), ("sk", sk)])
    }

    fn sent() -> Vec<Closed> {
        let closed = |inode, kind, protocol, state, device| Closed { inode, kind, protocol, state, device };
        vec![closed(70_001, 2, 17, 7, 1), closed(70_002, 1, 6, 10, 0), closed(70_003, 2, 17, 1, 0)]
    }

    /// `sk_type` and `sk_protocol`, each of 16 bits.
    fn since_5_6(closed: &Closed) -> Vec<u8> {
        [closed.kind, closed.protocol].map(u16::to_ne_bytes).concat()
    }

    /// A word of bit-fields: flags, `sk_userlocks : 4`, `sk_protocol : 8`, `sk_type : 16`.
    fn before_5_6(closed: &Closed) -> Vec<u8> {
        [vec![0x40, closed.protocol as u8], closed.kind.to_le_bytes().to_vec()].concat()
    }

    #[test]
    fn sockets_of_several_sorts_tell_each_place() {
        for (bytes, wide, narrow) in
            [(since_5_6 as fn(&Closed) -> Vec<u8>, &[516][..], &[][..]), (before_5_6, &[], &[515])]
        {
            let sent = sent();
            let shots: Vec<_> = sent.iter().map(|closed| shot(closed, (514, &bytes(closed)))).collect();
            let clues = SocketEvents.solve(&sent, &shots);
            for (key, offsets) in [
                ("socket.type", &[4][..]),
                ("socket_alloc.i_ino", &[192]),
                ("sock_common.skc_state", &[18]),
                ("sock_common.skc_bound_dev_if", &[20]),
                ("sock.sk_protocol", wide),
                ("sock.sk_protocol:8", narrow),
            ] {
                assert_eq!(clues.of(key), offsets, "{key}");
            }
        }
    }

    #[test]
    fn a_close_too_few_tells_nothing() {
        let one = Closed { inode: 9, kind: 1, protocol: 6, state: 7, device: 0 };
        assert_eq!(SocketEvents.solve(&vec![one], &[]), Clues::default());
    }
}
