//! `socktrail events`: prints calls on sockets, one per line.

mod args;
mod write;

use std::io::{self, IsTerminal, StdoutLock};
use std::time::Instant;

use anyhow::Context as _;
use serde_json::Value;
use socktrail::condition::Condition;
use socktrail::monitor::{Monitor, Options, Received};
use socktrail::users::Users;

use super::exit::Status;
use super::print::{Print, Signals, print};
use super::users;
use crate::receive::announce;

pub use self::args::EventsArgs;
use self::write::Lines;

/// Runs the command.
pub fn run(args: EventsArgs, mut options: Options, quiet: bool) -> anyhow::Result<Status> {
    let signals = Signals::catch(args.limits.stats)?;
    let stdout = io::stdout();
    let form = args.form(stdout.is_terminal());
    (options.flows, options.dns.enabled, options.socket_events) = (false, false, args.actions(form)?);
    args.without.apply(&mut options);
    let users = users::start()?;
    let monitor = Monitor::builder().options(options).users(users.clone()).start()?;
    announce(&monitor, quiet);

    let mut lines = Lines::new(stdout.lock(), form);
    if stdout.is_terminal() {
        lines.header().context("writing to stdout")?;
    }
    let events = Events { monitor: &monitor, users, condition: args.condition, lines };
    print(&monitor, (&args.limits).into(), signals, events)
}

/// Prints the events that match a condition.
struct Events<'a> {
    monitor: &'a Monitor,
    users: Users,
    condition: Option<Condition>,
    lines: Lines<StdoutLock<'a>>,
}

impl Print for Events<'_> {
    fn print(&mut self, received: &Received, now: Instant, _max_lines: u64) -> io::Result<u64> {
        let Received::Socket(event) = received else { return Ok(0) };
        if self.condition.as_ref().is_some_and(|condition| !condition.matches(event)) {
            return Ok(0);
        }
        Ok(self.lines.write(event, self.monitor.clock(), &self.users.at(now))?.into())
    }

    fn is_unflushed(&self) -> bool {
        self.lines.is_unflushed()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }

    fn stats(&self) -> Value {
        serde_json::to_value(self.monitor.stats()).unwrap_or_default()
    }
}
