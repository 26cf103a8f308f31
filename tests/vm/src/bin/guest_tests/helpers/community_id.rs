//! An independent implementation of [Community ID](https://github.com/corelight/community-id-spec), to check documents.

use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

/// IANA's protocol number of TCP.
pub(crate) const TCP: u8 = 6;
/// IANA's protocol number of UDP.
pub(crate) const UDP: u8 = 17;

/// Version 1 with seed 0: the SHA-1 of the seed, the smaller endpoint's address, the other's, the protocol, a zero byte,
/// and the ports in the same order.
pub(crate) fn community_id(protocol: u8, one: SocketAddr, other: SocketAddr) -> String {
    let (low, high) = if (one.ip(), one.port()) < (other.ip(), other.port()) { (one, other) } else { (other, one) };
    let mut hash = Sha1::new();
    hash.update([0, 0]);
    hash.update(octets(low.ip()));
    hash.update(octets(high.ip()));
    hash.update([protocol, 0]);
    hash.update(low.port().to_be_bytes());
    hash.update(high.port().to_be_bytes());
    format!("1:{}", STANDARD.encode(hash.finalize()))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_vectors() {
        for (protocol, one, other, id) in [
            (TCP, "128.232.110.120:34855", "66.35.250.204:80", "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
            (TCP, "66.35.250.204:80", "128.232.110.120:34855", "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
            (UDP, "192.168.1.52:54585", "8.8.8.8:53", "1:d/FP5EW3wiY1vCndhwleRRKHowQ="),
        ] {
            assert_eq!(community_id(protocol, one.parse().unwrap(), other.parse().unwrap()), id);
        }
    }
}
