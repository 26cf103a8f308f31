//! Configuration: what is built in, under what a file says, under the environment, under the command line.
//!
//! ```text
//! built-in values < file (YAML or TOML) < environment (SOCKTRAIL_…) < command line (--set KEY=VALUE)
//! ```
//!
//! A key is written with dots (`socket.dns.enabled: true`) or nested (`socket: {dns: {enabled: true}}`), so that the
//! lines of an `auditbeat.yml` that begin with `socket.` can be pasted in. What is built in is what
//! [`Config::default`] says, and that takes it from the options of the parts that are configured: there is no list of
//! defaults beside the structures themselves. What a key is about, in the words of the documentation, says [`mod@reference`].
//!
//! Every mistake is reported, not only the first, each with its place and its key.

mod check;
mod elasticsearch;
mod error;
mod file;
mod keys;
mod load;
mod options;
mod outputs;
pub mod reference;
mod setting;
mod toml;
mod values;
mod yaml;

pub use elasticsearch::{Backoff, Elasticsearch, Spool, Ssl};
pub use error::{ConfigError, Problem};
pub use load::{Loaded, Loader, Origin, Resolved};
pub use options::{AfPacket, Config, Dns, DnsType, Document, Socket};
pub use outputs::{Agent, Events, FileOutput, Listen, Metrics, OutputKind, Outputs, Sensors, Stdout, Sync};
pub use values::{Secret, Size, SizeError, Time, TimeError};
