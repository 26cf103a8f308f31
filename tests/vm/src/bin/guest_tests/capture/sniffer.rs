//! A packet capture on one interface.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{LinkAddr, recvfrom, setsockopt, sockopt};

use super::link::Host;
use super::wire::{Segments, Way, Wire};
use crate::helpers::sys::{packet_socket, packets_dropped, set_option};

/// `linux/if_packet.h`.
const PACKET_OUTGOING: u8 = 4;
/// See [`PACKET_OUTGOING`].
const PACKET_OTHERHOST: u8 = 3;
/// `struct virtio_net_hdr`.
const VNET_HEADER: usize = 10;
/// Ethernet's header, which loopback has too.
const LINK_HEADER: usize = 14;
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
}

/// A running capture.
pub(crate) struct Sniffer {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Result<Wire>>,
}

impl Sniffer {
    /// Begins to capture all that passes a host's interface.
    pub(crate) fn start(host: &Host, learn: Learn) -> Result<Self> {
        let socket =
            host.run(|| open(&host.interface, learn)).with_context(|| format!("capture {}", host.interface))?;
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
        while let Some((length, from)) = receive(socket, &mut buffer)? {
            let way = match from.pkttype() {
                PACKET_OUTGOING => Way::Out,
                PACKET_OTHERHOST => continue,
                _ => Way::In,
            };
            let (packet, segments) = segments(&buffer[..length], learn)?;
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

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<(usize, LinkAddr)>> {
    match recvfrom::<LinkAddr>(socket.as_raw_fd(), buffer) {
        Ok((length, from)) => Ok(Some((length, from.context("a packet has a link address")?))),
        Err(Errno::EAGAIN) => Ok(None),
        Err(error) => Err(error).context("receive a captured packet"),
    }
}

fn is_ip(from: &LinkAddr) -> bool {
    matches!(i32::from(u16::from_be(from.protocol())), nix::libc::ETH_P_IP | nix::libc::ETH_P_IPV6)
}

/// A packet without its link header and what the kernel says of it, and into what it is to be cut.
fn segments(captured: &[u8], learn: Learn) -> Result<(&[u8], Segments)> {
    let short = "a captured packet is too short";
    match learn {
        Learn::Udp(size) => Ok((captured.get(LINK_HEADER..).context(short)?, Segments::Of(size))),
        Learn::FromKernel => {
            // flags u8, gso_type u8, hdr_len u16, gso_size u16, csum_start u16, csum_offset u16
            let (header, packet) = captured.split_at_checked(VNET_HEADER).context(short)?;
            let size = u16::from_ne_bytes([header[4], header[5]]);
            let segments = if header[1] == 0 { Segments::One } else { Segments::Of(size) };
            Ok((packet.get(LINK_HEADER..).context(short)?, segments))
        }
    }
}
