//! Filters: which flows are reported.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::event::Tuple;
use crate::model::process::Process;

/// A filter for flows. A flow must pass all of its conditions; an empty filter accepts every flow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Filter {
    /// Rejects conversations of the host with itself: both addresses are the same, or both are loopback addresses.
    pub exclude_loopback: bool,
    /// Ports, of either end.
    pub ports: Choice<u16>,
    /// Networks of the remote end.
    pub networks: Choice<Network>,
    /// Real user ids of owners.
    pub uids: Choice<u32>,
    /// Process ids of owners.
    pub pids: Choice<u32>,
}

/// Accepted and rejected values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, bound(deserialize = "T: Deserialize<'de>"))]
pub struct Choice<T> {
    /// If not empty, only these pass.
    pub only: Vec<T>,
    /// These do not pass.
    pub exclude: Vec<T>,
}

impl<T> Default for Choice<T> {
    fn default() -> Self {
        Self { only: Vec::new(), exclude: Vec::new() }
    }
}

impl<T> Choice<T> {
    fn is_empty(&self) -> bool {
        self.only.is_empty() && self.exclude.is_empty()
    }

    fn accepts(&self, is: impl Fn(&T) -> bool) -> bool {
        (self.only.is_empty() || self.only.iter().any(&is)) && !self.exclude.iter().any(&is)
    }
}

impl Filter {
    /// Whether a conversation with these addresses passes. Cheap enough for each packet: it allocates nothing.
    #[inline]
    pub fn accepts(&self, tuple: &Tuple) -> bool {
        if self.exclude_loopback && is_loopback(tuple) {
            return false;
        }
        (self.ports.is_empty() || self.ports.accepts(|port| *port == tuple.local.port || *port == tuple.remote.port))
            && (self.networks.is_empty() || self.networks.accepts(|network| network.contains(tuple.remote.ip)))
    }

    /// Whether a flow of this owner passes. An unknown owner matches no user or process id.
    pub fn accepts_owner(&self, owner: Option<&Process>) -> bool {
        let uid = owner.and_then(|process| process.credentials).map(|credentials| credentials.uid);
        self.uids.accepts(|wanted| uid == Some(*wanted))
            && self.pids.accepts(|wanted| owner.is_some_and(|process| process.pid == *wanted))
    }
}

fn is_loopback(tuple: &Tuple) -> bool {
    let (local, remote) = (tuple.local.ip, tuple.remote.ip);
    local == remote || (local.is_loopback() && remote.is_loopback())
}

/// A network in CIDR notation: `192.0.2.0/24`, `2001:db8::/32`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// An address of the network; the bits after the prefix are ignored.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many of its leading bits are those of the network.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether the address belongs to it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                (network.to_bits() ^ address.to_bits()) & mask == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                (network.to_bits() ^ address.to_bits()) & mask == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let wrong = || NetworkError(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.parse().ok().filter(|prefix| *prefix <= longest).ok_or_else(wrong)?,
            None => longest,
        };
        Ok(Self { address, prefix })
    }
}

impl TryFrom<String> for Network {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The error of [`Network::from_str`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network: write an address and a prefix length, as in 10.0.0.0/8 or fd00::/8")]
pub struct NetworkError(String);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::flow::Endpoint;

    fn tuple(local: &str, remote: &str) -> Tuple {
        let end = |text: &str| {
            let address: std::net::SocketAddr = text.parse().unwrap();
            Endpoint::new(address.ip(), address.port())
        };
        Tuple { net: None, local: end(local), remote: end(remote) }
    }

    #[test]
    fn a_network_contains_the_addresses_of_its_prefix() {
        let holds =
            |network: &str, address: &str| network.parse::<Network>().unwrap().contains(address.parse().unwrap());
        assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("0.0.0.0/0", "203.0.113.9") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("192.0.2.7", "192.0.2.7") && !holds("192.0.2.7", "192.0.2.6"));
        assert!(holds("2001:db8::/33", "2001:db8:7fff::1") && !holds("2001:db8::/33", "2001:db8:8000::1"));
        assert!(holds("::/0", "fe80::1"));
        for wrong in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "fe80::/", "a/b"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_host_talking_to_itself_is_loopback() {
        let filter = Filter { exclude_loopback: true, ..Filter::default() };
        assert!(!filter.accepts(&tuple("127.0.0.1:1", "127.8.8.8:2")));
        assert!(!filter.accepts(&tuple("[::1]:1", "[::1]:2")));
        assert!(!filter.accepts(&tuple("192.0.2.1:1", "192.0.2.1:2")));
        assert!(filter.accepts(&tuple("192.0.2.1:1", "192.0.2.2:2")));
    }

    #[test]
    fn exclusion_beats_inclusion_and_either_end_has_the_port() {
        let ports = Choice { only: vec![80, 443], exclude: vec![50000] };
        let filter = Filter { ports, ..Filter::default() };
        assert!(filter.accepts(&tuple("192.0.2.1:40000", "192.0.2.2:443")));
        assert!(filter.accepts(&tuple("192.0.2.1:80", "192.0.2.2:40000")));
        assert!(!filter.accepts(&tuple("192.0.2.1:80", "192.0.2.2:50000")));
        assert!(!filter.accepts(&tuple("192.0.2.1:22", "192.0.2.2:40000")));
    }

    #[test]
    fn an_unknown_owner_matches_no_user() {
        let filter = Filter { uids: Choice { only: vec![1000], exclude: vec![] }, ..Filter::default() };
        assert!(!filter.accepts_owner(None));
        let filter = Filter { uids: Choice { only: vec![], exclude: vec![1000] }, ..Filter::default() };
        assert!(filter.accepts_owner(None));
    }
}
