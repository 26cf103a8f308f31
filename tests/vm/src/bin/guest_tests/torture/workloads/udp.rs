//! Server and client of UDP.

use std::collections::HashSet;
use std::io::{ErrorKind, IoSlice};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, setsockopt, sockopt};

use super::super::words::Words;
use super::identity::{FlowReport, Identity};
use super::shapes::{Made, succeeded};
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
pub(super) fn serve(words: &Words) -> Result<()> {
    Identity::now();
    match words.text("serve").unwrap_or("one") {
        "one" => {
            let socket = bind(words)?;
            print_line("ready")?;
            answer(words, &socket)
        }
        "reuseport" => {
            for _ in 1..SHARERS {
                fork(|| succeeded(end_with_parent().and_then(|()| answer(words, &bind(words)?))))?;
            }
            // Once all are bound, the kernel always chooses the same socket for a remote.
            sleep(Duration::from_secs(2));
            let socket = bind(words)?;
            print_line("ready")?;
            answer(words, &socket)
        }
        mode => bail!("unknown mode {mode}"),
    }
}

fn bind(words: &Words) -> Result<UdpSocket> {
    let at: SocketAddr = words.get("at")?;
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
fn answer(words: &Words, socket: &UdpSocket) -> Result<()> {
    let (mut known, mut datagram) = (HashSet::new(), vec![0; 65_536]);
    loop {
        let (length, from) = match socket.recv_from(&mut datagram) {
            Ok(received) => received,
            // An ICMP error answered an earlier datagram.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error).context("receive"),
        };
        if known.insert(from) {
            let mut report = FlowReport::begin(words, "udp", "ingress", &Identity::now());
            report.ends(words.get("at")?, from);
            report.print()?;
        }
        if datagram.first() == Some(&ASK) {
            // The buffer may be full, or the remote closed.
            socket.send_to(&datagram[..length], from).ok();
        }
    }
}

/// Sends `count` datagrams to each of `to`, connected or not, one by one or many in a call.
pub(super) fn talk(words: &Words, made: Option<Made>) -> Result<()> {
    if made.is_some() {
        bail!("this shape is for TCP");
    }
    let own: SocketAddr = SocketAddr::new(words.get("own")?, words.or("from", 0)?);
    let peers: Vec<SocketAddr> =
        words.text("to").context("no addresses")?.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let socket = UdpSocket::bind(own).context("bind")?;
    socket.set_read_timeout(Some(ANSWERS))?;
    if let Some(size) = words.text("segment") {
        set_option(&socket, nix::libc::SOL_UDP, nix::libc::UDP_SEGMENT, &size.parse::<i32>()?.to_ne_bytes())?;
    }
    let local = socket.local_addr()?;
    let mut flows = Vec::new();
    let mut dropped = 0;
    for peer in &peers {
        let mut report = FlowReport::begin(words, "udp", "egress", &Identity::now());
        report.ends(local, *peer);
        flows.push(report);
    }
    match words.text("mode").unwrap_or("unconnected") {
        "connected" => {
            for peer in &peers {
                socket.connect(peer).context("connect")?;
                let send = |data: &[u8], _| socket.send(data).map(drop);
                dropped += exchange(words, &[*peer], send, || socket.recv(&mut [0; 65_536]))?;
            }
        }
        "unconnected" => {
            let send = |data: &[u8], to| socket.send_to(data, to).map(drop);
            dropped += exchange(words, &peers, send, || socket.recv(&mut [0; 65_536]))?;
        }
        "many" => many(words, &socket, &peers)?,
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
    words: &Words,
    peers: &[SocketAddr],
    send: impl Fn(&[u8], SocketAddr) -> std::io::Result<()>,
    receive: impl Fn() -> std::io::Result<usize>,
) -> Result<u64> {
    let (data, is_asked) = datagram(words)?;
    let mut dropped = 0;
    let gap = Duration::from_millis(words.or("gap", 0)?);
    for _ in 0..words.or("count", 1)? {
        for peer in peers {
            match send(&data, *peer) {
                Err(error) if error.kind() == ErrorKind::PermissionDenied => dropped += 1,
                // Before Linux 6.11, UDP GSO needs a device with checksum offload.
                Err(error) if words.text("segment").is_some() && error.raw_os_error() == Some(nix::libc::EIO) => {}
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

fn many(words: &Words, socket: &UdpSocket, peers: &[SocketAddr]) -> Result<()> {
    let (data, _) = datagram(words)?;
    let parts = [IoSlice::new(&data)];
    let all: Vec<_> = peers.iter().map(|&peer| Some(SockaddrStorage::from(peer))).collect();
    let mut headers = MultiHeaders::preallocate(all.len(), None);
    for _ in 0..words.or("count", 1)? {
        let slices = vec![parts; all.len()];
        sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &all, [], MsgFlags::empty()).context("sendmmsg")?;
    }
    Ok(())
}

fn datagram(words: &Words) -> Result<(Vec<u8>, bool)> {
    let is_asked = words.or("answers", 1)? == 1 && words.text("mode") != Some("many");
    let size: usize = words.or("size", 100)?;
    let mut data = vec![b'.'; size.max(1)];
    if is_asked {
        data[0] = ASK;
    }
    Ok((data, is_asked))
}
