//! The addresses in an answer: those that the question leads to, directly or through aliases.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use domain::base::iana::{Class, Rtype, SvcParamKey};
use domain::base::name::ParsedName;
use domain::base::record::ParsedRecord;
use domain::base::{Message, ParseRecordData, Record};
use domain::rdata::svcb::UnknownSvcParam;
use domain::rdata::{A, Aaaa, Cname, Https, Svcb};

use crate::Address;
use crate::message::{Completeness, MessageError, QueryType};

/// The maximum number of aliases that are followed. Resolvers do not follow more.
const MAX_ALIASES: usize = 16;
/// The maximum number of records that are read. When aliases come in the wrong order, records are read and counted several
/// times.
const MAX_RECORDS_READ: usize = 2048;
/// The maximum number of addresses that are taken from one answer.
const MAX_ADDRESSES: usize = 256;

type Name<'a> = ParsedName<&'a [u8]>;

/// Records in an answer that the question does not lead to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnrelatedRecords {
    /// How many of them give addresses: A, AAAA, HTTPS and SVCB records of the queried type.
    pub addresses: u32,
}

/// Appends the addresses that the question leads to. See [`crate::Message::addresses`].
pub(crate) fn addresses<'a>(
    message: &'a Message<[u8]>,
    question: Name<'a>,
    query_type: QueryType,
    completeness: Completeness,
    to: &mut Vec<Address>,
) -> Result<UnrelatedRecords, MessageError> {
    let start = to.len();
    let mut chain = AliasChain { name: question, ttl: u32::MAX, query_type, aliases: 0, records_read: 0, start };
    loop {
        let aliases = chain.aliases;
        let skipped = chain.read_section(message, completeness, to)?;
        // Only another pass finds records that come before the alias that leads to them.
        if chain.aliases == aliases || (skipped.aliases == 0 && skipped.addresses == 0) {
            return Ok(UnrelatedRecords { addresses: skipped.addresses });
        }
    }
}

/// Relevant records that had another owner than the chain's current name when they were read.
#[derive(Default)]
struct Skipped {
    aliases: u32,
    addresses: u32,
}

/// The chain of aliases from the question, as far as it has been followed.
struct AliasChain<'a> {
    /// The last alias's target; the name in the question if there was no alias yet.
    name: Name<'a>,
    /// The least time to live of the aliases.
    ttl: u32,
    query_type: QueryType,
    aliases: usize,
    records_read: usize,
    /// Where the addresses of this answer begin in the caller's list.
    start: usize,
}

impl<'a> AliasChain<'a> {
    /// Reads the answer section once, from its beginning.
    fn read_section(
        &mut self,
        message: &'a Message<[u8]>,
        completeness: Completeness,
        to: &mut Vec<Address>,
    ) -> Result<Skipped, MessageError> {
        to.truncate(self.start);
        let mut skipped = Skipped::default();
        let is_partial = completeness == Completeness::Partial;
        let section = match message.answer() {
            Ok(section) => section,
            Err(_) if is_partial => return Ok(skipped),
            Err(_) => return Err(MessageError::Malformed),
        };
        for record in section {
            match record {
                Ok(record) => self.read_record(record, to, &mut skipped)?,
                Err(_) if is_partial => break,
                Err(_) => return Err(MessageError::Malformed),
            }
        }
        Ok(skipped)
    }

    fn read_record(
        &mut self,
        record: ParsedRecord<'a, [u8]>,
        to: &mut Vec<Address>,
        skipped: &mut Skipped,
    ) -> Result<(), MessageError> {
        self.records_read += 1;
        if self.records_read > MAX_RECORDS_READ {
            return Err(MessageError::Malformed);
        }
        let rtype = record.rtype();
        if record.class() != Class::IN || !self.is_relevant(rtype) {
            return Ok(());
        }
        if record.owner() != self.name {
            *(if rtype == Rtype::CNAME { &mut skipped.aliases } else { &mut skipped.addresses }) += 1;
            return Ok(());
        }
        let ttl = self.ttl.min(seconds(&record));
        match rtype {
            Rtype::CNAME => {
                let alias: Cname<Name<'a>> = data(record)?;
                self.follow(*alias.cname(), ttl, to)?;
            }
            Rtype::A => push(IpAddr::V4(data::<A>(record)?.addr()), ttl, self.start, to),
            Rtype::AAAA => push(IpAddr::V6(data::<Aaaa>(record)?.addr()), ttl, self.start, to),
            Rtype::HTTPS => {
                let service: Https<&'a [u8], Name<'a>> = data(record)?;
                let (target, params) = (*service.target(), service.params().iter_raw());
                if service.is_alias() {
                    self.follow_service(target, ttl, to)?;
                } else {
                    self.hints(params, ttl, to);
                }
            }
            _ => {
                let service: Svcb<&'a [u8], Name<'a>> = data(record)?;
                let (target, params) = (*service.target(), service.params().iter_raw());
                if service.is_alias() {
                    self.follow_service(target, ttl, to)?;
                } else {
                    self.hints(params, ttl, to);
                }
            }
        }
        Ok(())
    }

    /// Whether a record of this type can be an alias or an address of what was queried.
    fn is_relevant(&self, rtype: Rtype) -> bool {
        match rtype {
            Rtype::CNAME => true,
            Rtype::A => matches!(self.query_type, QueryType::A | QueryType::Any),
            Rtype::AAAA => matches!(self.query_type, QueryType::Aaaa | QueryType::Any),
            Rtype::HTTPS => matches!(self.query_type, QueryType::Https | QueryType::Any),
            Rtype::SVCB => matches!(self.query_type, QueryType::Svcb | QueryType::Any),
            _ => false,
        }
    }

    /// Goes on at an alias's target. Addresses of the alias's owner do not count.
    fn follow(&mut self, target: Name<'a>, ttl: u32, to: &mut Vec<Address>) -> Result<(), MessageError> {
        self.aliases += 1;
        if self.aliases > MAX_ALIASES {
            return Err(MessageError::Malformed);
        }
        (self.name, self.ttl) = (target, ttl);
        to.truncate(self.start);
        Ok(())
    }

    /// Follows the alias form of a service record. The root as target says that there is no such service (RFC 9460,
    /// section 2.5.1).
    fn follow_service(&mut self, target: Name<'a>, ttl: u32, to: &mut Vec<Address>) -> Result<(), MessageError> {
        if target.is_root() { Ok(()) } else { self.follow(target, ttl, to) }
    }

    /// Takes the address hints of a service record (RFC 9460, section 7.3).
    fn hints(&self, params: impl Iterator<Item = UnknownSvcParam<&'a [u8]>>, ttl: u32, to: &mut Vec<Address>) {
        for param in params {
            let value: &[u8] = param.as_slice();
            match param.key() {
                SvcParamKey::IPV4HINT => {
                    value.as_chunks().0.iter().for_each(|&hint| push(Ipv4Addr::from(hint).into(), ttl, self.start, to));
                }
                SvcParamKey::IPV6HINT => {
                    value.as_chunks().0.iter().for_each(|&hint| push(Ipv6Addr::from(hint).into(), ttl, self.start, to));
                }
                _ => {}
            }
        }
    }
}

/// A record's data. `D` must be the type for the record's type.
fn data<'a, D: ParseRecordData<'a, [u8]>>(record: ParsedRecord<'a, [u8]>) -> Result<D, MessageError> {
    record.into_record().ok().flatten().map(Record::into_data).ok_or(MessageError::Malformed)
}

/// A time to live in seconds. With the top bit set it counts as 0 (RFC 2181, section 8).
fn seconds(record: &ParsedRecord<'_, [u8]>) -> u32 {
    let seconds = record.ttl().as_secs();
    if seconds > i32::MAX as u32 { 0 } else { seconds }
}

fn push(ip: IpAddr, ttl: u32, start: usize, to: &mut Vec<Address>) {
    if to.len() - start < MAX_ADDRESSES {
        to.push(Address { ip: ip.to_canonical(), ttl });
    }
}
