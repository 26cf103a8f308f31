//! Socket events as lines.

use std::io;

use serde::Serialize;
use socktrail::agent::Agent;
use socktrail::clock::Clock;
use socktrail::ecs::{self, Context, Directions};
use socktrail::host::Host;
use socktrail::output::LineBuffer;
use socktrail::socket_event::car::CarSocket;
use socktrail::socket_event::tracee::TraceeEvent;
use socktrail::socket_event::tracee::legacy::TraceEvent;
use socktrail::socket_event::{SocketEvent, text};
use socktrail::users::Names;

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An ECS document.
    Ecs,
    /// MITRE CAR's socket object.
    Car,
    /// Tracee's event.
    Tracee,
    /// Tracee's older event.
    TraceeLegacy,
    /// Columns for people.
    Text,
}

/// Writes events as lines.
pub struct Lines<W: io::Write> {
    lines: LineBuffer<W>,
    form: Form,
    host: Host,
    agent: Agent,
}

impl<W: io::Write> Lines<W> {
    /// Lines to `writer`, which should not buffer for itself.
    pub fn new(writer: W, form: Form) -> Self {
        let host = Host::gather();
        let agent = Agent::of(&host);
        Self { lines: LineBuffer::new(writer), form, host, agent }
    }

    /// Writes the names of the columns, in a form that has columns.
    pub fn header(&mut self) -> io::Result<()> {
        if self.form == Form::Text { self.lines.text(text::HEADER) } else { Ok(()) }
    }

    /// Writes an event, if the form has a line for it; says whether it had.
    pub fn write(&mut self, event: &SocketEvent, clock: Clock, names: &dyn Names) -> io::Result<bool> {
        let Self { lines, host, agent, .. } = self;
        match self.form {
            Form::Ecs => {
                let context = Context { host, agent, clock, names, directions: Directions::default() };
                json(lines, Some(ecs::socket_event(event, &context)))
            }
            Form::Car => json(lines, CarSocket::of(event, clock)),
            Form::Tracee => json(lines, TraceeEvent::of(event, clock)),
            Form::TraceeLegacy => json(lines, TraceEvent::of(event, clock, host.name.as_deref().unwrap_or_default())),
            Form::Text => lines.text(&text::line(event, clock, names)).map(|()| true),
        }
    }

    /// Whether anything waits to be flushed.
    pub fn is_unflushed(&self) -> bool {
        self.lines.is_unflushed()
    }

    /// Hands all lines to the reader.
    pub fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }
}

fn json<W: io::Write>(to: &mut LineBuffer<W>, document: Option<impl Serialize>) -> io::Result<bool> {
    document.map_or(Ok(false), |document| to.json(&document).map(|()| true))
}
