//! Programs that count packets in the kernel, so that only packets that say something new become samples.
//!
//! Each packet probe has a program, made from the declaration of the probe's sample. It keeps an [entry](entry::Entry) for each
//! socket, with the packets and bytes of its conversation, and lets a hit become a sample
//!
//! - if the conversation has no entry yet: it makes one;
//! - if it is the first of its direction, or the first after `flow_inactive_timeout` without packets;
//! - if it has SYN, FIN or RST, or cannot be counted for certain: IP options, fragments, joined datagrams, other ends than the
//!   entry's.
//!
//! All other packets are counted, and their hits end there. Before it lets a hit become a sample, the program writes the entry
//! into the ring, if it has counted anything; so does the program at the probe where the socket ends, which removes the entry.
//! So the state machine learns of silent packets in their order. In between it looks entries up.
//!
//! TCP is counted as `state/counting.rs` does it. There, packets that arrive are found by their ends. Here, they are found by
//! the socket that early demultiplexing has found, or by a second map from ends to sockets.

mod entry;
mod fields;
mod kernel;
mod programs;
mod selection;
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

pub(super) use self::entry::of_record;
pub(crate) use self::kernel::{Conversations, Unaccounted};
use self::writer::Writer;

/// `IPPROTO_TCP`
const TCP: u16 = 6;
/// TCP's flag of the first packet of a connection.
const SYN: i32 = 0x02;
/// FIN, SYN, RST: packets with one of these are always sampled.
const WITH_SAMPLE: i32 = 0x01 | SYN | 0x04;
/// A counter that has grown by this much or more between two packets is another socket's: see `state/counting.rs`.
const MAX_STEP: i32 = 1 << 16;

/// What to count in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// A flow ends after this time without traffic.
    pub inactive: Duration,
    /// The maximum number of conversations. Each takes about 400 bytes of the kernel's memory.
    pub conversations: u32,
}

/// What the programs decide by.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// After this many nanoseconds without a packet, the next one is sampled.
    pub(super) inactive_nanos: u64,
    /// See [`SourceCapabilities::gso_head_len`](crate::model::event::SourceCapabilities::gso_head_len).
    pub(super) gso_head_len: u32,
    /// Which packets are wanted.
    pub(super) filter: Filter,
}

/// The version of IP at a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    /// The length of its header without options, in bytes.
    const fn header(self) -> u16 {
        match self {
            Self::Ipv4 => 20,
            Self::Ipv6 => 40,
        }
    }
}

/// Loads the length of IP and TCP header in bytes. `offset` is the byte whose upper half is the length of the TCP header, in
/// words of 4 bytes.
fn load_headers(w: &mut Writer, offset: &Expression, family: Family, into: Register) -> Result<(), Error> {
    w.load(offset, into)?;
    w.asm.alu(Alu::ShiftRight, into, 4);
    w.asm.alu(Alu::ShiftLeft, into, 2);
    w.asm.alu(Alu::Add, into, i32::from(family.header()));
    Ok(())
}
