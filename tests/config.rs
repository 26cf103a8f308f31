//! `socktrail config`: valid files are accepted, mistakes are reported with their line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use socktrail::config::reference;

fn socktrail(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_socktrail"));
    command.env_clear().args(arguments).output().expect("the binary was built")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/config").join(name)
}

fn check(file: &Path) -> Output {
    socktrail(&["config", "check", file.to_str().expect("a path in UTF-8")])
}

#[test]
fn options_of_auditbeat_are_accepted_unchanged() {
    let file = data("auditbeat.yml");
    let output = check(&file);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    assert_eq!(stdout.lines().last(), Some(&*format!("{}: ok", file.display())));
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
}

/// The first line of each file is a comment with the expected error: `# LINE: PROBLEM`.
#[test]
fn each_broken_file_has_its_expected_error() {
    let mut files = 0;
    for entry in fs::read_dir(data("broken")).expect("the folder is there") {
        let file = entry.expect("the folder can be read").path();
        let content = fs::read_to_string(&file).expect("a file");
        let expected = content.lines().next().and_then(|line| line.strip_prefix("# ")).expect("what is expected");
        let (line, problem) = expected.split_once(": ").expect("LINE: PROBLEM");
        let output = check(&file);
        let (stderr, begin) = (text(&output.stderr), format!("{}:{line}: {problem}", file.display()));
        assert_eq!(output.status.code(), Some(2), "{}: {stderr}", file.display());
        assert!(stderr.contains(begin.trim_end()), "{stderr:?} does not say {begin:?}");
        assert!(output.stdout.is_empty());
        // Values may be secrets: those of these files are `secret` and `12345`.
        assert!(!stderr.contains(": secret") && !stderr.contains("secret@") && !stderr.contains("12345"), "{stderr}");
        files += 1;
    }
    assert!(files > 15, "{files} broken files");
}

#[test]
fn the_shown_configuration_can_be_read_again() {
    let file = data("auditbeat.yml");
    let show = |file: &Path| socktrail(&["config", "show", "--config", file.to_str().expect("UTF-8")]);
    let shown = show(&file);
    let line = text(&shown.stdout).lines().find(|line| line.starts_with("socket.enable_ipv6: true ")).expect("the key");
    assert!(line.ends_with(&format!(" # {}:3", file.display())), "{line}");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let again = folder.path().join("again.yml");
    fs::write(&again, &shown.stdout).expect("a writable directory");
    let values = |output: &Output| -> Vec<String> {
        text(&output.stdout)
            .lines()
            .map(|line| line.split(" # ").next().unwrap_or_default().trim().to_owned())
            .collect()
    };
    let shown_again = show(&again);
    assert_eq!(values(&shown_again), values(&shown), "{}", text(&shown_again.stderr));
}

#[test]
fn the_environment_overrides_the_file_and_the_command_line_overrides_both() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_socktrail"));
    let output = command
        .env_clear()
        .envs([("SOCKTRAIL_SOCKET_GUESS_TIMEOUT", "1s"), ("SOCKTRAIL_SOCKET_PERF_QUEUE_SIZE", "1")])
        .args(["config", "show", "--set", "socket.perf_queue_size=2", "--config"])
        .arg(data("auditbeat.yml"))
        .output()
        .expect("the binary was built");
    let line = |key: &str| {
        let line = text(&output.stdout).lines().find(|line| line.starts_with(key)).expect("the key is shown");
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    let expected = "\"1s\" # environment variable SOCKTRAIL_SOCKET_GUESS_TIMEOUT";
    assert_eq!(line("socket.guess_timeout"), expected);
    assert_eq!(line("socket.perf_queue_size"), "2 # command line");
}

/// With its keys uncommented, the example is the default configuration, with every key.
#[test]
fn the_example_holds_every_key_with_its_default() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("socktrail.example.yml");
    let output = check(&example);
    assert!(output.status.success(), "{}", text(&output.stderr));

    let content = fs::read_to_string(&example).expect("the example");
    let bare: String = content.lines().map(|line| line.strip_prefix('#').unwrap_or(line).to_owned() + "\n").collect();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("bare.yml");
    fs::write(&file, bare).expect("a writable directory");
    let (shown, built_in) =
        (socktrail(&["config", "show", "--config", file.to_str().expect("UTF-8")]), socktrail(&["config", "show"]));
    let parts =
        |line: &'_ str| line.split_once(" # ").map(|(pair, origin)| (pair.trim().to_owned(), origin.to_owned()));
    for (with, without) in text(&shown.stdout).lines().zip(text(&built_in.stdout).lines()) {
        let ((pair, origin), (default, _)) = (parts(with).expect("an origin"), parts(without).expect("an origin"));
        assert_eq!(pair, default);
        let nothing = pair.ends_with(": null");
        let (key, _) = pair.split_once(':').expect("a key");
        assert!(nothing || origin.contains("bare.yml"), "{key} is not in the example");
        assert!(content.contains(&format!("#{key}:")), "{key} is not in the example");
    }
    assert!(shown.status.success(), "{}", text(&shown.stderr));
}

/// The page and the example agree with the code. With `BLESS` set, the test first writes them.
#[test]
fn the_reference_is_made_from_the_code() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (page, example) = (here.join("docs/configuration.md"), here.join("socktrail.example.yml"));
    let written = |path: &Path| fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let new_page = reference::SECTIONS.iter().fold(written(&page), |page, (section, _)| with_table(&page, section));
    let new_example = reference::example();
    if std::env::var_os("BLESS").is_some() {
        fs::write(&page, &new_page).expect("a writable page");
        fs::write(&example, &new_example).expect("a writable example");
    }
    assert_eq!(written(&page), new_page, "BLESS=1 cargo test --test config");
    assert_eq!(written(&example), new_example, "BLESS=1 cargo test --test config");
    assert_eq!(new_page.matches("<!-- keys of ").count(), reference::SECTIONS.len(), "each section has its table");
}

/// The page with a section's table replaced, between the two comments around it.
fn with_table(page: &str, section: &str) -> String {
    let begin = format!("<!-- keys of {section}: `BLESS=1 cargo test --test config` writes them -->\n");
    let end = "<!-- end of keys -->\n";
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no `{begin}`"));
    let (_, after) = rest.split_once(end).unwrap_or_else(|| panic!("no `{end}` after `{begin}`"));
    format!("{before}{begin}{}{end}{after}", reference::table(section))
}
