//! What must hold for any order of clone, exec and exit, compared with a model of how Linux keeps tasks:
//! `copy_process`, `de_thread` and `do_exit`.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::model::event::{Event, EventKind, Execs, SocketUser, SourceCapabilities};
use crate::model::loss::{LossCause, LostFacts};
use crate::model::process::{Details, Image};
use crate::model::testing::sock_at;
use crate::state::{State, StateConfig};

const SECOND: Duration = Duration::from_secs(1);

/// What a task, chosen among those that live, does next; or a pause of some seconds.
#[derive(Debug, Clone)]
enum Step {
    Fork(Index),
    Thread(Index),
    Exec(Index, Index),
    SetUser(Index, u32),
    Socket(Index),
    /// `exit(2)` of the thread.
    Exit(Index),
    /// `exit_group(2)`; the threads end in some order.
    ExitGroup(Index, Index),
    Sleep(u64),
}

fn steps() -> impl Strategy<Value = Step> {
    let who = any::<Index>;
    prop_oneof![
        3 => who().prop_map(Step::Fork),
        4 => who().prop_map(Step::Thread),
        2 => (who(), who()).prop_map(|(who, order)| Step::Exec(who, order)),
        1 => (who(), 0..3_u32).prop_map(|(who, uid)| Step::SetUser(who, uid)),
        2 => who().prop_map(Step::Socket),
        4 => who().prop_map(Step::Exit),
        1 => (who(), who()).prop_map(|(who, order)| Step::ExitGroup(who, order)),
        2 => (0..40_u64).prop_map(Step::Sleep),
    ]
}

/// A start so many ticks after boot.
fn in_ticks(count: u64) -> BootTime {
    BootTime::ZERO.saturating_add(TICK.saturating_mul(count as u32))
}

/// A living process of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Model {
    start: BootTime,
    name: String,
    uid: u32,
    /// The main thread's id stays in use while other threads live.
    threads: BTreeSet<u32>,
}

/// A host, and the events of its kernel.
#[derive(Debug)]
struct Host {
    now: MonotonicTime,
    count: u64,
    processes: BTreeMap<u32, Model>,
    ended: BTreeMap<u32, MonotonicTime>,
    events: Vec<Event>,
    /// The program that created each socket, by the time of the creation.
    created_by: BTreeMap<MonotonicTime, String>,
    /// Ids below this are not used again.
    fresh: u32,
}

impl Host {
    fn new() -> Self {
        let first = Model { start: in_ticks(1), name: "p0".into(), uid: 0, threads: BTreeSet::from([1]) };
        let processes = BTreeMap::from([(1, first)]);
        Self {
            now: MonotonicTime::ZERO.saturating_add(100 * SECOND),
            count: 1,
            processes,
            ended: BTreeMap::new(),
            events: Vec::new(),
            created_by: BTreeMap::new(),
            fresh: 1,
        }
    }

    fn step(&mut self, step: &Step) {
        let tasks: Vec<_> =
            self.processes.iter().flat_map(|(pid, one)| one.threads.iter().map(|tid| (*pid, *tid))).collect();
        let chosen = |who: &Index| *who.get(&tasks);
        self.count += 1;
        match step {
            Step::Sleep(seconds) => self.now = self.now.saturating_add(Duration::from_secs(*seconds)),
            Step::Fork(who) => {
                let ((pid, tid), child) = (chosen(who), self.free_id());
                let model = Model {
                    start: in_ticks(self.count),
                    threads: BTreeSet::from([child]),
                    ..self.processes[&pid].clone()
                };
                self.emit(pid, tid, EventKind::Fork(Fork { child, start: Some(model.start) }));
                self.processes.insert(child, model);
            }
            Step::Thread(who) => {
                let ((pid, tid), thread) = (chosen(who), self.free_id());
                self.emit(pid, tid, EventKind::ThreadStarted(ThreadStarted { process: pid, thread }));
                self.model(pid).threads.insert(thread);
            }
            Step::Exec(who, order) => {
                let (pid, tid) = chosen(who);
                self.exit(pid, order, |one| one != tid);
                let (name, uid) = (format!("p{}", self.count), self.model(pid).uid);
                let model = self.model(pid);
                (model.name, model.threads) = (name.clone(), BTreeSet::from([pid]));
                self.emit(pid, pid, EventKind::Credentials(credentials(uid)));
                self.emit(pid, pid, EventKind::Exec(Box::new(exec(&name))));
            }
            Step::SetUser(who, uid) => {
                let (pid, tid) = chosen(who);
                self.model(pid).uid = *uid;
                self.emit(pid, tid, EventKind::Credentials(credentials(*uid)));
            }
            Step::Socket(who) => {
                let (pid, tid) = chosen(who);
                self.emit(pid, tid, EventKind::SocketCreated { sock: sock_at(self.count), user: SocketUser::Program });
                let name = self.model(pid).name.clone();
                self.created_by.insert(self.now, name);
            }
            // The first process never ends.
            Step::Exit(who) => {
                let (pid, tid) = chosen(who);
                if pid != 1 || self.model(1).threads.len() > 1 {
                    self.exit(pid, who, |one| one == tid);
                }
            }
            Step::ExitGroup(who, order) => {
                let (pid, _) = chosen(who);
                if pid != 1 {
                    self.exit(pid, order, |_| true);
                }
            }
        }
    }

    fn exit(&mut self, pid: u32, order: &Index, which: impl Fn(u32) -> bool) {
        let mut ending: Vec<_> = self.model(pid).threads.iter().copied().filter(|tid| which(*tid)).collect();
        if !ending.is_empty() {
            let first = order.index(ending.len());
            ending.rotate_left(first);
        }
        for tid in ending {
            self.model(pid).threads.remove(&tid);
            self.emit(pid, tid, EventKind::Exit);
        }
        if self.model(pid).threads.is_empty() {
            self.processes.remove(&pid);
            self.ended.insert(pid, self.now);
        }
    }

    fn model(&mut self, pid: u32) -> &mut Model {
        self.processes.get_mut(&pid).expect("it lives")
    }

    /// Ids are used again at once, unless they must be fresh.
    fn free_id(&mut self) -> u32 {
        let taken = |id: &u32| self.processes.iter().any(|(pid, one)| pid == id || one.threads.contains(id));
        let id = (self.fresh..).find(|id| !taken(id)).expect("few are taken");
        self.fresh = if self.fresh > 1 { id + 1 } else { 1 };
        id
    }

    fn emit(&mut self, pid: u32, tid: u32, kind: EventKind) {
        self.now = self.now.saturating_add(Duration::from_nanos(1));
        self.events.push(Event { time: self.now, pid, tid, kind });
    }

    /// The processes that `/proc` shows.
    fn listed(&self) -> impl Iterator<Item = PreexistingProcess> {
        self.processes.iter().map(|(pid, model)| PreexistingProcess {
            process: Process {
                start: Some(model.start),
                credentials: Some(credentials(model.uid)),
                image: Arc::new(Image { name: model.name.clone(), ..Image::default() }),
                ..Process::new(*pid)
            },
            threads: model.threads.iter().copied().collect(),
        })
    }
}

fn credentials(uid: u32) -> Credentials {
    Credentials { uid, ..Credentials::default() }
}

fn exec(name: &str) -> Exec {
    let (name, arguments) = (name.as_bytes().to_vec(), Vec::new());
    Exec { filename: name.clone(), interpreter: name, arguments, argument_count: Some(0) }
}

fn ingest(state: &mut State, host: &mut Host, lost: impl Fn(&Event) -> bool) {
    for event in host.events.drain(..).filter(|event| !lost(event)) {
        state.ingest(&event);
        state.expire(event.time);
    }
    state.expire(host.now);
}

/// Every living process is known with its true properties, and no ended one is known for long.
fn check(state: &State, host: &Host) -> Result<(), TestCaseError> {
    let table = &state.processes;
    for (pid, model) in &host.processes {
        let known = table.get(*pid);
        let known = known.map(|one| (one.start, one.image.name.as_str(), one.credentials.map(|of| of.uid)));
        prop_assert_eq!(known, Some((Some(model.start), model.name.as_str(), Some(model.uid))), "{}: {:?}", pid, model);
    }
    let long_gone =
        |pid: &u32, when: MonotonicTime| !host.processes.contains_key(pid) && when.saturating_add(LINGER) <= host.now;
    for (pid, _) in host.ended.iter().filter(|(pid, when)| long_gone(pid, **when)) {
        prop_assert!(table.get(*pid).is_none(), "{} has ended", pid);
    }
    let others = host.processes.iter().map(|(pid, one)| one.threads.iter().filter(|tid| *tid != pid).count());
    prop_assert_eq!(table.threads(), others.sum::<usize>());
    Ok(())
}

proptest! {
    /// The monitor starts at any moment, and more happens while it reads `/proc`. That takes a second, in which no id
    /// is used twice.
    #[test]
    fn a_process_is_known_while_one_of_its_threads_lives(
        before in vec(steps(), 0..20),
        meanwhile in vec(steps(), 0..10),
        after in vec(steps(), 0..80),
    ) {
        let (mut host, mut state) = (Host::new(), State::new(StateConfig::default()));
        before.iter().for_each(|step| host.step(step));
        host.events.clear();
        host.fresh = 1000;
        meanwhile.iter().filter(|step| !matches!(step, Step::Sleep(_))).for_each(|step| host.step(step));
        host.listed().for_each(|old| state.add_preexisting(old));
        ingest(&mut state, &mut host, |_| false);
        check(&state, &host)?;
        host.fresh = 1;
        for step in &after {
            host.step(step);
            ingest(&mut state, &mut host, |_| false);
            check(&state, &host)?;
        }
    }

    /// No process stays in the table for ever, nor under the id of another process, even if events are lost.
    #[test]
    fn a_process_whose_end_was_missed_is_forgotten_after_a_check(
        story in vec(steps(), 0..80),
        lost in vec(any::<Index>(), 1..20),
    ) {
        let (mut host, mut state) = (Host::new(), State::new(StateConfig::default()));
        host.listed().for_each(|old| state.add_preexisting(old));
        story.iter().for_each(|step| host.step(step));
        let lost: BTreeSet<_> =
            lost.iter().filter(|_| !host.events.is_empty()).map(|at| at.get(&host.events).time).collect();
        ingest(&mut state, &mut host, |event| lost.contains(&event.time));
        let is_there = |known: &Process| host.processes.get(&known.pid).is_some_and(|of| known.start.is_none_or(|at| at == of.start));
        // The first check may have become due in the middle of the story, before the last process began.
        for when in [host.now, host.now.saturating_add(CHECK_PERIOD)] {
            state.expire(when);
            while let Some(process) = state.next_unchecked() {
                if !is_there(&process) {
                    state.gone(&process);
                }
            }
        }
        host.now = host.now.saturating_add(CHECK_PERIOD + LINGER);
        state.expire(host.now);
        let left: Vec<_> = (0..100).filter_map(|pid| state.processes.get(pid)).collect();
        prop_assert_eq!(left.len(), state.processes.len());
        for process in left {
            prop_assert!(is_there(process), "{:?}", process);
        }
    }

    /// If execs are not events, no process that created a socket has the name of another program. `/proc` may be asked and may
    /// answer at any time, with any events in between.
    #[test]
    fn no_program_is_wrong_where_execs_are_not_seen(
        story in vec((steps(), any::<bool>(), any::<bool>()), 0..80),
        as_credentials in any::<bool>(),
        lost in vec(any::<Index>(), 0..8),
    ) {
        let (mut host, mut state) = (Host::new(), State::new(StateConfig::default()));
        let execs = if as_credentials { Execs::AsCredentials } else { Execs::Unseen };
        state.set_capabilities(SourceCapabilities { execs, ..SourceCapabilities::default() });
        host.listed().for_each(|old| state.add_preexisting(old));
        let mut reporter = LossyReporter { execs, lost: lost.iter().map(|at| at.index(100)).collect(), count: 0 };
        let (mut asked, mut owners) = (Vec::new(), Vec::new());
        for (step, is_answered, is_reported) in &story {
            host.step(step);
            if *is_answered {
                asked.drain(..).for_each(|process: Arc<Process>| answer(&mut state, &host, &process));
            }
            if *is_reported {
                owners.extend(reporter.report(&mut state, &mut host));
                asked.extend(std::iter::from_fn(|| state.next_wanted()));
            }
        }
        asked.drain(..).for_each(|process| answer(&mut state, &host, &process));
        owners.extend(reporter.report(&mut state, &mut host));
        state.expire(host.now.saturating_add(Duration::from_nanos(1)));
        for (process, truth, is_doubtful) in owners {
            let details = process.image.details.get();
            let known = Some(process.image.name.as_str()).filter(|name| !name.is_empty());
            let known = known.or_else(|| details.and_then(|details| details.name.as_deref()));
            let may_be_wrong = is_doubtful && state.processes.is_doubtful(&process);
            prop_assert!(may_be_wrong || known.is_none_or(|name| name == truth), "{:?} is {}", process, truth);
        }
    }
}

/// Answers as `/proc` does now.
fn answer(state: &mut State, host: &Host, process: &Arc<Process>) {
    let Some(model) = host.processes.get(&process.pid) else { return };
    if process.start.is_some_and(|start| start != model.start) {
        return;
    }
    let details =
        Details { name: Some(model.name.clone()), args: Some(vec![model.name.clone()]), ..Details::default() };
    let credentials = Some(credentials(model.uid));
    let start = Some(model.start);
    state.learn(process, FoundProcess { read: host.now, start, credentials, details, ..FoundProcess::default() });
}

/// Passes events on without execs, and reports some of the others as lost.
struct LossyReporter {
    execs: Execs,
    lost: BTreeSet<usize>,
    count: usize,
}

impl LossyReporter {
    /// Returns the processes that created sockets, the programs that they ran, and whether they were in doubt.
    fn report(&mut self, state: &mut State, host: &mut Host) -> Vec<(Arc<Process>, String, bool)> {
        let mut owners = Vec::new();
        for event in std::mem::take(&mut host.events) {
            if !self.sees(&event) {
                continue;
            }
            self.count += 1;
            if self.lost.contains(&self.count) {
                let (cause, since, facts) = (LossCause::Ring { cpu: 0 }, event.time, LostFacts::ALL);
                state.ingest(&Event {
                    pid: 0,
                    tid: 0,
                    kind: EventKind::Lost { cause, count: 1, since, facts },
                    ..event
                });
                continue;
            }
            state.ingest(&event);
            state.expire(event.time);
            if matches!(event.kind, EventKind::SocketCreated { .. }) {
                let owner = state.processes.process_of_running_thread(event.pid, event.tid);
                let is_doubtful = state.processes.ask_if_doubtful(&owner);
                owners.push((owner, host.created_by[&event.time].clone(), is_doubtful));
            }
        }
        state.expire(host.now);
        owners
    }

    fn sees(&self, event: &Event) -> bool {
        match event.kind {
            EventKind::Exec(_) => false,
            EventKind::Credentials(_) => self.execs == Execs::AsCredentials,
            _ => true,
        }
    }
}
