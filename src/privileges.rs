//! Giving up what is not needed any more: capabilities, system calls, files.
//!
//! Putting probes into the kernel takes privileges, reading what they say takes few. Nothing here happens by itself: a
//! program that wants it prepares a monitor, gives up what it likes, and starts it. All of it is a thread's, and threads
//! inherit it from the one that starts them.
//!
//! ```no_run
//! use socktrail::monitor::Monitor;
//! use socktrail::privileges;
//!
//! let prepared = Monitor::builder().prepare()?;
//! let kept = privileges::drop_capabilities(privileges::Extra::default())?;
//! privileges::filter_syscalls()?;
//! let monitor = prepared.start()?; // its threads have /proc and tracefs to read, but may do little else
//! privileges::restrict_files(&["/var/log/mine".as_ref()], &[])?; // this thread, and those it starts from now on
//! println!("keeps {kept}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Files come last. Whoever is restricted by Landlock may not look into processes that are not
//! (`Documentation/userspace-api/landlock.rst`, ptrace restrictions), and a monitor's own threads do: that is how they know
//! the program of a process that was there before. They open nothing but `/proc`, `/sys` and tracefs.

mod capabilities;
mod files;
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), path = "privileges/no_syscalls.rs")]
mod syscalls;
mod user;

use std::fmt;
use std::io;
use std::thread;

pub use self::capabilities::{Extra, Kept, drop_capabilities};
pub use self::files::{Confined, restrict_files};
pub use self::syscalls::filter_syscalls;
pub use self::user::{UNPRIVILEGED, drop_all_privileges};

/// What could not be given up, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivilegesError {
    /// The capabilities stay as they were.
    #[error("capabilities cannot be given up: {0}")]
    Capabilities(io::Error),
    /// `PR_SET_NO_NEW_PRIVS` was refused.
    #[error("no_new_privs cannot be set: {0}")]
    NoNewPrivileges(io::Error),
    /// The user stays as it was.
    #[error("the user cannot be changed: {0}; it takes CAP_SETUID and CAP_SETGID")]
    User(io::Error),
    /// System calls stay as they were.
    #[error("system calls cannot be filtered: {0}")]
    Syscalls(String),
    /// Files stay as they were.
    #[error("files cannot be restricted: {0}")]
    Files(String),
}

/// What this kernel lets a thread give up.
#[derive(Debug)]
pub struct Trial {
    /// Capabilities.
    pub capabilities: Result<Kept, PrivilegesError>,
    /// System calls.
    pub syscalls: Result<(), PrivilegesError>,
    /// Files.
    pub files: Result<Confined, PrivilegesError>,
}

impl Trial {
    /// Tries it out in a thread that does nothing else and ends.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn take() -> io::Result<Self> {
        let trial = || Self {
            capabilities: drop_capabilities(Extra::default()),
            syscalls: filter_syscalls(),
            files: restrict_files(&[], &[]),
        };
        let thread = thread::Builder::new().name("trial".to_owned()).spawn(trial)?;
        thread.join().map_err(|_| io::Error::other("the thread has failed; this is a bug: please report it"))
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.capabilities {
            Ok(kept) => write!(f, "capabilities down to {kept}")?,
            Err(error) => write!(f, "{error}")?,
        }
        match &self.syscalls {
            Ok(()) => f.write_str("; system calls")?,
            Err(error) => write!(f, "; {error}")?,
        }
        match &self.files {
            Ok(confined) => write!(f, "; {confined}"),
            Err(error) => write!(f, "; {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Runs in a thread of its own: what is given up is a thread's.
    fn in_a_thread<T: Send>(run: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| scope.spawn(run).join().unwrap())
    }

    fn status(key: &str) -> String {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap().trim().to_owned()
    }

    #[test]
    fn the_kernel_confirms_what_was_given_up() {
        in_a_thread(|| {
            let kept = drop_capabilities(Extra::default()).unwrap();
            let effective = u64::from_str_radix(&status("CapEff"), 16).unwrap();
            assert_eq!(effective, kept.bits());
            assert_eq!(status("CapPrm"), status("CapEff"));
            assert_eq!(u64::from_str_radix(&status("CapInh"), 16).unwrap(), 0);
            // Of capabilities(7): DAC_OVERRIDE, KILL, SETUID, NET_ADMIN, NET_RAW, SYS_MODULE, SYS_RAWIO.
            for forbidden in [1, 5, 7, 12, 13, 16, 17] {
                assert_eq!(effective & (1 << forbidden), 0, "capability {forbidden}");
            }
            assert_eq!(status("NoNewPrivs"), "1");
        });
    }

    #[test]
    fn no_program_can_be_started_and_no_packets_captured_any_more() {
        // Where the sandbox that tests run in forbids it, there is nothing to test.
        if in_a_thread(filter_syscalls).is_err() {
            return;
        }
        in_a_thread(|| {
            filter_syscalls().unwrap();
            assert_eq!(status("Seccomp"), "2");
            assert!(std::process::Command::new("/bin/true").status().is_err());
            assert!(std::net::TcpListener::bind("127.0.0.1:0").is_ok(), "what outputs need is there");
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

    #[test]
    fn only_what_was_named_can_be_written_to() {
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
            assert_eq!(fs::write(outside.join("new"), "new").is_err(), confined.is_something(), "{confined}");
            confined
        });
        assert_eq!(outside.join("new").exists(), !confined.is_something());
    }

    #[test]
    fn a_trial_leaves_the_others_alone() {
        let before = status("CapEff");
        let trial = Trial::take().unwrap();
        assert_eq!((status("CapEff"), &*status("NoNewPrivs")), (before, "0"));
        assert!(trial.to_string().contains("capabilities"), "{trial}");
    }
}
