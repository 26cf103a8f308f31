//! What only a kernel can show. Needs root, kprobes, and a machine that does nothing else; one test at a time:
//! `cargo test --package socktrail-kprobes --test kernel -- --ignored --test-threads 1`. `cargo vm test kprobes::` runs
//! them in a guest.

mod cpus;
mod help;
mod limits;
mod probes;
mod rings;
mod sweeping;
