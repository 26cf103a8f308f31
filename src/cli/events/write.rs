//! Writes socket events as lines.

use std::io;

use serde::Serialize;
use socktrail::clock::Clock;
use socktrail::documents::car::CarSocket;
use socktrail::documents::ecs::{self, Context, Directions};
use socktrail::documents::event_text as text;
use socktrail::documents::tracee::TraceeEvent;
use socktrail::documents::tracee::legacy::TraceEvent;
use socktrail::host::Host;
use socktrail::host::agent::Agent;
use socktrail::output::LineBuffer;
use socktrail::socket_event::SocketEvent;
use socktrail::users::UserNames;

/// The form of a line.
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
    /// Writes lines to `writer`, which needs no buffer of its own.
    pub fn new(writer: W, form: Form) -> Self {
        let host = Host::gather();
        let agent = Agent::of(&host);
        Self { lines: LineBuffer::new(writer), form, host, agent }
    }

    /// Writes the names of the columns, in a form that has columns.
    pub fn header(&mut self) -> io::Result<()> {
        if self.form == Form::Text { self.lines.text(text::HEADER) } else { Ok(()) }
    }

    /// Writes an event, if the form has a line for it. Returns whether it does.
    pub fn write(&mut self, event: &SocketEvent, clock: Clock, names: &dyn UserNames) -> io::Result<bool> {
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

    /// Whether there are lines to flush.
    pub fn is_unflushed(&self) -> bool {
        self.lines.is_unflushed()
    }

    /// Flushes all lines.
    pub fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }
}

fn json<W: io::Write>(to: &mut LineBuffer<W>, document: Option<impl Serialize>) -> io::Result<bool> {
    document.map_or(Ok(false), |document| to.json(&document).map(|()| true))
}
