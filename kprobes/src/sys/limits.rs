//! Resource limits: they are raised when one is hit, and described in an error if that does not help.

use std::fs;
use std::io;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t, setrlimit};

use crate::Error;
use crate::symbols::is_before;
use crate::sys::privileges;

/// Raises the limit to allow `more` descriptors. Returns whether it is higher than before.
pub(crate) fn raise_files(more: usize) -> bool {
    let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return false };
    raise(Resource::RLIMIT_NOFILE, soft.saturating_add(soft.max(more as rlim_t)))
}

/// Raises the limit on locked memory. Returns whether it is higher than before.
pub(crate) fn raise_memory() -> bool {
    raise(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY)
}

fn raise(resource: Resource, wanted: rlim_t) -> bool {
    let Ok((soft, hard)) = getrlimit(resource) else { return false };
    if soft >= wanted {
        return false;
    }
    // Above the hard limit only with CAP_SYS_RESOURCE.
    if setrlimit(resource, wanted, wanted.max(hard)).is_ok() {
        return true;
    }
    soft < hard && setrlimit(resource, wanted.min(hard), hard).is_ok()
}

/// The error for a perf event that could not be opened.
pub(crate) fn open_error(what: &str, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::EMFILE) => Error::Limit {
            limit: "RLIMIT_NOFILE",
            value: limit(Resource::RLIMIT_NOFILE),
            what: what.to_owned(),
            remedy: "each probe takes a file for each CPU: raise it with `ulimit -n` or LimitNOFILE=".to_owned(),
        },
        Some(libc::ENFILE) => Error::Limit {
            limit: "fs.file-max",
            value: setting("fs/file-max"),
            what: what.to_owned(),
            remedy: "the host is out of files: raise it with `sysctl fs.file-max=…`".to_owned(),
        },
        Some(libc::EPERM | libc::EACCES) => {
            let remedy = format!(
                "{} (kernel.perf_event_paranoid is {})",
                privileges::remedy("CAP_PERFMON"),
                setting("kernel/perf_event_paranoid")
            );
            Error::Permission { what: what.to_owned(), remedy, source }
        }
        Some(libc::ENOSYS) => Error::io(format!("{what}: this kernel has no perf events"), source),
        _ => Error::io(what, source),
    }
}

/// The error for a ring of `bytes` that could not be mapped.
pub(crate) fn map_error(what: &str, bytes: usize, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::EPERM) => Error::Limit {
            limit: "RLIMIT_MEMLOCK",
            value: limit(Resource::RLIMIT_MEMLOCK),
            what: what.to_owned(),
            remedy: format!(
                "each CPU's ring locks {} KiB beyond kernel.perf_event_mlock_kb ({}): raise either, or use \
                 smaller rings, or run with CAP_IPC_LOCK",
                bytes >> 10,
                setting("kernel/perf_event_mlock_kb")
            ),
        },
        Some(libc::ENOMEM) => Error::Limit {
            limit: "free memory",
            value: "none of this size".to_owned(),
            what: what.to_owned(),
            remedy: format!("use smaller rings than {} KiB", bytes >> 10),
        },
        _ => Error::io(what, source),
    }
}

/// The error for an object that `bpf(2)` did not create, for reasons other than the program itself.
pub(crate) fn bpf_error(what: &str, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::ENOSYS) => Error::NoBpf,
        Some(libc::EPERM) if is_locked_memory_short() => Error::Limit {
            limit: "RLIMIT_MEMLOCK",
            value: limit(Resource::RLIMIT_MEMLOCK),
            what: what.to_owned(),
            remedy: "before Linux 5.11, BPF maps and programs are locked memory: raise it with `ulimit -l` or LimitMEMLOCK=, \
                     or run with CAP_SYS_RESOURCE"
                .to_owned(),
        },
        Some(libc::EPERM | libc::EACCES) => {
            let remedy = privileges::remedy("CAP_BPF and CAP_PERFMON (Linux 5.8), or CAP_SYS_ADMIN");
            Error::Permission { what: what.to_owned(), remedy, source }
        }
        _ => Error::io(what, source),
    }
}

/// Whether we may use BPF, but the kernel counts it against a limit that we could not lift.
fn is_locked_memory_short() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let is_limited = getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft != RLIM_INFINITY);
    is_before(&release, (5, 11)) && is_limited && privileges::may_use_bpf()
}

fn limit(resource: Resource) -> String {
    match getrlimit(resource) {
        Ok((soft, hard)) if soft == hard => soft.to_string(),
        Ok((soft, hard)) => format!("{soft}, at most {hard}"),
        Err(_) => "unknown".to_owned(),
    }
}

fn setting(name: &str) -> String {
    let value = fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
    if value.trim_ascii().is_empty() { "unknown".to_owned() } else { value.trim_ascii().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn refusals_have_different_errors() {
        let open = |errno| open_error("a ring", io::Error::from_raw_os_error(errno));
        assert_eq!(open(libc::EMFILE).kind(), Kind::Limit);
        assert!(open(libc::EMFILE).to_string().contains("RLIMIT_NOFILE is too low"));
        assert_eq!(open(libc::ENFILE).kind(), Kind::Limit);
        assert_eq!(open(libc::EACCES).kind(), Kind::Permission);
        assert!(open(libc::EPERM).to_string().contains("perf_event_paranoid"));
        let map = |errno| map_error("a ring", 1 << 19, io::Error::from_raw_os_error(errno));
        assert!(map(libc::EPERM).to_string().contains("512 KiB beyond kernel.perf_event_mlock_kb"));
        assert_eq!(map(libc::ENOMEM).kind(), Kind::Limit);
        assert_eq!(map(libc::EINVAL).kind(), Kind::Other);
        let bpf = |errno| bpf_error("a map", io::Error::from_raw_os_error(errno));
        assert_eq!(bpf(libc::ENOSYS).kind(), Kind::Unsupported);
        assert!(bpf(libc::EACCES).to_string().contains("CAP_BPF and CAP_PERFMON"));
        assert_eq!(bpf(libc::ENOMEM).kind(), Kind::Limit);
    }
}
