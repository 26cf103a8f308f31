//! An index that refuses documents does not hold up the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use socktrail::output::elasticsearch::{ClientOptions, Credentials, Elasticsearch, ElasticsearchOptions, TlsOptions};
use socktrail::output::{Batch, Kind, Outputs, Reading, SpoolOptions};

use super::fake::{Fake, Fault};
use super::number;
use super::support::eventually;

/// The library's outputs, to send documents of all kinds.
struct Library {
    outputs: Outputs,
    sent: BTreeMap<&'static str, usize>,
}

impl Library {
    fn start(server: &Fake, folder: &Path, index: &str, max_size: u64) -> Self {
        let options = ElasticsearchOptions {
            client: ClientOptions {
                hosts: vec![server.url()],
                credentials: Credentials::None,
                tls: TlsOptions::default(),
                compression_level: 1,
                timeout: Duration::from_secs(10),
            },
            index: index.to_owned(),
            bulk_max_size: 25,
            backoff_init: Duration::from_millis(20),
            backoff_max: Duration::from_millis(100),
            spool: SpoolOptions { path: folder.to_owned(), max_size, segment_size: 2000, memory: 1 << 20 },
            sync: Duration::from_secs(1),
            dead_letters: folder.join("rejected.json"),
        };
        let meter = Arc::default();
        let output = Elasticsearch::start(options, Arc::clone(&meter)).expect("a spool");
        let mut outputs = Outputs::new();
        outputs.start("elasticsearch", Box::new(output), 1 << 20, meter).expect("a thread");
        Self { outputs, sent: BTreeMap::new() }
    }

    /// Sends documents with these numbers, of each of these kinds.
    fn send(&mut self, kinds: &[Kind], numbers: std::ops::Range<usize>) {
        for number in numbers {
            let mut batch = Batch::default();
            for kind in kinds {
                let name = kind.name();
                let document = format!("{{\"@timestamp\":\"x\",\"flow\":{{\"id\":\"{name}-{number}\"}}}}");
                batch.push_json(*kind, document.as_bytes());
                *self.sent.entry(name).or_default() += 1;
            }
            self.outputs.send(&Arc::new(batch));
        }
    }

    fn reading(&self) -> Reading {
        self.outputs.readings().remove(0)
    }
}

/// The numbers of a kind's documents in the order in which they came.
fn order(server: &Fake, kind: &str) -> Vec<u64> {
    server.seen().order.iter().filter(|id| id.starts_with(&format!("{kind}-"))).map(|id| number(id)).collect()
}

#[test]
fn an_index_that_refuses_holds_up_no_other() {
    for refuses_whole_requests in [false, true] {
        let (server, folder) = (Fake::start(), tempfile::tempdir().expect("a temporary directory"));
        let refuse = |status| match refuses_whole_requests {
            true => server.seen().blocked = Some(("\"logs.flow\"".to_owned(), status)),
            false => server.seen().forbidden = Some(("logs.flow".to_owned(), status)),
        };
        refuse(403);
        let mut library = Library::start(&server, folder.path(), "logs.{kind}", 1 << 20);
        library.send(&Kind::ALL, 0..100);
        eventually("the others are there", || server.count() == 300);
        eventually("the trouble is reported", || library.reading().troubles == 1);
        let trouble = library.reading().trouble.expect("a trouble");
        assert!(trouble.starts_with("index logs.flow: ") && trouble.contains("403"), "{trouble}");
        assert!(trouble.contains(&server.url()), "{trouble}");
        eventually("they are acknowledged", || library.reading().pending == 100);
        // Another run finds them in the spool, and waits as well.
        library.outputs.close(Duration::from_millis(200));
        let mut library = Library::start(&server, folder.path(), "logs.{kind}", 1 << 20);
        library.send(&Kind::ALL, 100..150);
        eventually("the others are there", || server.count() == 450);
        eventually("they are acknowledged", || library.reading().pending == 150);
        server.seen().forbidden = None;
        server.seen().blocked = None;
        eventually("all are there", || server.count() == 600);
        let reading = library.outputs.close(Duration::from_secs(30)).remove(0);
        assert_eq!((reading.pending, reading.troubles, reading.rejected), (0, 0, 0), "{reading:?}");
        for kind in Kind::ALL {
            let mut numbers = order(&server, kind.name());
            if refuses_whole_requests && kind == Kind::Flow {
                // After a single document was refused, another one is sent to compare, and may be stored before it.
                numbers.sort_unstable();
            }
            assert_eq!(numbers, (0..150).collect::<Vec<_>>(), "{}", kind.name());
        }
        assert_eq!(server.seen().duplicates, 0);
    }
}

#[test]
fn an_index_that_refuses_takes_no_room_from_the_others() {
    let (server, folder) = (Fake::start(), tempfile::tempdir().expect("a temporary directory"));
    server.seen().forbidden = Some(("logs.flow".to_owned(), 403));
    let mut library = Library::start(&server, folder.path(), "logs.{kind}", 30_000);
    for round in 0..20 {
        library.send(&Kind::ALL, round * 50..(round + 1) * 50);
        eventually("the others are there", || server.count() == (round + 1) * 150);
        let files = |folder: &Path| -> u64 {
            let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("an entry").path());
            entries
                .filter(|path| path.extension().is_some_and(|it| it == "spool"))
                .map(|it| it.metadata().map_or(0, |it| it.len()))
                .sum()
        };
        let size: u64 = Kind::ALL.iter().map(|kind| files(&folder.path().join(kind.name()))).sum();
        assert!(size <= 30_000, "{size}");
    }
    let before = library.reading();
    // A batch that is being sent may be in neither of the two counts.
    assert!((975..=1000).contains(&(before.spool_dropped + before.pending)), "{before:?}");
    assert!(before.spool_dropped > 0 && before.pending > 50, "{before:?}");
    server.seen().forbidden = None;
    eventually("the rest is sent", || library.reading().pending == 0);
    let flows = order(&server, "flow");
    assert_eq!(flows, (1000 - flows.len() as u64..1000).collect::<Vec<_>>(), "the oldest were dropped");
    let after = library.outputs.close(Duration::from_secs(30)).remove(0);
    assert_eq!(after.spool_dropped + flows.len() as u64, 1000, "{after:?}");
}

#[test]
fn waiting_documents_are_sent_after_the_index_was_renamed() {
    let (server, folder) = (Fake::start(), tempfile::tempdir().expect("a temporary directory"));
    for (round, index) in ["mine", "logs.{kind}", "mine", "logs.{kind}"].into_iter().enumerate() {
        server.seen().always = Some(Fault::Status(503));
        let mut library = Library::start(&server, folder.path(), index, 1 << 20);
        library.send(&Kind::ALL, round * 10..(round + 1) * 10);
        library.outputs.close(Duration::from_millis(50));
    }
    server.seen().always = None;
    let library = Library::start(&server, folder.path(), "logs.{kind}", 1 << 20);
    eventually("all are there", || server.count() == 160);
    let reading = library.outputs.close(Duration::from_secs(30)).remove(0);
    assert_eq!(reading.pending, 0);
    let seen = server.seen();
    let indices: BTreeSet<_> = seen.documents.keys().map(|(index, _)| index.as_str()).collect();
    assert_eq!(indices, BTreeSet::from(["logs.event", "logs.flow", "logs.loss", "logs.sensor"]));
}
