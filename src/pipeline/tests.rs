//! A pipeline with a fake source: what comes out, and in which order.

use std::net::Ipv4Addr;

use super::*;
use crate::model::control_groups::ControlGroups;
use crate::model::event::{Event, Fork, Packet, PacketDirection, PacketSize, SocketUser, Tuple};
use crate::model::flow::{Endpoint, Owner, Reason, Transport};
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::model::loss::LossCause;
use crate::model::process::{Details, Process};
use crate::model::socket_event::{Actions, Family, SocketId};
use crate::model::testing::{monotonic, since_boot, sock_at};
use crate::source::fake::{Fake, Scripted, dns_packet, query_and_response};
use crate::source::kprobes::{Feature, Missed};
use crate::state::{FoundProcess, PreexistingProcess, PreexistingSocket};

const SECOND: u64 = 1_000_000_000;
const CLIENT: u32 = 42;
const SOCK: u64 = 0xffff_8880_0000_1000;
const HERE: ([u8; 4], u16) = ([192, 0, 2, 2], 4000);
const NAME_SERVER: ([u8; 4], u16) = ([192, 0, 2, 1], 53);
/// The address that [`query_and_response`] resolves to.
const NAMED: ([u8; 4], u16) = ([192, 0, 2, 9], 443);

/// The results that a sink was given, in order.
#[derive(Default)]
struct Given {
    flows: Vec<Flow>,
    losses: Vec<Loss>,
    existing_sockets: Vec<EventSocket>,
    order: Vec<String>,
}

impl Sink<Fake> for Given {
    type Error = std::convert::Infallible;

    fn flow(&mut self, source: &mut Fake, flow: Flow, at: MonotonicTime) -> Result<(), Self::Error> {
        assert_eq!(source.forgotten.contains(&flow.number), flow.is_final, "what goes on is not forgotten");
        self.order.push(format!("flow at {}", at.as_nanos() / SECOND));
        self.flows.push(flow);
        Ok(())
    }

    fn existing_sockets(&mut self, sockets: Vec<EventSocket>) {
        self.existing_sockets.extend(sockets);
    }

    fn loss(&mut self, loss: Loss) {
        self.order.push("loss".to_owned());
        self.losses.push(loss);
    }

    fn complete_until(&mut self, _source: &mut Fake, time: MonotonicTime) {
        self.order.push(format!("until {}", time.as_nanos() / SECOND));
    }
}

fn config() -> StateConfig {
    StateConfig { own_pid: 1, ..StateConfig::default() }
}

/// Runs a source to its end.
fn run(source: &mut Fake, config: StateConfig) -> (Given, StateStats) {
    let (mut pipeline, mut given) = (Pipeline::new(config, None), Given::default());
    let Ok(()) = pipeline.begin(source, &mut given);
    loop {
        let Ok(control) = pipeline.step(source, &mut given);
        if control.is_break() {
            return (given, pipeline.stats());
        }
    }
}

fn event(second: u64, pid: u32, kind: EventKind) -> Scripted {
    Scripted::Event(Event { time: monotonic(second * SECOND), pid, tid: pid, kind })
}

fn fork(second: u64, child: u32) -> Scripted {
    event(second, 7, EventKind::Fork(Fork { child, start: Some(since_boot(u64::from(child))) }))
}

fn socket(second: u64, pid: u32, sock: u64) -> Scripted {
    event(second, pid, EventKind::SocketCreated { sock: sock_at(sock), user: SocketUser::Program })
}

/// The client sends a datagram with 72 bytes of payload.
fn datagram(second: u64, sock: u64, to: ([u8; 4], u16)) -> Scripted {
    let end = |(ip, port): ([u8; 4], u16)| Endpoint::new(Ipv4Addr::from(ip), port);
    let tuple = Tuple { net: NetAddress::new(1), local: end(HERE), remote: end(to) };
    let packet = Packet::new(
        PacketDirection::Outbound,
        Transport::Udp,
        SockAddress::new(sock),
        tuple,
        PacketSize { bytes: 100, headers: 28 },
    );
    event(second, CLIENT, EventKind::Packet(packet))
}

fn found(container: &str) -> FoundProcess {
    FoundProcess {
        read: monotonic(0),
        start: Some(since_boot(u64::from(CLIENT))),
        parent_pid: Some(7),
        credentials: None,
        control_groups: ControlGroups::default(),
        details: Details { container_id: Some(container.to_owned()), ..Details::default() },
    }
}

fn owner(flow: &Flow) -> &Process {
    match &flow.owner {
        Owner::Process(process) => process,
        other => panic!("{other:?}"),
    }
}

fn names(client: ([u8; 4], u16), second: u64) -> [Scripted; 2] {
    let [query, response] = query_and_response();
    let at = |bytes, late| Scripted::Packet { time: monotonic(second * SECOND + late), bytes };
    [at(dns_packet(client, NAME_SERVER, &query), 0), at(dns_packet(NAME_SERVER, client, &response), 1000)]
}

#[test]
fn a_flow_comes_out_once_it_is_over_and_the_source_may_forget_it() {
    let mut source = Fake::new([
        fork(1, CLIENT),
        socket(2, CLIENT, SOCK),
        Scripted::EndBatch,
        datagram(3, SOCK, NAMED),
        Scripted::EndRound(monotonic(4 * SECOND)),
        Scripted::EndRound(monotonic(40 * SECOND)),
        Scripted::EndRound(monotonic(41 * SECOND)),
    ]);
    let (given, _) = run(&mut source, config());
    let [flow] = &given.flows[..] else { panic!("{:#?}", given.flows) };
    assert_eq!((flow.sent.packets, flow.sent.bytes, flow.reason), (1, 100, Reason::Inactive));
    assert_eq!(owner(flow).pid, CLIENT);
    assert_eq!(source.forgotten, [flow.number]);
    assert_eq!(
        given.order,
        ["until 4", "flow at 40", "until 40", "until 41"],
        "the time up to which all flows were given comes after them"
    );
}

#[test]
fn a_report_of_a_live_flow_is_not_its_end() {
    let reported = StateConfig { flow_report_interval: Some(std::time::Duration::from_secs(5)), ..config() };
    let traffic = (3..15)
        .flat_map(|second| [datagram(second, SOCK, NAMED), Scripted::EndRound(monotonic((second + 1) * SECOND))]);
    let mut source = Fake::new(
        [socket(2, CLIENT, SOCK)].into_iter().chain(traffic).chain([Scripted::EndRound(monotonic(60 * SECOND))]),
    );
    let (given, _) = run(&mut source, reported);
    let [reports @ .., last] = &given.flows[..] else { panic!("nothing came out") };
    assert!(last.is_final && !reports.is_empty() && reports.iter().all(|flow| !flow.is_final));
    assert_eq!(source.forgotten, [last.number]);
}

#[test]
fn processes_and_sockets_that_existed_before_are_taken_in() {
    for wanted in [Actions::NONE, Actions::ALL] {
        let end = |(ip, port): ([u8; 4], u16)| Endpoint::new(Ipv4Addr::from(ip), port);
        let mut source = Fake::new([datagram(3, SOCK, NAMED), Scripted::EndRound(monotonic(4 * SECOND))]);
        let process = Process { start: Some(since_boot(1)), ..Process::new(CLIENT) };
        source.processes = vec![PreexistingProcess { process, threads: vec![CLIENT] }];
        let (local, remote, transport) = (end(HERE), Some(end(NAMED)), Transport::Udp);
        source.sockets = vec![PreexistingSocket { namespace: 1, transport, local, remote, pid: CLIENT }];
        source.event_sockets = vec![(EventSocket::new(SocketId(9), Family::INET), Some(CLIENT))];
        let (given, _) = run(&mut source, StateConfig { socket_events: wanted, ..config() });
        assert_eq!(owner(&given.flows[0]).start, Some(since_boot(1)));
        let owners: Vec<_> = given.existing_sockets.iter().map(|socket| socket.owner.as_ref().unwrap().pid).collect();
        assert_eq!(owners, if wanted.is_empty() { vec![] } else { vec![CLIENT] });
    }
}

#[test]
fn live_flows_come_out_at_the_end() {
    let mut source =
        Fake::new([socket(2, CLIENT, SOCK), datagram(3, SOCK, NAMED), Scripted::EndRound(monotonic(4 * SECOND))]);
    let (given, _) = run(&mut source, config());
    assert_eq!(given.flows.iter().map(|flow| flow.reason).collect::<Vec<_>>(), [Reason::Shutdown]);
    assert!(source.forgotten.is_empty(), "the flow has not ended, only the monitor has");
}

#[test]
fn losses_are_reported_and_mark_the_affected_flows() {
    let missed =
        Missed { feature: Feature::TcpIpv4In, count: 3, since: monotonic(3 * SECOND), time: monotonic(5 * SECOND) };
    for (loss, cause, count, is_marked) in [
        (
            Scripted::Lost { since: monotonic(3 * SECOND), time: monotonic(5 * SECOND), count: 7 },
            LossCause::Ring { cpu: 0 },
            7,
            true,
        ),
        (Scripted::Missed(missed), LossCause::Probes { feature: Feature::TcpIpv4In }, 3, false),
    ] {
        let script =
            [socket(2, CLIENT, SOCK), datagram(3, SOCK, NAMED), loss, Scripted::EndRound(monotonic(6 * SECOND))];
        let (given, stats) = run(&mut Fake::new(script), config());
        let reported: Vec<_> = given.losses.iter().map(|loss| (loss.cause, loss.count)).collect();
        assert_eq!(reported, [(cause, count)]);
        assert_eq!(stats.samples_lost, count);
        assert_eq!(given.order[0], "loss", "not only at the end");
        assert_eq!(given.flows.iter().map(|flow| flow.inexact.samples_lost).collect::<Vec<_>>(), [is_marked]);
    }
}

#[test]
fn a_process_that_becomes_an_owner_is_looked_up() {
    let mut source = Fake::new([
        fork(1, CLIENT),
        fork(1, CLIENT + 1),
        socket(2, CLIENT, SOCK),
        datagram(3, SOCK, NAMED),
        Scripted::EndRound(monotonic(4 * SECOND)),
        Scripted::EndRound(monotonic(5 * SECOND)),
    ]);
    source.known.insert(CLIENT, found("a container"));
    let (given, _) = run(&mut source, config());
    assert_eq!(source.asked, [CLIENT], "once, and not about others");
    assert_eq!(owner(&given.flows[0]).container_id(), Some("a container"));
}

/// A source that cannot be asked, such as a recording, gives answers at times of its own. The pid says which process each is
/// about.
#[test]
fn answers_that_were_not_asked_for_are_used() {
    let mut source = Fake::new([
        fork(1, CLIENT),
        socket(2, CLIENT, SOCK),
        datagram(3, SOCK, NAMED),
        Scripted::EndRound(monotonic(4 * SECOND)),
        Scripted::EndRound(monotonic(5 * SECOND)),
        Scripted::Answer { pid: CLIENT, found: found("a container") },
        Scripted::EndRound(monotonic(6 * SECOND)),
    ]);
    source.can_be_asked = false;
    let (given, _) = run(&mut source, config());
    assert!(source.asked.is_empty() && source.checked.is_empty());
    assert_eq!(owner(&given.flows[0]).container_id(), Some("a container"));
}

#[test]
fn the_number_of_questions_in_a_step_is_bounded() {
    let clients = 100..200;
    let mut script: Vec<_> = clients.clone().map(|pid| fork(1, pid)).collect();
    script.extend(clients.clone().map(|pid| socket(2, pid, u64::from(pid) * 64)));
    script.push(Scripted::EndRound(monotonic(3 * SECOND)));
    for (pipeline, at_once) in [
        (Pipeline::new(config(), None), MAX_QUESTIONS),
        (Pipeline::new(config(), None).without_question_limit(), clients.len()),
    ] {
        let (mut pipeline, mut source, mut given) = (pipeline, Fake::new(script.clone()), Given::default());
        source.ends = false;
        let mut step = |source: &mut Fake| {
            let Ok(control) = pipeline.step(source, &mut given);
            assert!(control.is_continue());
            source.asked.len()
        };
        assert_eq!([step(&mut source), step(&mut source)], [at_once, clients.len()]);
    }
}

/// Each process is checked now and then, because the event of its end may have been lost.
#[test]
fn a_process_that_is_gone_is_forgotten() {
    let minutes = |minutes: u64| Scripted::EndRound(monotonic(minutes * 60 * SECOND));
    let live = |gone: &[u32]| {
        let mut source =
            Fake::new([fork(1, CLIENT), fork(1, CLIENT + 1), minutes(1), minutes(6), minutes(7), minutes(8)]);
        source.gone = gone.to_vec();
        let (_, stats) = run(&mut source, config());
        source.checked.sort_unstable();
        assert_eq!(source.checked, [CLIENT, CLIENT + 1]);
        stats.processes_live
    };
    assert_eq!(live(&[]) - live(&[CLIENT]), 1);
}

/// The answer comes with the batch in which the flow ends.
#[test]
fn an_ended_flow_still_gets_its_name() {
    let [asks, answers] = names(HERE, 3);
    let mut source = Fake::new([
        fork(1, CLIENT),
        socket(2, CLIENT, SOCK),
        datagram(3, SOCK, NAME_SERVER),
        asks,
        answers,
        socket(4, CLIENT, SOCK + 64),
        datagram(5, SOCK + 64, NAMED),
        Scripted::EndRound(monotonic(60 * SECOND)),
    ]);
    let (given, _) = run(&mut source, config());
    let flow = given.flows.iter().find(|flow| flow.remote.port == NAMED.1).unwrap();
    assert_eq!(flow.domain.as_deref(), Some("a.example"));
    assert_eq!(given.order.last().unwrap(), "until 60");
}

#[test]
fn an_error_of_the_sink_ends_the_step() {
    #[derive(Debug, PartialEq)]
    struct Refused;

    impl From<std::convert::Infallible> for Refused {
        fn from(never: std::convert::Infallible) -> Self {
            match never {}
        }
    }

    struct Refuses;

    impl Sink<Fake> for Refuses {
        type Error = Refused;

        fn flow(&mut self, _source: &mut Fake, _flow: Flow, _at: MonotonicTime) -> Result<(), Refused> {
            Err(Refused)
        }
    }

    let mut source =
        Fake::new([socket(2, CLIENT, SOCK), datagram(3, SOCK, NAMED), Scripted::EndRound(monotonic(60 * SECOND))]);
    assert_eq!(Pipeline::new(config(), None).step(&mut source, &mut Refuses), Err(Refused));
}

#[test]
fn a_pipeline_has_reached_its_latest_event_or_the_end_of_a_round() {
    for (end, reached) in [(Scripted::EndRound(monotonic(6 * SECOND)), 6), (Scripted::EndBatch, 5)] {
        let mut source = Fake::new([socket(5, CLIENT, SOCK), end, Scripted::EndBatch]);
        let mut pipeline = Pipeline::new(config(), None);
        while let Ok(control) = pipeline.step(&mut source, &mut Given::default())
            && control.is_continue()
        {}
        assert_eq!(pipeline.reached(), monotonic(reached * SECOND));
    }
}

/// Notes the ids of the users whose names are requested.
#[derive(Debug, Default)]
struct ExpectedUsers(parking_lot::Mutex<Vec<u32>>);

impl PrefetchNames for ExpectedUsers {
    fn prefetch(&self, owner: &Credentials) {
        self.0.lock().push(owner.uid);
    }
}

#[test]
fn names_of_users_are_requested_before_documents_need_them() {
    let credentials = |uid| Credentials { uid, ..Credentials::default() };
    let mut source = Fake::new([
        event(1, CLIENT, EventKind::Credentials(credentials(7))),
        socket(2, CLIENT + 1, SOCK),
        Scripted::EndRound(monotonic(3 * SECOND)),
    ]);
    source.known.insert(CLIENT + 1, FoundProcess { credentials: Some(credentials(8)), ..found("a container") });
    let users = Arc::new(ExpectedUsers::default());
    let expects: Arc<dyn PrefetchNames> = users.clone();
    let Ok(_) = Pipeline::new(config(), Some(expects)).step(&mut source, &mut Given::default());
    assert_eq!(*users.0.lock(), [7, 8]);
}
