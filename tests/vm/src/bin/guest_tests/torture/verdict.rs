//! The result of a round: counts for the summary, and faults.

use std::collections::BTreeMap;
use std::fmt;

/// The result of a round.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) counts: Counts,
    pub(super) faults: Vec<Fault>,
}

/// Counts for the summary.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) flows: usize,
    pub(super) documents: usize,
    pub(super) owners_right: usize,
    pub(super) owners_unknown: usize,
    pub(super) names_right: usize,
    pub(super) names_missing: usize,
    pub(super) names_not_seen: usize,
    pub(super) counters_equal: usize,
    pub(super) within_bounds: usize,
    pub(super) interim_right: usize,
    pub(super) subflows: usize,
    pub(super) subflows_not_reported: usize,
    pub(super) subflows_failed: usize,
    pub(super) marked: BTreeMap<String, usize>,
    /// Hits that each probe missed, as the monitor counted them.
    pub(super) missed: BTreeMap<String, u64>,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flows, documents, owners_right, owners_unknown, .. } = self;
        let Self { names_right, names_missing, counters_equal, within_bounds, marked, .. } = self;
        let Self { names_not_seen, interim_right, subflows, subflows_not_reported, subflows_failed, .. } = self;
        let Self { missed, .. } = self;
        write!(f, "{flows} flows, {documents} documents; owners: {owners_right} right, {owners_unknown} unknown; ")?;
        write!(
            f,
            "names: {names_right} right, {names_missing} missing, {names_not_seen} not visible to the monitor; "
        )?;
        write!(
            f,
            "counters: {counters_equal} equal, {within_bounds} explained by marks or late packets, {interim_right} right in "
        )?;
        write!(f, "interim documents; subflows: {subflows}, {subflows_not_reported} not reported by a workload, ")?;
        write!(f, "{subflows_failed} failed; ")?;
        write!(f, "marked: {marked:?}; hits missed: {missed:?}")
    }
}

/// A difference between the documents and the reports or captures.
#[derive(Debug)]
pub(super) struct Fault {
    /// A short description; faults with the same one are counted together.
    pub(super) kind: String,
    /// The reports, captured counts and documents.
    pub(super) text: String,
}
