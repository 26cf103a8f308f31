//! Tests that capture packets with the kernel of this machine. Each runs in its own network namespaces.
//!
//! The tests need root (CAP_NET_RAW to capture, CAP_SYS_ADMIN for namespaces) and iproute2. If one of these is missing,
//! the tests say so and are ignored. `vlan_devices` also needs ethtool, and is not run without it.

#![allow(clippy::print_stderr)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket as raw;
use socktrail_dns::{Capture, Counters, Error, Lookup, Options, Packet, Tracker, Transport};

const TESTS: &[(&str, fn())] = &[
    ("names_over_udp", names_over_udp),
    ("names_over_tcp_longer_than_a_frame", names_over_tcp_longer_than_a_frame),
    ("other_traffic_stays_in_the_kernel", other_traffic_stays_in_the_kernel),
    ("long_datagrams_are_truncated", long_datagrams_are_truncated),
    ("only_the_first_fragment_is_captured", only_the_first_fragment_is_captured),
    ("every_packet_of_a_flood_is_seen_or_counted", every_packet_of_a_flood_is_seen_or_counted),
    ("vlan_tags_in_metadata_and_in_the_packet", vlan_tags_in_metadata_and_in_the_packet),
    ("vlan_devices", vlan_devices),
    ("a_waker_ends_a_wait", a_waker_ends_a_wait),
    ("an_interface_may_come_and_go", an_interface_may_come_and_go),
    ("times_are_monotonic", times_are_monotonic),
];

fn main() {
    let arguments = Arguments::from_args();
    let missing = missing_requirement();
    if let Some(missing) = &missing {
        eprintln!("not run: {missing}");
    }
    let trial = |&(name, test): &(&'static str, fn())| {
        let body =
            move || -> Result<(), Failed> { thread::spawn(move || in_own_namespace(test)).join().map_err(panic_text) };
        Trial::test(name, body).with_ignored_flag(missing.is_some())
    };
    libtest_mimic::run(&arguments, TESTS.iter().map(trial).collect()).exit();
}

/// What the tests need and this machine lacks.
fn missing_requirement() -> Option<String> {
    let check = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("needs CAP_SYS_ADMIN ({error})"))?;
        Capture::open(&Options::default()).map_err(|error| format!("needs CAP_NET_RAW ({error})"))?;
        Command::new("ip").arg("-V").output().map_err(|error| format!("needs iproute2 ({error})"))?;
        Ok(())
    });
    check.join().expect("nothing here panics").err()
}

/// Runs a test in a new network namespace, which ends with the calling thread.
fn in_own_namespace(test: fn()) {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip("link set lo up");
    test();
}

fn panic_text(panic: Box<dyn std::any::Any + Send>) -> Failed {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default().into()
}

fn ip(arguments: &str) {
    command("ip", arguments);
}

fn command(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A query for the addresses of `w.test`.
fn query() -> Vec<u8> {
    [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x01w\x04test\x00\x00\x01\x00\x01"].concat()
}

/// An answer with as many records as `addresses`. Each record has 16 bytes; header and question before them have 24.
fn answer(addresses: u16) -> Vec<u8> {
    let mut message = query();
    message[2] = 0x81;
    message[6..8].copy_from_slice(&addresses.to_be_bytes());
    for at in 0..addresses {
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 198, 51]);
        message.extend(at.to_be_bytes());
    }
    message
}

/// Captures packets, and collects the lookups in them.
struct Sniffer {
    capture: Capture,
    tracker: Tracker,
    lookups: Vec<Lookup>,
}

impl Sniffer {
    fn new(options: &Options) -> Self {
        Self { capture: Capture::open(options).unwrap(), tracker: Tracker::new(options), lookups: Vec::new() }
    }

    /// Reads packets until none come for a while.
    fn read_packets(&mut self) -> Counters {
        let Self { capture, tracker, lookups } = self;
        loop {
            capture.wait(Some(Duration::from_millis(50))).unwrap();
            if capture.drain(&mut |packet| tracker.ingest(packet, &mut |lookup| lookups.push(lookup))) == 0 {
                return tracker.counters();
            }
        }
    }

    /// The number of addresses in each lookup.
    fn address_counts(&self) -> Vec<usize> {
        self.lookups.iter().map(|lookup| lookup.addresses.len()).collect()
    }
}

fn socket(address: &str) -> UdpSocket {
    UdpSocket::bind(address).unwrap()
}

/// Sends a query and its answer.
fn query_and_answer(client: &UdpSocket, server: &UdpSocket, answer: &[u8]) {
    client.send_to(&query(), server.local_addr().unwrap()).unwrap();
    let from = receive(server);
    server.send_to(answer, from).unwrap();
    receive(client);
}

fn receive(socket: &UdpSocket) -> SocketAddr {
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.recv_from(&mut [0; 65_536]).unwrap().1
}

fn names_over_udp() {
    for address in ["127.0.0.1", "::1"] {
        let mut sniffer = Sniffer::new(&Options::default());
        let address: IpAddr = address.parse().unwrap();
        let [client, server] = [0, 53].map(|port| UdpSocket::bind((address, port)).unwrap());
        query_and_answer(&client, &server, &answer(1));
        let counters = sniffer.read_packets();
        assert_eq!((counters.packets, counters.lookups), (2, 1), "loopback shows each packet once");
        let lookup = &sniffer.lookups[0];
        assert_eq!((&*lookup.name, lookup.transport), ("w.test", Transport::Udp));
        assert_eq!(lookup.client, client.local_addr().unwrap().into());
        assert_eq!(lookup.server, server.local_addr().unwrap().into());
        assert_eq!(lookup.interface, 1, "the loopback device");
        assert_eq!(sniffer.capture.lost(), 0);
    }
}

fn names_over_tcp_longer_than_a_frame() {
    let mut sniffer = Sniffer::new(&Options::default());
    let server = TcpListener::bind("127.0.0.1:53").unwrap();
    let framed = |message: &[u8]| [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat();
    let mut client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    let mut peer = server.accept().unwrap().0;
    client.write_all(&framed(&query())).unwrap();
    let mut received = [0; 26];
    peer.read_exact(&mut received[..2 + query().len()]).unwrap();
    peer.write_all(&framed(&answer(250))).unwrap();
    client.read_exact(&mut vec![0; framed(&answer(250)).len()]).unwrap();
    let counters = sniffer.read_packets();
    assert_eq!(sniffer.address_counts(), [250], "{counters:?}");
    assert_eq!((counters.partial_messages, sniffer.lookups[0].transport), (0, Transport::Tcp));
}

fn other_traffic_stays_in_the_kernel() {
    let mut sniffer = Sniffer::new(&Options::default());
    let [client, server] = ["127.0.0.1:0", "127.0.0.1:54"].map(socket);
    query_and_answer(&client, &server, &answer(1));
    assert_eq!(sniffer.read_packets().packets, 0);
    let mut options = Options::default();
    options.ports = (25..57).collect();
    let mut sniffer = Sniffer::new(&options);
    query_and_answer(&client, &server, &answer(1));
    assert_eq!(sniffer.read_packets().lookups, 1, "the most ports that are allowed");
}

fn long_datagrams_are_truncated() {
    let mut options = Options::default();
    options.snaplen = 128;
    let mut sniffer = Sniffer::new(&options);
    let [client, server] = ["127.0.0.1:0", "127.0.0.1:53"].map(socket);
    query_and_answer(&client, &server, &answer(20));
    // 128 bytes hold 28 of IP and UDP headers, 24 of DNS header and question, and 4 whole records of 16.
    assert_eq!((sniffer.read_packets().partial_messages, sniffer.address_counts()), (1, vec![4]));
}

fn only_the_first_fragment_is_captured() {
    let mut sniffer = Sniffer::new(&Options::default());
    ip("link set lo mtu 600");
    let [client, server] = ["127.0.0.1:0", "127.0.0.1:53"].map(socket);
    query_and_answer(&client, &server, &answer(100));
    let counters = sniffer.read_packets();
    // The first fragment has 576 bytes of payload: 8 of UDP header, 24 of DNS header and question, and 34 records of 16.
    assert_eq!((counters.packets, counters.partial_messages, sniffer.address_counts()), (2, 1, vec![34]));
}

fn every_packet_of_a_flood_is_seen_or_counted() {
    const SENT: u64 = 100_000;
    let mut options = Options::default();
    options.ring_bytes = 64 << 10;
    let mut sniffer = Sniffer::new(&options);
    let [client, server] = ["127.0.0.1:0", "127.0.0.1:53"].map(socket);
    let to = client.local_addr().unwrap();
    let sender = thread::spawn(move || (0..SENT).for_each(|_| drop(server.send_to(&answer(1), to))));
    sniffer.read_packets();
    sender.join().unwrap();
    let packets = sniffer.read_packets().packets;
    let lost = sniffer.capture.lost();
    assert_eq!(packets + lost, SENT, "{lost} lost");
    assert_eq!((sniffer.tracker.queries(), sniffer.lookups.len()), (0, 0));
    assert_eq!(sniffer.capture.lost(), lost, "losses add up over calls");
}

/// A network namespace with a name.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("socktrail-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        ip(&format!("netns add {name}"));
        Self(name)
    }

    fn file(&self) -> File {
        File::open(format!("/run/netns/{}", self.0)).unwrap()
    }

    /// Calls a function in this namespace.
    fn inside<R: Send>(&self, function: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.file(), CloneFlags::CLONE_NEWNET).unwrap();
                function()
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.0));
    }
}

/// Creates a pair of veth devices: `here` in this namespace, `there` in a new one.
fn veth_pair() -> Namespace {
    let peer = Namespace::new();
    ip(&format!("link add here type veth peer name there netns {}", peer.0));
    ip("link set here up");
    peer.inside(|| ip("link set there up"));
    wait_until_up("here");
    peer.inside(|| wait_until_up("there"));
    peer
}

/// Waits until a device is up. `ip link set up` may return earlier, and until then the kernel drops what is sent.
fn wait_until_up(device: &str) {
    for _ in 0..500 {
        let shown = Command::new("ip").args(["-oneline", "link", "show", device]).output().unwrap();
        if String::from_utf8_lossy(&shown.stdout).contains("state UP") {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{device} is still down");
}

/// Captures on both devices.
fn sniff_both(peer: &Namespace) -> [Sniffer; 2] {
    let mut options = Options::default();
    options.interface = Some("here".to_owned());
    let leaving = Sniffer::new(&options);
    options.interface = Some("there".to_owned());
    let capture = Capture::open_in(peer.file().as_fd(), &options).unwrap();
    [leaving, Sniffer { capture, tracker: Tracker::new(&options), lookups: Vec::new() }]
}

/// A UDP packet over IPv4 between hosts of 192.0.2.0/24, each given as the last byte of its address and its port.
fn packet(source: (u8, u16), destination: (u8, u16), message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend((length + 28).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, source.0, 192, 0, 2, destination.0]);
    packet.extend([source.1, destination.1, length + 8, 0].map(u16::to_be_bytes).concat());
    packet.extend(message);
    packet
}

/// A packet is captured with all its VLAN tags where it leaves. Where it arrives, the kernel has moved the outer tag
/// into its metadata.
fn vlan_tags_in_metadata_and_in_the_packet() {
    let peer = veth_pair();
    let address = getifaddrs().unwrap().find(|found| found.interface_name == "here" && is_link(found.address.as_ref()));
    let address = *address.unwrap().address.unwrap().as_link_addr().unwrap();
    let socket = raw::socket(raw::AddressFamily::Packet, raw::SockType::Raw, raw::SockFlag::empty(), None).unwrap();
    let (client, server) = ((1, 40_000), (53, 53));
    let packets = [packet(client, server, &query()), packet(server, client, &answer(1))];
    let tags: [&[u8]; 4] = [&[], &[0x81, 0, 0, 5], &[0x88, 0xa8, 0x45, 5], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 7]];
    for tags in tags {
        let [mut leaving, mut arriving] = sniff_both(&peer);
        for packet in &packets {
            let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], tags, &[8, 0], packet].concat();
            raw::sendto(socket.as_raw_fd(), &frame, &address, raw::MsgFlags::empty()).unwrap();
        }
        for (side, sniffer) in [("leaving", &mut leaving), ("arriving", &mut arriving)] {
            let counters = sniffer.read_packets();
            assert_eq!((counters.packets, counters.lookups), (2, 1), "{side}, tags {tags:x?}: {counters:?}");
        }
    }
}

fn is_link(address: Option<&raw::SockaddrStorage>) -> bool {
    address.is_some_and(|address| address.as_link_addr().is_some())
}

/// VLAN devices over a device that inserts tags itself, and over a device for which the kernel inserts them.
fn vlan_devices() {
    if Command::new("ethtool").arg("--version").output().is_err() {
        eprintln!("not run: vlan_devices needs ethtool");
        return;
    }
    let probe = Command::new("ip").args("link add link lo name probe type vlan id 9".split(' ')).output().unwrap();
    if String::from_utf8_lossy(&probe.stderr).contains("Unknown device type") {
        eprintln!("not run: vlan_devices needs a kernel with CONFIG_VLAN_8021Q");
        return;
    }
    let peer = veth_pair();
    let set_up = |device: &str, host: u8| {
        for (name, below, tag) in [("once", device, 5), ("twice", "once", 7)] {
            ip(&format!("link add link {below} name {name} type vlan id {tag}"));
            ip(&format!("address add 10.{tag}.0.{host}/24 dev {name}"));
            ip(&format!("link set {name} up"));
        }
    };
    set_up("here", 1);
    peer.inside(|| set_up("there", 2));
    for (tag, offload) in [(5, "on"), (7, "on"), (5, "off"), (7, "off")] {
        command("ethtool", &format!("-K here txvlan {offload}"));
        let [mut leaving, mut arriving] = sniff_both(&peer);
        let client = socket(&format!("10.{tag}.0.1:0"));
        let server = peer.inside(|| socket(&format!("10.{tag}.0.2:53")));
        query_and_answer(&client, &server, &answer(1));
        for (side, sniffer) in [("leaving", &mut leaving), ("arriving", &mut arriving)] {
            let counters = sniffer.read_packets();
            let what = format!("{side}, tag {tag}, offload {offload}: {counters:?}");
            assert_eq!((counters.packets, counters.lookups), (2, 1), "{what}");
        }
    }
}

fn a_waker_ends_a_wait() {
    let capture = Capture::open(&Options::default()).unwrap();
    let waker = capture.waker();
    let waiting = thread::spawn(move || {
        capture.wait(None).unwrap();
        let before = Instant::now();
        capture.wait(Some(Duration::from_millis(30))).unwrap();
        assert!(before.elapsed() >= Duration::from_millis(30), "one wake ends one wait");
    });
    thread::sleep(Duration::from_millis(20));
    waker.wake();
    waiting.join().unwrap();
}

fn an_interface_may_come_and_go() {
    let mut options = Options::default();
    options.interface = Some("nosuch".to_owned());
    assert!(matches!(Capture::open(&options), Err(Error::Interface { .. })));
    ip("link add nosuch type veth peer name other");
    ip("link set nosuch up");
    let capture = Capture::open(&options).unwrap();
    ip("link set nosuch down");
    let before = Instant::now();
    for _ in 0..3 {
        capture.wait(Some(Duration::from_millis(20))).unwrap();
    }
    assert!(before.elapsed() >= Duration::from_millis(40), "an interface that is down must not end waits");
    ip("link del nosuch");
    capture.wait(Some(Duration::from_millis(1))).unwrap();
}

fn times_are_monotonic() {
    let mut capture = Capture::open(&Options::default()).unwrap();
    let [client, server] = ["127.0.0.1:0", "127.0.0.1:53"].map(socket);
    let before = capture.now();
    for _ in 0..10 {
        client.send_to(&query(), server.local_addr().unwrap()).unwrap();
    }
    let after = capture.now();
    thread::sleep(Duration::from_millis(20));
    let mut times = Vec::new();
    capture.drain(&mut |packet: &Packet<'_>| times.push(packet.time));
    assert_eq!(times.len(), 10);
    assert!(times.is_sorted());
    // The wall clock and the monotonic clock are not read at the same time, so conversion is off by about a
    // microsecond.
    let slack = 100_000;
    assert!(times[0] + slack >= before && times[9] <= after + slack, "{times:?} within {before} to {after}");
}
