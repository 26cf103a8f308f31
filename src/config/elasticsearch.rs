//! What can be configured of Elasticsearch and of the spool before it.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::values::{Secret, Size, Time};
use crate::output::SpoolOptions;
use crate::output::elasticsearch::{ClientOptions, Credentials, ElasticsearchOptions, TlsOptions};

/// `output.elasticsearch.*`. Names are those of Beats where it has the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Elasticsearch {
    /// Where to, as in `https://host:9200`; none: the output is off. When one fails, the next is asked.
    pub hosts: Vec<String>,
    /// The index or data stream; `{kind}` stands for `flow`, `event`, `sensor` or `loss`.
    pub index: String,
    /// Whether it is a data stream: what `socktrail setup` makes of it.
    pub data_stream: bool,
    /// A user.
    pub username: String,
    /// The user's password.
    pub password: Secret,
    /// An API key in place of a user, as `id:key` or encoded.
    pub api_key: Secret,
    /// How much requests are packed: 0, not at all, to 9.
    pub compression_level: u32,
    /// Documents in one request at most.
    pub bulk_max_size: usize,
    /// How long a request may take.
    pub timeout: Time,
    /// Waits after failures.
    pub backoff: Backoff,
    /// TLS.
    pub ssl: Ssl,
}

/// `output.elasticsearch.backoff.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Backoff {
    /// The first wait.
    pub init: Time,
    /// The longest wait.
    pub max: Time,
}

/// `output.elasticsearch.ssl.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Ssl {
    /// Files (PEM) of certificates of authorities; none: those of the host.
    pub certificate_authorities: Vec<PathBuf>,
    /// The SHA-256, in hexadecimal, of a certificate that the server shows.
    pub ca_trusted_fingerprint: String,
    /// Our certificate (PEM).
    pub certificate: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
}

/// `spool.*`: where documents wait for a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Spool {
    /// The folder.
    pub path: PathBuf,
    /// Bytes at most; then the oldest documents are dropped, and counted.
    pub max_size: Size,
    /// Bytes that are dropped at once.
    pub segment_size: Size,
    /// After how long at the latest the disk has what was taken.
    pub sync: Time,
}

impl Default for Elasticsearch {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            index: "logs-socktrail.{kind}-default".to_owned(),
            data_stream: true,
            username: String::new(),
            password: Secret::default(),
            api_key: Secret::default(),
            compression_level: 1,
            bulk_max_size: 1600,
            timeout: Duration::from_secs(90).into(),
            backoff: Backoff::default(),
            ssl: Ssl::default(),
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { init: Duration::from_secs(1).into(), max: Duration::from_secs(60).into() }
    }
}

impl Default for Spool {
    fn default() -> Self {
        Self {
            path: "/var/lib/socktrail/spool".into(),
            max_size: Size(1 << 30),
            segment_size: Size(16 << 20),
            sync: Duration::from_secs(1).into(),
        }
    }
}

impl Elasticsearch {
    /// How to talk to the servers.
    pub fn client(&self) -> ClientOptions {
        let credentials = if !self.api_key.is_empty() {
            Credentials::ApiKey(self.api_key.reveal().to_owned())
        } else if !self.username.is_empty() {
            Credentials::Basic { username: self.username.clone(), password: self.password.reveal().to_owned() }
        } else {
            Credentials::None
        };
        let tls = TlsOptions {
            certificate_authorities: self.ssl.certificate_authorities.clone(),
            fingerprint: self.ssl.fingerprint(),
            certificate: self.ssl.certificate.clone().zip(self.ssl.key.clone()),
        };
        ClientOptions {
            hosts: self.hosts.clone(),
            credentials,
            tls,
            compression_level: self.compression_level,
            timeout: self.timeout.into(),
        }
    }

    /// What the output is to do; `memory` bytes of documents may wait while the disk cannot take them.
    pub fn options(&self, spool: &Spool, memory: usize) -> ElasticsearchOptions {
        ElasticsearchOptions {
            client: self.client(),
            index: self.index.clone(),
            bulk_max_size: self.bulk_max_size,
            backoff_init: self.backoff.init.into(),
            backoff_max: self.backoff.max.into(),
            spool: SpoolOptions {
                path: spool.path.join("elasticsearch"),
                max_size: spool.max_size.0,
                segment_size: spool.segment_size.0,
                memory,
            },
            sync: spool.sync.into(),
            dead_letters: spool.path.join("elasticsearch/rejected.json"),
        }
    }
}

impl Ssl {
    /// The fingerprint as bytes, if it is one.
    pub(super) fn fingerprint(&self) -> Option<[u8; 32]> {
        let digits: Vec<u8> = self.ca_trusted_fingerprint.bytes().filter(|byte| !matches!(byte, b':' | b' ')).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
        bytes?.try_into().ok()
    }
}
