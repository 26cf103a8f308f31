//! The user's filter as instructions: the hits of rejected packets end before anything is counted or fetched.
//!
//! The state machine applies the same filter to the samples, so a program may accept more packets than the filter does.

use std::net::IpAddr;

use socktrail_kprobes::Error;
use socktrail_kprobes::bpf::Register::*;
use socktrail_kprobes::bpf::{Alu, Condition, Label, Width};

use super::fields::{Ends, Piece};
use super::writer::Writer;
use crate::model::filter::{Choice, Filter, Network};

/// The longest list that becomes instructions: each of its entries takes up to 13, in each program. Longer lists are left to
/// the state machine.
const MAX_LIST: usize = 32;
/// 127.0.0.1 twice, in memory order: both addresses of an IPv4 packet.
const LOOPBACK_IPV4: u64 = 0x0100_007f_0100_007f;
/// The second half of `::1`, in memory order.
const LOOPBACK_IPV6: u64 = 1 << 56;

impl Writer {
    /// Ends the program without a sample if the filter rejects the packet's addresses. Overwrites `R0` to `R3`.
    pub(super) fn filter_addresses(&mut self, ends: &Ends, filter: &Filter) -> Result<(), Error> {
        if filter.exclude_loopback {
            self.reject_loopback(ends)?;
        }
        let Some(networks) = that_fits(&filter.networks) else { return Ok(()) };
        self.remote_address(ends)?;
        self.end_unless(networks, |w, network, matches| w.jump_if_within(*network, ends.is_ipv4(), matches));
        Ok(())
    }

    /// Ends the program without a sample if the filter rejects the packet's ports. Its IP header must have no options. Overwrites
    /// `R0` to `R2`.
    pub(super) fn filter_ports(&mut self, ends: &Ends, filter: &Filter) -> Result<(), Error> {
        let Some(ports) = that_fits(&filter.ports) else { return Ok(()) };
        match ends.ports() {
            [both] => {
                self.load(&both.field, R1)?;
                self.asm.mov(R2, R1);
                self.asm.alu(Alu::And, R1, 0xffff);
                self.asm.alu(Alu::ShiftRight, R2, 16);
            }
            [one, other] => {
                self.load(&one.field, R2)?;
                self.load(&other.field, R1)?;
            }
            _ => return Ok(()),
        }
        self.end_unless(ports, |w, port, matches| {
            for register in [R1, R2] {
                w.asm.jump_if(Condition::Equal, register, i32::from(port.to_be()), matches);
            }
        });
        Ok(())
    }

    /// Ends the program without a sample unless the choice accepts the packet. `jump` writes the jump to a label for one entry of
    /// the choice's lists.
    fn end_unless<T>(&mut self, choice: &Choice<T>, mut jump: impl FnMut(&mut Self, &T, Label)) {
        let (rejected, accepted) = (self.asm.label(), self.asm.label());
        choice.exclude.iter().for_each(|entry| jump(self, entry, rejected));
        choice.only.iter().for_each(|entry| jump(self, entry, accepted));
        if choice.only.is_empty() {
            self.asm.jump(accepted);
        }
        self.asm.bind(rejected);
        self.end_without_sample();
        self.asm.bind(accepted);
    }

    /// Loads the remote address: `R1` and, for IPv6, `R2` become its bytes in memory order.
    fn remote_address(&mut self, ends: &Ends) -> Result<(), Error> {
        let [.., last] = ends.addresses() else { return Ok(()) };
        self.load(&last.field, R2)?;
        match (ends.is_ipv4(), ends.addresses()) {
            (true, _) if last.width == Width::Double => {
                self.asm.mov(R1, R2);
                self.asm.alu(Alu::ShiftRight, R1, 32);
            }
            (false, [.., high, _]) => self.load(&high.field, R1)?,
            _ => self.asm.mov(R1, R2),
        }
        Ok(())
    }

    /// Continues at the label if the remote address is in the network. Overwrites `R0` and `R3`.
    fn jump_if_within(&mut self, network: Network, is_ipv4: bool, within: Label) {
        let words = match network.address() {
            IpAddr::V4(address) if is_ipv4 => vec![(u32::from_ne_bytes(address.octets()).into(), mask(network, 32, 0))],
            IpAddr::V6(address) if !is_ipv4 => {
                let octets = address.octets();
                let (halves, _) = octets.as_chunks::<8>();
                let half = |at: u8| (u64::from_ne_bytes(halves[usize::from(at)]), mask(network, 64, 64 * at));
                vec![half(0), half(1)]
            }
            _ => return,
        };
        let other = self.asm.label();
        for (register, (address, mask)) in [R1, R2].into_iter().zip(words).filter(|(_, (_, mask))| *mask != 0) {
            self.asm.load64(R3, mask);
            self.asm.alu(Alu::And, R3, register);
            self.asm.load64(R0, address & mask);
            self.asm.jump_if(Condition::NotEqual, R3, R0, other);
        }
        self.asm.jump(within);
        self.asm.bind(other);
    }

    /// Ends the program without a sample if both addresses are 127.0.0.1, or both are ::1.
    fn reject_loopback(&mut self, ends: &Ends) -> Result<(), Error> {
        let accepted = self.asm.label();
        let is_ipv4 = ends.is_ipv4();
        for (index, Piece { field, width, .. }) in ends.addresses().iter().enumerate() {
            self.load(field, R1)?;
            let address = match (width, is_ipv4) {
                (Width::Double, true) => LOOPBACK_IPV4,
                (_, true) => LOOPBACK_IPV4 >> 32,
                (_, false) => LOOPBACK_IPV6 * (index as u64 % 2),
            };
            self.asm.load64(R2, address);
            self.asm.jump_if(Condition::NotEqual, R1, R2, accepted);
        }
        self.end_without_sample();
        self.asm.bind(accepted);
        Ok(())
    }
}

/// The mask of a network for `width` of its bits (32 or 64), beginning with bit `from`, in memory order.
fn mask(network: Network, width: u8, from: u8) -> u64 {
    let bits = u32::from(network.prefix().saturating_sub(from).min(width));
    let leading = u64::MAX.checked_shl(64 - bits).unwrap_or(0);
    let bytes = leading.to_be_bytes();
    let mut kept = [0; 8];
    kept[..usize::from(width / 8)].copy_from_slice(&bytes[..usize::from(width / 8)]);
    u64::from_ne_bytes(kept)
}

/// The choice, if it rejects anything and its lists are short enough for a program.
fn that_fits<T>(choice: &Choice<T>) -> Option<&Choice<T>> {
    Some(choice).filter(|choice| (1..=MAX_LIST).contains(&(choice.only.len() + choice.exclude.len())))
}
