//! Reads a process from a `/proc` directory whose files have arbitrary contents: `cargo fuzz run proc`.
//!
//! With a stable compiler: `RUSTC_BOOTSTRAP=1 cargo fuzz run proc`. Seeds: `python3 fuzz/seeds.py fuzz/corpus`.
//! Set `TMPDIR` to a tmpfs, because the files are written again for each input.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use socktrail::source::proc::fuzzing::read;

/// The files under `/proc/PID` that hold text to parse.
const FILES: [&str; 8] = ["stat", "status", "cmdline", "cgroup", "net/tcp", "net/tcp6", "net/udp", "net/udp6"];

/// The parser takes the PID from the name of the directory.
const PID: &str = "4711";

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("socktrail-fuzz-{}/{PID}", std::process::id()));
    fs::create_dir_all(folder.join("net")).expect("the folder can be created");
    folder
});

/// Splits the input into files. Before each are three bytes: its index in `FILES` (modulo their number), and its length as a
/// little-endian `u16`.
fn files(mut data: &[u8]) -> impl Iterator<Item = (&'static str, &[u8])> {
    std::iter::from_fn(move || {
        let (&[index, low, high], rest) = data.split_first_chunk::<3>()?;
        let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (bytes, rest) = rest.split_at(length);
        data = rest;
        Some((FILES[usize::from(index) % FILES.len()], bytes))
    })
}

fuzz_target!(|data: &[u8]| {
    for name in FILES {
        let _ = fs::remove_file(FOLDER.join(name)); // left by the previous input
    }
    let mut lines = 0;
    for (name, bytes) in files(data) {
        fs::write(FOLDER.join(name), bytes).expect("the file can be written");
        lines += bytes.split(|byte| *byte == b'\n').count();
    }
    let (process, socket_count) = read(FOLDER.clone());
    assert!(socket_count <= lines, "each socket comes from one line");
    if let Some(process) = process {
        assert!(process.parent_pid != Some(0), "a process without a parent has no parent PID");
        let details = process.image.details.get().expect("`read` fills in the details");
        assert!(details.container_id.as_ref().is_none_or(|id| !id.is_empty()));
        assert_eq!(details.args.as_ref(), Some(&process.image.args));
    }
});
