//! One line a flow, to any writer.

use std::io::{self, Write};

use serde::Serialize;

use crate::ecs::{self, Context};
use crate::flow::Flow;

use super::{HEADER, JsonFormatter, line};

/// What the lines are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One ECS document in JSON.
    Ecs,
    /// Aligned columns for people.
    Text,
}

/// Writes flows as lines. The caller decides when to flush: writes reach a reader in order, and whole lines only.
#[derive(Debug)]
pub struct Lines<W: Write> {
    writer: W,
    format: Format,
    buffer: Vec<u8>,
    unflushed: bool,
}

impl<W: Write> Lines<W> {
    /// How much is kept before it is written unasked.
    const ENOUGH: usize = 64 * 1024;

    /// Lines to `writer`, which should not buffer for itself.
    pub fn new(writer: W, format: Format) -> Self {
        Self { writer, format, buffer: Vec::with_capacity(Self::ENOUGH), unflushed: false }
    }

    /// Writes the names of the columns, in a format that has columns.
    ///
    /// # Errors
    /// The writer's.
    pub fn header(&mut self) -> io::Result<()> {
        if self.format == Format::Text {
            self.buffer.extend_from_slice(HEADER.as_bytes());
            self.end_line()?;
        }
        Ok(())
    }

    /// Writes one flow.
    ///
    /// # Errors
    /// The writer's; [`io::ErrorKind::BrokenPipe`] means that nobody reads any more.
    pub fn write(&mut self, flow: &Flow, context: &Context<'_>) -> io::Result<()> {
        match self.format {
            Format::Ecs => {
                let mut json = serde_json::Serializer::with_formatter(&mut self.buffer, JsonFormatter);
                ecs::network_flow(flow, context).serialize(&mut json)?;
            }
            Format::Text => {
                self.buffer.extend_from_slice(line(flow, context.clock, context.names).as_bytes());
            }
        }
        self.end_line()
    }

    /// Whether anything waits to be flushed.
    pub fn is_unflushed(&self) -> bool {
        self.unflushed
    }

    /// Hands all lines to the reader.
    ///
    /// # Errors
    /// The writer's.
    pub fn flush(&mut self) -> io::Result<()> {
        self.write_out()?;
        self.unflushed = false;
        self.writer.flush()
    }

    fn end_line(&mut self) -> io::Result<()> {
        self.buffer.push(b'\n');
        self.unflushed = true;
        if self.buffer.len() >= Self::ENOUGH { self.write_out() } else { Ok(()) }
    }

    /// What was buffered is gone after this, also when it could not be written: no line is ever written twice.
    fn write_out(&mut self) -> io::Result<()> {
        let result = self.writer.write_all(&self.buffer);
        self.buffer.clear();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Agent;
    use crate::clock::{Clock, Readings, Timestamp};
    use crate::ecs::Directions;
    use crate::event::{Endpoint, Transport};
    use crate::flow::{Counters, Direction, Inexact, Outcome, Owner, Reason};
    use crate::host::Host;

    fn flow(number: u64) -> Flow {
        Flow {
            number,
            transport: Transport::Udp,
            local: Endpoint::new([192, 0, 2, 1], 4000),
            remote: Endpoint::new([192, 0, 2, 2], 53),
            sock: 1,
            net: 1,
            direction: Direction::Unknown,
            owner: Owner::Unknown,
            start: 0,
            end: 0,
            sent: Counters::default(),
            received: Counters::default(),
            complete: true,
            is_final: true,
            outcome: Outcome::Success,
            reason: Reason::Inactive,
            inexact: Inexact::default(),
            domain: None,
        }
    }

    fn with_context<T>(work: impl FnOnce(&Context<'_>) -> T) -> T {
        let host = Host::default();
        let agent = Agent::of(&host);
        let clock = Clock::from_readings(Readings { kernel: 0, boot: 0, wall: Timestamp::default() });
        work(&Context { host: &host, agent: &agent, clock, names: &(), directions: Directions::Ingress })
    }

    #[test]
    fn nothing_is_written_before_it_is_flushed_and_then_whole_lines() {
        let mut written = Vec::new();
        with_context(|context| {
            let mut lines = Lines::new(&mut written, Format::Ecs);
            lines.header().unwrap();
            lines.write(&flow(1), context).unwrap();
            lines.write(&flow(2), context).unwrap();
            assert!(lines.is_unflushed());
            assert!(lines.writer.is_empty());
            lines.flush().unwrap();
            assert!(!lines.is_unflushed());
        });
        let text = String::from_utf8(written).unwrap();
        let documents: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(documents.len(), 2);
        assert!(text.ends_with("}\n"));
    }

    #[test]
    fn much_is_written_unasked() {
        let mut written = Vec::new();
        with_context(|context| {
            let mut lines = Lines::new(&mut written, Format::Text);
            for number in 0..1000 {
                lines.write(&flow(number), context).unwrap();
            }
            assert!(lines.writer.len() > 64 * 1024);
            assert!(lines.buffer.len() < 64 * 1024);
        });
    }

    #[test]
    fn a_broken_pipe_is_told_and_nothing_is_kept_for_it() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        with_context(|context| {
            let mut lines = Lines::new(Broken, Format::Ecs);
            lines.write(&flow(1), context).unwrap();
            assert_eq!(lines.flush().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            assert!(lines.buffer.is_empty());
        });
    }
}
