//! Flows as lines of text.

use std::time::Duration;

use crate::model::clock::Clock;
use crate::model::errno::errno_name;
use crate::model::escape::printable;
use crate::model::flow::{Direction, Flow, Inexact, Outcome, Owner};
use crate::model::names::UserNames;
use crate::model::process::Process;
use crate::model::time::MonotonicTime;

/// The header for the columns of [`line()`].
pub const HEADER: &str = concat!(
    "TIME(UTC)       TRANS LOCAL                    REMOTE                   ",
    "  PKTS-OUT  BYTES-OUT    PKTS-IN   BYTES-IN DURATION     PID NAME             USER"
);

/// The line of a flow, without a newline.
///
/// Its columns: time of its end (UTC), direction (`->` egress, `<-` ingress, `--` unknown), transport, local endpoint, remote
/// endpoint, packets and bytes sent, packets and bytes received, duration, the owner's pid, program name, and user name or uid, and
/// remarks. Remarks are: `!` and the errno of a failed flow, or `!failed` if it is not known; `dropped N` for outgoing packets that
/// this host dropped; `live` for a flow that has not ended; `partial` for a flow that was not seen from its beginning; `inexact` if
/// packets and bytes may differ from those on the wire (`flow.inexact`).
pub fn line(flow: &Flow, clock: Clock, names: &dyn UserNames) -> String {
    let line = format!(
        "{time} {arrow} {transport:<5} {local:<24} {remote:<24} {po:>10} {bo:>10} {pi:>10} {bi:>10} {duration:>8} {owner}{remarks}",
        time = time_of_day(flow.end, clock),
        arrow = arrow(flow.direction),
        transport = flow.transport.name(),
        local = flow.local.to_string(),
        remote = flow.remote.to_string(),
        po = flow.sent.packets,
        bo = flow.sent.bytes,
        pi = flow.received.packets,
        bi = flow.received.bytes,
        duration = short(flow.end.saturating_duration_since(flow.start)),
        owner = owner(&flow.owner, names),
        remarks = remarks(flow),
    );
    line.trim_end().to_owned()
}

/// The time of day (UTC), with milliseconds.
pub(super) fn time_of_day(time: MonotonicTime, clock: Clock) -> String {
    let time = clock.wall(time).millis().to_string();
    let of_day = time.split_once('T').map_or(&*time, |(_, of_day)| of_day);
    of_day.trim_end_matches('Z').to_owned()
}

fn arrow(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "->",
        Direction::Ingress => "<-",
        Direction::Unknown => "--",
    }
}

fn owner(owner: &Owner, names: &dyn UserNames) -> String {
    match owner {
        Owner::Unknown => process_columns(None, names),
        Owner::Kernel => columns("-", "[kernel]", "-"),
        Owner::Process(owner) => process_columns(Some(&**owner), names),
    }
}

/// The columns PID, NAME and USER for a process.
pub(super) fn process_columns(process: Option<&Process>, names: &dyn UserNames) -> String {
    let Some(process) = process else { return columns("-", "-", "-") };
    let uid = process.credentials.map(|credentials| credentials.uid);
    let user = uid.map(|uid| names.user(uid).map_or_else(|| uid.to_string(), |name| printable(&name, 16)));
    let name = process.image.name().map(|name| printable(name, 32));
    columns(&process.pid.to_string(), name.as_deref().unwrap_or("-"), user.as_deref().unwrap_or("-"))
}

fn columns(pid: &str, name: &str, user: &str) -> String {
    format!("{pid:>7} {name:<16} {user:<10}")
}

fn remarks(flow: &Flow) -> String {
    let mut remarks = String::new();
    match flow.outcome {
        // The errno is not known.
        Outcome::Failure(0) => remarks.push_str(" !failed"),
        Outcome::Failure(code) => {
            remarks.push_str(" !");
            remarks.push_str(&errno_name(code));
        }
        Outcome::Success | Outcome::Unknown => {}
    }
    if flow.dropped.packets > 0 {
        remarks.push_str(&format!(" dropped {}", flow.dropped.packets));
    }
    for (applies, remark) in
        [(!flow.is_final, " live"), (!flow.complete, " partial"), (flow.inexact != Inexact::default(), " inexact")]
    {
        if applies {
            remarks.push_str(remark);
        }
    }
    remarks
}

/// Formats a duration. The text has at most eight characters for durations below 10,000 days.
fn short(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    let (hours, days) = (seconds / 3600, seconds / 86400);
    match seconds {
        0 if nanos < 1_000_000 => format!("{}us", nanos / 1000),
        0 => format!("{}.{}ms", nanos / 1_000_000, nanos / 100_000 % 10),
        1..60 => format!("{seconds}.{:02}s", nanos / 10_000_000),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{hours}h{:02}m", seconds / 60 % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::clock::{Readings, Timestamp};
    use crate::model::flow::{Counters, Endpoint, Reason, Transport};
    use crate::model::kernel_address::{NetAddress, SockAddress};
    use crate::model::process::{Credentials, Image};
    use crate::model::testing::{monotonic, since_boot};

    fn clock() -> Clock {
        Clock::from_readings(Readings {
            kernel: monotonic(0),
            boot: since_boot(0),
            wall: Timestamp::from_unix_nanos(1_566_504_000_000_000_000),
        })
    }

    fn flow(name: &str) -> Flow {
        let process = Process {
            pid: 4970,
            parent_pid: None,
            start: None,
            kernel: false,
            credentials: Some(Credentials { uid: 1000, ..Credentials::default() }),
            control_groups: None,
            image: Arc::new(Image { name: name.into(), ..Image::default() }),
        };
        Flow {
            number: 1,
            transport: Transport::Tcp,
            local: Endpoint::new([10, 0, 2, 15], 40192),
            remote: Endpoint::new([151, 101, 66, 217], 80),
            sock: SockAddress::new(1),
            net: NetAddress::new(1),
            direction: Direction::Egress,
            owner: Owner::Process(Arc::new(process)),
            start: monotonic(2_795_001_000_000),
            end: monotonic(2_795_031_728_600),
            sent: Counters { packets: 5, bytes: 294 },
            received: Counters { packets: 6, bytes: 437 },
            dropped: Counters::default(),
            complete: true,
            is_final: true,
            outcome: Outcome::Success,
            reason: Reason::Closed,
            inexact: Inexact::default(),
            last_user: None,
            domain: None,
        }
    }

    #[test]
    fn values_are_aligned_with_their_titles() {
        let line = line(&flow("curl"), clock(), &());
        let columns: Vec<_> = line.split_whitespace().collect();
        let expected = [
            "20:46:35.031",
            "->",
            "tcp",
            "10.0.2.15:40192",
            "151.101.66.217:80",
            "5",
            "294",
            "6",
            "437",
            "30.7ms",
            "4970",
            "curl",
            "1000",
        ];
        assert_eq!(columns, expected);
        for (title, value) in
            [("TRANS", "tcp"), ("LOCAL", "10.0.2.15"), ("REMOTE", "151."), ("NAME", "curl"), ("USER", "1000")]
        {
            assert_eq!(HEADER.find(title), line.find(value), "{title}");
        }
        for (title, value) in [("BYTES-OUT", " 294 "), ("BYTES-IN", " 437 "), ("DURATION", "30.7ms "), ("PID", "4970 ")]
        {
            let end = |text: &str, part: &str| text.find(part).map(|at| at + part.trim_end().len());
            assert_eq!(end(HEADER, title), end(&line, value), "{title}");
        }
    }

    #[test]
    fn remarks_come_last() {
        let flow = Flow {
            outcome: Outcome::Failure(111),
            is_final: false,
            complete: false,
            inexact: Inexact { samples_lost: true, ..Inexact::default() },
            owner: Owner::Kernel,
            ..flow("")
        };
        assert!(line(&flow, clock(), &()).ends_with(" !ECONNREFUSED live partial inexact"));
    }

    #[test]
    fn names_cannot_contain_terminal_escapes_or_line_breaks() {
        let line = line(&flow("\u{1b}]0;x\u{7}\n".repeat(99).as_str()), clock(), &());
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(line.chars().count() < 200);
    }

    #[test]
    fn durations_are_short() {
        for (nanos, text) in [
            (0, "0us"),
            (999_999, "999us"),
            (30_728_600, "30.7ms"),
            (999_999_999, "999.9ms"),
            (1_205_000_000, "1.20s"),
            (125_000_000_000, "2m05s"),
            (3_661_000_000_000, "1h01m"),
            (90_000_000_000_000, "1d01h"),
            (3_599_999_999_999, "59m59s"),
            (86_399_999_999_999, "23h59m"),
            (863_999_999_999_999_999, "9999d23h"),
        ] {
            assert_eq!(short(Duration::from_nanos(nanos)), text);
            assert!(text.len() <= 8, "the width of the column: {text}");
        }
    }
}
