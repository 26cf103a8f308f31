//! Any bytes as the files of a process in `/proc`: `cargo fuzz run proc`.
//!
//! With a stable compiler: `RUSTC_BOOTSTRAP=1 cargo fuzz run proc`. Seeds: `python3 fuzz/seeds.py fuzz/corpus`.
//! The files are written to a folder in `TMPDIR`, best in memory.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use socktrail::source::proc::fuzzing::read;

/// What is read of a process.
const FILES: [&str; 8] = ["stat", "status", "cmdline", "cgroup", "net/tcp", "net/tcp6", "net/udp", "net/udp6"];

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("socktrail-fuzz-{}/4711", std::process::id()));
    fs::create_dir_all(folder.join("net")).expect("a folder to write to");
    folder
});

/// Each file comes behind three bytes: which, and its length in two.
fn files(mut data: &[u8]) -> impl Iterator<Item = (&'static str, &[u8])> {
    std::iter::from_fn(move || {
        let (&[which, low, high], rest) = data.split_first_chunk::<3>()?;
        let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (bytes, rest) = rest.split_at(length);
        data = rest;
        Some((FILES[usize::from(which) % FILES.len()], bytes))
    })
}

fuzz_target!(|data: &[u8]| {
    for name in FILES {
        let _ = fs::remove_file(FOLDER.join(name)); // of the round before
    }
    let mut lines = 0;
    for (name, bytes) in files(data) {
        fs::write(FOLDER.join(name), bytes).expect("a file to write");
        lines += bytes.split(|byte| *byte == b'\n').count();
    }
    let (process, sockets) = read(FOLDER.clone());
    assert!(sockets <= lines);
    if let Some(process) = process {
        assert!(process.parent_pid != Some(0));
        let details = process.image.details.get().expect("they were read along with it");
        assert!(details.container_id.as_ref().is_none_or(|id| !id.is_empty()));
        assert_eq!(details.args.as_ref(), Some(&process.image.args));
    }
});
