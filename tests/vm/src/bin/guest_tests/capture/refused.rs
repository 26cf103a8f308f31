//! Outgoing packets that a cgroup's BPF program, an IPsec policy or netfilter's egress hook drops, and dropped packets
//! that the kernel sends without a socket.
//!
//! As in [dropped](super::dropped), a capture on the client's interface shows which packets were sent.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::dropped::{DropCase, DropTest, Dropped, SENT, begin, close, connect, datagrams};
use super::link::Family;
use super::phases::OFFLOADED;
use super::testbed::{Pair, Side, Testbed, of_server};
use super::wire::Transport;
use crate::helpers::bpf::DropAll;
use crate::helpers::cgroups::Hierarchy;
use crate::helpers::community_id::{TCP, UDP};
use crate::helpers::ipsec::{Policies, Policy};
use crate::helpers::netlink::{Faults, set_netem};
use crate::helpers::tc::{add_clsact, drop_every_nth, remove_clsact};

/// Long enough for TCP to retransmit.
const RETRIES: Duration = Duration::from_secs(1);

/// A BPF program of a cgroup drops the packets of sockets that were made in it.
pub(crate) fn by_a_control_group() -> Result<()> {
    const GROUP: &str = "dropping";
    let test = DropTest::new(OFFLOADED)?;
    let groups = Hierarchy::v2()?;
    let group = groups.make(GROUP)?;
    groups.put(std::process::id(), GROUP)?;
    let cases = [Family::V4, Family::V6].map(|family| in_a_control_group(&test, family, &group));
    groups.put(std::process::id(), "/")?;
    let cases: Vec<Vec<DropCase>> = cases.into_iter().collect::<Result<_>>()?;
    test.judge(&cases.into_iter().flatten().collect::<Vec<_>>())
}

fn in_a_control_group(test: &DropTest, family: Family, group: &Path) -> Result<Vec<DropCase>> {
    let testbed = test.testbed(family);
    let to = |port| SocketAddr::new(testbed.ip(Side::Server), port);
    let mut established = testbed.pair()?;
    let drops = DropAll::attach(group)?;
    let mut cases = Vec::new();
    for (what, length) in [("UDP, control group", 300), ("UDP, larger than packets, control group", 4000)] {
        cases.push(DropCase::new(what, datagrams(&testbed, to(5001), length)?, Dropped::Exactly(SENT)));
    }
    cases.push(DropCase::new("TCP, control group", connect(&testbed, to(5003))?, Dropped::AtLeast(1)));
    established.client.write_all(&[0; 30_000])?;
    thread::sleep(RETRIES);
    drop(drops);
    cases.push(DropCase::new("TCP, established, control group", established.flows[0], Dropped::AtLeast(1)).or_marked());
    close(established)?;
    Ok(cases)
}

/// IPsec policies drop packets: one blocks them, and one has no keys.
pub(crate) fn by_ipsec() -> Result<()> {
    let test = DropTest::new(OFFLOADED)?;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let testbed = test.testbed(family);
        let to = |port| SocketAddr::new(testbed.ip(Side::Server), port);
        let mut established = testbed.pair()?;
        let policies = test.network.link.client.run(Policies::new)?;
        policies.set(Policy::Block, UDP, to(5001))?;
        policies.set(Policy::Block, TCP, established.client.peer_addr()?)?;
        policies.set(Policy::Encrypt, UDP, to(5002))?;
        policies.set(Policy::Encrypt, TCP, to(5004))?;
        // These datagrams never become packets, so there may be no document.
        let blocked = datagrams(&testbed, to(5001), 300)?;
        cases.push(DropCase::new("UDP, blocked by IPsec", blocked, Dropped::Exactly(0)).or_unreported());
        cases.push(DropCase::new(
            "UDP, IPsec without keys",
            datagrams(&testbed, to(5002), 300)?,
            Dropped::Exactly(SENT),
        ));
        cases.push(DropCase::new("TCP, IPsec without keys", connect(&testbed, to(5004))?, Dropped::AtLeast(1)));
        established.client.write_all(&[0; 3000])?;
        thread::sleep(RETRIES);
        drop(policies);
        cases.push(
            DropCase::new("TCP, established, blocked by IPsec", established.flows[0], Dropped::AtLeast(0)).or_marked(),
        );
        close(established)?;
    }
    test.judge(&cases)
}

/// Netfilter's egress hook (Linux 5.16) drops packets. On older kernels this prints that it checks nothing.
pub(crate) fn at_the_device() -> Result<()> {
    if !has_egress_hook()? {
        writeln!(io::stdout(), "dropped_at_the_device checks nothing: this kernel has no egress hook")?;
        return Ok(());
    }
    let test = DropTest::new(OFFLOADED)?;
    let device = &test.network.link.client.interface;
    let rules = format!(
        "table netdev test {{ chain egress {{ type filter hook egress device {device} priority 0;
            udp dport 5001 drop
            tcp dport 5003 drop
        }}; }}"
    );
    test.filter(&rules)?;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let testbed = test.testbed(family);
        testbed.pair()?; // so that the router's link address is known
        let to = |port| SocketAddr::new(testbed.ip(Side::Server), port);
        cases.push(DropCase::new("UDP, at the device", datagrams(&testbed, to(5001), 300)?, Dropped::Exactly(SENT)));
        cases.push(DropCase::new("TCP, at the device", connect(&testbed, to(5003))?, Dropped::AtLeast(1)));
    }
    test.judge(&cases)
}

/// Whether the kernel has netfilter's egress hook.
fn has_egress_hook() -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map(str::parse::<u32>);
    let version = numbers.next().transpose()?.zip(numbers.next().transpose()?);
    Ok(version >= Some((5, 16)))
}

/// nftables drops packets that the kernel sends without a socket: resets, and answers in TIME_WAIT.
pub(crate) fn without_a_socket() -> Result<()> {
    let test = DropTest::new(OFFLOADED)?;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let pairs = without_sockets(&test.testbed(family))?;
        test.filter("table inet test { chain output { type filter hook output priority 0; }; }")?;
        for flow in pairs.iter().map(|pair| pair.flows[0]) {
            test.filter(&format!("add rule inet test output tcp dport {} drop", flow.remote.port()))?;
        }
        cases.extend(replies_without_sockets(pairs, || test.filter("flush ruleset"))?);
    }
    test.judge(&cases)
}

/// A `tc` filter drops the same packets.
pub(crate) fn without_a_socket_by_tc() -> Result<()> {
    let test = DropTest::new(OFFLOADED)?;
    let client = &test.network.link.client;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let pairs = without_sockets(&test.testbed(family))?;
        client.run(|| {
            add_clsact(&client.interface)?;
            pairs.iter().try_for_each(|pair| drop_every_nth(&client.interface, 1, pair.flows[0].remote))
        })?;
        cases.extend(replies_without_sockets(pairs, || client.run(|| remove_clsact(&client.interface)))?);
    }
    test.judge(&cases)
}

/// A queue drops the same packets, and SYN-ACKs with SYN cookies.
pub(crate) fn without_a_socket_by_a_queue() -> Result<()> {
    let test = DropTest::new(OFFLOADED)?;
    let client = &test.network.link.client;
    client.netns.set_sysctl("ipv4/tcp_syncookies", "2")?; // for every connection
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let testbed = test.testbed(family);
        let pairs = without_sockets(&testbed)?;
        let listener = client.run(|| Ok(TcpListener::bind((client.ip(family), 0))?))?;
        let here = listener.local_addr()?;
        client.run(|| set_netem(&client.interface, Faults { loss: 1.0, ..Faults::NONE }))?;
        let request = testbed.host(Side::Server).run(|| begin(here))?;
        thread::sleep(RETRIES);
        let requested = of_server(Transport::Tcp, request.local_addr()?, here);
        cases.push(DropCase::new("TCP, answers with SYN cookies", requested, Dropped::AtLeast(1)));
        let stop_drops = || client.run(|| set_netem(&client.interface, Faults::NONE));
        cases.extend(replies_without_sockets(pairs, stop_drops)?);
        // The server retransmits its SYN, and is then accepted. Before that there is no flow: over IPv4, the owner of an answer
        // with a SYN cookie is not visible.
        let (mut accepted, _) = listener.accept()?;
        drop(request);
        accepted.read_to_end(&mut Vec::new())?;
    }
    test.judge(&cases)
}

/// A capture ends before it has read its packets: the kernel frees the copies in the same way as dropped packets.
pub(crate) fn nothing_by_an_unread_capture() -> Result<()> {
    let test = DropTest::new(OFFLOADED)?;
    let client = &test.network.link.client;
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let [_reset, waiting] = without_sockets(&test.testbed(family))?;
        let every = SockProtocol::EthAll;
        let capture =
            client.run(|| Ok(socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, every)?))?;
        drop(waiting.client);
        // The kernel acknowledges the FIN in TIME_WAIT.
        waiting.server.shutdown(Shutdown::Write)?;
        thread::sleep(RETRIES);
        drop(capture);
        cases.push(DropCase::new("TCP, an unread capture", waiting.flows[0], Dropped::Exactly(0)));
    }
    test.judge(&cases)
}

/// Two connections. The kernel will answer their next packets without a socket: with a reset, and in TIME_WAIT.
fn without_sockets(testbed: &Testbed<'_>) -> Result<[Pair; 2]> {
    let (reset, mut waiting) = (testbed.pair()?, testbed.pair()?);
    // The FIN arrives and is acknowledged.
    waiting.client.shutdown(Shutdown::Write)?;
    waiting.server.read_to_end(&mut Vec::new())?;
    thread::sleep(Duration::from_millis(200));
    Ok([reset, waiting])
}

/// Makes the kernel answer on these connections while its answers are dropped, until `stop_drops` ends that.
fn replies_without_sockets(
    [reset, waiting]: [Pair; 2],
    stop_drops: impl FnOnce() -> Result<()>,
) -> Result<[DropCase; 2]> {
    let mut server = reset.server;
    server.write_all(&[0; 100])?;
    thread::sleep(Duration::from_millis(200));
    drop(reset.client); // with unread data, so that the kernel resets the connection
    drop(waiting.client);
    server.write_all(&[0; 100])?;
    waiting.server.shutdown(Shutdown::Write)?;
    thread::sleep(RETRIES);
    stop_drops()?;
    ensure!(server.read(&mut [0]).is_err(), "the connection was not reset");
    Ok([
        DropCase::new("TCP, resets", reset.flows[0], Dropped::AtLeast(2)),
        DropCase::new("TCP, answers in TIME_WAIT", waiting.flows[0], Dropped::AtLeast(2)),
    ])
}
