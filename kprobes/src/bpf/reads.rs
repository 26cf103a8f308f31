//! Reads of several fields at once.
//!
//! A call of `bpf_probe_read` costs about 90 instructions, and each 8 bytes that it copies three more. So fields of one
//! object that are not far apart are read together, with what lies between them.

use super::reader::to_number;
use super::{Alu, Assembler, Reader, Register, Width};
use crate::{Error, Expression};

/// The maximum number of bytes between two fields that are read together. Their copy costs less than a second call.
const MAX_GAP: i64 = 96;
/// The size of the stack (`MAX_BPF_STACK`).
const STACK: i64 = 512;

/// A plan that reads fields to the stack, each object with as few calls as possible.
///
/// Fields may be read in several phases, so that a program does not read what it rarely needs. A field that lies near a field
/// of an earlier phase is read together with it.
#[derive(Clone, Debug)]
pub struct Reads {
    windows: Vec<Window>,
    bottom: i16,
}

/// A call of `bpf_probe_read`.
#[derive(Clone, Debug)]
struct Window {
    phase: u8,
    /// The pointer to the object: a register of the context, or a field of an earlier window.
    pointer: Expression,
    /// The offset of the first byte from the pointer.
    low: i64,
    size: u16,
    /// Where it is on the stack.
    at: i16,
}

/// Where a field lies in its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    offset: i64,
    size: i64,
    phase: u8,
}

impl Reads {
    /// Plans reads of these fields, each in its phase, to the stack below the offset `top`. Expressions that read nothing
    /// need no place: they are registers.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if they do not fit the stack.
    pub fn plan(program: &str, fields: &[(u8, &Expression)], top: i16) -> Result<Self, Error> {
        let mut objects: Vec<(Expression, Vec<Span>)> = Vec::new();
        for &(phase, field) in fields {
            note(&mut objects, phase, field);
        }
        // The pointer to an object may be a field of another object, which must be read first. That one takes fewer reads.
        objects.sort_by_key(|(pointer, _)| pointer.reads.len());
        let mut reads = Self { windows: Vec::new(), bottom: top };
        for (pointer, mut spans) in objects {
            spans.sort_unstable();
            for spans in spans.chunk_by(|one, next| next.offset - (one.offset + one.size) <= MAX_GAP) {
                reads.add(program, &pointer, spans)?;
            }
        }
        Ok(reads)
    }

    fn add(&mut self, program: &str, pointer: &Expression, spans: &[Span]) -> Result<(), Error> {
        let end = |span: &Span| span.offset.saturating_add(span.size);
        let (low, high) = (spans[0].offset, spans.iter().map(end).max().unwrap_or_default());
        let phase = spans.iter().map(|span| span.phase).min().unwrap_or_default();
        let (shift, size) = (best_shift(low, spans), high.saturating_sub(low));
        let at = (i64::from(self.bottom).saturating_sub(size).saturating_sub(shift) & !7) + shift;
        let place = i16::try_from(at).ok().filter(|_| at >= -STACK);
        let (Some(at), Ok(size)) = (place, u16::try_from(size)) else {
            let count = usize::try_from(-at).unwrap_or(usize::MAX);
            return Err(Error::TooLarge {
                probe: program.to_owned(),
                what: "bytes of stack",
                count,
                most: STACK as usize,
            });
        };
        self.bottom = at & !7;
        self.windows.push(Window { phase, pointer: pointer.clone(), low, size, at });
        Ok(())
    }

    /// The offset of the lowest byte of the stack that it uses, a multiple of 8.
    #[cfg(test)]
    fn bottom(&self) -> i16 {
        self.bottom
    }

    /// Writes the reads of a phase. If memory cannot be read, the program continues at the reader's label.
    ///
    /// # Errors
    /// [`Error::Unreadable`]
    pub fn read(&self, asm: &mut Assembler, reader: &Reader, phase: u8) -> Result<(), Error> {
        for window in self.windows.iter().filter(|window| window.phase == phase) {
            match self.place(&window.pointer) {
                Some(_) => self.load(asm, reader, &window.pointer, Register::R3)?,
                None => reader.address(asm, &window.pointer, Register::R3)?,
            }
            reader.memory(asm, Register::R3, window.low, window.at, window.size);
        }
        Ok(())
    }

    /// Where the bytes of a planned field are on the stack. `None` if it was not planned, or is a register.
    pub fn place(&self, field: &Expression) -> Option<i16> {
        let (pointer, offset) = field.pointer()?;
        let window = self.windows.iter().find(|window| {
            let end = window.low.saturating_add(window.size.into());
            window.pointer == pointer && window.low <= offset && offset.saturating_add(size(field)) <= end
        })?;
        i16::try_from(offset - window.low).ok().map(|within| window.at + within)
    }

    /// Loads the value of a field that was planned, and whose phase has been read, or that is a register. May overwrite `R0`,
    /// or `R1` if the value is loaded into `R0`.
    ///
    /// # Errors
    /// [`Error::Unreadable`]
    pub fn load(&self, asm: &mut Assembler, reader: &Reader, field: &Expression, into: Register) -> Result<(), Error> {
        match self.place(field) {
            Some(at) if size(field) > 1 && i64::from(at) % size(field) != 0 => {
                load_unaligned(asm, at, size(field), into);
                to_number(asm, field, into);
                Ok(())
            }
            Some(at) => reader.value_of_bytes(asm, field, at, into),
            None => reader.value(asm, field, into),
        }
    }
}

/// Loads a number of `size` bytes that begins anywhere on the stack. The verifier allows only loads at multiples of
/// their width.
fn load_unaligned(asm: &mut Assembler, at: i16, size: i64, into: Register) {
    let widest = (1..size).rev().find(|width| size % width == 0 && i64::from(at) % width == 0).unwrap_or(1);
    let width = Width::of(widest as usize).unwrap_or(Width::Byte);
    let pieces = size / widest;
    let scratch = if into == Register::R0 { Register::R1 } else { Register::R0 };
    // The machine is little-endian: the last piece is the highest.
    for piece in (0..pieces).rev() {
        let place = at + (piece * widest) as i16;
        if piece == pieces - 1 {
            asm.load(width, into, Register::Frame, place);
        } else {
            asm.alu(Alu::ShiftLeft, into, (8 * widest) as i32);
            asm.load(width, scratch, Register::Frame, place);
            asm.alu(Alu::Or, into, scratch);
        }
    }
}

/// Adds the field to its object, and all pointers on the way to the object to theirs.
fn note(objects: &mut Vec<(Expression, Vec<Span>)>, phase: u8, field: &Expression) {
    let Some((pointer, offset)) = field.pointer() else { return };
    note(objects, phase, &pointer);
    let span = Span { offset, size: size(field), phase };
    match objects.iter_mut().find(|(known, _)| *known == pointer) {
        Some((_, spans)) => spans.push(span),
        None => objects.push((pointer, vec![span])),
    }
}

fn size(field: &Expression) -> i64 {
    field.kind.size() as i64
}

/// How far above a multiple of 8 a window should begin, so that most of its fields lie at multiples of their size.
fn best_shift(low: i64, spans: &[Span]) -> i64 {
    let aligned = |shift: i64| spans.iter().filter(|span| (span.offset - low + shift) % span.size.max(1) == 0).count();
    // The smallest of the best, because `max_by_key` returns the last one.
    (0..8).rev().max_by_key(|shift| aligned(*shift)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Type;
    use crate::bpf::Register::*;
    use crate::bpf::reader::tests::{Machine, expression, machines};

    /// A field at this offset from the pointer that a chain of reads gives.
    fn field(machine: &Machine, base: u8, chain: &[i64], offset: i64, kind: usize, bits: u8) -> Expression {
        expression(machine, (base, [chain, &[offset]].concat(), kind, bits))
    }

    proptest! {
        /// Each field has the value that it has when it is read alone.
        #[test]
        fn fields_read_together_are_the_same(
            machine in machines(),
            base in 2..5_u8,
            fields in prop::collection::vec((0..3_usize, -40..120_i64, 0..8_usize, 0..64_u8, 0..2_u8), 1..8),
            chosen in any::<prop::sample::Index>(),
        ) {
            let chains: [&[i64]; 3] = [&[], &[16], &[24, 8]];
            let expressions: Vec<_> = fields.iter()
                .map(|(chain, offset, kind, bits, phase)| {
                    (*phase, field(&machine, base, chains[*chain], *offset, *kind, *bits))
                })
                .collect();
            let planned: Vec<_> = expressions.iter().map(|(phase, one)| (*phase, one)).collect();
            let reads = Reads::plan("test", &planned, -8);
            prop_assume!(reads.is_ok());
            let reads = reads.unwrap();
            prop_assert!(reads.bottom() % 8 == 0 && reads.bottom() >= -512);
            let (_, one) = &expressions[chosen.index(expressions.len())];
            let read = machine.run(|asm, reader| {
                reads.read(asm, reader, 0).unwrap();
                reads.read(asm, reader, 1).unwrap();
                reads.load(asm, reader, one, R0).unwrap();
            });
            // Memory that lies between fields may be missing, and then none of them is read.
            prop_assert!(read.is_none() || read == machine.value(one), "{read:?} {one}");
            let kept = machine.run(|asm, reader| {
                reads.read(asm, reader, 0).unwrap();
                reads.read(asm, reader, 1).unwrap();
                reads.load(asm, reader, one, R1).unwrap();
                reads.load(asm, reader, planned[0].1, R2).unwrap();
                asm.mov(R0, R1);
            });
            prop_assert_eq!(kept, read, "a load overwrites only R0 besides its own register");
            let reads_all = expressions.iter().all(|(_, one)| machine.value(one).is_some());
            prop_assert!(read.is_some() || !reads_all || machine.has_holes());
        }
    }

    #[test]
    fn near_fields_of_an_object_take_one_call() {
        let scope = |_: &str, name: &str| match name {
            "skb" => Some(crate::Term::Argument(1)),
            "data" => Some(crate::Term::Offset(200)),
            "len" => Some(crate::Term::Offset(112)),
            "far" => Some(crate::Term::Offset(900)),
            _ => None,
        };
        let target = crate::Target::Kprobe { function: "f" };
        let of = |template: &'static str, kind| {
            crate::Fetch::constant("x", template, kind).expression("p", target, &scope).unwrap()
        };
        let (len, ports) = (of("+{len}({skb})", Type::U64), of("+20(+{data}({skb}))", Type::U32));
        let (addresses, far) = (of("+12(+{data}({skb}))", Type::U64), of("+{far}({skb})", Type::U8));
        let reads = Reads::plan("p", &[(0, &len), (0, &ports), (0, &addresses), (1, &far)], -8).unwrap();
        let calls: Vec<_> = reads.windows.iter().map(|window| (window.phase, window.low, window.size)).collect();
        assert_eq!(calls, [(0, 112, 96), (1, 900, 1), (0, 12, 12)]);
        assert_eq!(reads.place(&addresses).unwrap() % 8, 0);
        assert_eq!(reads.place(&ports).unwrap(), reads.place(&addresses).unwrap() + 8);
        assert_eq!(reads.place(&of("{skb}", Type::U64)), None);
        let error = Reads::plan("p", &[(0, &len), (0, &of("+600({skb})", Type::U64))], -500).unwrap_err();
        assert!(error.to_string().contains("bytes of stack"), "{error}");
    }
}
