//! Tests on hand-made BTF, and one on the running kernel's.

use super::find::find;
use super::reader::kind;
use crate::layout::Layout;
use proptest::prelude::*;

/// Writes BTF type by type.
struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    next_id: u32,
}

/// A member: name, type, and offset in bits. With `kind_flag`, the width of a bit-field is in the offset's high byte.
type Member<'a> = (&'a str, u32, u32);

impl Builder {
    fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0], next_id: 1 }
    }

    fn add_string(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn add_u32s(&mut self, values: &[u32]) {
        for value in values {
            self.types.extend_from_slice(&value.to_ne_bytes());
        }
    }

    fn add_type(&mut self, name: &str, kind: u8, count: usize, size_or_type: u32) -> u32 {
        let name = self.add_string(name);
        self.add_u32s(&[name, u32::from(kind) << 24 | count as u32, size_or_type]);
        self.next_id += 1;
        self.next_id - 1
    }

    fn int(&mut self, size: u32) -> u32 {
        let id = self.add_type("int", kind::INT, 0, size);
        self.add_u32s(&[size * 8]);
        id
    }

    /// A type that refers to another one, such as a pointer.
    fn reference(&mut self, kind: u8, target: u32) -> u32 {
        self.add_type("", kind, 0, target)
    }

    fn array(&mut self, of: u32, count: u32) -> u32 {
        let id = self.add_type("", kind::ARRAY, 0, 0);
        self.add_u32s(&[of, of, count]);
        id
    }

    /// A structure or a union.
    fn add_composite(&mut self, kind: u8, name: &str, size: u32, members: &[Member<'_>]) -> u32 {
        let id = self.add_type(name, kind, members.len(), size);
        for &(name, type_id, bits) in members {
            let name = self.add_string(name);
            self.add_u32s(&[name, type_id, bits]);
        }
        id
    }

    fn structure(&mut self, name: &str, size: u32, members: &[Member<'_>]) -> u32 {
        self.add_composite(kind::STRUCT, name, size, members)
    }

    /// A structure whose members have the width of bit-fields in their offsets.
    fn structure_with_kind_flag(&mut self, name: &str, size: u32, members: &[Member<'_>]) -> u32 {
        let info_at = self.types.len() + 4;
        let id = self.structure(name, size, members);
        let info = u32::from_ne_bytes(self.types[info_at..info_at + 4].try_into().unwrap()) | 1 << 31;
        self.types[info_at..info_at + 4].copy_from_slice(&info.to_ne_bytes());
        id
    }

    fn function(&mut self, name: &str, parameters: &[(&str, u32)]) -> u32 {
        let prototype = self.add_type("", kind::FUNC_PROTO, parameters.len(), 0);
        for &(name, type_id) in parameters {
            let name = self.add_string(name);
            self.add_u32s(&[name, type_id]);
        }
        self.add_type(name, kind::FUNC, 0, prototype)
    }

    fn build(self) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut out = 0xeb9f_u16.to_ne_bytes().to_vec();
        out.extend_from_slice(&[1, 0]);
        for value in [24, 0, types, types, strings] {
            out.extend_from_slice(&u32::to_ne_bytes(value));
        }
        out.extend(self.types);
        out.extend(self.strings);
        out
    }
}

fn layout_of(builder: Builder) -> Layout {
    find(&builder.build()).unwrap().layout
}

fn why_missing(builder: Builder, key: &str) -> String {
    let found = find(&builder.build()).unwrap();
    assert!(!found.layout.contains(key), "{key} was found");
    let why = found.missing.into_iter().find(|missing| missing.key == key);
    why.expect("a missing key has a reason").reason
}

/// BTF with an example of each way in which a key is found.
fn examples() -> Builder {
    let mut b = Builder::new();
    let (u8_, u16_, u32_, u64_) = (b.int(1), b.int(2), b.int(4), b.int(8));
    let be32 = b.add_type("__be32", kind::TYPEDEF, 0, u32_);
    let const_be32 = b.reference(kind::CONST, be32);
    // An anonymous union with an anonymous structure, as in the kernel's `sock_common`.
    let address_pair = b.structure("", 8, &[("skc_daddr", const_be32, 0), ("skc_rcv_saddr", be32, 32)]);
    let addresses = b.add_composite(kind::UNION, "", 8, &[("skc_addrpair", u64_, 0), ("", address_pair, 0)]);
    let bytes = b.array(u8_, 16);
    let in6 = b.structure("in6_addr", 16, &[("u6_addr8", bytes, 0)]);
    let common = [("", addresses, 0), ("skc_family", u16_, 128), ("skc_v6_daddr", in6, 56 * 8)];
    b.structure("sock_common", 136, &common);
    // A nested member.
    let flow = b.structure("flowi_common", 8, &[("x", u32_, 0), ("flowic_proto", u8_, 48)]);
    b.structure("flowi6", 48, &[("__fl_common", flow, 64), ("daddr", in6, 128)]);
    // The name that `start_boottime` had before Linux 5.5.
    b.structure("task_struct", 64, &[("pid", u32_, 32), ("real_start_time", u64_, 256)]);
    // A structure in the control block of a packet.
    let control_block = b.array(u8_, 48);
    let skb = b.structure("sk_buff", 64, &[("len", u32_, 0), ("cb", control_block, 5 * 64)]);
    b.structure("inet_skb_parm", 24, &[("iif", u32_, 0), ("frag_max_size", u16_, 22 * 8)]);
    let sock = b.structure("sock", 8, &[("x", u64_, 0)]);
    let const_skb = b.reference(kind::CONST, skb);
    let (skb_pointer, sock_pointer) = (b.reference(kind::PTR, const_skb), b.reference(kind::PTR, sock));
    // A renamed argument is found by its type.
    b.function("tcp_v4_rcv", &[("renamed", skb_pointer)]);
    b.function("ip_local_out", &[("net", sock_pointer), ("sk", sock_pointer), ("skb", skb_pointer)]);
    b.function("tcp_set_state", &[("sk", sock_pointer), ("state", u32_)]);
    b
}

#[test]
fn members_are_found_inside_anonymous_ones() {
    let layout = layout_of(examples());
    assert_eq!(layout.offset("sock_common.skc_daddr"), Some(0));
    assert_eq!(layout.offset("sock_common.skc_rcv_saddr"), Some(4));
    assert_eq!(layout.offset("sock_common.skc_family"), Some(16));
    assert_eq!(layout.offset("sock_common.skc_v6_daddr"), Some(56));
}

#[test]
fn alternative_paths_and_nested_members_are_found() {
    let layout = layout_of(examples());
    assert_eq!(layout.offset("task_struct.start_boottime"), Some(32));
    assert_eq!(layout.offset("flowi6.flowi6_proto"), Some(14));
}

#[test]
fn offsets_in_the_control_block_are_counted_from_the_start_of_the_sk_buff() {
    assert_eq!(layout_of(examples()).offset("inet_skb_parm.frag_max_size"), Some(40 + 22));
    let mut b = Builder::new();
    let u16_ = b.int(2);
    b.structure("inet_skb_parm", 24, &[("frag_max_size", u16_, 22 * 8)]);
    b.structure("sk_buff", 8, &[("cb", u16_, 0)]);
    assert_eq!(why_missing(b, "inet_skb_parm.frag_max_size"), "cb has 2 bytes, not 48");
    assert_eq!(why_missing(examples(), "inet6_skb_parm.frag_max_size"), "there is no struct inet6_skb_parm");
}

#[test]
fn arguments_are_found_by_name_or_else_by_type() {
    let layout = layout_of(examples());
    assert_eq!(layout.position("ip_local_out", "net"), Some(1));
    assert_eq!(layout.position("ip_local_out", "skb"), Some(3));
    assert_eq!(layout.position("tcp_v4_rcv", "skb"), Some(1));
    assert_eq!(layout.position("tcp_set_state", "state"), Some(2));
}

#[test]
fn positions_that_a_layout_cannot_hold_are_not_looked_at() {
    let position = |before: usize| {
        let mut b = Builder::new();
        let int = b.int(4);
        let parameters = [vec![("x", int); before], vec![("state", int)]].concat();
        b.function("tcp_set_state", &parameters);
        layout_of(b).position("tcp_set_state", "state")
    };
    assert_eq!(position(254), Some(255));
    assert_eq!(position(255), None);
}

#[test]
fn a_bit_field_is_refused_where_whole_bytes_are_wanted() {
    let mut b = Builder::new();
    let int = b.int(4);
    let (width, offset) = (4, 8);
    b.structure_with_kind_flag("sk_buff", 8, &[("len", int, width << 24 | offset)]);
    assert_eq!(why_missing(b, "sk_buff.len"), "len is a bit-field");
}

/// The ways in which BTF describes bit-fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BitFieldEncoding {
    /// The member has the width, with `kind_flag`.
    Member,
    /// The member's integer type has the width.
    IntegerType,
}

/// `sk_protocol : 8`, as declared before Linux 5.6, preceded by `bits_before` other bits.
fn protocol_bit_field(bits_before: u32, encoding: BitFieldEncoding) -> Builder {
    let mut b = Builder::new();
    let in_member = encoding == BitFieldEncoding::Member;
    let int = if in_member {
        b.int(4)
    } else {
        let id = b.add_type("int", kind::INT, 0, 4);
        b.add_u32s(&[8]);
        id
    };
    let at = 512 * 8 + bits_before;
    if in_member {
        b.structure_with_kind_flag("sock", 800, &[("sk_protocol", int, 8 << 24 | at)]);
    } else {
        b.structure("sock", 800, &[("sk_protocol", int, at)]);
    }
    b
}

#[test]
fn a_bit_field_that_begins_on_a_byte_is_found() {
    for encoding in [BitFieldEncoding::Member, BitFieldEncoding::IntegerType] {
        let layout = layout_of(protocol_bit_field(8, encoding));
        assert_eq!(layout.offset("sock.sk_protocol:8"), Some(513), "{encoding:?}");
        assert_eq!(layout.offset("sock.sk_protocol"), None);
        let why = why_missing(protocol_bit_field(4, encoding), "sock.sk_protocol:8");
        assert_eq!(why, "sk_protocol begins within a byte");
    }
    let mut b = Builder::new();
    let u16_ = b.int(2);
    b.structure("sock", 800, &[("sk_protocol", u16_, 516 * 8)]);
    assert_eq!(why_missing(b, "sock.sk_protocol:8"), "sk_protocol is not a bit-field");
}

#[test]
fn a_member_of_another_size_is_refused() {
    let mut b = Builder::new();
    let int = b.int(8);
    b.structure("sk_buff", 8, &[("len", int, 0)]);
    assert_eq!(why_missing(b, "sk_buff.len"), "len has 8 bytes, not 4");
}

#[test]
fn structures_with_the_same_name_must_agree() {
    let mut b = Builder::new();
    let int = b.int(4);
    b.structure("sk_buff", 8, &[("len", int, 0)]);
    b.structure("sk_buff", 8, &[("other", int, 0)]);
    assert_eq!(layout_of(b).offset("sk_buff.len"), Some(0));
    let mut b = Builder::new();
    let int = b.int(4);
    b.structure("sk_buff", 8, &[("len", int, 0)]);
    b.structure("sk_buff", 8, &[("len", int, 32)]);
    assert!(why_missing(b, "sk_buff.len").contains("[0, 4]"));
}

#[test]
fn missing_keys_have_reasons() {
    assert_eq!(why_missing(examples(), "cred.uid"), "there is no struct cred");
    assert_eq!(why_missing(examples(), "sk_buff.dev"), "struct sk_buff has no member dev");
    assert_eq!(why_missing(examples(), "tcp_v6_rcv(skb)"), "there is no function tcp_v6_rcv");
}

#[test]
fn cyclic_types_are_an_error() {
    let mut b = Builder::new();
    let id = b.next_id;
    b.structure("sk_buff", 8, &[("", id, 0), ("", id, 0)]);
    let error = find(&b.build()).unwrap_err();
    assert_eq!(error.to_string(), format!("expected at most 100,000 members in the structure at type {id}"));

    let mut b = Builder::new();
    let (one, two) = (b.next_id, b.next_id + 1);
    b.reference(kind::TYPEDEF, two);
    b.reference(kind::CONST, one);
    b.structure("sk_buff", 8, &[("len", one, 0)]);
    assert!(find(&b.build()).unwrap_err().what.contains("chain"));

    let mut b = Builder::new();
    let id = b.next_id;
    b.array(id, 2);
    b.structure("sk_buff", 8, &[("len", id, 0)]);
    assert!(find(&b.build()).unwrap_err().what.contains("arrays"));
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = examples().build();
    for length in 0..bytes.len() {
        assert!(find(&bytes[..length]).is_err(), "truncated to {length}");
    }
    assert!(find(&[]).is_err());
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(4096))]

    #[test]
    fn find_never_panics_on_changed_bytes(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = examples().build();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = find(&bytes);
    }

    #[test]
    fn find_never_panics_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let mut bytes = bytes;
        // Without a valid beginning of the header, nothing else would be read.
        let header = [0xeb9f_u16.to_ne_bytes(), [1, 0]].concat().into_iter().chain(24_u32.to_ne_bytes());
        bytes.splice(0..0, header);
        let _ = find(&bytes);
    }
}

proptest! {
    #![proptest_config(cases(24))]

    /// Changes a few of the millions of bytes of the running kernel's type information, if it has any.
    #[test]
    fn find_never_panics_on_changed_bytes_of_a_real_kernel(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..64),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let Ok(mut bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else { return Ok(()) };
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = find(&bytes);
    }
}
