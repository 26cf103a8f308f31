//! Documents against the published sample, published vectors, and times computed by hand.

use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::*;
use crate::documents::ecs::{Directions, network_flow};
use crate::host::{Boot, Os};
use crate::model::clock::{Clock, Readings, Timestamp};
use crate::model::flow::{Counters, Direction, Endpoint, Inexact, Outcome, Reason, Transport};
use crate::model::kernel_address::SockAddress;
use crate::model::names::UserNames;
use crate::model::process::{self, Credentials, Details, Image};
use crate::model::testing::{monotonic, since_boot};

struct Vagrant;

impl UserNames for Vagrant {
    fn user(&self, uid: u32) -> Option<Arc<str>> {
        (uid == 1000).then(|| "vagrant".into())
    }

    fn group(&self, gid: u32) -> Option<Arc<str>> {
        self.user(gid)
    }
}

fn host() -> Host {
    let some = |text: &str| Some(text.to_owned());
    Host {
        name: some("stretch"),
        hostname: some("stretch"),
        id: some("b3531219b5b4449eadbec59d47945649"),
        architecture: some("x86_64"),
        os: Os {
            kernel: some("4.9.0-8-amd64"),
            name: some("Debian GNU/Linux"),
            version: some("9 (stretch)"),
            codename: some("stretch"),
            platform: some("debian"),
            family: Some("debian".into()),
            ..Os::default()
        },
        containerized: false,
        boot: Some(Boot { id: "88a1f0ed-5ae5-41ee-af6b-41921c311872".into() }),
    }
}

fn agent() -> Agent {
    Agent {
        id: "88862e07-b13a-4166-b1ef-b3e55b4a0cf2".into(),
        ephemeral_id: "f7b0ab1a-da9e-4525-9252-59ecb68139f8".into(),
        ..Agent::of(&host())
    }
}

/// Boot was at 2019-08-22T20:00:00Z, which is 1566504000 by `date +%s`; the host never slept.
fn clock() -> Clock {
    Clock::from_readings(Readings {
        kernel: monotonic(0),
        boot: since_boot(0),
        wall: Timestamp::from_unix_nanos(1_566_504_000_000_000_000),
    })
}

fn curl() -> process::Process {
    process::Process {
        pid: 4970,
        parent_pid: Some(4900),
        // 46 minutes, 34.928 seconds after boot.
        start: Some(since_boot(2_794_928_000_000)),
        kernel: false,
        credentials: Some(Credentials { uid: 1000, gid: 1000, euid: 1000, egid: 1000 }),
        control_groups: None,
        image: Arc::new(Image {
            name: "curl".into(),
            executable: Some(PathBuf::from("/usr/bin/curl")),
            args: ["curl", "http://elastic.co/", "-o", "/dev/null"].map(str::to_owned).to_vec(),
            ..Image::default()
        }),
    }
}

/// The flow of the sample document in Auditbeat's manual.
fn flow() -> Flow {
    Flow {
        number: 7,
        transport: Transport::Tcp,
        local: Endpoint::new([10, 0, 2, 15], 40192),
        remote: Endpoint::new([151, 101, 66, 217], 80),
        sock: SockAddress::new(0xffff_8de2_9d33_7000),
        net: None,
        direction: Direction::Egress,
        owner: Owner::Process(Arc::new(curl())),
        // 46 minutes, 35.001 seconds after boot.
        start: monotonic(2_795_001_000_000),
        end: monotonic(2_795_031_728_600),
        sent: Counters { packets: 5, bytes: 294 },
        received: Counters { packets: 5, bytes: 437 },
        dropped: Counters::default(),
        complete: true,
        is_final: true,
        outcome: Outcome::Success,
        reason: Reason::Closed,
        inexact: Inexact::default(),
        last_user: None,
        domain: None,
    }
}

fn document(flow: &Flow) -> Value {
    let (host, agent) = (host(), agent());
    let context =
        Context { host: &host, agent: &agent, clock: clock(), names: &Vagrant, directions: Directions::Inbound };
    serde_json::to_value(network_flow(flow, &context)).expect("a document always serializes")
}

/// Each key of the sample. Comments beside the values say where they differ from the sample's.
#[test]
fn every_key_of_the_sample_is_there() {
    let document = document(&flow());
    let sample = [
        ("/@timestamp", json!("2019-08-22T20:46:35.031Z")), // in the sample, when it was written: five seconds later
        ("/server/ip", json!("151.101.66.217")),
        ("/server/port", json!(80)),
        ("/server/packets", json!(5)),
        ("/server/bytes", json!(437)),
        ("/user/name", json!("vagrant")),
        ("/user/id", json!("1000")),
        ("/network/packets", json!(10)),
        ("/network/bytes", json!(731)),
        ("/network/community_id", json!("1:jdjL1TkdpF1v1GM0+JxRRp+V7KI=")),
        ("/network/direction", json!("outbound")),
        ("/network/type", json!("ipv4")),
        ("/network/transport", json!("tcp")),
        ("/group/id", json!("1000")),
        ("/group/name", json!("vagrant")),
        ("/client/ip", json!("10.0.2.15")),
        ("/client/port", json!(40192)),
        ("/client/packets", json!(5)),
        ("/client/bytes", json!(294)),
        ("/event/duration", json!(30_728_600)),
        ("/event/module", json!("system")),
        ("/event/dataset", json!("socket")),
        ("/event/kind", json!("event")),
        ("/event/action", json!("network_flow")),
        ("/event/category", json!(["network"])), // an array since ECS 1.3
        ("/event/start", json!("2019-08-22T20:46:35.001000000Z")), // nanoseconds
        ("/event/end", json!("2019-08-22T20:46:35.031728600Z")),
        ("/ecs/version", json!("8.17.0")),
        ("/host/name", json!("stretch")),
        ("/host/containerized", json!(false)),
        ("/host/hostname", json!("stretch")),
        ("/host/architecture", json!("x86_64")),
        ("/host/os/name", json!("Debian GNU/Linux")),
        ("/host/os/kernel", json!("4.9.0-8-amd64")),
        ("/host/os/codename", json!("stretch")),
        ("/host/os/platform", json!("debian")),
        ("/host/os/version", json!("9 (stretch)")),
        ("/host/os/family", json!("debian")),
        ("/host/id", json!("b3531219b5b4449eadbec59d47945649")),
        ("/agent/version", json!(env!("CARGO_PKG_VERSION"))),
        ("/agent/type", json!("socktrail")),
        ("/agent/ephemeral_id", json!("f7b0ab1a-da9e-4525-9252-59ecb68139f8")),
        ("/agent/hostname", json!("stretch")),
        ("/agent/id", json!("88862e07-b13a-4166-b1ef-b3e55b4a0cf2")),
        ("/process/pid", json!(4970)),
        ("/process/name", json!("curl")),
        ("/process/args", json!(["curl", "http://elastic.co/", "-o", "/dev/null"])),
        ("/process/executable", json!("/usr/bin/curl")),
        ("/process/created", json!("2019-08-22T20:46:34.928Z")),
        ("/system/audit/socket/kernel_sock_address", json!("0xffff8de29d337000")),
        ("/system/audit/socket/uid", json!(1000)),
        ("/system/audit/socket/gid", json!(1000)),
        ("/system/audit/socket/euid", json!(1000)),
        ("/system/audit/socket/egid", json!(1000)),
        ("/destination/ip", json!("151.101.66.217")),
        ("/destination/port", json!(80)),
        ("/destination/packets", json!(5)),
        ("/destination/bytes", json!(437)),
        ("/source/port", json!(40192)),
        ("/source/packets", json!(5)),
        ("/source/bytes", json!(294)),
        ("/source/ip", json!("10.0.2.15")),
        ("/flow/final", json!(true)),
        ("/flow/complete", json!(true)),
        ("/service/type", json!("system")),
    ];
    for (path, value) in sample {
        assert_eq!(document.pointer(path), Some(&value), "{path}");
    }
}

#[test]
fn keys_that_the_sample_does_not_have() {
    let document = document(&flow());
    for (path, value) in [
        ("/event/type", json!(["connection", "end"])),
        ("/event/outcome", json!("success")),
        ("/event/reason", json!("closed")),
        ("/flow/id", json!("f7b0ab1ada9e4525-7")),
        ("/network/iana_number", json!("6")),
        ("/process/args_count", json!(4)),
        ("/process/command_line", json!("curl http://elastic.co/ -o /dev/null")),
        ("/process/start", json!("2019-08-22T20:46:34.928Z")),
        ("/process/parent/pid", json!(4900)),
        ("/user/effective", json!({"id": "1000", "name": "vagrant"})),
        ("/related", json!({"ip": ["10.0.2.15", "151.101.66.217"], "user": ["vagrant"]})),
        ("/host/os/type", json!("linux")),
        ("/host/boot/id", json!("88a1f0ed-5ae5-41ee-af6b-41921c311872")),
        ("/system/audit/socket/owner", json!("process")),
    ] {
        assert_eq!(document.pointer(path), Some(&value), "{path}");
    }
    assert_eq!(document.pointer("/process/entity_id").and_then(Value::as_str).map(str::len), Some(24));
}

#[test]
fn for_ingress_the_source_is_the_remote_end() {
    let document = document(&Flow { direction: Direction::Ingress, ..flow() });
    assert_eq!(document["source"], json!({"ip": "151.101.66.217", "port": 80, "packets": 5, "bytes": 437}));
    assert_eq!(document["destination"], json!({"ip": "10.0.2.15", "port": 40192, "packets": 5, "bytes": 294}));
    assert_eq!((&document["client"], &document["server"]), (&document["source"], &document["destination"]));
    assert_eq!(document["network"]["direction"], "inbound");
    assert_eq!(document["network"]["community_id"], "1:jdjL1TkdpF1v1GM0+JxRRp+V7KI=");
}

#[test]
fn if_the_direction_is_unknown_the_lower_port_is_the_destination() {
    let unknown = |local, remote| {
        let local = Endpoint::new([192, 0, 2, 1], local);
        let remote = Endpoint::new([192, 0, 2, 2], remote);
        document(&Flow { direction: Direction::Unknown, local, remote, ..flow() })
    };
    assert_eq!(unknown(22, 50000)["source"]["ip"], "192.0.2.2");
    assert_eq!(unknown(50000, 22)["source"]["ip"], "192.0.2.1");
    assert_eq!(unknown(123, 123)["source"]["ip"], "192.0.2.1");
    assert_eq!(unknown(22, 50000)["network"]["direction"], "unknown");
}

#[test]
fn by_default_directions_have_the_names_of_ecs() {
    let (host, agent, flow) = (host(), agent(), flow());
    let directions = Directions::default();
    let context = Context { host: &host, agent: &agent, clock: clock(), names: &(), directions };
    let json = serde_json::to_value(network_flow(&flow, &context)).unwrap();
    assert_eq!(json["network"]["direction"], "egress");
    assert_eq!(json["user"], json!({"id": "1000", "effective": {"id": "1000"}}), "no key for an unknown name");
    assert_eq!(json["related"]["user"], json!(["1000"]));
}

#[test]
fn a_refused_connection() {
    let refused = document(&Flow { outcome: Outcome::Failure(111), ..flow() });
    assert_eq!(refused["event"]["outcome"], "failure");
    assert_eq!(refused["error"], json!({"code": "ECONNREFUSED", "message": "Connection refused"}));
    let unexplained = document(&Flow { outcome: Outcome::Failure(0), ..flow() });
    assert_eq!(unexplained["event"]["outcome"], "failure");
    assert_eq!(unexplained.get("error"), None);
}

#[test]
fn an_incomplete_report_that_is_not_the_last() {
    let inexact = Inexact { samples_lost: true, datagram_segments: true, ..Inexact::default() };
    let document = document(&Flow { is_final: false, complete: false, inexact, reason: Reason::Shutdown, ..flow() });
    assert_eq!(document["event"]["type"], json!(["connection", "info"]));
    assert_eq!(document["event"]["reason"], "shutdown");
    let inexact = json!(["samples_lost", "datagram_segments"]);
    let flow = json!({"id": "f7b0ab1ada9e4525-7", "final": false, "complete": false, "inexact": inexact});
    assert_eq!(document["flow"], flow);
}

#[test]
fn owners_without_a_known_process() {
    for (owner, name) in [(Owner::Kernel, "kernel"), (Owner::Unknown, "unknown")] {
        let document = document(&Flow { owner, ..flow() });
        assert_eq!(document["system"]["audit"]["socket"]["owner"], name);
        for key in ["process", "user", "group", "container"] {
            assert_eq!(document.get(key), None, "{key}");
        }
        assert_eq!(document["related"].get("user"), None);
        assert_eq!(document["system"]["audit"]["socket"].get("uid"), None);
    }
}

#[test]
fn a_process_with_few_known_properties() {
    let bare = process::Process {
        pid: 1,
        parent_pid: None,
        start: None,
        kernel: true,
        credentials: None,
        control_groups: None,
        image: Arc::default(),
    };
    let document = document(&Flow { owner: Owner::Process(Arc::new(bare)), ..flow() });
    assert_eq!(document["process"], json!({"pid": 1}));
    assert_eq!(document["system"]["audit"]["socket"]["owner"], "kernel");
    assert_eq!(document.get("user"), None);
}

#[test]
fn details_from_proc_are_added() {
    let details = Details {
        executable: Some("/usr/lib/curl".into()),
        working_directory: Some("/home/vagrant".into()),
        container_id: Some("0123abcd".into()),
        ..Details::default()
    };
    let image = Image { details: OnceLock::from(details), args_cut: true, ..Image::clone(&curl().image) };
    let owner = Owner::Process(Arc::new(process::Process { image: Arc::new(image), ..curl() }));
    let document = document(&Flow { owner, ..flow() });
    assert_eq!(document["process"]["executable"], "/usr/lib/curl");
    assert_eq!(document["process"]["working_directory"], "/home/vagrant");
    assert_eq!(document["container"], json!({"id": "0123abcd"}));
    assert_eq!(document["system"]["audit"]["socket"]["args_cut"], true);
}

#[test]
fn setuid_shows_both_users() {
    let credentials = Some(Credentials { uid: 1000, gid: 1000, euid: 0, egid: 1000 });
    let owner = Owner::Process(Arc::new(process::Process { credentials, ..curl() }));
    let document = document(&Flow { owner, ..flow() });
    assert_eq!(document["user"], json!({"id": "1000", "name": "vagrant", "effective": {"id": "0"}}));
    assert_eq!(document["related"]["user"], json!(["vagrant", "0"]));
}

#[test]
fn a_host_that_talks_to_itself_is_related_once() {
    let here = |port| Endpoint::new(std::net::Ipv6Addr::LOCALHOST, port);
    let document = document(&Flow { local: here(40000), remote: here(80), ..flow() });
    assert_eq!(document["related"]["ip"], json!(["::1"]));
    assert_eq!(document["network"]["type"], "ipv6");
}

/// From the published baseline of the Community ID specification, with either end as the local one.
#[test]
fn community_ids() {
    for (transport, one, other, id) in [
        (Transport::Tcp, "128.232.110.120:34855", "66.35.250.204:80", "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
        (Transport::Udp, "192.168.1.52:54585", "8.8.8.8:53", "1:d/FP5EW3wiY1vCndhwleRRKHowQ="),
        (Transport::Tcp, "[::ffff:128.232.110.120]:34855", "66.35.250.204:80", "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
    ] {
        let end = |text: &str| {
            let address: std::net::SocketAddr = text.parse().unwrap();
            Endpoint { ip: address.ip(), port: address.port() }
        };
        for (local, remote) in [(one, other), (other, one)] {
            let document = document(&Flow { transport, local: end(local), remote: end(remote), ..flow() });
            assert_eq!(document["network"]["community_id"], id, "{local} {remote}");
        }
    }
}

/// No value is null, an empty string or an empty object. (Arguments of a process may be empty strings; these are not.)
#[test]
fn nothing_is_empty() {
    fn check(value: &Value, path: &str) {
        match value {
            Value::Null => panic!("{path} is null"),
            Value::String(text) => assert!(!text.is_empty(), "{path} is empty"),
            Value::Array(items) => items.iter().for_each(|item| check(item, path)),
            Value::Object(keys) => {
                assert!(!keys.is_empty(), "{path} is empty");
                keys.iter().for_each(|(key, value)| check(value, &format!("{path}/{key}")));
            }
            Value::Bool(_) | Value::Number(_) => {}
        }
    }
    check(&document(&flow()), "");
    check(&document(&Flow { owner: Owner::Unknown, sock: None, ..flow() }), "");
}
