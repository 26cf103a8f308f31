//! Layers, origins and mistakes.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::config::DnsType;
use crate::model::accounting::Accounting;
use crate::model::backend::Backend;
use crate::model::socket_event::Actions;

/// A folder with one configuration file.
struct Written {
    folder: TempDir,
    name: &'static str,
}

fn file(name: &'static str, text: &str) -> Written {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(name), text).unwrap();
    Written { folder, name }
}

impl Written {
    fn loader(&self) -> Loader {
        Loader::new().file(self.path())
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(self.name)
    }

    /// The problems that are reported, without the path.
    fn problems(&self) -> Vec<String> {
        let prefix = self.path().display().to_string();
        let ConfigError(problems) = self.loader().load().unwrap_err();
        problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect()
    }
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn origin(loaded: &Loaded, key: &str) -> String {
    loaded.resolved.iter().find(|resolved| resolved.key == key).unwrap().origin.clone()
}

#[test]
fn each_layer_overrides_those_before_it() {
    let written = file(
        "a.yml",
        "socket.flow_inactive_timeout: 10s\nsocket.flow_termination_timeout: 1s\nsocket.guess_timeout: 20s\n",
    );
    let environment =
        [("SOCKTRAIL_SOCKET_FLOW_TERMINATION_TIMEOUT", "2s"), ("SOCKTRAIL_SOCKET_GUESS_TIMEOUT", "21s"), ("HOME", "/")];
    let loader = written.loader().environment(variables(&environment));
    let loaded = loader.set(["socket.guess_timeout=22s".to_owned()]).load().unwrap();
    let options = loaded.config.monitor();
    assert_eq!(options.socket_inactive_timeout, Duration::from_secs(60));
    assert_eq!(options.flow_inactive_timeout, Duration::from_secs(10));
    assert_eq!(options.flow_termination_timeout, Duration::from_secs(2));
    assert_eq!(options.guess_timeout, Duration::from_secs(22));
    assert_eq!(origin(&loaded, "socket.socket_inactive_timeout"), "default");
    assert_eq!(origin(&loaded, "socket.flow_inactive_timeout"), format!("{}:1", written.path().display()));
    assert_eq!(
        origin(&loaded, "socket.flow_termination_timeout"),
        "environment variable SOCKTRAIL_SOCKET_FLOW_TERMINATION_TIMEOUT"
    );
    assert_eq!(origin(&loaded, "socket.guess_timeout"), "command line");
}

#[test]
fn every_option_reaches_the_monitor() {
    let written = file(
        "a.yaml",
        "socket:
  tracefs_path: /t
  enable_ipv6: false
  flow_inactive_timeout: 1s
  flow_termination_timeout: 2s
  socket_inactive_timeout: 3s
  perf_queue_size: 4
  lost_queue_size: 13
  ring_size_exponent: 5
  backend: cgroup
  cgroup: /c
  accounting: samples
  max_conversations: 12
  clock_max_drift: 6s
  clock_sync_period: 14s
  guess_timeout: 7s
  flow_report_interval: 8s
  source: file:/layout
  max_flows: 9
  max_sockets: 10
  max_processes: 11
  mask: [tcp_v4_rcv]
  dns: {enabled: false, type: af_packet, ports: [53, 5353], af_packet: {interface: eth0, snaplen: 512}}
filter:
  exclude_loopback: true
  ports: {only: [80], exclude: [22]}
  networks: {only: [10.0.0.0/8], exclude: ['fd00::/8']}
  uids: {only: [0], exclude: [2]}
  pids: {only: [3], exclude: [1]}
document.direction: inbound
events.actions: [bind, close]
",
    );
    let Loaded { config, .. } = written.loader().load().unwrap();
    let options = config.monitor();
    let seconds = Duration::from_secs;
    assert_eq!(options.tracefs_path, Some("/t".into()));
    assert_eq!(options.enable_ipv6, Some(false));
    assert_eq!((options.flow_inactive_timeout, options.flow_termination_timeout), (seconds(1), seconds(2)));
    assert_eq!((options.socket_inactive_timeout, options.perf_queue_size), (seconds(3), 4));
    assert_eq!((options.lost_queue_size, options.ring_size_exponent), (13, 5));
    assert_eq!((options.clock_max_drift, options.clock_sync_period), (seconds(6), seconds(14)));
    assert_eq!((options.backend, options.cgroup), (Backend::Cgroup, Some("/c".into())));
    assert_eq!((options.accounting, options.max_conversations), (Accounting::Samples, 12));
    assert_eq!((options.guess_timeout, options.flow_report_interval), (seconds(7), Some(seconds(8))));
    assert_eq!(options.source, socktrail_guess::LayoutSource::File("/layout".into()));
    assert_eq!((options.max_flows, options.max_sockets, options.max_processes), (9, 10, 11));
    assert_eq!(options.mask, ["tcp_v4_rcv"]);
    assert_eq!((options.dns.enabled, options.dns.snaplen), (false, 512));
    assert_eq!((options.dns.interface.as_deref(), &*options.dns.ports), (Some("eth0"), &[53, 5353][..]));
    assert_eq!(config.socket.dns.r#type, DnsType::AfPacket);
    assert!(options.filter.exclude_loopback);
    assert_eq!((&*options.filter.ports.only, &*options.filter.ports.exclude), (&[80][..], &[22][..]));
    assert_eq!(options.filter.networks.only, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(options.filter.networks.exclude, ["fd00::/8".parse().unwrap()]);
    assert_eq!((&*options.filter.uids.only, &*options.filter.uids.exclude), (&[0][..], &[2][..]));
    assert_eq!((&*options.filter.pids.only, &*options.filter.pids.exclude), (&[3][..], &[1][..]));
    assert_eq!(options.socket_events, Actions::BIND.or(Actions::CLOSE));
    assert_eq!(config.document.direction, crate::documents::ecs::Directions::Inbound);
}

#[test]
fn sensors_get_their_events_in_addition_to_events_actions() {
    let written = file("a.yml", "events.actions: [setsockopt]\nsensors.files: [/etc/sensors.yml]\n");
    let config = written.loader().load().unwrap().config;
    assert_eq!(config.monitor().socket_events, Actions::SENSORS.or(Actions::SETSOCKOPT));
    assert_eq!(config.events.action_set(), Actions::SETSOCKOPT);
    assert!(config.sensors.read().unwrap_err().to_string().contains("/etc/sensors.yml"));
}

#[test]
fn an_empty_configuration_gives_the_monitors_default_options() {
    let (ours, theirs) = (Config::default().monitor(), crate::monitor::Options::default());
    assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
}

#[test]
fn text_from_outside_a_file_takes_the_type_of_its_key() {
    let environment = [
        ("SOCKTRAIL_SOCKET_DNS_PORTS", "53, 5353"),
        ("SOCKTRAIL_SOCKET_ENABLE_IPV6", "false"),
        ("SOCKTRAIL_SOCKET_DNS_AF_PACKET_INTERFACE", "12"),
        ("SOCKTRAIL_SOCKET_PERF_QUEUE_SIZE", "7"),
    ];
    let socket = Loader::new().environment(variables(&environment)).load().unwrap().config.socket;
    assert_eq!((&*socket.dns.ports, socket.enable_ipv6), (&[53, 5353][..], Some(false)));
    assert_eq!((&*socket.dns.af_packet.interface, socket.perf_queue_size), ("12", 7));
}

#[test]
fn flags_set_their_keys_over_the_environment() {
    let flags = [("dns-port", "53,5353"), ("exclude-loopback", "true"), ("max-flows", "9"), ("dns-interface", "12")];
    let loader = Loader::new().environment(variables(&[("SOCKTRAIL_SOCKET_MAX_FLOWS", "8")]));
    let loaded = loader.flags(variables(&flags)).load().unwrap();
    let options = loaded.config.monitor();
    assert_eq!((&*options.dns.ports, options.dns.interface.as_deref()), (&[53, 5353][..], Some("12")));
    assert!(options.filter.exclude_loopback);
    assert_eq!((options.max_flows, &*origin(&loaded, "socket.max_flows")), (9, "--max-flows"));
    let wrong = Loader::new().flags(variables(&[("ring-size-exponent", "99")])).load().unwrap_err();
    assert_eq!(wrong.to_string(), "--ring-size-exponent: socket.ring_size_exponent: 99 is not within 1 to 14");
}

#[test]
fn all_mistakes_are_reported_each_with_its_line_and_key() {
    let written = file(
        "a.yml",
        "socket.enable_ipv6: maybe
socket:
  flow_inactive_timeout: 30
  perf_queue_size: -1
  enable_ip6: true
  dns.type: netlink
  ring_size_exponent: 300
filter.networks.only: [10.0.0.0/33]
socket.dns: 5
",
    );
    let problems = written.problems();
    for (problem, expected) in problems.iter().zip([
        ":1: socket.enable_ipv6: expected true or false, found text",
        ":3: socket.flow_inactive_timeout: a time needs a unit: 30s, 30ms, 30min",
        ":4: socket.perf_queue_size: expected a whole number that is not negative",
        ":5: socket.enable_ip6: is not known; is socket.enable_ipv6 meant?",
        ":6: socket.dns.type: expected one of af_packet",
        ":7: socket.ring_size_exponent: expected a whole number up to 255",
        ":8: filter.networks.only: \"10.0.0.0/33\" is not a network",
        ":9: socket.dns: is a section, not a value",
    ]) {
        assert!(problem.starts_with(expected), "{problem:?} does not start with {expected:?}");
    }
    assert_eq!(problems.len(), 8, "{problems:#?}");
}

#[test]
fn values_out_of_bounds_and_duplicate_keys_are_reported_with_their_line() {
    let written = file("a.toml", "[socket]\nring_size_exponent = 15\n");
    assert_eq!(written.problems(), [":2: socket.ring_size_exponent: 15 is not within 1 to 14"]);
    let written = file("a.yml", "socket.dns:\n  af_packet.snaplen: 1\n");
    assert_eq!(written.problems(), [":2: socket.dns.af_packet.snaplen: 1 is not within 128 to 65535"]);
    let written = file("a.yml", "socket.guess_timeout: 1s\nsocket: {guess_timeout: 2s}\n");
    let path = written.path();
    assert_eq!(
        written.loader().load().unwrap_err().to_string(),
        format!("{0}:2: socket.guess_timeout: is already set at {0}:1", path.display())
    );
}

#[test]
fn all_unknown_actions_are_reported() {
    let written = file("a.yml", "events.actions: [bnd, bind, lsten]\n");
    let [first, second] = &written.problems()[..] else { panic!("two problems") };
    assert!(first.contains("\"bnd\" is not one of") && second.contains("\"lsten\" is not one of"), "{first} {second}");
}

#[test]
fn a_url_in_capital_letters_is_refused() {
    let hosts = "output.elasticsearch.hosts=HTTPS://localhost:9200".to_owned();
    let problem = Loader::new().set([hosts]).load().unwrap_err().to_string();
    assert!(problem.contains("expected a URL that begins with https:// or http://"), "{problem}");
}

#[test]
fn mistakes_outside_a_file_name_their_place() {
    let environment = variables(&[("SOCKTRAIL_SOCKET_ENABLE_IPV6", "5"), ("SOCKTRAIL_SOKET", "x")]);
    let loader = Loader::new().environment(environment);
    let ConfigError(problems) = loader.set(["socket.dns".to_owned(), "socket.mask".to_owned()]).load().unwrap_err();
    let messages: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        messages[0],
        "environment variable SOCKTRAIL_SOCKET_ENABLE_IPV6: socket.enable_ipv6: expected true or false, found a number"
    );
    assert_eq!(messages[1], "environment variable SOCKTRAIL_SOKET: does not name a known key");
    assert!(messages[2].starts_with("command line: socket.dns: is a section"), "{}", messages[2]);
    assert_eq!(messages[3], "command line: socket.mask: expected KEY=VALUE");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let problem = |loader: Loader| loader.load().unwrap_err().to_string();
    assert!(problem(Loader::new().file("/no/such.yml")).starts_with("/no/such.yml: No such file"));
    assert!(problem(Loader::new().file("/etc/hostname")).contains(".yml, .yaml or .toml"));
    let written = file("a.yml", "");
    fs::write(written.path(), b"a: 1\nb: \xff\n").unwrap();
    assert!(written.problems()[0].contains("line 2 is not UTF-8"));
    fs::write(written.path(), vec![b'#'; 2 << 20]).unwrap();
    assert!(written.problems()[0].contains("too large for a configuration"));
}

#[test]
fn an_unencrypted_password_or_api_key_gives_a_note() {
    let written = file("a.yml", "output.elasticsearch:\n  hosts: ['http://localhost:9200']\n  api_key: 'a:b'\n");
    let notes = written.loader().load().unwrap().notes;
    assert_eq!(notes.len(), 1);
    assert!(
        notes[0].to_string().contains(":2: output.elasticsearch.hosts: the password or API key is sent unencrypted")
    );
    assert_eq!(Loader::new().load().unwrap().notes, []);
}
