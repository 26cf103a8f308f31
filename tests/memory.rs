//! The memory of a live flow with its socket.

#![allow(clippy::print_stdout, reason = "shows the measured size")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};

use socktrail::event::{Event, EventKind, Packet, PacketDirection, PacketSize, Tuple};
use socktrail::flow::{Endpoint, Transport};
use socktrail::state::{State, StateConfig};
use socktrail::{MonotonicTime, NetAddress, SockAddress};

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// An allocator that counts the allocated bytes.
struct Counting;

// SAFETY: all calls are passed unchanged to the system's allocator.
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

/// With as many flows as the default limit allows. (Tables grow by doubling, so a flow takes more just after they have grown.)
#[test]
fn a_live_flow_with_its_socket_takes_at_most_440_bytes() {
    let flows = 1_000_000_u32;
    let before = LIVE.load(Ordering::Relaxed);
    let mut state = State::new(StateConfig::default());
    for number in 0..flows {
        let sock = SockAddress::new(u64::from(number) * 64 + 64);
        let tuple = Tuple {
            net: NetAddress::new(1),
            local: Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), 40_000),
            remote: Endpoint::new(Ipv4Addr::from(number), 443),
        };
        let size = PacketSize { bytes: 100, headers: 28 };
        let (direction, transport) = (PacketDirection::Outbound, Transport::Udp);
        let packet = Packet::new(direction, transport, sock, tuple, size);
        state.ingest(&Event {
            time: MonotonicTime::from_nanos(1_000_000_000),
            pid: 1,
            tid: 1,
            kind: EventKind::Packet(packet),
        });
    }
    // By then, flows do not wait for names any more.
    state.expire(MonotonicTime::from_nanos(2_000_000_000));
    assert_eq!(state.stats().flows_live, u64::from(flows));
    let each = (LIVE.load(Ordering::Relaxed) - before) / flows as usize;
    println!("{flows} flows: {each} bytes each");
    assert!(each <= 440, "{flows} flows: {each} bytes each");
    drop(state);
}
