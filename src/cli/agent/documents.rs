//! From what the source says to documents in a batch.

use std::time::Instant;

use anyhow::Context as _;
use serde::Serialize;
use socktrail::agent::Agent as Identity;
use socktrail::config::Config;
use socktrail::ecs::{self, Context, Directions};
use socktrail::host::Host;
use socktrail::monitor::Received;
use socktrail::output::{Batch, Kind};
use socktrail::sensors;
use socktrail::socket_event::condition::Condition;
use socktrail::socket_event::{Actions, SocketEvent};
use socktrail::users::Users;

use super::super::sensors::Desk;
use super::super::source::FlowSource;
use super::source::Source;

/// Documents that travel together at most.
const BATCH: usize = 512;
/// Bytes of them at most, save for the last document.
pub const BATCH_BYTES: usize = 256 * 1024;

/// Makes documents of flows, of socket events, of what sensors say to them, and of losses.
pub struct Documents {
    host: Host,
    identity: Identity,
    users: Users,
    directions: Directions,
    /// Which socket events become documents. Sensors may hear of more.
    actions: Actions,
    condition: Option<Condition>,
    desk: Option<Desk>,
    batch: Batch,
    /// Documents of socket events so far.
    events: u64,
    /// Documents of sensors so far.
    sensor_events: u64,
    /// Documents of losses so far.
    losses: u64,
}

impl Documents {
    /// As the configuration says, of what is seen on `host`, with the names of `users`. Reads the sensor files and listens where locked events are
    /// unlocked.
    pub fn open(config: &Config, host: Host, users: Users) -> anyhow::Result<Self> {
        let sensors = config.sensors.read()?;
        let desk = if sensors.is_empty() {
            None
        } else {
            Some(Desk::open(sensors, &config.sensors.control, config.socket.max_sockets)?)
        };
        let mut documents = Self {
            identity: Identity::of(&host),
            host,
            users,
            directions: Directions::default(),
            actions: config.events.set(),
            condition: None,
            desk,
            batch: Batch::with_capacity(BATCH_BYTES),
            events: 0,
            sensor_events: 0,
            losses: 0,
        };
        documents.configure(config)?;
        Ok(documents)
    }

    /// Takes over what can be changed at any time.
    pub fn configure(&mut self, config: &Config) -> anyhow::Result<()> {
        self.condition = config.events.condition().context("events.where")?;
        self.directions = config.document.direction;
        self.identity.name = match &*config.agent.name {
            "" => Identity::of(&self.host).name,
            name => Some(name.to_owned()),
        };
        Ok(())
    }

    /// Makes documents of what was received. To be called a few times a second at least: sensors may have something to
    /// say by the time alone.
    pub fn take(&mut self, received: &Received, source: &Source) {
        let Self { host, identity, users, batch, desk, .. } = self;
        let now = Instant::now();
        let names = users.at(now);
        let (clock, names, directions) = (source.clock(), source.names(&names), self.directions);
        let context = Context { host, agent: identity, clock, names, directions };
        match received {
            Received::Flow(flow) => push(batch, Kind::Flow, &ecs::network_flow(flow, &context)),
            Received::Socket(event) if is_wanted(event, self.actions, self.condition.as_ref()) => {
                let mut document = ecs::socket_event(event, &context);
                self.events += 1;
                document.event.sequence = Some(self.events);
                push(batch, Kind::Event, &document);
            }
            Received::Loss(loss) => {
                let mut document = ecs::loss(loss, &context);
                self.losses += 1;
                document.event.sequence = Some(self.losses);
                push(batch, Kind::Loss, &document);
            }
            _ => {}
        }
        for event in desk.iter_mut().flat_map(|desk| desk.take(received, now)) {
            let mut document = ecs::sensor_event(&event, &context);
            self.sensor_events += 1;
            document.event.sequence = Some(self.sensor_events);
            push(batch, Kind::Sensor, &document);
        }
    }

    /// Whether as many documents wait as are to travel together.
    pub fn is_full(&self) -> bool {
        self.batch.len() >= BATCH || self.batch.lines().len() >= BATCH_BYTES
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// The documents that wait.
    pub fn take_batch(&mut self) -> Batch {
        let fresh = Batch::with_capacity(self.batch.lines().len());
        std::mem::replace(&mut self.batch, fresh)
    }

    /// What sensors have counted, if there are any.
    pub fn sensor_stats(&self) -> Option<sensors::Stats> {
        self.desk.as_ref().map(Desk::stats)
    }
}

fn is_wanted(event: &SocketEvent, actions: Actions, condition: Option<&Condition>) -> bool {
    actions.contains(event.action.as_set()) && condition.is_none_or(|condition| condition.matches(event))
}

fn push(batch: &mut Batch, kind: Kind, document: &impl Serialize) {
    if let Err(error) = batch.push(kind, document) {
        tracing::error!(%error, "a document cannot be written as JSON; this is a bug: please report it");
    }
}
