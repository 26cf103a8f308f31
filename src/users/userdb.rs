//! Looks up names in systemd's user database (<https://systemd.io/USER_GROUP_API/>): services that speak Varlink, each on a
//! socket with the service's name in one directory. A message is JSON, followed by a NUL.
//!
//! `io.systemd.Multiplexer` asks all other services, also the one for `nsswitch.conf`. If it does not exist, because
//! `systemd-userdbd` is not installed, or does not answer, each of the other services is asked. One of them is always the
//! service manager's own, for users of `DynamicUser=`.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, Id, guarded};

const MULTIPLEXER: &str = "io.systemd.Multiplexer";
/// The maximum size of an answer in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// The maximum number of services that are asked.
const MAX_SERVICES: usize = 16;

/// Asks the services in a directory.
pub(super) fn look_up(folder: &Path, id: Id, timeout: Duration) -> Answer {
    let mut answer = Answer::Unknown;
    for service in services(folder) {
        match ask(folder, &service, id, timeout).unwrap_or(Answer::Failed) {
            named @ Answer::Named(_) => return named,
            Answer::Unknown if service == MULTIPLEXER => return Answer::Unknown,
            Answer::Unknown => {}
            Answer::Failed => answer = Answer::Failed,
        }
    }
    answer
}

/// Whether the services cover everything that the C library knows.
pub(super) fn speaks_for_all(folder: &Path) -> bool {
    services(folder).first().is_some_and(|first| first == MULTIPLEXER)
}

/// The first services in a directory, the multiplexer before all others. Empty if other users than root and this process's
/// could put services there.
pub(super) fn services(folder: &Path) -> Vec<String> {
    if !guarded::is_guarded_folder(folder) {
        return Vec::new();
    }
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names = names.collect::<Vec<_>>();
    names.sort_by_key(|name| (name != MULTIPLEXER, name.clone()));
    names.truncate(MAX_SERVICES);
    names
}

fn ask(folder: &Path, service: &str, id: Id, timeout: Duration) -> io::Result<Answer> {
    let deadline = Instant::now() + timeout;
    let mut stream = open(&folder.join(service), timeout)?;
    let mut request = request(service, id).into_bytes();
    request.push(0);
    stream.write_all(&request)?;
    Ok(read(&message(&mut stream, deadline)?, id))
}

/// Connects to a service, for at most `timeout`: connecting blocks if too many connections are pending.
fn open(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let micros = timeout.as_micros().try_into().unwrap_or(i64::MAX);
    setsockopt(&socket, SendTimeout, &TimeVal::microseconds(micros))?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

fn request(service: &str, id: Id) -> String {
    match id {
        Id::User(uid) => json!({
            "method": "io.systemd.UserDatabase.GetUserRecord",
            "parameters": { "uid": uid, "service": service },
        }),
        Id::Group(gid) => json!({
            "method": "io.systemd.UserDatabase.GetGroupRecord",
            "parameters": { "gid": gid, "service": service },
        }),
    }
    .to_string()
}

/// Reads one message, without its NUL.
fn message(stream: &mut UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let (mut message, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || message.len() > MAX_ANSWER {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let read = match stream.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => &part[..count],
        };
        match read.iter().position(|&byte| byte == 0) {
            Some(end) => {
                message.extend_from_slice(&read[..end]);
                return Ok(message);
            }
            None => message.extend_from_slice(read),
        }
    }
}

#[derive(Deserialize)]
struct Reply {
    error: Option<String>,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Deserialize, Default)]
struct Parameters {
    record: Option<Record>,
}

/// The used fields of a user's or group's record.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    user_name: Option<String>,
    group_name: Option<String>,
    #[serde(flatten)]
    ids: Ids,
    /// For users of `systemd-homed`: ids by the machine on which they are valid.
    #[serde(default)]
    binding: HashMap<String, Ids>,
}

#[derive(Deserialize)]
struct Ids {
    uid: Option<u32>,
    gid: Option<u32>,
}

fn read(message: &[u8], id: Id) -> Answer {
    let Ok(Reply { error, parameters }) = serde_json::from_slice(message) else { return Answer::Failed };
    match (error.as_deref(), parameters.record) {
        (Some("io.systemd.UserDatabase.NoRecordFound"), _) => Answer::Unknown,
        (None, Some(record)) => record.name_of(id),
        _ => Answer::Failed,
    }
}

impl Record {
    /// The name in the record, if the record is about this id.
    fn name_of(&self, id: Id) -> Answer {
        let of = |ids: &Ids| match id {
            Id::User(_) => ids.uid,
            Id::Group(_) => ids.gid,
        };
        let is_meant = match of(&self.ids) {
            Some(number) => number == id.number(),
            None => self.binding.values().any(|ids| of(ids) == Some(id.number())),
        };
        let name = match id {
            Id::User(_) => self.user_name.as_deref(),
            Id::Group(_) => self.group_name.as_deref(),
        };
        name.filter(|_| is_meant).map_or(Answer::Failed, Answer::named)
    }
}

#[cfg(test)]
mod tests;
