//! Rings: order, losses, wake-ups, threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::gettid;
use socktrail_kprobes::{Clock, Decoder, Horizon, Record, RingOptions, Rings, Sample};

use crate::help::{Contents, OPEN, Open, OwnedSample, drain_all, group, install, on_cpu, open, thread_filter};

/// Opens `/x/CPU/N` for N below `count`, from each of two CPUs at the same time.
fn opens_on_two_cpus(count: usize) -> Vec<thread::JoinHandle<()>> {
    let on = |cpu| {
        thread::spawn(move || {
            on_cpu(cpu);
            (0..count).for_each(|n| open(format!("/x/{cpu}/{n}")));
        })
    };
    [0, 1].map(on).into()
}

/// A filter for the paths that the tests open from several threads.
fn path_filter() -> String {
    // `~` matches a pattern.
    "path ~ \"/x/*\"".to_owned()
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn two_cpus_make_one_stream() {
    const COUNT: usize = 3000;
    let group = group();
    let event = install(&group, "open", OPEN, Open::FETCHES);
    let decoder = Decoder::<Open>::new(event.format()).unwrap();
    let mut rings = Rings::per_cpu(&RingOptions::default()).unwrap();
    assert_eq!(rings.clock(), Clock::Monotonic);
    rings.attach(&event, Some(&path_filter())).unwrap();
    let before = rings.now();
    let threads = opens_on_two_cpus(COUNT);
    let mut horizon = Horizon::default();
    let mut next = [0, 0];
    let (mut last, mut late, mut reported_late, mut rounds) = (before, 0, 0, 0);
    let end = Instant::now() + Duration::from_secs(30);
    while next != [COUNT, COUNT] && Instant::now() < end {
        rings.wait(Some(Duration::from_millis(5))).unwrap();
        let now = rings.now();
        let until = horizon.next(now);
        let drained = rings.drain(until, &mut |record| {
            let Record::Sample { time, cpu, raw, .. } = record else { panic!("{record:?}") };
            assert!(time < until && time <= now);
            late += u64::from(time < last);
            last = last.max(time);
            // Each CPU's samples come in order, and none is missing or repeated.
            let path = decoder.decode(raw).unwrap().path;
            let expected = format!("/x/{cpu}/{}", next[cpu as usize]);
            assert_eq!(String::from_utf8_lossy(path.bytes(raw)), expected);
            next[cpu as usize] += 1;
        });
        assert_eq!(drained.malformed, 0);
        reported_late += drained.late;
        rounds += 1;
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(next, [COUNT, COUNT]);
    // An emulated CPU may be halted within a sample for longer than any slack.
    assert!(late < 10, "{late} late");
    assert_eq!(late, reported_late);
    assert!(rounds > 2);
    assert!(rings.losses().all(|losses| losses.records == 0));
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn every_loss_is_counted() {
    const COUNT: usize = 2000;
    let group = group();
    let event = install(&group, "open", OPEN, Open::FETCHES);
    let mut options = RingOptions::default();
    options.page_exponent = 0;
    let mut rings = Rings::per_cpu(&options).unwrap();
    rings.attach(&event, Some(&path_filter())).unwrap();
    opens_on_two_cpus(COUNT).into_iter().for_each(|thread| thread.join().unwrap());
    let Contents { samples: first, lost } = drain_all(&mut rings);
    assert_eq!(lost, 0, "the kernel reports a loss with the next sample that fits");
    // One more sample on each CPU reports the losses.
    opens_on_two_cpus(1).into_iter().for_each(|thread| thread.join().unwrap());
    let Contents { samples: second, lost } = drain_all(&mut rings);
    assert_eq!(second.len(), 2);
    assert!(lost > 0);
    assert_eq!(first.len() as u64 + lost, 2 * COUNT as u64);
    let by_cpu: Vec<_> = rings.losses().map(|losses| (losses.cpu, losses.records)).collect();
    assert_eq!(by_cpu.iter().map(|(_, records)| records).sum::<u64>(), lost);
    assert_eq!(by_cpu.iter().map(|(cpu, _)| *cpu).collect::<Vec<_>>(), [Some(0), Some(1)]);
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn a_loss_that_no_sample_follows_is_reported_and_counted_once() {
    const COUNT: usize = 2000;
    let group = group();
    let event = install(&group, "open", OPEN, Open::FETCHES);
    let mut options = RingOptions::default();
    options.page_exponent = 0;
    let mut rings = Rings::per_cpu(&options).unwrap();
    rings.attach(&event, Some(&path_filter())).unwrap();
    assert!(!rings.settle(), "nothing was lost");
    for _ in 0..2 {
        opens_on_two_cpus(COUNT).into_iter().for_each(|thread| thread.join().unwrap());
        let Contents { samples, lost } = drain_all(&mut rings);
        assert!(rings.settle());
        let later = drain_all(&mut rings);
        assert_eq!((later.samples, samples.len() as u64 + lost + later.lost), (vec![], 2 * COUNT as u64));
        assert!(later.lost > 0);
        assert!(!rings.settle(), "every loss has been reported");
        assert_eq!(drain_all(&mut rings), Contents { samples: vec![], lost: 0 });
    }
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn the_watermark_wakes_and_one_sample_does_not() {
    let group = group();
    let event = install(&group, "open", OPEN, Open::FETCHES);
    let mut options = RingOptions::default();
    options.page_exponent = 2;
    options.watermark = Some(4096);
    let mut rings = Rings::per_cpu(&options).unwrap();
    rings.attach(&event, Some(&thread_filter())).unwrap();
    on_cpu(1);
    open("/x");
    assert!(!rings.wait(Some(Duration::from_millis(50))).unwrap());
    (0..150).for_each(|_| open("/x"));
    assert!(rings.wait(Some(Duration::from_secs(5))).unwrap());
    // Records that stay in a ring beyond its watermark are a backlog.
    assert!(rings.drain(0, &mut |_| ()).backlog);
    let drained = rings.drain(u64::MAX, &mut |_| ());
    assert_eq!((drained.records, drained.backlog), (151, false));
    let _ = rings.wait(Some(Duration::ZERO)).unwrap();
    assert!(!rings.wait(Some(Duration::from_millis(50))).unwrap());
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn a_waker_ends_a_wait() {
    let rings = Rings::per_cpu(&RingOptions::default()).unwrap();
    let waker = rings.waker();
    let woken = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        waker.wake();
    });
    assert!(rings.wait(Some(Duration::from_secs(20))).unwrap());
    woken.join().unwrap();
    assert!(!rings.wait(Some(Duration::ZERO)).unwrap());
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn the_ring_of_a_thread_has_no_samples_of_others() {
    let group = group();
    let event = install(&group, "open", OPEN, Open::FETCHES);
    let decoder = Decoder::<Open>::new(event.format()).unwrap();
    let mut rings = Rings::for_thread(gettid().as_raw() as u32, &RingOptions::default()).unwrap();
    rings.attach(&event, None).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let other = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            open("/other");
        }
    });
    for cpu in [0, 1, 0, 1] {
        on_cpu(cpu);
        open(format!("/mine/{cpu}"));
    }
    stop.store(true, Ordering::Relaxed);
    other.join().unwrap();
    let Contents { samples, lost } = drain_all(&mut rings);
    let seen: Vec<_> = samples
        .iter()
        .map(|OwnedSample { cpu, raw, .. }| {
            format!("{cpu} {}", String::from_utf8_lossy(decoder.decode(raw).unwrap().path.bytes(raw)))
        })
        .filter(|seen| seen.contains("/mine") || seen.contains("/other"))
        .collect();
    assert_eq!(seen, ["0 /mine/0", "1 /mine/1", "0 /mine/0", "1 /mine/1"]);
    assert_eq!(lost, 0);
    assert_eq!(rings.follow_cpus().unwrap(), Default::default());
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn a_thread_that_has_ended_leaves_its_samples_and_does_not_spin() {
    let group = group();
    let event = install(&group, "open", OPEN, Open::FETCHES);
    let (send_tid, tid) = std::sync::mpsc::channel();
    let (start, started) = std::sync::mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        send_tid.send(gettid().as_raw() as u32).unwrap();
        started.recv().unwrap();
        open("/last/words");
    });
    let mut rings = Rings::for_thread(tid.recv().unwrap(), &RingOptions::default()).unwrap();
    rings.attach(&event, None).unwrap();
    start.send(()).unwrap();
    thread.join().unwrap();
    let begun = Instant::now();
    let mut waits = 0;
    while begun.elapsed() < Duration::from_millis(300) {
        rings.wait(Some(Duration::from_millis(100))).unwrap();
        waits += 1;
    }
    assert!(waits < 20, "{waits} waits");
    assert!(!drain_all(&mut rings).samples.is_empty());
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn the_local_clock_can_be_synchronised() {
    let group = group();
    let event = install(&group, "open", OPEN, Open::FETCHES);
    let mut options = RingOptions::default();
    options.clock = Clock::Local;
    let mut rings = Rings::per_cpu(&options).unwrap();
    rings.attach(&event, Some(&thread_filter())).unwrap();
    assert!(!rings.synchronise(&event, || {}).unwrap(), "nothing was caused");
    assert!(rings.synchronise(&event, || open("/x")).unwrap());
    drain_all(&mut rings);
    // A sample is written between two readings of the clock, and a reading may be a little too early.
    const EARLY: u64 = 5_000_000;
    for _ in 0..5 {
        let before = rings.now();
        open("/x");
        let after = rings.now();
        let Contents { samples, .. } = drain_all(&mut rings);
        let [OwnedSample { time, .. }] = samples[..] else { panic!("{} samples", samples.len()) };
        assert!(before <= time && time <= after + EARLY, "{before} {time} {after}");
    }
}

#[test]
#[ignore = "needs a kernel with kprobes"]
fn the_local_clock_is_estimated_from_records() {
    let group = group();
    let event = install(&group, "open", OPEN, Open::FETCHES);
    let mut options = RingOptions::default();
    options.clock = Clock::Local;
    let mut rings = Rings::per_cpu(&options).unwrap();
    assert_eq!((rings.clock(), rings.now()), (Clock::Local, 0));
    rings.attach(&event, Some(&thread_filter())).unwrap();
    let mut horizon = Horizon::default();
    let mut seen = 0;
    let begun = Instant::now();
    let mut opened = 0;
    while seen < 5 && begun.elapsed() < Duration::from_secs(20) {
        if opened < 5 {
            open("/x");
            opened += 1;
        }
        let until = horizon.next(rings.now());
        seen += rings.drain(until, &mut |_| ()).records;
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(seen, 5);
}
