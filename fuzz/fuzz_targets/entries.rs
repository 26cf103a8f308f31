//! Replays a recording of arbitrary entries: `cargo fuzz run entries`. The header and the event formats before them are
//! those of a real recording, so that samples can be decoded and reach the state machine.
//!
//! With a stable compiler: `RUSTC_BOOTSTRAP=1 cargo fuzz run entries`. Seeds: `python3 fuzz/seeds.py fuzz/corpus`.

#![no_main]

mod documents;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use socktrail::recording::fuzzing::{block_around, head};

/// The header and the event formats of a recording on a 6.1 kernel.
static HEAD: LazyLock<Vec<u8>> = LazyLock::new(|| head(include_bytes!("../../tests/data/recordings/6.1-x86_64.strec")));

fuzz_target!(|data: &[u8]| {
    documents::replay(&block_around(&[&HEAD, data].concat()).expect("writing to memory does not fail"));
});
