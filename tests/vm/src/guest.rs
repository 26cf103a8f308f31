//! One guest, from power on to power off.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use socktrail_vm::{ACKNOWLEDGED, ALL_PORTS, Ending, Port};
use tempfile::TempDir;

use crate::binaries::{self, Profile, Program};
use crate::cache::Cache;
use crate::console::Console;
use crate::options::{Addition, EXIT_INTERRUPTED, EXIT_KERNEL, EXIT_RUNNER, EXIT_TIMEOUT, MachineOptions};
use crate::transfer::{self, Event, Line};
use crate::{image, kernel, packages, process, qemu};

/// How long a kernel that broke may go on to say how.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long a guest may take to power off.
const POWER_OFF: Duration = Duration::from_secs(10);
/// Memory of a guest without packages, in MiB.
const MEMORY: u64 = 512;

/// Held while programs are started: QEMU gets its ends of the lines by inheriting them, and no other program may.
static STARTING: Mutex<()> = Mutex::new(());

/// What to boot, and what to do there.
pub struct Guest<'a> {
    /// The machine.
    pub machine: &'a MachineOptions,
    /// Debian packages that it needs.
    pub packages: &'a [String],
    /// Programs of the workspace for its PATH.
    pub programs: &'a [Program],
    /// How they are built.
    pub profile: Profile,
    /// Files and folders of the host.
    pub additions: &'a [Addition],
    /// Where its /out goes.
    pub out: Option<&'a Path>,
    /// How long it may take.
    pub timeout: Duration,
    /// The shell command.
    pub command: &'a str,
}

/// What a guest needs of the world, QEMU or a package of Debian's, cannot be had here.
#[derive(Debug)]
pub struct Unavailable;

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what the guest is made of cannot be had")
    }
}

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command ended with this status.
    Ended(u8),
    /// The kernel said this.
    Fault(String),
    /// It took too long.
    Timeout(Duration),
    /// It was gone before the command had ended.
    Vanished,
    /// The user had enough.
    Interrupted,
}

impl Outcome {
    /// The exit status for it.
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Ended(status) => *status,
            Self::Fault(_) => EXIT_KERNEL,
            Self::Timeout(_) => EXIT_TIMEOUT,
            Self::Vanished => EXIT_RUNNER,
            Self::Interrupted => EXIT_INTERRUPTED,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(status) => write!(f, "the command ended with status {status}"),
            Self::Fault(line) => write!(f, "the guest's kernel broke: {line}"),
            Self::Timeout(limit) => write!(f, "the guest took longer than {}", humantime::format_duration(*limit)),
            Self::Vanished => f.write_str("the guest was gone before its command had ended"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl Guest<'_> {
    /// Builds, fetches what is missing, boots, and waits for the end. The command's output goes to the given places.
    pub fn boot(&self, stdout: Box<dyn Write + Send>, stderr: Box<dyn Write + Send>) -> Result<Outcome> {
        let arch = self.machine.arch;
        let starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        qemu::ensure_installed(arch).context(Unavailable)?;
        let mut programs = vec![Program::Init];
        programs.extend_from_slice(self.programs);
        let built = binaries::build(arch, self.profile, &programs)?;
        let cache = Cache::open()?;
        let kernel = kernel::image(&cache, self.machine.kernel, arch).context(Unavailable)?;
        let unpacked = |names: &[String]| packages::archive(&cache, arch, names).context(Unavailable);
        let mut archives = vec![kernel.modules, unpacked(&[image::SHELL_PACKAGE.to_owned()])?];
        if !self.packages.is_empty() {
            archives.push(unpacked(self.packages)?);
        }

        let folder = TempDir::with_prefix("socktrail-vm-").context("create a temporary folder")?;
        let initramfs = folder.path().join("initramfs");
        let content = image::Content {
            archives: &archives,
            init: &built[0],
            programs: &built[1..],
            additions: self.additions,
            command: self.command,
        };
        let size = image::write(&content, &initramfs)?;

        eprintln!("vm: booting Linux {} ({arch})", kernel.release);
        let (sender, events) = channel();
        let lines = Lines::new()?;
        let machine = qemu::Machine {
            arch,
            smp: self.machine.processors()?,
            mem: self.machine.mem.unwrap_or_else(|| memory(size)),
            icount: self.machine.icount,
            vmlinuz: &kernel.vmlinuz,
            initramfs: &initramfs,
            append: self.machine.append.as_deref(),
            console: lines.console.theirs.as_raw_fd(),
            ports: lines.descriptors(),
        };
        let qemu = Qemu::start(qemu::command(&machine), folder.path())?;
        let tar = folder.path().join("out.tar");
        let out = File::create(&tar).with_context(|| format!("create {}", tar.display()))?;
        let status = lines.connect(stdout, stderr, Box::new(out), &sender)?;
        drop(starting);
        interrupt_on_signals(sender)?;

        let mut session = Session::new(&events, status, self.timeout);
        let outcome = session.run()?;
        if !matches!(outcome, Outcome::Ended(_) | Outcome::Interrupted) {
            complain(&outcome, &session.console, &qemu);
        }
        drop(qemu);
        if let (Outcome::Ended(_), Some(folder)) = (&outcome, self.out) {
            unpack(&tar, folder)?;
        }
        Ok(outcome)
    }
}

/// Memory in MiB for a guest whose files take this many bytes: they are there twice while the kernel unpacks them,
/// and a root file system may take half of all memory.
fn memory(initramfs: u64) -> u64 {
    MEMORY.max(256 + 3 * initramfs.div_ceil(1 << 20))
}

/// The lines between us and QEMU.
struct Lines {
    console: Line,
    ports: Vec<(Port, Line)>,
}

impl Lines {
    fn new() -> Result<Self> {
        let ports = ALL_PORTS.into_iter().map(|port| Ok((port, Line::new()?))).collect::<Result<_>>()?;
        Ok(Self { console: Line::new()?, ports })
    }

    /// The descriptors that QEMU inherits.
    fn descriptors(&self) -> [(Port, i32); ALL_PORTS.len()] {
        std::array::from_fn(|at| (self.ports[at].0, self.ports[at].1.theirs.as_raw_fd()))
    }

    /// Starts to carry bytes, closes our copies of QEMU's ends, and returns the line that takes our acknowledgement.
    fn connect(
        self,
        stdout: Box<dyn Write + Send>,
        stderr: Box<dyn Write + Send>,
        out: Box<dyn Write + Send>,
        events: &Sender<Event>,
    ) -> Result<UnixStream> {
        transfer::watch(&self.console.ours, events, Event::Console, Some(Event::ConsoleClosed))?;
        let (mut stdout, mut stderr, mut out) = (Some(stdout), Some(stderr), Some(out));
        let mut status = None;
        for (port, line) in self.ports {
            let to = match port {
                Port::Stdout => stdout.take(),
                Port::Stderr => stderr.take(),
                Port::Out => out.take(),
                Port::Status => {
                    transfer::watch(&line.ours, events, Event::Status, None)?;
                    status = Some(line.ours);
                    continue;
                }
            };
            transfer::forward(&line.ours, port, to.context("each port is connected once")?, events)?;
        }
        status.context("there is a status port")
    }
}

/// A running QEMU, ended when it is dropped.
struct Qemu {
    child: Child,
    said: PathBuf,
}

impl Qemu {
    /// Starts QEMU; what it says goes to a file, to be shown after a failure.
    fn start(mut command: Command, folder: &Path) -> Result<Self> {
        let said = folder.join("qemu.log");
        let log = File::create(&said).with_context(|| format!("create {}", said.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("clone a file")?)
            .stderr(log)
            .spawn()
            .context("start QEMU through setpriv (of the package util-linux)")?;
        Ok(Self { child, said })
    }

    /// What QEMU itself had to say.
    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Turns signals that would end us into an event, so that everything is cleaned up.
fn interrupt_on_signals(events: Sender<Event>) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("handle signals")?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if events.send(Event::Interrupted).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// What we know of a running guest.
struct Session<'a> {
    events: &'a Receiver<Event>,
    status_line: UnixStream,
    timeout: Duration,
    console: Console,
    status: Vec<u8>,
    arrived: Arrived,
}

/// How many bytes have come over each port.
#[derive(Debug, Default)]
struct Arrived {
    stdout: u64,
    stderr: u64,
    out: u64,
}

impl Arrived {
    fn add(&mut self, port: Port, bytes: u64) {
        match port {
            Port::Stdout => self.stdout += bytes,
            Port::Stderr => self.stderr += bytes,
            Port::Out => self.out += bytes,
            Port::Status => {}
        }
    }

    fn all_of(&self, ending: &Ending) -> bool {
        self.stdout >= ending.stdout && self.stderr >= ending.stderr && self.out >= ending.out
    }
}

/// How a wait ended.
enum Waited {
    For(Event),
    InVain,
}

impl<'a> Session<'a> {
    fn new(events: &'a Receiver<Event>, status_line: UnixStream, timeout: Duration) -> Self {
        let (console, status, arrived) = Default::default();
        Self { events, status_line, timeout, console, status, arrived }
    }

    /// Waits until the guest has ended, one way or another.
    fn run(&mut self) -> Result<Outcome> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match self.wait(deadline) {
                Waited::InVain => return Ok(Outcome::Timeout(self.timeout)),
                Waited::For(Event::Interrupted) => return Ok(Outcome::Interrupted),
                Waited::For(Event::ConsoleClosed) => return Ok(self.fault().unwrap_or(Outcome::Vanished)),
                Waited::For(_) => {}
            }
            if self.console.fault().is_some() {
                self.drain(LAST_WORDS);
                return Ok(self.fault().unwrap_or(Outcome::Vanished));
            }
            if let Some(ending) = self.ending()?
                && self.arrived.all_of(&ending)
            {
                // A guest that is gone by now has said all that we need.
                self.status_line.write_all(ACKNOWLEDGED).ok();
                self.drain(POWER_OFF);
                return Ok(self.fault().unwrap_or(Outcome::Ended(ending.status)));
            }
        }
    }

    /// Waits for one event and takes in what it brings.
    fn wait(&mut self, deadline: Instant) -> Waited {
        let event = match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => return Waited::InVain,
            Err(RecvTimeoutError::Disconnected) => Event::ConsoleClosed,
        };
        match &event {
            Event::Console(bytes) => self.console.push(bytes),
            Event::Status(bytes) => self.status.extend_from_slice(bytes),
            Event::Arrived(port, bytes) => self.arrived.add(*port, *bytes),
            Event::ConsoleClosed | Event::Interrupted => {}
        }
        Waited::For(event)
    }

    /// Takes in what still comes until QEMU ends, or the time is up.
    fn drain(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while let Waited::For(event) = self.wait(deadline) {
            if matches!(event, Event::ConsoleClosed | Event::Interrupted) {
                return;
            }
        }
    }

    /// The kernel's own words for what went wrong.
    fn fault(&self) -> Option<Outcome> {
        self.console.fault().map(|line| Outcome::Fault(line.to_owned()))
    }

    /// The ending, once its line is complete.
    fn ending(&self) -> Result<Option<Ending>> {
        let Some(end) = self.status.iter().position(|&byte| byte == b'\n') else { return Ok(None) };
        let line = String::from_utf8_lossy(&self.status[..end]);
        line.parse().map(Some).with_context(|| format!("understand the guest's ending `{line}`"))
    }
}

/// Says what went wrong, after the last words of the guest and of QEMU.
fn complain(outcome: &Outcome, console: &Console, qemu: &Qemu) {
    for line in console.last_lines() {
        eprintln!("console: {line}");
    }
    for line in qemu.said().lines() {
        eprintln!("qemu: {line}");
    }
    eprintln!("vm: {outcome}");
}

/// Unpacks what the guest left; nothing left is an empty folder.
fn unpack(tar: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    if fs::metadata(tar).with_context(|| format!("look at {}", tar.display()))?.len() == 0 {
        return Ok(());
    }
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    process::output(Command::new("tar").args(["-x", "--no-same-owner", "-f"]).arg(tar).arg("-C").arg(folder))
        .map(drop)
        .context("unpack what the guest left in /out")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a session over the given events, which end with QEMU's end.
    fn outcome(events: Vec<Event>) -> Outcome {
        let (sender, receiver) = channel();
        for event in events {
            sender.send(event).unwrap();
        }
        drop(sender);
        let (ours, _theirs) = UnixStream::pair().unwrap();
        Session::new(&receiver, ours, Duration::from_secs(5)).run().unwrap()
    }

    fn status(text: &str) -> Event {
        Event::Status(text.as_bytes().to_vec())
    }

    fn console(text: &str) -> Event {
        Event::Console(text.as_bytes().to_vec())
    }

    #[test]
    fn a_guest_ends_when_all_of_its_output_is_there() {
        let events = vec![
            status("ended status=7 std"),
            status("out=3 stderr=0 out=0\n"),
            Event::Arrived(Port::Stdout, 1),
            Event::Arrived(Port::Stdout, 2),
        ];
        assert_eq!(outcome(events), Outcome::Ended(7));
    }

    #[test]
    fn output_that_never_came_is_no_good_ending() {
        let events = vec![status("ended status=0 stdout=3 stderr=0 out=0\n"), Event::Arrived(Port::Stdout, 2)];
        assert_eq!(outcome(events), Outcome::Vanished);
    }

    #[test]
    fn a_broken_kernel_fails_a_run_that_ended_well() {
        let oops = "[    1.2] Oops: 0002 [#1] PREEMPT SMP";
        let events = vec![
            status("ended status=0 stdout=0 stderr=0 out=0\n"),
            console(oops),
            console("\r\n"),
            Event::ConsoleClosed,
        ];
        assert_eq!(outcome(events), Outcome::Fault(oops.to_owned()));
    }

    #[test]
    fn a_user_can_interrupt() {
        assert_eq!(outcome(vec![Event::Interrupted]), Outcome::Interrupted);
    }

    #[test]
    fn a_guest_that_says_nothing_is_given_up() {
        let (_sender, receiver) = channel();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let limit = Duration::from_millis(10);
        assert_eq!(Session::new(&receiver, ours, limit).run().unwrap(), Outcome::Timeout(limit));
    }

    #[test]
    fn memory_grows_with_the_files() {
        assert_eq!(memory(10 << 20), 512);
        assert_eq!(memory(200 << 20), 856);
    }

    #[test]
    fn what_the_guest_left_is_unpacked() {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("left")).unwrap();
        fs::write(folder.path().join("left/f.json"), "{}").unwrap();
        let tar = folder.path().join("out.tar");
        process::output(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(folder.path().join("left")).arg("."))
            .unwrap();
        let target = folder.path().join("a/b");
        unpack(&tar, &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("f.json")).unwrap(), "{}");

        fs::write(&tar, "").unwrap();
        unpack(&tar, &folder.path().join("c")).unwrap();
        assert!(folder.path().join("c").is_dir());
    }
}
