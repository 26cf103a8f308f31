//! The workloads: clients and servers that print a line for each flow.

mod identity;
mod resolver;
mod shapes;
mod tcp;
mod tcp_server;
mod udp;

use anyhow::{Result, bail};

use super::arguments::Arguments;

/// `torture ROLE key=value...`: see the roles' functions.
pub(crate) fn run_role(command_line: &[String]) -> Result<()> {
    let arguments = Arguments::of(command_line);
    match command_line.first().map(String::as_str) {
        Some("client") => shapes::client(&arguments),
        Some("tcp-server") => tcp_server::serve(&arguments),
        Some("udp-server") => udp::serve(&arguments),
        Some("names") => resolver::serve(&arguments),
        role => bail!("unknown role {role:?}"),
    }
}

/// Runs a client over TCP or UDP, with a socket that another process may have made.
fn talk(arguments: &Arguments, made: Option<shapes::MadeSocket>) -> Result<()> {
    match arguments.text("proto") {
        Some("udp") => udp::talk(arguments, made),
        _ => tcp::talk(arguments, made),
    }
}
