//! The monitor that is measured.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longer than the flows of closed sockets wait for late packets, and than any of the monitor's timers. While nothing
/// runs, the clock of a guest that counts instructions leaps from timer to timer.
const LONG_ENOUGH: Duration = Duration::from_secs(8);

/// A running `socktrail flows`, whose documents nobody reads; killed when it is dropped.
pub(crate) struct Monitor {
    child: Child,
}

impl Monitor {
    /// Starts it with the arguments of this program but the first, and waits until its probes are in place.
    pub(crate) fn start() -> Result<Self> {
        let mut child = Command::new("socktrail")
            .args(["flows", "--format", "ecs", "--stats"])
            .args(std::env::args_os().skip(2))
            .stdin(Stdio::null())
            .stdout(File::create("/dev/null").context("open /dev/null")?)
            .stderr(Stdio::piped())
            .spawn()
            .context("start socktrail")?;
        let mut stderr = BufReader::new(child.stderr.take().context("standard error is a pipe")?);
        let monitor = Self { child };
        let mut said = String::new();
        while !said.contains("ready") {
            let length = stderr.read_line(&mut said).context("read what socktrail says")?;
            ensure!(length > 0, "socktrail ended before it was ready: {said}");
        }
        // It says little more until its end; what it does say goes to our own standard error.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::stderr()));
        Ok(monitor)
    }

    /// Nanoseconds of CPU time that its threads have used, in user space and in the kernel.
    pub(crate) fn cpu_time(&self) -> Result<u64> {
        let folder = format!("/proc/{}/task", self.child.id());
        let mut total = 0;
        for thread in fs::read_dir(&folder).with_context(|| format!("read {folder}"))? {
            let path = thread?.path().join("schedstat");
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let time = text.split_whitespace().next().and_then(|first| first.parse::<u64>().ok());
            total += time.with_context(|| format!("{} holds `{text}`", path.display()))?;
        }
        Ok(total)
    }

    /// Clock ticks that it was found in user space and in the kernel: coarse, but enough for their ratio.
    pub(crate) fn user_and_system(&self) -> Result<(u64, u64)> {
        let path = format!("/proc/{}/stat", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // The program's name stands in parentheses; user and system time are the 12th and 13th word after it.
        let after_name = text.rsplit_once(')').with_context(|| format!("{path} holds `{text}`"))?.1;
        let numbers: Vec<_> = after_name.split_whitespace().collect();
        match numbers.get(11..13) {
            Some([user, system]) => Ok((user.parse()?, system.parse()?)),
            _ => bail!("{path} holds `{text}`"),
        }
    }

    /// Waits until it has nothing left to do.
    pub(crate) fn let_it_finish(&self) {
        sleep(LONG_ENOUGH);
    }

    /// Ends it.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT).context("interrupt socktrail")?;
        let status = self.child.wait().context("wait for socktrail")?;
        ensure!(status.success(), "socktrail ended with {status}");
        Ok(())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
