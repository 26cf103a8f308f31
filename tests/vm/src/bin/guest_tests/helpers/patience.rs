//! Waiting, with a limit.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything may take in a guest, which is slow and may share its processor.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until the condition holds.
pub(crate) fn until(what: &str, condition: impl FnMut() -> Result<bool>) -> Result<()> {
    until_within(PATIENCE, what, condition)
}

/// Waits until the condition holds, up to a limit.
pub(crate) fn until_within(limit: Duration, what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
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
        until("three looks", || {
            left -= 1;
            Ok(left == 0)
        })
        .unwrap();
        assert_eq!(left, 0);
    }

    #[test]
    fn a_wait_in_vain_says_for_what() {
        let error = until_within(Duration::from_millis(10), "godot", || Ok(false)).unwrap_err();
        assert!(error.to_string().contains("godot"));
    }
}
