//! Records that BPF programs write themselves.

use std::fs;

use socktrail_kprobes::bpf::Register::*;
use socktrail_kprobes::bpf::{Assembler, CURRENT_CPU, Code, Helper, Map, Program, Reader, Width};
use socktrail_kprobes::{Installed, RingOptions, Rings};

use crate::help::{Contents, drain_all, group, on_cpu};
use crate::programs::{expression, file, install, lock, rings};

/// Offsets on the stack.
const RECORD: i16 = -16;
const SCRATCH: i16 = -24;
/// The size of a record: an id of 0, padding, and the start of the lock.
const SIZE: i32 = 16;

/// Writes the start of each lock into map 0. The hit becomes a sample, too.
fn output_starts() -> Code {
    let mut asm = Assembler::new();
    let sample = asm.label();
    let reader = Reader::new(&mut asm, SCRATCH, sample).unwrap();
    reader.value(&mut asm, &expression("start"), R7).unwrap();
    asm.store(Width::Double, Frame, RECORD, 0);
    asm.store(Width::Double, Frame, RECORD + 8, R7);
    asm.mov(R1, R6);
    asm.load_map(R2, 0);
    asm.load64(R3, CURRENT_CPU);
    asm.stack_address(R4, RECORD);
    asm.mov(R5, SIZE);
    asm.call(Helper::Output);
    asm.bind(sample);
    asm.mov(R0, 1);
    asm.exit();
    asm.finish("output_starts").unwrap()
}

/// The CPU and the start that the program wrote at each hit. The sample of the hit comes right after.
fn written(rings: &mut Rings, event: &Installed) -> Vec<(u32, u64)> {
    let Contents { samples, lost } = drain_all(rings);
    assert_eq!((lost, samples.len() % 2), (0, 0));
    let written = samples.chunks_exact(2).map(|pair| {
        let [output, sample] = pair else { unreachable!() };
        assert_eq!(output.raw[..2], [0, 0]);
        assert_eq!(u32::from(u16::from_ne_bytes([sample.raw[0], sample.raw[1]])), event.id());
        assert!(output.time <= sample.time && output.cpu == sample.cpu);
        (output.cpu, u64::from_ne_bytes(*output.raw[8..].first_chunk().unwrap()))
    });
    written.collect()
}

#[test]
#[ignore = "needs a kernel with kprobes and BPF"]
fn what_a_program_writes_comes_before_its_sample() {
    let (group, file) = (group(), file());
    let event = install(&group);
    let outputs = Map::outputs("outputs").unwrap();
    let program = Program::load("output_starts", &output_starts(), &[&outputs]).unwrap();
    let mut rings = rings();
    rings.receive(&outputs).unwrap();
    rings.attach_with_program(&event, None, &program).unwrap();
    for (cpu, start) in [(0, 70), (1, 80), (0, 90)] {
        on_cpu(cpu);
        lock(&file, start, 1);
    }
    assert_eq!(written(&mut rings, &event), [(0, 70), (1, 80), (0, 90)]);
}

#[test]
#[ignore = "needs a kernel with kprobes and BPF, and two CPUs"]
fn a_cpu_that_comes_back_is_connected() {
    let switch = |online: &str| fs::write("/sys/devices/system/cpu/cpu1/online", online).unwrap();
    let (group, file) = (group(), file());
    let event = install(&group);
    let outputs = Map::outputs("outputs").unwrap();
    let program = Program::load("output_starts", &output_starts(), &[&outputs]).unwrap();
    let mut rings = rings();
    rings.receive(&outputs).unwrap();
    rings.attach_with_program(&event, None, &program).unwrap();
    on_cpu(0);
    switch("0");
    assert_eq!(rings.follow_cpus().unwrap().left, [1]);
    switch("1");
    assert_eq!(rings.follow_cpus().unwrap().came, [1]);
    on_cpu(1);
    lock(&file, 7, 1);
    on_cpu(0);
    assert_eq!(written(&mut rings, &event), [(1, 7)]);
}

#[test]
#[ignore = "needs a kernel with kprobes and BPF"]
fn the_ring_of_a_thread_has_no_outputs() {
    let mut ring = Rings::for_thread(nix::unistd::gettid().as_raw().cast_unsigned(), &RingOptions::default()).unwrap();
    let error = ring.receive(&Map::outputs("outputs").unwrap()).unwrap_err();
    assert!(error.to_string().starts_with("an output of BPF programs on thread"), "{error}");
}
