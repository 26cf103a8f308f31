//! Prints the flows of a recording, on any machine and without root.
//!
//! Run `cargo run --example replay -- tests/data/recordings/6.1-x86_64.strec`. `socktrail record FILE` makes recordings.

#![allow(clippy::print_stdout, reason = "a program prints")]

use std::error::Error;
use std::fs::File;
use std::io::BufReader;

use socktrail::recording::{RecordingError, Replay, StateConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: replay RECORDING")?;
    let replay = Replay::open(BufReader::new(File::open(path)?), StateConfig::default())?;
    let clock = replay.clock();
    let replayed = replay.run(|flow, _names| {
        println!("{} {} -> {} {}", clock.wall(flow.end), flow.local, flow.remote, flow.owner);
        Ok::<(), RecordingError>(())
    })?;
    println!("{}", if replayed.complete { "the recording is complete" } else { "the recording is incomplete" });
    Ok(())
}
