//! The server of TCP.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{Backlog, SockFlag, SockaddrStorage, bind, listen, setsockopt, sockopt};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::super::arguments::Arguments;
use super::identity::{FlowReport, Identity, Subflows};
use super::shapes::succeeded;
use super::tcp::{GO_ON, RESET, Request, receive, send};
use crate::helpers::sys::{exit_thread, fork, tcp_or_mptcp_socket};
use crate::helpers::traffic::reset;
use crate::workloads::print_line;

/// The number of processes that share a port.
const SHARERS: usize = 3;

/// `tcp-server at=ADDRESS serve=MODE`: prints `ready`, and serves until it is killed.
pub(super) fn serve(arguments: &Arguments) -> Result<()> {
    Identity::now();
    match arguments.text("serve").unwrap_or("threads") {
        "threads" => ready(listener(arguments)?).and_then(|listener| threads(arguments, &listener)),
        "leaderless" => {
            let listener = ready(listener(arguments)?)?;
            let arguments = arguments.clone();
            thread::spawn(move || threads(&arguments, &listener));
            exit_thread()
        }
        "prefork" => {
            let listener = listener(arguments)?;
            for _ in 1..SHARERS {
                fork(|| succeeded(end_with_parent().and_then(|()| one_by_one(arguments, &listener))))?;
            }
            ready(listener).and_then(|listener| one_by_one(arguments, &listener))
        }
        "reuseport" => {
            for _ in 1..SHARERS {
                let listener = listener(arguments)?;
                fork(move || succeeded(end_with_parent().and_then(|()| one_by_one(arguments, &listener))))?;
            }
            ready(listener(arguments)?).and_then(|listener| one_by_one(arguments, &listener))
        }
        "forks" => ready(listener(arguments)?).and_then(|listener| forks(arguments, &listener)),
        mode => bail!("unknown mode {mode}"),
    }
}

/// Makes the kernel kill this process when its parent ends: nothing else ends a server's children.
pub(super) fn end_with_parent() -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("end with the parent")
}

fn listener(arguments: &Arguments) -> Result<TcpListener> {
    let at: SocketAddr = arguments.get("at")?;
    let is_mptcp = arguments.text("proto") == Some("mptcp");
    let socket: OwnedFd = tcp_or_mptcp_socket(at.is_ipv4(), is_mptcp, SockFlag::SOCK_CLOEXEC)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at)).with_context(|| format!("bind to {at}"))?;
    listen(&socket, Backlog::MAXCONN).context("listen")?;
    Ok(socket.into())
}

fn ready<T>(listener: T) -> Result<T> {
    print_line("ready")?;
    Ok(listener)
}

/// Serves each connection in a thread.
fn threads(arguments: &Arguments, listener: &TcpListener) -> Result<()> {
    loop {
        let connection = Connection::accept(arguments, listener)?;
        thread::spawn(move || succeeded(connection.answer()));
    }
}

fn one_by_one(arguments: &Arguments, listener: &TcpListener) -> Result<()> {
    loop {
        Connection::accept(arguments, listener)?.answer()?;
    }
}

/// Serves each connection in a child. The connection's owner stays the process that accepted it.
fn forks(arguments: &Arguments, listener: &TcpListener) -> Result<()> {
    loop {
        let connection = Connection::accept(arguments, listener)?;
        fork(move || succeeded(end_with_parent().and_then(|()| connection.answer())))?;
        while matches!(waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::Exited(..))) {}
    }
}

/// An accepted connection.
struct Connection {
    stream: TcpStream,
    report: FlowReport,
}

impl Connection {
    fn accept(arguments: &Arguments, listener: &TcpListener) -> Result<Self> {
        let (stream, from) = listener.accept().context("accept")?;
        let mut report = FlowReport::begin(arguments, "tcp", "ingress", &Identity::now());
        report.set_addresses(stream.local_addr()?, from);
        Ok(Self { stream, report })
    }

    /// Handles requests until the connection ends. A close or reset by the client is not an error.
    fn answer(self) -> Result<()> {
        let Self { mut stream, report } = self;
        let mut subflows = Subflows::default();
        loop {
            let request = Self::request(&mut stream);
            subflows.update(&stream)?;
            match request {
                Ok(GO_ON) => {}
                Ok(RESET) => break reset(stream)?,
                Ok(_) | Err(_) => break drop(stream),
            }
        }
        report.print_with(&subflows)
    }

    fn request(stream: &mut TcpStream) -> io::Result<u8> {
        let mut request = [0; Request::LENGTH];
        stream.read_exact(&mut request)?;
        let request = Request::from_bytes(request);
        receive(stream, request.up.into())?;
        send(stream, request.down.into())?;
        Ok(request.then)
    }
}
