//! Probes: fetched values, refusals, and removal.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::gettid;
use socktrail_kprobes::{
    Array, Decoder, Fetch, Group, Kind, Record, RingOptions, Rings, Sample, Target, Text, Tracefs, Type, sample,
    tracepoint,
};

use crate::help::{
    Contents, OPEN, Open, OwnedSample, drain_all, group, install, kprobe_events, layout, open, thread_filter, tracefs,
};

sample! {
    /// A field of every type.
    struct Everything {
        dfd: i32 = "{dfd}",
        low: u8 = "{dfd}",
        path: Text = "+u0({filename})",
        user_word: u32 = "+u0({filename})",
        how: Array<u64, 3> = "+0({how})",
        flags: u64 = "+0({how})",
        mode: u16 = "+{open_how.mode}({how})",
        same_mode: i64 = "+{open_how.mode+8-8}({how})",
        bytes: [u8; 8] = "-0({how})",
        fault: Text = "+u0({dfd})",
        comm: Text = "$comm",
    }

    /// The file descriptor or error that is returned.
    struct Return {
        fd: i32 = "$retval",
    }
}

tracepoint! {
    /// sched:sched_process_exec
    struct Exec {
        path: Text = "filename",
        pid: i32 = "pid",
    }

    /// sock:inet_sock_set_state
    struct State {
        sock: u64 = "skaddr",
        family: u16 = "family",
        source: [u8; 4] = "saddr",
        source_v6: [u8; 16] = "saddr_v6",
    }
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn every_type_is_fetched() {
    let group = group();
    let event = install(&group, "everything", OPEN, Everything::FETCHES);
    let decoder = Decoder::<Everything>::new(event.format()).unwrap();
    let mut rings = Rings::per_cpu(&RingOptions::default()).unwrap();
    rings.attach(&event, Some(&thread_filter())).unwrap();
    open("/an/odd/path/that/is/not/there");
    let mut seen = 0;
    rings.drain(u64::MAX, &mut |record| {
        let Record::Sample { pid, tid, id, raw, .. } = record else { panic!("{record:?}") };
        assert_eq!((pid, tid), (std::process::id(), gettid().as_raw() as u32));
        assert_eq!(u32::from(id), event.id());
        let it = decoder.decode(raw).unwrap();
        assert_eq!(it.path.bytes(raw), b"/an/odd/path/that/is/not/there");
        assert_eq!(it.user_word.to_ne_bytes(), *b"/an/");
        assert_eq!(it.dfd, libc::AT_FDCWD);
        assert_eq!(it.low, libc::AT_FDCWD as u8);
        assert!(it.flags & libc::O_CLOEXEC as u64 != 0);
        assert_eq!(it.how.values(raw).collect::<Vec<_>>(), [it.flags, 0, 0]);
        assert_eq!(it.how.bytes(raw)[..8], it.flags.to_ne_bytes());
        assert_eq!(it.bytes, it.flags.to_ne_bytes());
        assert_eq!((it.mode, it.same_mode), (0, 0));
        assert!([&b""[..], b"(fault)"].contains(&it.fault.bytes(raw)), "{:?}", it.fault.bytes(raw));
        assert!(!it.comm.bytes(raw).is_empty());
        // The `format` alone gives the same values.
        let field = |name| event.format().field(name).unwrap();
        assert_eq!(field("dfd").number(raw), Some(i64::from(libc::AT_FDCWD) as u64));
        assert_eq!(field("path").bytes(raw).unwrap().strip_suffix(b"\0"), Some(it.path.bytes(raw)));
        for len in 0..raw.len() {
            let _ = decoder.decode(&raw[..len]).map(|it| it.path.bytes(&raw[..len]));
        }
        assert_eq!(decoder.decode(&raw[..100]), None);
        seen += 1;
    });
    assert_eq!(seen, 1);
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn a_probe_may_have_128_arguments() {
    let group = group();
    let fetches: Vec<_> = (0..128).map(|i| Fetch::new(format!("w{i}"), "{filename}", Type::U64)).collect();
    let event = install(&group, "many", OPEN, &fetches);
    let mut rings = Rings::per_cpu(&RingOptions::default()).unwrap();
    rings.attach(&event, Some(&thread_filter())).unwrap();
    open("/");
    let Contents { samples, .. } = drain_all(&mut rings);
    let first = event.format().field("w0").unwrap().number(&samples[0].raw);
    let last = event.format().field("w127").unwrap().number(&samples[0].raw);
    assert!(first.is_some_and(|first| first != 0));
    assert_eq!(first, last);
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn returns_are_seen() {
    let group = group();
    let target = Target::Kretprobe { function: "do_sys_openat2", maxactive: Some(64) };
    let event = install(&group, "ret", target, Return::FETCHES);
    let lines = kprobe_events(&tracefs());
    assert!(lines.iter().any(|line| line.starts_with("r64:") || line.starts_with("r:")), "{lines:?}");
    let decoder = Decoder::<Return>::new(event.format()).unwrap();
    let mut rings = Rings::for_thread(gettid().as_raw() as u32, &RingOptions::default()).unwrap();
    rings.attach(&event, None).unwrap();
    let file = File::open("/").unwrap();
    open("/not/there");
    let Contents { samples, .. } = drain_all(&mut rings);
    let fds: Vec<_> = samples.iter().map(|OwnedSample { raw, .. }| decoder.decode(raw).unwrap().fd).collect();
    assert_eq!(fds, [file.as_raw_fd(), -libc::ENOENT]);
    let misses = group.misses().unwrap();
    assert_eq!((misses.len(), misses[0].name.as_str(), misses[0].misses), (1, "ret", 0));
    assert!(misses[0].hits >= 2);
}

/// Locks a file. The kernel does that in `fcntl_setlk`, which no other program calls during these tests, and waits
/// there while another process holds the lock.
fn locked() -> File {
    let file = File::options().write(true).create(true).truncate(false).open("/tmp/kernel_test.lock").unwrap();
    let all = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_SETLKW(&all)).unwrap();
    file
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn new_misses_are_reported_once() {
    let mut group = group();
    let target = Target::Kretprobe { function: "fcntl_setlk", maxactive: Some(1) };
    let event = install(&group, "lock", target, &[]);
    let mut rings = Rings::per_cpu(&RingOptions::default()).unwrap();
    rings.attach(&event, None).unwrap();
    let mut missed = || Some(group.new_misses().unwrap()?.iter().map(|probe| probe.misses).sum::<u64>());
    assert_eq!((missed(), missed()), (Some(0), None));
    let held = locked();
    assert_eq!(missed(), None, "it was only hit");
    // The kretprobe follows one call at a time and misses the other three.
    let mut reported = None;
    std::thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(|| drop(locked()))));
        let end = Instant::now() + Duration::from_secs(30);
        while reported != Some(3) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
            reported = missed().or(reported);
        }
        drop(held);
    });
    assert_eq!((reported, missed()), (Some(3), None));
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn tracepoints_are_looked_up() {
    let group = group();
    let exec = Target::Tracepoint { category: "sched", name: "sched_process_exec" };
    let event = install(&group, "exec", exec, &[]);
    let decoder = Decoder::<Exec>::new(event.format()).unwrap();
    let state = Target::Tracepoint { category: "sock", name: "inet_sock_set_state" };
    Decoder::<State>::new(install(&group, "state", state, &[]).format()).unwrap();
    assert_eq!(Decoder::<State>::new(event.format()).unwrap_err().kind(), Kind::Declaration);
    assert_eq!(kprobe_events(&tracefs()), [""; 0]);

    let mut rings = Rings::per_cpu(&RingOptions::default()).unwrap();
    rings.attach(&event, None).unwrap();
    let child = std::process::Command::new("/proc/self/exe").arg("--list").output().unwrap();
    assert!(child.status.success());
    let Contents { samples, .. } = drain_all(&mut rings);
    let exec = decoder.decode(&samples[0].raw).unwrap();
    assert_eq!(exec.path.bytes(&samples[0].raw), b"/proc/self/exe");
    assert!(exec.pid > 1);

    let missing = Target::Tracepoint { category: "sock", name: "no_such" };
    let error = group.install("missing", missing, &[], &layout).unwrap_err();
    assert_eq!(error.kind(), Kind::NoFunction);
    assert!(error.to_string().contains("sock:no_such"), "{error}");
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn refusals_name_the_probe_and_the_reason() {
    let group = group();
    let refused = |name, function, fetches: &[Fetch<'_>]| {
        group.install(name, Target::Kprobe { function }, fetches, &layout).unwrap_err()
    };
    let error = refused("missing", "no_such_function", &[]);
    assert_eq!(error.kind(), Kind::NoFunction);
    assert!(error.to_string().contains("probe missing on no_such_function"), "{error}");
    if tracefs().path("error_log").exists() {
        assert!(error.to_string().contains("nvalid"), "{error}");
    }
    assert_eq!(refused("forbidden", "get_kprobe", &[]).kind(), Kind::NoFunction);
    assert_eq!(refused("nonsense", "do_sys_openat2", &[Fetch::new("a", "%nope", Type::U8)]).kind(), Kind::NoFunction);
    let error = refused("unknown", "do_sys_openat2", &[Fetch::new("a", "+{sock.sk}({dfd})", Type::U8)]);
    assert_eq!(error.kind(), Kind::Unresolved);

    let event = install(&group, "fine", OPEN, Open::FETCHES);
    assert_eq!(refused("fine", "do_sys_openat2", Open::FETCHES).kind(), Kind::Busy);
    let mut rings = Rings::per_cpu(&RingOptions::default()).unwrap();
    let error = rings.attach(&event, Some("no_such_field == 1")).unwrap_err();
    assert!(error.to_string().contains("no_such_field"), "{error}");
    drop((rings, event));
    assert_eq!(kprobe_events(&tracefs()), [""; 0]);
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn the_last_user_removes_a_probe() {
    let tracefs = tracefs();
    let group = Group::create(&tracefs, "kt").unwrap();
    let other = Group::create(&tracefs, "kt").unwrap();
    assert_ne!(group.name(), other.name());
    let event = install(&group, "open", OPEN, Open::FETCHES);
    // The same name in another group is another probe.
    let same = install(&other, "open", OPEN, Open::FETCHES);
    assert_ne!(event.id(), same.id());
    assert_eq!(kprobe_events(&tracefs).len(), 2);
    drop(same);
    assert_eq!(kprobe_events(&tracefs).len(), 1);

    let mut rings = Rings::per_cpu(&RingOptions::default()).unwrap();
    rings.attach(&event, Some(&thread_filter())).unwrap();
    drop(event);
    open("/");
    assert_eq!(drain_all(&mut rings).samples.len(), 1);
    assert_eq!(kprobe_events(&tracefs).len(), 1);
    drop(rings);
    assert_eq!(kprobe_events(&tracefs).len(), 0);

    let event = install(&group, "open", OPEN, Open::FETCHES);
    let mut rings = Rings::per_cpu(&RingOptions::default()).unwrap();
    rings.attach(&event, Some(&thread_filter())).unwrap();
    open("/");
    rings.detach(&event);
    open("/");
    drop(event);
    assert_eq!(kprobe_events(&tracefs).len(), 0);
    assert_eq!(drain_all(&mut rings).samples.len(), 1);
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn features_and_traceable_functions_are_known() {
    let tracefs = tracefs();
    assert!(tracefs.has_kprobes());
    let features = tracefs.features();
    assert!(features.arrays && features.user_memory && features.arguments && features.maxactive && features.constants);
    let found = tracefs.traceable(&["do_sys_openat2", "tcp_v4_connect", "no_such_function"]).unwrap();
    assert_eq!(found, ["do_sys_openat2", "tcp_v4_connect"].into());
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn a_tracefs_mounted_by_this_process_is_detached() {
    let is_mounted = || std::fs::read_to_string("/proc/self/mounts").unwrap().contains(" tracefs ");
    if is_mounted() {
        // Another process mounted it, so it must stay mounted.
        drop(Tracefs::find().unwrap());
        assert!(is_mounted());
        return;
    }
    let tracefs = Tracefs::find().unwrap();
    assert!(!is_mounted());
    assert_eq!(tracefs.root(), Path::new("/sys/kernel/tracing"));
    let other = Tracefs::find().unwrap();
    drop(tracefs);
    assert!(other.has_kprobes());
    // An installed probe keeps the mount alive.
    let group = Group::create(&Arc::new(other), "kt").unwrap();
    let event = install(&group, "open", OPEN, Open::FETCHES);
    drop(group);
    assert_eq!(kprobe_events(&Tracefs::find().unwrap()).len(), 1);
    drop(event);
    assert!(!is_mounted());
}
