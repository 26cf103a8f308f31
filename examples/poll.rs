//! A loop that waits for flows and for standard input in one thread.
//!
//! Run as root: `cargo run --example poll` prints flows until a line is typed, and leaves no probes behind. The monitor's file
//! descriptor works with `poll(2)` as here, with `epoll(7)`, and with async runtimes.

#![allow(clippy::print_stdout, reason = "a program prints")]

use std::error::Error;
use std::io;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socktrail::{Monitor, Received};

fn main() -> Result<(), Box<dyn Error>> {
    let monitor = Monitor::builder().start()?;
    let stdin = io::stdin();
    loop {
        let mut waited_for =
            [PollFd::new(monitor.as_fd(), PollFlags::POLLIN), PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        poll(&mut waited_for, PollTimeout::NONE)?;
        let [flows, line] = waited_for.map(|descriptor| descriptor.any().unwrap_or(true));
        if line {
            monitor.stop(); // live flows still arrive, and then the end
            io::stdin().read_line(&mut String::new())?;
        }
        if flows && take_all(&monitor) {
            return Ok(());
        }
    }
}

/// Takes all waiting results. Returns whether the monitor has ended.
fn take_all(monitor: &Monitor) -> bool {
    loop {
        match monitor.try_recv() {
            Received::Flow(flow) => println!("{} -> {} {}", flow.local, flow.remote, flow.owner),
            Received::Loss(loss) => println!("{loss}"),
            Received::Idle => return false,
            Received::Ended => return true,
            _ => {}
        }
    }
}
