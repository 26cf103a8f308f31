//! What can be configured of outputs and of the agent itself.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use std::{fmt, iter};

use serde::{Deserialize, Serialize};

use super::elasticsearch::Elasticsearch;
use super::values::{Size, Time, TimeError};
use crate::control::CONTROL_PATH;
use crate::output::{FileOptions, SyncPolicy};
use crate::sensors::{self, FileError, Sensor};
use crate::socket_event::Actions;
use crate::socket_event::condition::{Condition, ConditionError};

/// `agent.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Agent {
    /// `agent.name` in documents; empty: the host's name.
    pub name: String,
    /// How much less of the CPU than others get the agent asks for: 0 to 19, `nice(2)`.
    pub nice: u8,
    /// Whether the agent gives up, once it watches, what it does not need any more: capabilities, system calls, files.
    pub harden: bool,
    /// How long the end may take: what is not sent by then stays in the spool, or is counted as lost.
    pub shutdown_timeout: Time,
}

impl Default for Agent {
    fn default() -> Self {
        Self { name: String::new(), nice: 0, harden: true, shutdown_timeout: Duration::from_secs(10).into() }
    }
}

/// `events.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Events {
    /// Calls on sockets that become documents of their own: `create`, `bind`, `listen`, `accept`, `connect`,
    /// `setsockopt`, `close`; none: no such documents.
    pub actions: Vec<String>,
    /// Only events that fulfil this [condition](Condition); none: all of them.
    #[serde(rename = "where")]
    pub condition: Option<String>,
}

impl Events {
    /// The set of them; a name that is none adds nothing.
    pub fn set(&self) -> Actions {
        self.actions.iter().filter_map(|name| Actions::named(name)).fold(Actions::NONE, Actions::or)
    }

    /// The condition, understood.
    ///
    /// # Errors
    /// It is none, and where.
    pub fn condition(&self) -> Result<Option<Condition>, ConditionError> {
        self.condition.as_deref().map(str::parse).transpose()
    }
}

/// `sensors.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Sensors {
    /// Sensor files, whose sensors' events become documents of their own; none: no sensors.
    pub files: Vec<PathBuf>,
    /// Only sensors of these profiles, and those that name none; none: all sensors.
    pub profiles: Vec<String>,
    /// Where locked events are unlocked.
    pub control: PathBuf,
}

impl Default for Sensors {
    fn default() -> Self {
        Self { files: Vec::new(), profiles: Vec::new(), control: CONTROL_PATH.into() }
    }
}

impl Sensors {
    /// Reads the files: the sensors that are wanted.
    ///
    /// # Errors
    /// A file cannot be read or makes no sense, or no sensor is left.
    pub fn read(&self) -> Result<Vec<Sensor>, FileError> {
        let mut sensors = sensors::read_all(&self.files)?;
        sensors.retain(|sensor| sensor.is_of(&self.profiles));
        match self.files.last() {
            Some(file) if sensors.is_empty() => {
                let message = "no sensor is of one of sensors.profiles".to_owned();
                let problem = sensors::Problem { line: None, key: String::new(), message };
                Err(FileError::Bad { file: file.clone(), problem })
            }
            _ => Ok(sensors),
        }
    }
}

/// `metrics.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Metrics {
    /// Where numbers are served for Prometheus: an address of this host, or `unix:PATH`; none: nowhere.
    pub listen: Option<Listen>,
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Listen {
    /// A loopback address and port.
    Tcp(SocketAddr),
    /// A socket in the file system.
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
            Ok(_) => Err("expected an address of this host alone, as in 127.0.0.1:9479: put a proxy before it"),
            Err(_) => Err("expected an address and port, as in 127.0.0.1:9479, or unix:/run/socktrail.sock"),
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

/// `output.*`. Several may be on at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Outputs {
    /// Bytes of documents that may wait in memory for each output.
    pub queue_size: Size,
    /// Standard output.
    pub stdout: Stdout,
    /// A file.
    pub file: FileOutput,
    /// Elasticsearch or OpenSearch.
    pub elasticsearch: Elasticsearch,
}

impl Default for Outputs {
    fn default() -> Self {
        Self {
            queue_size: Size(32 << 20),
            stdout: Stdout::default(),
            file: FileOutput::default(),
            elasticsearch: Elasticsearch::default(),
        }
    }
}

impl Outputs {
    /// Those that are on.
    pub fn enabled(&self) -> impl Iterator<Item = OutputKind> {
        let stdout = self.stdout.enabled.then_some(OutputKind::Stdout);
        let file = self.file.options().map(OutputKind::File);
        let elasticsearch = (!self.elasticsearch.hosts.is_empty()).then_some(OutputKind::Elasticsearch);
        iter::empty().chain(stdout).chain(file).chain(elasticsearch)
    }
}

/// Where documents can go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputKind {
    /// Standard output.
    Stdout,
    /// A file, written with these options.
    File(FileOptions),
    /// A cluster of Elasticsearch.
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

/// `output.stdout.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Stdout {
    /// Whether documents go to standard output, one a line.
    pub enabled: bool,
}

/// `output.file.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct FileOutput {
    /// The file; none: the output is off.
    pub path: Option<PathBuf>,
    /// A file is done with before it would be larger.
    pub rotate_size: Size,
    /// A file is done with when it is so old; none: however old.
    pub rotate_every: Option<Time>,
    /// How many files that are done with are kept.
    pub keep: usize,
    /// Whether they are packed.
    pub gzip: bool,
    /// When the disk is to have what was written.
    #[serde(with = "super::values::text")]
    pub sync: Sync,
}

impl Default for FileOutput {
    fn default() -> Self {
        Self {
            path: None,
            rotate_size: Size(100 << 20),
            rotate_every: None,
            keep: 7,
            gzip: false,
            sync: Sync(SyncPolicy::Every(Duration::from_secs(1))),
        }
    }
}

impl FileOutput {
    /// What the output is to do, if it is on.
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

/// `never`, `always`, or a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sync(pub SyncPolicy);

impl FromStr for Sync {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        Ok(Self(match text {
            "never" => SyncPolicy::Never,
            "always" => SyncPolicy::Always,
            time => SyncPolicy::Every(time.parse::<Time>()?.into()),
        }))
    }
}

impl fmt::Display for Sync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            SyncPolicy::Never => f.write_str("never"),
            SyncPolicy::Always => f.write_str("always"),
            SyncPolicy::Every(time) => Time::from(time).fmt(f),
        }
    }
}
