//! `bpf(2)`.
//!
//! The commands and the parts of `union bpf_attr` are from `linux/bpf.h`, which is ABI. If the attributes are shorter than the
//! kernel's, it reads the rest as zeros. If they are longer, it accepts them only if the rest is zeros.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::hook::{AttachType, ProgramType};

// The commands (`enum bpf_cmd`).
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const MAP_DELETE: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const LINK_CREATE: libc::c_int = 28;

/// The type of a map. The discriminant is the kernel's number (`enum bpf_map_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum MapType {
    /// `BPF_MAP_TYPE_ARRAY`, created with `BPF_F_MMAPABLE`: user space can map its values into memory. Since Linux 5.5.
    Array = 2,
    /// `BPF_MAP_TYPE_PERF_EVENT_ARRAY`: the key is a CPU, the value a descriptor of a perf event.
    PerfEventArray = 4,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`: each CPU has values of its own. Since Linux 4.6.
    PerCpuArray = 6,
}

impl MapType {
    /// The flags that a map of this type is created with.
    const fn flags(self) -> u32 {
        match self {
            // BPF_F_MMAPABLE
            Self::Array => 1 << 10,
            Self::PerfEventArray | Self::PerCpuArray => 0,
        }
    }
}

/// `bpf_probe_read` requires a licence string that `license_is_gpl_compatible` lists.
const LICENCE: &CStr = c"Dual MIT/GPL";

/// The name that `bpftool` shows, NUL-terminated: letters, digits and underscores. Since Linux 4.15.
pub(crate) type ObjectName = [u8; 16];

/// `BPF_MAP_CREATE`
#[repr(C, align(8))]
struct MapAttributes {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: ObjectName,
    padding: u32,
}

/// `BPF_MAP_*_ELEM`
#[repr(C, align(8))]
struct ElementAttributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `BPF_PROG_LOAD`
#[repr(C, align(8))]
struct ProgramAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: ObjectName,
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// `BPF_LINK_CREATE`
#[repr(C, align(8))]
struct LinkAttributes {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// `BPF_RAW_TRACEPOINT_OPEN`
#[repr(C, align(8))]
struct RawTracepointAttributes {
    name: u64,
    prog_fd: u32,
    padding: u32,
}

/// A map, with the sizes of its keys and values.
#[derive(Debug)]
pub(crate) struct Map {
    descriptor: OwnedFd,
    key_size: usize,
    value_size: usize,
}

impl Map {
    /// Creates a map, with all of its memory.
    pub(crate) fn new(
        map_type: MapType,
        name: ObjectName,
        (key_size, value_size): (u32, u32),
        entries: u32,
    ) -> io::Result<Self> {
        let mut attributes = MapAttributes {
            map_type: map_type as u32,
            key_size,
            value_size,
            max_entries: entries,
            map_flags: map_type.flags(),
            inner_map_fd: 0,
            numa_node: 0,
            map_name: name,
            padding: 0,
        };
        let mut create = |name| {
            attributes.map_name = name;
            // SAFETY: the attributes are those of this command; they contain no address.
            unsafe { opened(MAP_CREATE, &mut attributes) }
        };
        let descriptor = with_name_if_possible(name, &mut create)?;
        Ok(Self { descriptor, key_size: key_size as usize, value_size: value_size as usize })
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Sets the value of a key, whether the key exists or not.
    pub(crate) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        // SAFETY: key and value live through the call and have the map's sizes: the kernel reads both.
        unsafe { self.element(MAP_UPDATE, key, Some((address(value.as_ptr()), value.len()))) }
    }

    /// Removes the key. `ENOENT` if it is missing.
    pub(crate) fn delete(&self, key: &[u8]) -> io::Result<()> {
        // SAFETY: the key lives through the call and has the map's size: the kernel reads it.
        unsafe { self.element(MAP_DELETE, key, None) }
    }

    /// Checks the sizes, which the kernel cannot do, and makes the system call.
    ///
    /// # Safety
    /// Address and size of the value must describe memory that the command may read or write.
    unsafe fn element(&self, command: libc::c_int, key: &[u8], value: Option<(u64, usize)>) -> io::Result<()> {
        let (value, size) = value.unwrap_or((0, self.value_size));
        if key.len() != self.key_size || size != self.value_size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let map_fd = self.descriptor.as_raw_fd().cast_unsigned();
        let mut attributes = ElementAttributes { map_fd, padding: 0, key: address(key.as_ptr()), value, flags: 0 };
        // SAFETY: the attributes are those of this command, and the caller vouches for the addresses.
        unsafe { call(command, &mut attributes) }.map(drop)
    }
}

/// Whether this thread may change the elements of maps that it has opened.
pub(crate) fn may_change_maps() -> bool {
    let mut attributes = ElementAttributes { map_fd: u32::MAX, padding: 0, key: 0, value: 0, flags: 0 };
    // SAFETY: the attributes are those of this command. No map has this descriptor, so the kernel uses no address.
    let answer = unsafe { call(MAP_UPDATE, &mut attributes) };
    answer.map_err(|error| error.raw_os_error()) != Err(Some(libc::EPERM))
}

/// Attaches a program to a control group, beside those of others. The program stays attached as long as the returned descriptor is
/// open. Since Linux 5.7.
pub(crate) fn attach_to_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    let [prog_fd, target_fd] = [program, cgroup].map(|fd| fd.as_raw_fd().cast_unsigned());
    let mut attributes = LinkAttributes { prog_fd, target_fd, attach_type: attach_type as u32, flags: 0 };
    // SAFETY: the attributes are those of this command; they contain no address.
    unsafe { opened(LINK_CREATE, &mut attributes) }
}

/// Attaches a program to a raw tracepoint, as long as the returned descriptor is open. Since Linux 4.17.
pub(crate) fn attach_to_tracepoint(program: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let prog_fd = program.as_raw_fd().cast_unsigned();
    let mut attributes = RawTracepointAttributes { name: address(name.as_ptr().cast()), prog_fd, padding: 0 };
    // SAFETY: the attributes are those of this command, and the name lives through the call.
    unsafe { opened(RAW_TRACEPOINT_OPEN, &mut attributes) }
}

/// Verifies and loads a program of this type. With a `log`, the verifier writes its NUL-terminated output there.
pub(crate) fn load_program(
    (program_type, attach_type): (ProgramType, Option<AttachType>),
    name: ObjectName,
    instructions: &[[u8; 8]],
    kernel_version: u32,
    log: Option<&mut [u8]>,
) -> io::Result<OwnedFd> {
    let (log_level, log_size, log_buf) = match log {
        Some(log) => (1, size(log.len())?, address(log.as_mut_ptr().cast_const())),
        None => (0, 0, 0),
    };
    let mut attributes = ProgramAttributes {
        prog_type: program_type as u32,
        insn_cnt: size(instructions.len())?,
        insns: address(instructions.as_ptr().cast()),
        license: address(LICENCE.as_ptr().cast()),
        log_level,
        log_size,
        log_buf,
        kern_version: kernel_version,
        prog_flags: 0,
        prog_name: name,
        prog_ifindex: 0,
        expected_attach_type: attach_type.map_or(0, |attach_type| attach_type as u32),
    };
    let mut load = |name| {
        attributes.prog_name = name;
        // SAFETY: the attributes are those of this command. Instructions, licence and log live through the call and
        // have the stated sizes. The kernel writes only to the log, which is borrowed mutably.
        unsafe { opened(PROG_LOAD, &mut attributes) }
    };
    with_name_if_possible(name, &mut load)
}

/// Older kernels do not know names. They see them as bytes after their own attributes, which must be zeros.
fn with_name_if_possible(
    name: ObjectName,
    make: &mut impl FnMut(ObjectName) -> io::Result<OwnedFd>,
) -> io::Result<OwnedFd> {
    match make(name) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::E2BIG | libc::EINVAL)) => make(ObjectName::default()),
        made_or_not => made_or_not,
    }
}

/// # Safety
/// As for [`call`], with a command that returns a new descriptor.
unsafe fn opened<A>(command: libc::c_int, attributes: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for the attributes.
    let descriptor = unsafe { call(command, attributes) }?;
    // SAFETY: the kernel has just opened it, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// # Safety
/// `attributes` must be those of the command, and each address in them must point at memory of the size that they
/// state.
unsafe fn call<A>(command: libc::c_int, attributes: &mut A) -> io::Result<libc::c_int> {
    // SAFETY: the attributes live through the call, and the size passed is the size of their type.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>()) };
    match libc::c_int::try_from(answer) {
        Ok(answer @ 0..) => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}

fn address(pointer: *const u8) -> u64 {
    pointer.expose_provenance() as u64
}

fn size(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// `union bpf_attr` of Linux 4.17.
    #[test]
    fn attributes_are_laid_out_as_in_the_kernel() {
        assert_eq!(offset_of!(MapAttributes, map_name), 28);
        assert_eq!(size_of::<MapAttributes>(), 48);
        assert_eq!([offset_of!(ElementAttributes, key), offset_of!(ElementAttributes, flags)], [8, 24]);
        let of_program = [
            offset_of!(ProgramAttributes, insns),
            offset_of!(ProgramAttributes, license),
            offset_of!(ProgramAttributes, log_buf),
            offset_of!(ProgramAttributes, kern_version),
            offset_of!(ProgramAttributes, prog_name),
        ];
        assert_eq!(of_program, [8, 16, 32, 40, 48]);
        assert_eq!(offset_of!(ProgramAttributes, expected_attach_type), 68);
        assert_eq!(size_of::<ProgramAttributes>(), 72);
    }
}
