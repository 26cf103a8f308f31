//! `net.socket` sensors: they report sockets that open and close, filtered by patterns, in sysinspect's form.
//!
//! [`read`] reads a sensor file, and an [`Engine`] turns [socket events](crate::model::socket_event) into [`SensorEvent`]s. The
//! engine may need names of hosts ([`Engine::take_wanted`]); a [`Resolver`] looks them up in its own threads.
//!
//! ```no_run
//! use std::time::{Duration, Instant};
//! use socktrail::monitor::{Monitor, Options, Received};
//! use socktrail::sensors::{self, Engine, Limits};
//! use socktrail::socket_event::Actions;
//!
//! let sensors = sensors::read("net-socket.yaml".as_ref())?;
//! let mut engine = Engine::new(sensors, std::process::id(), Limits::default());
//! let mut options = Options::default();
//! options.flows = false;
//! options.socket_events = Actions::SENSORS;
//! let monitor = Monitor::start(&options)?;
//! loop {
//!     match monitor.recv(Duration::from_millis(100)) {
//!         Received::Existing(sockets) => engine.existing(&sockets, Instant::now()),
//!         Received::Socket(event) => engine.ingest(&event, Instant::now()),
//!         Received::Ended => break,
//!         _ => {}
//!     }
//!     engine.take_events().iter().for_each(|event| println!("{}", event.eid));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod engine;
mod event;
mod locks;
mod pattern;
mod resolver;
mod reverse;
mod row;

pub use config::{Dns, FileError, LISTENER, Problem, Sensor, parse, read, read_all};
pub use engine::{Engine, Limits, SensorStats};
pub use event::{Data, ProcessFields, SensorAction, SensorEvent};
pub use pattern::{BadPattern, Pattern, Patterns};
pub use resolver::Resolver;
pub use reverse::ReverseLimits;
pub use row::Row;
