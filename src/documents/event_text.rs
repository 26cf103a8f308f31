//! Socket events as lines of text.

use super::text::{process_columns, time_of_day};
use crate::model::clock::Clock;
use crate::model::errno::errno_name;
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
        time = time_of_day(event.time, clock),
        action = event.action.name(),
        family = family.name(),
        kind = kind.map_or("-".into(), |kind| kind.name().into_owned()),
        fd = event.fd.map_or("-".into(), |fd| fd.to_string()),
        local = end(local),
        remote = end(remote),
        result = result(event.result),
        process = process_columns(event.process.as_deref(), names),
        details = details(event),
    );
    line.trim_end().to_owned()
}

fn result(result: CallResult) -> String {
    match result {
        CallResult::Success => "ok".to_owned(),
        CallResult::Failure(errno) => errno_name(errno),
        CallResult::Unknown => "?".to_owned(),
    }
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
