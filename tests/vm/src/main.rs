//! Boots Debian kernels under QEMU and runs Socktrail in them.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command whose results and progress are printed")]

mod apt;
mod bench;
mod binaries;
mod buffer;
mod cache;
mod console;
mod cpio;
mod demo;
mod guest;
mod image;
mod kernel;
mod layout_facts;
mod matrix;
mod modules;
mod options;
mod packages;
mod process;
mod qemu;
mod record;
mod run;
mod test;
mod transfer;

use std::process::ExitCode;

use clap::Parser;

use crate::options::{Action, Options};

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.action {
        Action::Run(run) => run::run(run),
        Action::Test(test) => test::run(test),
        Action::Demo(demo) => demo::run(demo),
        Action::Bench(bench) => bench::run(bench),
        Action::Record(record) => record::run(record),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("vm: {error:#}");
            ExitCode::from(options::EXIT_RUNNER)
        }
    }
}
