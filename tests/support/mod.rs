//! Runs agents for tests.

#![allow(dead_code, reason = "each test uses its part of it")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// The recording that agents replay: a few flows.
pub const RECORDING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/recordings/6.1-x86_64.strec");
/// The timeout for everything, long enough for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

pub fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// Waits until a condition is true.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < TIMEOUT, "timed out, waiting until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A directory with a configuration.
pub struct Agent {
    folder: Arc<TempDir>,
}

impl Agent {
    /// Writes a configuration in YAML, in which `{folder}` stands for the test's directory.
    pub fn configured(yaml: &str) -> Self {
        let agent = Self { folder: Arc::new(tempfile::tempdir().expect("a temporary directory")) };
        configure(agent.folder(), yaml);
        agent
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn start(&self, arguments: &[&str]) -> Running {
        self.start_with(arguments, &[])
    }

    /// Runs an agent to its end under a shell script, which must execute its arguments.
    pub fn start_under(&self, script: &str, arguments: &[String]) -> Ended {
        self.spawn_under(script, arguments).finish()
    }

    /// Starts an agent under a shell script, which must execute its arguments.
    pub fn spawn_under(&self, script: &str, arguments: &[String]) -> Running {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_socktrail"), "agent", "--config"]);
        command.arg(self.folder().join("socktrail.yml")).args(arguments).env_clear();
        self.spawn(command)
    }

    /// Runs another command, whose last argument is the configuration.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_socktrail"));
        command.env_clear().args(arguments).arg(self.folder().join("socktrail.yml"));
        command.output().expect("the binary was built")
    }

    pub fn start_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_socktrail"));
        command.env_clear().envs(environment.iter().copied());
        command.args(["agent", "--config"]).arg(self.folder().join("socktrail.yml")).args(arguments);
        self.spawn(command)
    }

    fn spawn(&self, mut command: Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary was built");
        let (stdout, stderr) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
        let log = Arc::<Mutex<String>>::default();
        let logged = Arc::clone(&log);
        let logger = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                *logged.lock().expect("no thread has panicked") += &(line + "\n");
            }
        });
        let reader = thread::spawn(move || {
            let mut text = String::new();
            BufReader::new(stdout).read_to_string(&mut text).expect("documents are UTF-8");
            text
        });
        Running { child: KilledOnDrop(child), log, logger, reader, folder: Arc::clone(&self.folder) }
    }
}

fn configure(folder: &Path, yaml: &str) {
    let yaml = yaml.replace("{folder}", folder.to_str().expect("UTF-8"));
    fs::write(folder.join("socktrail.yml"), yaml).expect("a writable folder");
}

/// A process that is killed when the test ends or fails.
struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // This fails if the process has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running agent.
pub struct Running {
    child: KilledOnDrop,
    log: Arc<Mutex<String>>,
    logger: JoinHandle<()>,
    reader: JoinHandle<String>,
    folder: Arc<TempDir>,
}

/// An agent that has ended.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    /// The time from the signal, or else from the beginning of the wait, to the end.
    pub took: Duration,
    folder: Arc<TempDir>,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The number of lines of a file in the directory.
    pub fn lines(&self, name: &str) -> usize {
        fs::read(self.folder().join(name)).unwrap_or_default().iter().filter(|&&byte| byte == b'\n').count()
    }

    pub fn reconfigure(&self, yaml: &str) {
        configure(self.folder(), yaml);
    }

    pub fn has_ended(&self) -> bool {
        self.logger.is_finished()
    }

    pub fn log(&self) -> String {
        self.log.lock().expect("no thread has panicked").clone()
    }

    pub fn wait_for_log(&self, wanted: &str) {
        eventually(&format!("{wanted:?} is logged: {}", self.log()), || self.log().contains(wanted));
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.0.id().cast_signed()), signal).expect("it runs");
    }

    pub fn end(self, signal: Signal) -> Ended {
        self.signal(signal);
        self.finish()
    }

    /// Waits until the agent ends.
    pub fn finish(mut self) -> Ended {
        let asked = Instant::now();
        let mut status = None;
        eventually("the agent ends", || {
            status = self.child.0.try_wait().expect("a child process");
            status.is_some()
        });
        let took = asked.elapsed();
        self.logger.join().expect("no thread has panicked");
        let stdout = self.reader.join().expect("no thread has panicked");
        let stderr = self.log.lock().expect("no thread has panicked").clone();
        Ended { status: status.expect("it has ended"), stdout, stderr, took, folder: self.folder }
    }
}

impl Ended {
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The last line of statistics.
    pub fn stats(&self) -> Value {
        last_stats(&self.stderr)
    }
}

/// The last line of statistics in a log.
pub fn last_stats(log: &str) -> Value {
    let line = log.lines().rev().find_map(|line| line.strip_prefix("socktrail: stats "));
    serde_json::from_str(line.expect("a line of numbers")).expect("JSON")
}
