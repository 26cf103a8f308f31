//! The results of a monitor, which are received one at a time, by an iterator, or by a handler.

use std::ops::ControlFlow;
use std::time::Duration;

use super::Monitor;
use crate::model::clock::Clock;
use crate::model::flow::Flow;
use crate::model::loss::Loss;
use crate::model::names::NameLearned;
use crate::model::socket_event::{EventSocket, SocketEvent};

/// How long [`Monitor::run`] waits for a result before it calls [`Handler::idle`].
const IDLE_INTERVAL: Duration = Duration::from_millis(100);
/// How often a waiting iterator checks for losses.
const LOSS_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A result of [`Monitor::recv`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Received {
    /// A flow.
    Flow(Box<Flow>),
    /// A name that a process looked up, if [`Options::report_names`](super::Options::report_names) is set.
    Name(Box<NameLearned>),
    /// A call on a socket, if it is in [`Options::socket_events`](super::Options::socket_events).
    Socket(Box<SocketEvent>),
    /// The sockets that existed before the monitor, if [`Options::socket_events`](super::Options::socket_events) is not empty:
    /// once, before any [`Received::Socket`].
    Existing(Box<[EventSocket]>),
    /// Samples or results were lost. Comes before other results that wait, at most once a second for each cause.
    Loss(Loss),
    /// There was no result within the timeout.
    Idle,
    /// The monitor has stopped, and all results were received.
    Ended,
}

/// Takes the results of a monitor. [`Monitor::run`] calls it in its own thread. [`ControlFlow::Break`] ends the run, not the
/// monitor.
///
/// A slow handler loses results: the monitor does not wait for it, and drops and counts results that do not fit the
/// queue ([`Options::flow_queue_size`](super::Options::flow_queue_size),
/// [`MonitorStats::flows_dropped`](super::MonitorStats::flows_dropped)).
pub trait Handler {
    /// A flow has ended, or is reported while it lives. `clock` converts its times to wall time.
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

    /// These sockets existed before the monitor.
    fn existing_sockets(&mut self, sockets: Vec<EventSocket>) -> ControlFlow<()> {
        let _ = sockets;
        ControlFlow::Continue(())
    }

    /// Samples or results were lost.
    fn loss(&mut self, loss: Loss, clock: Clock) -> ControlFlow<()> {
        let _ = (loss, clock);
        ControlFlow::Continue(())
    }

    /// There was no result for a tenth of a second: time to flush, or to decide whether to go on.
    fn idle(&mut self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl Monitor {
    /// Passes all results to `handler` until it breaks, or until the last result after [`Monitor::stop`].
    pub fn run(&self, handler: &mut impl Handler) {
        loop {
            let control = match self.recv(IDLE_INTERVAL) {
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

    /// An iterator over all results, which waits for the next one. It ends after the last result after [`Monitor::stop`].
    ///
    /// It never returns [`Received::Idle`] or [`Received::Ended`].
    pub fn iter(&self) -> Iter<'_> {
        Iter { monitor: self }
    }

    /// An iterator over the flows, which waits for the next one. It ends after the last flow after [`Monitor::stop`]. Other
    /// results are dropped.
    pub fn flows(&self) -> impl Iterator<Item = Flow> + '_ {
        self.iter().filter_map(|received| match received {
            Received::Flow(flow) => Some(*flow),
            _ => None,
        })
    }
}

/// The iterator of [`Monitor::iter`].
#[derive(Debug, Clone)]
pub struct Iter<'a> {
    monitor: &'a Monitor,
}

impl Iterator for Iter<'_> {
    type Item = Received;

    fn next(&mut self) -> Option<Received> {
        loop {
            match self.monitor.recv(LOSS_CHECK_INTERVAL) {
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
