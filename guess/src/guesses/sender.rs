//! The `sock` of an outgoing `sk_buff`.

use super::loopback;
use crate::engine::{Call, Context, Evidence, Guess, Probe, is_kernel_pointer};
use std::io;

/// How many bytes are captured from the beginning of an `sk_buff`: the pointer to its `sock` is among them.
const SKB: u32 = 64;
/// How many bytes of a `struct socket` are captured: more than its size.
const SOCKET: u32 = 128;

/// Sends a datagram. Its `sk_buff` has been the first argument of `dev_hard_start_xmit` since Linux 2.6, and still points
/// to the sender's `sock` there. When the sender is closed, its `struct socket` is captured. The pointer that the `sk_buff`
/// and the `struct socket` have in common is the `sock`.
///
/// The probes of dropped packets need it on every kernel. Before Linux 4.1, those of outgoing packets need it, too: their
/// functions have no argument `sk`.
#[derive(Debug)]
pub(super) struct Sender;

impl Guess for Sender {
    type Expected = ();

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
        let packet = Probe::on("dev_hard_start_xmit").words("skb", "{arg1}", 0..SKB);
        vec![packet, Probe::on("inet_release").words("socket", "{sock}", 0..SOCKET)]
    }

    fn trigger(&mut self, context: &mut dyn Context) -> io::Result<()> {
        let [from, to] = [(); 2].map(|()| loopback::udp(loopback::ipv4_address(context.random())));
        // Both sockets are temporary: they are closed once the datagram was sent, and `inet_release` is called.
        loopback::datagram(&from?, &to?, 100)
    }

    fn solve(&self, (): &(), calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        let calls_of = |function: &'static str| calls.iter().filter(move |call| call.function == function);
        let released = calls_of("inet_release").flat_map(|call| call.view("socket").words());
        let pointers: Vec<u64> = released.map(|(_, word)| word).filter(|&word| is_kernel_pointer(word)).collect();
        for call in calls_of("dev_hard_start_xmit") {
            let in_both = call.view("skb").words().filter(|(_, word)| pointers.contains(word));
            let offsets: Vec<u32> = in_both.map(|(offset, _)| offset).collect();
            // An interrupt on this thread may send packets of other sockets, too.
            if !offsets.is_empty() {
                evidence.one_of("sk_buff.sk", offsets);
            }
        }
        evidence
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Window;

    #[test]
    fn the_pointer_in_both_packet_and_socket_is_the_sock() {
        let (sk, operations, device) = (0xffff_8880_0100_0000u64, 0xffff_ffff_8200_0000u64, 0xffff_8880_0200_0000u64);
        let (mut skb, mut socket) = (Window::new(0, vec![0; SKB as usize]), Window::new(0, vec![0; SOCKET as usize]));
        skb.write(16, &device.to_ne_bytes());
        skb.write(24, &sk.to_ne_bytes());
        socket.write(24, &sk.to_ne_bytes());
        socket.write(32, &operations.to_ne_bytes());
        let calls =
            [Call::of("dev_hard_start_xmit", vec![("skb", skb)]), Call::of("inet_release", vec![("socket", socket)])];
        assert_eq!(Sender.solve(&(), &calls).values("sk_buff.sk"), [24]);
        assert_eq!(Sender.solve(&(), &calls[..1]), Evidence::default());
    }
}
