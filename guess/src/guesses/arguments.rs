//! The positions of arguments.

use super::loopback::{self, Connection};
use super::views::{self, Addresses};
use crate::catalog::{self, ArgumentSpec, FUNCTIONS, FunctionSpec};
use crate::engine::{Call, Context, Evidence, Guess, Probe};
use nix::sys::socket::SockType;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

/// How many arguments of each function are captured.
const ARGUMENTS: u32 = 5;
/// The first states of a TCP client: SYN_SENT, then ESTABLISHED. Their numbers are part of the kernel's interface.
const CLIENT_STATES: [u32; 2] = [2, 1];

/// Sends data over TCP and UDP to itself, which calls every function of the catalog that handles sockets. An argument
/// of such a function is recognised by the structure that it points to.
///
/// A function that is added to the catalog needs no further code here.
#[derive(Debug)]
pub(super) struct Arguments {
    pub(super) ipv6: bool,
}

/// Functions whose arguments other guesses find, together with the structures that they point to.
const FOUND_BY_OTHER_GUESSES: &[&str] = &[
    "sock_init_data",
    "inet_release",
    "udp_queue_rcv_skb",
    "commit_creds",
    "security_bprm_committed_creds",
    "wake_up_new_task",
    "ip6_xmit",
];

/// The sockets that sent and received.
#[derive(Debug)]
pub(super) struct Traffic {
    /// All sockets.
    sockets: Vec<Addresses>,
    /// The socket that connected over TCP.
    client: Addresses,
}

impl Arguments {
    fn functions(&self) -> impl Iterator<Item = &'static FunctionSpec> {
        let ipv6 = self.ipv6;
        FUNCTIONS.iter().filter(move |function| {
            function.ipv6 == ipv6 && !FOUND_BY_OTHER_GUESSES.contains(&function.name) && !function.arguments.is_empty()
        })
    }
}

impl Guess for Arguments {
    type Expected = Traffic;

    fn name(&self) -> &'static str {
        if self.ipv6 { "arguments6" } else { "arguments" }
    }

    fn needs(&self) -> Vec<String> {
        let of_sock = if self.ipv6 { views::NEEDS6 } else { views::NEEDS4 };
        let keys = [of_sock, views::NEEDS_SKB, &["sock_common.skc_net", "socket.sk"]].concat();
        keys.into_iter().map(str::to_owned).collect()
    }

    fn gives(&self) -> Vec<String> {
        let keys = |function: &'static FunctionSpec| {
            let key = |argument: &ArgumentSpec| catalog::argument_key(function.name, argument.name);
            function.arguments.iter().map(key)
        };
        self.functions().flat_map(keys).collect()
    }

    fn ipv6(&self) -> bool {
        self.ipv6
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        self.functions().map(|function| probe(function, self.ipv6)).collect()
    }

    fn trigger(&mut self, context: &mut dyn Context) -> io::Result<Traffic> {
        let (client, mut sockets) = send_over_tcp(context, self.ipv6)?;
        sockets.extend(send_over_udp(context, self.ipv6)?);
        sockets.push(close_unused(context, self.ipv6)?);
        Ok(Traffic { sockets, client })
    }

    fn solve(&self, traffic: &Traffic, calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        for function in self.functions() {
            let mut states = CLIENT_STATES.iter();
            for call in calls.iter().filter(|call| call.function == function.name) {
                for argument in function.arguments {
                    let found = recognise(argument, call, traffic, &mut states);
                    if !found.is_empty() {
                        evidence.one_of(&catalog::argument_key(function.name, argument.name), found);
                    }
                }
            }
        }
        evidence
    }
}

/// Captures each argument as every structure that an argument of the catalog's functions may point to.
fn probe(function: &FunctionSpec, ipv6: bool) -> Probe {
    let mut probe = Probe::on(function.name).optional().arguments(ARGUMENTS);
    for position in 1..=ARGUMENTS {
        probe = views::skb(views::sock(probe, position, ipv6), position);
        probe = views::socket(views::net(probe, position), position);
        probe = views::address(probe, position);
    }
    probe
}

/// The positions at which an argument may be, according to one call.
fn recognise(
    argument: &ArgumentSpec,
    call: &Call,
    traffic: &Traffic,
    states: &mut std::slice::Iter<'_, u32>,
) -> Vec<u32> {
    let positions = 1..=ARGUMENTS;
    let is_sock = |position: u32, of: &Addresses| views::is_sock(call, position, of);
    let sock = || (1..=ARGUMENTS).find(|&position| traffic.sockets.iter().any(|of| is_sock(position, of)));
    match argument.points_to {
        Some("sock") => positions.filter(|&position| traffic.sockets.iter().any(|of| is_sock(position, of))).collect(),
        Some("sk_buff") => {
            positions.filter(|&position| traffic.sockets.iter().any(|of| views::carries(call, position, of))).collect()
        }
        Some("net") => sock().map(|sock| views::net_of(call, sock)).unwrap_or_default(),
        Some("socket") => {
            let Some(sock) = sock() else { return Vec::new() };
            positions.filter(|&position| views::is_socket_of(call, position, call.argument(sock))).collect()
        }
        Some("sockaddr") => {
            let Some(remote) = traffic.client.remote else { return Vec::new() };
            positions.filter(|&position| views::is_address(call, position, remote)).collect()
        }
        None if sock().is_some_and(|sock| is_sock(sock, &traffic.client)) => {
            let Some(&state) = states.next() else { return Vec::new() };
            positions.filter(|&position| call.argument(position) as u32 == state).collect()
        }
        _ => Vec::new(),
    }
}

/// A connection with one message in each direction. Returns the client's addresses, and those of both ends.
fn send_over_tcp(context: &mut dyn Context, ipv6: bool) -> io::Result<(Addresses, Vec<Addresses>)> {
    let mut connection = Connection::open(context.random(), ipv6)?;
    connection.ask(1)?;
    connection.reply(1)?;
    let (near, far) = (connection.client.local_addr()?, connection.server.local_addr()?);
    let client = Addresses { local: near, remote: Some(far) };
    let server = Addresses { local: far, remote: Some(near) };
    Ok((client, vec![client, server]))
}

/// One datagram in each direction.
fn send_over_udp(context: &mut dyn Context, ipv6: bool) -> io::Result<[Addresses; 2]> {
    let one = loopback::udp(loopback::address(context.random(), ipv6))?;
    let other = loopback::udp(loopback::address(context.random(), ipv6))?;
    loopback::datagram(&one, &other, 100)?;
    loopback::datagram(&other, &one, 100)?;
    let (local, remote) = (one.local_addr()?, other.local_addr()?);
    Ok([Addresses { local, remote: Some(remote) }, Addresses { local: remote, remote: Some(local) }])
}

/// A TCP socket that is closed without a connection, and so is freed at once.
fn close_unused(context: &mut dyn Context, ipv6: bool) -> io::Result<Addresses> {
    let local = loopback::address(context.random(), ipv6);
    let socket = loopback::socket(SockType::Stream, loopback::family(local), Some(local))?;
    let local: SocketAddr = loopback::local(socket.as_fd())?;
    Ok(Addresses { local, remote: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_is_one_kprobe() {
        for ipv6 in [false, true] {
            for probe in Guess::probes(&Arguments { ipv6 }, 0) {
                assert_eq!(probe.parts().len(), 1, "{}", probe.function);
            }
        }
    }

    const SK: u64 = 0xffff_8880_0001_0000;
    const NET: u64 = 0xffff_ffff_8300_0000;

    fn traffic() -> Traffic {
        let [local, remote] = ["127.1.2.3:4660", "127.9.8.7:17185"].map(|address| address.parse().unwrap());
        let client = Addresses { local, remote: Some(remote) };
        Traffic { sockets: vec![client], client }
    }

    fn call(function: &str) -> Call {
        let arguments = Arguments { ipv6: false };
        let probe = Guess::probes(&arguments, 0).into_iter().find(|probe| probe.function == function);
        Call::blank(&probe.expect("the function should be in the catalog"))
    }

    /// Makes the argument at `position` the client's `sock`.
    fn pass_sock(call: &mut Call, position: u32) {
        call.pass(position, SK);
        call.put(&format!("address {position}"), 0, &[127, 1, 2, 3]);
        call.put(&format!("net {position}"), 0, &NET.to_ne_bytes());
    }

    #[test]
    fn arguments_are_recognised_by_what_they_point_to() {
        let mut out = call("ip_local_out");
        out.pass(1, NET);
        pass_sock(&mut out, 2);
        // A register where a caller left the sock.
        pass_sock(&mut out, 5);
        out.pass(3, SK + 4096);
        out.put("pointer to data 3", 0, &(SK + 8192).to_ne_bytes());
        out.put("begin 3", 0, &[0x45]);
        out.put("after IPv4 3", 20, &[0x12, 0x34, 0x43, 0x21]);
        let evidence = Arguments { ipv6: false }.solve(&traffic(), &[out]);
        assert_eq!(evidence.values("ip_local_out(net)"), [1]);
        assert_eq!(evidence.values("ip_local_out(sk)"), [2, 5]);
        assert_eq!(evidence.values("ip_local_out(skb)"), [3]);
    }

    #[test]
    fn a_state_is_recognised_by_the_order_of_states() {
        let state = |state| {
            let mut call = call("tcp_set_state");
            pass_sock(&mut call, 1);
            call.pass(2, state);
            call.pass(3, 2);
            call
        };
        let evidence = Arguments { ipv6: false }.solve(&traffic(), &[state(2), state(1), state(7)]);
        assert_eq!(evidence.values("tcp_set_state(sk)"), [1]);
        assert_eq!(evidence.values("tcp_set_state(state)"), [2]);
    }

    #[test]
    fn calls_for_other_sockets_are_not_evidence() {
        let mut other = call("tcp_v4_rcv");
        other.pass(1, SK);
        assert_eq!(Arguments { ipv6: false }.solve(&traffic(), &[other]), Evidence::default());
    }
}
