//! Sockets that communicate over loopback, with addresses and ports that are not in use.

use crate::engine::Random;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, setsockopt, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// How long a packet may take. Over loopback it arrives at once or never.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Ports that are most likely not in use.
const PORTS: std::ops::RangeInclusive<u32> = 10_000..=60_000;

/// An address of this host with port 0: a random IPv4 address, or `::1`.
pub(super) fn address(random: &mut Random, ipv6: bool) -> SocketAddr {
    if ipv6 { (Ipv6Addr::LOCALHOST, 0).into() } else { ipv4_address(random) }
}

/// A random IPv4 address of this host with port 0.
pub(super) fn ipv4_address(random: &mut Random) -> SocketAddr {
    (random.loopback_address(), 0).into()
}

/// A port that is most likely not in use.
pub(super) fn port(random: &mut Random) -> u16 {
    random.within(PORTS) as u16
}

/// A UDP socket with a timeout.
pub(super) fn udp(local: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(local)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

/// A socket with timeouts, bound to `local` if that is given.
pub(super) fn socket(kind: SockType, family: AddressFamily, local: Option<SocketAddr>) -> io::Result<OwnedFd> {
    let socket = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    let timeout = TimeVal::microseconds(TIMEOUT.as_micros() as i64);
    setsockopt(&socket, sockopt::SendTimeout, &timeout)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
    if let Some(local) = local {
        bind(&socket, local)?;
    }
    Ok(socket)
}

/// Binds a socket.
pub(super) fn bind(socket: impl AsFd, local: SocketAddr) -> nix::Result<()> {
    socket::bind(socket.as_fd().as_raw_fd(), &SockaddrStorage::from(local))
}

/// Connects a socket.
pub(super) fn connect(socket: impl AsFd, remote: SocketAddr) -> nix::Result<()> {
    socket::connect(socket.as_fd().as_raw_fd(), &SockaddrStorage::from(remote))
}

/// Makes a socket non-blocking.
pub(super) fn set_nonblocking(socket: impl AsFd) -> nix::Result<()> {
    fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

/// Starts to connect a non-blocking socket to an address without a listener. The error stays pending.
pub(super) fn try_to_connect(socket: impl AsFd, remote: SocketAddr) -> io::Result<()> {
    match connect(socket, remote) {
        Err(Errno::EINPROGRESS) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => Err(io::Error::other("a port that should be free is in use")),
    }
}

/// The address that a socket is bound to.
pub(super) fn local(socket: impl AsFd) -> io::Result<SocketAddr> {
    let address: SockaddrStorage = socket::getsockname(socket.as_fd().as_raw_fd())?;
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
    let v6 = address.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into()));
    v4.or(v6).ok_or_else(|| io::Error::other("not an IP socket"))
}

/// Makes closing a TCP socket reset its connection, so that no connection in TIME_WAIT is left.
pub(super) fn reset_on_close(socket: impl AsFd) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    Ok(setsockopt(&socket, sockopt::Linger, &linger)?)
}

/// The family of an address.
pub(super) fn family(address: SocketAddr) -> AddressFamily {
    if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

/// Both ends of a TCP connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
    pub(super) listener: TcpListener,
}

impl Connection {
    /// Connects two addresses of this host.
    pub(super) fn open(random: &mut Random, ipv6: bool) -> io::Result<Self> {
        let (near, far) = (address(random, ipv6), address(random, ipv6));
        let listener = TcpListener::bind(far)?;
        let client = socket(SockType::Stream, family(near), Some(near))?;
        reset_on_close(&client)?;
        connect(&client, listener.local_addr()?).map_err(timed_out)?;
        let client = TcpStream::from(client);
        let (server, _) = listener.accept()?;
        reset_on_close(&server)?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(TIMEOUT))?;
        }
        Ok(Self { client, server, listener })
    }

    /// Sends `times` messages from the client to the server, each in a segment of its own.
    pub(super) fn ask(&mut self, times: u32) -> io::Result<()> {
        send(&mut self.client, &mut self.server, times)
    }

    /// Sends `times` messages from the server to the client.
    pub(super) fn reply(&mut self, times: u32) -> io::Result<()> {
        send(&mut self.server, &mut self.client, times)
    }
}

fn send(from: &mut TcpStream, to: &mut TcpStream, times: u32) -> io::Result<()> {
    let mut message = *b"socktrail";
    for _ in 0..times {
        from.write_all(&message)?;
        to.read_exact(&mut message)?;
    }
    Ok(())
}

/// The error for a socket whose timeout is over.
fn timed_out(error: Errno) -> io::Error {
    match error {
        Errno::EINPROGRESS | Errno::EAGAIN => {
            io::Error::new(io::ErrorKind::TimedOut, format!("nothing arrived over loopback within {TIMEOUT:?}"))
        }
        error => error.into(),
    }
}

/// Sends a datagram of `length` bytes from one socket to the other and waits until it arrives.
pub(super) fn datagram(from: &UdpSocket, to: &UdpSocket, length: usize) -> io::Result<()> {
    from.send_to(&vec![0xa5; length], to.local_addr()?)?;
    receive(to, length)
}

/// Waits for a datagram of `length` bytes.
pub(super) fn receive(at: &UdpSocket, length: usize) -> io::Result<()> {
    let received = at
        .recv(&mut vec![0; length + 1])
        .map_err(|error| if error.kind() == io::ErrorKind::WouldBlock { timed_out(Errno::EAGAIN) } else { error })?;
    if received == length { Ok(()) } else { Err(io::Error::other("an unexpected datagram arrived")) }
}

/// A raw socket that sends whole IP packets to `remote`. It needs `CAP_NET_RAW`.
pub(super) fn raw(remote: IpAddr) -> io::Result<OwnedFd> {
    // A raw socket would take the port for a protocol number.
    let remote = SocketAddr::new(remote, 0);
    let socket = socket::socket(family(remote), SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    connect(&socket, remote)?;
    Ok(socket)
}

/// Sends a packet through a raw socket.
pub(super) fn send_packet(socket: impl AsFd, packet: &[u8]) -> io::Result<()> {
    let sent = socket::send(socket.as_fd().as_raw_fd(), packet, MsgFlags::empty())?;
    if sent == packet.len() { Ok(()) } else { Err(io::Error::other("only a part of a packet was sent")) }
}

/// Why this host cannot send itself packets, if it cannot.
pub(crate) fn no_loopback() -> Option<io::Error> {
    let mut random = Random::new();
    let [one, other] = [(); 2].map(|()| udp(address(&mut random, false)));
    one.and_then(|one| datagram(&one, &other?, 1)).err()
}

/// Why this host has no IPv6, if it has none.
pub(crate) fn no_ipv6() -> Option<String> {
    let error = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).err()?;
    Some(format!("this host has no IPv6: binding to ::1: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_connection_exchange_messages() {
        let mut random = Random::new();
        let mut connection = Connection::open(&mut random, false).unwrap();
        connection.ask(3).unwrap();
        connection.reply(2).unwrap();
        let (near, far) = (connection.client.local_addr().unwrap(), connection.server.local_addr().unwrap());
        assert_eq!(connection.client.peer_addr().unwrap(), far);
        assert!(near.ip().is_loopback() && near.ip() != far.ip());
    }

    #[test]
    fn a_datagram_arrives() {
        let mut random = Random::new();
        let [from, to] = [(); 2].map(|()| udp(address(&mut random, false)).unwrap());
        datagram(&from, &to, 100).unwrap();
    }
}
