//! A packet capture on one interface.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;

use super::link::Host;
use super::wire::{Direction, Segments, Wire};
use crate::helpers::netns::Netns;
use crate::helpers::sys::{packet_socket, packets_dropped, set_option};

/// `linux/if_packet.h`: a packet that this host sends.
const PACKET_OUTGOING: u8 = 4;
/// `linux/if_packet.h`: a packet for another host.
const PACKET_OTHERHOST: u8 = 3;
/// The size of `struct virtio_net_hdr`.
const VNET_HEADER: usize = 10;
/// The size of an Ethernet header, which packets on loopback have, too.
const LINK_HEADER: usize = 14;
/// `linux/if_arp.h`: an IPv4-in-IPv4 tunnel, whose packets have no link header.
const ARPHRD_TUNNEL: u16 = 768;
/// The buffer size for a packet: more than any packet has.
const PACKET_BUFFER: usize = 128 * 1024;
/// The socket's receive buffer.
const RECEIVE_BUFFER: usize = 64 << 20;

/// The source of the segment size of GSO packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SegmentInfo {
    /// From the kernel (`PACKET_VNET_HDR`), which describes TCP segments.
    FromKernel,
    /// From the test: UDP segments have this many bytes.
    UdpSize(u16),
    /// From the test: there are no GSO packets.
    NoSegments,
}

/// A running capture.
pub(crate) struct Sniffer {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Result<Wire>>,
}

impl Sniffer {
    /// Starts a capture on a host's interface.
    pub(crate) fn start(host: &Host, segment_info: SegmentInfo) -> Result<Self> {
        Self::inside(&host.netns, &host.interface, segment_info)
    }

    /// Starts a capture on an interface in a namespace.
    pub(crate) fn inside(netns: &Netns, interface: &str, segment_info: SegmentInfo) -> Result<Self> {
        let socket = netns.run(|| open(interface, segment_info)).with_context(|| format!("capture {interface}"))?;
        let done = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&done);
        Ok(Self { done, thread: thread::spawn(move || capture(&socket, segment_info, &ending)) })
    }

    /// Reads the remaining packets, and ends the capture.
    pub(crate) fn stop(self) -> Result<Wire> {
        self.done.store(true, Ordering::Release);
        self.thread.join().map_err(|_| anyhow!("the capture panicked"))?
    }
}

fn open(interface: &str, segment_info: SegmentInfo) -> Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    let socket = packet_socket(index.try_into()?)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("enlarge the receive buffer")?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("ask for timestamps")?;
    if segment_info == SegmentInfo::FromKernel {
        set_option(&socket, nix::libc::SOL_PACKET, nix::libc::PACKET_VNET_HDR, &1_i32.to_ne_bytes())?;
    }
    Ok(socket)
}

fn capture(socket: &OwnedFd, segment_info: SegmentInfo, done: &AtomicBool) -> Result<Wire> {
    let mut wire = Wire::default();
    let mut buffer = vec![0; PACKET_BUFFER];
    loop {
        let is_last_round = done.load(Ordering::Acquire);
        while let Some((packet, segment_info)) = receive(socket, segment_info, &mut buffer)? {
            let Received { length, from, time } = packet;
            let direction = match from.pkttype() {
                PACKET_OUTGOING => Direction::Outbound,
                PACKET_OTHERHOST => continue,
                _ => Direction::Inbound,
            };
            let (packet, segments) = segments(&buffer[..length], link_header(&from), segment_info)?;
            wire.time = time;
            if is_ip(&from) {
                wire.add(direction, packet, segments)?;
            }
        }
        if is_last_round {
            break;
        }
        poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::from(20_u8))?;
    }
    let dropped = packets_dropped(socket)?;
    ensure!(dropped == 0, "the capture itself lost {dropped} packets");
    Ok(wire)
}

/// A received packet, without its content.
struct Received {
    length: usize,
    from: LinkAddr,
    /// When it passed the interface.
    time: Option<SystemTime>,
}

/// Receives the next packet. Returns it with the source of its segment size.
///
/// The kernel fills the `virtio_net_hdr` when the packet is received from the socket. By then, GRO or a socket's backlog
/// may have merged other packets into it: a single packet then has a segment size, but no GSO type, and receiving it with
/// that header fails with `EINVAL`. Such a packet is received without the header.
fn receive(socket: &OwnedFd, segment_info: SegmentInfo, buffer: &mut [u8]) -> Result<Option<(Received, SegmentInfo)>> {
    if segment_info != SegmentInfo::FromKernel {
        let packet = receive_one(socket, MsgFlags::empty(), buffer)?.context("receive a captured packet")?;
        return Ok(packet.map(|packet| (packet, segment_info)));
    }
    match receive_one(socket, MsgFlags::MSG_PEEK, buffer)? {
        Err(Errno::EINVAL) => {
            let set_vnet_header = |is_on: i32| {
                set_option(socket, nix::libc::SOL_PACKET, nix::libc::PACKET_VNET_HDR, &is_on.to_ne_bytes())
            };
            set_vnet_header(0)?;
            let packet = receive_one(socket, MsgFlags::empty(), buffer)?.context("receive a single packet")?;
            set_vnet_header(1)?;
            Ok(packet.map(|packet| (packet, SegmentInfo::NoSegments)))
        }
        peeked => {
            let packet = peeked.context("peek at a captured packet")?;
            if packet.is_some() {
                // This removes the packet, even if it fails because the kernel can no longer fill the header.
                receive_one(socket, MsgFlags::empty(), &mut [0; VNET_HEADER])?.ok();
            }
            Ok(packet.map(|packet| (packet, segment_info)))
        }
    }
}

fn receive_one(socket: &OwnedFd, flags: MsgFlags, buffer: &mut [u8]) -> Result<Result<Option<Received>, Errno>> {
    // On 32-bit CPUs, musl adds a second timestamp, with 64-bit seconds.
    let mut space = nix::cmsg_space!(TimeSpec, [TimeSpec; 2]);
    let mut parts = [IoSliceMut::new(buffer)];
    match recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
        Ok(message) => {
            let time = message.cmsgs()?.find_map(|part| match part {
                ControlMessageOwned::ScmTimestampns(time) => Some(UNIX_EPOCH + Duration::from(time)),
                _ => None,
            });
            let from = message.address.context("a packet has no link address")?;
            Ok(Ok(Some(Received { length: message.bytes, from, time })))
        }
        Err(Errno::EAGAIN) => Ok(Ok(None)),
        Err(errno) => Ok(Err(errno)),
    }
}

fn is_ip(from: &LinkAddr) -> bool {
    matches!(i32::from(u16::from_be(from.protocol())), nix::libc::ETH_P_IP | nix::libc::ETH_P_IPV6)
}

fn link_header(from: &LinkAddr) -> usize {
    if from.hatype() == ARPHRD_TUNNEL { 0 } else { LINK_HEADER }
}

/// Returns the packet without the `virtio_net_hdr` and the link header, and its segments.
fn segments(captured: &[u8], link_header: usize, segment_info: SegmentInfo) -> Result<(&[u8], Segments)> {
    let short = "a captured packet is too short";
    match segment_info {
        SegmentInfo::UdpSize(size) => Ok((captured.get(link_header..).context(short)?, Segments::Of(size))),
        SegmentInfo::NoSegments => Ok((captured.get(link_header..).context(short)?, Segments::One)),
        SegmentInfo::FromKernel => {
            // flags u8, gso_type u8, hdr_len u16, gso_size u16, csum_start u16, csum_offset u16
            let (header, packet) = captured.split_at_checked(VNET_HEADER).context(short)?;
            let size = u16::from_ne_bytes([header[4], header[5]]);
            let segments = if header[1] == 0 { Segments::One } else { Segments::Of(size) };
            Ok((packet.get(link_header..).context(short)?, segments))
        }
    }
}
