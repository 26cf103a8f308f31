//! Two ways to observe the same traffic at once: kprobes, and programs at a control group.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::helpers::bpf::DropAll;
use crate::helpers::cgroups::{Hierarchy, procs, v2_root};
use crate::helpers::document::{endpoint, number};
use crate::helpers::nft::nft;
use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::web::WebServer;
use crate::workloads::{PROGRAM, RUN};

tests![
    without_a_mounted_hierarchy, // first, before other tests mount one for good
    both_see_the_same,
    both_see_one_control_group,
    a_translated_connection_is_one_flow,
    a_connection_with_a_translated_source_is_one_flow,
    what_a_firewall_drops_is_not_counted,
    another_program_drops_packets,
    another_program_allows_none_beside_it,
];

/// The fields that must be equal. Counts may differ if the flow has `unseen_packets`.
const FIELDS: [&str; 12] = [
    "/source",
    "/destination",
    "/network",
    "/event/outcome",
    "/flow/complete",
    "/process/pid",
    "/process/name",
    "/process/executable",
    "/process/args",
    "/process/entity_id",
    "/user/id",
    "/system/audit/socket/kernel_sock_address",
];

/// Whether this kernel can run BPF programs at a control group: they need type information and 64 bits.
fn has_programs() -> bool {
    Path::new("/sys/kernel/btf/vmlinux").exists() && cfg!(target_pointer_width = "64")
}

/// Starts a monitor of each kind.
fn both() -> Result<[Socktrail; 2]> {
    let root = v2_root()?.display().to_string();
    let timeout = ["--flow-termination-timeout", "500ms"];
    Ok([
        Socktrail::flows(&[&["--backend", "kprobes"][..], &timeout].concat())?,
        Socktrail::flows(&[&["--backend", "cgroup", "--cgroup", &root][..], &timeout].concat())?,
    ])
}

/// Connections and datagrams of programs that start while both monitors run.
fn both_see_the_same() -> Result<()> {
    if !has_programs() {
        return Ok(());
    }
    let monitors = both()?;
    let mut flows = Vec::new();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        for (server, client, more) in [("tcp-serve", "tcp-ask", &["1"][..]), ("udp-answer", "udp-ask", &[])] {
            let mut serve = Process::start(&[&[PROGRAM, RUN, server, address], more].concat())?;
            let there = serve.first_line()?;
            let pause: &[&str] = if client == "tcp-ask" { &["10"] } else { &[] };
            let mut ask = Process::start(&[&[PROGRAM, RUN, client, &there], pause].concat())?;
            let here = ask.first_line()?;
            for process in [ask, serve] {
                let ended = process.finish()?;
                ensure!(ended.status == 0, "{ended:?}");
            }
            flows.push((here.parse()?, there.parse()?));
        }
    }
    let [by_kprobes, by_programs] = monitors.map(Socktrail::stop);
    let (by_kprobes, by_programs) = (by_kprobes?, by_programs?);
    for (here, there) in flows {
        for direction in ["egress", "ingress"] {
            let of = |documents: &[Value]| {
                let ends = (Some(here), Some(there));
                let is_it = |document: &&Value| {
                    (endpoint(document, "source"), endpoint(document, "destination")) == ends
                        && document["network"]["direction"] == direction
                };
                documents.iter().find(is_it).cloned().with_context(|| format!("no {direction} flow {here} {there}"))
            };
            let [one, other] = [of(&by_kprobes.documents)?, of(&by_programs.documents)?];
            let has_unseen = other["flow"]["inexact"] == json!(["unseen_packets"]);
            for field in FIELDS {
                let is_count = ["/source", "/destination", "/network"].contains(&field);
                ensure!(
                    one.pointer(field) == other.pointer(field) || (is_count && has_unseen),
                    "{field} differs: {one:#}\n{other:#}"
                );
            }
            // At most the FIN of one side, its acknowledgement, and a SYN-ACK.
            let [all, seen] = [&one, &other].map(|document| number(document, "/network/packets"));
            let missing = all?.checked_sub(seen?).context("more packets than there are")?;
            ensure!(missing <= if has_unseen { 3 } else { 0 }, "{missing} packets are missing: {one:#}\n{other:#}");
        }
    }
    Ok(())
}

/// A shell moves into a control group, into one below it, and into one beside it with a similar name. A child starts in the group
/// while its parent is outside. Only what is done in the group is reported, by each monitor.
fn both_see_one_control_group() -> Result<()> {
    const PORT: u16 = 8080;
    let v2 = Hierarchy::v2()?;
    let group = v2.make("/system.slice/web.service")?;
    let [below, beside] = ["web.service/worker", "web.service2"].map(|path| v2.make(&format!("/system.slice/{path}")));
    let _server = WebServer::start(PORT)?;
    let directory = group.display().to_string();
    let mut monitors = vec![Socktrail::flows(&["--backend", "kprobes", "--cgroup", &directory])?];
    let events = Socktrail::start(&["events", "--format", "ecs", "--only", "connect", "--cgroup", &directory])?;
    if has_programs() {
        monitors.push(Socktrail::flows(&["--backend", "cgroup", "--cgroup", &directory])?);
    }
    let request = |from: u16| format!("nc.openbsd -N -p {from} 127.0.0.1 {PORT} </dev/null");
    let into = |group: &Path| format!("echo $$ >{}", procs(group).display());
    let start_in_group = format!("{PROGRAM} {RUN} fork-into {directory} {}", request(1001));
    let script = [
        request(1000),
        start_in_group,
        into(&group),
        request(1002),
        into(&below?),
        request(1003),
        into(&beside?),
        request(1004),
    ];
    let shell = Process::start(&["sh", "-c", &(script.join(" && ") + " && true")])?.finish()?;
    ensure!(shell.status == 0, "{shell:?}");
    for monitor in monitors.into_iter().chain([events]) {
        let documents = monitor.stop()?.documents;
        let mut ports: Vec<_> = documents.iter().filter_map(|one| Some(endpoint(one, "source")?.port())).collect();
        ports.sort_unstable();
        ensure!(ports == [1001, 1002, 1003], "{documents:#?}");
    }
    Ok(())
}

/// A rule sends a connection to another port. The client's flow has the ends that the client knows, with the packets of both
/// directions.
fn a_translated_connection_is_one_flow() -> Result<()> {
    const PORT: u16 = 8080;
    const TRANSLATED: u16 = 5014;
    let _server = WebServer::start(PORT)?;
    let mut monitors = vec![Socktrail::flows(&["--backend", "kprobes"])?];
    if has_programs() {
        let root = v2_root()?.display().to_string();
        monitors.push(Socktrail::flows(&["--backend", "cgroup", "--cgroup", &root])?);
    }
    let chain = "type nat hook output priority -100;";
    let rule = format!("tcp dport {TRANSLATED} dnat to :{PORT}");
    nft(&format!("table ip backend {{\nchain output {{\n{chain}\n{rule}\n}}\n}}\n"))?;
    let client = Process::start(&["nc", "127.0.0.1", &TRANSLATED.to_string()])?.finish();
    nft("delete table ip backend")?;
    let client = client?;
    ensure!(client.status == 0, "{client:?}");
    let mut counts = Vec::new();
    for monitor in monitors {
        let documents = monitor.stop()?.documents;
        let of_client: Vec<_> = documents.iter().filter(|one| one["process"]["pid"] == client.pid).collect();
        let [flow] = of_client[..] else { bail!("{documents:#?}") };
        ensure!(flow["destination"]["port"] == TRANSLATED && flow["network"]["direction"] == "egress", "{flow:#}");
        counts.push([number(flow, "/source/packets")?, number(flow, "/destination/packets")?]);
    }
    ensure!(counts.iter().all(|one| *one == counts[0] && one.iter().all(|packets| *packets > 0)), "{counts:?}");
    Ok(())
}

/// A rule gives outgoing packets another source port. Both monitors see one flow, and count its packets, with the ends that the
/// client knows.
fn a_connection_with_a_translated_source_is_one_flow() -> Result<()> {
    const PORT: u16 = 8080;
    const OWN: u16 = 5015;
    let _server = WebServer::start(PORT)?;
    let mut monitors = vec![Socktrail::flows(&["--backend", "kprobes"])?];
    if has_programs() {
        let root = v2_root()?.display().to_string();
        monitors.push(Socktrail::flows(&["--backend", "cgroup", "--cgroup", &root])?);
    }
    let chain = "type nat hook postrouting priority 100;";
    let rule = format!("tcp sport {OWN} snat to 127.0.0.1:6015");
    nft(&format!("table ip backend {{\nchain postrouting {{\n{chain}\n{rule}\n}}\n}}\n"))?;
    let request = format!("for i in $(seq 50); do echo GET /; done | nc.openbsd -N -p {OWN} 127.0.0.1 {PORT}");
    let client = Process::start(&["sh", "-c", &request])?.finish();
    nft("delete table ip backend")?;
    ensure!(client?.status == 0, "the client failed");
    let mut counts = Vec::new();
    for monitor in monitors {
        let documents = monitor.stop()?.documents;
        let of_client: Vec<_> = documents.iter().filter(|one| one["network"]["direction"] == "egress").collect();
        let [flow] = of_client[..] else { bail!("{documents:#?}") };
        ensure!(flow["source"]["port"] == OWN && flow["destination"]["port"] == PORT, "{flow:#}");
        counts.push([number(flow, "/source/packets")?, number(flow, "/destination/packets")?]);
    }
    ensure!(counts.iter().all(|one| *one == counts[0] && one.iter().all(|packets| *packets > 0)), "{counts:?}");
    Ok(())
}

/// The programs see packets behind the firewall: of two datagrams, one is dropped.
fn what_a_firewall_drops_is_not_counted() -> Result<()> {
    if !has_programs() {
        return Ok(());
    }
    let root = v2_root()?.display().to_string();
    let monitor = Socktrail::flows(&["--backend", "cgroup", "--cgroup", &root])?;
    let (from, to) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    from.send_to(&[0; 100], to.local_addr()?)?;
    to.recv(&mut [0])?;
    let rule = format!("udp dport {} drop", to.local_addr()?.port());
    let chain = "type filter hook output priority 0;";
    nft(&format!("table inet backend {{\nchain output {{\n{chain}\n{rule}\n}}\n}}\n"))?;
    // The rule refuses it: `EPERM`.
    let refused = from.send_to(&[0; 100], to.local_addr()?).is_err();
    nft("delete table inet backend")?;
    ensure!(refused, "the firewall let the datagram through");
    let ends = (Some(from.local_addr()?), Some(to.local_addr()?));
    drop((from, to));
    let documents = monitor.stop()?.documents;
    for direction in ["egress", "ingress"] {
        let is_it = |document: &&Value| {
            (endpoint(document, "source"), endpoint(document, "destination")) == ends
                && document["network"]["direction"] == direction
        };
        let document = documents.iter().find(is_it).context("no flow")?;
        ensure!(document["source"]["packets"] == 1, "{document:#}");
        ensure!(document["source"]["bytes"] == 128, "{document:#}");
    }
    Ok(())
}

/// Two other programs at the control group drop what is sent: one was attached before ours, and one after it. They keep their
/// effect, and the packets count as sent.
fn another_program_drops_packets() -> Result<()> {
    if !has_programs() {
        return Ok(());
    }
    let v2 = Hierarchy::v2()?;
    let group = v2.make("/with-a-dropping-program")?;
    let first = DropAll::attach_beside_others(&group)?;
    let directory = group.display().to_string();
    let monitor = Socktrail::flows(&["--backend", "cgroup", "--cgroup", &directory])?;
    let second = DropAll::attach_beside_others(&group)?;
    let send = format!("echo $$ >{}; echo x | nc.openbsd -u -w 1 -p 1005 127.0.0.1 9", procs(&group).display());
    let shell = Process::start(&["sh", "-c", &send])?.finish()?;
    drop((first, second));
    let documents = monitor.stop()?.documents;
    let [flow] = &documents[..] else { bail!("{shell:?}\n{documents:#?}") };
    ensure!(flow["source"]["port"] == 1005 && flow["source"]["packets"] == 1, "{flow:#}");
    ensure!(flow["destination"]["packets"] == 0, "{flow:#}");
    Ok(())
}

/// The monitor says why it cannot start.
fn another_program_allows_none_beside_it() -> Result<()> {
    if !has_programs() {
        return Ok(());
    }
    let v2 = Hierarchy::v2()?;
    let group = v2.make("/with-an-exclusive-program")?;
    let _program = DropAll::attach(&group)?;
    let directory = group.display().to_string();
    let flows = Process::start(&["socktrail", "flows", "--backend", "cgroup", "--cgroup", &directory])?.finish()?;
    ensure!(flows.status != 0 && flows.stderr.contains("allows none beside it"), "{flows:?}");
    Ok(())
}

/// No hierarchy of control groups v2 is mounted that the monitor sees. If the host has none, it mounts one of its own, which
/// nobody else sees.
fn without_a_mounted_hierarchy() -> Result<()> {
    if !has_programs() {
        return Ok(());
    }
    let is_on_host = fs::read_to_string("/proc/1/mounts")?.contains("cgroup2");
    let script =
        "umount -a -t cgroup2; grep -c cgroup2 /proc/mounts; exec socktrail flows --format ecs --backend cgroup";
    if is_on_host {
        let refused = Process::start(&["unshare", "-m", "sh", "-c", script])?.finish()?;
        ensure!(refused.status == 2 && refused.stderr.contains("not where this process sees them"), "{refused:?}");
        return Ok(());
    }
    let monitor = Socktrail::start_program("unshare", &["-m", "sh", "-c", script])?;
    let (from, to) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    from.send_to(&[0; 100], to.local_addr()?)?;
    to.recv(&mut [0])?;
    let there = to.local_addr()?;
    drop((from, to));
    let output = monitor.stop()?;
    // The first line is that of grep.
    let [mounted, documents @ ..] = &output.documents[..] else { bail!("{output:?}") };
    ensure!(*mounted == 0, "{mounted} mounts");
    let of_test = documents.iter().filter(|one| endpoint(one, "destination") == Some(there)).count();
    ensure!(of_test == 2, "{output:?}");
    Ok(())
}
