//! Sensors tell of each socket that it opens and that it closes, once, and of what the test did with it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::actors::{ACT, EXECUTABLE};
use crate::helpers::document::{Wanted, expect};
use crate::helpers::patience::until;
use crate::helpers::process::Process;
use crate::helpers::socktrail::{Socktrail, Watched};
use crate::helpers::sys::set_option;
use crate::helpers::traffic::Connection;
use crate::helpers::web::WebServer;

tests![
    the_sample_as_it_is,
    over_ipv6,
    listeners_and_datagrams,
    a_socket_that_only_sends,
    a_thousand_short_connections,
    sockets_that_were_there_before,
    the_state_of_each_end,
    a_connect_that_does_not_wait,
    refused_connects,
    a_reset_is_an_end,
    locked_until_unlocked,
    names_of_hosts,
    a_server_of_names_that_keeps_silent,
    names_that_others_chose,
    only_what_was_asked_for,
];

/// The seed's sample.
const SAMPLE: &str = include_str!("../../../../data/net-socket.yaml");
const PORT: u16 = 8084;

/// The test's own client and server: the sample, and no more than it says.
fn the_sample_as_it_is() -> Result<()> {
    let web = WebServer::start(PORT)?;
    let watch = sensors(SAMPLE, &[])?;
    let curl = Process::start(&["curl", "-sS", "--ipv4", &format!("http://127.0.0.1:{PORT}/")])?.finish()?;
    ensure!(curl.status == 0 && curl.stdout == web.page(), "{curl:?}");
    UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", "127.0.0.1:9")?;
    let remote = format!("127.0.0.1:{PORT}");
    wait_for(&watch, "closed", &remote)?;
    let watched = stop(watch)?;
    let [opened, closed] = both(&watched, &remote)?;
    for (event, action) in [(opened, "opened"), (closed, "closed")] {
        expect(
            event,
            &vec![
                ("/eid", json!(format!("sockets|net.socket@net-sockets|{action}@{remote}|0"))),
                ("/sensor", json!("sockets")),
                ("/listener", json!("net.socket")),
                ("/data/action", json!(action)),
                ("/data/proto", json!("tcp")),
                ("/data/remote", json!(remote)),
                ("/data/remote_host", Value::Null),
                ("/data/process", json!({"pid": curl.pid, "name": "curl"})),
            ],
        )?;
    }
    expect(opened, &vec![("/data/state", json!("ESTABLISHED"))])?;
    ensure!(opened["data"]["local"] == closed["data"]["local"], "{opened:#} {closed:#}");
    let local = opened["data"]["local"].as_str().context("an address")?;
    let [opened, _] = both(&watched, local).context("the server's end")?;
    expect(opened, &vec![("/data/local", json!(remote)), ("/data/process/name", json!("httpd"))])?;
    let ignored = watched.documents.iter().find(|event| event["data"]["proto"] != "tcp");
    ensure!(ignored.is_none(), "the sample ignores UDP: {ignored:?}");
    Ok(())
}

fn over_ipv6() -> Result<()> {
    let watch = sensors(&sensor("patterns: ['tcp6 * * * ESTABLISHED']"), &[])?;
    let listener = TcpListener::bind("[::1]:0")?;
    let there = listener.local_addr()?;
    let client = TcpStream::connect(there)?;
    let here = client.local_addr()?;
    drop((listener.accept()?, client));
    wait_for(&watch, "closed", &there.to_string())?;
    wait_for(&watch, "closed", &here.to_string())?;
    let watched = stop(watch)?;
    for (local, remote) in [(here, there), (there, here)] {
        for event in both(&watched, &remote.to_string())? {
            let action = event["data"]["action"].as_str().unwrap_or_default();
            let eid = format!("all|net.socket|{action}@[::1]:{}|0", remote.port());
            expect(event, &of_this_process("tcp6", local, remote))?;
            expect(event, &vec![("/eid", json!(eid))])?;
        }
    }
    Ok(())
}

fn listeners_and_datagrams() -> Result<()> {
    let watch = sensors(&sensor(""), &[])?;
    let (listener, datagrams) = (TcpListener::bind("127.0.0.1:8085")?, UdpSocket::bind("[::1]:8086")?);
    drop((listener, datagrams));
    let cases =
        [("tcp", "127.0.0.1:8085", "0.0.0.0:0", json!("LISTEN")), ("udp6", "[::1]:8086", "[::]:0", Value::Null)];
    for (proto, local, remote, state) in cases {
        for action in ["opened", "closed"] {
            let what = format!("{action} of {local}");
            let event = watch.wait_for(&what, |event| is(event, action, remote) && event["data"]["local"] == local)?;
            expect(&event, &of_this_process(proto, local.parse()?, remote.parse()?))?;
            expect(&event, &vec![("/data/state", state.clone())])?;
        }
    }
    stop(watch).map(drop)
}

/// It was never bound nor connected: sending gives it a port, as `getsockname(2)` has it.
fn a_socket_that_only_sends() -> Result<()> {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, getsockname, sendto,
        socket,
    };
    for (family, proto, there, any) in
        [(AddressFamily::Inet, "udp", "127.0.0.1:9", "0.0.0.0"), (AddressFamily::Inet6, "udp6", "[::1]:9", "[::]")]
    {
        let watch = sensors(&sensor(""), &[])?;
        let sender = socket(family, SockType::Datagram, SockFlag::empty(), None)?;
        let there = SockaddrStorage::from(there.parse::<SocketAddr>()?);
        for _ in 0..3 {
            sendto(sender.as_raw_fd(), b"x", &there, MsgFlags::empty())?;
        }
        let name: SockaddrStorage = getsockname(sender.as_raw_fd())?;
        let port = name.as_sockaddr_in().map(SockaddrIn::port).or(name.as_sockaddr_in6().map(SockaddrIn6::port));
        let local = format!("{any}:{}", port.context("a port")?);
        drop(sender);
        let remote = format!("{any}:0");
        for action in ["opened", "closed"] {
            let what = format!("{action} of {local}");
            let event =
                watch.wait_for(&what, |event| is(event, action, &remote) && event["data"]["local"] == *local)?;
            expect(&event, &of_this_process(proto, local.parse()?, remote.parse()?))?;
        }
        let watched = stop(watch)?;
        let of_it = watched.documents.iter().filter(|event| event["data"]["local"] == *local).count();
        ensure!(of_it == 2, "{of_it} events of it: {:#?}", watched.documents);
    }
    Ok(())
}

fn a_thousand_short_connections() -> Result<()> {
    const COUNT: usize = 1000;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let there = listener.local_addr()?;
    let watch = sensors(&sensor(&format!("patterns: ['tcp * {there} * *']")), &["--stats"])?;
    let server = thread::spawn(move || listener.incoming().take(COUNT).try_for_each(|one| one.map(drop)));
    let mut ends = Vec::new();
    for _ in 0..COUNT {
        let client = TcpStream::connect(there)?;
        ends.push(client.local_addr()?.to_string());
        thread::sleep(Duration::from_millis(1));
    }
    server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    until("the last close", || {
        Ok(watch.documents()?.iter().filter(|event| event["data"]["action"] == "closed").count() >= COUNT)
    })?;
    let watched = stop(watch)?;
    ends.sort();
    for action in ["opened", "closed"] {
        let of_action = watched.documents.iter().filter(|event| event["data"]["action"] == action);
        let mut told: Vec<_> = of_action.map(|event| event["data"]["local"].as_str().unwrap_or_default()).collect();
        told.sort_unstable();
        ensure!(
            told == ends,
            "{} {action}, {} different\n{}",
            told.len(),
            told.iter().collect::<BTreeSet<_>>().len(),
            watched.log
        );
    }
    ensure!(watched.documents.len() == 2 * COUNT, "{} events", watched.documents.len());
    Ok(())
}

fn sockets_that_were_there_before() -> Result<()> {
    let connection = Connection::open()?;
    let (here, there) = connection.ends;
    let datagrams = UdpSocket::bind("127.0.0.1:8087")?;
    let watch = sensors(&sensor(""), &[])?;
    let new = Connection::open()?;
    let (_, new_server) = new.ends;
    wait_for(&watch, "opened", &new_server.to_string())?;
    drop((connection, datagrams));
    for (local, remote) in [(here, there), (there, here), ("127.0.0.1:8087".parse()?, "0.0.0.0:0".parse()?)] {
        let is_it =
            |event: &Value| is(event, "closed", &remote.to_string()) && event["data"]["local"] == local.to_string();
        let event = watch.wait_for("the close of an old socket", is_it)?;
        let proto = if local.port() == 8087 { "udp" } else { "tcp" };
        expect(&event, &of_this_process(proto, local, remote))?;
    }
    let watched = stop(watch)?;
    let announced = |end: &SocketAddr| of(&watched, "opened", &end.to_string()).len();
    ensure!(announced(&here) + announced(&there) == 0, "they were there before: {:#?}", watched.documents);
    Ok(())
}

/// The client closes first; then in another connection the server does.
fn the_state_of_each_end() -> Result<()> {
    let watch = sensors(&sensor(""), &[])?;
    for client_first in [true, false] {
        let Connection { client, server, ends: (here, there) } = Connection::open()?;
        let (mut second, first) = if client_first { (server, client) } else { (client, server) };
        drop(first);
        ensure!(second.read(&mut [0])? == 0, "the other side has closed");
        drop(second);
        let (first, second) = if client_first { (there, here) } else { (here, there) };
        for (remote, state) in [(first, "ESTABLISHED"), (second, "CLOSE_WAIT")] {
            let event = wait_for(&watch, "closed", &remote.to_string())?;
            expect(&event, &vec![("/data/state", json!(state))])?;
            let event = wait_for(&watch, "opened", &remote.to_string())?;
            expect(&event, &vec![("/data/state", json!("ESTABLISHED"))])?;
        }
    }
    stop(watch).map(drop)
}

/// It is in progress when the call comes back, and established later.
fn a_connect_that_does_not_wait() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let remote = listener.local_addr()?.to_string();
    let watch = sensors(&sensor("patterns: ['tcp * * * ESTABLISHED']"), &[])?;
    let actor = Process::start(&[EXECUTABLE, ACT, "connect-without-waiting", &remote])?.finish()?;
    ensure!(actor.status == 0, "{actor:?}");
    wait_for(&watch, "closed", &remote)?;
    let watched = stop(watch)?;
    let [opened, _] = both(&watched, &remote)?;
    expect(opened, &vec![("/data/state", json!("ESTABLISHED")), ("/data/process/pid", json!(actor.pid))])
}

/// They never become a connection; what comes after them does.
fn refused_connects() -> Result<()> {
    let watch = sensors(&sensor("patterns: ['tcp{,6} * * * ESTABLISHED']"), &[])?;
    for nobody in ["127.0.0.1:1", "[::1]:1"] {
        ensure!(TcpStream::connect(nobody).is_err(), "nobody listens at {nobody}");
        let actor = Process::start(&[EXECUTABLE, ACT, "connect-without-waiting", nobody])?.finish()?;
        ensure!(actor.status != 0, "{actor:?}");
    }
    let connection = Connection::open()?;
    wait_for(&watch, "opened", &connection.ends.0.to_string())?;
    let watched = stop(watch)?;
    for event in &watched.documents {
        let remote = event["data"]["remote"].as_str().unwrap_or_default();
        ensure!(remote.rsplit(':').next() != Some("1"), "{event:#}");
    }
    Ok(())
}

/// The other side resets the connection: it is gone though its descriptor is still open.
fn a_reset_is_an_end() -> Result<()> {
    let watch = sensors(&sensor("patterns: ['tcp * * * ESTABLISHED']"), &[])?;
    let Connection { client, server, ends: (_, there) } = Connection::open()?;
    // `struct linger`: on, for no time.
    let linger = [1_i32, 0].map(i32::to_ne_bytes).concat();
    set_option(&server, nix::libc::SOL_SOCKET, nix::libc::SO_LINGER, &linger)?;
    drop(server);
    let closed = wait_for(&watch, "closed", &there.to_string())?;
    expect(&closed, &vec![("/data/state", json!("ESTABLISHED"))])?;
    drop(client);
    let after = Connection::open()?;
    wait_for(&watch, "opened", &after.ends.1.to_string())?;
    both(&stop(watch)?, &there.to_string()).map(drop)
}

fn locked_until_unlocked() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let remote = listener.local_addr()?.to_string();
    let args = format!("patterns: ['tcp * {remote} * ESTABLISHED'], locked: true");
    let watch = sensors(&sensor(&args), &["--stats"])?;
    let connect = || TcpStream::connect(listener.local_addr()?).map(drop).context("connect");
    let opened =
        |watch: &Socktrail| anyhow::Ok(watch.documents()?.iter().filter(|event| is(event, "opened", &remote)).count());
    connect()?;
    connect()?;
    wait_for(&watch, "closed", &remote)?;
    let eid = format!("all|net.socket|opened@{remote}|0");
    let user = Process::start_as_user(&["socktrail", "unlock", &eid])?.finish()?;
    ensure!(user.status == 1 && user.stdout.is_empty(), "not root: {user:?}");
    for (pattern, said) in [(&*eid, "1 unlocked\n"), ("all|*|closed@*", "1 unlocked\n")] {
        let unlock = Process::start(&["socktrail", "unlock", pattern])?.finish()?;
        ensure!(unlock.status == 0 && unlock.stdout == said, "{unlock:?}");
    }
    let nothing = Process::start(&["socktrail", "unlock", &eid])?.finish()?;
    ensure!(nothing.status == 1 && nothing.stderr.contains(&eid), "not locked any more: {nothing:?}");
    ensure!(opened(&watch)? == 1, "the second is muted: {:?}", watch.documents());
    connect()?;
    until("the event after it was unlocked", || Ok(opened(&watch)? == 2))?;
    let watched = stop(watch)?;
    ensure!(of(&watched, "closed", &remote).len() == 2, "{:#?}", watched.documents);
    ensure!(watched.log.contains("\"sensor_events_muted\":2"), "one of each: {}", watched.log);
    let gone = Process::start(&["socktrail", "unlock", "*"])?.finish()?;
    ensure!(gone.status == 1 && gone.stderr.contains("nobody listens"), "{gone:?}");
    Ok(())
}

/// One host has a name that is wanted, one another, and one none.
fn names_of_hosts() -> Result<()> {
    let _listener = TcpListener::bind(("0.0.0.0", PORT + 5))?;
    let words = "dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file= --user=root --no-resolv --no-hosts \
                 --bind-interfaces --listen-address=127.0.0.1 --host-record=peer.example.test,127.0.0.2 \
                 --host-record=peer.example.net,127.0.0.3 --bogus-priv";
    fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\n")?;
    let _server = Process::start(&words.split_whitespace().collect::<Vec<_>>())?;
    until("the server of names", || Ok(fs::read_to_string("/proc/net/udp")?.contains(" 0100007F:0035 ")))?;
    let watch = sensors(
        &sensor("dns: true, dns-ttl: 1h, patterns: ['tcp * * *.example.test *', 'tcp * 127.0.0.4:* - *']"),
        &[],
    )?;
    for host in [2, 3, 4, 2] {
        drop(TcpStream::connect((Ipv4Addr::new(127, 0, 0, host), PORT + 5))?);
    }
    let at = |host: u8| format!("127.0.0.{host}:{}", PORT + 5);
    until("both closes", || Ok(watch.documents()?.iter().filter(|event| is(event, "closed", &at(2))).count() == 2))?;
    wait_for(&watch, "closed", &at(4))?;
    let watched = stop(watch)?;
    for (action, count) in [("opened", [2, 0, 1]), ("closed", [2, 0, 1])] {
        let told = [2, 3, 4].map(|host| of(&watched, action, &at(host)).len());
        ensure!(told == count, "{action} {told:?}, not {count:?}: {:#?}", watched.documents);
    }
    for event in watched.documents.iter().filter(|event| event["data"]["remote"] == at(2)) {
        expect(event, &vec![("/data/remote_host", json!("peer.example.test"))])?;
    }
    Ok(())
}

/// What waits for a name goes on without it, and what does not wait is not kept up by it.
fn a_server_of_names_that_keeps_silent() -> Result<()> {
    let _silent = UdpSocket::bind("127.0.0.1:53")?;
    fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\n")?;
    let listener = TcpListener::bind("127.0.0.5:0")?;
    let remote = listener.local_addr()?.to_string();
    let [named, nameless] = [("named", "dns: true"), ("nameless", "dns: false")].map(|(id, dns)| {
        format!("{id}:\n  listener: net.socket\n  args: {{ {dns}, patterns: ['tcp * {remote} * ESTABLISHED'] }}\n")
    });
    let watch = sensors(&(named + &nameless), &["--stats"])?;
    let started = Instant::now();
    drop(TcpStream::connect(listener.local_addr()?)?);
    watch.wait_for("who waited for a name", |event| event["sensor"] == "named" && is(event, "closed", &remote))?;
    ensure!(started.elapsed() >= Duration::from_secs(2), "it did not wait");
    let watched = stop(watch)?;
    let told: Vec<_> = watched.documents.iter().map(|event| (&event["sensor"], &event["data"]["action"])).collect();
    let (named, nameless, opened, closed) = (&json!("named"), &json!("nameless"), &json!("opened"), &json!("closed"));
    ensure!(told == [(nameless, opened), (nameless, closed), (named, opened), (named, closed)], "{told:?}");
    ensure!(watched.log.contains("\"reverse_lookups_unanswered\":2"), "{}", watched.log);
    Ok(())
}

/// A program's name may hold anything but a slash; its events are lines of JSON all the same.
fn names_that_others_chose() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let remote = listener.local_addr()?.to_string();
    let watch = sensors(&sensor(&format!("patterns: ['tcp * {remote} * ESTABLISHED']")), &[])?;
    let script = format!(
        "name=$(printf 'e\\n\"}}\\033[2J\\177\\302\\233\\377x')
         cp /usr/bin/curl \"/tmp/$name\"
         exec \"/tmp/$name\" -sS http://{remote}/"
    );
    let curl = Process::start(&["sh", "-e", "-c", &script])?;
    drop(listener.accept()?);
    let curl = curl.finish()?;
    wait_for(&watch, "closed", &remote)?;
    let watched = stop(watch)?;
    for event in both(&watched, &remote)? {
        expect(
            event,
            &vec![("/data/process", json!({"pid": curl.pid, "name": "e\n\"}\u{1b}[2J\u{7f}\u{9b}\u{fffd}x"}))],
        )?;
    }
    Ok(())
}

fn only_what_was_asked_for() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let remote = listener.local_addr()?.to_string();
    let watch = sensors(
        "one:\n  listener: net.socket\n  opts: [closed]\n  args: { ignore: ['* * * * LISTEN'] }\n",
        &["--count", "1"],
    )?;
    drop(TcpStream::connect(listener.local_addr()?)?);
    let watched = watch.finish()?;
    ensure!(watched.status.success(), "{}", watched.log);
    let [event] = &watched.documents[..] else { anyhow::bail!("{:#?}", watched.documents) };
    expect(event, &vec![("/eid", json!(format!("one|net.socket|closed@{remote}|0")))])
}

/// A file with one sensor that has these arguments.
fn sensor(args: &str) -> String {
    format!("all:\n  listener: net.socket\n  args: {{ {args} }}\n")
}

/// Starts `socktrail sensors` with this file.
fn sensors(file: &str, more: &[&str]) -> Result<Socktrail> {
    let folder = "/tmp/sensors";
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let path = format!("{folder}/net-socket.yaml");
    fs::write(&path, file).with_context(|| format!("write {path}"))?;
    Socktrail::start(&[&["sensors", &path], more].concat())
}

fn stop(watch: Socktrail) -> Result<Watched> {
    let watched = watch.stop()?;
    ensure!(watched.status.success(), "socktrail ended with {}:\n{}", watched.status, watched.log);
    Ok(watched)
}

fn is(event: &Value, action: &str, remote: &str) -> bool {
    event["data"]["action"] == action && event["data"]["remote"] == remote
}

fn wait_for(watch: &Socktrail, action: &str, remote: &str) -> Result<Value> {
    watch.wait_for(&format!("{action}@{remote}"), |event| is(event, action, remote))
}

fn of<'a>(watched: &'a Watched, action: &str, remote: &str) -> Vec<&'a Value> {
    watched.documents.iter().filter(|event| is(event, action, remote)).collect()
}

/// The one `opened` and the one `closed` of this remote, which come in this order.
fn both<'a>(watched: &'a Watched, remote: &str) -> Result<[&'a Value; 2]> {
    let events: Vec<_> = watched.documents.iter().filter(|event| event["data"]["remote"] == remote).collect();
    match events[..] {
        [opened, closed] if is(opened, "opened", remote) && is(closed, "closed", remote) => Ok([opened, closed]),
        _ => anyhow::bail!("not one opened and one closed of {remote}: {events:#?}\nlog:\n{}", watched.log),
    }
}

fn of_this_process(proto: &str, local: SocketAddr, remote: SocketAddr) -> Wanted {
    vec![
        ("/data/proto", json!(proto)),
        ("/data/local", json!(local.to_string())),
        ("/data/remote", json!(remote.to_string())),
        ("/data/process/pid", json!(std::process::id())),
    ]
}
