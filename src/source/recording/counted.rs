//! The entries of a recording with the kernel's own counts.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::model::flow::{Counters, Endpoint, Transport};
use crate::model::kernel_address::SockAddress;
use crate::model::time::MonotonicTime;
use crate::model::totals::{TcpTotals, Totals};
use crate::source::CountedAnswer;

/// Counts that the kernel has reported without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedEntry {
    /// When it reported them.
    pub time: MonotonicTime,
    /// The counts.
    pub totals: TotalsEntry,
}

/// An answer about the kernel's counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnsweredEntry {
    /// The `struct sock` that was asked about.
    pub sock: u64,
    /// See [`CountedAnswer`]; likewise the others.
    pub at: MonotonicTime,
    pub totals: Option<TotalsEntry>,
}

/// See [`Totals`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TotalsEntry {
    pub sock: u64,
    pub transport: Transport,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub since: MonotonicTime,
    /// Packets and bytes.
    pub sent: (u64, u64),
    /// See `sent`.
    pub received: (u64, u64),
    pub last: MonotonicTime,
    pub tcp: Option<TcpTotals>,
}

impl From<&Totals> for TotalsEntry {
    fn from(totals: &Totals) -> Self {
        let Totals { sock, transport, local, remote, since, sent, received, last, tcp } = *totals;
        let address = |end: Endpoint| SocketAddr::new(end.ip, end.port);
        let numbers = |counters: Counters| (counters.packets, counters.bytes);
        let (sock, local, remote) = (sock.get(), address(local), address(remote));
        Self { sock, transport, local, remote, since, sent: numbers(sent), received: numbers(received), last, tcp }
    }
}

/// Fails if a recording names no socket.
impl TryFrom<TotalsEntry> for Totals {
    type Error = String;

    fn try_from(entry: TotalsEntry) -> Result<Self, String> {
        let TotalsEntry { sock, transport, local, remote, since, sent, received, last, tcp } = entry;
        let counters = |(packets, bytes)| Counters { packets, bytes };
        let (local, remote) = (local.into(), remote.into());
        let sock = known(sock)?;
        Ok(Self {
            sock,
            transport,
            local,
            remote,
            since,
            sent: counters(sent),
            received: counters(received),
            last,
            tcp,
        })
    }
}

impl From<&CountedAnswer> for AnsweredEntry {
    fn from(answer: &CountedAnswer) -> Self {
        let CountedAnswer { sock, at, totals } = answer;
        Self { sock: sock.get(), at: *at, totals: totals.as_ref().map(TotalsEntry::from) }
    }
}

/// Fails if a recording names no socket.
impl TryFrom<AnsweredEntry> for CountedAnswer {
    type Error = String;

    fn try_from(entry: AnsweredEntry) -> Result<Self, String> {
        let totals = entry.totals.map(Totals::try_from).transpose()?;
        Ok(Self { sock: known(entry.sock)?, at: entry.at, totals })
    }
}

fn known(sock: u64) -> Result<SockAddress, String> {
    SockAddress::new(sock).ok_or_else(|| "counts of no socket".to_owned())
}
