//! Checks that involve several keys.

use ureq::http::Uri;

use super::elasticsearch::{Elasticsearch, Ssl};
use super::keys::{keys, lookup};
use super::options::Config;
use super::section::Section;
use crate::Error;
use crate::model::socket_event::Actions;
use crate::output::elasticsearch::KIND;

/// The result of a check: keys, each with a message.
#[derive(Debug, Default)]
pub struct Checked {
    /// Errors: the configuration is refused.
    pub problems: Vec<(String, String)>,
    /// Notes: the configuration is valid, but may not be what the user wants.
    pub notes: Vec<(String, String)>,
}

/// Checks a configuration.
pub fn check(config: &Config) -> Checked {
    let mut checked = Checked::default();
    config.check("", &mut checked.problems);
    checked.problems.extend(without_effect(config));
    let mut wrong = |key: &str, problem: &str| checked.problems.push((key.to_owned(), problem.to_owned()));
    if let Err(Error::Option { name, problem }) = config.monitor().validate() {
        wrong(&key_of(name), &problem);
    }
    for name in config.events.actions.iter().filter(|name| Actions::named(name).is_none()) {
        let problem = format!("{name:?} is not one of create, bind, listen, accept, connect, setsockopt, close");
        wrong("events.actions", &problem);
    }
    if let Err(error) = config.events.condition() {
        wrong("events.where", &error.to_string());
    }
    if !config.sensors.control.is_absolute() {
        wrong("sensors.control", "must begin with /: `socktrail unlock` may run in another directory");
    }
    if config.spool.max_size.0 < config.spool.segment_size.0.saturating_mul(4) {
        wrong("spool.max_size", "must be at least four times spool.segment_size");
    }
    if !config.spool.path.is_absolute() {
        wrong("spool.path", "must begin with /: it must be the same directory at every start");
    }
    elasticsearch(&config.output.elasticsearch, &mut checked);
    checked
}

/// The keys that have no effect, because the key that they need is not set.
fn without_effect(config: &Config) -> impl Iterator<Item = (String, String)> {
    let json = |config: &Config| serde_json::to_value(config).unwrap_or_default();
    let (now, default) = (json(config), json(&Config::default()));
    keys().into_iter().filter_map(move |key| {
        let needs = key.needs?;
        let is_set = |key: &str| lookup(&now, key) != lookup(&default, key);
        (is_set(&key.name) && !is_set(needs)).then(|| (key.name, format!("has no effect without {needs}")))
    })
}

/// Checks the options of Elasticsearch.
fn elasticsearch(output: &Elasticsearch, checked: &mut Checked) {
    let mut wrong = |key: &str, problem: &str| {
        checked.problems.push((format!("output.elasticsearch.{key}"), problem.to_owned()));
    };
    for host in &output.hosts {
        if let Err(problem) = check_host(host) {
            wrong("hosts", problem);
        }
    }
    let (user, password, key) = (!output.username.is_empty(), !output.password.is_empty(), !output.api_key.is_empty());
    match (user, password, key) {
        (true, _, true) => wrong("api_key", "cannot be used together with username: remove one of them"),
        (true, false, _) => wrong("username", "needs output.elasticsearch.password"),
        (false, true, _) => wrong("password", "needs output.elasticsearch.username"),
        _ => {}
    }
    if !is_index_name(&output.index) {
        wrong(
            "index",
            "expected lower-case letters, digits, {kind}, and -, _ or . except at the start; at most 199 characters",
        );
    }
    let ssl = &output.ssl;
    match (&ssl.certificate, &ssl.key) {
        (Some(_), None) => wrong("ssl.certificate", "needs output.elasticsearch.ssl.key"),
        (None, Some(_)) => wrong("ssl.key", "needs output.elasticsearch.ssl.certificate"),
        _ => {}
    }
    if !ssl.ca_trusted_fingerprint.is_empty() && ssl.fingerprint().is_none() {
        wrong("ssl.ca_trusted_fingerprint", "expected the 64 hexadecimal digits of a SHA-256");
    }
    if !ssl.ca_trusted_fingerprint.is_empty() && !ssl.certificate_authorities.is_empty() {
        wrong(
            "ssl.ca_trusted_fingerprint",
            "cannot be used together with ssl.certificate_authorities: remove one of them",
        );
    }
    let all_plain = output.hosts.iter().all(|host| host.starts_with("http:"));
    if *ssl != Ssl::default() && !output.hosts.is_empty() && all_plain {
        wrong("hosts", "ssl has no effect on http://: write https://");
    }
    if output.backoff.init > output.backoff.max {
        wrong("backoff.init", "is longer than output.elasticsearch.backoff.max");
    }
    if (password || key) && output.hosts.iter().any(|host| !host.starts_with("https:")) {
        let note = "the password or API key is sent unencrypted: write https://";
        checked.notes.push(("output.elasticsearch.hosts".to_owned(), note.to_owned()));
    }
}

/// Checks that a text is a URL of a server: a scheme, a host, and optionally a port and a path. The error does not repeat
/// the text, because it may contain a password.
fn check_host(text: &str) -> Result<(), &'static str> {
    let uri: Uri = text.parse().map_err(|_| "expected a URL, such as https://host:9200")?;
    // The client decides by these prefixes whether it needs TLS, so capital letters are refused, too.
    if !text.starts_with("https://") && !text.starts_with("http://") {
        return Err("expected a URL that begins with https:// or http://");
    }
    if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
        return Err("a URL cannot contain a user and password: set username and password instead");
    }
    if uri.query().is_some() { Err("a URL cannot contain a query (?)") } else { Ok(()) }
}

fn is_index_name(name: &str) -> bool {
    let bare = name.replace(KIND, "");
    let allowed = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || "-_.".contains(char);
    !name.is_empty() && bare.chars().all(allowed) && !name.starts_with(['-', '_', '.']) && name.len() < 200
}

/// The name of the key that sets an option of the monitor.
fn key_of(option: &str) -> String {
    match option {
        "dns.snaplen" => "socket.dns.af_packet.snaplen".to_owned(),
        option => format!("socket.{option}"),
    }
}
