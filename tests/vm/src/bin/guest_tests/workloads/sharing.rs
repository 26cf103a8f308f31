//! Workloads that share or pass sockets, execute programs, or change users.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, id};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Gid, Uid, setegid, seteuid, setgid, setuid};

use super::{EXECUTABLE, PROGRAM, RUN, TIMEOUT, address, any_port, print_line};
use crate::helpers::sys::{fork, fork_into, receive_descriptor, send_descriptor, take_inherited};

/// `fork-with-socket ADDRESS`: makes a socket; a child connects it, prints its address, and makes a request.
pub(super) fn fork_with_socket(arguments: &[String]) -> Result<()> {
    let there = address(arguments)?;
    let socket = stream_socket(SockFlag::SOCK_CLOEXEC)?;
    // This process has one thread only, so that its child may do anything.
    fork(|| succeeded(connect_and_ask(&socket, there)))?;
    await_children(1)
}

/// `exec-with-socket ADDRESS`: makes a socket and executes `connect-inherited` with it.
pub(super) fn exec_with_socket(arguments: &[String]) -> Result<()> {
    let there = address(arguments)?;
    let socket = stream_socket(SockFlag::empty())?;
    let number = socket.as_raw_fd().to_string();
    let error =
        Command::new(EXECUTABLE).arg0(PROGRAM).args([RUN, "connect-inherited", &there.to_string(), &number]).exec();
    Err(error).context("execute another program")
}

/// `connect-inherited ADDRESS FD`: connects the inherited socket, prints its address, and makes a request.
pub(super) fn connect_inherited(arguments: &[String]) -> Result<()> {
    let number = arguments.get(1).context("a descriptor is missing")?.parse()?;
    connect_and_ask(&take_inherited(number)?, address(arguments)?)
}

/// `pass-socket ADDRESS`: makes a socket and passes it to a child, which connects it, prints its address, makes a
/// request, and prints its process id.
pub(super) fn pass_socket(arguments: &[String]) -> Result<()> {
    let there = address(arguments)?;
    let (here, child) = UnixStream::pair()?;
    fork(|| {
        succeeded(
            receive_passed(&child).and_then(|socket| connect_and_ask(&socket, there)).and_then(|()| print_line(id())),
        )
    })?;
    let socket = stream_socket(SockFlag::SOCK_CLOEXEC)?;
    pass_on(&here, socket)?;
    await_children(1)
}

/// `pass-accepted ADDRESS`: listens, prints its address, accepts one connection, and passes it to
/// a child, which answers it and prints its process id.
pub(super) fn pass_accepted(arguments: &[String]) -> Result<()> {
    let (here, child) = UnixStream::pair()?;
    fork(|| {
        succeeded(receive_passed(&child).and_then(|socket| answer(&socket.into())).and_then(|()| print_line(id())))
    })?;
    let listener = TcpListener::bind(address(arguments)?).context("listen")?;
    print_line(listener.local_addr()?)?;
    let (connection, _) = listener.accept().context("accept")?;
    pass_on(&here, connection.into())?;
    await_children(1)
}

/// Sends a descriptor over a socket, closes it, and then sends a byte, so that only the receiver has it.
fn pass_on(mut to: &UnixStream, descriptor: OwnedFd) -> Result<()> {
    send_descriptor(to, &descriptor)?;
    drop(descriptor);
    to.write_all(b".").context("send the byte after a descriptor")
}

/// Receives a descriptor, and waits until the sender has closed its own.
fn receive_passed(mut from: &UnixStream) -> Result<OwnedFd> {
    let descriptor = receive_descriptor(from)?;
    from.read_exact(&mut [0]).context("receive the byte after a descriptor")?;
    Ok(descriptor)
}

/// `accept-many ADDRESS COUNT`: prints its address; COUNT children wait in `accept(2)` at once; each prints its
/// process id and its client's address, and answers.
pub(super) fn accept_many(arguments: &[String]) -> Result<()> {
    let count = arguments.get(1).context("a count is missing")?.parse()?;
    let listener = TcpListener::bind(address(arguments)?).context("listen")?;
    for _ in 0..count {
        fork(|| {
            succeeded(listener.accept().context("accept").and_then(|(connection, from)| {
                print_line(format_args!("{} {from}", id()))?;
                answer(&connection)
            }))
        })?;
    }
    print_line(listener.local_addr()?)?;
    await_children(count)
}

/// `connect-in-thread ADDRESS`: connects in a thread with another name, prints its address, and makes a request.
pub(super) fn connect_in_thread(arguments: &[String]) -> Result<()> {
    let there = address(arguments)?;
    let thread = thread::Builder::new().name("a-thread".to_owned());
    let connecting = thread.spawn(move || connect_and_ask(&stream_socket(SockFlag::SOCK_CLOEXEC)?, there))?;
    connecting.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
}

/// `setuid-then-connect ADDRESS USER`: makes a socket, becomes another user, connects, prints its address, and makes a
/// request.
pub(super) fn setuid_then_connect(arguments: &[String]) -> Result<()> {
    let there = address(arguments)?;
    let socket = stream_socket(SockFlag::SOCK_CLOEXEC)?;
    become_user(arguments)?;
    connect_and_ask(&socket, there)
}

/// `connect-then-setuid ADDRESS USER`: connects, prints its address, becomes another user, and makes a request.
pub(super) fn connect_then_setuid(arguments: &[String]) -> Result<()> {
    let connection = TcpStream::connect(address(arguments)?).context("connect")?;
    print_line(connection.local_addr()?)?;
    become_user(arguments)?;
    ask(&connection)
}

/// `seteuid-then-connect ADDRESS USER`: changes its effective user, connects, prints its address, and makes a request.
pub(super) fn seteuid_then_connect(arguments: &[String]) -> Result<()> {
    let user = user(arguments)?;
    setegid(Gid::from_raw(user)).context("set the effective group")?;
    seteuid(Uid::from_raw(user)).context("set the effective user")?;
    connect_and_ask(&stream_socket(SockFlag::SOCK_CLOEXEC)?, address(arguments)?)
}

/// `setuid-then-send ADDRESS USER`: makes a UDP socket, becomes another user, prints its address, sends and receives.
pub(super) fn setuid_then_send(arguments: &[String]) -> Result<()> {
    let there = address(arguments)?;
    let socket = UdpSocket::bind(any_port(there)).context("bind")?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    become_user(arguments)?;
    print_line(socket.local_addr()?)?;
    socket.send_to(b"question", there).context("send")?;
    socket.recv(&mut [0; 64]).context("receive")?;
    Ok(())
}

/// `fork-and-send ADDRESS COUNT`: COUNT children, one after the other, each make a socket and send a datagram.
pub(super) fn fork_and_send(arguments: &[String]) -> Result<()> {
    let there = address(arguments)?;
    let count = arguments.get(1).context("a count is missing")?.parse()?;
    for _ in 0..count {
        fork(|| send_one(there))?;
        await_children(1)?;
    }
    Ok(())
}

/// `fork-into-and-send FOLDER ADDRESS COUNT`: starts COUNT pairs of children, one child at a time. The first of a pair
/// starts in the control group FOLDER and sends to ADDRESS. The second starts in the parent's group and sends to the
/// next port.
pub(super) fn fork_into_and_send(arguments: &[String]) -> Result<()> {
    let [folder, rest @ ..] = arguments else { bail!("a folder is missing") };
    let there = address(rest)?;
    let beside = SocketAddr::new(there.ip(), there.port() + 1);
    let count = rest.get(1).context("a count is missing")?.parse()?;
    let folder = File::open(folder).with_context(|| format!("open {folder}"))?;
    for _ in 0..count {
        fork_into(&folder, || send_one(there))?;
        await_children(1)?;
        fork(|| send_one(beside))?;
        await_children(1)?;
    }
    Ok(())
}

/// Makes a socket and sends a datagram; returns whether that succeeded.
fn send_one(there: SocketAddr) -> bool {
    let socket = UdpSocket::bind(any_port(there)).context("bind");
    succeeded(socket.and_then(|socket| socket.send_to(b"hello", there).map(drop).context("send")))
}

/// `fork-into FOLDER PROGRAM ...`: a child starts in the control group FOLDER and executes PROGRAM.
pub(super) fn fork_into_group(arguments: &[String]) -> Result<()> {
    let [folder, program, rest @ ..] = arguments else { bail!("a folder or a program is missing") };
    let folder = File::open(folder).with_context(|| format!("open {folder}"))?;
    fork_into(&folder, || succeeded(Err(Command::new(program).args(rest).exec()).context("execute a program")))?;
    await_children(1)
}

/// `hog`: uses a whole CPU until it is killed.
pub(super) fn hog(_: &[String]) -> Result<()> {
    loop {
        std::hint::spin_loop();
    }
}

/// `tcp-serve-all ADDRESS`: prints its address, and answers every connection in a thread of its own.
pub(super) fn tcp_serve_all(arguments: &[String]) -> Result<()> {
    let listener = TcpListener::bind(address(arguments)?).context("listen")?;
    print_line(listener.local_addr()?)?;
    for connection in listener.incoming() {
        let connection = connection.context("accept")?;
        thread::spawn(move || answer(&connection));
    }
    Ok(())
}

pub(super) fn stream_socket(flags: SockFlag) -> Result<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Stream, flags, None).context("make a socket")
}

pub(super) fn connect_and_ask(socket: &OwnedFd, there: SocketAddr) -> Result<()> {
    connect(socket.as_raw_fd(), &SockaddrStorage::from(there)).context("connect")?;
    let connection = TcpStream::from(socket.try_clone()?);
    print_line(connection.local_addr()?)?;
    ask(&connection)
}

/// Sends a request and reads the answer.
pub(super) fn ask(mut connection: &TcpStream) -> Result<()> {
    connection.write_all(b"question").context("send")?;
    connection.read_exact(&mut [0; 8]).context("receive")
}

/// Echoes data until the other end closes.
fn answer(mut connection: &TcpStream) -> Result<()> {
    io::copy(&mut connection.try_clone()?, &mut connection).context("answer")?;
    Ok(())
}

fn user(arguments: &[String]) -> Result<u32> {
    Ok(arguments.get(1).context("a user is missing")?.parse()?)
}

/// Sets the real, effective and saved user and group.
fn become_user(arguments: &[String]) -> Result<()> {
    let user = user(arguments)?;
    setgid(Gid::from_raw(user)).context("set the group")?;
    setuid(Uid::from_raw(user)).context("set the user")
}

/// Prints an error; returns whether there was none.
pub(super) fn succeeded(result: Result<()>) -> bool {
    if let Err(error) = &result {
        let _ = writeln!(io::stderr(), "child: {error:?}");
    }
    result.is_ok()
}

pub(super) fn await_children(count: usize) -> Result<()> {
    for _ in 0..count {
        let status = wait().context("wait for a child")?;
        ensure!(matches!(status, WaitStatus::Exited(_, 0)), "a child ended with {status:?}");
    }
    Ok(())
}
