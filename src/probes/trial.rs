//! Whether the kernel passes by a function at all: one that it has may be inlined into all of its callers, or be for others.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};

use nix::unistd::gettid;
use socktrail_kprobes::{Error, Installed, RingOptions, Rings};

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

/// Whether the probe is hit. What cannot be tried counts as hit: nothing speaks against it.
pub(super) fn is_hit(installed: &Installed, trial: Trial) -> Result<bool, Error> {
    let mut options = RingOptions::default();
    options.page_exponent = 0;
    let mut rings = Rings::for_thread(gettid().as_raw() as u32, &options)?;
    rings.attach(installed, None)?;
    if trial().is_err() {
        return Ok(true);
    }
    let mut hits = 0;
    rings.drain(u64::MAX, &mut |_| hits += 1);
    Ok(hits > 0)
}
