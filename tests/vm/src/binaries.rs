//! Builds the programs of this repository for a guest: statically linked, so that they need no libraries there.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use socktrail_vm::KPROBES_TESTS;

use crate::matrix::Arch;
use crate::process;

/// This Rust toolchain has no standard library for an architecture.
#[derive(Debug)]
pub struct NoTarget(Arch);

impl fmt::Display for NoTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "programs for {} cannot be built with this Rust toolchain", self.0)
    }
}

/// A program of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// The `socktrail` program.
    Socktrail,
    /// Process 1 of a guest.
    Init,
    /// The kernel tests.
    GuestTests,
    /// The kernel tests of the crate `socktrail-kprobes`.
    KprobesTests,
    /// Traffic for measurements.
    GuestBench,
    /// A program outside the workspace that uses the library.
    Embedding,
    /// An example of the library.
    Example(String),
}

impl Program {
    const fn package(&self) -> &'static str {
        match self {
            Self::Socktrail | Self::Example(_) => "socktrail",
            Self::Init | Self::GuestTests | Self::GuestBench => "socktrail-vm",
            Self::KprobesTests => "socktrail-kprobes",
            Self::Embedding => "embedding",
        }
    }

    /// Its manifest, if it is not in the workspace.
    const fn manifest(&self) -> Option<&'static str> {
        match self {
            Self::Embedding => Some("tests/embedding/Cargo.toml"),
            _ => None,
        }
    }

    fn binary(&self) -> &str {
        match self {
            Self::Socktrail => "socktrail",
            Self::Init => "vm-init",
            Self::GuestTests => "guest-tests",
            Self::KprobesTests => "kernel",
            Self::GuestBench => "guest-bench",
            Self::Embedding => "embedding",
            Self::Example(name) => name,
        }
    }
}

/// How programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// For tests: quick to build, and not too slow.
    Guest,
    /// As users build them.
    Release,
}

impl Profile {
    const fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Release => "release",
        }
    }
}

/// Builds programs; returns their paths, in the same order.
pub fn build(arch: Arch, profile: Profile, programs: &[Program]) -> Result<Vec<PathBuf>> {
    let target = target(arch)?;
    eprintln!("vm: building for the guest ({target})");
    let (outside, inside): (Vec<_>, Vec<_>) = programs.iter().partition(|program| program.manifest().is_some());
    let mut messages = cargo_build(&target, profile, None, &inside)?;
    for program in outside {
        messages.push_str(&cargo_build(&target, profile, program.manifest(), &[program])?);
    }
    programs
        .iter()
        .map(|program| {
            let built = executable(&messages, program.binary())
                .with_context(|| format!("no executable {} in cargo's messages", program.binary()))?;
            if *program == Program::KprobesTests { without_hash(&built) } else { Ok(built) }
        })
        .collect()
}

/// Copies a test program to the name that the guest's tests know, without cargo's hash.
fn without_hash(built: &Path) -> Result<PathBuf> {
    let copy = built.with_file_name(KPROBES_TESTS);
    fs::copy(built, &copy).with_context(|| format!("write {}", copy.display()))?;
    Ok(copy)
}

/// Builds programs of one workspace; returns cargo's messages.
fn cargo_build(target: &str, profile: Profile, manifest: Option<&str>, programs: &[&Program]) -> Result<String> {
    let mut cargo = Command::new(cargo());
    cargo
        .args(["build", "--quiet", "--profile", profile.name(), "--message-format", "json-render-diagnostics"])
        .args(["--target", target])
        .current_dir(workspace())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if target.ends_with("-gnu") {
        cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    }
    if let Some(manifest) = manifest {
        // Use the workspace's versions of dependencies.
        let lock = workspace().join(manifest).with_file_name("Cargo.lock");
        fs::copy(workspace().join("Cargo.lock"), &lock).with_context(|| format!("write {}", lock.display()))?;
        cargo.args(["--manifest-path", manifest, "--target-dir"]).arg(target_folder());
    }
    for program in programs {
        let kind = match program {
            Program::Example(_) => "--example",
            Program::KprobesTests => "--test",
            _ => "--bin",
        };
        cargo.args(["--package", program.package(), kind, program.binary()]);
    }
    let output = cargo.output().context("start cargo")?;
    if !output.status.success() {
        bail!("the guest's programs do not build for {target}, see above");
    }
    String::from_utf8(output.stdout).context("cargo's messages are not text")
}

/// The workspace's target directory. Other workspaces use it, too, so that common dependencies are built once.
fn target_folder() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The path of a built program in cargo's messages, one JSON object per line.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
        (message["target"]["name"] == name).then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    })
}

/// The target to build for: musl, or glibc if rustup cannot install musl for this machine's architecture.
fn target(arch: Arch) -> Result<String> {
    let musl = format!("{arch}-unknown-linux-musl");
    let Err(error) = ensure_target(&musl) else { return Ok(musl) };
    if arch.name() == env::consts::ARCH {
        eprintln!("vm: {error:#}; building with a static glibc instead");
        return Ok(format!("{arch}-unknown-linux-gnu"));
    }
    Err(error).context(NoTarget(arch))
}

/// Makes sure that the toolchain has a standard library for the target.
fn ensure_target(target: &str) -> Result<()> {
    let libraries = process::output(Command::new(rustc()).args(["--print", "target-libdir", "--target", target]))?;
    if Path::new(libraries.trim()).is_dir() {
        return Ok(());
    }
    process::visible(Command::new("rustup").args(["target", "add", target]))
        .with_context(|| format!("install Rust's standard library for {target}"))
}

/// The cargo that runs this program.
fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// The compiler that cargo uses.
fn rustc() -> PathBuf {
    env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from)
}

/// Builds socktrail for this machine, as quickly as possible; returns its path.
pub fn build_here() -> Result<PathBuf> {
    let mut cargo = Command::new(cargo());
    cargo
        .args(["build", "--quiet", "--package", "socktrail", "--bin", "socktrail"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(workspace())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = cargo.output().context("start cargo")?;
    if !output.status.success() {
        bail!("socktrail does not build, see above");
    }
    executable(&String::from_utf8_lossy(&output.stdout), "socktrail").context("no executable in cargo's messages")
}

/// Builds and runs socktrail on this machine; returns its standard output.
pub fn socktrail_here(arguments: &[&str]) -> Result<String> {
    let mut cargo = Command::new(cargo());
    cargo.args(["run", "--quiet", "--package", "socktrail", "--bin", "socktrail", "--"]).args(arguments);
    process::output(cargo.current_dir(workspace()))
}

/// The root of the repository.
pub fn workspace() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.join("../..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_cargo_messages() {
        let messages = r#"
            {"reason":"compiler-artifact","target":{"name":"socktrail"},"executable":null}
            {"reason":"compiler-artifact","target":{"name":"socktrail"},"executable":"/t/guest/socktrail"}
            {"reason":"build-finished","success":true}
        "#;
        assert_eq!(executable(messages, "socktrail"), Some("/t/guest/socktrail".into()));
        assert_eq!(executable(messages, "vm-init"), None);
    }

    #[test]
    fn the_workspace_is_the_root_of_the_repository() {
        assert!(workspace().join("Cargo.lock").exists());
    }
}
