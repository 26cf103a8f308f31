//! The sockets that existed before the monitor, with their inodes, for socket events.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::net::SocketAddr;

use procfs::process::Process as ProcEntry;

use super::living::LivingProcess;
use super::sockets::{common_ancestor, holders, network_namespace};
use crate::model::socket_event::{Address, EventSocket, Family, IpEnd, SocketId, SocketState, SocketType, UnixName};

/// `__SO_ACCEPTCON` of `include/uapi/linux/net.h`.
const SO_ACCEPTCON: u32 = 1 << 16;
/// `SS_CONNECTED` of the same file.
const SS_CONNECTED: u8 = 3;
/// The maximum number of bytes that are read from `/proc/net/unix`.
const MAX_LISTED: u64 = 64 << 20;

/// The TCP, UDP and `AF_UNIX` sockets that processes hold, in all network namespaces. Each comes with the pid of the process that
/// created it, if that can be determined.
pub fn existing_sockets() -> Vec<(EventSocket, Option<u32>)> {
    let living = LivingProcess::all();
    let holders = holders(&living);
    let mut namespaces = HashSet::new();
    let mut sockets = Vec::new();
    for entry in living.iter().map(LivingProcess::directory) {
        let seen_before = network_namespace(entry).is_none_or(|id| !namespaces.insert(id));
        if !seen_before {
            sockets.extend(ip_sockets(entry));
            sockets.extend(unix_sockets(&listed_unix(entry)));
        }
    }
    let held = sockets.into_iter().filter_map(|socket| {
        let pids = holders.pids.get(&socket.id.0)?;
        Some((socket, common_ancestor(pids, &holders.parents)))
    });
    held.collect()
}

fn ip_sockets(entry: &ProcEntry) -> impl Iterator<Item = EventSocket> {
    let tcp = [(entry.tcp(), Family::INET), (entry.tcp6(), Family::INET6)];
    let udp = [(entry.udp(), Family::INET), (entry.udp6(), Family::INET6)];
    let tcp = tcp.into_iter().flat_map(|(list, family)| list.into_iter().flatten().map(move |one| (one, family)));
    let udp = udp.into_iter().flat_map(|(list, family)| list.into_iter().flatten().map(move |one| (one, family)));
    let tcp = tcp.filter(|(one, _)| one.inode != 0).map(|(one, family)| {
        let (endpoints, state) = ((one.local_address, one.remote_address), one.state.to_u8());
        ip_socket(one.inode, family, (SocketType::STREAM, 6), endpoints, state)
    });
    let udp = udp.map(|(one, family)| {
        let (endpoints, state) = ((one.local_address, one.remote_address), one.state.to_u8());
        ip_socket(one.inode, family, (SocketType::DGRAM, 17), endpoints, state)
    });
    tcp.chain(udp)
}

fn ip_socket(
    inode: u64,
    family: Family,
    (kind, protocol): (SocketType, u16),
    (local, remote): (SocketAddr, SocketAddr),
    state: u8,
) -> EventSocket {
    let end = |address: SocketAddr| {
        let known = address.port() != 0 || !address.ip().is_unspecified();
        known.then(|| Address::Ip(IpEnd::new(address.ip(), address.port())))
    };
    let (local, remote) = (end(local), end(remote));
    EventSocket { local, remote, state: Some(SocketState(state)), ..socket(inode, family, kind, protocol) }
}

fn socket(inode: u64, family: Family, kind: SocketType, protocol: u16) -> EventSocket {
    EventSocket {
        id: SocketId(inode),
        sock: None,
        family,
        kind: Some(kind),
        protocol: Some(protocol),
        local: None,
        remote: None,
        state: None,
        owner: None,
        existing: true,
    }
}

fn listed_unix(entry: &ProcEntry) -> Vec<u8> {
    let mut bytes = Vec::new();
    // An unreadable file yields nothing.
    let _ = entry.open_relative("net/unix").map(|file| file.take(MAX_LISTED).read_to_end(&mut bytes));
    bytes
}

/// The sockets that `/proc/net/unix` lists. A name may contain a newline, followed by a forged line for another socket. So if an
/// inode is listed twice, only what both lines say is used.
fn unix_sockets(list: &[u8]) -> impl Iterator<Item = EventSocket> {
    let mut sockets: HashMap<u64, EventSocket> = HashMap::new();
    for found in list.split(|byte| *byte == b'\n').filter_map(unix_socket) {
        let socket = sockets.entry(found.id.0).or_insert_with(|| found.clone());
        socket.kind = socket.kind.filter(|kind| Some(*kind) == found.kind);
        socket.state = socket.state.filter(|state| Some(*state) == found.state);
        socket.local = socket.local.take().filter(|local| Some(local) == found.local.as_ref());
    }
    sockets.into_values()
}

/// `address: references protocol flags type state inode name`: numbers except the inode are hexadecimal, and the name, if any,
/// follows one space. In an abstract name, `@` replaces every NUL.
fn unix_socket(line: &[u8]) -> Option<EventSocket> {
    let (address, mut rest) = line.split_at(line.iter().position(|byte| *byte == b':')?);
    if !address.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    rest = &rest[1..];
    let mut number = |radix| {
        let column = rest.trim_ascii_start();
        let (digits, after) = column.split_at(column.iter().position(|byte| *byte == b' ').unwrap_or(column.len()));
        rest = after;
        u64::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
    };
    let (_references, _protocol, flags) = (number(16)?, number(16)?, u32::try_from(number(16)?).ok()?);
    let (kind, state, inode) = (u16::try_from(number(16)?).ok()?, u8::try_from(number(16)?).ok()?, number(10)?);
    let state = match state {
        _ if flags & SO_ACCEPTCON != 0 => SocketState::LISTEN,
        SS_CONNECTED => SocketState::ESTABLISHED,
        _ => SocketState::CLOSE,
    };
    let name = rest.strip_prefix(b" ").filter(|name| !name.is_empty()).map(|name| match name.strip_prefix(b"@") {
        Some(name) => UnixName::Abstract(name.into()),
        None => UnixName::Path(name.into()),
    });
    let local = Some(Address::Unix(name.unwrap_or(UnixName::Unnamed)));
    Some(EventSocket { local, state: Some(state), ..socket(inode, Family::UNIX, SocketType(kind), 0) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn inode(socket: impl AsFd) -> u64 {
        let socket: OwnedFd = socket.as_fd().try_clone_to_owned().unwrap();
        File::from(socket).metadata().unwrap().ino()
    }

    #[test]
    fn own_sockets_are_found_with_their_ends_and_states() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let local = UnixListener::bind(&path).unwrap();
        let found: HashMap<_, _> =
            existing_sockets().into_iter().map(|(socket, pid)| (socket.id.0, (socket, pid))).collect();
        let (socket, pid) = &found[&inode(&client)];
        assert_eq!(*pid, Some(std::process::id()));
        assert_eq!((socket.state, socket.kind), (Some(SocketState::ESTABLISHED), Some(SocketType::STREAM)));
        assert_eq!(socket.local.as_ref().unwrap().to_string(), client.local_addr().unwrap().to_string());
        assert_eq!(socket.remote.as_ref().unwrap().to_string(), client.peer_addr().unwrap().to_string());
        let (socket, _) = &found[&inode(&listener)];
        assert_eq!((socket.state, &socket.remote), (Some(SocketState::LISTEN), &None));
        let (socket, _) = &found[&inode(&local)];
        assert_eq!(socket.state, Some(SocketState::LISTEN));
        assert_eq!(socket.local.as_ref().unwrap().to_string(), path.display().to_string());
    }

    #[test]
    fn a_forged_line_only_hides_what_it_contradicts() {
        let list = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01    77 /run/a b\n\
            0000000000000000: 00000002 00000000 00000000 0002 01    78 @x@y\n\
            0000000000000000: 00000002 00000000 00000000 0005 03    79\n\
            0000000000000000: 00000002 00000000 00000000 0002 01    80 /tmp/c\n\
            0000000000000000: 00000002 00000000 00010000 0001 01    77 /run/forged\n\
            0000000000000000: 00000002 00000000 00010000 0001 01    81 /run/forged\n\
            0000000000000000: 00000002 00000000 00000000 0002 03    81 /run/d\n\
            nonsense\n: \n";
        let found: HashMap<_, _> = unix_sockets(list).map(|socket| (socket.id.0, socket)).collect();
        let name = |inode: u64| found[&inode].local.clone();
        assert_eq!(found.len(), 5);
        assert_eq!((name(77), found[&77].state), (None, Some(SocketState::LISTEN)));
        assert_eq!((name(81), found[&81].kind, found[&81].state), (None, None, None), "the forged line may come first");
        assert_eq!(name(78), Some(Address::Unix(UnixName::Abstract(Box::from(*b"x@y")))));
        assert_eq!(name(79), Some(Address::Unix(UnixName::Unnamed)));
        assert_eq!((found[&79].kind, found[&79].state), (Some(SocketType::SEQPACKET), Some(SocketState::ESTABLISHED)));
        assert_eq!(name(80), Some(Address::Unix(UnixName::Path(Box::from(*b"/tmp/c")))));
    }

    proptest::proptest! {
        #[test]
        fn no_list_panics(list in "[0-9a-f: @/\n]{0,200}") {
            unix_sockets(list.as_bytes()).for_each(drop);
        }
    }
}
