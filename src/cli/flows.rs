//! `socktrail flows`: prints flows as they end.

use std::io::{self, IsTerminal, StdoutLock};
use std::time::Instant;

use anyhow::Context as _;
use serde_json::Value;
use socktrail::documents::ecs::{Context, Directions};
use socktrail::host::Host;
use socktrail::host::agent::Agent;
use socktrail::monitor::{Monitor, Options, Received};
use socktrail::output::Lines;
use socktrail::users::Users;

use super::args::{FlowsArgs, FormatArg};
use super::exit::Status;
use super::print::{Print, Signals, print};
use super::users;
use crate::receive::announce;

/// Runs the command.
pub fn run(args: FlowsArgs, mut options: Options, quiet: bool) -> anyhow::Result<Status> {
    let signals = Signals::catch(args.limits.stats)?;
    let stdout = io::stdout();
    let format = FormatArg::or_default(args.format, &stdout);
    args.without.apply(&mut options);
    let users = users::start()?;
    let monitor = Monitor::builder().options(options).users(users.clone()).start()?;
    announce(&monitor, quiet);

    let mut lines = Lines::new(stdout.lock(), format);
    if stdout.is_terminal() {
        lines.header().context("writing to stdout")?;
    }
    let host = Host::gather();
    let agent = Agent::of(&host);
    print(&monitor, (&args.limits).into(), signals, Flows { monitor: &monitor, users, host, agent, lines })
}

/// Prints flows.
struct Flows<'a> {
    monitor: &'a Monitor,
    users: Users,
    host: Host,
    agent: Agent,
    lines: Lines<StdoutLock<'a>>,
}

impl Print for Flows<'_> {
    fn print(&mut self, received: &Received, now: Instant, _max_lines: u64) -> io::Result<u64> {
        let Received::Flow(flow) = received else { return Ok(0) };
        let Self { monitor, users, host, agent, lines } = self;
        let (names, directions) = (users.at(now), Directions::default());
        lines.write(flow, &Context { host, agent, clock: monitor.clock(), names: &names, directions })?;
        Ok(1)
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
