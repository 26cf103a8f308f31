//! What UDP can do.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, send, sendmsg, setsockopt,
    socket, sockopt,
};

use super::stage::{Expected, Side, Stage, both, of_client, of_server};
use super::tcp::add_ip_options;
use super::wire::Transport;
use crate::helpers::sys::set_option;

/// The size of the segments that the kernel is asked to cut.
pub(crate) const SEGMENT: u16 = 1000;
/// Two segments, and together no more than a packet can hold.
const A_LITTLE: usize = 1300;
/// A segment's size, so small that two and their headers fit in next to nothing.
const TINY: u16 = 10;

pub(crate) fn connected(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    client.connect(server.local_addr()?)?;
    server.connect(client.local_addr()?)?;
    for length in [1, 100, 1400] {
        client.send(&vec![0; length])?;
        received(&server, length)?;
        server.send(&vec![0; length + 1])?;
        received(&client, length + 1)?;
    }
    flows(&client, &server)
}

pub(crate) fn unconnected(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    for length in [0, 1, 512] {
        client.send_to(&vec![0; length], server.local_addr()?)?;
        let (got, from) = server.recv_from(&mut [0; 2048])?;
        ensure!(got == length, "{got} bytes came instead of {length}");
        server.send_to(&[0; 7], from)?;
        received(&client, 7)?;
    }
    flows(&client, &server)
}

/// One socket, three conversations.
pub(crate) fn several_remotes(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let client = stage.udp(Side::Client)?;
    let mut all = Vec::new();
    for count in 1..=3 {
        let server = stage.udp(Side::Server)?;
        for _ in 0..count {
            client.send_to(&[0; 50], server.local_addr()?)?;
            received(&server, 50)?;
        }
        all.extend(flows(&client, &server)?);
    }
    Ok(all)
}

/// One socket that is connected to one server, and then to another.
pub(crate) fn connected_twice(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let client = stage.udp(Side::Client)?;
    let mut all = Vec::new();
    for _ in 0..2 {
        let server = stage.udp(Side::Server)?;
        client.connect(server.local_addr()?)?;
        client.send(&[0; 10])?;
        received(&server, 10)?;
        all.extend(flows(&client, &server)?);
    }
    Ok(all)
}

/// More than one packet can hold, where packets are as small as Ethernet's.
pub(crate) fn large(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    client.send_to(&[0; 4000], server.local_addr()?)?;
    received(&server, 4000)?;
    server.send_to(&[0; 20_000], client.local_addr()?)?;
    received(&client, 20_000)?;
    flows(&client, &server)
}

/// Many datagrams, one after the other.
pub(crate) fn many(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    send_many(stage, 1000, None)
}

/// A few at a time, so that even a delayed network has delivered them before the next are sent.
pub(crate) fn unhurried(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    send_many(stage, 300, Some(Duration::from_millis(5)))
}

fn send_many(stage: &Stage<'_>, count: usize, pause: Option<Duration>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    let there = server.local_addr()?;
    let all = flows(&client, &server)?;
    server.set_read_timeout(Some(Duration::from_millis(500)))?;
    let sending = Arc::new(AtomicBool::new(true));
    let still = Arc::clone(&sending);
    // On a slow machine nothing may come for a while: what is sent after the socket is gone would be nobody's.
    let reader = thread::spawn(move || while server.recv(&mut [0; 2048]).is_ok() || still.load(Ordering::Acquire) {});
    for number in 0..count {
        client.send_to(&vec![0; number % 1400], there)?;
        if let Some(pause) = pause.filter(|_| number % 3 == 2) {
            thread::sleep(pause);
        }
    }
    sending.store(false, Ordering::Release);
    reader.join().map_err(|_| anyhow!("the reader panicked"))?;
    Ok(all)
}

/// Datagrams that a socket has no room for have arrived all the same.
pub(crate) fn more_than_fits(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    setsockopt(&server, sockopt::RcvBuf, &2048)?;
    for _ in 0..100 {
        client.send_to(&[0; 500], server.local_addr()?)?;
    }
    flows(&client, &server)
}

/// Nobody is there, and an ICMP message says so.
pub(crate) fn closed_port(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    let (here, there) = (client.local_addr()?, server.local_addr()?);
    drop(server);
    client.connect(there)?;
    client.send(&[0; 20])?;
    let error = client.recv(&mut [0; 20]).err().and_then(|error| error.raw_os_error());
    ensure!(error == Some(nix::libc::ECONNREFUSED), "not refused, but {error:?}");
    Ok(vec![of_client(Transport::Udp, here, there)])
}

/// A datagram that the kernel cannot send is no traffic; the one after it is.
pub(crate) fn too_large_to_send(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    ensure!(client.send_to(&[0; 65_536], server.local_addr()?).is_err(), "no datagram is that large");
    client.send_to(&[0; 20], server.local_addr()?)?;
    received(&server, 20)?;
    flows(&client, &server)
}

/// Several writes, one datagram.
pub(crate) fn corked(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    client.connect(server.local_addr()?)?;
    set_option(&client, nix::libc::SOL_UDP, nix::libc::UDP_CORK, &1_i32.to_ne_bytes())?;
    for _ in 0..3 {
        client.send(&[0; 100])?;
    }
    set_option(&client, nix::libc::SOL_UDP, nix::libc::UDP_CORK, &0_i32.to_ne_bytes())?;
    received(&server, 300)?;
    send(client.as_raw_fd(), &[0; 10], MsgFlags::from_bits_retain(nix::libc::MSG_MORE))?;
    client.send(&[0; 10])?;
    received(&server, 20)?;
    flows(&client, &server)
}

/// Many writes, one datagram, several fragments.
pub(crate) fn corked_large(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    client.connect(server.local_addr()?)?;
    set_option(&client, nix::libc::SOL_UDP, nix::libc::UDP_CORK, &1_i32.to_ne_bytes())?;
    for _ in 0..40 {
        client.send(&[0; 104])?;
    }
    set_option(&client, nix::libc::SOL_UDP, nix::libc::UDP_CORK, &0_i32.to_ne_bytes())?;
    received(&server, 40 * 104)?;
    flows(&client, &server)
}

/// One write, several datagrams: `UDP_SEGMENT`.
pub(crate) fn segmented(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    send_segments(&client, &server)?;
    for _ in 0..10 {
        received(&server, SEGMENT.into())?;
    }
    received(&server, 300)?;
    flows(&client, &server)
}

/// The same, to a socket that takes several at once: `UDP_GRO`.
pub(crate) fn segmented_and_merged(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    set_option(&server, nix::libc::SOL_UDP, nix::libc::UDP_GRO, &1_i32.to_ne_bytes())?;
    send_segments(&client, &server)?;
    let mut total = 0;
    while total < 10_300 {
        total += server.recv(&mut vec![0; 65_536])?;
    }
    flows(&client, &server)
}

/// Two segments that would fit one packet.
pub(crate) fn segmented_a_little(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    ask_for_segments(&client)?;
    client.send_to(&[0; A_LITTLE], server.local_addr()?)?;
    received(&server, SEGMENT.into())?;
    received(&server, A_LITTLE - usize::from(SEGMENT))?;
    flows(&client, &server)
}

/// The same, asked for with the data.
pub(crate) fn segmented_by_message(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    send_by_message(&client, &server, A_LITTLE, SEGMENT)?;
    received(&server, SEGMENT.into())?;
    received(&server, A_LITTLE - usize::from(SEGMENT))?;
    flows(&client, &server)
}

/// Two segments that fit what older kernels keep beside the headers.
pub(crate) fn segmented_tiny(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    set_option(&client, nix::libc::SOL_UDP, nix::libc::UDP_SEGMENT, &i32::from(TINY).to_ne_bytes())?;
    client.send_to(&[0; 2 * TINY as usize], server.local_addr()?)?;
    received(&server, TINY.into())?;
    received(&server, TINY.into())?;
    flows(&client, &server)
}

/// The same, asked for with the data.
pub(crate) fn segmented_tiny_by_message(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    send_by_message(&client, &server, 2 * usize::from(TINY), TINY)?;
    received(&server, TINY.into())?;
    received(&server, TINY.into())?;
    flows(&client, &server)
}

fn send_by_message(client: &UdpSocket, server: &UdpSocket, length: usize, segment: u16) -> Result<()> {
    let there = SockaddrStorage::from(server.local_addr()?);
    let asked = [ControlMessage::UdpGsoSegments(&segment)];
    sendmsg(client.as_raw_fd(), &[IoSlice::new(&vec![0; length])], &asked, MsgFlags::empty(), Some(&there))?;
    Ok(())
}

/// The same, to a socket that takes both at once.
pub(crate) fn segmented_a_little_and_merged(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    set_option(&server, nix::libc::SOL_UDP, nix::libc::UDP_GRO, &1_i32.to_ne_bytes())?;
    ask_for_segments(&client)?;
    client.send_to(&[0; A_LITTLE], server.local_addr()?)?;
    let mut total = 0;
    while total < A_LITTLE {
        total += server.recv(&mut vec![0; 65_536])?;
    }
    flows(&client, &server)
}

/// A packet that is too large farther on: a router says so, and from then on the sender cuts.
pub(crate) fn path_mtu(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    server.set_read_timeout(Some(Duration::from_millis(100)))?;
    for _ in 0..100 {
        client.send_to(&[0; 1400], server.local_addr()?)?;
        if server.recv(&mut [0; 2048]).is_ok_and(|length| length == 1400) {
            return flows(&client, &server);
        }
    }
    bail!("nothing came through")
}

/// The same, where the router is allowed to cut.
pub(crate) fn cut_on_the_way(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    let always = nix::libc::IP_PMTUDISC_INTERFACE.to_ne_bytes();
    set_option(&client, nix::libc::IPPROTO_IP, nix::libc::IP_MTU_DISCOVER, &always)?;
    client.send_to(&[0; 1400], server.local_addr()?)?;
    received(&server, 1400)?;
    flows(&client, &server)
}

fn ask_for_segments(client: &UdpSocket) -> Result<()> {
    set_option(client, nix::libc::SOL_UDP, nix::libc::UDP_SEGMENT, &i32::from(SEGMENT).to_ne_bytes())
}

/// Ten full segments and a short one.
fn send_segments(client: &UdpSocket, server: &UdpSocket) -> Result<()> {
    client.connect(server.local_addr()?)?;
    ask_for_segments(client)?;
    client.send(&[0; 10_300]).context("send segments")?;
    Ok(())
}

pub(crate) fn ip_options(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let (client, server) = sockets(stage)?;
    let client = OwnedFd::from(client);
    add_ip_options(stage.family, &client)?;
    let client = UdpSocket::from(client);
    for length in [10, 1000] {
        client.send_to(&vec![0; length], server.local_addr()?)?;
        received(&server, length)?;
        server.send_to(&[0; 7], client.local_addr()?)?;
        received(&client, 7)?;
    }
    flows(&client, &server)
}

/// IPv6 sockets that speak IPv4.
pub(crate) fn mapped(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    let open = |side| -> Result<(UdpSocket, SocketAddr, SocketAddr)> {
        let IpAddr::V4(ip) = stage.ip(side) else { return Err(anyhow!("it is for IPv4")) };
        let any: SocketAddr = "[::]:0".parse()?;
        let socket = stage.host(side).run(|| UdpSocket::bind(any).context("bind"))?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        let port = socket.local_addr()?.port();
        Ok((socket, SocketAddr::new(ip.into(), port), SocketAddr::new(ip.to_ipv6_mapped().into(), port)))
    };
    let (client, here, _) = open(Side::Client)?;
    let (server, there, mapped) = open(Side::Server)?;
    client.send_to(&[0; 33], mapped)?;
    let (_, from) = server.recv_from(&mut [0; 64])?;
    server.send_to(&[0; 44], from)?;
    received(&client, 44)?;
    Ok(both(Transport::Udp, here, there))
}

/// Two sockets get the same datagrams; each has a flow.
pub(crate) fn multicast(stage: &Stage<'_>) -> Result<Vec<Expected>> {
    const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
    let client = stage.udp(Side::Client)?;
    let IpAddr::V4(interface) = stage.ip(Side::Client) else { return Err(anyhow!("it is for IPv4")) };
    set_option(&client, nix::libc::IPPROTO_IP, nix::libc::IP_MULTICAST_IF, &interface.octets())?;
    let first = member(stage, 0)?;
    let port = first.local_addr()?.port();
    let second = member(stage, port)?;
    for member in [&first, &second] {
        member.join_multicast_v4(&GROUP, &interface).context("join a group")?;
    }
    let (here, there) = (client.local_addr()?, SocketAddr::new(GROUP.into(), port));
    for length in [10, 20, 30] {
        client.send_to(&vec![0; length], there)?;
        received(&first, length)?;
        received(&second, length)?;
    }
    let members = Expected { copies: 2, ..of_server(Transport::Udp, here, there) };
    Ok(vec![of_client(Transport::Udp, here, there), members])
}

/// A socket that shares its port.
fn member(stage: &Stage<'_>, port: u16) -> Result<UdpSocket> {
    let socket = stage.host(Side::Server).run(|| {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
        bind(socket.as_raw_fd(), &SockaddrStorage::from(any))?;
        Ok(UdpSocket::from(socket))
    })?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(socket)
}

fn sockets(stage: &Stage<'_>) -> Result<(UdpSocket, UdpSocket)> {
    Ok((stage.udp(Side::Client)?, stage.udp(Side::Server)?))
}

fn flows(client: &UdpSocket, server: &UdpSocket) -> Result<Vec<Expected>> {
    Ok(both(Transport::Udp, client.local_addr()?, server.local_addr()?))
}

/// Receives a datagram of that length.
fn received(socket: &UdpSocket, length: usize) -> Result<()> {
    let got = socket.recv(&mut vec![0; 65_536]).context("receive")?;
    ensure!(got == length, "{got} bytes came instead of {length}");
    Ok(())
}
