//! An assembler: instructions and labels become a program.
//!
//! We have our own because the builder in `rbpf` has no labels and brings an interpreter along, and `aya-obj` reads
//! object files but cannot build instructions.

use super::{Alu, Condition, Helper, Instruction, Operand, Register, Width};
use crate::Error;

/// The maximum number of instructions of a program (`BPF_MAXINSNS`; more since Linux 5.2). The distance of every jump
/// fits 16 bits.
const MAX_INSTRUCTIONS: usize = 4096;

/// The target of a jump. It belongs to the [`Assembler`] that created it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Label(usize);

/// A program that is being written.
///
/// Nothing is checked before [`Assembler::finish`], so that a program reads as a list of instructions.
#[derive(Clone, Debug, Default)]
pub struct Assembler {
    instructions: Vec<Instruction>,
    /// The position of each label, once it is bound.
    labels: Vec<Option<usize>>,
    /// The jumps: instruction and label.
    jumps: Vec<(usize, Label)>,
    /// The first mistake.
    mistake: Option<AssemblyError>,
}

/// A mistake in a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AssemblyError {
    /// It has more instructions than kernels accept.
    #[error("{0} instructions are more than the {MAX_INSTRUCTIONS} that every kernel accepts")]
    TooLong(usize),
    /// A jump goes to a label that was never bound.
    #[error("the jump at instruction {0} goes to a label that is bound nowhere")]
    Unbound(usize),
    /// A label was bound twice.
    #[error("a label is bound a second time, at instruction {0}")]
    BoundTwice(usize),
    /// A jump would make a loop without [`Assembler::repeat_if`].
    #[error("the jump at instruction {0} goes backward, which kernels before 5.3 refuse")]
    Backward(usize),
    /// Its last instruction neither ends it nor jumps.
    #[error("the program does not end with an exit")]
    NoExit,
    /// It uses a map that was not passed to [`Program::load`](super::Program::load).
    #[error("the program uses map number {0}, but is loaded without such a map")]
    NoMap(u32),
}

impl Assembler {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    /// A label that is not bound yet.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Binds a label to the next instruction.
    pub fn bind(&mut self, label: Label) {
        let here = self.instructions.len();
        match self.labels.get_mut(label.0) {
            Some(place @ None) => *place = Some(here),
            _ => self.mistake = self.mistake.or(Some(AssemblyError::BoundTwice(here))),
        }
    }

    /// `destination = operand`, all 64 bits.
    pub fn mov(&mut self, destination: Register, operand: impl Into<Operand>) {
        self.alu(Alu::Mov, destination, operand);
    }

    /// `destination = destination operation operand`, in 64 bits.
    pub fn alu(&mut self, operation: Alu, destination: Register, operand: impl Into<Operand>) {
        self.instructions.push(Instruction::alu(operation, destination, operand.into()));
    }

    /// `destination = destination operation operand`, in 32 bits; the upper half of the destination becomes 0.
    pub fn alu32(&mut self, operation: Alu, destination: Register, operand: impl Into<Operand>) {
        self.instructions.push(Instruction::alu32(operation, destination, operand.into()));
    }

    /// `destination = number`: two instructions.
    pub fn load64(&mut self, destination: Register, number: u64) {
        self.instructions.extend(Instruction::load64(destination, number));
    }

    /// `destination = map`, for the first argument of a call: two instructions. Maps are numbered from 0, in the order
    /// in which they are passed to [`Program::load`](super::Program::load).
    pub fn load_map(&mut self, destination: Register, map: u32) {
        self.instructions.extend(Instruction::load_map(destination, map));
    }

    /// `destination = *(base + offset)`.
    pub fn load(&mut self, width: Width, destination: Register, base: Register, offset: i16) {
        self.instructions.push(Instruction::load(width, destination, base, offset));
    }

    /// `*(base + offset) = operand`.
    pub fn store(&mut self, width: Width, base: Register, offset: i16, operand: impl Into<Operand>) {
        self.instructions.push(Instruction::store(width, base, offset, operand.into()));
    }

    /// `*(u64 *)(base + offset) += source`, atomic across CPUs (`BPF_XADD`).
    pub fn atomic_add(&mut self, base: Register, offset: i16, source: Register) {
        self.instructions.push(Instruction::atomic_add(base, offset, source));
    }

    /// Like [`Assembler::atomic_add`], and `source` gets the old value. It is also a full memory barrier. Since Linux 5.12; on
    /// aarch64 since 5.18.
    pub fn atomic_fetch_add(&mut self, base: Register, offset: i16, source: Register) {
        self.instructions.push(Instruction::atomic_fetch_add(base, offset, source));
    }

    /// `destination = frame + offset`: an address on the stack, for an argument of a call.
    pub fn stack_address(&mut self, destination: Register, offset: i16) {
        self.mov(destination, Register::Frame);
        self.alu(Alu::Add, destination, i32::from(offset));
    }

    /// Continues at the label.
    pub fn jump(&mut self, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.instructions.push(Instruction::jump());
    }

    /// Continues at the label if the condition holds, otherwise with the next instruction.
    pub fn jump_if(&mut self, condition: Condition, register: Register, operand: impl Into<Operand>, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.instructions.push(Instruction::jump_if(condition, register, operand.into()));
    }

    /// Makes a loop: goes back to a label that is already bound, if the condition holds. The verifier must be able to see that
    /// the loop ends. Since Linux 5.3.
    pub fn repeat_if(&mut self, condition: Condition, register: Register, operand: impl Into<Operand>, label: Label) {
        let here = self.instructions.len();
        let jump = Instruction::jump_if(condition, register, operand.into());
        let place = self.labels.get(label.0).copied().flatten();
        let distance = place.map(|place| i16::try_from(place as i64 - here as i64 - 1));
        match distance {
            Some(Ok(distance)) => self.instructions.push(jump.over(distance)),
            Some(Err(_)) => self.mistake = self.mistake.or(Some(AssemblyError::TooLong(here))),
            None => self.mistake = self.mistake.or(Some(AssemblyError::Unbound(here))),
        }
    }

    /// Calls a helper function of the kernel with `R1` to `R5`. Its return value is in `R0`.
    pub fn call(&mut self, helper: Helper) {
        self.instructions.push(Instruction::call(helper));
    }

    /// Ends the program; `R0` is its return value.
    pub fn exit(&mut self) {
        self.instructions.push(Instruction::exit());
    }

    /// Replaces labels with distances.
    ///
    /// # Errors
    /// [`Error::BadProgram`], which names `program`.
    pub fn finish(self, program: &str) -> Result<Code, Error> {
        self.assembled().map_err(|source| Error::BadProgram { program: program.to_owned(), source })
    }

    fn assembled(mut self) -> Result<Code, AssemblyError> {
        if let Some(mistake) = self.mistake {
            return Err(mistake);
        }
        let count = self.instructions.len();
        if count > MAX_INSTRUCTIONS {
            return Err(AssemblyError::TooLong(count));
        }
        for &(at, label) in &self.jumps {
            let place = self.labels.get(label.0).copied().flatten().ok_or(AssemblyError::Unbound(at))?;
            let distance = place.checked_sub(at + 1).ok_or(AssemblyError::Backward(at))?;
            let distance = i16::try_from(distance).map_err(|_| AssemblyError::TooLong(count))?;
            if place == count {
                return Err(AssemblyError::NoExit);
            }
            self.instructions[at] = self.instructions[at].over(distance);
        }
        match self.instructions.last() {
            Some(last) if last.is_end() => Ok(Code { instructions: self.instructions }),
            _ => Err(AssemblyError::NoExit),
        }
    }
}

/// A complete program. It refers to maps by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    instructions: Vec<Instruction>,
}

impl Code {
    /// Its instructions. A [64-bit load](Assembler::load64) counts as two.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// Its bytes, in the form that the kernel and interpreters read.
    pub fn bytes(&self) -> Vec<u8> {
        self.instructions.iter().flat_map(|instruction| instruction.bytes()).collect()
    }

    /// The same program with file descriptors in place of map numbers.
    pub(super) fn with_maps(&self, descriptors: &[i32]) -> Result<Self, AssemblyError> {
        let with_map = |instruction: &Instruction| match instruction.map() {
            None => Ok(*instruction),
            Some(number) => {
                let descriptor = usize::try_from(number).ok().and_then(|number| descriptors.get(number));
                descriptor.map(|descriptor| instruction.of_map(*descriptor)).ok_or(AssemblyError::NoMap(number))
            }
        };
        Ok(Self { instructions: self.instructions.iter().map(with_map).collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::Register::*;
    use super::*;

    fn assembled(write: impl FnOnce(&mut Assembler)) -> Result<Vec<Instruction>, AssemblyError> {
        let mut asm = Assembler::new();
        write(&mut asm);
        asm.assembled().map(|code| code.instructions)
    }

    /// The bytes of one instruction, written before an exit.
    fn bytes(write: impl FnOnce(&mut Assembler)) -> Vec<u8> {
        let written = assembled(|asm| {
            write(asm);
            asm.exit();
        });
        let written = written.unwrap();
        written[..written.len() - 1].iter().flat_map(|one| one.bytes()).collect()
    }

    /// By the opcode table of RFC 9669, appendix A: opcode, registers (destination in the low half), offset, immediate.
    #[test]
    #[cfg(target_endian = "little")]
    fn encodings_are_those_of_the_standard() {
        type Write = fn(&mut Assembler);
        let table: [(Write, [u8; 8]); 40] = [
            // dst += imm, dst += src, and so on in 64 bits.
            (|asm| asm.alu(Alu::Add, R1, 5), [0x07, 0x01, 0, 0, 5, 0, 0, 0]),
            (|asm| asm.alu(Alu::Add, R1, R2), [0x0f, 0x21, 0, 0, 0, 0, 0, 0]),
            (|asm| asm.alu(Alu::Sub, R3, -1), [0x17, 0x03, 0, 0, 0xff, 0xff, 0xff, 0xff]),
            (|asm| asm.alu(Alu::Sub, R3, R4), [0x1f, 0x43, 0, 0, 0, 0, 0, 0]),
            (|asm| asm.alu(Alu::Mul, R0, 7), [0x27, 0x00, 0, 0, 7, 0, 0, 0]),
            (|asm| asm.alu(Alu::Div, R0, R9), [0x3f, 0x90, 0, 0, 0, 0, 0, 0]),
            (|asm| asm.alu(Alu::Or, R0, 0x0102), [0x47, 0x00, 0, 0, 2, 1, 0, 0]),
            (|asm| asm.alu(Alu::And, R0, R1), [0x5f, 0x10, 0, 0, 0, 0, 0, 0]),
            (|asm| asm.alu(Alu::ShiftLeft, R5, 32), [0x67, 0x05, 0, 0, 32, 0, 0, 0]),
            (|asm| asm.alu(Alu::ShiftRight, R5, 32), [0x77, 0x05, 0, 0, 32, 0, 0, 0]),
            (|asm| asm.alu(Alu::Mod, R5, 10), [0x97, 0x05, 0, 0, 10, 0, 0, 0]),
            (|asm| asm.alu(Alu::Xor, R5, R6), [0xaf, 0x65, 0, 0, 0, 0, 0, 0]),
            (|asm| asm.mov(R7, 1), [0xb7, 0x07, 0, 0, 1, 0, 0, 0]),
            (|asm| asm.mov(R7, R8), [0xbf, 0x87, 0, 0, 0, 0, 0, 0]),
            (|asm| asm.mov(R2, Frame), [0xbf, 0xa2, 0, 0, 0, 0, 0, 0]),
            (|asm| asm.alu(Alu::ShiftRightSigned, R5, 48), [0xc7, 0x05, 0, 0, 48, 0, 0, 0]),
            // In 32 bits.
            (|asm| asm.alu32(Alu::Add, R1, 5), [0x04, 0x01, 0, 0, 5, 0, 0, 0]),
            (|asm| asm.alu32(Alu::And, R1, R2), [0x5c, 0x21, 0, 0, 0, 0, 0, 0]),
            (|asm| asm.alu32(Alu::Mov, R1, R1), [0xbc, 0x11, 0, 0, 0, 0, 0, 0]),
            // dst = *(src + offset).
            (|asm| asm.load(Width::Word, R1, R2, 4), [0x61, 0x21, 4, 0, 0, 0, 0, 0]),
            (|asm| asm.load(Width::Half, R1, R2, -2), [0x69, 0x21, 0xfe, 0xff, 0, 0, 0, 0]),
            (|asm| asm.load(Width::Byte, R1, R2, 256), [0x71, 0x21, 0, 1, 0, 0, 0, 0]),
            (|asm| asm.load(Width::Double, R1, Frame, -8), [0x79, 0xa1, 0xf8, 0xff, 0, 0, 0, 0]),
            // *(dst + offset) = imm.
            (|asm| asm.store(Width::Word, R1, 4, 9), [0x62, 0x01, 4, 0, 9, 0, 0, 0]),
            (|asm| asm.store(Width::Half, R1, 4, 9), [0x6a, 0x01, 4, 0, 9, 0, 0, 0]),
            (|asm| asm.store(Width::Byte, R1, 4, 9), [0x72, 0x01, 4, 0, 9, 0, 0, 0]),
            (|asm| asm.store(Width::Double, Frame, -8, 0), [0x7a, 0x0a, 0xf8, 0xff, 0, 0, 0, 0]),
            // *(dst + offset) = src.
            (|asm| asm.store(Width::Word, R1, 4, R2), [0x63, 0x21, 4, 0, 0, 0, 0, 0]),
            (|asm| asm.store(Width::Half, R1, 4, R2), [0x6b, 0x21, 4, 0, 0, 0, 0, 0]),
            (|asm| asm.store(Width::Byte, R1, 4, R2), [0x73, 0x21, 4, 0, 0, 0, 0, 0]),
            (|asm| asm.store(Width::Double, R1, 4, R2), [0x7b, 0x21, 4, 0, 0, 0, 0, 0]),
            // lock *(u64 *)(dst + offset) += src.
            (|asm| asm.atomic_add(R0, 8, R7), [0xdb, 0x70, 8, 0, 0, 0, 0, 0]),
            (|asm| asm.atomic_fetch_add(R0, 8, R7), [0xdb, 0x70, 8, 0, 1, 0, 0, 0]),
            (|asm| asm.call(Helper::MapLookup), [0x85, 0, 0, 0, 1, 0, 0, 0]),
            (|asm| asm.call(Helper::ProbeRead), [0x85, 0, 0, 0, 4, 0, 0, 0]),
            (|asm| asm.call(Helper::MonotonicTime), [0x85, 0, 0, 0, 5, 0, 0, 0]),
            (|asm| asm.call(Helper::Output), [0x85, 0, 0, 0, 25, 0, 0, 0]),
            (Assembler::exit, [0x95, 0, 0, 0, 0, 0, 0, 0]),
            (|asm| asm.alu32(Alu::ShiftRightSigned, R1, 16), [0xc4, 0x01, 0, 0, 16, 0, 0, 0]),
            (|asm| asm.alu32(Alu::ShiftLeft, R1, R2), [0x6c, 0x21, 0, 0, 0, 0, 0, 0]),
        ];
        for (write, encoded) in table {
            assert_eq!(bytes(write), encoded, "{encoded:02x?}");
        }
        let wide = bytes(|asm| asm.load64(R3, 0x1122_3344_5566_7788));
        assert_eq!(wide, [0x18, 0x03, 0, 0, 0x88, 0x77, 0x66, 0x55, 0, 0, 0, 0, 0x44, 0x33, 0x22, 0x11]);
        let map = bytes(|asm| asm.load_map(R1, 2));
        assert_eq!(map, [0x18, 0x11, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn jumps_are_those_of_the_standard() {
        let over_one = |condition: Condition, operand: Operand| {
            let written = assembled(|asm| {
                let label = asm.label();
                asm.jump_if(condition, R1, operand, label);
                asm.exit();
                asm.bind(label);
                asm.exit();
            });
            written.unwrap()[0].bytes()
        };
        for (condition, code) in [
            (Condition::Equal, 0x15),
            (Condition::Greater, 0x25),
            (Condition::GreaterOrEqual, 0x35),
            (Condition::AnyBit, 0x45),
            (Condition::NotEqual, 0x55),
            (Condition::GreaterSigned, 0x65),
            (Condition::GreaterOrEqualSigned, 0x75),
        ] {
            assert_eq!(over_one(condition, 3.into()), [code, 0x01, 1, 0, 3, 0, 0, 0]);
            assert_eq!(over_one(condition, R2.into()), [code + 8, 0x21, 1, 0, 0, 0, 0, 0]);
        }
        let written = assembled(|asm| {
            let label = asm.label();
            asm.jump(label);
            asm.load64(R0, 1);
            asm.bind(label);
            asm.exit();
        });
        assert_eq!(written.unwrap()[0].bytes(), [0x05, 0, 2, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn mistakes_are_reported() {
        let mistake = |write: fn(&mut Assembler)| assembled(write).unwrap_err();
        assert_eq!(mistake(|_| ()), AssemblyError::NoExit);
        assert_eq!(mistake(|asm| asm.mov(R0, 0)), AssemblyError::NoExit);
        let to_the_end = |asm: &mut Assembler| {
            let end = asm.label();
            asm.jump(end);
            asm.bind(end);
        };
        assert_eq!(mistake(to_the_end), AssemblyError::NoExit);
        let unbound = |asm: &mut Assembler| {
            let label = asm.label();
            asm.mov(R0, 0);
            asm.jump(label);
        };
        assert_eq!(mistake(unbound), AssemblyError::Unbound(1));
        let of_another = |asm: &mut Assembler| asm.jump(Label(7));
        assert_eq!(mistake(of_another), AssemblyError::Unbound(0));
        let twice = |asm: &mut Assembler| {
            let label = asm.label();
            asm.bind(label);
            asm.exit();
            asm.bind(label);
        };
        assert_eq!(mistake(twice), AssemblyError::BoundTwice(1));
        for jumps_to_itself in [false, true] {
            let written = assembled(|asm| {
                let label = asm.label();
                asm.bind(label);
                if !jumps_to_itself {
                    asm.mov(R0, 0);
                }
                asm.jump(label);
            });
            assert_eq!(written, Err(AssemblyError::Backward(usize::from(!jumps_to_itself))));
        }
        let ahead = |asm: &mut Assembler| {
            let label = asm.label();
            asm.repeat_if(Condition::Equal, R1, 0, label);
            asm.bind(label);
            asm.exit();
        };
        assert_eq!(mistake(ahead), AssemblyError::Unbound(0));
    }

    #[test]
    fn a_loop_jumps_back() {
        let code = assembled(|asm| {
            let again = asm.label();
            asm.bind(again);
            asm.alu(Alu::Sub, R1, 1);
            asm.repeat_if(Condition::NotEqual, R1, 0, again);
            asm.exit();
        });
        assert_eq!(code.unwrap()[1].bytes(), [0x55, 0x01, 0xfe, 0xff, 0, 0, 0, 0]);
    }

    #[test]
    fn the_longest_jump_goes_over_the_whole_program() {
        let of = |between| {
            assembled(|asm| {
                let label = asm.label();
                asm.jump(label);
                (0..between).for_each(|_| asm.mov(R0, 0));
                asm.bind(label);
                asm.exit();
            })
        };
        assert_eq!(of(MAX_INSTRUCTIONS - 2).unwrap()[0], Instruction::jump().over(4094));
        assert_eq!(of(MAX_INSTRUCTIONS - 1), Err(AssemblyError::TooLong(4097)));
    }

    #[test]
    fn maps_are_filled_in() {
        let mut asm = Assembler::new();
        asm.load_map(R1, 1);
        asm.load64(R2, 1);
        asm.load_map(R3, 0);
        asm.exit();
        let code = asm.assembled().unwrap();
        let filled = code.with_maps(&[70, 80]).unwrap();
        let mut expected = Vec::new();
        expected.extend(Instruction::load_map(R1, 80));
        expected.extend(Instruction::load64(R2, 1));
        expected.extend(Instruction::load_map(R3, 70));
        expected.push(Instruction::exit());
        assert_eq!(filled.instructions(), expected);
        assert_eq!(code.with_maps(&[70]), Err(AssemblyError::NoMap(1)));
    }
}
