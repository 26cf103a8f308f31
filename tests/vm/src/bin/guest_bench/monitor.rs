//! The monitor that is measured.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longer than `flow_termination_timeout` (5 s), after which the monitor writes the flows of the load's closed sockets. Waiting
/// is cheap, because the guest's clock jumps to the next timer when the guest is idle.
const IDLE_AFTER: Duration = Duration::from_secs(8);

/// A running `socktrail flows`, whose documents go to `/dev/null`; dropping it kills the process.
pub(crate) struct Monitor {
    child: Child,
}

impl Monitor {
    /// Starts it with these arguments, and waits until its probes are installed.
    pub(crate) fn start(arguments: &[String]) -> Result<Self> {
        let mut child = Command::new("socktrail")
            .args(["flows", "--format", "ecs", "--stats"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(File::create("/dev/null").context("open /dev/null")?)
            .stderr(Stdio::piped())
            .spawn()
            .context("start socktrail")?;
        let mut stderr = BufReader::new(child.stderr.take().context("standard error is not a pipe")?);
        let monitor = Self { child };
        let mut log = String::new();
        while !log.contains("ready") {
            let length = stderr.read_line(&mut log).context("read socktrail's log")?;
            ensure!(length > 0, "socktrail ended before it was ready: {log}");
        }
        // The rest of its log goes to this program's standard error.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::stderr()));
        Ok(monitor)
    }

    /// The CPU time of its threads in nanoseconds, in user space and in the kernel.
    pub(crate) fn cpu_time(&self) -> Result<u64> {
        let folder = format!("/proc/{}/task", self.child.id());
        let mut total = 0;
        for thread in fs::read_dir(&folder).with_context(|| format!("read {folder}"))? {
            let path = thread?.path().join("schedstat");
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let time = text.split_whitespace().next().and_then(|first| first.parse::<u64>().ok());
            total += time.with_context(|| format!("{} has unexpected content: `{text}`", path.display()))?;
        }
        Ok(total)
    }

    /// Its CPU time in user space and in the kernel, in clock ticks: exact enough for their ratio.
    pub(crate) fn user_and_system(&self) -> Result<(u64, u64)> {
        let path = format!("/proc/{}/stat", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // The program's name is in parentheses; user and system time are the 12th and 13th word after it.
        let after_name = text.rsplit_once(')').with_context(|| format!("{path} has unexpected content: `{text}`"))?.1;
        let numbers: Vec<_> = after_name.split_whitespace().collect();
        match numbers.get(11..13) {
            Some([user, system]) => Ok((user.parse()?, system.parse()?)),
            _ => bail!("{path} has unexpected content: `{text}`"),
        }
    }

    /// Waits until it has processed everything, and written the flows of closed sockets.
    pub(crate) fn wait_until_idle(&self) {
        sleep(IDLE_AFTER);
    }

    /// Ends it as Ctrl-C does. Then waits until the kernel has freed its probes and programs, which other tasks do later: this
    /// work must not count for the next measurement.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT).context("interrupt socktrail")?;
        let status = self.child.wait().context("wait for socktrail")?;
        ensure!(status.success(), "socktrail ended with {status}");
        sleep(IDLE_AFTER);
        Ok(())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
