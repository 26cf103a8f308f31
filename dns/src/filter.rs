//! The filter of the packet socket: a classic BPF program that accepts only packets with DNS ports.
//!
//! The kernel runs it for every packet of the host, so it checks the most common cases first. Packets come without
//! their link-layer header. The kernel usually keeps a VLAN tag in the packet's metadata, but not always: the inner tag
//! of a frame with two tags is in the packet's bytes, and so is the tag of a packet that leaves through a device that
//! does not insert tags itself.

use std::collections::HashMap;

use crate::packet::{IPV4, IPV6, QINQ, VLAN};
use crate::sys;

/// An instruction, with the fields of `struct sock_filter` (linux/filter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    /// How many instructions to skip if the condition of a conditional jump holds.
    pub(crate) jt: u8,
    /// How many to skip if it does not.
    pub(crate) jf: u8,
    /// The operand.
    pub(crate) k: u32,
}

/// Operation codes (linux/bpf_common.h). A is the accumulator, X the index register, k the operand.
mod op {
    /// A = 16 bits at k.
    pub(super) const LOAD_HALF: u16 = 0x28;
    /// A = 8 bits at k.
    pub(super) const LOAD_BYTE: u16 = 0x30;
    /// A = 32 bits at k. Negative offsets are those of the packet's metadata.
    pub(super) const LOAD_WORD: u16 = 0x20;
    /// A = 16 bits at X + k.
    pub(super) const LOAD_HALF_AT_X: u16 = 0x48;
    /// A = 8 bits at X + k.
    pub(super) const LOAD_BYTE_AT_X: u16 = 0x50;
    /// X = 4 * (the low 4 bits at k), the length of an IPv4 header at k.
    pub(super) const LOAD_X_IPV4_HEADER_LENGTH: u16 = 0xb1;
    /// X = k.
    pub(super) const LOAD_X: u16 = 0x01;
    /// A = memory word k.
    pub(super) const LOAD_MEMORY: u16 = 0x60;
    /// Memory word k = A.
    pub(super) const STORE_MEMORY: u16 = 0x02;
    /// A += k.
    pub(super) const ADD: u16 = 0x04;
    /// A += X.
    pub(super) const ADD_X: u16 = 0x0c;
    /// A &= k.
    pub(super) const AND: u16 = 0x54;
    /// A <<= k.
    pub(super) const SHIFT_LEFT: u16 = 0x64;
    /// X = A.
    pub(super) const TAX: u16 = 0x07;
    /// A = X.
    pub(super) const TXA: u16 = 0x87;
    /// If A == k.
    pub(super) const JUMP_EQUAL: u16 = 0x15;
    /// If A & k.
    pub(super) const JUMP_SET: u16 = 0x45;
    /// Skip k instructions.
    pub(super) const JUMP: u16 = 0x05;
    /// Accept k bytes of the packet; 0 drops it.
    pub(super) const RETURN: u16 = 0x06;
}

/// The operand of a return that accepts all bytes of a packet.
const WHOLE_PACKET: u32 = 0x4_0000;

/// The memory word that holds the transport protocol.
const TRANSPORT: u32 = 0;
/// The memory word that holds the type of the next header while X changes.
const NEXT: u32 = 1;

/// Protocols and IPv6 extension headers (IANA's protocol numbers).
const TCP: u32 = 6;
const UDP: u32 = 17;
const HOP_BY_HOP_OPTIONS: u32 = 0;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const DESTINATION_OPTIONS: u32 = 60;

/// The most IPv6 extension headers that are skipped. Packets with more of them are dropped.
const MAX_EXTENSION_HEADERS: usize = 3;

/// The name of a position in the program.
type Label = String;

/// An instruction, and the label that it jumps to.
#[derive(Debug)]
struct Line {
    instruction: Instruction,
    target: Option<Label>,
}

/// Collects instructions, and resolves labels to distances at the end. All jumps go forward, as classic BPF requires.
#[derive(Debug, Default)]
struct Assembler {
    lines: Vec<Line>,
    labels: HashMap<Label, usize>,
}

impl Assembler {
    fn put(&mut self, code: u16, k: u32) {
        self.lines.push(Line { instruction: Instruction { code, jt: 0, jf: 0, k }, target: None });
    }

    /// Jumps to the label if the condition holds.
    fn branch(&mut self, code: u16, k: u32, label: &str) {
        let instruction = Instruction { code, jt: 0, jf: 0, k };
        self.lines.push(Line { instruction, target: Some(label.to_owned()) });
    }

    fn jump(&mut self, label: &str) {
        self.branch(op::JUMP, 0, label);
    }

    /// Names the position of the next instruction.
    fn label(&mut self, label: &str) {
        let before = self.labels.insert(label.to_owned(), self.lines.len());
        assert!(before.is_none(), "the label {label} is defined twice");
    }

    fn finish(self) -> Vec<Instruction> {
        let Self { lines, labels } = self;
        let resolve = |(at, Line { mut instruction, target }): (usize, Line)| {
            if let Some(target) = target {
                let distance = labels[&target] - at - 1;
                match instruction.code {
                    op::JUMP => instruction.k = u32::try_from(distance).expect("programs are short"),
                    _ => instruction.jt = u8::try_from(distance).expect("conditional jumps are short"),
                }
            }
            instruction
        };
        lines.into_iter().enumerate().map(resolve).collect()
    }
}

/// A program that accepts `snaplen` bytes of UDP packets with one of the ports, all bytes of TCP packets with one of
/// the ports, and no other packets.
///
/// A packet over a loopback device would be captured twice, when it leaves and when it arrives. The program drops it when
/// it leaves.
pub(crate) fn program(ports: &[u16], snaplen: u32) -> Vec<Instruction> {
    let mut asm = Assembler::default();
    asm.put(op::LOAD_WORD, sys::ANCILLARY_PROTOCOL);
    asm.branch(op::JUMP_EQUAL, IPV4.into(), "ipv4 at 0");
    asm.branch(op::JUMP_EQUAL, IPV6.into(), "ipv6 at 0");
    asm.branch(op::JUMP_EQUAL, VLAN.into(), "tagged");
    asm.branch(op::JUMP_EQUAL, QINQ.into(), "tagged");
    asm.put(op::RETURN, 0);
    vlan_tags(&mut asm);
    for base in [8, 4, 0] {
        ipv6(&mut asm, base);
    }
    extensions(&mut asm);
    for base in [8, 4, 0] {
        ipv4(&mut asm, base);
    }
    matching_ports(&mut asm, ports);
    accept(&mut asm, snaplen);
    asm.finish()
}

/// Finds the IP header of a packet whose ethertype is that of a VLAN tag. The packet may begin with one tag, with two,
/// or with none, because the kernel may have removed the tag with the link-layer header.
fn vlan_tags(asm: &mut Assembler) {
    asm.label("tagged");
    asm.put(op::LOAD_HALF, 2);
    asm.branch(op::JUMP_EQUAL, IPV4.into(), "maybe ipv4 at 4");
    asm.branch(op::JUMP_EQUAL, IPV6.into(), "maybe ipv6 at 4");
    asm.branch(op::JUMP_EQUAL, VLAN.into(), "maybe two tags");
    asm.jump("maybe no tag");
    for (label, offset, version, target) in [
        ("maybe ipv4 at 4", 4, 0x40, "ipv4 at 4"),
        ("maybe ipv6 at 4", 4, 0x60, "ipv6 at 4"),
        ("maybe ipv4 at 8", 8, 0x40, "ipv4 at 8"),
        ("maybe ipv6 at 8", 8, 0x60, "ipv6 at 8"),
    ] {
        if label == "maybe ipv4 at 8" {
            asm.label("maybe two tags");
            asm.put(op::LOAD_HALF, 6);
            asm.branch(op::JUMP_EQUAL, IPV4.into(), "maybe ipv4 at 8");
            asm.branch(op::JUMP_EQUAL, IPV6.into(), "maybe ipv6 at 8");
            asm.jump("maybe no tag");
        }
        asm.label(label);
        load_version(asm, offset);
        asm.branch(op::JUMP_EQUAL, version, target);
        asm.jump("maybe no tag");
    }
    asm.label("maybe no tag");
    load_version(asm, 0);
    asm.branch(op::JUMP_EQUAL, 0x40, "ipv4 at 0");
    asm.branch(op::JUMP_EQUAL, 0x60, "ipv6 at 0");
    asm.put(op::RETURN, 0);
}

fn load_version(asm: &mut Assembler, offset: u32) {
    asm.put(op::LOAD_BYTE, offset);
    asm.put(op::AND, 0xf0);
}

/// Reads an IPv6 header at `base`: sets X to the offset after it, and A to the type of the next header.
fn ipv6(asm: &mut Assembler, base: u32) {
    asm.label(&format!("ipv6 at {base}"));
    asm.put(op::LOAD_X, base + 40);
    asm.put(op::LOAD_BYTE, base + 6);
    if base != 0 {
        asm.jump("extensions");
    }
}

/// Skips extension headers (RFC 8200, section 4). A is the type of the header at X.
fn extensions(asm: &mut Assembler) {
    asm.label("extensions");
    for number in 0..=MAX_EXTENSION_HEADERS {
        asm.branch(op::JUMP_EQUAL, UDP, "transport");
        asm.branch(op::JUMP_EQUAL, TCP, "transport");
        if number < MAX_EXTENSION_HEADERS {
            extension(asm, number);
        }
    }
    asm.put(op::RETURN, 0);
}

/// Skips one extension header.
fn extension(asm: &mut Assembler, number: usize) {
    let [fragment, options, end] = ["fragment", "options", "end"].map(|label| format!("{label} {number}"));
    asm.branch(op::JUMP_EQUAL, FRAGMENT, &fragment);
    for header in [HOP_BY_HOP_OPTIONS, ROUTING, DESTINATION_OPTIONS] {
        asm.branch(op::JUMP_EQUAL, header, &options);
    }
    asm.put(op::RETURN, 0);

    asm.label(&fragment);
    asm.put(op::LOAD_HALF_AT_X, 2);
    // Later fragments have no ports.
    asm.branch(op::JUMP_SET, 0xfff8, "drop");
    asm.put(op::LOAD_BYTE_AT_X, 0);
    asm.put(op::STORE_MEMORY, NEXT);
    asm.put(op::TXA, 0);
    asm.put(op::ADD, 8);
    asm.jump(&end);

    asm.label(&options);
    asm.put(op::LOAD_BYTE_AT_X, 0);
    asm.put(op::STORE_MEMORY, NEXT);
    asm.put(op::LOAD_BYTE_AT_X, 1);
    asm.put(op::ADD, 1);
    asm.put(op::SHIFT_LEFT, 3);
    asm.put(op::ADD_X, 0);

    asm.label(&end);
    asm.put(op::TAX, 0);
    asm.put(op::LOAD_MEMORY, NEXT);
}

/// Reads an IPv4 header at `base`: sets X to the offset after it, and A to its protocol.
fn ipv4(asm: &mut Assembler, base: u32) {
    asm.label(&format!("ipv4 at {base}"));
    asm.put(op::LOAD_HALF, base + 6);
    // Later fragments have no ports.
    asm.branch(op::JUMP_SET, 0x1fff, "drop");
    asm.put(op::LOAD_X_IPV4_HEADER_LENGTH, base);
    if base != 0 {
        asm.put(op::TXA, 0);
        asm.put(op::ADD, base);
        asm.put(op::TAX, 0);
    }
    asm.put(op::LOAD_BYTE, base + 9);
    if base != 0 {
        asm.jump("protocol");
    }
}

/// Reads the transport header at X, whose protocol is in A: one of its ports must be a DNS port.
fn matching_ports(asm: &mut Assembler, ports: &[u16]) {
    asm.label("protocol");
    asm.branch(op::JUMP_EQUAL, UDP, "transport");
    asm.branch(op::JUMP_EQUAL, TCP, "transport");
    asm.put(op::RETURN, 0);
    asm.label("transport");
    asm.put(op::STORE_MEMORY, TRANSPORT);
    for offset in [0, 2] {
        asm.put(op::LOAD_HALF_AT_X, offset);
        for &port in ports {
            asm.branch(op::JUMP_EQUAL, port.into(), "accept");
        }
    }
    // No jump may lead to this return. The kernel checks that every memory word is stored before it is loaded, and its
    // check goes on from a return to the next instruction. It would reject the program if this return were reached from
    // where the transport is not stored yet.
    asm.put(op::RETURN, 0);
}

fn accept(asm: &mut Assembler, snaplen: u32) {
    asm.label("accept");
    asm.put(op::LOAD_WORD, sys::ANCILLARY_PACKET_TYPE);
    asm.branch(op::JUMP_EQUAL, sys::OUTGOING, "leaving");
    asm.put(op::LOAD_MEMORY, TRANSPORT);
    asm.branch(op::JUMP_EQUAL, TCP, "whole");
    asm.put(op::RETURN, snaplen);

    asm.label("leaving");
    asm.put(op::LOAD_WORD, sys::ANCILLARY_DEVICE_TYPE);
    asm.branch(op::JUMP_EQUAL, sys::LOOPBACK, "drop");
    asm.put(op::LOAD_MEMORY, TRANSPORT);
    asm.branch(op::JUMP_EQUAL, TCP, "whole");
    asm.put(op::RETURN, snaplen);

    asm.label("drop");
    asm.put(op::RETURN, 0);
    asm.label("whole");
    asm.put(op::RETURN, WHOLE_PACKET);
}

#[cfg(test)]
mod tests;
