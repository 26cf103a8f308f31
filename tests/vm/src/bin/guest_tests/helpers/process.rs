//! Programs that a test starts.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait::wait_until;

/// The uid and gid of the guest's unprivileged user.
pub(crate) const USER_ID: u32 = 1000;

/// A running program; dropping it kills the process.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its process id.
    pub(crate) pid: u32,
    /// Its arguments, the program's name included.
    pub(crate) args: Vec<String>,
    /// The time just before its start.
    pub(crate) before_start: SystemTime,
    /// The time just after its start.
    pub(crate) after_start: SystemTime,
    child: Child,
    stdout: OutputReader,
    stderr: OutputReader,
}

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Its process id.
    pub(crate) pid: u32,
    /// Its arguments, the program's name included.
    pub(crate) args: Vec<String>,
    /// The time just before its start.
    pub(crate) before_start: SystemTime,
    /// The time just after its end.
    pub(crate) after_end: SystemTime,
    /// Its exit status as a shell gives it: 128 + N if signal N ended it.
    pub(crate) status: i32,
    /// Its standard output.
    pub(crate) stdout: String,
    /// Its standard error.
    pub(crate) stderr: String,
}

impl Process {
    /// Starts a program from the PATH as the user that runs the tests: root in the guest.
    pub(crate) fn start(args: &[&str]) -> Result<Self> {
        Self::spawn(args, &mut Command::new(args[0]))
    }

    /// Starts a program from the PATH as [`USER_ID`].
    pub(crate) fn start_as_user(args: &[&str]) -> Result<Self> {
        let mut command = Command::new(args[0]);
        command.uid(USER_ID).gid(USER_ID).env("HOME", "/home/user").env("USER", "user").current_dir("/home/user");
        Self::spawn(args, &mut command)
    }

    fn spawn(args: &[&str], command: &mut Command) -> Result<Self> {
        let before_start = SystemTime::now();
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
            before_start,
            after_start: SystemTime::now(),
            stdout: OutputReader::from(child.stdout.take().context("standard output is not a pipe")?),
            stderr: OutputReader::from(child.stderr.take().context("standard error is not a pipe")?),
            child,
        })
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid.cast_signed()), signal)
            .with_context(|| format!("send {signal} to {}", self.args[0]))
    }

    /// Waits for its first line of standard output, and returns it without the newline.
    pub(crate) fn first_line(&mut self) -> Result<String> {
        let mut line = None;
        wait_until(&format!("a line of `{}`", self.args.join(" ")), || {
            let has_ended = self.child.try_wait()?.is_some();
            let text = if has_ended { self.stdout.whole()? } else { self.stdout.so_far() };
            line = text.split_once('\n').map(|(line, _)| line.to_owned());
            if line.is_none() && has_ended {
                let command = self.args.join(" ");
                bail!("`{command}` ended without a line of output; standard error:\n{}", self.stderr.whole()?);
            }
            Ok(line.is_some())
        })?;
        line.context("no line was read")
    }

    /// Its standard output so far.
    pub(crate) fn stdout_so_far(&self) -> String {
        self.stdout.so_far()
    }

    /// Waits until it has ended.
    pub(crate) fn finish(mut self) -> Result<Finished> {
        let mut ended = None;
        wait_until(&format!("the end of `{}`", self.args.join(" ")), || {
            ended = self.child.try_wait()?;
            Ok(ended.is_some())
        })?;
        let status = ended.context("the program has not ended")?;
        Ok(Finished {
            pid: self.pid,
            args: std::mem::take(&mut self.args),
            before_start: self.before_start,
            after_end: SystemTime::now(),
            // A process that has ended has either a code or a signal, so -1 does not occur.
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

/// The output of a program. A thread reads it, so that a full pipe never blocks the program.
#[derive(Debug)]
struct OutputReader {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl OutputReader {
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

    /// All of the output. Waits until every process that holds the pipe has closed it.
    fn whole(&mut self) -> Result<String> {
        self.thread.take().map_or(Ok(()), |thread| thread.join().map_err(|_| anyhow!("a reading thread panicked")))?;
        Ok(self.so_far())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_program_has_its_arguments_and_output() {
        let process = Process::start(&["sh", "-c", "echo $$; echo oh >&2; exit 4"]).unwrap();
        let pid = process.pid;
        let finished = process.finish().unwrap();
        assert_eq!(finished.args, ["sh", "-c", "echo $$; echo oh >&2; exit 4"]);
        assert_eq!((finished.pid, finished.stdout), (pid, format!("{pid}\n")));
        assert_eq!((finished.status, finished.stderr.as_str()), (4, "oh\n"));
        assert!(finished.before_start < finished.after_end);
    }

    #[test]
    fn a_signal_ends_a_program() {
        let process = Process::start(&["sleep", "100"]).unwrap();
        process.signal(Signal::SIGTERM).unwrap();
        assert_eq!(process.finish().unwrap().status, 128 + 15);
    }

    #[test]
    fn the_error_names_a_missing_program() {
        assert!(Process::start(&["no-such-program"]).unwrap_err().to_string().contains("no-such-program"));
    }
}
