//! Removal of probes that dead processes left behind.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};

use socktrail_kprobes::{Group, RingOptions, Rings, Sample, Tracefs};

use crate::help::{OPEN, Open, group, install, kprobe_events, tracefs};

fn write(tracefs: &Tracefs, line: &str) {
    let mut file = fs::File::options().append(true).open(tracefs.path("kprobe_events")).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn only_probes_of_dead_processes_are_removed() {
    let tracefs = tracefs();
    let mut child = start("sweeping::sleeps");
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let start: u64 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
    let living = format!("kt_{}_{start}_0", child.id());
    let dead = format!("kt_{}_{}_0", child.id(), start - 1);
    for owner in [&living, &dead, "kt_4000000_1_3", "other_4000000_1_3", "kt_x", "kt2_4000000_1_0"] {
        write(&tracefs, &format!("p:{owner}/open do_sys_openat2"));
        write(&tracefs, &format!("r:{owner}/return do_sys_openat2"));
    }
    let groups = || {
        let mut groups: Vec<String> = kprobe_events(&tracefs)
            .iter()
            .map(|line| line.split_once(':').unwrap().1.split_once('/').unwrap().0.to_owned())
            .collect();
        groups.dedup();
        groups
    };
    assert_eq!(groups().len(), 6);
    drop(Group::create(&tracefs, "kt").unwrap());
    assert_eq!(groups(), [&living, "other_4000000_1_3", "kt_x", "kt2_4000000_1_0"]);
    // A zombie counts as dead.
    child.kill().unwrap();
    while !fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap().contains(") Z") {}
    drop(Group::create(&tracefs, "kt").unwrap());
    assert_eq!(groups(), ["other_4000000_1_3", "kt_x", "kt2_4000000_1_0"]);
    child.wait().unwrap();
    for group in groups() {
        write(&tracefs, &format!("-:{group}/open"));
        write(&tracefs, &format!("-:{group}/return"));
    }
}

/// Starts one of the tests below in a process of its own.
fn start(test: &str) -> Child {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--exact", test, "--ignored"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
#[ignore = "only sleeps"]
fn sleeps() {
    if std::env::args().any(|argument| argument == "--exact") {
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

/// Run by the next test: attaches probes, writes the name of their group to a file, and waits to be killed.
#[test]
#[ignore = "waits to be killed"]
fn is_killed() {
    if std::env::args().any(|argument| argument == "--exact") {
        let group = group();
        let events: Vec<_> = (0..10).map(|n| install(&group, &format!("open{n}"), OPEN, Open::FETCHES)).collect();
        let mut rings = Rings::per_cpu(&RingOptions::default()).unwrap();
        events.iter().for_each(|event| rings.attach(event, None).unwrap());
        fs::write("/tmp/is_killed.ready", group.name()).unwrap();
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn probes_of_killed_processes_are_removed() {
    let tracefs = tracefs();
    for _ in 0..3 {
        let _ = fs::remove_file("/tmp/is_killed.ready");
        let mut child = start("sweeping::is_killed");
        while fs::read_to_string("/tmp/is_killed.ready").unwrap_or_default().is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(kprobe_events(&tracefs).len(), 10);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(kprobe_events(&tracefs).len(), 10);
        drop(Group::create(&tracefs, "kt").unwrap());
        assert_eq!(kprobe_events(&tracefs).len(), 0);
    }
}
