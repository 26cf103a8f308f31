//! Filters system calls with seccomp.
//!
//! The filter has a list of allowed calls, so that no forbidden call can be forgotten. All other calls fail with `ENOSYS`, as
//! if the kernel did not have them; a C library then falls back from a newer call to an older one. The list has the calls of
//! Rust's standard library, the C libraries musl and glibc, the resolver, files, sockets and perf rings. It does not have
//! calls that start programs, access other processes' memory, send signals to them, change the user, or concern mounts,
//! modules, namespaces, keys or io_uring. There is one exception: musl aborts with tkill(2), which can send a signal to any
//! thread, and a filter cannot tell whose thread it is. Of the commands of bpf(2), the list has only those that change or
//! delete an element of an open map.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::PrivilegesError;

/// Calls that both x86_64 and aarch64 have.
const ALLOWED: &[libc::c_long] = &[
    // Files.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_truncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_umask,
    libc::SYS_utimensat,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_ioctl,
    libc::SYS_fadvise64,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_membarrier,
    // Threads.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_getpriority,
    libc::SYS_getcpu,
    libc::SYS_prlimit64,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_getrandom,
    libc::SYS_capget,
    libc::SYS_restart_syscall,
    // To reap the getent helper.
    libc::SYS_wait4,
    // Landlock, which restricts files later.
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    // Signals of this process; `program` limits tgkill(2).
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigpending,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    #[cfg(target_env = "musl")]
    libc::SYS_tkill,
    // Time.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Sockets; `FAMILIES` limits socket(2).
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    // For CPUs that come online.
    libc::SYS_perf_event_open,
];

/// Older calls that x86_64 has and aarch64 does not have.
#[cfg(target_arch = "x86_64")]
const X86_64_ONLY: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_inotify_init,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const X86_64_ONLY: &[libc::c_long] = &[];

/// The commands of bpf(2) that are allowed, from `linux/bpf.h`: `BPF_MAP_UPDATE_ELEM` and `BPF_MAP_DELETE_ELEM`, for CPUs that come
/// online and go offline. Neither loads a program, nor opens one of another process.
const BPF_COMMANDS: [libc::c_int; 2] = [2, 3];

/// The socket families that outputs, the resolver and the control socket use.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// The options of `prctl(2)`: names of threads and of memory mappings, and the flag that Landlock needs.
const PRCTLS: [libc::c_int; 5] =
    [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_NO_NEW_PRIVS, libc::PR_GET_NO_NEW_PRIVS, libc::PR_SET_VMA];

/// Restricts this thread and the threads that it starts later to the system calls of a running monitor and its outputs. They
/// cannot start programs or processes, change the user, mount file systems or open packet sockets. Packet sockets that are
/// already open, such as the monitor's, still work.
///
/// # Errors
/// [`PrivilegesError::Syscalls`]: the kernel has no seccomp, or another filter forbids it.
pub fn filter_syscalls() -> Result<(), PrivilegesError> {
    let failed = |error: &dyn std::error::Error| {
        PrivilegesError::Syscalls(format!("{error}; the kernel needs CONFIG_SECCOMP_FILTER and Linux 3.17"))
    };
    let program = program().map_err(|error| failed(&error))?;
    seccompiler::apply_filter(&program).map_err(|error| failed(&error))
}

fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(X86_64_ONLY).map(|&call| (number(call), Vec::new())).collect();
    rules.insert(number(libc::SYS_socket), first_argument_of(&FAMILIES)?);
    rules.insert(number(libc::SYS_prctl), first_argument_of(&PRCTLS)?);
    rules.insert(number(libc::SYS_bpf), first_argument_of(&BPF_COMMANDS)?);
    // C libraries abort with tgkill(2), so it is allowed for threads of this process.
    rules.insert(number(libc::SYS_tgkill), first_argument_of(&[nix::unistd::getpid().as_raw()])?);
    // clone(2) may start threads, but not processes. A filter cannot read the flags of clone3(2), which are in memory. So
    // clone3 is not in the list, and C libraries fall back on clone.
    let thread = libc::CLONE_THREAD as u64;
    let is_thread = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), thread)?;
    rules.insert(number(libc::SYS_clone), vec![SeccompRule::new(vec![is_thread])?]);
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let otherwise = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch)?.try_into()
}

/// Rules that allow a call if its first argument is one of these values.
fn first_argument_of(values: &[libc::c_int]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let rule = |value: &libc::c_int| {
        let is_it = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value as u64)?;
        SeccompRule::new(vec![is_it])
    };
    values.iter().map(rule).collect()
}

/// The number of a call; `c_long` has 32 bits on some targets.
#[allow(clippy::unnecessary_cast, clippy::cast_lossless, reason = "c_long differs from target to target")]
fn number(call: libc::c_long) -> i64 {
    call as i64
}
