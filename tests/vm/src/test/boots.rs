//! Which guests `vm test` boots, and which tests run in each.

use std::fmt;

use crate::matrix::{Arch, Kernel, MATRIX};
use crate::options::{Release, TestOptions};

/// One guest, and the tests that run in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Boot {
    pub(super) kernel: Kernel,
    pub(super) arch: Arch,
    pub(super) tests: TestSet,
    /// An older release: Socktrail behaves as if the kernel were of it (`--as-of`).
    pub(super) as_of: Option<Release>,
}

impl Boot {
    /// The prefixes of the names of tests to run, or with a `-` of those to leave out; `None` for all tests.
    pub(super) fn prefixes(&self) -> Option<String> {
        let prefixes = self.tests.prefixes()?.to_owned();
        // Before Linux 4.8 samples have no thread name.
        let without =
            if self.as_of.is_some_and(|release| release < Release(4, 8)) { " -events::thread_names" } else { "" };
        Some(prefixes + without)
    }

    /// The tests that run in it, in words.
    pub(super) fn name(&self) -> String {
        let as_of = self.as_of.map_or_else(String::new, |release| format!("as of {release}: "));
        format!("{as_of}{}", self.tests.name())
    }
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {} ({}): {}", self.kernel, self.arch, self.name())
    }
}

/// A set of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TestSet {
    /// All tests.
    All,
    /// The tests that compare much traffic with captures, about half of the time.
    Captures,
    /// All others.
    AllButCaptures,
    /// The tests that depend on the kernel most: layout, flows, socket events.
    Kernels,
    /// The tests that work on a kernel booted without IPv6.
    WithoutIpv6,
    /// The tests of features that older kernels have, too.
    OlderKernel,
}

impl TestSet {
    const fn name(self) -> &'static str {
        match self {
            Self::All => "every test",
            Self::Captures => "captures, random traffic",
            Self::AllButCaptures => "every test but captures and random traffic",
            Self::Kernels => "boot, layout, flows, events, sensors",
            Self::WithoutIpv6 => "without IPv6",
            Self::OlderKernel => "flows, owners, threads, ends, programs, events, sensors",
        }
    }

    /// The prefixes of their names, or with a `-` of those to leave out; `None` for all tests.
    const fn prefixes(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Captures => Some("capture:: tunnels:: mptcp:: torture::"),
            Self::AllButCaptures => Some("-capture:: -tunnels:: -mptcp:: -torture::"),
            Self::Kernels => Some("boot:: layout:: flows:: events:: sensors::"),
            Self::WithoutIpv6 => Some(
                "boot::loopback_v4 layout:: flows::curl_over_ipv4 flows::curl_of_a_normal_user_over_ipv4 \
                 flows::udp_over_ipv4 flows::a_refused_connect_over_ipv4 flows::a_program_that_lives_for_milliseconds \
                 flows::no_flow",
            ),
            // Without the tests of what the real kernel does and older ones do not, such as UDP GRO.
            Self::OlderKernel => Some(
                "flows::curl flows::udp flows::long flows::arguments flows::empty flows::a_refused flows::a_pro \
                 flows::a_server flows::no_flow owners:: threads:: ends::a_connect_in ends::a_connection \
                 ends::no_flow programs::executables programs::arguments events:: sensors::",
            ),
        }
    }

    pub(super) const fn kernel_arguments(self) -> Option<&'static str> {
        match self {
            Self::All | Self::Captures | Self::AllButCaptures | Self::Kernels | Self::OlderKernel => None,
            Self::WithoutIpv6 => Some("ipv6.disable=1"),
        }
    }
}

/// The older releases that are tested by default (`--as-of`): one before arrays in probes, and the oldest.
const OLDER: [Release; 2] = [Release(4, 18), Release(3, 13)];

/// Kernels that are left out by default: their series and their architecture are tested without them.
const WITH_FULL_ONLY: [(Kernel, Arch); 2] = [(Kernel::V6_1, Arch::Aarch64), (Kernel::V5_10, Arch::I686)];

/// The guests to boot. Those that take longest come first, so that none runs alone at the end.
///
/// By default not every test runs on every kernel: that takes hours on two processors, too long for a check before each
/// commit. `--kernel`, `--arch` and `--full` run every test. A filter without a kernel boots one guest.
pub(super) fn boots(options: &TestOptions) -> Vec<Boot> {
    let boot = |(kernel, arch), tests| Boot { kernel, arch, tests, as_of: options.as_of };
    let first = MATRIX[0];
    let wanted: Vec<_> = if !options.kernels.is_empty() {
        let arch = options.arch.unwrap_or(Arch::X86_64);
        options.kernels.iter().map(|&kernel| (kernel, arch)).collect()
    } else if options.full || options.arch.is_some() {
        MATRIX.iter().copied().filter(|&(_, arch)| options.arch.is_none_or(|wanted| wanted == arch)).collect()
    } else if options.filter.is_some() || options.as_of.is_some() {
        vec![first]
    } else {
        return default_boots();
    };
    if options.filter.is_some() {
        return wanted.into_iter().map(|machine| boot(machine, TestSet::All)).collect();
    }
    if options.as_of.is_some() {
        return wanted.into_iter().map(|machine| boot(machine, TestSet::OlderKernel)).collect();
    }
    let halves = [TestSet::AllButCaptures, TestSet::Captures];
    let all = wanted.iter().flat_map(|&machine| halves.map(|half| boot(machine, half)));
    all.chain(wanted.contains(&first).then(|| boot(first, TestSet::WithoutIpv6))).collect()
}

/// The guests without options that choose others.
fn default_boots() -> Vec<Boot> {
    let boot = |(kernel, arch), tests| Boot { kernel, arch, tests, as_of: None };
    let first = MATRIX[0];
    let mut boots = vec![boot(first, TestSet::AllButCaptures), boot(first, TestSet::Captures)];
    boots.extend(OLDER.map(|release| Boot { as_of: Some(release), ..boot(first, TestSet::OlderKernel) }));
    let others = MATRIX[1..].iter().filter(|machine| !WITH_FULL_ONLY.contains(machine));
    boots.extend(others.map(|&machine| boot(machine, TestSet::Kernels)));
    boots.push(boot(first, TestSet::WithoutIpv6));
    boots
}

#[cfg(test)]
mod tests {
    use super::super::testing::{boot, options};
    use super::*;

    #[test]
    fn by_default_one_kernel_gets_every_test_and_each_series_and_architecture_some() {
        let all = boots(&options(&[], None));
        let [first, second] =
            [TestSet::AllButCaptures, TestSet::Captures].map(|half| boot(Kernel::V6_1, Arch::X86_64, half));
        assert_eq!(all[..2], [first, second]);
        for (release, boot) in OLDER.iter().zip(&all[2..]) {
            assert_eq!(*boot, Boot { tests: TestSet::OlderKernel, as_of: Some(*release), ..first });
        }
        for &(kernel, arch) in MATRIX {
            assert!(all.iter().any(|boot| boot.kernel == kernel), "{kernel}");
            assert!(all.iter().any(|boot| boot.arch == arch), "{arch}");
        }
        assert_eq!(all.last(), Some(&boot(Kernel::V6_1, Arch::X86_64, TestSet::WithoutIpv6)));
        let full = boots(&TestOptions { full: true, ..options(&[], None) });
        for half in [TestSet::AllButCaptures, TestSet::Captures] {
            assert_eq!(full.iter().filter(|boot| boot.tests == half).count(), MATRIX.len());
        }
    }

    #[test]
    fn options_choose_kernels_and_tests() {
        let halves = |kernel, arch| [TestSet::AllButCaptures, TestSet::Captures].map(|half| boot(kernel, arch, half));
        assert_eq!(boots(&options(&[Kernel::V5_10], None)), halves(Kernel::V5_10, Arch::X86_64));
        let arm = Some(Arch::Aarch64);
        let named = boots(&options(&[Kernel::V6_12, Kernel::V6_1], arm));
        assert_eq!(named, [Kernel::V6_12, Kernel::V6_1].map(|kernel| halves(kernel, Arch::Aarch64)).concat());
        assert!(boots(&options(&[], arm)).iter().all(|boot| boot.arch == Arch::Aarch64));
        let filtered = TestOptions { filter: Some("x".into()), ..options(&[], None) };
        let first = boot(Kernel::V6_1, Arch::X86_64, TestSet::All);
        assert_eq!(boots(&filtered), [first]);
        let as_of = Some(Release(4, 18));
        assert_eq!(boots(&TestOptions { as_of, ..filtered }), [Boot { as_of, ..first }]);
        let older = TestOptions { as_of, ..options(&[Kernel::V6_12], None) };
        let only = Boot { kernel: Kernel::V6_12, tests: TestSet::OlderKernel, as_of, ..first };
        assert_eq!(boots(&older), [only]);
    }

    #[test]
    fn captures_and_all_but_captures_are_all_tests() {
        let [first, second] = [TestSet::Captures, TestSet::AllButCaptures].map(|half| half.prefixes().unwrap());
        let without = first.split(' ').map(|beginning| format!("-{beginning}")).collect::<Vec<_>>().join(" ");
        assert_eq!(second, without);
    }
}
