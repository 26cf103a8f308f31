//! BPF programs at kprobes: they count in the kernel, and only hits with new information become samples.
//!
//! A hit that becomes a sample costs thousands of instructions: each fetch argument is read, a record is written, and user
//! space reads it. Most hits only add to a count. The perf event of a kprobe can have a small BPF program
//! (`PERF_EVENT_IOC_SET_BPF`, Linux 4.1) that the kernel runs first, before any fetch argument is read:
//!
//! - it returns 1, and the hit goes on and becomes a sample;
//! - it returns 0, and the hit ends: nothing is fetched or written. The program can count the hit in an [`Array`], whose memory
//!   user space [reads](Array::read).
//!
//! How to make a program:
//!
//! 1. An [`Assembler`] collects instructions. Jumps go to [`Label`]s, and only forward, because kernels before Linux
//!    5.3 accept no loops. All instructions work since Linux 4.9, except [`Assembler::repeat_if`] and
//!    [`Assembler::atomic_fetch_add`].
//! 2. A program reads values by the declaration of a [`sample!`](crate::sample!):
//!    [`Fetch::expression`](crate::Fetch::expression) resolves a template, and a [`Reader`] turns it into instructions
//!    that leave the value in a register, or its bytes on the stack. A read that fails jumps to a label given by the
//!    caller, where the program can let the hit become a sample.
//! 3. [`Assembler::finish`] checks the program and returns [`Code`]: data without any descriptor. It refers to maps by
//!    number, so that an interpreter can run it in a test.
//! 4. [`Program::load`] replaces the numbers with [`Map`]s and lets the kernel verify the program.
//! 5. A program may also write records of its own into the rings: see [`Map::outputs`].
//! 6. [`Rings::attach_with_program`](crate::Rings::attach_with_program) runs it at a probe before any sample is
//!    written.
//!
//! # Facts of the kernel
//!
//! - A program belongs to the trace event, not to one of its perf events: it runs at each hit on any CPU, regardless of
//!   the filter, and decides for every perf event on that trace event. It stays as long as the perf event by which it
//!   was set. The [`Rings`](crate::Rings) open one for this purpose alone, so that the program stays when CPUs come and go.
//! - Before Linux 4.14 the kernel removes the program when any perf event on the trace event is closed. The rings set
//!   it again. Hits in between become samples, so none is missed or counted twice.
//! - A hit while another BPF program runs on that CPU is neither counted nor sampled (`bpf_prog_active`); newer kernels count
//!   it for the program (`recursion_misses`).
//! - Up to Linux 4.20 a program must state the kernel's exact version, which `uname -r` does not have on distributions.
//!   It is in `/proc/version` (Debian), in `/proc/version_signature` (Ubuntu), or else in a note in the vDSO.
//! - Maps and programs count against `RLIMIT_MEMLOCK` before Linux 5.11. The memory of an [`Array`] is shared since Linux
//!   5.5.
//! - Several CPUs may count at the same time: use [`Assembler::atomic_add`].
//!
//! # Example
//!
//! Counts the bytes that sockets send, in 4096 classes of sockets, and lets a sample through for the first packet of each:
//!
//! ```no_run
//! use socktrail_kprobes::bpf::{Alu, Array, Assembler, Condition, Helper, Program, Reader, Register::*, Width};
//! use socktrail_kprobes::{Fetch, Group, RingOptions, Rings, Sample, Target, Term, Tracefs, Word, sample};
//!
//! sample! {
//!     /// `__ip_local_out(net, sk, skb)`
//!     struct Leaves {
//!         sk: Word = "{sk}",
//!         len: u32 = "+{sk_buff.len}({skb})",
//!     }
//! }
//!
//! fn layout(_: &str, name: &str) -> Option<Term> {
//!     match name {
//!         "sk" => Some(Term::Argument(2)),
//!         "skb" => Some(Term::Argument(3)),
//!         "sk_buff.len" => Some(Term::Offset(112)),
//!         _ => None,
//!     }
//! }
//!
//! let target = Target::Kprobe { function: "__ip_local_out" };
//! let read = |fetch: &Fetch<'_>| fetch.expression("leaves", target, &layout);
//! let (sk, len) = (read(&Leaves::FETCHES[0])?, read(&Leaves::FETCHES[1])?);
//!
//! // The stack: the index, and eight bytes for the reader.
//! const INDEX: i16 = -8;
//! const SCRATCH: i16 = -16;
//!
//! let mut asm = Assembler::new();
//! let sample = asm.label();
//! let reader = Reader::new(&mut asm, SCRATCH, sample)?;
//! reader.value(&mut asm, &len, R7)?;
//! reader.value(&mut asm, &sk, R1)?;
//! asm.alu(Alu::ShiftRight, R1, 6);
//! asm.alu(Alu::And, R1, 4095);
//! asm.store(Width::Word, Frame, INDEX, R1);
//! asm.load_map(R1, 0);
//! asm.stack_address(R2, INDEX);
//! asm.call(Helper::MapLookup);
//! asm.jump_if(Condition::Equal, R0, 0, sample);
//! asm.load(Width::Double, R1, R0, 0);
//! asm.atomic_add(R0, 0, R7);
//! asm.jump_if(Condition::Equal, R1, 0, sample);
//! asm.mov(R0, 0);
//! asm.exit();
//! asm.bind(sample);
//! asm.mov(R0, 1);
//! asm.exit();
//!
//! let bytes = Array::new("bytes", 8, 4096)?;
//! let program = Program::load("leaves", &asm.finish("leaves")?, &[bytes.as_ref()])?;
//!
//! let group = Group::create(&std::sync::Arc::new(Tracefs::find()?), "example")?;
//! let event = group.install("leaves", target, Leaves::FETCHES, &layout)?;
//! let mut rings = Rings::per_cpu(&RingOptions::default())?;
//! rings.attach_with_program(&event, None, &program)?;
//! # Ok::<(), socktrail_kprobes::Error>(())
//! ```
//!
//! Sources: `bpf(2)`, and bpf/standardization/instruction-set.rst in the kernel's documentation.

mod assembler;
mod instruction;
mod kernel_version;
mod map;
mod program;
mod reader;
mod reads;
mod record;
mod registers;
mod running;

pub use assembler::{Assembler, AssemblyError, Code, Label};
pub use instruction::{Alu, Condition, Helper, Instruction, Operand, Register, Width};
pub use map::{Array, CURRENT_CPU, Map, may_change_maps};
pub use program::Program;
pub use reader::{Reader, Unreadable};
pub use reads::Reads;
pub use record::{Buffer, Record};
pub(crate) use running::Running;
