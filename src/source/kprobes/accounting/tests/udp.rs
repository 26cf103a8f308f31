//! Datagrams.

use super::*;

const SOCK: u64 = 0xffff_8880_1000_0000;

fn conversation(ipv6: bool, sock: u8, remote: u8) -> Conversation {
    let sock = SOCK + 4096 * u64::from(sock);
    Conversation { ipv6, transport: Transport::Udp, sock, local: (1, 4000), remote: (remote, 53) }
}

/// A datagram: its socket, its remote host, whether it is outgoing, the size of its payload, nanoseconds since the one before, and
/// `special` as in [`wire`].
type Step = (u8, u8, bool, u32, u64, u8);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pause = prop_oneof![
        8 => 1..1_000_000_u64,
        1 => PAUSE - 2..PAUSE + 2,
        1 => Just(2 * PAUSE),
        1 => 1_000_000_000..2_000_000_000_u64,
    ];
    // About half of the datagrams have one of 3 peers. The others have one of 250, more than a socket has ways.
    let remote = prop_oneof![0..3_u8, 0..250_u8];
    prop::collection::vec((0..2_u8, remote, any::<bool>(), 0..1400_u32, pause, 0..16_u8), 1..200)
}

/// A value of `special` that changes nothing, like all from 3 on.
const ORDINARY: u8 = 9;

/// A datagram of a conversation. If `special` is 0, it has IP options; if 1, a nonlinear part; if 2 and it is incoming, it
/// arrived in fragments.
fn wire(of: Conversation, out: bool, payload: u32, special: u8) -> Wire {
    let direction = if out { PacketDirection::Outbound } else { PacketDirection::Inbound };
    let mut wire = Wire::new(of, direction, payload);
    match special {
        0 => wire.ip_options = true,
        1 => wire.data_len = payload / 2,
        2 if !out => wire.fragment = 600,
        _ => {}
    }
    wire
}

proptest! {
    #[test]
    fn samples_and_totals_together_have_every_datagram_without_ip_options(ipv6 in any::<bool>(), steps in steps(), free_after in 0..120_usize) {
        let machine = Machine::new(&rules(), 100);
        let mut all: HashMap<Conversation, Both> = HashMap::new();
        let mut now = 1;
        for (at, (sock, remote, out, payload, pause, special)) in steps.into_iter().enumerate() {
            now += pause;
            let of = conversation(ipv6, sock, remote);
            play(&machine, now, wire(of, out, payload, special), &mut all);
            if at == free_after {
                free(&machine, sock, &mut all);
            }
        }
        [0, 1].into_iter().for_each(|sock| free(&machine, sock, &mut all));
        prop_assert_eq!(machine.entries(), (0, 0));
        for both in all.values() {
            let [expected, combined] = both.counted();
            prop_assert_eq!(combined, expected);
        }
    }
}

/// Hits the probe with a datagram of a conversation. The counts of another conversation may be reported, because its entry is
/// evicted. Returns whether the datagram is sampled.
fn play(machine: &Machine, now: u64, wire: Wire, all: &mut HashMap<Conversation, Both>) -> bool {
    machine.set_time(now);
    let (is_sample, reported) = wire.hit(machine);
    reported.iter().for_each(|totals| take(totals, all));
    all.entry(wire.of).or_insert_with(|| Both::new(wire.of)).add_hit(now, wire, is_sample);
    is_sample
}

fn take(totals: &Totals, all: &mut HashMap<Conversation, Both>) {
    all.values_mut().find(|both| both.of.is_of(totals)).unwrap().take(totals);
}

/// Frees a socket. The counts of all its conversations are reported.
fn free(machine: &Machine, sock: u8, all: &mut HashMap<Conversation, Both>) {
    let (is_sample, reported) = machine.hit(Feature::SocketFree, [conversation(false, sock, 0).sock, 0, 0]);
    assert!(is_sample);
    reported.iter().for_each(|totals| take(totals, all));
}

#[test]
fn a_long_conversation_has_few_samples() {
    for ipv6 in [false, true] {
        let machine = Machine::new(&rules(), 100);
        let mut both = Both::new(conversation(ipv6, 0, 2));
        for now in 1..=2000 {
            let special = if now == 1000 { 0 } else { ORDINARY };
            both.play(&machine, now, wire(both.of, now % 2 == 0, 100, special));
        }
        assert_eq!(
            both.samples, 2,
            "the first of each direction. The sample with IP options cannot be read and is not in this number"
        );
        let totals = machine.look_up(both.of.sock).unwrap();
        assert_eq!((totals.sent.packets, totals.received.packets), (998, 999));
        assert_eq!((totals.since, totals.last), (monotonic(1), monotonic(2000)));
        assert!(totals.short_datagrams && !totals.nonlinear_datagrams);
        both.take(&totals);
        let [expected, combined] = both.counted();
        assert_eq!(combined, expected);
    }
}

#[test]
fn most_peers_of_a_socket_have_few_samples() {
    const PEERS: u8 = 20;
    let (machine, mut all) = (Machine::new(&rules(), 1000), HashMap::new());
    for now in 1..=100 {
        for peer in 1..=PEERS {
            play(&machine, now, wire(conversation(false, 0, peer), now % 2 == 0, 100, ORDINARY), &mut all);
        }
    }
    let (few, many): (Vec<_>, _) = all.values().partition(|both| both.samples == 2);
    // A conversation whose way is taken has all its packets sampled.
    assert!(many.iter().all(|both| both.samples == 100));
    assert!(few.len() >= 13, "of 20 peers, 19 of them on 64 ways, at least 13 should have an entry: {}", few.len());
    assert_eq!((machine.conversations().len(), machine.refused_packets()), (few.len(), 100 * many.len() as u64));
    // After a second without packets, a conversation gives up its way to another that needs it.
    let late = many[0].of;
    let times = [2_000_000_000, 2_000_000_001, 2_002_000_000, 2_002_000_001, 2_002_000_002];
    let samples = times.map(|now| play(&machine, now, wire(late, true, 100, ORDINARY), &mut all));
    assert_eq!(
        samples,
        [true, true, true, false, false],
        "1: evicts the other conversation's entry; 2: its slot cannot be used again yet; 3: makes an entry; 4 and 5: counted"
    );
    free(&machine, 0, &mut all);
    assert_eq!(machine.entries(), (0, 0));
    for both in all.values() {
        let [expected, combined] = both.counted();
        assert_eq!(combined, expected);
    }
}

#[test]
fn packets_that_may_hold_several_datagrams_are_noted_in_the_totals() {
    let machine = Machine::new(&rules(), 100);
    let mut both = Both::new(conversation(false, 0, 2));
    let mut play = |now, out, payload, data_len| {
        let wire = Wire { data_len, ..wire(both.of, out, payload, ORDINARY) };
        both.play(&machine, now, wire);
        let totals = machine.look_up(both.of.sock).unwrap();
        (both.samples, totals.short_datagrams, totals.nonlinear_datagrams)
    };
    play(1, true, 1000, 0);
    play(2, false, 1000, 500);
    assert_eq!(
        play(3, true, 173, 0),
        (2, false, false),
        "201 bytes with headers: a linear packet can hold several datagrams (UDP GSO) only if it has at most 200 (`gso_head_len`)"
    );
    assert_eq!(play(4, false, 1000, 0), (2, false, false));
    assert_eq!(play(5, true, 172, 0), (2, true, false));
    assert_eq!(play(6, false, 1000, 1), (2, true, true));
    assert_eq!(
        play(7, true, 1000, 1),
        (3, true, true),
        "an outgoing packet with a nonlinear part may hold several datagrams (UDP GSO), so it is sampled"
    );
}

#[test]
fn packets_of_conversations_without_an_entry_are_sampled() {
    let machine = Machine::new(&rules(), 1);
    // The smallest table has two buckets of seven slots.
    let mut all: Vec<_> = (0..40).map(|sock| Both::new(conversation(false, sock, 2))).collect();
    let mut now = 1;
    let mut play = |all: &mut [Both], by| {
        for both in all {
            now += by;
            both.play(&machine, now, wire(both.of, true, 100, ORDINARY));
        }
    };
    (0..9).for_each(|_| play(&mut all, 1));
    let [counted, sampled] = [1, 9].map(|samples| all.iter().filter(|both| both.samples == samples).count());
    assert_eq!((counted, sampled, machine.refused_packets()), (14, 26, 26 * 9));
    // A slot can be used again a millisecond after its socket was freed.
    let [mut freed, mut refused] = [1, 9].map(|samples| {
        let at = all.iter().position(|both| both.samples == samples).unwrap();
        all.remove(at)
    });
    freed.end(&machine, Feature::SocketFree);
    let others = all.iter_mut().filter(|both| both.samples == 9);
    for both in others.chain([&mut refused]) {
        both.play(&machine, 1000, wire(both.of, true, 100, ORDINARY));
        assert_eq!(both.samples, 10);
    }
    assert_eq!(machine.entries().0, 13);
    all.push(refused);
    (0..3).for_each(|_| play(&mut all, 100_000));
    assert_eq!((machine.entries().0, all.iter().filter(|both| both.samples == 11).count()), (14, 1));
}

#[test]
fn unwanted_loopback_is_neither_sampled_nor_counted() {
    for (local, remote, samples) in [(0, 0, 0), (0, 1, 2)] {
        for ipv6 in [false, true] {
            let machine = Machine::new(&without_loopback(), 100);
            let of = Conversation { local: (local, 4000), remote: (remote, 53), ..conversation(ipv6, 0, 2) };
            let sampled = [true, false].map(|out| {
                machine.set_time(1);
                let (is_sample, _) = wire(of, out, 100, ORDINARY).hit(&machine);
                usize::from(is_sample)
            });
            assert_eq!(sampled.iter().sum::<usize>(), samples, "{ipv6}");
            assert_eq!(machine.entries().0 > 0, samples > 0);
        }
    }
}

#[test]
fn a_new_socket_does_not_continue_an_earlier_ones_conversation() {
    let machine = Machine::new(&rules(), 100);
    let of = conversation(false, 0, 2);
    let mut all = HashMap::new();
    for now in 1..=3 {
        play(&machine, now, wire(of, true, 100, ORDINARY), &mut all);
    }
    // The end of the first socket was missed.
    let (is_sample, reported) = machine.hit(Feature::SocketCreate, [of.sock, 0, 0]);
    assert!(is_sample && machine.entries() == (0, 0));
    assert_eq!(reported.iter().map(|totals| totals.sent.packets).collect::<Vec<_>>(), [2]);
    machine.set_time(2_000_000);
    assert!(wire(of, true, 100, ORDINARY).hit(&machine).0);
}

#[test]
fn only_packets_of_tcp_and_udp_are_sampled() {
    let machine = Machine::new(&rules(), 100);
    for (protocol, ip_options, sampled) in [(2, true, false), (1, false, false), (17, true, true), (6, true, true)] {
        let wire = Wire::new(conversation(false, 0, 2), PacketDirection::Outbound, 10);
        let wire = Wire { protocol: Some(protocol), ip_options, ..wire };
        assert_eq!(wire.hit(&machine).0, sampled, "{protocol}");
    }
    assert_eq!(machine.entries().0, 0);
}

#[test]
fn a_packet_that_a_program_cannot_read_is_sampled() {
    let machine = Machine::new(&rules(), 100);
    assert!(machine.hit(Feature::UdpIpv4In, [SOCK, 64, 0]).0);
    assert!(machine.hit(Feature::Ipv4Out, [SOCK, 0, 64]).0);
}
