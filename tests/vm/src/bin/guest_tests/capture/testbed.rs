//! Sockets on the hosts of a network, and the flows that documents must report.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use super::link::{Family, Host, Link};
use super::wire::Transport;

/// How long a scenario waits for a packet.
const TIMEOUT: Duration = Duration::from_secs(30);

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// A flow that must be reported. Each socket of an exchange has its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExpectedFlow {
    pub(crate) side: Side,
    pub(crate) transport: Transport,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// The number of equal flows: more than one if several sockets receive a copy of each datagram.
    pub(crate) copies: usize,
}

/// The network and IP version of a scenario.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Testbed<'a> {
    pub(crate) link: &'a Link,
    pub(crate) family: Family,
}

/// Both ends of a TCP connection.
pub(crate) struct Pair {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    pub(crate) flows: Vec<ExpectedFlow>,
}

impl Testbed<'_> {
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

    /// A listener on a free port of the server's host.
    pub(crate) fn listen(&self) -> Result<TcpListener> {
        let address = SocketAddr::new(self.ip(Side::Server), 0);
        self.host(Side::Server).run(|| TcpListener::bind(address).context("listen"))
    }

    /// Connects from the client's host.
    pub(crate) fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        self.host(Side::Client).run(|| TcpStream::connect(to).context("connect"))
    }

    /// Connects from the client's host. `prepare` gets the socket before the connect.
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

    /// An established connection. The functions get the listener and the client's socket before the connect.
    pub(crate) fn pair_prepared(
        &self,
        prepare_listener: impl FnOnce(&TcpListener) -> Result<()>,
        prepare_client: impl FnOnce(&OwnedFd) -> Result<()> + Send,
    ) -> Result<Pair> {
        let listener = self.listen()?;
        prepare_listener(&listener)?;
        let client = self.connect_prepared(listener.local_addr()?, prepare_client)?;
        let (server, _) = listener.accept().context("accept")?;
        Pair::new(client, server)
    }

    /// A UDP socket on a free port.
    pub(crate) fn udp(&self, side: Side) -> Result<UdpSocket> {
        let address = SocketAddr::new(self.ip(side), 0);
        let socket = self.host(side).run(|| UdpSocket::bind(address).context("bind"))?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        Ok(socket)
    }
}

impl Pair {
    pub(crate) fn new(client: TcpStream, server: TcpStream) -> Result<Self> {
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
        }
        let flows = both(Transport::Tcp, canonical(client.local_addr()?), canonical(client.peer_addr()?));
        Ok(Self { client, server, flows })
    }
}

/// The client's and the server's flow.
pub(crate) fn both(transport: Transport, client: SocketAddr, server: SocketAddr) -> Vec<ExpectedFlow> {
    vec![of_client(transport, client, server), of_server(transport, client, server)]
}

/// The client's flow.
pub(crate) fn of_client(transport: Transport, client: SocketAddr, server: SocketAddr) -> ExpectedFlow {
    ExpectedFlow { side: Side::Client, transport, local: client, remote: server, copies: 1 }
}

/// The server's flow.
pub(crate) fn of_server(transport: Transport, client: SocketAddr, server: SocketAddr) -> ExpectedFlow {
    ExpectedFlow { side: Side::Server, transport, local: server, remote: client, copies: 1 }
}

/// Replaces an IPv4-mapped IPv6 address with the IPv4 address in it, which packets and documents have.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
