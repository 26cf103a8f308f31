//! The cost of a sample in user space: decoding, state machine, timers, replay, output. Run `cargo bench --bench pipeline`.

use std::net::Ipv4Addr;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use socktrail::clock::{Clock, Readings, Timestamp};
use socktrail::documents::ecs::{Context, Directions};
use socktrail::event::{Event, EventKind, Fork, Packet, PacketDirection, PacketSize, SocketUser, Tuple, tcp_flags};
use socktrail::flow::{Endpoint, Flow, Transport};
use socktrail::host::Host;
use socktrail::host::agent::Agent;
use socktrail::output::{Format as LineFormat, Lines};
use socktrail::probes::{Feature, Probes};
use socktrail::recording::{RecordingError, Replay};
use socktrail::state::{State, StateConfig};
use socktrail::{BootTime, MonotonicTime, NetAddress, SockAddress};
use socktrail_kprobes::{Format, Record};

const SECOND: u64 = 1_000_000_000;
const SAMPLES: usize = 100_000;

fn main() {
    divan::main();
}

/// The format of `__ip_local_out`'s samples on 6.1.
const FORMAT: &str = "name: ipv4_out\nID: 1500\nformat:\n\
    \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
    \tfield:u64 net;\toffset:16;\tsize:8;\tsigned:0;\n\
    \tfield:u64 sk;\toffset:24;\tsize:8;\tsigned:0;\n\
    \tfield:u64 lengths;\toffset:32;\tsize:8;\tsigned:0;\n\
    \tfield:u8 version_ihl;\toffset:40;\tsize:1;\tsigned:0;\n\
    \tfield:u8 protocol;\toffset:41;\tsize:1;\tsigned:0;\n\
    \tfield:u64 addresses;\toffset:42;\tsize:8;\tsigned:0;\n\
    \tfield:u64 behind;\toffset:50;\tsize:8;\tsigned:0;\n\
    \tfield:u64 further_behind;\toffset:58;\tsize:8;\tsigned:0;\n\
    \tfield:u32 segs_in;\toffset:66;\tsize:4;\tsigned:0;\n\
    \tfield:u32 segs_out;\toffset:70;\tsize:4;\tsigned:0;\n";

fn probes() -> Probes {
    let mut probes = Probes::none();
    let format = Format::parse(FORMAT.as_bytes()).expect("a format");
    probes.add_recorded(Feature::Ipv4Out, "__ip_local_out", &format).expect("a probe");
    probes
}

/// Samples of `connections` connections, in turn.
fn samples(connections: usize) -> Vec<[u8; 74]> {
    let sample = |number: usize| {
        let connection = number % connections;
        let mut raw = [0; 74];
        raw[24..32].copy_from_slice(&(connection as u64 * 64 + 64).to_ne_bytes());
        raw[32..36].copy_from_slice(&1500_u32.to_ne_bytes());
        raw[40] = 0x45;
        raw[41] = 6;
        raw[42..46].copy_from_slice(&[10, 0, 0, 1]);
        raw[46..50].copy_from_slice(&(connection as u32).to_be_bytes());
        raw[50..54].copy_from_slice(&[0x9c, 0x40, 0, 80]);
        raw[62..64].copy_from_slice(&[0x80, 0x10]);
        raw
    };
    (0..SAMPLES).map(sample).collect()
}

fn record(time: u64, raw: &[u8]) -> Record<'_> {
    Record::Sample { time, cpu: 0, pid: 1, tid: 1, id: 1500, raw }
}

#[divan::bench]
fn decode(bencher: Bencher<'_, '_>) {
    let (mut probes, samples) = (probes(), samples(1000));
    bencher.counter(ItemsCount::new(SAMPLES)).bench_local(|| {
        for raw in &samples {
            black_box(probes.event(&record(SECOND, raw)));
        }
    });
}

#[divan::bench(args = [100, 10_000, 100_000])]
fn decode_and_ingest(bencher: Bencher<'_, '_>, connections: usize) {
    let (mut probes, samples) = (probes(), samples(connections));
    let mut state = State::new(StateConfig::default());
    let mut now = SECOND;
    bencher.counter(ItemsCount::new(SAMPLES)).bench_local(|| {
        for raw in &samples {
            now += 1;
            if let Some(event) = probes.event(&record(now, raw)) {
                state.ingest(&event);
            }
        }
    });
}

fn at(nanos: u64) -> MonotonicTime {
    MonotonicTime::from_nanos(nanos)
}

fn datagram(number: u32) -> Event {
    let tuple = Tuple {
        net: NetAddress::new(1),
        local: Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), 40_000),
        remote: Endpoint::new(Ipv4Addr::from(number), 53),
    };
    let size = PacketSize { bytes: 100, headers: 28 };
    let (direction, transport, sock) =
        (PacketDirection::Outbound, Transport::Udp, SockAddress::new(u64::from(number) * 64 + 64));
    let packet = Packet::new(direction, transport, sock, tuple, size);
    Event { time: at(SECOND), pid: 1, tid: 1, kind: EventKind::Packet(packet) }
}

/// A million flows, each with a socket, from their beginning to their timeout. Measures the cost of one.
#[divan::bench(sample_count = 5)]
fn begin_and_expire_a_million(bencher: Bencher<'_, '_>) {
    const FLOWS: u32 = 1_000_000;
    bencher.counter(ItemsCount::new(FLOWS)).bench_local(|| {
        let mut state = State::new(StateConfig::default());
        for number in 0..FLOWS {
            state.ingest(&datagram(number));
        }
        state.expire(at(40 * SECOND));
        black_box(state.finished().count())
    });
}

/// One check of timers with a million live flows. No timer is due.
#[divan::bench]
fn expire_nothing_of_a_million(bencher: Bencher<'_, '_>) {
    let mut state = State::new(StateConfig::default());
    for number in 0..1_000_000 {
        state.ingest(&datagram(number));
    }
    let mut now = SECOND;
    bencher.bench_local(|| {
        now += 1000;
        state.expire(at(now));
    });
}

fn flow() -> Flow {
    let mut state = State::new(StateConfig::default());
    let sock = SockAddress::new(64).expect("not 0");
    let event = |nanos, kind| Event { time: at(nanos), pid: 42, tid: 42, kind };
    state.ingest(&event(1, EventKind::Fork(Fork { child: 42, start: Some(BootTime::from_nanos(5)) })));
    state.ingest(&event(2, EventKind::SocketCreated { sock, user: SocketUser::Program }));
    let (local, remote) = (Endpoint::new([10, 0, 0, 1], 40_000), Endpoint::new([192, 0, 2, 1], 443));
    let tuple = Tuple { net: NetAddress::new(1), local, remote };
    let size = PacketSize { bytes: 60, headers: 60 };
    let (direction, transport, tcp_flags) = (PacketDirection::Outbound, Transport::Tcp, tcp_flags::SYN);
    let packet = Packet { tcp_flags, ..Packet::new(direction, transport, Some(sock), tuple, size) };
    state.ingest(&event(3, EventKind::Packet(packet)));
    state.shutdown();
    let flow = state.finished().next();
    flow.expect("a flow")
}

/// A whole recording, from bytes to flows.
#[divan::bench]
fn replay(bencher: Bencher<'_, '_>) {
    let recording = include_bytes!("../tests/data/recordings/6.1-x86_64.strec");
    let run = || {
        let replay = Replay::open(&recording[..], StateConfig::default()).expect("a recording");
        let taken = replay.run(|flow, _| {
            black_box(flow);
            Ok::<_, RecordingError>(())
        });
        taken.expect("the recording is complete")
    };
    bencher.counter(ItemsCount::new(run().stats.events)).bench_local(run);
}

#[divan::bench]
fn document(bencher: Bencher<'_, '_>) {
    let host = Host::gather();
    let agent = Agent::of(&host);
    let clock = Clock::from_readings(Readings {
        kernel: MonotonicTime::ZERO,
        boot: BootTime::ZERO,
        wall: Timestamp::default(),
    });
    let context = Context { host: &host, agent: &agent, clock, names: &(), directions: Directions::default() };
    let (flow, mut lines) = (flow(), Lines::new(std::io::sink(), LineFormat::Ecs));
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| lines.write(black_box(&flow), &context));
}
