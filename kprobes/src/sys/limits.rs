//! Resource limits: raised when one is hit, and described when that does not help.

use std::fs;
use std::io;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t, setrlimit};

use crate::Error;
use crate::sys::privileges;

/// Makes room for `more` descriptors. Whether there is more room than before.
pub(crate) fn raise_files(more: usize) -> bool {
    let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return false };
    raise(Resource::RLIMIT_NOFILE, soft.saturating_add(soft.max(more as rlim_t)))
}

/// Makes room for locked memory. Whether there is more room than before.
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

/// What a refusal to open a perf event means.
pub(crate) fn why_not_open(what: &str, source: io::Error) -> Error {
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

/// What a refusal to map a ring of `bytes` means.
pub(crate) fn why_not_map(what: &str, bytes: usize, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::EPERM) => Error::Limit {
            limit: "RLIMIT_MEMLOCK",
            value: limit(Resource::RLIMIT_MEMLOCK),
            what: what.to_owned(),
            remedy: format!(
                "each CPU's ring locks {} KiB beyond kernel.perf_event_mlock_kb ({}): raise either, or take \
                 smaller rings, or run with CAP_IPC_LOCK",
                bytes >> 10,
                setting("kernel/perf_event_mlock_kb")
            ),
        },
        Some(libc::ENOMEM) => Error::Limit {
            limit: "free memory",
            value: "none of this size".to_owned(),
            what: what.to_owned(),
            remedy: format!("take smaller rings than {} KiB", bytes >> 10),
        },
        _ => Error::io(what, source),
    }
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
    fn refusals_are_told_apart() {
        let open = |errno| why_not_open("a ring", io::Error::from_raw_os_error(errno));
        assert_eq!(open(libc::EMFILE).kind(), Kind::Limit);
        assert!(open(libc::EMFILE).to_string().contains("RLIMIT_NOFILE is too low"));
        assert_eq!(open(libc::ENFILE).kind(), Kind::Limit);
        assert_eq!(open(libc::EACCES).kind(), Kind::Permission);
        assert!(open(libc::EPERM).to_string().contains("perf_event_paranoid"));
        let map = |errno| why_not_map("a ring", 1 << 19, io::Error::from_raw_os_error(errno));
        assert!(map(libc::EPERM).to_string().contains("512 KiB beyond kernel.perf_event_mlock_kb"));
        assert_eq!(map(libc::ENOMEM).kind(), Kind::Limit);
        assert_eq!(map(libc::EINVAL).kind(), Kind::Other);
    }
}
