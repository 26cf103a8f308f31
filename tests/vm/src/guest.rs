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
use crate::transfer::{self, Event, SocketPair};
use crate::{image, kernel, packages, process, qemu};

/// How long to read the console after the first message of a broken kernel.
const FAULT_OUTPUT: Duration = Duration::from_secs(2);
/// How long a guest may take to power off.
const POWER_OFF: Duration = Duration::from_secs(10);
/// Memory of a guest without packages, in MiB.
const MEMORY: u64 = 512;

/// Held while programs start: QEMU inherits its ends of the sockets, and no other program may inherit them.
static STARTING: Mutex<()> = Mutex::new(());

/// A guest to boot, and the command to run in it.
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
    /// The host folder for its `/out`.
    pub out: Option<&'a Path>,
    /// Its time limit.
    pub timeout: Duration,
    /// The shell command.
    pub command: &'a str,
}

/// QEMU or a Debian package cannot be fetched.
#[derive(Debug)]
pub struct Unavailable;

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QEMU, the kernel or a Debian package could not be fetched")
    }
}

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command ended with this status.
    Ended(u8),
    /// The kernel broke, with this console line.
    Fault(String),
    /// It exceeded this time limit.
    Timeout(Duration),
    /// QEMU ended before the command.
    Vanished,
    /// The user interrupted.
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
            Self::Vanished => f.write_str("QEMU ended before the guest's command"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl Guest<'_> {
    /// Builds programs, fetches missing packages, boots, and waits for the end. The command's output goes to `stdout`
    /// and `stderr`.
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
        let sockets = Sockets::new()?;
        let machine = qemu::Machine {
            arch,
            smp: self.machine.processors()?,
            mem: self.machine.mem.unwrap_or_else(|| memory(size)),
            icount: self.machine.icount,
            vmlinuz: &kernel.vmlinuz,
            initramfs: &initramfs,
            append: self.machine.append.as_deref(),
            console: sockets.console.theirs.as_raw_fd(),
            ports: sockets.descriptors(),
        };
        let qemu = Qemu::start(qemu::command(&machine), folder.path())?;
        let tar = folder.path().join("out.tar");
        let out = File::create(&tar).with_context(|| format!("create {}", tar.display()))?;
        let status = sockets.connect(stdout, stderr, Box::new(out), &sender)?;
        drop(starting);
        interrupt_on_signals(sender)?;

        let mut session = Session::new(&events, status, self.timeout);
        let outcome = session.run()?;
        if !matches!(outcome, Outcome::Ended(_) | Outcome::Interrupted) {
            report_failure(&outcome, &session.console, &qemu);
        }
        drop(qemu);
        if let (Outcome::Ended(_), Some(folder)) = (&outcome, self.out) {
            unpack(&tar, folder)?;
        }
        Ok(outcome)
    }
}

/// Memory in MiB for a guest with an initramfs of this many bytes: the kernel keeps it while it unpacks it, and a root
/// file system may use half of all memory.
fn memory(initramfs: u64) -> u64 {
    MEMORY.max(256 + 3 * initramfs.div_ceil(1 << 20))
}

/// The sockets between this process and QEMU.
struct Sockets {
    console: SocketPair,
    ports: Vec<(Port, SocketPair)>,
}

impl Sockets {
    fn new() -> Result<Self> {
        let ports = ALL_PORTS.into_iter().map(|port| Ok((port, SocketPair::new()?))).collect::<Result<_>>()?;
        Ok(Self { console: SocketPair::new()?, ports })
    }

    /// The descriptors that QEMU inherits.
    fn descriptors(&self) -> [(Port, i32); ALL_PORTS.len()] {
        std::array::from_fn(|at| (self.ports[at].0, self.ports[at].1.theirs.as_raw_fd()))
    }

    /// Starts threads that read the sockets, and closes this process's copies of QEMU's ends. Returns the socket for
    /// the acknowledgement.
    fn connect(
        self,
        stdout: Box<dyn Write + Send>,
        stderr: Box<dyn Write + Send>,
        out: Box<dyn Write + Send>,
        events: &Sender<Event>,
    ) -> Result<UnixStream> {
        transfer::send_as_events(&self.console.ours, events, Event::Console, Some(Event::ConsoleClosed))?;
        let (mut stdout, mut stderr, mut out) = (Some(stdout), Some(stderr), Some(out));
        let mut status = None;
        for (port, pair) in self.ports {
            let to = match port {
                Port::Stdout => stdout.take(),
                Port::Stderr => stderr.take(),
                Port::Out => out.take(),
                Port::Status => {
                    transfer::send_as_events(&pair.ours, events, Event::Status, None)?;
                    status = Some(pair.ours);
                    continue;
                }
            };
            transfer::forward(&pair.ours, port, to.context("a port is connected twice")?, events)?;
        }
        status.context("no status port")
    }
}

/// A running QEMU; dropping it kills it.
struct Qemu {
    child: Child,
    log: PathBuf,
}

impl Qemu {
    /// Starts QEMU with its output in a file, to be printed after a failure.
    fn start(mut command: Command, folder: &Path) -> Result<Self> {
        let log = folder.join("qemu.log");
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("clone a file")?)
            .stderr(file)
            .spawn()
            .context("start QEMU through setpriv (of the package util-linux)")?;
        Ok(Self { child, log })
    }

    /// QEMU's output.
    fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Turns signals that would end this process into events, so that it can clean up.
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

/// The state of a running guest.
struct Session<'a> {
    events: &'a Receiver<Event>,
    status_socket: UnixStream,
    timeout: Duration,
    console: Console,
    status: Vec<u8>,
    arrived: Arrived,
}

/// The number of bytes that have arrived over each port.
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

/// The result of a wait.
enum Waited {
    Event(Event),
    Timeout,
}

impl<'a> Session<'a> {
    fn new(events: &'a Receiver<Event>, status_socket: UnixStream, timeout: Duration) -> Self {
        let (console, status, arrived) = Default::default();
        Self { events, status_socket, timeout, console, status, arrived }
    }

    /// Waits until the guest ends, in whatever way.
    fn run(&mut self) -> Result<Outcome> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match self.wait(deadline) {
                Waited::Timeout => return Ok(Outcome::Timeout(self.timeout)),
                Waited::Event(Event::Interrupted) => return Ok(Outcome::Interrupted),
                Waited::Event(Event::ConsoleClosed) => return Ok(self.fault().unwrap_or(Outcome::Vanished)),
                Waited::Event(_) => {}
            }
            if self.console.fault().is_some() {
                self.drain(FAULT_OUTPUT);
                return Ok(self.fault().unwrap_or(Outcome::Vanished));
            }
            if let Some(ending) = self.ending()?
                && self.arrived.all_of(&ending)
            {
                // QEMU may already have ended, but everything has arrived.
                self.status_socket.write_all(ACKNOWLEDGED).ok();
                self.drain(POWER_OFF);
                return Ok(self.fault().unwrap_or(Outcome::Ended(ending.status)));
            }
        }
    }

    /// Waits for one event, and stores its data.
    fn wait(&mut self, deadline: Instant) -> Waited {
        let event = match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => return Waited::Timeout,
            Err(RecvTimeoutError::Disconnected) => Event::ConsoleClosed,
        };
        match &event {
            Event::Console(bytes) => self.console.push(bytes),
            Event::Status(bytes) => self.status.extend_from_slice(bytes),
            Event::Arrived(port, bytes) => self.arrived.add(*port, *bytes),
            Event::ConsoleClosed | Event::Interrupted => {}
        }
        Waited::Event(event)
    }

    /// Handles events until QEMU ends, or the time is up.
    fn drain(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while let Waited::Event(event) = self.wait(deadline) {
            if matches!(event, Event::ConsoleClosed | Event::Interrupted) {
                return;
            }
        }
    }

    /// The outcome, if the kernel has broken.
    fn fault(&self) -> Option<Outcome> {
        self.console.fault().map(|line| Outcome::Fault(line.to_owned()))
    }

    /// The guest's ending, if its line is complete.
    fn ending(&self) -> Result<Option<Ending>> {
        let Some(end) = self.status.iter().position(|&byte| byte == b'\n') else { return Ok(None) };
        let line = String::from_utf8_lossy(&self.status[..end]);
        line.parse().map(Some).with_context(|| format!("parse the guest's ending `{line}`"))
    }
}

/// Prints the end of the console, QEMU's output, and the outcome.
fn report_failure(outcome: &Outcome, console: &Console, qemu: &Qemu) {
    for line in console.last_lines() {
        eprintln!("console: {line}");
    }
    for line in qemu.output().lines() {
        eprintln!("qemu: {line}");
    }
    eprintln!("vm: {outcome}");
}

/// Unpacks the guest's `/out` into a folder. Without files there, the archive is empty.
fn unpack(tar: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    if fs::metadata(tar).with_context(|| format!("look at {}", tar.display()))?.len() == 0 {
        return Ok(());
    }
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    process::output(Command::new("tar").args(["-x", "--no-same-owner", "-f"]).arg(tar).arg("-C").arg(folder))
        .map(drop)
        .context("unpack the guest's /out")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a session with these events, then QEMU's end.
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
    fn missing_output_is_not_a_success() {
        let events = vec![status("ended status=0 stdout=3 stderr=0 out=0\n"), Event::Arrived(Port::Stdout, 2)];
        assert_eq!(outcome(events), Outcome::Vanished);
    }

    #[test]
    fn a_broken_kernel_fails_a_successful_run() {
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
    fn a_silent_guest_times_out() {
        let (_sender, receiver) = channel();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let limit = Duration::from_millis(10);
        assert_eq!(Session::new(&receiver, ours, limit).run().unwrap(), Outcome::Timeout(limit));
    }

    #[test]
    fn memory_grows_with_the_initramfs() {
        assert_eq!(memory(10 << 20), 512);
        assert_eq!(memory(200 << 20), 856);
    }

    #[test]
    fn the_out_folder_is_unpacked() {
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
