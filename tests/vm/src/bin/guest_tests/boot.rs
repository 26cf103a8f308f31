//! Checks what the other tests require of a guest.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result, ensure};

use crate::helpers::process::Process;
use crate::helpers::tracefs::Tracefs;
use crate::helpers::web::WebServer;

tests![file_systems, users, loopback_v4, loopback_v6, packages, tracefs_has_kprobes, no_kernel_warnings];

fn file_systems() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").context("read the mounts")?;
    for place in ["/proc", "/sys", "/dev", "/run"] {
        ensure!(mounts.contains(&format!(" {place} ")), "{place} is not mounted:\n{mounts}");
    }
    ensure!(!mounts.contains(" tracefs "), "tracefs is mounted, but socktrail must find and mount it:\n{mounts}");
    Ok(())
}

fn users() -> Result<()> {
    let root = Process::start(&["id", "-un"])?.finish()?;
    assert_eq!(root.stdout, "root\n");
    let user = Process::start_as_user(&["sh", "-c", "id -un; echo $HOME; echo heard >&2"])?.finish()?;
    assert_eq!((user.stdout.as_str(), user.stderr.as_str()), ("user\n/home/user\n", "heard\n"));
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
    assert_eq!(&byte, b"x");

    let (here, there) = (UdpSocket::bind(address)?, UdpSocket::bind(address)?);
    here.send_to(b"y", there.local_addr()?)?;
    let (_, from) = there.recv_from(&mut byte)?;
    assert_eq!((&byte, from), (b"y", here.local_addr()?));
    Ok(())
}

fn packages() -> Result<()> {
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
    ensure!(functions.lines().any(|line| line == "tcp_sendmsg"), "tcp_sendmsg cannot be probed");
    Ok(())
}

fn no_kernel_warnings() -> Result<()> {
    let log = Process::start(&["dmesg"])?.finish()?.stdout;
    for warning in [" BUG: ", "Oops", "Call Trace:"] {
        ensure!(!log.contains(warning), "the kernel's log has `{warning}`:\n{log}");
    }
    Ok(())
}
