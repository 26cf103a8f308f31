//! The control socket, through which a client sends requests to a running Socktrail.
//!
//! It is an `AF_UNIX` stream socket that serves only root. A client sends a [`Request`] as one line of JSON, and gets a
//! [`Reply`] as one line of JSON.

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

/// The default path of the control socket.
pub const CONTROL_PATH: &str = "/run/socktrail/control.sock";

/// The maximum length of a request or reply in bytes.
const MAX_LEN: u64 = 8192;
/// The server's timeout for reading a client's request and writing the reply.
const SERVER_TIMEOUT: Duration = Duration::from_millis(200);
/// A client's timeout for writing its request and reading the reply.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum number of clients served in one round.
const MAX_CLIENTS: usize = 16;

/// The request of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Unlock the event with this id, or all events that match this pattern.
    Unlock(String),
}

/// The reply to a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// The number of event ids that were unlocked.
    Unlocked(usize),
    /// The request was refused. Holds the reason.
    Refused(String),
}

/// An error of a control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A system call on it failed.
    #[error("control socket {}: {what}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The failed step.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
    /// The path is unsafe or in use.
    #[error("control socket {}: {problem}; set another path with --control or sensors.control", path.display())]
    Unusable {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// No process listens there.
    #[error("no process listens at {}: run `socktrail sensors` or `socktrail agent` with a sensor that locks events, or set its socket with --control", path.display())]
    NoListener {
        /// The socket.
        path: PathBuf,
    },
    /// The reply is malformed.
    #[error("control socket {}: the reply cannot be understood: {reply:?}", path.display())]
    MalformedReply {
        /// The socket.
        path: PathBuf,
        /// The reply.
        reply: String,
    },
}

/// A listening control socket. Dropping it removes it.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    directory: File,
    name: PathBuf,
    /// The only user that is served.
    user: Uid,
}

impl Control {
    /// Creates the socket. Creates its directory, too, if its parent exists.
    ///
    /// # Errors
    /// Another process listens there already, the path is not a socket, or users other than its owner may write to the
    /// directory.
    pub fn listen(path: &Path) -> Result<Self, ControlError> {
        Self::listen_to(path, Uid::from_raw(0))
    }

    fn listen_to(path: &Path, user: Uid) -> Result<Self, ControlError> {
        let io = |what| move |source| ControlError::Io { path: path.to_owned(), what, source };
        let unusable = |problem: &str| ControlError::Unusable { path: path.to_owned(), problem: problem.to_owned() };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(unusable("expected a path with a directory and a file name"));
        };
        match DirBuilder::new().mode(0o700).create(parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io("creating its directory")(error));
            }
            _ => {}
        }
        let directory = open_directory(parent).map_err(io("opening its directory"))?;
        let metadata = directory.metadata().map_err(io("examining its directory"))?;
        if ![0, geteuid().as_raw()].contains(&metadata.uid()) || metadata.mode() & 0o022 != 0 {
            return Err(unusable("users other than root can write to its directory"));
        }
        // Serializes processes that start at the same time. The lock is released when this function returns.
        let lock = directory.try_clone().map_err(io("opening its directory"))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, errno)| io("locking its directory")(errno.into()))?;
        let name = PathBuf::from(name);
        let here = inside(&directory, &name);
        match here.symlink_metadata() {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(unusable("the path exists and is not a socket"));
            }
            Ok(_) if UnixStream::connect(&here).is_ok() => return Err(unusable("another process listens there")),
            // A killed process has left it behind.
            Ok(_) => std::fs::remove_file(&here).map_err(io("removing an old socket"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("checking whether it exists")(error)),
        }
        let listener = UnixListener::bind(&here).map_err(io("creating it"))?;
        let control = Self { listener, directory, name, user };
        std::fs::set_permissions(&here, Permissions::from_mode(0o600)).map_err(io("setting its mode"))?;
        control.listener.set_nonblocking(true).map_err(io("listening"))?;
        Ok(control)
    }

    /// Answers the waiting clients. Returns at once if there are none. A client that is not root is refused, and one that is too
    /// slow gets no answer.
    pub fn serve(&self, mut answer: impl FnMut(Request) -> Reply) {
        for _ in 0..MAX_CLIENTS {
            let client = match self.listener.accept() {
                Ok((client, _)) => client,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return tracing::warn!(%error, "accepting on the control socket"),
            };
            if let Err(error) = self.serve_one(&client, &mut answer) {
                tracing::warn!(%error, "serving a client of the control socket");
            }
        }
    }

    fn serve_one(&self, client: &UnixStream, answer: &mut impl FnMut(Request) -> Reply) -> io::Result<()> {
        client.set_nonblocking(false)?;
        client.set_read_timeout(Some(SERVER_TIMEOUT))?;
        client.set_write_timeout(Some(SERVER_TIMEOUT))?;
        let peer = getsockopt(client, PeerCredentials)?;
        if peer.uid() != self.user.as_raw() {
            let refusal = format!("only root may send requests, not user {}", peer.uid());
            return send(client, &Reply::Refused(refusal));
        }
        let reply = match receive(client)? {
            Ok(request) => answer(request),
            Err(_) => Reply::Refused("the request cannot be understood".to_owned()),
        };
        send(client, &reply)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // If it is gone already, nothing is left to do.
        let _ = std::fs::remove_file(inside(&self.directory, &self.name));
    }
}

/// Sends a request to the process that listens at a control socket.
///
/// # Errors
/// No process listens there, the reply is malformed, or a system call fails.
pub fn ask(path: &Path, request: &Request) -> Result<Reply, ControlError> {
    let io = |what| move |source| ControlError::Io { path: path.to_owned(), what, source };
    let server = match UnixStream::connect(path) {
        Ok(server) => server,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(ControlError::NoListener { path: path.to_owned() });
        }
        Err(error) => return Err(io("connecting")(error)),
    };
    let timeouts =
        server.set_read_timeout(Some(CLIENT_TIMEOUT)).and_then(|()| server.set_write_timeout(Some(CLIENT_TIMEOUT)));
    timeouts.map_err(io("connecting"))?;
    // The server may refuse a client that is not root, and close the connection, before it has read the request.
    let sent = send(&server, request);
    let received = receive(&server).map_err(|error| io("waiting for a reply")(sent.err().unwrap_or(error)))?;
    received.map_err(|reply| ControlError::MalformedReply { path: path.to_owned(), reply })
}

fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW).open(path)
}

/// The path of a file in this directory, even if the directory has been moved or replaced.
fn inside(directory: &File, name: &Path) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)
}

fn send(mut stream: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// The message, or the text that could not be parsed.
fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Result<T, String>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_LEN)).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line).map_err(|_| String::from_utf8_lossy(&line).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::thread;

    use tempfile::TempDir;

    use super::*;

    /// A temporary directory, and a path in it for the control socket.
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
        assert!(matches!(ask_for(&path, "x"), Err(ControlError::NoListener { .. })));
    }

    #[test]
    fn other_users_are_refused() {
        let (_directory, path) = place();
        let another = Uid::from_raw(geteuid().as_raw() + 1);
        let control = Control::listen_to(&path, another).unwrap();
        let Reply::Refused(why) = served(&control, || ask_for(&path, "x").unwrap()) else { panic!("not refused") };
        assert!(why.contains("only root"), "{why}");
    }

    #[test]
    fn malformed_long_and_missing_requests_do_no_harm() {
        let (_directory, path) = place();
        let control = listen(&path).unwrap();
        for words in [&b"nonsense\n"[..], b"", b"{\"unlock\":5}\n", b"\xff\xfe\n", &[b'x'; 20_000]] {
            let answer = served(&control, || {
                let mut stream = UnixStream::connect(&path).unwrap();
                // The server may have closed the connection.
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
    fn stale_sockets_are_replaced_and_live_ones_are_not() {
        let (_directory, path) = place();
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let control = listen(&path).unwrap();
        assert!(listen(&path).unwrap_err().to_string().contains("another process listens there"));
        assert_eq!(served(&control, || ask_for(&path, "x").unwrap()), Reply::Unlocked(1));
    }

    #[test]
    fn files_and_links_are_left_alone() {
        let (directory, path) = place();
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let precious = directory.path().join("precious");
        std::fs::write(&precious, "x").unwrap();
        symlink(&precious, &path).unwrap();
        assert!(listen(&path).unwrap_err().to_string().contains("not a socket"));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "y").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!((std::fs::read(&precious).unwrap(), std::fs::read(&path).unwrap()), (b"x".to_vec(), b"y".to_vec()));
    }

    #[test]
    fn a_directory_that_others_can_change_is_refused() {
        let (directory, path) = place();
        let parent = path.parent().unwrap();
        std::fs::create_dir(parent).unwrap();
        std::fs::set_permissions(parent, Permissions::from_mode(0o777)).unwrap();
        let error = listen(&path).unwrap_err().to_string();
        assert!(error.contains("other than root") && error.contains("--control"), "{error}");
        std::fs::remove_dir(parent).unwrap();
        symlink(directory.path(), parent).unwrap();
        assert!(matches!(listen(&path), Err(ControlError::Io { .. })), "a link is not followed");
        assert!(listen(&directory.path().join("no/such/control.sock")).is_err());
    }
}
