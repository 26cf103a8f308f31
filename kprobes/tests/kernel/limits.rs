//! Limits that are raised, and privileges that are missing.

use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Uid, setresuid};
use socktrail_kprobes::bpf::{Assembler, Program, Register};
use socktrail_kprobes::{Group, Kind, RingOptions, Rings, Sample, Tracefs};

use crate::help::{OPEN, Open, group, install, open, thread_filter, tracefs};

/// Runs a test of this program in a process of its own, because its effects on the process cannot be undone.
pub fn alone(test: &str) {
    let run =
        Command::new("/proc/self/exe").args(["--exact", test, "--ignored"]).env("KERNEL_TEST_ALONE", "1").output();
    let run = run.unwrap();
    assert!(run.status.success(), "{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
}

pub fn is_alone() -> bool {
    std::env::var_os("KERNEL_TEST_ALONE").is_some()
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn the_limit_on_files_is_raised() {
    if !is_alone() {
        return alone("limits::the_limit_on_files_is_raised");
    }
    let group = group();
    let event = install(&group, "open", OPEN, Open::FETCHES);
    let mut rings = Rings::per_cpu(&RingOptions::default()).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 3, 3).unwrap();
    rings.attach(&event, Some(&thread_filter())).unwrap();
    assert!(getrlimit(Resource::RLIMIT_NOFILE).unwrap().0 > 3);
    open("/x");
    assert_eq!(rings.drain(u64::MAX, &mut |_| ()).records, 1);
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn without_privileges_the_remedy_is_named() {
    if !is_alone() {
        return alone("limits::without_privileges_the_remedy_is_named");
    }
    let tracefs = tracefs();
    let mut asm = Assembler::new();
    asm.mov(Register::R0, 0);
    asm.exit();
    let code = asm.finish("zero").unwrap();
    let nobody = Uid::from_raw(65534);
    setresuid(nobody, nobody, nobody).unwrap();
    for error in [
        Tracefs::find().unwrap_err(),
        Group::create(&tracefs, "kt").unwrap_err(),
        Rings::per_cpu(&RingOptions::default()).unwrap_err(),
        Program::load("zero", &code, &[]).unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Permission, "{error:?}");
        assert!(error.to_string().contains("run as root"), "{error}");
    }
}
