//! The probes of one process, and those that earlier processes left behind.

use std::fs::{self, File};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::hooks::HookPoint;
use crate::owner::Owner;
use crate::pieces::{self, PIECE_INFIX, Pieces};
use crate::probe::{Event, Line, ProbeKind, Request, check_name};
use crate::sweep::Leftovers;
use crate::symbols::Addresses;
use crate::tracefs::{forbidden, forbids};
use crate::{Error, Fetch, Format, Resolver, Target, Tracefs, WordSize};

/// The number of groups that this process has created so far.
static GROUPS: AtomicU64 = AtomicU64::new(0);

/// A group of probes. Its name carries the identity of this process, so that another process can see when the owner is
/// dead. The group disappears with the last of its probes.
#[derive(Debug)]
pub struct Group {
    name: String,
    events: Arc<KprobeEvents>,
    /// The addresses of functions that [`Group::look_up_functions`] has looked up.
    addresses: Addresses,
    leftovers: Leftovers,
    /// The misses of every probe on this kernel at the last call of [`Group::new_misses`].
    missed: Vec<MissCount>,
}

/// The number of hits that a probe missed.
#[derive(Debug, PartialEq, Eq)]
struct MissCount {
    /// The name of the probe without its group.
    probe: String,
    count: u64,
}

/// Hits and misses of one probe, from `kprobe_profile`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Misses {
    /// The probe.
    pub name: String,
    /// The number of hits.
    pub hits: u64,
    /// The number of missed hits: calls of a kretprobe beyond its `maxactive`, and hits while another probe was
    /// running.
    pub misses: u64,
}

impl Group {
    /// Names a group `PREFIX_PID_STARTTIME_N`, after removing the probes in groups of this prefix whose process is
    /// dead. Probes that are still in use stay until [`Group::sweep_again`], because the kernel refuses to remove them.
    ///
    /// # Errors
    /// [`Error::NoKprobes`], [`Error::WordSizeMismatch`], [`Error::Permission`], [`Error::ReadOnly`], and [`Error::BadName`]
    /// for a prefix that cannot be part of a name.
    pub fn create(tracefs: &Arc<Tracefs>, prefix: &str) -> Result<Self, Error> {
        // Leaves room for three numbers of up to 13 digits.
        check_name("a prefix of groups", prefix, 20)?;
        let events = Arc::new(KprobeEvents::open(tracefs)?);
        let (ours, kernel) = (WordSize::OURS, tracefs.features().word);
        if ours != kernel {
            return Err(Error::WordSizeMismatch { ours, kernel });
        }
        let owner = Owner::this().map_err(|source| Error::io("reading /proc/self/stat", source))?;
        let list = events.read("kprobe_events").unwrap_or_default();
        let leftovers = Leftovers::among(list.lines().filter_map(event_of), prefix, owner);
        let name = owner.group(prefix, GROUPS.fetch_add(1, Ordering::Relaxed));
        let mut group = Self { name, events, addresses: Addresses::default(), leftovers, missed: Vec::new() };
        group.sweep_again();
        Ok(group)
    }

    /// Tries again to remove probes of dead processes that were there when the group was created. A killed process
    /// still uses its probes while it is dying. Call this now and then; it costs nothing once no such probe is left,
    /// and gives up after 300 calls.
    pub fn sweep_again(&mut self) {
        self.leftovers.sweep(Owner::is_dead, |event| self.events.remove(event));
    }

    /// Looks up functions all at once, on kernels that take long to look up one function for each probe, or that log a
    /// line for each missing function. Probes on functions that are not given here can be installed, too.
    pub fn look_up_functions(&mut self, functions: &[&str]) {
        self.addresses = Addresses::of(functions);
    }

    /// The tracefs that has its probes.
    pub fn tracefs(&self) -> &Tracefs {
        &self.events.tracefs
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Installs a probe named `name`, or looks up a tracepoint, which does not use `name`, `fetches` and `resolver`. On
    /// kernels without arrays, a probe with arrays may take several events; its records are the same.
    ///
    /// # Errors
    /// From checks before the kernel is asked: [`Error::Unresolved`], [`Error::BadTemplate`], [`Error::BadName`],
    /// [`Error::TooLarge`]. From the kernel: [`Error::Refused`], whose [`kind`](Error::kind) distinguishes a function
    /// that is missing or cannot be probed from a lack of permission and from other reasons.
    pub fn install(
        &self,
        name: &str,
        target: Target<'_>,
        fetches: &[Fetch<'_>],
        resolver: &dyn Resolver,
    ) -> Result<Installed, Error> {
        let (function, kind) = match target {
            Target::Kprobe { function } => (function, ProbeKind::Kprobe),
            Target::Kretprobe { function, maxactive } => (function, ProbeKind::Kretprobe { maxactive }),
            Target::Tracepoint { category, name } => {
                let format = self.events.tracefs.format(category, name)?;
                return Ok(Installed { format, pieces: Pieces::default(), probes: Vec::new(), hook: None });
            }
            Target::Hook(hook) => return Err(Error::not_programmable(hook.name(), "it is no kprobe")),
        };
        if self.addresses.is_missing(function) {
            let source = io::Error::from_raw_os_error(libc::ENOENT);
            return Err(Error::Refused {
                probe: name.to_owned(),
                target: function.to_owned(),
                message: String::new(),
                source,
            });
        }
        let features = self.events.tracefs.features();
        let request = Request { group: &self.name, name, function, kind, fetches, resolver, features };
        let by_name = request.events(function)?;
        // Linux 4.12 brought both `maxactive` and return probes at an offset from a symbol.
        let place = self.addresses.place(function, kind);
        let place = place.filter(|_| kind == ProbeKind::Kprobe || features.maxactive);
        let quicker = place.and_then(|place| request.events(&place).ok());
        let (probes, events) = add_quicker_or(quicker, by_name, |events| self.add(function, events))?;
        let format = |event: &Event| self.events.tracefs.format(&self.name, &event.name);
        let formats = events.iter().map(format).collect::<Result<Vec<_>, Error>>()?;
        let (format, pieces) = match &formats[..] {
            [format] if features.arrays => (format.clone(), Pieces::default()),
            formats => {
                let parts = events.iter().map(|event| &event.parts[..]);
                let events: Vec<_> = formats.iter().cloned().zip(parts).collect();
                pieces::join_formats(&request.fetchable(), &events, request.order())?
            }
        };
        Ok(Installed { format, pieces, probes, hook: None })
    }

    /// Installs the events of one probe: all of them or none.
    fn add(&self, function: &str, events: &[Event]) -> Result<Vec<Arc<Probe>>, Error> {
        let add = |event: &Event| {
            self.events.add(&event.name, function, &event.line)?;
            let name = format!("{}/{}", self.name, event.name);
            Ok(Arc::new(Probe { event: name, events: Arc::clone(&self.events) }))
        };
        events.iter().map(add).collect()
    }

    /// Hits and misses of this group's probes since each was installed.
    ///
    /// # Errors
    /// [`Error::Io`]: `kprobe_profile` or `kprobe_events` cannot be read.
    pub fn misses(&self) -> Result<Vec<Misses>, Error> {
        // The profile does not name groups, but it has the same order as the list. Another process may change both
        // between the two reads.
        for _ in 0..10 {
            let events = self.events.read("kprobe_events")?;
            let profile = self.events.read("kprobe_profile")?;
            if let Some(misses) = misses_of(&self.name, &events, &profile) {
                return Ok(misses);
            }
        }
        let source = io::Error::other("it changed each time it was read");
        Err(Error::io("reading kprobe_profile", source))
    }

    /// Like [`Group::misses`], but `None` if no probe has missed a hit since the last call. Frequent calls cost much
    /// less, because the kernel does not have to print the fetch arguments of each probe.
    ///
    /// # Errors
    /// Those of [`Group::misses`].
    pub fn new_misses(&mut self) -> Result<Option<Vec<Misses>>, Error> {
        let missed = missed_in(&self.events.read("kprobe_profile")?);
        if missed == self.missed {
            return Ok(None);
        }
        let misses = self.misses()?;
        self.missed = missed;
        Ok(Some(misses))
    }
}

/// A probe that is installed, or a tracepoint.
///
/// The probe is removed with its last user: this handle, or the [`Rings`](crate::Rings) that it is attached to,
/// whichever is dropped later.
#[derive(Debug)]
pub struct Installed {
    pub(crate) format: Format,
    pub(crate) pieces: Pieces,
    pub(crate) probes: Vec<Arc<Probe>>,
    pub(crate) hook: Option<Arc<HookPoint>>,
}

impl Installed {
    /// The id of the trace event: `common_type` in its records.
    pub fn id(&self) -> u32 {
        self.format.id
    }

    /// The layout of its records.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// The name under which it was installed, or the name of the tracepoint.
    pub fn name(&self) -> &str {
        &self.format.name
    }

    /// The ids of all events that it is made of.
    pub(crate) fn ids(&self) -> Vec<u32> {
        let pieces = &self.pieces.pieces;
        if pieces.is_empty() { vec![self.id()] } else { pieces.iter().map(|piece| piece.id).collect() }
    }

    /// The pieces of its records.
    pub(crate) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// The hook, if it is one.
    /// The hook at which it is installed; `None` for a kprobe or tracepoint.
    pub fn hook(&self) -> Option<&HookPoint> {
        self.hook.as_deref()
    }

    /// Its probes, which stay installed as long as the caller keeps them. None for a tracepoint.
    pub(crate) fn probes(&self) -> Vec<Arc<Probe>> {
        self.probes.clone()
    }
}

/// A probe in the kernel, which is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Probe {
    event: String,
    events: Arc<KprobeEvents>,
}

impl Drop for Probe {
    fn drop(&mut self) {
        // The kernel refuses only if another process uses it. Then a later process removes it, once this one has ended.
        let _ = self.events.remove(&self.event);
    }
}

/// `kprobe_events`, open for appending.
#[derive(Debug)]
struct KprobeEvents {
    file: File,
    tracefs: Arc<Tracefs>,
}

impl KprobeEvents {
    fn open(tracefs: &Arc<Tracefs>) -> Result<Self, Error> {
        let path = tracefs.root().join("kprobe_events");
        // Never truncated, because that would remove the probes of all processes.
        match File::options().append(true).open(tracefs.path("kprobe_events")) {
            Ok(file) => Ok(Self { file, tracefs: Arc::clone(tracefs) }),
            Err(error) => Err(match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV) => Error::NoKprobes { root: tracefs.root().to_owned() },
                Some(libc::EROFS) => Error::ReadOnly { path: tracefs.root().to_owned() },
                _ if forbids(&error) => forbidden(&format!("writing {}", path.display()), error),
                _ => Error::io(format!("opening {}", path.display()), error),
            }),
        }
    }

    /// Writes one line with one `write(2)`.
    fn write(&self, line: &str) -> io::Result<()> {
        (&self.file).write_all(format!("{line}\n").as_bytes())
    }

    fn read(&self, file: &str) -> Result<String, Error> {
        let path = self.tracefs.root().join(file);
        let bytes = fs::read(self.tracefs.path(file))
            .map_err(|source| Error::io(format!("reading {}", path.display()), source))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn add(&self, probe: &str, function: &str, line: &Line) -> Result<(), Error> {
        let mut text = line.text();
        let mut answer = self.write(&text);
        if let (Err(error), Some(plain)) = (&answer, line.without_maxactive())
            && error.raw_os_error() == Some(libc::EINVAL)
        {
            text = plain;
            answer = self.write(&text);
        }
        answer.map_err(|source| {
            if forbids(&source) {
                return forbidden(&format!("the probe {probe} on {function}"), source);
            }
            if source.raw_os_error() == Some(libc::ENODEV) {
                return no_event_left(probe);
            }
            let log = self.read("error_log").unwrap_or_default();
            Error::Refused {
                probe: probe.to_owned(),
                target: function.to_owned(),
                message: reason_in(&log, &text).unwrap_or_default().to_owned(),
                source,
            }
        })
    }

    /// Removes the probe `GROUP/NAME`. Fails with `ENOENT` if it does not exist, and with `EBUSY` while it is in use.
    fn remove(&self, event: &str) -> io::Result<()> {
        self.write(&format!("-:{event}"))
    }
}

/// `register_trace_event` has no number left for another event; the numbers have 16 bits.
fn no_event_left(probe: &str) -> Error {
    Error::Limit {
        limit: "the limit on trace events",
        value: "65535, and all are taken".to_owned(),
        what: format!("the probe {probe}"),
        remedy: "remove unused probes from kprobe_events".to_owned(),
    }
}

/// The `GROUP/NAME` in a line of `kprobe_events`.
fn event_of(line: &str) -> Option<&str> {
    line.split_once(':')?.1.split(' ').next()
}

/// Why the kernel refused `line`: the newest entry of `error_log` that quotes it.
fn reason_in<'a>(log: &'a str, line: &str) -> Option<&'a str> {
    let lines: Vec<&str> = log.lines().collect();
    let quoted = lines.iter().rposition(|quoting| quoting.trim_start().strip_prefix("Command: ") == Some(line))?;
    let message = lines[..quoted].last()?;
    Some(message.split_once("error: ").map_or(*message, |(_, reason)| reason))
}

/// Whether this event is a further piece of that probe.
fn is_piece_of(event: &str, probe: &str) -> bool {
    event.strip_prefix(probe).is_some_and(|rest| rest.starts_with(PIECE_INFIX))
}

/// Adds the `quicker` events, or the others if that fails, and returns those that it added. An address and a symbol
/// differ in length, so the two may be divided into events at different places.
fn add_quicker_or<T, E>(
    quicker: Option<Vec<Event>>,
    others: Vec<Event>,
    mut add: impl FnMut(&[Event]) -> Result<T, E>,
) -> Result<(T, Vec<Event>), E> {
    if let Some(events) = quicker
        && let Ok(added) = add(&events)
    {
        return Ok((added, events));
    }
    Ok((add(&others)?, others))
}

/// The lines of `profile` that belong to `group`, or `None` if `events` and `profile` do not list the same probes.
fn misses_of(group: &str, events: &str, profile: &str) -> Option<Vec<Misses>> {
    let mut misses = Vec::new();
    let mut profile = profile.lines();
    for event in events.lines().filter_map(event_of) {
        let (its_group, name) = event.split_once('/')?;
        let mut columns = profile.next()?.split_ascii_whitespace();
        if columns.next()? != name {
            return None;
        }
        let (hits, missed) = (columns.next()?.parse().ok()?, columns.next()?.parse().ok()?);
        if its_group != group {
            continue;
        }
        match misses.last_mut().filter(|last: &&mut Misses| is_piece_of(name, &last.name)) {
            // A missed hit is missed by every piece.
            Some(last) => last.misses = last.misses.max(missed),
            None => misses.push(Misses { name: name.to_owned(), hits, misses: missed }),
        }
    }
    profile.next().is_none().then_some(misses)
}

/// The misses of each probe in `kprobe_profile`.
fn missed_in(profile: &str) -> Vec<MissCount> {
    let missed = |line: &str| {
        let mut columns = line.split_ascii_whitespace();
        Some(MissCount { probe: columns.next()?.to_owned(), count: columns.nth(1)?.parse().ok()? })
    };
    profile.lines().filter_map(missed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_with_more_hits_has_no_more_misses() {
        let before = missed_in("  connect 7 1\n  close 9 0\n");
        let missed = |probe: &str, count| MissCount { probe: probe.to_owned(), count };
        assert_eq!(before, [missed("connect", 1), missed("close", 0)]);
        assert_eq!(missed_in("  connect 8 1\n  close 11 0\n"), before);
        assert_ne!(missed_in("  connect 8 1\n  close 11 1\n"), before);
        assert_ne!(missed_in("  connect 8 1\n"), before);
        assert_ne!(missed_in("  connect 8 1\n  open 11 0\n"), before);
    }

    #[test]
    fn the_reason_is_the_newest_of_the_same_line() {
        let log = "[    2.340407] trace_kprobe: error: Old news\n  Command: p:a/d no_such\n                 ^\n\
            [    2.362551] trace_kprobe: error: Invalid probed address or symbol\n  Command: p:a/d no_such\n           ^\n\
            [    2.369656] trace_kprobe: error: Failed to register probe event\n  Command: p:a/e other\n          ^\n";
        assert_eq!(reason_in(log, "p:a/d no_such"), Some("Invalid probed address or symbol"));
        assert_eq!(reason_in(log, "p:a/e other"), Some("Failed to register probe event"));
        assert_eq!(reason_in(log, "p:a/d"), None);
        assert_eq!(reason_in("  Command: p:a/d", "p:a/d"), None);
    }

    /// An address is shorter than most symbols, so the first event may have room for one value more.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn values_are_counted_in_the_events_that_were_added() {
        use crate::{Features, Term, Type};
        let template = format!("{}{{a}}{}", "+24(".repeat(8), ")".repeat(8));
        let fetches = [Fetch::new("name", template, Type::U64Array(120))];
        let resolver = |_: &str, _: &str| Some(Term::Argument(1));
        let function = &"f".repeat(100);
        let features = Features::default();
        let request = Request {
            group: "g",
            name: "e",
            function,
            kind: ProbeKind::Kprobe,
            fetches: &fetches,
            resolver: &resolver,
            features,
        };
        let events = |place| request.events(place).unwrap();
        let counts = |events: &[Event]| events.iter().map(|event| event.parts.len()).collect::<Vec<_>>();
        let (quicker, others) = (counts(&events("0xffff")), counts(&events(function)));
        assert_ne!(quicker, others);
        let added = |accepts: fn(&str) -> bool| {
            let add = |events: &[Event]| {
                if events.iter().all(|event| accepts(&event.line.text())) { Ok(counts(events)) } else { Err(()) }
            };
            add_quicker_or(Some(events("0xffff")), events(function), add)
                .map(|(added, events)| (added, counts(&events)))
        };
        assert_eq!(added(|_| true), Ok((quicker.clone(), quicker)));
        assert_eq!(added(|text| !text.contains("0xffff")), Ok((others.clone(), others)));
        assert_eq!(added(|_| false), Err(()));
    }

    #[test]
    fn misses_are_assigned_by_order() {
        let events = "p:a_1_2_0/connect tcp_v4_connect\nr16:b_1_2_0/connect tcp_v4_connect rv=$retval:s32\n\
            p:b_1_2_0/close tcp_close\n";
        let profile = "  connect                        7               1\n  connect            8               2\n\
            \x20 close                 9               0\n";
        let misses = |name: &str, hits, misses| Misses { name: name.to_owned(), hits, misses };
        assert_eq!(misses_of("b_1_2_0", events, profile), Some(vec![misses("connect", 8, 2), misses("close", 9, 0)]));
        assert_eq!(misses_of("c_1_2_0", events, profile), Some(vec![]));
        assert_eq!(misses_of("b_1_2_0", events, profile.split_once("close").unwrap().0), None);
        assert_eq!(misses_of("b_1_2_0", events, &format!("{profile}  more 0 0\n")), None);
        assert_eq!(misses_of("b_1_2_0", events, &profile.replace("close", "open")), None);
    }

    #[test]
    fn misses_of_the_events_of_one_probe_are_not_added_up() {
        let events = "p:a_1_2_0/exec f\np:a_1_2_0/exec_piece_1 f\np:a_1_2_0/exec_piece_2 f\np:a_1_2_0/exec_result g\n";
        let profile = "  exec 7 1\n  exec_piece_1 6 3\n  exec_piece_2 6 2\n  exec_result 5 4\n";
        let misses = |name: &str, hits, misses| Misses { name: name.to_owned(), hits, misses };
        let both = vec![misses("exec", 7, 3), misses("exec_result", 5, 4)];
        assert_eq!(misses_of("a_1_2_0", events, profile), Some(both));
    }
}
