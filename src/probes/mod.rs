//! What is watched in the kernel, and the event that comes of it.
//!
//! A probe is declared once, as a [`sample!`](socktrail_kprobes::sample): the text that the kernel gets and the
//! decoder of its records are made from the same lines. [`TABLE`] says which probe serves which [`Feature`] and which
//! others may take its place. The templates name layout (`{sk_buff.len}`), not numbers.

mod call_table;
mod calls;
mod lacking;
mod packets;
mod processes;
mod sockets;
mod table;
mod trial;

use std::fmt;
use std::net::Ipv6Addr;

use socktrail_guess::Layout;
use socktrail_kprobes::{
    Decoder, Error, Format, Group, Installed, Kind, Record, Resolver, Rings, Sample, Target, Term,
};

pub use self::call_table::CALLS;
use self::lacking::Lacking;
use self::table::MERGED;
pub use self::table::{Feature, Probe, TABLE};
use crate::event::{Event, EventKind, Sight, Unreadable};
use crate::loss::LossCause;
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
}

/// Why a probe was not installed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It was not to be.
    #[error("{0} is masked")]
    Masked(&'static str),
    /// The kernel has it and does not use it.
    #[error("nothing calls {0}: its callers do without it, or the compiler has put it into them")]
    Uncalled(&'static str),
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
        self.by?.weaker.filter(|weaker| *weaker != MERGED || self.merges).or(self.lacks)
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
    installed: Vec<Installed>,
    decoders: Vec<(u16, Box<dyn Decode>)>,
    /// What the layout does not have: what samples say of it is nothing.
    lacking: Lacking,
    /// What can be told of sockets and datagrams.
    pub(crate) sight: Sight,
    /// Samples that could not be decoded: cut short, or packets with headers that are not understood.
    pub unreadable: u64,
}

impl Probes {
    /// Installs the best probe for each feature, and attaches it to `rings` where there are any. A feature whose
    /// probes are all refused is lost, and nothing else.
    pub fn install(group: &mut Group, mut rings: Option<&mut Rings>, wanted: Wanted<'_>) -> Self {
        let all = every().filter(|(feature, _)| wanted.wants(*feature));
        group.learn(&all.flat_map(|(_, probes)| probes.iter().map(Probe::function)).collect::<Vec<_>>());
        let mut probes = Self { lacking: Lacking::of(wanted.layout), ..Self::none() };
        let merges = trial::merges_datagrams();
        for (feature, alternatives) in every().filter(|(feature, _)| wanted.wants(*feature)) {
            if feature.is_for_joined_heads() && probes.sight.joined_head == 0 {
                continue;
            }
            let lacks = probes.lacking.matters_to(*feature);
            let mut served = Served { feature: *feature, by: None, refusals: Vec::new(), lacks, merges };
            for probe in *alternatives {
                match probes.try_to_serve(*feature, probe, group, rings.as_deref_mut(), wanted) {
                    Ok((installed, decoder)) => {
                        // The kernel gives event types of 16 bits: `trace_entry.type`.
                        probes.decoders.push((installed.id() as u16, decoder));
                        probes.installed.push(installed);
                        served.by = Some(probe);
                        break;
                    }
                    Err(refusal) => served.refusals.push(refusal),
                }
            }
            if served.by.is_some() || !(feature.comes_with_its_function() && served.has_no_function()) {
                probes.served.push(served);
            }
        }
        probes.decoders.sort_by_key(|(id, _)| *id);
        probes.sight.single_datagrams = !merges || probes.see_single_datagrams();
        probes
    }

    /// Whether it is seen who takes several datagrams as one, and what the others get one by one.
    fn see_single_datagrams(&self) -> bool {
        self.features().any(|feature| feature == Feature::DatagramOptions)
            && self.served.iter().all(|served| served.by.is_none_or(|probe| probe.weaker != Some(MERGED)))
    }

    /// Installs a probe, learns by it what is to be learnt, and attaches it.
    fn try_to_serve(
        &mut self,
        feature: Feature,
        probe: &Probe,
        group: &Group,
        rings: Option<&mut Rings>,
        wanted: Wanted<'_>,
    ) -> Result<(Installed, Box<dyn Decode>), Refusal> {
        let (installed, decoder) = probe.install(feature, group, wanted)?;
        if let Some(rings) = rings {
            // What cannot be learnt is not told, and flows are marked for it: no reason to go without the feature.
            if let Err(error) = self.learn_by(feature, &installed, &*decoder) {
                tracing::warn!(%error, %feature, "what this kernel tells of sockets and datagrams could not be tried out");
            }
            probe.attach(&installed, rings, wanted)?;
        }
        Ok((installed, decoder))
    }

    fn learn_by(&mut self, feature: Feature, installed: &Installed, decoder: &dyn Decode) -> Result<(), Error> {
        match feature {
            Feature::SocketCreate => self.sight.programs = trial::tells_programs(installed, decoder)?,
            Feature::Ipv4Out => self.sight.joined_head = trial::joined_head(installed, decoder)?,
            _ => {}
        }
        Ok(())
    }

    /// No probes: for events that come from elsewhere, by [`Probes::add_recorded`].
    pub fn none() -> Self {
        let lacking = Lacking::NOTHING;
        Self {
            served: Vec::new(),
            installed: Vec::new(),
            decoders: Vec::new(),
            lacking,
            sight: Sight::default(),
            unreadable: 0,
        }
    }

    /// No probes either: for samples of a kernel with this layout.
    pub fn recorded(layout: &Layout) -> Self {
        Self { lacking: Lacking::of(layout), ..Self::none() }
    }

    /// Makes samples readable that the probe of this feature on this function wrote elsewhere.
    ///
    /// # Errors
    /// There is no such probe, or it does not fetch what the format has.
    pub fn add_recorded(&mut self, feature: Feature, function: &str, format: &Format) -> Result<(), String> {
        let (_, alternatives) = every().find(|(one, _)| *one == feature).ok_or("no such feature")?;
        // Of several on one function, for kernels with other arguments, all write the same.
        let probe = alternatives.iter().find(|probe| probe.function() == function).ok_or("no such probe")?;
        let decoder = (probe.decoder)(format).map_err(|error| error.to_string())?;
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

    /// Whether anything that is wanted, but for the processes that it is about, can be seen.
    pub(crate) fn show_something(&self, wanted: Wanted<'_>) -> bool {
        let flows = |feature: Feature| wanted.flows && feature.shows_flows();
        let events = |feature: Feature| feature.serves().is_some_and(|actions| wanted.socket_events.meets(actions));
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
                    Decoded::Event(EventKind::Packet(packet)) if self.lacking != Lacking::NOTHING => {
                        Some(Event { time, pid, tid, kind: EventKind::Packet(self.lacking.without(packet)) })
                    }
                    Decoded::Event(kind) => Some(Event { time, pid, tid, kind }),
                    Decoded::Nothing => None,
                    Decoded::Unreadable(what) => {
                        self.unreadable += 1;
                        what.map(|what| Event { time, pid, tid, kind: EventKind::Unreadable(what) })
                    }
                }
            }
            Record::Lost { time, cpu, count } => {
                let kind = EventKind::Lost { cause: LossCause::Ring { cpu }, count };
                Some(Event { time, pid: 0, tid: 0, kind })
            }
            _ => None,
        }
    }
}

impl Wanted<'_> {
    /// Whether anything that is asked for needs this feature.
    fn wants(&self, feature: Feature) -> bool {
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
    fn install(
        &self,
        feature: Feature,
        group: &Group,
        wanted: Wanted<'_>,
    ) -> Result<(Installed, Box<dyn Decode>), Refusal> {
        if wanted.mask.iter().any(|masked| masked == self.function()) {
            return Err(Refusal::Masked(self.function()));
        }
        let installed = group.install(&feature.to_string(), self.target, self.fetches, &wanted)?;
        let decoder = (self.decoder)(installed.format())?;
        if let Some(trial) = self.trial
            && !trial::is_hit(&installed, trial)?
        {
            return Err(Refusal::Uncalled(self.function()));
        }
        Ok((installed, decoder))
    }

    fn attach(&self, installed: &Installed, rings: &mut Rings, wanted: Wanted<'_>) -> Result<(), Error> {
        let only = if wanted.flows { self.filter } else { self.datagrams.or(self.filter) };
        let filter = match (only, self.loopback.filter(|_| !wanted.loopback)) {
            (Some(filter), Some(loopback)) => Some(format!("({filter})&&!({loopback})")),
            (Some(filter), None) => Some(filter.to_owned()),
            (None, loopback) => loopback.map(|loopback| format!("!({loopback})")),
        };
        rings.attach(installed, filter.as_deref())
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

/// The layout, seen by probes that look at more than every kernel has. A kernel without IPv6 has no place for its
/// addresses, and no socket of which they would be read; what a kernel does not have is ignored: any readable place will do.
impl Resolver for Wanted<'_> {
    fn resolve(&self, function: &str, name: &str) -> Option<Term> {
        if name == BOTH_HEADERS {
            return both_headers(self.layout);
        }
        self.layout.resolve(function, name).or_else(|| {
            let no_ipv6 = !self.ipv6 && name.starts_with("sock_common.skc_v6_");
            (no_ipv6 || lacking::may_be_missing(name)).then_some(Term::Offset(0))
        })
    }
}

/// An address out of two words of memory.
fn ipv6_address(memory: [u64; 2]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&memory[0].to_ne_bytes());
    octets[8..].copy_from_slice(&memory[1].to_ne_bytes());
    Ipv6Addr::from(octets)
}
