//! A simulated kernel: each hit of a probe runs the probe's program in the interpreter `rbpf`, which is independent of this
//! code.

use std::cell::RefCell;
use std::collections::BTreeMap;

use socktrail_kprobes::bpf::{Code, Helper};
use socktrail_kprobes::{Hook, HookSamples, Target, Term};

use crate::model::totals::Totals;
use crate::source::cgroup;
use crate::source::kprobes::accounting::entry::{SIZE, of_record, refused_packets, totals};
use crate::source::kprobes::accounting::table::{BUCKET_WORDS, SLOTS, Table};
use crate::source::kprobes::accounting::{Rules, programs};
use crate::source::kprobes::{FLOW_PROBES, Feature, Probe};

/// The size of `struct pt_regs`, and the offsets of the registers of the first arguments in it.
const CONTEXT: usize = 272;
const ARGUMENTS: [usize; 3] = if cfg!(target_arch = "aarch64") { [0, 8, 16] } else { [112, 104, 96] };
/// What a helper returns for memory that is not mapped.
const EFAULT: i64 = -14;
/// The words of an entry.
const WORDS: usize = SIZE as usize / 8;

/// The layout of a kernel like 6.1.
pub(super) fn layout(function: &str, name: &str) -> Option<Term> {
    let argument = match (function, name) {
        ("__ip_local_out" | "__ip6_local_out", "net") => Some(1),
        ("__ip_local_out" | "__ip6_local_out", "sk") => Some(2),
        ("__ip_local_out" | "__ip6_local_out", "skb") => Some(3),
        ("tcp_v4_rcv" | "tcp_v6_rcv", "skb") => Some(1),
        (_, "sk") => Some(1),
        (_, "skb" | "state") => Some(2),
        (_, "fl6" | "reason") => Some(3),
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
        "sk_buff.transport_header" => 182,
        "sk_buff.network_header" => 184,
        "sock.sk_protocol" => 516,
        "sock.sk_type" => 518,
        "net_device.mtu" => 56,
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
        "sock_common.skc_v6_rcv_saddr" => 72,
        "inet_sock.inet_sport" => 798,
        "tcp_sock.segs_in" => 1548,
        "tcp_sock.segs_out" => 1580,
        _ => return argument.map(Term::Argument),
    };
    Some(Term::Offset(offset))
}

/// The programs of all features that have one.
pub(super) fn all_programs(rules: &Rules, table: Table) -> Vec<(Feature, &'static str, Code)> {
    let of = |(feature, probes): &(Feature, &'static [_])| {
        let (name, code) = programs::program(*feature, &probes[0], None, &layout, rules, table)?;
        Some((*feature, name, code.unwrap()))
    };
    FLOW_PROBES.iter().filter_map(of).collect()
}

/// The programs at the hooks of packets.
fn programs_at_hooks(rules: &Rules, table: Table) -> Vec<(Feature, Code)> {
    let samples = |probe: &Probe| match probe.target {
        Target::Hook(hook @ (Hook::Egress | Hook::Ingress)) => {
            let conditions = cgroup::conditions(probe);
            Some(HookSamples::new("test", 0xf000, hook, probe.fetches, &conditions, &layout).unwrap())
        }
        _ => None,
    };
    let of = |(feature, probe): &(Feature, Probe)| {
        let samples = samples(probe)?;
        let (_, code) = programs::program(*feature, probe, Some(&samples), &layout, rules, table)?;
        Some((*feature, code.unwrap()))
    };
    cgroup::PROBES.iter().filter_map(of).collect()
}

thread_local! {
    static KERNEL: RefCell<Kernel> = RefCell::default();
}

/// What the helpers of the interpreter work on.
#[derive(Default)]
struct Kernel {
    now: u64,
    memory: BTreeMap<u64, Vec<u8>>,
    /// The arrays, by their numbers in a program: the size of a value in words, and the values.
    arrays: [(usize, Vec<u64>); 3],
    records: Vec<Vec<u8>>,
}

/// A machine with the programs attached.
pub(super) struct Machine {
    programs: Vec<(Feature, Vec<u8>)>,
    table: Table,
}

impl Machine {
    /// Starts one with a table for this number of conversations.
    pub(super) fn new(rules: &Rules, conversations: u32) -> Self {
        let table = Table::of(conversations);
        let programs = all_programs(rules, table);
        Self::with(programs.into_iter().map(|(of, _, code)| (of, code)).collect(), table)
    }

    /// The same with programs at hooks.
    pub(super) fn at_hooks(rules: &Rules, conversations: u32) -> Self {
        let table = Table::of(conversations);
        Self::with(programs_at_hooks(rules, table), table)
    }

    fn with(programs: Vec<(Feature, Code)>, table: Table) -> Self {
        let array = |words: usize, count: u32| (words, vec![0; words * count as usize]);
        let arrays =
            [array(BUCKET_WORDS, table.buckets()), array(WORDS, table.entries()), array(BUCKET_WORDS, table.buckets())];
        KERNEL.set(Kernel { arrays, ..Kernel::default() });
        let programs = programs.into_iter().map(|(of, code)| (of, without_atomics(&code.bytes()))).collect();
        Self { programs, table }
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
        let mut context = vec![0; CONTEXT];
        for (at, argument) in ARGUMENTS.into_iter().zip(arguments) {
            context[at..at + 8].copy_from_slice(&argument.to_ne_bytes());
        }
        let (result, records) = self.run(feature, &mut context);
        (result == 1, records.iter().map(|record| of_record(record).unwrap()).collect())
    }

    /// A hit of a feature's hook with this `struct sk_buff`. Returns whether it becomes a sample, and what was reported before.
    pub(super) fn hit_with(&self, feature: Feature, mut skb: Vec<u8>) -> (bool, Vec<Totals>) {
        self.put(skb.as_ptr() as u64, skb.clone());
        let (verdict, records) = self.run(feature, &mut skb);
        KERNEL.with_borrow_mut(|kernel| kernel.memory.remove(&(skb.as_ptr() as u64)));
        assert_eq!(verdict, 1, "the packet passes");
        let is_sample = |record: &Vec<u8>| record[..2] == 0xf000_u16.to_ne_bytes();
        let (samples, reported): (Vec<_>, Vec<_>) = records.into_iter().partition(is_sample);
        assert!(samples.len() <= 1);
        (samples.len() == 1, reported.iter().map(|record| of_record(record).unwrap()).collect())
    }

    /// Runs a feature's program. Returns its result, and what it has written into the ring.
    fn run(&self, feature: Feature, context: &mut [u8]) -> (u64, Vec<Vec<u8>>) {
        let (_, code) = self.programs.iter().find(|(of, _)| *of == feature).unwrap();
        let mut vm = rbpf::EbpfVmRaw::new(Some(code)).unwrap();
        let helpers: [(Helper, rbpf::Helper); 5] = [
            (Helper::MapLookup, look_up),
            (Helper::ProbeRead, probe_read),
            (Helper::ProbeReadKernel, probe_read),
            (Helper::MonotonicTime, time),
            (Helper::Output, output),
        ];
        for (helper, function) in helpers {
            vm.register_helper(helper as u32, function).unwrap();
        }
        KERNEL.with_borrow(|kernel| {
            for (_, values) in &kernel.arrays {
                let range = values.as_ptr_range();
                vm.register_allowed_memory(range.start as u64..range.end as u64);
            }
        });
        let result = vm.execute_program(context).unwrap();
        (result, KERNEL.with_borrow_mut(|kernel| std::mem::take(&mut kernel.records)))
    }

    /// Locks or unlocks all buckets of ends, as a program on another CPU may lock one.
    pub(super) fn lock_ends(&self, is_locked: bool) {
        KERNEL.with_borrow_mut(|kernel| {
            let (buckets, _) = kernel.arrays[2].1.as_chunks_mut::<BUCKET_WORDS>();
            buckets.iter_mut().for_each(|bucket| bucket[SLOTS] = is_locked.into());
        });
    }

    /// What user space reads of a socket's conversation.
    pub(super) fn look_up(&self, sock: u64) -> Option<Totals> {
        let bucket = self.table.bucket(sock);
        let slot = KERNEL.with_borrow(|kernel| {
            let words = &kernel.arrays[0].1[bucket as usize * BUCKET_WORDS..][..SLOTS];
            words.iter().position(|word| *word == sock)
        });
        totals(&self.bytes(Table::entry(bucket, slot? as u32)))
    }

    /// What user space reads of all conversations.
    pub(super) fn conversations(&self) -> Vec<Totals> {
        let of_bucket = |bucket| (0..SLOTS).map(move |slot| (bucket, slot));
        let keys = (0..self.table.buckets()).flat_map(of_bucket);
        let live = keys.filter(|(bucket, slot)| {
            KERNEL.with_borrow(|kernel| kernel.arrays[0].1[*bucket as usize * BUCKET_WORDS + slot] != 0)
        });
        live.map(|(bucket, slot)| totals(&self.bytes(Table::entry(bucket, slot as u32))).unwrap()).collect()
    }

    /// The number of packets that were sampled for lack of room in the table.
    pub(super) fn refused_packets(&self) -> u64 {
        refused_packets(&self.bytes(self.table.refused_entry())).unwrap()
    }

    /// The bytes of an entry.
    fn bytes(&self, number: u32) -> Vec<u8> {
        KERNEL.with_borrow(|kernel| {
            let words = &kernel.arrays[1].1[number as usize * WORDS..][..WORDS];
            words.iter().flat_map(|word| word.to_ne_bytes()).collect()
        })
    }

    /// The number of entries that are found by their sockets, and by their ends. Asserts that nothing is locked.
    pub(super) fn entries(&self) -> (usize, usize) {
        let [sockets, ends] = [0, 2].map(|array| {
            KERNEL.with_borrow(|kernel| {
                let (buckets, _) = kernel.arrays[array].1.as_chunks::<BUCKET_WORDS>();
                assert!(buckets.iter().all(|bucket| bucket[SLOTS] == 0));
                buckets.iter().flatten().filter(|word| **word != 0).count()
            })
        });
        (sockets, ends)
    }
}

fn look_up(array: u64, number: u64, _: u64, _: u64, _: u64) -> u64 {
    let number = u32::from_ne_bytes(get(number, 4).try_into().unwrap()) as usize;
    KERNEL.with_borrow(|kernel| {
        let (words, values) = &kernel.arrays[array as usize];
        values.get(number * words).map_or(0, |value| std::ptr::from_ref(value) as u64)
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
    assert_eq!((map, flags), (3, 0xffff_ffff));
    let record = get(data, size as usize);
    KERNEL.with_borrow_mut(|kernel| kernel.records.push(record));
    0
}

#[allow(unsafe_code, reason = "the interpreter hands memory over as an address")]
fn get(from: u64, size: usize) -> Vec<u8> {
    // SAFETY: the programs pass addresses of their stack or of an entry with that many bytes, which the interpreter has allocated.
    unsafe { std::slice::from_raw_parts(from as *const u8, size) }.to_vec()
}

#[allow(unsafe_code, reason = "the interpreter hands memory over as an address")]
fn put(to: u64, bytes: &[u8]) {
    // SAFETY: the address is that of the program's stack, with that many bytes.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
}

/// The interpreter has no atomic addition. Each becomes a jump to code after the program, which does a plain addition and jumps
/// back. That code saves a register in the lowest eight bytes of the stack.
fn without_atomics(code: &[u8]) -> Vec<u8> {
    const ATOMIC: u8 = 0xdb;
    const FETCH: u8 = 1;
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
        if code[at + 4] == FETCH {
            whole.extend(instruction(0x1f, free, source, [0, 0]));
            whole.extend(instruction(0xbf, source, free, [0, 0]));
        }
        whole.extend(instruction(0x79, free, 10, lowest));
        let back = over(whole.len(), at + 8).to_le_bytes();
        whole.extend(instruction(0x05, 0, 0, back));
    }
    whole
}
