//! Installs the probes of guesses.
//!
//! Removing probes takes long: for each probe, the kernel waits once until no CPU can be executing it any more, and
//! twice for each trace event that was enabled, about 15 ms each time. So all probes that are installed together share
//! one event where the kernel allows this (Linux 5.4). Probes that share an event must fetch equally many values, so
//! those with fewer values also fetch constants. Each probe also fetches a number of its own, by which its records are
//! recognised.

use super::call::CallAssembler;
use super::probe::{Part, Probe};
use crate::layout::Layout;
use socktrail_kprobes::{Error, Fetch, Group, Installed, Resolver, RingOptions, Rings, Target, Term, Type};

/// The name of the fetched value that numbers the kprobes of a shared event.
const NUMBER: &str = "tag";

/// Installs probes in a group.
#[derive(Debug)]
pub(crate) struct ProbeInstaller {
    group: Group,
    /// Whether probes may share an event, as far as is known.
    shares_events: bool,
    /// How many names of events have been used.
    names_used: usize,
}

/// Probes that are installed and enabled.
#[derive(Debug)]
pub(crate) struct InstalledProbes {
    /// For each probe its parts, or why it could not be installed.
    probes: Vec<Result<(Probe, Vec<InstalledPart>), Error>>,
    events: Vec<Event>,
    /// Keeps the events enabled while guesses attach the rings of one thread after the other. It is never read.
    _enabled: Rings,
}

#[derive(Debug, Clone)]
pub(crate) struct InstalledPart {
    pub(crate) part: Part,
    /// The offset of each fetched value in a record.
    pub(crate) offsets: Vec<u16>,
}

/// Identifies a part of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartId {
    /// The index of the probe.
    pub(crate) probe: usize,
    /// The index of the part within the probe.
    pub(crate) part: usize,
}

/// A trace event, with the kprobes that write its records.
#[derive(Debug)]
struct Event {
    kprobes: Vec<Installed>,
    /// The offset of the kprobe's number in a record, if several kprobes share the event.
    number_offset: Option<usize>,
    /// The part that each kprobe is for.
    parts: Vec<PartId>,
}

impl ProbeInstaller {
    /// Installs probes in `group`. With `shares_events` they may share events.
    pub(crate) fn new(group: Group, shares_events: bool) -> Self {
        Self { group, shares_events, names_used: 0 }
    }

    /// Looks up where these functions begin, all at once, so that installing probes on them is quick.
    pub(crate) fn look_up_functions(&mut self, functions: &[&str]) {
        self.group.look_up_functions(functions);
    }

    /// Installs probes, filled in from what the layout has so far, and enables them.
    ///
    /// # Errors
    ///
    /// When they cannot be enabled. For a probe that cannot be installed, see [`InstalledProbes::install_error`].
    pub(crate) fn install(&mut self, probes: Vec<Probe>, layout: &Layout) -> Result<InstalledProbes, Error> {
        let fetch_counts = probes.iter().flat_map(Probe::parts).map(|part| part.fetches.len());
        let fetch_count = fetch_counts.max().unwrap_or(0);
        let mut batch = Batch { installer: self, layout, fetch_count, events: Vec::new() };
        let install = |(index, probe): (usize, Probe)| batch.install(index, &probe).map(|parts| (probe, parts));
        let probes = probes.into_iter().enumerate().map(install).collect();
        let events = batch.events;
        let mut options = RingOptions::default();
        options.page_exponent = 0;
        let mut enabled = Rings::for_thread(nix::unistd::gettid().as_raw() as u32, &options)?;
        for event in &events {
            enabled.attach(&event.kprobes[0], None)?;
        }
        Ok(InstalledProbes { probes, events, _enabled: enabled })
    }

    fn next_name(&mut self) -> String {
        self.names_used += 1;
        format!("guess{}", self.names_used)
    }
}

/// Probes that are being installed together.
struct Batch<'a> {
    installer: &'a mut ProbeInstaller,
    layout: &'a Layout,
    /// How many values, besides its number, a kprobe must fetch to share an event.
    fetch_count: usize,
    events: Vec<Event>,
}

impl Batch<'_> {
    /// Installs all parts of the probe with this index.
    fn install(&mut self, index: usize, probe: &Probe) -> Result<Vec<InstalledPart>, Error> {
        let mut parts = Vec::new();
        for (number, part) in probe.parts().into_iter().enumerate() {
            let event = self.install_part(probe, &part)?;
            event.parts.push(PartId { probe: index, part: number });
            let offsets = part.offsets(event.kprobes[0].format())?;
            parts.push(InstalledPart { part, offsets });
        }
        Ok(parts)
    }

    /// Installs a part: in the shared event if it works, else in an event of its own.
    fn install_part(&mut self, probe: &Probe, part: &Part) -> Result<&mut Event, Error> {
        if self.installer.shares_events {
            let (name, number) = match self.events.last() {
                Some(event) => (event.kprobes[0].name().to_owned(), event.kprobes.len()),
                None => (self.installer.next_name(), 0),
            };
            match self.add(&name, probe, &numbered(part, self.fetch_count, number)) {
                Ok(kprobe) => return Ok(self.join(kprobe)),
                // Other kprobes share the event, so the reason is this function.
                Err(error) if number > 1 => return Err(error),
                Err(_) => {}
            }
        }
        // Either this function cannot be probed, or kprobes cannot share events. If this works, it is the latter.
        let name = self.installer.next_name();
        let kprobe = self.add(&name, probe, &part.fetches)?;
        self.installer.shares_events = false;
        self.events.push(Event { kprobes: vec![kprobe], number_offset: None, parts: Vec::new() });
        Ok(self.events.last_mut().expect("it was just pushed"))
    }

    /// Adds a kprobe to the shared event.
    fn join(&mut self, kprobe: Installed) -> &mut Event {
        if self.events.is_empty() {
            let number_offset = kprobe.format().field(NUMBER).map(|field| usize::from(field.offset));
            self.events.push(Event { kprobes: Vec::new(), number_offset, parts: Vec::new() });
        }
        let event = self.events.last_mut().expect("one was pushed if there was none");
        event.kprobes.push(kprobe);
        event
    }

    fn add(&self, name: &str, probe: &Probe, fetches: &[Fetch<'_>]) -> Result<Installed, Error> {
        let names = |_: &str, name: &str| match name.strip_prefix("arg").map(str::parse) {
            Some(Ok(number)) => Some(Term::Argument(number)),
            _ => self.layout.resolve(&probe.function, name),
        };
        self.installer.group.install(name, Target::Kprobe { function: &probe.function }, fetches, &names)
    }
}

/// The fetches of a part in a shared event: the number of its kprobe, its own fetches, and constants up to
/// `fetch_count`.
fn numbered(part: &Part, fetch_count: usize, number: usize) -> Vec<Fetch<'_>> {
    let constant = |name: String, value: usize| Fetch::new(name, format!("\\{value}"), Type::U64);
    let padding = (part.fetches.len()..fetch_count).map(|index| constant(Part::fetch_name(index), 0));
    let number = constant(NUMBER.to_owned(), number);
    std::iter::once(number).chain(part.fetches.iter().cloned()).chain(padding).collect()
}

impl InstalledProbes {
    /// The events that these probes write to, as one kprobe of each, with a filter for the records of these probes.
    pub(crate) fn events_of(&self, probes: &[usize]) -> impl Iterator<Item = (&Installed, Option<String>)> {
        self.events.iter().filter_map(|event| {
            let kprobes = event.parts.iter().enumerate().filter(|(_, id)| probes.contains(&id.probe));
            let conditions: Vec<String> = kprobes.map(|(number, _)| format!("{NUMBER} == {number}")).collect();
            let filter = event.number_offset.map(|_| conditions.join(" || "));
            (!conditions.is_empty()).then_some((&event.kprobes[0], filter))
        })
    }

    /// Why the probe with this index could not be installed, if it could not.
    pub(crate) fn install_error(&self, probe: usize) -> Option<&Error> {
        self.probes[probe].as_ref().err()
    }

    /// The part whose kprobe wrote a record.
    pub(crate) fn part_of_record(&self, event_id: u16, raw: &[u8]) -> Option<PartId> {
        let event = self.events.iter().find(|event| event.kprobes[0].id() == u32::from(event_id))?;
        let number = match event.number_offset {
            Some(offset) => u64::from_ne_bytes(*raw.get(offset..)?.first_chunk()?) as usize,
            None => 0,
        };
        event.parts.get(number).copied()
    }

    /// An assembler for the records of the probe with this index; `None` if it could not be installed.
    pub(crate) fn assembler(&self, probe: usize) -> Option<CallAssembler> {
        let (probe, parts) = self.probes[probe].as_ref().ok()?;
        Some(CallAssembler::new(probe.clone(), parts.clone()))
    }
}
