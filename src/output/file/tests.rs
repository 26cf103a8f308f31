//! Files: whole lines, rotation, compression, a full disk.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use tempfile::TempDir;

use super::*;
use crate::output::Kind;

fn options(folder: &TempDir) -> FileOptions {
    FileOptions {
        path: folder.path().join("flows.json"),
        rotate_size: 1 << 30,
        rotate_every: None,
        keep: 3,
        gzip: false,
        sync: SyncPolicy::Never,
    }
}

fn batch(numbers: impl IntoIterator<Item = u32>) -> Batch {
    let mut batch = Batch::default();
    for number in numbers {
        batch.push(Kind::Flow, &serde_json::json!({ "n": number })).unwrap();
    }
    batch
}

fn names(folder: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(folder.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn lines_are_appended_after_the_last_whole_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flows.json");
    for (before, kept) in
        [(&b""[..], 0), (b"{\"n\":7}\n", 1), (b"{\"n\":7}\n{\"n\":8", 1), (b"{\"n", 0), (&[b'x'; 200_000], 0)]
    {
        fs::write(&path, before).unwrap();
        let mut output = FileOutput::open(options(&folder), Arc::default()).unwrap();
        output.write(&batch([1, 2])).unwrap();
        let lines = lines(&path);
        assert_eq!(lines.len(), kept + 2);
        assert_eq!(lines[kept..], ["{\"n\":1}", "{\"n\":2}"]);
    }
}

#[test]
fn a_large_file_is_rotated_and_the_oldest_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let options = FileOptions { rotate_size: 20, ..options(&folder) };
    let mut output = FileOutput::open(options, Arc::default()).unwrap();
    for number in 0..14 {
        output.write(&batch([number])).unwrap();
    }
    assert_eq!(names(&folder), ["flows.json", "flows.json.000004", "flows.json.000005", "flows.json.000006"]);
    assert_eq!(lines(&folder.path().join("flows.json.000006")), ["{\"n\":10}", "{\"n\":11}"]);
    assert_eq!(lines(&folder.path().join("flows.json")), ["{\"n\":12}", "{\"n\":13}"]);
}

#[test]
fn an_old_file_is_rotated_unless_it_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3600);
    let options = FileOptions { rotate_every: Some(hour), ..options(&folder) };
    let mut output = FileOutput::open(options, Arc::default()).unwrap();
    output.tick(Instant::now() + hour).unwrap();
    assert_eq!(names(&folder), ["flows.json"]);
    output.write(&batch([1])).unwrap();
    output.tick(Instant::now() + hour / 2).unwrap();
    assert_eq!(names(&folder), ["flows.json"]);
    output.tick(Instant::now() + hour).unwrap();
    assert_eq!(names(&folder), ["flows.json", "flows.json.000001"]);
}

#[test]
fn rotated_files_are_compressed_also_those_of_an_earlier_run() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("flows.json.000007"), "{\"n\":70}\n").unwrap();
    fs::write(folder.path().join("flows.json.old"), "another program's file").unwrap();
    fs::write(folder.path().join("flows.json.000006.gz.part"), "unfinished").unwrap();
    let options = FileOptions { rotate_size: 10, gzip: true, ..options(&folder) };
    let mut output = FileOutput::open(options, Arc::default()).unwrap();
    output.write(&batch([1])).unwrap();
    output.write(&batch([2])).unwrap();
    let expected = ["flows.json", "flows.json.000007.gz", "flows.json.000008.gz", "flows.json.old"];
    eventually("both are compressed", || names(&folder) == expected);
    let mut text = String::new();
    let compressed = fs::File::open(folder.path().join("flows.json.000008.gz")).unwrap();
    assert_eq!(compressed.metadata().unwrap().permissions().mode() & 0o777, 0o600, "only the owner can read it");
    MultiGzDecoder::new(compressed).read_to_string(&mut text).unwrap();
    assert_eq!(text, "{\"n\":1}\n");
}

#[test]
fn unwritable_paths_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = |path: PathBuf| {
        FileOutput::open(FileOptions { path, ..options(&folder) }, Arc::default()).unwrap_err().to_string()
    };
    let missing = refusal(folder.path().join("no/such/flows.json"));
    assert!(missing.contains("no/such/flows.json") && missing.ends_with("create its directory"), "{missing}");
    assert!(refusal("/dev/null".into()).contains("/dev/null is not a regular file"));
    std::os::unix::fs::symlink("/tmp/elsewhere", folder.path().join("link")).unwrap();
    assert!(refusal(folder.path().join("link")).contains("symbolic link"));
}

/// A limit on file size stands in for a full disk, because setting it does not need root.
#[test]
fn a_full_disk_leaves_whole_lines_and_nothing_is_missing_once_there_is_room() {
    const CHILD: &str = "SOCKTRAIL_TEST_FULL_DISK";
    if let Some(folder) = std::env::var_os(CHILD) {
        return on_a_full_disk(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let test = "output::file::tests::a_full_disk_leaves_whole_lines_and_nothing_is_missing_once_there_is_room";
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let status = child.args([test, "--exact", "--nocapture"]).env(CHILD, folder.path()).status().unwrap();
    assert!(status.success());
    let expected: Vec<_> = (0..100).map(|number| format!("{{\"n\":{number}}}")).collect();
    assert_eq!(lines(&folder.path().join("flows.json")), expected);
}

#[allow(unsafe_code, reason = "signal(2) has no safe wrapper")]
fn on_a_full_disk(folder: &Path) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::signal::{SigHandler, Signal};
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { nix::sys::signal::signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
    let (_, hard_limit) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 600, hard_limit).unwrap();
    let options = FileOptions { path: folder.join("flows.json"), ..options(&tempfile::tempdir().unwrap()) };
    let mut output = FileOutput::open(options, Arc::default()).unwrap();
    output.write(&batch(0..50)).unwrap();
    let error = output.write(&batch(50..100)).unwrap_err().to_string();
    assert!(error.contains("flows.json"), "{error}");
    assert_eq!(lines(&folder.join("flows.json")).len(), 50, "nothing of the batch was taken");
    setrlimit(Resource::RLIMIT_FSIZE, hard_limit, hard_limit).unwrap();
    output.write(&batch(50..100)).unwrap();
}
