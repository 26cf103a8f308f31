//! What a monitor hands out, and how it is taken: one at a time, as an iterator, or by a handler.

use std::ops::ControlFlow;
use std::time::Duration;

use super::Monitor;
use crate::clock::Clock;
use crate::flow::Flow;
use crate::loss::Loss;
use crate::socket_event::{Socket, SocketEvent};
use crate::state::NameLearned;

/// How long [`Monitor::run`] waits before it says that nothing came.
const PAUSE: Duration = Duration::from_millis(100);
/// How often an iterator that waits looks for losses.
const ROUND: Duration = Duration::from_secs(1);

/// What [`Monitor::recv`] brings.
#[derive(Debug)]
pub enum Received {
    /// A flow.
    Flow(Box<Flow>),
    /// A name that a process looked up, where [`Options::report_names`](super::Options::report_names) asks for them.
    Name(Box<NameLearned>),
    /// A call on a socket, where [`Options::socket_events`](super::Options::socket_events) asks for it.
    Socket(Box<SocketEvent>),
    /// The sockets that were there before the monitor, where [`Options::socket_events`](super::Options::socket_events)
    /// asks for any: once, before any [`Received::Socket`].
    Existing(Box<[Socket]>),
    /// Something was missed. Comes before what else waits, at most once a second for each cause.
    Loss(Loss),
    /// Nothing within the time given.
    Idle,
    /// The monitor has stopped and everything was handed out.
    Ended,
}

/// Takes what a monitor hands out, called by [`Monitor::run`] in its thread. [`ControlFlow::Break`] ends the run, not the
/// monitor.
///
/// Whoever is slow loses: the monitor waits for nobody, and drops and counts what finds no room
/// ([`Options::flow_queue_size`](super::Options::flow_queue_size), [`Stats::flows_dropped`](super::Stats::flows_dropped)).
pub trait Handler {
    /// A flow has ended, or is reported while it lives. `clock` turns its times into times of day.
    fn flow(&mut self, flow: Flow, clock: Clock) -> ControlFlow<()> {
        let _ = (flow, clock);
        ControlFlow::Continue(())
    }

    /// A process has looked up a name.
    fn name(&mut self, name: NameLearned, clock: Clock) -> ControlFlow<()> {
        let _ = (name, clock);
        ControlFlow::Continue(())
    }

    /// A process has done something with a socket.
    fn socket_event(&mut self, event: SocketEvent, clock: Clock) -> ControlFlow<()> {
        let _ = (event, clock);
        ControlFlow::Continue(())
    }

    /// These sockets were there before the monitor.
    fn existing_sockets(&mut self, sockets: Vec<Socket>) -> ControlFlow<()> {
        let _ = sockets;
        ControlFlow::Continue(())
    }

    /// Something was missed.
    fn loss(&mut self, loss: Loss, clock: Clock) -> ControlFlow<()> {
        let _ = (loss, clock);
        ControlFlow::Continue(())
    }

    /// Nothing came for a tenth of a second: time to flush, or to see whether to go on.
    fn idle(&mut self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl Monitor {
    /// Hands everything to `handler` until it breaks, or the monitor was [stopped](Monitor::stop) and has no more.
    pub fn run(&self, handler: &mut impl Handler) {
        loop {
            let control = match self.recv(PAUSE) {
                Received::Flow(flow) => handler.flow(*flow, self.clock()),
                Received::Name(name) => handler.name(*name, self.clock()),
                Received::Socket(event) => handler.socket_event(*event, self.clock()),
                Received::Existing(sockets) => handler.existing_sockets(sockets.into_vec()),
                Received::Loss(loss) => handler.loss(loss, self.clock()),
                Received::Idle => handler.idle(),
                Received::Ended => return,
            };
            if control.is_break() {
                return;
            }
        }
    }

    /// Everything it hands out, waited for; ends after the last, once the monitor was [stopped](Monitor::stop).
    ///
    /// Neither [`Received::Idle`] nor [`Received::Ended`] is among it.
    pub fn iter(&self) -> Iter<'_> {
        Iter { monitor: self }
    }

    /// Its flows, waited for; ends after the last, once the monitor was [stopped](Monitor::stop). What else it hands
    /// out is passed over.
    pub fn flows(&self) -> impl Iterator<Item = Flow> + '_ {
        self.iter().filter_map(|received| match received {
            Received::Flow(flow) => Some(*flow),
            _ => None,
        })
    }
}

/// What [`Monitor::iter`] gives.
#[derive(Debug, Clone)]
pub struct Iter<'a> {
    monitor: &'a Monitor,
}

impl Iterator for Iter<'_> {
    type Item = Received;

    fn next(&mut self) -> Option<Received> {
        loop {
            match self.monitor.recv(ROUND) {
                Received::Idle => {}
                Received::Ended => return None,
                received => return Some(received),
            }
        }
    }
}

impl<'a> IntoIterator for &'a Monitor {
    type Item = Received;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}
