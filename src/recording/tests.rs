//! A recording made by hand: what is written comes back, and what is damaged is said to be.

use socktrail_dns::Packet;
use socktrail_kprobes::Record;

use super::blocks::{BlockReader, BlockWriter};
use super::entries::{Entries, Entry, EventEntry, Header, NameEntry, ProcessEntry, SocketEntry};
use super::*;
use crate::clock::{Clock, Readings, Timestamp};
use crate::event::{Sight, Transport};
use crate::flow::Owner;
use crate::host::Host;
use crate::probes::Feature;
use crate::process::Process;
use crate::state::Config;
use crate::users::Names;

const SECOND: u64 = 1_000_000_000;
const PID: u32 = 700;
const SOCK: u64 = 0xffff_8880_0000_1000;

/// `sock_init_data`'s samples, as a 6.1 kernel lays them out.
const CREATED: &str = "name: socket_create\nID: 1500\nformat:\n\
    \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
    \tfield:unsigned long __probe_ip;\toffset:8;\tsize:8;\tsigned:0;\n\
    \tfield:u64 sk;\toffset:16;\tsize:8;\tsigned:0;\n\
    \tfield:u16 family;\toffset:24;\tsize:2;\tsigned:0;\n\
    \tfield:u8 bits;\toffset:26;\tsize:1;\tsigned:0;\n";

/// `udp_queue_rcv_one_skb`'s.
const UDP_IN: &str = "name: udp_ipv4_in\nID: 1501\nformat:\n\
    \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
    \tfield:u64 net;\toffset:16;\tsize:8;\tsigned:0;\n\
    \tfield:u64 sk;\toffset:24;\tsize:8;\tsigned:0;\n\
    \tfield:u64 lengths;\toffset:32;\tsize:8;\tsigned:0;\n\
    \tfield:u32 headers;\toffset:40;\tsize:4;\tsigned:0;\n\
    \tfield:u64 addresses;\toffset:44;\tsize:8;\tsigned:0;\n\
    \tfield:u32 ports;\toffset:52;\tsize:4;\tsigned:0;\n\
    \tfield:u16 fragment;\toffset:56;\tsize:2;\tsigned:0;\n";

fn header() -> Header {
    Header {
        recorder: "0.1.0".into(),
        host: Host { hostname: Some("guest".into()), ..Host::default() },
        ephemeral_id: "f7b0ab1a-da9e-4525-9252-59ecb68139f8".into(),
        clock: Clock::from_readings(Readings { kernel: 0, boot: 0, wall: Timestamp::default() }),
        own_pid: 1,
        dns_ports: vec![53],
        sight: Sight::default(),
        layout: serde_json::Value::Null,
    }
}

fn event(feature: Feature, function: &str, format: &str) -> Entry<'static> {
    Entry::Event(EventEntry { feature, function: function.into(), format: format.into() })
}

/// One datagram of 100 bytes from 192.0.2.1:53 to 192.0.2.2:4000.
fn datagram() -> Vec<u8> {
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
        start: Some(5),
        kernel: false,
        credentials: None,
        name: "named".into(),
        executable: None,
        args: vec!["named".into()],
        args_cut: false,
        details: None,
    })
}

fn sample(time: u64, id: u16, raw: &[u8]) -> Entry<'_> {
    Entry::Record(Record::Sample { time, cpu: 0, pid: PID, tid: PID, id, raw })
}

fn recording() -> Vec<u8> {
    let mut created = vec![0; 27];
    created[16..24].copy_from_slice(&SOCK.to_ne_bytes());
    let datagram = datagram();
    written(&[
        Entry::Header(Box::new(header())),
        event(Feature::SocketCreate, "sock_init_data", CREATED),
        event(Feature::UdpIpv4In, "udp_queue_rcv_one_skb", UDP_IN),
        process(),
        Entry::Name(NameEntry { group: false, id: 53, name: Some("bind".into()) }),
        sample(SECOND, 1500, &created),
        sample(2 * SECOND, 1501, &datagram),
        Entry::Until(3 * SECOND),
        Entry::Until(40 * SECOND),
        Entry::End,
    ])
}

fn written(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = BlockWriter::new(&mut bytes).unwrap();
    for entry in entries {
        entry.write(writer.buffer());
        // Each in a block of its own, so that damage hits one of them.
        writer.flush().unwrap();
    }
    bytes
}

fn replay(bytes: &[u8]) -> Result<(Vec<crate::flow::Flow>, Replayed), RecordingError> {
    let mut flows = Vec::new();
    let replayed = Replay::open(bytes, Config::default())?.run(|flow, names| {
        assert_eq!(names.user(53).as_deref(), Some("bind"));
        flows.push(flow);
        Ok::<_, RecordingError>(())
    })?;
    Ok((flows, replayed))
}

#[test]
fn what_was_recorded_is_replayed_each_time_the_same() {
    let (flows, replayed) = replay(&recording()).unwrap();
    let [flow] = &flows[..] else { panic!("{flows:#?}") };
    assert_eq!((flow.local.to_string(), flow.remote.to_string()), ("192.0.2.2:4000".into(), "192.0.2.1:53".into()));
    assert_eq!((flow.received.packets, flow.received.bytes), (1, 100));
    let Owner::Process(process) = &flow.owner else { panic!("{:?}", flow.owner) };
    assert_eq!(Process::clone(process).image.name, "named");
    assert!(replayed.complete && flow.is_final);
    assert_eq!(replay(&recording()).unwrap().0, flows);
}

/// A socket whose creation nobody saw is its holder's, as it was when the recording began.
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
        Entry::Until(40 * SECOND),
        Entry::End,
    ]);
    let (flows, _) = replay(&recording).unwrap();
    let [flow] = &flows[..] else { panic!("{flows:#?}") };
    let Owner::Process(owner) = &flow.owner else { panic!("{:?}", flow.owner) };
    assert_eq!((owner.pid, flow.complete), (PID, false));
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
fn a_recording_that_breaks_off_is_replayed_as_far_as_it_goes() {
    let whole = recording();
    let (flows, replayed) = replay(&whole[..whole.len() - 15]).unwrap();
    assert!(!replayed.complete);
    assert_eq!(flows.len(), 1);
}

#[test]
fn damage_is_found_and_its_place_said() {
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
fn what_is_no_recording_is_refused() {
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
