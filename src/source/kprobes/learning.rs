//! Learns from test traffic what samples show about sockets and datagrams on this kernel.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};
use socktrail_kprobes::{Installed, Record, Rings};

use super::{Decode, Decoded};
use crate::model::event::{EventKind, PacketSize, SocketUser};
use crate::model::flow::Transport;

/// The size of the linear part of a UDP GSO packet (`UDP_SEGMENT`), if the linear part has more than the headers; 0 if it has only
/// the headers, or cannot be seen. In older kernels such as 5.10, the size is `MAX_HEADER`, which depends on the configuration.
/// `installed` is the probe on outgoing IPv4 packets, and `ring` is this thread's.
pub(super) fn gso_head_len(ring: &mut Rings, installed: &Installed, decoder: &dyn Decode) -> u32 {
    const SEGMENT: u16 = 400;
    const WRITTEN: u16 = 3 * SEGMENT;
    const HEADERS: u32 = 28;
    let mut head = 0;
    watch(
        ring,
        installed,
        || send_gso(WRITTEN, SEGMENT),
        |raw| {
            if let Decoded::Event(EventKind::Packet(packet)) = decoder.decode(raw)
                && let (Transport::Udp, PacketSize { bytes, .. }) = (packet.transport, packet.size)
                && (bytes == u32::from(WRITTEN) + HEADERS && packet.data_len > 0)
            {
                head = bytes - packet.data_len;
            }
        },
    );
    if head == HEADERS { 0 } else { head }
}

/// Whether the kernel marks sockets of programs as such: since Linux 4.2. `installed` is the probe on the creation of sockets, and
/// `ring` is this thread's.
pub(super) fn marks_program_sockets(ring: &mut Rings, installed: &Installed, decoder: &dyn Decode) -> bool {
    let mut marks = false;
    watch(ring, installed, make_socket, |raw| {
        let made = decoder.decode(raw);
        marks |= matches!(made, Decoded::Event(EventKind::SocketCreated { user: SocketUser::Program, .. }));
    });
    marks
}

/// Whether the kernel has UDP GRO (`UDP_GRO`): since Linux 5.0.
pub(super) fn merges_datagrams() -> bool {
    let asked =
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map(|socket| setsockopt(&socket, sockopt::UdpGroSegment, &true));
    matches!(asked, Ok(Ok(())))
}

fn send_gso(written: u16, segment: u16) -> io::Result<()> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    setsockopt(&sender, sockopt::UdpGsoSegment, &segment.into())?;
    sender.send_to(&vec![0; written.into()], receiver.local_addr()?).map(drop)
}

fn make_socket() -> io::Result<()> {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map(drop)
}

/// Runs an action, and passes the samples that it causes to `sample`. There may be none if the action fails.
fn watch(
    ring: &mut Rings,
    installed: &Installed,
    action: impl FnOnce() -> io::Result<()>,
    mut sample: impl FnMut(&[u8]),
) {
    ring.drain(u64::MAX, &mut |_| {});
    if let Err(error) = action() {
        tracing::debug!(%error, "cannot send the traffic that tests what this kernel shows of sockets and datagrams");
    }
    ring.drain(u64::MAX, &mut |record| {
        if let Record::Sample { id, raw, .. } = record
            && u32::from(id) == installed.id()
        {
            sample(raw);
        }
    });
}
