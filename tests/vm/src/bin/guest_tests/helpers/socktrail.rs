//! Runs `socktrail` in the background.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socktrail_vm::{ACCOUNTING_VARIABLE, AS_OF_VARIABLE, BACKEND_VARIABLE};

use super::cgroups::v2_root;
use super::process::Process;
use super::wait::wait_until;

/// The word in the log when all probes are installed.
const READY: &str = "ready";

/// The options that make socktrail behave as if the kernel were of an older release. The first monitor guesses the
/// kernel's layout, as it must on such a kernel. Later ones load a saved guess, which saves seconds each time.
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
        saved.clone().map_err(|error| anyhow!("{error}")).context("save a guessed layout")?;
        words.extend(["--source".to_owned(), format!("file:{LAYOUT}")]);
    }
    Ok(words)
}

/// A running `socktrail`; dropping it kills the process.
#[derive(Debug)]
pub(crate) struct Socktrail {
    /// Its process id.
    pub(crate) pid: u32,
    child: Child,
    stdout: Reader,
    stderr: Reader,
}

/// The output of a `socktrail` that has ended.
#[derive(Debug)]
pub(crate) struct Output {
    /// Its exit status.
    pub(crate) status: ExitStatus,
    /// Its documents, in order.
    pub(crate) documents: Vec<Value>,
    /// Its standard error.
    pub(crate) log: String,
}

impl Socktrail {
    /// Starts `socktrail` with the given arguments and waits until it is ready.
    ///
    /// If [`AS_OF_VARIABLE`] is set, commands that install probes get the options for that release. If
    /// [`ACCOUNTING_VARIABLE`] is set, `socktrail flows` counts packets that way.
    pub(crate) fn start(args: &[&str]) -> Result<Self> {
        let mut args: Vec<_> = args.iter().map(ToString::to_string).collect();
        let installs_probes =
            args.first().is_some_and(|command| ["flows", "events", "sensors", "record"].contains(&&**command));
        if let Ok(release) = std::env::var(AS_OF_VARIABLE)
            && installs_probes
        {
            args.extend(as_of(release, args.iter().any(|word| word == "--source"))?);
        }
        if let Ok(how) = std::env::var(ACCOUNTING_VARIABLE)
            && args.first().is_some_and(|command| command == "flows")
            && !args.iter().any(|word| word == "--accounting")
        {
            args.extend(["--accounting".to_owned(), how]);
        }
        if let Ok(backend) = std::env::var(BACKEND_VARIABLE)
            && args.first().is_some_and(|command| command == "flows")
            && !args.iter().any(|word| word == "--backend")
        {
            let root = v2_root()?;
            args.extend(["--backend".to_owned(), backend, "--cgroup".to_owned(), root.display().to_string()]);
        }
        Self::start_program("socktrail", &args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Starts `socktrail flows`, which writes one document per line, and waits until it is ready.
    pub(crate) fn flows(more: &[&str]) -> Result<Self> {
        Self::start(&[&["flows", "--format", "ecs"], more].concat())
    }

    /// Starts a program that becomes `socktrail`, and waits until it is ready.
    pub(crate) fn start_program(program: &str, args: &[&str]) -> Result<Self> {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {program} {}", args.join(" ")))?;
        let stdout = Reader::new(child.stdout.take().context("standard output is not a pipe")?);
        let stderr = Reader::new(child.stderr.take().context("standard error is not a pipe")?);
        let mut started = Self { pid: child.id(), child, stdout, stderr };
        started.wait_until_ready()?;
        Ok(started)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let Self { child, stderr, .. } = self;
        wait_until("socktrail to be ready", || {
            let ended = child.try_wait()?;
            if ended.is_some() {
                stderr.finish()?;
            }
            if stderr.lines().iter().any(|line| line.contains(READY)) {
                return Ok(true);
            }
            if let Some(status) = ended {
                bail!("socktrail ended before it was ready, {status}");
            }
            Ok(false)
        })
        .with_context(|| format!("socktrail's log:\n{}", self.log()))
    }

    /// Its standard error so far.
    pub(crate) fn log(&self) -> String {
        self.stderr.lines().join("\n")
    }

    /// Its documents so far.
    pub(crate) fn documents(&self) -> Result<Vec<Value>> {
        self.stdout
            .lines()
            .iter()
            .map(|line| serde_json::from_str(line).with_context(|| format!("not a JSON document: {line}")))
            .collect()
    }

    /// Waits for a document that meets a condition, and returns it. `what` names it in the error.
    pub(crate) fn wait_for(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut found = None;
        wait_until(what, || {
            found = self.documents()?.into_iter().find(|document| condition(document));
            Ok(found.is_some())
        })
        .with_context(|| format!("documents: {:?}\nlog:\n{}", self.stdout.lines(), self.log()))?;
        found.context("the document was not found")
    }

    /// Ends it as Ctrl-C does, and returns its output.
    pub(crate) fn stop(self) -> Result<Output> {
        self.end(Signal::SIGINT)
    }

    /// Kills it, so that it cannot remove its probes.
    pub(crate) fn kill(self) -> Result<Output> {
        self.end(Signal::SIGKILL)
    }

    /// Sends a signal, waits for the end, and returns its output.
    pub(crate) fn end(self, signal: Signal) -> Result<Output> {
        kill(Pid::from_raw(self.pid.cast_signed()), signal).with_context(|| format!("send {signal} to socktrail"))?;
        self.finish()
    }

    /// Waits until it ends by itself, as with `--duration`, and returns its output.
    pub(crate) fn finish(mut self) -> Result<Output> {
        let mut ended = None;
        wait_until("socktrail's end", || {
            ended = self.child.try_wait()?;
            Ok(ended.is_some())
        })
        .with_context(|| format!("socktrail's log:\n{}", self.log()))?;
        self.stdout.finish()?;
        self.stderr.finish()?;
        Ok(Output { status: ended.context("socktrail has not ended")?, documents: self.documents()?, log: self.log() })
    }
}

impl Drop for Socktrail {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Output {
    /// The documents with this `process.pid`.
    pub(crate) fn of_pid(&self, pid: u32) -> Vec<&Value> {
        self.documents.iter().filter(|document| document["process"]["pid"] == pid).collect()
    }

    /// The only document with this `process.pid`.
    pub(crate) fn only_of_pid(&self, pid: u32) -> Result<&Value> {
        match self.of_pid(pid)[..] {
            [document] => Ok(document),
            ref others => {
                bail!("{} documents of process {pid} among {:#?}\nlog:\n{}", others.len(), self.documents, self.log)
            }
        }
    }

    /// The last statistics that `--stats` has printed.
    pub(crate) fn statistics(&self) -> Result<Value> {
        let json = self.log.lines().rev().find_map(|line| line.strip_prefix("socktrail: stats "));
        let json = json.with_context(|| format!("no statistics in {}", self.log))?;
        serde_json::from_str(json).with_context(|| format!("statistics that are not JSON: {json}"))
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

    /// Runs a shell script in the place of socktrail.
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
        let output = socktrail.end(Signal::SIGTERM).unwrap();
        assert!(output.status.success());
        assert_eq!(output.log, "starting\nready");
        assert_eq!(output.only_of_pid(8).unwrap()["process"]["pid"], 8);
        assert!(output.only_of_pid(9).is_err());
        assert_eq!(output.documents.len(), 2);
    }

    #[test]
    fn the_error_of_an_early_end_has_the_log() {
        let error = start("echo no kprobes here >&2; exit 3").unwrap_err();
        let text = format!("{error:?}");
        assert!(text.contains("no kprobes here") && text.contains("exit status: 3"), "{text}");
    }

    #[test]
    fn a_monitor_can_be_killed() {
        let output = start("echo ready >&2; exec sleep 100").unwrap().kill().unwrap();
        assert!(!output.status.success());
    }

    #[test]
    fn the_last_statistics_are_returned() {
        let output = |log: &str| Output { status: ExitStatus::default(), documents: Vec::new(), log: log.to_owned() };
        let log = "socktrail: stats {\"packets\":1}\nsocktrail: stats {\"packets\":2}\nsocktrail: bye";
        assert_eq!(output(log).statistics().unwrap()["packets"], 2);
        assert!(output("socktrail: ready").statistics().is_err());
    }

    #[test]
    fn output_other_than_json_is_an_error() {
        let socktrail = start("echo hello; echo ready >&2").unwrap();
        assert!(socktrail.finish().unwrap_err().to_string().contains("hello"));
    }
}
