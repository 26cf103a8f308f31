//! Socket events as lines of text.

use crate::model::clock::Clock;
use crate::model::errno::errno_name;
use crate::model::escape::printable;
use crate::model::names::UserNames;
use crate::model::socket_event::{Action, Address, CallResult, EventSocket, SocketEvent};

/// The header for the columns of [`line()`].
pub const HEADER: &str = concat!(
    "TIME(UTC)    ACTION     FAMILY     TYPE             FD LOCAL                    REMOTE                   ",
    "RESULT            PID NAME             USER"
);

/// The line of an event, without a newline.
///
/// Its columns: time (UTC), action, family, type, file descriptor, local end, remote end, `ok` or the error, pid, name, user,
/// and details of the action. `AF_UNIX` addresses are written as by [`Address`]: control characters are escaped, and abstract
/// addresses begin with `@`.
pub fn line(event: &SocketEvent, clock: Clock, names: &dyn UserNames) -> String {
    let EventSocket { family, kind, local, remote, .. } = &event.socket;
    let end = |address: &Option<Address>| match address.as_ref().map(ToString::to_string) {
        Some(text) if !text.is_empty() => text,
        _ => "-".to_owned(),
    };
    let line = format!(
        "{time} {action:<10} {family:<10} {kind:<14} {fd:>4} {local:<24} {remote:<24} {result:<12} {process}{details}",
        time = time_of_day(event, clock),
        action = event.action.name(),
        family = family.name(),
        kind = kind.map_or("-".into(), |kind| kind.name().into_owned()),
        fd = event.fd.map_or("-".into(), |fd| fd.to_string()),
        local = end(local),
        remote = end(remote),
        result = result(event.result),
        process = process(event, names),
        details = details(event),
    );
    line.trim_end().to_owned()
}

fn time_of_day(event: &SocketEvent, clock: Clock) -> String {
    let time = clock.wall(event.time).millis().to_string();
    let of_day = time.split_once('T').map_or(&*time, |(_, of_day)| of_day);
    of_day.trim_end_matches('Z').to_owned()
}

fn result(result: CallResult) -> String {
    match result {
        CallResult::Success => "ok".to_owned(),
        CallResult::Failure(errno) => errno_name(errno),
        CallResult::Unknown => "?".to_owned(),
    }
}

fn process(event: &SocketEvent, names: &dyn UserNames) -> String {
    let (pid, name, user) = match &event.process {
        None => ("-".into(), "-".into(), "-".into()),
        Some(process) => {
            let uid = process.credentials.map(|credentials| credentials.uid);
            let user = uid.map(|uid| names.user(uid).map_or_else(|| uid.to_string(), |name| printable(&name, 16)));
            let name = process.image.name().map(|name| printable(name, 32));
            (process.pid.to_string(), name.unwrap_or_else(|| "-".into()), user.unwrap_or_else(|| "-".into()))
        }
    };
    format!("{pid:>7} {name:<16} {user:<10}")
}

fn details(event: &SocketEvent) -> String {
    match &event.action {
        Action::Listen { backlog } => format!(" backlog {backlog}"),
        Action::Accept { accepted: Some(fd), .. } => format!(" as {fd}"),
        Action::SetSockOpt { level, option } => format!(" level {level} option {option}"),
        Action::Close | Action::State => {
            event.before.map_or_else(String::new, |state| format!(" was {}", state.name()))
        }
        Action::Create { .. } | Action::Bind | Action::Accept { .. } | Action::Connect => String::new(),
    }
}
