//! Flags that set keys of the configuration. The declarations in `src/config/` have the names, descriptions and defaults;
//! this module says which command accepts which keys.

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;
use socktrail::config::reference::{SECTIONS, help};
use socktrail::config::{ConfigError, Key, Loader, keys};
use socktrail::monitor::Options;

/// The keys that each command accepts as flags. A section stands for all its keys that have a flag.
const ACCEPTED: [(&str, &[&str]); 8] = [
    ("flows", &["socket", "filter"]),
    ("events", CALLS),
    ("sensors", CALLS),
    ("names", &["socket.tracefs_path", "socket.cgroup", "socket.guess_timeout", "socket.source", "socket.dns"]),
    (
        "record",
        &[
            "socket.tracefs_path",
            "socket.ring_size_exponent",
            "socket.backend",
            "socket.cgroup",
            "socket.accounting",
            "socket.max_conversations",
            "socket.guess_timeout",
            "socket.source",
            "socket.mask",
            "socket.dns",
        ],
    ),
    (
        "replay",
        &["socket.flow_inactive_timeout", "socket.flow_termination_timeout", "socket.flow_report_interval", "filter"],
    ),
    ("layout", &["socket.guess_timeout", "socket.source"]),
    ("doctor", &["socket.tracefs_path", "socket.backend", "socket.guess_timeout", "socket.source", "socket.mask"]),
];

/// The keys for monitoring calls on sockets.
const CALLS: &[&str] = &[
    "socket.tracefs_path",
    "socket.ring_size_exponent",
    "socket.cgroup",
    "socket.guess_timeout",
    "socket.source",
    "socket.max_sockets",
    "socket.mask",
];

/// Adds to each command the flags that it accepts.
pub fn add_to(command: Command) -> Command {
    let flags = |command: Command, accepted| command.args(keys_of(accepted).iter().filter_map(flag));
    ACCEPTED
        .iter()
        .fold(command, |command, (name, accepted)| command.mut_subcommand(name, |command| flags(command, accepted)))
}

/// The options of the monitor, as the given flags set them.
///
/// # Errors
/// A flag's value is invalid.
pub fn options(matches: &ArgMatches) -> Result<Options, ConfigError> {
    let accepted = matches.subcommand().and_then(|(given, matches)| {
        let (_, accepted) = ACCEPTED.iter().find(|(name, _)| *name == given)?;
        Some((matches, keys_of(accepted)))
    });
    let given = accepted.iter().flat_map(|(matches, keys)| keys.iter().filter_map(|key| value(key, matches)));
    Ok(Loader::new().flags(given).load()?.config.monitor())
}

fn keys_of(accepted: &[&str]) -> Vec<Key> {
    let is_within = |key: &Key, accepted: &&str| {
        key.name.strip_prefix(accepted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    keys().into_iter().filter(|key| accepted.iter().any(|accepted| is_within(key, accepted))).collect()
}

/// The flag of a key. It can be given several times if the value is a list. It needs no value if the default is `false`.
fn flag(key: &Key) -> Option<Arg> {
    let flag = key.flag?;
    let arg = Arg::new(flag.name).long(flag.name).value_name(flag.value).help(help(key)).help_heading(heading(key));
    Some(match key.default() {
        Value::Array(_) => arg.action(ArgAction::Append),
        Value::Bool(false) => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => arg,
    })
}

/// The title of the key's section, without the details after its colon.
fn heading(key: &Key) -> Option<&'static str> {
    let (_, title) = SECTIONS.iter().find(|(section, _)| key.name.split('.').next() == Some(section))?;
    title.split(':').next()
}

/// The flag's name and value, if it was given.
fn value(key: &Key, matches: &ArgMatches) -> Option<(String, String)> {
    let name = key.flag?.name;
    let values: Vec<_> = matches.get_many::<String>(name)?.map(String::as_str).collect();
    Some((name.to_owned(), values.join(",")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::command;
    use super::*;

    fn options_of(line: &str) -> Options {
        options(&command().try_get_matches_from(line.split(' ')).unwrap()).unwrap()
    }

    #[test]
    fn every_accepted_key_has_a_flag_and_every_flag_is_accepted() {
        for accepted in ACCEPTED.iter().flat_map(|(_, accepted)| *accepted) {
            assert!(keys_of(&[accepted]).iter().any(|key| key.flag.is_some()), "{accepted} has no flag");
        }
        let all = ACCEPTED.iter().flat_map(|(_, accepted)| keys_of(accepted)).map(|key| key.name).collect::<Vec<_>>();
        for key in keys().into_iter().filter(|key| key.flag.is_some()) {
            assert!(all.contains(&key.name), "no command accepts {}", key.name);
        }
    }

    #[test]
    fn flags_set_the_options_of_their_keys() {
        let options =
            options_of("socktrail flows --exclude-loopback --only-port 80 --only-port 443 --guess-timeout 2s");
        assert!(options.filter.exclude_loopback);
        assert_eq!(options.filter.ports.only, [80, 443]);
        assert_eq!(options.guess_timeout, Duration::from_secs(2));
        let options = options_of("socktrail record --dns-enabled false --dns-interface any file");
        assert_eq!((options.dns.enabled, options.dns.interface), (false, None));
    }

    #[test]
    fn without_flags_options_are_the_monitors_defaults() {
        for line in ["socktrail flows", "socktrail agent --config file"] {
            assert_eq!(format!("{:?}", options_of(line)), format!("{:?}", Options::default()), "{line}");
        }
    }
}
