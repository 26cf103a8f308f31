//! Traffic of the test process with itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

/// An open TCP connection over loopback; dropping it closes both ends.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The end that connected.
    pub(crate) client: TcpStream,
    /// The end that accepted.
    pub(crate) server: TcpStream,
    /// The client's and the server's address.
    pub(crate) ends: (SocketAddr, SocketAddr),
}

impl Connection {
    /// Connects, and sends a byte each way.
    pub(crate) fn open() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
        let mut client = TcpStream::connect(listener.local_addr()?).context("connect")?;
        let (mut server, from) = listener.accept().context("accept")?;
        let mut byte = [0];
        client.write_all(b"x")?;
        server.read_exact(&mut byte)?;
        server.write_all(&byte)?;
        client.read_exact(&mut byte)?;
        Ok(Self { ends: (from, server.local_addr()?), client, server })
    }
}

/// Opens and closes a connection; returns the client's and the server's address.
pub(crate) fn converse() -> Result<(SocketAddr, SocketAddr)> {
    Connection::open().map(|connection| connection.ends)
}

/// Closes a connection with a reset: `SO_LINGER` with a timeout of 0.
pub(crate) fn reset(stream: TcpStream) -> Result<()> {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &linger)?;
    Ok(())
}

/// Runs `work` in a thread on one CPU.
pub(crate) fn on_cpu<T: Send>(cpu: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let pinned = scope.spawn(|| {
            let mut cpus = CpuSet::new();
            cpus.set(cpu)?;
            let this_thread = Pid::from_raw(0);
            sched_setaffinity(this_thread, &cpus).with_context(|| format!("move to CPU {cpu}"))?;
            work()
        });
        pinned.join().map_err(|_| anyhow!("the thread on CPU {cpu} panicked"))?
    })
}
