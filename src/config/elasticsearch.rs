//! The sections `output.elasticsearch` and `spool`.

use std::path::PathBuf;
use std::time::Duration;

use super::section::section;
use super::values::{ByteSize, Secret};
use crate::model::units::Time;
use crate::output::SpoolOptions;
use crate::output::elasticsearch::{ClientOptions, Credentials, ElasticsearchOptions, TlsOptions};

section! {
    /// `output.elasticsearch.*`. Options that Beats also has have the same names as there.
    pub struct Elasticsearch {
        /// The URLs of the servers, such as `https://host:9200`. If one fails, the next is tried. If empty, this output
        /// is off.
        hosts: Vec<String> = Vec::new(),
        /// The index or data stream to write to. `{kind}` is replaced by the kind of document: `flow`, `event`, `sensor`
        /// or `loss`.
        #[needs("output.elasticsearch.hosts")]
        index: String = "logs-socktrail.{kind}-default".to_owned(),
        /// Whether `socktrail setup` makes `index` a data stream. Only data streams get the lifecycle policy.
        data_stream: bool = true,
        /// The user to authenticate as.
        #[needs("output.elasticsearch.hosts")]
        username: String = String::new(),
        /// The user's password. Better set it in the environment, as `SOCKTRAIL_OUTPUT_ELASTICSEARCH_PASSWORD`.
        #[needs("output.elasticsearch.hosts")]
        password: Secret = Secret::default(),
        /// An API key, used instead of a user: `id:key`, or its Base64 encoding. Better set it in the environment, as
        /// `SOCKTRAIL_OUTPUT_ELASTICSEARCH_API_KEY`.
        #[needs("output.elasticsearch.hosts")]
        api_key: Secret = Secret::default(),
        /// The gzip level of requests. With 0, they are not compressed.
        #[bounds(0, 9)]
        compression_level: u32 = 1,
        /// The maximum number of documents in one bulk request. Together they have at most 5 MiB; a document that is larger
        /// is sent alone.
        #[bounds(1, 100_000)]
        bulk_max_size: usize = 1600,
        /// The timeout of a request.
        timeout: Time = Duration::from_secs(90).into(),
    } with {
        /// Waits between retries
        backoff: Backoff,
        /// TLS
        ssl: Ssl,
    }
}

section! {
    /// `output.elasticsearch.backoff.*`.
    pub struct Backoff {
        /// How long to wait before the first retry of a failed request. The wait doubles with each retry.
        init: Time = Duration::from_secs(1).into(),
        /// The longest wait between retries.
        max: Time = Duration::from_secs(60).into(),
    }
}

section! {
    /// `output.elasticsearch.ssl.*`.
    pub struct Ssl {
        /// PEM files with the certificates of trusted authorities. If empty, the host's trusted authorities are used.
        #[needs("output.elasticsearch.hosts")]
        certificate_authorities: Vec<PathBuf> = Vec::new(),
        /// The SHA-256 fingerprint, in hexadecimal, of a certificate to trust. The server must present this certificate:
        /// as its own, or as that of an authority in its chain.
        #[needs("output.elasticsearch.hosts")]
        ca_trusted_fingerprint: String = String::new(),
        /// A PEM file with the client certificate that is presented to the server.
        #[needs("output.elasticsearch.hosts")]
        certificate: Option<PathBuf> = None,
        /// A PEM file with the private key of the client certificate.
        key: Option<PathBuf> = None,
    }
}

section! {
    /// `spool.*`: where documents wait on disk until a server accepts them.
    pub struct Spool {
        /// The directory of the spool. It is created with mode 0700 if it is missing.
        path: PathBuf = "/var/lib/socktrail/spool".into(),
        /// The maximum size of the spool. When it is full, the oldest segment is dropped, and its documents are counted
        /// as lost.
        max_size: ByteSize = ByteSize(1 << 30),
        /// The size of a segment, which is one file of the spool.
        #[bounds(ByteSize(64 << 10), ByteSize(256 << 20))]
        segment_size: ByteSize = ByteSize(16 << 20),
        /// How often documents are flushed to disk (`fdatasync(2)`). A power failure loses at most those of one interval.
        sync: Time = Duration::from_secs(1).into(),
    }
}

impl Elasticsearch {
    /// The options of the HTTP client.
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

    /// The options of the output. Up to `memory` bytes of documents wait in memory while they cannot be written to the disk.
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
    /// The bytes of `ca_trusted_fingerprint`; `None` if it is not a SHA-256 in hexadecimal. Colons and spaces between the
    /// digits are ignored.
    pub(super) fn fingerprint(&self) -> Option<[u8; 32]> {
        let characters = self.ca_trusted_fingerprint.chars().filter(|character| !matches!(character, ':' | ' '));
        let digits: Option<Vec<u8>> = characters.map(|character| Some(character.to_digit(16)? as u8)).collect();
        let digits: [u8; 64] = digits?.try_into().ok()?;
        Some(std::array::from_fn(|index| digits[2 * index] << 4 | digits[2 * index + 1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(text: &str) -> Option<[u8; 32]> {
        Ssl { ca_trusted_fingerprint: text.to_owned(), ..Ssl::default() }.fingerprint()
    }

    #[test]
    fn a_fingerprint_has_64_digits() {
        assert_eq!(fingerprint(&"aF".repeat(32)), Some([0xaf; 32]));
        assert_eq!(fingerprint(&["0A"; 32].join(":")), Some([0x0a; 32]));
        for wrong in ["", "12ab", &"a".repeat(63), &"a".repeat(65), &"+a".repeat(32), &"ag".repeat(32)] {
            assert_eq!(fingerprint(wrong), None, "{wrong}");
        }
    }
}
