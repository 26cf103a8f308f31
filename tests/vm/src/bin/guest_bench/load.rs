//! What is measured: traffic over loopback, as simple as can be.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;

use anyhow::{Context, Result, anyhow};

/// A kind of traffic.
pub(crate) struct Load {
    pub(crate) name: &'static str,
    /// How often it does the same thing when it is measured.
    pub(crate) count: u32,
    pub(crate) run: fn(u32) -> Result<()>,
}

pub(crate) const LOADS: &[Load] = &[
    Load { name: "UDP datagrams of 64 bytes", count: 10_000, run: datagrams },
    Load { name: "TCP requests and answers of 64 bytes", count: 5_000, run: exchanges },
    Load { name: "TCP connections, one such exchange each", count: 500, run: connections },
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

/// Asks and answers over one connection. One thread plays both, so that no switching between tasks is measured.
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

/// Connects, asks and answers, and closes.
fn connections(count: u32) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    // A thread of its own, since a process that just connects and one that just accepts are the usual thing.
    thread::scope(|scope| {
        let serving = scope.spawn(|| -> Result<()> {
            for _ in 0..count {
                let (mut stream, _) = listener.accept().context("accept")?;
                let mut bytes = [0; SIZE];
                stream.read_exact(&mut bytes).context("read the question")?;
                stream.write_all(&bytes).context("answer")?;
            }
            Ok(())
        });
        for _ in 0..count {
            let mut stream = TcpStream::connect(address).context("connect")?;
            stream.write_all(&[7; SIZE]).context("ask")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).context("read the answer")?;
        }
        serving.join().map_err(|_| anyhow!("the server's thread panicked"))?
    })
}

/// A question and its answer.
fn exchange(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    let mut bytes = [7; SIZE];
    client.write_all(&bytes).context("ask")?;
    server.read_exact(&mut bytes).context("read the question")?;
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
