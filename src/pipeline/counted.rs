//! The flows are the same, whether packets are sampled or counted by the kernel.

mod world;

use std::convert::Infallible;
use std::time::Duration;

use proptest::prelude::*;

use self::world::{Action, World, actions};
use super::*;
use crate::model::flow::{Counters, Outcome, Reason, Transport};
use crate::source::fake::{Fake, Kernel, Scripted};

#[derive(Default)]
struct Flows(Vec<Flow>);

impl Sink<Fake> for Flows {
    type Error = Infallible;

    fn flow(&mut self, _source: &mut Fake, flow: Flow, _at: MonotonicTime) -> Result<(), Infallible> {
        self.0.push(flow);
        Ok(())
    }
}

/// The flows of a host, in order of their numbers, and the counters.
fn run(script: &[Scripted], config: &StateConfig, kernel: Option<Kernel>, ahead: usize) -> (Vec<Flow>, StateStats) {
    let mut source = Fake::new(script.iter().cloned());
    (source.kernel, source.ahead) = (kernel, ahead);
    let (mut pipeline, mut flows) = (Pipeline::new(config.clone(), None), Flows::default());
    let Ok(()) = pipeline.begin(&mut source, &mut flows);
    while let Ok(control) = pipeline.step(&mut source, &mut flows)
        && control.is_continue()
    {}
    flows.0.sort_by_key(|flow| (flow.number, flow.is_final, flow.end));
    (flows.0, pipeline.stats())
}

/// The pause after which the next packet must be sampled, so that a flow that has ended begins anew with a sample.
fn pause(config: &StateConfig) -> Duration {
    config.flow_inactive_timeout.min(config.flow_termination_timeout)
}

fn kernel(config: &StateConfig) -> Kernel {
    Kernel::new(pause(config), usize::MAX)
}

fn config(interval: Option<u64>) -> StateConfig {
    StateConfig { flow_report_interval: interval.map(Duration::from_secs), ..StateConfig::default() }
}

/// If this host has dropped every datagram that it sent, the outcome depends on whether it had sent one when another arrived.
/// The kernel's counts do not show that.
fn comparable(flow: &Flow) -> Flow {
    let is_all_dropped = flow.transport == Transport::Udp && flow.sent.packets == 0 && flow.dropped.packets > 0;
    Flow { outcome: if is_all_dropped { Outcome::Unknown } else { flow.outcome }, ..flow.clone() }
}

/// Fails with the first flow that differs.
fn same(counted: &[Flow], sampled: &[Flow]) -> Result<(), TestCaseError> {
    for (counted, sampled) in counted.iter().zip(sampled) {
        prop_assert_eq!(comparable(counted), comparable(sampled));
    }
    prop_assert_eq!(counted.len(), sampled.len());
    Ok(())
}

proptest! {
    #[test]
    fn counted_packets_make_the_same_flows_as_sampled_ones(
        actions in actions(),
        interval in proptest::option::of(3..20_u64),
        room in prop_oneof![3 => Just(usize::MAX), 1 => 0..4_usize],
    ) {
        let mut world = World::new();
        world.play(&actions);
        let config = config(interval);
        let (sampled, all) = run(&world.script, &config, None, 0);
        let (counted, some) = run(&world.script, &config, Some(Kernel::new(pause(&config), room)), 0);
        same(&counted, &sampled)?;
        prop_assert_eq!(some.flows_started, all.flows_started);
        if interval.is_none() && some.flows_without_socket == 0 && world.is_exact {
            prop_assert_eq!(sum(&counted, |flow| flow.sent).0, world.sent.packets);
            prop_assert_eq!(sum(&counted, |flow| flow.received).0, world.received.packets);
        }
    }

    /// The kernel has counted packets whose samples come later than the answer. This makes no difference, as long as no socket
    /// is closed while the kernel is ahead.
    #[test]
    fn a_kernel_that_is_ahead_of_the_samples_gives_the_same_flows(actions in actions(), ahead in 1..20_usize) {
        let mut opened = Vec::new();
        let keeps = actions.into_iter().filter(|action| match action {
            Action::Open { slot, .. } if opened.contains(slot) => false,
            Action::Open { slot, .. } => {
                opened.push(*slot);
                true
            }
            action => !action.closes(),
        });
        let mut world = World::new();
        world.play(&keeps.collect::<Vec<_>>());
        let config = config(None);
        let (sampled, _) = run(&world.script, &config, None, 0);
        let (counted, _) = run(&world.script, &config, Some(kernel(&config)), ahead);
        same(&counted, &sampled)?;
    }

    /// If a socket is closed while the kernel is ahead, a flow whose timeout was due may end as closed instead of inactive. But
    /// each packet is counted once.
    #[test]
    fn a_kernel_that_is_ahead_counts_each_packet_once(actions in actions(), ahead in 1..20_usize) {
        let mut world = World::new();
        world.play(&actions);
        let config = config(None);
        let (sampled, all) = run(&world.script, &config, None, 0);
        let (counted, some) = run(&world.script, &config, Some(kernel(&config)), ahead);
        if all.flows_without_socket + some.flows_without_socket == 0 {
            let sums = |flows: &[Flow]| [sum(flows, |flow| flow.sent), sum(flows, |flow| flow.received)];
            prop_assert_eq!(sums(&counted), sums(&sampled));
        }
    }
}

fn sum(flows: &[Flow], of: fn(&Flow) -> Counters) -> (u64, u64) {
    flows.iter().map(of).fold((0, 0), |(packets, bytes), one| (packets + one.packets, bytes + one.bytes))
}

#[test]
fn a_long_flow_needs_one_sample() {
    const PACKETS: usize = 100_000;
    let mut world = World::new();
    let send = Action::Datagram { slot: 0, peer: 0, outbound: true, payload: 100, nonlinear: false, dropped: false };
    (0..PACKETS).for_each(|_| world.act(&send));
    world.act(&Action::Wait { millis: 40_000 });
    let config = config(None);
    let (flows, stats) = run(&world.script, &config, Some(kernel(&config)), 0);
    let sent = Counters { packets: PACKETS as u64, bytes: PACKETS as u64 * 128 };
    assert_eq!(flows.iter().map(|flow| (flow.sent, flow.reason)).collect::<Vec<_>>(), [(sent, Reason::Inactive)]);
    assert_eq!((stats.packets, stats.packets_counted), (1, PACKETS as u64 - 1));
}

/// Each connection is reset, and the next one has the same ends.
#[test]
fn three_hundred_connections_on_one_tuple_are_three_hundred_flows() {
    for (accepted, outbound) in [(false, true), (false, false), (true, true), (true, false)] {
        let mut world = World::new();
        for _ in 0..300 {
            world.act(&Action::Open { slot: 0, accepted });
            for _ in 0..5 {
                world.act(&Action::Receive { slot: 0, segments: 3, options: false, acknowledged: true });
                world.act(&Action::Send { slot: 0, segments: 2, payload: 0, dropped: false });
            }
            world.act(&Action::Reset { slot: 0, outbound });
        }
        world.act(&Action::Wait { millis: 10_000 });
        let config = config(None);
        let (flows, stats) = run(&world.script, &config, Some(kernel(&config)), 0);
        assert_eq!(flows.len(), 300);
        assert_eq!(flows, run(&world.script, &config, None, 0).0);
        assert!(stats.packets_counted >= 300 * 15, "{stats:?}");
        let received: u64 = flows.iter().map(|flow| flow.received.bytes).sum();
        assert_eq!(received, world.received.bytes);
    }
}
