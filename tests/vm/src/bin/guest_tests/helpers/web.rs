//! busybox's web server.

use std::fs;

use anyhow::{Context, Result};

use super::process::Process;
use super::wait::wait_until;

const FOLDER: &str = "/srv/www";

/// A web server with one page, on every address of the guest; dropping it ends it.
#[derive(Debug)]
pub(crate) struct WebServer {
    /// The server, which forks a child for each connection.
    pub(crate) process: Process,
    page: String,
}

impl WebServer {
    /// Starts it and waits until it listens.
    pub(crate) fn start(port: u16) -> Result<Self> {
        let page = "Hello from the guest.\n".to_owned();
        fs::create_dir_all(FOLDER).with_context(|| format!("create {FOLDER}"))?;
        fs::write(format!("{FOLDER}/index.html"), &page).context("write the page")?;
        let process = Process::start(&["httpd", "-f", "-p", &port.to_string(), "-h", FOLDER])?;
        wait_until("the web server to listen", || is_listening(port))?;
        Ok(Self { process, page })
    }

    /// The page at `/`.
    pub(crate) fn page(&self) -> &str {
        &self.page
    }
}

/// Whether a socket listens on a TCP port. It does not connect: that would make a flow.
fn is_listening(port: u16) -> Result<bool> {
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // Without IPv6 there is no `tcp6`.
        if fs::read_to_string(table).is_ok_and(|sockets| lists_listener(&sockets, port)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a table of `/proc/net` (`N: ADDRESS:PORT ADDRESS:PORT STATE ...`) has a listener on the port.
fn lists_listener(table: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let local_end = format!(":{port:04X}");
    table.lines().any(|line| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        matches!(words[..], [_, local, _, LISTEN, ..] if local.ends_with(&local_end))
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn listeners_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_listening(port).unwrap());
        drop(listener);
        assert!(!is_listening(port).unwrap());
    }

    #[test]
    fn a_connection_is_not_a_listener() {
        let table = "  sl  local_address rem_address   st\n   0: 0100007F:1F90 0100007F:D431 01 00000000:00000000\n";
        assert!(!lists_listener(table, 8080));
        assert!(lists_listener(&table.replace(" 01 ", " 0A "), 8080));
    }
}
