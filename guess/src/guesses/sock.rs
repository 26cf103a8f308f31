//! The IPv4 addresses, the ports, the family and the error of a `sock`.

use super::loopback::{self, Connection};
use crate::engine::{Call, Context, Evidence, Guess, MAX_WINDOW, Probe, WORD, Window};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockType};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

/// The `struct sock_common` at the beginning of every `sock` is smaller than this.
pub(super) const SOCK_COMMON: u32 = if WORD == 4 { 112 } else { 160 };
/// How many bytes are captured from the beginning of a `sock`: as many as one kprobe can capture. A `struct inet_sock` is
/// smaller.
const SOCK: u32 = MAX_WINDOW;

/// The probe that captures a `sock` when its socket is released. Several guesses use it.
pub(super) fn released_sock() -> Probe {
    Probe::on("inet_release").words("sk", "+{socket.sk}({sock})", 0..SOCK)
}

/// The keys that [`released_sock`] needs.
pub(super) fn released_sock_needs() -> Vec<String> {
    ["inet_release(sock)", "socket.sk"].map(str::to_owned).into()
}

/// What is known about a socket that was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ClosedSocket {
    local: Option<SocketAddrV4>,
    remote: Option<SocketAddrV4>,
    /// The pending error (`SO_ERROR`).
    error: i32,
    /// Whether it was connected. Then its `sock` has the port also in the `struct flowi` of the route, where it would be
    /// mistaken for `inet_sport`.
    routed: bool,
}

/// Closes several kinds of sockets with random addresses and ports, and finds their addresses and ports in the `sock`s.
/// Each of the functions below closes its sockets when it returns, in the order of the results.
#[derive(Debug)]
pub(super) struct Sock;

impl Guess for Sock {
    type Expected = Vec<ClosedSocket>;

    fn name(&self) -> &'static str {
        "sock"
    }

    fn needs(&self) -> Vec<String> {
        released_sock_needs()
    }

    fn gives(&self) -> Vec<String> {
        let common = ["skc_daddr", "skc_rcv_saddr", "skc_dport", "skc_num", "skc_family"];
        let common = common.map(|field| format!("sock_common.{field}"));
        common.into_iter().chain(["sock.sk_err", "inet_sock.inet_sport"].map(str::to_owned)).collect()
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        vec![released_sock()]
    }

    fn trigger(&mut self, context: &mut dyn Context) -> io::Result<Vec<ClosedSocket>> {
        let mut closed = vec![unbound()?, bound(context)?, connected(context)?, refused(context)?];
        closed.extend(reset(context)?);
        Ok(closed)
    }

    fn solve(&self, expected: &Vec<ClosedSocket>, calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        if expected.len() == calls.len() {
            for (closed, call) in expected.iter().zip(calls) {
                add_evidence(closed, call.view("sk"), &mut evidence);
            }
        }
        evidence
    }
}

fn v4(address: SocketAddr) -> Option<SocketAddrV4> {
    if let SocketAddr::V4(address) = address { Some(address) } else { None }
}

/// A socket without addresses.
fn unbound() -> io::Result<ClosedSocket> {
    loopback::socket(SockType::Datagram, AddressFamily::Inet, None)?;
    Ok(ClosedSocket::default())
}

/// A socket with a local address.
fn bound(context: &mut dyn Context) -> io::Result<ClosedSocket> {
    let socket = loopback::udp(loopback::ipv4_address(context.random()))?;
    Ok(ClosedSocket { local: v4(socket.local_addr()?), ..ClosedSocket::default() })
}

/// A UDP socket with both addresses.
fn connected(context: &mut dyn Context) -> io::Result<ClosedSocket> {
    let socket = loopback::udp(loopback::ipv4_address(context.random()))?;
    let mut remote = loopback::ipv4_address(context.random());
    remote.set_port(loopback::port(context.random()));
    socket.connect(remote)?;
    Ok(ClosedSocket { local: v4(socket.local_addr()?), remote: v4(remote), error: 0, routed: true })
}

/// A socket whose connection was refused, with the error still pending.
fn refused(context: &mut dyn Context) -> io::Result<ClosedSocket> {
    let local = loopback::ipv4_address(context.random());
    let socket = loopback::socket(SockType::Stream, AddressFamily::Inet, Some(local))?;
    loopback::set_nonblocking(&socket)?;
    let mut remote = loopback::ipv4_address(context.random());
    remote.set_port(loopback::port(context.random()));
    loopback::try_to_connect(&socket, remote)?;
    // A socket whose connection was refused loses its local address.
    Ok(ClosedSocket { error: Errno::ECONNREFUSED as i32, routed: true, ..ClosedSocket::default() })
}

/// Both ends of a connection that one of them has reset, and the listener.
fn reset(context: &mut dyn Context) -> io::Result<Vec<ClosedSocket>> {
    let Connection { client, server, listener } = Connection::open(context.random(), false)?;
    let (near, far) = (v4(client.local_addr()?), v4(server.local_addr()?));
    drop(server);
    drop(client);
    drop(listener);
    let server = ClosedSocket { local: far, remote: near, error: 0, routed: true };
    let client = ClosedSocket { local: near, remote: far, error: Errno::ECONNRESET as i32, routed: true };
    let listener = ClosedSocket { local: far, ..ClosedSocket::default() };
    Ok(vec![server, client, listener])
}

/// Finds what is known about a socket in its `sock`.
fn add_evidence(closed: &ClosedSocket, sk: &Window, evidence: &mut Evidence) {
    let (common, rest) = (sk.part(0, SOCK_COMMON), sk.part(SOCK_COMMON, SOCK));
    let address = |address: Ipv4Addr| common.find(&address.octets(), 4);
    evidence.one_of("sock_common.skc_family", common.find_u16(AddressFamily::Inet as u16));
    evidence.one_of("sock.sk_err", rest.find_u32(closed.error as u32));
    // A socket whose connection has failed may have lost its addresses and ports.
    if let Some(local) = closed.local.filter(|_| closed.error == 0) {
        evidence.one_of("sock_common.skc_rcv_saddr", address(*local.ip()));
        evidence.one_of("sock_common.skc_num", common.find_u16(local.port()));
        if !closed.routed {
            evidence.one_of("inet_sock.inet_sport", rest.find(&local.port().to_be_bytes(), 2));
        }
    }
    if let Some(remote) = closed.remote.filter(|_| closed.error == 0) {
        evidence.one_of("sock_common.skc_daddr", address(*remote.ip()));
        evidence.one_of("sock_common.skc_dport", common.find(&remote.port().to_be_bytes(), 2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sock(local: SocketAddrV4, remote: SocketAddrV4, error: i32) -> Call {
        let mut sk = Window::new(0, vec![0; SOCK as usize]);
        sk.write(0, &remote.ip().octets());
        sk.write(4, &local.ip().octets());
        sk.write(12, &remote.port().to_be_bytes());
        sk.write(14, &local.port().to_ne_bytes());
        sk.write(16, &2u16.to_ne_bytes());
        sk.write(284, &error.to_ne_bytes());
        sk.write(804, &local.port().to_be_bytes());
        sk.write(808, &local.ip().octets());
        Call::of("inet_release", vec![("sk", sk)])
    }

    #[test]
    fn addresses_and_ports_are_found_in_the_sock_common() {
        let [local, remote] = ["127.1.2.3:4660", "127.9.8.7:17185"].map(|address| address.parse().unwrap());
        let closed = ClosedSocket { local: Some(local), remote: Some(remote), ..ClosedSocket::default() };
        let evidence = Sock.solve(&vec![closed], &[sock(local, remote, 0)]);
        for (key, offset) in
            [("skc_daddr", 0), ("skc_rcv_saddr", 4), ("skc_dport", 12), ("skc_num", 14), ("skc_family", 16)]
        {
            assert_eq!(evidence.values(&format!("sock_common.{key}")), [offset], "{key}");
        }
        assert_eq!(evidence.values("inet_sock.inet_sport"), [804]);
    }

    #[test]
    fn a_socket_with_an_error_is_evidence_only_for_the_error() {
        let [local, remote] = ["127.1.2.3:4660", "127.9.8.7:17185"].map(|address| address.parse().unwrap());
        let closed = ClosedSocket { local: Some(local), remote: Some(remote), error: 104, routed: true };
        let evidence = Sock.solve(&vec![closed], &[sock(local, remote, 104)]);
        assert_eq!(evidence.values("sock.sk_err"), [284]);
        assert!(evidence.values("sock_common.skc_num").is_empty());
    }

    #[test]
    fn a_missing_call_gives_no_evidence() {
        assert_eq!(Sock.solve(&vec![ClosedSocket::default()], &[]), Evidence::default());
    }
}
