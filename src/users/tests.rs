use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread::sleep;

use tempfile::TempDir;

use super::*;
#[cfg(feature = "privileges")]
use crate::privileges;

/// A host with its users in files, and a user database of one service.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("passwd"), "local:x:1:\n").unwrap();
        fs::write(folder.path().join("group"), "locals:x:2:\n").unwrap();
        fs::create_dir(folder.path().join("userdb")).unwrap();
        Self { folder }
    }

    fn users(&self) -> Users {
        let path = |name| self.folder.path().join(name);
        let (long, getent) = (Duration::from_secs(60), Vec::new());
        let (userdb_timeout, getent_timeout) = (long, long);
        let (passwd, group, userdb) = (path("passwd"), path("group"), path("userdb"));
        Users::from(Sources { passwd, group, userdb, getent, userdb_timeout, getent_timeout })
    }

    /// Starts a service that answers each request, after the time `after`, with `name` as the name of user 1000.
    fn serve(&self, name: &str, after: Duration) {
        let listener = UnixListener::bind(self.folder.path().join("userdb/io.systemd.Test")).unwrap();
        let reply = format!(r#"{{"parameters":{{"record":{{"userName":"{name}","uid":1000}}}}}}"#);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]).unwrap();
                sleep(after);
                let _ = stream.write_all(reply.as_bytes()).and_then(|()| stream.write_all(b"\0"));
            }
        });
    }
}

fn wait_for(name: impl Fn() -> Option<Arc<str>>) -> Option<Arc<str>> {
    let start = Instant::now();
    while name().is_none() && start.elapsed() < Duration::from_secs(60) {
        sleep(Duration::from_millis(1));
    }
    name()
}

#[test]
fn files_answer_at_once_and_without_a_thread() {
    let host = Host::new();
    let users = host.users();
    let names = users.at(Instant::now());
    assert_eq!(names.user(1).as_deref(), Some("local"));
    assert_eq!(names.group(2).as_deref(), Some("locals"));
    assert_eq!(names.user(2), None);
}

#[test]
fn prefetched_users_have_names() {
    let host = Host::new();
    host.serve("ldap-user", Duration::ZERO);
    let users = host.users();
    // Lookups from before the thread's start count, too.
    users.prefetch(&Credentials { uid: 1, gid: 2, euid: 1000, egid: 2 });
    users.start(None).unwrap();
    assert_eq!(wait_for(|| users.at(Instant::now()).user(1000)).as_deref(), Some("ldap-user"));
    assert_eq!(users.clone().at(Instant::now()).user(1000).as_deref(), Some("ldap-user"), "clones share it");
}

#[cfg(feature = "privileges")]
#[test]
fn services_can_be_asked_after_privileges_are_dropped() {
    // A sandbox around the tests may forbid it; then there is nothing to test. Only this thread drops its privileges.
    let drop_privileges = || {
        privileges::drop_capabilities(privileges::Extra::default())?;
        privileges::filter_syscalls()?;
        privileges::restrict_files(&[], &[]).map(drop)
    };
    let in_a_thread = |run: &(dyn Fn() + Sync)| std::thread::scope(|scope| scope.spawn(run).join().unwrap());
    let host = Host::new();
    host.serve("ldap-user", Duration::ZERO);
    let users = host.users();
    in_a_thread(&|| {
        if drop_privileges().is_ok() {
            users.start(None).unwrap();
            assert_eq!(wait_for(|| users.at(Instant::now()).user(1000)).as_deref(), Some("ldap-user"));
        }
    });
}

#[test]
fn a_slow_service_does_not_block() {
    let host = Host::new();
    host.serve("slow", Duration::from_secs(300));
    let users = host.users();
    users.start(None).unwrap();
    let start = Instant::now();
    for uid in 1000..1000 + 3 * u32::try_from(QUEUE).unwrap() {
        assert_eq!(users.at(start).user(uid), None);
    }
    assert_eq!(users.at(start).user(1).as_deref(), Some("local"));
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn a_changed_name_appears_after_the_next_look_up() {
    let host = Host::new();
    let (users, start) = (host.users(), Instant::now());
    assert_eq!(users.at(start).user(1).as_deref(), Some("local"));
    fs::write(host.folder.path().join("passwd"), "renamed:x:1:\n").unwrap();
    assert_eq!(users.at(start + Duration::from_secs(59)).user(1).as_deref(), Some("local"));
    assert_eq!(users.at(start + Duration::from_secs(60)).user(1).as_deref(), Some("renamed"));
}

#[test]
fn this_hosts_root_has_a_name() {
    let users = Users::new();
    let names = users.at(Instant::now());
    assert_eq!(names.user(0).as_deref(), Some("root"));
    assert_eq!(names.group(0).as_deref(), Some("root"));
    assert_eq!(names.user(u32::MAX - 7), None);
}
