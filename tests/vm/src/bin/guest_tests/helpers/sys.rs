//! System calls that cannot be had otherwise: all that is unsafe in the tests.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
};
use nix::unistd::{ForkResult, Pid};

/// Runs a function in a child process that has this one's program, and ends it with status 0 if that held true.
///
/// Other threads of this process may have been in the middle of anything: the function must make system calls only
/// and allocate nothing.
pub(crate) fn fork(child: impl FnOnce() -> bool) -> Result<Pid> {
    // SAFETY: the child calls what is safe after a fork only, as demanded above, and never returns from here.
    match unsafe { nix::unistd::fork() }.context("fork")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let status = i32::from(!child());
            // SAFETY: it ends the process at once; nothing of the parent's is run or dropped in the child.
            unsafe { nix::libc::_exit(status) }
        }
    }
}

/// Gives up a capability for good, and for all programs that this process becomes.
pub(crate) fn drop_capability(capability: nix::libc::c_int) -> Result<()> {
    // SAFETY: with this option prctl takes a number and touches no memory.
    let result = unsafe { nix::libc::prctl(nix::libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    Errno::result(result).context("drop a capability")?;
    Ok(())
}

/// A socket that gets a copy of every packet of one interface, its link header included. It never blocks.
pub(crate) fn packet_socket(interface: i32) -> Result<OwnedFd> {
    let every_protocol = nix::libc::ETH_P_ALL as u16;
    let kind = nix::libc::SOCK_RAW | nix::libc::SOCK_CLOEXEC | nix::libc::SOCK_NONBLOCK;
    // Without a protocol it gets nothing before it is bound.
    // SAFETY: no memory is touched.
    let socket = Errno::result(unsafe { nix::libc::socket(nix::libc::AF_PACKET, kind, 0) }).context("open a socket")?;
    // SAFETY: the descriptor was opened just now and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all zeros is a valid address.
    let mut address: nix::libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = nix::libc::AF_PACKET as u16;
    address.sll_protocol = every_protocol.to_be();
    address.sll_ifindex = interface;
    let length = size_of_val(&address) as nix::libc::socklen_t;
    // SAFETY: the address is as long as is said, and lives as long as the call.
    let bound = unsafe { nix::libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    Errno::result(bound).context("bind it to an interface")?;
    Ok(socket)
}

/// How many packets found no room in a packet socket's buffer.
pub(crate) fn packets_dropped(socket: &OwnedFd) -> Result<u32> {
    // SAFETY: all zeros is a valid value.
    let mut stats: nix::libc::tpacket_stats = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&stats) as nix::libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the value's size.
    let result = unsafe {
        nix::libc::getsockopt(
            socket.as_raw_fd(),
            nix::libc::SOL_PACKET,
            nix::libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).context("read the statistics of a packet socket")?;
    Ok(stats.tp_drops)
}

/// Sets a socket option that has no type of its own.
pub(crate) fn set_option(socket: &impl AsFd, level: i32, name: i32, value: &[u8]) -> Result<()> {
    let length = value.len() as nix::libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, which is the value's size.
    let result =
        unsafe { nix::libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    Errno::result(result).with_context(|| format!("set option {name} of level {level}"))?;
    Ok(())
}

/// Gives an interface a value by one of ethtool's commands (`linux/ethtool.h`).
pub(crate) fn ethtool(interface: &str, command: u32, value: u32) -> Result<()> {
    /// `linux/sockios.h`.
    const SIOCETHTOOL: u64 = 0x8946;
    let any = nix::sys::socket::socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut ethtool_value = [command, value];
    // SAFETY: all zeros is a valid request.
    let mut request: nix::libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes().take(nix::libc::IFNAMSIZ - 1)) {
        *to = from as nix::libc::c_char;
    }
    request.ifr_ifru.ifru_data = ethtool_value.as_mut_ptr().cast();
    // SAFETY: the request and the `struct ethtool_value` that it points to live as long as the call.
    let result = unsafe { nix::libc::ioctl(any.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    Errno::result(result).with_context(|| format!("ethtool's command {command:#x} for {interface}"))?;
    Ok(())
}

/// Takes over a descriptor that this program was started with.
pub(crate) fn inherited(number: i32) -> Result<OwnedFd> {
    // SAFETY: no memory is touched; the call fails when there is no such descriptor.
    Errno::result(unsafe { nix::libc::fcntl(number, nix::libc::F_GETFD) })
        .context("look at an inherited descriptor")?;
    // SAFETY: it is open, and who was started with it knows of no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Passes a descriptor to whoever has the other end.
pub(crate) fn send_descriptor(over: &UnixStream, descriptor: &OwnedFd) -> Result<()> {
    let descriptors = [descriptor.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&descriptors)];
    let byte = [IoSlice::new(b"x")];
    sendmsg::<()>(over.as_raw_fd(), &byte, &message, MsgFlags::empty(), None).context("pass a descriptor")?;
    Ok(())
}

/// Gets a descriptor that was passed.
pub(crate) fn receive_descriptor(over: &UnixStream) -> Result<OwnedFd> {
    let (mut byte, mut space) = ([0], nix::cmsg_space!(i32));
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(over.as_raw_fd(), &mut bytes, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part
            && let [descriptor] = descriptors[..]
        {
            // SAFETY: the kernel opened it for this message just now.
            return Ok(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
    bail!("no descriptor was passed")
}

/// Takes over a descriptor that a call has just opened.
pub(crate) fn owned(number: i32) -> Result<OwnedFd> {
    anyhow::ensure!(number >= 0, "no descriptor");
    // SAFETY: the caller got it from the kernel just now and gives it to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Connects by `IORING_OP_CONNECT`, and waits for what comes of it: 0 or a negative errno.
pub(crate) fn connect_by_io_uring(socket: &OwnedFd, to: std::net::SocketAddr) -> Result<i32> {
    use nix::sys::socket::{SockaddrLike, SockaddrStorage};
    let to = SockaddrStorage::from(to);
    let descriptor = io_uring::types::Fd(socket.as_raw_fd());
    by_io_uring(&io_uring::opcode::Connect::new(descriptor, to.as_ptr(), to.len()).build())
}

/// Accepts by `IORING_OP_ACCEPT`.
pub(crate) fn accept_by_io_uring(socket: &OwnedFd) -> Result<i32> {
    let descriptor = io_uring::types::Fd(socket.as_raw_fd());
    by_io_uring(&io_uring::opcode::Accept::new(descriptor, std::ptr::null_mut(), std::ptr::null_mut()).build())
}

/// Makes a socket by `IORING_OP_SOCKET` (Linux 5.19).
pub(crate) fn socket_by_io_uring(family: i32, kind: i32, protocol: i32) -> Result<i32> {
    by_io_uring(&io_uring::opcode::Socket::new(family, kind, protocol).build())
}

/// What a ring answers: a descriptor, 0 or a negative errno.
fn by_io_uring(entry: &io_uring::squeue::Entry) -> Result<i32> {
    let mut ring = io_uring::IoUring::new(2).context("make a ring")?;
    // SAFETY: what the entry points to lives, in the callers, until the ring has answered, which is waited for here.
    unsafe { ring.submission().push(entry) }.context("there is room for one entry")?;
    ring.submit_and_wait(1).context("submit")?;
    let answer = ring.completion().next().context("the ring has answered")?;
    Ok(answer.result())
}
