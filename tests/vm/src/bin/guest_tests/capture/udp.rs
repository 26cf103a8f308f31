//! UDP scenarios.

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

use super::tcp::add_ip_options;
use super::testbed::{ExpectedFlow, Side, Testbed, both, of_client, of_server};
use super::wire::Transport;
use crate::helpers::sys::{datagrams_dropped, set_option};
use crate::helpers::wait::wait_until;

/// The segment size for `UDP_SEGMENT`.
pub(crate) const SEGMENT: u16 = 1000;
/// Bytes of two segments that fit into one packet together.
const A_LITTLE: usize = 1300;
/// A segment size so small that two segments with their headers fit into the linear part of an `sk_buff`.
const TINY: u16 = 10;

pub(crate) fn connected(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    client.connect(server.local_addr()?)?;
    server.connect(client.local_addr()?)?;
    for length in [1, 100, 1400] {
        client.send(&vec![0; length])?;
        receive_datagram(&server, length)?;
        server.send(&vec![0; length + 1])?;
        receive_datagram(&client, length + 1)?;
    }
    flows(&client, &server)
}

pub(crate) fn unconnected(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    for length in [0, 1, 512] {
        client.send_to(&vec![0; length], server.local_addr()?)?;
        let (got, from) = server.recv_from(&mut [0; 2048])?;
        ensure!(got == length, "{got} bytes arrived instead of {length}");
        server.send_to(&[0; 7], from)?;
        receive_datagram(&client, 7)?;
    }
    flows(&client, &server)
}

/// One socket, three remotes.
pub(crate) fn several_remotes(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let client = testbed.udp(Side::Client)?;
    let mut all = Vec::new();
    for count in 1..=3 {
        let server = testbed.udp(Side::Server)?;
        for _ in 0..count {
            client.send_to(&[0; 50], server.local_addr()?)?;
            receive_datagram(&server, 50)?;
        }
        all.extend(flows(&client, &server)?);
    }
    Ok(all)
}

/// One socket that connects to one server, and then to another.
pub(crate) fn connected_twice(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let client = testbed.udp(Side::Client)?;
    let mut all = Vec::new();
    for _ in 0..2 {
        let server = testbed.udp(Side::Server)?;
        client.connect(server.local_addr()?)?;
        client.send(&[0; 10])?;
        receive_datagram(&server, 10)?;
        all.extend(flows(&client, &server)?);
    }
    Ok(all)
}

/// Datagrams that are larger than Ethernet's MTU.
pub(crate) fn large(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    client.send_to(&[0; 4000], server.local_addr()?)?;
    receive_datagram(&server, 4000)?;
    server.send_to(&[0; 20_000], client.local_addr()?)?;
    receive_datagram(&client, 20_000)?;
    flows(&client, &server)
}

/// Many datagrams, one after the other.
pub(crate) fn many(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    send_many(testbed, 1000, None)
}

/// A few at a time, so that even a delayed network has delivered them before the next are sent.
pub(crate) fn unhurried(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    send_many(testbed, 300, Some(Duration::from_millis(5)))
}

fn send_many(testbed: &Testbed<'_>, count: usize, pause: Option<Duration>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    let there = server.local_addr()?;
    let all = flows(&client, &server)?;
    server.set_read_timeout(Some(Duration::from_millis(500)))?;
    let sending = Arc::new(AtomicBool::new(true));
    let still_sending = Arc::clone(&sending);
    // On a slow machine nothing may arrive for a while. The socket must stay open until the last datagram is sent.
    let reader =
        thread::spawn(move || while server.recv(&mut [0; 2048]).is_ok() || still_sending.load(Ordering::Acquire) {});
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

/// Datagrams that do not fit into the receive buffer: they count as received.
pub(crate) fn more_than_fits(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    const SENT: u32 = 100;
    let (client, server) = sockets(testbed)?;
    setsockopt(&server, sockopt::RcvBuf, &2048)?;
    for _ in 0..SENT {
        client.send_to(&[0; 500], server.local_addr()?)?;
    }
    // On a busy machine, most of them may not have reached the socket yet.
    server.set_nonblocking(true)?;
    let mut received = 0;
    wait_until("all datagrams at the socket", || {
        while server.recv(&mut [0; 500]).is_ok() {
            received += 1;
        }
        Ok(received + datagrams_dropped(&server)? == SENT)
    })?;
    flows(&client, &server)
}

/// A datagram to a closed port, which an ICMP error answers.
pub(crate) fn closed_port(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    let (here, there) = (client.local_addr()?, server.local_addr()?);
    drop(server);
    client.connect(there)?;
    client.send(&[0; 20])?;
    let error = client.recv(&mut [0; 20]).err().and_then(|error| error.raw_os_error());
    ensure!(error == Some(nix::libc::ECONNREFUSED), "not refused, but {error:?}");
    Ok(vec![of_client(Transport::Udp, here, there)])
}

/// A datagram that is too large to send does not count; the next one does.
pub(crate) fn too_large_to_send(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    ensure!(client.send_to(&[0; 65_536], server.local_addr()?).is_err(), "a datagram of 65,536 bytes was sent");
    client.send_to(&[0; 20], server.local_addr()?)?;
    receive_datagram(&server, 20)?;
    flows(&client, &server)
}

/// One datagram from several writes: `UDP_CORK` and `MSG_MORE`.
pub(crate) fn corked(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    client.connect(server.local_addr()?)?;
    set_option(&client, nix::libc::SOL_UDP, nix::libc::UDP_CORK, &1_i32.to_ne_bytes())?;
    for _ in 0..3 {
        client.send(&[0; 100])?;
    }
    set_option(&client, nix::libc::SOL_UDP, nix::libc::UDP_CORK, &0_i32.to_ne_bytes())?;
    receive_datagram(&server, 300)?;
    send(client.as_raw_fd(), &[0; 10], MsgFlags::from_bits_retain(nix::libc::MSG_MORE))?;
    client.send(&[0; 10])?;
    receive_datagram(&server, 20)?;
    flows(&client, &server)
}

/// One fragmented datagram from many writes.
pub(crate) fn corked_large(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    client.connect(server.local_addr()?)?;
    set_option(&client, nix::libc::SOL_UDP, nix::libc::UDP_CORK, &1_i32.to_ne_bytes())?;
    for _ in 0..40 {
        client.send(&[0; 104])?;
    }
    set_option(&client, nix::libc::SOL_UDP, nix::libc::UDP_CORK, &0_i32.to_ne_bytes())?;
    receive_datagram(&server, 40 * 104)?;
    flows(&client, &server)
}

/// Several datagrams from one write: `UDP_SEGMENT`.
pub(crate) fn segmented(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    send_segments(&client, &server)?;
    for _ in 0..10 {
        receive_datagram(&server, SEGMENT.into())?;
    }
    receive_datagram(&server, 300)?;
    flows(&client, &server)
}

/// The same, to a socket that receives several at once: `UDP_GRO`.
pub(crate) fn segmented_and_merged(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    set_option(&server, nix::libc::SOL_UDP, nix::libc::UDP_GRO, &1_i32.to_ne_bytes())?;
    send_segments(&client, &server)?;
    let mut total = 0;
    while total < 10_300 {
        total += server.recv(&mut vec![0; 65_536])?;
    }
    flows(&client, &server)
}

/// Two segments that would fit into one packet.
pub(crate) fn segmented_a_little(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    set_udp_segment(&client)?;
    client.send_to(&[0; A_LITTLE], server.local_addr()?)?;
    receive_datagram(&server, SEGMENT.into())?;
    receive_datagram(&server, A_LITTLE - usize::from(SEGMENT))?;
    flows(&client, &server)
}

/// The same, requested by a control message.
pub(crate) fn segmented_by_message(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    send_by_message(&client, &server, A_LITTLE, SEGMENT)?;
    receive_datagram(&server, SEGMENT.into())?;
    receive_datagram(&server, A_LITTLE - usize::from(SEGMENT))?;
    flows(&client, &server)
}

/// Two segments that fit into the linear part of an `sk_buff`.
pub(crate) fn segmented_tiny(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    set_option(&client, nix::libc::SOL_UDP, nix::libc::UDP_SEGMENT, &i32::from(TINY).to_ne_bytes())?;
    client.send_to(&[0; 2 * TINY as usize], server.local_addr()?)?;
    receive_datagram(&server, TINY.into())?;
    receive_datagram(&server, TINY.into())?;
    flows(&client, &server)
}

/// The same, requested by a control message.
pub(crate) fn segmented_tiny_by_message(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    send_by_message(&client, &server, 2 * usize::from(TINY), TINY)?;
    receive_datagram(&server, TINY.into())?;
    receive_datagram(&server, TINY.into())?;
    flows(&client, &server)
}

fn send_by_message(client: &UdpSocket, server: &UdpSocket, length: usize, segment: u16) -> Result<()> {
    let there = SockaddrStorage::from(server.local_addr()?);
    let segment_size = [ControlMessage::UdpGsoSegments(&segment)];
    sendmsg(client.as_raw_fd(), &[IoSlice::new(&vec![0; length])], &segment_size, MsgFlags::empty(), Some(&there))?;
    Ok(())
}

/// [`segmented_a_little`], to a socket that receives both at once.
pub(crate) fn segmented_a_little_and_merged(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    set_option(&server, nix::libc::SOL_UDP, nix::libc::UDP_GRO, &1_i32.to_ne_bytes())?;
    set_udp_segment(&client)?;
    client.send_to(&[0; A_LITTLE], server.local_addr()?)?;
    let mut total = 0;
    while total < A_LITTLE {
        total += server.recv(&mut vec![0; 65_536])?;
    }
    flows(&client, &server)
}

/// A packet that is larger than the path MTU: the router answers with an ICMP error, then the sender fragments.
pub(crate) fn path_mtu(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    server.set_read_timeout(Some(Duration::from_millis(100)))?;
    for _ in 0..100 {
        client.send_to(&[0; 1400], server.local_addr()?)?;
        if server.recv(&mut [0; 2048]).is_ok_and(|length| length == 1400) {
            return flows(&client, &server);
        }
    }
    bail!("no datagram arrived")
}

/// The same, but the router fragments.
pub(crate) fn fragmented_by_the_router(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    let ignore_path_mtu = nix::libc::IP_PMTUDISC_INTERFACE.to_ne_bytes();
    set_option(&client, nix::libc::IPPROTO_IP, nix::libc::IP_MTU_DISCOVER, &ignore_path_mtu)?;
    client.send_to(&[0; 1400], server.local_addr()?)?;
    receive_datagram(&server, 1400)?;
    flows(&client, &server)
}

fn set_udp_segment(client: &UdpSocket) -> Result<()> {
    set_option(client, nix::libc::SOL_UDP, nix::libc::UDP_SEGMENT, &i32::from(SEGMENT).to_ne_bytes())
}

/// Ten full segments and a short one.
fn send_segments(client: &UdpSocket, server: &UdpSocket) -> Result<()> {
    client.connect(server.local_addr()?)?;
    set_udp_segment(client)?;
    client.send(&[0; 10_300]).context("send segments")?;
    Ok(())
}

pub(crate) fn ip_options(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let (client, server) = sockets(testbed)?;
    let client = OwnedFd::from(client);
    add_ip_options(testbed.family, &client)?;
    let client = UdpSocket::from(client);
    for length in [10, 1000] {
        client.send_to(&vec![0; length], server.local_addr()?)?;
        receive_datagram(&server, length)?;
        server.send_to(&[0; 7], client.local_addr()?)?;
        receive_datagram(&client, 7)?;
    }
    flows(&client, &server)
}

/// IPv6 sockets with IPv4-mapped addresses.
pub(crate) fn mapped(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    let open = |side| -> Result<(UdpSocket, SocketAddr, SocketAddr)> {
        let IpAddr::V4(ip) = testbed.ip(side) else { return Err(anyhow!("this scenario is for IPv4")) };
        let any: SocketAddr = "[::]:0".parse()?;
        let socket = testbed.host(side).run(|| UdpSocket::bind(any).context("bind"))?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        let port = socket.local_addr()?.port();
        Ok((socket, SocketAddr::new(ip.into(), port), SocketAddr::new(ip.to_ipv6_mapped().into(), port)))
    };
    let (client, here, _) = open(Side::Client)?;
    let (server, there, mapped) = open(Side::Server)?;
    client.send_to(&[0; 33], mapped)?;
    let (_, from) = server.recv_from(&mut [0; 64])?;
    server.send_to(&[0; 44], from)?;
    receive_datagram(&client, 44)?;
    Ok(both(Transport::Udp, here, there))
}

/// Two sockets receive the same datagrams; each has a flow.
pub(crate) fn multicast(testbed: &Testbed<'_>) -> Result<Vec<ExpectedFlow>> {
    const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
    let client = testbed.udp(Side::Client)?;
    let IpAddr::V4(interface) = testbed.ip(Side::Client) else { return Err(anyhow!("this scenario is for IPv4")) };
    set_option(&client, nix::libc::IPPROTO_IP, nix::libc::IP_MULTICAST_IF, &interface.octets())?;
    let first = member(testbed, 0)?;
    let port = first.local_addr()?.port();
    let second = member(testbed, port)?;
    for member in [&first, &second] {
        member.join_multicast_v4(&GROUP, &interface).context("join a group")?;
    }
    let (here, there) = (client.local_addr()?, SocketAddr::new(GROUP.into(), port));
    for length in [10, 20, 30] {
        client.send_to(&vec![0; length], there)?;
        receive_datagram(&first, length)?;
        receive_datagram(&second, length)?;
    }
    let members = ExpectedFlow { copies: 2, ..of_server(Transport::Udp, here, there) };
    Ok(vec![of_client(Transport::Udp, here, there), members])
}

/// A multicast socket that shares its port.
fn member(testbed: &Testbed<'_>, port: u16) -> Result<UdpSocket> {
    let socket = testbed.host(Side::Server).run(|| {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
        bind(socket.as_raw_fd(), &SockaddrStorage::from(any))?;
        Ok(UdpSocket::from(socket))
    })?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(socket)
}

fn sockets(testbed: &Testbed<'_>) -> Result<(UdpSocket, UdpSocket)> {
    Ok((testbed.udp(Side::Client)?, testbed.udp(Side::Server)?))
}

fn flows(client: &UdpSocket, server: &UdpSocket) -> Result<Vec<ExpectedFlow>> {
    Ok(both(Transport::Udp, client.local_addr()?, server.local_addr()?))
}

/// Receives a datagram; fails unless it has `length` bytes.
fn receive_datagram(socket: &UdpSocket, length: usize) -> Result<()> {
    let got = socket.recv(&mut vec![0; 65_536]).context("receive")?;
    ensure!(got == length, "{got} bytes arrived instead of {length}");
    Ok(())
}
