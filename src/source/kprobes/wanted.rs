//! What the probes should observe on this kernel.

use socktrail_guess::Layout;
use socktrail_kprobes::{Resolver, Term};

use super::{Feature, KernelAccounting, Rules, Unaccounted, release};
use crate::model::filter::Filter;
use crate::model::socket_event::Actions;
use crate::model::time::nanos;

/// The name in `socket.mask` that switches off counting in the kernel.
const BPF: &str = "bpf";
/// The name that templates use for `transport_header` and `network_header` together, so that one read gets both. It resolves only
/// if they are adjacent, as in all known kernels.
const BOTH_HEADERS: &str = "sk_buff.headers";

/// What the probes should observe.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The layout of the kernel's structures.
    pub layout: &'a Layout,
    /// Whether to observe IPv6.
    pub ipv6: bool,
    /// Whether to observe flows.
    pub flows: bool,
    /// The calls that become socket events.
    pub socket_events: Actions,
    /// Functions to ignore, as if the kernel did not have them.
    pub mask: &'a [String],
    /// Which packets to observe. Programs apply it as far as they can; the state machine applies all of it.
    pub filter: &'a Filter,
    /// How the kernel counts packets; `None` to sample each packet.
    pub accounting: Option<KernelAccounting>,
}

impl Wanted<'_> {
    /// The rules by which programs count packets, and for how many conversations. See [`Rules`] for the arguments.
    ///
    /// # Errors
    /// The user does not want that.
    pub(in crate::source) fn rules(
        &self,
        gso_head_len: u32,
        consumed: Option<u32>,
    ) -> Result<(Rules, u32), Unaccounted> {
        let KernelAccounting { pause, conversations } = self.accounting.ok_or(Unaccounted::Unwanted)?;
        if self.masks(BPF) {
            return Err(Unaccounted::Masked);
        }
        let rules = Rules { pause_nanos: nanos(pause), gso_head_len, filter: self.filter.clone(), consumed };
        Ok((rules, conversations))
    }

    /// Whether to ignore this function, as if the kernel did not have it.
    pub(super) fn masks(&self, function: &str) -> bool {
        self.mask.iter().any(|masked| masked == function)
    }

    /// Whether anything that is wanted needs this feature, and the kernel is new enough for it.
    pub(super) fn wants(&self, feature: Feature) -> bool {
        if release() < feature.since() {
            return false;
        }
        match feature.needed_by_actions() {
            Some(actions) => self.socket_events.intersects(actions),
            None => {
                let states = feature.reports_state_changes() && self.socket_events.intersects(Actions::STATE);
                (self.ipv6 || !feature.is_ipv6()) && (self.flows || states || feature.reports_processes())
            }
        }
    }
}

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
