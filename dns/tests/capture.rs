//! The capture in the real kernel, each test in network namespaces of its own.
//!
//! It needs root (CAP_NET_RAW to capture, CAP_SYS_ADMIN for namespaces) and iproute2; what cannot be run is said.

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
use socktrail_dns::{Capture, Counters, Error, Learned, Options, Packet, Tracker, Transport};

const TESTS: &[(&str, fn())] = &[
    ("names_over_udp", names_over_udp),
    ("names_over_tcp_longer_than_a_frame", names_over_tcp_longer_than_a_frame),
    ("other_traffic_stays_in_the_kernel", other_traffic_stays_in_the_kernel),
    ("long_datagrams_are_cut", long_datagrams_are_cut),
    ("fragments_are_read_or_counted", fragments_are_read_or_counted),
    ("every_packet_of_a_flood_is_seen_or_counted", every_packet_of_a_flood_is_seen_or_counted),
    ("tags_beside_and_within_frames", tags_beside_and_within_frames),
    ("tagging_devices", tagging_devices),
    ("a_waker_ends_a_wait", a_waker_ends_a_wait),
    ("an_interface_may_come_and_go", an_interface_may_come_and_go),
    ("times_are_monotonic", times_are_monotonic),
];

fn main() {
    let arguments = Arguments::from_args();
    let missing = missing();
    if let Some(missing) = &missing {
        eprintln!("not run: {missing}");
    }
    let trial = |&(name, test): &(&'static str, fn())| {
        let body = move || -> Result<(), Failed> { thread::spawn(move || alone(test)).join().map_err(panic_text) };
        Trial::test(name, body).with_ignored_flag(missing.is_some())
    };
    libtest_mimic::run(&arguments, TESTS.iter().map(trial).collect()).exit();
}

/// What these tests need and this machine lacks.
fn missing() -> Option<String> {
    let tried = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("needs CAP_SYS_ADMIN ({error})"))?;
        Capture::open(&Options::default()).map_err(|error| format!("needs CAP_NET_RAW ({error})"))?;
        Command::new("ip").arg("-V").output().map_err(|error| format!("needs iproute2 ({error})"))?;
        Ok(())
    });
    tried.join().expect("nothing here panics").err()
}

/// Runs a test in a namespace that ends with its thread.
fn alone(test: fn()) {
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

/// An answer with so many addresses, 16 bytes each, behind 24 bytes.
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

/// A capture, what came of it, and how many packets there were.
struct Listener {
    capture: Capture,
    tracker: Tracker,
    learned: Vec<Learned>,
}

impl Listener {
    fn new(options: &Options) -> Self {
        Self { capture: Capture::open(options).unwrap(), tracker: Tracker::new(options), learned: Vec::new() }
    }

    /// Takes in packets until there are none for a while.
    fn listen(&mut self) -> Counters {
        let Self { capture, tracker, learned } = self;
        loop {
            capture.wait(Some(Duration::from_millis(50))).unwrap();
            if capture.drain(&mut |packet| tracker.ingest(packet, &mut |new| learned.push(new))) == 0 {
                return tracker.counters();
            }
        }
    }

    /// How many addresses each answer had.
    fn counts(&self) -> Vec<usize> {
        self.learned.iter().map(|learned| learned.addresses.len()).collect()
    }
}

fn socket(address: &str) -> UdpSocket {
    UdpSocket::bind(address).unwrap()
}

/// A query and its answer between two sockets.
fn converse(client: &UdpSocket, server: &UdpSocket, answer: &[u8]) {
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
        let mut listener = Listener::new(&Options::default());
        let address: IpAddr = address.parse().unwrap();
        let [client, server] = [0, 53].map(|port| UdpSocket::bind((address, port)).unwrap());
        converse(&client, &server, &answer(1));
        let counters = listener.listen();
        assert_eq!((counters.packets, counters.learned), (2, 1), "loopback shows each packet once");
        let learned = &listener.learned[0];
        assert_eq!((&*learned.name, learned.transport), ("w.test", Transport::Udp));
        assert_eq!(learned.client, client.local_addr().unwrap().into());
        assert_eq!(learned.server, server.local_addr().unwrap().into());
        assert_eq!(learned.interface, 1, "the loopback device");
        assert_eq!(listener.capture.lost(), 0);
    }
}

fn names_over_tcp_longer_than_a_frame() {
    let mut listener = Listener::new(&Options::default());
    let server = TcpListener::bind("127.0.0.1:53").unwrap();
    let framed = |message: &[u8]| [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat();
    let mut client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    let mut peer = server.accept().unwrap().0;
    client.write_all(&framed(&query())).unwrap();
    let mut asked = [0; 26];
    peer.read_exact(&mut asked[..2 + query().len()]).unwrap();
    peer.write_all(&framed(&answer(250))).unwrap();
    client.read_exact(&mut vec![0; framed(&answer(250)).len()]).unwrap();
    let counters = listener.listen();
    assert_eq!(listener.counts(), [250], "{counters:?}");
    assert_eq!((counters.cut, listener.learned[0].transport), (0, Transport::Tcp));
}

fn other_traffic_stays_in_the_kernel() {
    let mut listener = Listener::new(&Options::default());
    let [client, server] = ["127.0.0.1:0", "127.0.0.1:54"].map(socket);
    converse(&client, &server, &answer(1));
    assert_eq!(listener.listen().packets, 0);
    let mut options = Options::default();
    options.ports = (25..57).collect();
    let mut listener = Listener::new(&options);
    converse(&client, &server, &answer(1));
    assert_eq!(listener.listen().learned, 1, "as many ports as may be");
}

fn long_datagrams_are_cut() {
    let mut options = Options::default();
    options.snaplen = 128;
    let mut listener = Listener::new(&options);
    let [client, server] = ["127.0.0.1:0", "127.0.0.1:53"].map(socket);
    converse(&client, &server, &answer(20));
    // 128 bytes less 28 of headers less 24 of header and question hold 4 records of 16.
    assert_eq!((listener.listen().cut, listener.counts()), (1, vec![4]));
}

fn fragments_are_read_or_counted() {
    let mut listener = Listener::new(&Options::default());
    ip("link set lo mtu 600");
    let [client, server] = ["127.0.0.1:0", "127.0.0.1:53"].map(socket);
    converse(&client, &server, &answer(100));
    let counters = listener.listen();
    // The first fragment has 576 bytes, of them 8 of UDP's and 24 of header and question.
    assert_eq!((counters.packets, counters.cut, listener.counts()), (2, 1, vec![34]));
}

fn every_packet_of_a_flood_is_seen_or_counted() {
    const SENT: u64 = 100_000;
    let mut options = Options::default();
    options.ring_bytes = 64 << 10;
    let mut listener = Listener::new(&options);
    let [client, server] = ["127.0.0.1:0", "127.0.0.1:53"].map(socket);
    let to = client.local_addr().unwrap();
    let sender = thread::spawn(move || (0..SENT).for_each(|_| drop(server.send_to(&answer(1), to))));
    let mut counters = listener.listen();
    sender.join().unwrap();
    counters.packets = listener.listen().packets;
    let lost = listener.capture.lost();
    assert_eq!(counters.packets + lost, SENT, "{lost} lost");
    assert_eq!((listener.tracker.queries(), listener.learned.len()), (0, 0));
    assert_eq!(listener.capture.lost(), lost, "losses add up over calls");
}

/// A named namespace.
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

    /// Does something within.
    fn inside<R: Send>(&self, what: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.file(), CloneFlags::CLONE_NEWNET).unwrap();
                what()
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

/// A pair of devices, one here and one in another namespace.
fn pair() -> Namespace {
    let peer = Namespace::new();
    ip(&format!("link add here type veth peer name there netns {}", peer.0));
    ip("link set here up");
    peer.inside(|| ip("link set there up"));
    peer
}

/// Listens where frames leave and where they arrive.
fn both_ends(peer: &Namespace) -> [Listener; 2] {
    let mut options = Options::default();
    options.interface = Some("here".to_owned());
    let leaving = Listener::new(&options);
    options.interface = Some("there".to_owned());
    let capture = Capture::open_in(peer.file().as_fd(), &options).unwrap();
    [leaving, Listener { capture, tracker: Tracker::new(&options), learned: Vec::new() }]
}

/// A UDP packet from its IP header on.
fn packet(source: (u8, u16), destination: (u8, u16), message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend((length + 28).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, source.0, 192, 0, 2, destination.0]);
    packet.extend([source.1, destination.1, length + 8, 0].map(u16::to_be_bytes).concat());
    packet.extend(message);
    packet
}

/// Where a frame leaves its tags are within it; where it arrives the kernel has put the outer one beside it.
fn tags_beside_and_within_frames() {
    let peer = pair();
    let address = getifaddrs().unwrap().find(|found| found.interface_name == "here" && is_link(found.address.as_ref()));
    let address = *address.unwrap().address.unwrap().as_link_addr().unwrap();
    let socket = raw::socket(raw::AddressFamily::Packet, raw::SockType::Raw, raw::SockFlag::empty(), None).unwrap();
    let (client, server) = ((1, 40_000), (53, 53));
    let packets = [packet(client, server, &query()), packet(server, client, &answer(1))];
    let tags: [&[u8]; 4] = [&[], &[0x81, 0, 0, 5], &[0x88, 0xa8, 0x45, 5], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 7]];
    for tags in tags {
        let [mut leaving, mut arriving] = both_ends(&peer);
        for packet in &packets {
            let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], tags, &[8, 0], packet].concat();
            raw::sendto(socket.as_raw_fd(), &frame, &address, raw::MsgFlags::empty()).unwrap();
        }
        for (side, listener) in [("leaving", &mut leaving), ("arriving", &mut arriving)] {
            let counters = listener.listen();
            assert_eq!((counters.packets, counters.learned), (2, 1), "{side}, tags {tags:x?}: {counters:?}");
        }
    }
}

fn is_link(address: Option<&raw::SockaddrStorage>) -> bool {
    address.is_some_and(|address| address.as_link_addr().is_some())
}

/// Devices that tag, over one that does it in hardware and over one that leaves it to the kernel.
fn tagging_devices() {
    let probe = Command::new("ip").args("link add link lo name probe type vlan id 9".split(' ')).output().unwrap();
    if String::from_utf8_lossy(&probe.stderr).contains("Unknown device type") {
        eprintln!("not run: tagging_devices needs a kernel with CONFIG_VLAN_8021Q");
        return;
    }
    let peer = pair();
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
        let [mut leaving, mut arriving] = both_ends(&peer);
        let client = socket(&format!("10.{tag}.0.1:0"));
        let server = peer.inside(|| socket(&format!("10.{tag}.0.2:53")));
        converse(&client, &server, &answer(1));
        for (side, listener) in [("leaving", &mut leaving), ("arriving", &mut arriving)] {
            let counters = listener.listen();
            let what = format!("{side}, tag {tag}, offload {offload}: {counters:?}");
            assert_eq!((counters.packets, counters.learned), (2, 1), "{what}");
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
        assert!(before.elapsed() >= Duration::from_millis(30), "one call ends one wait");
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
    assert!(before.elapsed() >= Duration::from_millis(40), "no spinning");
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
    // Wall and monotonic time are read one after the other: a microsecond or so is between.
    let slack = 100_000;
    assert!(times[0] + slack >= before && times[9] <= after + slack, "{times:?} within {before} to {after}");
}
