//! The command line of `guest-tests` in a guest.

use std::time::Duration;

use anyhow::{Result, bail};
use socktrail_vm::{
    ACCOUNTING_VARIABLE, AS_OF_VARIABLE, BACKEND_VARIABLE, TESTS_VARIABLE, TORTURE_SECONDS_VARIABLE,
    TORTURE_SEED_VARIABLE, TORTURE_WITHOUT_VARIABLE,
};

use super::boots::Boot;
use crate::options::TestOptions;

/// How long `torture::` makes random traffic.
const TORTURE: Duration = Duration::from_secs(120);
/// The same with `--long`.
const LONG_TORTURE: Duration = Duration::from_secs(60 * 60);

/// The shell command that runs the tests in the guest.
pub(super) fn command(boot: Boot, options: &TestOptions) -> Result<String> {
    let filter = options.filter.as_deref().unwrap_or_default();
    if !filter.chars().all(|c| c.is_ascii_alphanumeric() || "_:,".contains(c)) {
        bail!("`{filter}` is not a part of a test's name");
    }
    let prefixes = filter.contains(',').then(|| filter.trim_end_matches(',').replace(',', " "));
    let names = prefixes.or_else(|| boot.prefixes());
    let mut command = names.map_or_else(String::new, |names| format!("{TESTS_VARIABLE}='{names}' "));
    let torture = if options.long { LONG_TORTURE } else { TORTURE };
    command.push_str(&format!("{TORTURE_SECONDS_VARIABLE}={} ", torture.as_secs()));
    if let Some(release) = boot.as_of {
        command.push_str(&format!("{AS_OF_VARIABLE}={release} "));
    }
    if let Some(how) = &options.accounting {
        command.push_str(&format!("{ACCOUNTING_VARIABLE}={how} "));
    }
    if let Some(backend) = &options.backend {
        command.push_str(&format!("{BACKEND_VARIABLE}={backend} "));
    }
    if let Some(seed) = options.seed {
        command.push_str(&format!("{TORTURE_SEED_VARIABLE}={seed} "));
    }
    if let Some(bad) = options.without.iter().find(|kind| !kind.chars().all(|c| c.is_ascii_lowercase() || c == '-')) {
        bail!("`{bad}` is not a kind of random traffic");
    }
    if !options.without.is_empty() {
        command.push_str(&format!("{TORTURE_WITHOUT_VARIABLE}={} ", options.without.join(",")));
    }
    command.push_str("guest-tests");
    if options.long {
        command.push_str(" --include-ignored");
    }
    if !filter.contains(',') && !filter.is_empty() {
        command.push(' ');
        command.push_str(filter);
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::super::boots::TestSet;
    use super::super::testing::{boot, options};
    use super::*;
    use crate::matrix::{Arch, Kernel};
    use crate::options::Release;

    #[test]
    fn options_become_the_command_and_shell_syntax_is_refused() {
        let of = |filter: &str| TestOptions { filter: Some(filter.to_owned()), ..options(&[], None) };
        let [all, kernels] = [TestSet::All, TestSet::Kernels].map(|tests| boot(Kernel::V6_1, Arch::X86_64, tests));
        let one = of("boot::lo");
        assert_eq!(command(all, &one).unwrap(), "TORTURE_SECONDS=120 guest-tests boot::lo");
        let long = TestOptions { long: true, ..of("boot::lo") };
        let command_of_long = "TORTURE_SECONDS=3600 guest-tests --include-ignored boot::lo";
        assert_eq!(command(all, &long).unwrap(), command_of_long);
        let again =
            TestOptions { seed: Some(7), without: vec!["udp-many".into(), "late".into()], ..options(&[], None) };
        let repeated = "GUEST_TESTS='boot:: layout:: flows:: events:: sensors::' TORTURE_SECONDS=120 \
                        TORTURE_SEED=7 TORTURE_WITHOUT=udp-many,late guest-tests";
        assert_eq!(command(kernels, &again).unwrap(), repeated);
        let counted = TestOptions { accounting: Some("kernel".into()), ..options(&[], None) };
        assert!(command(all, &counted).unwrap().contains("ACCOUNTING=kernel "));
        let older = Boot { as_of: Some(Release(3, 13)), ..all };
        assert_eq!(command(older, &one).unwrap(), "TORTURE_SECONDS=120 AS_OF=3.13 guest-tests boot::lo");
        let names = |release| Boot { as_of: Some(release), tests: TestSet::OlderKernel, ..all }.prefixes().unwrap();
        assert!(names(Release(4, 4)).contains("-events::thread_names") && !names(Release(4, 18)).contains('-'));
        assert!(command(all, &of("x; reboot")).is_err());
        assert!(command(all, &TestOptions { without: vec!["x; reboot".into()], ..one }).is_err());
    }
}
