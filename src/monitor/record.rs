//! Makes a recording: the source of this kernel with a recorder around it, and a pipeline, because the pipeline decides which
//! processes are looked up.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Options;
use crate::host::Host;
use crate::host::agent::Agent;
use crate::model::filter::Filter;
use crate::model::flow::{Flow, Owner};
use crate::model::socket_event::Actions;
use crate::model::time::MonotonicTime;
use crate::pipeline::{Pipeline, Sink};
use crate::source::live::LiveSource;
use crate::source::recording::entries::EventEntry;
use crate::source::recording::recorder::Recorded;
use crate::source::recording::{Header, Recorder, RecordingError};
use crate::source::{Error, Source};
use crate::users::Users;

/// Records until `stop` is set, or for `duration`. `users` looks up names; the caller must have [started](Users::start) it.
/// `ready` is called once everything is watched. All flows are recorded, regardless of the filter in `options`.
///
/// # Errors
/// As [`Monitor::start`](crate::monitor::Monitor::start), and [`Error::Recording`] if the recording cannot be written.
pub fn record(
    options: &Options,
    users: Users,
    to: impl Write,
    duration: Option<Duration>,
    stop: &AtomicBool,
    ready: impl FnOnce(),
) -> Result<Recorded, Error> {
    let options = Options {
        flows: true,
        socket_events: Actions::NONE,
        report_names: false,
        own_process: false,
        filter: Filter::default(),
        ..options.clone()
    };
    options.validate_own()?;
    let source = LiveSource::open(&(&options).into())?;
    if let Some(error) = source.names_unseen() {
        tracing::warn!(%error, "names that are looked up are not recorded");
    }
    let host = Host::gather();
    let header = Header {
        recorder: env!("CARGO_PKG_VERSION").to_owned(),
        ephemeral_id: Agent::of(&host).ephemeral_id,
        host,
        clock: source.clock(),
        own_pid: std::process::id(),
        dns_ports: options.dns.ports.clone(),
        capabilities: source.capabilities(),
        layout: serde_json::to_value(source.layout()).unwrap_or_default(),
    };
    let events = source.formats().into_iter().map(|(feature, function, format)| EventEntry {
        feature,
        function: function.to_owned(),
        format: format.to_string(),
    });
    let recorder = Recorder::new(source, to, header, events)?;
    let pipeline = Pipeline::new((&options).into(), Some(Arc::new(users.clone()))).without_question_limit();
    let began = Instant::now();
    let is_over = || stop.load(Ordering::Acquire) || duration.is_some_and(|duration| began.elapsed() >= duration);
    Ok(run(recorder, pipeline, &users, ready, is_over)?)
}

/// Records the events of a source until it ends. Stops the source once `is_over` returns true.
fn run<S: Source<Error: Into<RecordingError>>, W: Write>(
    mut recorder: Recorder<S, W>,
    mut pipeline: Pipeline,
    users: &Users,
    ready: impl FnOnce(),
    is_over: impl Fn() -> bool,
) -> Result<Recorded, RecordingError> {
    let mut sink = RecordNames { users };
    pipeline.begin(&mut recorder, &mut sink)?;
    ready();
    loop {
        recorder.wait();
        if is_over() {
            recorder.stop();
        }
        if pipeline.step(&mut recorder, &mut sink)?.is_break() {
            return recorder.end();
        }
    }
}

/// Records the names of the users who own flows.
struct RecordNames<'a> {
    users: &'a Users,
}

impl<S: Source, W: Write> Sink<Recorder<S, W>> for RecordNames<'_> {
    type Error = RecordingError;

    fn flow(&mut self, recorder: &mut Recorder<S, W>, flow: Flow, _at: MonotonicTime) -> Result<(), RecordingError> {
        recorder.count_flow();
        if let Owner::Process(process) = &flow.owner
            && let Some(credentials) = process.credentials
        {
            recorder.names(credentials, &self.users.at(Instant::now()));
        }
        Ok(())
    }

    fn complete_until(&mut self, recorder: &mut Recorder<S, W>, time: MonotonicTime) {
        recorder.complete_until(time);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io;
    use std::sync::Arc;

    use super::*;
    use crate::model::control_groups::ControlGroups;
    use crate::model::flow::{Counters, Endpoint, Transport};
    use crate::model::names::UserNames as _;
    use crate::model::process::{Credentials, Details, Process};
    use crate::model::testing::{monotonic, since_boot, sock_at};
    use crate::model::totals::Totals;
    use crate::source::fake::{Fake, Scripted, dns_packet, query_and_response};
    use crate::source::kprobes::{Feature, Missed};
    use crate::source::recording::Replay;
    use crate::source::recording::tests::{
        COMMITTED, CREATED, PID, SECOND, SOCK, UDP_IN, created, datagram_of, header,
    };
    use crate::state::{FoundProcess, PreexistingProcess, StateConfig};

    const FORMATS: [(Feature, &str, &str); 3] = [
        (Feature::SocketCreate, "sock_init_data", CREATED),
        (Feature::UdpIpv4In, "udp_queue_rcv_one_skb", UDP_IN),
        (Feature::ProcessExec, "security_bprm_committed_creds", COMMITTED),
    ];
    const SERVER: ([u8; 4], u16) = ([192, 0, 2, 1], 53);

    fn sample(second: u64, id: u16, raw: Vec<u8>) -> Scripted {
        Scripted::Sample { time: monotonic(second * SECOND), pid: PID, id, raw }
    }

    /// A process of root looks up a name and uses it, while samples are lost and hits are missed. Its last socket is still open
    /// at the end.
    fn host() -> Fake {
        let client = ([192, 0, 2, 2], 4000);
        let [query, response] = query_and_response();
        let packet = |late, bytes| Scripted::Packet { time: monotonic(3 * SECOND + late), bytes };
        let mut host = Fake::new([
            sample(1, 1500, created(SOCK)),
            sample(2, 1501, datagram_of(SOCK, SERVER, client.1)),
            packet(0, dns_packet(client, SERVER, &query)),
            packet(1000, dns_packet(SERVER, client, &response)),
            Scripted::EndRound(monotonic(4 * SECOND)),
            sample(5, 1500, created(SOCK + 64)),
            Scripted::EndBatch,
            sample(6, 1501, datagram_of(SOCK + 64, ([192, 0, 2, 9], 443), 4001)),
            Scripted::Lost { since: monotonic(6 * SECOND), time: monotonic(7 * SECOND), count: 5 },
            Scripted::Missed(Missed {
                feature: Feature::UdpIpv4In,
                count: 2,
                since: monotonic(7 * SECOND),
                time: monotonic(8 * SECOND),
            }),
            Scripted::EndRound(monotonic(8 * SECOND)),
            Scripted::EndRound(monotonic(60 * SECOND)),
            sample(61, 1500, created(SOCK + 128)),
            sample(62, 1501, datagram_of(SOCK + 128, SERVER, 4002)),
            Scripted::EndRound(monotonic(63 * SECOND)),
        ])
        .with_formats(&FORMATS);
        let credentials = Some(Credentials { uid: 0, gid: 0, euid: 0, egid: 0 });
        let (parent_pid, control_groups, image) = (None, None, Arc::default());
        let process = Process {
            pid: PID,
            parent_pid,
            start: Some(since_boot(5)),
            kernel: false,
            credentials,
            control_groups,
            image,
        };
        host.processes = vec![PreexistingProcess { process, threads: vec![PID] }];
        let details = Details { container_id: Some("a container".to_owned()), ..Details::default() };
        let control_groups = ControlGroups::default();
        let found = FoundProcess {
            read: monotonic(0),
            start: Some(since_boot(5)),
            parent_pid: None,
            credentials: None,
            control_groups,
            details,
        };
        host.known.insert(PID, found);
        host
    }

    fn events() -> [EventEntry; 3] {
        FORMATS.map(|(feature, function, format)| EventEntry {
            feature,
            function: function.to_owned(),
            format: format.to_owned(),
        })
    }

    fn recorder<W: Write>(source: Fake, to: W) -> Result<Recorder<Fake, W>, RecordingError> {
        Recorder::new(source, to, header(), events())
    }

    fn pipeline() -> Pipeline {
        Pipeline::new(StateConfig { own_pid: header().own_pid, ..StateConfig::default() }, None)
            .without_question_limit()
    }

    /// The flows of a source that is not recorded.
    struct Flows(Vec<Flow>);

    impl Sink<Fake> for Flows {
        type Error = Infallible;

        fn flow(&mut self, _source: &mut Fake, flow: Flow, _at: MonotonicTime) -> Result<(), Infallible> {
            self.0.push(flow);
            Ok(())
        }
    }

    #[test]
    fn a_replay_gives_the_flows_that_the_recorded_source_gives() {
        let (mut source, mut pipeline, mut flows) = (host(), pipeline(), Flows(Vec::new()));
        let Ok(()) = pipeline.begin(&mut source, &mut flows);
        while let Ok(control) = pipeline.step(&mut source, &mut flows)
            && control.is_continue()
        {}

        let mut recording = Vec::new();
        let recorder = recorder(host(), &mut recording).unwrap();
        let recorded = run(recorder, self::pipeline(), &Users::new(), || {}, || false).unwrap();
        assert_eq!(recorded, Recorded { samples: 6, lost: 5, missed: 2, flows: 3 });

        let (mut replayed, mut root) = (Vec::new(), None);
        let ended = Replay::open(&recording[..], StateConfig::default()).unwrap().run(|flow, names| {
            root = names.user(0);
            replayed.push(flow);
            Ok::<_, RecordingError>(())
        });
        assert!(ended.unwrap().complete);
        assert_eq!(replayed, flows.0);
        assert_eq!(root.as_deref(), Some("root"));

        let of_port = |port| replayed.iter().find(|flow| flow.local.port == port).unwrap();
        let named = of_port(4001);
        assert_eq!((named.domain.as_deref(), named.inexact.samples_lost), (Some("a.example"), true));
        assert!(!of_port(4002).inexact.samples_lost, "it began later");
        let Owner::Process(owner) = &of_port(4002).owner else { panic!("{replayed:#?}") };
        assert_eq!(owner.container_id(), Some("a container"));
    }

    /// The kernel counts one socket's datagrams. It reports the counts before the second sample, and when it is asked: once when
    /// the flow's timer is due, and once at the end.
    fn counting_host() -> Fake {
        let totals = |second: u64, received| Totals {
            sock: sock_at(SOCK),
            transport: Transport::Udp,
            local: Endpoint::new([192, 0, 2, 2], 4000),
            remote: Endpoint::new([192, 0, 2, 1], 53),
            since: monotonic(SECOND),
            sent: Counters::default(),
            received: Counters { packets: received, bytes: received * 100 },
            last: monotonic(second * SECOND),
            short_datagrams: false,
            nonlinear_datagrams: false,
            tcp: None,
        };
        let mut host = Fake::new([
            sample(1, 1500, created(SOCK)),
            sample(2, 1501, datagram_of(SOCK, SERVER, 4000)),
            Scripted::EndRound(monotonic(3 * SECOND)),
            Scripted::Totals { time: monotonic(20 * SECOND), totals: totals(19, 4) },
            sample(20, 1501, datagram_of(SOCK, SERVER, 4000)),
            Scripted::EndRound(monotonic(21 * SECOND)),
            Scripted::EndRound(monotonic(51 * SECOND)),
        ])
        .with_formats(&FORMATS);
        host.totals.insert(sock_at(SOCK), totals(45, 9));
        host
    }

    #[test]
    fn a_replay_knows_what_the_kernel_has_counted() {
        let (mut source, mut pipeline, mut flows) = (counting_host(), pipeline(), Flows(Vec::new()));
        let Ok(()) = pipeline.begin(&mut source, &mut flows);
        while let Ok(control) = pipeline.step(&mut source, &mut flows)
            && control.is_continue()
        {}
        assert_eq!(source.asked_totals, [sock_at(SOCK); 2]);
        assert_eq!((flows.0[0].received.packets, flows.0[0].end), (11, monotonic(45 * SECOND)));

        let mut recording = Vec::new();
        let header = Header { capabilities: counting_host().capabilities(), ..header() };
        let recorder = Recorder::new(counting_host(), &mut recording, header, events()).unwrap();
        run(recorder, self::pipeline(), &Users::new(), || {}, || false).unwrap();
        let mut replayed = Vec::new();
        let ended = Replay::open(&recording[..], StateConfig::default()).unwrap().run(|flow, _| {
            replayed.push(flow);
            Ok::<_, RecordingError>(())
        });
        assert!(ended.unwrap().complete);
        assert_eq!(replayed, flows.0);
    }

    #[test]
    fn a_recording_goes_on_until_its_source_is_stopped() {
        let (mut recording, mut source) = (Vec::new(), host());
        source.ends = false;
        let rounds = std::cell::Cell::new(0);
        let is_over = || rounds.replace(rounds.get() + 1) == 9;
        let recorded = run(recorder(source, &mut recording).unwrap(), pipeline(), &Users::new(), || {}, is_over);
        assert_eq!((recorded.unwrap().flows, rounds.get()), (3, 10));
    }

    #[test]
    fn a_failed_write_is_reported_at_once() {
        /// Has room for this many bytes.
        struct Disk(usize);

        impl Write for Disk {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        // More than one block of 256 KiB, so that one is written before the end.
        let large = |second| sample(second, 1500, vec![0; 60_000]);
        let round =
            |second: u64| (0..10).map(move |_| large(second)).chain([Scripted::EndRound(monotonic(second * SECOND))]);
        let mut source = Fake::new(round(1).chain(round(2)));
        source.ends = false;
        let recorder = recorder(source, Disk(20)).unwrap();
        let failed = run(recorder, pipeline(), &Users::new(), || {}, || false);
        assert!(
            matches!(&failed, Err(RecordingError::Io(error)) if error.kind() == io::ErrorKind::StorageFull),
            "{failed:?}"
        );
    }
}
