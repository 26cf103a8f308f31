//! Reports the status to the service manager, if there is one, with `sd_notify(3)`.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// How often the status is reported.
const STATUS: Duration = Duration::from_secs(10);

/// When each kind of message was last sent.
#[derive(Debug)]
pub struct Notify {
    /// The interval of watchdog messages, if there is a watchdog.
    watchdog: Option<Duration>,
    watchdog_sent: Instant,
    status_sent: Option<Instant>,
}

impl Notify {
    /// Sends nothing yet.
    pub fn new() -> Self {
        // Half of what is allowed, as sd_watchdog_enabled(3) recommends.
        let watchdog = sd_notify::watchdog_enabled().map(|interval| interval / 2);
        Self { watchdog, watchdog_sent: Instant::now(), status_sent: None }
    }

    /// Reports that the agent has started, or that the configuration was read again.
    pub fn ready(&mut self) {
        self.status_sent = None;
        notify(&[NotifyState::Ready]);
    }

    /// Sends the messages that are due.
    pub fn tick(&mut self, now: Instant, status: impl FnOnce() -> String) {
        self.feed_watchdog(now);
        if self.status_sent.is_none_or(|sent| now.saturating_duration_since(sent) >= STATUS) {
            self.status_sent = Some(now);
            if std::env::var_os("NOTIFY_SOCKET").is_some() {
                notify(&[NotifyState::Status(&status())]);
            }
        }
    }

    /// Sends the watchdog message, if there is a watchdog and the message is due.
    pub fn feed_watchdog(&mut self, now: Instant) {
        if self.watchdog.is_some_and(|interval| now.saturating_duration_since(self.watchdog_sent) >= interval) {
            self.watchdog_sent = now;
            notify(&[NotifyState::Watchdog]);
        }
    }

    /// Reports that the configuration is being read again.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
    }

    /// Reports that the agent is ending.
    pub fn stopping(&self) {
        notify(&[NotifyState::Stopping]);
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}
