//! The fields that programs read: those that the samples of the same probes declare.

use socktrail_kprobes::bpf::{Unreadable, Width};
use socktrail_kprobes::{Error, Expression, Fetch, HookSamples, Resolver, Sample, Type};

use super::Family;
use super::entry::offset;
use super::table::Table;
use crate::model::event::PacketDirection;
use crate::source::kprobes::sockets::SockGraft;
use crate::source::kprobes::{AF_INET, AF_INET6, Probe};

/// The socket that an arriving packet already has, if any.
const RECEIVER: Fetch<'static> = Fetch::constant("receiver", "+{sk_buff.sk}({skb})", Type::U64);
/// `skc_state` of the socket that sends the packet. It follows `skc_family`, which has two bytes.
const SENDER_STATE: Fetch<'static> = Fetch::constant("state", "+{sock_common.skc_family+2}({sk})", Type::U8);

/// The fields of a probe's sample, by name.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    /// The name of the program.
    pub(super) program: &'static str,
    pub(super) probe: &'a Probe,
    /// The samples, if the probe is at a hook.
    pub(super) hook: Option<&'a HookSamples>,
    pub(super) resolver: &'a dyn Resolver,
    /// The size of the table of conversations.
    pub(super) table: Table,
}

impl Fields<'_> {
    /// The field of this name.
    ///
    /// # Errors
    /// The sample does not have it, or the layout does not know where it is.
    pub(super) fn get(&self, name: &str) -> Result<Expression, Error> {
        self.declared(self.probe.fetches, name)
    }

    /// The field of this name. `None` if this kernel does not have it.
    ///
    /// # Errors
    /// The template is malformed.
    pub(super) fn optional(&self, name: &str) -> Result<Option<Expression>, Error> {
        match self.get(name) {
            Ok(field) => Ok(Some(field)),
            Err(Error::Unresolved { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A field of the `struct sock` that sends the packet, at a probe that has it as an argument. The template is that of the probe on accepted sockets.
    ///
    /// # Errors
    /// Those of [`Fields::get`].
    pub(super) fn of_sock(&self, name: &str) -> Result<Expression, Error> {
        self.declared(SockGraft::FETCHES, name)
    }

    /// The `struct sock` that early demultiplexing has found for an arriving packet, or 0.
    ///
    /// # Errors
    /// Those of [`Fields::get`].
    pub(super) fn receiver(&self) -> Result<Expression, Error> {
        RECEIVER.expression(self.program, self.probe.target, self.resolver)
    }

    /// The state of the `struct sock` that sends the packet.
    ///
    /// # Errors
    /// Those of [`Fields::get`].
    pub(super) fn sender_state(&self) -> Result<Expression, Error> {
        SENDER_STATE.expression(self.program, self.probe.target, self.resolver)
    }

    /// A value that no sample has.
    ///
    /// # Errors
    /// Those of [`Fields::get`].
    pub(super) fn further(&self, fetch: Fetch<'static>) -> Result<Expression, Error> {
        fetch.expression(self.program, self.probe.target, self.resolver)
    }

    fn declared(&self, fetches: &[Fetch<'_>], name: &str) -> Result<Expression, Error> {
        let Some(fetch) = fetches.iter().find(|fetch| fetch.name == name) else {
            return Err(Error::Unresolved {
                probe: self.program.to_owned(),
                function: self.probe.function().to_owned(),
                argument: name.to_owned(),
                name: name.to_owned(),
            });
        };
        fetch.expression(self.program, self.probe.target, self.resolver)
    }

    /// A part of the field `name` that is `by` bytes after its start.
    ///
    /// # Errors
    /// Those of [`Fields::get`], or the field is a register.
    pub(super) fn part(&self, name: &str, by: usize, kind: Type) -> Result<Expression, Error> {
        let whole = self.get(name)?;
        whole
            .part(by, kind)
            .ok_or_else(|| Error::Unreadable { argument: whole.to_string(), source: Unreadable::NoMemory })
    }
}

/// A field of a packet's headers, and the part of an entry's ends that has the same value.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) field: Expression,
    /// Its offset in the entry, in bytes.
    pub(super) at: i16,
    pub(super) width: Width,
}

/// The ends of a packet: its address and port fields, in the order in which an entry has them.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    pub(super) pieces: Vec<Piece>,
    /// The fields `protocol` and `family` of the entry, as one word.
    pub(super) protocol_and_family: i32,
}

impl Ends {
    /// The ends of a packet of this protocol. In the headers of an arriving packet, the other end comes first.
    ///
    /// # Errors
    /// The layout does not know a field.
    pub(super) fn of(
        fields: &Fields<'_>,
        family: Family,
        direction: PacketDirection,
        protocol: u16,
    ) -> Result<Self, Error> {
        let leaves = direction == PacketDirection::Outbound;
        let piece = |field, at, width| Piece { field, at, width };
        let first = offset!(addresses);
        let mut pieces = match (family, leaves) {
            (Family::Ipv4, true) => vec![piece(fields.get("addresses")?, first, Width::Double)],
            (Family::Ipv4, false) => vec![
                piece(fields.part("addresses", 4, Type::U32)?, first, Width::Word),
                piece(fields.part("addresses", 0, Type::U32)?, first + 4, Width::Word),
            ],
            (Family::Ipv6, _) => {
                let names = ["source_high", "source_low", "destination_high", "destination_low"];
                let order = if leaves { [0, 1, 2, 3] } else { [2, 3, 0, 1] };
                let word = |(at, name): (usize, usize)| {
                    Ok(piece(fields.get(names[name])?, first + 8 * at as i16, Width::Double))
                };
                order.into_iter().enumerate().map(word).collect::<Result<_, Error>>()?
            }
        };
        // At a kprobe, the sample of an outgoing IPv4 packet has eight bytes that begin with the ports.
        let has_more = (family, leaves, fields.hook.is_none()) == (Family::Ipv4, true, true);
        let ports = if has_more { "behind" } else { "ports" };
        let at = offset!(ports);
        if leaves {
            pieces.push(piece(fields.part(ports, 0, Type::U32)?, at, Width::Word));
        } else {
            pieces.push(piece(fields.part(ports, 2, Type::U16)?, at, Width::Half));
            pieces.push(piece(fields.part(ports, 0, Type::U16)?, at + 2, Width::Half));
        }
        let family = if family == Family::Ipv4 { AF_INET } else { AF_INET6 };
        let protocol_and_family = i32::from(protocol) | i32::from(family) << 16;
        Ok(Self { pieces, protocol_and_family })
    }

    /// The pieces of both addresses.
    pub(super) fn addresses(&self) -> &[Piece] {
        let count = self.pieces.iter().take_while(|piece| piece.at < offset!(ports)).count();
        &self.pieces[..count]
    }

    /// The pieces of both ports.
    pub(super) fn ports(&self) -> &[Piece] {
        &self.pieces[self.addresses().len()..]
    }

    pub(super) fn is_ipv4(&self) -> bool {
        self.protocol_and_family >> 16 == i32::from(AF_INET)
    }
}
