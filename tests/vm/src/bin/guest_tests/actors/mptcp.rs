//! Actors that talk MPTCP, or TCP with a peer that would talk MPTCP.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockaddrStorage, bind, connect, listen};

use super::{PATIENCE, address, say};
use crate::helpers::sys::stream_socket;

/// `IPPROTO_MPTCP` of `linux/in.h`.
pub(crate) const IPPROTO_MPTCP: i32 = 262;
/// How many bytes are written at once: more than one segment.
const WRITE: usize = 20_000;
/// How many short messages go each way first, while further subflows join.
const WORDS: usize = 20;
const BETWEEN_WORDS: Duration = Duration::from_millis(50);

/// `mptcp-serve PROTOCOL ADDRESS COUNT MILLISECONDS`: prints where it listens, waits, accepts COUNT connections, and
/// echoes what it receives.
pub(super) fn serve(arguments: &[String]) -> Result<()> {
    let [protocol, rest @ ..] = arguments else { bail!("the protocol is missing") };
    let [_, count, pause] = rest else { bail!("an address, a count or a pause is missing") };
    let there = address(rest)?;
    let socket = made(protocol, there)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(there)).context("bind")?;
    listen(&socket, Backlog::new(8)?).context("listen")?;
    let listener = TcpListener::from(socket);
    say(listener.local_addr()?)?;
    sleep(Duration::from_millis(pause.parse()?));
    for connection in listener.incoming().take(count.parse()?) {
        let mut connection = connection.context("accept")?;
        io::copy(&mut connection.try_clone()?, &mut connection).context("answer")?;
    }
    Ok(())
}

/// `mptcp-ask PROTOCOL ADDRESS COUNT`: connects, prints its own address, exchanges short messages, then COUNT times
/// more than fits into a segment.
pub(super) fn ask(arguments: &[String]) -> Result<()> {
    let (mut connection, rest) = connected(arguments)?;
    let [_, count] = rest else { bail!("a count is missing") };
    for _ in 0..WORDS {
        exchange(&mut connection, b"question")?;
        sleep(BETWEEN_WORDS);
    }
    for _ in 0..count.parse::<usize>()? {
        exchange(&mut connection, &[7; WRITE])?;
    }
    Ok(())
}

/// `mptcp-touch PROTOCOL ADDRESS`: connects, prints its own address, and closes.
pub(super) fn touch(arguments: &[String]) -> Result<()> {
    connected(arguments).map(drop)
}

fn connected(arguments: &[String]) -> Result<(TcpStream, &[String])> {
    let [protocol, rest @ ..] = arguments else { bail!("the protocol is missing") };
    let there = address(rest)?;
    let socket = made(protocol, there)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(there)).context("connect")?;
    let connection = TcpStream::from(socket);
    connection.set_read_timeout(Some(PATIENCE))?;
    say(connection.local_addr()?)?;
    Ok((connection, rest))
}

fn made(protocol: &str, there: SocketAddr) -> Result<OwnedFd> {
    let family = if there.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let protocol = match protocol {
        "mptcp" => IPPROTO_MPTCP,
        "tcp" => nix::libc::IPPROTO_TCP,
        other => bail!("no protocol: {other}"),
    };
    stream_socket(family, protocol, SockFlag::SOCK_CLOEXEC)
}

fn exchange(connection: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    connection.write_all(bytes).context("send")?;
    connection.read_exact(&mut vec![0; bytes.len()]).context("receive")
}
