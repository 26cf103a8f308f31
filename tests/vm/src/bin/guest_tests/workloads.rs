//! Workloads: what child processes of tests do if no Debian program does exactly that.
//!
//! `guest-tests run WORKLOAD ARGUMENTS...` runs one. It prints what the test must know, such as its address.

mod calls;
mod mptcp;
mod programs;
mod sharing;
mod threads;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

pub(crate) use self::programs::escape;
use crate::helpers::sys::drop_capability;

/// The name of this program.
pub(crate) const PROGRAM: &str = "guest-tests";
/// The path of this program in the guest.
pub(crate) const EXECUTABLE: &str = "/usr/local/bin/guest-tests";
/// The name of this program built for i686. Only x86_64 guests have it, if the runner has that Rust target.
pub(crate) const PROGRAM_32: &str = "guest-tests-32";
/// The path of [`PROGRAM_32`] in the guest.
pub(crate) const EXECUTABLE_32: &str = "/usr/local/bin/guest-tests-32";

/// The argument that makes this program run a workload instead of the tests.
pub(crate) const RUN: &str = "run";

/// How long a workload waits for its peer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Of `linux/capability.h`. It allows a process to raise its limits.
const CAP_SYS_RESOURCE: i32 = 24;

type Workload = fn(&[String]) -> Result<()>;

const WORKLOADS: &[(&str, Workload)] = &[
    ("udp-answer", udp_answer),
    ("udp-ask", udp_ask),
    ("tcp-serve", tcp_serve),
    ("tcp-listen", tcp_listen),
    ("tcp-ask", tcp_ask),
    ("connect-nonblocking", connect_nonblocking),
    ("with-few-files", with_few_files),
    ("fork-with-socket", sharing::fork_with_socket),
    ("exec-with-socket", sharing::exec_with_socket),
    ("connect-inherited", sharing::connect_inherited),
    ("pass-socket", sharing::pass_socket),
    ("pass-accepted", sharing::pass_accepted),
    ("accept-many", sharing::accept_many),
    ("connect-in-thread", sharing::connect_in_thread),
    ("setuid-then-connect", sharing::setuid_then_connect),
    ("connect-then-setuid", sharing::connect_then_setuid),
    ("seteuid-then-connect", sharing::seteuid_then_connect),
    ("setuid-then-send", sharing::setuid_then_send),
    ("fork-and-send", sharing::fork_and_send),
    ("fork-into-and-send", sharing::fork_into_and_send),
    ("fork-into", sharing::fork_into_group),
    ("hog", sharing::hog),
    ("become", programs::become_program),
    ("tcp-serve-all", sharing::tcp_serve_all),
    ("later", threads::later),
    ("leader-gone", threads::leader_gone),
    ("leader-gone-connected", threads::leader_gone_connected),
    ("leader-gone-exec", threads::leader_gone_exec),
    ("exec-by-thread", threads::exec_by_thread),
    ("clone-sharing-memory", threads::clone_sharing_memory),
    ("spawn-and-wait", threads::spawn_and_wait),
    ("crowd", threads::crowd),
    ("mptcp-serve", mptcp::serve),
    ("mptcp-ask", mptcp::ask),
    ("mptcp-touch", mptcp::touch),
    ("calls-tcp", calls::tcp),
    ("calls-refused", calls::refused),
    ("calls-ipv6", calls::ipv6),
    ("calls-unix", calls::unix),
    ("calls-netlink", calls::netlink),
    ("calls-io-uring", calls::io_uring),
    ("calls-io-uring-failing", calls::io_uring_failing),
    ("calls-ends", calls::ends),
    ("calls-named-threads", calls::named_threads),
    ("short-connections", calls::short_connections),
    ("hold", calls::hold),
    ("torture", crate::torture::run_role),
];

/// Runs the workload that the arguments name.
pub(crate) fn run(arguments: &[String]) -> ExitCode {
    match run_workload(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{arguments:?}: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run_workload(arguments: &[String]) -> Result<()> {
    let (name, rest) = arguments.split_first().context("the name of a workload is missing")?;
    match WORKLOADS.iter().find(|(workload, _)| workload == name) {
        Some((_, workload)) => workload(rest),
        None => bail!("unknown workload `{name}`"),
    }
}

/// `udp-answer ADDRESS`: prints its address, and answers one datagram with its contents twice.
fn udp_answer(arguments: &[String]) -> Result<()> {
    let socket = UdpSocket::bind(address(arguments)?).context("bind")?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    print_line(socket.local_addr()?)?;
    let mut datagram = [0; 2048];
    let (length, from) = socket.recv_from(&mut datagram).context("receive")?;
    socket.send_to(&datagram[..length].repeat(2), from).context("answer")?;
    Ok(())
}

/// `udp-ask ADDRESS`: prints its address, sends a datagram and waits for the answer.
fn udp_ask(arguments: &[String]) -> Result<()> {
    let there = address(arguments)?;
    let socket = UdpSocket::bind(any_port(there)).context("bind")?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.connect(there).context("connect")?;
    print_line(socket.local_addr()?)?;
    socket.send(b"question").context("send")?;
    socket.recv(&mut [0; 2048]).context("receive")?;
    Ok(())
}

/// `tcp-serve ADDRESS COUNT`: prints its address, accepts COUNT connections, one after the other, and echoes their
/// data.
fn tcp_serve(arguments: &[String]) -> Result<()> {
    let listener = TcpListener::bind(address(arguments)?).context("listen")?;
    print_line(listener.local_addr()?)?;
    let count: usize = arguments.get(1).context("a count is missing")?.parse()?;
    for connection in listener.incoming().take(count) {
        let mut connection = connection.context("accept")?;
        io::copy(&mut connection.try_clone()?, &mut connection).context("answer")?;
    }
    Ok(())
}

/// `tcp-listen ADDRESS MILLISECONDS`: prints its address, and listens for MILLISECONDS without accepting.
fn tcp_listen(arguments: &[String]) -> Result<()> {
    let listener = TcpListener::bind(address(arguments)?).context("listen")?;
    print_line(listener.local_addr()?)?;
    let pause: u64 = arguments.get(1).context("a pause is missing")?.parse()?;
    std::thread::sleep(Duration::from_millis(pause));
    Ok(())
}

/// `tcp-ask ADDRESS MILLISECONDS ...`: prints its address, sends a request, reads the answer, and closes after
/// MILLISECONDS. Further arguments are ignored: tests look for them in documents.
fn tcp_ask(arguments: &[String]) -> Result<()> {
    let pause: u64 = arguments.get(1).context("a pause is missing")?.parse()?;
    let mut connection = TcpStream::connect(address(arguments)?).context("connect")?;
    print_line(connection.local_addr()?)?;
    connection.write_all(b"question").context("send")?;
    connection.read_exact(&mut [0; 8]).context("receive")?;
    std::thread::sleep(Duration::from_millis(pause));
    Ok(())
}

/// `connect-nonblocking ADDRESS`: connects a nonblocking socket, waits for the outcome, and closes.
fn connect_nonblocking(arguments: &[String]) -> Result<()> {
    let there = address(arguments)?;
    let family = if there.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(family, SockType::Stream, flags, None).context("make a socket")?;
    match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(there)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(errno).context("connect"),
    }
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::try_from(TIMEOUT)?).context("wait for the connection")?;
    match socket::getsockopt(&socket, sockopt::SocketError)? {
        0 => Ok(()),
        error => Err(Errno::from_raw(error)).context("connect"),
    }
}

/// `with-few-files COUNT PROGRAM ...`: executes a program that can open COUNT files and cannot raise that limit.
fn with_few_files(arguments: &[String]) -> Result<()> {
    let [count, program, rest @ ..] = arguments else { bail!("a count or a program is missing") };
    let count = count.parse()?;
    setrlimit(Resource::RLIMIT_NOFILE, count, count).context("limit open files")?;
    drop_capability(CAP_SYS_RESOURCE)?;
    Err(Command::new(program).args(rest).exec()).with_context(|| format!("execute {program}"))
}

fn address(arguments: &[String]) -> Result<SocketAddr> {
    let text = arguments.first().context("an address is missing")?;
    text.parse().with_context(|| format!("`{text}` is not an address"))
}

/// The source address of packets to `there` over loopback, with any port.
fn any_port(there: SocketAddr) -> SocketAddr {
    SocketAddr::new(there.ip(), 0)
}

/// Prints a line for the test.
pub(crate) fn print_line(what: impl std::fmt::Display) -> Result<()> {
    writeln!(io::stdout(), "{what}").context("print a line")
}
