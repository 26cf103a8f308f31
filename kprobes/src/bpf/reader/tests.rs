//! Compares programs, run in an independent interpreter, with a direct evaluation of expressions.

use std::cell::Cell;

use proptest::prelude::*;

use super::Register::*;
use super::*;
use crate::expression::{Arguments, Read};

/// At least the size of `struct pt_regs` on the larger architecture.
const REGISTERS: usize = 272;
/// After the registers, where the interpreter lets programs write: whether the read succeeded, and the value.
const READ: i16 = REGISTERS as i16;
const VALUE: i16 = READ + 8;
const CONTEXT_SIZE: usize = REGISTERS + 16;
/// The return value of `bpf_probe_read` for unmapped memory.
const EFAULT: i64 = -14;

thread_local! {
    /// The kernel's memory.
    static MEMORY: Cell<Memory> = const { Cell::new(Memory { seed: 0, hole: u64::MAX }) };
    /// The record that a program has written.
    static OUTPUT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Memory with pseudorandom bytes at every address except in holes, so that almost every value can be followed as a
/// pointer.
#[derive(Clone, Copy, Debug)]
struct Memory {
    seed: u64,
    /// One in `hole` pieces of 16 bytes is missing.
    hole: u64,
}

impl Memory {
    fn byte(self, address: u64) -> Option<u8> {
        // The finaliser of SplitMix64.
        let mix = |number: u64| {
            let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            number ^ number >> 31
        };
        let is_missing = mix(self.seed ^ !(address / 16)).is_multiple_of(self.hole);
        (!is_missing).then(|| mix(self.seed ^ address) as u8)
    }

    fn bytes(self, from: u64, size: usize) -> Option<Vec<u8>> {
        (0..size as u64).map(|at| self.byte(from.wrapping_add(at))).collect()
    }

    fn number(self, from: u64, size: usize) -> Option<u64> {
        self.bytes(from, size).map(|bytes| number(&bytes))
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// `bpf_probe_read` from that memory to the program's stack.
#[allow(unsafe_code, reason = "the interpreter hands the stack over as an address")]
fn probe_read(to: u64, size: u64, from: u64, _: u64, _: u64) -> u64 {
    let (bytes, answer) = match MEMORY.get().bytes(from, size as usize) {
        Some(bytes) => (bytes, 0),
        None => (vec![0; size as usize], EFAULT),
    };
    // SAFETY: the programs below reserve `size` bytes of the interpreter's stack at this address.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
    answer.cast_unsigned()
}

/// `bpf_perf_event_output`.
#[allow(unsafe_code, reason = "the interpreter hands the record over as an address")]
fn output(_: u64, _: u64, _: u64, from: u64, size: u64) -> u64 {
    // SAFETY: the programs below pass the address and the size of a record on the interpreter's stack.
    OUTPUT.set(unsafe { std::slice::from_raw_parts(from as *const u8, size as usize) }.to_vec());
    0
}

/// A machine that is probed.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    architecture: Architecture,
    registers: Vec<u8>,
    memory: Memory,
}

impl Machine {
    /// Whether some of its memory is missing.
    pub(crate) fn has_holes(&self) -> bool {
        self.memory.hole != u64::MAX
    }

    fn register(&self, name: &str) -> u64 {
        let at = self.architecture.register(name).unwrap() as usize;
        number(&self.registers[at..at + 8])
    }

    fn base(&self, base: &Base) -> Option<u64> {
        match base {
            Base::Register(name) => Some(self.register(name)),
            Base::Stack(index) => self.memory.number(self.register("sp").wrapping_add(u64::from(*index) * 8), 8),
            Base::Returned => Some(self.register(self.architecture.returned())),
            other => panic!("{other:?}"),
        }
    }

    /// The address of the last read.
    fn place(&self, expression: &Expression) -> Option<u64> {
        let (last, before) = expression.reads.split_last().unwrap();
        let follow = |pointer: u64, read: &Read| self.memory.number(pointer.wrapping_add_signed(read.offset), 8);
        let pointer = before.iter().try_fold(self.base(&expression.base)?, follow)?;
        Some(pointer.wrapping_add_signed(last.offset))
    }

    /// The value that tracefs would fetch, according to kprobetrace.rst.
    pub(crate) fn value(&self, expression: &Expression) -> Option<u64> {
        let size = expression.kind.size();
        let whole = match (&expression.base, expression.reads.is_empty()) {
            (Base::Stack(index), true) => {
                self.memory.number(self.register("sp").wrapping_add(u64::from(*index) * 8), size)?
            }
            (base, true) => self.base(base)?,
            (_, false) => self.memory.number(self.place(expression)?, size)?,
        };
        Some(match expression.kind {
            Type::U8 => u64::from(whole as u8),
            Type::U16 => u64::from(whole as u16),
            Type::U32 => u64::from(whole as u32),
            Type::S8 => i64::from(whole as i8).cast_unsigned(),
            Type::S16 => i64::from(whole as i16).cast_unsigned(),
            Type::S32 => i64::from(whole as i32).cast_unsigned(),
            _ => whole,
        })
        .map(|value| expression.bits.map_or(value, |bits| value & (u64::MAX >> (64 - bits))))
    }

    /// Runs a program at a hook, which writes one record. Returns the address of its context, and the record.
    pub(crate) fn run_at_hook(&self, write: impl FnOnce(&mut Assembler, &Reader)) -> (u64, Vec<u8>) {
        let mut asm = Assembler::new();
        let end = asm.label();
        let reader = Reader::at_hook(&mut asm, Hook::Egress, -8, end);
        write(&mut asm, &reader);
        asm.bind(end);
        asm.mov(R0, 1);
        asm.exit();
        let code = asm.finish("test").unwrap().bytes();
        let mut context = [0; CONTEXT_SIZE];
        MEMORY.set(self.memory);
        let mut vm = rbpf::EbpfVmRaw::new(Some(&code)).unwrap();
        vm.register_helper(Helper::ProbeReadKernel as u32, probe_read).unwrap();
        vm.register_helper(Helper::Output as u32, output).unwrap();
        vm.execute_program(&mut context).unwrap();
        (context.as_ptr().expose_provenance() as u64, OUTPUT.take())
    }

    /// The bytes at the end of a chain of reads. Where memory is missing, a read gives zeros.
    pub(crate) fn follow(&self, from: u64, offsets: &[u16], size: usize) -> Vec<u8> {
        let (last, before) = offsets.split_last().unwrap();
        let pointer = |from: u64, offset: &u16| self.memory.number(from.wrapping_add((*offset).into()), 8).unwrap_or(0);
        let pointer = before.iter().fold(from, pointer);
        self.memory.bytes(pointer.wrapping_add((*last).into()), size).unwrap_or_else(|| vec![0; size])
    }

    /// Runs a program that `write` writes and that leaves its value in `R0`. `None` if memory could not be read.
    pub(crate) fn run(&self, write: impl FnOnce(&mut Assembler, &Reader)) -> Option<u64> {
        let mut asm = Assembler::new();
        let failed = asm.label();
        let reader = Reader::for_architecture(&mut asm, self.architecture, -8, failed);
        write(&mut asm, &reader);
        asm.store(Width::Double, CONTEXT, VALUE, R0);
        asm.store(Width::Double, CONTEXT, READ, 1);
        asm.bind(failed);
        asm.mov(R0, 0);
        asm.exit();
        let code = asm.finish("test").unwrap().bytes();
        let mut context = [0; CONTEXT_SIZE];
        context[..REGISTERS].copy_from_slice(&self.registers);
        MEMORY.set(self.memory);
        let mut vm = rbpf::EbpfVmRaw::new(Some(&code)).unwrap();
        vm.register_helper(Helper::ProbeRead as u32, probe_read).unwrap();
        vm.execute_program(&mut context).unwrap();
        let number = |at: i16| number(&context[at as usize..][..8]);
        (number(READ) == 1).then(|| number(VALUE))
    }
}

pub(crate) fn machines() -> impl Strategy<Value = Machine> {
    let architectures = prop_oneof![Just(Architecture::X86_64), Just(Architecture::Aarch64)];
    let registers = prop::collection::vec(any::<u8>(), REGISTERS);
    let hole = prop_oneof![Just(u64::MAX), Just(4)];
    (architectures, registers, any::<u64>(), hole).prop_map(|(architecture, registers, seed, hole)| Machine {
        architecture,
        registers,
        memory: Memory { seed, hole },
    })
}

/// An expression that a template can have on this machine.
pub(crate) fn expression(machine: &Machine, parts: (u8, Vec<i64>, usize, u8)) -> Expression {
    const KINDS: [Type; 8] = [Type::U8, Type::U16, Type::U32, Type::U64, Type::S8, Type::S16, Type::S32, Type::S64];
    let (base, offsets, kind, bits) = parts;
    let arguments = match machine.architecture {
        Architecture::X86_64 => Arguments::X86_64,
        Architecture::Aarch64 => Arguments::Aarch64,
    };
    let base = match base {
        0 => arguments.caller().unwrap(),
        1 => Base::Returned,
        number => arguments.argument(number - 1).unwrap(),
    };
    let reads: Vec<_> = offsets.into_iter().map(|offset| Read { offset, user: false }).collect();
    let kind = KINDS[kind];
    let bits = (1..).contains(&bits).then_some(bits).filter(|bits| !reads.is_empty() && kind.of_bits(*bits).is_some());
    Expression { base, reads, kind, bits }
}

fn offsets() -> impl Strategy<Value = Vec<i64>> {
    prop::collection::vec(prop_oneof![-64..1024_i64, any::<i32>().prop_map(i64::from), any::<i64>()], 0..5)
}

proptest! {
    #[test]
    fn programs_read_the_same_values_as_tracefs(machine in machines(), parts in (0..14_u8, offsets(), 0..8_usize, 0..64_u8)) {
        let expression = expression(&machine, parts);
        let read = machine.run(|asm, reader| reader.value(asm, &expression, R0).unwrap());
        prop_assert_eq!(read, machine.value(&expression), "{}:{}", expression, expression.type_text());
    }

    /// A wide read, and one field within it.
    #[test]
    fn fields_are_found_in_wide_reads(
        machine in machines(),
        parts in (0..14_u8, offsets(), 0..8_usize, 0..64_u8),
        size in 8..104_u16,
        at in 0..96_i16,
    ) {
        const BYTES: i16 = -112;
        let expression = expression(&machine, parts);
        prop_assume!(!expression.reads.is_empty() && usize::try_from(at).unwrap() + expression.kind.size() <= size.into());
        let read = machine.run(|asm, reader| {
            reader.bytes(asm, &expression, BYTES, size).unwrap();
            reader.value_of_bytes(asm, &expression, BYTES + at, R0).unwrap();
        });
        let whole = machine.place(&expression).and_then(|place| machine.memory.bytes(place, size.into()));
        let field = expression.part(at as usize, expression.kind);
        let field = field.map(|field| Expression { bits: expression.bits, ..field });
        prop_assume!(field.is_some());
        prop_assert_eq!(read, whole.and_then(|_| machine.value(&field.unwrap())));
    }
}

#[test]
fn expressions_without_a_form_in_a_program_are_errors() {
    let mut asm = Assembler::new();
    let failed = asm.label();
    let reader = Reader::for_architecture(&mut asm, Architecture::X86_64, -8, failed);
    let of = |base, kind| Expression { base, reads: Vec::new(), kind, bits: None };
    let mut why = |expression: &Expression| match reader.value(&mut asm, expression, R0) {
        Err(Error::Unreadable { source, .. }) => Some(source),
        other => panic!("{other:?}"),
    };
    assert_eq!(why(&of(Base::Argument(1), Type::U8)), Some(Unreadable::Argument));
    assert_eq!(why(&of(Base::Verbatim("$comm".to_owned()), Type::U64)), Some(Unreadable::Verbatim));
    assert_eq!(why(&of(Base::Register("x0"), Type::U64)), Some(Unreadable::Architecture));
    for kind in [Type::String, Type::Bytes(4), Type::U64Array(1), Type::StringWindow(1)] {
        assert_eq!(why(&of(Base::Register("di"), kind)), Some(Unreadable::Type), "{kind}");
    }
    let error = reader.bytes(&mut asm, &of(Base::Register("di"), Type::U64), -16, 8).unwrap_err();
    assert_eq!(error.to_string(), "no BPF program can read %di: it reads no memory, so it has no bytes");
}
