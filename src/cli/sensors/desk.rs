//! Sensors at work: what they deal with outside of themselves, but for whoever reads their events.

use std::path::Path;
use std::time::{Duration, Instant};

use socktrail::control::{Control, Reply, Request};
use socktrail::monitor::Received;
use socktrail::sensors::{Engine, Limits, Resolver, Sensor, SensorEvent, Stats};

/// How long a client of the control socket or the name of a host may go unnoticed.
const PAUSE: Duration = Duration::from_millis(100);

/// The sensors, the names of hosts, and who unlocks.
#[derive(Debug)]
pub struct Desk {
    engine: Engine,
    resolver: Option<Resolver>,
    control: Option<Control>,
    /// When the control socket was last looked at.
    served: Instant,
}

impl Desk {
    /// Sets sensors to work on a host with at most so many sockets. Where one locks, `control` is listened to; where one
    /// wants the names of hosts, threads ask for them.
    pub fn open(sensors: Vec<Sensor>, control: &Path, max_sockets: usize) -> anyhow::Result<Self> {
        let limits = Limits { sockets: max_sockets, ..Limits::default() };
        Ok(Self {
            resolver: sensors.iter().any(|sensor| sensor.dns.is_some()).then(Resolver::start).transpose()?,
            control: sensors.iter().any(|sensor| sensor.locked).then(|| Control::listen(control)).transpose()?,
            engine: Engine::new(sensors, std::process::id(), limits),
            served: Instant::now(),
        })
    }

    /// Takes in what the monitor says, does what is due, and returns what the sensors say to it. To be called a few times
    /// a second at least.
    pub fn take(&mut self, received: &Received, now: Instant) -> Vec<SensorEvent> {
        match received {
            Received::Existing(sockets) => self.engine.existing(sockets, now),
            Received::Socket(event) => self.engine.ingest(event, now),
            Received::Ended => self.engine.finish(),
            _ => {}
        }
        self.ask_for_names(now);
        self.serve(now);
        self.engine.take_events()
    }

    /// What was counted.
    pub fn stats(&self) -> Stats {
        self.engine.stats()
    }

    fn ask_for_names(&mut self, now: Instant) {
        let Some(resolver) = &self.resolver else { return };
        for (ip, name) in resolver.answers() {
            self.engine.answer(ip, name, now);
        }
        self.engine.expire(now);
        for ip in self.engine.take_wanted() {
            if !resolver.ask(ip) {
                self.engine.refuse(ip);
            }
        }
    }

    fn serve(&mut self, now: Instant) {
        let due = now.saturating_duration_since(self.served) >= PAUSE;
        let Some(control) = self.control.as_ref().filter(|_| due) else { return };
        self.served = now;
        let engine = &mut self.engine;
        control.serve(|Request::Unlock(text)| match engine.unlock(&text) {
            Ok(count) => Reply::Unlocked(count),
            Err(error) => Reply::Refused(error.to_string()),
        });
    }
}
