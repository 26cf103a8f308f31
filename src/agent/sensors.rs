//! Runs sensors, with their control socket and lookups of host names.

use std::path::Path;
use std::time::{Duration, Instant};

use socktrail::control::{Control, Reply, Request};
use socktrail::monitor::Received;
use socktrail::sensors::{Engine, Limits, Resolver, Sensor, SensorEvent, SensorStats};

/// How often the control socket is served.
const SERVE_INTERVAL: Duration = Duration::from_millis(100);

/// The sensors, with the resolver of host names and the control socket.
#[derive(Debug)]
pub struct RunningSensors {
    engine: Engine,
    resolver: Option<Resolver>,
    control: Option<Control>,
    /// When the control socket was last served.
    served: Instant,
}

impl RunningSensors {
    /// Starts sensors that track at most `max_sockets` sockets. If a sensor locks events, creates the control socket at
    /// `control`. If a sensor has `dns` set, starts the threads that look up host names.
    pub fn start(sensors: Vec<Sensor>, control: &Path, max_sockets: usize) -> anyhow::Result<Self> {
        let limits = Limits { sockets: max_sockets, ..Limits::default() };
        Ok(Self {
            resolver: sensors.iter().any(|sensor| sensor.dns.is_some()).then(Resolver::start).transpose()?,
            control: sensors.iter().any(|sensor| sensor.locked).then(|| Control::listen(control)).transpose()?,
            engine: Engine::new(sensors, std::process::id(), limits),
            served: Instant::now(),
        })
    }

    /// Takes a result of the monitor, does periodic work, and returns the events of the sensors. Call it at least a
    /// few times per second.
    pub fn take(&mut self, received: &Received, now: Instant) -> Vec<SensorEvent> {
        match received {
            Received::Existing(sockets) => self.engine.existing(sockets, now),
            Received::Socket(event) => self.engine.ingest(event, now),
            Received::Ended => self.engine.finish(),
            _ => {}
        }
        self.look_up_names(now);
        self.serve(now);
        self.engine.take_events()
    }

    /// The statistics.
    pub fn stats(&self) -> SensorStats {
        self.engine.stats()
    }

    fn look_up_names(&mut self, now: Instant) {
        let Some(resolver) = &self.resolver else { return };
        for (ip, name) in resolver.answers() {
            self.engine.answer(ip, name, now);
        }
        self.engine.expire(now);
        for ip in self.engine.take_wanted() {
            if !resolver.ask(ip) {
                self.engine.drop_lookup(ip);
            }
        }
    }

    fn serve(&mut self, now: Instant) {
        let due = now.saturating_duration_since(self.served) >= SERVE_INTERVAL;
        let Some(control) = self.control.as_ref().filter(|_| due) else { return };
        self.served = now;
        let engine = &mut self.engine;
        control.serve(|Request::Unlock(text)| match engine.unlock(&text) {
            Ok(count) => Reply::Unlocked(count),
            Err(error) => Reply::Refused(error.to_string()),
        });
    }
}
