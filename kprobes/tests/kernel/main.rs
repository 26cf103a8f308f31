//! Tests against the running kernel. They need root, kprobes, and a machine that does nothing else, and run one at a time:
//! `cargo test --package socktrail-kprobes --test kernel -- --ignored --test-threads 1`. `cargo vm test kprobes::` runs
//! them in a guest.

mod cpus;
mod help;
mod limits;
mod outputs;
mod probes;
mod programs;
mod rings;
mod sweeping;
