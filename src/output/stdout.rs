//! One line a flow, to any writer.

use std::io::{self, Write};

use crate::ecs::{self, Context};
use crate::flow::Flow;

use super::{HEADER, LineBuffer, line};

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
    lines: LineBuffer<W>,
    format: Format,
}

impl<W: Write> Lines<W> {
    /// Lines to `writer`, which should not buffer for itself.
    pub fn new(writer: W, format: Format) -> Self {
        Self { lines: LineBuffer::new(writer), format }
    }

    /// Writes the names of the columns, in a format that has columns.
    ///
    /// # Errors
    /// The writer's.
    pub fn header(&mut self) -> io::Result<()> {
        if self.format == Format::Text { self.lines.text(HEADER) } else { Ok(()) }
    }

    /// Writes one flow.
    ///
    /// # Errors
    /// The writer's; [`io::ErrorKind::BrokenPipe`] means that nobody reads any more.
    pub fn write(&mut self, flow: &Flow, context: &Context<'_>) -> io::Result<()> {
        match self.format {
            Format::Ecs => self.lines.json(&ecs::network_flow(flow, context)),
            Format::Text => self.lines.text(&line(flow, context.clock, context.names)),
        }
    }

    /// Whether anything waits to be flushed.
    pub fn is_unflushed(&self) -> bool {
        self.lines.is_unflushed()
    }

    /// Hands all lines to the reader.
    ///
    /// # Errors
    /// The writer's.
    pub fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
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
        let clock = Clock::from_readings(Readings { kernel: 0, boot: 0, wall: Timestamp::default() });
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
        let ends = documents.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        assert_eq!(ends.map(|document| document["destination"]["port"].clone()).collect::<Vec<_>>(), [53, 53]);
        let text = written(Format::Text);
        assert!(text.starts_with(HEADER) && text.lines().count() == 3, "{text}");
    }
}
