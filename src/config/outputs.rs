//! The sections `agent`, `events`, `sensors`, `metrics` and `output`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use std::{fmt, iter};

use serde::{Deserialize, Serialize};

use super::elasticsearch::Elasticsearch;
use super::section::section;
use super::values::ByteSize;
use crate::condition::{Condition, ConditionError};
use crate::control::CONTROL_PATH;
use crate::model::socket_event::Actions;
use crate::model::units::{Time, TimeError};
use crate::output::{FileOptions, SyncPolicy};
use crate::sensors::{self, FileError, Sensor};

section! {
    /// `agent.*`.
    pub struct Agent {
        /// `agent.name` in documents. If empty, the host's name is used.
        #[reloadable(true)]
        name: String = String::new(),
        /// The niceness of the agent: `nice(2)`. A higher value leaves more CPU time to other processes.
        #[bounds(0, 19)]
        nice: u8 = 0,
        /// Whether the agent drops [privileges](security.md) once its probes are installed: capabilities, system calls
        /// and access to files.
        harden: bool = true,
        /// How long the agent may take to shut down. Documents that are not sent by then stay in the spool, or are
        /// counted as lost.
        #[reloadable(true)]
        shutdown_timeout: Time = Duration::from_secs(10).into(),
    }
}

section! {
    /// `events.*`.
    pub struct Events {
        /// The calls that become documents: any of `create`, `bind`, `listen`, `accept`, `connect`, `setsockopt` and
        /// `close`. Their `event.sequence` counts them from the start of the agent.
        actions: Vec<String> = Vec::new(),
        /// Only events that match this [condition](events.md#conditions), such as
        /// `remote.port == 443 && process.name in ["curl", "wget"]`, become documents.
        #[needs("events.actions")]
        #[reloadable(true)]
        r#where: Option<String> = None,
    }
}

impl Events {
    /// The actions as a set. Unknown names are ignored; [`check`](super::check) reports them.
    pub fn action_set(&self) -> Actions {
        self.actions.iter().filter_map(|name| Actions::named(name)).fold(Actions::NONE, Actions::or)
    }

    /// The parsed condition.
    ///
    /// # Errors
    /// A syntax error, with its position.
    pub fn condition(&self) -> Result<Option<Condition>, ConditionError> {
        self.r#where.as_deref().map(str::parse).transpose()
    }
}

section! {
    /// `sensors.*`.
    pub struct Sensors {
        /// [Sensor files](sensors.md). The events of their sensors become documents. No two files may define a sensor
        /// with the same id.
        files: Vec<PathBuf> = Vec::new(),
        /// Run only sensors that have one of these profiles, and sensors without a profile. If empty, all sensors run.
        #[needs("sensors.files")]
        profiles: Vec<String> = Vec::new(),
        /// The control socket, through which `socktrail unlock` unlocks events. It exists if a sensor locks events.
        #[needs("sensors.files")]
        control: PathBuf = CONTROL_PATH.into(),
    }
}

impl Sensors {
    /// Reads the files, and returns the sensors of the configured profiles.
    ///
    /// # Errors
    /// A file cannot be read or is invalid, or no sensor has one of the profiles.
    pub fn read(&self) -> Result<Vec<Sensor>, FileError> {
        let mut sensors = sensors::read_all(&self.files)?;
        sensors.retain(|sensor| sensor.belongs_to(&self.profiles));
        match self.files.last() {
            Some(file) if sensors.is_empty() => {
                let message = "no sensor has one of the profiles in sensors.profiles".to_owned();
                let problem = sensors::Problem { line: None, key: String::new(), message };
                Err(FileError::Bad { file: file.clone(), problem })
            }
            _ => Ok(sensors),
        }
    }
}

section! {
    /// `metrics.*`.
    pub struct Metrics {
        /// Where [metrics for Prometheus](metrics.md) are served: a loopback address and port, such as `127.0.0.1:9479`,
        /// or a Unix socket, such as `unix:/run/socktrail.sock`. If not set, they are not served.
        listen: Option<Listen> = None,
    }
}

/// The address that metrics are served at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Listen {
    /// A loopback address and port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl TryFrom<String> for Listen {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            return Ok(Self::Unix(path.into()));
        }
        let address: Result<SocketAddr, _> = text.parse();
        match address {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Tcp(address)),
            Ok(_) => {
                Err("expected a loopback address, such as 127.0.0.1:9479; other hosts can be served through a proxy")
            }
            Err(_) => Err("expected an address and port, such as 127.0.0.1:9479, or unix:/run/socktrail.sock"),
        }
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        match listen {
            Listen::Tcp(address) => address.to_string(),
            Listen::Unix(path) => format!("unix:{}", path.display()),
        }
    }
}

section! {
    /// `output.*`. Several outputs may be on at once.
    pub struct Outputs {
        /// How much memory the documents that wait for one output may take.
        #[bounds(ByteSize(1 << 20))]
        queue_size: ByteSize = ByteSize(32 << 20),
    } with {
        /// Standard output
        stdout: Stdout,
        /// A file
        file: FileOutput,
        /// Elasticsearch or OpenSearch
        elasticsearch: Elasticsearch,
    }
}

impl Outputs {
    /// The outputs that are on.
    pub fn enabled(&self) -> impl Iterator<Item = OutputKind> {
        let stdout = self.stdout.enabled.then_some(OutputKind::Stdout);
        let file = self.file.options().map(OutputKind::File);
        let elasticsearch = (!self.elasticsearch.hosts.is_empty()).then_some(OutputKind::Elasticsearch);
        iter::empty().chain(stdout).chain(file).chain(elasticsearch)
    }
}

/// An output that is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputKind {
    /// Standard output.
    Stdout,
    /// A file, written with these options.
    File(FileOptions),
    /// Elasticsearch or OpenSearch.
    Elasticsearch,
}

impl OutputKind {
    /// Its name in the configuration, in metrics and in the log.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::File(_) => "file",
            Self::Elasticsearch => "elasticsearch",
        }
    }
}

section! {
    /// `output.stdout.*`.
    pub struct Stdout {
        /// Whether to write documents to standard output, one per line.
        enabled: bool = false,
    }
}

section! {
    /// `output.file.*`.
    pub struct FileOutput {
        /// The file to write documents to, one per line. If not set, this output is off.
        path: Option<PathBuf> = None,
        /// The file is rotated before it grows larger than this, unless a single batch of documents is larger.
        #[bounds(ByteSize(1 << 10))]
        #[needs("output.file.path")]
        rotate_size: ByteSize = ByteSize(100 << 20),
        /// The file is rotated this long after it was opened. If not set, time does not matter.
        #[needs("output.file.path")]
        rotate_every: Option<Time> = None,
        /// How many rotated files to keep.
        #[needs("output.file.path")]
        keep: usize = 7,
        /// Whether to compress rotated files with gzip.
        #[needs("output.file.path")]
        gzip: bool = false,
        /// When to flush the file to disk (`fdatasync(2)`): `never`, `always` (after each batch of documents), or a time
        /// after which written documents are flushed at the latest.
        #[needs("output.file.path")]
        #[serde(with = "super::values::text")]
        sync: FileSync = FileSync(SyncPolicy::Every(Duration::from_secs(1))),
    }
}

impl FileOutput {
    /// The options of the output, if it is on.
    pub fn options(&self) -> Option<FileOptions> {
        Some(FileOptions {
            path: self.path.clone()?,
            rotate_size: self.rotate_size.0,
            rotate_every: self.rotate_every.map(Duration::from),
            keep: self.keep,
            gzip: self.gzip,
            sync: self.sync.0,
        })
    }
}

/// `output.file.sync`: `never`, `always`, or a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSync(pub SyncPolicy);

impl FromStr for FileSync {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        Ok(Self(match text {
            "never" => SyncPolicy::Never,
            "always" => SyncPolicy::Always,
            time => SyncPolicy::Every(time.parse::<Time>()?.into()),
        }))
    }
}

impl fmt::Display for FileSync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            SyncPolicy::Never => f.write_str("never"),
            SyncPolicy::Always => f.write_str("always"),
            SyncPolicy::Every(time) => Time::from(time).fmt(f),
        }
    }
}
