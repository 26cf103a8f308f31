//! System calls without a safe wrapper in `nix`: all unsafe code of the tests.

use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
};
use nix::unistd::{ForkResult, Pid};

/// Runs a function in a forked child, which exits with status 0 if the function returned true.
///
/// If this process has other threads, they may hold locks at the fork: then the function must only make system calls,
/// and must not allocate.
pub(crate) fn fork(child: impl FnOnce() -> bool) -> Result<Pid> {
    // SAFETY: the child calls only what is safe after a fork, as required above, and never returns from here.
    match unsafe { nix::unistd::fork() }.context("fork")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let status = i32::from(!child());
            // SAFETY: it ends the process at once; nothing of the parent's is run or dropped in the child.
            unsafe { nix::libc::_exit(status) }
        }
    }
}

/// Runs a function in a child process that shares this one's memory (`CLONE_VM` without `CLONE_THREAD`), which ends
/// with status 0 if the function returned true. Returns when the child has ended.
pub(crate) fn clone_with_memory(child: impl Fn() -> bool) -> Result<Pid> {
    let flags = nix::sched::CloneFlags::CLONE_VM | nix::sched::CloneFlags::CLONE_VFORK;
    let run = Box::new(|| isize::from(!child()));
    // SAFETY: the child has a stack of its own, and what is borrowed lives until it has ended.
    unsafe { nix::sched::clone(run, &mut vec![0; 1 << 20], flags, Some(nix::libc::SIGCHLD)) }.context("clone")
}

/// Like [`fork`], but the child shares this process's file descriptor table (`CLONE_FILES`).
pub(crate) fn fork_with_files(child: impl FnOnce() -> bool) -> Result<Pid> {
    let flags = nix::libc::CLONE_FILES as u64;
    clone3(&CloneArguments { flags, exit_signal: nix::libc::SIGCHLD as u64, ..CloneArguments::default() }, child)
}

/// How [`clone_thread`] makes a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThreadMode {
    /// The caller waits until the thread has ended or executed a program (`CLONE_VFORK`). Both share their descriptor
    /// table.
    Vfork,
    /// The same, but the thread has a descriptor table of its own, which is closed when it ends.
    VforkOwnFiles,
    /// Both run. They share thread-local memory, so the caller must end at once.
    Concurrent,
}

unsafe extern "C" {
    /// The C library's wrapper of `clone(2)`, without the checks of `clone(3)`: musl's refuses `CLONE_THREAD`.
    fn __clone(
        function: extern "C" fn(*mut nix::libc::c_void) -> nix::libc::c_int,
        stack: *mut nix::libc::c_void,
        flags: nix::libc::c_int,
        argument: *mut nix::libc::c_void,
        ...
    ) -> nix::libc::c_int;
}

/// Runs a function in a thread (`CLONE_THREAD`) that the C library does not know. The thread ends when the function
/// returns. The function must not start threads.
pub(crate) fn clone_thread<F: FnOnce() + 'static>(mode: ThreadMode, run: F) -> Result<()> {
    extern "C" fn start<F: FnOnce()>(run: *mut nix::libc::c_void) -> nix::libc::c_int {
        // SAFETY: it is the box that was given to `__clone`, which starts one thread.
        let run = unsafe { Box::from_raw(run.cast::<F>()) };
        run();
        0
    }
    const STACK: usize = 1 << 20;
    let always = nix::libc::CLONE_VM | nix::libc::CLONE_SIGHAND | nix::libc::CLONE_THREAD;
    let flags = match mode {
        ThreadMode::Vfork => nix::libc::CLONE_FS | nix::libc::CLONE_FILES | nix::libc::CLONE_VFORK,
        ThreadMode::VforkOwnFiles => nix::libc::CLONE_VFORK,
        ThreadMode::Concurrent => nix::libc::CLONE_FS | nix::libc::CLONE_FILES,
    };
    // The stack is never freed: nothing shows when the thread no longer uses it.
    let stack = Box::leak(vec![0_u128; STACK / size_of::<u128>()].into_boxed_slice());
    let run = Box::into_raw(Box::new(run));
    // SAFETY: the new thread has a stack of its own, which grows down from its aligned end, and owns what it runs. It
    // shares this thread's thread-local memory, so this thread waits in the kernel meanwhile, or ends at once.
    let thread = unsafe { __clone(start::<F>, stack.as_mut_ptr_range().end.cast(), always | flags, run.cast()) };
    if thread < 0 {
        // SAFETY: no thread was made that owns it.
        drop(unsafe { Box::from_raw(run) });
        bail!("clone a thread: {thread}");
    }
    Ok(())
}

/// Ends only this thread, even the main one.
pub(crate) fn exit_thread() -> ! {
    // SAFETY: the call touches no memory; the thread's values are leaked.
    unsafe { nix::libc::syscall(nix::libc::SYS_exit, 0) };
    unreachable!("exit(2) does not return")
}

/// Like [`fork`], but the child starts in the control group that `group` is open on (`CLONE_INTO_CGROUP`).
pub(crate) fn fork_into(group: &impl AsFd, child: impl FnOnce() -> bool) -> Result<Pid> {
    /// Of `linux/sched.h`.
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    let cgroup = group.as_fd().as_raw_fd() as u64;
    let exit_signal = nix::libc::SIGCHLD as u64;
    clone3(&CloneArguments { flags: CLONE_INTO_CGROUP, exit_signal, cgroup, ..CloneArguments::default() }, child)
}

/// `struct clone_args` of `linux/sched.h`, which not every C library has. All zeros mean no flags, no stack and no
/// addresses to write to.
#[repr(C)]
#[derive(Debug, Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Runs a function in a child process that does not share this one's memory.
fn clone3(arguments: &CloneArguments, child: impl FnOnce() -> bool) -> Result<Pid> {
    // SAFETY: the size is that of the arguments. As with a fork, the child continues on a copy of this stack; it calls
    // only what is safe after a fork, as the callers require.
    let result = unsafe { nix::libc::syscall(nix::libc::SYS_clone3, &raw const *arguments, size_of_val(arguments)) };
    match Errno::result(result).context("clone3")? {
        0 => {
            let status = i32::from(!child());
            // SAFETY: it ends the process at once; nothing of the parent's is run or dropped in the child.
            unsafe { nix::libc::_exit(status) }
        }
        pid => Ok(Pid::from_raw(i32::try_from(pid)?)),
    }
}

/// Removes a capability from the bounding set: this process's future programs cannot get it.
pub(crate) fn drop_capability(capability: nix::libc::c_int) -> Result<()> {
    // SAFETY: with this option prctl takes a number and touches no memory.
    let result = unsafe { nix::libc::prctl(nix::libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    Errno::result(result).context("drop a capability")?;
    Ok(())
}

/// A nonblocking `AF_PACKET` socket that receives every packet of one interface, with the link header.
pub(crate) fn packet_socket(interface: i32) -> Result<OwnedFd> {
    let every_protocol = nix::libc::ETH_P_ALL as u16;
    let kind = nix::libc::SOCK_RAW | nix::libc::SOCK_CLOEXEC | nix::libc::SOCK_NONBLOCK;
    // Without a protocol it receives nothing before it is bound.
    // SAFETY: no memory is touched.
    let socket = Errno::result(unsafe { nix::libc::socket(nix::libc::AF_PACKET, kind, 0) }).context("open a socket")?;
    // SAFETY: the descriptor was opened just now and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all zeros is a valid address.
    let mut address: nix::libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = nix::libc::AF_PACKET as u16;
    address.sll_protocol = every_protocol.to_be();
    address.sll_ifindex = interface;
    let length = size_of_val(&address) as nix::libc::socklen_t;
    // SAFETY: `length` is the size of the address, which lives as long as the call.
    let bound = unsafe { nix::libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    Errno::result(bound).context("bind it to an interface")?;
    Ok(socket)
}

/// Calls `bpf(2)` with a raw `union bpf_attr`. Returns the new descriptor, if the command makes one.
pub(crate) fn bpf(command: i32, arguments: &[u8]) -> Result<Option<OwnedFd>> {
    let mut arguments = arguments.to_vec();
    let (pointer, length) = (arguments.as_mut_ptr(), arguments.len());
    // SAFETY: the kernel reads and writes `length` bytes of a copy of the arguments. Pointers in them are only read.
    let result = unsafe { nix::libc::syscall(nix::libc::SYS_bpf, command, pointer, length) };
    match Errno::result(result)? {
        0 => Ok(None),
        // SAFETY: the descriptor was opened just now and has no other owner.
        made => Ok(Some(unsafe { OwnedFd::from_raw_fd(i32::try_from(made)?) })),
    }
}

/// A netlink socket of a protocol that `nix` has no type for.
pub(crate) fn netlink_socket(protocol: i32) -> Result<OwnedFd> {
    let kind = nix::libc::SOCK_RAW | nix::libc::SOCK_CLOEXEC;
    // SAFETY: no memory is touched.
    let socket = Errno::result(unsafe { nix::libc::socket(nix::libc::AF_NETLINK, kind, protocol) })?;
    // SAFETY: the descriptor was opened just now and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// A stream socket of a protocol that `nix` has no type for.
pub(crate) fn stream_socket(family: AddressFamily, protocol: i32, flags: SockFlag) -> Result<OwnedFd> {
    let kind = nix::libc::SOCK_STREAM | flags.bits();
    // SAFETY: no memory is touched.
    let socket = Errno::result(unsafe { nix::libc::socket(family as i32, kind, protocol) });
    let socket = socket.with_context(|| format!("open a socket of protocol {protocol}"))?;
    // SAFETY: the descriptor was opened just now and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// An MPTCP socket if it is requested and the kernel has MPTCP, otherwise a TCP socket.
pub(crate) fn tcp_or_mptcp_socket(is_v4: bool, is_mptcp: bool, flags: SockFlag) -> Result<OwnedFd> {
    let family = if is_v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let mptcp = is_mptcp.then(|| stream_socket(family, nix::libc::IPPROTO_MPTCP, flags).ok()).flatten();
    mptcp.map_or_else(|| stream_socket(family, nix::libc::IPPROTO_TCP, flags), Ok)
}

/// The number of packets that did not fit into a packet socket's buffer.
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

/// Sets a socket option that `nix` has no type for.
pub(crate) fn set_option(socket: &impl AsFd, level: i32, name: i32, value: &[u8]) -> Result<()> {
    let length = value.len() as nix::libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, which is the value's size.
    let result =
        unsafe { nix::libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    Errno::result(result).with_context(|| format!("set option {name} of level {level}"))?;
    Ok(())
}

/// How many datagrams a socket has dropped because its buffer was full (`SO_MEMINFO` of `socket(7)`).
pub(crate) fn datagrams_dropped(socket: &impl AsFd) -> Result<u32> {
    /// `SO_MEMINFO`, and the index of the drops in it (`linux/sock_diag.h`).
    const SO_MEMINFO: i32 = 55;
    const SK_MEMINFO_DROPS: usize = 8;
    let mut values = [0_u32; SK_MEMINFO_DROPS + 1];
    let mut length = size_of_val(&values) as nix::libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of the array.
    let result = unsafe {
        let (fd, level) = (socket.as_fd().as_raw_fd(), nix::libc::SOL_SOCKET);
        nix::libc::getsockopt(fd, level, SO_MEMINFO, values.as_mut_ptr().cast(), &raw mut length)
    };
    Errno::result(result).context("read the memory use of a socket")?;
    Ok(values[SK_MEMINFO_DROPS])
}

/// Sets a value of an interface by an `ETHTOOL_S*` command (`linux/ethtool.h`).
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

/// The local and the remote address of each subflow of an MPTCP connection (`MPTCP_SUBFLOW_ADDRS` of `linux/mptcp.h`,
/// Linux 5.16); empty if the socket is not an MPTCP socket.
pub(crate) fn subflows(socket: &impl AsFd) -> Result<Vec<[std::net::SocketAddr; 2]>> {
    const SOL_MPTCP: i32 = 284;
    const MPTCP_SUBFLOW_ADDRS: i32 = 3;
    /// `struct mptcp_subflow_data`.
    const HEADER: usize = 16;
    /// Of `struct __kernel_sockaddr_storage`; `struct mptcp_subflow_addrs` has two.
    const ADDRESS: usize = 128;
    let mut value = vec![0_u8; HEADER + 16 * 2 * ADDRESS];
    value[..4].copy_from_slice(&(HEADER as u32).to_ne_bytes());
    value[12..16].copy_from_slice(&(2 * ADDRESS as u32).to_ne_bytes());
    let mut length = value.len() as nix::libc::socklen_t;
    // SAFETY: the kernel reads and writes at most `length` bytes, which is the value's size.
    let result = unsafe {
        nix::libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            SOL_MPTCP,
            MPTCP_SUBFLOW_ADDRS,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if Errno::result(result).is_err() {
        return Ok(Vec::new());
    }
    let addresses = value.get(HEADER..length as usize).context("a short answer")?;
    addresses
        .chunks_exact(2 * ADDRESS)
        .map(|pair| Ok([address(&pair[..ADDRESS])?, address(&pair[ADDRESS..])?]))
        .collect()
}

/// The address in a `struct sockaddr_in` or `struct sockaddr_in6`.
fn address(bytes: &[u8]) -> Result<std::net::SocketAddr> {
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    match i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])) {
        nix::libc::AF_INET => Ok((<[u8; 4]>::try_from(&bytes[4..8])?, port).into()),
        nix::libc::AF_INET6 => Ok((<[u8; 16]>::try_from(&bytes[8..24])?, port).into()),
        family => bail!("an address of family {family}"),
    }
}

/// Owns a descriptor that this program inherited.
pub(crate) fn take_inherited(number: i32) -> Result<OwnedFd> {
    // SAFETY: no memory is touched; the call fails if the descriptor is not open.
    Errno::result(unsafe { nix::libc::fcntl(number, nix::libc::F_GETFD) })
        .context("look at an inherited descriptor")?;
    // SAFETY: it is open, and nothing else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends a descriptor over a Unix socket (`SCM_RIGHTS`).
pub(crate) fn send_descriptor(over: &UnixStream, descriptor: &OwnedFd) -> Result<()> {
    let descriptors = [descriptor.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&descriptors)];
    let byte = [IoSlice::new(b"x")];
    sendmsg::<()>(over.as_raw_fd(), &byte, &message, MsgFlags::empty(), None).context("pass a descriptor")?;
    Ok(())
}

/// Receives a descriptor from a Unix socket (`SCM_RIGHTS`).
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

/// Owns a descriptor that a call has just opened.
pub(crate) fn owned(number: i32) -> Result<OwnedFd> {
    anyhow::ensure!(number >= 0, "no descriptor");
    // SAFETY: the caller got it from the kernel just now and passes its only copy.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Connects by `IORING_OP_CONNECT`. Returns the ring's result: 0 or a negative errno.
pub(crate) fn connect_by_io_uring(socket: &OwnedFd, to: std::net::SocketAddr) -> Result<i32> {
    use nix::sys::socket::{SockaddrLike, SockaddrStorage};
    let to = SockaddrStorage::from(to);
    let descriptor = io_uring::types::Fd(socket.as_raw_fd());
    by_io_uring(&io_uring::opcode::Connect::new(descriptor, to.as_ptr(), to.len()).build())
}

/// Accepts by `IORING_OP_ACCEPT`. Returns a descriptor or a negative errno.
pub(crate) fn accept_by_io_uring(socket: &OwnedFd) -> Result<i32> {
    let descriptor = io_uring::types::Fd(socket.as_raw_fd());
    by_io_uring(&io_uring::opcode::Accept::new(descriptor, std::ptr::null_mut(), std::ptr::null_mut()).build())
}

/// Makes a socket by `IORING_OP_SOCKET` (Linux 5.19). Returns a descriptor or a negative errno.
pub(crate) fn socket_by_io_uring(family: i32, kind: i32, protocol: i32) -> Result<i32> {
    by_io_uring(&io_uring::opcode::Socket::new(family, kind, protocol).build())
}

/// Submits one entry, waits, and returns its result.
fn by_io_uring(entry: &io_uring::squeue::Entry) -> Result<i32> {
    let mut ring = io_uring::IoUring::new(2).context("make a ring")?;
    // SAFETY: the callers keep what the entry points to until this function has received the result.
    unsafe { ring.submission().push(entry) }.context("the submission ring has no room for an entry")?;
    ring.submit_and_wait(1).context("submit")?;
    let answer = ring.completion().next().context("the completion ring has no answer")?;
    Ok(answer.result())
}

/// The ids of all BPF programs and of all maps that the kernel has (`BPF_PROG_GET_NEXT_ID`, `BPF_MAP_GET_NEXT_ID`; Linux 4.13).
pub(crate) fn bpf_objects() -> Result<[BTreeSet<u32>; 2]> {
    const NEXT_PROGRAM: nix::libc::c_int = 11;
    const NEXT_MAP: nix::libc::c_int = 12;
    Ok([bpf_ids(NEXT_PROGRAM)?, bpf_ids(NEXT_MAP)?])
}

fn bpf_ids(command: nix::libc::c_int) -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    loop {
        // The id to start from, the next id, flags.
        let mut attributes = [ids.last().copied().unwrap_or(0), 0, 0, 0];
        // SAFETY: the attributes are those of these commands, which read and write nothing else.
        let answer =
            unsafe { nix::libc::syscall(nix::libc::SYS_bpf, command, &raw mut attributes, size_of_val(&attributes)) };
        match Errno::result(answer) {
            Ok(_) => {
                ids.insert(attributes[1]);
            }
            Err(Errno::ENOENT) => return Ok(ids),
            Err(error) => bail!("bpf command {command}: {error}"),
        }
    }
}
