//! The client of TCP.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockFlag, SockaddrStorage, bind, connect, getsockname, getsockopt, setsockopt, sockopt};

use super::super::arguments::Arguments;
use super::identity::{FlowReport, Identity, Subflows};
use super::resolver::look_up;
use super::shapes::MadeSocket;
use crate::helpers::sys::tcp_or_mptcp_socket;
use crate::helpers::traffic::reset;
use crate::helpers::wait::TIMEOUT;

/// A client's request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Request {
    /// The number of bytes that follow it.
    pub(super) up: u32,
    /// The number of bytes of the answer.
    pub(super) down: u32,
    /// What the server does next: one of the constants below.
    pub(super) then: u8,
}

/// The server waits for another request.
pub(super) const GO_ON: u8 = 0;
/// The server closes the connection.
pub(super) const CLOSE: u8 = 1;
/// The server resets the connection.
pub(super) const RESET: u8 = 2;

impl Request {
    pub(super) const LENGTH: usize = 9;

    pub(super) fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [self.then; Self::LENGTH];
        bytes[..4].copy_from_slice(&self.up.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.down.to_be_bytes());
        bytes
    }

    pub(super) fn from_bytes([a, b, c, d, e, f, g, h, then]: [u8; Self::LENGTH]) -> Self {
        Self { up: u32::from_be_bytes([a, b, c, d]), down: u32::from_be_bytes([e, f, g, h]), then }
    }
}

/// Connects `times` times, one after the other, each to one of `names` if there are any.
pub(super) fn talk(arguments: &Arguments, mut made: Option<MadeSocket>) -> Result<()> {
    let names: Vec<_> = arguments.text("names").into_iter().flat_map(|names| names.split(',')).collect();
    for number in 0..arguments.or("times", 1)? {
        let name = (!names.is_empty()).then(|| names[number % names.len()]);
        connection(arguments, made.take(), name)?;
    }
    Ok(())
}

fn connection(arguments: &Arguments, made: Option<MadeSocket>, name: Option<&str>) -> Result<()> {
    let mut to: SocketAddr = arguments.get("to")?;
    if let Some(name) = name {
        to.set_ip(look_up(arguments, name, to.is_ipv6())?);
    }
    let made = match made {
        Some(made) => made,
        None => MadeSocket { socket: socket(arguments, to, SockFlag::SOCK_CLOEXEC)?, maker: Identity::now() },
    };
    let mut report = FlowReport::begin(arguments, "tcp", "egress", &made.maker);
    report.set("name", name);
    let socket = made.socket;
    if let Some(port) = arguments.text("from") {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        let unspecified: SocketAddr = if is_v4(arguments, to) { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let from = SocketAddr::new(unspecified.ip(), port.parse()?);
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from)).with_context(|| format!("bind to {from}"))?;
    }
    let connected = connect_socket(arguments, &socket, to);
    let local = address_of(&socket)?;
    match connected {
        Ok(()) => {
            report.set_addresses(local, to);
            let mut subflows = Subflows::default();
            conversation(arguments, TcpStream::from(socket), &mut subflows)?;
            return report.print_with(&subflows);
        }
        Err(errno) if arguments.text("own").is_some() => {
            // After a failed connect the kernel has cleared the socket's address; a bound port stays.
            report.set_addresses(SocketAddr::new(arguments.get("own")?, arguments.get("from")?), to);
            report.set("outcome", format!("{errno:?}"));
        }
        Err(errno) => return Err(errno).with_context(|| format!("connect to {to}")),
    }
    report.print()
}

/// A TCP or MPTCP socket for connecting to an address.
pub(super) fn socket(arguments: &Arguments, to: SocketAddr, flags: SockFlag) -> Result<OwnedFd> {
    tcp_or_mptcp_socket(is_v4(arguments, to), arguments.text("proto") == Some("mptcp"), flags)
}

fn is_v4(arguments: &Arguments, to: SocketAddr) -> bool {
    to.is_ipv4() && arguments.text("mapped").is_none()
}

fn connect_socket(arguments: &Arguments, socket: &OwnedFd, to: SocketAddr) -> Result<(), Errno> {
    let to = match to {
        SocketAddr::V4(to) if !is_v4(arguments, to.into()) => {
            SocketAddr::new(to.ip().to_ipv6_mapped().into(), to.port())
        }
        to => to,
    };
    if arguments.text("connect") != Some("nonblocking") {
        return connect(socket.as_raw_fd(), &SockaddrStorage::from(to));
    }
    fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(errno),
    }
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::try_from(TIMEOUT).map_err(|_| Errno::EINVAL)?)?;
    fcntl(socket, FcntlArg::F_SETFL(OFlag::empty()))?;
    match getsockopt(socket, sockopt::SocketError)? {
        0 => Ok(()),
        error => Err(Errno::from_raw(error)),
    }
}

fn address_of(socket: &OwnedFd) -> Result<SocketAddr> {
    let name: SockaddrStorage = getsockname(socket.as_raw_fd()).context("get the socket's address")?;
    match (name.as_sockaddr_in(), name.as_sockaddr_in6()) {
        (Some(end), _) => Ok(SocketAddr::V4((*end).into())),
        (_, Some(end)) => Ok(SocketAddr::V6((*end).into())),
        _ => bail!("not an IP address: {name:?}"),
    }
}

fn conversation(arguments: &Arguments, mut stream: TcpStream, subflows: &mut Subflows) -> Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let (rounds, gap): (u32, u64) = (arguments.or("rounds", 1)?, arguments.or("gap", 0)?);
    let end = arguments.text("end").unwrap_or("close");
    // If the server is to end the connection, the last request asks it to.
    let rounds = if end.starts_with("server") { rounds.max(1) } else { rounds };
    for round in 1..=rounds {
        let then = match end {
            "server-close" if round == rounds => CLOSE,
            "server-reset" if round == rounds => RESET,
            _ => GO_ON,
        };
        let request = Request { up: arguments.or("up", 10)?, down: arguments.or("down", 10)?, then };
        stream.write_all(&request.to_bytes()).context("send a request")?;
        send(&mut stream, request.up.into()).context("send the data of a request")?;
        let received = receive(&mut stream, request.down.into());
        if then != RESET {
            received.context("receive the answer")?;
        }
        sleep(Duration::from_millis(gap));
        subflows.update(&stream)?;
    }
    match end {
        "close" => {}
        "reset" => reset(stream)?,
        "half" => {
            stream.shutdown(Shutdown::Write)?;
            stream.read_to_end(&mut Vec::new()).context("read to the end")?;
        }
        // A read reports the requested reset as an error.
        "server-close" | "server-reset" => stream.read_to_end(&mut Vec::new()).map(drop).unwrap_or_default(),
        end => bail!("unknown end {end}"),
    }
    Ok(())
}

/// Sends `length` bytes.
pub(super) fn send(stream: &mut TcpStream, length: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(b'x').take(length), stream).map(drop)
}

/// Receives `length` bytes.
pub(super) fn receive(stream: &mut TcpStream, length: u64) -> io::Result<()> {
    let mut wanted = Read::by_ref(stream).take(length);
    match io::copy(&mut wanted, &mut io::sink())? {
        all if all == length => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
