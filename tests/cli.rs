//! The command as users see it: exit statuses, stdout, stderr. These tests pass on machines with and without kprobes.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn socktrail(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_socktrail"));
    command.env_remove("RUST_LOG").args(arguments).output().expect("the binary was built")
}

fn status(output: &Output) -> i32 {
    output.status.code().expect("no signal ended it")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// Whether this kernel has kprobe events; `None` if it is too old to show this to all users.
fn has_kprobes() -> Option<bool> {
    let sources = Path::new("/sys/bus/event_source/devices");
    match (sources.join("kprobe").exists(), sources.join("uprobe").exists()) {
        (true, _) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    }
}

#[test]
fn flows_fails_with_a_reason_where_no_flow_can_be_seen() {
    let output = socktrail(&["flows", "--duration", "100ms"]);
    let stderr = text(&output.stderr);
    assert_eq!(text(&output.stdout).lines().filter(|line| !line.starts_with('{')).count(), 0, "only documents");
    match (has_kprobes(), nix::unistd::geteuid().is_root()) {
        (Some(false), _) if !Path::new("/sys/kernel/btf/vmlinux").exists() => {
            assert_eq!(status(&output), 3, "{stderr}");
            assert!(stderr.contains("this kernel has no kprobes"), "{stderr}");
            assert!(stderr.contains("CONFIG_KPROBE_EVENTS"), "{stderr}");
            assert!(stderr.contains("what to do: "), "{stderr}");
            assert!(output.stdout.is_empty());
        }
        (Some(_), false) => assert!([0, 4].contains(&status(&output)), "{stderr}"),
        _ if status(&output) == 0 => assert!(stderr.contains("socktrail: ready"), "{stderr}"),
        _ => {
            assert!((3..=7).contains(&status(&output)), "{stderr}");
            assert!(stderr.contains("socktrail: error: "), "{stderr}");
        }
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn a_path_that_is_not_tracefs_is_named() {
    for path in ["/proc", "/no/such/place"] {
        let output = socktrail(&["flows", "--tracefs-path", path]);
        assert_eq!(status(&output), 5);
        assert!(text(&output.stderr).contains(path));
    }
}

#[test]
fn help_documents_the_exit_statuses() {
    let output = socktrail(&["--help"]);
    assert_eq!(status(&output), 0);
    let help = text(&output.stdout);
    let (_, statuses) = help.split_once("Exit status:").expect("a section of its own");
    for (number, word) in
        [(0, "success"), (2, "usage"), (3, "kprobes"), (4, "privileges"), (5, "tracefs"), (6, "limit"), (7, "layout")]
    {
        let line = statuses.lines().find(|line| line.trim_start().starts_with(&number.to_string()));
        assert!(line.is_some_and(|line| line.contains(word)), "{number} {word}: {statuses}");
    }
}

#[test]
fn bad_usage_has_status_2_and_says_what_is_right() {
    for (arguments, expected) in [
        (&["flows", "--duration", "30"][..], "30s"),
        (&["flows", "--duration", "soon"], "soon"),
        (&["flows", "--count", "0"], "0"),
        (&["flows", "--format", "xml"], "ecs"),
        (&["flows", "--source", "gues"], "file:PATH"),
        (&["flows", "--flow-inactive-timeout", "0s"], "greater than zero"),
        (&["flows", "--ring-size-exponent", "99"], "99"),
        (&["flows", "--enable-ipv6", "maybe"], "false"),
        (&["layout", "--diff", "one"], "2"),
        (&["flowz"], "flows"),
        (&["-q", "-v", "doctor"], "cannot be used with"),
        (&[], "Usage"),
    ] {
        let output = socktrail(arguments);
        assert_eq!(status(&output), 2, "{arguments:?}");
        assert!(text(&output.stderr).contains(expected), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn doctor_says_the_same_as_text_and_as_json() {
    let (table, json) = (socktrail(&["doctor"]), socktrail(&["doctor", "--json"]));
    assert_eq!(status(&table), status(&json));
    let report: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let state = report["state"].as_str().expect("a state");
    let expected = match state {
        "ok" => 0,
        "degraded" => 1,
        _ => 3,
    };
    assert_eq!(status(&json), expected, "{state}");
    for finding in report["findings"].as_array().expect("findings") {
        let subject = finding["subject"].as_str().expect("a subject");
        assert!(text(&table.stdout).contains(subject), "{subject}");
        assert_eq!(finding["state"] == "ok", finding.get("remedy").is_none(), "{finding}");
    }
    if has_kprobes() == Some(false) {
        assert_ne!(state, "ok");
    }
}

/// Runs in a separate mount namespace, so that mounts of other processes do not interfere. Only root can make one; other users
/// cannot mount anyway.
#[test]
fn doctor_leaves_no_mount_behind() {
    let script =
        "cp /proc/self/mounts \"$1/before\"; \"$0\" doctor >\"$1/report\"; cmp /proc/self/mounts \"$1/before\"";
    let folder = tempfile::tempdir().expect("a temporary directory");
    let program: &[&str] = if nix::unistd::geteuid().is_root() { &["unshare", "--mount"] } else { &["env"] };
    let output = Command::new(program[0])
        .args(&program[1..])
        .args(["sh", "-c", script, env!("CARGO_BIN_EXE_socktrail")])
        .arg(folder.path())
        .output()
        .expect("a shell");
    assert_eq!(status(&output), 0, "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(std::fs::read_to_string(folder.path().join("report")).expect("a table").contains("tracefs"));
}

#[test]
fn a_missing_or_invalid_layout_file_is_named() {
    for arguments in
        [["layout", "--diff", "/no/such", "/no/such"], ["layout", "--diff", "/proc/self/comm", "/proc/self/comm"]]
    {
        let output = socktrail(&arguments);
        assert_eq!(status(&output), 7);
        assert!(text(&output.stderr).contains(arguments[2]), "{}", text(&output.stderr));
    }
}

#[test]
fn a_closed_pipe_is_a_success() {
    for arguments in ["--help", "doctor", "doctor --json"] {
        let script = format!("(sleep 0.2; \"$0\" {arguments}; echo $? >&2) | true");
        let output = Command::new("sh").args(["-c", &script, env!("CARGO_BIN_EXE_socktrail")]).output().expect("sh");
        assert_eq!(text(&output.stderr), "0\n", "{arguments}");
    }
}

/// The getent helper: its privileges according to the kernel, its answers, and its end.
#[test]
fn the_getent_helper_has_no_privileges_and_ends_when_its_socket_closes() {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
    use std::os::fd::AsRawFd;

    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_socktrail"));
    let mut child = command.arg("ask-getent").stdin(theirs).spawn().unwrap();
    drop(command);
    // A question is a letter and the user id. The answer repeats both, followed by `n` and the name, by `u` if the name is
    // unknown, or by `-` if this host has no `getent`.
    send(ours.as_raw_fd(), b"u\0\0\0\0", MsgFlags::MSG_NOSIGNAL).unwrap();
    let mut answer = [0; 300];
    let count = recv(ours.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
    let has_getent = socktrail::users::Sources::system().getent().is_some();
    let expected: &[u8] = if has_getent { b"u\0\0\0\0nroot" } else { b"u\0\0\0\0-" };
    assert_eq!(&answer[..count], expected);

    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
    assert_eq!(
        (value("CapEff:"), value("CapPrm:"), value("CapAmb:")),
        ("0000000000000000", "0000000000000000", "0000000000000000")
    );
    assert_eq!(value("NoNewPrivs:"), "1");
    if nix::unistd::geteuid().is_root() {
        assert_eq!(value("Uid:"), ["2100044411"; 4].join("\t"));
        assert_eq!((value("Gid:"), value("Groups:")), (&*["2100044411"; 4].join("\t"), ""));
    }
    assert!(
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), nix::sys::signal::SIGTERM).is_ok()
    );
    send(ours.as_raw_fd(), b"u\xff\xff\xff\x7f", MsgFlags::MSG_NOSIGNAL).unwrap();
    let count = recv(ours.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
    assert_eq!(
        &answer[..count],
        if has_getent { b"u\xff\xff\xff\x7fu" } else { b"u\xff\xff\xff\x7f-" },
        "SIGTERM does not end it"
    );
    drop(ours);
    assert!(child.wait().unwrap().success());
}
