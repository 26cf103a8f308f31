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
    pub short_datagrams: bool,
    pub nonlinear_datagrams: bool,
    pub tcp: Option<TcpTotals>,
}

impl From<&Totals> for TotalsEntry {
    fn from(totals: &Totals) -> Self {
        let address = |end: Endpoint| SocketAddr::new(end.ip, end.port);
        let numbers = |counters: Counters| (counters.packets, counters.bytes);
        Self {
            sock: totals.sock.get(),
            transport: totals.transport,
            local: address(totals.local),
            remote: address(totals.remote),
            since: totals.since,
            sent: numbers(totals.sent),
            received: numbers(totals.received),
            last: totals.last,
            short_datagrams: totals.short_datagrams,
            nonlinear_datagrams: totals.nonlinear_datagrams,
            tcp: totals.tcp,
        }
    }
}

/// Fails if the address of the socket is 0.
impl TryFrom<TotalsEntry> for Totals {
    type Error = String;

    fn try_from(entry: TotalsEntry) -> Result<Self, String> {
        let counters = |(packets, bytes)| Counters { packets, bytes };
        Ok(Self {
            sock: known(entry.sock)?,
            transport: entry.transport,
            local: entry.local.into(),
            remote: entry.remote.into(),
            since: entry.since,
            sent: counters(entry.sent),
            received: counters(entry.received),
            last: entry.last,
            short_datagrams: entry.short_datagrams,
            nonlinear_datagrams: entry.nonlinear_datagrams,
            tcp: entry.tcp,
        })
    }
}

impl From<&CountedAnswer> for AnsweredEntry {
    fn from(answer: &CountedAnswer) -> Self {
        let CountedAnswer { sock, at, totals } = answer;
        Self { sock: sock.get(), at: *at, totals: totals.as_ref().map(TotalsEntry::from) }
    }
}

/// Fails if the address of the socket is 0.
impl TryFrom<AnsweredEntry> for CountedAnswer {
    type Error = String;

    fn try_from(entry: AnsweredEntry) -> Result<Self, String> {
        let totals = entry.totals.map(Totals::try_from).transpose()?;
        Ok(Self { sock: known(entry.sock)?, at: entry.at, totals })
    }
}

fn known(sock: u64) -> Result<SockAddress, String> {
    SockAddress::new(sock).ok_or_else(|| "counts without a socket".to_owned())
}
