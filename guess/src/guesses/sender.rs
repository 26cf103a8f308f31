//! The `sock` that a packet was sent by.

use super::talk;
use crate::engine::{Clues, Guess, Probe, Scene, Shot, is_kernel_pointer};
use std::io;

/// The sender is one of the first words of an `sk_buff`.
const TO_SENDER: u32 = 64;
/// `struct socket` is smaller than this.
const SOCKET: u32 = 128;

/// A datagram leaves: `dev_hard_start_xmit` is given the packet first, and has been since Linux 2.6, when it still belongs
/// to its sender. When the sender is closed, its `socket` is seen. What both point to is the `sock`.
///
/// Only kernels whose functions are given no `sock` beside the packet (before Linux 4.1) need this.
#[derive(Debug)]
pub(super) struct Sender;

impl Guess for Sender {
    type Sent = ();

    fn name(&self) -> &'static str {
        "sender"
    }

    fn needs(&self) -> Vec<String> {
        vec!["inet_release(sock)".to_owned()]
    }

    fn gives(&self) -> Vec<String> {
        vec!["sk_buff.sk".to_owned()]
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        let packet = Probe::on("dev_hard_start_xmit").words("skb", "{arg1}", 0..TO_SENDER);
        vec![packet, Probe::on("inet_release").words("socket", "{sock}", 0..SOCKET)]
    }

    fn trigger(&mut self, stage: &mut dyn Scene) -> io::Result<()> {
        let [from, to] = [(); 2].map(|()| talk::udp(talk::address(stage.random(), false)));
        talk::datagram(&from?, &to?, 100)
    }

    fn solve(&self, (): &(), shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        let of = |function: &'static str| shots.iter().filter(move |shot| shot.function == function);
        let released = of("inet_release").flat_map(|shot| shot.view("socket").words());
        let pointers: Vec<u64> = released.map(|(_, word)| word).filter(|&word| is_kernel_pointer(word)).collect();
        for packet in of("dev_hard_start_xmit") {
            let ours = packet.view("skb").words().filter(|(_, word)| pointers.contains(word));
            let offsets: Vec<u32> = ours.map(|(offset, _)| offset).collect();
            // Packets of others may leave on this thread as well.
            if !offsets.is_empty() {
                clues.allow("sk_buff.sk", offsets);
            }
        }
        clues
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Window;

    #[test]
    fn what_packet_and_socket_share_is_the_sender() {
        let (sk, operations, device) = (0xffff_8880_0100_0000u64, 0xffff_ffff_8200_0000u64, 0xffff_8880_0200_0000u64);
        let (mut skb, mut socket) = (Window::new(0, vec![0; 64]), Window::new(0, vec![0; 128]));
        skb.write(16, &device.to_ne_bytes());
        skb.write(24, &sk.to_ne_bytes());
        socket.write(24, &sk.to_ne_bytes());
        socket.write(32, &operations.to_ne_bytes());
        let shots =
            [Shot::of("dev_hard_start_xmit", vec![("skb", skb)]), Shot::of("inet_release", vec![("socket", socket)])];
        assert_eq!(Sender.solve(&(), &shots).of("sk_buff.sk"), [24]);
        assert_eq!(Sender.solve(&(), &shots[..1]), Clues::default());
    }
}
