//! How connections end that do not come to be, and those that wait to be accepted: each in one document.

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, socket, sockopt,
};
use serde_json::{Value, json};

use crate::capture::link::{Family, Routed};
use crate::helpers::document::{Wanted, end, expect, number};
use crate::helpers::netns::Netns;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::sys::set_option;

tests![
    a_connect_that_is_never_answered,
    a_connect_to_a_host_that_is_not_there,
    a_connect_without_a_route,
    a_connect_in_progress_is_refused,
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

/// The same without waiting: the outcome comes later, and may be none.
fn knock_without_waiting(there: SocketAddr) -> Result<(SocketAddr, Option<Errno>)> {
    let (socket, here) = bound(there.ip(), SockFlag::SOCK_NONBLOCK)?;
    let begun = connect(socket.as_raw_fd(), &SockaddrStorage::from(there));
    ensure!(begun == Err(Errno::EINPROGRESS), "{begun:?}");
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    ensure!(poll(&mut ready, PollTimeout::from(PATIENCE))? == 1, "the connect goes on and on");
    let error = getsockopt(&socket, sockopt::SocketError)?;
    Ok((here, (error != 0).then(|| Errno::from_raw(error))))
}

/// A socket with a port.
fn bound(ip: IpAddr, flags: SockFlag) -> Result<(OwnedFd, SocketAddr)> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None)?;
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
