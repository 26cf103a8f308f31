//! Dropping privileges that are not needed any more: capabilities, system calls, access to files.
//!
//! Installing probes needs many privileges, reading their samples only few. Nothing is dropped automatically: a program
//! prepares a monitor, drops privileges, and then starts the monitor. Privileges belong to threads, and a new thread inherits
//! those of the thread that starts it.
//!
//! ```no_run
//! use socktrail::monitor::Monitor;
//! use socktrail::privileges;
//!
//! let prepared = Monitor::builder().prepare()?;
//! let kept = privileges::drop_capabilities(privileges::Extra::default())?;
//! privileges::filter_syscalls()?;
//! let monitor = prepared.start()?; // its threads read /proc and tracefs, and can do little else
//! privileges::restrict_files(&["/var/log/mine".as_ref()], &[])?; // this thread, and those that it starts later
//! println!("keeps {kept}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Restrict files last, after the monitor has started. A thread that Landlock restricts cannot inspect processes that it does
//! not restrict (`Documentation/userspace-api/landlock.rst`, ptrace restrictions). The monitor's threads must do that, to
//! learn the programs of processes that are older than the monitor. They open only `/proc`, `/sys`, tracefs, `/etc/passwd` and
//! `/etc/group`.

mod capabilities;
#[cfg(feature = "privileges")]
mod files;
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), path = "no_syscalls.rs")]
#[cfg(feature = "privileges")]
mod syscalls;
#[cfg(feature = "privileges")]
mod trial;
mod user;

use std::io;

pub use self::capabilities::{Extra, Kept, drop_capabilities};
#[cfg(feature = "privileges")]
pub use self::files::{Confined, restrict_files};
#[cfg(feature = "privileges")]
pub use self::syscalls::filter_syscalls;
#[cfg(feature = "privileges")]
pub use self::trial::Trial;
#[cfg(feature = "users")]
pub(crate) use self::user::{UNPRIVILEGED, drop_all_privileges};

/// A privilege could not be dropped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivilegesError {
    /// Capabilities could not be dropped.
    #[error("capabilities cannot be dropped: {0}")]
    Capabilities(io::Error),
    /// `PR_SET_NO_NEW_PRIVS` failed.
    #[error("no_new_privs cannot be set: {0}")]
    NoNewPrivileges(io::Error),
    /// The user could not be changed.
    #[error("the user cannot be changed: {0}; this needs CAP_SETUID and CAP_SETGID")]
    User(io::Error),
    /// System calls could not be filtered.
    #[error("system calls cannot be filtered: {0}")]
    Syscalls(String),
    /// Access to files could not be restricted.
    #[error("files cannot be restricted: {0}")]
    Files(String),
}

#[cfg(all(test, feature = "privileges"))]
mod tests {
    use std::{fs, thread};

    use nix::libc;

    use super::*;

    /// Runs in a temporary thread, whose privileges alone are dropped.
    fn in_a_thread<T: Send>(run: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| scope.spawn(run).join().unwrap())
    }

    fn status(key: &str) -> String {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap().trim().to_owned()
    }

    #[test]
    fn the_kernel_confirms_dropped_capabilities() {
        in_a_thread(|| {
            let kept = drop_capabilities(Extra::default()).unwrap();
            let effective = u64::from_str_radix(&status("CapEff"), 16).unwrap();
            assert_eq!(effective, kept.bits());
            assert_eq!(status("CapPrm"), status("CapEff"));
            assert_eq!(u64::from_str_radix(&status("CapInh"), 16).unwrap(), 0);
            // In capabilities(7): DAC_OVERRIDE, KILL, SETUID, NET_ADMIN, NET_RAW, SYS_MODULE, SYS_RAWIO.
            for forbidden in [1, 5, 7, 12, 13, 16, 17] {
                assert_eq!(effective & (1 << forbidden), 0, "capability {forbidden}");
            }
            assert_eq!(status("NoNewPrivs"), "1");
        });
    }

    #[test]
    fn no_program_can_be_started_and_no_packet_socket_opened_any_more() {
        // A sandbox around the tests may forbid it; then there is nothing to test.
        if in_a_thread(filter_syscalls).is_err() {
            return;
        }
        in_a_thread(|| {
            filter_syscalls().unwrap();
            assert_eq!(status("Seccomp"), "2");
            assert!(std::process::Command::new("/bin/true").status().is_err());
            assert!(std::net::TcpListener::bind("127.0.0.1:0").is_ok(), "outputs need TCP sockets");
            assert!(fs::read_dir("/proc").unwrap().count() > 1);
            assert!(in_a_thread(|| fs::write(std::env::temp_dir().join("socktrail-syscalls"), "x")).is_ok());
            let packets = nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Packet,
                nix::sys::socket::SockType::Raw,
                nix::sys::socket::SockFlag::empty(),
                None,
            );
            assert_eq!(packets.unwrap_err(), nix::errno::Errno::ENOSYS);
        });
    }

    /// Sends signal 0, which only checks whether a signal could be sent, to the main thread of a process.
    #[allow(unsafe_code, reason = "there is no safe wrapper of tgkill(2)")]
    fn check_tgkill(process: nix::unistd::Pid) -> nix::Result<()> {
        // SAFETY: the call gets three numbers and no pointer.
        let result = unsafe { libc::syscall(libc::SYS_tgkill, process.as_raw(), process.as_raw(), 0) };
        nix::errno::Errno::result(result).map(drop)
    }

    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn tgkill_reaches_only_this_process() {
        use nix::unistd::{getpid, getppid};

        if in_a_thread(filter_syscalls).is_err() {
            return;
        }
        in_a_thread(|| {
            filter_syscalls().unwrap();
            assert_eq!(check_tgkill(getpid()), Ok(()));
            assert_eq!(check_tgkill(getppid()), Err(nix::errno::Errno::ENOSYS));
        });
    }

    #[test]
    fn only_given_directories_can_be_written_to() {
        let folder = tempfile::TempDir::new().unwrap();
        let (inside, outside) = (folder.path().join("inside"), folder.path().join("outside"));
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("old"), "old").unwrap();
        let confined = in_a_thread(|| {
            let confined = restrict_files(&[&inside], &[]).unwrap();
            fs::write(inside.join("new"), "new").unwrap();
            fs::rename(inside.join("new"), inside.join("newer")).unwrap();
            assert_eq!(fs::read_to_string(outside.join("old")).unwrap(), "old", "everything can be read");
            assert_eq!(fs::write(outside.join("new"), "new").is_err(), confined.is_restricted(), "{confined}");
            confined
        });
        assert_eq!(outside.join("new").exists(), !confined.is_restricted());
    }

    #[test]
    fn a_trial_does_not_affect_other_threads() {
        let before = status("CapEff");
        let trial = Trial::take().unwrap();
        assert_eq!((status("CapEff"), &*status("NoNewPrivs")), (before, "0"));
        assert!(trial.to_string().contains("capabilities"), "{trial}");
    }
}
