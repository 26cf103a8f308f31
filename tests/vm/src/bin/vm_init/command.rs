//! Runs the guest's command.

use std::fs::{self, File, Permissions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;
use socktrail_vm::{ACKNOWLEDGED, COMMAND_FILE, Ending, OUT_DIR};

use crate::ports::Ports;

/// Runs the command, sends its output, files and exit status, and waits until the host has everything.
pub(crate) fn run(ports: Ports) -> Result<()> {
    let command = fs::read_to_string(COMMAND_FILE).with_context(|| format!("read {COMMAND_FILE}"))?;
    let (stdout, stdout_copy) = forwarded(ports.stdout)?;
    let (stderr, stderr_copy) = forwarded(ports.stderr)?;

    let pid = start(&command, stdout, stderr)?;
    let status = reap_until(pid)?;
    end_all_processes();

    let ending =
        Ending { status, stdout: bytes_of(stdout_copy)?, stderr: bytes_of(stderr_copy)?, out: send_out(ports.out)? };
    report(ports.status, &ending)
}

/// A pipe whose data a thread copies to a port. The thread returns the number of bytes.
///
/// A command gets pipes instead of ports, because a port can be opened only once, and `>/dev/stderr` opens it again.
fn forwarded(mut port: File) -> Result<(PipeWriter, JoinHandle<io::Result<u64>>)> {
    let (mut reader, writer) = io::pipe().context("create a pipe")?;
    // A command that has changed its user must be able to open it again.
    fs::set_permissions(
        format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer)),
        Permissions::from_mode(0o666),
    )
    .context("let every user open a pipe")?;
    let copy = thread::spawn(move || copy(&mut reader, &mut port));
    Ok((writer, copy))
}

/// Copies data as soon as it arrives, until the end.
fn copy(from: &mut PipeReader, to: &mut File) -> io::Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(total);
        }
        to.write_all(&buffer[..length])?;
        total += length as u64;
    }
}

/// The result of a copying thread.
fn bytes_of(copy: JoinHandle<io::Result<u64>>) -> Result<u64> {
    copy.join().map_err(|_| anyhow!("a copying thread panicked"))?.context("copy output to the host")
}

/// Starts the command in a shell.
fn start(command: &str, stdout: PipeWriter, stderr: PipeWriter) -> Result<Pid> {
    let child = Command::new("/bin/sh")
        .args(["-c", command])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("USER", "root")
        .env("LANG", "C.UTF-8")
        .current_dir("/root")
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .context("start /bin/sh")?;
    Ok(Pid::from_raw(child.id().cast_signed()))
}

/// Waits for one child. Reaps orphans, too, which process 1 inherits.
fn reap_until(pid: Pid) -> Result<u8> {
    loop {
        match wait().context("wait for the command")? {
            WaitStatus::Exited(child, status) if child == pid => return Ok(status as u8),
            WaitStatus::Signaled(child, signal, _) if child == pid => return Ok(128 + signal as u8),
            _ => {}
        }
    }
}

/// Kills all processes that the command has left, so that every pipe ends.
fn end_all_processes() {
    let everyone_else = Pid::from_raw(-1);
    kill(everyone_else, Signal::SIGKILL).ok();
    while wait() != Err(Errno::ECHILD) {}
}

/// Sends a tar archive of the out folder, unless it is empty.
fn send_out(mut port: File) -> Result<u64> {
    let empty = fs::read_dir(OUT_DIR).with_context(|| format!("read {OUT_DIR}"))?.next().is_none();
    if empty {
        return Ok(0);
    }
    let (mut reader, writer) = io::pipe().context("create a pipe")?;
    let mut tar = Command::new("/bin/busybox")
        .args(["tar", "-c", "-f", "-", "-C", OUT_DIR, "."])
        .stdin(Stdio::null())
        .stdout(writer)
        .spawn()
        .context("start busybox tar")?;
    let total = copy(&mut reader, &mut port).context("copy the out folder to the host")?;
    let status = tar.wait().context("wait for tar")?;
    if !status.success() {
        return Err(anyhow!("tar of {OUT_DIR}: {status}"));
    }
    Ok(total)
}

/// Sends the ending, and waits for the host's acknowledgement.
fn report(mut port: File, ending: &Ending) -> Result<()> {
    port.write_all(format!("{ending}\n").as_bytes()).context("send the ending")?;
    let mut answer = [0; ACKNOWLEDGED.len()];
    port.read_exact(&mut answer).context("read the host's acknowledgement")
}
