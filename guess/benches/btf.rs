//! Measures the time and the memory that it takes to find all keys of the catalog in the type information (BTF) of the
//! running kernel, or in a file: `cargo bench -p socktrail-guess --bench btf [-- PATH]`.
#![allow(clippy::print_stdout)]

use socktrail_guess::find_in_btf;
use std::time::{Duration, Instant};

const RUNS: usize = 50;

fn main() {
    let path = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let path = path.unwrap_or_else(|| "/sys/kernel/btf/vmlinux".to_owned());
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) => return println!("nothing was measured: {path}: {error}"),
    };
    let before = peak_memory();
    let found = find_in_btf(&bytes).expect("the file has the type information of a kernel");
    let memory = peak_memory() - before;
    let read_time = fastest(|| std::fs::read(&path).expect("it was just read").len());
    let find_time = fastest(|| find_in_btf(&bytes).expect("it was just parsed").missing.len());
    println!("{path}: {} KiB", bytes.len() / 1024);
    println!(
        "fastest of {RUNS} runs: {read_time:?} to read it, {find_time:?} to find all keys; peak memory grew by {memory} KiB"
    );
    for missing in &found.missing {
        println!("not found: {}: {}", missing.key, missing.reason);
    }
}

fn fastest(mut run: impl FnMut() -> usize) -> Duration {
    let time = |_| {
        let began = Instant::now();
        std::hint::black_box(run());
        began.elapsed()
    };
    (0..RUNS).map(time).min().expect("at least one run")
}

/// The peak memory of this process in KiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).expect("`VmHWM` has a number")
}
