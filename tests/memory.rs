//! What a live flow weighs.

#![allow(clippy::print_stdout, reason = "a figure for who reads the output")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};

use socktrail::event::{Endpoint, Event, EventKind, Packet, Size, Transport, Tuple, Way};
use socktrail::state::{Config, State};

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Counts what is allocated.
struct Counting;

// SAFETY: all is passed on to the system's allocator as it came; counting changes nothing of it.
#[allow(unsafe_code, reason = "an allocator that counts")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// At the default limit of live flows. (Tables grow by doubling: right after they have grown a flow weighs more.)
#[test]
fn a_live_flow_with_its_socket_weighs_at_most_440_bytes() {
    let flows = 1_000_000_u32;
    let before = LIVE.load(Ordering::Relaxed);
    let mut state = State::new(Config::default());
    for number in 0..flows {
        let sock = u64::from(number) * 64 + 64;
        let tuple = Tuple {
            net: 1,
            local: Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), 40_000),
            remote: Endpoint::new(Ipv4Addr::from(number), 443),
        };
        let size = Size { bytes: 100, headers: 28 };
        let (way, transport) = (Way::Out, Transport::Udp);
        let packet = Packet::new(way, transport, sock, tuple, size);
        state.ingest(&Event { time: 1_000_000_000, pid: 1, tid: 1, kind: EventKind::Packet(packet) });
    }
    // By then each of them has its name, if it has one.
    state.expire(2_000_000_000);
    assert_eq!(state.stats().flows_live, u64::from(flows));
    let each = (LIVE.load(Ordering::Relaxed) - before) / flows as usize;
    println!("{flows} flows: {each} bytes each");
    assert!(each <= 440, "{flows} flows: {each} bytes each");
    drop(state);
}
