//! The network namespace of a `sock` and of a `net_device`, and the device and the length of an `sk_buff`.

use super::loopback;
use super::sock::{SOCK_COMMON, released_sock, released_sock_needs};
use crate::engine::{Call, Context, Evidence, Guess, MAX_WINDOW, Probe, Window, is_kernel_pointer};
use std::io;

/// How many bytes of an `sk_buff` are captured: at least its size on every known 64-bit kernel.
const SKB: u32 = 256;
/// How many bytes of an `sk_buff` are searched for the pointer to its device, which is among the first ones.
const DEVICE_WITHIN: u32 = 64;
/// How many bytes of a device are captured in one attempt. Together with the `sk_buff` and the arguments they fill two kprobes.
const DEVICE: u32 = 2 * MAX_WINDOW - SKB - ARGUMENTS * 8;
/// How many arguments are captured.
const ARGUMENTS: u32 = 2;
/// The size of the IPv4 and UDP headers.
const HEADERS: u32 = 28;

/// A datagram arrives through `lo`, and `ip_rcv(skb, dev, …)` gets it; its arguments have been the same since Linux 2.6. The
/// pointer that `dev` and the receiving `sock` have in common is their network namespace. At `ip_rcv`, the `sk_buff`
/// has the length of the packet, with the IP header, only once; UDP stores it a second time later.
#[derive(Debug)]
pub(super) struct NetDevice;

impl Guess for NetDevice {
    /// The length of the packet in bytes.
    type Expected = u32;

    fn name(&self) -> &'static str {
        "net_device"
    }

    fn needs(&self) -> Vec<String> {
        released_sock_needs()
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
        vec![released_sock(), packet]
    }

    fn trigger(&mut self, context: &mut dyn Context) -> io::Result<u32> {
        let [from, to] = [(); 2].map(|()| loopback::udp(loopback::ipv4_address(context.random())));
        let length = context.random().within(100..=1200);
        // Both sockets are temporary: they are closed once the datagram was sent, and `inet_release` is called.
        loopback::datagram(&from?, &to?, length as usize)?;
        Ok(length + HEADERS)
    }

    fn solve(&self, length: &u32, calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        let of = |function: &'static str| calls.iter().filter(move |call| call.function == function);
        // An interrupt on this thread may receive packets of other sockets, too.
        let is_expected = |call: &&Call| !call.view("skb").find_u32(*length).is_empty();
        if let Some(packet) = of("ip_rcv").find(is_expected) {
            let skb = packet.view("skb");
            evidence.one_of("sk_buff.len", skb.find_u32(*length));
            evidence.one_of("sk_buff.dev", skb.part(0, DEVICE_WITHIN).find_word(packet.argument(2)));
            for call in of("inet_release") {
                add_evidence(packet.view("dev"), &call.view("sk").part(0, SOCK_COMMON), &mut evidence);
            }
        }
        evidence
    }
}

/// Finds the pointers that a device and a `sock` have in common.
fn add_evidence(device: &Window, sk: &Window, evidence: &mut Evidence) {
    let (mut of_device, mut of_sock) = (Vec::new(), Vec::new());
    for (offset, word) in sk.words().filter(|&(_, word)| is_kernel_pointer(word)) {
        let offsets = device.find_word(word);
        if !offsets.is_empty() {
            of_device.extend(offsets);
            of_sock.push(offset);
        }
    }
    evidence.one_of("net_device.nd_net", of_device);
    evidence.one_of("sock_common.skc_net", of_sock);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine;

    #[test]
    fn the_pointer_in_both_device_and_sock_is_their_namespace() {
        let (device, net, operations) = (0xffff_8880_0100_0000u64, 0xffff_ffff_8300_0000u64, 0xffff_ffff_8200_0000u64);
        let (mut skb, mut dev, mut sk) =
            (Window::new(0, vec![0; 256]), Window::new(0, vec![0; DEVICE as usize]), Window::new(0, vec![0; 1016]));
        skb.write(16, &device.to_ne_bytes());
        skb.write(112, &777u32.to_ne_bytes());
        dev.write(280, &net.to_ne_bytes());
        sk.write(40, &operations.to_ne_bytes());
        sk.write(48, &net.to_ne_bytes());
        let arguments = Window::new(8, [1, device].map(u64::to_ne_bytes).concat());
        let packet = Call::of("ip_rcv", vec![(engine::ARGUMENTS, arguments), ("skb", skb), ("dev", dev)]);
        let evidence = NetDevice.solve(&777, &[packet, Call::of("inet_release", vec![("sk", sk)])]);
        assert_eq!(evidence.values("sk_buff.len"), [112]);
        assert_eq!(evidence.values("sk_buff.dev"), [16]);
        assert_eq!(evidence.values("net_device.nd_net"), [280]);
        assert_eq!(evidence.values("sock_common.skc_net"), [48]);
    }
}
