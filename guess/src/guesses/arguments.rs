//! Which argument of a function is what.

use super::talk::{self, Connection};
use super::views::{self, Addresses};
use crate::catalog::{self, ArgumentSpec, FUNCTIONS, FunctionSpec};
use crate::engine::{Clues, Guess, Probe, Scene, Shot};
use nix::sys::socket::SockType;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

/// How many arguments of each function are looked at.
const ARGUMENTS: u32 = 5;
/// The first states that a client goes through: SYN_SENT, then ESTABLISHED. They are part of the kernel's interface.
const STATES: [u32; 2] = [2, 1];

/// This thread talks to itself over TCP and UDP, through every function of the catalog that has to do with sockets. In
/// each of them, each argument that points to something that the catalog names is recognised by what it points to.
///
/// A function that is added to the catalog is looked at without further ado.
#[derive(Debug)]
pub(super) struct Arguments {
    pub(super) ipv6: bool,
}

/// Functions whose arguments other guesses find, since they look for structures there.
const OTHERS: &[&str] = &[
    "sock_init_data",
    "inet_release",
    "udp_queue_rcv_skb",
    "commit_creds",
    "security_bprm_committed_creds",
    "wake_up_new_task",
    "ip6_xmit",
];

/// Who talked.
#[derive(Debug)]
pub(super) struct Talk {
    /// Every socket.
    sockets: Vec<Addresses>,
    /// The one that connected by TCP.
    client: Addresses,
}

impl Arguments {
    fn functions(&self) -> impl Iterator<Item = &'static FunctionSpec> {
        let ipv6 = self.ipv6;
        FUNCTIONS.iter().filter(move |function| {
            function.ipv6 == ipv6 && !OTHERS.contains(&function.name) && !function.arguments.is_empty()
        })
    }
}

impl Guess for Arguments {
    type Sent = Talk;

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

    fn trigger(&mut self, stage: &mut dyn Scene) -> io::Result<Talk> {
        let (client, mut sockets) = talk_tcp(stage, self.ipv6)?;
        sockets.extend(talk_udp(stage, self.ipv6)?);
        sockets.push(say_nothing(stage, self.ipv6)?);
        Ok(Talk { sockets, client })
    }

    fn solve(&self, talk: &Talk, shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        for function in self.functions() {
            let mut states = STATES.iter();
            for shot in shots.iter().filter(|shot| shot.function == function.name) {
                for argument in function.arguments {
                    let found = recognise(argument, shot, talk, &mut states);
                    if !found.is_empty() {
                        clues.allow(&catalog::argument_key(function.name, argument.name), found);
                    }
                }
            }
        }
        clues
    }
}

/// Looks at every argument as everything that any of the functions is given.
fn probe(function: &FunctionSpec, ipv6: bool) -> Probe {
    let mut probe = Probe::on(function.name).optional().arguments(ARGUMENTS);
    for position in 1..=ARGUMENTS {
        probe = views::skb(views::sock(probe, position, ipv6), position);
        probe = views::socket(views::net(probe, position), position);
        probe = views::address(probe, position);
    }
    probe
}

/// At which positions an argument may stand.
fn recognise(argument: &ArgumentSpec, shot: &Shot, talk: &Talk, states: &mut std::slice::Iter<'_, u32>) -> Vec<u32> {
    let all = 1..=ARGUMENTS;
    let is_sock = |position: u32, of: &Addresses| views::is_sock(shot, position, of);
    let sock = || (1..=ARGUMENTS).find(|&position| talk.sockets.iter().any(|of| is_sock(position, of)));
    match argument.points_to {
        Some("sock") => all.filter(|&position| talk.sockets.iter().any(|of| is_sock(position, of))).collect(),
        Some("sk_buff") => {
            all.filter(|&position| talk.sockets.iter().any(|of| views::carries(shot, position, of))).collect()
        }
        Some("net") => sock().map(|sock| views::net_of(shot, sock)).unwrap_or_default(),
        Some("socket") => {
            let Some(sock) = sock() else { return Vec::new() };
            all.filter(|&position| views::is_socket_of(shot, position, shot.argument(sock))).collect()
        }
        Some("sockaddr") => {
            let Some(remote) = talk.client.remote else { return Vec::new() };
            all.filter(|&position| views::is_address(shot, position, remote)).collect()
        }
        None if sock().is_some_and(|sock| is_sock(sock, &talk.client)) => {
            let Some(&state) = states.next() else { return Vec::new() };
            all.filter(|&position| shot.argument(position) as u32 == state).collect()
        }
        _ => Vec::new(),
    }
}

/// A connection with a word each way.
fn talk_tcp(stage: &mut dyn Scene, ipv6: bool) -> io::Result<(Addresses, Vec<Addresses>)> {
    let mut connection = Connection::open(stage.random(), ipv6)?;
    connection.ask(1)?;
    connection.reply(1)?;
    let (near, far) = (connection.client.local_addr()?, connection.server.local_addr()?);
    let client = Addresses { local: near, remote: Some(far) };
    let server = Addresses { local: far, remote: Some(near) };
    Ok((client, vec![client, server]))
}

/// A datagram each way.
fn talk_udp(stage: &mut dyn Scene, ipv6: bool) -> io::Result<[Addresses; 2]> {
    let one = talk::udp(talk::address(stage.random(), ipv6))?;
    let other = talk::udp(talk::address(stage.random(), ipv6))?;
    talk::datagram(&one, &other, 100)?;
    talk::datagram(&other, &one, 100)?;
    let (local, remote) = (one.local_addr()?, other.local_addr()?);
    Ok([Addresses { local, remote: Some(remote) }, Addresses { local: remote, remote: Some(local) }])
}

/// A TCP socket that is closed as it was opened, and is gone at once.
fn say_nothing(stage: &mut dyn Scene, ipv6: bool) -> io::Result<Addresses> {
    let local = talk::address(stage.random(), ipv6);
    let socket = talk::socket(SockType::Stream, talk::family(local), Some(local))?;
    let local: SocketAddr = talk::local(socket.as_fd())?;
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

    fn talk() -> Talk {
        let [local, remote] = ["127.1.2.3:4660", "127.9.8.7:17185"].map(|address| address.parse().unwrap());
        let client = Addresses { local, remote: Some(remote) };
        Talk { sockets: vec![client], client }
    }

    fn shot(function: &str) -> Shot {
        let arguments = Arguments { ipv6: false };
        let probe = Guess::probes(&arguments, 0).into_iter().find(|probe| probe.function == function);
        Shot::blank(&probe.expect("it is in the catalog"))
    }

    /// The argument at `position` is the client's `sock`.
    fn pass_sock(shot: &mut Shot, position: u32) {
        shot.pass(position, SK);
        shot.put(&format!("address {position}"), 0, &[127, 1, 2, 3]);
        shot.put(&format!("net {position}"), 0, &NET.to_ne_bytes());
    }

    #[test]
    fn arguments_are_recognised_by_what_they_point_to() {
        let mut out = shot("ip_local_out");
        out.pass(1, NET);
        pass_sock(&mut out, 2);
        // A register that still holds the sock.
        pass_sock(&mut out, 5);
        out.pass(3, SK + 4096);
        out.put("pointer to data 3", 0, &(SK + 8192).to_ne_bytes());
        out.put("begin 3", 0, &[0x45]);
        out.put("behind IPv4 3", 20, &[0x12, 0x34, 0x43, 0x21]);
        let clues = Arguments { ipv6: false }.solve(&talk(), &[out]);
        assert_eq!(clues.of("ip_local_out(net)"), [1]);
        assert_eq!(clues.of("ip_local_out(sk)"), [2, 5]);
        assert_eq!(clues.of("ip_local_out(skb)"), [3]);
    }

    #[test]
    fn a_state_is_recognised_by_the_order_of_states() {
        let state = |state| {
            let mut shot = shot("tcp_set_state");
            pass_sock(&mut shot, 1);
            shot.pass(2, state);
            shot.pass(3, 2);
            shot
        };
        let clues = Arguments { ipv6: false }.solve(&talk(), &[state(2), state(1), state(7)]);
        assert_eq!(clues.of("tcp_set_state(sk)"), [1]);
        assert_eq!(clues.of("tcp_set_state(state)"), [2]);
    }

    #[test]
    fn what_strangers_do_tells_nothing() {
        let mut stranger = shot("tcp_v4_rcv");
        stranger.pass(1, SK);
        assert_eq!(Arguments { ipv6: false }.solve(&talk(), &[stranger]), Clues::default());
    }
}
