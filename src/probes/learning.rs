//! What this kernel tells of sockets and datagrams, learnt by samples of own traffic.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};
use socktrail_kprobes::{Installed, Record, Rings};

use super::{Decode, Decoded};
use crate::event::{EventKind, Size, Transport};

/// How many bytes the kernel leaves in one piece of datagrams that it is asked to send as one (`UDP_SEGMENT`), if it is more
/// than their headers: `MAX_HEADER` in older kernels such as 5.10, which depends on their configuration. 0 where it is not, or
/// where that cannot be seen. The probe is on what leaves over IPv4, and `ring` is of this thread.
pub(super) fn joined_head(ring: &mut Rings, installed: &Installed, decoder: &dyn Decode) -> u32 {
    const SEGMENT: u16 = 400;
    const WRITTEN: u16 = 3 * SEGMENT;
    const HEADERS: u32 = 28;
    let mut head = 0;
    watch(
        ring,
        installed,
        || send_joined(WRITTEN, SEGMENT),
        |raw| {
            if let Decoded::Event(EventKind::Packet(packet)) = decoder.decode(raw)
                && let (Transport::Udp, Size { bytes, .. }) = (packet.transport, packet.size)
                && (bytes == u32::from(WRITTEN) + HEADERS && packet.apart > 0)
            {
                head = bytes - packet.apart;
            }
        },
    );
    if head == HEADERS { 0 } else { head }
}

/// Whether the kernel says of a socket that a program makes that it is for one: since Linux 4.2. The probe is on where sockets
/// are made, and `ring` is of this thread.
pub(super) fn tells_programs(ring: &mut Rings, installed: &Installed, decoder: &dyn Decode) -> bool {
    let mut tells = false;
    watch(ring, installed, make_socket, |raw| {
        let made = decoder.decode(raw);
        tells |= matches!(made, Decoded::Event(EventKind::SocketCreated { for_program: true, .. }));
    });
    tells
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

fn make_socket() -> io::Result<()> {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map(drop)
}

/// Does something, and passes on the probe's samples of it. There may be none if it cannot be done.
fn watch(
    ring: &mut Rings,
    installed: &Installed,
    action: impl FnOnce() -> io::Result<()>,
    mut sample: impl FnMut(&[u8]),
) {
    ring.drain(u64::MAX, &mut |_| {});
    if let Err(error) = action() {
        tracing::debug!(%error, "what this kernel tells of sockets and datagrams could not be tried out");
    }
    ring.drain(u64::MAX, &mut |record| {
        if let Record::Sample { id, raw, .. } = record
            && u32::from(id) == installed.id()
        {
            sample(raw);
        }
    });
}
