//! The probes in the kernel, and the events that their samples become.
//!
//! A sample is declared once, with [`sample!`](socktrail_kprobes::sample), which makes both the probe's fetch arguments and the
//! decoder of its records. Fetch arguments are templates: they name fields (`+{sk_buff.len}({skb})`), and the layout gives the
//! offsets. [`FLOW_PROBES`] and [`SOCKET_EVENT_PROBES`] list the probes that can serve each [`Feature`].

mod accounting;
mod call_table;
mod calls;
mod child_group;
pub(crate) mod clock_comparison;
mod dentries;
mod drop_functions;
mod drop_reasons;
mod features;
mod install;
mod learning;
mod misses;
mod missing_fields;
mod open;
pub(super) mod packets;
mod probe;
pub(super) mod processes;
pub(super) mod program;
mod self_test;
pub(super) mod sockets;
pub mod switches;
mod table;
mod wanted;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;

use socktrail_guess::Layout;
use socktrail_kprobes::{Decoder, Error, Format, Installed, Kind, Record, Rings, Sample, Target};

pub use self::accounting::KernelAccounting;
pub(super) use self::accounting::Rules;
pub(super) use self::accounting::of_record;
pub(crate) use self::accounting::{Conversations, Unaccounted};
pub use self::call_table::SOCKET_EVENT_PROBES;
use self::misses::FaultedHits;
pub(crate) use self::misses::{Missed, Misses};
pub(super) use self::open::{Opened, now_of, open};
use self::packets::{FreedBy, ListFreeFunction};
pub use self::probe::Probe;
use self::program::PathHalf;
pub use self::self_test::{FailedTraffic, SelfTest, Traffic, listed};
pub use self::table::FLOW_PROBES;
pub use self::wanted::Wanted;
use crate::model::event::{Dropped, Event, EventKind, Execs, SourceCapabilities, UnreadablePacket};
pub use crate::model::feature::Feature;
use crate::model::kernel_address::SockAddress;
use crate::model::loss::{LossCause, LostFacts};
use crate::model::pairing::Joiner;
use crate::model::socket_event::Actions;
use crate::model::time::MonotonicTime;
use crate::source::cgroup;

/// The prefix of the names of probe groups.
pub(crate) const GROUP: &str = "socktrail";
/// `AF_INET`, which is the same on all architectures.
pub(super) const AF_INET: u16 = 2;
/// `AF_INET6`, which is the same on all architectures.
const AF_INET6: u16 = 10;

/// The status of a feature: its probe, and why better ones could not be used.
#[derive(Debug)]
pub struct FeatureStatus {
    /// The feature.
    pub feature: Feature,
    /// The probe that serves it, if any.
    pub probe: Option<&'static Probe>,
    /// Why the better probes were not used.
    pub refusals: Vec<Refusal>,
    /// What its samples do not show, because this kernel lacks fields.
    pub lacks: Vec<&'static str>,
    /// Whether this kernel has UDP GRO, which merges received datagrams.
    pub kernel_merges_datagrams: bool,
    /// Whether the self-test's traffic has hit the probe.
    pub hit: bool,
}

/// Why a probe was not installed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The probe's function, given here, is in [`Options::mask`](crate::monitor::Options::mask).
    #[error("{0} is masked")]
    Masked(&'static str),
    /// The self-test's traffic, given here, did not hit the probe on this function, not even after it was installed anew.
    #[error(
        "the probe on {0} was installed, but not hit by {by}: this kernel handles such traffic without calling the function, \
         the compiler has inlined it, or the kernel does not make the probe fire", by = listed(.1)
    )]
    NotHit(&'static str, &'static [Traffic]),
    /// Its filter needs the addresses of functions, but `/proc/kallsyms` hides them, or this kernel lacks the functions.
    #[error(
        "/proc/kallsyms does not show the functions that drop packets: this needs CAP_SYSLOG, kernel.kptr_restrict below 2 \
         and Linux 4.7 or later"
    )]
    AddressesHidden,
    /// The kernel refused it, or the layout lacks a field that it reads.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// All features, each with the probes that can serve it.
pub(crate) fn all_features() -> impl Iterator<Item = &'static (Feature, &'static [Probe])> {
    FLOW_PROBES.iter().chain(SOCKET_EVENT_PROBES)
}

impl Refusal {
    /// The messages of these refusals, in one line.
    pub(crate) fn list(refusals: &[Self]) -> String {
        refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}

impl FeatureStatus {
    /// A feature without a probe.
    pub(super) fn of(feature: Feature) -> Self {
        Self {
            feature,
            probe: None,
            refusals: Vec::new(),
            lacks: Vec::new(),
            kernel_merges_datagrams: false,
            hit: false,
        }
    }

    /// Whether the kernel has none of the functions that would serve it.
    fn has_no_function(&self) -> bool {
        let missing = |refusal: &Refusal| matches!(refusal, Refusal::Kernel(error) if error.kind() == Kind::NoFunction);
        self.refusals.iter().all(missing)
    }

    /// What the feature's probe shows less well than the best probe would, if that matters on this kernel.
    pub fn weakness(&self) -> Option<String> {
        let probe = self.probe?;
        // A probe that is hit before merged datagrams are split is no worse than the best one if the kernel does not merge any.
        let weaker = probe.weaker.filter(|_| self.kernel_merges_datagrams || !probe.before_gro_split);
        let all: Vec<_> = weaker.into_iter().chain(self.lacks.iter().copied()).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Why a feature is lost or served less well.
    pub fn reasons(&self) -> String {
        Refusal::list(&self.refusals)
    }
}

/// The installed probes, with the decoders of their samples.
#[derive(Debug)]
pub struct Probes {
    /// The status of every feature that was wanted, also of those without a probe.
    pub statuses: Vec<FeatureStatus>,
    /// The result of the self-test.
    pub self_test: SelfTest,
    /// The missed hits of each probe before it was attached, and the time at which they were read.
    missed_before: (Vec<socktrail_kprobes::Misses>, MonotonicTime),
    /// The installed probes, in the order of [`Probes::features`].
    installed: Vec<Installed>,
    /// The features whose probes' hits with a null pointer are counted, and how many values are read through it at each.
    faulting: Vec<(Feature, u64)>,
    decoders: Vec<(u16, Box<dyn Decode>)>,
    /// For a recording: the layout of the kernel on which it was made.
    layout: Option<Layout>,
    /// Joins the two halves of an executed file's path, by the thread that executes the file.
    path_joiner: Joiner<program::File, Option<Vec<Vec<u8>>>>,
    /// The kernel function that frees lists of packets. Its address shows which drops are reported by two samples.
    list_free: ListFreeFunction,
    /// The conversations that the kernel counts, or why it does not.
    pub(super) conversations: Result<Arc<Conversations>, Unaccounted>,
    /// What the probes can observe.
    pub(crate) capabilities: SourceCapabilities,
    /// The number of samples that could not be decoded: truncated ones, and packets with headers that are not understood.
    pub unreadable: u64,
}

impl Probes {
    /// Sets the capabilities that follow from the installed probes.
    fn set_capabilities(&mut self, kernel_merges_datagrams: bool) {
        self.capabilities.control_group_moves = self.installed(Feature::ControlGroup).is_some();
        self.capabilities.execs = self.features().map(Feature::shows_execs).max().unwrap_or(Execs::Unseen);
        self.capabilities.totals = self.conversations.is_ok();
        let unclear = |status: &FeatureStatus| status.probe.is_some_and(|probe| probe.driver_drops_unclear);
        self.capabilities.driver_drops_unclear = self.statuses.iter().any(unclear);
        self.capabilities.single_datagrams = !kernel_merges_datagrams || self.see_single_datagrams();
    }

    /// Whether received datagrams are sampled one by one, except those of sockets that have enabled UDP GRO, and a probe shows
    /// which sockets these are.
    fn see_single_datagrams(&self) -> bool {
        self.features().any(|feature| feature == Feature::DatagramOptions)
            && self.statuses.iter().all(|status| status.probe.is_none_or(|probe| !probe.before_gro_split))
    }

    /// Why packets are sampled; `None` if the kernel counts them.
    pub(crate) fn sampled_because(&self) -> Option<&Unaccounted> {
        self.conversations.as_ref().err()
    }

    /// No probes. [`Probes::add_recorded`] adds decoders for samples that come from elsewhere.
    pub fn none() -> Self {
        Self {
            statuses: Vec::new(),
            self_test: SelfTest::default(),
            missed_before: (Vec::new(), MonotonicTime::ZERO),
            installed: Vec::new(),
            faulting: Vec::new(),
            decoders: Vec::new(),
            layout: None,
            path_joiner: Joiner::default(),
            list_free: ListFreeFunction::default(),
            conversations: Err(Unaccounted::Unwanted),
            capabilities: SourceCapabilities::default(),
            unreadable: 0,
        }
    }

    /// No probes, for samples that were recorded on a kernel with this layout. An optional field that the layout lacks is ignored
    /// in samples, even if the recording has a value for it.
    pub fn recorded(layout: Layout) -> Self {
        Self { layout: Some(layout), ..Self::none() }
    }

    /// Adds the decoder for recorded samples of a probe that serves `feature` on `function`.
    ///
    /// # Errors
    /// There is no such probe, or its decoder does not accept the format.
    pub fn add_recorded(&mut self, feature: Feature, function: &str, format: &Format) -> Result<(), String> {
        let of_kprobes =
            all_features().flat_map(|(feature, alternatives)| alternatives.iter().map(move |one| (*feature, one)));
        let all = of_kprobes.chain(cgroup::PROBES.iter().map(|(feature, probe)| (*feature, probe)));
        // Several probes may be on one function: the first whose decoder accepts the format is used. If more than one decoder
        // accepts it, they decode the same.
        let mut decoder = Err("no such probe".to_owned());
        for (_, probe) in all.filter(|(one, probe)| *one == feature && probe.function() == function) {
            let format = self
                .layout
                .as_ref()
                .map_or_else(|| format.clone(), |layout| probe.without_unresolved_fields(format, layout));
            decoder = decoder.or_else(|_| (probe.decoder)(&format).map_err(|error| error.to_string()));
        }
        let decoder = decoder?;
        let id = u16::try_from(format.id).map_err(|_| "an event type above 65535")?;
        self.decoders.push((id, decoder));
        self.decoders.sort_by_key(|(id, _)| *id);
        Ok(())
    }

    /// For each installed probe: its feature, its function, and the format of its samples.
    pub(crate) fn formats(&self) -> Vec<(Feature, &'static str, Format)> {
        let functions = self.statuses.iter().filter_map(|status| Some((status.feature, status.probe?.function())));
        let formats = self.installed.iter().map(|installed| installed.format().clone());
        functions.zip(formats).map(|((feature, function), format)| (feature, function, format)).collect()
    }

    /// The installed probe of a feature, if there is one.
    pub(crate) fn installed(&self, feature: Feature) -> Option<&Installed> {
        let mut features = self.features();
        self.installed.get(features.position(|one| one == feature)?)
    }

    /// The hits of probes at which a pointer was null, as far as they are counted.
    fn faulted_hits(&self, rings: &Rings) -> Vec<FaultedHits> {
        let of = |&(feature, reads): &(Feature, u64)| {
            let hits = self.installed(feature).map_or(Ok(0), |installed| rings.counted_hits(installed));
            let hits = hits.inspect_err(|error| tracing::debug!(%error, "cannot read how many hits have faulted"));
            FaultedHits { feature, reads, hits: hits.unwrap_or(0) }
        };
        self.faulting.iter().map(of).collect()
    }

    /// Whether at least one wanted kind of flow or socket event can be seen; true if neither is wanted. Features that report only
    /// processes do not count. Features that report changes of state count only if nothing else is wanted: otherwise such a
    /// change is an event only for sockets that are known from their calls.
    pub(crate) fn can_show_wanted(&self, wanted: Wanted<'_>) -> bool {
        let only_states = wanted.socket_events == Actions::STATE;
        let flows = |feature: Feature| wanted.flows && feature.shows_flows();
        // Sensors, which alone ask for states, report sockets. A creation that failed is nothing to them.
        let counts_failures = !wanted.socket_events.intersects(Actions::STATE);
        let events = |feature: Feature| {
            let is_shown = counts_failures || feature != Feature::CreateResult;
            (is_shown && wanted.socket_events.intersects(feature.shows_actions()))
                || (only_states && feature.reports_state_changes())
        };
        (!wanted.flows && wanted.socket_events.is_empty())
            || self.features().any(|feature| flows(feature) || events(feature))
    }

    /// The features that have a probe.
    pub fn features(&self) -> impl Iterator<Item = Feature> {
        self.statuses.iter().filter(|status| status.probe.is_some()).map(|status| status.feature)
    }

    /// For each feature, the number of hits at which the kernel did not run its programs, as far as the kernel says so.
    pub(super) fn skipped(&self, rings: &Rings) -> BTreeMap<Feature, u64> {
        let counting = self.conversations.iter().flat_map(|conversations| conversations.skipped());
        let at_hooks = self.features().zip(&self.installed);
        let at_hooks = at_hooks.filter_map(|(feature, installed)| Some((feature, rings.skipped(installed)?)));
        let mut all = BTreeMap::new();
        for (feature, hits) in counting.chain(at_hooks) {
            *all.entry(feature).or_default() += hits;
        }
        all
    }

    /// Adds a probe that serves a feature, or the reason why it was refused.
    pub(super) fn add(
        &mut self,
        mut status: FeatureStatus,
        probe: &'static Probe,
        installed: Result<(Installed, Box<dyn Decode>), Error>,
    ) {
        match installed {
            Ok((installed, decoder)) => {
                status.probe = Some(probe);
                self.decoders.push((installed.id() as u16, decoder));
                self.decoders.sort_by_key(|(id, _)| *id);
                self.installed.push(installed);
            }
            Err(error) => status.refusals.push(error.into()),
        }
        self.statuses.push(status);
    }

    /// Stops counting in the kernel: from now on every packet is a sample. What has been counted can still be read.
    pub(crate) fn stop_counting(&self, rings: &mut Rings) {
        let features = self.conversations.iter().flat_map(|conversations| conversations.counting());
        features.filter_map(|feature| self.installed(feature)).for_each(|installed| rings.end_program(installed));
    }

    /// The event that a record stands for, if any.
    #[inline]
    pub fn event(&mut self, record: &Record<'_>) -> Option<Event> {
        match *record {
            Record::Sample { time, pid, tid, id, raw, .. } => {
                let time = MonotonicTime::from_nanos(time);
                let at = self.decoders.binary_search_by_key(&id, |(id, _)| *id).ok()?;
                match self.decoders[at].1.decode(raw) {
                    Decoded::Event(kind) => {
                        // New credentials are the first event of an exec, so a waiting half belongs to an earlier one.
                        if matches!(kind, EventKind::Credentials(_)) {
                            self.path_joiner.forget(tid);
                        }
                        Some(Event { time, pid, tid, kind })
                    }
                    Decoded::Half(half) => {
                        let (file, mounts) = match half {
                            PathHalf::File(file) => self.path_joiner.join_left(tid, file),
                            PathHalf::Mounts(mounts) => self.path_joiner.join_right(tid, mounts),
                        }?;
                        Some(Event { time, pid, tid, kind: EventKind::ExecutedFile(Box::new(file.at(mounts))) })
                    }
                    Decoded::MaybeDuplicateDrop(dropped, freed_by) => {
                        let kind = EventKind::Dropped(dropped);
                        (!self.list_free.has_reported(freed_by)).then_some(Event { time, pid, tid, kind })
                    }
                    Decoded::Nothing => None,
                    Decoded::Unreadable(unreadable) => {
                        self.unreadable += 1;
                        let kind = EventKind::UnreadablePacket(unreadable?);
                        Some(Event { time, pid, tid, kind })
                    }
                }
            }
            Record::Lost { since, time, cpu, count } => {
                self.path_joiner.clear();
                let [time, since] = [time, since].map(MonotonicTime::from_nanos);
                let kind = EventKind::Lost { cause: LossCause::Ring { cpu }, count, since, facts: LostFacts::ALL };
                Some(Event { time, pid: 0, tid: 0, kind })
            }
            _ => None,
        }
    }
}

/// Major and minor number of the kernel's release; `u32::MAX` for both if they cannot be read.
pub(super) fn release() -> (u32, u32) {
    let name = nix::sys::utsname::uname();
    let release = name.as_ref().ok().and_then(|name| name.release().to_str()).unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    numbers.next().zip(numbers.next()).unwrap_or((u32::MAX, u32::MAX))
}

impl Probe {
    /// The format without the optional fields that this layout cannot resolve.
    fn without_unresolved_fields(&self, format: &Format, layout: &Layout) -> Format {
        let is_unresolved = |name: &str| {
            let fetch = self.fetches.iter().find(|fetch| fetch.optional && fetch.name == name);
            fetch.is_some_and(|fetch| !fetch.is_resolved(self.function(), layout))
        };
        let mut format = format.clone();
        format.fields.retain(|field| !is_unresolved(&field.name));
        format
    }

    /// The name of the kernel function or tracepoint that it is attached to.
    pub const fn function(&self) -> &'static str {
        match self.target {
            Target::Kprobe { function } | Target::Kretprobe { function, .. } => function,
            Target::Tracepoint { name, .. } => name,
            Target::Hook(hook) => hook.name(),
        }
    }
}

/// The result of decoding a sample.
#[derive(Debug)]
pub(super) enum Decoded {
    /// An event.
    Event(EventKind),
    /// Half of an event; another sample has the other half.
    Half(PathHalf),
    /// A packet was dropped. Another sample may have reported the drop already, as one of a list.
    MaybeDuplicateDrop(Dropped, FreedBy),
    /// Nothing of interest.
    Nothing,
    /// The sample could not be decoded. Its socket or packet may be known.
    Unreadable(Option<UnreadablePacket>),
}

/// A sample, and what it means.
pub(super) trait Interpret: Sample + fmt::Debug {
    /// What the sample means. `raw` is the record from which it was decoded.
    fn interpret(&self, raw: &[u8]) -> Decoded;
}

impl Decoded {
    /// An event of the `struct sock` at this address; [`Decoded::Nothing`] if the address is null.
    pub(super) fn of_sock(address: u64, kind: impl FnOnce(SockAddress) -> EventKind) -> Self {
        SockAddress::new(address).map_or(Self::Nothing, |sock| Self::Event(kind(sock)))
    }
}

/// Decodes one kind of record.
pub(super) trait Decode: fmt::Debug + Send {
    fn decode(&self, raw: &[u8]) -> Decoded;
}

impl<S: Interpret> Decode for Decoder<S>
where
    Self: fmt::Debug,
{
    fn decode(&self, raw: &[u8]) -> Decoded {
        match Self::decode(self, raw) {
            Some(sample) => sample.interpret(raw),
            None => Decoded::Unreadable(None),
        }
    }
}

/// An IPv6 address from its two halves, if both were sampled.
pub(super) fn ipv6_if_known(halves: [Option<u64>; 2]) -> Option<Ipv6Addr> {
    let [high, low] = halves;
    Some(ipv6_address([high?, low?]))
}

/// An IPv6 address from its two halves, in memory order.
pub(super) fn ipv6_address(halves: [u64; 2]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&halves[0].to_ne_bytes());
    octets[8..].copy_from_slice(&halves[1].to_ne_bytes());
    Ipv6Addr::from(octets)
}
