//! Socket events as lines.

use std::io;

use serde::Serialize;
use socktrail::agent::Agent;
use socktrail::clock::Clock;
use socktrail::ecs::{self, Context, Directions};
use socktrail::host::Host;
use socktrail::output::JsonFormatter;
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
    writer: W,
    form: Form,
    host: Host,
    agent: Agent,
    buffer: Vec<u8>,
    unflushed: bool,
}

impl<W: io::Write> Lines<W> {
    /// How much is kept before it is written unasked.
    const ENOUGH: usize = 64 * 1024;

    /// Lines to `writer`, which should not buffer for itself.
    pub fn new(writer: W, form: Form) -> Self {
        let host = Host::gather();
        let agent = Agent::of(&host);
        Self { writer, form, host, agent, buffer: Vec::with_capacity(Self::ENOUGH), unflushed: false }
    }

    /// Writes the names of the columns, in a form that has columns.
    pub fn header(&mut self) -> io::Result<()> {
        if self.form == Form::Text {
            self.buffer.extend_from_slice(text::HEADER.as_bytes());
            self.end_line()?;
        }
        Ok(())
    }

    /// Writes an event, if the form has a line for it; says whether it had.
    pub fn write(&mut self, event: &SocketEvent, clock: Clock, names: &dyn Names) -> io::Result<bool> {
        let Self { host, agent, .. } = self;
        let to = &mut self.buffer;
        let written = match self.form {
            Form::Ecs => {
                let context = Context { host, agent, clock, names, directions: Directions::default() };
                json(to, Some(ecs::socket_event(event, &context)))?
            }
            Form::Car => json(to, CarSocket::of(event, clock))?,
            Form::Tracee => json(to, TraceeEvent::of(event, clock))?,
            Form::TraceeLegacy => json(to, TraceEvent::of(event, clock, host.name.as_deref().unwrap_or_default()))?,
            Form::Text => {
                to.extend_from_slice(text::line(event, clock, names).as_bytes());
                true
            }
        };
        if written {
            self.end_line()?;
        }
        Ok(written)
    }

    /// Whether anything waits to be flushed.
    pub fn is_unflushed(&self) -> bool {
        self.unflushed
    }

    /// Hands all lines to the reader.
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

fn json(to: &mut Vec<u8>, document: Option<impl Serialize>) -> io::Result<bool> {
    let Some(document) = document else { return Ok(false) };
    document.serialize(&mut serde_json::Serializer::with_formatter(to, JsonFormatter))?;
    Ok(true)
}
