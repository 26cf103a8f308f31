//! Turns socket events into sensor events. No I/O, no clock, no threads.
//!
//! A sensor follows a socket from the first moment at which the socket's tuple matches. Then it reports `opened`,
//! unless the socket existed before the monitor. Once the socket is gone it reports `closed`. A change of state in
//! between is not an event. If a sensor wants the remote host's name and it is not known yet, changes of sockets with that
//! address wait for it, in order, while all other changes continue.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hashbrown::HashMap;
use serde::Serialize;

use super::config::{Dns, Sensor};
use super::event::{SensorAction, SensorEvent};
use super::locks::Locks;
use super::pattern::BadPattern;
use super::reverse::{ReverseLimits, ReverseNames, is_non_routable};
use super::row::Row;
use crate::model::socket_event::{Action, CallResult, EventSocket, SocketEvent, SocketId, SocketState};
use crate::model::time::MonotonicTime;

/// Bounds of the tables.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The maximum number of sockets.
    pub sockets: usize,
    /// The maximum number of locked event ids.
    pub locks: usize,
    /// Limits for host names.
    pub names: ReverseLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sockets: 1_000_000, locks: 65_536, names: ReverseLimits::default() }
    }
}

/// The statistics of sensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct SensorStats {
    /// Sensor events.
    pub sensor_events: u64,
    /// Sensor events that were not reported because their id is locked.
    pub sensor_events_muted: u64,
    /// Locks removed before they were unlocked, to make room.
    pub locks_evicted: u64,
    /// Sockets that are known at the moment.
    pub sensor_sockets_live: u64,
    /// Sockets that did not fit the table.
    pub sensor_sockets_refused: u64,
    /// Host names that could not be looked up.
    pub reverse_lookups_dropped: u64,
    /// Socket changes that continued without a host name because the answer took too long, or too many were waiting.
    pub reverse_lookups_unanswered: u64,
}

/// Runs sensors.
#[derive(Debug)]
pub struct Engine {
    sensors: Vec<Sensor>,
    /// The process whose sockets are ignored: the monitor's own, because each lookup of a name would be an event.
    own_pid: u32,
    sockets: HashMap<SocketId, Tracked, foldhash::fast::RandomState>,
    names: ReverseNames<SocketChange>,
    locks: Locks,
    limits: Limits,
    ready: Vec<SensorEvent>,
    stats: SensorStats,
    /// A buffer for tuples.
    tuple: String,
}

/// A socket in the table.
#[derive(Debug)]
struct Tracked {
    row: Row,
    followers: Followers,
}

/// The sensors that follow a socket, one bit each. There are at most 64 sensors.
#[derive(Debug, Clone, Default)]
struct Followers(Arc<AtomicU64>);

impl Followers {
    fn has(&self, sensor: usize) -> bool {
        self.0.load(Ordering::Relaxed) & 1 << sensor != 0
    }

    fn add(&self, sensor: usize) {
        self.0.fetch_or(1 << sensor, Ordering::Relaxed);
    }
}

/// A change of a socket, for one sensor.
#[derive(Debug)]
struct SocketChange {
    sensor: usize,
    kind: ChangeKind,
    time: MonotonicTime,
    row: Row,
    followers: Followers,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChangeKind {
    /// The socket existed before the monitor.
    Preexisting,
    /// The socket is new or has changed.
    Changed,
    /// The socket is gone.
    Gone,
}

impl Engine {
    /// An engine with these sensors and without sockets.
    pub fn new(sensors: Vec<Sensor>, own_pid: u32, limits: Limits) -> Self {
        Self {
            sensors,
            own_pid,
            sockets: HashMap::default(),
            names: ReverseNames::new(limits.names),
            locks: Locks::new(limits.locks),
            limits,
            ready: Vec::new(),
            stats: SensorStats::default(),
            tuple: String::new(),
        }
    }

    /// Takes the sockets that existed before the first event.
    pub fn existing(&mut self, sockets: &[EventSocket], now: Instant) {
        for socket in sockets {
            if let Some(row) = Row::of(socket, None) {
                self.update(socket.id, row, ChangeKind::Preexisting, MonotonicTime::ZERO, now);
            }
        }
    }

    /// Takes a socket event.
    pub fn ingest(&mut self, event: &SocketEvent, now: Instant) {
        let SocketEvent { time, action, result, socket, .. } = event;
        if *result == CallResult::Success && matches!(action, Action::Create { .. } | Action::Accept { .. }) {
            // It is new, even if the search for existing sockets has found it, too.
            self.sockets.remove(&socket.id);
        }
        let row = Row::of(socket, event.process.as_ref()).filter(|_| *action != Action::Close);
        match (row, result) {
            // A failed call changes nothing, except for a connect that continues in the background.
            (Some(_), CallResult::Failure(_)) if socket.state != Some(SocketState::SYN_SENT) => {}
            (Some(row), _) => self.update(socket.id, row, ChangeKind::Changed, *time, now),
            (None, _) => self.remove(socket.id, event.before, *time, now),
        }
    }

    /// Takes the answer of a lookup: the name of a host, or none.
    pub fn answer(&mut self, ip: IpAddr, name: Option<String>, now: Instant) {
        let (changes, name) = self.names.answer(ip, name, now);
        self.decide_all(changes, name.as_deref());
    }

    /// Notes that an address is not looked up, because too many lookups are waiting.
    pub fn drop_lookup(&mut self, ip: IpAddr) {
        self.stats.reverse_lookups_dropped += 1;
        let changes = self.names.end_lookup(ip);
        self.decide_all(changes, None);
    }

    /// Continues changes that have waited too long for a name.
    pub fn expire(&mut self, now: Instant) {
        let changes = self.names.give_up(now);
        self.decide_all(changes, None);
    }

    /// Continues all waiting changes, because no answers will come.
    pub fn finish(&mut self) {
        let changes = self.names.give_up_all();
        self.decide_all(changes, None);
    }

    /// The hosts whose names should be looked up.
    pub fn take_wanted(&mut self) -> Vec<IpAddr> {
        self.names.take_wanted()
    }

    /// The sensor events since the last call.
    pub fn take_events(&mut self) -> Vec<SensorEvent> {
        std::mem::take(&mut self.ready)
    }

    /// Unlocks the event id `text`, or all ids that the pattern `text` matches. Returns how many were locked.
    ///
    /// # Errors
    /// `text` is neither a locked id nor a pattern.
    pub fn unlock(&mut self, text: &str) -> Result<usize, BadPattern> {
        self.locks.unlock(text)
    }

    /// The statistics so far.
    pub fn stats(&self) -> SensorStats {
        SensorStats {
            locks_evicted: self.locks.evicted,
            sensor_sockets_live: self.sockets.len() as u64,
            reverse_lookups_unanswered: self.names.unanswered,
            ..self.stats
        }
    }

    /// Adds a socket, or updates its row.
    fn update(&mut self, id: SocketId, row: Row, kind: ChangeKind, time: MonotonicTime, now: Instant) {
        if row.process.as_ref().is_some_and(|process| process.pid == self.own_pid) {
            return;
        }
        let is_full = self.sockets.len() >= self.limits.sockets;
        let followers = match self.sockets.get_mut(&id) {
            Some(tracked) if tracked.row == row => return,
            Some(tracked) => {
                tracked.row = row.clone();
                tracked.followers.clone()
            }
            None if is_full => {
                self.stats.sensor_sockets_refused += 1;
                return;
            }
            None => {
                let followers = Followers::default();
                self.sockets.insert(id, Tracked { row: row.clone(), followers: followers.clone() });
                followers
            }
        };
        self.notify_sensors(kind, time, &row, &followers, now);
    }

    /// Removes a socket; `last` is its last state.
    fn remove(&mut self, id: SocketId, last: Option<SocketState>, time: MonotonicTime, now: Instant) {
        let Some(Tracked { mut row, followers }) = self.sockets.remove(&id) else { return };
        if let Some(last) = last.filter(|last| row.state.is_some() && *last != SocketState::CLOSE) {
            row.state = Some(last);
        }
        self.notify_sensors(ChangeKind::Gone, time, &row, &followers, now);
    }

    /// Passes a change to every sensor.
    fn notify_sensors(
        &mut self,
        kind: ChangeKind,
        time: MonotonicTime,
        row: &Row,
        followers: &Followers,
        now: Instant,
    ) {
        for sensor in 0..self.sensors.len() {
            self.submit(SocketChange { sensor, kind, time, row: row.clone(), followers: followers.clone() }, now);
        }
    }

    /// Decides about a change at once or, if the host name is missing, when it is known.
    fn submit(&mut self, change: SocketChange, now: Instant) {
        let (sensor, ip) = (&self.sensors[change.sensor], change.row.remote.ip);
        let Some(dns) = sensor.dns.filter(|dns| needs_name(*dns, ip)) else {
            return self.decide(change, None);
        };
        if !self.names.is_awaited(ip) {
            let follows = change.followers.has(change.sensor);
            let has_no_effect = match change.kind {
                ChangeKind::Gone => !follows,
                ChangeKind::Preexisting | ChangeKind::Changed => follows || !self.may_match(&change),
            };
            if has_no_effect {
                return;
            }
            if let Some(name) = self.names.find(ip, dns.ttl, now) {
                return self.decide(change, name.as_deref());
            }
        }
        let others = self.names.wait(ip, change, now);
        self.decide_all(others, None);
    }

    /// Whether the tuple may match once the host name is known.
    fn may_match(&mut self, change: &SocketChange) -> bool {
        change.row.write_tuple(None, &mut self.tuple);
        self.sensors[change.sensor].patterns.as_ref().is_none_or(|patterns| patterns.may_match(&self.tuple))
    }

    fn decide_all(&mut self, changes: Vec<SocketChange>, name: Option<&str>) {
        for change in changes {
            self.decide(change, name);
        }
    }

    fn decide(&mut self, change: SocketChange, name: Option<&str>) {
        let SocketChange { sensor: index, kind, time, row, followers } = change;
        let sensor = &self.sensors[index];
        match (kind, followers.has(index)) {
            (ChangeKind::Gone, true) if sensor.closed => self.emit(index, SensorAction::Closed, time, &row, name),
            (ChangeKind::Gone, _) | (ChangeKind::Preexisting | ChangeKind::Changed, true) => {}
            (ChangeKind::Preexisting | ChangeKind::Changed, false) => {
                row.write_tuple(name, &mut self.tuple);
                let is_wanted = sensor.patterns.as_ref().is_none_or(|patterns| patterns.match_tuple(&self.tuple))
                    && !sensor.ignore.match_tuple(&self.tuple);
                if is_wanted {
                    followers.add(index);
                    if kind == ChangeKind::Changed && sensor.opened {
                        self.emit(index, SensorAction::Opened, time, &row, name);
                    }
                }
            }
        }
    }

    fn emit(&mut self, sensor: usize, action: SensorAction, time: MonotonicTime, row: &Row, name: Option<&str>) {
        let sensor = &self.sensors[sensor];
        let event = SensorEvent::new(sensor, action, time, row, name);
        if sensor.locked && !self.locks.lock(&event.eid) {
            self.stats.sensor_events_muted += 1;
            return;
        }
        self.stats.sensor_events += 1;
        self.ready.push(event);
    }
}

/// Whether a sensor needs the name of this address.
fn needs_name(dns: Dns, ip: IpAddr) -> bool {
    let is_skipped = dns.skip_non_routable && is_non_routable(ip);
    !(is_skipped || ip.is_unspecified())
}

#[cfg(test)]
mod tests;
