//! `cargo demo`: real traffic, and socktrail's documents about it. On this machine, if it can show flows of a control group of its own,
//! else in a guest.

mod guest;
mod here;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

pub use self::guest::{PACKAGES, script};
use crate::matrix::{Arch, Kernel};
use crate::options::DemoOptions;

/// Runs the demo; documents go to standard output.
pub fn run(options: &DemoOptions) -> Result<u8> {
    let DemoOptions { kernel, arch, ref source, timeout } = *options;
    if kernel.is_none() && arch.is_none() && source.is_none() {
        match here::Place::find() {
            Ok(place) => return here::run(place, timeout),
            Err(reason) => eprintln!("vm: the demo boots a guest, because {reason}"),
        }
    }
    guest::run(kernel.unwrap_or(Kernel::V6_1), arch.unwrap_or(Arch::X86_64), source.as_deref(), timeout)
}

/// Standard output, with a count of the lines written to it.
#[derive(Debug, Clone, Default)]
struct LineCounter(Arc<AtomicU64>);

impl LineCounter {
    fn lines(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Write for LineCounter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let ends = bytes.iter().filter(|&&byte| byte == b'\n').count();
        self.0.fetch_add(ends as u64, Ordering::Relaxed);
        // Lines are counted even if the reader has closed the pipe.
        io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()).ok();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
