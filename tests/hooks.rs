//! Programs at hooks of a control group, in this kernel: their records are compared with what the test itself does.
//!
//! Needs root, cgroup v2, type information and BPF, but no kprobes. Where something of that is missing, the tests say so and end.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use socktrail_guess::Layout;
use socktrail_kprobes::{
    Decoder, Fetch, Hook, Hooks, Installed, Record, RingOptions, Rings, Sample, Tracefs, Type, Word, sample,
};

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

/// A control group with this process in it. Dropping it moves the process back and removes the group.
struct OwnGroup {
    path: PathBuf,
    before: PathBuf,
}

impl OwnGroup {
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount =
            mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words[2] == "cgroup2")?;
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let mount = Path::new(mount[1]);
        let group =
            Self { path: mount.join(format!("socktrail-test-{}", std::process::id())), before: mount.join(own) };
        fs::create_dir(&group.path).ok()?;
        fs::write(group.path.join("cgroup.procs"), "0").ok()?;
        Some(group)
    }
}

impl Drop for OwnGroup {
    fn drop(&mut self) {
        let _ = fs::write(self.before.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&self.path);
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
        println!("not run: this needs root, cgroup v2 and type information");
        return;
    };
    let layout = layout(&btf);
    let mut hooks = Hooks::at(&group.path, &Arc::new(Tracefs::find().unwrap())).unwrap();
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
            assert_eq!(pid, std::process::id(), "who sends to itself, also receives");
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
