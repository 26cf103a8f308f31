//! The parts of `socktrail sensors` and `socktrail unlock` that need no kprobes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn socktrail(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_socktrail"));
    command.env_remove("RUST_LOG").args(arguments).output().expect("the binary was built")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

/// Each file has an `.error` file with the expected message after its name: a colon and the line, if there is one, the key, and the
/// problem.
#[test]
fn each_broken_file_is_refused_with_its_line_and_key() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bad-sensors");
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
    assert!(files.len() > 20, "{files:?}");
    for file in files {
        let expected = fs::read_to_string(file.with_extension("error")).expect("the expected message");
        let path = file.to_str().expect("UTF-8");
        let output = socktrail(&["sensors", path]);
        assert_eq!(stderr(&output), format!("socktrail: error: {path}{expected}"));
        assert_eq!(output.status.code(), Some(2), "{path}");
        assert!(output.stdout.is_empty(), "{path}");
    }
}

#[test]
fn a_file_that_cannot_be_read_or_is_too_long_is_named() {
    for (path, why) in [("/no/such/file.yaml", "No such file"), ("/dev/zero", "larger than 1048576 bytes")] {
        let output = socktrail(&["sensors", path]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(path) && stderr(&output).contains(why), "{}", stderr(&output));
    }
}

#[test]
fn the_sample_sensor_file_is_valid() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/net-socket.yaml");
    let output = socktrail(&["sensors", sample.to_str().expect("UTF-8"), "--duration", "100ms"]);
    assert!(!stderr(&output).contains("net-socket.yaml"), "{}", stderr(&output));
    assert_ne!(output.status.code(), Some(2));
}

#[test]
fn a_profile_that_no_sensor_has_is_an_error() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("web.yaml");
    fs::write(&file, "a:\n  profile: [web]\n  listener: net.socket\n").expect("a file");
    let output = socktrail(&["sensors", file.to_str().expect("UTF-8"), "--profile", "db"]);
    assert!(stderr(&output).contains("no sensor with this profile"), "{}", stderr(&output));
}

#[test]
fn unlock_reports_that_no_process_listens() {
    let output = socktrail(&["unlock", "web|*", "--control", "/no/such/control.sock"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = stderr(&output);
    assert!(stderr.contains("/no/such/control.sock") && stderr.contains("socktrail sensors"), "{stderr}");
}
