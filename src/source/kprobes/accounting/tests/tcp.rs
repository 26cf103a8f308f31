//! TCP: packets of several segments (GSO, GRO), and headers of varying length.

use super::*;
use crate::model::event::Segments;

const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
const FIN: u8 = 0x01;
const CONTROL_SOCK: u64 = 0xffff_8880_3000_0000;

fn connection(ipv6: bool, sock: u8) -> Conversation {
    let sock = 0xffff_8880_2000_0000 + 4096 * u64::from(sock);
    Conversation { ipv6, transport: Transport::Tcp, sock, local: (1, 40_000), remote: (2, 443) }
}

/// One connection, and what its socket counts.
struct Connection {
    both: Both,
    counters: Segments,
    /// How many segments have arrived that the socket has yet to count, because it is locked.
    waiting: u32,
    now: u64,
}

impl Connection {
    /// Begins with a handshake, and the first packet of the socket without SYN.
    fn new(machine: &Machine, of: Conversation, connects: bool, before: Segments, now: u64) -> Self {
        let mut connection = Self::handshake(machine, of, connects, before, now);
        connection.out(machine, 0, 3, ACK, 1);
        connection
    }

    /// Begins with SYN and its answer, from either side. An earlier attempt may have left counts in a connecting socket.
    fn handshake(machine: &Machine, of: Conversation, connects: bool, before: Segments, now: u64) -> Self {
        let counters = if connects { before } else { Segments::default() };
        let mut connection = Self { both: Both::new(of), counters, waiting: 0, now };
        if connects {
            connection.out(machine, 0, 5, SYN, 1);
            connection.counters.received = connection.counters.received.wrapping_add(1);
            connection.arrives(machine, 0, 5, SYN | ACK, false);
        } else {
            connection.arrives(machine, 0, 5, SYN, false);
            // The request answers, not the socket.
            let answer = Wire { sender: CONTROL_SOCK, ..Wire::new(of, PacketDirection::Outbound, 0) };
            connection.play(machine, Wire { options: 5, flags: SYN | ACK, ..answer });
            connection.arrives(machine, 0, 3, ACK, false);
            connection.counters.received = 2;
        }
        connection
    }

    fn play(&mut self, machine: &Machine, wire: Wire) {
        self.now += 1000;
        self.both.play(machine, self.now, wire);
    }

    fn out(&mut self, machine: &Machine, payload: u32, options: u8, flags: u8, segments: u32) {
        self.counters.sent = self.counters.sent.wrapping_add(segments);
        let wire = Wire::new(self.both.of, PacketDirection::Outbound, payload);
        self.play(machine, Wire { options, flags, segments: self.counters, ..wire });
    }

    fn arrives(&mut self, machine: &Machine, payload: u32, options: u8, flags: u8, demultiplexed: bool) {
        let wire = Wire::new(self.both.of, PacketDirection::Inbound, payload);
        self.play(machine, Wire { options, flags, demultiplexed, segments: self.counters, ..wire });
    }

    /// A random packet. The socket counts it as `count` segments.
    fn step(&mut self, machine: &Machine, step: Step) {
        let Step { kind, count, payload, options, pause, demultiplexed } = step;
        self.now += pause;
        let wire = |direction| Wire::new(self.both.of, direction, payload);
        match kind {
            0..=6 => self.out(machine, payload, options, ACK, count),
            7..=13 => {
                self.arrives(machine, payload, options, ACK, demultiplexed);
                self.counters.received = self.counters.received.wrapping_add(count);
            }
            // The counter has grown by more than is plausible.
            14 => self.out(machine, payload, options, ACK, 1 << 20),
            15 => self.out(machine, 0, options, ACK | FIN, 1),
            16 => {
                self.arrives(machine, 0, options, ACK | FIN, demultiplexed);
                self.counters.received = self.counters.received.wrapping_add(1);
            }
            17 => {
                let wire = Wire { ip_options: true, demultiplexed, ..wire(PacketDirection::Inbound) };
                self.play(machine, wire);
                self.counters.received = self.counters.received.wrapping_add(1);
            }
            // It is dropped before the socket counts it.
            18 => self.arrives(machine, payload, options, ACK, demultiplexed),
            // The kernel's own socket answers for this one.
            _ => {
                let wire = Wire { sender: CONTROL_SOCK, segments: self.counters, ..wire(PacketDirection::Outbound) };
                self.play(machine, wire);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Step {
    kind: u8,
    count: u32,
    payload: u32,
    options: u8,
    pause: u64,
    demultiplexed: bool,
}

prop_compose! {
    fn step()(
        kind in 0..20_u8,
        count in prop_oneof![3 => Just(1), 3 => 0..46_u32],
        payload in 0..60_000_u32,
        options in prop_oneof![4 => Just(3), 1 => 0..10_u8],
        pause in prop_oneof![12 => 1..1_000_000_u64, 1 => PAUSE - 2..PAUSE + 2],
        demultiplexed in any::<bool>(),
    ) -> Step {
        Step { kind, count, payload, options, pause, demultiplexed }
    }
}

fn counters() -> impl Strategy<Value = Segments> {
    prop_oneof![
        Just(Segments::default()),
        (0..100_u32, 0..100_u32).prop_map(|(before, sent)| Segments {
            received: 0_u32.wrapping_sub(before),
            sent: 0_u32.wrapping_sub(sent),
        }),
    ]
}

proptest! {
    #[test]
    fn all_segments_are_counted(
        (ipv6, connects, before) in (any::<bool>(), any::<bool>(), counters()),
        steps in prop::collection::vec(step(), 1..120),
        again in prop::collection::vec(step(), 0..20),
    ) {
        let machine = Machine::new(&rules(), 100);
        let mut first = Connection::new(&machine, connection(ipv6, 0), connects, before, 1);
        steps.into_iter().for_each(|step| first.step(&machine, step));
        // Another socket connects the same ends before the first one is freed.
        first.both.end(&machine, Feature::TcpState);
        let mut second = Connection::new(&machine, connection(ipv6, 1), connects, before, first.now);
        first.both.end(&machine, Feature::SocketFree);
        again.into_iter().for_each(|step| second.step(&machine, step));
        second.both.end(&machine, Feature::SocketFree);
        prop_assert_eq!(machine.entries(), (0, 0));
        for connection in [first, second] {
            let [expected, combined] = connection.both.counted();
            prop_assert_eq!(combined, expected);
        }
    }
}

/// Something that happens to segments that arrive.
#[derive(Clone, Copy, Debug)]
enum Arrival {
    /// A packet of this many segments. The socket counts them at once, or later.
    Packet { segments: u32, is_late: bool },
    /// A packet whose program does not find the entry.
    WithoutEntry { is_late: bool },
    /// The socket counts what it has not counted yet, or half of that.
    Counted { all: bool },
    /// A packet leaves.
    Leaves,
}

fn arrival() -> impl Strategy<Value = Arrival> {
    prop_oneof![
        4 => (prop_oneof![Just(1), 1..46_u32], any::<bool>())
            .prop_map(|(segments, is_late)| Arrival::Packet { segments, is_late }),
        1 => any::<bool>().prop_map(|is_late| Arrival::WithoutEntry { is_late }),
        3 => any::<bool>().prop_map(|all| Arrival::Counted { all }),
        3 => Just(Arrival::Leaves),
    ]
}

impl Connection {
    fn arrival(&mut self, machine: &Machine, arrival: Arrival, demultiplexed: bool) {
        let payload = 1000;
        let segments = match arrival {
            Arrival::Packet { segments, .. } => {
                self.arrives(machine, payload, 3, ACK, demultiplexed);
                segments
            }
            Arrival::WithoutEntry { .. } => {
                self.now += 1000;
                let wire = Wire::new(self.both.of, PacketDirection::Inbound, payload);
                self.both.play_without_entry(self.now, Wire { options: 3, segments: self.counters, ..wire });
                1
            }
            Arrival::Counted { all } => {
                self.count(if all { self.waiting } else { self.waiting / 2 });
                0
            }
            Arrival::Leaves => {
                self.out(machine, payload, 3, ACK, 1);
                0
            }
        };
        self.waiting += segments;
        if !matches!(arrival, Arrival::Packet { is_late: true, .. } | Arrival::WithoutEntry { is_late: true }) {
            self.count(segments);
        }
    }

    /// The socket counts segments that have waited.
    fn count(&mut self, segments: u32) {
        self.waiting -= segments;
        self.counters.received = self.counters.received.wrapping_add(segments);
    }
}

proptest! {
    /// The socket may count a segment after the packet that makes the entry, and a program may not find the entry.
    #[test]
    fn segments_that_were_sampled_are_not_counted_again(
        (ipv6, connects, unlisted, demultiplexed) in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        before in prop::collection::vec(arrival(), 0..5),
        arrivals in prop::collection::vec(arrival(), 0..60),
    ) {
        let machine = Machine::new(&rules(), 100);
        let mut one = Connection::handshake(&machine, connection(ipv6, 0), connects, Segments::default(), 1);
        for arrival in before.into_iter().filter(|arrival| !matches!(arrival, Arrival::Leaves)) {
            one.arrival(&machine, arrival, demultiplexed);
        }
        machine.lock_ends(unlisted);
        one.out(&machine, 0, 3, ACK, 1);
        machine.lock_ends(false);
        arrivals.into_iter().for_each(|arrival| one.arrival(&machine, arrival, demultiplexed));
        one.count(one.waiting);
        one.out(&machine, 0, 3, ACK, 1);
        one.both.end(&machine, Feature::TcpState);
        let [expected, combined] = one.both.counted();
        prop_assert_eq!(combined, expected);
    }
}

/// A connection with the same ends in another namespace has taken the slot that led to the entry. So all segments seem to have
/// arrived merged.
#[test]
fn a_connection_whose_ends_lead_elsewhere_is_counted() {
    let machine = Machine::new(&rules(), 100);
    let mut one = Connection::new(&machine, connection(false, 0), true, Segments::default(), 1);
    one.arrives(&machine, 10, 3, ACK, false);
    one.counters.received += 1;
    for _ in 0..10 {
        let wire = Wire { options: 3, ..Wire::new(one.both.of, PacketDirection::Inbound, 10) };
        one.both.play_without_entry(one.now, wire);
        one.counters.received += 1;
        one.out(&machine, 10, 3, ACK, 1);
    }
    assert_eq!(machine.look_up(one.both.of.sock).unwrap().tcp.unwrap().merged, 10);
    one.both.end(&machine, Feature::TcpState);
    let [expected, combined] = one.both.counted();
    assert_eq!(combined, expected);
}

#[test]
fn a_long_connection_has_few_samples() {
    for (ipv6, demultiplexed) in [(false, false), (false, true), (true, false), (true, true)] {
        let machine = Machine::new(&rules(), 100);
        let none = Segments::default();
        let mut connection = Connection::new(&machine, connection(ipv6, 0), true, none, 1);
        for _ in 0..1000 {
            connection.out(&machine, 64_000, 3, ACK, 46);
            connection.arrives(&machine, 2_800, 3, ACK, demultiplexed);
            connection.counters.received += 2;
        }
        connection.out(&machine, 0, 3, ACK, 1);
        assert_eq!(connection.both.samples, 4, "three of the handshake, and the first that arrives after it");
        let totals = machine.look_up(connection.both.of.sock).unwrap();
        assert_eq!((totals.sent.packets, totals.received.packets), (46_001, 1999));
        let tcp = totals.tcp.unwrap();
        // 64,000 bytes in 46 segments are at most 1392 each.
        assert_eq!((tcp.sent_full, tcp.merged, tcp.merged_unsure), (1392, 1000, 0));
        connection.both.take(&totals);
        let [expected, combined] = connection.both.counted();
        assert_eq!(combined, expected);
    }
}

#[test]
fn only_the_connections_own_socket_gets_an_entry() {
    let machine = Machine::new(&rules(), 100);
    let of = connection(false, 0);
    let mut wire = Wire { sender: CONTROL_SOCK, ..Wire::new(of, PacketDirection::Outbound, 10) };
    for _ in 0..3 {
        assert!(wire.hit(&machine).0);
    }
    assert_eq!(machine.entries(), (0, 0));
    wire.sender = of.sock;
    for state in [6, 12] {
        assert!(Wire { state, ..wire }.hit(&machine).0);
        assert_eq!(machine.entries(), (0, 0), "TIME_WAIT and a request");
    }
    assert!(wire.hit(&machine).0 && machine.entries() == (1, 1));
    // A socket that enters another state keeps it.
    let (is_sample, reported) = machine.hit(Feature::TcpState, [of.sock, 1, 0]);
    assert!(is_sample && reported.is_empty() && machine.entries() == (1, 1));
}

#[test]
fn ends_lead_to_the_latest_socket() {
    let machine = Machine::new(&rules(), 100);
    let [first, second] = [0, 1].map(|sock| connection(false, sock));
    for of in [first, second] {
        machine.set_time(of.sock);
        assert!(Wire::new(of, PacketDirection::Outbound, 10).hit(&machine).0);
    }
    assert_eq!(machine.entries(), (2, 1));
    machine.hit(Feature::SocketFree, [first.sock, 0, 0]);
    assert_eq!(machine.entries(), (1, 1));
    let arrives = Wire::new(second, PacketDirection::Inbound, 10);
    assert!(arrives.hit(&machine).0 && !arrives.hit(&machine).0);
    assert_eq!(machine.look_up(second.sock).unwrap().received.packets, 1);
    machine.hit(Feature::TcpState, [second.sock, 7, 0]);
    assert_eq!(machine.entries(), (0, 0));
}

#[test]
fn an_entry_that_outlived_its_socket_counts_nothing_of_the_next_one() {
    for out in [true, false] {
        let machine = Machine::new(&rules(), 100);
        let first = connection(false, 0);
        assert!(Wire::new(first, PacketDirection::Outbound, 10).hit(&machine).0);
        // Its end was missed, and another connection has the same `struct sock`.
        let next = Conversation { remote: (3, 443), ..first };
        let direction = if out { PacketDirection::Outbound } else { PacketDirection::Inbound };
        let wire = Wire { demultiplexed: true, ..Wire::new(next, direction, 10) };
        // The first packet of a direction is a sample in any case.
        assert!(wire.hit(&machine).0 && wire.hit(&machine).0);
        let entry = machine.look_up(first.sock);
        assert!(entry.is_none_or(|totals| totals.received.packets + totals.sent.packets == 0), "{entry:?}");
    }
}
