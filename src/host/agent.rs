//! `agent.*`: the program that makes documents, and its current run.

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::host::Host;
use crate::model::bounded;

/// `agent.*`: the program that makes documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Agent {
    /// A hash of the machine's id, so it is the same after a restart.
    pub id: String,
    /// Random at every start. Flow numbers are unique only within one run, so no two monitors may have the same ephemeral id.
    pub ephemeral_id: String,
    /// The host's name, or the configured one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The host's name. Not ECS; kept because Beats documents have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// `socktrail`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// This program's version.
    pub version: &'static str,
}

impl Agent {
    /// An agent on this host, with a new [`ephemeral_id`](Self::ephemeral_id).
    ///
    /// On a host without a machine id, [`id`](Self::id) is the ephemeral one.
    pub fn of(host: &Host) -> Self {
        Self::with_ephemeral_id(host, random_uuid())
    }

    /// An agent on a host, with a given [`ephemeral_id`](Self::ephemeral_id).
    pub fn with_ephemeral_id(host: &Host, ephemeral_id: String) -> Self {
        Self {
            id: host.id.as_deref().map_or_else(|| ephemeral_id.clone(), stable_id),
            ephemeral_id,
            name: host.hostname.clone(),
            hostname: host.hostname.clone(),
            kind: "socktrail",
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// The id of the flow with this number in this run: the first 16 hexadecimal digits of the ephemeral id, a dash, and the
    /// number.
    pub(crate) fn flow_id(&self, number: u64) -> String {
        let run = self.ephemeral_id.chars().filter(char::is_ascii_hexdigit).take(16);
        run.chain(['-']).chain(number.to_string().chars()).collect()
    }
}

/// The agent's id: a keyed hash of the machine's id, because `machine-id(5)` asks not to publish the id itself.
fn stable_id(machine_id: &str) -> String {
    uuid(&Sha256::new().chain_update("socktrail agent\0").chain_update(machine_id).finalize(), 8)
}

fn random_uuid() -> String {
    // The kernel makes a new one for each read. If the kernel has no sysctl, take the random seeds of std's hash maps.
    bounded::line("/proc/sys/kernel/random/uuid".as_ref()).unwrap_or_else(|| {
        use std::hash::{BuildHasher, RandomState};
        let half = || RandomState::new().hash_one(std::process::id()).to_ne_bytes();
        uuid(&[half(), half()].concat(), 4)
    })
}

/// The first 16 bytes as a UUID (RFC 9562) of the given version.
fn uuid(bytes: &[u8], version: u8) -> String {
    let mut text = String::with_capacity(36);
    for (at, &byte) in bytes.iter().take(16).enumerate() {
        let byte = match at {
            6 => byte & 0x0f | version << 4,
            8 => byte & 0x3f | 0x80,
            _ => byte,
        };
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(id: Option<&str>) -> Host {
        Host { id: id.map(str::to_owned), hostname: Some("stretch".into()), ..Host::default() }
    }

    #[test]
    fn the_id_is_stable_and_the_ephemeral_id_is_not() {
        let machine = host(Some("b3531219b5b4449eadbec59d47945649"));
        let (one, other) = (Agent::of(&machine), Agent::of(&machine));
        // From `printf 'socktrail agent\0b3531219b5b4449eadbec59d47945649' | sha256sum`, with version and variant set.
        assert_eq!(one.id, "be2584fe-1da7-8b32-a4aa-d07b56d88cf5");
        assert_eq!(one.id, other.id);
        assert_ne!(one.ephemeral_id, other.ephemeral_id);
        assert_ne!(one.id, Agent::of(&host(Some("c3531219b5b4449eadbec59d47945649"))).id);
    }

    #[test]
    fn without_a_machine_id_there_still_is_an_id() {
        let agent = Agent::of(&host(None));
        assert_eq!(agent.id, agent.ephemeral_id);
        assert_eq!(agent.id.len(), 36);
    }

    #[test]
    fn a_uuid_says_its_version_and_variant() {
        assert_eq!(uuid(&[0xff; 16], 4), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid(&[0; 16], 8), "00000000-0000-8000-8000-000000000000");
    }

    #[test]
    fn a_flow_id_has_the_run_and_the_number() {
        let agent = Agent { ephemeral_id: "f7b0ab1a-da9e-4525-9252-59ecb68139f8".into(), ..Agent::of(&host(None)) };
        assert_eq!(agent.flow_id(7), "f7b0ab1ada9e4525-7");
    }
}
