//! `perf_event_open(2)` and its ioctls.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use perf_event_open_sys as perf;
use perf_event_open_sys::bindings;

use crate::Clock;

/// The kind of perf event to open.
#[derive(Clone, Copy, Debug)]
pub(crate) enum EventKind {
    /// An event that counts nothing and only owns a ring.
    Dummy,
    /// The trace event of this id. Each hit makes a sample.
    Trace(u32),
    /// The trace event of this id. Its hits are only counted.
    Count(u32),
    /// An event that a BPF program writes records through. Since Linux 4.4.
    Output,
    /// A sample without raw part, soon after the event is [enabled](enable_once).
    Timer,
}

/// Where samples come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RingSource {
    /// A CPU, for all threads that run on it.
    Cpu(u32),
    /// A thread, on any CPU.
    Thread(u32),
}

/// Settings that all events of one set of rings share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) clock: Clock,
    /// Whether the kernel supports close-on-exec here (Linux 3.14). If not, it is set afterwards.
    pub(crate) close_on_exec: bool,
    /// Whether the kernel has an event that counts nothing (Linux 3.12). If not, a clock that makes no samples takes
    /// its place.
    pub(crate) dummy: bool,
    /// The number of unread bytes at which a ring wakes its reader.
    pub(crate) watermark: u32,
}

/// The delay between enabling an [`EventKind::Timer`] and its sample.
const TIMER_NANOSECONDS: u64 = 100_000;

/// Opens an event, not yet enabled.
pub(crate) fn open(event: EventKind, source: RingSource, settings: &Settings) -> io::Result<OwnedFd> {
    let mut attr = bindings::perf_event_attr {
        size: size_of::<bindings::perf_event_attr>() as u32,
        sample_type: u64::from(bindings::PERF_SAMPLE_TID | bindings::PERF_SAMPLE_TIME | bindings::PERF_SAMPLE_RAW),
        read_format: u64::from(bindings::PERF_FORMAT_TOTAL_TIME_ENABLED),
        ..Default::default()
    };
    attr.__bindgen_anon_1.sample_period = 1;
    match event {
        EventKind::Dummy => {
            attr.type_ = bindings::PERF_TYPE_SOFTWARE;
            if settings.dummy {
                attr.config = u64::from(bindings::PERF_COUNT_SW_DUMMY);
            } else {
                attr.config = u64::from(bindings::PERF_COUNT_SW_CPU_CLOCK);
                attr.__bindgen_anon_1.sample_period = 0;
            }
        }
        EventKind::Trace(id) => {
            attr.type_ = bindings::PERF_TYPE_TRACEPOINT;
            attr.config = u64::from(id);
        }
        EventKind::Count(id) => {
            attr.type_ = bindings::PERF_TYPE_TRACEPOINT;
            attr.config = u64::from(id);
            attr.__bindgen_anon_1.sample_period = 0;
        }
        EventKind::Output => {
            attr.type_ = bindings::PERF_TYPE_SOFTWARE;
            attr.config = u64::from(bindings::PERF_COUNT_SW_BPF_OUTPUT);
        }
        EventKind::Timer => {
            attr.type_ = bindings::PERF_TYPE_SOFTWARE;
            attr.config = u64::from(bindings::PERF_COUNT_SW_CPU_CLOCK);
            attr.sample_type &= !u64::from(bindings::PERF_SAMPLE_RAW);
            attr.__bindgen_anon_1.sample_period = TIMER_NANOSECONDS;
        }
    }
    attr.__bindgen_anon_2.wakeup_watermark = settings.watermark;
    attr.set_watermark(1);
    attr.set_sample_id_all(1);
    attr.set_disabled(1);
    if settings.clock == Clock::Monotonic {
        attr.set_use_clockid(1);
        attr.clockid = libc::CLOCK_MONOTONIC;
    }
    let (pid, cpu) = match source {
        RingSource::Cpu(cpu) => (-1, cpu as libc::c_int),
        RingSource::Thread(tid) => {
            attr.sample_type |= u64::from(bindings::PERF_SAMPLE_CPU);
            (tid as libc::pid_t, -1)
        }
    };
    let flags = if settings.close_on_exec { libc::c_ulong::from(bindings::PERF_FLAG_FD_CLOEXEC) } else { 0 };
    // SAFETY: attr is initialised and lives through the call; no event touches our memory while it is opened.
    let fd = check(unsafe { perf::perf_event_open(&mut attr, pid, cpu, -1, flags) })?;
    // SAFETY: the kernel has just given us this descriptor, so nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if !settings.close_on_exec {
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    Ok(fd)
}

/// Starts an event.
pub(crate) fn enable(event: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the argument is a number.
    check(unsafe { perf::ioctls::ENABLE(event.as_raw_fd(), 0) }).map(drop)
}

/// Starts an event that stops after its next sample.
pub(crate) fn enable_once(event: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the argument is a number.
    check(unsafe { perf::ioctls::REFRESH(event.as_raw_fd(), 1) }).map(drop)
}

/// Lets an event write into the ring of another.
pub(crate) fn set_output(event: BorrowedFd<'_>, owner: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open; the kernel takes its own reference to the ring.
    check(unsafe { perf::ioctls::SET_OUTPUT(event.as_raw_fd(), owner.as_raw_fd()) }).map(drop)
}

/// Makes an event ignore the hits that do not match. The filter language is described in Documentation/trace/events.rst.
pub(crate) fn set_filter(event: BorrowedFd<'_>, filter: &CStr) -> io::Result<()> {
    // SAFETY: the string ends in NUL and lives through the call; the kernel copies it and writes nothing.
    check(unsafe { perf::ioctls::SET_FILTER(event.as_raw_fd(), filter.as_ptr().cast_mut()) }).map(drop)
}

/// Runs a BPF program at each hit of the trace event, until this perf event is closed. `EEXIST` if the trace event
/// already has one.
pub(crate) fn set_program(event: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open; the kernel takes its own reference to the program.
    check(unsafe { perf::ioctls::SET_BPF(event.as_raw_fd(), program.as_raw_fd().cast_unsigned()) }).map(drop)
}

/// How long the event has been enabled, in nanoseconds. No longer advances once its CPU has been offline.
pub(crate) fn time_enabled(event: BorrowedFd<'_>) -> io::Result<u64> {
    read(event).map(|[_, time]| time)
}

/// How often the event has been hit. Can still be read when its CPU is offline.
pub(crate) fn count(event: BorrowedFd<'_>) -> io::Result<u64> {
    read(event).map(|[count, _]| count)
}

/// The count, then the time, as `read_format` requests.
fn read(event: BorrowedFd<'_>) -> io::Result<[u64; 2]> {
    let mut words = [0; 16];
    let read = nix::unistd::read(event.as_fd(), &mut words)?;
    match words.as_chunks() {
        ([count, time], []) if read == words.len() => Ok([count, time].map(|word| u64::from_ne_bytes(*word))),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
