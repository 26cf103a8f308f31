//! What an IPv4 `sock` holds: addresses, ports, family, error.

use super::talk::{self, Connection};
use crate::engine::{Clues, Guess, Probe, Scene, Shot, WINDOW, WORD, Window};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockType};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

/// `struct sock_common`, which every `sock` begins with, is smaller than this.
pub(super) const COMMON: u32 = if WORD == 4 { 112 } else { 160 };
/// As much of a `sock` as one kprobe can show holds what all sorts of `inet_sock` share.
const INET: u32 = WINDOW;

/// Looks at a whole `sock` when its socket is released. Several guesses look through this one.
pub(super) fn window() -> Probe {
    Probe::on("inet_release").words("sk", "+{socket.sk}({sock})", 0..INET)
}

/// What [`window`] takes.
pub(super) fn window_needs() -> Vec<String> {
    ["inet_release(sock)", "socket.sk"].map(str::to_owned).into()
}

/// What is known of a socket that was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Closed {
    local: Option<SocketAddrV4>,
    remote: Option<SocketAddrV4>,
    /// The error that waits to be told.
    error: i32,
    /// Whether the kernel may keep its port in other places too, such as a flow that it has routed.
    routed: bool,
}

/// Closes sockets of all sorts, with random addresses and ports, and finds those in what they leave.
#[derive(Debug)]
pub(super) struct Sock;

impl Guess for Sock {
    type Sent = Vec<Closed>;

    fn name(&self) -> &'static str {
        "sock"
    }

    fn needs(&self) -> Vec<String> {
        window_needs()
    }

    fn gives(&self) -> Vec<String> {
        let common = ["skc_daddr", "skc_rcv_saddr", "skc_dport", "skc_num", "skc_family"];
        let common = common.map(|field| format!("sock_common.{field}"));
        common.into_iter().chain(["sock.sk_err", "inet_sock.inet_sport"].map(str::to_owned)).collect()
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        vec![window()]
    }

    fn trigger(&mut self, stage: &mut dyn Scene) -> io::Result<Vec<Closed>> {
        let mut closed = vec![unbound()?, bound(stage)?, connected(stage)?, refused(stage)?];
        closed.extend(reset(stage)?);
        Ok(closed)
    }

    fn solve(&self, sent: &Vec<Closed>, shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        if sent.len() == shots.len() {
            for (closed, shot) in sent.iter().zip(shots) {
                find(closed, shot.view("sk"), &mut clues);
            }
        }
        clues
    }
}

fn v4(address: SocketAddr) -> Option<SocketAddrV4> {
    if let SocketAddr::V4(address) = address { Some(address) } else { None }
}

fn unbound() -> io::Result<Closed> {
    talk::socket(SockType::Datagram, AddressFamily::Inet, None)?;
    Ok(Closed::default())
}

fn bound(stage: &mut dyn Scene) -> io::Result<Closed> {
    let socket = talk::udp(talk::address(stage.random(), false))?;
    Ok(Closed { local: v4(socket.local_addr()?), ..Closed::default() })
}

fn connected(stage: &mut dyn Scene) -> io::Result<Closed> {
    let socket = talk::udp(talk::address(stage.random(), false))?;
    let mut remote = talk::address(stage.random(), false);
    remote.set_port(talk::port(stage.random()));
    socket.connect(remote)?;
    Ok(Closed { local: v4(socket.local_addr()?), remote: v4(remote), error: 0, routed: true })
}

/// A connection that was refused, but nobody has asked how it went.
fn refused(stage: &mut dyn Scene) -> io::Result<Closed> {
    let local = talk::address(stage.random(), false);
    let socket = talk::socket(SockType::Stream, AddressFamily::Inet, Some(local))?;
    talk::do_not_wait(&socket)?;
    let mut remote = talk::address(stage.random(), false);
    remote.set_port(talk::port(stage.random()));
    talk::try_to_connect(&socket, remote)?;
    // Being refused it forgets its own address.
    Ok(Closed { error: Errno::ECONNREFUSED as i32, routed: true, ..Closed::default() })
}

/// A connection that the other end has reset, and its listener.
fn reset(stage: &mut dyn Scene) -> io::Result<Vec<Closed>> {
    let Connection { client, server, listener } = Connection::open(stage.random(), false)?;
    let (near, far) = (v4(client.local_addr()?), v4(server.local_addr()?));
    drop(server);
    drop(client);
    drop(listener);
    let server = Closed { local: far, remote: near, error: 0, routed: true };
    let client = Closed { local: near, remote: far, error: Errno::ECONNRESET as i32, routed: true };
    let listener = Closed { local: far, ..Closed::default() };
    Ok(vec![server, client, listener])
}

/// What a `sock` shows, given what is known of its socket.
fn find(closed: &Closed, sk: &Window, clues: &mut Clues) {
    let (common, rest) = (sk.part(0, COMMON), sk.part(COMMON, INET));
    let address = |address: Ipv4Addr| common.find(&address.octets(), 4);
    clues.allow("sock_common.skc_family", common.find_u16(AddressFamily::Inet as u16));
    clues.allow("sock.sk_err", rest.find_u32(closed.error as u32));
    if let Some(local) = closed.local.filter(|_| closed.error == 0) {
        clues.allow("sock_common.skc_rcv_saddr", address(*local.ip()));
        clues.allow("sock_common.skc_num", common.find_u16(local.port()));
        if !closed.routed {
            clues.allow("inet_sock.inet_sport", rest.find(&local.port().to_be_bytes(), 2));
        }
    }
    if let Some(remote) = closed.remote.filter(|_| closed.error == 0) {
        clues.allow("sock_common.skc_daddr", address(*remote.ip()));
        clues.allow("sock_common.skc_dport", common.find(&remote.port().to_be_bytes(), 2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sock(local: SocketAddrV4, remote: SocketAddrV4, error: i32) -> Shot {
        let mut sk = Window::new(0, vec![0; INET as usize]);
        sk.write(0, &remote.ip().octets());
        sk.write(4, &local.ip().octets());
        sk.write(12, &remote.port().to_be_bytes());
        sk.write(14, &local.port().to_ne_bytes());
        sk.write(16, &2u16.to_ne_bytes());
        sk.write(284, &error.to_ne_bytes());
        sk.write(804, &local.port().to_be_bytes());
        sk.write(808, &local.ip().octets());
        Shot::of("inet_release", vec![("sk", sk)])
    }

    #[test]
    fn addresses_and_ports_are_found_in_the_common_part() {
        let [local, remote] = ["127.1.2.3:4660", "127.9.8.7:17185"].map(|address| address.parse().unwrap());
        let closed = Closed { local: Some(local), remote: Some(remote), ..Closed::default() };
        let clues = Sock.solve(&vec![closed], &[sock(local, remote, 0)]);
        for (key, offset) in
            [("skc_daddr", 0), ("skc_rcv_saddr", 4), ("skc_dport", 12), ("skc_num", 14), ("skc_family", 16)]
        {
            assert_eq!(clues.of(&format!("sock_common.{key}")), [offset], "{key}");
        }
        assert_eq!(clues.of("inet_sock.inet_sport"), [804]);
    }

    #[test]
    fn an_error_tells_its_own_place_only() {
        let [local, remote] = ["127.1.2.3:4660", "127.9.8.7:17185"].map(|address| address.parse().unwrap());
        let closed = Closed { local: Some(local), remote: Some(remote), error: 104, routed: true };
        let clues = Sock.solve(&vec![closed], &[sock(local, remote, 104)]);
        assert_eq!(clues.of("sock.sk_err"), [284]);
        assert!(clues.of("sock_common.skc_num").is_empty());
    }

    #[test]
    fn a_close_too_few_tells_nothing() {
        assert_eq!(Sock.solve(&vec![Closed::default()], &[]), Clues::default());
    }
}
