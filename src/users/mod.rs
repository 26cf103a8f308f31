//! Names of users and groups.
//!
//! [`Users`] answers at once with what it knows: from `/etc/passwd` and `/etc/group`, and from what a thread of its own has
//! asked other sources for, one after the other: the services of systemd's user database, then `getent(1)`, which a
//! process of its own runs ([`GetentHelper`]). The C library is not used: a static binary cannot load `nsswitch.conf`
//! modules, and modules may block on a server.

mod files;
mod getent;
mod guarded;
mod helper;
mod table;
mod thread;
mod userdb;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

pub use self::helper::GetentHelper;
use self::table::Table;
use crate::event::Credentials;
use crate::privileges::UNPRIVILEGED;

/// How many ids may wait to be asked for.
const QUEUE: usize = 1024;

/// Gives names to user and group ids.
pub trait Names {
    /// The name of a user, `None` where it has none.
    fn user(&self, uid: u32) -> Option<Arc<str>>;
    /// The name of a group, `None` where it has none.
    fn group(&self, gid: u32) -> Option<Arc<str>>;
}

/// Knows no names.
impl Names for () {
    fn user(&self, _uid: u32) -> Option<Arc<str>> {
        None
    }

    fn group(&self, _gid: u32) -> Option<Arc<str>> {
        None
    }
}

/// What is asked for.
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

/// What a source says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Named(String),
    /// It knows of no such id.
    Unknown,
    /// It cannot be asked, did not answer in time, or what it said makes no sense.
    Failed,
}

impl Answer {
    /// A name that a source gave, if it is one: others decide what sources say.
    fn named(name: &str) -> Self {
        let is_name =
            (1..=MAX_NAME_LEN).contains(&name.len()) && !name.chars().any(|char| char.is_control() || char == ':');
        if is_name { Self::Named(name.to_owned()) } else { Self::Failed }
    }
}

/// The longest name that is believed, in bytes. Linux's own tools allow 32, and directories have longer ones.
const MAX_NAME_LEN: usize = 256;

/// Where names come from, in the order in which they are asked.
#[derive(Debug, Clone)]
pub struct Sources {
    passwd: PathBuf,
    group: PathBuf,
    userdb: PathBuf,
    getent: Vec<PathBuf>,
    /// How long one service may take for its whole answer.
    userdb_timeout: Duration,
    /// How long one `getent` may run.
    getent_timeout: Duration,
}

impl Sources {
    /// This host's.
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

    /// The services of the user database that are there, by name: those that would be asked.
    pub fn services(&self) -> Vec<String> {
        userdb::services(&self.userdb)
    }

    /// The `getent` that would be run, where there is one.
    pub fn getent(&self) -> Option<PathBuf> {
        getent::find(&self.getent)
    }

    fn files(&self, id: Id) -> Answer {
        match id {
            Id::User(uid) => files::look_up(&self.passwd, uid),
            Id::Group(gid) => files::look_up(&self.group, gid),
        }
    }

    /// Asks all but the files. The first name counts; that there is none is known only where none has failed.
    fn others(&self, id: Id, helper: Option<&mut GetentHelper>) -> Answer {
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

/// The names that this host gives to users and groups, kept for a while. Clones share what they know.
///
/// Nobody who asks for a name ever waits: files are read at once, and what they do not have is asked for by a thread
/// ([`Users::start`]). Until it is answered there is no name.
#[derive(Clone)]
pub struct Users {
    shared: Arc<Shared>,
}

struct Shared {
    sources: Sources,
    table: Arc<Mutex<Table>>,
    questions: Sender<Id>,
    /// Until the thread takes them.
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
    /// Nothing known yet.
    pub fn new() -> Self {
        Self::from(Sources::system())
    }

    /// Starts the thread that asks other sources than files; what was asked for before is asked now. Without a helper
    /// `getent` is not asked. The thread ends by itself once the last clone is dropped, and the helper with it.
    ///
    /// # Errors
    /// No thread can be started. Names come from files alone then.
    pub fn start(&self, helper: Option<GetentHelper>) -> io::Result<()> {
        let Some(to_ask) = self.shared.to_ask.lock().take() else { return Ok(()) };
        thread::start(self.shared.sources.clone(), helper, to_ask, Arc::clone(&self.shared.table))
    }

    /// Asks for the names of somebody of whom documents will tell, so that they are known by then.
    pub fn expect(&self, credentials: &Credentials) {
        let now = Instant::now();
        let Credentials { uid, euid, gid, egid } = *credentials;
        let ids = [Id::User(uid), Id::User(euid), Id::Group(gid), Id::Group(egid)];
        for id in ids {
            let _ = self.get(id, now);
        }
    }

    /// The names as they are at `now`.
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
                // Too many wait: it is asked for again a little later.
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

/// [`Users`] at one moment.
#[derive(Debug, Clone, Copy)]
pub struct UsersAt<'a> {
    users: &'a Users,
    now: Instant,
}

impl Names for UsersAt<'_> {
    fn user(&self, uid: u32) -> Option<Arc<str>> {
        self.users.get(Id::User(uid), self.now)
    }

    fn group(&self, gid: u32) -> Option<Arc<str>> {
        self.users.get(Id::Group(gid), self.now)
    }
}

#[cfg(test)]
mod tests;
