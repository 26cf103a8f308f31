//! Makes a newer kernel behave like an older one, as far as that is possible: for tests.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use socktrail_guess::LayoutSource;

use super::Options;

/// The functions and abilities that Linux has since a release, by their names in [`Options::mask`].
///
/// `__sys_connect` and similar functions are left out. Before 4.17 they are called `SyS_connect`, with the same arguments, and a
/// newer kernel has no other function in their place.
const SINCE: &[(Release, &[&str])] = &[
    (Release(4, 1), &["use_clockid"]),
    (Release(4, 2), &["ip_do_fragment"]),
    (Release(4, 7), &["rtnl_kfree_skbs"]),
    (Release(4, 8), &["comm"]),
    (Release(4, 9), &["cgroup_attach_task"]),
    (Release(4, 12), &["maxactive"]),
    (Release(4, 20), &["arrays", "arguments"]),
    (Release(5, 0), &["udp_queue_rcv_one_skb", "udpv6_queue_rcv_one_skb"]),
    (Release(5, 3), &["user_memory"]),
    (Release(5, 4), &["constants"]),
    (Release(5, 5), &["bpf"]),
    (Release(5, 7), &["cgroup_post_fork"]),
    (Release(5, 12), &["mptcp_event"]),
    (Release(5, 17), &["kfree_skb_reason"]),
    (Release(5, 18), &["kfree_skb_list_reason"]),
    (Release(6, 5), &["security_mptcp_add_subflow"]),
    (Release(6, 11), &["sk_skb_reason_drop"]),
];

/// The first release with BTF that a program can read (`/sys/kernel/btf/vmlinux`).
const BTF_SINCE: Release = Release(5, 4);

/// A release of Linux: major and minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Release(pub u32, pub u32);

/// The error of [`Release::from_str`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a release has two numbers, as in 4.18")]
pub struct ParseReleaseError;

impl Release {
    /// The functions and abilities that only newer kernels have.
    fn lacks(self) -> impl Iterator<Item = &'static str> {
        SINCE.iter().filter(move |(since, _)| self < *since).flat_map(|(_, names)| names.iter().copied())
    }
}

impl Options {
    /// Masks the functions and abilities that a kernel of this release does not have. Functions that only the older kernel has
    /// cannot be added, so more may be lost than on that kernel.
    pub fn behave_as_of(&mut self, release: Release) {
        self.mask.extend(release.lacks().map(str::to_owned));
        if self.source == LayoutSource::Auto && release < BTF_SINCE {
            self.source = LayoutSource::Guess;
        }
    }
}

impl FromStr for Release {
    type Err = ParseReleaseError;

    fn from_str(text: &str) -> Result<Self, ParseReleaseError> {
        let (major, minor) = text.split_once('.').ok_or(ParseReleaseError)?;
        Ok(Self(major.parse().map_err(|_| ParseReleaseError)?, minor.parse().map_err(|_| ParseReleaseError)?))
    }
}

impl TryFrom<String> for Release {
    type Error = ParseReleaseError;

    fn try_from(text: String) -> Result<Self, ParseReleaseError> {
        text.parse()
    }
}

impl From<Release> for String {
    fn from(release: Release) -> Self {
        release.to_string()
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_release_lacks_more() {
        let mask = |release: &str| {
            let mut options = Options::default();
            options.behave_as_of(release.parse().unwrap());
            (options.mask.len(), options.source)
        };
        let (of_3_13, of_4_18, of_6_10) = (mask("3.13"), mask("4.18"), mask("6.10"));
        assert!(of_3_13.0 > of_4_18.0 && of_4_18.0 > of_6_10.0);
        assert_eq!((of_3_13.1, of_4_18.1, of_6_10.1), (LayoutSource::Guess, LayoutSource::Guess, LayoutSource::Auto));
        let lacks: Vec<_> = Release(6, 10).lacks().collect();
        assert_eq!(lacks, ["sk_skb_reason_drop"]);
        assert!(Release(4, 18).lacks().any(|name| name == "arrays"));
        assert!(!Release(4, 20).lacks().any(|name| name == "arrays"));
    }

    #[test]
    fn a_release_is_two_numbers() {
        assert_eq!("4.18".parse(), Ok(Release(4, 18)));
        for text in ["4", "", "4.", "4.18.0", "v4.18", "4.-1"] {
            assert_eq!(text.parse::<Release>(), Err(ParseReleaseError), "{text}");
        }
    }

    /// Any other name in [`Options::mask`] would have no effect.
    #[test]
    fn every_masked_name_is_a_probed_function_or_an_ability() {
        use crate::source::kprobes::{FLOW_PROBES, Probe, SOCKET_EVENT_PROBES};
        let functions: Vec<_> = FLOW_PROBES
            .iter()
            .chain(SOCKET_EVENT_PROBES)
            .flat_map(|(_, probes)| probes.iter().map(Probe::function))
            .collect();
        const ABILITIES: [&str; 9] = [
            "use_clockid",
            "comm",
            "maxactive",
            "arrays",
            "arguments",
            "user_memory",
            "constants",
            "rtnl_kfree_skbs",
            "bpf",
        ];
        for name in Release(0, 0).lacks() {
            assert!(functions.contains(&name) || ABILITIES.contains(&name), "{name}");
        }
    }
}
