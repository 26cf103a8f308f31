//! What makes no sense together.

use ureq::http::Uri;

use super::elasticsearch::{Elasticsearch, Spool, Ssl};
use super::options::Config;
use super::outputs::{FileOutput, Outputs, Sensors};
use super::values::Size;
use crate::Error;
use crate::output::elasticsearch::KIND;
use crate::socket_event::Actions;

/// What a look at a configuration found: keys, each with what is to be said of it.
#[derive(Debug, Default)]
pub struct Checked {
    /// What is wrong.
    pub problems: Vec<(String, String)>,
    /// What is worth knowing.
    pub notes: Vec<(String, String)>,
}

/// Looks at the whole.
pub fn check(config: &Config) -> Checked {
    let mut checked = Checked::default();
    if let Err(Error::Option { name, problem }) = config.monitor().validate() {
        checked.problems.push((key_of(name), problem));
    }
    if let Some(name) = config.events.actions.iter().find(|name| Actions::named(name).is_none()) {
        let problem = format!("{name:?} is none of create, bind, listen, accept, connect, setsockopt, close");
        checked.problems.push(("events.actions".to_owned(), problem));
    }
    if let Err(error) = config.events.condition() {
        checked.problems.push(("events.where".to_owned(), error.to_string()));
    }
    if config.events.condition.is_some() && config.events.actions.is_empty() {
        checked.problems.push(("events.where".to_owned(), "has no effect without events.actions".to_owned()));
    }
    checked.problems.extend(sensors(&config.sensors));
    checked.problems.extend(outputs(&config.output));
    checked.problems.extend(elasticsearch(&config.output.elasticsearch));
    checked.problems.extend(spool(&config.spool));
    let unencrypted = |host: &String| !host.starts_with("https:");
    let elasticsearch = &config.output.elasticsearch;
    let secret = !elasticsearch.password.is_empty() || !elasticsearch.api_key.is_empty();
    if secret && elasticsearch.hosts.iter().any(unencrypted) {
        let note = "the password or API key is sent unencrypted: write https://";
        checked.notes.push(("output.elasticsearch.hosts".to_owned(), note.to_owned()));
    }
    if config.agent.nice > 19 {
        checked.problems.push(("agent.nice".to_owned(), format!("{} is not within 0 to 19", config.agent.nice)));
    }
    checked
}

/// What makes no sense of sensors; the files themselves are read later.
fn sensors(sensors: &Sensors) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    let mut wrong = |key: &str, problem: &str| problems.push((format!("sensors.{key}"), problem.to_owned()));
    let default = Sensors::default();
    for (key, changed) in
        [("profiles", sensors.profiles != default.profiles), ("control", sensors.control != default.control)]
    {
        if changed && sensors.files.is_empty() {
            wrong(key, "has no effect without sensors.files");
        }
    }
    if !sensors.control.is_absolute() {
        wrong("control", "must begin with /: `socktrail unlock` must find it from anywhere");
    }
    problems
}

/// What makes no sense of the outputs.
fn outputs(output: &Outputs) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    let mut wrong = |key: &str, problem: &str| problems.push((key.to_owned(), problem.to_owned()));
    if output.queue_size < Size(1 << 20) {
        wrong("output.queue_size", "must be at least 1MiB");
    }
    let (file, default) = (&output.file, FileOutput::default());
    for (key, changed) in [
        ("output.file.rotate_size", file.rotate_size != default.rotate_size),
        ("output.file.rotate_every", file.rotate_every != default.rotate_every),
        ("output.file.keep", file.keep != default.keep),
        ("output.file.gzip", file.gzip != default.gzip),
        ("output.file.sync", file.sync != default.sync),
    ] {
        if changed && file.path.is_none() {
            wrong(key, "has no effect without output.file.path");
        }
    }
    if output.file.rotate_size < Size(1 << 10) {
        wrong("output.file.rotate_size", "must be at least 1KiB");
    }
    problems
}

/// What makes no sense of Elasticsearch.
fn elasticsearch(output: &Elasticsearch) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    let mut wrong =
        |key: &str, problem: &str| problems.push((format!("output.elasticsearch.{key}"), problem.to_owned()));
    let default = Elasticsearch::default();
    let (user, password, key) = (!output.username.is_empty(), !output.password.is_empty(), !output.api_key.is_empty());
    let off = output.hosts.is_empty();
    for (name, changed) in [
        ("username", user),
        ("password", password),
        ("api_key", key),
        ("index", output.index != default.index),
        ("ssl.certificate", output.ssl.certificate.is_some()),
        ("ssl.certificate_authorities", !output.ssl.certificate_authorities.is_empty()),
        ("ssl.ca_trusted_fingerprint", !output.ssl.ca_trusted_fingerprint.is_empty()),
    ] {
        if off && changed {
            wrong(name, "has no effect without output.elasticsearch.hosts");
        }
    }
    for host in &output.hosts {
        if let Err(problem) = is_host(host) {
            wrong("hosts", problem);
        }
    }
    match (user, password, key) {
        (true, _, true) => wrong("api_key", "takes the place of a username: leave one of both out"),
        (true, false, _) => wrong("username", "needs output.elasticsearch.password"),
        (false, true, _) => wrong("password", "needs output.elasticsearch.username"),
        _ => {}
    }
    if !is_index(&output.index) {
        wrong("index", "expected small letters, digits, and -_. between them, with {kind} where the kind is to be");
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
        wrong("ssl.ca_trusted_fingerprint", "takes the place of ssl.certificate_authorities: leave one of both out");
    }
    if *ssl != Ssl::default() && !off && output.hosts.iter().all(|host| host.starts_with("http:")) {
        wrong("hosts", "ssl has no effect on http://: write https://");
    }
    if output.compression_level > 9 {
        wrong("compression_level", "is not within 0 to 9");
    }
    if !(1..=100_000).contains(&output.bulk_max_size) {
        wrong("bulk_max_size", "is not within 1 to 100000");
    }
    if output.backoff.init > output.backoff.max {
        wrong("backoff.init", "is longer than output.elasticsearch.backoff.max");
    }
    problems
}

/// Whether it is a scheme, a host and perhaps a port and a path. What is wrong is told without repeating it: it may hold
/// a password.
fn is_host(text: &str) -> Result<(), &'static str> {
    let uri: Uri = text.parse().map_err(|_| "expected a URL, as in https://host:9200")?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("a host begins with https:// or http://");
    }
    if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
        return Err("user and password are not part of a host: write them to username and password");
    }
    if uri.query().is_some() { Err("a host has no query (?)") } else { Ok(()) }
}

fn is_index(name: &str) -> bool {
    let bare = name.replace(KIND, "");
    let allowed = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || "-_.".contains(char);
    !name.is_empty() && bare.chars().all(allowed) && !name.starts_with(['-', '_', '.']) && name.len() < 200
}

/// What makes no sense of the spool.
fn spool(spool: &Spool) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    let mut wrong = |key: &str, problem: &str| problems.push((format!("spool.{key}"), problem.to_owned()));
    if !(Size(64 << 10)..=Size(256 << 20)).contains(&spool.segment_size) {
        wrong("segment_size", "is not within 64KiB to 256MiB");
    }
    if spool.max_size.0 < spool.segment_size.0.saturating_mul(4) {
        wrong("max_size", "must be at least four times spool.segment_size");
    }
    if !spool.path.is_absolute() {
        wrong("path", "must begin with /: it must be the same folder at every start");
    }
    problems
}

/// The key that sets an option of the monitor.
fn key_of(option: &str) -> String {
    match option {
        "dns.snaplen" => "socket.dns.af_packet.snaplen".to_owned(),
        option => format!("socket.{option}"),
    }
}
