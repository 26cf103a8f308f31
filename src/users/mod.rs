//! Names of users and groups.
//!
//! [`Users`] answers lookups at once, from `/etc/passwd`, `/etc/group` and a cache. A thread fills the cache: it asks the
//! services of systemd's user database, then `getent(1)`, which a separate process runs ([`GetentHelper`]). The C library is
//! not used, because a static binary cannot load `nsswitch.conf` modules, and modules may block on a server.

mod files;
mod getent;
mod guarded;
mod helper;
mod table;
mod thread;
mod userdb;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

pub use self::helper::GetentHelper;
use self::table::Table;
pub use crate::model::names::{PrefetchNames, UserNames};
use crate::model::process::Credentials;
use crate::privileges::UNPRIVILEGED;

/// The maximum number of ids that wait for the thread.
const QUEUE: usize = 1024;

/// The id of a user or group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Id {
    User(u32),
    Group(u32),
}

impl Id {
    fn number(self) -> u32 {
        match self {
            Self::User(number) | Self::Group(number) => number,
        }
    }
}

/// The answer of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Named(String),
    /// The source does not know the id.
    Unknown,
    /// The source could not be asked, did not answer in time, or sent a malformed answer.
    Failed,
}

impl Answer {
    /// An answer with a name. Checks the name, because other programs control what sources return.
    fn named(name: &str) -> Self {
        let is_name =
            (1..=MAX_NAME_LEN).contains(&name.len()) && !name.chars().any(|char| char.is_control() || char == ':');
        if is_name { Self::Named(name.to_owned()) } else { Self::Failed }
    }
}

/// The maximum length of a name in bytes. Linux's own tools allow 32; directories such as LDAP have longer ones.
const MAX_NAME_LEN: usize = 256;

/// The sources of names, in the order in which they are asked.
#[derive(Debug, Clone)]
pub struct Sources {
    passwd: PathBuf,
    group: PathBuf,
    userdb: PathBuf,
    getent: Vec<PathBuf>,
    /// The timeout for the whole answer of one service.
    userdb_timeout: Duration,
    /// The timeout of one `getent`.
    getent_timeout: Duration,
}

impl Sources {
    /// The sources of this host.
    pub fn system() -> Self {
        Self {
            passwd: "/etc/passwd".into(),
            group: "/etc/group".into(),
            userdb: "/run/systemd/userdb".into(),
            getent: vec!["/usr/bin/getent".into(), "/bin/getent".into()],
            userdb_timeout: Duration::from_secs(1),
            getent_timeout: Duration::from_secs(2),
        }
    }

    /// The names of the user database services that would be asked.
    pub fn services(&self) -> Vec<String> {
        userdb::services(&self.userdb)
    }

    /// The `getent` that would be run, if there is one.
    pub fn getent(&self) -> Option<PathBuf> {
        getent::find(&self.getent)
    }

    fn files(&self, id: Id) -> Answer {
        match id {
            Id::User(uid) => files::look_up(&self.passwd, uid),
            Id::Group(gid) => files::look_up(&self.group, gid),
        }
    }

    /// Asks all sources except the files. The first name counts. An id counts as unknown only if no source has failed.
    fn ask_services(&self, id: Id, helper: Option<&mut GetentHelper>) -> Answer {
        // The helper's own id. Its `getent` may connect to a directory; looking up the owner of those flows would start
        // another `getent`.
        if id.number() == UNPRIVILEGED {
            return Answer::Unknown;
        }
        let userdb = userdb::look_up(&self.userdb, id, self.userdb_timeout);
        if matches!(userdb, Answer::Named(_)) || userdb == Answer::Unknown && userdb::speaks_for_all(&self.userdb) {
            return userdb;
        }
        match helper.and_then(|helper| helper.ask(id)) {
            None | Some(Answer::Unknown) => userdb,
            Some(answer) => answer,
        }
    }
}

/// A cache of the names of this host's users and groups. Clones share it.
///
/// A lookup never blocks: it reads files at once, and a thread ([`Users::start`]) asks the other sources. Until they answer,
/// there is no name.
#[derive(Clone)]
pub struct Users {
    shared: Arc<Shared>,
}

struct Shared {
    sources: Sources,
    table: Arc<Mutex<Table>>,
    questions: Sender<Id>,
    /// The other end of `questions`, until the thread takes it.
    to_ask: Mutex<Option<Receiver<Id>>>,
}

impl Default for Users {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("sources", &self.shared.sources).finish_non_exhaustive()
    }
}

impl Users {
    /// An empty cache.
    pub fn new() -> Self {
        Self::from(Sources::system())
    }

    /// Starts the thread that asks the sources other than files, beginning with earlier lookups. Without a helper, `getent` is
    /// not asked. The thread and the helper end once the last clone is dropped.
    ///
    /// # Errors
    /// The thread cannot be started. Names then come only from files.
    pub fn start(&self, helper: Option<GetentHelper>) -> io::Result<()> {
        let Some(to_ask) = self.shared.to_ask.lock().take() else { return Ok(()) };
        thread::start(self.shared.sources.clone(), helper, to_ask, Arc::clone(&self.shared.table))
    }

    /// The names at the time `now`.
    pub fn at(&self, now: Instant) -> UsersAt<'_> {
        UsersAt { users: self, now }
    }

    fn get(&self, id: Id, now: Instant) -> Option<Arc<str>> {
        let mut table = self.shared.table.lock();
        if table.is_due(id, now) {
            let answer = self.shared.sources.files(id);
            let is_named = matches!(answer, Answer::Named(_));
            if is_named {
                table.learn(id, answer, now);
            } else if self.shared.questions.try_send(id).is_ok() {
                table.wait_for(id, now);
            } else {
                // The queue is full. The id is looked up again later.
                table.learn(id, Answer::Failed, now);
            }
        }
        table.name(id, now)
    }
}

impl From<Sources> for Users {
    fn from(sources: Sources) -> Self {
        let (questions, to_ask) = bounded(QUEUE);
        let (table, to_ask) = (Arc::default(), Mutex::new(Some(to_ask)));
        Self { shared: Arc::new(Shared { sources, table, questions, to_ask }) }
    }
}

impl PrefetchNames for Users {
    fn prefetch(&self, credentials: &Credentials) {
        let now = Instant::now();
        let Credentials { uid, euid, gid, egid } = *credentials;
        let ids = [Id::User(uid), Id::User(euid), Id::Group(gid), Id::Group(egid)];
        for id in ids {
            let _ = self.get(id, now);
        }
    }
}

/// [`Users`] at one point in time.
#[derive(Debug, Clone, Copy)]
pub struct UsersAt<'a> {
    users: &'a Users,
    now: Instant,
}

impl UserNames for UsersAt<'_> {
    fn user(&self, uid: u32) -> Option<Arc<str>> {
        self.users.get(Id::User(uid), self.now)
    }

    fn group(&self, gid: u32) -> Option<Arc<str>> {
        self.users.get(Id::Group(gid), self.now)
    }
}

#[cfg(test)]
mod tests;
