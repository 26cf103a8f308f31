use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::thread;

use serde_json::Value;
use tempfile::TempDir;

use super::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);
const ID: Id = Id::User(61_184);

/// A service that answers each request with `answer`.
fn serve(folder: &TempDir, name: &str, answer: impl Fn(Value, &mut UnixStream) + Send + 'static) {
    let listener = UnixListener::bind(folder.path().join(name)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let request = message(&mut stream, Instant::now() + LONG).unwrap();
            answer(serde_json::from_slice(&request).unwrap(), &mut stream);
        }
    });
}

/// The result of an answer of these bytes.
fn answer_to(bytes: &[u8], timeout: Duration) -> Answer {
    let (folder, bytes) = (TempDir::new().unwrap(), bytes.to_vec());
    serve(&folder, "io.systemd.DynamicUser", move |_, stream| drop(stream.write_all(&bytes)));
    look_up(folder.path(), ID, timeout)
}

fn named(name: &str) -> Answer {
    Answer::Named(name.to_owned())
}

/// The reply of a service that knows one user, and one group.
fn knows_one(request: &Value, name: &str, id: u32) -> String {
    let (method, parameters) = (request["method"].as_str().unwrap(), &request["parameters"]);
    let reply = match method {
        "io.systemd.UserDatabase.GetUserRecord" if parameters["uid"] == id => {
            json!({ "parameters": { "record": { "userName": name, "uid": id, "gid": 3 }, "incomplete": true } })
        }
        "io.systemd.UserDatabase.GetGroupRecord" if parameters["gid"] == id => {
            json!({ "parameters": { "record": { "groupName": name, "gid": id }, "incomplete": false } })
        }
        _ => json!({ "error": "io.systemd.UserDatabase.NoRecordFound", "parameters": {} }),
    };
    format!("{reply}\0")
}

#[test]
fn a_service_is_asked_by_its_name() {
    let folder = TempDir::new().unwrap();
    serve(&folder, "io.systemd.DynamicUser", |request, stream| {
        assert_eq!(request["parameters"]["service"], "io.systemd.DynamicUser");
        stream.write_all(knows_one(&request, "dynamic", 61_184).as_bytes()).unwrap();
    });
    assert_eq!(look_up(folder.path(), ID, LONG), named("dynamic"));
    assert_eq!(look_up(folder.path(), Id::Group(61_184), LONG), named("dynamic"));
    assert_eq!(look_up(folder.path(), Id::User(61_185), LONG), Answer::Unknown);
    // An answer may come in pieces.
    serve(&folder, "io.systemd.Pieces", |request, stream| {
        for byte in knows_one(&request, "piece", u32::MAX - 9).as_bytes() {
            stream.write_all(&[*byte]).unwrap();
        }
    });
    assert_eq!(look_up(folder.path(), Id::User(u32::MAX - 9), LONG), named("piece"));
}

#[test]
fn the_multiplexer_speaks_for_all_unless_it_fails() {
    let folder = TempDir::new().unwrap();
    serve(&folder, "io.systemd.DynamicUser", |request, stream| {
        stream.write_all(knows_one(&request, "dynamic", 61_184).as_bytes()).unwrap();
    });
    serve(&folder, MULTIPLEXER, |request, stream| {
        let reply = match request["parameters"]["uid"].as_u64() {
            Some(1) => json!({ "error": "io.systemd.UserDatabase.ServiceNotAvailable", "parameters": {} }).to_string(),
            Some(61_184) => "?".to_owned(),
            _ => json!({ "error": "io.systemd.UserDatabase.NoRecordFound" }).to_string(),
        };
        stream.write_all(format!("{reply}\0").as_bytes()).unwrap();
    });
    assert_eq!(services(folder.path()), [MULTIPLEXER, "io.systemd.DynamicUser"]);
    assert_eq!(look_up(folder.path(), ID, LONG), named("dynamic"));
    assert_eq!(look_up(folder.path(), Id::User(1), LONG), Answer::Failed, "one service has failed");
    assert_eq!(look_up(folder.path(), Id::Group(61_184), LONG), Answer::Unknown, "the others are not asked");
}

#[test]
fn the_multiplexer_is_found_among_many_services() {
    let folder = TempDir::new().unwrap();
    let others = (0..2 * MAX_SERVICES).map(|number| format!("a.{number}"));
    // Directories list their entries in any order.
    for name in others.clone().chain([MULTIPLEXER.to_owned()]).chain(others.map(|name| name + ".b")) {
        fs::write(folder.path().join(name), "").unwrap();
    }
    let services = services(folder.path());
    assert_eq!((services.len(), services[0].as_str()), (MAX_SERVICES, MULTIPLEXER));
}

#[test]
fn only_an_answer_about_the_id_is_believed() {
    let user =
        |record: Value| answer_to(format!("{}\0", json!({ "parameters": { "record": record } })).as_bytes(), LONG);
    assert_eq!(user(json!({ "userName": "a", "uid": 61_184 })), named("a"));
    assert_eq!(user(json!({ "userName": "a", "uid": 61_185 })), Answer::Failed);
    assert_eq!(user(json!({ "userName": "a", "uid": 61_185, "binding": { "m": { "uid": 61_184 } } })), Answer::Failed);
    assert_eq!(user(json!({ "userName": "a", "binding": { "m": { "uid": 61_184 } } })), named("a"));
    assert_eq!(user(json!({ "userName": "a", "gid": 61_184 })), Answer::Failed);
    assert_eq!(user(json!({ "groupName": "a", "uid": 61_184 })), Answer::Failed);
    assert_eq!(user(json!({ "uid": 61_184 })), Answer::Failed);
    for no_name in ["", "a:b", "a\nb", "\u{1b}[31m", &"a".repeat(257)] {
        assert_eq!(user(json!({ "userName": no_name, "uid": 61_184 })), Answer::Failed, "{no_name:?}");
    }
    assert_eq!(user(json!({ "userName": "a".repeat(256), "uid": 61_184 })), named(&"a".repeat(256)));
}

#[test]
fn malformed_and_endless_answers_fail() {
    assert_eq!(answer_to(b"\0", LONG), Answer::Failed);
    assert_eq!(answer_to(b"{}\0", LONG), Answer::Failed);
    assert_eq!(answer_to(b"\xff\xfe{garbage\0", LONG), Answer::Failed);
    assert_eq!(answer_to("[".repeat(60_000).as_bytes(), SHORT), Answer::Failed);
    assert_eq!(answer_to(b"{\"parameters\":", LONG), Answer::Failed, "the service hangs up");
    let start = Instant::now();
    let folder = TempDir::new().unwrap();
    serve(&folder, "io.systemd.Endless", |_, stream| while stream.write_all(b"          ").is_ok() {});
    assert_eq!(look_up(folder.path(), ID, LONG), Answer::Failed);
    assert!(start.elapsed() < LONG, "an endless answer is not read to its end");
}

#[test]
fn a_service_that_never_answers_does_not_block() {
    let folder = TempDir::new().unwrap();
    let start = Instant::now();
    serve(&folder, "io.systemd.Slow", |_, stream| {
        for _ in 0..600 {
            let _ = stream.write_all(b" ");
            thread::sleep(Duration::from_millis(100));
        }
    });
    assert_eq!(look_up(folder.path(), ID, SHORT), Answer::Failed);
    // A service that does not accept: its backlog is full, so connecting blocks.
    let path = folder.path().join("io.systemd.Full");
    let _listener = UnixListener::bind(&path).unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = open(&path, Duration::from_millis(1)) {
        waiting.push(stream);
        assert!(waiting.len() <= 1 << 16);
    }
    assert_eq!(look_up(folder.path(), ID, SHORT), Answer::Failed);
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
}

#[test]
fn only_a_guarded_directory_is_used() {
    let folder = TempDir::new().unwrap();
    serve(&folder, "io.systemd.Any", |request, stream| {
        stream.write_all(knows_one(&request, "any", 61_184).as_bytes()).unwrap();
    });
    let other = TempDir::new().unwrap();
    let link = other.path().join("link");
    symlink(folder.path(), &link).unwrap();
    assert_eq!(look_up(&link, ID, LONG), Answer::Unknown);
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    assert_eq!(look_up(folder.path(), ID, LONG), Answer::Unknown);
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(look_up(folder.path(), ID, LONG), named("any"));
    assert_eq!(look_up(&folder.path().join("none"), ID, LONG), Answer::Unknown);
}
