//! Workloads that print the expected event of each socket call and each close.
//!
//! A line is a JSON object. Its keys are paths in the ECS document of the event; a `null` value means that the path
//! must not exist.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, UnixAddr, accept4, bind, connect,
    getsockname, listen, setsockopt, socket, socketpair, sockopt,
};
use serde_json::{Map, Value, json};

use super::print_line;
use crate::helpers::sys::{accept_by_io_uring, connect_by_io_uring, fork, owned, socket_by_io_uring};

const SOCKET: &str = "/system/audit/socket";

/// The expected event of one call.
struct ExpectedEvent(Map<String, Value>);

impl ExpectedEvent {
    fn new(action: &str, result: &Result<i32, Errno>) -> Self {
        let outcome = match result {
            Ok(_) => "success",
            Err(Errno::EINPROGRESS) => "unknown",
            Err(_) => "failure",
        };
        let code = result.as_ref().err().map(|errno| format!("{errno:?}"));
        let process = json!(std::process::id());
        let event = Self(Map::new()).and("/event/action", action).and("/event/outcome", outcome);
        event.and("/error/code", code).and("/process/pid", process)
    }

    fn and(mut self, path: &str, value: impl Into<Value>) -> Self {
        self.0.insert(path.to_owned(), value.into());
        self
    }

    fn socket(self, field: &str, value: impl Into<Value>) -> Self {
        self.and(&format!("{SOCKET}/{field}"), value)
    }

    fn of(self, which: &Socket) -> Self {
        let named = self.socket("family", which.family).socket("type", which.kind);
        named.socket("inode", which.inode).socket("existing", Value::Null)
    }

    fn fd(self, fd: Option<i32>) -> Self {
        self.socket("fd", fd)
    }

    fn end(self, name: &str, end: Option<SocketAddr>) -> Self {
        let ip = end.map(|end| end.ip().to_canonical().to_string());
        self.and(&format!("/{name}/ip"), ip).and(&format!("/{name}/port"), end.map(|end| end.port()))
    }

    fn print(self) -> Result<()> {
        print_line(Value::Object(self.0))
    }
}

/// A socket of this process, with family and type as events name them.
struct Socket {
    fd: OwnedFd,
    family: &'static str,
    kind: &'static str,
    inode: u64,
}

fn names(family: AddressFamily, kind: SockType) -> (&'static str, &'static str) {
    let family = match family {
        AddressFamily::Inet => "AF_INET",
        AddressFamily::Inet6 => "AF_INET6",
        AddressFamily::Unix => "AF_UNIX",
        AddressFamily::Netlink => "AF_NETLINK",
        _ => "?",
    };
    let kind = match kind {
        SockType::Stream => "SOCK_STREAM",
        SockType::Datagram => "SOCK_DGRAM",
        SockType::SeqPacket => "SOCK_SEQPACKET",
        SockType::Raw => "SOCK_RAW",
        _ => "?",
    };
    (family, kind)
}

fn inode(fd: &OwnedFd) -> Result<u64> {
    Ok(File::from(fd.try_clone()?).metadata()?.ino())
}

impl Socket {
    fn new(family: AddressFamily, kind: SockType, flags: SockFlag) -> Result<Self> {
        let fd = socket(family, kind, flags, None).context("make a socket")?;
        let number = fd.as_raw_fd();
        let made = Self::without_event(fd, names(family, kind))?;
        ExpectedEvent::new("socket_create", &Ok(0)).of(&made).fd(Some(number)).print()?;
        Ok(made)
    }

    /// A socket without an expected event.
    fn without_event(fd: OwnedFd, (family, kind): (&'static str, &'static str)) -> Result<Self> {
        let inode = inode(&fd)?;
        Ok(Self { fd, family, kind, inode })
    }

    fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    fn name(&self) -> Option<SocketAddr> {
        let name: SockaddrStorage = getsockname(self.number()).ok()?;
        match (name.as_sockaddr_in(), name.as_sockaddr_in6()) {
            (Some(end), _) => Some(SocketAddr::V4((*end).into())),
            (_, Some(end)) => Some(SocketAddr::V6((*end).into())),
            _ => None,
        }
    }

    fn entry(&self, action: &str, result: &Result<i32, Errno>) -> ExpectedEvent {
        ExpectedEvent::new(action, result).of(self).fd(Some(self.number()))
    }

    fn bind(&self, to: SocketAddr) -> Result<()> {
        let result = bind(self.number(), &SockaddrStorage::from(to)).map(|()| 0);
        self.entry("socket_bind", &result).end("source", Some(to)).end("destination", None).print()
    }

    fn listen(&self, backlog: i32) -> Result<()> {
        let result = listen(&self.fd, Backlog::new(backlog)?).map(|()| 0);
        let entry = self.entry("socket_listen", &result).socket("backlog", backlog).socket("state", "LISTEN");
        entry.end("source", self.name()).print()
    }

    fn connect(&self, to: SocketAddr) -> Result<()> {
        let result = connect(self.number(), &SockaddrStorage::from(to)).map(|()| 0);
        let entry = self.entry("socket_connect", &result).end("destination", Some(to)).socket("state_before", "CLOSE");
        let entry = entry.and("/network/direction", "egress");
        match result {
            Ok(_) if self.kind == "SOCK_STREAM" => entry.end("source", self.name()).socket("state", "ESTABLISHED"),
            Err(Errno::EINPROGRESS) => entry.end("source", self.name()).socket("state", "SYN_SENT"),
            Ok(_) => entry.socket("state", "ESTABLISHED"),
            Err(_) => entry.socket("state", "CLOSE"),
        }
        .print()
    }

    /// Accepts the connection from a client with this address.
    fn accept(&self, from: SocketAddr) -> Result<Self> {
        let number = accept4(self.number(), SockFlag::SOCK_CLOEXEC).context("accept")?;
        let accepted = Self::without_event(owned(number)?, (self.family, self.kind))?;
        let entry = ExpectedEvent::new("socket_accept", &Ok(0)).of(&accepted).fd(Some(self.number()));
        let entry = entry.socket("accepted_fd", number).end("source", Some(from)).end("destination", self.name());
        entry.and("/network/direction", "ingress").socket("state", "ESTABLISHED").print()?;
        Ok(accepted)
    }

    fn close(self, was: &str, source: Option<SocketAddr>, destination: Option<SocketAddr>) -> Result<()> {
        let entry = ExpectedEvent::new("socket_close", &Ok(0)).of(&self).fd(None);
        let entry = entry.end("source", source).end("destination", destination);
        drop(self.fd);
        entry.socket("state_before", was).socket("state", "CLOSE").print()
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address is written here")
}

/// `calls-tcp`: calls on TCP sockets over IPv4, successful and failing.
pub(super) fn tcp(_: &[String]) -> Result<()> {
    let here = at("127.0.0.1:7001");
    let inet = |flags| Socket::new(AddressFamily::Inet, SockType::Stream, flags);
    let listener = inet(SockFlag::SOCK_CLOEXEC)?;
    setsockopt(&listener.fd, sockopt::ReuseAddr, &true)?;
    listener.entry("socket_setsockopt", &Ok(0)).socket("level", 1).socket("option", 2).print()?;
    listener.bind(here)?;
    let second = inet(SockFlag::empty())?;
    second.bind(here)?;
    second.close("CLOSE", None, None)?;
    listener.listen(9)?;
    let client = inet(SockFlag::empty())?;
    client.connect(here)?;
    let near = client.name().context("the client is not connected")?;
    let server = listener.accept(near)?;

    fcntl(&listener.fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let nothing = accept4(listener.number(), SockFlag::empty());
    let entry = listener.entry("socket_accept", &nothing).socket("accepted_fd", Value::Null);
    entry.end("source", None).end("destination", Some(here)).socket("state", "LISTEN").print()?;

    let hasty = inet(SockFlag::SOCK_NONBLOCK)?;
    hasty.connect(here)?;
    let hasty_end = hasty.name();
    let refused = inet(SockFlag::empty())?;
    refused.connect(at("127.0.0.1:1"))?;
    refused.close("CLOSE", None, None)?;
    client.close("ESTABLISHED", Some(near), Some(here))?;
    sleep(Duration::from_millis(200));
    server.close("CLOSE_WAIT", Some(here), Some(near))?;
    hasty.close("ESTABLISHED", hasty_end, Some(here))?;
    listener.close("LISTEN", Some(here), None)
}

/// `calls-refused`: calls that a normal user may not make, and calls with invalid arguments.
pub(super) fn refused(_: &[String]) -> Result<()> {
    let low = Socket::new(AddressFamily::Inet, SockType::Datagram, SockFlag::empty())?;
    low.bind(at("127.0.0.1:99"))?;
    low.close("CLOSE", None, None)?;
    for (kind, protocol) in [(SockType::Raw, SockProtocol::Icmp), (SockType::Stream, SockProtocol::Udp)] {
        // Without flags, because musl repeats a failed call without its flags.
        let result = socket(AddressFamily::Inet, kind, SockFlag::empty(), protocol).map(|_| 0);
        let entry = ExpectedEvent::new("socket_create", &result).fd(None).socket("family", "AF_INET");
        entry.socket("type", names(AddressFamily::Inet, kind).1).socket("inode", Value::Null).print()?;
    }
    Ok(())
}

/// `calls-ipv6`: IPv6 addresses with scopes, and IPv4-mapped ones.
pub(super) fn ipv6(_: &[String]) -> Result<()> {
    let (here, there) = (at("[::1]:7002"), at("[::1]:7003"));
    let datagrams = Socket::new(AddressFamily::Inet6, SockType::Datagram, SockFlag::empty())?;
    datagrams.bind(here)?;
    datagrams.connect(there)?;
    datagrams.close("ESTABLISHED", Some(here), Some(there))?;

    let stream = Socket::new(AddressFamily::Inet6, SockType::Stream, SockFlag::empty())?;
    stream.connect(at("[::ffff:127.0.0.1]:1"))?;
    stream.close("CLOSE", None, None)?;

    let local = Socket::new(AddressFamily::Inet6, SockType::Datagram, SockFlag::empty())?;
    let scoped = at("[fe80::77%1]:7004");
    let result = bind(local.number(), &SockaddrStorage::from(scoped)).map(|()| 0);
    local.entry("socket_bind", &result).end("source", Some(scoped)).socket("local_scope_id", 1).print()?;
    let result = connect(local.number(), &SockaddrStorage::from(scoped)).map(|()| 0);
    let entry = local.entry("socket_connect", &result).end("destination", Some(scoped));
    entry.socket("remote_scope_id", 1).print()
    // It is closed by the end of this process.
}

/// The address of a Unix socket.
struct UnixName {
    address: UnixAddr,
    /// As events show it.
    shown: String,
}

fn path(bytes: &[u8], shown: &str) -> Result<UnixName> {
    use std::os::unix::ffi::OsStrExt;
    let path = Path::new(std::ffi::OsStr::from_bytes(bytes));
    let _ = std::fs::remove_file(path);
    Ok(UnixName { address: UnixAddr::new(path)?, shown: shown.to_owned() })
}

impl Socket {
    fn unix(
        &self,
        action: &str,
        result: &Result<i32, Errno>,
        local: Option<&str>,
        remote: Option<&str>,
    ) -> ExpectedEvent {
        let ends = self.entry(action, result).end("source", None).end("destination", None);
        ends.socket("local_path", local).socket("remote_path", remote)
    }

    fn bind_unix(&self, UnixName { address, shown }: &UnixName) -> Result<()> {
        let result = bind(self.number(), address).map(|()| 0);
        self.unix("socket_bind", &result, Some(shown), None).print()
    }

    fn connect_unix(&self, UnixName { address, shown }: &UnixName) -> Result<()> {
        let result = connect(self.number(), address).map(|()| 0);
        self.unix("socket_connect", &result, None, Some(shown)).print()
    }

    fn close_unix(self, was: &str, local: Option<&str>, remote: Option<&str>) -> Result<()> {
        let entry = self.unix("socket_close", &Ok(0), local, remote).fd(None).socket("state_before", was);
        drop(self.fd);
        entry.print()
    }
}

/// `calls-unix`: `AF_UNIX` sockets with every kind of name.
pub(super) fn unix(_: &[String]) -> Result<()> {
    let new = |kind| Socket::new(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC);
    let long = format!("/tmp/{}", "x".repeat(102));
    let long = path(long.as_bytes(), &long)?;
    let address = UnixAddr::new_abstract(b"a\0\nb\\\xff")?;
    let odd = UnixName { address, shown: r"@a\x00\x0ab\x5c\xff".to_owned() };
    let ugly = path(b"/tmp/\xe9\x1b[2J \xe2\x82\xac", "/tmp/\\xe9\\x1b[2J €")?;
    let nowhere = path(b"/tmp/nowhere", "/tmp/nowhere")?;
    let at_sign = path(b"@x", r"\x40x")?;

    let listener = new(SockType::Stream)?;
    listener.bind_unix(&long)?;
    let result = listen(&listener.fd, Backlog::new(3)?).map(|()| 0);
    listener.unix("socket_listen", &result, Some(&long.shown), None).socket("backlog", 3).print()?;
    let client = new(SockType::Stream)?;
    client.connect_unix(&long)?;
    let number = accept4(listener.number(), SockFlag::empty())?;
    let server = Socket::without_event(owned(number)?, ("AF_UNIX", "SOCK_STREAM"))?;
    let accepted = server.unix("socket_accept", &Ok(0), Some(&long.shown), None).fd(Some(listener.number()));
    accepted.socket("accepted_fd", number).print()?;

    let lost = new(SockType::Datagram)?;
    lost.connect_unix(&nowhere)?;
    let sequenced = new(SockType::SeqPacket)?;
    sequenced.bind_unix(&odd)?;
    let ugly_one = new(SockType::Datagram)?;
    ugly_one.bind_unix(&ugly)?;
    let tricky = new(SockType::Datagram)?;
    tricky.bind_unix(&at_sign)?;
    let again = new(SockType::Datagram)?;
    again.bind_unix(&ugly)?;
    again.close_unix("CLOSE", None, None)?;

    let (one, other) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty())?;
    for fd in [&one, &other] {
        let end = Socket::without_event(fd.try_clone()?, ("AF_UNIX", "SOCK_STREAM"))?;
        ExpectedEvent::new("socket_create", &Ok(0)).of(&end).fd(None).print()?;
    }
    for fd in [one, other] {
        Socket::without_event(fd, ("AF_UNIX", "SOCK_STREAM"))?.close_unix("ESTABLISHED", None, None)?;
    }
    client.close_unix("ESTABLISHED", None, Some(&long.shown))?;
    server.close_unix("ESTABLISHED", Some(&long.shown), None)?;
    lost.close_unix("CLOSE", None, None)?;
    sequenced.close_unix("CLOSE", Some(&odd.shown), None)?;
    ugly_one.close_unix("CLOSE", Some(&ugly.shown), None)?;
    tricky.close_unix("CLOSE", Some(&at_sign.shown), None)?;
    listener.close_unix("LISTEN", Some(&long.shown), None)
}

/// `calls-netlink`: a socket of another family.
pub(super) fn netlink(_: &[String]) -> Result<()> {
    let other = Socket::new(AddressFamily::Netlink, SockType::Raw, SockFlag::empty())?;
    other.close("CLOSE", None, None)
}

/// `calls-io-uring ADDRESS`: connects through io_uring. Prints the socket's inode, its address and the ring's result.
pub(super) fn io_uring(arguments: &[String]) -> Result<()> {
    let there = super::address(arguments)?;
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
    let result = connect_by_io_uring(&fd, there)?;
    let socket = Socket::without_event(fd, ("AF_INET", "SOCK_STREAM"))?;
    print_line(json!({ "inode": socket.inode, "local": socket.name().map(|name| name.to_string()), "result": result }))
}

/// `calls-io-uring-failing`: through io_uring, an accept and a socket that fail, and a socket that succeeds. Prints the
/// ring's results.
pub(super) fn io_uring_failing(_: &[String]) -> Result<()> {
    let stream = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
    let accepted = accept_by_io_uring(&stream)?;
    let refused = socket_by_io_uring(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_UDP)?;
    let made = socket_by_io_uring(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    print_line(json!({ "inode": inode(&stream)?, "accepted": accepted, "refused": refused, "made": made }))
}

/// `calls-ends`: sockets whose last descriptor is closed by `close(2)`, by a child, by the process's end and by an exec. Prints
/// the inode and the closing process of each.
pub(super) fn ends(_: &[String]) -> Result<()> {
    let new = |flags| socket(AddressFamily::Inet, SockType::Datagram, flags, None);
    let report = |how: &str, inode: u64, pid: u32| print_line(json!({ "how": how, "inode": inode, "pid": pid }));
    let own = std::process::id();

    let first = new(SockFlag::empty())?;
    let copy = first.try_clone()?;
    report("dup", inode(&first)?, own)?;
    drop(first);
    sleep(Duration::from_millis(50));
    drop(copy);

    let shared = new(SockFlag::empty())?;
    let shared_inode = inode(&shared)?;
    // This process has one thread only, so that its child may do anything.
    let child = fork(|| {
        sleep(Duration::from_millis(300));
        true
    })?;
    drop(shared);
    report("fork", shared_inode, child.as_raw().cast_unsigned())?;

    let left = new(SockFlag::empty())?;
    let left_inode = inode(&left)?;
    let child = fork(|| true)?;
    nix::sys::wait::waitpid(child, None)?;
    report("exit", left_inode, own)?; // the program that this process executes holds it until its end

    let closed = new(SockFlag::SOCK_CLOEXEC)?;
    report("exec", inode(&closed)?, own)?;
    std::mem::forget(left);
    let error = Command::new("sleep").arg("1").exec();
    drop(closed);
    Err(error).context("execute another program")
}

/// `short-connections ADDRESS COUNT`: COUNT connections of a millisecond, one after the other, to itself.
pub(super) fn short_connections(arguments: &[String]) -> Result<()> {
    let here = super::address(arguments)?;
    let count: usize = arguments.get(1).context("a count is missing")?.parse()?;
    let listener = std::net::TcpListener::bind(here)?;
    for _ in 0..count {
        let client = std::net::TcpStream::connect(here)?;
        let (server, _) = listener.accept()?;
        sleep(Duration::from_millis(1));
        drop(client);
        drop(server);
    }
    Ok(())
}

/// `hold PATH`: holds a TCP listener and a datagram socket bound to PATH until it is killed, and prints their inodes.
pub(super) fn hold(arguments: &[String]) -> Result<()> {
    let name = arguments.first().context("a path is missing")?;
    let listener = std::net::TcpListener::bind("127.0.0.1:7010")?;
    let datagrams = std::os::unix::net::UnixDatagram::bind(name)?;
    let of = |fd: std::os::fd::BorrowedFd<'_>| inode(&fd.try_clone_to_owned()?);
    print_line(json!({ "tcp": of(listener.as_fd())?, "unix": of(datagrams.as_fd())? }))?;
    sleep(Duration::from_secs(600));
    Err(io::Error::other("not killed in time")).context("hold sockets")
}

/// `calls-named-threads`: connects in threads with different names; prints the port, the thread's id and its name.
pub(super) fn named_threads(_: &[String]) -> Result<()> {
    fn connects(port: u16, name: &str) -> Result<()> {
        std::net::UdpSocket::bind("127.0.0.1:0")?.connect(("127.0.0.1", port))?;
        print_line(format!("{port} {} {name}", nix::unistd::gettid()))
    }
    connects(7021, super::PROGRAM)?;
    let thread = std::thread::Builder::new().name("first-name".to_owned()).spawn(|| {
        connects(7022, "first-name")?;
        nix::sys::prctl::set_name(c"second (name)")?;
        connects(7023, "second (name)")
    })?;
    thread.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
}
