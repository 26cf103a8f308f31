//! Packets at the hooks of a control group.

use super::*;

const SYN: u8 = 0x02;
const FIN: u8 = 0x01;
const ACK: u8 = 0x10;
const LISTENER: u64 = 0xffff_8880_4000_0000;

fn conversation(ipv6: bool, transport: Transport, number: u8) -> Conversation {
    let sock = 0xffff_8880_1000_0000 + 4096 * u64::from(number);
    Conversation { ipv6, transport, sock, local: (1, 4000), remote: (2 + number, 53) }
}

/// A packet.
#[derive(Clone, Debug)]
struct Step {
    /// The number of its conversation.
    of: u8,
    out: bool,
    payload: u32,
    gso_segs: u32,
    /// If 0, it has IP options; if 1 and it arrives, it was fragmented; if 2, it has a flag that is always sampled; if 3 and it
    /// arrives, the hook runs for the listener; if 4, a virtual device has not said how many packets it stands for.
    special: u8,
    options: u8,
    /// Nanoseconds since the packet before.
    pause: u64,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pause = prop_oneof![8 => 1..1_000_000_u64, 1 => PAUSE - 2..PAUSE + 2, 1 => Just(2 * PAUSE)];
    let payload = prop_oneof![4 => 0..1400_u32, 4 => 0..60_000_u32, 1 => 65_400..200_000_u32];
    let step = (0..2_u8, any::<bool>(), payload, 0..4_u32, 0..12_u8, 0..4_u8, pause);
    let step = step.prop_map(|(of, out, payload, gso_segs, special, options, pause)| Step {
        of,
        out,
        payload,
        gso_segs,
        special,
        options,
        pause,
    });
    prop::collection::vec(step, 1..200)
}

fn wire(of: Conversation, step: &Step) -> Wire {
    let direction = if step.out { PacketDirection::Outbound } else { PacketDirection::Inbound };
    let is_tcp = of.transport == Transport::Tcp;
    if step.payload > 60_000 {
        // Only TCP over IPv6 has such packets, all of several segments.
        let payload = if is_tcp && of.ipv6 { step.payload } else { 60_000 };
        let wire = Wire::new(of, direction, payload);
        let (gso_segs, adds_jumbo_option) = (payload.div_ceil(1400), step.options.is_multiple_of(2));
        return Wire { gso_segs, gso_size: 1400, flags: ACK, adds_jumbo_option, ..wire };
    }
    let wire = Wire::new(of, direction, step.payload);
    let gso_size = if step.gso_segs > 1 { 1400 } else { 0 };
    let mut wire =
        Wire { gso_segs: step.gso_segs, gso_size, options: if is_tcp { step.options } else { 0 }, flags: ACK, ..wire };
    match step.special {
        0 => wire.ip_options = true,
        1 if !step.out => wire.fragment = 600,
        2 => wire.flags = [SYN, FIN | ACK][usize::from(step.options % 2)],
        3 if !step.out && is_tcp => wire.sender = LISTENER,
        4 if step.payload > 0 => (wire.gso_segs, wire.gso_size) = (0, 1000),
        _ => {}
    }
    wire
}

proptest! {
    /// Each packet counts as often as the kernel says, with the headers of each segment.
    #[test]
    fn samples_and_totals_together_have_every_packet(ipv6 in any::<bool>(), tcp in any::<bool>(), steps in steps()) {
        let machine = Machine::at_hooks(&rules(), 100);
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        let mut all = [0, 1].map(|number| (Both::new(conversation(ipv6, transport, number)), 0_u64, 0_u64));
        let mut now = 1;
        for step in steps {
            now += step.pause;
            let (both, packets, bytes) = &mut all[usize::from(step.of)];
            let wire = wire(both.of, &step);
            let size = wire.packet_at_hook().size;
            // Not what the state machine says, but what the kernel would send or has received.
            let segments = u64::from(wire.wire_packets().max(1));
            if wire.packet_at_hook().fragment == 0 {
                *packets += segments;
                *bytes += u64::from(size.bytes) + (segments - 1) * u64::from(size.headers);
            }
            both.play_at_hook(&machine, now, wire);
        }
        for (both, packets, bytes) in &mut all {
            machine.look_up(both.of.sock).iter().for_each(|totals| both.take(totals));
            let [expected, combined] = both.counted();
            prop_assert_eq!(&combined, &expected);
            let LiveFlow { sent, received, inexact, .. } = &both.combined;
            if !inexact.fragments {
                prop_assert_eq!((sent.packets + received.packets, sent.bytes + received.bytes), (*packets, *bytes));
            }
        }
    }
}

#[test]
fn most_packets_are_counted() {
    for (ipv6, transport) in
        [(false, Transport::Udp), (true, Transport::Udp), (false, Transport::Tcp), (true, Transport::Tcp)]
    {
        let machine = Machine::at_hooks(&rules(), 100);
        let mut both = Both::new(conversation(ipv6, transport, 0));
        for number in 0..1000 {
            let direction = if number % 2 == 0 { PacketDirection::Outbound } else { PacketDirection::Inbound };
            both.play_at_hook(&machine, 1000 * number, Wire { flags: ACK, ..Wire::new(both.of, direction, 100) });
        }
        assert_eq!(both.samples, 2, "{ipv6} {transport:?}");
    }
}

/// The ends in the headers are not those of the socket's flow.
#[test]
fn packets_with_a_translated_port_are_sampled() {
    for (ipv6, transport) in
        [(false, Transport::Udp), (true, Transport::Udp), (false, Transport::Tcp), (true, Transport::Tcp)]
    {
        for ports in [vec![], vec![53]] {
            let mut filter = Filter::default();
            filter.ports.only = ports;
            let machine = Machine::at_hooks(&Rules { filter, ..rules() }, 100);
            let of = conversation(ipv6, transport, 0);
            for _ in 0..3 {
                let wire = Wire { translated_port: Some(9999), ..Wire::new(of, PacketDirection::Outbound, 100) };
                assert_eq!(wire.hit_at_hook(&machine), (true, Vec::new()), "{ipv6} {transport:?}");
            }
        }
    }
}

/// A packet of another version of IP, or of a socket of another protocol, is neither sampled nor counted.
#[test]
fn packets_that_do_not_meet_the_conditions_are_ignored() {
    let machine = Machine::at_hooks(&rules(), 100);
    let of = conversation(false, Transport::Udp, 0);
    let wire = Wire::new(of, PacketDirection::Outbound, 100);
    assert!(wire.hit_at_hook(&machine).0);
    let icmp = Wire { protocol: Some(1), ..wire };
    assert_eq!(icmp.hit_at_hook(&machine), (false, Vec::new()));
    for ipv6 in [false, true] {
        let of = conversation(ipv6, Transport::Tcp, 1);
        let esp_in_udp = Wire { carrier: Some(17), ..Wire::new(of, PacketDirection::Outbound, 100) };
        assert_eq!(esp_in_udp.hit_at_hook(&machine), (false, Vec::new()));
    }
}
