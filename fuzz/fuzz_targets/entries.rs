//! Replays a recording whose entries have arbitrary contents. They follow the event formats of a real recording, so that
//! samples reach the state machine: `cargo fuzz run entries`.
//!
//! With a stable compiler: `RUSTC_BOOTSTRAP=1 cargo fuzz run entries`. Seeds: `python3 fuzz/seeds.py fuzz/corpus`.

#![no_main]

mod documents;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use socktrail::recording::fuzzing::{block_around, head};

/// A header, and the event formats of a 6.1 kernel.
static HEAD: LazyLock<Vec<u8>> =
    LazyLock::new(|| head(include_bytes!("../../tests/data/recordings/6.1-x86_64.strec")));

fuzz_target!(|data: &[u8]| {
    documents::replay(&block_around(&[&HEAD, data].concat()).expect("memory takes everything"));
});
