//! The measured loads: simple traffic over loopback, and processes that do nothing.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use crate::counters::packets_sent;

/// A repeated action.
pub(crate) struct Load {
    pub(crate) name: &'static str,
    /// The number of iterations of a measurement.
    pub(crate) count: u32,
    pub(crate) run: fn(u32) -> Result<()>,
    /// The unit of its cost.
    pub(crate) unit: Unit,
}

/// A unit of cost.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// A packet that the kernel counts as sent.
    Packet,
    /// A million bytes; each iteration has one.
    Megabyte,
    /// A process; each iteration has one.
    Process,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Megabyte => "MB",
            Self::Process => "process",
        }
    }

    /// Whether it measures traffic.
    pub(crate) fn is_traffic(self) -> bool {
        !matches!(self, Self::Process)
    }

    /// Runs `measure`, which runs the load. Returns the number of units that the load had, and the measured cost.
    pub(crate) fn measure(self, load: &Load, measure: impl FnOnce() -> Result<u64>) -> Result<(u64, u64)> {
        let sent = packets_sent()?;
        let cost = measure()?;
        let units = match self {
            Self::Packet => packets_sent()? - sent,
            Self::Megabyte | Self::Process => load.count.into(),
        };
        Ok((units, cost))
    }
}

pub(crate) const LOADS: &[Load] = &[
    Load { name: "UDP datagrams of 64 bytes", count: 10_000, run: datagrams, unit: Unit::Packet },
    Load { name: "TCP requests and answers of 64 bytes", count: 5_000, run: exchanges, unit: Unit::Packet },
    Load { name: "TCP connections, one such exchange each", count: 500, run: connections, unit: Unit::Packet },
    Load { name: "TCP, 64 KiB at a time", count: 100, run: bulk, unit: Unit::Megabyte },
    Load { name: "a process that is forked, and ends", count: 1000, run: forks, unit: Unit::Process },
    Load { name: "a process that runs a program, and ends", count: 500, run: programs, unit: Unit::Process },
];

const SIZE: usize = 64;

/// Sends datagrams and receives each at once.
fn datagrams(count: u32) -> Result<()> {
    let (sender, receiver) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    sender.connect(receiver.local_addr()?)?;
    let mut datagram = [7; SIZE];
    for _ in 0..count {
        sender.send(&datagram).context("send")?;
        receiver.recv(&mut datagram).context("receive")?;
    }
    Ok(())
}

/// Exchanges requests and answers over one connection. One thread has both ends, so that the cost has no task switches in it.
fn exchanges(count: u32) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    for _ in 0..count {
        exchange(&mut client, &mut server)?;
    }
    Ok(())
}

/// Connects, exchanges a request and an answer, and closes.
fn connections(count: u32) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    // The server has a thread of its own, as usual.
    thread::scope(|scope| {
        let serving = scope.spawn(|| -> Result<()> {
            for _ in 0..count {
                let (mut stream, _) = listener.accept().context("accept")?;
                let mut bytes = [0; SIZE];
                stream.read_exact(&mut bytes).context("read the request")?;
                stream.write_all(&bytes).context("answer")?;
            }
            Ok(())
        });
        for _ in 0..count {
            let mut stream = TcpStream::connect(address).context("connect")?;
            stream.write_all(&[7; SIZE]).context("send the request")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).context("read the answer")?;
        }
        serving.join().map_err(|_| anyhow!("the server's thread panicked"))?
    })
}

/// Sends `count` million bytes over one connection.
fn bulk(count: u32) -> Result<()> {
    const CHUNK: usize = 1 << 16;
    const MEGABYTE: u64 = 1_000_000;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    let all = u64::from(count) * MEGABYTE;
    thread::scope(|scope| {
        let reading = scope.spawn(move || -> Result<u64> {
            let (mut bytes, mut read) = (vec![0; CHUNK], 0);
            loop {
                match server.read(&mut bytes).context("read")? {
                    0 => return Ok(read),
                    more => read += more as u64,
                }
            }
        });
        let (bytes, mut left) = (vec![7; CHUNK], all);
        while left > 0 {
            let more = left.min(CHUNK as u64);
            client.write_all(&bytes[..more as usize]).context("write")?;
            left -= more;
        }
        drop(client);
        let read = reading.join().map_err(|_| anyhow!("the reader's thread panicked"))??;
        ensure!(read == all, "{read} of {all} bytes arrived");
        Ok(())
    })
}

/// Forks processes that end at once. A shell does it, because forking a small process is cheap.
fn forks(count: u32) -> Result<()> {
    // With `sh -c SCRIPT COUNT`, `$0` is the count.
    let script = "i=0; while [ $i -lt $0 ]; do (:); i=$((i+1)); done";
    let status = Command::new("sh").args(["-c", script, &count.to_string()]).status().context("start a shell")?;
    ensure!(status.success(), "the shell ended with {status}");
    Ok(())
}

/// Runs a program that ends at once, in a process of its own each time.
fn programs(count: u32) -> Result<()> {
    for _ in 0..count {
        let status = Command::new("true").status().context("run a program")?;
        ensure!(status.success(), "the program ended with {status}");
    }
    Ok(())
}

/// Exchanges a request and an answer.
fn exchange(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    let mut bytes = [7; SIZE];
    client.write_all(&bytes).context("send the request")?;
    server.read_exact(&mut bytes).context("read the request")?;
    server.write_all(&bytes).context("answer")?;
    client.read_exact(&mut bytes).context("read the answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_load_runs() {
        for load in LOADS {
            (load.run)(3).unwrap();
        }
    }
}
