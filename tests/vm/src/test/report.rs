//! The table that `vm test` prints at its end.

use std::time::Duration;

use super::result::{Completed, Counts, GuestResult, Verdict};

/// A line for each guest, then the summary line of `cargo test`, then the numbers of passed and failed tests.
pub(super) fn report(results: &[GuestResult], duration: Duration) -> String {
    let mut text = format!(
        "{:7}{:9}{:>6}  {:11}{:>7}{:>7}{:>8}{:>8}{:>9}  {}\n",
        "kernel", "arch", "found", "guess = BTF", "guess", "BTF", "passed", "failed", "seconds", "tests"
    );
    for GuestResult { boot, verdict, duration } in results {
        let Counts { passed, failed, ignored, filtered } = verdict.counts();
        let mut note = match verdict {
            Verdict::Completed(_) if ignored + filtered == 0 => boot.name(),
            Verdict::Completed(_) => format!("{}; {ignored} ignored, {filtered} filtered out", boot.name()),
            Verdict::Broken(reason) => format!("the guest failed: {reason}"),
            Verdict::NotRun(reason) => format!("not run: {reason}"),
        };
        if let Verdict::Completed(Completed { passed_alone, .. }) = verdict
            && !passed_alone.is_empty()
        {
            note.push_str(&format!("; passed only when run again alone: {}", passed_alone.join(", ")));
        }
        let inlined = verdict.layout().map_or(&[][..], |facts| &facts.inlined);
        if !inlined.is_empty() {
            note.push_str(&format!("; inlined here: {}", inlined.join(", ")));
        }
        let [found, agree, guess, btf] = match verdict.layout() {
            Some(facts) => [
                facts.found.to_string(),
                facts.verdict(),
                format!("{:.2} s", facts.guess_seconds),
                format!("{:.2} s", facts.btf_seconds),
            ],
            None => ["-"; 4].map(str::to_owned),
        };
        let line = format!(
            "{:7}{:9}{found:>6}  {agree:11}{guess:>7}{btf:>7}{passed:>8}{failed:>8}{:>9.1}  {note}",
            boot.kernel,
            boot.arch,
            duration.as_secs_f64()
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let Counts { passed, failed, ignored, filtered } =
        results.iter().fold(Counts::default(), |sum, result| sum.add(result.verdict.counts()));
    let result = if results.iter().all(|result| result.verdict.is_success()) { "ok" } else { "FAILED" };
    text.push_str(&format!(
        "\ntest result: {result}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; \
         {filtered} filtered out; finished in {:.2}s\n{passed} passed, {failed} failed\n",
        duration.as_secs_f64()
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::super::boots::TestSet;
    use super::super::testing::boot;
    use super::*;
    use crate::layout_facts::LayoutFacts;
    use crate::matrix::{Arch, Kernel};

    #[test]
    fn the_last_lines_sum_up() {
        let row = |kernel, verdict| GuestResult {
            boot: boot(kernel, Arch::X86_64, TestSet::All),
            verdict,
            duration: Duration::from_millis(2500),
        };
        let good = Counts { passed: 4, failed: 0, ignored: 1, filtered: 0 };
        let inlined = vec!["ip_local_out".to_owned()];
        let facts = LayoutFacts { found: 80, differ: Vec::new(), inlined, guess_seconds: 1.25, btf_seconds: 0.04 };
        let ran = || {
            let layout = Some(facts.clone());
            Verdict::Completed(Completed { counts: good, failures: Vec::new(), passed_alone: Vec::new(), layout })
        };
        let rows = vec![row(Kernel::V6_1, ran()), row(Kernel::V6_12, Verdict::NotRun("no std".into()))];
        let text = report(&rows, Duration::from_secs(5));
        assert_eq!(
            text,
            "kernel arch      found  guess = BTF  guess    BTF  passed  failed  seconds  tests\n\
             6.1    x86_64       80  yes         1.25 s 0.04 s       4       0      2.5  every test; 1 ignored, 0 \
             filtered out; inlined here: ip_local_out\n\
             6.12   x86_64        -  -                -      -       0       0      2.5  not run: no std\n\n\
             test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 5.00s\n\
             4 passed, 0 failed\n"
        );

        let rows = vec![row(Kernel::V6_1, ran()), row(Kernel::V6_12, Verdict::Broken("oops".into()))];
        let text = report(&rows, Duration::from_secs(5));
        assert!(text.contains("test result: FAILED. 4 passed; 1 failed;"), "{text}");
        assert_eq!(text.lines().last(), Some("4 passed, 1 failed"));

        let delayed = Verdict::Completed(Completed {
            counts: Counts { passed: 3, failed: 1, ..good },
            failures: vec!["a::b".into()],
            passed_alone: vec!["a::b".into()],
            layout: None,
        });
        let text = report(&[row(Kernel::V6_1, delayed)], Duration::from_secs(5));
        assert!(text.contains("; passed only when run again alone: a::b\n"), "{text}");
        assert_eq!(text.lines().last(), Some("4 passed, 0 failed"));
    }
}
