//! The actors: processes that talk and listen, and print what they have done, a line for each flow.

mod identity;
mod resolver;
mod shapes;
mod tcp;
mod tcp_server;
mod udp;

use anyhow::{Result, bail};

use super::words::Words;

/// `torture ROLE key=value...`: see the roles.
pub(crate) fn play(arguments: &[String]) -> Result<()> {
    let words = Words::of(arguments);
    match arguments.first().map(String::as_str) {
        Some("client") => shapes::client(&words),
        Some("tcp-server") => tcp_server::serve(&words),
        Some("udp-server") => udp::serve(&words),
        Some("names") => resolver::serve(&words),
        role => bail!("there is no role {role:?}"),
    }
}

/// Talks as the arguments say, with a socket that was made before if there is one.
fn talk(words: &Words, made: Option<shapes::Made>) -> Result<()> {
    match words.text("proto") {
        Some("udp") => udp::talk(words, made),
        _ => tcp::talk(words, made),
    }
}
