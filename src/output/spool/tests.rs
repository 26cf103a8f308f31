//! Documents come out in order. Each comes out once, unless it is damaged or dropped, which is counted, or the position is lost.

use std::fs;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn options(folder: &TempDir) -> SpoolOptions {
    SpoolOptions { path: folder.path().join("spool"), max_size: 1 << 30, segment_size: 1 << 20, memory: 1 << 20 }
}

fn open(folder: &TempDir) -> Spool {
    Spool::open(options(folder), Arc::default()).unwrap()
}

fn document(number: usize) -> String {
    format!("{{\"n\":{number},\"pad\":\"{}\"}}", "x".repeat(number % 50))
}

fn batch(numbers: impl IntoIterator<Item = usize>) -> Batch {
    let mut batch = Batch::default();
    numbers.into_iter().for_each(|number| batch.push_json(Kind::Flow, document(number).as_bytes()));
    batch
}

fn numbers(batch: &Batch) -> Vec<usize> {
    let number = |document: &[u8]| {
        let text = std::str::from_utf8(document).unwrap();
        text.strip_prefix("{\"n\":").and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap()
    };
    batch.documents().map(|(_, document)| number(document)).collect()
}

/// Reads and acknowledges all documents that are left.
fn rest(spool: &mut Spool) -> Vec<usize> {
    let mut all = Vec::new();
    while let Some(chunk) = spool.next(7, 1 << 20).unwrap() {
        all.extend(numbers(&chunk.batch));
        spool.acknowledge(&chunk).unwrap();
    }
    all
}

fn segments(folder: &TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.path().join("spool")).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = entries.filter(|path| path.extension().is_some_and(|it| it == "spool")).collect();
    segments.sort();
    segments
}

fn set_aside(folder: &TempDir) -> usize {
    fs::read_dir(folder.path().join("spool/damaged")).map_or(0, Iterator::count)
}

#[test]
fn documents_come_in_order_until_they_are_done() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(&folder);
    assert!(spool.next(10, 1000).unwrap().is_none());
    spool.push(&batch(0..5)).unwrap();
    spool.push(&batch(5..9)).unwrap();
    let chunk = spool.next(3, 1 << 20).unwrap().unwrap();
    assert_eq!(numbers(&chunk.batch), [0, 1, 2]);
    assert_eq!(numbers(&spool.next(3, 1 << 20).unwrap().unwrap().batch), [0, 1, 2], "not done yet");
    spool.acknowledge(&chunk).unwrap();
    assert_eq!(rest(&mut spool), [3, 4, 5, 6, 7, 8]);
    assert!(spool.is_empty());
}

#[test]
fn a_restart_continues_after_the_acknowledged_documents() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(&folder);
    spool.push(&batch(0..20)).unwrap();
    let chunk = spool.next(7, 1 << 20).unwrap().unwrap();
    spool.acknowledge(&chunk).unwrap();
    let _not_done = spool.next(7, 1 << 20).unwrap();
    drop(spool);

    let meter = Arc::<Meter>::default();
    let mut spool = Spool::open(options(&folder), Arc::clone(&meter)).unwrap();
    assert_eq!(meter.pending.get(), 13);
    spool.push(&batch(20..22)).unwrap();
    assert_eq!(rest(&mut spool), (7..22).collect::<Vec<_>>());
    assert_eq!(meter.pending.get(), 0);
    drop(spool);
    assert_eq!(rest(&mut open(&folder)), [] as [usize; 0]);
    assert!(segments(&folder).len() <= 1);
}

#[test]
fn segments_that_are_done_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(SpoolOptions { segment_size: 300, ..options(&folder) }, Arc::default()).unwrap();
    (0..100).for_each(|number| spool.push(&batch([number])).unwrap());
    assert!(segments(&folder).len() > 10);
    assert_eq!(rest(&mut spool), (0..100).collect::<Vec<_>>());
    assert_eq!(segments(&folder).len(), 1, "only the one that is written to");
}

#[test]
fn a_full_spool_drops_its_oldest_documents_and_counts_them() {
    let folder = tempfile::tempdir().unwrap();
    let meter = Arc::<Meter>::default();
    let small = SpoolOptions { segment_size: 500, max_size: 3000, ..options(&folder) };
    let mut spool = Spool::open(small, Arc::clone(&meter)).unwrap();
    for number in 0..1000 {
        spool.push(&batch([number])).unwrap();
        let size: u64 = segments(&folder).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert!(size <= 3000, "{size} bytes");
        assert_eq!(meter.spool_bytes.get(), size);
    }
    let left = rest(&mut spool);
    assert_eq!(left.last(), Some(&999));
    assert!(left.windows(2).all(|pair| pair[0] + 1 == pair[1]), "the rest has no gap");
    assert_eq!(meter.spool_dropped.get() as usize + left.len(), 1000);
}

/// A full segment is synced once; the segment that is written to, each time.
#[test]
fn all_segments_are_synced() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(SpoolOptions { segment_size: 500, ..options(&folder) }, Arc::default()).unwrap();
    let to_sync = |spool: &mut Spool| {
        let files = spool.to_sync().unwrap();
        files.iter().map(|file| file.metadata().unwrap().ino()).collect::<Vec<_>>()
    };
    let on_disk = || {
        let paths = segments(&folder);
        paths.iter().map(|path| fs::metadata(path).unwrap().ino()).collect::<Vec<_>>()
    };
    spool.push(&batch(0..30)).unwrap();
    assert!(on_disk().len() > 2);
    assert_eq!(to_sync(&mut spool), on_disk());
    assert_eq!(to_sync(&mut spool), on_disk()[on_disk().len() - 1..]);
    // Without a sync in between, at most `MAX_UNSYNCED` full segments wait for one. Older ones are already synced.
    spool.push(&batch(0..300)).unwrap();
    assert_eq!(to_sync(&mut spool).len(), MAX_UNSYNCED + 1);
}

/// `/dev/null` takes the place of full segments, because it cannot be synced.
#[test]
fn a_spool_works_on_after_a_failed_sync() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(SpoolOptions { segment_size: 300, ..options(&folder) }, Arc::default()).unwrap();
    spool.push(&batch(0..2)).unwrap();
    spool.unsynced = (0..MAX_UNSYNCED).map(|_| File::open("/dev/null").unwrap()).collect();
    assert!(spool.push(&batch(2..30)).is_err());
    assert!(!spool.memory.documents.is_empty());
    spool.unsynced.clear();
    spool.push(&batch(30..32)).unwrap();
    assert!(spool.memory.documents.is_empty());
    assert_eq!(rest(&mut spool), (0..32).collect::<Vec<_>>());
}

#[test]
fn a_file_that_cannot_be_synced_is_reported() {
    let (bad, good) = (File::open("/dev/null").unwrap(), tempfile::tempfile().unwrap());
    assert!(sync_all(&[bad.try_clone().unwrap(), good.try_clone().unwrap()]).is_err());
    assert!(sync_all(&[good.try_clone().unwrap(), bad]).is_err());
    assert!(sync_all(&[good]).is_ok());
}

/// A batch continues in the next segment where one is full. So a full spool never drops more than a segment at once.
#[test]
fn a_large_batch_is_split_across_segments() {
    let folder = tempfile::tempdir().unwrap();
    let meter = Arc::<Meter>::default();
    let small = SpoolOptions { segment_size: 500, max_size: 3000, ..options(&folder) };
    let mut spool = Spool::open(small, Arc::clone(&meter)).unwrap();
    spool.push(&batch(0..40)).unwrap();
    let sizes: Vec<_> = segments(&folder).iter().map(|path| fs::metadata(path).unwrap().len()).collect();
    assert!(sizes.len() > 3 && sizes.iter().all(|&size| size <= 500), "{sizes:?}");
    let least = 500 - document(49).len() as u64 - record::HEADER_LEN as u64;
    assert!(sizes[..sizes.len() - 1].iter().all(|&size| size > least), "segments are filled: {sizes:?}");
    assert_eq!(meter.spool_dropped.get(), 0);
    let mut before = 0;
    while meter.spool_dropped.get() < 20 {
        spool.push(&batch([1])).unwrap();
        let dropped = meter.spool_dropped.get() - before;
        assert!(dropped <= 500 / record::HEADER_LEN as u64, "more than one segment was dropped: {dropped} documents");
        before += dropped;
    }
    assert!(rest(&mut spool).len() > 10, "the newest documents stay");
    let mut huge = batch([1]);
    huge.push_json(Kind::Flow, format!("{{\"n\":2,\"pad\":\"{}\"}}", "x".repeat(900)).as_bytes());
    huge.push_json(Kind::Flow, document(3).as_bytes());
    spool.push(&huge).unwrap();
    assert_eq!(rest(&mut spool), [1, 2, 3], "a document may be larger than a segment");
}

#[test]
fn the_rest_of_a_partly_written_batch_waits_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let small = SpoolOptions { segment_size: 300, ..options(&folder) };
    let mut spool = Spool::open(small, Arc::default()).unwrap();
    let blocked = block(&folder, 3);
    assert!(spool.push(&batch(0..30)).is_err());
    let on_disk: u64 = spool.segments.iter().map(|segment| segment.left).sum();
    assert!(on_disk > 3 && on_disk < 27, "{on_disk}");
    assert_eq!(spool.memory.documents.len() as u64, 30 - on_disk);
    assert!(spool.push(&batch([30])).is_err());
    fs::remove_dir(blocked).unwrap();
    spool.push(&batch([31])).unwrap();
    assert!(spool.memory.documents.is_empty());
    assert_eq!(rest(&mut spool), (0..32).collect::<Vec<_>>());
}

/// Documents that are being sent count as lost only if they do not arrive.
#[test]
fn documents_may_be_dropped_while_they_are_being_sent() {
    for arrives in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let meter = Arc::<Meter>::default();
        let small = SpoolOptions { segment_size: 500, max_size: 1500, ..options(&folder) };
        let mut spool = Spool::open(small, Arc::clone(&meter)).unwrap();
        spool.push(&batch(0..5)).unwrap();
        let chunk = spool.next(4, 1 << 20).unwrap().unwrap();
        (5..100).for_each(|number| spool.push(&batch([number])).unwrap());
        if arrives {
            spool.acknowledge(&chunk).unwrap();
        }
        let left = rest(&mut spool);
        assert!(left[0] > 5 && left.last() == Some(&99), "{left:?}");
        let arrived = if arrives { 4 } else { 0 };
        assert_eq!(meter.spool_dropped.get() as usize + left.len() + arrived, 100);
    }
}

/// A crash may cut a write off anywhere.
#[test]
fn a_segment_cut_off_at_any_byte_costs_only_what_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(&folder);
    spool.push(&batch(0..4)).unwrap();
    drop(spool);
    let [path] = &segments(&folder)[..] else { panic!("one segment") };
    let whole = fs::read(path).unwrap();
    for length in 0..=whole.len() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(&folder));
        fs::write(folder.path().join("spool").join(path.file_name().unwrap()), &whole[..length]).unwrap();
        let meter = Arc::<Meter>::default();
        let mut spool = Spool::open(options(&folder), Arc::clone(&meter)).unwrap();
        spool.push(&batch([9])).unwrap();
        let left = rest(&mut spool);
        let kept = left.len() - 1;
        assert_eq!(left[..kept], (0..kept).collect::<Vec<_>>(), "{length} bytes");
        assert_eq!(left[kept], 9);
        let used: usize = 8 + (0..kept).map(|number| record::HEADER_LEN + document(number).len()).sum::<usize>();
        let torn = length > 0 && length != used;
        assert_eq!((meter.spool_damaged.get(), set_aside(&folder)), (u64::from(torn), usize::from(torn)), "{length}");
        assert!(kept == 4 || length < whole.len());
    }
}

#[test]
fn one_wrong_byte_costs_one_document_and_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(&folder);
    spool.push(&batch(0..4)).unwrap();
    drop(spool);
    let path = segments(&folder)[0].clone();
    let whole = fs::read(&path).unwrap();
    for at in 8..whole.len() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(&folder));
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        fs::write(folder.path().join("spool").join(path.file_name().unwrap()), &bytes).unwrap();
        let left = rest(&mut open(&folder));
        assert_eq!(left.len(), 3, "byte {at}");
        assert!(left.windows(2).all(|pair| pair[0] < pair[1]));
        let aside = fs::read_dir(folder.path().join("spool/damaged")).unwrap().next().unwrap().unwrap().path();
        let lost = (0..4).find(|number| !left.contains(number)).unwrap();
        assert_eq!(fs::read(aside).unwrap().len(), record::HEADER_LEN + document(lost).len());
    }
}

/// A bad disk may damage documents again and again.
#[test]
fn damaged_bytes_that_are_kept_are_bounded_and_removed_ones_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let meter = Arc::<Meter>::default();
    let small = SpoolOptions { segment_size: 1000, max_size: 4000, ..options(&folder) };
    for round in 0..10_u8 {
        let mut spool = Spool::open(small.clone(), Arc::clone(&meter)).unwrap();
        spool.push(&batch([1])).unwrap();
        let path = segments(&folder).pop().unwrap();
        let noise = [b"STSPOOL\x01".to_vec(), vec![b'a' + round; 392]].concat();
        drop(spool);
        fs::write(path, noise).unwrap();
        assert_eq!(rest(&mut Spool::open(small.clone(), Arc::clone(&meter)).unwrap()), [] as [usize; 0]);
    }
    let mut kept: Vec<_> = fs::read_dir(folder.path().join("spool/damaged"))
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap()[0])
        .collect();
    kept.sort_unstable();
    assert_eq!(kept, [b'i', b'j'], "a quarter of 4000 bytes holds the last two");
    assert_eq!((meter.spool_damaged.get(), meter.spool_damaged_dropped.get()), (10, 8));
}

#[test]
fn a_lost_position_makes_all_documents_come_out_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(&folder);
    spool.push(&batch(0..9)).unwrap();
    let chunk = spool.next(4, 1 << 20).unwrap().unwrap();
    spool.acknowledge(&chunk).unwrap();
    drop(spool);
    fs::write(folder.path().join("spool/position"), "garbage").unwrap();
    assert_eq!(rest(&mut open(&folder)), (0..9).collect::<Vec<_>>());
}

#[test]
fn a_document_may_be_larger_than_the_read_window() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(&folder);
    let large = format!("\"{}\"", "y".repeat(700_000));
    let mut one = batch([1]);
    one.push_json(Kind::SocketEvent, large.as_bytes());
    spool.push(&one).unwrap();
    spool.push(&batch([2])).unwrap();
    let mut lengths = Vec::new();
    while let Some(chunk) = spool.next(100, 100).unwrap() {
        lengths.extend(chunk.batch.documents().map(|(_, document)| document.len()));
        spool.acknowledge(&chunk).unwrap();
    }
    assert_eq!(lengths, [document(1).len(), large.len(), document(2).len()]);
}

#[test]
fn two_programs_cannot_use_one_spool() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(&folder);
    let error = Spool::open(options(&folder), Arc::default()).unwrap_err().to_string();
    assert!(error.contains("another process uses the spool") && error.contains("spool.path"), "{error}");
    drop(spool);
    open(&folder);
}

/// Makes the creation of this segment fail, without root or a small disk: a folder has its name.
fn block(folder: &TempDir, number: u64) -> PathBuf {
    let path = folder.path().join(format!("spool/{number:016}.spool"));
    fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn documents_that_the_disk_cannot_take_wait_in_memory_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let meter = Arc::<Meter>::default();
    let small = SpoolOptions { segment_size: 110, ..options(&folder) };
    let mut spool = Spool::open(small, Arc::clone(&meter)).unwrap();
    spool.push(&batch(0..3)).unwrap();
    let blocked = block(&folder, 2);
    assert!(spool.push(&batch(3..20)).unwrap_err().to_string().contains("spool"));
    let chunk = spool.next(100, 1 << 20).unwrap().unwrap();
    assert_eq!(numbers(&chunk.batch), [0, 1, 2], "first what is on disk");
    spool.acknowledge(&chunk).unwrap();
    let chunk = spool.next(2, 1 << 20).unwrap().unwrap();
    assert_eq!(numbers(&chunk.batch), [3, 4], "then what is in memory");
    spool.push(&batch([20])).unwrap();
    spool.acknowledge(&chunk).unwrap();
    assert!(spool.push(&batch([21])).is_err());
    fs::remove_dir(blocked).unwrap();
    spool.push(&batch([22])).unwrap();
    assert_eq!(rest(&mut spool), (5..23).collect::<Vec<_>>());
    assert_eq!(meter.spool_dropped.get(), 0);
}

#[test]
fn memory_is_bounded_and_dropped_documents_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let meter = Arc::<Meter>::default();
    let mut spool = Spool::open(SpoolOptions { memory: 1000, ..options(&folder) }, Arc::clone(&meter)).unwrap();
    block(&folder, 1);
    for number in 0..500 {
        assert!(spool.push(&batch([number])).is_err());
        assert!(spool.memory.bytes <= 1000);
    }
    let left = rest(&mut spool);
    assert_eq!(left.last(), Some(&499));
    assert_eq!(meter.spool_dropped.get() as usize + left.len(), 500);
    assert!(spool.push(&batch([500, 501])).is_err());
    let mut unwritten = Batch::default();
    assert!(spool.close(&mut unwritten).is_err());
    assert_eq!(numbers(&unwritten), [500, 501], "documents that cannot be kept are given back");
    assert_eq!(meter.spool_dropped.get() as usize + left.len(), 500);
}

/// Whether these documents have arrived is not known, so they are sent again after a restart. The server recognises them by
/// their ids.
#[test]
fn documents_that_are_being_sent_from_memory_are_written_to_disk_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(&folder);
    let blocked = block(&folder, 1);
    assert!(spool.push(&batch(0..3)).is_err());
    assert!(spool.next(10, 1 << 20).unwrap().is_some());
    fs::remove_dir(blocked).unwrap();
    let mut left = Batch::default();
    spool.close(&mut left).unwrap();
    assert!(left.is_empty());
    drop(spool);
    assert_eq!(rest(&mut open(&folder)), [0, 1, 2]);
}

#[test]
fn an_unusable_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "").unwrap();
    let error = Spool::open(SpoolOptions { path: path.clone(), ..options(&folder) }, Arc::default()).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

/// What a program does with a spool.
#[derive(Debug, Clone)]
enum Step {
    Push(usize),
    Send(usize),
    Restart,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_document_is_lost_repeated_or_out_of_order(steps in proptest::collection::vec(prop_oneof![
        4 => (1..9_usize).prop_map(Step::Push),
        3 => (1..9_usize).prop_map(Step::Send),
        1 => Just(Step::Restart),
    ], 1..60)) {
        let folder = tempfile::tempdir().unwrap();
        let small = SpoolOptions { segment_size: 400, ..options(&folder) };
        let open = || Spool::open(small.clone(), Arc::default()).unwrap();
        let (mut spool, mut pushed, mut sent) = (open(), 0, Vec::new());
        for step in steps {
            match step {
                Step::Push(count) => {
                    spool.push(&batch(pushed..pushed + count)).unwrap();
                    pushed += count;
                }
                Step::Send(count) => if let Some(chunk) = spool.next(count, 1 << 20).unwrap() {
                    sent.extend(numbers(&chunk.batch));
                    spool.acknowledge(&chunk).unwrap();
                },
                Step::Restart => {
                    drop(spool);
                    spool = open();
                }
            }
        }
        sent.extend(rest(&mut spool));
        prop_assert_eq!(sent, (0..pushed).collect::<Vec<_>>());
    }
}
