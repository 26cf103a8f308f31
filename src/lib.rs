//! Sees every TCP and UDP flow of a Linux host and whose it is.

pub mod agent;
mod bounded;
pub mod clock;
pub mod config;
pub mod control;
pub mod ecs;
mod error;
pub mod event;
pub mod filter;
pub mod flow;
pub mod host;
pub mod monitor;
pub mod output;
pub mod probes;
#[cfg(not(fuzzing))]
mod proc;
#[cfg(fuzzing)]
pub mod proc;
pub mod process;
pub mod recording;
pub mod sensors;
pub mod socket_event;
pub mod state;
pub mod survey;
pub mod switches;
pub mod users;

pub use error::Error;
