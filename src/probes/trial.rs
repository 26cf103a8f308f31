//! Whether the kernel passes by a function at all: one that it has may be inlined into all of its callers, or be for others.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::gettid;
use socktrail_kprobes::{Error, Installed, Record, RingOptions, Rings};

use super::{Decode, Decoded};
use crate::event::{EventKind, Size, Transport};

/// Makes the kernel do what a probe is to see, in the thread that calls it, over loopback.
pub(super) type Trial = fn() -> io::Result<()>;

/// Sends by UDP and by TCP over IPv4.
pub(super) fn send_ipv4() -> io::Result<()> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.send_to(&[0], receiver.local_addr()?)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    TcpStream::connect(listener.local_addr()?).map(drop)
}

/// Sends by UDP over IPv6.
pub(super) fn send_udp_ipv6() -> io::Result<()> {
    let receiver = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0))?;
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0))?.send_to(&[0], receiver.local_addr()?).map(drop)
}

/// Makes a socket and closes it.
pub(super) fn close_socket() -> io::Result<()> {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map(drop)
}

/// How many bytes the kernel leaves in one piece of datagrams that it is asked to send as one (`UDP_SEGMENT`), if it is more
/// than their headers: `MAX_HEADER` in older kernels such as 5.10, which depends on their configuration. 0 where it is not, or
/// where that cannot be seen. The probe is on what leaves over IPv4.
pub(super) fn joined_head(installed: &Installed, decoder: &dyn Decode) -> Result<u32, Error> {
    const SEGMENT: u16 = 400;
    const WRITTEN: u16 = 3 * SEGMENT;
    const HEADERS: u32 = 28;
    let mut head = 0;
    watch(
        installed,
        || send_joined(WRITTEN, SEGMENT),
        |raw| {
            if let Decoded::Event(EventKind::Packet(packet)) = decoder.decode(raw)
                && let (Transport::Udp, Size::Packet { bytes, .. }) = (packet.transport, packet.size)
                && (bytes == u32::from(WRITTEN) + HEADERS && packet.apart > 0)
            {
                head = bytes - packet.apart;
            }
        },
    )?;
    Ok(if head == HEADERS { 0 } else { head })
}

/// Whether the kernel says of a socket that a program makes that it is for one: since Linux 4.2. The probe is on where sockets
/// are made.
pub(super) fn tells_programs(installed: &Installed, decoder: &dyn Decode) -> Result<bool, Error> {
    let mut tells = false;
    watch(installed, close_socket, |raw| {
        let made = decoder.decode(raw);
        tells |= matches!(made, Decoded::Event(EventKind::SocketCreated { for_program: true, .. }));
    })?;
    Ok(tells)
}

/// Whether the kernel gives several datagrams as one to a socket that asks for it (`UDP_GRO`): since Linux 5.0.
pub(super) fn merges_datagrams() -> bool {
    let asked =
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map(|socket| setsockopt(&socket, sockopt::UdpGroSegment, &true));
    matches!(asked, Ok(Ok(())))
}

fn send_joined(written: u16, segment: u16) -> io::Result<()> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    setsockopt(&sender, sockopt::UdpGsoSegment, &segment.into())?;
    sender.send_to(&vec![0; written.into()], receiver.local_addr()?).map(drop)
}

/// Whether the probe is hit. What cannot be tried counts as hit: nothing speaks against it.
pub(super) fn is_hit(installed: &Installed, trial: Trial) -> Result<bool, Error> {
    let mut hits = 0;
    let tried = watch(installed, trial, |_| hits += 1)?;
    Ok(hits > 0 || !tried)
}

/// Does something, and shows what the probe wrote of it. Says whether it could be done.
fn watch(
    installed: &Installed,
    trial: impl FnOnce() -> io::Result<()>,
    mut sample: impl FnMut(&[u8]),
) -> Result<bool, Error> {
    let mut options = RingOptions::default();
    options.page_exponent = 0;
    let mut rings = Rings::for_thread(gettid().as_raw() as u32, &options)?;
    rings.attach(installed, None)?;
    let tried = trial().is_ok();
    rings.drain(u64::MAX, &mut |record| {
        if let Record::Sample { raw, .. } = record {
            sample(raw);
        }
    });
    Ok(tried)
}
