//! nftables.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Loads rules into the calling thread's network namespace.
pub(crate) fn nft(rules: &str) -> Result<()> {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    nft.stdin.take().context("standard input is not a pipe")?.write_all(rules.as_bytes())?;
    let ended = nft.wait_with_output()?;
    ensure!(ended.status.success(), "nft: {}", String::from_utf8_lossy(&ended.stderr));
    Ok(())
}
