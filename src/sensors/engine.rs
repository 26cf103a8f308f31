//! From socket events to sensor events. No I/O, no clock, no threads.
//!
//! A sensor follows a socket from the first moment in which the socket's tuple matches: then it says `opened`, unless
//! the socket was there before, and once the socket is gone it says `closed`. A change of state in between is no event.
//! Where a sensor wants the remote host's name and that is not known yet, what happens to the sockets of that address
//! waits for it, in order, while everything else goes on.

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
use crate::event::KernelTime;
use crate::socket_event::{Action, CallResult, Socket, SocketEvent, SocketId, SocketState};

/// How much is kept at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sockets.
    pub sockets: usize,
    /// Locked event ids.
    pub locks: usize,
    /// Names of hosts, and what waits for them.
    pub names: ReverseLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sockets: 1_000_000, locks: 65_536, names: ReverseLimits::default() }
    }
}

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Stats {
    /// Sensor events.
    pub sensor_events: u64,
    /// Sensor events that were not said because their id is locked.
    pub sensor_events_muted: u64,
    /// Locks forgotten before anybody unlocked them, to make room.
    pub locks_evicted: u64,
    /// Sockets that are known at this moment.
    pub sensor_sockets_live: u64,
    /// Sockets that found no room.
    pub sensor_sockets_refused: u64,
    /// Host names that could not be asked for.
    pub reverse_lookups_dropped: u64,
    /// What went on without a host name because the answer took too long, or too much waited.
    pub reverse_lookups_unanswered: u64,
}

/// All sensors of a file at work.
#[derive(Debug)]
pub struct Engine {
    sensors: Vec<Sensor>,
    /// Whose sockets are never looked at: our own, or each look-up would be an event.
    own_pid: u32,
    sockets: HashMap<SocketId, Tracked, foldhash::fast::RandomState>,
    names: ReverseNames<Moment>,
    locks: Locks,
    limits: Limits,
    ready: Vec<SensorEvent>,
    stats: Stats,
    tuple: String,
}

/// A socket in the table.
#[derive(Debug)]
struct Tracked {
    row: Row,
    followers: Followers,
}

/// By which sensors a socket is followed: a bit each, of which there are as many as a file may have sensors.
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

/// Something that happened to a socket, for one sensor.
#[derive(Debug)]
struct Moment {
    sensor: usize,
    what: What,
    time: KernelTime,
    row: Row,
    followers: Followers,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// It was there before.
    Known,
    /// It is new, or changed.
    Seen,
    /// It is gone.
    Gone,
}

impl Engine {
    /// These sensors, which have seen nothing yet.
    pub fn new(sensors: Vec<Sensor>, own_pid: u32, limits: Limits) -> Self {
        Self {
            sensors,
            own_pid,
            sockets: HashMap::default(),
            names: ReverseNames::new(limits.names),
            locks: Locks::new(limits.locks),
            limits,
            ready: Vec::new(),
            stats: Stats::default(),
            tuple: String::new(),
        }
    }

    /// These sockets were there before the first event.
    pub fn existing(&mut self, sockets: &[Socket], now: Instant) {
        for socket in sockets {
            if let Some(row) = Row::of(socket, None) {
                self.row(socket.id, row, What::Known, 0, now);
            }
        }
    }

    /// Takes in what was done to a socket.
    pub fn ingest(&mut self, event: &SocketEvent, now: Instant) {
        let SocketEvent { time, action, result, socket, .. } = event;
        if *result == CallResult::Success && matches!(action, Action::Create { .. } | Action::Accept { .. }) {
            // Should it have been found when one looked for those that were there before, it was not.
            self.sockets.remove(&socket.id);
        }
        let row = Row::of(socket, event.process.as_ref()).filter(|_| *action != Action::Close);
        match (row, result) {
            // A call that failed changes nothing, but for a connect that goes on by itself.
            (Some(_), CallResult::Failure(_)) if socket.state != Some(SocketState::SYN_SENT) => {}
            (Some(row), _) => self.row(socket.id, row, What::Seen, *time, now),
            (None, _) => self.gone(socket.id, event.before, *time, now),
        }
    }

    /// A host has this name, or none.
    pub fn answer(&mut self, ip: IpAddr, name: Option<String>, now: Instant) {
        let (moments, name) = self.names.answer(ip, name, now);
        self.decide_all(moments, name.as_deref());
    }

    /// A host could not be asked for.
    pub fn refuse(&mut self, ip: IpAddr) {
        self.stats.reverse_lookups_dropped += 1;
        let moments = self.names.refuse(ip);
        self.decide_all(moments, None);
    }

    /// Lets go on what has waited too long for a name.
    pub fn expire(&mut self, now: Instant) {
        let moments = self.names.give_up(now);
        self.decide_all(moments, None);
    }

    /// Lets everything go on: nothing comes any more.
    pub fn finish(&mut self) {
        let moments = self.names.give_up_all();
        self.decide_all(moments, None);
    }

    /// The hosts whose names should be asked for.
    pub fn take_wanted(&mut self) -> Vec<IpAddr> {
        self.names.take_wanted()
    }

    /// What the sensors have said since this was last asked.
    pub fn take_events(&mut self) -> Vec<SensorEvent> {
        std::mem::take(&mut self.ready)
    }

    /// Unlocks the event id `text`, or all that the pattern `text` matches; returns how many were locked.
    ///
    /// # Errors
    /// It is neither.
    pub fn unlock(&mut self, text: &str) -> Result<usize, BadPattern> {
        self.locks.unlock(text)
    }

    /// What was counted so far.
    pub fn stats(&self) -> Stats {
        Stats {
            locks_evicted: self.locks.evicted,
            sensor_sockets_live: self.sockets.len() as u64,
            reverse_lookups_unanswered: self.names.unanswered,
            ..self.stats
        }
    }

    fn row(&mut self, id: SocketId, row: Row, what: What, time: KernelTime, now: Instant) {
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
        self.tell(what, time, &row, &followers, now);
    }

    /// The socket has left the table; `last` is the state that it was in.
    fn gone(&mut self, id: SocketId, last: Option<SocketState>, time: KernelTime, now: Instant) {
        let Some(Tracked { mut row, followers }) = self.sockets.remove(&id) else { return };
        if let Some(last) = last.filter(|last| row.state.is_some() && *last != SocketState::CLOSE) {
            row.state = Some(last);
        }
        self.tell(What::Gone, time, &row, &followers, now);
    }

    /// Tells every sensor.
    fn tell(&mut self, what: What, time: KernelTime, row: &Row, followers: &Followers, now: Instant) {
        for sensor in 0..self.sensors.len() {
            self.submit(Moment { sensor, what, time, row: row.clone(), followers: followers.clone() }, now);
        }
    }

    /// Decides at once where no name is missing, else as soon as it is there.
    fn submit(&mut self, moment: Moment, now: Instant) {
        let (sensor, ip) = (&self.sensors[moment.sensor], moment.row.remote.ip);
        let Some(dns) = sensor.dns.filter(|dns| has_name(*dns, ip)) else {
            return self.decide(moment, None);
        };
        if !self.names.is_awaited(ip) {
            let follows = moment.followers.has(moment.sensor);
            let is_idle = match moment.what {
                What::Gone => !follows,
                What::Known | What::Seen => follows || !self.may_match(&moment),
            };
            if is_idle {
                return;
            }
            if let Some(name) = self.names.find(ip, dns.ttl, now) {
                return self.decide(moment, name.as_deref());
            }
        }
        let others = self.names.wait(ip, moment, now);
        self.decide_all(others, None);
    }

    /// Whether there is a host name with which the sensor would want this.
    fn may_match(&mut self, moment: &Moment) -> bool {
        moment.row.write_tuple(None, &mut self.tuple);
        self.sensors[moment.sensor].patterns.as_ref().is_none_or(|patterns| patterns.may_match(&self.tuple))
    }

    fn decide_all(&mut self, moments: Vec<Moment>, name: Option<&str>) {
        for moment in moments {
            self.decide(moment, name);
        }
    }

    fn decide(&mut self, moment: Moment, name: Option<&str>) {
        let Moment { sensor: index, what, time, row, followers } = moment;
        let sensor = &self.sensors[index];
        match (what, followers.has(index)) {
            (What::Gone, true) if sensor.closed => self.say(index, SensorAction::Closed, time, &row, name),
            (What::Gone, _) | (What::Known | What::Seen, true) => {}
            (What::Known | What::Seen, false) => {
                row.write_tuple(name, &mut self.tuple);
                let is_wanted = sensor.patterns.as_ref().is_none_or(|patterns| patterns.match_tuple(&self.tuple))
                    && !sensor.ignore.match_tuple(&self.tuple);
                if is_wanted {
                    followers.add(index);
                    if what == What::Seen && sensor.opened {
                        self.say(index, SensorAction::Opened, time, &row, name);
                    }
                }
            }
        }
    }

    fn say(&mut self, sensor: usize, action: SensorAction, time: KernelTime, row: &Row, name: Option<&str>) {
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

/// Whether a sensor wants the name of this address.
fn has_name(dns: Dns, ip: IpAddr) -> bool {
    let is_skipped = dns.skip_non_routable && is_non_routable(ip);
    !(is_skipped || ip.is_unspecified())
}

#[cfg(test)]
mod tests;
