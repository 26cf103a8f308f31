//! From a question through its aliases to addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use domain::base::iana::{Class, Rtype, SvcParamKey};
use domain::base::name::ParsedName;
use domain::base::record::ParsedRecord;
use domain::base::{Message, ParseRecordData, Record};
use domain::rdata::svcb::UnknownSvcParam;
use domain::rdata::{A, Aaaa, Cname, Https, Svcb};

use crate::Address;
use crate::message::{Kind, Unusable};

/// Aliases that are followed; resolvers give up sooner.
const MOST_ALIASES: usize = 16;
/// Records that are looked at, some of them more than once when aliases come in the wrong order.
const MOST_STEPS: usize = 2048;
/// Addresses that one answer may name.
const MOST_ADDRESSES: usize = 256;

type Name<'a> = ParsedName<&'a [u8]>;

/// What was in an answer besides the addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// Address records that the question does not lead to.
    pub stray: u32,
}

/// Adds the addresses that the question leads to. See [`crate::Message::addresses`].
pub(crate) fn addresses<'a>(
    message: &'a Message<[u8]>,
    question: Name<'a>,
    kind: Kind,
    cut: bool,
    to: &mut Vec<Address>,
) -> Result<Found, Unusable> {
    let mut walk = Walk { name: question, ttl: u32::MAX, kind, aliases: 0, steps: 0, start: to.len() };
    loop {
        let aliases = walk.aliases;
        let missed = walk.pass(message, cut, to)?;
        // Records that came before the alias that leads to them are only found by another pass.
        if walk.aliases == aliases || (missed.aliases == 0 && missed.addresses == 0) {
            return Ok(Found { stray: missed.addresses });
        }
    }
}

/// Records that were not about the name where one was.
#[derive(Default)]
struct Missed {
    aliases: u32,
    addresses: u32,
}

/// How far along the aliases one has come.
struct Walk<'a> {
    /// The name that the question has led to.
    name: Name<'a>,
    /// The least time to live on the way.
    ttl: u32,
    kind: Kind,
    aliases: usize,
    steps: usize,
    /// Where the addresses of this answer begin.
    start: usize,
}

impl<'a> Walk<'a> {
    /// Goes through the answer section once. Gives what was not about the name where one was.
    fn pass(&mut self, message: &'a Message<[u8]>, cut: bool, to: &mut Vec<Address>) -> Result<Missed, Unusable> {
        to.truncate(self.start);
        let mut missed = Missed::default();
        let section = match message.answer() {
            Ok(section) => section,
            Err(_) if cut => return Ok(missed),
            Err(_) => return Err(Unusable::Bad),
        };
        for record in section {
            match record {
                Ok(record) => self.step(record, to, &mut missed)?,
                Err(_) if cut => break,
                Err(_) => return Err(Unusable::Bad),
            }
        }
        Ok(missed)
    }

    /// Takes in one record.
    fn step(
        &mut self,
        record: ParsedRecord<'a, [u8]>,
        to: &mut Vec<Address>,
        missed: &mut Missed,
    ) -> Result<(), Unusable> {
        self.steps += 1;
        if self.steps > MOST_STEPS {
            return Err(Unusable::Bad);
        }
        let rtype = record.rtype();
        if record.class() != Class::IN || !self.matters(rtype) {
            return Ok(());
        }
        if record.owner() != self.name {
            *(if rtype == Rtype::CNAME { &mut missed.aliases } else { &mut missed.addresses }) += 1;
            return Ok(());
        }
        let ttl = self.ttl.min(seconds(&record));
        match rtype {
            Rtype::CNAME => {
                let alias: Cname<Name<'a>> = data(record)?;
                self.follow(*alias.cname(), ttl, to)?;
            }
            Rtype::A => add(IpAddr::V4(data::<A>(record)?.addr()), ttl, self.start, to),
            Rtype::AAAA => add(IpAddr::V6(data::<Aaaa>(record)?.addr()), ttl, self.start, to),
            Rtype::HTTPS => {
                let service: Https<&'a [u8], Name<'a>> = data(record)?;
                self.service(service.is_alias(), *service.target(), service.params().iter_raw(), ttl, to)?;
            }
            _ => {
                let service: Svcb<&'a [u8], Name<'a>> = data(record)?;
                self.service(service.is_alias(), *service.target(), service.params().iter_raw(), ttl, to)?;
            }
        }
        Ok(())
    }

    /// Whether records of this type say where the question leads.
    fn matters(&self, rtype: Rtype) -> bool {
        match rtype {
            Rtype::CNAME => true,
            Rtype::A => matches!(self.kind, Kind::A | Kind::Any),
            Rtype::AAAA => matches!(self.kind, Kind::Aaaa | Kind::Any),
            Rtype::HTTPS => matches!(self.kind, Kind::Https | Kind::Any),
            Rtype::SVCB => matches!(self.kind, Kind::Svcb | Kind::Any),
            _ => false,
        }
    }

    /// From now on it is the alias's target that counts.
    fn follow(&mut self, target: Name<'a>, ttl: u32, to: &mut Vec<Address>) -> Result<(), Unusable> {
        self.aliases += 1;
        if self.aliases > MOST_ALIASES {
            return Err(Unusable::Bad);
        }
        (self.name, self.ttl) = (target, ttl);
        to.truncate(self.start);
        Ok(())
    }

    /// A service record (RFC 9460): another name, or address hints.
    fn service(
        &mut self,
        alias: bool,
        target: Name<'a>,
        params: impl Iterator<Item = UnknownSvcParam<&'a [u8]>>,
        ttl: u32,
        to: &mut Vec<Address>,
    ) -> Result<(), Unusable> {
        if alias {
            // The root says that there is no such service.
            return if target.is_root() { Ok(()) } else { self.follow(target, ttl, to) };
        }
        for param in params {
            let value: &[u8] = param.as_slice();
            match param.key() {
                SvcParamKey::IPV4HINT => {
                    value.as_chunks().0.iter().for_each(|&hint| add(Ipv4Addr::from(hint).into(), ttl, self.start, to));
                }
                SvcParamKey::IPV6HINT => {
                    value.as_chunks().0.iter().for_each(|&hint| add(Ipv6Addr::from(hint).into(), ttl, self.start, to));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The record's data as the type that its type says.
fn data<'a, D: ParseRecordData<'a, [u8]>>(record: ParsedRecord<'a, [u8]>) -> Result<D, Unusable> {
    record.into_record().ok().flatten().map(Record::into_data).ok_or(Unusable::Bad)
}

/// A time to live with the top bit set counts as 0 (RFC 2181, section 8).
fn seconds(record: &ParsedRecord<'_, [u8]>) -> u32 {
    let seconds = record.ttl().as_secs();
    if seconds > i32::MAX as u32 { 0 } else { seconds }
}

fn add(ip: IpAddr, ttl: u32, start: usize, to: &mut Vec<Address>) {
    if to.len() - start < MOST_ADDRESSES {
        to.push(Address { ip: ip.to_canonical(), ttl });
    }
}
