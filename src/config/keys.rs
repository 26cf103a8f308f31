//! All keys, and suggestions for misspelt ones.

use serde_json::Value;

use super::options::Config;
use super::section::{Key, Section};

/// The prefix of the environment variables that set keys.
pub const ENVIRONMENT: &str = "SOCKTRAIL_";
/// The minimum similarity of a misspelt key and a suggestion (Jaro-Winkler, 0 to 1).
const MIN_SIMILARITY: f64 = 0.8;

/// Every key, in the order of the declarations.
pub fn keys() -> Vec<Key> {
    let mut keys = Vec::new();
    Config::keys("", &mut keys);
    keys
}

impl Key {
    /// The default as JSON; null if there is none.
    pub fn default(&self) -> Value {
        lookup(&serde_json::to_value(Config::default()).unwrap_or_default(), &self.name).clone()
    }
}

/// The environment variable that sets a key: `SOCKTRAIL_SOCKET_DNS_ENABLED`.
pub fn variable(key: &str) -> String {
    ENVIRONMENT.to_owned() + &key.to_uppercase().replace('.', "_")
}

/// The value of a key in a configuration as JSON.
pub fn lookup<'a>(config: &'a Value, key: &str) -> &'a Value {
    key.split('.').fold(config, |value, part| &value[part])
}

/// The message for an unknown key, with a suggestion.
pub fn unknown(keys: &[Key], key: &str) -> String {
    let section = format!("{key}.");
    if let Some(inner) = keys.iter().find(|known| known.name.starts_with(&section)) {
        return format!("is a section, not a value; it holds keys such as {}", inner.name);
    }
    if key.starts_with("auditbeat.") {
        return "is not known: from an auditbeat.yml, copy only the lines that begin with socket.".to_owned();
    }
    let similarity = |known: &str| strsim::jaro_winkler(last(known), last(key)) + strsim::jaro_winkler(known, key);
    let similarities = keys.iter().map(|known| (similarity(&known.name), known));
    match similarities.max_by(|one, other| one.0.total_cmp(&other.0)) {
        // Two similarities are added: of the last parts, and of the whole keys.
        Some((sum, known)) if sum > 2.0 * MIN_SIMILARITY => format!("is not known; is {} meant?", known.name),
        _ => "is not known".to_owned(),
    }
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::*;

    fn defaults() -> Value {
        serde_json::to_value(Config::default()).unwrap()
    }

    /// As documented for Auditbeat 8's `system/socket` dataset.
    #[test]
    fn the_options_of_auditbeat_have_their_names_and_defaults() {
        let defaults = defaults();
        for (key, default) in [
            ("tracefs_path", Value::Null),
            ("enable_ipv6", Value::Null),
            ("flow_inactive_timeout", "30s".into()),
            ("flow_termination_timeout", "5s".into()),
            ("socket_inactive_timeout", "1m".into()),
            ("perf_queue_size", 4096.into()),
            ("lost_queue_size", 128.into()),
            ("ring_size_exponent", 7.into()),
            ("clock_max_drift", "100ms".into()),
            ("clock_sync_period", "10s".into()),
            ("guess_timeout", "15s".into()),
            ("dns.enabled", true.into()),
            ("dns.type", "af_packet".into()),
            ("dns.af_packet.interface", "any".into()),
            ("dns.af_packet.snaplen", 1024.into()),
        ] {
            let key = format!("socket.{key}");
            assert_eq!(lookup(&defaults, &key), &default, "{key}");
            assert!(keys().iter().any(|known| known.name == key), "{key}");
        }
    }

    /// The keys of filters are listed by hand, apart from their structure.
    #[test]
    fn every_value_has_its_key() {
        fn flatten(section: &str, value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(inner) => inner
                    .iter()
                    .for_each(|(key, value)| flatten(&super::super::section::join(section, key), value, found)),
                _ => drop(found.insert(section.to_owned())),
            }
        }
        let mut values = BTreeSet::new();
        flatten("", &defaults(), &mut values);
        let keys: Vec<_> = keys().into_iter().map(|key| key.name).collect();
        assert_eq!(keys.iter().cloned().collect::<BTreeSet<_>>(), values);
        assert_eq!(keys.len(), values.len());
    }

    #[test]
    fn no_two_keys_share_a_variable_or_a_flag() {
        let keys = keys();
        let variables: HashSet<_> = keys.iter().map(|key| variable(&key.name)).collect();
        assert_eq!(variables.len(), keys.len());
        assert!(variables.contains("SOCKTRAIL_SOCKET_DNS_AF_PACKET_SNAPLEN"));
        let flags: Vec<_> = keys.iter().filter_map(|key| key.flag).map(|flag| flag.name).collect();
        assert_eq!(flags.iter().collect::<HashSet<_>>().len(), flags.len());
    }

    #[test]
    fn needed_keys_exist() {
        let keys = keys();
        for needs in keys.iter().filter_map(|key| key.needs) {
            assert!(keys.iter().any(|key| key.name == needs), "{needs}");
        }
    }

    #[test]
    fn a_similar_key_is_suggested() {
        let unknown = |key| unknown(&keys(), key);
        assert!(unknown("socket.enable_ip6").contains("socket.enable_ipv6"));
        assert!(unknown("socket.dns.snaplen").contains("socket.dns.af_packet.snaplen"));
        assert!(unknown("socket.dns").contains("is a section"));
        assert!(unknown("auditbeat.modules").contains("begin with socket."));
        assert_eq!(unknown("zzzzzz"), "is not known");
    }
}
