//! `vm record`: recordings of the demo's traffic on each kernel of the matrix, for tests without a kernel.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::binaries::{Profile, Program, socktrail_here, workspace};
use crate::demo;
use crate::guest::{Guest, Outcome};
use crate::matrix::{Arch, Kernel, MATRIX};
use crate::options::{MachineOptions, RecordOptions};

/// The folder of recordings in the repository.
const FOLDER: &str = "tests/data/recordings";
/// The size limit of a recording, because every clone of the repository has it.
const MAX_BYTES: u64 = 64 << 10;

/// Records and replays on each kernel; the status is 0 or that of the first guest that failed.
pub fn run(options: &RecordOptions) -> Result<u8> {
    let folder = workspace().join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    for (kernel, arch) in machines(options).filter(|_| !options.replay_only) {
        let file = folder.join(format!("{kernel}-{arch}.strec"));
        let outcome = record(options, kernel, arch, &file)?;
        if outcome != Outcome::Ended(0) {
            eprintln!("vm: nothing was recorded on {kernel} ({arch}): {outcome}");
            return Ok(outcome.exit_status());
        }
    }
    for file in recordings(&folder, options)? {
        let documents = socktrail_here(&["replay", "--format", "ecs", &file.display().to_string()])?;
        ensure!(!documents.is_empty(), "the recording {} has no flow", file.display());
        let expected = file.with_extension("json");
        fs::write(&expected, &documents).with_context(|| format!("write {}", expected.display()))?;
        eprintln!("vm: {}: {} documents", file.display(), documents.lines().count());
    }
    Ok(0)
}

fn machines(options: &RecordOptions) -> impl Iterator<Item = (Kernel, Arch)> {
    MATRIX.iter().copied().filter(|(kernel, arch)| is_selected(options, &format!("{kernel}-{arch}")))
}

/// The existing recordings, including those of kernels outside the matrix.
fn recordings(folder: &Path, options: &RecordOptions) -> Result<Vec<PathBuf>> {
    let reading = || format!("read {}", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        if path.extension().is_some_and(|end| end == "strec") && name.is_some_and(|name| is_selected(options, name)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether the options select the recording with this name, `KERNEL-ARCH`.
fn is_selected(options: &RecordOptions, name: &str) -> bool {
    let is_of = |kernel: &Kernel| name.strip_prefix(&kernel.to_string()).is_some_and(|rest| rest.starts_with('-'));
    (options.kernels.is_empty() || options.kernels.iter().any(is_of))
        && options.arch.is_none_or(|arch| name.ends_with(&format!("-{arch}")))
}

/// Runs the demo's script with `socktrail record`, and copies the recording into the repository.
fn record(options: &RecordOptions, kernel: Kernel, arch: Arch, file: &Path) -> Result<Outcome> {
    let machine = MachineOptions::standard(kernel, arch);
    let out = TempDir::new().context("create a temporary folder")?;
    let guest = Guest {
        machine: &machine,
        packages: &demo::PACKAGES.iter().map(ToString::to_string).collect::<Vec<_>>(),
        programs: &[Program::Socktrail],
        profile: Profile::Guest,
        additions: &[],
        out: Some(out.path()),
        timeout: options.timeout,
        command: &demo::script("record /out/recording"),
    };
    let outcome = guest.boot(Box::new(io::stdout()), Box::new(io::stderr()))?;
    if outcome == Outcome::Ended(0) {
        let made = out.path().join("recording");
        let length = fs::metadata(&made).context("the guest left no recording")?.len();
        ensure!(length < MAX_BYTES, "the recording has {length} bytes, more than {MAX_BYTES}");
        fs::copy(&made, file).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(outcome)
}
