//! A DNS server, and a DNS client without delays.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};

use super::super::arguments::Arguments;
use super::identity::{FlowReport, Identity};
use crate::helpers::wait::TIMEOUT;
use crate::workloads::print_line;

/// The header of a message (RFC 1035, 4.1.1).
const HEADER: usize = 12;
/// Types of records (RFC 1035, 3.2.2; RFC 3596, 2.1).
const A: u8 = 1;
const AAAA: u8 = 28;

/// `names at=ADDRESS`: prints `ready`, and answers every query for an address until it is killed.
pub(super) fn serve(arguments: &Arguments) -> Result<()> {
    Identity::now();
    let socket = UdpSocket::bind(arguments.get::<SocketAddr>("at")?).context("bind")?;
    print_line("ready")?;
    let mut message = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut message).context("receive a query")?;
        let mut report = FlowReport::begin(arguments, "udp", "ingress", &Identity::now());
        report.set_addresses(socket.local_addr()?, from);
        if let Some(answer) = answer(&message[..length]) {
            socket.send_to(&answer, from).context("answer")?;
        }
        report.print()?;
    }
}

/// Queries the IPv4 or IPv6 address of a name.
pub(super) fn look_up(arguments: &Arguments, name: &str, wants_v6: bool) -> Result<IpAddr> {
    let server: SocketAddr = arguments.get("resolver")?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("bind")?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let mut report = FlowReport::begin(arguments, "udp", "egress", &Identity::now());
    socket.connect(server)?;
    report.set_addresses(socket.local_addr()?, server);
    socket.send(&question(socket.local_addr()?.port(), name, wants_v6)).context("send a query")?;
    let mut message = [0; 512];
    let length = socket.recv(&mut message).context("receive an answer")?;
    drop(socket);
    report.print()?;
    let answer = &message[..length];
    ensure!(answer[7] == 1, "there is no answer: {answer:?}");
    let address = match wants_v6 {
        true => answer.last_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        false => answer.last_chunk::<4>().map(|octets| IpAddr::from(*octets)),
    };
    address.context("the answer has no address")
}

/// A query for an A or AAAA record.
fn question(id: u16, name: &str, wants_v6: bool) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, if wants_v6 { AAAA } else { A }, 0, 1]);
    message
}

/// The response to a query. Names `nNUMBER...` share four IPv4 addresses, by NUMBER modulo 4, and one IPv6 address.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let first = question.get(HEADER + 1..)?;
    let digits: String = first[1..].iter().map(|&byte| byte as char).take_while(char::is_ascii_digit).collect();
    let number: u8 = digits.parse().ok()?;
    let mut answer = question.to_vec();
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[7] = 1;
    // The query ends with type and class.
    let kind = *question.iter().nth_back(2)?;
    let octets = match kind {
        AAAA => Ipv6Addr::LOCALHOST.octets().to_vec(),
        _ => vec![127, 0, 1, 1 + number % 4],
    };
    // The name of the question, its type, IN, 60 s, the address.
    answer.extend([0xc0, HEADER as u8, 0, kind, 0, 1, 0, 0, 0, 60, 0, octets.len() as u8]);
    answer.extend(octets);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_names_have_one_address() {
        let address = |name| *answer(&question(7, name, false)).unwrap().last_chunk::<4>().unwrap();
        assert_eq!(address("n1.torture.test"), [127, 0, 1, 2]);
        assert_eq!(address("n5.torture.test"), [127, 0, 1, 2]);
        assert_eq!(address("n6.torture.test"), [127, 0, 1, 3]);
        assert_eq!(answer(&question(7, "other.test", false)), None);
        let v6 = answer(&question(7, "n6.torture.test", true)).unwrap();
        assert_eq!(v6.last_chunk::<16>(), Some(&Ipv6Addr::LOCALHOST.octets()));
    }
}
