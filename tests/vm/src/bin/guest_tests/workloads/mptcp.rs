//! Clients and servers of MPTCP, or of TCP with an MPTCP peer.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockaddrStorage, bind, connect, listen};

use super::{TIMEOUT, address, print_line};
use crate::helpers::sys::stream_socket;

/// `IPPROTO_MPTCP` of `linux/in.h`.
pub(crate) const IPPROTO_MPTCP: i32 = 262;
/// Bytes of one write: more than a segment holds.
const WRITE: usize = 20_000;
/// The number of short exchanges at the beginning, while further subflows join.
const SHORT_EXCHANGES: usize = 20;
const SHORT_PAUSE: Duration = Duration::from_millis(50);

/// `mptcp-serve PROTOCOL ADDRESS COUNT MILLISECONDS`: prints its address, waits, accepts COUNT connections, and
/// echoes their data.
pub(super) fn serve(arguments: &[String]) -> Result<()> {
    let [protocol, rest @ ..] = arguments else { bail!("the protocol is missing") };
    let [_, count, pause] = rest else { bail!("an address, a count or a pause is missing") };
    let here = address(rest)?;
    let socket = new_socket(protocol, here)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(here)).context("bind")?;
    listen(&socket, Backlog::new(8)?).context("listen")?;
    let listener = TcpListener::from(socket);
    print_line(listener.local_addr()?)?;
    sleep(Duration::from_millis(pause.parse()?));
    for connection in listener.incoming().take(count.parse()?) {
        let mut connection = connection.context("accept")?;
        io::copy(&mut connection.try_clone()?, &mut connection).context("answer")?;
    }
    Ok(())
}

/// `mptcp-ask PROTOCOL ADDRESS COUNT`: connects, prints its address, exchanges short messages, then COUNT messages
/// that are larger than a segment.
pub(super) fn ask(arguments: &[String]) -> Result<()> {
    let (mut connection, rest) = connect_to_peer(arguments)?;
    let [_, count] = rest else { bail!("a count is missing") };
    for _ in 0..SHORT_EXCHANGES {
        exchange(&mut connection, b"question")?;
        sleep(SHORT_PAUSE);
    }
    for _ in 0..count.parse::<usize>()? {
        exchange(&mut connection, &[7; WRITE])?;
    }
    Ok(())
}

/// `mptcp-touch PROTOCOL ADDRESS`: connects, prints its address, and closes.
pub(super) fn touch(arguments: &[String]) -> Result<()> {
    connect_to_peer(arguments).map(drop)
}

fn connect_to_peer(arguments: &[String]) -> Result<(TcpStream, &[String])> {
    let [protocol, rest @ ..] = arguments else { bail!("the protocol is missing") };
    let there = address(rest)?;
    let socket = new_socket(protocol, there)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(there)).context("connect")?;
    let connection = TcpStream::from(socket);
    connection.set_read_timeout(Some(TIMEOUT))?;
    print_line(connection.local_addr()?)?;
    Ok((connection, rest))
}

/// A stream socket of a protocol, and of the family of an address.
fn new_socket(protocol: &str, address: SocketAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let protocol = match protocol {
        "mptcp" => IPPROTO_MPTCP,
        "tcp" => nix::libc::IPPROTO_TCP,
        other => bail!("unknown protocol {other}"),
    };
    stream_socket(family, protocol, SockFlag::SOCK_CLOEXEC)
}

fn exchange(connection: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    connection.write_all(bytes).context("send")?;
    connection.read_exact(&mut vec![0; bytes.len()]).context("receive")
}
