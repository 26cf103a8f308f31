//! DNS messages (RFC 1035, section 4), as far as they ask for addresses or give them.
//!
//! The crate `domain` reads them in place, record by record, and only follows compression pointers that point
//! backwards, 255 for a name at most.

use std::fmt::Write as _;

use domain::base::iana::{Class, Opcode, Rtype};
use domain::base::name::ParsedName;

use crate::Address;
use crate::answer::{self, Found};

/// What a question asks for. Other types lead to no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// IPv4 addresses (RFC 1035, section 3.4.1).
    A,
    /// IPv6 addresses (RFC 3596).
    Aaaa,
    /// How to reach an HTTPS service, with address hints (RFC 9460).
    Https,
    /// How to reach a service, with address hints (RFC 9460).
    Svcb,
    /// Whatever there is (RFC 8482).
    Any,
}

impl Kind {
    fn of(kind: Rtype) -> Option<Self> {
        match kind {
            Rtype::A => Some(Self::A),
            Rtype::AAAA => Some(Self::Aaaa),
            Rtype::HTTPS => Some(Self::Https),
            Rtype::SVCB => Some(Self::Svcb),
            Rtype::ANY => Some(Self::Any),
            _ => None,
        }
    }

    /// The name of the type, as in a zone file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Https => "HTTPS",
            Self::Svcb => "SVCB",
            Self::Any => "ANY",
        }
    }
}

/// Why a message is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It is well-formed so far, but asks for no addresses in class IN with exactly one question.
    Uninteresting,
    /// It breaks the format, or would be more work than any honest message is.
    Bad,
}

/// A message whose header and question were read.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    message: &'a domain::base::Message<[u8]>,
    question: ParsedName<&'a [u8]>,
    kind: Kind,
}

impl<'a> Message<'a> {
    /// Reads header and question. Nothing is allocated.
    ///
    /// # Errors
    ///
    /// Why it is of no use.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Unusable> {
        let message = domain::base::Message::from_slice(bytes).map_err(|_| Unusable::Bad)?;
        if message.header().opcode() != Opcode::QUERY || message.header_counts().qdcount() != 1 {
            return Err(Unusable::Uninteresting);
        }
        let question = message.question().next().ok_or(Unusable::Bad)?.map_err(|_| Unusable::Bad)?;
        let kind = Kind::of(question.qtype()).ok_or(Unusable::Uninteresting)?;
        if question.qclass() != Class::IN {
            return Err(Unusable::Uninteresting);
        }
        Ok(Self { message, question: *question.qname(), kind })
    }

    /// The identifier that an answer repeats.
    pub fn id(&self) -> u16 {
        self.message.header().id()
    }

    /// Whether it is an answer (QR).
    pub fn is_response(&self) -> bool {
        self.message.header().qr()
    }

    /// Whether it is only part of the answer (TC).
    pub fn is_truncated(&self) -> bool {
        self.message.header().tc()
    }

    /// The response code's low four bits: 0 is success, 3 says that the name does not exist.
    pub fn rcode(&self) -> u8 {
        self.message.header().rcode().to_int()
    }

    /// What is asked for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The name asked for, as [`write_name`](Self::write_name) writes it.
    pub fn name(&self) -> String {
        let mut name = String::new();
        self.write_name(&mut name);
        name
    }

    /// Writes the name asked for behind what is in `to`: in lower case, without the dot at the end; `.` is the root.
    ///
    /// A dot or backslash within a label is written behind a backslash, a byte that is no printing ASCII character as
    /// a backslash and three decimal digits (RFC 1035, section 5.1), so that different names stay different and no
    /// control character gets through. At most 1,003 bytes.
    pub fn write_name(&self, to: &mut String) {
        let start = to.len();
        for label in self.question.iter() {
            if to.len() > start && !label.is_root() {
                to.push('.');
            }
            label.as_slice().iter().for_each(|&byte| write_byte(byte, to));
        }
        if to.len() == start {
            to.push('.');
        }
    }

    /// Adds the addresses that the question leads to, following aliases, to those in `to`. Address records that it
    /// does not lead to are counted and left out.
    ///
    /// With `cut`, the end of the message is known to be missing, and what comes before counts.
    ///
    /// # Errors
    ///
    /// [`Unusable::Bad`]: a record breaks the format, or there are more aliases than any resolver would follow.
    pub fn addresses(&self, cut: bool, to: &mut Vec<Address>) -> Result<Found, Unusable> {
        answer::addresses(self.message, self.question, self.kind, cut, to)
    }
}

fn write_byte(byte: u8, to: &mut String) {
    match byte {
        b'.' | b'\\' => {
            to.push('\\');
            to.push(char::from(byte));
        }
        b'!'..=b'~' => to.push(char::from(byte.to_ascii_lowercase())),
        _ => write!(to, "\\{byte:03}").expect("strings take everything"),
    }
}

#[cfg(test)]
mod tests;
