//! The control socket: how a running Socktrail is told something.
//!
//! An `AF_UNIX` stream on which only root is heard. A client sends one line of JSON, a [`Request`], and gets one back, a
//! [`Reply`].

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Uid, geteuid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Where the control socket is, unless another place is named.
pub const CONTROL_PATH: &str = "/run/socktrail/control.sock";

/// No request and no reply is longer, in bytes.
const LONGEST: u64 = 8192;
/// How long a client may keep us waiting.
const CLIENT_PATIENCE: Duration = Duration::from_millis(200);
/// How long we may keep a client waiting.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many clients are served at once.
const CLIENTS: usize = 16;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Unlock this event id, or all that this pattern matches.
    Unlock(String),
}

/// What it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// So many event ids were unlocked.
    Unlocked(usize),
    /// The request cannot be met, and why.
    Refused(String),
}

/// What is wrong with a control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Something cannot be done with it.
    #[error("control socket {}: {what}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// It is not safe, or not free.
    #[error("control socket {}: {problem}; name another place with --control, or sensors.control", path.display())]
    Place {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Nobody listens there.
    #[error("nobody listens at {}: is `socktrail sensors` or `socktrail agent` running, with a sensor that locks? --control names another place", path.display())]
    Nobody {
        /// The socket.
        path: PathBuf,
    },
    /// The other side answered something else.
    #[error("control socket {}: an answer was expected, not {answer:?}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What came.
        answer: String,
    },
}

/// A control socket that is listened to. Dropping it removes it.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    directory: File,
    name: PathBuf,
    /// Who is heard.
    user: Uid,
}

impl Control {
    /// Makes the socket; its directory, too, if only that is missing.
    ///
    /// # Errors
    /// Somebody listens there already, there is something else, or others than its owner may write to the directory.
    pub fn listen(path: &Path) -> Result<Self, ControlError> {
        Self::listen_to(path, Uid::from_raw(0))
    }

    fn listen_to(path: &Path, user: Uid) -> Result<Self, ControlError> {
        let io = |what| move |source| ControlError::Io { path: path.to_owned(), what, source };
        let place = |problem: &str| ControlError::Place { path: path.to_owned(), problem: problem.to_owned() };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(place("a file in a directory is expected"));
        };
        match DirBuilder::new().mode(0o700).create(parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io("making its directory")(error));
            }
            _ => {}
        }
        let directory = open_directory(parent).map_err(io("opening its directory"))?;
        let facts = directory.metadata().map_err(io("looking at its directory"))?;
        if ![0, geteuid().as_raw()].contains(&facts.uid()) || facts.mode() & 0o022 != 0 {
            return Err(place("others than root may write to its directory"));
        }
        // Two that start at once take turns. The lock is gone with this function.
        let turn = directory.try_clone().map_err(io("opening its directory"))?;
        let _turn = Flock::lock(turn, FlockArg::LockExclusive)
            .map_err(|(_, errno)| io("locking its directory")(errno.into()))?;
        let name = PathBuf::from(name);
        let here = inside(&directory, &name);
        match here.symlink_metadata() {
            Ok(facts) if !facts.file_type().is_socket() => return Err(place("there is something else")),
            Ok(_) if UnixStream::connect(&here).is_ok() => return Err(place("another socktrail listens there")),
            // Left over by one that was killed.
            Ok(_) => std::fs::remove_file(&here).map_err(io("removing what was left over"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("looking whether it is there")(error)),
        }
        let listener = UnixListener::bind(&here).map_err(io("making it"))?;
        let control = Self { listener, directory, name, user };
        std::fs::set_permissions(&here, Permissions::from_mode(0o600)).map_err(io("setting its mode"))?;
        control.listener.set_nonblocking(true).map_err(io("listening"))?;
        Ok(control)
    }

    /// Answers those who wait; returns at once when nobody does. A client that is too slow, or is not root, gets none.
    pub fn serve(&self, mut answer: impl FnMut(Request) -> Reply) {
        for _ in 0..CLIENTS {
            let client = match self.listener.accept() {
                Ok((client, _)) => client,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return tracing::warn!(%error, "accepting on the control socket"),
            };
            if let Err(error) = self.serve_one(&client, &mut answer) {
                tracing::warn!(%error, "a client of the control socket");
            }
        }
    }

    fn serve_one(&self, client: &UnixStream, answer: &mut impl FnMut(Request) -> Reply) -> io::Result<()> {
        client.set_nonblocking(false)?;
        client.set_read_timeout(Some(CLIENT_PATIENCE))?;
        client.set_write_timeout(Some(CLIENT_PATIENCE))?;
        let peer = getsockopt(client, PeerCredentials)?;
        if peer.uid() != self.user.as_raw() {
            let refusal = format!("only root may ask, not user {}", peer.uid());
            return send(client, &Reply::Refused(refusal));
        }
        let reply = match receive(client)? {
            Ok(request) => answer(request),
            Err(_) => Reply::Refused("a request was expected".to_owned()),
        };
        send(client, &reply)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Should it be gone already, all the better.
        let _ = std::fs::remove_file(inside(&self.directory, &self.name));
    }
}

/// Asks whoever listens at a control socket.
///
/// # Errors
/// Nobody listens there, or the answer makes no sense.
pub fn ask(path: &Path, request: &Request) -> Result<Reply, ControlError> {
    let io = |what| move |source| ControlError::Io { path: path.to_owned(), what, source };
    let server = match UnixStream::connect(path) {
        Ok(server) => server,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(ControlError::Nobody { path: path.to_owned() });
        }
        Err(error) => return Err(io("connecting")(error)),
    };
    let patience = server.set_read_timeout(Some(PATIENCE)).and_then(|()| server.set_write_timeout(Some(PATIENCE)));
    patience.map_err(io("connecting"))?;
    // Who is not heard is told so without having been listened to.
    let sent = send(&server, request);
    let received = receive(&server).map_err(|error| io("waiting for an answer")(sent.err().unwrap_or(error)))?;
    received.map_err(|answer| ControlError::Answer { path: path.to_owned(), answer })
}

fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW).open(path)
}

/// A name in exactly this directory, whatever its path leads to by now.
fn inside(directory: &File, name: &Path) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)
}

fn send(mut stream: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// The message, or the text that is none.
fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Result<T, String>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST)).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line).map_err(|_| String::from_utf8_lossy(&line).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::thread;

    use tempfile::TempDir;

    use super::*;

    /// A directory that only its owner may write to, and a place in it.
    fn place() -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/control.sock");
        (directory, path)
    }

    fn listen(path: &Path) -> Result<Control, ControlError> {
        Control::listen_to(path, geteuid())
    }

    /// Serves until a client has been answered.
    fn served<T: Send>(control: &Control, client: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let client = scope.spawn(client);
            while !client.is_finished() {
                control.serve(|Request::Unlock(text)| Reply::Unlocked(text.len()));
                thread::sleep(Duration::from_millis(1));
            }
            client.join().unwrap()
        })
    }

    fn ask_for(path: &Path, text: &str) -> Result<Reply, ControlError> {
        ask(path, &Request::Unlock(text.to_owned()))
    }

    #[test]
    fn a_request_is_answered() {
        let (_directory, path) = place();
        let control = listen(&path).unwrap();
        assert_eq!(served(&control, || ask_for(&path, "web|*").unwrap()), Reply::Unlocked(5));
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().mode() & 0o777, 0o700);
        drop(control);
        assert!(!path.exists(), "it is removed");
        assert!(matches!(ask_for(&path, "x"), Err(ControlError::Nobody { .. })));
    }

    #[test]
    fn other_users_are_not_heard() {
        let (_directory, path) = place();
        let somebody_else = Uid::from_raw(geteuid().as_raw() + 1);
        let control = Control::listen_to(&path, somebody_else).unwrap();
        let Reply::Refused(why) = served(&control, || ask_for(&path, "x").unwrap()) else { panic!("heard") };
        assert!(why.contains("only root"), "{why}");
    }

    #[test]
    fn nonsense_silence_and_floods_hurt_nobody() {
        let (_directory, path) = place();
        let control = listen(&path).unwrap();
        for words in [&b"nonsense\n"[..], b"", b"{\"unlock\":5}\n", b"\xff\xfe\n", &[b'x'; 20_000]] {
            let answer = served(&control, || {
                let mut stream = UnixStream::connect(&path).unwrap();
                // The other side may have heard enough.
                let _ = stream.write_all(words);
                let mut answer = String::new();
                let _ = stream.read_to_string(&mut answer);
                answer
            });
            assert!(!answer.contains("unlocked"), "{answer}");
        }
        assert_eq!(served(&control, || ask_for(&path, "x").unwrap()), Reply::Unlocked(1));
    }

    #[test]
    fn what_was_left_over_is_replaced_and_what_lives_is_not() {
        let (_directory, path) = place();
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let control = listen(&path).unwrap();
        assert!(listen(&path).unwrap_err().to_string().contains("another socktrail listens there"));
        assert_eq!(served(&control, || ask_for(&path, "x").unwrap()), Reply::Unlocked(1));
    }

    #[test]
    fn files_and_links_are_left_alone() {
        let (directory, path) = place();
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let precious = directory.path().join("precious");
        std::fs::write(&precious, "x").unwrap();
        symlink(&precious, &path).unwrap();
        assert!(listen(&path).unwrap_err().to_string().contains("something else"));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "y").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!((std::fs::read(&precious).unwrap(), std::fs::read(&path).unwrap()), (b"x".to_vec(), b"y".to_vec()));
    }

    #[test]
    fn a_directory_of_others_is_refused() {
        let (directory, path) = place();
        let parent = path.parent().unwrap();
        std::fs::create_dir(parent).unwrap();
        std::fs::set_permissions(parent, Permissions::from_mode(0o777)).unwrap();
        let said = listen(&path).unwrap_err().to_string();
        assert!(said.contains("others than root") && said.contains("--control"), "{said}");
        std::fs::remove_dir(parent).unwrap();
        symlink(directory.path(), parent).unwrap();
        assert!(matches!(listen(&path), Err(ControlError::Io { .. })), "a link is not followed");
        assert!(listen(&directory.path().join("no/such/control.sock")).is_err());
    }
}
