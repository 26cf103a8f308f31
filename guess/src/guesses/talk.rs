//! Sockets that talk to each other over loopback, with addresses and ports that nobody else has.

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

/// How long a packet may take. Over loopback it is there at once, or never.
const PATIENCE: Duration = Duration::from_millis(500);

/// The first port that is given to nobody by name, up to the last.
const PORTS: std::ops::RangeInclusive<u32> = 10_000..=60_000;

/// An address of this host with no port yet: a random one of IPv4, the only one of IPv6.
pub(super) fn address(random: &mut Random, ipv6: bool) -> SocketAddr {
    if ipv6 { (Ipv6Addr::LOCALHOST, 0).into() } else { (random.loopback(), 0).into() }
}

/// A port that most likely nobody listens on.
pub(super) fn port(random: &mut Random) -> u16 {
    random.within(PORTS) as u16
}

/// A UDP socket that does not wait forever.
pub(super) fn udp(local: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(local)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// A socket of either transport, bound to `local` if one is given.
pub(super) fn socket(kind: SockType, family: AddressFamily, local: Option<SocketAddr>) -> io::Result<OwnedFd> {
    let socket = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    let patience = TimeVal::microseconds(PATIENCE.as_micros() as i64);
    setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
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

/// Makes a socket give up what it would have to wait for.
pub(super) fn do_not_wait(socket: impl AsFd) -> nix::Result<()> {
    fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

/// Sends the first packet of a connection to where nobody listens, and does not ask what came of it.
pub(super) fn try_to_connect(socket: impl AsFd, remote: SocketAddr) -> io::Result<()> {
    match connect(socket, remote) {
        Err(Errno::EINPROGRESS) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => Err(io::Error::other("a port is taken that should be free")),
    }
}

/// The address that a socket is bound to.
pub(super) fn local(socket: impl AsFd) -> io::Result<SocketAddr> {
    let address: SockaddrStorage = socket::getsockname(socket.as_fd().as_raw_fd())?;
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
    let v6 = address.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into()));
    v4.or(v6).ok_or_else(|| io::Error::other("not an IP socket"))
}

/// Makes closing a TCP socket reset its connection, so that nothing is left of it.
pub(super) fn reset_on_close(socket: impl AsFd) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    Ok(setsockopt(&socket, sockopt::Linger, &linger)?)
}

/// The family of an address.
pub(super) fn family(of: SocketAddr) -> AddressFamily {
    if of.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

/// A TCP connection of this thread with itself.
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
        connect(&client, listener.local_addr()?).map_err(too_late)?;
        let client = TcpStream::from(client);
        let (server, _) = listener.accept()?;
        reset_on_close(&server)?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(PATIENCE))?;
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

/// What it means when a socket has used up the time that it was given.
fn too_late(error: Errno) -> io::Error {
    match error {
        Errno::EINPROGRESS | Errno::EAGAIN => {
            io::Error::new(io::ErrorKind::TimedOut, format!("nothing came over loopback within {PATIENCE:?}"))
        }
        error => error.into(),
    }
}

/// Sends a datagram of `length` bytes from one socket to the other and waits until it is there.
pub(super) fn datagram(from: &UdpSocket, to: &UdpSocket, length: usize) -> io::Result<()> {
    from.send_to(&vec![0xa5; length], to.local_addr()?)?;
    receive(to, length)
}

/// Waits until a datagram of `length` bytes is there.
pub(super) fn receive(at: &UdpSocket, length: usize) -> io::Result<()> {
    let received = at
        .recv(&mut vec![0; length + 1])
        .map_err(|error| if error.kind() == io::ErrorKind::WouldBlock { too_late(Errno::EAGAIN) } else { error })?;
    if received == length { Ok(()) } else { Err(io::Error::other("another datagram came")) }
}

/// A socket that sends packets to `remote` as they are, with the IP headers that they come with. It takes CAP_NET_RAW.
pub(super) fn raw(remote: IpAddr) -> io::Result<OwnedFd> {
    // The port would be taken for another protocol.
    let remote = SocketAddr::new(remote, 0);
    let socket = socket::socket(family(remote), SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    connect(&socket, remote)?;
    Ok(socket)
}

/// Sends a packet through such a socket.
pub(super) fn packet(through: impl AsFd, packet: &[u8]) -> io::Result<()> {
    let sent = socket::send(through.as_fd().as_raw_fd(), packet, MsgFlags::empty())?;
    if sent == packet.len() { Ok(()) } else { Err(io::Error::other("a packet was cut short")) }
}

/// Why this host cannot talk to itself, if it cannot.
pub(crate) fn no_loopback() -> Option<io::Error> {
    let mut random = Random::new();
    let [one, other] = [(); 2].map(|()| udp(address(&mut random, false)));
    one.and_then(|one| datagram(&one, &other?, 1)).err()
}

/// Why this host cannot talk IPv6 to itself, if it cannot.
pub(crate) fn no_ipv6() -> Option<String> {
    let error = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).err()?;
    Some(format!("this host has no IPv6: binding to ::1: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_talks_to_itself() {
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
