//! System calls that have no safe wrapper. Only this module has unsafe code.

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::fs::File;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;

/// The user or group ids of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) real: u32,
    pub(crate) effective: u32,
    pub(crate) saved: u32,
}

/// Whether ids are those of users or of groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdKind {
    User,
    Group,
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sets the ids of the calling thread. The C library's functions would set those of all threads.
pub(crate) fn set_ids(kind: IdKind, ids: Ids) -> io::Result<()> {
    let number = match kind {
        IdKind::User => libc::SYS_setresuid,
        IdKind::Group => libc::SYS_setresgid,
    };
    // SAFETY: the call takes three numbers and does not access this process's memory.
    check(unsafe { libc::syscall(number, ids.real, ids.effective, ids.saved) }).map(drop)
}

/// Sets the id with which the calling thread accesses files.
pub(crate) fn set_file_id(kind: IdKind, id: u32) {
    let number = match kind {
        IdKind::User => libc::SYS_setfsuid,
        IdKind::Group => libc::SYS_setfsgid,
    };
    // SAFETY: the call takes a number and does not access this process's memory. It returns the previous id, never an
    // error.
    unsafe { libc::syscall(number, id) };
}

/// The ids of the calling thread.
pub(crate) fn ids(kind: IdKind) -> Ids {
    let number = match kind {
        IdKind::User => libc::SYS_getresuid,
        IdKind::Group => libc::SYS_getresgid,
    };
    let mut ids = Ids { real: 0, effective: 0, saved: 0 };
    // SAFETY: the pointers are to three numbers of the size that the call writes, and they live until after it.
    unsafe { libc::syscall(number, &raw mut ids.real, &raw mut ids.effective, &raw mut ids.saved) };
    ids
}

/// Whether this process may leave a core file and be traced by its user (`prctl(PR_GET_DUMPABLE)`).
pub(crate) fn dumpable() -> bool {
    // SAFETY: the call does not access this process's memory.
    unsafe { libc::prctl(libc::PR_GET_DUMPABLE) == 1 }
}

/// Allows this process to leave a core file.
pub(crate) fn set_dumpable() {
    // SAFETY: the call takes numbers and does not access this process's memory. With these arguments it cannot fail.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
}

/// A TCP socket's counters (`TCP_INFO`), as many bytes as this kernel has.
pub(crate) fn tcp_info(socket: impl AsFd) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; 512];
    let mut length = bytes.len() as libc::socklen_t;
    let (fd, into) = (socket.as_fd().as_raw_fd(), bytes.as_mut_ptr().cast::<c_void>());
    // SAFETY: `into` points to `length` bytes that live until after the call.
    let result = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut length) };
    check(result.into())?;
    bytes.truncate(length as usize);
    Ok(bytes)
}

/// Makes a UDP socket send packets without checksums.
pub(crate) fn no_checksums(socket: impl AsFd) -> io::Result<()> {
    switch_on(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK)
}

/// Keeps connection tracking from reassembling the fragments that a raw IPv4 socket sends.
pub(crate) fn keep_fragments(socket: impl AsFd) -> io::Result<()> {
    switch_on(socket, libc::IPPROTO_IP, libc::IP_NODEFRAG)
}

/// Makes a socket send IPv4 headers with `words` words of 4 bytes, at most 10, of the option "no operation" (RFC 791).
pub(crate) fn set_ipv4_no_operations(socket: impl AsFd, words: usize) -> io::Result<()> {
    /// The number of the option "no operation".
    const NO_OPERATION: u8 = 1;
    set_option(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &vec![NO_OPERATION; 4 * words])
}

fn switch_on(socket: impl AsFd, level: c_int, option: c_int) -> io::Result<()> {
    set_option(socket, level, option, &c_int::from(true).to_ne_bytes())
}

fn set_option(socket: impl AsFd, level: c_int, option: c_int, value: &[u8]) -> io::Result<()> {
    let (fd, from, size) = (socket.as_fd().as_raw_fd(), value.as_ptr().cast::<c_void>(), value.len());
    // SAFETY: `from` points to `size` bytes that live until after the call. The kernel accepts any alignment.
    let result = unsafe { libc::setsockopt(fd, level, option, from, size as libc::socklen_t) };
    check(result.into()).map(drop)
}

/// The time on two clocks of the kernel, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(crate) struct Clocks {
    /// `CLOCK_MONOTONIC`, which does not count the time that the machine was suspended.
    pub(crate) monotonic: u64,
    /// `CLOCK_BOOTTIME`, which counts it.
    pub(crate) boottime: u64,
}

/// An interval of time on both clocks.
pub(crate) type ClockInterval = RangeInclusive<Clocks>;

impl Clocks {
    /// Reads both clocks.
    pub(crate) fn now() -> io::Result<Self> {
        let nanos = |clock| {
            let time = clock_gettime(clock)?;
            Ok::<_, io::Error>(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
        };
        Ok(Self { monotonic: nanos(ClockId::CLOCK_MONOTONIC)?, boottime: nanos(ClockId::CLOCK_BOOTTIME)? })
    }
}

/// A child process that waits until it is told to execute a program. It ends if it is dropped before.
#[derive(Debug)]
pub(crate) struct PausedChild {
    pid: Pid,
    started: ClockInterval,
    start_pipe: Option<StartPipe>,
}

/// A byte in this pipe tells the child to execute its program; the end of the pipe tells it to end.
#[derive(Debug)]
struct StartPipe {
    /// Kept open so that writing never raises SIGPIPE.
    _read_end: OwnedFd,
    write_end: File,
}

impl PausedChild {
    /// Starts a child. It has the file descriptors of the calling process.
    pub(crate) fn new(program: &CStr, arguments: &[CString], environment: &[CString]) -> io::Result<Self> {
        let list = |strings: &[CString]| {
            let pointers = strings.iter().map(|string| string.as_ptr());
            pointers.chain([ptr::null()]).collect::<Vec<*const c_char>>()
        };
        let (arguments, environment) = (list(arguments), list(environment));
        let (read_end, write_end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (read_fd, write_fd) = (read_end.as_raw_fd(), write_end.as_raw_fd());
        let before = Clocks::now()?;
        // SAFETY: without flags the call copies the process with only this thread, like fork(2). The exit signal is 0,
        // so that the child's end does not disturb code that handles SIGCHLD or waits for any child.
        let pid = check(unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) })?;
        if pid == 0 {
            // SAFETY: the copy has only this thread, and other threads may have held locks. So only system calls
            // follow, on memory that was prepared before and on open descriptors.
            unsafe { wait_and_execute(write_fd, read_fd, program, &arguments, &environment) }
        }
        let pid = Pid::from_raw(pid as i32);
        // From here on the child is waited for, whatever fails.
        let mut child = Self {
            pid,
            started: before..=before,
            start_pipe: Some(StartPipe { _read_end: read_end, write_end: write_end.into() }),
        };
        child.started = before..=Clocks::now()?;
        Ok(child)
    }

    /// When the child was started: the clocks before and after.
    pub(crate) fn started(&self) -> &ClockInterval {
        &self.started
    }

    /// The child's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// Tells the child to execute its program, and waits until it has ended.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut pipe = self.start_pipe.take().expect("`run` is called once");
        let written = pipe.write_end.write_all(&[1]);
        // If the byte was not written, the end of the pipe ends the child.
        drop(pipe);
        self.wait();
        written
    }

    fn wait(&self) {
        // After it has executed a program it is a child like others, so other code may have waited for it. Then it is
        // gone as well.
        while let Err(nix::Error::EINTR) = waitpid(self.pid, Some(WaitPidFlag::__WALL)) {}
    }
}

impl Drop for PausedChild {
    fn drop(&mut self) {
        if self.start_pipe.take().is_some() {
            self.wait();
        }
    }
}

/// The code of the child: waits for a byte and executes the program.
///
/// # Safety
///
/// The lists must end with a null pointer, and their other pointers must be to C strings.
unsafe fn wait_and_execute(
    write_end: c_int,
    read_end: c_int,
    program: &CStr,
    arguments: &[*const c_char],
    environment: &[*const c_char],
) -> ! {
    let mut byte = 0u8;
    // SAFETY: the descriptors are open, `byte` is one byte, and the caller guarantees the lists.
    unsafe {
        libc::close(write_end);
        if libc::read(read_end, (&raw mut byte).cast::<c_void>(), 1) == 1 {
            libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
        }
        libc::_exit(127)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(program: &str) -> PausedChild {
        let program = CString::new(program).unwrap();
        PausedChild::new(&program, std::slice::from_ref(&program), &[]).unwrap()
    }

    fn exists(pid: u32) -> bool {
        std::path::Path::new("/proc").join(pid.to_string()).exists()
    }

    #[test]
    fn a_child_executes_its_program_and_is_gone() {
        let child = child("/bin/true");
        let pid = child.pid();
        assert!(exists(pid));
        child.run().unwrap();
        assert!(!exists(pid));
    }

    #[test]
    fn a_child_that_is_dropped_ends() {
        let child = child("/bin/true");
        let pid = child.pid();
        drop(child);
        assert!(!exists(pid));
    }

    #[test]
    fn ids_are_those_of_the_thread() {
        let ids = ids(IdKind::User);
        assert_eq!(ids.real, nix::unistd::getuid().as_raw());
        assert_eq!(ids.effective, nix::unistd::geteuid().as_raw());
    }

    #[test]
    fn a_listening_socket_has_counters() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(tcp_info(&listener).unwrap().len() >= 104);
        assert!(tcp_info(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).is_err());
    }
}
