//! The user's filter: programs reject no packet that the state machine accepts, and reject all others that they can.

use super::*;

fn network() -> impl Strategy<Value = Network> {
    let ipv4 = (0..4_u8, 0..=32_u8).prop_map(|(host, prefix)| format!("192.0.2.{host}/{prefix}"));
    let ipv6 = (0..4_u8, 0..=128_u8).prop_map(|(host, prefix)| format!("fd00:1:2:3:4:5:6:{host}/{prefix}"));
    prop_oneof![ipv4, ipv6].prop_map(|text| text.parse().unwrap())
}

fn choice<T: std::fmt::Debug + Clone>(of: impl Strategy<Value = T> + 'static) -> impl Strategy<Value = Choice<T>> {
    let of = of.boxed();
    let list = move || prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(of.clone(), 1..3)];
    (list(), list()).prop_map(|(only, exclude)| Choice { only, exclude })
}

prop_compose! {
    fn filter()(
        exclude_loopback in any::<bool>(),
        ports in choice(prop_oneof![Just(53), Just(443), Just(4000), any::<u16>()]),
        networks in choice(network()),
    ) -> Filter {
        Filter { exclude_loopback, ports, networks, ..Filter::default() }
    }
}

proptest! {
    /// The first packet of a conversation becomes a sample if and only if the filter accepts it.
    #[test]
    fn the_programs_and_the_state_machine_agree(
        filter in filter(),
        (ipv6, is_tcp, out) in any::<(bool, bool, bool)>(),
        (local, remote) in ((0..2_u8, 3999..4001_u16), (0..4_u8, prop_oneof![Just(53_u16), Just(443)])),
    ) {
        // If a host sends to itself at an address that is no loopback address, only the state machine recognises that.
        prop_assume!(local.0 == 0 || local.0 != remote.0);
        let transport = if is_tcp { Transport::Tcp } else { Transport::Udp };
        let of = Conversation { ipv6, transport, sock: 0xffff_8880_1000_0000, local, remote };
        let direction = if out { PacketDirection::Outbound } else { PacketDirection::Inbound };
        let machine = Machine::new(&Rules { filter: filter.clone(), ..rules() }, 10);
        let (is_sample, _) = Wire::new(of, direction, 100).hit(&machine);
        prop_assert_eq!(is_sample, filter.accepts(&of.tuple()));
    }
}

#[test]
fn a_list_that_is_too_long_is_left_to_the_state_machine() {
    let of = Conversation {
        ipv6: false,
        transport: Transport::Udp,
        sock: 0xffff_8880_1000_0000,
        local: (1, 4000),
        remote: (2, 53),
    };
    for (count, is_sample) in [(32, false), (33, true)] {
        let ports = Choice { only: Vec::new(), exclude: vec![53; count] };
        let machine = Machine::new(&Rules { filter: Filter { ports, ..Filter::default() }, ..rules() }, 10);
        assert_eq!(Wire::new(of, PacketDirection::Outbound, 1).hit(&machine).0, is_sample);
    }
}
