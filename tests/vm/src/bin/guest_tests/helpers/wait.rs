//! Waits with a time limit.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The default time limit: guests are emulated and share CPUs with others, so everything is slow.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(90);

/// Waits until a condition holds. `what` names it in the error.
pub(crate) fn wait_until(what: &str, condition: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_until_within(TIMEOUT, what, condition)
}

/// Like [`wait_until`], with another time limit.
pub(crate) fn wait_until_within(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !condition()? {
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain for {what}");
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_when_the_condition_holds() {
        let mut left = 3;
        wait_until("the third check", || {
            left -= 1;
            Ok(left == 0)
        })
        .unwrap();
        assert_eq!(left, 0);
    }

    #[test]
    fn the_error_of_a_wait_names_what_it_waited_for() {
        let error = wait_until_within(Duration::from_millis(10), "the answer", || Ok(false)).unwrap_err();
        assert!(error.to_string().contains("the answer"));
    }
}
