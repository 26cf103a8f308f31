//! Carries the guest's bytes to where they belong, one thread a port, and tells the waiting main thread.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::thread;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use socktrail_vm::Port;

/// Something that the main thread waits for.
#[derive(Debug)]
pub enum Event {
    /// The console said this.
    Console(Vec<u8>),
    /// QEMU closed the console: it has ended.
    ConsoleClosed,
    /// The status port said this.
    Status(Vec<u8>),
    /// This many more bytes of a port have reached their place.
    Arrived(Port, u64),
    /// Ctrl-C, or somebody asked us to end.
    Interrupted,
}

/// A two-way line between us and QEMU.
#[derive(Debug)]
pub struct Line {
    /// Our end.
    pub ours: UnixStream,
    /// QEMU's end, which it inherits.
    pub theirs: OwnedFd,
}

impl Line {
    /// Creates a line.
    pub fn new() -> Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("create a socket pair")?;
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).context("let QEMU inherit a socket")?;
        Ok(Self { ours, theirs: theirs.into() })
    }
}

/// Reads a line until it ends, each piece turned into an event.
pub fn watch(from: &UnixStream, events: &Sender<Event>, event: fn(Vec<u8>) -> Event, end: Option<Event>) -> Result<()> {
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

/// Reads a line until it ends and writes each piece at once.
///
/// When the destination takes no more, as a closed pipe, the rest is read and dropped: the guest must not block.
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

/// Reads until the end or an error, which is how a killed QEMU ends.
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
    fn bytes_go_on_and_are_counted_after_the_destination_has_closed() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let line = Line::new().unwrap();
        let (sender, events) = channel();
        forward(&line.ours, Port::Stdout, Box::new(Closed), &sender).unwrap();
        drop(sender);
        let mut theirs = UnixStream::from(line.theirs);
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
