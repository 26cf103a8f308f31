//! The network namespace of a `sock` and of a device, and the device and the length of an `sk_buff`.

use super::sock::{COMMON, window, window_needs};
use super::talk;
use crate::engine::{Clues, Guess, Probe, Scene, Shot, WINDOW, Window, is_kernel_pointer};
use std::io;

/// `struct sk_buff` is not larger than this on any machine of 64 bits.
const SKB: u32 = 256;
/// Where in it the device may be.
const TO_DEVICE: u32 = 64;
/// How much of a device is looked at in one attempt: with the rest, what two kprobes can show.
const DEVICE: u32 = 2 * WINDOW - SKB - ARGUMENTS * 8;
/// How many arguments are looked at.
const ARGUMENTS: u32 = 2;
/// What IPv4 and UDP add to a datagram.
const HEADERS: u32 = 28;

/// A datagram comes in through `lo`: `ip_rcv(skb, dev, …)` is given both, and has been since Linux 2.6. What `dev` and
/// the receiving `sock` both hold is the network namespace that they are in. The packet has its IP header here, and nobody
/// has noted its length elsewhere yet, as UDP will.
#[derive(Debug)]
pub(super) struct NetDevice;

impl Guess for NetDevice {
    /// The length of the packet.
    type Sent = u32;

    fn name(&self) -> &'static str {
        "net_device"
    }

    fn needs(&self) -> Vec<String> {
        window_needs()
    }

    fn gives(&self) -> Vec<String> {
        ["sk_buff.len", "sk_buff.dev", "net_device.nd_net", "sock_common.skc_net"].map(str::to_owned).into()
    }

    fn attempts(&self) -> u32 {
        2
    }

    fn probes(&self, attempt: u32) -> Vec<Probe> {
        let device = attempt * DEVICE..(attempt + 1) * DEVICE;
        let packet =
            Probe::on("ip_rcv").arguments(ARGUMENTS).words("skb", "{arg1}", 0..SKB).words("dev", "{arg2}", device);
        vec![window(), packet]
    }

    fn trigger(&mut self, stage: &mut dyn Scene) -> io::Result<u32> {
        let [from, to] = [(); 2].map(|()| talk::udp(talk::address(stage.random(), false)));
        let length = stage.random().within(100..=1200);
        talk::datagram(&from?, &to?, length as usize)?;
        Ok(length + HEADERS)
    }

    fn solve(&self, length: &u32, shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        let of = |function: &'static str| shots.iter().filter(move |shot| shot.function == function);
        // A packet of others may come in on this thread as well: whoever is interrupted takes it.
        let ours = |shot: &&Shot| !shot.view("skb").find_u32(*length).is_empty();
        if let Some(packet) = of("ip_rcv").find(ours) {
            let skb = packet.view("skb");
            clues.allow("sk_buff.len", skb.find_u32(*length));
            clues.allow("sk_buff.dev", skb.part(0, TO_DEVICE).find_word(packet.argument(2)));
            for shot in of("inet_release") {
                find(packet.view("dev"), &shot.view("sk").part(0, COMMON), &mut clues);
            }
        }
        clues
    }
}

/// The pointers that a device and a `sock` share.
fn find(device: &Window, sk: &Window, clues: &mut Clues) {
    let (mut of_device, mut of_sock) = (Vec::new(), Vec::new());
    for (offset, word) in sk.words().filter(|&(_, word)| is_kernel_pointer(word)) {
        let places = device.find_word(word);
        if !places.is_empty() {
            of_device.extend(places);
            of_sock.push(offset);
        }
    }
    clues.allow("net_device.nd_net", of_device);
    clues.allow("sock_common.skc_net", of_sock);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine;

    #[test]
    fn what_device_and_sock_share_is_their_namespace() {
        let (device, net, operations) = (0xffff_8880_0100_0000u64, 0xffff_ffff_8300_0000u64, 0xffff_ffff_8200_0000u64);
        let (mut skb, mut dev, mut sk) =
            (Window::new(0, vec![0; 256]), Window::new(0, vec![0; DEVICE as usize]), Window::new(0, vec![0; 1016]));
        skb.write(16, &device.to_ne_bytes());
        skb.write(112, &777u32.to_ne_bytes());
        dev.write(280, &net.to_ne_bytes());
        sk.write(40, &operations.to_ne_bytes());
        sk.write(48, &net.to_ne_bytes());
        let arguments = Window::new(8, [1, device].map(u64::to_ne_bytes).concat());
        let packet = Shot::of("ip_rcv", vec![(engine::ARGUMENTS, arguments), ("skb", skb), ("dev", dev)]);
        let clues = NetDevice.solve(&777, &[packet, Shot::of("inet_release", vec![("sk", sk)])]);
        assert_eq!(clues.of("sk_buff.len"), [112]);
        assert_eq!(clues.of("sk_buff.dev"), [16]);
        assert_eq!(clues.of("net_device.nd_net"), [280]);
        assert_eq!(clues.of("sock_common.skc_net"), [48]);
    }
}
