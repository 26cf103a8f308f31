//! Probes that are installed.
//!
//! What takes long about probes is to be rid of them: for each, the kernel waits once until nobody can be within it any
//! more, and twice for each trace event that was in use, some 15 ms each time. So all probes that are installed together
//! share one event where the kernel lets them (Linux 5.4): they fetch as many values, if need be by fetching nothing,
//! and each adds a number of its own to its records.

use super::probe::{Part, Probe};
use super::shot::Assembler;
use crate::layout::Layout;
use socktrail_kprobes::{Error, Fetch, Group, Installed, Resolver, RingOptions, Rings, Target, Term, Type};

/// The name of the value that tells apart the probes that share an event.
const TAG: &str = "tag";

/// Where probes are installed.
#[derive(Debug)]
pub(crate) struct Board {
    group: Group,
    /// Whether probes may share an event, as far as is known.
    merges: bool,
    /// How many names of events were given out so far.
    count: usize,
}

/// Probes that are installed and armed.
#[derive(Debug)]
pub(crate) struct Posted {
    /// For each probe that was to be installed, its parts; or why not.
    probes: Vec<Result<(Probe, Vec<Fitted>), Error>>,
    events: Vec<Event>,
    /// Keeps them armed from the first thread that is watched to the last. Nobody reads it.
    _armed: Rings,
}

/// A part with the places of its fetches in a record.
type Fitted = (Part, Vec<u16>);

/// A trace event, with the kprobes that write its records.
#[derive(Debug)]
struct Event {
    kprobes: Vec<Installed>,
    /// Where in a record the number of its kprobe is, if they may be several.
    tag: Option<usize>,
    /// For each kprobe, of which probe it is which part.
    sites: Vec<(usize, usize)>,
}

impl Board {
    /// Installs probes in a group. With `merges` they may share events.
    pub(crate) fn new(group: Group, merges: bool) -> Self {
        Self { group, merges, count: 0 }
    }

    /// Learns where functions begin, to find them quickly.
    pub(crate) fn learn(&mut self, functions: &[&str]) {
        self.group.learn(functions);
    }

    /// Installs probes with what is known so far, and arms them.
    ///
    /// # Errors
    ///
    /// When they cannot be armed. Those that cannot be installed are told by [`Posted::refused`].
    pub(crate) fn post(&mut self, probes: Vec<Probe>, layout: &Layout) -> Result<Posted, Error> {
        let sizes = probes.iter().flat_map(Probe::parts).map(|part| part.fetches.len());
        let size = sizes.max().unwrap_or(0);
        let mut batch = Batch { board: self, layout, size, events: Vec::new() };
        let install = |(index, probe): (usize, Probe)| batch.install(index, &probe).map(|parts| (probe, parts));
        let probes = probes.into_iter().enumerate().map(install).collect();
        let events = batch.events;
        let mut options = RingOptions::default();
        options.page_exponent = 0;
        let mut armed = Rings::for_thread(nix::unistd::gettid().as_raw() as u32, &options)?;
        for event in &events {
            armed.attach(&event.kprobes[0], None)?;
        }
        Ok(Posted { probes, events, _armed: armed })
    }

    fn next_name(&mut self) -> String {
        self.count += 1;
        format!("guess{}", self.count)
    }
}

/// Probes that are being installed together.
struct Batch<'a> {
    board: &'a mut Board,
    layout: &'a Layout,
    /// How many values a probe must fetch to share an event.
    size: usize,
    events: Vec<Event>,
}

impl Batch<'_> {
    /// Installs all parts of the probe of that number.
    fn install(&mut self, index: usize, probe: &Probe) -> Result<Vec<Fitted>, Error> {
        let mut parts = Vec::new();
        for (number, part) in probe.parts().into_iter().enumerate() {
            let event = self.install_part(probe, &part)?;
            event.sites.push((index, number));
            let offsets = part.offsets(event.kprobes[0].format())?;
            parts.push((part, offsets));
        }
        Ok(parts)
    }

    /// Installs a part: within the event that there is, else as one that others may join, else as one of its own.
    fn install_part(&mut self, probe: &Probe, part: &Part) -> Result<&mut Event, Error> {
        if self.board.merges {
            let (name, number) = match self.events.last() {
                Some(event) => (event.kprobes[0].name().to_owned(), event.kprobes.len()),
                None => (self.board.next_name(), 0),
            };
            match self.add(&name, probe, &padded(part, self.size, number)) {
                Ok(kprobe) => return Ok(self.join(kprobe)),
                // Others share an event, so it is this function that cannot be probed.
                Err(error) if number > 1 => return Err(error),
                Err(_) => {}
            }
        }
        // Either this function cannot be probed, or probes cannot share events: if this works, it is the latter.
        let name = self.board.next_name();
        let kprobe = self.add(&name, probe, &part.fetches)?;
        self.board.merges = false;
        self.events.push(Event { kprobes: vec![kprobe], tag: None, sites: Vec::new() });
        Ok(self.events.last_mut().expect("it was just made"))
    }

    /// Adds a kprobe to the event that it was installed in.
    fn join(&mut self, kprobe: Installed) -> &mut Event {
        if self.events.is_empty() {
            let tag = kprobe.format().field(TAG).map(|field| usize::from(field.offset));
            self.events.push(Event { kprobes: Vec::new(), tag, sites: Vec::new() });
        }
        let event = self.events.last_mut().expect("it was there or was just made");
        event.kprobes.push(kprobe);
        event
    }

    fn add(&self, name: &str, probe: &Probe, fetches: &[Fetch<'_>]) -> Result<Installed, Error> {
        let names = |_: &str, name: &str| match name.strip_prefix("arg").map(str::parse) {
            Some(Ok(number)) => Some(Term::Argument(number)),
            _ => self.layout.resolve(&probe.function, name),
        };
        self.board.group.install(name, Target::Kprobe { function: &probe.function }, fetches, &names)
    }
}

/// What a part fetches, filled up to `size`, and before it the number of its kprobe.
fn padded(part: &Part, size: usize, number: usize) -> Vec<Fetch<'_>> {
    let constant = |name: String, value: usize| Fetch::new(name, format!("\\{value}"), Type::U64);
    let nothing = (part.fetches.len()..size).map(|index| constant(Part::name(index), 0));
    let tag = constant(TAG.to_owned(), number);
    std::iter::once(tag).chain(part.fetches.iter().cloned()).chain(nothing).collect()
}

impl Posted {
    /// The events that some probes are part of, as one kprobe of each, with the filter that lets their records through.
    pub(crate) fn events_of(&self, probes: &[usize]) -> impl Iterator<Item = (&Installed, Option<String>)> {
        self.events.iter().filter_map(|event| {
            let sites = event.sites.iter().enumerate();
            let of_probes = sites.filter(|(_, (probe, _))| probes.contains(probe));
            let tags: Vec<String> = of_probes.map(|(site, _)| format!("{TAG} == {site}")).collect();
            let filter = event.tag.map(|_| tags.join(" || "));
            (!tags.is_empty()).then_some((&event.kprobes[0], filter))
        })
    }

    /// Why the probe of that number could not be installed, if it could not.
    pub(crate) fn refused(&self, probe: usize) -> Option<&Error> {
        self.probes[probe].as_ref().err()
    }

    /// Which probe made a record, and which part of it.
    pub(crate) fn site_of(&self, id: u16, raw: &[u8]) -> Option<(usize, usize)> {
        let event = self.events.iter().find(|event| event.kprobes[0].id() == u32::from(id))?;
        let site = match event.tag {
            Some(offset) => u64::from_ne_bytes(*raw.get(offset..)?.first_chunk()?) as usize,
            None => 0,
        };
        event.sites.get(site).copied()
    }

    /// What puts the records of the probe of that number together; nothing if it could not be installed.
    pub(crate) fn assembler(&self, probe: usize) -> Option<Assembler> {
        let (probe, parts) = self.probes[probe].as_ref().ok()?;
        Some(Assembler::new(probe.clone(), parts.clone()))
    }
}
