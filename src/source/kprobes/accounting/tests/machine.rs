//! A machine whose hits run the programs, in an interpreter that is not ours.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use socktrail_kprobes::Term;
use socktrail_kprobes::bpf::{Code, Helper};

use crate::model::totals::Totals;
use crate::source::kprobes::accounting::entry::{ENDS_SIZE, NO_ROOM, SIZE, of_record, totals};
use crate::source::kprobes::accounting::{Rules, programs};
use crate::source::kprobes::{FLOW_PROBES, Feature};

/// The size of `struct pt_regs`, and the offsets of the registers of the first arguments in it.
const CONTEXT: usize = 272;
const ARGUMENTS: [usize; 3] = if cfg!(target_arch = "aarch64") { [0, 8, 16] } else { [112, 104, 96] };
/// Return values of helpers: no such memory, no room, there already, not there.
const EFAULT: i64 = -14;
const E2BIG: i64 = -7;
const EEXIST: i64 = -17;
const ENOENT: i64 = -2;

/// The layout of a kernel like 6.1.
pub(super) fn layout(function: &str, name: &str) -> Option<Term> {
    let argument = match (function, name) {
        ("__ip_local_out" | "__ip6_local_out", "net") => Some(1),
        ("__ip_local_out" | "__ip6_local_out", "sk") => Some(2),
        ("__ip_local_out" | "__ip6_local_out", "skb") => Some(3),
        ("tcp_v4_rcv" | "tcp_v6_rcv", "skb") => Some(1),
        (_, "sk") => Some(1),
        (_, "skb" | "state") => Some(2),
        (_, "fl6") => Some(3),
        _ => None,
    };
    let offset = match name {
        "sk_buff.dev" => 16,
        "sk_buff.sk" => 24,
        "inet6_skb_parm.frag_max_size" => 58,
        "inet_skb_parm.frag_max_size" => 66,
        "sk_buff.len" => 112,
        "sk_buff.headers" => 182,
        "sk_buff.data" => 200,
        "net_device.nd_net" => 264,
        "flowi6.flowi6_proto" => 14,
        "flowi6.daddr" => 24,
        "flowi6.saddr" => 40,
        "sock_common.skc_daddr" => 0,
        "sock_common.skc_rcv_saddr" => 4,
        "sock_common.skc_dport" => 12,
        "sock_common.skc_num" => 14,
        "sock_common.skc_family" => 16,
        "sock_common.skc_net" => 48,
        "sock_common.skc_v6_daddr" => 56,
        "tcp_sock.segs_in" => 1548,
        "tcp_sock.segs_out" => 1580,
        _ => return argument.map(Term::Argument),
    };
    Some(Term::Offset(offset))
}

/// The programs of all features that have one.
pub(super) fn all_programs(rules: &Rules) -> Vec<(Feature, &'static str, Code)> {
    let of = |(feature, probes): &(Feature, &'static [_])| {
        let (name, code) = programs::program(*feature, &probes[0], &layout, rules)?;
        Some((*feature, name, code.unwrap()))
    };
    FLOW_PROBES.iter().filter_map(of).collect()
}

thread_local! {
    static KERNEL: RefCell<Kernel> = RefCell::default();
}

/// What the helpers of the interpreter work on.
#[derive(Default)]
struct Kernel {
    now: u64,
    memory: BTreeMap<u64, Vec<u8>>,
    maps: [HashMap<Vec<u8>, usize>; 2],
    /// The values of both maps. They never become more, so they do not move.
    values: Vec<[u64; SIZE as usize / 8]>,
    free: Vec<usize>,
    records: Vec<Vec<u8>>,
}

impl Kernel {
    fn value(&self, slot: usize) -> u64 {
        self.values[slot].as_ptr() as u64
    }

    fn update(&mut self, map: usize, key: Vec<u8>, value: &[u8], only_new: bool) -> i64 {
        let slot = match self.maps[map].get(&key) {
            Some(_) if only_new => return EEXIST,
            Some(slot) => *slot,
            None => {
                let Some(slot) = self.free.pop() else { return E2BIG };
                self.maps[map].insert(key, slot);
                slot
            }
        };
        put(self.value(slot), value);
        0
    }
}

/// A machine with the programs attached.
pub(super) struct Machine {
    programs: Vec<(Feature, Vec<u8>)>,
}

impl Machine {
    /// Starts one with room for this many entries in both maps together.
    pub(super) fn new(rules: &Rules, entries: usize) -> Self {
        let programs = all_programs(rules);
        let values = vec![[0; SIZE as usize / 8]; entries + 1];
        let mut kernel = Kernel { free: (0..values.len()).collect(), values, ..Kernel::default() };
        kernel.update(0, NO_ROOM.to_ne_bytes().to_vec(), &[0; SIZE as usize], true);
        KERNEL.set(kernel);
        Self { programs: programs.into_iter().map(|(of, _, code)| (of, without_atomics(&code.bytes()))).collect() }
    }

    pub(super) fn set_time(&self, now: u64) {
        KERNEL.with_borrow_mut(|kernel| kernel.now = now);
    }

    /// Puts an object into memory, in place of what was there.
    pub(super) fn put(&self, address: u64, bytes: Vec<u8>) {
        KERNEL.with_borrow_mut(|kernel| kernel.memory.insert(address, bytes));
    }

    /// A hit of a feature's probe. Returns whether it becomes a sample, and what was reported before.
    pub(super) fn hit(&self, feature: Feature, arguments: [u64; 3]) -> (bool, Vec<Totals>) {
        let (_, code) = self.programs.iter().find(|(of, _)| *of == feature).unwrap();
        let mut context = [0; CONTEXT];
        for (at, argument) in ARGUMENTS.into_iter().zip(arguments) {
            context[at..at + 8].copy_from_slice(&argument.to_ne_bytes());
        }
        let mut vm = rbpf::EbpfVmRaw::new(Some(code)).unwrap();
        let helpers: [(Helper, rbpf::Helper); 6] = [
            (Helper::MapLookup, look_up),
            (Helper::MapUpdate, update),
            (Helper::MapDelete, delete),
            (Helper::ProbeRead, probe_read),
            (Helper::MonotonicTime, time),
            (Helper::Output, output),
        ];
        for (helper, function) in helpers {
            vm.register_helper(helper as u32, function).unwrap();
        }
        KERNEL.with_borrow(|kernel| {
            for slot in 0..kernel.values.len() {
                vm.register_allowed_memory(kernel.value(slot)..kernel.value(slot) + u64::from(SIZE));
            }
        });
        let sampled = vm.execute_program(&mut context).unwrap();
        let records = KERNEL.with_borrow_mut(|kernel| std::mem::take(&mut kernel.records));
        (sampled == 1, records.iter().map(|record| of_record(record).unwrap()).collect())
    }

    /// What a look-up by user space gives.
    pub(super) fn look_up(&self, sock: u64) -> Option<Totals> {
        totals(&self.bytes(sock)?)
    }

    /// The bytes of a conversation's entry.
    pub(super) fn bytes(&self, sock: u64) -> Option<Vec<u8>> {
        KERNEL.with_borrow(|kernel| {
            let slot = kernel.maps[0].get(&sock.to_ne_bytes()[..])?;
            Some(kernel.values[*slot].iter().flat_map(|word| word.to_ne_bytes()).collect())
        })
    }

    /// The number of entries: conversations without the one that counts, and ends.
    pub(super) fn entries(&self) -> (usize, usize) {
        KERNEL.with_borrow(|kernel| (kernel.maps[0].len() - 1, kernel.maps[1].len()))
    }
}

fn key_size(map: u64) -> usize {
    if map == 0 { 8 } else { ENDS_SIZE.into() }
}

fn look_up(map: u64, key: u64, _: u64, _: u64, _: u64) -> u64 {
    let key = get(key, key_size(map));
    KERNEL.with_borrow(|kernel| kernel.maps[map as usize].get(&key).map_or(0, |slot| kernel.value(*slot)))
}

fn update(map: u64, key: u64, value: u64, flags: u64, _: u64) -> u64 {
    let (key, value) = (get(key, key_size(map)), get(value, if map == 0 { SIZE.into() } else { 8 }));
    KERNEL.with_borrow_mut(|kernel| kernel.update(map as usize, key, &value, flags == 1)).cast_unsigned()
}

fn delete(map: u64, key: u64, _: u64, _: u64, _: u64) -> u64 {
    let key = get(key, key_size(map));
    KERNEL.with_borrow_mut(|kernel| {
        let Some(slot) = kernel.maps[map as usize].remove(&key) else { return ENOENT.cast_unsigned() };
        kernel.free.push(slot);
        0
    })
}

fn probe_read(to: u64, size: u64, from: u64, _: u64, _: u64) -> u64 {
    let bytes = KERNEL.with_borrow(|kernel| {
        let (start, object) = kernel.memory.range(..=from).next_back()?;
        let at = (from - start) as usize;
        object.get(at..at + size as usize).map(<[u8]>::to_vec)
    });
    put(to, &bytes.clone().unwrap_or_else(|| vec![0; size as usize]));
    if bytes.is_some() { 0 } else { EFAULT.cast_unsigned() }
}

fn time(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    KERNEL.with_borrow(|kernel| kernel.now)
}

fn output(_: u64, map: u64, flags: u64, data: u64, size: u64) -> u64 {
    assert_eq!((map, flags), (2, 0xffff_ffff));
    let record = get(data, size as usize);
    KERNEL.with_borrow_mut(|kernel| kernel.records.push(record));
    0
}

#[allow(unsafe_code, reason = "the interpreter hands memory over as an address")]
fn get(from: u64, size: usize) -> Vec<u8> {
    // SAFETY: the programs pass addresses of their stack with that many bytes, which the interpreter has allocated.
    unsafe { std::slice::from_raw_parts(from as *const u8, size) }.to_vec()
}

#[allow(unsafe_code, reason = "the interpreter hands memory over as an address")]
fn put(to: u64, bytes: &[u8]) {
    // SAFETY: the address is that of a value of a map, or of the program's stack with that many bytes.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
}

/// The interpreter has no atomic addition. Each becomes a jump to a plain one behind the program, which keeps a register in the
/// lowest eight bytes of the stack.
fn without_atomics(code: &[u8]) -> Vec<u8> {
    const ATOMIC: u8 = 0xdb;
    let mut whole = code.to_vec();
    for at in (0..code.len()).step_by(8).filter(|at| code[*at] == ATOMIC) {
        let (base, source) = (code[at + 1] & 0x0f, code[at + 1] >> 4);
        let free = (0..6).find(|register| ![base, source].contains(register)).unwrap();
        let offset = [code[at + 2], code[at + 3]];
        let over = |from: usize, to: usize| ((to as i64 - from as i64) / 8 - 1) as i16;
        let instruction =
            |code, low: u8, high: u8, offset: [u8; 2]| [code, low | high << 4, offset[0], offset[1], 0, 0, 0, 0];
        let lowest = (-512_i16).to_le_bytes();
        let there = over(at, whole.len()).to_le_bytes();
        whole[at..at + 8].copy_from_slice(&instruction(0x05, 0, 0, there));
        whole.extend(instruction(0x7b, 10, free, lowest));
        whole.extend(instruction(0x79, free, base, offset));
        whole.extend(instruction(0x0f, free, source, [0, 0]));
        whole.extend(instruction(0x7b, base, free, offset));
        whole.extend(instruction(0x79, free, 10, lowest));
        let back = over(whole.len(), at + 8).to_le_bytes();
        whole.extend(instruction(0x05, 0, 0, back));
    }
    whole
}
