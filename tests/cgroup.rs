//! Programs at a control group of this kernel, and `socktrail flows` with them: compared with what the test itself does.
//!
//! Needs root, cgroup v2, type information and BPF, but no kprobes. Where something of that is missing, the tests say so and end.

#![allow(clippy::print_stdout, reason = "says why nothing was tested")]

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::sockopt::UdpGsoSegment;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket};
use nix::unistd::Pid;
use serde_json::Value;
use socktrail_guess::Layout;
use socktrail_kprobes::{
    ControlGroup, Decoder, Fetch, Hook, Hooks, Installed, Record, RingOptions, Rings, Sample, Tracefs, Type, Word,
    sample,
};

const NEEDS: &str = "this needs root, cgroup v2 and type information";
/// How many datagrams are sent in a row, so that most are counted.
const MANY: u64 = 2000;
/// The size of a transfer in bytes, which takes many packets of several segments.
const LARGE: usize = 3_000_000;
/// A process is in one group at a time.
static MEMBERSHIP: Mutex<()> = Mutex::new(());

/// A control group with this process in it. Dropping it moves the process back and removes the group.
struct OwnGroup {
    path: PathBuf,
    before: PathBuf,
    _membership: MutexGuard<'static, ()>,
}

impl OwnGroup {
    fn new() -> Option<Self> {
        static GROUPS: AtomicU32 = AtomicU32::new(0);
        let membership = MEMBERSHIP.lock().unwrap_or_else(PoisonError::into_inner);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount =
            mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words[2] == "cgroup2")?;
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let mount = Path::new(mount[1]);
        let name = format!("socktrail-test-{}-{}", std::process::id(), GROUPS.fetch_add(1, Ordering::Relaxed));
        let group = Self { path: mount.join(name), before: mount.join(own), _membership: membership };
        fs::create_dir(&group.path).ok()?;
        fs::write(group.path.join("cgroup.procs"), "0").ok()?;
        Some(group)
    }

    fn leave(&self) {
        fs::write(self.before.join("cgroup.procs"), "0").unwrap();
    }
}

impl Drop for OwnGroup {
    fn drop(&mut self) {
        let _ = fs::write(self.before.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&self.path);
    }
}

/// A running `socktrail flows`, and its standard error.
struct Monitor(Child, BufReader<ChildStderr>);

impl Monitor {
    fn start(cgroup: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_socktrail"))
            .args(["flows", "--backend", "cgroup", "--format", "ecs", "--flow-termination-timeout", "1s", "--stats"])
            // If a document is missing, the test fails instead of waiting for it.
            .args(["--duration", "60s", "--cgroup"])
            .arg(cgroup)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        while !said.contains("socktrail: ready") {
            assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "{said}");
        }
        Self(child, stderr)
    }

    /// Asks it to end, and waits for that. Returns what it said since it was ready.
    fn stop(mut self) -> String {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT).unwrap();
        let mut said = String::new();
        self.1.read_to_string(&mut said).unwrap();
        assert!(self.0.wait().unwrap().success(), "{said}");
        said
    }

    /// Reads documents until there are this many, and stops the monitor. Returns all documents, also those that come at the
    /// end, and what it said.
    fn documents(mut self, count: usize) -> (Vec<Value>, String) {
        let mut lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let documents: Vec<Value> =
            lines.by_ref().take(count).map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        let ending = thread::spawn(move || lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect());
        let said = self.stop();
        let more: Vec<Value> = ending.join().unwrap();
        ([documents, more].concat(), said)
    }
}

/// The document of one side of a flow.
fn of<'a>(documents: &'a [Value], transport: &str, direction: &str) -> &'a Value {
    let is_it = |document: &&Value| {
        document["network"]["transport"] == transport && document["network"]["direction"] == direction
    };
    let mut found = documents.iter().filter(is_it);
    let one = found.next().unwrap_or_else(|| panic!("no {transport} {direction} in {documents:#?}"));
    assert!(found.next().is_none(), "several {transport} {direction}");
    one
}

fn port(address: SocketAddr) -> u64 {
    address.port().into()
}

#[test]
fn flows_of_a_control_group() {
    for (accounting, are_counted) in [("kernel", true), ("samples", false)] {
        flows_with(accounting, are_counted);
    }
}

fn flows_with(accounting: &str, are_counted: bool) {
    let (true, Some(group)) = (Path::new("/sys/kernel/btf/vmlinux").exists(), OwnGroup::new()) else {
        println!("not run: {NEEDS}");
        return;
    };
    group.leave();
    let monitor = Monitor::start(&group.path, &["--accounting", accounting]);
    // Outside of the group: not seen.
    let outside = UdpSocket::bind("127.0.0.1:0").unwrap();
    outside.send_to(b"x", outside.local_addr().unwrap()).unwrap();
    let outside = port(outside.local_addr().unwrap());
    fs::write(group.path.join("cgroup.procs"), "0").unwrap();

    // Raw sockets get a copy of each packet, which must not count.
    let _raw = [SockProtocol::Udp, SockProtocol::Tcp]
        .map(|protocol| socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap());
    let [from, to] = [0, 0].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    for length in [1, 100, 1000] {
        from.send_to(&vec![0; length], to.local_addr().unwrap()).unwrap();
        assert_eq!(to.recv(&mut [0; 2000]).unwrap(), length);
    }
    for _ in 0..MANY {
        from.send_to(&[0; 64], to.local_addr().unwrap()).unwrap();
        to.recv(&mut [0; 64]).unwrap();
    }
    // UDP GSO: the kernel makes ten datagrams of this.
    setsockopt(&from, UdpGsoSegment, &100).unwrap();
    from.send_to(&[0; 1000], to.local_addr().unwrap()).unwrap();
    (0..10).for_each(|_| assert_eq!(to.recv(&mut [0; 2000]).unwrap(), 100));
    let udp = (port(from.local_addr().unwrap()), port(to.local_addr().unwrap()));
    drop((from, to));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let tcp = (port(client.local_addr().unwrap()), port(client.peer_addr().unwrap()));
    let reading = thread::spawn(move || {
        server.read_exact(&mut vec![0; LARGE]).unwrap();
        server
    });
    client.write_all(&vec![0; LARGE]).unwrap();
    let mut server = reading.join().unwrap();
    server.write_all(&[0; 700]).unwrap();
    client.read_exact(&mut [0; 700]).unwrap();
    // Both ends say that they are done before they close, so that no packet comes for a closed socket.
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    drop((client, server, listener));

    let (documents, said) = monitor.documents(4);
    let is_outside = |document: &&Value| document["source"]["port"] == outside;
    assert!(!documents.iter().any(|document| is_outside(&document)), "{documents:#?}");
    for direction in ["egress", "ingress"] {
        let datagrams = of(&documents, "udp", direction);
        assert_eq!((&datagrams["source"]["port"], &datagrams["destination"]["port"]), (&udp.0.into(), &udp.1.into()));
        // Each with 28 bytes of headers.
        let counts = (&datagrams["source"]["packets"], &datagrams["source"]["bytes"]);
        let bytes = 1101 + 64 * MANY + 1000 + (3 + MANY + 10) * 28;
        assert_eq!(counts, (&(3 + MANY + 10).into(), &bytes.into()), "{datagrams:#}");
        assert_eq!(datagrams["destination"]["packets"], 0);
        let connection = of(&documents, "tcp", direction);
        assert_eq!((&connection["source"]["port"], &connection["destination"]["port"]), (&tcp.0.into(), &tcp.1.into()));
        assert_eq!(connection["event"]["outcome"], "success");
        for document in [datagrams, connection] {
            assert_eq!(document["process"]["pid"], std::process::id(), "{document:#}");
            assert_eq!(document["process"]["executable"], std::env::current_exe().unwrap().to_str().unwrap());
            assert_eq!(document["flow"]["complete"], true, "{document:#}");
            assert_eq!(document["flow"]["inexact"], Value::Null, "{document:#}");
        }
    }
    // What one end sends, the other one receives: over loopback nothing is lost.
    let [client, server] = ["egress", "ingress"].map(|direction| of(&documents, "tcp", direction));
    for end in ["source", "destination"] {
        for count in ["packets", "bytes"] {
            assert_eq!(client[end][count], server[end][count], "{end} {count}");
        }
    }
    let bytes = |end: &str| client[end]["bytes"].as_u64().unwrap() - client[end]["packets"].as_u64().unwrap() * 52;
    // Headers have 52 bytes, that of a SYN has 60.
    assert_eq!((bytes("source"), bytes("destination")), (LARGE as u64 + 8, 700 + 8));
    let stats = said.lines().find_map(|line| line.strip_prefix("socktrail: stats ")).expect("statistics");
    let stats: Value = serde_json::from_str(stats).unwrap();
    let counted = stats["packets_counted"].as_u64().unwrap();
    // Each datagram is sent and received; only a few are samples.
    assert_eq!((counted > 2 * MANY - 10, counted == 0), (are_counted, !are_counted), "{stats}");
}

sample! {
    /// A packet at the hook for outgoing or incoming packets.
    struct IpPacket {
        sk: Word = "+{sk_buff.sk}({skb})",
        len: u32 = "+{sk_buff.len}({skb})",
        version_ihl: u8 = "+0(+{sk_buff.data}({skb}))",
        protocol: u8 = "+9(+{sk_buff.data}({skb}))",
        ports: u32 = "+20(+{sk_buff.data}({skb}))",
    }

    /// The hook for new sockets.
    struct NewSocket {
        sk: Word = "{sk}",
        family: u16 = "+{sock_common.skc_family}({sk})",
    }
}

/// The records of one hook, decoded.
fn decoded<S: Sample>(records: &[(u16, Vec<u8>)], installed: &Installed) -> Vec<S> {
    let decoder = Decoder::<S>::new(installed.format()).unwrap();
    let of_hook = records.iter().filter(|(id, _)| u32::from(*id) == installed.id());
    of_hook.map(|(_, raw)| decoder.decode(raw).unwrap()).collect()
}

/// Sockets of this control group send datagrams to each other. The hooks see each of them once, as it was sent.
#[test]
fn packets_and_sockets_of_a_control_group() {
    let (Ok(btf), Some(group)) = (fs::read("/sys/kernel/btf/vmlinux"), OwnGroup::new()) else {
        println!("not run: {NEEDS}");
        return;
    };
    let layout = layout(&btf);
    let mut hooks = Hooks::at(ControlGroup::open(&group.path).unwrap(), &Arc::new(Tracefs::find().unwrap())).unwrap();
    let mut rings = Rings::per_cpu(&RingOptions::default()).unwrap();
    rings.receive(hooks.outputs()).unwrap();
    let udp: &[(Fetch<'_>, &[i32])] = &[
        (Fetch::new("version_ihl", "+0(+{sk_buff.data}({skb}))", Type::U8), &[0x45]),
        (Fetch::new("protocol", "+9(+{sk_buff.data}({skb}))", Type::U8), &[17]),
    ];
    let leaving = hooks.install("leaving", Hook::Egress, IpPacket::FETCHES, udp, &layout).unwrap();
    let arriving = hooks.install("arriving", Hook::Ingress, IpPacket::FETCHES, udp, &layout).unwrap();
    let created = hooks.install("created", Hook::SocketCreate, NewSocket::FETCHES, &[], &layout).unwrap();
    for installed in [&leaving, &arriving, &created] {
        rings.attach(installed, None).unwrap();
    }
    let [from, to] = [0, 0].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    from.connect(to.local_addr().unwrap()).unwrap();
    for length in [1, 100, 1000] {
        from.send(&vec![0; length]).unwrap();
        assert_eq!(to.recv(&mut [0; 2000]).unwrap(), length);
    }
    let mut records = Vec::new();
    rings.drain(u64::MAX, &mut |record| {
        if let Record::Sample { id, raw, pid, .. } = record {
            // Packets arrive in the context of whatever task is running.
            assert!(u32::from(id) == arriving.id() || pid == std::process::id(), "{id}: {pid}");
            records.push((id, raw.to_vec()));
        }
    });
    let sockets = decoded::<NewSocket>(&records, &created);
    assert_eq!(sockets.iter().map(|socket| socket.family).collect::<Vec<_>>(), [2, 2]);
    let ports = [&from, &to].map(|socket| socket.local_addr().unwrap().port().to_be_bytes());
    let ports = u32::from_ne_bytes([ports[0][0], ports[0][1], ports[1][0], ports[1][1]]);
    for (installed, sock) in [(&leaving, sockets[0].sk), (&arriving, sockets[1].sk)] {
        let packets = decoded::<IpPacket>(&records, installed);
        let lengths: Vec<_> = packets.iter().map(|packet| packet.len).collect();
        assert_eq!(lengths, [29, 128, 1028], "{}", installed.name());
        assert!(
            packets.iter().all(|packet| (packet.sk, packet.ports, packet.protocol) == (sock, ports, 17)),
            "{packets:?}"
        );
    }
}

/// The offsets and arguments that this kernel's type information gives.
fn layout(btf: &[u8]) -> Layout {
    socktrail_guess::find_in_btf(btf).unwrap().layout
}

/// A monitor says so when its control group is removed.
#[test]
fn a_removed_control_group() {
    let (true, Some(group)) = (Path::new("/sys/kernel/btf/vmlinux").exists(), OwnGroup::new()) else {
        println!("not run: {NEEDS}");
        return;
    };
    group.leave();
    let mut monitor = Monitor::start(&group.path, &[]);
    fs::remove_dir(&group.path).unwrap();
    let mut said = String::new();
    while !said.contains("the control group was removed, so nothing is observed") {
        assert_ne!(monitor.1.read_line(&mut said).unwrap(), 0, "{said}");
    }
    monitor.stop();
}

/// Wrong directories are refused, with their paths.
#[test]
fn wrong_control_groups_are_refused() {
    for (arguments, expected) in [
        (&["--backend", "cgroup", "--cgroup", "/proc"][..], "/proc: it is not a directory of cgroup v2"),
        (&["--backend", "cgroup", "--cgroup", "/no/such/group"], "/no/such/group"),
    ] {
        let flows = Command::new(env!("CARGO_BIN_EXE_socktrail")).arg("flows").args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&flows.stderr);
        let needs_root = said.contains("root") || said.contains("BTF");
        assert!(!flows.status.success() && (needs_root || said.contains(expected)), "{said}");
    }
}

/// How long loads over loopback take in a control group with a monitor, divided by how long they take without it. Each round
/// measures both, so that what else the machine does concerns both.
///
/// `cargo test --release --test cgroup -- --ignored --nocapture`
#[test]
#[ignore = "measures: it needs a release build and a machine that does nothing else"]
fn the_cost_of_a_monitor() {
    const ROUNDS: usize = 15;
    let (true, Some(group)) = (Path::new("/sys/kernel/btf/vmlinux").exists(), OwnGroup::new()) else {
        println!("not run: {NEEDS}");
        return;
    };
    let mut ratios: [Vec<f64>; LOADS.len()] = Default::default();
    let mut alone: [Vec<f64>; LOADS.len()] = Default::default();
    for _ in 0..ROUNDS {
        let mut monitor = Monitor::start(&group.path, &["--flow-inactive-timeout", "60s"]);
        let mut stdout = monitor.0.stdout.take().unwrap();
        let reading = thread::spawn(move || io::copy(&mut stdout, &mut io::sink()));
        let with = LOADS.map(|(_, _, load)| time_of(load));
        monitor.stop();
        reading.join().unwrap().unwrap();
        let without = LOADS.map(|(_, _, load)| time_of(load));
        for (at, (with, without)) in with.into_iter().zip(without).enumerate() {
            ratios[at].push(with / without);
            alone[at].push(without);
        }
    }
    println!("load | ns each, alone | with a monitor: median, least and most of {ROUNDS} ratios");
    for (((name, count, _), ratios), alone) in LOADS.iter().zip(&mut ratios).zip(&mut alone) {
        for values in [&mut *ratios, &mut *alone] {
            values.sort_by(f64::total_cmp);
        }
        let each = alone[ROUNDS / 2] / f64::from(*count) * 1e9;
        println!("{name} | {each:.0} | {:.3} ({:.3} to {:.3})", ratios[ROUNDS / 2], ratios[0], ratios[ROUNDS - 1]);
        assert!(ratios[ROUNDS / 2] > 0.0);
    }
}

/// A load: its name, how often it does something, and what.
type Load = (&'static str, u32, fn());

const LOADS: [Load; 4] = [
    ("a UDP datagram of 64 bytes", DATAGRAMS, datagrams),
    ("a TCP request and answer of 64 bytes", REQUESTS, requests),
    ("a TCP connection with a request and an answer", CONNECTIONS, connections),
    ("a megabyte over TCP", MEGABYTES, megabytes),
];
const DATAGRAMS: u32 = 50_000;
const REQUESTS: u32 = 20_000;
const CONNECTIONS: u32 = 2_000;
const MEGABYTES: u32 = 500;

/// How long a load takes, in seconds.
fn time_of(load: fn()) -> f64 {
    let began = Instant::now();
    load();
    began.elapsed().as_secs_f64()
}

fn datagrams() {
    let [from, to] = [0, 0].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    from.connect(to.local_addr().unwrap()).unwrap();
    for _ in 0..DATAGRAMS {
        from.send(&[0; 64]).unwrap();
        to.recv(&mut [0; 64]).unwrap();
    }
}

/// A connection over loopback: the client's end and the server's.
fn connection(listener: &TcpListener) -> [TcpStream; 2] {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    for end in [&client, &server] {
        end.set_nodelay(true).unwrap();
    }
    [client, server]
}

/// A request and its answer.
fn ask([client, server]: &mut [TcpStream; 2]) {
    client.write_all(&[0; 64]).unwrap();
    server.read_exact(&mut [0; 64]).unwrap();
    server.write_all(&[0; 64]).unwrap();
    client.read_exact(&mut [0; 64]).unwrap();
}

fn requests() {
    let mut ends = connection(&TcpListener::bind("127.0.0.1:0").unwrap());
    (0..REQUESTS).for_each(|_| ask(&mut ends));
}

fn connections() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (0..CONNECTIONS).for_each(|_| ask(&mut connection(&listener)));
}

fn megabytes() {
    let [mut client, mut server] = connection(&TcpListener::bind("127.0.0.1:0").unwrap());
    let reading = thread::spawn(move || {
        let mut piece = vec![0; 1 << 20];
        (0..MEGABYTES).for_each(|_| server.read_exact(&mut piece).unwrap());
    });
    let piece = vec![0; 1 << 20];
    (0..MEGABYTES).for_each(|_| client.write_all(&piece).unwrap());
    reading.join().unwrap();
}
