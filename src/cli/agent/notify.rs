//! Tells the service manager how things stand: `sd_notify(3)`. Without one, nothing is said.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// How often the status is said.
const STATUS: Duration = Duration::from_secs(10);

/// What was said last, and when.
#[derive(Debug)]
pub struct Notify {
    /// How often the watchdog wants to hear, if there is one.
    watchdog: Option<Duration>,
    fed: Instant,
    told: Option<Instant>,
}

impl Notify {
    /// Says nothing yet.
    pub fn new() -> Self {
        // Half of what is allowed, as sd_watchdog_enabled(3) recommends.
        let watchdog = sd_notify::watchdog_enabled().map(|most| most / 2);
        Self { watchdog, fed: Instant::now(), told: None }
    }

    /// Says that all is up, or that the configuration was read again.
    pub fn ready(&mut self) {
        self.told = None;
        say(&[NotifyState::Ready]);
    }

    /// Says what is due.
    pub fn tick(&mut self, now: Instant, status: impl FnOnce() -> String) {
        self.feed_watchdog(now);
        if self.told.is_none_or(|told| now.saturating_duration_since(told) >= STATUS) {
            self.told = Some(now);
            if std::env::var_os("NOTIFY_SOCKET").is_some() {
                say(&[NotifyState::Status(&status())]);
            }
        }
    }

    /// Tells the watchdog, if there is one and it is due, that all is well.
    pub fn feed_watchdog(&mut self, now: Instant) {
        if self.watchdog.is_some_and(|often| now.saturating_duration_since(self.fed) >= often) {
            self.fed = now;
            say(&[NotifyState::Watchdog]);
        }
    }

    /// Says that the configuration is read again.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => say(&[NotifyState::Reloading, now]),
            Err(_) => say(&[NotifyState::Reloading]),
        }
    }

    /// Says that it ends.
    pub fn stopping(&self) {
        say(&[NotifyState::Stopping]);
    }
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
