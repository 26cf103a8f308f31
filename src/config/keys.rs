//! Which keys there are. The structures themselves say so.

use std::collections::BTreeMap;

use figment::value::Value;

use super::options::Config;
use super::setting::join;

/// What every variable of the environment that configures begins with.
pub const ENVIRONMENT: &str = "SOCKTRAIL_";
/// How alike two keys must be for one to be meant by the other (Jaro-Winkler, 0 to 1).
const ALIKE: f64 = 0.8;

/// Every key with its built-in value.
#[derive(Debug)]
pub struct Keys(BTreeMap<String, Value>);

impl Keys {
    /// The keys of [`Config`].
    pub fn all() -> Self {
        let mut keys = BTreeMap::new();
        // A structure of plain values always serializes.
        if let Ok(value) = Value::serialize(Config::default()) {
            flatten("", value, &mut keys);
        }
        Self(keys)
    }

    /// In alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The built-in value of a key; `None` if there is no such key.
    pub fn default(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// The key that a path within its value belongs to.
    pub fn holding(&self, path: &str) -> Option<&str> {
        let within = |key: &&str| path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.iter().find(within)
    }

    /// Why there is no such key, and which may be meant.
    pub fn unknown(&self, key: &str) -> String {
        let section = format!("{key}.");
        if let Some(inner) = self.iter().find(|known| known.starts_with(&section)) {
            return format!("is a section, not a value; it holds keys such as {inner}");
        }
        if key.starts_with("auditbeat.") {
            return "is not known: of an auditbeat.yml, take over the lines that begin with socket.".to_owned();
        }
        let likeness = |known: &str| strsim::jaro_winkler(last(known), last(key)) + strsim::jaro_winkler(known, key);
        let best = self.iter().max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
        match best.filter(|known| likeness(known) > 2.0 * ALIKE) {
            Some(known) => format!("is not known; is {known} meant?"),
            None => "is not known".to_owned(),
        }
    }
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn flatten(key: &str, value: Value, keys: &mut BTreeMap<String, Value>) {
    match value {
        Value::Dict(_, inner) => inner.into_iter().for_each(|(name, value)| flatten(&join(key, &name), value, keys)),
        value => {
            keys.insert(key.to_owned(), value);
        }
    }
}

/// The variable that sets a key: `SOCKTRAIL_SOCKET_DNS_ENABLED`.
pub fn variable(key: &str) -> String {
    ENVIRONMENT.to_owned() + &key.to_uppercase().replace('.', "_")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Names and defaults as in seeds/auditbeat-system-socket.md.
    #[test]
    fn the_options_of_auditbeat_have_their_names_and_defaults() {
        let keys = Keys::all();
        let none = Value::serialize(None::<u8>).unwrap();
        for (key, default) in [
            ("tracefs_path", none.clone()),
            ("enable_ipv6", none),
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
            let found = keys.default(&format!("socket.{key}"));
            let json = |value: &Value| serde_json::to_string(value).unwrap();
            assert_eq!(found.map(json), Some(json(&default)), "{key}");
        }
    }

    #[test]
    fn no_two_keys_share_a_variable() {
        let keys = Keys::all();
        let variables: HashSet<_> = keys.iter().map(variable).collect();
        assert_eq!(variables.len(), keys.iter().count());
        assert!(variables.contains("SOCKTRAIL_SOCKET_DNS_AF_PACKET_SNAPLEN"));
    }

    #[test]
    fn a_key_that_may_be_meant_is_named() {
        let keys = Keys::all();
        assert!(keys.unknown("socket.enable_ip6").contains("socket.enable_ipv6"));
        assert!(keys.unknown("socket.dns.snaplen").contains("socket.dns.af_packet.snaplen"));
        assert!(keys.unknown("socket.dns").contains("is a section"));
        assert!(keys.unknown("auditbeat.modules").contains("begin with socket."));
        assert_eq!(keys.unknown("zzzzzz"), "is not known");
    }

    #[test]
    fn what_lies_within_a_value_belongs_to_its_key() {
        let keys = Keys::all();
        assert_eq!(keys.holding("socket.dns.ports.0"), Some("socket.dns.ports"));
        assert_eq!(keys.holding("socket.dns.port"), None);
    }
}
