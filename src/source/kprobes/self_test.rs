//! Tests whether probes fire: sends traffic over loopback, and reads the kernel's counts of hits.
//!
//! An installed probe may never be hit: the compiler has inlined the function, nothing calls it, or the kernel does not make
//! the probe fire. [`FLOW_PROBES`](super::FLOW_PROBES) has the traffic that must hit each probe.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Serialize;
use socktrail_kprobes::{Error, Group};

/// How long to wait for a packet. Over loopback it arrives at once, unless something drops it.
const PACKET_TIMEOUT: Duration = Duration::from_millis(200);
/// Pauses after which the kernel's counts are read again while hits are missing: some come after the traffic, on another
/// CPU.
const PAUSES: [Duration; 3] = [Duration::from_millis(2), Duration::from_millis(10), Duration::from_millis(30)];

/// Test traffic between two sockets of this thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Traffic {
    /// A datagram over IPv4.
    UdpIpv4,
    /// A TCP connection over IPv4, made and reset.
    TcpIpv4,
    /// A datagram over IPv6.
    UdpIpv6,
    /// A TCP connection over IPv6, made and reset.
    TcpIpv6,
}

impl Traffic {
    const IPV4: [Self; 2] = [Self::UdpIpv4, Self::TcpIpv4];
    const IPV6: [Self; 2] = [Self::UdpIpv6, Self::TcpIpv6];

    /// Sends the traffic. `Ok` only if all of it has arrived.
    fn make(self) -> io::Result<()> {
        match self {
            Self::UdpIpv4 => datagram(Ipv4Addr::LOCALHOST.into()),
            Self::TcpIpv4 => connection(Ipv4Addr::LOCALHOST.into()),
            Self::UdpIpv6 => datagram(Ipv6Addr::LOCALHOST.into()),
            Self::TcpIpv6 => connection(Ipv6Addr::LOCALHOST.into()),
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UdpIpv4 => "a datagram over IPv4",
            Self::TcpIpv4 => "a TCP connection over IPv4",
            Self::UdpIpv6 => "a datagram over IPv6",
            Self::TcpIpv6 => "a TCP connection over IPv6",
        })
    }
}

/// Kinds of traffic as a list for a sentence.
pub fn listed(traffic: &[Traffic]) -> String {
    traffic.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn datagram(ip: IpAddr) -> io::Result<()> {
    let (receiver, sender) = (UdpSocket::bind((ip, 0))?, UdpSocket::bind((ip, 0))?);
    receiver.set_read_timeout(Some(PACKET_TIMEOUT))?;
    sender.send_to(&[0], receiver.local_addr()?)?;
    let (_, from) = receiver.recv_from(&mut [0; 1])?;
    check_sender(from, sender.local_addr()?)
}

/// Makes the connection end with a reset, so that it does not stay in TIME_WAIT.
fn connection(ip: IpAddr) -> io::Result<()> {
    let listener = TcpListener::bind((ip, 0))?;
    setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::microseconds(PACKET_TIMEOUT.as_micros() as i64))?;
    let client = TcpStream::connect_timeout(&listener.local_addr()?, PACKET_TIMEOUT)?;
    let (mut accepted, from) = listener.accept()?;
    check_sender(from, client.local_addr()?)?;
    accepted.set_read_timeout(Some(PACKET_TIMEOUT))?;
    setsockopt(&client, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 })?;
    drop(client);
    match accepted.read(&mut [0; 1]) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("the reset did not arrive")),
    }
}

fn check_sender(from: SocketAddr, own: SocketAddr) -> io::Result<()> {
    if from == own { Ok(()) } else { Err(io::Error::other(format!("it came from {from} instead of {own}"))) }
}

/// The results of the self-test.
#[derive(Debug, Default, Serialize)]
pub struct SelfTest {
    /// The traffic that has arrived. Only this traffic tests probes.
    pub went_through: Vec<Traffic>,
    /// The traffic that has not arrived. Probes that only this traffic hits are not tested.
    pub failed: Vec<FailedTraffic>,
    /// The reason if no probe could be tested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untested: Option<String>,
}

/// Traffic that has not arrived.
#[derive(Debug, Serialize)]
pub struct FailedTraffic {
    /// The traffic.
    pub traffic: Traffic,
    /// The reason.
    pub reason: String,
}

impl SelfTest {
    /// Sends all traffic that has not failed before.
    pub(super) fn make_traffic(&mut self, ipv6: bool) {
        let all = Traffic::IPV4.into_iter().chain(Traffic::IPV6.into_iter().filter(|_| ipv6));
        for traffic in all {
            if self.failed.iter().any(|failed| failed.traffic == traffic) {
                continue;
            }
            self.went_through.retain(|one| *one != traffic);
            match traffic.make() {
                Ok(()) => self.went_through.push(traffic),
                Err(error) => {
                    tracing::debug!(%traffic, %error, "test traffic does not arrive, so it tests no probes");
                    self.failed.push(FailedTraffic { traffic, reason: error.to_string() });
                }
            }
        }
    }

    /// Whether the traffic has hit the probe. `hit_by` is the traffic that must hit it. Traffic that did not arrive, for example
    /// because a firewall dropped it, proves nothing.
    pub(super) fn verdict(&self, hit_by: &[Traffic], hits: Option<u64>) -> Verdict {
        match hits {
            _ if hit_by.is_empty() => Verdict::Unknown,
            Some(1..) => Verdict::Hit,
            Some(0) if hit_by.iter().all(|one| self.went_through.contains(one)) => Verdict::NotHit,
            _ => Verdict::Unknown,
        }
    }
}

/// The result for a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It fires.
    Hit,
    /// It should have been hit, and was not.
    NotHit,
    /// No traffic that must hit it has arrived, or the kernel does not count its hits.
    Unknown,
}

/// The hits of each probe so far. A missed hit counts, too: it also shows that the function is called.
#[derive(Debug, Default)]
pub(super) struct Hits(BTreeMap<String, u64>);

impl Hits {
    pub(super) fn now(group: &Group) -> Result<Self, Error> {
        let counts = group.misses()?;
        Ok(Self(counts.into_iter().map(|probe| (probe.name, probe.hits.saturating_add(probe.misses))).collect()))
    }

    /// The hits of a probe since `before` was read; `None` if the kernel does not count them.
    pub(super) fn since(&self, before: &Self, name: &str) -> Option<u64> {
        let now = self.0.get(name)?;
        Some(now.saturating_sub(before.0.get(name).copied().unwrap_or(0)))
    }

    /// Reads the counts until there are enough hits, or until after the last pause.
    pub(super) fn wait_until(group: &Group, is_enough: impl Fn(&Self) -> bool) -> Result<Self, Error> {
        let mut hits = Self::now(group)?;
        for pause in PAUSES {
            if is_enough(&hits) {
                break;
            }
            sleep(pause);
            hits = Self::now(group)?;
        }
        Ok(hits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(went_through: &[Traffic], failed: &[Traffic]) -> SelfTest {
        let failed =
            failed.iter().map(|traffic| FailedTraffic { traffic: *traffic, reason: "dropped".to_owned() }).collect();
        SelfTest { went_through: went_through.to_vec(), failed, untested: None }
    }

    #[test]
    fn only_traffic_that_went_through_proves_that_a_probe_is_not_hit() {
        use Traffic::{TcpIpv4, TcpIpv6, UdpIpv4};
        let test = after(&[UdpIpv4, TcpIpv6], &[TcpIpv4]);
        for (hit_by, hits, verdict) in [
            (&[UdpIpv4][..], Some(1), Verdict::Hit),
            (&[UdpIpv4], Some(0), Verdict::NotHit),
            (&[UdpIpv4], None, Verdict::Unknown),
            (&[TcpIpv4], Some(0), Verdict::Unknown),
            (&[TcpIpv4], Some(7), Verdict::Hit),
            (&[UdpIpv4, TcpIpv6], Some(0), Verdict::NotHit),
            (&[UdpIpv4, TcpIpv4], Some(0), Verdict::Unknown),
            (&[], Some(0), Verdict::Unknown),
            (&[], Some(3), Verdict::Unknown),
        ] {
            assert_eq!(test.verdict(hit_by, hits), verdict, "{hits:?} hits by {hit_by:?}");
        }
        assert_eq!(after(&[], &[]).verdict(&[UdpIpv4], Some(0)), Verdict::Unknown);
    }

    #[test]
    fn only_hits_after_the_first_reading_count() {
        let hits =
            |counts: &[(&str, u64)]| Hits(counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect());
        let before = hits(&[("accept", 3), ("tcp_state", 5)]);
        let now = hits(&[("accept", 3), ("tcp_state", 7), ("new", 1)]);
        let since = ["accept", "tcp_state", "new", "gone"].map(|name| now.since(&before, name));
        assert_eq!(since, [Some(0), Some(2), Some(1), None]);
    }

    #[test]
    fn traffic_that_goes_through_is_listed_once() {
        let mut test = SelfTest::default();
        test.make_traffic(false);
        assert_eq!(test.went_through, Traffic::IPV4, "{:?}", test.failed);
        test.make_traffic(false);
        assert_eq!(test.went_through, Traffic::IPV4, "each once only");
    }

    #[test]
    fn an_address_that_is_not_here_fails_with_the_reason() {
        // TEST-NET-1 (RFC 5737) is not assigned to any host.
        let nowhere = IpAddr::from([192, 0, 2, 1]);
        for error in [datagram(nowhere).unwrap_err(), connection(nowhere).unwrap_err()] {
            assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        }
    }
}
