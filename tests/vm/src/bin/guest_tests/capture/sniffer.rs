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

use super::link::Host;
use super::wire::{Segments, Way, Wire};
use crate::helpers::netns::Netns;
use crate::helpers::sys::{packet_socket, packets_dropped, set_option};

/// `linux/if_packet.h`.
const PACKET_OUTGOING: u8 = 4;
/// See [`PACKET_OUTGOING`].
const PACKET_OTHERHOST: u8 = 3;
/// `struct virtio_net_hdr`.
const VNET_HEADER: usize = 10;
/// Ethernet's header, which loopback has too.
const LINK_HEADER: usize = 14;
/// `linux/if_arp.h`: a tunnel of IPv4 in IPv4, whose packets have no link header.
const ARPHRD_TUNNEL: u16 = 768;
/// More than the largest packet.
const LARGEST: usize = 128 * 1024;
/// What may wait for us.
const BUFFER: usize = 64 << 20;

/// How a capture learns of the segments that a packet stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learn {
    /// From the kernel, which says so for TCP.
    FromKernel,
    /// From the test, for UDP: those that are sent are so long.
    Udp(u16),
    /// From the test, which has made sure that no packet stands for several.
    Single,
}

/// A running capture.
pub(crate) struct Sniffer {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Result<Wire>>,
}

impl Sniffer {
    /// Begins to capture all that passes a host's interface.
    pub(crate) fn start(host: &Host, learn: Learn) -> Result<Self> {
        Self::inside(&host.netns, &host.interface, learn)
    }

    /// The same for an interface in a namespace.
    pub(crate) fn inside(netns: &Netns, interface: &str, learn: Learn) -> Result<Self> {
        let socket = netns.run(|| open(interface, learn)).with_context(|| format!("capture {interface}"))?;
        let done = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&done);
        Ok(Self { done, thread: thread::spawn(move || capture(&socket, learn, &ending)) })
    }

    /// Takes in what has passed so far, and ends.
    pub(crate) fn stop(self) -> Result<Wire> {
        self.done.store(true, Ordering::Release);
        self.thread.join().map_err(|_| anyhow!("the capture panicked"))?
    }
}

fn open(interface: &str, learn: Learn) -> Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    let socket = packet_socket(index.try_into()?)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).context("enlarge its buffer")?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("ask for the time of packets")?;
    if learn == Learn::FromKernel {
        set_option(&socket, nix::libc::SOL_PACKET, nix::libc::PACKET_VNET_HDR, &1_i32.to_ne_bytes())?;
    }
    Ok(socket)
}

fn capture(socket: &OwnedFd, learn: Learn, done: &AtomicBool) -> Result<Wire> {
    let mut wire = Wire::default();
    let mut buffer = vec![0; LARGEST];
    loop {
        let is_last_look = done.load(Ordering::Acquire);
        while let Some(((length, from, time), learn)) = receive(socket, learn, &mut buffer)? {
            let way = match from.pkttype() {
                PACKET_OUTGOING => Way::Out,
                PACKET_OTHERHOST => continue,
                _ => Way::In,
            };
            let (packet, segments) = segments(&buffer[..length], link_header(&from), learn)?;
            wire.time = time;
            if is_ip(&from) {
                wire.add(way, packet, segments)?;
            }
        }
        if is_last_look {
            break;
        }
        poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::from(20_u8))?;
    }
    let dropped = packets_dropped(socket)?;
    ensure!(dropped == 0, "the capture itself lost {dropped} packets");
    Ok(wire)
}

/// The length of a packet, its link address, and when it passed the interface.
type Received = (usize, LinkAddr, Option<SystemTime>);

/// Takes the next packet, and what it stands for.
///
/// The kernel describes segments as they are when a packet is taken, which may be after the receiver has noted something
/// else in the same memory: a single packet that was joined with the next ones by GRO or in a socket's backlog has a
/// size of segments, but no kind of them, and cannot be described (`EINVAL`). So it is taken without a description.
fn receive(socket: &OwnedFd, learn: Learn, buffer: &mut [u8]) -> Result<Option<(Received, Learn)>> {
    if learn != Learn::FromKernel {
        let packet = received(socket, MsgFlags::empty(), buffer)?.context("receive a captured packet")?;
        return Ok(packet.map(|packet| (packet, learn)));
    }
    match received(socket, MsgFlags::MSG_PEEK, buffer)? {
        Err(Errno::EINVAL) => {
            let described = |is_described: i32| {
                set_option(socket, nix::libc::SOL_PACKET, nix::libc::PACKET_VNET_HDR, &is_described.to_ne_bytes())
            };
            described(0)?;
            let packet = received(socket, MsgFlags::empty(), buffer)?.context("receive a single packet")?;
            described(1)?;
            Ok(packet.map(|packet| (packet, Learn::Single)))
        }
        looked_at => {
            let packet = looked_at.context("look at a captured packet")?;
            if packet.is_some() {
                // It is removed, even if it cannot be described any more.
                received(socket, MsgFlags::empty(), &mut [0; VNET_HEADER])?.ok();
            }
            Ok(packet.map(|packet| (packet, learn)))
        }
    }
}

fn received(socket: &OwnedFd, flags: MsgFlags, buffer: &mut [u8]) -> Result<Result<Option<Received>, Errno>> {
    let mut space = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let mut parts = [IoSliceMut::new(buffer)];
    match recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
        Ok(message) => {
            let time = message.cmsgs()?.find_map(|part| match part {
                ControlMessageOwned::ScmTimestampns(time) => Some(UNIX_EPOCH + Duration::from(time)),
                _ => None,
            });
            Ok(Ok(Some((message.bytes, message.address.context("a packet has a link address")?, time))))
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

/// A packet without its link header and what the kernel says of it, and into what it is to be cut.
fn segments(captured: &[u8], link_header: usize, learn: Learn) -> Result<(&[u8], Segments)> {
    let short = "a captured packet is too short";
    match learn {
        Learn::Udp(size) => Ok((captured.get(link_header..).context(short)?, Segments::Of(size))),
        Learn::Single => Ok((captured.get(link_header..).context(short)?, Segments::One)),
        Learn::FromKernel => {
            // flags u8, gso_type u8, hdr_len u16, gso_size u16, csum_start u16, csum_offset u16
            let (header, packet) = captured.split_at_checked(VNET_HEADER).context(short)?;
            let size = u16::from_ne_bytes([header[4], header[5]]);
            let segments = if header[1] == 0 { Segments::One } else { Segments::Of(size) };
            Ok((packet.get(link_header..).context(short)?, segments))
        }
    }
}
