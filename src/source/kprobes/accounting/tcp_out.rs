//! The accounting of outgoing TCP packets: as `state/counting.rs` does it from samples.
//!
//! Packets of one socket leave one after the other, because its lock is held. Packets may arrive at the same time on other CPUs.

use socktrail_kprobes::bpf::Register::*;
use socktrail_kprobes::bpf::{Alu, Condition, Label, Register, Width};
use socktrail_kprobes::{Error, Expression, Type};

use super::entry::{DirectionFields, offset};
use super::fields::{Ends, Fields};
use super::table::ENTRY;
use super::writer::{NOW, Writer};
use super::{ALWAYS_SAMPLED, Family, Rules, TCP};
use crate::model::event::PacketDirection;
use crate::model::totals::MAX_SEGMENT_GROWTH;

/// The phase in which the socket's segment counters are read.
pub(super) const COUNTERS: u8 = 1;
/// The phase in which the socket's own ends are read.
pub(super) const OWN_ENDS: u8 = 2;
/// States of sockets that have only the first fields of a `struct sock` (`include/net/tcp_states.h`).
const TCP_TIME_WAIT: i32 = 6;
const TCP_NEW_SYN_RECV: i32 = 12;
/// The number of segments of the packet, while it is counted.
const SEGMENTS: Register = R9;

/// What a program reads of an outgoing TCP packet.
pub(super) struct Leaving {
    family: Family,
    sock: Expression,
    net: Expression,
    pub(super) ends: Ends,
    /// The length of the packet in bytes: from the IP header on, or over IPv6, where there is no IP header yet, from the TCP
    /// header on.
    len: Expression,
    /// The byte of the TCP header that contains its length.
    data_offset: Expression,
    flags: Expression,
    segs_in: Expression,
    segs_out: Expression,
    state: Expression,
    /// The fields of the remote end: in the packet's headers, and in the `struct sock`.
    remote: Vec<(Expression, Expression)>,
}

impl Leaving {
    /// The fields of a packet at this probe.
    ///
    /// # Errors
    /// The layout does not have a field.
    pub(super) fn at(fields: &Fields<'_>, family: Family) -> Result<Self, Error> {
        let ends = Ends::of(fields, family, PacketDirection::Outbound, TCP)?;
        let (len, tcp, remote) = match family {
            Family::Ipv4 => {
                let address = (fields.part("addresses", 4, Type::U32)?, fields.of_sock("daddr")?);
                let port = (fields.part("behind", 2, Type::U16)?, fields.of_sock("dport")?);
                (fields.part("lengths", 0, Type::U32)?, ("further_behind", 4), vec![address, port])
            }
            Family::Ipv6 => {
                let high = (fields.get("destination_high")?, fields.of_sock("v6_daddr_high")?);
                let low = (fields.get("destination_low")?, fields.of_sock("v6_daddr_low")?);
                let port = (fields.part("ports", 2, Type::U16)?, fields.of_sock("dport")?);
                (fields.get("len")?, ("tcp", 0), vec![high, low, port])
            }
        };
        Ok(Self {
            family,
            sock: fields.get("sk")?,
            net: fields.get("net")?,
            ends,
            len,
            data_offset: fields.part(tcp.0, tcp.1, Type::U8)?,
            flags: fields.part(tcp.0, tcp.1 + 1, Type::U8)?,
            segs_in: fields.get("segs_in")?,
            segs_out: fields.get("segs_out")?,
            state: fields.sender_state()?,
            remote,
        })
    }

    /// The fields that a program has to read, each in its phase.
    pub(super) fn reads(&self) -> impl Iterator<Item = (u8, &Expression)> {
        let of_headers = [&self.sock, &self.len, &self.data_offset, &self.flags].into_iter();
        let of_headers = of_headers.chain(self.ends.pieces.iter().map(|piece| &piece.field)).map(|field| (0, field));
        let counters = [(COUNTERS, &self.segs_in), (COUNTERS, &self.segs_out)];
        let own_ends =
            self.remote.iter().map(|(_, own)| (OWN_ENDS, own)).chain([(OWN_ENDS, &self.net), (OWN_ENDS, &self.state)]);
        of_headers.chain(counters).chain(own_ends)
    }

    /// Counts the packet or lets it become a sample. Its IP header must have no options.
    pub(super) fn account(&self, w: &mut Writer, rules: &Rules) -> Result<(), Error> {
        let direction = DirectionFields::of(PacketDirection::Outbound);
        let (new, report_and_sample, paused, stale) = (w.asm.label(), w.asm.label(), w.asm.label(), w.asm.label());
        w.filter_ports(&self.ends, &rules.filter)?;
        w.set_key_to(&self.sock)?;
        w.look_up(new);
        // If the ends differ, the entry is that of an earlier socket with this address, whose end was not seen.
        w.jump_if_other_ends(&self.ends, stale)?;
        // `segs_in` must be read before `expected_segs_in`: an arriving packet raises `expected_segs_in` first. In the other
        // order, a packet that arrives in between would seem to be missing.
        w.read(COUNTERS)?;
        w.read_time();
        w.load(&self.flags, R1)?;
        w.asm.jump_if(Condition::AnyBit, R1, ALWAYS_SAMPLED, report_and_sample);
        w.jump_after_pause(rules.pause_nanos, paused);
        w.load_of_entry(Width::Byte, R1, direction.seen);
        w.asm.jump_if(Condition::Equal, R1, 0, report_and_sample);
        self.load_segments(w, report_and_sample)?;
        self.settle(w, report_and_sample)?;
        self.count(w, direction)?;
        w.note_time();
        w.end_without_sample();

        w.asm.bind(stale);
        w.read_time();
        w.remove();
        w.asm.jump(w.sample);

        w.asm.bind(paused);
        w.forget_seen();
        w.asm.bind(report_and_sample);
        w.report();
        self.take_as_counted(w)?;
        w.note_sampled(direction);
        w.asm.jump(w.sample);
        self.begin(w, new, direction)
    }

    /// Loads into `SEGMENTS` how many segments the socket has sent since its last outgoing packet. If the number is implausible,
    /// the packet becomes a sample.
    fn load_segments(&self, w: &mut Writer, report_and_sample: Label) -> Result<(), Error> {
        w.load(&self.segs_out, SEGMENTS)?;
        w.load_of_entry(Width::Word, R1, offset!(segs_out));
        w.asm.alu32(Alu::Sub, SEGMENTS, R1);
        w.asm.jump_if(Condition::GreaterOrEqual, SEGMENTS, MAX_SEGMENT_GROWTH as i32, report_and_sample);
        Ok(())
    }

    /// Loads into `missing` how many segments the socket has received that no packet has shown. Continues at `none` if there are
    /// none, or implausibly many.
    fn load_missing(&self, w: &mut Writer, missing: Register, none: Label) -> Result<(), Error> {
        w.load(&self.segs_in, missing)?;
        w.load_of_entry(Width::Word, R0, offset!(expected_segs_in));
        w.asm.alu32(Alu::Sub, missing, R0);
        w.asm.jump_if(Condition::Equal, missing, 0, none);
        w.asm.jump_if(Condition::GreaterOrEqual, missing, MAX_SEGMENT_GROWTH as i32, none);
        Ok(())
    }

    /// Raises the count of received segments to the socket's own count, so that merged segments are counted.
    fn settle(&self, w: &mut Writer, report_and_sample: Label) -> Result<(), Error> {
        let direction = DirectionFields::of(PacketDirection::Inbound);
        let settled = w.asm.label();
        self.load_missing(w, R2, settled)?;
        w.load_of_entry(Width::Half, R3, offset!(received_headers));
        // No header length is known here, but the state machine may know one from earlier samples.
        w.asm.jump_if(Condition::Equal, R3, 0, report_and_sample);
        w.asm.alu(Alu::Mul, R3, R2);
        // Not a store: another packet may be arriving. This comes first, as in the program of arriving packets.
        w.asm.atomic_add(ENTRY, offset!(expected_segs_in), R2);
        w.asm.atomic_add(ENTRY, direction.bytes, R3);
        w.asm.atomic_add(ENTRY, direction.packets, R2);
        w.asm.atomic_add(ENTRY, offset!(merged), R2);
        w.load_of_entry(Width::Half, R3, offset!(shortest_headers));
        w.load_of_entry(Width::Half, R4, offset!(longest_headers));
        w.asm.jump_if(Condition::Equal, R3, R4, settled);
        w.load_of_entry(Width::Word, R3, offset!(merged_unsure));
        w.asm.alu(Alu::Add, R3, R2);
        w.store_in_entry(Width::Word, offset!(merged_unsure), R3);
        w.asm.bind(settled);
        Ok(())
    }

    /// Begins a new comparison: notes the segments sent so far, and that no packet has arrived since.
    fn note_counters(&self, w: &mut Writer) -> Result<(), Error> {
        w.load(&self.segs_out, R1)?;
        w.store_in_entry(Width::Word, offset!(segs_out), R1);
        // One store clears `shortest_headers` and `longest_headers`.
        w.store_in_entry(Width::Word, offset!(shortest_headers), 0);
        Ok(())
    }

    /// Counts the packet with its further segments, each of which repeats the headers.
    fn count(&self, w: &mut Writer, direction: DirectionFields) -> Result<(), Error> {
        let (not_zero, single) = (w.asm.label(), w.asm.label());
        self.note_counters(w)?;
        // If `segs_out` has not grown, the packet counts as one segment.
        w.asm.jump_if(Condition::NotEqual, SEGMENTS, 0, not_zero);
        w.asm.mov(SEGMENTS, 1);
        w.asm.bind(not_zero);
        super::load_header_len(w, &self.data_offset, self.family, R3)?;
        w.load(&self.len, R4)?;
        if self.family == Family::Ipv6 {
            w.asm.alu(Alu::Add, R4, i32::from(self.family.header_len()));
        }
        w.store_in_entry(Width::Half, offset!(last_sent_headers), R3);
        w.store_in_entry(Width::Word, offset!(last_sent_bytes), R4);
        w.store_in_entry(Width::Half, offset!(last_sent_segments), SEGMENTS);
        w.asm.atomic_add(ENTRY, direction.packets, SEGMENTS);
        w.asm.atomic_add(ENTRY, direction.bytes, R4);
        w.asm.jump_if(Condition::Equal, SEGMENTS, 1, single);
        w.asm.mov(R1, SEGMENTS);
        w.asm.alu(Alu::Sub, R1, 1);
        w.asm.alu(Alu::Mul, R1, R3);
        w.asm.atomic_add(ENTRY, direction.bytes, R1);
        note_full_payload(w);
        w.asm.bind(single);
        Ok(())
    }

    /// The packet becomes a sample, and the state machine counts its segments and the missing ones. So they are taken as counted
    /// here.
    fn take_as_counted(&self, w: &mut Writer) -> Result<(), Error> {
        let settled = w.asm.label();
        self.load_missing(w, R2, settled)?;
        w.asm.atomic_add(ENTRY, offset!(expected_segs_in), R2);
        w.asm.bind(settled);
        self.note_counters(w)
    }

    /// Makes the entry of a connection, at its first outgoing packet without SYN, FIN or RST. The packet's remote end must be
    /// that of the socket, because the kernel also sends packets of other conversations through sockets of its own.
    fn begin(&self, w: &mut Writer, new: Label, direction: DirectionFields) -> Result<(), Error> {
        w.asm.bind(new);
        w.load(&self.flags, R1)?;
        w.sample_if(Condition::AnyBit, R1, ALWAYS_SAMPLED);
        w.read(COUNTERS)?;
        w.read(OWN_ENDS)?;
        sample_unless_equal(w, &self.remote)?;
        sample_small_sockets(w, &self.state)?;
        w.hash(&self.ends)?;
        w.begin_entry(&self.sock, &self.ends, direction)?;
        w.load(&self.net, R1)?;
        w.store_in_entry(Width::Double, offset!(net), R1);
        w.load(&self.segs_out, R1)?;
        w.store_in_entry(Width::Word, offset!(segs_out), R1);
        w.load(&self.segs_in, R1)?;
        w.store_in_entry(Width::Double, offset!(expected_segs_in), R1);
        w.publish();
        w.publish_ends();
        w.asm.jump(w.sample);
        Ok(())
    }
}

/// Samples the packet unless its fields are equal to those of the socket beside them.
pub(super) fn sample_unless_equal<'a>(
    w: &mut Writer,
    pairs: impl IntoIterator<Item = &'a (Expression, Expression)>,
) -> Result<(), Error> {
    for (of_packet, of_socket) in pairs {
        w.load(of_packet, R2)?;
        w.load(of_socket, R3)?;
        w.sample_if(Condition::NotEqual, R2, R3);
    }
    Ok(())
}

/// Samples a packet of one of the small sockets of these states. Nothing shows when they end. Since Linux 6.13, replies are
/// sent through them.
pub(super) fn sample_small_sockets(w: &mut Writer, state: &Expression) -> Result<(), Error> {
    w.load(state, R1)?;
    for state in [TCP_TIME_WAIT, TCP_NEW_SYN_RECV] {
        w.sample_if(Condition::Equal, R1, state);
    }
    Ok(())
}

/// Notes the payload of a full segment. `R4` is the size of the packet, `R3` that of its headers. The last segment may be
/// shorter, so the others have at least the quotient of payload and segments, rounded up. Overwrites `R4` and `R5`.
fn note_full_payload(w: &mut Writer) {
    let done = w.asm.label();
    w.asm.jump_if(Condition::GreaterOrEqual, R3, R4, done);
    w.asm.alu(Alu::Sub, R4, R3);
    w.asm.alu(Alu::Add, R4, SEGMENTS);
    w.asm.alu(Alu::Sub, R4, 1);
    w.asm.alu(Alu::Div, R4, SEGMENTS);
    w.load_of_entry(Width::Word, R5, offset!(full_payload));
    w.asm.jump_if(Condition::GreaterOrEqual, R5, R4, done);
    w.store_in_entry(Width::Word, offset!(full_payload), R4);
    w.asm.bind(done);
}

// Calls of helpers overwrite R0 to R5, and the time must stay in its register.
const _: () = assert!(!matches!(NOW, R0 | R1 | R2 | R3 | R4 | R5));
