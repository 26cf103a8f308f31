//! The program under test, in the background.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socktrail_vm::AS_OF_VARIABLE;

use super::patience::until;
use super::process::Process;

/// The word on standard error that says that all probes are in place.
const READY: &str = "ready";

/// What makes it behave as if the kernel were older. It guesses the kernel's layout at the first start, as it would
/// there; later ones use what guesses found once, which saves seconds each time.
fn as_of(release: String, has_source: bool) -> Result<Vec<String>> {
    const LAYOUT: &str = "/tmp/guessed-layout.json";
    static HAS_GUESSED: AtomicBool = AtomicBool::new(false);
    static SAVED: OnceLock<Result<(), String>> = OnceLock::new();
    let mut words = vec!["--as-of".to_owned(), release];
    if HAS_GUESSED.swap(true, Relaxed) && !has_source {
        let save = || {
            let finished = Process::start(&["socktrail", "layout", "--source", "guess", "--save", LAYOUT])?.finish()?;
            ensure!(finished.status == 0, "{}", finished.stderr);
            Ok(())
        };
        let saved = SAVED.get_or_init(|| save().map_err(|error| format!("{error:?}")));
        saved.clone().map_err(|error| anyhow!("{error}")).context("save what guesses find")?;
        words.extend(["--source".to_owned(), format!("file:{LAYOUT}")]);
    }
    Ok(words)
}

/// A running `socktrail`; it is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Socktrail {
    /// Its process id.
    pub(crate) pid: u32,
    child: Child,
    stdout: Reader,
    stderr: Reader,
}

/// What a `socktrail` left behind.
#[derive(Debug)]
pub(crate) struct Watched {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// Its documents, in order.
    pub(crate) documents: Vec<Value>,
    /// What it logged.
    pub(crate) log: String,
}

impl Socktrail {
    /// Starts `socktrail` with the given arguments and waits until it says that it is ready.
    ///
    /// Where the tests are to show what an older kernel can do, those commands that watch are told so.
    pub(crate) fn start(args: &[&str]) -> Result<Self> {
        let mut args: Vec<_> = args.iter().map(ToString::to_string).collect();
        let watches =
            args.first().is_some_and(|command| ["flows", "events", "sensors", "record"].contains(&&**command));
        if let Ok(release) = std::env::var(AS_OF_VARIABLE)
            && watches
        {
            args.extend(as_of(release, args.iter().any(|word| word == "--source"))?);
        }
        Self::start_program("socktrail", &args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Starts `socktrail flows`, which writes one document a line, and waits until it is ready.
    pub(crate) fn flows(more: &[&str]) -> Result<Self> {
        Self::start(&[&["flows", "--format", "ecs"], more].concat())
    }

    fn start_program(program: &str, args: &[&str]) -> Result<Self> {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {program} {}", args.join(" ")))?;
        let stdout = Reader::new(child.stdout.take().context("standard output is a pipe")?);
        let stderr = Reader::new(child.stderr.take().context("standard error is a pipe")?);
        let mut started = Self { pid: child.id(), child, stdout, stderr };
        started.wait_until_ready()?;
        Ok(started)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let Self { child, stderr, .. } = self;
        until("socktrail to be ready", || {
            let ended = child.try_wait()?;
            if ended.is_some() {
                stderr.finish()?;
            }
            if stderr.lines().iter().any(|line| line.contains(READY)) {
                return Ok(true);
            }
            if let Some(status) = ended {
                bail!("it ended before it was ready, {status}");
            }
            Ok(false)
        })
        .with_context(|| format!("socktrail said:\n{}", self.log()))
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.stderr.lines().join("\n")
    }

    /// The documents that have come out so far.
    pub(crate) fn documents(&self) -> Result<Vec<Value>> {
        self.stdout
            .lines()
            .iter()
            .map(|line| serde_json::from_str(line).with_context(|| format!("not a JSON document: {line}")))
            .collect()
    }

    /// Waits until a document is there for which the condition holds, and returns it.
    pub(crate) fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut found = None;
        until(what, || {
            found = self.documents()?.into_iter().find(|document| wanted(document));
            Ok(found.is_some())
        })
        .with_context(|| format!("documents: {:?}\nlog:\n{}", self.stdout.lines(), self.log()))?;
        found.context("the document was there")
    }

    /// Ends it as Ctrl-C does, and returns what it left.
    pub(crate) fn stop(self) -> Result<Watched> {
        self.end(Signal::SIGINT)
    }

    /// Ends it so that it cannot clean up.
    pub(crate) fn kill(self) -> Result<Watched> {
        self.end(Signal::SIGKILL)
    }

    /// Sends a signal, waits for the end, and returns what it left.
    pub(crate) fn end(self, signal: Signal) -> Result<Watched> {
        kill(Pid::from_raw(self.pid.cast_signed()), signal).with_context(|| format!("send {signal} to socktrail"))?;
        self.finish()
    }

    /// Waits for it to end by itself, as with `--duration`, and returns what it left.
    pub(crate) fn finish(mut self) -> Result<Watched> {
        let mut ended = None;
        until("socktrail's end", || {
            ended = self.child.try_wait()?;
            Ok(ended.is_some())
        })
        .with_context(|| format!("socktrail said:\n{}", self.log()))?;
        self.stdout.finish()?;
        self.stderr.finish()?;
        Ok(Watched { status: ended.context("it has ended")?, documents: self.documents()?, log: self.log() })
    }
}

impl Drop for Socktrail {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Watched {
    /// The documents whose process has this id.
    pub(crate) fn of_pid(&self, pid: u32) -> Vec<&Value> {
        self.documents.iter().filter(|document| document["process"]["pid"] == pid).collect()
    }

    /// The one document whose process has this id.
    pub(crate) fn only_of_pid(&self, pid: u32) -> Result<&Value> {
        match self.of_pid(pid)[..] {
            [document] => Ok(document),
            ref others => {
                bail!("{} documents of process {pid} among {:#?}\nlog:\n{}", others.len(), self.documents, self.log)
            }
        }
    }
}

/// Lines that a thread reads while the program runs.
#[derive(Debug)]
struct Reader {
    lines: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn new(from: impl Read + Send + 'static) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        let thread = thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(std::io::Result::ok) {
                if let Ok(mut lines) = sink.lock() {
                    lines.push(line);
                }
            }
        });
        Self { lines, thread: Some(thread) }
    }

    /// The complete lines so far.
    fn lines(&self) -> Vec<String> {
        self.lines.lock().map(|lines| lines.clone()).unwrap_or_default()
    }

    /// Waits for the last line.
    fn finish(&mut self) -> Result<()> {
        self.thread.take().map_or(Ok(()), |thread| thread.join().map_err(|_| anyhow!("a reading thread panicked")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in for socktrail.
    fn start(script: &str) -> Result<Socktrail> {
        Socktrail::start_program("sh", &["-c", script])
    }

    #[test]
    fn documents_and_log_are_collected_until_the_end() {
        let script = r#"
            trap 'echo "{\"process\":{\"pid\":8}}"; exit 0' TERM
            echo starting >&2; echo ready >&2
            echo '{"process":{"pid":7}}'
            while :; do sleep 0.01; done
        "#;
        let socktrail = start(script).unwrap();
        socktrail.wait_for("process 7", |document| document["process"]["pid"] == 7).unwrap();
        // Not SIGINT: a shell cannot trap that where it was ignored from the start, as for a job in the background.
        let watched = socktrail.end(Signal::SIGTERM).unwrap();
        assert!(watched.status.success());
        assert_eq!(watched.log, "starting\nready");
        assert_eq!(watched.only_of_pid(8).unwrap()["process"]["pid"], 8);
        assert!(watched.only_of_pid(9).is_err());
        assert_eq!(watched.documents.len(), 2);
    }

    #[test]
    fn one_that_ends_before_it_is_ready_fails_with_its_words() {
        let error = start("echo no kprobes here >&2; exit 3").unwrap_err();
        let text = format!("{error:?}");
        assert!(text.contains("no kprobes here") && text.contains("exit status: 3"), "{text}");
    }

    #[test]
    fn one_can_be_killed() {
        let watched = start("echo ready >&2; exec sleep 100").unwrap().kill().unwrap();
        assert!(!watched.status.success());
    }

    #[test]
    fn output_that_is_no_json_is_an_error() {
        let socktrail = start("echo hello; echo ready >&2").unwrap();
        assert!(socktrail.finish().unwrap_err().to_string().contains("hello"));
    }
}
