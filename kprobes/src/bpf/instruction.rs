//! One instruction: `struct bpf_insn` in `linux/bpf.h`.

/// A register. `R0` holds the return value of a call and of the program, `R1` to `R5` the arguments of a call. A call
/// overwrites these and keeps the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "their numbers are their names")]
pub enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    /// `R10`: the end of the program's 512 bytes of stack, which lie at negative offsets. It cannot be written.
    Frame,
}

/// The number of bytes that a load or store moves. Loads zero-extend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 1 byte: `BPF_B`.
    Byte,
    /// 2 bytes: `BPF_H`.
    Half,
    /// 4 bytes: `BPF_W`.
    Word,
    /// 8 bytes: `BPF_DW`.
    Double,
}

impl Width {
    /// The width of this number of bytes.
    pub const fn of(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Half),
            4 => Some(Self::Word),
            8 => Some(Self::Double),
            _ => None,
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Word => 0x00,
            Self::Half => 0x08,
            Self::Byte => 0x10,
            Self::Double => 0x18,
        }
    }
}

/// The operation on destination and operand. The discriminant is the kernel's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Alu {
    /// Addition, wrapping around.
    Add = 0x00,
    /// Subtraction, wrapping around.
    Sub = 0x10,
    /// Multiplication, wrapping around.
    Mul = 0x20,
    /// Unsigned division.
    Div = 0x30,
    /// Or.
    Or = 0x40,
    /// And.
    And = 0x50,
    /// Shift to the left.
    ShiftLeft = 0x60,
    /// Logical shift to the right.
    ShiftRight = 0x70,
    /// The remainder of an unsigned division.
    Mod = 0x90,
    /// Exclusive or.
    Xor = 0xa0,
    /// Copy.
    Mov = 0xb0,
    /// Arithmetic shift to the right.
    ShiftRightSigned = 0xc0,
}

/// The condition of a jump: it compares all 64 bits of a register with an operand. The discriminant is the kernel's
/// code. "Less" and "less or equal" are missing, because they need Linux 4.14: swap the operands or the branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Condition {
    /// They are equal.
    Equal = 0x10,
    /// The register is greater, unsigned.
    Greater = 0x20,
    /// The register is greater or equal, unsigned.
    GreaterOrEqual = 0x30,
    /// They have a bit in common.
    AnyBit = 0x40,
    /// They differ.
    NotEqual = 0x50,
    /// The register is greater, signed.
    GreaterSigned = 0x60,
    /// The register is greater or equal, signed.
    GreaterOrEqualSigned = 0x70,
}

/// A helper function of the kernel that a program can call. The discriminant is the kernel's number (`enum
/// bpf_func_id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Helper {
    /// `bpf_map_lookup_elem(map, key)`: a pointer to the value, or 0.
    MapLookup = 1,
    /// `bpf_probe_read(to, size, from)`: 0, or a negative error. After an error, `to` is filled with zeros.
    ProbeRead = 4,
    /// `bpf_ktime_get_ns()`: `CLOCK_MONOTONIC` in nanoseconds.
    MonotonicTime = 5,
    /// `bpf_perf_event_output(ctx, map, flags, data, size)`: writes `data` as one record; 0, or a negative error. The
    /// map is one of [outputs](super::Map::outputs), and the flags are [`CURRENT_CPU`](super::CURRENT_CPU). Since Linux
    /// 4.4.
    Output = 25,
    /// `bpf_get_current_task()`: the address of the running thread's `struct task_struct`. Since Linux 4.8.
    CurrentTask = 35,
    /// `bpf_probe_read_kernel(to, size, from)`: like [`ProbeRead`](Self::ProbeRead), also for programs at control groups. Since
    /// Linux 5.5.
    ProbeReadKernel = 113,
}

/// A register, or a 32-bit number, which is sign-extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// The value of this register.
    Register(Register),
    /// This number.
    Immediate(i32),
}

impl From<Register> for Operand {
    fn from(register: Register) -> Self {
        Self::Register(register)
    }
}

impl From<i32> for Operand {
    fn from(number: i32) -> Self {
        Self::Immediate(number)
    }
}

/// Classes of instructions.
const LD: u8 = 0x00;
const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;
const ALU: u8 = 0x04;
const JMP: u8 = 0x05;
const ALU64: u8 = 0x07;
/// Modes of loads and stores.
const IMM: u8 = 0x00;
const MEM: u8 = 0x60;
const ATOMIC: u8 = 0xc0;
/// `BPF_FETCH`: the source register gets the old value.
const FETCH: i32 = 0x01;
/// The operand is a register.
const X: u8 = 0x08;
/// Operations of the class `JMP` that are not jumps.
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
/// The immediate of a load is a map (`BPF_PSEUDO_MAP_FD`).
const MAP: u8 = 1;

/// One instruction, or one half of a 64-bit load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Instruction {
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    pub(super) const fn alu(operation: Alu, destination: Register, operand: Operand) -> Self {
        Self::with_operand(ALU64 | operation as u8, destination, operand)
    }

    pub(super) const fn alu32(operation: Alu, destination: Register, operand: Operand) -> Self {
        Self::with_operand(ALU | operation as u8, destination, operand)
    }

    pub(super) const fn load(width: Width, destination: Register, base: Register, offset: i16) -> Self {
        let code = LDX | MEM | width.bits();
        Self { code, destination: destination as u8, source: base as u8, offset, immediate: 0 }
    }

    pub(super) const fn store(width: Width, base: Register, offset: i16, operand: Operand) -> Self {
        let (class, source, immediate) = match operand {
            Operand::Register(register) => (STX, register as u8, 0),
            Operand::Immediate(number) => (ST, 0, number),
        };
        Self { code: class | MEM | width.bits(), destination: base as u8, source, offset, immediate }
    }

    pub(super) const fn atomic_add(base: Register, offset: i16, source: Register) -> Self {
        let code = STX | ATOMIC | Width::Double.bits();
        Self { code, destination: base as u8, source: source as u8, offset, immediate: 0 }
    }

    pub(super) const fn atomic_fetch_add(base: Register, offset: i16, source: Register) -> Self {
        Self { immediate: FETCH, ..Self::atomic_add(base, offset, source) }
    }

    pub(super) const fn load64(destination: Register, number: u64) -> [Self; 2] {
        Self::wide(destination, 0, number)
    }

    pub(super) const fn load_map(destination: Register, map: u32) -> [Self; 2] {
        Self::wide(destination, MAP, map as u64)
    }

    const fn wide(destination: Register, source: u8, number: u64) -> [Self; 2] {
        let (low, high) = (number as u32 as i32, (number >> 32) as u32 as i32);
        let code = LD | IMM | Width::Double.bits();
        [
            Self { code, destination: destination as u8, source, offset: 0, immediate: low },
            Self { code: 0, destination: 0, source: 0, offset: 0, immediate: high },
        ]
    }

    pub(super) const fn jump() -> Self {
        Self { code: JMP, destination: 0, source: 0, offset: 0, immediate: 0 }
    }

    pub(super) const fn jump_if(condition: Condition, register: Register, operand: Operand) -> Self {
        Self::with_operand(JMP | condition as u8, register, operand)
    }

    pub(super) const fn call(helper: Helper) -> Self {
        Self { code: JMP | CALL, destination: 0, source: 0, offset: 0, immediate: helper as i32 }
    }

    pub(super) const fn exit() -> Self {
        Self { code: JMP | EXIT, destination: 0, source: 0, offset: 0, immediate: 0 }
    }

    const fn with_operand(code: u8, destination: Register, operand: Operand) -> Self {
        let (operand_bit, source, immediate) = match operand {
            Operand::Register(register) => (X, register as u8, 0),
            Operand::Immediate(number) => (0, 0, number),
        };
        Self { code: code | operand_bit, destination: destination as u8, source, offset: 0, immediate }
    }

    /// The same jump, over `offset` instructions.
    pub(super) const fn over(self, offset: i16) -> Self {
        Self { offset, ..self }
    }

    /// The number of the map that it loads, if it is the first half of such a load.
    pub(super) const fn map(self) -> Option<u32> {
        if self.code == LD | IMM | Width::Double.bits() && self.source == MAP {
            Some(self.immediate as u32)
        } else {
            None
        }
    }

    /// The same load of another map.
    pub(super) const fn of_map(self, map: i32) -> Self {
        Self { immediate: map, ..self }
    }

    /// Whether the next instruction can only be reached by jumps.
    pub(super) const fn is_end(self) -> bool {
        self.code == JMP | EXIT || self.code == JMP
    }

    /// Its eight bytes, in the machine's byte order.
    pub fn bytes(self) -> [u8; 8] {
        let (low, high) = if cfg!(target_endian = "little") {
            (self.destination, self.source)
        } else {
            (self.source, self.destination)
        };
        let [o, p] = self.offset.to_ne_bytes();
        let [i, j, k, l] = self.immediate.to_ne_bytes();
        [self.code, low | high << 4, o, p, i, j, k, l]
    }
}
