//! The probes of one process, and what earlier ones left behind.

use std::fs::{self, File};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::owner::Owner;
use crate::probe::{Line, check_name, line};
use crate::symbols::Addresses;
use crate::tracefs::{forbidden, forbids};
use crate::{Error, Fetch, Format, Resolver, Target, Tracefs};

/// The groups of this process so far.
static GROUPS: AtomicU64 = AtomicU64::new(0);

/// A group of probes that carries this process' identity in its name, so that another process can tell when its
/// owner is dead. It ends with the last of its probes.
#[derive(Debug)]
pub struct Group {
    name: String,
    events: Arc<KprobeEvents>,
    /// Where functions begin that [`Group::learn`] has looked up.
    addresses: Addresses,
}

/// Hits and misses of one probe, from `kprobe_profile`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Misses {
    /// The probe.
    pub name: String,
    /// How often it fired.
    pub hits: u64,
    /// How often it could not: a kretprobe's calls above its `maxactive`, and probes hit within a probe.
    pub misses: u64,
}

impl Group {
    /// Names a group `PREFIX_PID_STARTTIME_N`, after removing the probes in groups of this prefix whose process is
    /// dead. Probes that are still in use are left where they are: the kernel refuses to remove them.
    ///
    /// # Errors
    /// [`Error::NoKprobes`], [`Error::Permission`], [`Error::ReadOnly`], and [`Error::BadName`] for a prefix that
    /// cannot be part of a name.
    pub fn create(tracefs: &Arc<Tracefs>, prefix: &str) -> Result<Self, Error> {
        // Leaves room for three numbers of up to 13 digits.
        check_name("prefix of groups", prefix, 20)?;
        let events = Arc::new(KprobeEvents::open(tracefs)?);
        events.sweep(prefix);
        let owner = Owner::this().map_err(|source| Error::io("reading /proc/self/stat", source))?;
        let name = owner.group(prefix, GROUPS.fetch_add(1, Ordering::Relaxed));
        Ok(Self { name, events, addresses: Addresses::default() })
    }

    /// Looks functions up all at once, on kernels that take long to do so for each probe. What is not found is left to the
    /// kernel.
    pub fn learn(&mut self, functions: &[&str]) {
        self.addresses = Addresses::of(functions);
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Installs a probe named `name`, or looks a tracepoint up: then `name`, `fetches` and `resolver` are not used.
    ///
    /// # Errors
    /// Before the kernel is asked: [`Error::Unresolved`], [`Error::BadTemplate`], [`Error::BadName`],
    /// [`Error::TooLarge`]. By the kernel: [`Error::Refused`], whose [`kind`](Error::kind) tells a function that is
    /// missing or cannot be probed from a lack of permission and from other reasons.
    pub fn install(
        &self,
        name: &str,
        target: Target<'_>,
        fetches: &[Fetch<'_>],
        resolver: &dyn Resolver,
    ) -> Result<Installed, Error> {
        let (function, at_return) = match target {
            Target::Kprobe { function } => (function, None),
            Target::Kretprobe { function, maxactive } => (function, Some(maxactive)),
            Target::Tracepoint { category, name } => {
                let format = self.events.tracefs.format(category, name)?;
                return Ok(Installed { format, probe: None });
            }
        };
        let features = self.events.tracefs.features();
        let line = |place: &str| line(&self.name, name, function, place, at_return, fetches, resolver, features);
        let by_name = line(function)?;
        let quicker = self.addresses.place(function, at_return.is_some()).and_then(|place| line(&place).ok());
        let is_added = quicker.is_some_and(|line| self.events.add(name, function, &line).is_ok());
        if !is_added {
            self.events.add(name, function, &by_name)?;
        }
        let probe = Arc::new(Probe { event: format!("{}/{name}", self.name), events: Arc::clone(&self.events) });
        let format = self.events.tracefs.format(&self.name, name)?;
        Ok(Installed { format, probe: Some(probe) })
    }

    /// Hits and misses of this group's probes since each was installed.
    ///
    /// # Errors
    /// [`Error::Io`]: `kprobe_profile` or `kprobe_events` cannot be read.
    pub fn misses(&self) -> Result<Vec<Misses>, Error> {
        // The profile has no groups, but the same order as the list. Another process may change both in between.
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
}

/// A probe that is installed, or a tracepoint.
///
/// The probe is removed with its last user: this handle, or the [`Rings`](crate::Rings) that it is attached to,
/// whichever ends later.
#[derive(Debug)]
pub struct Installed {
    format: Format,
    probe: Option<Arc<Probe>>,
}

impl Installed {
    /// The trace event's type: `common_type` of its records.
    pub fn id(&self) -> u32 {
        self.format.id
    }

    /// The layout of its records.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// The name it was installed under; of a tracepoint, the tracepoint's.
    pub fn name(&self) -> &str {
        &self.format.name
    }

    /// Keeps the probe installed while it is held.
    pub(crate) fn hold(&self) -> Option<Arc<Probe>> {
        self.probe.clone()
    }
}

/// Removes a probe when it is dropped.
#[derive(Debug)]
pub(crate) struct Probe {
    event: String,
    events: Arc<KprobeEvents>,
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Refused only when another process has opened it meanwhile. Then the next sweep finds it.
        let _ = self.events.write(&format!("-:{}", self.event));
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
        // Never truncated: that would remove everybody's probes.
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

    /// Writes one line by one `write(2)`.
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

    /// Removes the probes of dead processes. Others may do so at the same time: then they are simply gone.
    fn sweep(&self, prefix: &str) {
        let Ok(list) = self.read("kprobe_events") else { return };
        for event in list.lines().filter_map(event_of) {
            let owner = event.split_once('/').and_then(|(group, _)| Owner::of_group(prefix, group));
            if owner.is_some_and(Owner::is_dead) {
                let _ = self.write(&format!("-:{event}"));
            }
        }
    }
}

/// `register_trace_event` has no number left for an event: they are of 16 bits.
fn no_event_left(probe: &str) -> Error {
    Error::Limit {
        limit: "the number of trace events",
        value: "65535, and all are taken".to_owned(),
        what: format!("the probe {probe}"),
        remedy: "remove probes that nobody needs from kprobe_events".to_owned(),
    }
}

/// `GROUP/NAME` of a line of `kprobe_events`.
fn event_of(line: &str) -> Option<&str> {
    line.split_once(':')?.1.split(' ').next()
}

/// Why the kernel refused `line`: the newest entry of `error_log` that quotes it.
fn reason_in<'a>(log: &'a str, line: &str) -> Option<&'a str> {
    let lines: Vec<&str> = log.lines().collect();
    let quoted = lines.iter().rposition(|quoting| quoting.trim_start().strip_prefix("Command: ") == Some(line))?;
    let said = lines[..quoted].last()?;
    Some(said.split_once("error: ").map_or(*said, |(_, reason)| reason))
}

/// The lines of `profile` that belong to `group`, or nothing if the two do not list the same probes.
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
        if its_group == group {
            misses.push(Misses { name: name.to_owned(), hits, misses: missed });
        }
    }
    profile.next().is_none().then_some(misses)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn misses_are_told_apart_by_order() {
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
}
