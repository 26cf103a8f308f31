//! The workloads: clients and servers that print a line for each flow.

mod identity;
mod resolver;
mod shapes;
mod tcp;
mod tcp_server;
mod udp;

use anyhow::{Result, bail};

use super::words::Words;

/// `torture ROLE key=value...`: see the roles' functions.
pub(crate) fn run_role(arguments: &[String]) -> Result<()> {
    let words = Words::of(arguments);
    match arguments.first().map(String::as_str) {
        Some("client") => shapes::client(&words),
        Some("tcp-server") => tcp_server::serve(&words),
        Some("udp-server") => udp::serve(&words),
        Some("names") => resolver::serve(&words),
        role => bail!("unknown role {role:?}"),
    }
}

/// Runs a client over TCP or UDP, with a socket that another process may have made.
fn talk(words: &Words, made: Option<shapes::Made>) -> Result<()> {
    match words.text("proto") {
        Some("udp") => udp::talk(words, made),
        _ => tcp::talk(words, made),
    }
}
