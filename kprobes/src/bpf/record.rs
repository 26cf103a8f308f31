//! Records that programs at hooks write, as the kernel writes those of kprobes.

use super::Register::{Frame, R0, R1, R2, R3, R4, R5, R9};
use super::reader::CONTEXT;
use super::{Assembler, CURRENT_CPU, Condition, Helper, Label, Reader, Width};
use crate::format::FormatField;
use crate::{Error, Expression, Fetch, Format, Hook, Resolver, Target, WordSize};

/// The bytes before its first value: `common_type` to `common_pid`.
const HEAD: u16 = 8;
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
    pub(crate) const fn size(&self) -> u16 {
        self.size
    }

    /// Whether the stack has room for it below `bottom`, the lowest offset that is in use.
    pub(crate) fn fits_stack(&self, bottom: i16) -> bool {
        self.size <= MOST_ON_STACK && bottom >= self.size.cast_signed() - 512
    }

    /// Writes instructions that build the record and write it into the ring of this CPU, through the map of outputs with this
    /// number. A value that cannot be read is 0. They overwrite `R0` to `R5` and `R9`.
    ///
    /// # Errors
    /// [`Error::Unreadable`]
    pub fn write(&self, asm: &mut Assembler, reader: &Reader, outputs: u32, buffer: Buffer) -> Result<(), Error> {
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
