//! Connections that are idle for longer than every timeout. Their last packets still have the right owner, no matter
//! which side ends the connection and how.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::libc::{IPPROTO_TCP, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

use crate::capture::link::{Family, Host, Routed, loopback};
use crate::helpers::document::{endpoint, expect};
use crate::helpers::socktrail::Socktrail;
use crate::helpers::sys::set_option;
use crate::helpers::traffic::reset;

tests![
    closed_by_the_client,
    closed_by_the_server,
    reset_by_the_client,
    reset_by_the_server,
    a_keepalive_that_fails,
    a_half_closed_connection,
];

/// The timeout of flows and sockets without traffic.
const TIMEOUT: &str = "500ms";
/// Longer than the timeout and the monitor's delay.
const IDLE: Duration = Duration::from_secs(3);

/// A connection, and a monitor that has seen its start.
struct Fixture {
    monitor: Socktrail,
    client: TcpStream,
    server: TcpStream,
    ends: [SocketAddr; 2],
}

/// The side of a document's flow, as its `network.direction`.
type Side = &'static str;
const CLIENT: Side = "egress";
const SERVER: Side = "ingress";

fn closed_by_the_client() -> Result<()> {
    idle(|client, server| {
        drop(client);
        drop(server);
        Ok(())
    })
}

fn closed_by_the_server() -> Result<()> {
    idle(|client, server| {
        drop(server);
        // The client sees the FIN, and is idle again before it closes.
        sleep(IDLE);
        drop(client);
        Ok(())
    })
}

fn reset_by_the_client() -> Result<()> {
    idle(|client, _server| reset(client))
}

fn reset_by_the_server() -> Result<()> {
    idle(|_client, server| reset(server))
}

/// The server sends its FIN long after the client's, when the client's side no longer has a socket.
fn a_half_closed_connection() -> Result<()> {
    idle(|client, server| {
        drop(client);
        sleep(IDLE);
        drop(server);
        Ok(())
    })
}

/// The network drops all packets, so there are no answers.
fn a_keepalive_that_fails() -> Result<()> {
    let network = Routed::new()?;
    let (client, server) = (&network.link.client, &network.link.server);
    let fixture = Fixture::between(client, server)?;
    setsockopt(&fixture.client, sockopt::KeepAlive, &true)?;
    for (option, value) in [(TCP_KEEPIDLE, 4), (TCP_KEEPINTVL, 2), (TCP_KEEPCNT, 2)] {
        set_option(&fixture.client, IPPROTO_TCP, option, &i32::to_ne_bytes(value))?;
    }
    network.stop_forwarding()?;
    sleep(Duration::from_secs(12));
    fixture.client.take_error()?.expect("the keepalive has failed");
    let Fixture { monitor, client, server: _server, ends } = fixture;
    // There are probes at 4 s and 6 s, and a reset at 8 s, with more than the timeout between them.
    expect_owner(monitor, ends, &[CLIENT], 3)?;
    drop(client);
    Ok(())
}

/// Makes an idle connection over loopback, and closes it.
fn idle(close: impl FnOnce(TcpStream, TcpStream) -> Result<()>) -> Result<()> {
    let host = loopback()?.client;
    let Fixture { monitor, client, server, ends } = Fixture::between(&host, &host)?;
    close(client, server)?;
    expect_owner(monitor, ends, &[CLIENT, SERVER], 2)
}

impl Fixture {
    /// Waits until the first flows of both sides have ended.
    fn between(client: &Host, server: &Host) -> Result<Self> {
        let timeouts = ["--flow-inactive-timeout", "--socket-inactive-timeout", "--flow-termination-timeout"];
        let options: Vec<_> = timeouts.iter().flat_map(|option| [*option, TIMEOUT]).collect();
        let monitor = Socktrail::flows(&options)?;
        let listener = server.run(|| Ok(TcpListener::bind((server.ip(Family::V4), 0))?))?;
        let there = listener.local_addr()?;
        let client = client.run(|| Ok(TcpStream::connect(there)?))?;
        let (server, here) = listener.accept()?;
        sleep(IDLE);
        let fixture = Self { monitor, client, server, ends: [here, there] };
        for side in [CLIENT, SERVER] {
            let is_first = |document: &Value| is_of(document, fixture.ends, side);
            let first = fixture.monitor.wait_for(&format!("the first flow, {side}"), is_first)?;
            expect(&first, &vec![("/event/reason", json!("inactive")), ("/flow/complete", json!(true))])?;
        }
        Ok(fixture)
    }
}

/// Fails unless every document of the connection has this process as owner and a direction, and the last one of each
/// side has the reason `closed` and is not `flow.complete`.
fn expect_owner(monitor: Socktrail, ends: [SocketAddr; 2], sides: &[Side], at_least: usize) -> Result<()> {
    for side in sides {
        let is_last = |document: &Value| is_of(document, ends, side) && document["event"]["reason"] == "closed";
        let last = monitor.wait_for(&format!("the last flow, {side}"), is_last)?;
        expect(&last, &vec![("/flow/complete", json!(false)), ("/event/outcome", json!("success"))])?;
    }
    let output = monitor.stop()?;
    ensure!(output.status.success(), "socktrail ended with {}:\n{}", output.status, output.log);
    let between = |document: &&Value| is_between(document, ends);
    for document in output.documents.iter().filter(between) {
        expect(
            document,
            &vec![
                ("/process/pid", json!(std::process::id())),
                ("/system/audit/socket/owner", json!("process")),
                ("/system/audit/socket/last_user", Value::Null),
            ],
        )?;
        ensure!([CLIENT, SERVER].iter().any(|side| is_of(document, ends, side)), "no direction in {document:#}");
    }
    for side in sides {
        let count = output.documents.iter().filter(|document| is_of(document, ends, side)).count();
        ensure!(count >= at_least, "only {count} documents of {side}: {:#?}", output.documents);
    }
    Ok(())
}

fn is_of(document: &Value, [here, there]: [SocketAddr; 2], side: Side) -> bool {
    let ends = (endpoint(document, "source"), endpoint(document, "destination"));
    ends == (Some(here), Some(there)) && document["network"]["direction"] == side
}

fn is_between(document: &Value, ends: [SocketAddr; 2]) -> bool {
    let is_end = |name: &str| endpoint(document, name).is_some_and(|end| ends.contains(&end));
    is_end("source") && is_end("destination")
}
