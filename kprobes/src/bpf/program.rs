//! Programs, verified and loaded.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::map::with_memory;
use super::{Code, Map, kernel_version};
use crate::hook::{AttachType, ProgramType};
use crate::probe::check_name;
use crate::symbols::is_before;
use crate::sys::bpf::{self, ObjectName};
use crate::sys::limits;
use crate::{Error, Hook};

/// The size of the verifier's log in bytes. The verifier writes a line for each instruction that it visits.
const LOG_SIZE: usize = 1 << 20;
/// The number of bytes of the log that an error keeps. The reason is at its end.
const KEPT_LOG: usize = 1000;

/// A program that the kernel has verified. It is freed with its last user: this handle, or the [`Rings`](crate::Rings)
/// that it is attached to.
#[derive(Clone, Debug)]
pub struct Program {
    descriptor: Arc<OwnedFd>,
    name: String,
}

impl Program {
    /// Loads `code` and replaces map numbers in it with `maps`; the first is number 0. The name has at most 15 letters,
    /// digits and underscores; `bpftool prog` shows it since Linux 4.15.
    ///
    /// # Errors
    /// [`Error::NoBpf`], [`Error::NoBpfEvents`], [`Error::Permission`]; [`Error::Limit`] before Linux 5.11, if
    /// `RLIMIT_MEMLOCK` cannot be raised; [`Error::ProgramRefused`] with the verifier's log; [`Error::BadProgram`] if a
    /// map is missing, [`Error::BadName`].
    pub fn load(name: &str, code: &Code, maps: &[&Map]) -> Result<Self, Error> {
        Self::load_as((ProgramType::Kprobe, None), name, code, maps)
    }

    /// Like [`Program::load`], for a hook.
    ///
    /// # Errors
    /// Those of [`Program::load`], and [`Error::NoHook`] in place of [`Error::NoBpfEvents`].
    pub fn load_at(hook: Hook, name: &str, code: &Code, maps: &[&Map]) -> Result<Self, Error> {
        let loaded = Self::load_as((hook.program_type(), hook.attach_type()), name, code, maps);
        loaded.map_err(|error| match error {
            Error::NoBpfEvents { source, .. } => Error::NoHook { hook: hook.name(), source },
            other => other,
        })
    }

    fn load_as(kind: (ProgramType, Option<AttachType>), name: &str, code: &Code, maps: &[&Map]) -> Result<Self, Error> {
        let kernel_name = object_name("a BPF program", name)?;
        let descriptors: Vec<_> = maps.iter().map(|map| map.descriptor()).collect();
        let code = code.with_maps(&descriptors);
        let code = code.map_err(|source| Error::BadProgram { program: name.to_owned(), source })?;
        let instructions: Vec<_> = code.instructions().iter().map(|instruction| instruction.bytes()).collect();
        let version = kernel_version::running();
        match with_memory(|| bpf::load_program(kind, kernel_name, &instructions, version, None)) {
            Ok(descriptor) => Ok(Self { descriptor: Arc::new(descriptor), name: name.to_owned() }),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
                Err(limits::bpf_error(&format!("the BPF program {name}"), error))
            }
            Err(error) => {
                // The verifier takes much longer if it writes a log.
                let mut log = vec![0; LOG_SIZE];
                let _ = bpf::load_program(kind, kernel_name, &instructions, version, Some(&mut log));
                let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
                Err(refusal(name, error, &log, Some(version).filter(|_| is_before(&release, (5, 0)))))
            }
        }
    }

    /// The name under which it was loaded.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of hits at which the kernel did not run it, because another program was running on that CPU. Such a hit makes
    /// no sample either. Linux has counted this since 5.12, but for programs at kprobes only since 6.7. `None` if it does not.
    pub fn skipped(&self) -> Option<u64> {
        let path = format!("/proc/self/fdinfo/{}", self.descriptor.as_raw_fd());
        skipped_in(&std::fs::read_to_string(path).ok()?)
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// A name in the kernel's form, NUL-terminated.
pub(super) fn object_name(what: &'static str, name: &str) -> Result<ObjectName, Error> {
    let mut bytes = ObjectName::default();
    check_name(what, name, bytes.len() - 1)?;
    bytes.iter_mut().zip(name.bytes()).for_each(|(to, byte)| *to = byte);
    Ok(bytes)
}

/// The count in the `fdinfo` of a program (`bpf_prog_show_fdinfo`).
fn skipped_in(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?.trim().parse().ok()
}

/// The error for a program that was not loaded. If the verifier wrote nothing, the kernel either does not know programs
/// at kprobes, or checks `version` and refused it.
fn refusal(name: &str, source: io::Error, log: &[u8], version: Option<u32>) -> Error {
    let log = end_of(log);
    if log.is_empty() && source.raw_os_error() == Some(libc::EINVAL) {
        return Error::NoBpfEvents { version, source };
    }
    Error::ProgramRefused { program: name.to_owned(), log, source }
}

/// The last whole lines of a NUL-terminated log.
fn end_of(log: &[u8]) -> String {
    let log = log.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
    let start = log.len().saturating_sub(KEPT_LOG);
    let line = if start == 0 { Some(0) } else { log[start..].iter().position(|byte| *byte == b'\n').map(|at| at + 1) };
    String::from_utf8_lossy(&log[start + line.unwrap_or(0)..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn the_end_of_the_log_says_why() {
        assert_eq!(end_of(b"0: (b7) r0 = 0\nR1 !read_ok\n\0\0junk"), "0: (b7) r0 = 0\nR1 !read_ok");
        assert_eq!(end_of(&[0; 8]), "");
        let long: String = (0..1000).map(|number| format!("line {number}\n")).collect();
        let end = end_of(long.as_bytes());
        assert!(end.starts_with("line ") && end.ends_with("line 999") && end.len() <= KEPT_LOG, "{end}");
        assert_eq!(end_of(&[b'x'; 3000]).len(), KEPT_LOG);
    }

    #[test]
    fn skipped_hits_are_counted_by_newer_kernels() {
        let older = "pos:\t0\nprog_type:\t2\nrun_cnt:\t7\n";
        assert_eq!(skipped_in(older), None);
        assert_eq!(skipped_in(&format!("{older}recursion_misses:\t12\nverified_insns:\t9\n")), Some(12));
    }

    #[test]
    fn refusals_have_different_errors() {
        let why = |errno, log: &[u8], version| refusal("p", io::Error::from_raw_os_error(errno), log, version);
        let refused = why(libc::EINVAL, b"R1 !read_ok\n\0", None);
        assert_eq!(refused.kind(), Kind::Declaration);
        assert!(refused.to_string().ends_with("(R1 !read_ok)"), "{refused}");
        assert!(matches!(why(libc::EINVAL, b"", None), Error::NoBpfEvents { version: None, .. }));
        let older = why(libc::EINVAL, b"", Some(0x04_0e_62));
        assert!(
            older.to_string().ends_with("it needs CONFIG_BPF_EVENTS, or its real version is not 4.14.98"),
            "{older}"
        );
        assert_eq!(why(libc::E2BIG, b"", None).kind(), Kind::Declaration);
    }

    #[test]
    fn names_must_be_valid_in_the_kernel() {
        assert_eq!(&object_name("a BPF map", "udp_in").unwrap(), b"udp_in\0\0\0\0\0\0\0\0\0\0");
        assert!(object_name("a BPF map", "exactly_fifteen").is_ok());
        for name in ["", "sixteen_letters_", "udp-in", "1"] {
            assert_eq!(object_name("a BPF map", name).unwrap_err().kind(), Kind::Declaration, "{name}");
        }
    }
}
