//! Entries of any bytes in sound blocks, behind the probes of a real recording, so that samples reach the state
//! machine: `cargo fuzz run entries`.
//!
//! With a stable compiler: `RUSTC_BOOTSTRAP=1 cargo fuzz run entries`. Seeds: `python3 fuzz/seeds.py fuzz/corpus`.

#![no_main]

mod documents;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use socktrail::recording::fuzzing::{head, seal};

/// A header, and the probes of a 6.1 kernel.
static HEAD: LazyLock<Vec<u8>> =
    LazyLock::new(|| head(include_bytes!("../../tests/data/recordings/6.1-x86_64.strec")));

fuzz_target!(|data: &[u8]| {
    documents::replay(&seal(&[&HEAD, data].concat()).expect("memory takes everything"));
});
