//! Turns results of the source into a batch of documents.

use std::time::Instant;

use anyhow::Context as _;
use serde::Serialize;
use socktrail::condition::Condition;
use socktrail::config::Config;
use socktrail::documents::ecs::{self, Context, Directions};
use socktrail::host::Host;
use socktrail::host::agent::Agent as Identity;
use socktrail::monitor::Received;
use socktrail::output::{Batch, Kind};
use socktrail::sensors;
use socktrail::socket_event::{Actions, SocketEvent};
use socktrail::users::Users;

use super::sensors::RunningSensors;
use super::source::Source;
use crate::receive::FlowSource;

/// The maximum number of documents in a batch.
const BATCH: usize = 512;
/// The maximum size of a batch in bytes, without the last document.
pub const BATCH_BYTES: usize = 256 * 1024;

/// Makes documents of flows, socket events, sensor events and losses.
pub struct Documents {
    host: Host,
    identity: Identity,
    users: Users,
    directions: Directions,
    /// The socket events that become documents. Sensors may get more of them.
    actions: Actions,
    condition: Option<Condition>,
    sensors: Option<RunningSensors>,
    batch: Batch,
    /// Documents of socket events so far.
    events: u64,
    /// Documents of sensors so far.
    sensor_events: u64,
    /// Documents of losses so far.
    losses: u64,
}

impl Documents {
    /// Makes documents as the configuration says, about `host`, with names from `users`. Reads the sensor files, and creates
    /// the control socket if a sensor locks events.
    pub fn open(config: &Config, host: Host, users: Users) -> anyhow::Result<Self> {
        let sensors = config.sensors.read()?;
        let sensors = if sensors.is_empty() {
            None
        } else {
            Some(RunningSensors::start(sensors, &config.sensors.control, config.socket.max_sockets)?)
        };
        let mut documents = Self {
            identity: Identity::of(&host),
            host,
            users,
            directions: Directions::default(),
            actions: config.events.action_set(),
            condition: None,
            sensors,
            batch: Batch::with_capacity(BATCH_BYTES),
            events: 0,
            sensor_events: 0,
            losses: 0,
        };
        documents.configure(config)?;
        Ok(documents)
    }

    /// Applies the settings that can be changed at any time.
    pub fn configure(&mut self, config: &Config) -> anyhow::Result<()> {
        self.condition = config.events.condition().context("events.where")?;
        self.directions = config.document.direction;
        self.identity.name = match &*config.agent.name {
            "" => Identity::of(&self.host).name,
            name => Some(name.to_owned()),
        };
        Ok(())
    }

    /// Makes documents of a result. Call it at least a few times per second: some events of sensors only need time to pass.
    pub fn take(&mut self, received: &Received, now: Instant, source: &Source) {
        let Self { host, identity, users, batch, sensors, .. } = self;
        let names = users.at(now);
        let (clock, names, directions) = (source.clock(), source.names(&names), self.directions);
        let context = Context { host, agent: identity, clock, names, directions };
        match received {
            Received::Flow(flow) => push(batch, Kind::Flow, &ecs::network_flow(flow, &context)),
            Received::Socket(event) if is_wanted(event, self.actions, self.condition.as_ref()) => {
                let mut document = ecs::socket_event(event, &context);
                self.events += 1;
                document.event.sequence = Some(self.events);
                push(batch, Kind::SocketEvent, &document);
            }
            Received::Loss(loss) => {
                let mut document = ecs::loss(loss, &context);
                self.losses += 1;
                document.event.sequence = Some(self.losses);
                push(batch, Kind::Loss, &document);
            }
            _ => {}
        }
        for event in sensors.iter_mut().flat_map(|sensors| sensors.take(received, now)) {
            let mut document = ecs::sensor_event(&event, &context);
            self.sensor_events += 1;
            document.event.sequence = Some(self.sensor_events);
            push(batch, Kind::Sensor, &document);
        }
    }

    /// Whether the batch is full.
    pub fn is_full(&self) -> bool {
        self.batch.len() >= BATCH || self.batch.lines().len() >= BATCH_BYTES
    }

    /// Whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Takes the batch.
    pub fn take_batch(&mut self) -> Batch {
        let fresh = Batch::with_capacity(self.batch.lines().len());
        std::mem::replace(&mut self.batch, fresh)
    }

    /// The statistics of the sensors; `None` without sensors.
    pub fn sensor_stats(&self) -> Option<sensors::SensorStats> {
        self.sensors.as_ref().map(RunningSensors::stats)
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
