//! Conversion of flows and events to documents and lines of text: ECS, MITRE's CAR, the events of Tracee, and text for terminals.
//! These modules do no I/O.

pub mod car;
pub mod ecs;
pub mod event_text;
pub mod json;
pub mod text;
pub mod tracee;
