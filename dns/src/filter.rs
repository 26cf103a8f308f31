//! The kernel's part: a classic BPF program that lets only DNS through.
//!
//! It runs for every packet of the host, so what is most common is decided first. Packets come without their
//! link-layer header; a VLAN tag is usually beside the packet (where the program needs not look), but the tags of a
//! doubly tagged frame, and of a frame that leaves through a device that does not tag for itself, are within it.

use std::collections::HashMap;

use crate::frame::{IPV4, IPV6, SERVICE_VLAN, VLAN};
use crate::sys;

/// One instruction, as in `struct sock_filter` (linux/filter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    /// How many instructions to leave out if the condition holds.
    pub(crate) then: u8,
    /// How many if not.
    pub(crate) otherwise: u8,
    pub(crate) value: u32,
}

/// Operations (linux/bpf_common.h). A is the accumulator, X the index register, k the instruction's value.
mod op {
    /// A = 16 bits at k.
    pub(super) const LOAD_HALF: u16 = 0x28;
    /// A = 8 bits at k.
    pub(super) const LOAD_BYTE: u16 = 0x30;
    /// A = 32 bits at k. Negative places hold what the kernel knows besides the bytes.
    pub(super) const LOAD_WORD: u16 = 0x20;
    /// A = 16 bits at X + k.
    pub(super) const LOAD_HALF_AT_X: u16 = 0x48;
    /// A = 8 bits at X + k.
    pub(super) const LOAD_BYTE_AT_X: u16 = 0x50;
    /// X = 4 * (the low 4 bits at k): the length of an IPv4 header.
    pub(super) const LOAD_X_HEADER: u16 = 0xb1;
    /// X = k.
    pub(super) const LOAD_X: u16 = 0x01;
    /// A = memory word k.
    pub(super) const RECALL: u16 = 0x60;
    /// Memory word k = A.
    pub(super) const STORE: u16 = 0x02;
    /// A += k.
    pub(super) const ADD: u16 = 0x04;
    /// A += X.
    pub(super) const ADD_X: u16 = 0x0c;
    /// A &= k.
    pub(super) const AND: u16 = 0x54;
    /// A <<= k.
    pub(super) const SHIFT_LEFT: u16 = 0x64;
    /// X = A.
    pub(super) const A_TO_X: u16 = 0x07;
    /// A = X.
    pub(super) const X_TO_A: u16 = 0x87;
    /// If A == k.
    pub(super) const JUMP_EQUAL: u16 = 0x15;
    /// If A & k.
    pub(super) const JUMP_SET: u16 = 0x45;
    /// Go on k instructions later.
    pub(super) const JUMP: u16 = 0x05;
    /// Done: k bytes of the packet are wanted.
    pub(super) const RETURN: u16 = 0x06;
}

/// Bytes of a TCP packet that are wanted: all.
const WHOLE: u32 = 0x4_0000;

/// The memory word that keeps the transport.
const TRANSPORT: u32 = 0;
/// The memory word that keeps the next header while X moves.
const NEXT: u32 = 1;

const TCP: u32 = 6;
const UDP: u32 = 17;

/// IPv6 extension headers that are followed here; packets with more of them are not seen.
const MOST_EXTENSIONS: usize = 3;

/// A place in the program.
type Label = String;

/// Collects instructions; labels become distances at the end. All jumps go forward.
#[derive(Debug, Default)]
struct Assembler {
    lines: Vec<(Instruction, Option<Label>)>,
    labels: HashMap<Label, usize>,
}

impl Assembler {
    fn put(&mut self, code: u16, value: u32) {
        self.lines.push((Instruction { code, then: 0, otherwise: 0, value }, None));
    }

    /// Goes to the label if the condition holds.
    fn branch(&mut self, code: u16, value: u32, label: &str) {
        self.lines.push((Instruction { code, then: 0, otherwise: 0, value }, Some(label.to_owned())));
    }

    fn jump(&mut self, label: &str) {
        self.branch(op::JUMP, 0, label);
    }

    /// The next instruction has this name.
    fn label(&mut self, label: &str) {
        let before = self.labels.insert(label.to_owned(), self.lines.len());
        assert!(before.is_none(), "the label {label} is there twice");
    }

    fn finish(self) -> Vec<Instruction> {
        let Self { lines, labels } = self;
        let resolve = |(at, (mut instruction, label)): (usize, (Instruction, Option<Label>))| {
            if let Some(label) = label {
                let distance = labels[&label] - at - 1;
                match instruction.code {
                    op::JUMP => instruction.value = u32::try_from(distance).expect("programs are short"),
                    _ => instruction.then = u8::try_from(distance).expect("conditional jumps are short"),
                }
            }
            instruction
        };
        lines.into_iter().enumerate().map(resolve).collect()
    }
}

/// The program: UDP packets with one of the ports, cut at `snaplen`, TCP packets with one of them whole, nothing else.
///
/// What goes over a loopback device passes twice, when it leaves and when it arrives: only the arrival counts.
pub(crate) fn program(ports: &[u16], snaplen: u32) -> Vec<Instruction> {
    let mut asm = Assembler::default();
    asm.put(op::LOAD_WORD, sys::ANCILLARY_PROTOCOL);
    asm.branch(op::JUMP_EQUAL, IPV4.into(), "ipv4 at 0");
    asm.branch(op::JUMP_EQUAL, IPV6.into(), "ipv6 at 0");
    asm.branch(op::JUMP_EQUAL, VLAN.into(), "tagged");
    asm.branch(op::JUMP_EQUAL, SERVICE_VLAN.into(), "tagged");
    asm.put(op::RETURN, 0);
    tagged(&mut asm);
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

/// The ethertype says VLAN. There may be one tag at 0, two, or (the tag having gone with the link-layer header) none.
fn tagged(asm: &mut Assembler) {
    asm.label("tagged");
    asm.put(op::LOAD_HALF, 2);
    asm.branch(op::JUMP_EQUAL, IPV4.into(), "maybe ipv4 at 4");
    asm.branch(op::JUMP_EQUAL, IPV6.into(), "maybe ipv6 at 4");
    asm.branch(op::JUMP_EQUAL, VLAN.into(), "maybe two tags");
    asm.jump("maybe no tag");
    for (label, place, version, target) in [
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
        load_version(asm, place);
        asm.branch(op::JUMP_EQUAL, version, target);
        asm.jump("maybe no tag");
    }
    asm.label("maybe no tag");
    load_version(asm, 0);
    asm.branch(op::JUMP_EQUAL, 0x40, "ipv4 at 0");
    asm.branch(op::JUMP_EQUAL, 0x60, "ipv6 at 0");
    asm.put(op::RETURN, 0);
}

fn load_version(asm: &mut Assembler, place: u32) {
    asm.put(op::LOAD_BYTE, place);
    asm.put(op::AND, 0xf0);
}

/// An IPv6 header at `base`: X becomes the place behind it, A what follows.
fn ipv6(asm: &mut Assembler, base: u32) {
    asm.label(&format!("ipv6 at {base}"));
    asm.put(op::LOAD_X, base + 40);
    asm.put(op::LOAD_BYTE, base + 6);
    if base != 0 {
        asm.jump("extensions");
    }
}

/// Follows extension headers (RFC 8200, section 4): A is the type of what lies at X.
fn extensions(asm: &mut Assembler) {
    asm.label("extensions");
    for turn in 0..=MOST_EXTENSIONS {
        asm.branch(op::JUMP_EQUAL, UDP, "transport");
        asm.branch(op::JUMP_EQUAL, TCP, "transport");
        if turn < MOST_EXTENSIONS {
            extension(asm, turn);
        }
    }
    asm.put(op::RETURN, 0);
}

/// Passes over one extension header.
fn extension(asm: &mut Assembler, turn: usize) {
    let [fragment, options, end] = ["fragment", "options", "next"].map(|label| format!("{label} {turn}"));
    asm.branch(op::JUMP_EQUAL, 44, &fragment);
    for header in [0, 43, 60] {
        asm.branch(op::JUMP_EQUAL, header, &options);
    }
    asm.put(op::RETURN, 0);

    asm.label(&fragment);
    asm.put(op::LOAD_HALF_AT_X, 2);
    asm.branch(op::JUMP_SET, 0xfff8, "drop early");
    asm.put(op::LOAD_BYTE_AT_X, 0);
    asm.put(op::STORE, NEXT);
    asm.put(op::X_TO_A, 0);
    asm.put(op::ADD, 8);
    asm.jump(&end);

    asm.label(&options);
    asm.put(op::LOAD_BYTE_AT_X, 0);
    asm.put(op::STORE, NEXT);
    asm.put(op::LOAD_BYTE_AT_X, 1);
    asm.put(op::ADD, 1);
    asm.put(op::SHIFT_LEFT, 3);
    asm.put(op::ADD_X, 0);

    asm.label(&end);
    asm.put(op::A_TO_X, 0);
    asm.put(op::RECALL, NEXT);
}

/// An IPv4 header at `base`: X becomes the place behind it, A its protocol.
fn ipv4(asm: &mut Assembler, base: u32) {
    if base == 8 {
        asm.label("drop early");
        asm.put(op::RETURN, 0);
    }
    asm.label(&format!("ipv4 at {base}"));
    asm.put(op::LOAD_HALF, base + 6);
    // Only the first fragment has ports.
    asm.branch(op::JUMP_SET, 0x1fff, "drop");
    asm.put(op::LOAD_X_HEADER, base);
    if base != 0 {
        asm.put(op::X_TO_A, 0);
        asm.put(op::ADD, base);
        asm.put(op::A_TO_X, 0);
    }
    asm.put(op::LOAD_BYTE, base + 9);
    if base != 0 {
        asm.jump("protocol");
    }
}

/// A transport header at X, its protocol in A: one of its ports must be one of ours.
fn matching_ports(asm: &mut Assembler, ports: &[u16]) {
    asm.label("protocol");
    asm.branch(op::JUMP_EQUAL, UDP, "transport");
    asm.branch(op::JUMP_EQUAL, TCP, "transport");
    asm.put(op::RETURN, 0);
    asm.label("transport");
    asm.put(op::STORE, TRANSPORT);
    for place in [0, 2] {
        asm.put(op::LOAD_HALF_AT_X, place);
        for &port in ports {
            asm.branch(op::JUMP_EQUAL, port.into(), "accept");
        }
    }
    // Nothing jumps here: the kernel does not see that no way leads from a return to what follows, and would not
    // believe that the transport is known there.
    asm.put(op::RETURN, 0);
}

fn accept(asm: &mut Assembler, snaplen: u32) {
    asm.label("accept");
    asm.put(op::LOAD_WORD, sys::ANCILLARY_PACKET_TYPE);
    asm.branch(op::JUMP_EQUAL, sys::OUTGOING, "leaving");
    asm.put(op::RECALL, TRANSPORT);
    asm.branch(op::JUMP_EQUAL, TCP, "whole");
    asm.put(op::RETURN, snaplen);

    asm.label("leaving");
    asm.put(op::LOAD_WORD, sys::ANCILLARY_DEVICE_TYPE);
    asm.branch(op::JUMP_EQUAL, sys::LOOPBACK, "drop");
    asm.put(op::RECALL, TRANSPORT);
    asm.branch(op::JUMP_EQUAL, TCP, "whole");
    asm.put(op::RETURN, snaplen);

    asm.label("drop");
    asm.put(op::RETURN, 0);
    asm.label("whole");
    asm.put(op::RETURN, WHOLE);
}

#[cfg(test)]
mod tests;
