//! Reads the guest's ports, one thread each, writes the data to its destination, and sends events to the main thread.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::thread;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use socktrail_vm::Port;

/// An event for the main thread.
#[derive(Debug)]
pub enum Event {
    /// Output of the console.
    Console(Vec<u8>),
    /// QEMU has closed the console, because it has ended.
    ConsoleClosed,
    /// Data from the status port.
    Status(Vec<u8>),
    /// This many bytes of a port have been written to their destination.
    Arrived(Port, u64),
    /// A signal to end, such as Ctrl-C's.
    Interrupted,
}

/// A socket pair between this process and QEMU.
#[derive(Debug)]
pub struct SocketPair {
    /// This process's end.
    pub ours: UnixStream,
    /// QEMU's end, which it inherits.
    pub theirs: OwnedFd,
}

impl SocketPair {
    /// Creates a pair.
    pub fn new() -> Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("create a socket pair")?;
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).context("let QEMU inherit a socket")?;
        Ok(Self { ours, theirs: theirs.into() })
    }
}

/// Starts a thread that sends each piece of data as an event, and `end` at the end.
pub fn send_as_events(
    from: &UnixStream,
    events: &Sender<Event>,
    event: fn(Vec<u8>) -> Event,
    end: Option<Event>,
) -> Result<()> {
    let mut from = from.try_clone().context("clone a socket")?;
    let events = events.clone();
    thread::spawn(move || {
        pieces(&mut from, |piece| {
            events.send(event(piece.to_vec())).ok();
        });
        if let Some(end) = end {
            events.send(end).ok();
        }
    });
    Ok(())
}

/// Starts a thread that writes each piece of data to its destination at once.
///
/// If the destination fails, such as a closed pipe, the rest is read and dropped: the guest must not block.
pub fn forward(from: &UnixStream, port: Port, mut to: Box<dyn Write + Send>, events: &Sender<Event>) -> Result<()> {
    let mut from = from.try_clone().context("clone a socket")?;
    let events = events.clone();
    thread::spawn(move || {
        let mut open = true;
        pieces(&mut from, |piece| {
            open = open && to.write_all(piece).and_then(|()| to.flush()).is_ok();
            events.send(Event::Arrived(port, piece.len() as u64)).ok();
        });
    });
    Ok(())
}

/// Reads until the end, or until an error: a killed QEMU may reset the connection.
fn pieces(from: &mut UnixStream, mut take: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => take(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn bytes_are_counted_after_the_destination_has_failed() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let pair = SocketPair::new().unwrap();
        let (sender, events) = channel();
        forward(&pair.ours, Port::Stdout, Box::new(Closed), &sender).unwrap();
        drop(sender);
        let mut theirs = UnixStream::from(pair.theirs);
        theirs.write_all(&[7; 1000]).unwrap();
        drop(theirs);
        let total: u64 = events
            .iter()
            .map(|event| match event {
                Event::Arrived(Port::Stdout, length) => length,
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!(total, 1000);
    }
}
