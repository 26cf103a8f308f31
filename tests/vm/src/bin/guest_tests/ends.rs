//! Failed connects, and connections that wait to be accepted: each flow has one document with the right outcome.

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, socket, sockopt,
};
use serde_json::{Value, json};

use crate::capture::link::{Family, Routed};
use crate::helpers::document::{ExpectedFields, endpoint, expect, number};
use crate::helpers::netns::Netns;
use crate::helpers::nft::nft;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::sys::set_option;

tests![
    a_connect_that_is_never_answered,
    a_connect_to_an_absent_host,
    a_connect_without_a_route,
    a_connect_in_progress_is_refused,
    a_connect_in_progress_gets_host_unreachable,
    a_connect_is_rejected_by_a_local_rule,
    a_connect_is_rejected_by_another_host,
    a_connect_in_progress_is_closed,
    a_connect_in_progress_succeeds,
    a_connection_that_is_accepted_late,
    no_flow_ends_twice,
];

/// `TCP_SYNCNT`: the SYN is retransmitted once, after 1 s, and the connect fails 2 s later.
const ONE_MORE_SYN: i32 = 1;
/// `TCP_SYNCNT`: longer than the 3 s for which a router waits for a neighbour's answer.
const MORE_SYNS: i32 = 4;
/// The longest wait for an outcome, in milliseconds.
const TIMEOUT: u16 = 20_000;

/// The port that is rejected with an ICMP error.
const BY_ICMP: u16 = 4247;
/// The port that is rejected with a TCP reset.
const BY_RESET: u16 = 4248;

/// The router drops all packets.
fn a_connect_that_is_never_answered() -> Result<()> {
    let (_, network) = (fixture()?, Routed::new()?);
    network.stop_forwarding()?;
    let [from, to] = [&network.link.client, &network.link.server].map(|host| host.ip(Family::V4));
    let there = SocketAddr::new(to, 4242);
    let (here, error) = network.link.client.run(|| {
        // Since Linux 6.5, more SYNs are sent than TCP_SYNCNT says.
        match fs::write("/proc/sys/net/ipv4/tcp_syn_linear_timeouts", "0") {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => failing_connect(from, there, ONE_MORE_SYN),
        }
    })?;
    ensure!(error == Errno::ETIMEDOUT, "{error}");
    let document = failed(here, there, "ETIMEDOUT")?;
    expect(&document, &vec![("/source/packets", json!(2)), ("/destination/packets", json!(0))])?;
    let duration = Duration::from_nanos(number(&document, "/event/duration")?);
    ensure!(duration >= Duration::from_secs(3) && duration < Duration::from_secs(20), "{duration:?} in {document:#}");
    Ok(())
}

/// The router finds no such neighbour, and sends an ICMP error.
fn a_connect_to_an_absent_host() -> Result<()> {
    let (_, network) = (fixture()?, Routed::new()?);
    let there = SocketAddr::new(Ipv4Addr::new(10, 9, 2, 99).into(), 4243);
    let client = &network.link.client;
    let (here, error) = client.run(|| failing_connect(client.ip(Family::V4), there, MORE_SYNS))?;
    ensure!(error == Errno::EHOSTUNREACH, "{error}");
    failed(here, there, "EHOSTUNREACH").map(drop)
}

/// The connect fails before the socket has an address, and before a packet is sent.
fn a_connect_without_a_route() -> Result<()> {
    fixture()?;
    let (nowhere, there) = (Ipv4Addr::UNSPECIFIED.into(), SocketAddr::new(Ipv4Addr::new(198, 51, 100, 7).into(), 4244));
    let (_, error) = Netns::new()?.run(|| failing_connect(nowhere, there, ONE_MORE_SYN))?;
    ensure!(error == Errno::ENETUNREACH, "{error}");
    let document = failed(SocketAddr::new(nowhere, 0), there, "ENETUNREACH")?;
    expect(&document, &vec![("/source/packets", json!(0)), ("/destination/packets", json!(0))])
}

/// `EINPROGRESS` of `connect(2)` is not a failure; the following refusal is.
fn a_connect_in_progress_is_refused() -> Result<()> {
    fixture()?;
    let there: SocketAddr = "127.0.0.1:1".parse()?;
    let (here, error) = connect_nonblocking(there)?;
    ensure!(error == Some(Errno::ECONNREFUSED), "{error:?}");
    failed(here, there, "ECONNREFUSED").map(drop)
}

/// An ICMP error ends the connect. The client reads `SO_ERROR` at once, which clears it, perhaps before the kernel
/// closes the connection.
fn a_connect_in_progress_gets_host_unreachable() -> Result<()> {
    let (_, network) = (fixture()?, Routed::new()?);
    let there = SocketAddr::new(Ipv4Addr::new(10, 9, 2, 99).into(), 4245);
    let client = &network.link.client;
    let outcomes = client.run(|| {
        let from = client.ip(Family::V4);
        let begun = (0..8).map(|_| begin(from, there)).collect::<Result<Vec<_>>>()?;
        begun.into_iter().map(|(socket, here)| Ok((here, outcome(&socket)?))).collect::<Result<Vec<_>>>()
    })?;
    for (here, error) in outcomes {
        ensure!(error == Some(Errno::EHOSTUNREACH), "{error:?}");
        failed(here, there, "EHOSTUNREACH")?;
    }
    Ok(())
}

/// A local rule drops and answers the SYN, so nothing is sent. The ICMP error arrives while the call holds the socket:
/// the kernel only stores it in `sk_err_soft`, and the program may read it before anything else shows it.
fn a_connect_is_rejected_by_a_local_rule() -> Result<()> {
    let (_, network) = (fixture()?, Routed::new()?);
    let rules = format!(
        "table inet t {{ chain c {{ type filter hook output priority 0;
            tcp dport {BY_ICMP} reject with icmpx type port-unreachable;
            tcp dport {BY_RESET} reject with tcp reset; }}; }}"
    );
    network.link.client.run(|| nft(&rules))?;
    for family in [Family::V4, Family::V6] {
        let [from, to] = [&network.link.client, &network.link.server].map(|host| host.ip(family));
        for (port, answers) in [(BY_ICMP, 0), (BY_RESET, 1)] {
            let there = SocketAddr::new(to, port);
            for attempt in [connect_blocking, connect_and_poll, connect_and_read_error] {
                let (here, error) = network.link.client.run(|| attempt(from, there))?;
                ensure!(error == Errno::ECONNREFUSED, "{there}: {error}");
                let document = failed(here, there, "ECONNREFUSED")?;
                expect(&document, &vec![("/source/packets", json!(0)), ("/destination/packets", json!(answers))])?;
            }
        }
    }
    Ok(())
}

/// The remote host rejects the SYN. Because it is a namespace of this host, its answer may arrive during the call, too.
fn a_connect_is_rejected_by_another_host() -> Result<()> {
    let (_, network) = (fixture()?, Routed::new()?);
    let rules = format!(
        "table inet t {{ chain c {{ type filter hook input priority 0;
            tcp dport {BY_ICMP} reject with icmpx type admin-prohibited; }}; }}"
    );
    network.link.server.run(|| nft(&rules))?;
    for family in [Family::V4, Family::V6] {
        let [from, to] = [&network.link.client, &network.link.server].map(|host| host.ip(family));
        let there = SocketAddr::new(to, BY_ICMP);
        let (here, error) = network.link.client.run(|| connect_and_read_error(from, there))?;
        ensure!(error == Errno::EHOSTUNREACH || error == Errno::EACCES, "{there}: {error}");
        let document = failed(here, there, &format!("{error:?}"))?;
        ensure!(number(&document, "/source/packets")? > 0, "{document:#}");
    }
    Ok(())
}

/// The program closes the socket. The kernel has no error, but the connect has failed.
fn a_connect_in_progress_is_closed() -> Result<()> {
    let (_, network) = (fixture()?, Routed::new()?);
    network.stop_forwarding()?;
    let [from, to] = [&network.link.client, &network.link.server].map(|host| host.ip(Family::V4));
    let there = SocketAddr::new(to, 4246);
    let (socket, here) = network.link.client.run(|| begin(from, there))?;
    sleep(Duration::from_millis(300));
    drop(socket);
    let document = document_of(here, there, "egress")?;
    expect(&document, &of_this_process("failure"))?;
    expect(&document, &vec![("/error", Value::Null), ("/destination/packets", json!(0))])
}

fn a_connect_in_progress_succeeds() -> Result<()> {
    fixture()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let there = listener.local_addr()?;
    let (here, error) = connect_nonblocking(there)?;
    ensure!(error.is_none(), "{error:?}");
    drop(listener.accept()?);
    let document = document_of(here, there, "egress")?;
    expect(&document, &vec![("/event/outcome", json!("success")), ("/error", Value::Null)])
}

/// A connection waits with data in the listener's queue.
fn a_connection_that_is_accepted_late() -> Result<()> {
    let fixture = fixture()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let there = listener.local_addr()?;
    let mut client = TcpStream::connect(there)?;
    let here = client.local_addr()?;
    client.write_all(b"anybody there?")?;
    sleep(Duration::from_millis(1500));
    let early: Vec<_> = fixture.documents()?.into_iter().filter(|document| is_of(document, here, there)).collect();
    ensure!(early.is_empty(), "a document before its end: {early:#?}");
    let (mut server, _) = listener.accept()?;
    drop(client);
    server.read_to_end(&mut Vec::new())?;
    drop(server);
    for direction in ["egress", "ingress"] {
        let document = document_of(here, there, direction)?;
        expect(&document, &of_this_process("success"))?;
        ensure!(number(&document, "/source/bytes")? > number(&document, "/destination/bytes")?, "{document:#}");
    }
    Ok(())
}

/// The last test: it checks the documents of all others.
fn no_flow_ends_twice() -> Result<()> {
    let monitor = take_fixture()?;
    let output = monitor.stop()?;
    ensure!(output.status.success(), "socktrail ended with {}:\n{}", output.status, output.log);
    let mut seen = HashSet::new();
    for document in &output.documents {
        let id = document["flow"]["id"].as_str().context("no flow.id")?;
        ensure!(seen.insert(id), "a second document of {id}: {:#?}", output.documents);
        let flow = (endpoint(document, "source"), endpoint(document, "destination"), &document["network"]["direction"]);
        let same = |other: &&Value| {
            (endpoint(other, "source"), endpoint(other, "destination"), &other["network"]["direction"]) == flow
        };
        let count = output.documents.iter().filter(same).count();
        ensure!(count == 1, "{count} documents of {flow:?}");
    }
    Ok(())
}

/// Connects with a `TCP_SYNCNT`. The connect must fail. Returns the local address and the error.
fn failing_connect(from: IpAddr, there: SocketAddr, syn_count: i32) -> Result<(SocketAddr, Errno)> {
    let (socket, here) = bound(from, SockFlag::empty())?;
    set_option(&socket, nix::libc::IPPROTO_TCP, nix::libc::TCP_SYNCNT, &syn_count.to_ne_bytes())?;
    let error = connect(socket.as_raw_fd(), &SockaddrStorage::from(there)).err().context("the connect succeeded")?;
    Ok((here, error))
}

/// A blocking connect.
fn connect_blocking(from: IpAddr, there: SocketAddr) -> Result<(SocketAddr, Errno)> {
    failing_connect(from, there, MORE_SYNS)
}

/// A nonblocking connect, with `poll(2)` for the outcome.
fn connect_and_poll(from: IpAddr, there: SocketAddr) -> Result<(SocketAddr, Errno)> {
    let (socket, here) = begin(from, there)?;
    Ok((here, outcome(&socket)?.context("the connect succeeded")?))
}

/// A nonblocking connect, with repeated reads of `SO_ERROR`, closed as soon as there is an error.
fn connect_and_read_error(from: IpAddr, there: SocketAddr) -> Result<(SocketAddr, Errno)> {
    let (socket, here) = begin(from, there)?;
    for _ in 0..TIMEOUT {
        let error = getsockopt(&socket, sockopt::SocketError)?;
        if error != 0 {
            return Ok((here, Errno::from_raw(error)));
        }
        sleep(Duration::from_millis(1));
    }
    bail!("the connect has no outcome")
}

/// A nonblocking connect. Returns the local address and the error, if there is one.
fn connect_nonblocking(there: SocketAddr) -> Result<(SocketAddr, Option<Errno>)> {
    let (socket, here) = begin(there.ip(), there)?;
    Ok((here, outcome(&socket)?))
}

/// Starts a nonblocking connect, which must be in progress.
fn begin(from: IpAddr, there: SocketAddr) -> Result<(OwnedFd, SocketAddr)> {
    let (socket, here) = bound(from, SockFlag::SOCK_NONBLOCK)?;
    let begun = connect(socket.as_raw_fd(), &SockaddrStorage::from(there));
    ensure!(begun == Err(Errno::EINPROGRESS), "{begun:?}");
    Ok((socket, here))
}

/// Waits for the outcome. Returns `SO_ERROR`, which the kernel reports only once.
fn outcome(socket: &OwnedFd) -> Result<Option<Errno>> {
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    ensure!(poll(&mut ready, PollTimeout::from(TIMEOUT))? == 1, "the connect has no outcome");
    let error = getsockopt(socket, sockopt::SocketError)?;
    Ok((error != 0).then(|| Errno::from_raw(error)))
}

/// A bound socket, and its address.
fn bound(ip: IpAddr, flags: SockFlag) -> Result<(OwnedFd, SocketAddr)> {
    let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(ip, 0))).context("bind")?;
    let here = TcpStream::from(socket.try_clone()?).local_addr()?;
    Ok((socket, here))
}

/// The document of a failed connect of this process.
fn failed(here: SocketAddr, there: SocketAddr, code: &str) -> Result<Value> {
    let document = document_of(here, there, "egress")?;
    expect(&document, &of_this_process("failure"))?;
    expect(&document, &vec![("/error/code", json!(code))])?;
    Ok(document)
}

fn of_this_process(outcome: &str) -> ExpectedFields {
    vec![
        ("/event/outcome", json!(outcome)),
        ("/process/pid", json!(std::process::id())),
        ("/flow/final", json!(true)),
        ("/flow/complete", json!(true)),
    ]
}

/// Waits for the document of a flow.
fn document_of(here: SocketAddr, there: SocketAddr, direction: &str) -> Result<Value> {
    let is_of = |document: &Value| is_of(document, here, there) && document["network"]["direction"] == direction;
    fixture()?.wait_for(&format!("the document of {here} to {there}, {direction}"), is_of)
}

/// Whether a document is about a flow. A connect without a local address has no `source.ip`.
fn is_of(document: &Value, here: SocketAddr, there: SocketAddr) -> bool {
    let source = Some(here).filter(|here| !here.ip().is_unspecified());
    endpoint(document, "source") == source && endpoint(document, "destination") == Some(there)
}

static FIXTURE: Mutex<Option<Arc<Socktrail>>> = Mutex::new(None);

/// The monitor of all tests in this module, with a short termination timeout.
fn fixture() -> Result<Arc<Socktrail>> {
    let mut fixture = FIXTURE.lock().unwrap_or_else(PoisonError::into_inner);
    if fixture.is_none() {
        *fixture = Some(Arc::new(Socktrail::flows(&["--flow-termination-timeout", "500ms"])?));
    }
    fixture.clone().context("the fixture is not set up")
}

/// Takes the monitor, for the last test.
fn take_fixture() -> Result<Socktrail> {
    let fixture = fixture()?;
    FIXTURE.lock().unwrap_or_else(PoisonError::into_inner).take();
    Arc::into_inner(fixture).context("a test still uses the fixture")
}
