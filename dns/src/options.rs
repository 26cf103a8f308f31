//! What is captured, and the bounds of memory.

use std::time::Duration;

use crate::Error;

/// What is captured, and the bounds of memory.
///
/// ```
/// # use socktrail_dns::Options;
/// let mut options = Options::default();
/// options.interface = Some("eth0".to_owned());
/// options.ports.push(5355);
/// options.validate().unwrap();
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Whether to capture at all. The program that starts captures checks this; the crate itself does not. Default
    /// true.
    pub enabled: bool,
    /// The interface to capture on; `None` is all interfaces of the network namespace. Default `None`.
    pub interface: Option<String>,
    /// How many bytes of a UDP packet are captured, from its IP header on: 128 to 65,535. Default 1024. TCP packets are
    /// always captured whole.
    pub snaplen: u32,
    /// The ports that DNS servers listen on, 1 to 32 of them. Default 53. 5353 adds one-shot queries of mDNS
    /// (RFC 6762, section 5.1), 5355 LLMNR (RFC 4795).
    pub ports: Vec<u16>,
    /// The size of the ring in which packets wait until they are read, in bytes: 64 KiB to 256 MiB. Default 2 MiB.
    pub ring_bytes: u32,
    /// Bounds of a tracker's memory.
    pub bounds: Bounds,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            enabled: true,
            interface: None,
            snaplen: 1024,
            ports: vec![53],
            ring_bytes: 2 << 20,
            bounds: Bounds::default(),
        }
    }
}

impl Options {
    /// Checks that every value is within its limits.
    ///
    /// # Errors
    ///
    /// [`Error::Option`], for the first invalid value.
    pub fn validate(&self) -> Result<(), Error> {
        let within = |option, value: usize, min: usize, max: usize| {
            let problem = format!("{value} is not within {min} to {max}");
            if (min..=max).contains(&value) { Ok(()) } else { Err(Error::Option { option, problem }) }
        };
        within("snaplen", self.snaplen as usize, 128, 65_535)?;
        within("ports", self.ports.len(), 1, 32)?;
        within("ring_bytes", self.ring_bytes as usize, 64 << 10, 256 << 20)?;
        within("bounds.queries", self.bounds.queries, 1, 10_000_000)?;
        within("bounds.streams", self.bounds.streams, 1, 1_000_000)?;
        within("bounds.stream_bytes", self.bounds.stream_bytes, 512, 65_535)?;
        if self.ports.contains(&0) {
            return Err(Error::Option { option: "ports", problem: "0 is not a valid port".to_owned() });
        }
        Ok(())
    }
}

/// Bounds of a [`Tracker`](crate::Tracker)'s memory, and timeouts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bounds {
    /// How many queries may wait for an answer, about 200 bytes each. One more evicts the oldest. Default 10,000.
    pub queries: usize,
    /// How long a query waits for an answer before it is forgotten. Default 30 s.
    pub query_timeout: Duration,
    /// How many TCP streams are followed. A connection has two. One more evicts the one that has been idle longest.
    /// Default 256.
    pub streams: usize,
    /// For each TCP stream, how many bytes are kept of an incomplete message, and how many of out-of-order segments. Of
    /// a longer message only this many bytes are read. Default 16 KiB.
    pub stream_bytes: usize,
    /// How long a TCP stream may be idle before it is forgotten. Default 120 s.
    pub stream_timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            queries: 10_000,
            query_timeout: Duration::from_secs(30),
            streams: 256,
            stream_bytes: 16 << 10,
            stream_timeout: Duration::from_secs(120),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_invalid_option() {
        type Change = fn(&mut Options);
        let changes: [(&str, Change); 6] = [
            ("snaplen", |o| o.snaplen = 0),
            ("ports", |o| o.ports.clear()),
            ("ports", |o| o.ports = vec![0]),
            ("ring_bytes", |o| o.ring_bytes = u32::MAX),
            ("bounds.queries", |o| o.bounds.queries = 0),
            ("bounds.stream_bytes", |o| o.bounds.stream_bytes = 1 << 20),
        ];
        for (name, change) in changes {
            let mut options = Options::default();
            options.validate().unwrap();
            change(&mut options);
            assert!(options.validate().unwrap_err().to_string().starts_with(name), "{name}");
        }
    }
}
