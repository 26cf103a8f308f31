//! What scenarios have in common: sockets on both hosts, and saying which flows there should be.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use super::link::{Family, Host, Link};
use super::wire::Transport;

/// What a scenario waits for at most.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// A flow that a host's socket has, and that must be reported.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) side: Side,
    pub(crate) transport: Transport,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// How many sockets have it: more than one when each gets a copy.
    pub(crate) copies: usize,
}

/// Where a scenario plays.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stage<'a> {
    pub(crate) link: &'a Link,
    pub(crate) family: Family,
}

/// A TCP connection.
pub(crate) struct Pair {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    pub(crate) flows: Vec<Expected>,
}

impl Stage<'_> {
    pub(crate) fn host(&self, side: Side) -> &Host {
        match side {
            Side::Client => &self.link.client,
            Side::Server => &self.link.server,
        }
    }

    /// A host's address.
    pub(crate) fn ip(&self, side: Side) -> IpAddr {
        self.host(side).ip(self.family)
    }

    /// A listener on a port of its own on the server's host.
    pub(crate) fn listen(&self) -> Result<TcpListener> {
        let address = SocketAddr::new(self.ip(Side::Server), 0);
        self.host(Side::Server).run(|| TcpListener::bind(address).context("listen"))
    }

    /// Connects from the client's host.
    pub(crate) fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        self.host(Side::Client).run(|| TcpStream::connect(to).context("connect"))
    }

    /// Connects from the client's host with a socket that is prepared first.
    pub(crate) fn connect_prepared(
        &self,
        to: SocketAddr,
        prepare: impl FnOnce(&OwnedFd) -> Result<()> + Send,
    ) -> Result<TcpStream> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        self.host(Side::Client).run(|| {
            let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            prepare(&socket)?;
            connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).context("connect")?;
            Ok(socket.into())
        })
    }

    /// An established connection.
    pub(crate) fn pair(&self) -> Result<Pair> {
        self.pair_prepared(|_| Ok(()), |_| Ok(()))
    }

    /// An established connection, with something done to listener and client before they meet.
    pub(crate) fn pair_prepared(
        &self,
        listening: impl FnOnce(&TcpListener) -> Result<()>,
        connecting: impl FnOnce(&OwnedFd) -> Result<()> + Send,
    ) -> Result<Pair> {
        let listener = self.listen()?;
        listening(&listener)?;
        let client = self.connect_prepared(listener.local_addr()?, connecting)?;
        let (server, _) = listener.accept().context("accept")?;
        Pair::new(client, server)
    }

    /// A datagram socket on a port of its own.
    pub(crate) fn udp(&self, side: Side) -> Result<UdpSocket> {
        let address = SocketAddr::new(self.ip(side), 0);
        let socket = self.host(side).run(|| UdpSocket::bind(address).context("bind"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }
}

impl Pair {
    pub(crate) fn new(client: TcpStream, server: TcpStream) -> Result<Self> {
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
        }
        let flows = both(Transport::Tcp, canonical(client.local_addr()?), canonical(client.peer_addr()?));
        Ok(Self { client, server, flows })
    }
}

/// The flows of both ends of a conversation.
pub(crate) fn both(transport: Transport, client: SocketAddr, server: SocketAddr) -> Vec<Expected> {
    vec![of_client(transport, client, server), of_server(transport, client, server)]
}

/// The client's flow.
pub(crate) fn of_client(transport: Transport, client: SocketAddr, server: SocketAddr) -> Expected {
    Expected { side: Side::Client, transport, local: client, remote: server, copies: 1 }
}

/// The server's flow.
pub(crate) fn of_server(transport: Transport, client: SocketAddr, server: SocketAddr) -> Expected {
    Expected { side: Side::Server, transport, local: server, remote: client, copies: 1 }
}

/// An IPv4 address in IPv6's clothes is an IPv4 address on the wire.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
