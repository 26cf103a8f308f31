//! A source with scripted batches, for tests that need no kernel.

mod kernel;

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::ops::ControlFlow;

use socktrail_dns::Packet;
use socktrail_kprobes::{Format, Record};

pub(crate) use self::kernel::Kernel;
use self::kernel::Verdict;
use super::kprobes::{Feature, Missed, Probes};
use super::names::NameListener;
use super::{Batch, Counts, EventSockets, Existing, ProcessAnswer, Source, Tap};
use crate::model::clock::{Clock, Readings, Timestamp};
use crate::model::event::{Event, EventKind, Execs, Segments, SourceCapabilities};
use crate::model::flow::Flow;
use crate::model::kernel_address::SockAddress;
use crate::model::process::Process;
use crate::model::socket_event::EventSocket;
use crate::model::time::{BootTime, MonotonicTime};
use crate::model::totals::{Conversation, Totals};
use crate::state::{FoundProcess, PreexistingProcess, PreexistingSocket};

/// A scripted item of a fake source.
#[derive(Debug, Clone)]
pub(crate) enum Scripted {
    /// An event.
    Event(Event),
    /// A packet, or the freeing of a socket. If there is a [kernel](Fake::kernel), it counts the packet or drops the socket's
    /// counts. `sk` is the packet's socket, and `counted` are the segment counters of that socket.
    Hit { event: Event, sk: Option<SockAddress>, counted: Segments },
    /// Counts that the kernel reports.
    Totals { time: MonotonicTime, totals: Totals },
    /// A sample of a probe.
    Sample { time: MonotonicTime, pid: u32, id: u16, raw: Vec<u8> },
    /// Samples that did not fit into a ring.
    Lost { since: MonotonicTime, time: MonotonicTime, count: u64 },
    /// Hits that a probe missed.
    Missed(Missed),
    /// An IPv4 packet with a DNS message.
    Packet { time: MonotonicTime, bytes: Vec<u8> },
    /// An answer about a process, without a question.
    Answer { pid: u32, found: FoundProcess },
    /// The batch ends, but is not the last one of its round.
    EndBatch,
    /// The round ends. It has all events from before this time.
    EndRound(MonotonicTime),
}

/// A source that delivers scripted items, and records questions and calls.
#[derive(Debug)]
pub(crate) struct Fake {
    script: VecDeque<Scripted>,
    probes: Probes,
    listener: NameListener,
    batch: Batch,
    now: MonotonicTime,
    /// Whether it ends after its last item. Otherwise it ends only when it is stopped.
    pub(crate) ends: bool,
    pub(crate) stopped: bool,
    pub(crate) can_be_asked: bool,
    /// Processes that existed before the start.
    pub(crate) processes: Vec<PreexistingProcess>,
    /// Sockets that existed before the start: for flows, and for socket events.
    pub(crate) sockets: Vec<PreexistingSocket>,
    pub(crate) event_sockets: Vec<(EventSocket, Option<u32>)>,
    /// Its answers about processes.
    pub(crate) known: HashMap<u32, FoundProcess>,
    /// Processes that have ended.
    pub(crate) gone: Vec<u32>,
    /// The processes that it was asked about: for details, and whether they have ended.
    pub(crate) asked: Vec<u32>,
    pub(crate) checked: Vec<u32>,
    /// The numbers of the flows whose end was reported to it.
    pub(crate) forgotten: Vec<u64>,
    /// The kernel that counts packets, if it does.
    pub(crate) kernel: Option<Kernel>,
    /// How many packets the kernel counts ahead of the events: when it is asked, it has already counted this many packets that come
    /// after the last round.
    pub(crate) ahead: usize,
    /// The samples and reports of these packets, which come in the next round.
    early: VecDeque<Scripted>,
    /// The time of the latest hit.
    hit: MonotonicTime,
    /// Answers about the kernel's counts, for a source without a [`Kernel`]. If empty, the source has no counts.
    pub(crate) totals: HashMap<SockAddress, Totals>,
    /// The sockets that it was asked about.
    pub(crate) asked_totals: Vec<SockAddress>,
}

impl Fake {
    pub(crate) fn new(script: impl IntoIterator<Item = Scripted>) -> Self {
        Self {
            script: script.into_iter().collect(),
            probes: Probes::none(),
            listener: NameListener::new(&socktrail_dns::Options::default()),
            batch: Batch::default(),
            now: MonotonicTime::ZERO,
            ends: true,
            stopped: false,
            can_be_asked: true,
            processes: Vec::new(),
            sockets: Vec::new(),
            event_sockets: Vec::new(),
            known: HashMap::new(),
            gone: Vec::new(),
            asked: Vec::new(),
            checked: Vec::new(),
            forgotten: Vec::new(),
            kernel: None,
            ahead: 0,
            early: VecDeque::new(),
            hit: MonotonicTime::ZERO,
            totals: HashMap::new(),
            asked_totals: Vec::new(),
        }
    }

    /// Lets the kernel count the next [`Fake::ahead`] packets before it is asked.
    fn run_ahead(&mut self) {
        let is_packet =
            |item: &Scripted| matches!(item, Scripted::Hit { event, .. } if matches!(event.kind, EventKind::Packet(_)));
        while self.early.len() < self.ahead
            && self.script.front().is_some_and(is_packet)
            && let Some(Scripted::Hit { event, sk, counted }) = self.script.pop_front()
        {
            self.hit = event.time;
            self.count(event, sk, counted);
        }
    }

    /// Lets the kernel count a hit. Its reports, and the event if it is sampled, are handed over next.
    fn count(&mut self, event: Event, sk: Option<SockAddress>, counted: Segments) {
        let time = event.time;
        let verdict = match (&event.kind, &mut self.kernel) {
            (EventKind::Packet(packet), Some(kernel)) => kernel.packet(time, sk, packet, counted),
            (EventKind::SocketFreed { sock }, Some(kernel)) => {
                Verdict { totals: kernel.freed(*sock), is_sampled: true }
            }
            _ => Verdict { totals: Vec::new(), is_sampled: true },
        };
        self.early.extend(verdict.totals.into_iter().map(|totals| Scripted::Totals { time, totals }));
        if verdict.is_sampled {
            self.early.push_back(Scripted::Event(event));
        }
    }

    /// Sets the formats of its samples.
    pub(crate) fn with_formats(mut self, formats: &[(Feature, &str, &str)]) -> Self {
        for (feature, function, format) in formats {
            let format = Format::parse(format.as_bytes()).unwrap();
            self.probes.add_recorded(*feature, function, &format).unwrap();
        }
        self
    }
}

impl Source for Fake {
    type Error = Infallible;

    fn capabilities(&self) -> SourceCapabilities {
        let totals = self.kernel.is_some() || !self.totals.is_empty();
        SourceCapabilities { execs: Execs::Seen, totals, ..SourceCapabilities::default() }
    }

    fn now(&self) -> MonotonicTime {
        self.now
    }

    fn clock(&self) -> Clock {
        Clock::from_readings(Readings { kernel: MonotonicTime::ZERO, boot: BootTime::ZERO, wall: Timestamp::default() })
    }

    fn counts(&self) -> Counts {
        Counts { unreadable: self.probes.unreadable, ..Counts::default() }
    }

    fn existing(&mut self, _event_sockets: EventSockets) -> Result<Existing, Infallible> {
        let (processes, sockets) = (self.processes.clone(), self.sockets.clone());
        Ok(Existing { processes, sockets, event_sockets: self.event_sockets.clone() })
    }

    fn wait(&mut self) {
        if self.script.is_empty() && !self.ends {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn hand_over<T: Tap>(
        &mut self,
        tap: &mut T,
        take: &mut dyn FnMut(&mut Batch),
    ) -> Result<ControlFlow<()>, Infallible> {
        while let Some(item) = self.early.pop_front().or_else(|| self.script.pop_front()) {
            match item {
                Scripted::Event(event) => self.batch.events.push(event),
                Scripted::Hit { event, sk, counted } => self.count(event, sk, counted),
                Scripted::Totals { time, totals } => {
                    tap.totals(time, &totals);
                    let kind = EventKind::Totals(Box::new(totals));
                    self.batch.events.push(Event { time, pid: 0, tid: 0, kind });
                }
                Scripted::Sample { time, pid, id, raw } => {
                    let record = Record::Sample { time: time.as_nanos(), cpu: 0, pid, tid: pid, id, raw: &raw };
                    tap.record(&record);
                    self.batch.events.extend(self.probes.event(&record));
                }
                Scripted::Lost { since, time, count } => {
                    let record = Record::Lost { since: since.as_nanos(), time: time.as_nanos(), cpu: 0, count };
                    tap.record(&record);
                    self.batch.events.extend(self.probes.event(&record));
                }
                Scripted::Missed(missed) => {
                    tap.missed(&missed);
                    self.batch.events.push(missed.into());
                }
                Scripted::Packet { time, bytes } => {
                    let packet = Packet {
                        time: time.as_nanos(),
                        interface: 3,
                        ethertype: 0x0800,
                        length: bytes.len(),
                        bytes: &bytes,
                    };
                    tap.packet(&packet);
                    self.listener.ingest(&packet);
                }
                Scripted::Answer { pid, found } => {
                    self.batch.answers.push(ProcessAnswer { pid: Some(pid), found: Some(found) });
                }
                Scripted::EndBatch => take(&mut self.batch),
                Scripted::EndRound(time) => {
                    self.now = time;
                    self.batch.names.extend(self.listener.take(time));
                    self.batch.complete_until = Some(time);
                    take(&mut self.batch);
                    assert!(self.batch.events.is_empty() && self.batch.complete_until.is_none(), "it is emptied");
                    self.run_ahead();
                    return Ok(ControlFlow::Continue(()));
                }
            }
        }
        take(&mut self.batch);
        let is_over = self.ends || self.stopped;
        Ok(if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn stop(&mut self) {
        self.stopped = true;
    }

    fn can_be_asked(&self) -> bool {
        self.can_be_asked
    }

    fn look_up(&mut self, process: &Process) -> Option<FoundProcess> {
        self.asked.push(process.pid);
        self.known.get(&process.pid).cloned()
    }

    fn is_gone(&mut self, process: &Process) -> bool {
        self.checked.push(process.pid);
        self.gone.contains(&process.pid)
    }

    fn totals(&mut self, of: &Conversation) -> Option<Totals> {
        self.asked_totals.push(of.sock);
        match &self.kernel {
            Some(kernel) => kernel.totals(of),
            None => self.totals.get(&of.sock).copied(),
        }
    }

    fn answered(&self) -> MonotonicTime {
        self.now.max(self.hit)
    }

    fn forget(&mut self, flow: &Flow) {
        self.forgotten.push(flow.number);
    }
}

/// An IPv4 packet with a UDP datagram that holds a DNS message.
pub(crate) fn dns_packet(from: ([u8; 4], u16), to: ([u8; 4], u16), dns: &[u8]) -> Vec<u8> {
    let (udp, ip) = (8 + dns.len() as u16, 28 + dns.len() as u16);
    let mut bytes = vec![0x45, 0];
    bytes.extend(ip.to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    bytes.extend([from.0, to.0].concat());
    bytes.extend([from.1, to.1, udp, 0].map(u16::to_be_bytes).concat());
    bytes.extend(dns);
    bytes
}

/// The DNS messages (RFC 1035) of a query for the A record of `a.example`, and of its response: 192.0.2.9.
pub(crate) fn query_and_response() -> [Vec<u8>; 2] {
    let question = b"\x01a\x07example\0\0\x01\0\x01";
    let answer = b"\xc0\x0c\0\x01\0\x01\0\0\x01\x2c\0\x04\xc0\0\x02\x09";
    let query = [b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0", &question[..]].concat();
    [query, [b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0", &question[..], answer].concat()]
}
