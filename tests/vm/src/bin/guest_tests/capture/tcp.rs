//! TCP scenarios.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{MsgFlags, SockaddrStorage, bind, send, setsockopt, sockopt};

use super::link::Family;
use super::testbed::{ExpectedFlow, Pair, Side, Testbed, both, canonical, of_client};
use super::wire::Transport;
use crate::helpers::sys::set_option;
use crate::helpers::traffic::reset;

/// Bytes of bulk transfers.
const BULK: usize = 2 << 20;
/// Bytes of smaller transfers: enough packets for a faulty network to lose some.
const SOME: usize = 400_000;
/// Bytes of a file.
const FILE: usize = 1 << 20;

pub(crate) fn nothing_but_a_handshake(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let pair = testbed.pair()?;
    close_by_client(pair)
}

pub(crate) fn client_closes_first(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let mut pair = testbed.pair()?;
    exchange(&mut pair.client, &mut pair.server)?;
    close_by_client(pair)
}

pub(crate) fn server_closes_first(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let mut pair = testbed.pair()?;
    exchange(&mut pair.client, &mut pair.server)?;
    let Pair { mut client, server, flows } = pair;
    drop(server);
    read_to_end(&mut client, 0)?;
    Ok(flows)
}

pub(crate) fn both_close_at_once(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let mut pair = testbed.pair()?;
    exchange(&mut pair.client, &mut pair.server)?;
    let Pair { client, server, flows } = pair;
    let other = thread::spawn(move || drop(server));
    drop(client);
    joined(other)?;
    Ok(flows)
}

pub(crate) fn bulk_to_server(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    to_server(testbed, BULK)
}

pub(crate) fn bulk_to_client(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    to_client(testbed, BULK)
}

pub(crate) fn bulk_both_ways(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    both_ways(testbed, BULK)
}

pub(crate) fn some_to_server(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    to_server(testbed, SOME)
}

pub(crate) fn some_to_client(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    to_client(testbed, SOME)
}

pub(crate) fn some_both_ways(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    both_ways(testbed, SOME)
}

fn to_server(testbed: &Testbed<'_>, length: usize) -> Result<Vec<ExpectedFlow>> {
    let Pair { client, mut server, flows } = testbed.pair()?;
    let sender = spawn_sender(client, length);
    read_to_end(&mut server, length)?;
    joined(sender)??;
    Ok(flows)
}

fn to_client(testbed: &Testbed<'_>, length: usize) -> Result<Vec<ExpectedFlow>> {
    let Pair { mut client, server, flows } = testbed.pair()?;
    let sender = spawn_sender(server, length);
    read_to_end(&mut client, length)?;
    joined(sender)??;
    Ok(flows)
}

fn both_ways(testbed: &Testbed<'_>, length: usize) -> Result<Vec<ExpectedFlow>> {
    let Pair { mut client, mut server, flows } = testbed.pair()?;
    let senders = [spawn_sender(client.try_clone()?, length), spawn_sender(server.try_clone()?, length)];
    let other = thread::spawn(move || read_to_end(&mut server, length));
    read_to_end(&mut client, length)?;
    joined(other)??;
    for sender in senders {
        joined(sender)??;
    }
    Ok(flows)
}

/// Exchanges, then many messages in one direction, each in its own packet.
pub(crate) fn small_messages(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    const SINGLE: usize = 300;
    let mut pair = testbed.pair()?;
    pair.client.set_nodelay(true)?;
    for _ in 0..50 {
        exchange(&mut pair.client, &mut pair.server)?;
    }
    let Pair { mut client, mut server, flows } = pair;
    let reader = thread::spawn(move || read_to_end(&mut server, SINGLE));
    for _ in 0..SINGLE {
        client.write_all(b"x")?;
    }
    client.shutdown(Shutdown::Write)?;
    joined(reader)??;
    Ok(flows)
}

pub(crate) fn half_close(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let Pair { mut client, mut server, flows } = testbed.pair()?;
    client.write_all(b"all I have to say")?;
    client.shutdown(Shutdown::Write)?;
    read_to_end(&mut server, 17)?;
    let sender = spawn_sender(server, 100_000);
    read_to_end(&mut client, 100_000)?;
    joined(sender)??;
    Ok(flows)
}

pub(crate) fn reset_by_client(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let mut pair = testbed.pair()?;
    exchange(&mut pair.client, &mut pair.server)?;
    reset(pair.client)?;
    let error = pair.server.read(&mut [0]).err().and_then(|error| error.raw_os_error());
    ensure!(error == Some(nix::libc::ECONNRESET), "not reset, but {error:?}");
    Ok(pair.flows)
}

pub(crate) fn reset_by_server(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let mut pair = testbed.pair()?;
    exchange(&mut pair.client, &mut pair.server)?;
    reset(pair.server)?;
    let error = pair.client.read(&mut [0]).err().and_then(|error| error.raw_os_error());
    ensure!(error == Some(nix::libc::ECONNRESET), "not reset, but {error:?}");
    Ok(pair.flows)
}

/// A close with unread data: the kernel resets the connection.
pub(crate) fn closed_unread(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let Pair { mut client, mut server, flows } = testbed.pair()?;
    client.write_all(&[0; 5000])?;
    server.read_exact(&mut [0; 1])?;
    drop(server);
    let error = client.read(&mut [0]).err().and_then(|error| error.raw_os_error());
    ensure!(error == Some(nix::libc::ECONNRESET), "not reset, but {error:?}");
    Ok(flows)
}

/// A connect to a closed port: only the client has a flow.
pub(crate) fn refused(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let listener = testbed.listen()?;
    let there = listener.local_addr()?;
    drop(listener);
    let mut here = None;
    let result = testbed.connect_prepared(there, |socket| {
        let any_port = SocketAddr::new(testbed.ip(Side::Client), 0);
        bind(socket.as_raw_fd(), &SockaddrStorage::from(any_port)).context("bind")?;
        here = Some(TcpStream::from(socket.try_clone()?).local_addr()?);
        Ok(())
    });
    ensure!(result.is_err(), "something listens at {there}");
    Ok(vec![of_client(Transport::Tcp, here.context("the client was not bound")?, there)])
}

/// A connection that is never accepted.
pub(crate) fn never_accepted(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let listener = testbed.listen()?;
    let mut client = testbed.connect(listener.local_addr()?)?;
    client.write_all(b"is anybody there?")?;
    let flows = both(Transport::Tcp, client.local_addr()?, client.peer_addr()?);
    sleep(Duration::from_millis(100));
    drop(listener);
    ensure!(client.read(&mut [0]).is_err(), "something answered");
    Ok(flows)
}

/// The reader sleeps, so that the sender sends window probes.
pub(crate) fn zero_window(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    const MUCH: usize = 300_000;
    let small = |listener: &TcpListener| Ok(setsockopt(listener, sockopt::RcvBuf, &4096)?);
    let Pair { client, mut server, flows } = testbed.pair_prepared(small, |_| Ok(()))?;
    let sender = spawn_sender(client, MUCH);
    sleep(Duration::from_millis(1200));
    read_to_end(&mut server, MUCH)?;
    joined(sender)??;
    Ok(flows)
}

/// An idle connection with keepalive probes.
pub(crate) fn keepalive(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let mut pair = testbed.pair()?;
    setsockopt(&pair.client, sockopt::KeepAlive, &true)?;
    setsockopt(&pair.client, sockopt::TcpKeepIdle, &1)?;
    setsockopt(&pair.client, sockopt::TcpKeepInterval, &1)?;
    exchange(&mut pair.client, &mut pair.server)?;
    sleep(Duration::from_millis(2300));
    close_by_client(pair)
}

pub(crate) fn urgent_data(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let mut pair = testbed.pair()?;
    send(pair.client.as_raw_fd(), b"!", MsgFlags::MSG_OOB)?;
    exchange(&mut pair.client, &mut pair.server)?;
    close_by_client(pair)
}

pub(crate) fn sent_file(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let Pair { client, server, flows } = testbed.pair()?;
    let reader = spawn_reader(server, FILE);
    let file = file()?;
    let mut left = FILE;
    while left > 0 {
        left -= sendfile(&client, &file, None, left).context("sendfile")?;
    }
    drop(client);
    joined(reader)??;
    Ok(flows)
}

pub(crate) fn spliced(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let Pair { client, server, flows } = testbed.pair()?;
    let reader = spawn_reader(server, FILE);
    let file = file()?;
    let (out, into) = nix::unistd::pipe()?;
    let mut left = FILE;
    while left > 0 {
        let mut piece = splice(&file, None, &into, None, left.min(65_536), SpliceFFlags::empty()).context("splice")?;
        left -= piece;
        while piece > 0 {
            piece -= splice(&out, None, &client, None, piece, SpliceFFlags::SPLICE_F_MORE).context("splice")?;
        }
    }
    drop(client);
    joined(reader)??;
    Ok(flows)
}

pub(crate) fn without_copies(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let Pair { client, server, flows } = testbed.pair()?;
    set_option(&client, nix::libc::SOL_SOCKET, nix::libc::SO_ZEROCOPY, &1_i32.to_ne_bytes())?;
    let reader = spawn_reader(server, FILE);
    let data = vec![7; FILE];
    let mut sent = 0;
    while sent < FILE {
        let piece = &data[sent..FILE.min(sent + 65_536)];
        match send(client.as_raw_fd(), piece, MsgFlags::from_bits_retain(nix::libc::MSG_ZEROCOPY)) {
            Ok(length) => sent += length,
            Err(Errno::ENOBUFS) => sleep(Duration::from_millis(5)),
            Err(error) => return Err(error).context("send without a copy"),
        }
    }
    client.shutdown(Shutdown::Write)?;
    joined(reader)??;
    Ok(flows)
}

/// IP options (IPv4) or an extension header (IPv6) in each packet of the client, some of them large.
pub(crate) fn ip_options(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let mut pair = testbed.pair_prepared(|_| Ok(()), |socket| add_ip_options(testbed.family, socket))?;
    exchange(&mut pair.client, &mut pair.server)?;
    let Pair { client, mut server, flows } = pair;
    let sender = spawn_sender(client, 20_000);
    read_to_end(&mut server, 20_000)?;
    joined(sender)??;
    Ok(flows)
}

/// IPv6 sockets with IPv4-mapped addresses.
pub(crate) fn mapped(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let any: SocketAddr = "[::]:0".parse()?;
    let listener = testbed.host(Side::Server).run(|| TcpListener::bind(any).context("listen"))?;
    let IpAddr::V4(ip) = testbed.ip(Side::Server) else { return Err(anyhow!("this scenario is for IPv4")) };
    let there = SocketAddr::new(ip.to_ipv6_mapped().into(), listener.local_addr()?.port());
    let client = testbed.connect(there)?;
    let (server, from) = listener.accept().context("accept")?;
    ensure!(canonical(from) == canonical(client.local_addr()?), "another client: {from}");
    let mut pair = Pair::new(client, server)?;
    exchange(&mut pair.client, &mut pair.server)?;
    close_by_client(pair)
}

/// Makes the IP header 8 bytes longer: by Record Route (IPv4), or by a destination options header with padding (IPv6).
pub(crate) fn add_ip_options(family: Family, socket: &OwnedFd) -> Result<()> {
    match family {
        Family::V4 => set_option(socket, nix::libc::IPPROTO_IP, nix::libc::IP_OPTIONS, &[1, 7, 7, 4, 0, 0, 0, 0]),
        Family::V6 => set_option(socket, nix::libc::IPPROTO_IPV6, nix::libc::IPV6_DSTOPTS, &[0, 0, 1, 4, 0, 0, 0, 0]),
    }
}

/// Sends a request and an answer.
fn exchange(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    let mut bytes = [0; 8];
    client.write_all(b"question")?;
    server.read_exact(&mut bytes)?;
    server.write_all(b"answered")?;
    client.read_exact(&mut bytes).context("receive the answer")
}

fn close_by_client(pair: Pair) -> Result<Vec<ExpectedFlow>> {
    let Pair { client, mut server, flows } = pair;
    drop(client);
    read_to_end(&mut server, 0)?;
    Ok(flows)
}

/// Starts a thread that sends `length` bytes and then shuts down this direction.
fn spawn_sender(mut to: TcpStream, length: usize) -> thread::JoinHandle<Result<()>> {
    thread::spawn(move || {
        to.write_all(&vec![b'x'; length]).context("send")?;
        to.shutdown(Shutdown::Write).context("close this direction")
    })
}

fn spawn_reader(mut from: TcpStream, length: usize) -> thread::JoinHandle<Result<()>> {
    thread::spawn(move || read_to_end(&mut from, length))
}

/// Reads until the other end has closed; fails unless it has sent `length` bytes.
fn read_to_end(from: &mut TcpStream, length: usize) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        match from.read(&mut buffer).context("receive")? {
            0 => break,
            piece => total += piece,
        }
    }
    ensure!(total == length, "{total} bytes arrived instead of {length}");
    Ok(())
}

fn joined<T>(thread: thread::JoinHandle<T>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the scenario panicked"))
}

/// A file in memory.
fn file() -> Result<File> {
    const PATH: &str = "/tmp/file-to-send";
    fs::write(PATH, vec![b'f'; FILE]).context("write a file")?;
    File::open(PATH).context("open a file")
}
