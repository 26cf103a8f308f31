//! Writes flows as lines to any writer.

use std::io::{self, Write};

use crate::documents::ecs::{self, Context};
use crate::model::flow::Flow;

use super::LineBuffer;
use crate::documents::text::{HEADER, line};

/// The format of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// ECS documents in JSON.
    Ecs,
    /// Columns for people.
    Text,
}

/// Writes flows as lines. The caller decides when to flush. The writer gets whole lines, in order.
#[derive(Debug)]
pub struct Lines<W: Write> {
    lines: LineBuffer<W>,
    format: Format,
}

impl<W: Write> Lines<W> {
    /// Writes lines to `writer`, which needs no buffer of its own.
    pub fn new(writer: W, format: Format) -> Self {
        Self { lines: LineBuffer::new(writer), format }
    }

    /// Writes the names of the columns, in a format that has columns.
    ///
    /// # Errors
    /// The writer fails.
    pub fn header(&mut self) -> io::Result<()> {
        if self.format == Format::Text { self.lines.text(HEADER) } else { Ok(()) }
    }

    /// Writes one flow.
    ///
    /// # Errors
    /// The writer fails; [`io::ErrorKind::BrokenPipe`] means that the reader has closed its end.
    pub fn write(&mut self, flow: &Flow, context: &Context<'_>) -> io::Result<()> {
        match self.format {
            Format::Ecs => self.lines.json(&ecs::network_flow(flow, context)),
            Format::Text => self.lines.text(&line(flow, context.clock, context.names)),
        }
    }

    /// Whether there are lines to flush.
    pub fn is_unflushed(&self) -> bool {
        self.lines.is_unflushed()
    }

    /// Writes all lines, and flushes the writer.
    ///
    /// # Errors
    /// The writer fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::ecs::Directions;
    use crate::host::Host;
    use crate::host::agent::Agent;
    use crate::model::clock::{Clock, Readings, Timestamp};
    use crate::model::flow::{Counters, Direction, Endpoint, Inexact, Outcome, Owner, Reason, Transport};
    use crate::model::kernel_address::{NetAddress, SockAddress};
    use crate::model::testing::{monotonic, since_boot};

    fn flow(number: u64) -> Flow {
        Flow {
            number,
            transport: Transport::Udp,
            local: Endpoint::new([192, 0, 2, 1], 4000),
            remote: Endpoint::new([192, 0, 2, 2], 53),
            sock: SockAddress::new(1),
            net: NetAddress::new(1),
            direction: Direction::Unknown,
            owner: Owner::Unknown,
            start: monotonic(0),
            end: monotonic(0),
            sent: Counters::default(),
            received: Counters::default(),
            dropped: Counters::default(),
            complete: true,
            is_final: true,
            outcome: Outcome::Success,
            reason: Reason::Inactive,
            inexact: Inexact::default(),
            last_user: None,
            domain: None,
        }
    }

    fn with_context<T>(work: impl FnOnce(&Context<'_>) -> T) -> T {
        let host = Host::default();
        let agent = Agent::of(&host);
        let clock =
            Clock::from_readings(Readings { kernel: monotonic(0), boot: since_boot(0), wall: Timestamp::default() });
        work(&Context { host: &host, agent: &agent, clock, names: &(), directions: Directions::Ingress })
    }

    #[test]
    fn each_format_has_its_lines() {
        let written = |format| {
            let mut written = Vec::new();
            with_context(|context| {
                let mut lines = Lines::new(&mut written, format);
                lines.header().unwrap();
                lines.write(&flow(1), context).unwrap();
                lines.write(&flow(2), context).unwrap();
                assert!(lines.is_unflushed());
                lines.flush().unwrap();
            });
            String::from_utf8(written).unwrap()
        };
        let documents = written(Format::Ecs);
        assert!(documents.ends_with("}\n"));
        let documents = documents.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        assert_eq!(documents.map(|document| document["destination"]["port"].clone()).collect::<Vec<_>>(), [53, 53]);
        let text = written(Format::Text);
        assert!(text.starts_with(HEADER) && text.lines().count() == 3, "{text}");
    }
}
