//! MPTCP: the packets of each subflow are those captured at both ends, and all subflows belong to the owner of the
//! application's socket.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::actors::{ACT, PROGRAM};
use crate::capture::compare::{Captured, are_there, compare, documents_of};
use crate::capture::link::{Conditions, Family, Host, Routed};
use crate::capture::phases::{OFFLOADED, PLAIN};
use crate::capture::sniffer::{Learn, Sniffer};
use crate::capture::stage::{Expected, Side, both, canonical};
use crate::capture::wire::{Transport, Way};
use crate::helpers::path_manager::{Use, add_endpoint, allow_subflows};
use crate::helpers::patience::until_within;
use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::tracefs::Tracefs;

tests![
    subflows_over_ipv4,
    subflows_over_ipv4_with_offloads,
    subflows_over_ipv6,
    subflows_over_ipv6_with_offloads,
    subflows_before_the_accept,
    a_server_that_falls_back,
    a_client_that_falls_back,
    a_connection_that_is_closed_at_once,
    a_listener_that_never_accepts,
];

/// How long a connection takes to end on the wire, after its programs have ended.
const LAST_PACKETS: Duration = Duration::from_secs(2);
/// How long documents may take after that.
const DOCUMENTS: Duration = Duration::from_secs(10);
/// How many times a scenario is repeated if probes miss hits.
const ROUNDS: usize = 5;

/// What the client, and the server, do.
#[derive(Clone, Copy)]
struct Scenario {
    family: Family,
    conditions: Conditions,
    server: &'static [&'static str],
    client: &'static [&'static str],
    /// How many subflows there are, the first included.
    subflows: usize,
    /// Whether the server accepts the connection: until then it has no owner.
    accepted: bool,
}

const SUBFLOWS: Scenario = Scenario {
    family: Family::V4,
    conditions: PLAIN,
    server: &["mptcp-serve", "mptcp", "ADDRESS", "1", "0"],
    client: &["mptcp-ask", "mptcp", "ADDRESS", "20"],
    subflows: 3,
    accepted: true,
};

/// The first subflow comes from the client's second address, because the kernel chooses the latest. So no further one
/// comes from there.
const OVER_IPV6: Scenario = Scenario { family: Family::V6, subflows: 2, ..SUBFLOWS };

fn subflows_over_ipv4() -> Result<()> {
    SUBFLOWS.play()
}

fn subflows_over_ipv4_with_offloads() -> Result<()> {
    Scenario { conditions: OFFLOADED, ..SUBFLOWS }.play()
}

fn subflows_over_ipv6() -> Result<()> {
    OVER_IPV6.play()
}

fn subflows_over_ipv6_with_offloads() -> Result<()> {
    Scenario { conditions: OFFLOADED, ..OVER_IPV6 }.play()
}

/// The other subflows and the data arrive before the program accepts the connection.
fn subflows_before_the_accept() -> Result<()> {
    Scenario { server: &["mptcp-serve", "mptcp", "ADDRESS", "1", "3000"], ..SUBFLOWS }.play()
}

fn a_server_that_falls_back() -> Result<()> {
    Scenario {
        server: &["mptcp-serve", "mptcp", "ADDRESS", "1", "0"],
        client: &["mptcp-ask", "tcp", "ADDRESS", "20"],
        subflows: 1,
        ..SUBFLOWS
    }
    .play()
}

fn a_client_that_falls_back() -> Result<()> {
    Scenario { server: &["mptcp-serve", "tcp", "ADDRESS", "1", "0"], subflows: 1, ..SUBFLOWS }.play()
}

/// The connection may be closed before the other subflows have come.
fn a_connection_that_is_closed_at_once() -> Result<()> {
    Scenario { client: &["mptcp-touch", "mptcp", "ADDRESS"], subflows: 1, ..SUBFLOWS }.play()
}

/// No program accepts the connection.
fn a_listener_that_never_accepts() -> Result<()> {
    Scenario {
        server: &["mptcp-serve", "mptcp", "ADDRESS", "0", "300"],
        client: &["mptcp-touch", "mptcp", "ADDRESS"],
        subflows: 1,
        accepted: false,
        ..SUBFLOWS
    }
    .play()
}

/// Two hosts with two addresses each.
struct Network {
    routed: Routed,
    family: Family,
}

impl Network {
    /// `None` if the kernel has no MPTCP, such as Debian's 5.10.
    fn new(scenario: &Scenario) -> Result<Option<Self>> {
        if !Path::new("/proc/sys/net/mptcp").exists() {
            return Ok(None);
        }
        let routed = Routed::new()?;
        routed.set(scenario.conditions)?;
        let network = Self { routed, family: scenario.family };
        for (host, other) in [(&network.routed.link.client, 1), (&network.routed.link.server, 2)] {
            host.add_address(network.second_address(other))?;
            host.run(|| {
                std::fs::write("/proc/sys/net/mptcp/enabled", "1")?;
                allow_subflows(8)
            })?;
        }
        Ok(Some(network))
    }

    fn second_address(&self, number: u8) -> IpAddr {
        match self.family {
            Family::V4 => [10, 9, number, 3].into(),
            Family::V6 => [0xfd09, number.into(), 0, 0, 0, 0, 0, 3].into(),
        }
    }

    /// Has subflows made from the client's second address, and the server's announced.
    fn add_endpoints(&self) -> Result<()> {
        let link = &self.routed.link;
        link.client.run(|| add_endpoint(self.second_address(1), Use::Subflow))?;
        link.server.run(|| add_endpoint(self.second_address(2), Use::Signal))
    }

    /// Any port of any of the server's addresses.
    fn listening(&self) -> SocketAddr {
        match self.family {
            Family::V4 => ([0, 0, 0, 0], 0).into(),
            Family::V6 => ([0_u16; 8], 0).into(),
        }
    }

    fn start(&self, host: &Host, part: &[&str], address: SocketAddr) -> Result<Process> {
        let address = match address.ip().is_unspecified() && part[0] != "mptcp-serve" {
            true => SocketAddr::new(self.routed.link.server.ip(self.family), address.port()),
            false => address,
        };
        let address = address.to_string();
        let part = part.iter().map(|word| if *word == "ADDRESS" { address.as_str() } else { word });
        let words: Vec<_> = [PROGRAM, ACT].into_iter().chain(part).collect();
        host.run(|| Process::start(&words))
    }
}

/// A process and the address that it has printed.
fn said(mut process: Process) -> Result<(Process, SocketAddr)> {
    let address = process.first_line()?.parse()?;
    Ok((process, address))
}

/// The process that must own each side's flows.
struct Owners {
    client: u32,
    server: Option<u32>,
}

impl Scenario {
    /// Repeats it until no probe has missed a hit, and compares the documents with the captures and the known owners.
    fn play(&self) -> Result<()> {
        let Some(network) = Network::new(self)? else { return Ok(()) };
        network.add_endpoints()?;
        let watch = Socktrail::flows(&["--flow-termination-timeout", "1s"])?;
        let tracefs = Tracefs::mount()?;
        for round in 1..=ROUNDS {
            let missed = tracefs.missed()?;
            let (flows, captured, owners) = self.perform(&network)?;
            until_within(DOCUMENTS, "all documents", || Ok(are_there(&watch.documents()?, &flows))).ok();
            let documents = watch.documents()?;
            match compare(&documents, &flows, &captured) {
                Ok(()) => return check_owners(&documents, &flows, &owners),
                Err(difference) if !difference.is_lossy || round == ROUNDS => {
                    bail!("{}\n({} hits missed)", difference.text, tracefs.missed()? - missed)
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn perform(&self, network: &Network) -> Result<(Vec<Expected>, Captured, Owners)> {
        let link = &network.routed.link;
        let sniffers = [&link.client, &link.server].map(|host| Sniffer::start(host, Learn::FromKernel));
        let (server, there) = said(network.start(&link.server, self.server, network.listening())?)?;
        let (client, here) = said(network.start(&link.client, self.client, there)?)?;
        let owners = Owners { client: client.pid, server: self.accepted.then_some(server.pid) };
        for process in [client, server] {
            let finished = process.finish()?;
            ensure!(finished.status == 0, "{finished:?}");
        }
        sleep(LAST_PACKETS);
        let [client, server] = sniffers;
        let captured = Captured { client: client?.stop()?, server: Some(server?.stop()?) };
        let keys = captured.client.sent().filter(|key| key.transport == Transport::Tcp && key.way == Way::Out);
        let ends: Vec<_> = keys.map(|key| (key.from, key.to)).collect();
        let flows: Vec<_> = ends.iter().flat_map(|(from, to)| both(Transport::Tcp, *from, *to)).collect();
        let is_first = |(from, to): &&(SocketAddr, SocketAddr)| *from == canonical(here) && to.port() == there.port();
        ensure!(ends.iter().filter(is_first).count() == 1, "{here} is not among {ends:?}");
        ensure!(ends.len() >= self.subflows, "of {} subflows these were captured: {ends:?}", self.subflows);
        Ok((flows, captured, owners))
    }
}

/// A flow's owner, at either end, must be the process that has the MPTCP socket.
fn check_owners(documents: &[Value], flows: &[Expected], owners: &Owners) -> Result<()> {
    for flow in flows {
        let owner = match flow.side {
            Side::Client => Some(owners.client),
            Side::Server => owners.server,
        };
        let found = documents_of(documents, flow);
        let document = found.first().context("it was compared")?;
        let socket = &document["system"]["audit"]["socket"];
        ensure!(document["process"]["pid"].as_u64() == owner.map(u64::from), "not of {owner:?}: {document:#}");
        ensure!(socket["owner"] == if owner.is_some() { "process" } else { "unknown" }, "{document:#}");
        ensure!(socket["last_user"].is_null(), "{document:#}");
    }
    Ok(())
}
