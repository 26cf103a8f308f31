//! What is watched in the kernel, and the event that comes of it.
//!
//! A probe is declared once, as a [`sample!`](socktrail_kprobes::sample): the text that the kernel gets and the
//! decoder of its records are made from the same lines. [`TABLE`] says which probe serves which [`Feature`] and which
//! others may take its place. The templates name layout (`{sk_buff.len}`), not numbers.

mod call_table;
mod calls;
mod child_group;
mod dentries;
mod drop_functions;
mod install;
mod lacking;
mod learning;
mod misses;
mod packets;
mod processes;
mod program;
mod self_test;
mod sockets;
mod table;

use std::fmt;
use std::net::Ipv6Addr;

use socktrail_guess::Layout;
use socktrail_kprobes::{Decoder, Error, Format, Installed, Kind, Record, Resolver, Sample, Target, Term};

pub use self::call_table::CALLS;
pub(crate) use self::misses::{Missed, Misses};
use self::packets::{Freed, Lists};
use self::program::Part;
pub use self::self_test::{Failed, SelfTest, Traffic, listed};
pub use self::table::{Probe, TABLE};
use crate::event::{Dropped, Event, EventKind, Execs, KernelTime, Sight, Unreadable};
pub use crate::feature::Feature;
use crate::halves::Halves;
use crate::loss::{Harm, LossCause};
use crate::socket_event::Actions;

/// `AF_INET`; ABI.
const AF_INET: u16 = 2;
/// `AF_INET6`; ABI.
const AF_INET6: u16 = 10;

/// What is asked of the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Where the kernel keeps what the probes read.
    pub layout: &'a Layout,
    /// Whether IPv6 is watched.
    pub ipv6: bool,
    /// Whether flows are.
    pub flows: bool,
    /// Of which calls socket events are made.
    pub socket_events: Actions,
    /// Functions to do without, as if the kernel did not have them: for tests.
    pub mask: &'a [String],
    /// Whether packets of the loopback interface's own addresses are samples at all.
    pub loopback: bool,
}

/// How a feature fared.
#[derive(Debug)]
pub struct Served {
    /// Which.
    pub feature: Feature,
    /// The probe that serves it, if any.
    pub by: Option<&'static Probe>,
    /// Why the better ones do not.
    pub refusals: Vec<Refusal>,
    /// What its samples do not tell, since this kernel does not have it.
    pub lacks: Option<&'static str>,
    /// Whether this kernel gives several datagrams as one to a socket that asks for it (`UDP_GRO`).
    pub merges: bool,
    /// Whether the probe was hit by the traffic of the self-test that is to hit it.
    pub hit: bool,
}

/// Why a probe was not installed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It was not to be.
    #[error("{0} is masked")]
    Masked(&'static str),
    /// It was installed twice, and was not hit by this traffic.
    #[error(
        "the probe on {0} was installed, but not hit by {by}: its callers do without it, the compiler has put it into \
         them, or the kernel does not make the probe fire", by = listed(.1)
    )]
    NotHit(&'static str, &'static [Traffic]),
    /// Its filter needs function addresses, which `/proc/kallsyms` hides or this kernel does not have.
    #[error(
        "/proc/kallsyms does not show the functions that drop packets: it takes CAP_SYSLOG, kernel.kptr_restrict below 2, \
         and Linux 4.7"
    )]
    AddressesHidden,
    /// The kernel would not, or the layout does not have what it reads.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// Every feature with the probes that can serve it.
pub(crate) fn every() -> impl Iterator<Item = &'static (Feature, &'static [Probe])> {
    TABLE.iter().chain(CALLS)
}

impl Served {
    /// Whether the kernel has none of the functions that would serve it.
    fn has_no_function(&self) -> bool {
        let missing = |refusal: &Refusal| matches!(refusal, Refusal::Kernel(error) if error.kind() == Kind::NoFunction);
        self.refusals.iter().all(missing)
    }

    /// What is worse than it could be, though the feature is served.
    pub fn weaker(&self) -> Option<&'static str> {
        // What is merged only by newer kernels is no loss on others.
        let by = self.by?;
        // Where the kernel does not merge datagrams, nothing is lost by that.
        by.weaker.filter(|_| self.merges || !by.before_gro_split).or(self.lacks)
    }

    /// Why a feature is lost or served less well.
    pub fn reasons(&self) -> String {
        self.refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}

/// The probes that are installed, and how to read what they write.
#[derive(Debug)]
pub struct Probes {
    /// Every feature that was wanted.
    pub served: Vec<Served>,
    /// What came of the traffic that the probes were tested by.
    pub self_test: SelfTest,
    /// How often each probe had missed just before it was attached, and when that was.
    missed_before: (Vec<socktrail_kprobes::Misses>, KernelTime),
    installed: Vec<Installed>,
    decoders: Vec<(u16, Box<dyn Decode>)>,
    /// The layout of the kernel that events were recorded on.
    layout: Option<Layout>,
    /// Halves of the paths of executed files, by the thread that executes them.
    parts: Halves<program::File, Option<Vec<Vec<u8>>>>,
    lists: Lists,
    /// What can be told of sockets and datagrams.
    pub(crate) sight: Sight,
    /// Samples that could not be decoded: cut short, or packets with headers that are not understood.
    pub unreadable: u64,
}

impl Probes {
    /// What the features that are served show.
    fn sight_of_features(&mut self, merges: bool) {
        self.sight.moves = self.installed(Feature::ControlGroup).is_some();
        self.sight.execs = self.features().map(Feature::shows_execs).max().unwrap_or(Execs::Unseen);
        self.sight.single_datagrams = !merges || self.see_single_datagrams();
    }

    /// Whether it is seen who takes several datagrams as one, and what the others get one by one.
    fn see_single_datagrams(&self) -> bool {
        self.features().any(|feature| feature == Feature::DatagramOptions)
            && self.served.iter().all(|served| served.by.is_none_or(|probe| !probe.before_gro_split))
    }

    /// No probes: for events that come from elsewhere, by [`Probes::add_recorded`].
    pub fn none() -> Self {
        Self {
            served: Vec::new(),
            self_test: SelfTest::default(),
            missed_before: (Vec::new(), 0),
            installed: Vec::new(),
            decoders: Vec::new(),
            layout: None,
            parts: Halves::default(),
            lists: Lists::default(),
            sight: Sight::default(),
            unreadable: 0,
        }
    }

    /// No probes either: for samples of a kernel with this layout. What it does not know, samples do not tell, even if
    /// something was recorded in its place.
    pub fn recorded(layout: Layout) -> Self {
        Self { layout: Some(layout), ..Self::none() }
    }

    /// Makes samples readable that the probe of this feature on this function wrote elsewhere.
    ///
    /// # Errors
    /// There is no such probe, or it does not fetch what the format has.
    pub fn add_recorded(&mut self, feature: Feature, function: &str, format: &Format) -> Result<(), String> {
        let (_, alternatives) = every().find(|(one, _)| *one == feature).ok_or("no such feature")?;
        // Of several on one function, the one that fetches what the format has; or all write the same.
        let mut decoder = Err("no such probe".to_owned());
        for probe in alternatives.iter().filter(|probe| probe.function() == function) {
            let format = self.layout.as_ref().map_or_else(|| format.clone(), |layout| probe.known(format, layout));
            decoder = decoder.or_else(|_| (probe.decoder)(&format).map_err(|error| error.to_string()));
        }
        let decoder = decoder?;
        let id = u16::try_from(format.id).map_err(|_| "an event type above 65535")?;
        self.decoders.push((id, decoder));
        self.decoders.sort_by_key(|(id, _)| *id);
        Ok(())
    }

    /// What is installed: the feature, the function that it sits on, and the format of its samples.
    pub(crate) fn events(&self) -> Vec<(Feature, &'static str, Format)> {
        let by = self.served.iter().filter_map(|served| served.by.map(|probe| (served.feature, probe.function())));
        let formats = self.installed.iter().map(|installed| installed.format().clone());
        by.zip(formats).map(|((feature, function), format)| (feature, function, format)).collect()
    }

    /// What serves a feature, if anything does.
    pub(crate) fn installed(&self, feature: Feature) -> Option<&Installed> {
        let mut features = self.features();
        self.installed.get(features.position(|one| one == feature)?)
    }

    /// Whether anything that is wanted, but for the processes that it is about, can be seen. New states are those of
    /// sockets whose calls are seen: they count only where nothing else is asked for.
    pub(crate) fn show_something(&self, wanted: Wanted<'_>) -> bool {
        let only_states = wanted.socket_events == Actions::STATE;
        let flows = |feature: Feature| wanted.flows && feature.shows_flows();
        let events = |feature: Feature| {
            wanted.socket_events.meets(feature.shows_events()) || (only_states && feature.tells_states())
        };
        (!wanted.flows && wanted.socket_events.is_empty())
            || self.features().any(|feature| flows(feature) || events(feature))
    }

    /// The features that have a probe.
    pub fn features(&self) -> impl Iterator<Item = Feature> {
        self.served.iter().filter(|served| served.by.is_some()).map(|served| served.feature)
    }

    /// The event that a record stands for, if any.
    #[inline]
    pub fn event(&mut self, record: &Record<'_>) -> Option<Event> {
        match *record {
            Record::Sample { time, pid, tid, id, raw, .. } => {
                let at = self.decoders.binary_search_by_key(&id, |(id, _)| *id).ok()?;
                match self.decoders[at].1.decode(raw) {
                    Decoded::Event(kind) => {
                        // New credentials are the first event of an exec, so a waiting part belongs to an earlier one.
                        if matches!(kind, EventKind::Credentials(_)) {
                            self.parts.forget(tid);
                        }
                        Some(Event { time, pid, tid, kind })
                    }
                    Decoded::Part(part) => {
                        let (file, mounts) = match part {
                            Part::File(file) => self.parts.join_left(tid, file),
                            Part::Mounts(mounts) => self.parts.join_right(tid, mounts),
                        }?;
                        Some(Event { time, pid, tid, kind: EventKind::Ran(Box::new(file.at(mounts))) })
                    }
                    Decoded::Freed(dropped, freed) => {
                        let kind = EventKind::Dropped(dropped);
                        (!self.lists.has_told(freed)).then_some(Event { time, pid, tid, kind })
                    }
                    Decoded::Nothing => None,
                    Decoded::Unreadable(what) => {
                        self.unreadable += 1;
                        what.map(|what| Event { time, pid, tid, kind: EventKind::Unreadable(what) })
                    }
                }
            }
            Record::Lost { since, time, cpu, count } => {
                self.parts.clear();
                let kind = EventKind::Lost { cause: LossCause::Ring { cpu }, count, since, harm: Harm::ALL };
                Some(Event { time, pid: 0, tid: 0, kind })
            }
            _ => None,
        }
    }
}

/// Major and minor number of the kernel's release; the highest possible if they cannot be read.
fn release() -> (u32, u32) {
    let name = nix::sys::utsname::uname();
    let release = name.as_ref().ok().and_then(|name| name.release().to_str()).unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    numbers.next().zip(numbers.next()).unwrap_or((u32::MAX, u32::MAX))
}

impl Wanted<'_> {
    /// Whether anything that is asked for needs this feature.
    fn wants(&self, feature: Feature) -> bool {
        if release() < feature.since() {
            return false;
        }
        match feature.serves() {
            Some(actions) => self.socket_events.meets(actions),
            None => {
                let states = feature.tells_states() && self.socket_events.meets(Actions::STATE);
                (self.ipv6 || !feature.is_ipv6()) && (self.flows || states || feature.tells_processes())
            }
        }
    }
}

impl Probe {
    /// The format without what its samples may do without and this layout does not know.
    fn known(&self, format: &Format, layout: &Layout) -> Format {
        let is_unknown = |name: &str| {
            let fetch = self.fetches.iter().find(|fetch| fetch.optional && fetch.name == name);
            fetch.is_some_and(|fetch| !fetch.is_resolved(self.function(), layout))
        };
        let mut format = format.clone();
        format.fields.retain(|field| !is_unknown(&field.name));
        format
    }

    /// The kernel function or tracepoint that it sits on.
    pub const fn function(&self) -> &'static str {
        match self.target {
            Target::Kprobe { function } | Target::Kretprobe { function, .. } => function,
            Target::Tracepoint { name, .. } => name,
        }
    }
}

/// What a sample says.
#[derive(Debug)]
enum Decoded {
    /// This happened.
    Event(EventKind),
    /// Half of an event; another sample has the other half.
    Part(Part),
    /// A packet was dropped, which another sample may have told already.
    Freed(Dropped, Freed),
    /// Nothing that matters.
    Nothing,
    /// It cannot be told, but perhaps of what.
    Unreadable(Option<Unreadable>),
}

/// A sample that stands for an event.
trait IntoEvent: Sample + fmt::Debug {
    /// The event; `raw` is the record that the sample was decoded from.
    fn event(&self, raw: &[u8]) -> Decoded;
}

/// Decodes one kind of record.
trait Decode: fmt::Debug + Send {
    fn decode(&self, raw: &[u8]) -> Decoded;
}

impl<S: IntoEvent> Decode for Decoder<S>
where
    Self: fmt::Debug,
{
    fn decode(&self, raw: &[u8]) -> Decoded {
        match Self::decode(self, raw) {
            Some(sample) => sample.event(raw),
            None => Decoded::Unreadable(None),
        }
    }
}

/// Two fields of an `sk_buff` that one read gets, where they lie next to each other; in all kernels that are known they do.
const BOTH_HEADERS: &str = "sk_buff.headers";

fn both_headers(layout: &Layout) -> Option<Term> {
    let [transport, network] = ["sk_buff.transport_header", "sk_buff.network_header"].map(|name| layout.offset(name));
    transport.filter(|transport| network == Some(transport + 2)).map(|transport| Term::Offset(transport.into()))
}

impl Resolver for Wanted<'_> {
    fn resolve(&self, function: &str, name: &str) -> Option<Term> {
        if name == BOTH_HEADERS {
            return both_headers(self.layout);
        }
        self.layout.resolve(function, name)
    }
}

/// The same where both are known.
fn known_ipv6(memory: [Option<u64>; 2]) -> Option<Ipv6Addr> {
    let [high, low] = memory;
    Some(ipv6_address([high?, low?]))
}

/// An address out of two words of memory.
fn ipv6_address(memory: [u64; 2]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&memory[0].to_ne_bytes());
    octets[8..].copy_from_slice(&memory[1].to_ne_bytes());
    Ipv6Addr::from(octets)
}
