//! Reads DNS messages (RFC 1035, section 4) that ask for addresses or give them.
//!
//! The crate `domain` reads them in place, record by record. It follows only compression pointers that point backwards,
//! and at most 255 of them for a name, so no message can make it loop.

use std::fmt::Write as _;

use domain::base::iana::{Class, Opcode, Rtype};
use domain::base::name::ParsedName;

use crate::Address;
use crate::addresses::{self, UnrelatedRecords};

/// The type of a query (QTYPE). Queries of other types do not lead to addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueryType {
    /// IPv4 addresses (RFC 1035, section 3.4.1).
    A,
    /// IPv6 addresses (RFC 3596).
    Aaaa,
    /// The endpoints of an HTTPS service, with address hints (RFC 9460).
    Https,
    /// The endpoints of a service, with address hints (RFC 9460).
    Svcb,
    /// Records of any type (RFC 8482).
    Any,
}

impl QueryType {
    fn of(rtype: Rtype) -> Option<Self> {
        match rtype {
            Rtype::A => Some(Self::A),
            Rtype::AAAA => Some(Self::Aaaa),
            Rtype::HTTPS => Some(Self::Https),
            Rtype::SVCB => Some(Self::Svcb),
            Rtype::ANY => Some(Self::Any),
            _ => None,
        }
    }

    /// The type's mnemonic, as in a zone file.
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
pub enum MessageError {
    /// It is not a query for addresses in class IN with exactly one question, nor an answer to one.
    NotAddressQuery,
    /// It violates the format, or would take more work to read than any legitimate message.
    Malformed,
}

/// How much of a message is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// All of it.
    Complete,
    /// Only its beginning. The end was not captured.
    Partial,
}

/// A message with its header and question read.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    message: &'a domain::base::Message<[u8]>,
    question: ParsedName<&'a [u8]>,
    query_type: QueryType,
}

impl<'a> Message<'a> {
    /// Reads header and question. Allocates nothing.
    ///
    /// # Errors
    ///
    /// The message is malformed, or not about addresses.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MessageError> {
        let message = domain::base::Message::from_slice(bytes).map_err(|_| MessageError::Malformed)?;
        if message.header().opcode() != Opcode::QUERY || message.header_counts().qdcount() != 1 {
            return Err(MessageError::NotAddressQuery);
        }
        let question =
            message.question().next().ok_or(MessageError::Malformed)?.map_err(|_| MessageError::Malformed)?;
        let query_type = QueryType::of(question.qtype()).ok_or(MessageError::NotAddressQuery)?;
        if question.qclass() != Class::IN {
            return Err(MessageError::NotAddressQuery);
        }
        Ok(Self { message, question: *question.qname(), query_type })
    }

    /// The id that an answer repeats from its query.
    pub fn id(&self) -> u16 {
        self.message.header().id()
    }

    /// Whether the message is a response (QR).
    pub fn is_response(&self) -> bool {
        self.message.header().qr()
    }

    /// Whether the server left out a part of the answer (TC).
    pub fn is_truncated(&self) -> bool {
        self.message.header().tc()
    }

    /// The low four bits of the response code (RCODE): 0 is success, 3 says that the name does not exist.
    pub fn rcode(&self) -> u8 {
        self.message.header().rcode().to_int()
    }

    /// The type of the question.
    pub fn query_type(&self) -> QueryType {
        self.query_type
    }

    /// The name in the question, as [`write_name`](Self::write_name) writes it.
    pub fn name(&self) -> String {
        let mut name = String::new();
        self.write_name(&mut name);
        name
    }

    /// Appends the name in the question to `to`: in lower case, without the final dot. The root is `.`.
    ///
    /// A dot or backslash within a label is escaped with a backslash. A byte that is not a printable ASCII character
    /// becomes a backslash and three decimal digits (RFC 1035, section 5.1). So different names stay different, and no
    /// control character gets through. The name has at most 1,003 bytes.
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

    /// Appends the addresses that the question leads to, directly or through aliases, to `to`. Counts the address
    /// records that it does not lead to.
    ///
    /// Of a partial message, the records that are there count.
    ///
    /// # Errors
    ///
    /// [`MessageError::Malformed`]: a record violates the format, or there are more aliases than any resolver would follow.
    pub fn addresses(
        &self,
        completeness: Completeness,
        to: &mut Vec<Address>,
    ) -> Result<UnrelatedRecords, MessageError> {
        addresses::addresses(self.message, self.question, self.query_type, completeness, to)
    }
}

fn write_byte(byte: u8, to: &mut String) {
    match byte {
        b'.' | b'\\' => {
            to.push('\\');
            to.push(char::from(byte));
        }
        b'!'..=b'~' => to.push(char::from(byte.to_ascii_lowercase())),
        _ => write!(to, "\\{byte:03}").expect("writing to a string does not fail"),
    }
}

#[cfg(test)]
mod tests;
