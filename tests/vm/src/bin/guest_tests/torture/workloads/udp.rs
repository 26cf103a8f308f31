//! Server and client of UDP.

use std::collections::HashSet;
use std::io::{ErrorKind, IoSlice};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, setsockopt, sockopt};

use super::super::arguments::Arguments;
use super::identity::{FlowReport, Identity};
use super::shapes::{MadeSocket, succeeded};
use super::tcp_server::end_with_parent;
use crate::helpers::sys::{fork, set_option};
use crate::workloads::print_line;

/// The first byte of a datagram that requests an answer.
const ASK: u8 = b'?';
/// How long to wait for an answer; a lost answer is not an error.
const ANSWERS: Duration = Duration::from_secs(5);
/// The number of processes that share a port.
const SHARERS: usize = 2;

/// `udp-server at=ADDRESS serve=MODE`: prints `ready`, and answers datagrams that request it until it is killed.
pub(super) fn serve(arguments: &Arguments) -> Result<()> {
    Identity::now();
    match arguments.text("serve").unwrap_or("one") {
        "one" => {
            let socket = bind(arguments)?;
            print_line("ready")?;
            answer(arguments, &socket)
        }
        "reuseport" => {
            for _ in 1..SHARERS {
                fork(|| succeeded(end_with_parent().and_then(|()| answer(arguments, &bind(arguments)?))))?;
            }
            // Once all are bound, the kernel always chooses the same socket for a remote.
            sleep(Duration::from_secs(2));
            let socket = bind(arguments)?;
            print_line("ready")?;
            answer(arguments, &socket)
        }
        mode => bail!("unknown mode {mode}"),
    }
}

fn bind(arguments: &Arguments) -> Result<UdpSocket> {
    let at: SocketAddr = arguments.get("at")?;
    let family =
        if at.is_ipv4() { nix::sys::socket::AddressFamily::Inet } else { nix::sys::socket::AddressFamily::Inet6 };
    let socket = nix::sys::socket::socket(
        family,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(at)).with_context(|| format!("bind to {at}"))?;
    Ok(socket.into())
}

/// Answers, and reports each remote once.
fn answer(arguments: &Arguments, socket: &UdpSocket) -> Result<()> {
    let (mut known, mut datagram) = (HashSet::new(), vec![0; 65_536]);
    loop {
        let (length, from) = match socket.recv_from(&mut datagram) {
            Ok(received) => received,
            // An ICMP error answered an earlier datagram.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error).context("receive"),
        };
        if known.insert(from) {
            let mut report = FlowReport::begin(arguments, "udp", "ingress", &Identity::now());
            report.set_addresses(arguments.get("at")?, from);
            report.print()?;
        }
        if datagram.first() == Some(&ASK) {
            // The buffer may be full, or the remote closed.
            socket.send_to(&datagram[..length], from).ok();
        }
    }
}

/// Sends `count` datagrams to each of `to`, connected or not, one by one or many in a call.
pub(super) fn talk(arguments: &Arguments, made: Option<MadeSocket>) -> Result<()> {
    if made.is_some() {
        bail!("this shape is for TCP");
    }
    let own: SocketAddr = SocketAddr::new(arguments.get("own")?, arguments.or("from", 0)?);
    let peers: Vec<SocketAddr> =
        arguments.text("to").context("no addresses")?.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let socket = UdpSocket::bind(own).context("bind")?;
    socket.set_read_timeout(Some(ANSWERS))?;
    if let Some(size) = arguments.text("segment") {
        set_option(&socket, nix::libc::SOL_UDP, nix::libc::UDP_SEGMENT, &size.parse::<i32>()?.to_ne_bytes())?;
    }
    let local = socket.local_addr()?;
    let mut flows = Vec::new();
    let mut dropped = 0;
    for peer in &peers {
        let mut report = FlowReport::begin(arguments, "udp", "egress", &Identity::now());
        report.set_addresses(local, *peer);
        flows.push(report);
    }
    match arguments.text("mode").unwrap_or("unconnected") {
        "connected" => {
            for peer in &peers {
                socket.connect(peer).context("connect")?;
                let send = |data: &[u8], _| socket.send(data).map(drop);
                dropped += exchange(arguments, &[*peer], send, || socket.recv(&mut [0; 65_536]))?;
            }
        }
        "unconnected" => {
            let send = |data: &[u8], to| socket.send_to(data, to).map(drop);
            dropped += exchange(arguments, &peers, send, || socket.recv(&mut [0; 65_536]))?;
        }
        "many" => many(arguments, &socket, &peers)?,
        mode => bail!("unknown mode {mode}"),
    }
    drop(socket);
    if let ([_], [flow]) = (&peers[..], &mut flows[..]) {
        flow.set("dropped", dropped);
    }
    flows.into_iter().try_for_each(FlowReport::print)
}

/// Sends datagrams to each peer, and receives requested answers. Returns the number of datagrams that nftables dropped.
fn exchange(
    arguments: &Arguments,
    peers: &[SocketAddr],
    send: impl Fn(&[u8], SocketAddr) -> std::io::Result<()>,
    receive: impl Fn() -> std::io::Result<usize>,
) -> Result<u64> {
    let (data, is_asked) = datagram(arguments)?;
    let mut dropped = 0;
    let gap = Duration::from_millis(arguments.or("gap", 0)?);
    for _ in 0..arguments.or("count", 1)? {
        for peer in peers {
            match send(&data, *peer) {
                Err(error) if error.kind() == ErrorKind::PermissionDenied => dropped += 1,
                // Before Linux 6.11, UDP GSO needs a device with checksum offload.
                Err(error) if arguments.text("segment").is_some() && error.raw_os_error() == Some(nix::libc::EIO) => {}
                // An ICMP error answered an earlier datagram.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error).context("send"),
                Ok(()) => {}
            }
            if is_asked {
                let until = Instant::now() + ANSWERS;
                while receive().is_err_and(|error| error.kind() == ErrorKind::Interrupted) && Instant::now() < until {}
            }
        }
        sleep(gap);
    }
    Ok(dropped)
}

fn many(arguments: &Arguments, socket: &UdpSocket, peers: &[SocketAddr]) -> Result<()> {
    let (data, _) = datagram(arguments)?;
    let parts = [IoSlice::new(&data)];
    let all: Vec<_> = peers.iter().map(|&peer| Some(SockaddrStorage::from(peer))).collect();
    let mut headers = MultiHeaders::preallocate(all.len(), None);
    for _ in 0..arguments.or("count", 1)? {
        let slices = vec![parts; all.len()];
        sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &all, [], MsgFlags::empty()).context("sendmmsg")?;
    }
    Ok(())
}

fn datagram(arguments: &Arguments) -> Result<(Vec<u8>, bool)> {
    let is_asked = arguments.or("answers", 1)? == 1 && arguments.text("mode") != Some("many");
    let size: usize = arguments.or("size", 100)?;
    let mut data = vec![b'.'; size.max(1)];
    if is_asked {
        data[0] = ASK;
    }
    Ok((data, is_asked))
}
