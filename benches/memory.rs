//! What a million live flows take, each with its socket: the row `max alloc`, divided by a million. `cargo bench --bench memory`.

use std::net::Ipv4Addr;

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher};
use socktrail::event::{Endpoint, Event, EventKind, Packet, Size, Transport, Tuple, Way};
use socktrail::state::{Config, State};

#[global_allocator]
static COUNTING: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

/// The default limit of live flows.
const FLOWS: u32 = 1_000_000;

#[divan::bench(sample_count = 3)]
fn a_million_live_flows(bencher: Bencher<'_, '_>) {
    bencher.counter(ItemsCount::new(FLOWS)).bench_local(|| {
        let mut state = State::new(Config::default());
        for number in 0..FLOWS {
            let (way, transport, sock) = (Way::Out, Transport::Udp, u64::from(number) * 64 + 64);
            let (local, remote) = (Endpoint::new([10, 0, 0, 1], 40_000), Endpoint::new(Ipv4Addr::from(number), 443));
            let tuple = Tuple { net: 1, local, remote };
            let size = Size { bytes: 100, headers: 28 };
            let packet = Packet::new(way, transport, sock, tuple, size);
            state.ingest(&Event { time: 1_000_000_000, pid: 1, tid: 1, kind: EventKind::Packet(packet) });
        }
        state
    });
}
