//! System calls that have no safe wrapper: the one module that is unsafe.

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::fs::File;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;

/// User or group ids to give to the calling thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) real: u32,
    pub(crate) effective: u32,
    pub(crate) saved: u32,
}

/// Which ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    User,
    Group,
}

fn answer(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sets ids of the calling thread alone; the C library's function of that name would set them in all threads.
pub(crate) fn set_ids(of: Of, ids: Ids) -> io::Result<()> {
    let call = match of {
        Of::User => libc::SYS_setresuid,
        Of::Group => libc::SYS_setresgid,
    };
    // SAFETY: the call takes three numbers and touches no memory of ours.
    answer(unsafe { libc::syscall(call, ids.real, ids.effective, ids.saved) }).map(drop)
}

/// Sets the id by which the calling thread alone accesses files.
pub(crate) fn set_file_id(of: Of, id: u32) {
    let call = match of {
        Of::User => libc::SYS_setfsuid,
        Of::Group => libc::SYS_setfsgid,
    };
    // SAFETY: the call takes a number and touches no memory of ours. It returns the id before, never an error.
    unsafe { libc::syscall(call, id) };
}

/// The ids of the calling thread.
pub(crate) fn ids(of: Of) -> Ids {
    let call = match of {
        Of::User => libc::SYS_getresuid,
        Of::Group => libc::SYS_getresgid,
    };
    let mut ids = Ids { real: 0, effective: 0, saved: 0 };
    // SAFETY: the pointers are to three live numbers of the size that the call writes.
    unsafe { libc::syscall(call, &raw mut ids.real, &raw mut ids.effective, &raw mut ids.saved) };
    ids
}

/// Whether this process may leave a core file and be traced by its user.
pub(crate) fn dumpable() -> bool {
    // SAFETY: the call takes no memory of ours.
    unsafe { libc::prctl(libc::PR_GET_DUMPABLE) == 1 }
}

/// Lets this process leave a core file.
pub(crate) fn set_dumpable() {
    // SAFETY: the call takes a number. With these it cannot fail.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
}

/// The option of a TCP socket that tells its counters, as many bytes of it as this kernel has.
pub(crate) fn tcp_info(socket: impl AsFd) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; 512];
    let mut length = bytes.len() as libc::socklen_t;
    let (fd, into) = (socket.as_fd().as_raw_fd(), bytes.as_mut_ptr().cast::<c_void>());
    // SAFETY: `into` is to `length` bytes that live through the call.
    let result = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut length) };
    answer(result.into())?;
    bytes.truncate(length as usize);
    Ok(bytes)
}

/// Makes a UDP socket send without checksums.
pub(crate) fn no_checksums(socket: impl AsFd) -> io::Result<()> {
    switch_on(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK)
}

/// Makes a raw IPv4 socket send fragments as they are, also where connections are tracked.
pub(crate) fn keep_fragments(socket: impl AsFd) -> io::Result<()> {
    switch_on(socket, libc::IPPROTO_IP, libc::IP_NODEFRAG)
}

fn switch_on(socket: impl AsFd, level: c_int, option: c_int) -> io::Result<()> {
    let on: c_int = 1;
    let (fd, from, size) = (socket.as_fd().as_raw_fd(), (&raw const on).cast::<c_void>(), size_of::<c_int>());
    // SAFETY: `from` is to `size` bytes that live through the call.
    let result = unsafe { libc::setsockopt(fd, level, option, from, size as libc::socklen_t) };
    answer(result.into()).map(drop)
}

/// What two clocks of the kernel show, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(crate) struct Clocks {
    /// `CLOCK_MONOTONIC`: without the time that the machine was suspended.
    pub(crate) monotonic: u64,
    /// `CLOCK_BOOTTIME`: with it.
    pub(crate) boottime: u64,
}

/// A span of time on both clocks.
pub(crate) type Between = RangeInclusive<Clocks>;

impl Clocks {
    /// Reads both.
    pub(crate) fn now() -> io::Result<Self> {
        let nanos = |clock| {
            let time = clock_gettime(clock)?;
            Ok::<_, io::Error>(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
        };
        Ok(Self { monotonic: nanos(ClockId::CLOCK_MONOTONIC)?, boottime: nanos(ClockId::CLOCK_BOOTTIME)? })
    }
}

/// A process that will execute a program once it is told to, and ends if it never is.
#[derive(Debug)]
pub(crate) struct PausedChild {
    pid: Pid,
    born: Between,
    /// Both ends, so that writing never raises SIGPIPE. Without a word the child sees the end of the pipe.
    gate: Option<(OwnedFd, File)>,
}

impl PausedChild {
    /// Starts it. The file descriptors of the calling process are those of the child.
    pub(crate) fn new(program: &CStr, arguments: &[CString], environment: &[CString]) -> io::Result<Self> {
        let list = |strings: &[CString]| {
            let pointers = strings.iter().map(|string| string.as_ptr());
            pointers.chain([ptr::null()]).collect::<Vec<*const c_char>>()
        };
        let (arguments, environment) = (list(arguments), list(environment));
        let (word, gate) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (word_fd, gate_fd) = (word.as_raw_fd(), gate.as_raw_fd());
        let before = Clocks::now()?;
        // SAFETY: with no flag but an exit signal, here none, the call makes a copy of the process with only this
        // thread, like fork(2). Without a signal its end disturbs nobody who handles SIGCHLD or waits for any child.
        let pid = answer(unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) })?;
        if pid == 0 {
            // SAFETY: only the one thread lives in the copy, and other threads may have held locks. So nothing but
            // system calls follow, on memory that was prepared before and on descriptors that are open.
            unsafe { execute_when_told(gate_fd, word_fd, program, &arguments, &environment) }
        }
        let pid = Pid::from_raw(pid as i32);
        // From here on it is waited for, whatever fails.
        let mut child = Self { pid, born: before..=before, gate: Some((word, gate.into())) };
        child.born = before..=Clocks::now()?;
        Ok(child)
    }

    /// What the clocks showed before it was made and after.
    pub(crate) fn born(&self) -> &Between {
        &self.born
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// Tells it to execute its program and waits for its end.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut gate = self.gate.take().expect("it is told only once");
        gate.1.write_all(&[1])?;
        self.wait();
        Ok(())
    }

    fn wait(&self) {
        // Having executed a program it is a child like others: if someone has waited for it, it is gone as well.
        while let Err(nix::Error::EINTR) = waitpid(self.pid, Some(WaitPidFlag::__WALL)) {}
    }
}

impl Drop for PausedChild {
    fn drop(&mut self) {
        if self.gate.take().is_some() {
            self.wait();
        }
    }
}

/// What the child does.
///
/// # Safety
///
/// The lists must end with a null pointer, and their other pointers must be to strings.
unsafe fn execute_when_told(
    gate: c_int,
    word: c_int,
    program: &CStr,
    arguments: &[*const c_char],
    environment: &[*const c_char],
) -> ! {
    let mut told = 0u8;
    // SAFETY: the descriptors are open, `told` is one byte, and the caller vouches for the lists.
    unsafe {
        libc::close(gate);
        if libc::read(word, (&raw mut told).cast::<c_void>(), 1) == 1 {
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
    fn a_child_executes_when_told_and_is_gone_then() {
        let child = child("/bin/true");
        let pid = child.pid();
        assert!(exists(pid));
        child.run().unwrap();
        assert!(!exists(pid));
    }

    #[test]
    fn a_child_that_is_never_told_ends() {
        let child = child("/bin/true");
        let pid = child.pid();
        drop(child);
        assert!(!exists(pid));
    }

    #[test]
    fn ids_are_those_of_the_thread() {
        let ids = ids(Of::User);
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
