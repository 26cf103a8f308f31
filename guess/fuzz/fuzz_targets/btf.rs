//! Reads any bytes as type information: `cargo fuzz run btf` in `guess/`.
//!
//! With a stable compiler: `RUSTC_BOOTSTRAP=1 cargo fuzz run btf`. A seed: the head of `/sys/kernel/btf/vmlinux`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use socktrail_guess::find_in_btf;

fuzz_target!(|data: &[u8]| {
    if let Ok(found) = find_in_btf(data) {
        for (key, argument) in found.layout.arguments() {
            assert!(argument.position > 0, "{key}");
        }
    }
});
