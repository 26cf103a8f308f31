//! Sensors report the opening and the close of each socket, once, with the right fields.

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

use crate::helpers::document::{ExpectedFields, expect};
use crate::helpers::process::Process;
use crate::helpers::socktrail::{Output, Socktrail};
use crate::helpers::traffic::{Connection, reset};
use crate::helpers::wait::wait_until;
use crate::helpers::web::WebServer;
use crate::lifetime::expect_success;
use crate::workloads::{EXECUTABLE, RUN};

tests![
    the_sample_file,
    over_ipv6,
    listeners_and_datagrams,
    a_socket_that_only_sends,
    a_thousand_short_connections,
    preexisting_sockets,
    the_state_of_each_end,
    a_nonblocking_connect,
    refused_connects,
    a_reset_is_an_end,
    locked_until_unlocked,
    host_names,
    a_dns_server_that_does_not_answer,
    process_names_with_odd_bytes,
    only_requested_events,
];

/// The sample sensor file of `tests/data`.
const SAMPLE: &str = include_str!("../../../../data/net-socket.yaml");
const PORT: u16 = 8084;

/// curl's connection is reported, and a UDP socket, which the sample ignores, is not.
fn the_sample_file() -> Result<()> {
    let web = WebServer::start(PORT)?;
    let monitor = sensors(SAMPLE, &[])?;
    let curl = Process::start(&["curl", "-sS", "--ipv4", &format!("http://127.0.0.1:{PORT}/")])?.finish()?;
    ensure!(curl.status == 0 && curl.stdout == web.page(), "{curl:?}");
    UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", "127.0.0.1:9")?;
    let remote = format!("127.0.0.1:{PORT}");
    wait_for(&monitor, "closed", &remote)?;
    let output = stop(monitor)?;
    let [opened, closed] = both(&output, &remote)?;
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
    let local = opened["data"]["local"].as_str().context("no local address")?;
    let [opened, _] = both(&output, local).context("the server's events")?;
    expect(opened, &vec![("/data/local", json!(remote)), ("/data/process/name", json!("httpd"))])?;
    let ignored = output.documents.iter().find(|event| event["data"]["proto"] != "tcp");
    ensure!(ignored.is_none(), "the sample ignores UDP: {ignored:?}");
    Ok(())
}

fn over_ipv6() -> Result<()> {
    let monitor = sensors(&sensor("patterns: ['tcp6 * * * ESTABLISHED']"), &[])?;
    let listener = TcpListener::bind("[::1]:0")?;
    let there = listener.local_addr()?;
    let client = TcpStream::connect(there)?;
    let here = client.local_addr()?;
    drop((listener.accept()?, client));
    wait_for(&monitor, "closed", &there.to_string())?;
    wait_for(&monitor, "closed", &here.to_string())?;
    let output = stop(monitor)?;
    for (local, remote) in [(here, there), (there, here)] {
        for event in both(&output, &remote.to_string())? {
            let action = event["data"]["action"].as_str().unwrap_or_default();
            let eid = format!("all|net.socket|{action}@[::1]:{}|0", remote.port());
            expect(event, &of_this_process("tcp6", local, remote))?;
            expect(event, &vec![("/eid", json!(eid))])?;
        }
    }
    Ok(())
}

fn listeners_and_datagrams() -> Result<()> {
    let monitor = sensors(&sensor(""), &[])?;
    let (listener, datagrams) = (TcpListener::bind("127.0.0.1:8085")?, UdpSocket::bind("[::1]:8086")?);
    drop((listener, datagrams));
    let cases =
        [("tcp", "127.0.0.1:8085", "0.0.0.0:0", json!("LISTEN")), ("udp6", "[::1]:8086", "[::]:0", Value::Null)];
    for (proto, local, remote, state) in cases {
        for action in ["opened", "closed"] {
            let what = format!("{action} of {local}");
            let event =
                monitor.wait_for(&what, |event| is(event, action, remote) && event["data"]["local"] == local)?;
            expect(&event, &of_this_process(proto, local.parse()?, remote.parse()?))?;
            expect(&event, &vec![("/data/state", state.clone())])?;
        }
    }
    stop(monitor).map(drop)
}

/// The socket is neither bound nor connected. Sending gives it the port that `getsockname(2)` returns.
fn a_socket_that_only_sends() -> Result<()> {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, getsockname, sendto,
        socket,
    };
    for (family, proto, there, any) in
        [(AddressFamily::Inet, "udp", "127.0.0.1:9", "0.0.0.0"), (AddressFamily::Inet6, "udp6", "[::1]:9", "[::]")]
    {
        let monitor = sensors(&sensor(""), &[])?;
        let sender = socket(family, SockType::Datagram, SockFlag::empty(), None)?;
        let there = SockaddrStorage::from(there.parse::<SocketAddr>()?);
        for _ in 0..3 {
            sendto(sender.as_raw_fd(), b"x", &there, MsgFlags::empty())?;
        }
        let name: SockaddrStorage = getsockname(sender.as_raw_fd())?;
        let port = name.as_sockaddr_in().map(SockaddrIn::port).or(name.as_sockaddr_in6().map(SockaddrIn6::port));
        let local = format!("{any}:{}", port.context("no port")?);
        drop(sender);
        let remote = format!("{any}:0");
        for action in ["opened", "closed"] {
            let what = format!("{action} of {local}");
            let event =
                monitor.wait_for(&what, |event| is(event, action, &remote) && event["data"]["local"] == *local)?;
            expect(&event, &of_this_process(proto, local.parse()?, remote.parse()?))?;
        }
        let output = stop(monitor)?;
        let of_it = output.documents.iter().filter(|event| event["data"]["local"] == *local).count();
        ensure!(of_it == 2, "{of_it} events of the socket: {:#?}", output.documents);
    }
    Ok(())
}

fn a_thousand_short_connections() -> Result<()> {
    const COUNT: usize = 1000;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let there = listener.local_addr()?;
    let monitor = sensors(&sensor(&format!("patterns: ['tcp * {there} * *']")), &["--stats"])?;
    let server = thread::spawn(move || listener.incoming().take(COUNT).try_for_each(|one| one.map(drop)));
    let mut ends = Vec::new();
    for _ in 0..COUNT {
        let client = TcpStream::connect(there)?;
        ends.push(client.local_addr()?.to_string());
        thread::sleep(Duration::from_millis(1));
    }
    server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    wait_until("the last close", || {
        Ok(monitor.documents()?.iter().filter(|event| event["data"]["action"] == "closed").count() >= COUNT)
    })?;
    let output = stop(monitor)?;
    ends.sort();
    for action in ["opened", "closed"] {
        let of_action = output.documents.iter().filter(|event| event["data"]["action"] == action);
        let mut locals: Vec<_> = of_action.map(|event| event["data"]["local"].as_str().unwrap_or_default()).collect();
        locals.sort_unstable();
        ensure!(
            locals == ends,
            "{} {action}, {} different\n{}",
            locals.len(),
            locals.iter().collect::<BTreeSet<_>>().len(),
            output.log
        );
    }
    ensure!(output.documents.len() == 2 * COUNT, "{} events", output.documents.len());
    Ok(())
}

fn preexisting_sockets() -> Result<()> {
    let connection = Connection::open()?;
    let (here, there) = connection.ends;
    let datagrams = UdpSocket::bind("127.0.0.1:8087")?;
    let monitor = sensors(&sensor(""), &[])?;
    let new = Connection::open()?;
    let (_, new_server) = new.ends;
    wait_for(&monitor, "opened", &new_server.to_string())?;
    drop((connection, datagrams));
    for (local, remote) in [(here, there), (there, here), ("127.0.0.1:8087".parse()?, "0.0.0.0:0".parse()?)] {
        let is_it =
            |event: &Value| is(event, "closed", &remote.to_string()) && event["data"]["local"] == local.to_string();
        let event = monitor.wait_for("the close of an old socket", is_it)?;
        let proto = if local.port() == 8087 { "udp" } else { "tcp" };
        expect(&event, &of_this_process(proto, local, remote))?;
    }
    let output = stop(monitor)?;
    let announced = |end: &SocketAddr| of(&output, "opened", &end.to_string()).len();
    ensure!(
        announced(&here) + announced(&there) == 0,
        "preexisting sockets are reported as opened: {:#?}",
        output.documents
    );
    Ok(())
}

/// The client closes one connection first, and the server another one.
fn the_state_of_each_end() -> Result<()> {
    let monitor = sensors(&sensor(""), &[])?;
    for client_first in [true, false] {
        let Connection { client, server, ends: (here, there) } = Connection::open()?;
        let (mut second, first) = if client_first { (server, client) } else { (client, server) };
        drop(first);
        ensure!(second.read(&mut [0])? == 0, "the other end has not closed");
        drop(second);
        let (remote_of_first, remote_of_second) = if client_first { (there, here) } else { (here, there) };
        for (remote, state) in [(remote_of_first, "ESTABLISHED"), (remote_of_second, "CLOSE_WAIT")] {
            let event = wait_for(&monitor, "closed", &remote.to_string())?;
            expect(&event, &vec![("/data/state", json!(state))])?;
            let event = wait_for(&monitor, "opened", &remote.to_string())?;
            expect(&event, &vec![("/data/state", json!("ESTABLISHED"))])?;
        }
    }
    stop(monitor).map(drop)
}

/// The connect is in progress when the call returns, and established later.
fn a_nonblocking_connect() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let remote = listener.local_addr()?.to_string();
    let monitor = sensors(&sensor("patterns: ['tcp * * * ESTABLISHED']"), &[])?;
    let workload = Process::start(&[EXECUTABLE, RUN, "connect-nonblocking", &remote])?.finish()?;
    ensure!(workload.status == 0, "{workload:?}");
    wait_for(&monitor, "closed", &remote)?;
    let output = stop(monitor)?;
    let [opened, _] = both(&output, &remote)?;
    expect(opened, &vec![("/data/state", json!("ESTABLISHED")), ("/data/process/pid", json!(workload.pid))])
}

/// Refused connects are not reported, but a later connection is.
fn refused_connects() -> Result<()> {
    let monitor = sensors(&sensor("patterns: ['tcp{,6} * * * ESTABLISHED']"), &[])?;
    for closed in ["127.0.0.1:1", "[::1]:1"] {
        ensure!(TcpStream::connect(closed).is_err(), "something listens at {closed}");
        let workload = Process::start(&[EXECUTABLE, RUN, "connect-nonblocking", closed])?.finish()?;
        ensure!(workload.status != 0, "{workload:?}");
    }
    let connection = Connection::open()?;
    wait_for(&monitor, "opened", &connection.ends.0.to_string())?;
    let output = stop(monitor)?;
    for event in &output.documents {
        let remote = event["data"]["remote"].as_str().unwrap_or_default();
        ensure!(remote.rsplit(':').next() != Some("1"), "{event:#}");
    }
    Ok(())
}

/// The other end resets the connection. That closes it, although its descriptor is still open.
fn a_reset_is_an_end() -> Result<()> {
    let monitor = sensors(&sensor("patterns: ['tcp * * * ESTABLISHED']"), &[])?;
    let Connection { client, server, ends: (_, there) } = Connection::open()?;
    reset(server)?;
    let closed = wait_for(&monitor, "closed", &there.to_string())?;
    expect(&closed, &vec![("/data/state", json!("ESTABLISHED"))])?;
    drop(client);
    let after = Connection::open()?;
    wait_for(&monitor, "opened", &after.ends.1.to_string())?;
    both(&stop(monitor)?, &there.to_string()).map(drop)
}

fn locked_until_unlocked() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let remote = listener.local_addr()?.to_string();
    let args = format!("patterns: ['tcp * {remote} * ESTABLISHED'], locked: true");
    let monitor = sensors(&sensor(&args), &["--stats"])?;
    let connect = || TcpStream::connect(listener.local_addr()?).map(drop).context("connect");
    let opened = |monitor: &Socktrail| {
        anyhow::Ok(monitor.documents()?.iter().filter(|event| is(event, "opened", &remote)).count())
    };
    connect()?;
    connect()?;
    wait_for(&monitor, "closed", &remote)?;
    let eid = format!("all|net.socket|opened@{remote}|0");
    let user = Process::start_as_user(&["socktrail", "unlock", &eid])?.finish()?;
    ensure!(user.status == 1 && user.stdout.is_empty(), "a normal user may unlock: {user:?}");
    for (pattern, stdout) in [(&*eid, "1 unlocked\n"), ("all|*|closed@*", "1 unlocked\n")] {
        let unlock = Process::start(&["socktrail", "unlock", pattern])?.finish()?;
        ensure!(unlock.status == 0 && unlock.stdout == stdout, "{unlock:?}");
    }
    let nothing = Process::start(&["socktrail", "unlock", &eid])?.finish()?;
    ensure!(nothing.status == 1 && nothing.stderr.contains(&eid), "still locked: {nothing:?}");
    ensure!(opened(&monitor)? == 1, "not one event: {:?}", monitor.documents());
    connect()?;
    wait_until("the event after it was unlocked", || Ok(opened(&monitor)? == 2))?;
    let output = stop(monitor)?;
    ensure!(of(&output, "closed", &remote).len() == 2, "{:#?}", output.documents);
    ensure!(output.log.contains("\"sensor_events_muted\":2"), "not two muted events: {}", output.log);
    let gone = Process::start(&["socktrail", "unlock", "*"])?.finish()?;
    ensure!(gone.status == 1 && gone.stderr.contains("no process listens"), "{gone:?}");
    Ok(())
}

/// One host has a matching name, one another name, and one none.
fn host_names() -> Result<()> {
    let _listener = TcpListener::bind(("0.0.0.0", PORT + 5))?;
    let command = "dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file= --user=root --no-resolv --no-hosts \
                 --bind-interfaces --listen-address=127.0.0.1 --host-record=peer.example.test,127.0.0.2 \
                 --host-record=peer.example.net,127.0.0.3 --bogus-priv";
    fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\n")?;
    let _server = Process::start(&command.split_whitespace().collect::<Vec<_>>())?;
    wait_until("the DNS server", || Ok(fs::read_to_string("/proc/net/udp")?.contains(" 0100007F:0035 ")))?;
    let monitor = sensors(
        &sensor("dns: true, dns-ttl: 1h, patterns: ['tcp * * *.example.test *', 'tcp * 127.0.0.4:* - *']"),
        &[],
    )?;
    for host in [2, 3, 4, 2] {
        drop(TcpStream::connect((Ipv4Addr::new(127, 0, 0, host), PORT + 5))?);
    }
    let at = |host: u8| format!("127.0.0.{host}:{}", PORT + 5);
    wait_until("both closes", || {
        Ok(monitor.documents()?.iter().filter(|event| is(event, "closed", &at(2))).count() == 2)
    })?;
    wait_for(&monitor, "closed", &at(4))?;
    let output = stop(monitor)?;
    for (action, count) in [("opened", [2, 0, 1]), ("closed", [2, 0, 1])] {
        let counts = [2, 3, 4].map(|host| of(&output, action, &at(host)).len());
        ensure!(counts == count, "{action} {counts:?}, not {count:?}: {:#?}", output.documents);
    }
    for event in output.documents.iter().filter(|event| event["data"]["remote"] == at(2)) {
        expect(event, &vec![("/data/remote_host", json!("peer.example.test"))])?;
    }
    Ok(())
}

/// Events that wait for a name are written without it in the end. They do not delay events that need no name.
fn a_dns_server_that_does_not_answer() -> Result<()> {
    let _silent = UdpSocket::bind("127.0.0.1:53")?;
    fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\n")?;
    let listener = TcpListener::bind("127.0.0.5:0")?;
    let remote = listener.local_addr()?.to_string();
    let [named, nameless] = [("named", "dns: true"), ("nameless", "dns: false")].map(|(id, dns)| {
        format!("{id}:\n  listener: net.socket\n  args: {{ {dns}, patterns: ['tcp * {remote} * ESTABLISHED'] }}\n")
    });
    let monitor = sensors(&(named + &nameless), &["--stats"])?;
    let started = Instant::now();
    drop(TcpStream::connect(listener.local_addr()?)?);
    monitor.wait_for("the event without a name", |event| event["sensor"] == "named" && is(event, "closed", &remote))?;
    ensure!(started.elapsed() >= Duration::from_secs(2), "the event did not wait for a name");
    let output = stop(monitor)?;
    let events: Vec<_> = output.documents.iter().map(|event| (&event["sensor"], &event["data"]["action"])).collect();
    let (named, nameless, opened, closed) = (&json!("named"), &json!("nameless"), &json!("opened"), &json!("closed"));
    ensure!(events == [(nameless, opened), (nameless, closed), (named, opened), (named, closed)], "{events:?}");
    ensure!(output.log.contains("\"reverse_lookups_unanswered\":2"), "{}", output.log);
    Ok(())
}

/// A program's name may have any byte except `/` and NUL. Its events must be valid JSON.
fn process_names_with_odd_bytes() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let remote = listener.local_addr()?.to_string();
    let monitor = sensors(&sensor(&format!("patterns: ['tcp * {remote} * ESTABLISHED']")), &[])?;
    let script = format!(
        "name=$(printf 'e\\n\"}}\\033[2J\\177\\302\\233\\377x')
         cp /usr/bin/curl \"/tmp/$name\"
         exec \"/tmp/$name\" -sS http://{remote}/"
    );
    let curl = Process::start(&["sh", "-e", "-c", &script])?;
    drop(listener.accept()?);
    let curl = curl.finish()?;
    wait_for(&monitor, "closed", &remote)?;
    let output = stop(monitor)?;
    for event in both(&output, &remote)? {
        expect(
            event,
            &vec![("/data/process", json!({"pid": curl.pid, "name": "e\n\"}\u{1b}[2J\u{7f}\u{9b}\u{fffd}x"}))],
        )?;
    }
    Ok(())
}

fn only_requested_events() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let remote = listener.local_addr()?.to_string();
    let monitor = sensors(
        "one:\n  listener: net.socket\n  opts: [closed]\n  args: { ignore: ['* * * * LISTEN'] }\n",
        &["--count", "1"],
    )?;
    drop(TcpStream::connect(listener.local_addr()?)?);
    let output = monitor.finish()?;
    ensure!(output.status.success(), "{}", output.log);
    let [event] = &output.documents[..] else { anyhow::bail!("{:#?}", output.documents) };
    expect(event, &vec![("/eid", json!(format!("one|net.socket|closed@{remote}|0")))])
}

/// The text of a sensor file with one sensor, which has these arguments.
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

/// Stops a monitor, which must end with success.
fn stop(monitor: Socktrail) -> Result<Output> {
    let output = monitor.stop()?;
    expect_success(&output)?;
    Ok(output)
}

fn is(event: &Value, action: &str, remote: &str) -> bool {
    event["data"]["action"] == action && event["data"]["remote"] == remote
}

fn wait_for(monitor: &Socktrail, action: &str, remote: &str) -> Result<Value> {
    monitor.wait_for(&format!("{action}@{remote}"), |event| is(event, action, remote))
}

fn of<'a>(output: &'a Output, action: &str, remote: &str) -> Vec<&'a Value> {
    output.documents.iter().filter(|event| is(event, action, remote)).collect()
}

/// The only events with this remote address: `opened`, then `closed`.
fn both<'a>(output: &'a Output, remote: &str) -> Result<[&'a Value; 2]> {
    let events: Vec<_> = output.documents.iter().filter(|event| event["data"]["remote"] == remote).collect();
    match events[..] {
        [opened, closed] if is(opened, "opened", remote) && is(closed, "closed", remote) => Ok([opened, closed]),
        _ => anyhow::bail!("not one opened and one closed of {remote}: {events:#?}\nlog:\n{}", output.log),
    }
}

fn of_this_process(proto: &str, local: SocketAddr, remote: SocketAddr) -> ExpectedFields {
    vec![
        ("/data/proto", json!(proto)),
        ("/data/local", json!(local.to_string())),
        ("/data/remote", json!(remote.to_string())),
        ("/data/process/pid", json!(std::process::id())),
    ]
}
