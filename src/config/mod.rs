//! Configuration: defaults, overridden by a file, the environment and the command line, in this order.
//!
//! ```text
//! defaults < file (YAML or TOML) < environment (SOCKTRAIL_…) < command line (--set KEY=VALUE)
//! ```
//!
//! A key is written with dots (`socket.dns.enabled: true`) or nested (`socket: {dns: {enabled: true}}`), so that the
//! lines of an `auditbeat.yml` that begin with `socket.` can be pasted in.
//!
//! An option is declared once, in `options.rs`, `outputs.rs` or `elasticsearch.rs`, by the macro of `section.rs`: name,
//! type, default, bounds, description, flag, and which field of the library's options it sets. The documentation and the
//! example ([`mod@reference`]) and the flags of the command line (`keys`) are made from the declarations. `check.rs` checks
//! what involves several keys.
//!
//! [`figment`] merges the sources and knows which one a value comes from. This module reads files itself, because figment
//! does not know lines, and the environment, because figment does not know the types of keys.
//!
//! All mistakes are reported, not only the first, each with its place and key.

mod check;
mod elasticsearch;
mod error;
mod file;
mod keys;
mod load;
mod options;
mod outputs;
pub mod reference;
mod section;
mod setting;
mod toml;
mod values;
mod yaml;

pub use self::values::{ByteSize, ByteSizeError, Secret};
pub use crate::model::units::{Time, TimeError};
pub use elasticsearch::{Backoff, Elasticsearch, Spool, Ssl};
pub use error::{ConfigError, Problem};
pub use keys::keys;
pub use load::{Loaded, Loader, Resolved};
pub use options::{AfPacket, Config, Dns, DnsType, Document, Socket};
pub use outputs::{Agent, Events, FileOutput, FileSync, Listen, Metrics, OutputKind, Outputs, Sensors, Stdout};
pub use section::{Flag, Key};
