//! The virtio ports, as files.

use std::fs::{File, OpenOptions};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socktrail_vm::Port;

/// How long to wait for the ports after their driver is loaded.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Every port, opened.
pub(crate) struct Ports {
    pub(crate) stdout: File,
    pub(crate) stderr: File,
    pub(crate) out: File,
    pub(crate) status: File,
}

/// Waits for the ports to appear and opens them.
pub(crate) fn open() -> Result<Ports> {
    let deadline = Instant::now() + TIMEOUT;
    let open = |port: Port| loop {
        match OpenOptions::new().read(port == Port::Status).write(true).open(port.device()) {
            Ok(file) => return Ok(file),
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(2)),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("open {} (are virtio_pci and virtio_console loaded?)", port.device()));
            }
        }
    };
    Ok(Ports {
        stdout: open(Port::Stdout)?,
        stderr: open(Port::Stderr)?,
        out: open(Port::Out)?,
        status: open(Port::Status)?,
    })
}
