//! Records that programs at hooks write, as the kernel writes those of kprobes.

use super::Register::{Frame, R0, R1, R2, R3, R4, R5, R9};
use super::reader::CONTEXT;
use super::{Assembler, CURRENT_CPU, Condition, Helper, Label, Reader, Width};
use crate::format::FormatField;
use crate::{Error, Expression, Fetch, Format, Hook, Resolver, Target, WordSize};

/// The bytes before its first value: `common_type` to `common_pid`.
const HEAD: u16 = 8;
/// The size of a program's stack (`MAX_BPF_STACK`).
const STACK: i16 = 512;
/// The largest record that is built on the stack.
const MOST_ON_STACK: u16 = 160;

/// The layout of a hook's records, and the values in them.
#[derive(Clone, Debug)]
pub struct Record {
    format: Format,
    values: Vec<Expression>,
    size: u16,
}

/// Where a program builds a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// On the stack, from this offset down.
    Stack(i16),
    /// In the only value of the map with this number: see [`Map::scratch`](super::Map::scratch).
    Map(u32),
}

impl Record {
    /// The record of `fetches` at a hook. `id` is its `common_type`.
    ///
    /// # Errors
    /// [`Error::Unresolved`], [`Error::BadTemplate`].
    pub fn new(name: &str, id: u16, hook: Hook, fetches: &[Fetch<'_>], resolver: &dyn Resolver) -> Result<Self, Error> {
        let (mut fields, mut values, mut end) = (Vec::new(), Vec::new(), HEAD);
        for fetch in fetches {
            let value = match fetch.expression(name, Target::Hook(hook), resolver) {
                Err(Error::Unresolved { .. }) if fetch.optional => continue,
                value => value?,
            };
            let kind = value.kind.resolved(WordSize::OURS);
            let (size, unit) = (kind.size() as u16, kind.size().min(8) as u16);
            let offset = end.next_multiple_of(unit);
            end = offset + size;
            let kind = if size > 8 { "u8[]".to_owned() } else { kind.to_string() };
            fields.push(FormatField { name: fetch.name.to_string(), kind, offset, size, signed: false });
            values.push(value);
        }
        let format = Format { name: name.to_owned(), id: id.into(), fields };
        Ok(Self { format, values, size: end.next_multiple_of(8) })
    }

    /// The layout.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Its size in bytes.
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Whether the stack has room for it below `bottom`, the lowest offset that is in use.
    pub fn fits_stack(&self, bottom: i16) -> bool {
        self.size <= MOST_ON_STACK && bottom >= self.size.cast_signed() - STACK
    }

    /// Writes instructions that build the record and write it into the ring of this CPU, through the map of outputs with this
    /// number. A value that cannot be read is 0. They overwrite `R0` to `R5` and `R9`.
    ///
    /// # Errors
    /// [`Error::Unreadable`], [`Error::TooLarge`] if the stack has no room for it.
    pub fn write(&self, asm: &mut Assembler, reader: &Reader, outputs: u32, buffer: Buffer) -> Result<(), Error> {
        if let Buffer::Stack(bottom) = buffer
            && bottom < self.size.cast_signed() - STACK
        {
            return Err(Error::TooLarge {
                probe: self.format.name.clone(),
                what: "bytes of stack",
                count: usize::from(self.size + bottom.unsigned_abs()),
                most: STACK as usize,
            });
        }
        let reader = reader.or_zeros();
        let end = asm.label();
        self.begin(asm, reader.scratch(), buffer, end);
        for (field, value) in self.format.fields.iter().zip(&self.values) {
            reader.store(asm, value, R9, field.offset.cast_signed())?;
        }
        asm.mov(R1, CONTEXT);
        asm.load_map(R2, outputs);
        asm.load64(R3, CURRENT_CPU);
        asm.mov(R4, R9);
        asm.mov(R5, i32::from(self.size));
        asm.call(Helper::Output);
        asm.bind(end);
        Ok(())
    }

    /// Points `R9` at the empty record.
    fn begin(&self, asm: &mut Assembler, scratch: i16, buffer: Buffer, failed: Label) {
        match buffer {
            Buffer::Stack(bottom) => {
                asm.stack_address(R9, bottom - self.size.cast_signed());
            }
            Buffer::Map(map) => {
                // The key is 0.
                asm.store(Width::Double, Frame, scratch, 0);
                asm.load_map(R1, map);
                asm.stack_address(R2, scratch);
                asm.call(Helper::MapLookup);
                asm.jump_if(Condition::Equal, R0, 0, failed);
                asm.mov(R9, R0);
            }
        }
        // Gaps between values must be written, too.
        let values = self.format.fields.iter().filter(|field| field.size > 8);
        let is_array = |at: u16| values.clone().any(|field| (field.offset..field.offset + field.size).contains(&at));
        for at in (0..self.size).step_by(8).filter(|at| !is_array(*at)) {
            asm.store(Width::Double, R9, at.cast_signed(), 0);
        }
        asm.store(Width::Half, R9, 0, self.format.id as i32);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::reader::tests::machines;
    use super::*;
    use crate::{Term, Type};

    const KINDS: [Type; 6] = [Type::U8, Type::S16, Type::U32, Type::U64, Type::Bytes(24), Type::U64Array(4)];

    /// A chain of reads at these offsets, as a template.
    fn template(offsets: &[u16]) -> String {
        offsets.iter().fold("{skb}".to_owned(), |inner, offset| format!("+{offset}({inner})"))
    }

    proptest! {
        /// Each value is what a direct read of the machine's memory gives, and 0 where memory is missing.
        #[test]
        fn a_record_has_the_values_of_its_fields(
            machine in machines(),
            fields in prop::collection::vec((prop::collection::vec(0..500_u16, 1..4), 0..KINDS.len()), 1..7),
        ) {
            let names = ["a", "b", "c", "d", "e", "f"];
            let fetches: Vec<_> = fields
                .iter()
                .zip(names)
                .map(|((offsets, kind), name)| Fetch::new(name, template(offsets), KINDS[*kind]))
                .collect();
            let no_names = |_: &str, _: &str| None::<Term>;
            let record = Record::new("test", 0xf00d, Hook::Egress, &fetches, &no_names).unwrap();
            prop_assume!(record.fits_stack(-8));
            let (context, written) = machine.run_at_hook(|asm, reader| {
                record.write(asm, reader, 0, Buffer::Stack(-8)).unwrap();
            });
            prop_assert_eq!(written.len(), usize::from(record.size));
            prop_assert_eq!(&written[..8], [0x0d, 0xf0, 0, 0, 0, 0, 0, 0]);
            for ((offsets, kind), name) in fields.iter().zip(names) {
                let place = record.format().field(name).unwrap();
                let value = &written[usize::from(place.offset)..][..usize::from(place.size)];
                prop_assert_eq!(value, machine.follow(context, offsets, KINDS[*kind].size()), "{}", name);
            }
        }
    }

    #[test]
    fn fields_lie_at_multiples_of_their_size() {
        let fetches = [("a", Type::U8), ("b", Type::U64), ("c", Type::U16), ("d", Type::Bytes(12)), ("e", Type::U8)]
            .map(|(name, kind)| Fetch::new(name, "+0({skb})", kind));
        let missing = Fetch::new("missing", "+{no.such}({skb})", Type::U64).optional(true);
        let all = [&fetches[..], &[missing]].concat();
        let no_names = |_: &str, _: &str| None::<Term>;
        let record = Record::new("test", 1, Hook::Ingress, &all, &no_names).unwrap();
        let places: Vec<_> =
            record.format.fields.iter().map(|field| (&*field.name, field.offset, field.size)).collect();
        assert_eq!(places, [("a", 8, 1), ("b", 16, 8), ("c", 24, 2), ("d", 32, 12), ("e", 44, 1)]);
        assert_eq!(record.size, 48);
        assert_eq!(Format::parse(record.format.to_string().as_bytes()).unwrap(), record.format);
        assert!(
            Record::new("test", 1, Hook::Ingress, &[Fetch::new("x", "+{a.b}({skb})", Type::U8)], &no_names).is_err()
        );
    }
}
