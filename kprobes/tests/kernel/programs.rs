//! BPF programs at probes: counts, samples, and removal.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, setrlimit};
use socktrail_kprobes::bpf::Register::*;
use socktrail_kprobes::bpf::{Array as Counts, Assembler, Code, Condition, Helper, Program, Reader, Width};
use socktrail_kprobes::{
    Array, Decoder, Expression, Group, Installed, Kind, RingOptions, Rings, Sample, Target, Term, sample,
};

use crate::help::{Contents, OwnedSample, drain_all, group, kprobe_events, on_cpu, tracefs};
use crate::limits::{alone, is_alone};

/// No other program calls it during these tests.
pub(crate) const LOCK: Target<'static> = Target::Kprobe { function: "fcntl_setlk" };

sample! {
    /// `fcntl_setlk(fd, filp, cmd, flock)`
    struct Lock {
        cmd: u32 = "{cmd}",
        kind: i16 = "+{flock.l_type}({flock})",
        start: u64 = "+{flock.l_start}({flock})",
        lock: Array<u64, 3> = "+{flock.l_start}({flock})",
    }
}

fn layout(_: &str, name: &str) -> Option<Term> {
    match name {
        "cmd" => Some(Term::Argument(3)),
        "flock" => Some(Term::Argument(4)),
        "flock.l_type" => Some(Term::Offset(0)),
        "flock.l_start" => Some(Term::Offset(8)),
        _ => None,
    }
}

pub(crate) fn install(group: &Group) -> Installed {
    group.install("lock", LOCK, Lock::FETCHES, &layout).unwrap()
}

pub(crate) fn expression(name: &str) -> Expression {
    let fetch = Lock::FETCHES.iter().find(|fetch| fetch.name == name).unwrap();
    fetch.expression("lock", LOCK, &layout).unwrap()
}

/// Locks a range of a file, for which the kernel calls [`LOCK`].
pub(crate) fn lock(file: &File, start: i64, length: i64) {
    let lock = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
}

pub(crate) fn file() -> File {
    let path = "/tmp/kernel_test.program";
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// Offsets on the stack of the program that [`counting`] returns.
const INDEX: i16 = -8;
const LOCK_BYTES: i16 = -32;
const SCRATCH: i16 = -40;

/// Counts the hits and lengths of read locks by start, in map 0. The first hit of each start becomes a sample, and so does
/// every hit of a start that the map has no room for.
fn counting() -> Code {
    let mut asm = Assembler::new();
    let sample = asm.label();
    let reader = Reader::new(&mut asm, SCRATCH, sample).unwrap();
    reader.value(&mut asm, &expression("kind"), R7).unwrap();
    asm.jump_if(Condition::NotEqual, R7, i32::from(libc::F_RDLCK as i16), sample);
    // `l_start`, `l_len` and `l_pid` in one read, from the address of the field `start`.
    reader.bytes(&mut asm, &expression("lock"), LOCK_BYTES, 24).unwrap();
    reader.value_of_bytes(&mut asm, &expression("start"), LOCK_BYTES, R7).unwrap();
    asm.store(Width::Word, Frame, INDEX, R7);
    asm.load(Width::Double, R8, Frame, LOCK_BYTES + 8);
    asm.load_map(R1, 0);
    asm.stack_address(R2, INDEX);
    asm.call(Helper::MapLookup);
    asm.jump_if(Condition::Equal, R0, 0, sample);
    asm.load(Width::Double, R7, R0, 0);
    asm.mov(R1, 1);
    asm.atomic_add(R0, 0, R1);
    asm.atomic_add(R0, 8, R8);
    asm.jump_if(Condition::Equal, R7, 0, sample);
    return_number(&mut asm, 0);
    asm.bind(sample);
    return_number(&mut asm, 1);
    asm.finish("counting").unwrap()
}

fn return_number(asm: &mut Assembler, number: i32) {
    asm.mov(R0, number);
    asm.exit();
}

/// The number and the total length of the counted locks that begin at `start`.
fn counted(counts: &Counts, start: u32) -> Option<(u64, u64)> {
    let mut value = [0; 2];
    counts.read(start, &mut value).then_some((value[0], value[1]))
}

fn map(entries: u32) -> Counts {
    Counts::new("counts", 16, entries).unwrap()
}

pub(crate) fn rings() -> Rings {
    Rings::per_cpu(&RingOptions::default()).unwrap()
}

/// The starts of the locks that became samples.
fn sampled(rings: &mut Rings, event: &Installed) -> Vec<u64> {
    let decoder = Decoder::<Lock>::new(event.format()).unwrap();
    let Contents { samples, lost } = drain_all(rings);
    assert_eq!(lost, 0);
    samples.iter().map(|OwnedSample { raw, .. }| decoder.decode(raw).unwrap().start).collect()
}

#[test]
#[ignore = "needs a kernel with kprobes and BPF"]
fn a_program_counts_and_chooses_the_samples() {
    let (group, file) = (group(), file());
    let event = install(&group);
    let counts = map(100);
    let program = Program::load("counting", &counting(), &[counts.as_ref()]).unwrap();
    let mut rings = rings();
    rings.attach_with_program(&event, None, &program).unwrap();
    for _ in 0..5 {
        lock(&file, 70, 3);
    }
    for length in 1..=3 {
        lock(&file, 40, length);
    }
    assert_eq!(sampled(&mut rings, &event), [70, 40]);
    assert_eq!((counted(&counts, 70), counted(&counts, 40)), (Some((5, 15)), Some((3, 6))));
    assert_eq!((counted(&counts, 71), counted(&counts, 100)), (Some((0, 0)), None));
    assert!(!counts.read(70, &mut [0; 3]), "a value of another size");
}

#[test]
#[ignore = "needs a kernel with kprobes and BPF"]
fn counts_of_several_cpus_add_up() {
    const THREADS: u64 = 4;
    const HITS: u64 = 5000;
    let (group, file) = (group(), file());
    let event = install(&group);
    let counts = map(100);
    let program = Program::load("counting", &counting(), &[counts.as_ref()]).unwrap();
    let mut rings = rings();
    rings.attach_with_program(&event, None, &program).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| (0..HITS).for_each(|_| lock(&file, 5, 2)));
        }
    });
    let missed: u64 = group.misses().unwrap().iter().map(|probe| probe.misses).sum();
    assert_eq!(missed, 0);
    assert_eq!(counted(&counts, 5), Some((THREADS * HITS, THREADS * HITS * 2)));
    assert_eq!(sampled(&mut rings, &event), [5]);
}

#[test]
#[ignore = "needs a kernel with kprobes and BPF"]
fn hits_of_keys_without_room_become_samples() {
    let (group, file) = (group(), file());
    let event = install(&group);
    let counts = map(2);
    let program = Program::load("counting", &counting(), &[counts.as_ref()]).unwrap();
    let mut rings = rings();
    on_cpu(0);
    rings.attach_with_program(&event, None, &program).unwrap();
    for start in [1, 2, 1, 2] {
        lock(&file, start, 1);
    }
    assert_eq!(sampled(&mut rings, &event), [1, 2, 2]);
    assert_eq!((counted(&counts, 1), counted(&counts, 2)), (Some((2, 2)), None));
}

#[test]
#[ignore = "needs a kernel with kprobes and BPF"]
fn a_program_is_removed_with_the_rings() {
    let before = programs();
    let (group, file) = (group(), file());
    let event = install(&group);
    let counts = map(100);
    let program = Program::load("counting", &counting(), &[counts.as_ref()]).unwrap();
    let mut first = rings();
    first.attach_with_program(&event, None, &program).unwrap();
    assert_eq!(first.attach_with_program(&event, None, &program).unwrap_err().kind(), Kind::Busy);
    // The error detached the event, so it can be attached again.
    first.attach_with_program(&event, None, &program).unwrap();
    // The rings keep the program, and it also decides for other rings on this event.
    drop(program);
    let mut second = rings();
    second.attach(&event, None).unwrap();
    lock(&file, 1, 1);
    lock(&file, 1, 1);
    assert_eq!((sampled(&mut first, &event), sampled(&mut second, &event)), (vec![1], vec![1]));
    first.detach(&event);
    lock(&file, 1, 1);
    assert_eq!((sampled(&mut first, &event), sampled(&mut second, &event)), (vec![], vec![1]));
    assert_eq!(counted(&counts, 1), Some((2, 2)));

    // Dropping the rings ends the program as well.
    let program = Program::load("counting", &counting(), &[counts.as_ref()]).unwrap();
    first.attach_with_program(&event, None, &program).unwrap();
    lock(&file, 1, 1);
    assert_eq!(counted(&counts, 1), Some((3, 3)));
    drop((first, program));
    lock(&file, 1, 1);
    assert_eq!((sampled(&mut second, &event), counted(&counts, 1)), (vec![1], Some((3, 3))));
    drop((second, event, counts));
    assert_eq!(kprobe_events(&tracefs()), [""; 0]);
    assert_eq!(descriptors_of("bpf"), 0);
    assert_eq!(descriptors_of("perf_event"), 0);
    // The kernel frees them a moment later.
    let end = Instant::now() + Duration::from_secs(10);
    while programs() != before && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(programs(), before);
}

#[test]
#[ignore = "needs a kernel with kprobes and BPF, and two CPUs"]
fn a_program_outlives_a_cpu() {
    let switch = |online: &str| fs::write("/sys/devices/system/cpu/cpu1/online", online).unwrap();
    let (group, file) = (group(), file());
    let event = install(&group);
    let counts = map(100);
    let program = Program::load("counting", &counting(), &[counts.as_ref()]).unwrap();
    let mut rings = rings();
    rings.attach_with_program(&event, None, &program).unwrap();
    let lock_on = |cpu| {
        on_cpu(cpu);
        lock(&file, 9, 1);
    };
    lock_on(1);
    on_cpu(0);
    switch("0");
    assert_eq!(rings.follow_cpus().unwrap().left, [1]);
    lock_on(0);
    switch("1");
    // CPU 1 is back and has no perf event yet, but the program counts there.
    lock_on(1);
    assert_eq!(counted(&counts, 9), Some((3, 3)));
    assert_eq!(rings.follow_cpus().unwrap().came, [1]);
    lock_on(1);
    on_cpu(0);
    assert_eq!((sampled(&mut rings, &event), counted(&counts, 9)), (vec![9], Some((4, 4))));
}

#[test]
#[ignore = "needs a kernel with kprobes and BPF"]
fn errors_have_the_reason_of_the_verifier() {
    let mut asm = Assembler::new();
    asm.mov(R0, R3);
    asm.exit();
    let error = Program::load("wrong", &asm.finish("wrong").unwrap(), &[]).unwrap_err();
    assert_eq!(error.kind(), Kind::Declaration);
    let text = error.to_string();
    assert!(text.contains("the BPF program wrong") && text.contains("R3 !read_ok"), "{text}");
    let error = Program::load("counting", &counting(), &[]).unwrap_err();
    assert!(error.to_string().contains("map number 0"), "{error}");

    let (counts, mut rings) = (map(1), rings());
    let program = Program::load("counting", &counting(), &[counts.as_ref()]).unwrap();
    let exec = Target::Tracepoint { category: "sched", name: "sched_process_exec" };
    let event = group().install("exec", exec, &[], &layout).unwrap();
    let error = rings.attach_with_program(&event, None, &program).unwrap_err();
    assert!(error.to_string().contains("sched_process_exec: it is a static tracepoint"), "{error}");
}

#[test]
#[ignore = "needs a kernel with BPF"]
fn too_little_locked_memory_is_reported() {
    if !is_alone() {
        return alone("programs::too_little_locked_memory_is_reported");
    }
    setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0).unwrap();
    drop(map(10_000));
    setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0).unwrap();
    without_raising_limits();
    match Counts::new("counts", 16, 10_000) {
        // From Linux 5.11 on there is no such limit.
        Ok(_) => assert!(release() >= (5, 11), "{:?}", release()),
        Err(error) => {
            assert!(release() < (5, 11) && error.kind() == Kind::Limit, "{:?} {error}", release());
            assert!(error.to_string().starts_with("RLIMIT_MEMLOCK is too low (0)"), "{error}");
        }
    }
}

fn release() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = text.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// How many descriptors of anonymous inodes of this kind the process has.
fn descriptors_of(kind: &str) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().replace('[', "").starts_with(&format!("anon_inode:{kind}"))).count()
}

/// The ids of all BPF programs that the kernel has (`BPF_PROG_GET_NEXT_ID`, Linux 4.13).
#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
fn programs() -> Vec<u32> {
    const NEXT_PROGRAM: libc::c_int = 11;
    let mut ids = Vec::new();
    loop {
        // The id to start from, the next id, flags.
        let mut attributes = [ids.last().copied().unwrap_or(0), 0, 0, 0];
        // SAFETY: the attributes are those of this command, which reads and writes nothing else.
        let answer =
            unsafe { libc::syscall(libc::SYS_bpf, NEXT_PROGRAM, &raw mut attributes, size_of_val(&attributes)) };
        if answer != 0 {
            assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOENT));
            return ids;
        }
        ids.push(attributes[1]);
    }
}

/// Gives up `CAP_SYS_RESOURCE`.
#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
fn without_raising_limits() {
    /// `_LINUX_CAPABILITY_VERSION_3`
    const VERSION: u32 = 0x2008_0522;
    const SYS_RESOURCE: u32 = 24;
    let header = [VERSION, 0];
    // Effective, permitted and inheritable: the lower halves, then the upper ones.
    let kept = [!(1 << SYS_RESOURCE), !(1 << SYS_RESOURCE), 0, 0x1ff, 0x1ff, 0_u32];
    // SAFETY: header and sets are those of this version, and are only read.
    let answer = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const kept) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
}
