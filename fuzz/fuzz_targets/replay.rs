//! Replays any bytes as a recording: `cargo fuzz run replay`.
//!
//! With a stable compiler: `RUSTC_BOOTSTRAP=1 cargo fuzz run replay`. Seeds: `python3 fuzz/seeds.py fuzz/corpus`.

#![no_main]

mod documents;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    documents::replay(data);
});
