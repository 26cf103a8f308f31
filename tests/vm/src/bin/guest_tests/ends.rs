//! How connections end that do not come to be, and those that wait to be accepted: each in one document.

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
use crate::helpers::document::{Wanted, end, expect, number};
use crate::helpers::netns::Netns;
use crate::helpers::nft::nft;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::sys::set_option;

tests![
    a_connect_that_is_never_answered,
    a_connect_to_a_host_that_is_not_there,
    a_connect_without_a_route,
    a_connect_in_progress_is_refused,
    a_connect_in_progress_is_told_that_nobody_is_there,
    a_connect_is_rejected_by_a_local_rule,
    a_connect_is_rejected_by_another_host,
    a_connect_in_progress_is_given_up,
    a_connect_in_progress_succeeds,
    a_connection_that_is_accepted_late,
    nobody_has_more_than_one_end,
];

/// A SYN is sent again after 1 s, and given up after 2 s more.
const ONE_MORE_SYN: i32 = 1;
/// Longer than a router asks for a host: 3 s.
const MORE_SYNS: i32 = 4;
/// Milliseconds that an outcome may take.
const PATIENCE: u16 = 20_000;

/// The ports that are rejected with an ICMP error and with a TCP reset.
const BY_ICMP: u16 = 4247;
const BY_RESET: u16 = 4248;

/// A network that takes packets and gives nothing back.
fn a_connect_that_is_never_answered() -> Result<()> {
    let (_, network) = (stage()?, Routed::new()?);
    network.stop_forwarding()?;
    let [from, to] = [&network.link.client, &network.link.server].map(|host| host.ip(Family::V4));
    let there = SocketAddr::new(to, 4242);
    let (here, error) = network.link.client.run(|| {
        // From Linux 6.5 on some more SYNs are sent than TCP_SYNCNT says.
        match fs::write("/proc/sys/net/ipv4/tcp_syn_linear_timeouts", "0") {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => knock(from, there, ONE_MORE_SYN),
        }
    })?;
    ensure!(error == Errno::ETIMEDOUT, "{error}");
    let document = failed(here, there, "ETIMEDOUT")?;
    expect(&document, &vec![("/source/packets", json!(2)), ("/destination/packets", json!(0))])?;
    let duration = Duration::from_nanos(number(&document, "/event/duration")?);
    ensure!(duration >= Duration::from_secs(3) && duration < Duration::from_secs(20), "{duration:?} in {document:#}");
    Ok(())
}

/// The router asks for it in vain, and says so.
fn a_connect_to_a_host_that_is_not_there() -> Result<()> {
    let (_, network) = (stage()?, Routed::new()?);
    let there = SocketAddr::new(Ipv4Addr::new(10, 9, 2, 99).into(), 4243);
    let client = &network.link.client;
    let (here, error) = client.run(|| knock(client.ip(Family::V4), there, MORE_SYNS))?;
    ensure!(error == Errno::EHOSTUNREACH, "{error}");
    failed(here, there, "EHOSTUNREACH").map(drop)
}

/// It fails before a packet leaves; the attempt has no address of its own yet.
fn a_connect_without_a_route() -> Result<()> {
    stage()?;
    let (nowhere, there) = (Ipv4Addr::UNSPECIFIED.into(), SocketAddr::new(Ipv4Addr::new(198, 51, 100, 7).into(), 4244));
    let (_, error) = Netns::new()?.run(|| knock(nowhere, there, ONE_MORE_SYN))?;
    ensure!(error == Errno::ENETUNREACH, "{error}");
    let document = failed(SocketAddr::new(nowhere, 0), there, "ENETUNREACH")?;
    expect(&document, &vec![("/source/packets", json!(0)), ("/destination/packets", json!(0))])
}

/// `connect(2)` says that it goes on, which is no failure; the refusal that follows is.
fn a_connect_in_progress_is_refused() -> Result<()> {
    stage()?;
    let there: SocketAddr = "127.0.0.1:1".parse()?;
    let (here, error) = knock_without_waiting(there)?;
    ensure!(error == Some(Errno::ECONNREFUSED), "{error:?}");
    failed(here, there, "ECONNREFUSED").map(drop)
}

/// An ICMP error ends it. The client takes the error from its socket at once: it may be gone before the kernel closes
/// the connection.
fn a_connect_in_progress_is_told_that_nobody_is_there() -> Result<()> {
    let (_, network) = (stage()?, Routed::new()?);
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

/// A rule of this host drops the SYN and answers it, so nothing leaves. An ICMP error comes while the call holds the
/// socket: the kernel only notes it (`sk_err_soft`), and the program may take it before anything else shows it.
fn a_connect_is_rejected_by_a_local_rule() -> Result<()> {
    let (_, network) = (stage()?, Routed::new()?);
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
            for attempt in [waits, polls, asks] {
                let (here, error) = network.link.client.run(|| attempt(from, there))?;
                ensure!(error == Errno::ECONNREFUSED, "{there}: {error}");
                let document = failed(here, there, "ECONNREFUSED")?;
                expect(&document, &vec![("/source/packets", json!(0)), ("/destination/packets", json!(answers))])?;
            }
        }
    }
    Ok(())
}

/// The next host rejects the SYN. If it is a namespace of this host, its answer may come within the call as well.
fn a_connect_is_rejected_by_another_host() -> Result<()> {
    let (_, network) = (stage()?, Routed::new()?);
    let rules = format!(
        "table inet t {{ chain c {{ type filter hook input priority 0;
            tcp dport {BY_ICMP} reject with icmpx type admin-prohibited; }}; }}"
    );
    network.link.server.run(|| nft(&rules))?;
    for family in [Family::V4, Family::V6] {
        let [from, to] = [&network.link.client, &network.link.server].map(|host| host.ip(family));
        let there = SocketAddr::new(to, BY_ICMP);
        let (here, error) = network.link.client.run(|| asks(from, there))?;
        ensure!(error == Errno::EHOSTUNREACH || error == Errno::EACCES, "{there}: {error}");
        let document = failed(here, there, &format!("{error:?}"))?;
        ensure!(number(&document, "/source/packets")? > 0, "{document:#}");
    }
    Ok(())
}

/// The kernel has no error by then; the connect has failed all the same.
fn a_connect_in_progress_is_given_up() -> Result<()> {
    let (_, network) = (stage()?, Routed::new()?);
    network.stop_forwarding()?;
    let [from, to] = [&network.link.client, &network.link.server].map(|host| host.ip(Family::V4));
    let there = SocketAddr::new(to, 4246);
    let (socket, here) = network.link.client.run(|| begin(from, there))?;
    sleep(Duration::from_millis(300));
    drop(socket);
    let document = only(here, there, "egress")?;
    expect(&document, &of_this_process("failure"))?;
    expect(&document, &vec![("/error", Value::Null), ("/destination/packets", json!(0))])
}

fn a_connect_in_progress_succeeds() -> Result<()> {
    stage()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let there = listener.local_addr()?;
    let (here, error) = knock_without_waiting(there)?;
    ensure!(error.is_none(), "{error:?}");
    drop(listener.accept()?);
    let document = only(here, there, "egress")?;
    expect(&document, &vec![("/event/outcome", json!("success")), ("/error", Value::Null)])
}

/// A connection with its data has waited in the listener's queue.
fn a_connection_that_is_accepted_late() -> Result<()> {
    let stage = stage()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let there = listener.local_addr()?;
    let mut client = TcpStream::connect(there)?;
    let here = client.local_addr()?;
    client.write_all(b"anybody there?")?;
    sleep(Duration::from_millis(1500));
    let early: Vec<_> = stage.documents()?.into_iter().filter(|document| is_of(document, here, there)).collect();
    ensure!(early.is_empty(), "it has not ended: {early:#?}");
    let (mut server, _) = listener.accept()?;
    drop(client);
    let mut said = String::new();
    server.read_to_string(&mut said)?;
    drop(server);
    for direction in ["egress", "ingress"] {
        let document = only(here, there, direction)?;
        expect(&document, &of_this_process("success"))?;
        ensure!(number(&document, "/source/bytes")? > number(&document, "/destination/bytes")?, "{document:#}");
    }
    Ok(())
}

/// By now whatever could have been said twice has been.
fn nobody_has_more_than_one_end() -> Result<()> {
    let watch = take_stage()?;
    let watched = watch.stop()?;
    ensure!(watched.status.success(), "socktrail ended with {}:\n{}", watched.status, watched.log);
    let mut seen = HashSet::new();
    for document in &watched.documents {
        let id = document["flow"]["id"].as_str().context("a flow has an id")?;
        ensure!(seen.insert(id), "a second end of {id}: {:#?}", watched.documents);
        let flow = (end(document, "source"), end(document, "destination"), &document["network"]["direction"]);
        let same =
            |other: &&Value| (end(other, "source"), end(other, "destination"), &other["network"]["direction"]) == flow;
        let count = watched.documents.iter().filter(same).count();
        ensure!(count == 1, "{count} documents of {flow:?}");
    }
    Ok(())
}

/// Connects from an address, with so many SYNs beside the first, and says from which port, and why it failed.
fn knock(from: IpAddr, there: SocketAddr, more_syns: i32) -> Result<(SocketAddr, Errno)> {
    let (socket, here) = bound(from, SockFlag::empty())?;
    set_option(&socket, nix::libc::IPPROTO_TCP, nix::libc::TCP_SYNCNT, &more_syns.to_ne_bytes())?;
    let error = connect(socket.as_raw_fd(), &SockaddrStorage::from(there)).err().context("it was to fail")?;
    Ok((here, error))
}

/// A connect that waits in the call.
fn waits(from: IpAddr, there: SocketAddr) -> Result<(SocketAddr, Errno)> {
    knock(from, there, MORE_SYNS)
}

/// One that is in progress until the kernel says that it has ended.
fn polls(from: IpAddr, there: SocketAddr) -> Result<(SocketAddr, Errno)> {
    let (socket, here) = begin(from, there)?;
    Ok((here, outcome(&socket)?.context("it was to fail")?))
}

/// One that asks for the error again and again, and ends as soon as it gets one.
fn asks(from: IpAddr, there: SocketAddr) -> Result<(SocketAddr, Errno)> {
    let (socket, here) = begin(from, there)?;
    for _ in 0..PATIENCE {
        let error = getsockopt(&socket, sockopt::SocketError)?;
        if error != 0 {
            return Ok((here, Errno::from_raw(error)));
        }
        sleep(Duration::from_millis(1));
    }
    bail!("the connect goes on and on")
}

/// The same without waiting: the outcome comes later, and may be none.
fn knock_without_waiting(there: SocketAddr) -> Result<(SocketAddr, Option<Errno>)> {
    let (socket, here) = begin(there.ip(), there)?;
    Ok((here, outcome(&socket)?))
}

/// Starts a connect that does not finish at once.
fn begin(from: IpAddr, there: SocketAddr) -> Result<(OwnedFd, SocketAddr)> {
    let (socket, here) = bound(from, SockFlag::SOCK_NONBLOCK)?;
    let begun = connect(socket.as_raw_fd(), &SockaddrStorage::from(there));
    ensure!(begun == Err(Errno::EINPROGRESS), "{begun:?}");
    Ok((socket, here))
}

/// Waits until it has ended; returns the socket's error, which the kernel reports only once.
fn outcome(socket: &OwnedFd) -> Result<Option<Errno>> {
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    ensure!(poll(&mut ready, PollTimeout::from(PATIENCE))? == 1, "the connect goes on and on");
    let error = getsockopt(socket, sockopt::SocketError)?;
    Ok((error != 0).then(|| Errno::from_raw(error)))
}

/// A socket with a port.
fn bound(ip: IpAddr, flags: SockFlag) -> Result<(OwnedFd, SocketAddr)> {
    let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(ip, 0))).context("bind")?;
    let here = TcpStream::from(socket.try_clone()?).local_addr()?;
    Ok((socket, here))
}

/// The document of a connect of this process's that failed.
fn failed(here: SocketAddr, there: SocketAddr, code: &str) -> Result<Value> {
    let document = only(here, there, "egress")?;
    expect(&document, &of_this_process("failure"))?;
    expect(&document, &vec![("/error/code", json!(code))])?;
    Ok(document)
}

fn of_this_process(outcome: &str) -> Wanted {
    vec![
        ("/event/outcome", json!(outcome)),
        ("/process/pid", json!(std::process::id())),
        ("/flow/final", json!(true)),
        ("/flow/complete", json!(true)),
    ]
}

/// The one document of a flow, once it is there.
fn only(here: SocketAddr, there: SocketAddr, direction: &str) -> Result<Value> {
    let is_of = |document: &Value| is_of(document, here, there) && document["network"]["direction"] == direction;
    stage()?.wait_for(&format!("the document of {here} to {there}, {direction}"), is_of)
}

/// A connect that got no address has no `source.ip`.
fn is_of(document: &Value, here: SocketAddr, there: SocketAddr) -> bool {
    let source = Some(here).filter(|here| !here.ip().is_unspecified());
    end(document, "source") == source && end(document, "destination") == Some(there)
}

static STAGE: Mutex<Option<Arc<Socktrail>>> = Mutex::new(None);

/// A monitor for all tests here, which does not wait long for packets that come after the end.
fn stage() -> Result<Arc<Socktrail>> {
    let mut stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
    if stage.is_none() {
        *stage = Some(Arc::new(Socktrail::flows(&["--flow-termination-timeout", "500ms"])?));
    }
    stage.clone().context("the stage is set up")
}

/// The stage, for the last who asks.
fn take_stage() -> Result<Socktrail> {
    let stage = stage()?;
    STAGE.lock().unwrap_or_else(PoisonError::into_inner).take();
    Arc::into_inner(stage).context("a test still uses the stage")
}
