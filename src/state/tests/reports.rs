//! Which flows are reported, and when.

use super::*;

#[test]
fn the_monitors_own_traffic_is_not_reported() {
    let mut story = Story::with(StateConfig { own_pid: CURL, ..StateConfig::default() });
    story.conversation(CURL, 0xa, tuple(40000, 9200));
    story.wait(6);
    assert!(story.out.is_empty());
    assert_eq!(story.state.stats().flows_own, 1);
}

#[test]
fn live_flows_are_handed_out_at_the_end_and_are_not_final() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.tcp(PacketDirection::Outbound, 0xa, tuple(40000, 80), 60, SYN);
    story.conversation(SHELL, 0xb, tuple(40001, 80));
    story.state.shutdown();
    story.out.extend(story.state.finished());
    story.out.sort_by_key(|flow| flow.local.port);
    let finals: Vec<_> = story.out.iter().map(|flow| flow.is_final).collect();
    assert_eq!(finals, [false, true], "what was closed already is final");
    assert_eq!(story.state.stats().flows_live, 0);
}

#[test]
fn a_long_flow_is_reported_while_it_lives_and_the_last_report_agrees() {
    let interval = Some(Duration::from_secs(10));
    let mut story = Story::with(StateConfig { flow_report_interval: interval, ..StateConfig::default() });
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    for _ in 0..25 {
        story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 100);
        story.wait(1);
    }
    story.wait(40);
    let reports: Vec<_> = story.out.iter().map(|flow| (flow.is_final, flow.sent.packets)).collect();
    let [(false, first), (false, second), .., (true, last)] = reports[..] else { panic!("{reports:?}") };
    assert!(first < second && second <= last, "{reports:?}");
    assert_eq!(last, 25);
    assert!(story.out.iter().all(|flow| flow.number == story.out[0].number));
    assert!(reports.len() <= 4, "nothing is reported when there is no news: {reports:?}");
}

#[test]
fn a_flow_is_reported_again_only_after_further_traffic() {
    let interval = Some(Duration::from_secs(10));
    let mut story = Story::with(StateConfig { flow_report_interval: interval, ..StateConfig::default() });
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 100);
    story.now += 11 * SECOND;
    story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 100);
    story.wait(0);
    story.wait(11);
    story.wait(31);
    let reports: Vec<_> = story.out.iter().map(|flow| (flow.reason, flow.sent.packets)).collect();
    assert_eq!(reports, [(Reason::Interim, 2), (Reason::Inactive, 2)]);
    assert_eq!(story.state.stats().flows_reported, 2);
}

#[test]
fn a_flow_of_an_excluded_process_is_not_reported_while_it_lives_either() {
    let mut config = StateConfig { flow_report_interval: Some(Duration::from_secs(1)), ..StateConfig::default() };
    config.filter.pids.exclude = vec![CURL];
    let mut story = Story::with(config);
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    for _ in 0..5 {
        story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 100);
        story.wait(1);
    }
    assert!(story.out.is_empty());
}

#[test]
fn rejected_packets_and_flows_are_counted() {
    let mut config = StateConfig::default();
    config.filter.ports.exclude = vec![80];
    config.filter.pids.exclude = vec![CURL];
    let mut story = Story::with(config);
    story.conversation(SHELL, 0xa, tuple(40000, 80));
    story.conversation(CURL, 0xb, tuple(40001, 81));
    story.conversation(SHELL, 0xc, tuple(40002, 81));
    story.wait(6);
    assert_eq!(owner(&story.only()).0, SHELL);
    let stats = story.state.stats();
    assert_eq!((stats.packets_filtered, stats.flows_filtered), (5, 1));
}

#[test]
fn a_full_table_reports_early_instead_of_growing() {
    let mut story = Story::with(StateConfig { max_flows: 2, ..StateConfig::default() });
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    for port in 1..=3 {
        story.udp(PacketDirection::Outbound, 0xa, tuple(40000, port), 60);
        story.wait(1);
    }
    let flow = story.only();
    assert_eq!((flow.reason, flow.remote.port), (Reason::Evicted, 1));
    assert_eq!(story.state.stats().flows_live, 2);
}

#[test]
fn refused_and_evicted_entries_are_counted() {
    let mut story = Story::with(StateConfig { max_sockets: 1, max_flows: 1, ..StateConfig::default() });
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 1), 60);
    story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 2), 60);
    assert_eq!((story.only().reason, story.state.stats().flows_evicted), (Reason::Evicted, 1));
    story.say(SHELL, EventKind::SocketCreated { sock: sock_at(0xb), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0xb, tuple(40001, 1), 60);
    let stats = story.state.stats();
    assert!(stats.sockets_refused > 0);
    assert_eq!((stats.sockets_live, stats.packets_without_flow), (1, 1));
}
