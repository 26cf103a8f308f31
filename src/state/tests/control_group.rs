//! What is reported is restricted to the processes of one control group.

use super::names::{answer, asker};
use super::*;
use crate::model::control_groups::{CGROUP_V2, ControlGroups};
use crate::model::event::Moved;

const OBSERVED: &str = "/system.slice/web.service";

/// A story of a source that reports one group. The shell, curl and the server begin outside of it.
fn restricted() -> Story {
    let mut story = Story::new();
    let capabilities = SourceCapabilities { control_group: Some(OBSERVED.into()), ..CAPABILITIES };
    story.state.set_capabilities(capabilities);
    for pid in [SHELL, CURL, SERVER] {
        let process = story.state.processes.known(pid).unwrap();
        let control_groups = ControlGroups::of_proc(b"0::/user.slice\n");
        story.state.learn(&process, FoundProcess { control_groups, ..FoundProcess::default() });
    }
    story
}

fn moved(story: &mut Story, pid: u32, path: &str) {
    let moved = Moved { tid: pid, hierarchy: CGROUP_V2, path: path.into() };
    story.say(pid, EventKind::Moved(Box::new(moved)));
}

/// A process makes a flow in each of these groups. Returns the local ports of those that are reported.
fn reported(groups: &[&str]) -> Vec<u16> {
    let mut story = restricted();
    for (port, group) in (40000..).zip(groups) {
        moved(&mut story, CURL, group);
        let sock = u64::from(port);
        story.conversation(CURL, sock, tuple(port, 80));
        story.state_is(sock, tuple(port, 80), TcpState::Closed { error: 0 });
    }
    story.wait(40);
    let mut ports: Vec<_> = story.out.iter().map(|flow| flow.local.port).collect();
    ports.sort_unstable();
    ports
}

#[test]
fn flows_of_a_group_and_of_those_below_it_are_reported() {
    let below = format!("{OBSERVED}/worker");
    assert_eq!(reported(&["/user.slice", OBSERVED, &below, "/system.slice/web.service2", "/"]), [40001, 40002]);
}

#[test]
fn a_flow_without_a_known_owner_is_in_no_group() {
    let mut story = restricted();
    story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 60);
    story.wait(31);
    assert!(story.out.is_empty(), "{:?}", story.out);
    assert_eq!(story.state.stats().flows_filtered, 1);
}

#[test]
fn names_are_those_that_processes_of_the_group_look_up() {
    let mut story = restricted();
    story.state.config.report_names = true;
    asker(&mut story, CURL);
    answer(&mut story, tuple(5001, 53), "outside.example", "192.0.2.1");
    moved(&mut story, CURL, OBSERVED);
    story.wait(1);
    asker(&mut story, CURL);
    answer(&mut story, tuple(5001, 53), "inside.example", "192.0.2.2");
    story.wait(1);
    let names: Vec<_> = story.state.names().map(|name| name.lookup.name.to_string()).collect();
    assert_eq!(names, ["inside.example"]);
}
