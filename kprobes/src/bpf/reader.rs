//! Translates an [`Expression`] into BPF instructions.

use super::registers::Architecture;
use super::{Alu, Assembler, Condition, Helper, Label, Register, Width};
use crate::expression::Base;
use crate::{Error, Expression, Hook, Type};

/// The register that keeps the pointer to the context from the first instruction on: `struct pt_regs` at a kprobe.
pub(super) const CONTEXT: Register = Register::R6;
/// Bytes of a pointer.
const POINTER: usize = 8;
/// The size of the pieces in which an array is read, in bytes.
const PIECE: usize = 64;
/// The offset of the result in the record of `syscalls:sys_exit_…`, after `common_type` to `common_pid` and the call's number.
const SYSCALL_RESULT: i16 = 16;
/// The offsets of `__sk_buff.gso_segs` and `gso_size` (`include/uapi/linux/bpf.h`, Linux 5.1 and 5.7).
const GSO_SEGMENTS: i16 = 164;
const GSO_SIZE: i16 = 176;

/// Writes instructions that read the values of expressions, through `bpf_probe_read`.
///
/// The reader owns `R6` in the whole program, and eight bytes of the stack. Its instructions overwrite `R0` to `R5`, and for
/// `$file` and `$transport` also `R8`. If
/// memory cannot be read, the program continues at a label. The helper reads both kernel and user memory, because their
/// addresses never overlap on these architectures.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    architecture: Option<Architecture>,
    scratch: i16,
    /// Where the program continues if memory cannot be read. Without it, it continues with zeros.
    failed: Option<Label>,
    /// The helper that reads memory.
    helper: Helper,
}

/// The reason why a program cannot read a fetch argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unreadable {
    /// Neither x86_64 nor aarch64.
    #[error("the registers of this architecture are not known")]
    Architecture,
    /// It begins with an argument whose register is unknown, because the probe is at the return of a function.
    #[error("arguments have a known place only at a function's entry")]
    Argument,
    /// It begins with a variable or constant of tracefs, such as `$comm`.
    #[error("it begins with text that only tracefs understands")]
    Verbatim,
    /// It is a string or an array.
    #[error("a string or an array has no value that fits a register")]
    Type,
    /// Its bytes were requested, but it is a register.
    #[error("it reads no memory, so it has no bytes")]
    NoMemory,
}

impl Reader {
    /// Writes the first instructions of a program. Nothing may come before them, because the context must still be in
    /// `R1`. `scratch` is the offset of eight bytes on the stack, a multiple of 8. If memory cannot be read, the
    /// program continues at `failed`.
    ///
    /// # Errors
    /// [`Error::Unreadable`] if the architecture's registers are unknown.
    pub fn new(asm: &mut Assembler, scratch: i16, failed: Label) -> Result<Self, Error> {
        let unknown = || Error::Unreadable { argument: "registers".to_owned(), source: Unreadable::Architecture };
        let architecture = Architecture::OURS.ok_or_else(unknown)?;
        Ok(Self::for_architecture(asm, architecture, scratch, failed))
    }

    /// Like [`Reader::new`], for a program at a hook.
    pub fn at_hook(asm: &mut Assembler, hook: Hook, scratch: i16, failed: Label) -> Self {
        Self::begin(asm, scratch);
        Self { architecture: None, scratch, failed: Some(failed), helper: hook.read_helper() }
    }

    fn for_architecture(asm: &mut Assembler, architecture: Architecture, scratch: i16, failed: Label) -> Self {
        Self::begin(asm, scratch);
        Self { architecture: Some(architecture), scratch, failed: Some(failed), helper: Helper::ProbeRead }
    }

    fn begin(asm: &mut Assembler, scratch: i16) {
        asm.mov(CONTEXT, Register::R1);
        // Before Linux 4.7, a helper may write only where the stack has been written before.
        asm.store(Width::Double, Register::Frame, scratch, 0);
    }

    /// The offset of its eight bytes on the stack.
    pub(super) const fn scratch(&self) -> i16 {
        self.scratch
    }

    /// The same reader, for reads that give zeros if memory cannot be read.
    #[must_use]
    pub(super) const fn or_zeros(mut self) -> Self {
        self.failed = None;
        self
    }

    /// Loads the value of `expression` into a register. Signed numbers are sign-extended, others are zero-extended.
    ///
    /// # Errors
    /// [`Error::Unreadable`]
    pub fn value(&self, asm: &mut Assembler, expression: &Expression, into: Register) -> Result<(), Error> {
        let of = |source| unreadable(expression, source);
        let width = width(expression.kind).map_err(of)?;
        let steps = self.steps(expression).map_err(of)?;
        match steps.last {
            None => {
                match steps.start {
                    Start::Context => self.context_as_number(asm, into),
                    start => self.load_start(asm, start, into),
                }
                narrow(asm, expression.kind, into);
            }
            Some(last) => {
                self.pointer(asm, &steps);
                self.memory(asm, Register::R3, last, self.scratch, expression.kind.size() as u16);
                load(asm, expression, width, self.scratch, into);
            }
        }
        Ok(())
    }

    /// Loads the value of `expression`, from which memory is to be read. It may stay a pointer to the verifier.
    ///
    /// # Errors
    /// [`Error::Unreadable`]
    pub(super) fn address(&self, asm: &mut Assembler, expression: &Expression, into: Register) -> Result<(), Error> {
        let steps = self.steps(expression).map_err(|source| unreadable(expression, source))?;
        match steps.last {
            None => self.load_start(asm, steps.start, into),
            Some(_) => self.value(asm, expression, into)?,
        }
        Ok(())
    }

    /// Loads the address of the context as a number. The verifier allows no arithmetic with the pointer itself, and forgets what it is
    /// once a helper has copied it, if only onto itself.
    fn context_as_number(&self, asm: &mut Assembler, into: Register) {
        asm.store(Width::Double, Register::Frame, self.scratch, CONTEXT);
        asm.stack_address(Register::R3, self.scratch);
        self.memory(asm, Register::R3, 0, self.scratch, POINTER as u16);
        asm.load(Width::Double, into, Register::Frame, self.scratch);
    }

    /// Copies `size` bytes to `to` on the stack, from the address at which the last read of `expression` begins. Before
    /// Linux 4.7 the program must have written there before.
    ///
    /// # Errors
    /// [`Error::Unreadable`]
    pub fn bytes(&self, asm: &mut Assembler, expression: &Expression, to: i16, size: u16) -> Result<(), Error> {
        let of = |source| unreadable(expression, source);
        let steps = self.steps(expression).map_err(of)?;
        let last = steps.last.ok_or_else(|| of(Unreadable::NoMemory))?;
        self.pointer(asm, &steps);
        self.memory(asm, Register::R3, last, to, size);
        Ok(())
    }

    /// Loads the value of `expression` into a register from its bytes, which are already at `from` on the stack.
    ///
    /// # Errors
    /// [`Error::Unreadable`] for a string or an array.
    pub fn value_of_bytes(
        &self,
        asm: &mut Assembler,
        expression: &Expression,
        from: i16,
        into: Register,
    ) -> Result<(), Error> {
        let width = width(expression.kind).map_err(|source| unreadable(expression, source))?;
        load(asm, expression, width, from, into);
        Ok(())
    }

    /// Copies `size` bytes at an offset from the pointer in a register to `to` on the stack.
    pub fn memory(&self, asm: &mut Assembler, pointer: Register, offset: i64, to: i16, size: u16) {
        self.copy(asm, (pointer, offset), (Register::Frame, to), size);
    }

    /// Copies `size` bytes at an offset from a pointer to an offset from another one, both in registers.
    fn copy(&self, asm: &mut Assembler, (pointer, offset): (Register, i64), (base, to): (Register, i16), size: u16) {
        if pointer != Register::R3 {
            asm.mov(Register::R3, pointer);
        }
        match i32::try_from(offset) {
            Ok(0) => {}
            Ok(offset) => asm.alu(Alu::Add, Register::R3, offset),
            Err(_) => {
                asm.load64(Register::R0, offset.cast_unsigned());
                asm.alu(Alu::Add, Register::R3, Register::R0);
            }
        }
        asm.mov(Register::R1, base);
        asm.alu(Alu::Add, Register::R1, i32::from(to));
        asm.mov(Register::R2, i32::from(size));
        asm.call(self.helper);
        if let Some(failed) = self.failed {
            asm.jump_if(Condition::NotEqual, Register::R0, 0, failed);
        }
    }

    /// Stores the value of `expression` at an offset from a register: an array, or a number.
    ///
    /// # Errors
    /// [`Error::Unreadable`] for a string.
    pub(super) fn store(
        &self,
        asm: &mut Assembler,
        expression: &Expression,
        base: Register,
        to: i16,
    ) -> Result<(), Error> {
        if let Type::StringWindow(_) | Type::Bytes(_) | Type::U64Array(_) = expression.kind {
            let steps = self.steps(expression).map_err(|source| unreadable(expression, source))?;
            let last = steps.last.ok_or_else(|| unreadable(expression, Unreadable::NoMemory))?;
            // In pieces: if one of them cannot be read, the others still can, as with a kprobe's array.
            let size = expression.kind.size();
            for at in (0..size).step_by(PIECE) {
                self.pointer(asm, &steps);
                self.copy(asm, (Register::R3, last + at as i64), (base, to + at as i16), PIECE.min(size - at) as u16);
            }
            return Ok(());
        }
        let width = width(expression.kind).map_err(|source| unreadable(expression, source))?;
        self.value(asm, expression, Register::R1)?;
        asm.store(width, base, to, Register::R1);
        Ok(())
    }

    /// Loads what an expression begins with. Only [`Start::File`] and [`Start::Transport`] overwrite `R8`.
    fn load_start(&self, asm: &mut Assembler, start: Start, into: Register) {
        match start {
            Start::Context => asm.mov(into, CONTEXT),
            Start::ContextWord(offset) => asm.load(Width::Double, into, CONTEXT, offset),
            Start::Task => {
                asm.call(Helper::CurrentTask);
                asm.mov(into, Register::R0);
            }
            Start::PacketField(offset) => asm.load(Width::Word, into, CONTEXT, offset),
            Start::Transport([transport, network, data]) => {
                // Both headers are given as distances from another address.
                self.memory(asm, CONTEXT, transport, self.scratch, 2);
                asm.load(Width::Half, Register::R8, Register::Frame, self.scratch);
                self.memory(asm, CONTEXT, network, self.scratch, 2);
                asm.load(Width::Half, Register::R3, Register::Frame, self.scratch);
                asm.alu(Alu::Sub, Register::R8, Register::R3);
                self.memory(asm, CONTEXT, data, self.scratch, POINTER as u16);
                asm.load(Width::Double, into, Register::Frame, self.scratch);
                asm.alu(Alu::Add, into, Register::R8);
            }
            Start::File(offsets) => {
                let (is_descriptor, done) = (asm.label(), asm.label());
                asm.load(Width::Double, Register::R8, CONTEXT, SYSCALL_RESULT);
                // A call that failed has no file.
                asm.jump_if(Condition::GreaterOrEqualSigned, Register::R8, 0, is_descriptor);
                asm.mov(into, 0);
                asm.jump(done);
                asm.bind(is_descriptor);
                asm.alu(Alu::ShiftLeft, Register::R8, 3);
                asm.call(Helper::CurrentTask);
                asm.mov(Register::R3, Register::R0);
                for offset in offsets {
                    self.memory(asm, Register::R3, offset, self.scratch, POINTER as u16);
                    asm.load(Width::Double, Register::R3, Register::Frame, self.scratch);
                }
                asm.alu(Alu::Add, Register::R3, Register::R8);
                self.memory(asm, Register::R3, 0, self.scratch, POINTER as u16);
                asm.load(Width::Double, into, Register::Frame, self.scratch);
                asm.bind(done);
            }
        }
    }

    /// Loads the pointer of the last read into `R3`.
    fn pointer(&self, asm: &mut Assembler, steps: &Steps) {
        self.load_start(asm, steps.start, Register::R3);
        for offset in &steps.before {
            self.memory(asm, Register::R3, *offset, self.scratch, POINTER as u16);
            asm.load(Width::Double, Register::R3, Register::Frame, self.scratch);
        }
    }

    fn steps(&self, expression: &Expression) -> Result<Steps, Unreadable> {
        let register = |name| {
            let offset = self.architecture.and_then(|architecture| architecture.register(name));
            offset.map(Start::ContextWord).ok_or(Unreadable::Architecture)
        };
        let (start, on_stack) = match &expression.base {
            Base::Register(name) => (register(name)?, None),
            Base::Stack(index) => (register("sp")?, Some(i64::from(*index) * POINTER as i64)),
            Base::Returned => (register(self.architecture.map_or("", Architecture::returned))?, None),
            Base::Context => (Start::Context, None),
            Base::ContextWord(offset) => (Start::ContextWord(*offset), None),
            Base::Task => (Start::Task, None),
            Base::File(offsets) => (Start::File(*offsets), None),
            Base::Transport(offsets) => (Start::Transport(*offsets), None),
            Base::GsoSegments => (Start::PacketField(GSO_SEGMENTS), None),
            Base::GsoSize => (Start::PacketField(GSO_SIZE), None),
            Base::Argument(_) => return Err(Unreadable::Argument),
            Base::Verbatim(_) => return Err(Unreadable::Verbatim),
        };
        let mut before: Vec<i64> =
            on_stack.into_iter().chain(expression.reads.iter().map(|read| read.offset)).collect();
        let last = before.pop();
        Ok(Steps { start, before, last })
    }
}

/// What an expression begins with.
#[derive(Clone, Copy)]
enum Start {
    /// The context itself.
    Context,
    /// The word of the context at this offset.
    ContextWord(i16),
    /// The running thread.
    Task,
    /// The file of the descriptor that a system call returns.
    File([i64; 3]),
    /// The transport header of a packet.
    Transport([i64; 3]),
    /// The field at this offset of the packet's `struct __sk_buff`.
    PacketField(i16),
}

/// The steps of an expression: what it begins with, then reads at these offsets.
struct Steps {
    start: Start,
    /// Reads that each yield a pointer.
    before: Vec<i64>,
    /// The read of the value. `None` if the value is that of the register.
    last: Option<i64>,
}

fn unreadable(expression: &Expression, source: Unreadable) -> Error {
    Error::Unreadable { argument: expression.to_string(), source }
}

/// The width of a value in memory.
fn width(kind: Type) -> Result<Width, Unreadable> {
    match kind {
        Type::String | Type::StringWindow(_) | Type::Bytes(_) | Type::U64Array(_) => Err(Unreadable::Type),
        kind => Width::of(kind.size()).ok_or(Unreadable::Type),
    }
}

const fn is_signed(kind: Type) -> bool {
    matches!(kind, Type::S8 | Type::S16 | Type::S32 | Type::S64 | Type::SignedWord)
}

/// Loads a value from the stack.
fn load(asm: &mut Assembler, expression: &Expression, width: Width, from: i16, into: Register) {
    asm.load(width, into, Register::Frame, from);
    to_number(asm, expression, into);
}

/// Turns the bytes in a register into a number: extends the sign, and keeps only the bits of a bit-field.
pub(super) fn to_number(asm: &mut Assembler, expression: &Expression, into: Register) {
    if is_signed(expression.kind) {
        narrow(asm, expression.kind, into);
    }
    if let Some(bits) = expression.bits {
        keep_lowest(asm, into, bits, Alu::ShiftRight);
    }
}

/// Truncates a register to the width of a type.
fn narrow(asm: &mut Assembler, kind: Type, register: Register) {
    let right = if is_signed(kind) { Alu::ShiftRightSigned } else { Alu::ShiftRight };
    keep_lowest(asm, register, 8 * kind.size() as u8, right);
}

/// Keeps the lowest bits of a register. The shift to the right, logical or arithmetic, extends them.
fn keep_lowest(asm: &mut Assembler, register: Register, bits: u8, right: Alu) {
    if bits < 64 {
        asm.alu(Alu::ShiftLeft, register, 64 - i32::from(bits));
        asm.alu(right, register, 64 - i32::from(bits));
    }
}

#[cfg(test)]
pub(super) mod tests;
