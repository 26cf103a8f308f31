//! Socket addresses of all families.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Family;
use crate::model::escape::is_harmless;
use crate::model::flow::Endpoint;

/// One end of a socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// `AF_INET`, and `AF_INET6`.
    Ip(IpEnd),
    /// `AF_UNIX`.
    Unix(UnixName),
    /// `AF_UNSPEC`, with which `connect(2)` ends an association, or another family.
    Other(Family),
}

/// An IP address and a port, as a program passes them to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IpEnd {
    /// The address as the socket has it: an IPv4 one on an `AF_INET6` socket is `::ffff:192.0.2.1`.
    pub ip: IpAddr,
    /// The port; 0 for none.
    pub port: u16,
    /// `sin6_scope_id`: the interface that a link-local address belongs to; 0 for none.
    pub scope_id: u32,
    /// `sin6_flowinfo`, host byte order; 0 for none.
    pub flow_info: u32,
}

/// The name of an `AF_UNIX` socket: any bytes, 108 at most.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UnixName {
    /// The socket has no name.
    Unnamed,
    /// A path in the file system, without a NUL.
    Path(Box<[u8]>),
    /// A name in the abstract namespace, without the NUL that marks it as one. It may hold any byte, NUL too.
    Abstract(Box<[u8]>),
}

impl Address {
    /// The IP address and port, if it is an IP address.
    pub fn ip(&self) -> Option<&IpEnd> {
        match self {
            Self::Ip(end) => Some(end),
            Self::Unix(_) | Self::Other(_) => None,
        }
    }

    /// The address and port, if it is an IP address. An IPv4-mapped IPv6 address becomes an IPv4 address, as in flows.
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.ip().map(|end| Endpoint::new(end.ip, end.port))
    }

    /// The `AF_UNIX` name, if it is an `AF_UNIX` address.
    pub fn unix(&self) -> Option<&UnixName> {
        match self {
            Self::Unix(name) => Some(name),
            Self::Ip(_) | Self::Other(_) => None,
        }
    }

    /// Parses a `struct sockaddr`: ports and addresses in network byte order, the rest in the machine's. `None` if it is too
    /// short for its family.
    ///
    /// ```
    /// use socktrail::socket_event::{Address, UnixName};
    ///
    /// let abstract_name = [&1_u16.to_ne_bytes()[..], b"\0x\0y"].concat();
    /// let name = UnixName::Abstract(Box::from(*b"x\0y"));
    /// assert_eq!(Address::of_sockaddr(&abstract_name), Some(Address::Unix(name)));
    /// ```
    pub fn of_sockaddr(bytes: &[u8]) -> Option<Self> {
        let (family, rest) = bytes.split_first_chunk()?;
        let family = Family(u16::from_ne_bytes(*family));
        let port = || rest.first_chunk().map(|port| u16::from_be_bytes(*port));
        match family {
            Family::INET => {
                let ip: [u8; 4] = *rest.get(2..)?.first_chunk()?;
                Some(Self::Ip(IpEnd { ip: Ipv4Addr::from(ip).into(), port: port()?, scope_id: 0, flow_info: 0 }))
            }
            Family::INET6 => {
                let flow_info = u32::from_be_bytes(*rest.get(2..)?.first_chunk()?);
                let ip: [u8; 16] = *rest.get(6..)?.first_chunk()?;
                // Programs older than the field leave it out (RFC 2133).
                let scope_id = rest.get(22..).and_then(<[u8]>::first_chunk).map_or(0, |id| u32::from_ne_bytes(*id));
                Some(Self::Ip(IpEnd { ip: Ipv6Addr::from(ip).into(), port: port()?, scope_id, flow_info }))
            }
            Family::UNIX => Some(Self::Unix(UnixName::of_sun_path(rest))),
            family => Some(Self::Other(family)),
        }
    }
}

impl IpEnd {
    /// This address and port, with scope and flow information 0.
    pub fn new(ip: impl Into<IpAddr>, port: u16) -> Self {
        Self { ip: ip.into(), port, scope_id: 0, flow_info: 0 }
    }
}

impl UnixName {
    /// `sun_path` as it is given to the kernel: the name is as long as the address, and a path ends at its first NUL.
    pub fn of_sun_path(path: &[u8]) -> Self {
        match path.split_first() {
            None => Self::Unnamed,
            Some((0, name)) => Self::Abstract(name.into()),
            Some(_) => Self::Path(path.split(|byte| *byte == 0).next().unwrap_or_default().into()),
        }
    }
}

/// `192.0.2.1:80`, `[fe80::1%2]:80`, `/run/socket`, `@abstract`; an unnamed socket's address is empty. Invalid UTF-8, control
/// and invisible characters, the backslash, and `@` at the beginning of a path are written as `\xNN`, so that two names
/// never look the same.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(end) => end.fmt(f),
            Self::Unix(name) => name.fmt(f),
            Self::Other(family) => family.fmt(f),
        }
    }
}

impl fmt::Display for IpEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ip, self.scope_id) {
            (IpAddr::V4(ip), _) => write!(f, "{ip}:{}", self.port),
            (IpAddr::V6(ip), 0) => write!(f, "[{ip}]:{}", self.port),
            (IpAddr::V6(ip), scope) => write!(f, "[{ip}%{scope}]:{}", self.port),
        }
    }
}

impl fmt::Display for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unnamed => Ok(()),
            Self::Path(path) => match path.strip_prefix(b"@") {
                Some(rest) => {
                    f.write_str("\\x40")?; // or it would look like an abstract name
                    readable(rest, f)
                }
                None => readable(path, f),
            },
            Self::Abstract(name) => {
                f.write_str("@")?;
                readable(name, f)
            }
        }
    }
}

/// Writes bytes as text, with those escaped that would be ambiguous or invisible.
fn readable(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            if char == '\\' || !is_harmless(char) {
                let mut buffer = [0; 4];
                escaped(char.encode_utf8(&mut buffer).as_bytes(), f)?;
            } else {
                fmt::Write::write_char(f, char)?;
            }
        }
        escaped(chunk.invalid(), f)?;
    }
    Ok(())
}

fn escaped(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockaddr(family: u16, rest: &[u8]) -> Option<Address> {
        Address::of_sockaddr(&[&family.to_ne_bytes(), rest].concat())
    }

    #[test]
    fn ip_addresses_and_ports_are_in_network_byte_order() {
        let v4 = sockaddr(2, &[0, 80, 192, 0, 2, 1, 9, 9, 9, 9, 9, 9, 9, 9]);
        assert_eq!(v4, Some(Address::Ip(IpEnd::new([192, 0, 2, 1], 80))));
        let ip: Ipv6Addr = "fe80::1".parse().unwrap();
        let v6 = [&[1, 187, 0, 0, 0, 5], &ip.octets()[..], &2_u32.to_ne_bytes()].concat();
        let end = IpEnd { ip: ip.into(), port: 443, scope_id: 2, flow_info: 5 };
        assert_eq!(sockaddr(10, &v6), Some(Address::Ip(end)));
        assert_eq!(sockaddr(10, &v6[..22]), Some(Address::Ip(IpEnd { scope_id: 0, ..end })));
        assert_eq!(end.to_string(), "[fe80::1%2]:443");
    }

    #[test]
    fn a_mapped_address_is_kept_as_written_and_is_ipv4_in_flows() {
        let end = Address::Ip(IpEnd::new("::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap(), 80));
        assert_eq!(end.to_string(), "[::ffff:192.0.2.1]:80");
        assert_eq!(end.endpoint(), Some(Endpoint::new([192, 0, 2, 1], 80)));
    }

    #[test]
    fn a_sockaddr_that_is_too_short_for_its_family_is_rejected() {
        assert_eq!(Address::of_sockaddr(&[]), None);
        assert_eq!(Address::of_sockaddr(&[2]), None);
        assert_eq!(sockaddr(2, &[0, 80, 127, 0, 0]), None);
        assert_eq!(sockaddr(10, &[0; 21]), None);
        assert_eq!(sockaddr(0, &[]), Some(Address::Other(Family(0))));
    }

    #[test]
    fn unix_names() {
        let name = |path: &[u8]| sockaddr(1, path).unwrap().unix().unwrap().clone();
        assert_eq!(name(b""), UnixName::Unnamed);
        assert_eq!(name(b"/run/a\0junk"), UnixName::Path(Box::from(*b"/run/a")));
        assert_eq!(name(&[b'x'; 108]), UnixName::Path(vec![b'x'; 108].into()));
        assert_eq!(name(b"\0a\0\nb"), UnixName::Abstract(Box::from(*b"a\0\nb")));
        assert_eq!(name(b"\0"), UnixName::Abstract(Box::default()));
    }

    #[test]
    fn names_are_readable_and_never_look_alike() {
        let shown = |path: &[u8]| UnixName::of_sun_path(path).to_string();
        assert_eq!(shown("/run/é\u{85}".as_bytes()), "/run/é\\xc2\\x85");
        assert_eq!(shown(b"\0a\0\nb\\x00\xff"), "@a\\x00\\x0ab\\x5cx00\\xff");
        assert_eq!(shown(b""), "");
        assert_eq!(shown(b"@a"), "\\x40a");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_and_every_name_is_one_clean_line(bytes: Vec<u8>) {
            if let Some(address) = Address::of_sockaddr(&bytes) {
                proptest::prop_assert!(!address.to_string().chars().any(char::is_control));
            }
        }
    }
}
