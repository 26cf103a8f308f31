//! Parses any text as a sensor file, and compares its patterns with a tuple: `cargo fuzz run sensors`.
//!
//! With a stable compiler: `RUSTC_BOOTSTRAP=1 cargo fuzz run sensors`. Seeds: `python3 fuzz/seeds.py fuzz/corpus`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use socktrail::sensors::parse;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // YAML cannot contain the NUL that separates the two.
    let (file, tuple) = text.split_once('\0').unwrap_or((text, ""));
    match parse(file) {
        Ok(sensors) => {
            assert!((1..=64).contains(&sensors.len()));
            for sensor in sensors {
                assert!(!sensor.id.is_empty() && !sensor.id.contains('|'));
                for patterns in sensor.patterns.iter().chain([&sensor.ignore]) {
                    assert!(patterns.may_match(tuple) || !patterns.match_tuple(tuple));
                }
            }
        }
        Err(problem) => {
            // A carriage return alone ends a line as well (YAML 1.2, section 5.4).
            let lines = file.split(['\n', '\r']).count() as u64;
            assert!(problem.line.is_none_or(|line| (1..=lines + 1).contains(&line)), "{problem:?}");
            assert!(!problem.message.is_empty());
        }
    }
});
