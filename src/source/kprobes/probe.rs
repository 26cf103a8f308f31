//! A probe that can serve a feature: its function, filter and sample, and its weakness in comparison with other probes.

use socktrail_kprobes::{Decoder, Error, Fetch, Field, Format, Hook, Target};

use super::self_test::Traffic;
use super::{Decode, Interpret};

/// A probe that can serve a feature.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Where it is installed.
    pub target: Target<'static>,
    /// The trace event filter, which chooses the hits that become samples.
    pub filter: Option<&'static str>,
    /// At a hook: a hit becomes a sample only if each of these fields has one of the values. The fields are those of the sample, or
    /// [`cgroup::FURTHER_FIELDS`](crate::source::cgroup).
    pub(in crate::source) conditions: &'static [(&'static str, &'static [i32])],
    /// The filter to use instead if only datagrams are wanted.
    pub datagrams: Option<&'static str>,
    /// A filter that excludes packets from a loopback address to itself, as far as filters can express that.
    pub not_loopback: Option<&'static str>,
    /// Its fetch arguments.
    pub fetches: &'static [Fetch<'static>],
    /// The fields of its samples.
    pub(super) fields: &'static [Field],
    /// The field that is a pointer, and null at some hits.
    pub(super) nullable: Option<&'static str>,
    /// What it shows less well than the probes that precede it in the table.
    pub weaker: Option<&'static str>,
    /// Whether it is weaker only because its function runs before datagrams that UDP GRO has merged are split again.
    pub(super) before_gro_split: bool,
    /// Whether its samples cannot tell packets that a driver drops from packets that are dropped before they reach a driver.
    pub(super) driver_drops_unclear: bool,
    /// The first kernel release (major, minor) whose samples can be decoded.
    pub(super) since: (u32, u32),
    /// The self-test's traffic that must hit the probe on every kernel.
    pub(super) hit_by: &'static [Traffic],
    pub(in crate::source) decoder: fn(&Format) -> Result<Box<dyn Decode>, Error>,
}

impl Probe {
    pub(in crate::source) const fn at<S: Interpret + 'static>(target: Target<'static>) -> Self {
        Self {
            target,
            filter: None,
            conditions: &[],
            datagrams: None,
            not_loopback: None,
            fetches: S::FETCHES,
            fields: S::FIELDS,
            nullable: None,
            weaker: None,
            before_gro_split: false,
            driver_drops_unclear: false,
            since: (0, 0),
            hit_by: &[],
            decoder: |format| Ok(Box::new(Decoder::<S>::new(format)?)),
        }
    }

    pub(super) const fn entry<S: Interpret + 'static>(function: &'static str) -> Self {
        Self::at::<S>(Target::Kprobe { function })
    }

    pub(super) const fn exit<S: Interpret + 'static>(function: &'static str) -> Self {
        Self::at::<S>(Target::Kretprobe { function, maxactive: Some(MAXACTIVE) })
    }

    pub(in crate::source) const fn hook<S: Interpret + 'static>(hook: Hook) -> Self {
        Self::at::<S>(Target::Hook(hook))
    }

    /// Sets the conditions of a hook.
    pub(in crate::source) const fn when(mut self, conditions: &'static [(&'static str, &'static [i32])]) -> Self {
        self.conditions = conditions;
        self
    }

    pub(super) const fn not_loopback(mut self, filter: &'static str) -> Self {
        self.not_loopback = Some(filter);
        self
    }

    pub(super) const fn before_gro_split(mut self) -> Self {
        self.before_gro_split = true;
        self.with_weakness("received datagrams that were merged by GRO count as one")
    }

    pub(super) const fn with_weakness(mut self, weaker: &'static str) -> Self {
        self.weaker = Some(weaker);
        self
    }

    pub(super) const fn with_driver_drops(mut self) -> Self {
        self.driver_drops_unclear = true;
        self.with_weakness(DRIVER_DROPS_UNCLEAR)
    }

    pub(super) const fn since(mut self, major: u32, minor: u32) -> Self {
        self.since = (major, minor);
        self
    }

    /// Limits it to packets of TCP and UDP.
    pub(super) const fn of_tcp_or_udp(mut self) -> Self {
        self.datagrams = Some("protocol==17");
        self.only("protocol==6||protocol==17")
    }

    /// Notes that this field is a pointer, and null at some hits.
    pub(super) const fn nullable(mut self, field: &'static str) -> Self {
        self.nullable = Some(field);
        self
    }

    /// How many of the samples' fields are read through the [nullable](Self::nullable) pointer.
    pub(super) fn reads_through_nullable(&self, format: &Format) -> usize {
        let template = |name| self.fetches.iter().find(|fetch| fetch.name == name).map(|fetch| &*fetch.template);
        let Some(pointer) = self.nullable.and_then(template) else { return 0 };
        let through = format!("({pointer})");
        let reads = |fetch: &&Fetch<'_>| fetch.template.contains(&through) && format.field(&fetch.name).is_some();
        self.fetches.iter().filter(reads).count()
    }

    /// Sets the traffic of the self-test that must hit it, on every kernel where it is used.
    pub(super) const fn hit_by(mut self, traffic: &'static [Traffic]) -> Self {
        self.hit_by = traffic;
        self
    }

    /// Notes that compilers inline its function into some callers. If it is inlined into all of them, the probe is not hit.
    pub(super) const fn unless_inlined(self) -> Self {
        self.with_weakness("packets are missed if their sending function has this one inlined")
    }

    pub(super) const fn only(mut self, filter: &'static str) -> Self {
        self.filter = Some(filter);
        self
    }
}

/// The weakness of probes that do not know the functions that drop packets.
const DRIVER_DROPS_UNCLEAR: &str = "packets that a driver drops are subtracted, like those that a device's filter or a removed queue \
                                    drops, and their flows are marked (dropped_locally)";

/// The maximum number of tasks inside a function whose return is probed. Accepts may block without limit.
const MAXACTIVE: u32 = 1024;
