//! Recordings made by hand: what is written is read, and damage is reported.

use socktrail_dns::Packet;
use socktrail_kprobes::Record;

use super::blocks::{BlockReader, BlockWriter};
use super::entries::{
    Entries, Entry, EventEntry, FoundEntry, Header, LearnedEntry, MissedEntry, NameEntry, ProcessEntry, SocketEntry,
};
use super::*;
use crate::host::Host;
use crate::model::clock::{Clock, Readings, Timestamp};
use crate::model::control_groups::ControlGroups;
use crate::model::event::SourceCapabilities;
use crate::model::flow::{Owner, Transport};
use crate::model::names::UserNames;
use crate::model::process::Details;
use crate::model::testing::{monotonic, since_boot};
use crate::source::fake::{dns_packet, query_and_response};
use crate::source::kprobes::Feature;
use crate::state::StateConfig;

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const PID: u32 = 700;
pub(crate) const SOCK: u64 = 0xffff_8880_0000_1000;

/// `sock_init_data`'s samples, as a 6.1 kernel lays them out.
pub(crate) const CREATED: &str = "name: socket_create\nID: 1500\nformat:\n\
    \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
    \tfield:unsigned long __probe_ip;\toffset:8;\tsize:8;\tsigned:0;\n\
    \tfield:u64 sk;\toffset:16;\tsize:8;\tsigned:0;\n\
    \tfield:u16 family;\toffset:24;\tsize:2;\tsigned:0;\n\
    \tfield:u8 bits;\toffset:26;\tsize:1;\tsigned:0;\n";

/// `udp_queue_rcv_one_skb`'s.
pub(crate) const UDP_IN: &str = "name: udp_ipv4_in\nID: 1501\nformat:\n\
    \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
    \tfield:u64 net;\toffset:16;\tsize:8;\tsigned:0;\n\
    \tfield:u64 sk;\toffset:24;\tsize:8;\tsigned:0;\n\
    \tfield:u64 lengths;\toffset:32;\tsize:8;\tsigned:0;\n\
    \tfield:u32 headers;\toffset:40;\tsize:4;\tsigned:0;\n\
    \tfield:u64 addresses;\toffset:44;\tsize:8;\tsigned:0;\n\
    \tfield:u32 ports;\toffset:52;\tsize:4;\tsigned:0;\n\
    \tfield:u16 fragment;\toffset:56;\tsize:2;\tsigned:0;\n";

/// `security_bprm_committed_creds`'s.
pub(crate) const COMMITTED: &str = "name: process_exec\nID: 1502\nformat:\n\
    \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
    \tfield:s32 argc;\toffset:16;\tsize:4;\tsigned:1;\n\
    \tfield:u64 filename[32];\toffset:20;\tsize:256;\tsigned:0;\n\
    \tfield:u64 interpreter[32];\toffset:276;\tsize:256;\tsigned:0;\n\
    \tfield:u64 args_0[64];\toffset:532;\tsize:512;\tsigned:0;\n\
    \tfield:u64 args_1[64];\toffset:1044;\tsize:512;\tsigned:0;\n";

/// `commit_creds`'s.
const CREDENTIALS: &str = "name: credentials\nID: 1503\nformat:\n\
    \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
    \tfield:u32 uid;\toffset:16;\tsize:4;\tsigned:0;\n\
    \tfield:u32 gid;\toffset:20;\tsize:4;\tsigned:0;\n\
    \tfield:u32 euid;\toffset:24;\tsize:4;\tsigned:0;\n\
    \tfield:u32 egid;\toffset:28;\tsize:4;\tsigned:0;\n";

pub(crate) fn header() -> Header {
    Header {
        recorder: "0.1.0".into(),
        host: Host { hostname: Some("guest".into()), ..Host::default() },
        ephemeral_id: "f7b0ab1a-da9e-4525-9252-59ecb68139f8".into(),
        clock: Clock::from_readings(Readings { kernel: monotonic(0), boot: since_boot(0), wall: Timestamp::default() }),
        own_pid: 1,
        dns_ports: vec![53],
        capabilities: SourceCapabilities::default(),
        layout: serde_json::Value::Null,
    }
}

fn event(feature: Feature, function: &str, format: &str) -> Entry<'static> {
    Entry::Event(EventEntry { feature, function: function.into(), format: format.into() })
}

/// One datagram of 100 bytes from 192.0.2.1:53 to 192.0.2.2:4000.
pub(crate) fn datagram() -> Vec<u8> {
    let mut raw = vec![0; 58];
    raw[24..32].copy_from_slice(&SOCK.to_ne_bytes());
    raw[32..36].copy_from_slice(&80_u32.to_ne_bytes());
    raw[40..42].copy_from_slice(&120_u16.to_ne_bytes());
    raw[42..44].copy_from_slice(&100_u16.to_ne_bytes());
    raw[44..52].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    raw[52..56].copy_from_slice(&[0, 53, 0x0f, 0xa0]);
    raw
}

fn process() -> Entry<'static> {
    Entry::Process(ProcessEntry {
        pid: PID,
        parent_pid: Some(1),
        start: Some(since_boot(5)),
        kernel: false,
        credentials: None,
        control_groups: None,
        name: "named".into(),
        executable: None,
        args: vec!["named".into()],
        args_cut: false,
        details: None,
        threads: None,
    })
}

fn sample(time: u64, id: u16, raw: &[u8]) -> Entry<'_> {
    Entry::Record(Record::Sample { time, cpu: 0, pid: PID, tid: PID, id, raw })
}

fn recording() -> Vec<u8> {
    recording_with(&[event(Feature::ProcessExec, "security_bprm_committed_creds", COMMITTED)])
}

/// A recording that also has these events, but no samples of them.
fn recording_with(events: &[Entry<'static>]) -> Vec<u8> {
    let (created, datagram) = (created(SOCK), datagram());
    let header = [Entry::Header(Box::new(header()))];
    let rest = [
        event(Feature::SocketCreate, "sock_init_data", CREATED),
        event(Feature::UdpIpv4In, "udp_queue_rcv_one_skb", UDP_IN),
        process(),
        Entry::Name(NameEntry { group: false, id: 53, name: Some("bind".into()) }),
        sample(SECOND, 1500, &created),
        sample(2 * SECOND, 1501, &datagram),
        Entry::CompleteUntil(monotonic(3 * SECOND)),
        Entry::CompleteUntil(monotonic(40 * SECOND)),
        Entry::End,
    ];
    written(header.iter().chain(events).chain(&rest))
}

fn written<'a>(entries: impl IntoIterator<Item = &'a Entry<'a>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = BlockWriter::new(&mut bytes).unwrap();
    for entry in entries {
        entry.write(writer.buffer());
        // Each in a block of its own, so that damage hits one of them.
        writer.flush().unwrap();
    }
    bytes
}

fn replay(bytes: &[u8]) -> Result<(Vec<crate::model::flow::Flow>, Replayed), RecordingError> {
    let mut flows = Vec::new();
    let replayed = Replay::open(bytes, StateConfig::default())?.run(|flow, names| {
        assert_eq!(names.user(53).as_deref(), Some("bind"));
        flows.push(flow);
        Ok::<_, RecordingError>(())
    })?;
    Ok((flows, replayed))
}

/// A recording without events of execs does not say what its processes ran later.
#[test]
fn programs_are_not_known_where_no_execs_were_recorded() {
    let name = |events: &[Entry<'static>]| {
        let (flows, _) = replay(&recording_with(events)).unwrap();
        let Owner::Process(process) = &flows[0].owner else { panic!("{:?}", flows[0].owner) };
        process.image.name.clone()
    };
    assert_eq!(name(&[]), "");
    assert_eq!(name(&[event(Feature::Credentials, "commit_creds", CREDENTIALS)]), "named");
    assert_eq!(name(&[event(Feature::ProcessExec, "security_bprm_committed_creds", COMMITTED)]), "named");
}

#[test]
fn each_replay_gives_the_recorded_flows() {
    let (flows, replayed) = replay(&recording()).unwrap();
    let [flow] = &flows[..] else { panic!("{flows:#?}") };
    assert_eq!((flow.local.to_string(), flow.remote.to_string()), ("192.0.2.2:4000".into(), "192.0.2.1:53".into()));
    assert_eq!((flow.received.packets, flow.received.bytes), (1, 100));
    let Owner::Process(process) = &flow.owner else { panic!("{:?}", flow.owner) };
    assert_eq!(process.image.name, "named");
    assert!(replayed.complete && flow.is_final);
    assert_eq!(replay(&recording()).unwrap().0, flows);
}

/// A socket whose creation was not seen belongs to its holder at the beginning of the recording.
#[test]
fn a_socket_older_than_the_recording_has_its_owner() {
    let socket = SocketEntry {
        namespace: 1,
        transport: Transport::Udp,
        local: "192.0.2.2:4000".parse().unwrap(),
        remote: None,
        pid: PID,
    };
    let datagram = datagram();
    let recording = written(&[
        Entry::Header(Box::new(header())),
        event(Feature::UdpIpv4In, "udp_queue_rcv_one_skb", UDP_IN),
        process(),
        Entry::Socket(socket),
        Entry::Name(NameEntry { group: false, id: 53, name: Some("bind".into()) }),
        sample(2 * SECOND, 1501, &datagram),
        Entry::CompleteUntil(monotonic(40 * SECOND)),
        Entry::End,
    ]);
    let (flows, _) = replay(&recording).unwrap();
    let [flow] = &flows[..] else { panic!("{flows:#?}") };
    let Owner::Process(owner) = &flow.owner else { panic!("{:?}", flow.owner) };
    assert_eq!((owner.pid, flow.complete), (PID, false));
}

/// If the recorder saw whether sockets are made for programs, other sockets belong to the kernel. Otherwise they belong to the
/// process that made them.
#[test]
fn what_the_recorder_could_see_holds_for_the_replay() {
    let (created, datagram) = (created(SOCK), datagram());
    let owner_by = |capabilities| {
        let recording = written(&[
            Entry::Header(Box::new(Header { capabilities, ..header() })),
            event(Feature::SocketCreate, "sock_init_data", CREATED),
            event(Feature::UdpIpv4In, "udp_queue_rcv_one_skb", UDP_IN),
            process(),
            Entry::Name(NameEntry { group: false, id: 53, name: Some("bind".into()) }),
            sample(SECOND, 1500, &created),
            sample(2 * SECOND, 1501, &datagram),
            Entry::CompleteUntil(monotonic(40 * SECOND)),
            Entry::End,
        ]);
        let (mut flows, _) = replay(&recording).unwrap();
        flows.pop().expect("it was recorded").owner
    };
    assert_eq!(owner_by(SourceCapabilities { programs: true, ..SourceCapabilities::default() }), Owner::Kernel);
    assert!(matches!(owner_by(SourceCapabilities::default()), Owner::Process(process) if process.pid == PID));
}

pub(crate) fn created(sock: u64) -> Vec<u8> {
    let mut raw = vec![0; 27];
    raw[16..24].copy_from_slice(&sock.to_ne_bytes());
    raw
}

/// [`datagram`], to another socket and from another server.
pub(crate) fn datagram_of(sock: u64, from: ([u8; 4], u16), port: u16) -> Vec<u8> {
    let mut raw = datagram();
    raw[24..32].copy_from_slice(&sock.to_ne_bytes());
    raw[44..48].copy_from_slice(&from.0);
    raw[52..56].copy_from_slice(&[from.1, port].map(u16::to_be_bytes).concat());
    raw
}

/// A process looks up a name at a server on a port that the header names, and then has datagrams from that address.
fn looked_up(missed: Option<(u64, u64)>) -> Option<String> {
    let (client, server, peer) = (([192, 0, 2, 2], 4000), ([192, 0, 2, 1], 5300), ([192, 0, 2, 9], 443));
    let [query, response] = query_and_response();
    let (query, response) = (dns_packet(client, server, &query), dns_packet(server, client, &response));
    let (interface, ethertype) = (3, 0x0800);
    let (first, second) = (created(SOCK), created(SOCK + 64));
    let (earlier, later) = (datagram_of(SOCK, server, 4000), datagram_of(SOCK + 64, peer, 4001));
    let mut entries = vec![
        Entry::Header(Box::new(Header { dns_ports: vec![5300], ..header() })),
        event(Feature::SocketCreate, "sock_init_data", CREATED),
        event(Feature::UdpIpv4In, "udp_queue_rcv_one_skb", UDP_IN),
        process(),
        Entry::Name(NameEntry { group: false, id: 53, name: Some("bind".into()) }),
        Entry::Name(NameEntry { group: true, id: 53, name: Some("a group".into()) }),
        sample(SECOND, 1500, &first),
        sample(2 * SECOND, 1501, &earlier),
        Entry::Packet(Packet { time: 3 * SECOND, interface, ethertype, length: query.len(), bytes: &query }),
        Entry::Packet(Packet {
            time: 3 * SECOND + 1000,
            interface,
            ethertype,
            length: response.len(),
            bytes: &response,
        }),
    ];
    entries
        .extend(missed.map(|(since, until)| Entry::PacketsMissed { since: monotonic(since), until: monotonic(until) }));
    entries.extend([
        Entry::CompleteUntil(monotonic(4 * SECOND)),
        sample(5 * SECOND, 1500, &second),
        sample(6 * SECOND, 1501, &later),
        Entry::CompleteUntil(monotonic(7 * SECOND)),
        Entry::CompleteUntil(monotonic(60 * SECOND)),
        Entry::End,
    ]);
    let (flows, _) = replay(&written(&entries)).unwrap();
    let flow = flows.iter().find(|flow| flow.remote.port == 443).expect("it was recorded");
    flow.domain.as_ref().map(ToString::to_string)
}

#[test]
fn what_was_looked_up_names_flows_unless_answers_are_missing() {
    assert_eq!(looked_up(None).as_deref(), Some("a.example"));
    assert_eq!(looked_up(Some((3 * SECOND + 2000, 3 * SECOND + 5000))), None, "there may have been another name");
}

#[test]
fn an_answer_of_proc_is_about_the_process_that_it_names() {
    let found = |container: &str| FoundEntry {
        start: Some(since_boot(5)),
        parent_pid: None,
        credentials: None,
        control_groups: ControlGroups::default(),
        details: Details { container_id: Some(container.into()), ..Details::default() },
        read: monotonic(0),
    };
    let another = |entry| match entry {
        Entry::Process(process) => Entry::Process(ProcessEntry { pid: PID + 1, name: "other".into(), ..process }),
        entry => entry,
    };
    let (first, second) = (created(SOCK), created(SOCK + 64));
    let (earlier, later) =
        (datagram_of(SOCK, ([192, 0, 2, 1], 53), 1), datagram_of(SOCK + 64, ([192, 0, 2, 1], 53), 2));
    let created_by = |pid, raw| Entry::Record(Record::Sample { time: SECOND, cpu: 0, pid, tid: pid, id: 1500, raw });
    let recording = written(&[
        Entry::Header(Box::new(header())),
        event(Feature::SocketCreate, "sock_init_data", CREATED),
        event(Feature::UdpIpv4In, "udp_queue_rcv_one_skb", UDP_IN),
        process(),
        another(process()),
        Entry::Name(NameEntry { group: false, id: 53, name: Some("bind".into()) }),
        created_by(PID, &first),
        created_by(PID + 1, &second),
        sample(2 * SECOND, 1501, &earlier),
        sample(2 * SECOND, 1501, &later),
        // The second is answered first.
        Entry::Learned(LearnedEntry { pid: Some(PID + 1), found: Some(found("second")) }),
        Entry::Learned(LearnedEntry { pid: Some(PID), found: Some(found("first")) }),
        Entry::CompleteUntil(monotonic(60 * SECOND)),
        Entry::End,
    ]);
    let (mut flows, _) = replay(&recording).unwrap();
    flows.sort_by_key(|flow| flow.local.port);
    let container = |flow: &crate::model::flow::Flow| match &flow.owner {
        Owner::Process(process) => process.container_id().map(str::to_owned),
        other => panic!("{other:?}"),
    };
    assert_eq!(flows.iter().map(container).collect::<Vec<_>>(), [Some("first".into()), Some("second".into())]);
}

#[test]
fn misses_of_a_probe_mark_the_flows_that_depend_on_it() {
    let missed = |feature| MissedEntry { feature, count: 1, since: monotonic(2 * SECOND), time: monotonic(3 * SECOND) };
    for (feature, is_marked) in [(Feature::UdpIpv4In, true), (Feature::TcpIpv4In, false)] {
        let (created, datagram) = (created(SOCK), datagram());
        let recording = written(&[
            Entry::Header(Box::new(header())),
            event(Feature::SocketCreate, "sock_init_data", CREATED),
            event(Feature::UdpIpv4In, "udp_queue_rcv_one_skb", UDP_IN),
            process(),
            Entry::Name(NameEntry { group: false, id: 53, name: Some("bind".into()) }),
            sample(SECOND, 1500, &created),
            sample(2 * SECOND, 1501, &datagram),
            Entry::Missed(missed(feature)),
            Entry::CompleteUntil(monotonic(60 * SECOND)),
            Entry::End,
        ]);
        let (flows, _) = replay(&recording).unwrap();
        assert_eq!(flows.iter().map(|flow| flow.inexact.samples_lost).collect::<Vec<_>>(), [is_marked], "{feature}");
    }
}

#[test]
fn packets_of_name_servers_read_back() {
    let packet = Packet { time: 7, interface: 3, ethertype: 0x86dd, length: 1400, bytes: b"cut short" };
    let mut plain = Vec::new();
    Entry::Packet(packet).write(&mut plain);
    let mut entries = Entries::new(&plain);
    let Some(Ok(Entry::Packet(Packet { time, interface, ethertype, length, bytes }))) = entries.next() else {
        panic!("another entry")
    };
    assert_eq!((time, interface, ethertype, length), (7, 3, 0x86dd, 1400));
    assert_eq!(bytes, b"cut short");
    assert!(entries.next().is_none());
}

#[test]
fn a_recording_without_its_last_block_is_replayed() {
    let whole = recording();
    let (flows, replayed) = replay(&whole[..whole.len() - 15]).unwrap();
    assert!(!replayed.complete);
    assert_eq!(flows.len(), 1);
}

#[test]
fn damage_is_found_and_its_position_reported() {
    let whole = recording();
    for at in 8..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        match replay(&bytes) {
            Err(RecordingError::Damaged { position, .. }) => assert!(position <= at as u64, "{position} for {at}"),
            other => panic!("byte {at}: {other:?}"),
        }
    }
}

#[test]
fn a_file_that_is_not_a_recording_is_refused() {
    assert!(matches!(replay(b""), Err(RecordingError::Foreign)));
    assert!(matches!(replay(b"{\"a\": 1}\n{\"b\": 2}\n"), Err(RecordingError::Foreign)));
    assert!(matches!(replay(b"SOCKTRL\xff"), Err(RecordingError::Version(255))));
    assert!(matches!(replay(b"SOCKTRL\x01"), Err(RecordingError::Version(1))));
    assert!(matches!(replay(b"SOCKTRL\x03"), Err(RecordingError::NoHeader)));
}

#[test]
fn an_unknown_probe_is_named() {
    let mut bytes = Vec::new();
    let mut writer = BlockWriter::new(&mut bytes).unwrap();
    Entry::Header(Box::new(header())).write(writer.buffer());
    event(Feature::UdpIpv4In, "udp_of_the_future", UDP_IN).write(writer.buffer());
    writer.flush().unwrap();
    let error = replay(&bytes).unwrap_err().to_string();
    assert!(error.contains("udp_of_the_future"), "{error}");
}

#[test]
fn a_formats_text_reads_back() {
    for text in [CREATED, UDP_IN] {
        let format = socktrail_kprobes::Format::parse(text.as_bytes()).unwrap();
        assert_eq!(socktrail_kprobes::Format::parse(format.to_string().as_bytes()).unwrap(), format);
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_readers_panic(bytes: Vec<u8>) {
        let mut entries = Entries::new(&bytes);
        while let Some(Ok(_)) = entries.next() {}
        let mut file = b"SOCKTRL\x03".to_vec();
        file.extend_from_slice(&bytes);
        if let Ok(mut reader) = BlockReader::new(&file[..]) {
            while let Ok(Some(_)) = reader.next() {}
        }
    }
}
