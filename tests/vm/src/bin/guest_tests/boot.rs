//! Checks what the other tests require of a guest.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result, bail, ensure};

use crate::helpers::process::Process;
use crate::helpers::tracefs::Tracefs;
use crate::helpers::web::WebServer;

tests![
    file_systems,
    users,
    loopback_v4,
    loopback_v6,
    curl_reaches_the_web_server,
    tracefs_has_kprobes,
    no_kernel_warnings
];

fn file_systems() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").context("read the mounts")?;
    for mount_point in ["/proc", "/sys", "/dev", "/run"] {
        ensure!(mounts.contains(&format!(" {mount_point} ")), "{mount_point} is not mounted:\n{mounts}");
    }
    ensure!(
        !mounts.contains(" tracefs "),
        "tracefs is mounted already, so the tests would not show that socktrail mounts it:\n{mounts}"
    );
    Ok(())
}

fn users() -> Result<()> {
    let root = Process::start(&["id", "-un"])?.finish()?;
    ensure!(root.stdout == "root\n", "{root:?}");
    let user = Process::start_as_user(&["sh", "-c", "id -un; echo $HOME; echo to stderr >&2"])?.finish()?;
    ensure!(user.stdout == "user\n/home/user\n" && user.stderr == "to stderr\n", "{user:?}");
    Ok(())
}

fn loopback_v4() -> Result<()> {
    exchange((Ipv4Addr::LOCALHOST, 0).into())
}

fn loopback_v6() -> Result<()> {
    exchange((Ipv6Addr::LOCALHOST, 0).into())
}

/// Sends a byte and its echo over TCP, and a byte over UDP.
fn exchange(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).context("listen")?;
    let mut client = TcpStream::connect(listener.local_addr()?).context("connect")?;
    let (mut server, _) = listener.accept().context("accept")?;
    client.write_all(b"x")?;
    let mut byte = [0];
    server.read_exact(&mut byte)?;
    server.write_all(&byte)?;
    client.read_exact(&mut byte)?;
    ensure!(byte == *b"x", "the echo is {byte:?}");

    let (sender, receiver) = (UdpSocket::bind(address)?, UdpSocket::bind(address)?);
    sender.send_to(b"y", receiver.local_addr()?)?;
    let (_, from) = receiver.recv_from(&mut byte)?;
    ensure!(byte == *b"y" && from == sender.local_addr()?, "{byte:?} from {from}");
    Ok(())
}

fn curl_reaches_the_web_server() -> Result<()> {
    let server = WebServer::start(8080)?;
    for host in ["127.0.0.1", "[::1]"] {
        let curl = Process::start(&["curl", "-sS", &format!("http://{host}:8080/")])?.finish()?;
        ensure!(curl.stdout == server.page(), "curl {host}: {curl:?}");
    }
    Ok(())
}

fn tracefs_has_kprobes() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    ensure!(tracefs.kprobe_events()?.is_empty(), "there are probes already");
    let functions = tracefs.read("available_filter_functions")?;
    ensure!(functions.lines().any(|line| line == "tcp_sendmsg"), "tcp_sendmsg is not in available_filter_functions");
    Ok(())
}

fn no_kernel_warnings() -> Result<()> {
    let log = Process::start(&["dmesg"])?.finish()?.stdout;
    if let Some(line) = kernel_warning(&log) {
        bail!("the kernel's log has `{line}`:\n{log}");
    }
    Ok(())
}

/// The first line of a warning, a bug or an oops in the kernel's log.
fn kernel_warning(log: &str) -> Option<&str> {
    // `WARNING:` is a kernel fault only at the start of a message: mitigations print it later in the line. x86 prints
    // `Call Trace:`, arm64 `Call trace:`.
    let is_warning = |line: &&str| {
        line.contains("] WARNING: ")
            || [" BUG: ", "kernel BUG at ", "Oops"].iter().any(|pattern| line.contains(pattern))
            || line.to_ascii_lowercase().contains("call trace:")
    };
    log.lines().find(is_warning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_warnings_are_found_on_each_architecture() {
        for warning in [
            "[    3.1] WARNING: CPU: 1 PID: 77 at net/core/stream.c:208 sk_stream_kill_queues+0x5a/0x60",
            "[    3.1] Call Trace:",
            "[    3.1] Call trace:",
            "[    3.1] Internal error: Oops: 96000004 [#1] SMP",
            "[    3.1] kernel BUG at mm/slub.c:305!",
            "[    3.1] BUG: kernel NULL pointer dereference, address: 0000000000000008",
        ] {
            let log = format!("[    0.0] Linux version 6.1\n{warning}\n[    3.2] eth0: up\n");
            assert_eq!(kernel_warning(&log), Some(warning));
        }
        let harmless =
            "[    0.1] RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable\n[    0.2] tracing is on";
        assert_eq!(kernel_warning(harmless), None);
    }
}
