//! MPTCP: the packets of each subflow are those captured at both ends, and all subflows belong to the owner of the
//! application's socket.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::capture::compare::{Captured, all_exist, compare, documents_of};
use crate::capture::link::{Conditions, Family, Host, Routed};
use crate::capture::phases::{OFFLOADED, PLAIN};
use crate::capture::sniffer::{SegmentInfo, Sniffer};
use crate::capture::testbed::{ExpectedFlow, Side, both, canonical};
use crate::capture::wire::Transport;
use crate::helpers::mptcp_endpoints::{Use, add_endpoint, allow_subflows};
use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::tracefs::Tracefs;
use crate::helpers::wait::wait_until_within;
use crate::workloads::{PROGRAM, RUN};

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

/// How long to wait for the last packets of a connection after its programs have ended.
const LAST_PACKETS: Duration = Duration::from_secs(2);
/// How long to wait for documents after that.
const DOCUMENTS: Duration = Duration::from_secs(10);
/// How often a scenario runs at most if probes miss hits.
const ROUNDS: usize = 5;

/// The workloads of server and client, and the network. `ADDRESS` in a workload stands for the server's address.
#[derive(Clone, Copy)]
struct Scenario {
    family: Family,
    conditions: Conditions,
    server: &'static [&'static str],
    client: &'static [&'static str],
    /// The minimum number of subflows, including the first.
    subflows: usize,
    /// Whether the server accepts the connection: before that it has no owner.
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

/// The kernel chooses the client's second address for the first subflow, so no further subflow starts from that address.
const OVER_IPV6: Scenario = Scenario { family: Family::V6, subflows: 2, ..SUBFLOWS };

fn subflows_over_ipv4() -> Result<()> {
    SUBFLOWS.run()
}

fn subflows_over_ipv4_with_offloads() -> Result<()> {
    Scenario { conditions: OFFLOADED, ..SUBFLOWS }.run()
}

fn subflows_over_ipv6() -> Result<()> {
    OVER_IPV6.run()
}

fn subflows_over_ipv6_with_offloads() -> Result<()> {
    Scenario { conditions: OFFLOADED, ..OVER_IPV6 }.run()
}

/// The other subflows and the data arrive before the program accepts the connection.
fn subflows_before_the_accept() -> Result<()> {
    Scenario { server: &["mptcp-serve", "mptcp", "ADDRESS", "1", "3000"], ..SUBFLOWS }.run()
}

fn a_server_that_falls_back() -> Result<()> {
    Scenario {
        server: &["mptcp-serve", "mptcp", "ADDRESS", "1", "0"],
        client: &["mptcp-ask", "tcp", "ADDRESS", "20"],
        subflows: 1,
        ..SUBFLOWS
    }
    .run()
}

fn a_client_that_falls_back() -> Result<()> {
    Scenario { server: &["mptcp-serve", "tcp", "ADDRESS", "1", "0"], subflows: 1, ..SUBFLOWS }.run()
}

/// The connection may be closed before the other subflows have come.
fn a_connection_that_is_closed_at_once() -> Result<()> {
    Scenario { client: &["mptcp-touch", "mptcp", "ADDRESS"], subflows: 1, ..SUBFLOWS }.run()
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
    .run()
}

/// Two hosts with two addresses each.
struct Network {
    routed: Routed,
    family: Family,
}

impl Network {
    /// `None` if the kernel has no MPTCP, as Debian's 5.10.
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

    /// Makes MPTCP use the client's second address for subflows, and announce the server's.
    fn add_endpoints(&self) -> Result<()> {
        let link = &self.routed.link;
        link.client.run(|| add_endpoint(self.second_address(1), Use::Subflow))?;
        link.server.run(|| add_endpoint(self.second_address(2), Use::Signal))
    }

    /// The address at which the server listens: any port of all of its addresses.
    fn listening(&self) -> SocketAddr {
        match self.family {
            Family::V4 => ([0, 0, 0, 0], 0).into(),
            Family::V6 => ([0_u16; 8], 0).into(),
        }
    }

    fn start(&self, host: &Host, workload: &[&str], address: SocketAddr) -> Result<Process> {
        let address = match address.ip().is_unspecified() && workload[0] != "mptcp-serve" {
            true => SocketAddr::new(self.routed.link.server.ip(self.family), address.port()),
            false => address,
        };
        let address = address.to_string();
        let workload = workload.iter().map(|word| if *word == "ADDRESS" { address.as_str() } else { word });
        let words: Vec<_> = [PROGRAM, RUN].into_iter().chain(workload).collect();
        host.run(|| Process::start(&words))
    }
}

/// A process and the address that it prints.
fn with_address(mut process: Process) -> Result<(Process, SocketAddr)> {
    let address = process.first_line()?.parse()?;
    Ok((process, address))
}

/// The pid of each side's owner.
struct Owners {
    client: u32,
    server: Option<u32>,
}

impl Scenario {
    /// Runs it, repeatedly if probes miss hits, and compares the documents with the captures and the owners.
    fn run(&self) -> Result<()> {
        let Some(network) = Network::new(self)? else { return Ok(()) };
        network.add_endpoints()?;
        let monitor = Socktrail::flows(&["--flow-termination-timeout", "1s"])?;
        let tracefs = Tracefs::mount()?;
        for round in 1..=ROUNDS {
            let missed = tracefs.missed()?;
            let (flows, captured, owners) = self.run_once(&network)?;
            wait_until_within(DOCUMENTS, "all documents", || Ok(all_exist(&monitor.documents()?, &flows))).ok();
            let documents = monitor.documents()?;
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

    fn run_once(&self, network: &Network) -> Result<(Vec<ExpectedFlow>, Captured, Owners)> {
        let link = &network.routed.link;
        let sniffers = [&link.client, &link.server].map(|host| Sniffer::start(host, SegmentInfo::FromKernel));
        let (server, there) = with_address(network.start(&link.server, self.server, network.listening())?)?;
        let (client, here) = with_address(network.start(&link.client, self.client, there)?)?;
        let owners = Owners { client: client.pid, server: self.accepted.then_some(server.pid) };
        for process in [client, server] {
            let finished = process.finish()?;
            ensure!(finished.status == 0, "{finished:?}");
        }
        sleep(LAST_PACKETS);
        let [client, server] = sniffers;
        let captured = Captured { client: client?.stop()?, server: Some(server?.stop()?) };
        let keys = captured.client.outbound_flows().filter(|key| key.transport == Transport::Tcp);
        let ends: Vec<_> = keys.map(|key| (key.from, key.to)).collect();
        let flows: Vec<_> = ends.iter().flat_map(|(from, to)| both(Transport::Tcp, *from, *to)).collect();
        let is_first = |(from, to): &&(SocketAddr, SocketAddr)| *from == canonical(here) && to.port() == there.port();
        ensure!(ends.iter().filter(is_first).count() == 1, "{here} is not among {ends:?}");
        ensure!(ends.len() >= self.subflows, "of {} subflows these were captured: {ends:?}", self.subflows);
        Ok((flows, captured, owners))
    }
}

/// Fails unless the owner of each flow is the process with the MPTCP socket.
fn check_owners(documents: &[Value], flows: &[ExpectedFlow], owners: &Owners) -> Result<()> {
    for flow in flows {
        let owner = match flow.side {
            Side::Client => Some(owners.client),
            Side::Server => owners.server,
        };
        let found = documents_of(documents, flow);
        let document = found.first().context("the flow has no document")?;
        let socket = &document["system"]["audit"]["socket"];
        ensure!(document["process"]["pid"].as_u64() == owner.map(u64::from), "not of {owner:?}: {document:#}");
        ensure!(socket["owner"] == if owner.is_some() { "process" } else { "unknown" }, "{document:#}");
        ensure!(socket["last_user"].is_null(), "{document:#}");
    }
    Ok(())
}
