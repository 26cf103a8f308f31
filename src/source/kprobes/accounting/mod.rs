//! Programs that count packets in the kernel, so that only packets that say something new become samples.
//!
//! Each packet probe has a program, made from the declaration of the probe's sample. A conversation is a socket and two ends. The
//! programs keep an [entry](entry::Entry) for each, with its packets and bytes. A hit becomes a sample if
//!
//! - the conversation has no entry yet. The program then makes one if it can. Only an outgoing packet makes one for TCP;
//! - the packet is the first of its direction, or the first after a [pause](KernelAccounting::pause);
//! - the packet has SYN, FIN or RST;
//! - the packet cannot be counted for certain: it has IP options, is fragmented, or is an outgoing one that may hold several
//!   datagrams (UDP GSO).
//!
//! All other packets are counted, and their hits end there. Before a hit becomes a sample, the program writes the conversation's
//! entry into the ring, if packets have been counted in it. The programs that see a socket end do the same, and remove the
//! entry. So the state machine gets the counts in order with the samples. In between, it reads entries when it needs them.
//!
//! TCP is counted as `state/counting.rs` does it, with one difference. The state machine finds the flow of an arriving packet by
//! the packet's ends. A program finds the entry by the socket that early demultiplexing has found, or else by a second array,
//! which leads from ends to entries.

mod at_hook;
mod conversations;
mod entry;
mod fields;
mod filter;
mod programs;
mod table;
mod tcp_in;
mod tcp_out;
#[cfg(test)]
mod tests;
mod udp;
mod writer;

use std::time::Duration;

use socktrail_kprobes::bpf::{Alu, Register};
use socktrail_kprobes::{Error, Expression};

use crate::model::filter::Filter;

pub(crate) use self::conversations::{Conversations, Unaccounted};
pub(in crate::source) use self::entry::of_record;
use self::writer::Writer;

/// `IPPROTO_TCP`
const TCP: u16 = 6;
/// TCP's flag of the first packet of a connection.
const SYN: i32 = 0x02;
/// FIN, SYN and RST: packets with any of these flags are always sampled.
const ALWAYS_SAMPLED: i32 = 0x01 | SYN | 0x04;

/// How the kernel counts packets.
#[derive(Clone, Copy, Debug)]
pub struct KernelAccounting {
    /// A conversation's first packet after this time without packets is sampled. It is the shortest time after which a flow may
    /// end.
    pub pause: Duration,
    /// The number of conversations that the table is made for. Each takes about 350 bytes of the kernel's memory, or up to twice
    /// that if the number is not a power of two.
    pub conversations: u32,
}

/// The rules by which programs decide about a packet.
#[derive(Clone, Debug)]
pub(in crate::source) struct Rules {
    /// [`KernelAccounting::pause`] in nanoseconds.
    pub(super) pause_nanos: u64,
    /// See [`SourceCapabilities::gso_head_len`](crate::model::event::SourceCapabilities::gso_head_len).
    pub(super) gso_head_len: u32,
    /// The packets that it rejects are neither counted nor sampled.
    pub(super) filter: Filter,
    /// The number of `SKB_CONSUMED`, the reason of packets that are freed but were not dropped, if the kernel has it.
    pub(super) consumed: Option<u32>,
}

/// The version of IP at a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    /// The length of its header without options, in bytes.
    const fn header_len(self) -> u16 {
        match self {
            Self::Ipv4 => 20,
            Self::Ipv6 => 40,
        }
    }
}

/// Loads the length of the IP and TCP headers together, in bytes. `data_offset` is the byte of the TCP header whose upper half is
/// that header's length, in words of 4 bytes.
fn load_header_len(w: &mut Writer, data_offset: &Expression, family: Family, into: Register) -> Result<(), Error> {
    w.load(data_offset, into)?;
    w.asm.alu(Alu::ShiftRight, into, 4);
    w.asm.alu(Alu::ShiftLeft, into, 2);
    w.asm.alu(Alu::Add, into, i32::from(family.header_len()));
    Ok(())
}
