//! What is captured, and how much is kept.

use std::time::Duration;

use crate::Error;

/// What is captured, and how much is kept.
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
    /// Whether names are learned at all; whoever starts captures asks. Default true.
    pub enabled: bool,
    /// The interface to listen on; none is all of the network namespace. Default none.
    pub interface: Option<String>,
    /// How many bytes of a UDP packet are read, from its IP header on: 128 to 65,535. Default 1024. TCP packets are
    /// always read whole.
    pub snaplen: u32,
    /// The ports that DNS servers listen on, 1 to 32 of them. Default 53. 5353 adds one-shot queries of mDNS
    /// (RFC 6762, section 6.7), 5355 LLMNR (RFC 4795).
    pub ports: Vec<u16>,
    /// Memory for packets that nobody has read yet, in bytes: 64 KiB to 256 MiB. Default 2 MiB.
    pub ring_bytes: u32,
    /// How much is kept of what is on its way.
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
    /// Says which option makes no sense, and why.
    ///
    /// # Errors
    ///
    /// [`Error::Option`].
    pub fn validate(&self) -> Result<(), Error> {
        let within = |option, value: usize, least: usize, most: usize| {
            let problem = format!("{value} is not within {least} to {most}");
            if (least..=most).contains(&value) { Ok(()) } else { Err(Error::Option { option, problem }) }
        };
        within("snaplen", self.snaplen as usize, 128, 65_535)?;
        within("ports", self.ports.len(), 1, 32)?;
        within("ring_bytes", self.ring_bytes as usize, 64 << 10, 256 << 20)?;
        within("bounds.queries", self.bounds.queries, 1, 10_000_000)?;
        within("bounds.streams", self.bounds.streams, 1, 1_000_000)?;
        within("bounds.stream_bytes", self.bounds.stream_bytes, 512, 65_535)?;
        if self.ports.contains(&0) {
            return Err(Error::Option { option: "ports", problem: "0 is no port".to_owned() });
        }
        Ok(())
    }
}

/// How much a [`Tracker`](crate::Tracker) keeps of what is on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bounds {
    /// Queries that wait for an answer; the oldest gives way. Default 10,000, about 200 bytes each.
    pub queries: usize,
    /// How long a query waits for an answer. Default 30 s.
    pub query_timeout: Duration,
    /// TCP streams, a connection having two; the one idle longest gives way. Default 256.
    pub streams: usize,
    /// Bytes kept of a message that is not yet whole, and of segments that came too early, for each TCP stream.
    /// A longer message is read up to here. Default 16 KiB.
    pub stream_bytes: usize,
    /// How long a TCP stream may be idle. Default 120 s.
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
    fn nonsense_is_named() {
        type Spoil = fn(&mut Options);
        let spoils: [(&str, Spoil); 6] = [
            ("snaplen", |o| o.snaplen = 0),
            ("ports", |o| o.ports.clear()),
            ("ports", |o| o.ports = vec![0]),
            ("ring_bytes", |o| o.ring_bytes = u32::MAX),
            ("bounds.queries", |o| o.bounds.queries = 0),
            ("bounds.stream_bytes", |o| o.bounds.stream_bytes = 1 << 20),
        ];
        for (name, spoil) in spoils {
            let mut options = Options::default();
            options.validate().unwrap();
            spoil(&mut options);
            assert!(options.validate().unwrap_err().to_string().starts_with(name), "{name}");
        }
    }
}
