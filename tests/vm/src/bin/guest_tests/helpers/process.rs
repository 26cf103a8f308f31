//! Programs that a test starts, and what it knows of them.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::patience::until;

/// The normal user of the guest.
pub(crate) const USER: u32 = 1000;

/// A running program; it is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its process id.
    pub(crate) pid: u32,
    /// Its arguments, the program's name included.
    pub(crate) args: Vec<String>,
    /// A time just before its start.
    pub(crate) started: SystemTime,
    /// A time just after its start.
    pub(crate) running: SystemTime,
    child: Child,
    stdout: Collected,
    stderr: Collected,
}

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Its process id.
    pub(crate) pid: u32,
    /// Its arguments, the program's name included.
    pub(crate) args: Vec<String>,
    /// A time just before its start.
    pub(crate) started: SystemTime,
    /// A time just after its end.
    pub(crate) ended: SystemTime,
    /// Its exit status as a shell gives it: 128 + N when signal N ended it.
    pub(crate) status: i32,
    /// What it wrote to standard output.
    pub(crate) stdout: String,
    /// What it wrote to standard error.
    pub(crate) stderr: String,
}

impl Process {
    /// Starts a program of the PATH, as root.
    pub(crate) fn start(args: &[&str]) -> Result<Self> {
        Self::spawn(args, &mut Command::new(args[0]))
    }

    /// Starts a program of the PATH, as the normal user.
    pub(crate) fn start_as_user(args: &[&str]) -> Result<Self> {
        let mut command = Command::new(args[0]);
        command.uid(USER).gid(USER).env("HOME", "/home/user").env("USER", "user").current_dir("/home/user");
        Self::spawn(args, &mut command)
    }

    fn spawn(args: &[&str], command: &mut Command) -> Result<Self> {
        let started = SystemTime::now();
        let mut child = command
            .args(&args[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", args.join(" ")))?;
        Ok(Self {
            pid: child.id(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            started,
            running: SystemTime::now(),
            stdout: Collected::from(child.stdout.take().context("standard output is a pipe")?),
            stderr: Collected::from(child.stderr.take().context("standard error is a pipe")?),
            child,
        })
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid.cast_signed()), signal)
            .with_context(|| format!("send {signal} to {}", self.args[0]))
    }

    /// Waits for the first line that it writes to standard output, and returns it without its end.
    pub(crate) fn first_line(&mut self) -> Result<String> {
        let mut line = None;
        until(&format!("a line of `{}`", self.args.join(" ")), || {
            let has_ended = self.child.try_wait()?.is_some();
            let text = if has_ended { self.stdout.whole()? } else { self.stdout.so_far() };
            line = text.split_once('\n').map(|(line, _)| line.to_owned());
            if line.is_none() && has_ended {
                bail!("it ended without a word; on standard error:\n{}", self.stderr.whole()?);
            }
            Ok(line.is_some())
        })?;
        line.context("the line was there")
    }

    /// What it has written to standard output so far.
    pub(crate) fn said(&self) -> String {
        self.stdout.so_far()
    }

    /// Waits for the end.
    pub(crate) fn finish(mut self) -> Result<Finished> {
        let mut ended = None;
        until(&format!("the end of `{}`", self.args.join(" ")), || {
            ended = self.child.try_wait()?;
            Ok(ended.is_some())
        })?;
        let status = ended.context("the program has ended")?;
        Ok(Finished {
            pid: self.pid,
            args: std::mem::take(&mut self.args),
            started: self.started,
            ended: SystemTime::now(),
            status: status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1),
            stdout: self.stdout.whole()?,
            stderr: self.stderr.whole()?,
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What a program has written, read in the background so that it never blocks.
#[derive(Debug)]
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collected {
    fn from(mut source: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let thread = thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = source.read(&mut piece) {
                sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&piece[..length]);
            }
        });
        Self { bytes, thread: Some(thread) }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Everything, once the program has closed its end.
    fn whole(&mut self) -> Result<String> {
        self.thread.take().map_or(Ok(()), |thread| thread.join().map_err(|_| anyhow!("a reading thread panicked")))?;
        Ok(self.so_far())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_known_by_what_it_was_started_with() {
        let process = Process::start(&["sh", "-c", "echo $$; echo oh >&2; exit 4"]).unwrap();
        let pid = process.pid;
        let finished = process.finish().unwrap();
        assert_eq!(finished.args, ["sh", "-c", "echo $$; echo oh >&2; exit 4"]);
        assert_eq!((finished.pid, finished.stdout), (pid, format!("{pid}\n")));
        assert_eq!((finished.status, finished.stderr.as_str()), (4, "oh\n"));
        assert!(finished.started < finished.ended);
    }

    #[test]
    fn a_signal_ends_a_program() {
        let process = Process::start(&["sleep", "100"]).unwrap();
        process.signal(Signal::SIGTERM).unwrap();
        assert_eq!(process.finish().unwrap().status, 128 + 15);
    }

    #[test]
    fn a_program_that_is_missing_is_named() {
        assert!(Process::start(&["no-such-program"]).unwrap_err().to_string().contains("no-such-program"));
    }
}
