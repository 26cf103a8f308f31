//! All fields and arguments of the kernel's layout that are needed.
//!
//! To add one, add a line here. BTF then finds it without further work. A guess must give it, too; a test fails if none
//! does.

use crate::engine::WORD;
use std::ops::Range;

/// A needed field of a structure.
#[derive(Debug, Clone, Copy)]
pub struct FieldSpec {
    /// The name that probes use, `struct.field`.
    pub name: &'static str,
    /// Its size in bytes.
    pub size: u32,
    /// Other members, or members of members, under which kernels have it. The newest kernel's comes first. Empty if
    /// `name` is a member on all kernels.
    pub alternatives: &'static [&'static str],
    /// Whether only IPv6 needs it.
    pub ipv6: bool,
    /// Whether only socket events need it.
    pub socket_events: bool,
    /// Whether a protocol keeps the structure in the control block of an `sk_buff` (`sk_buff.cb`). Then its offset is
    /// counted from the beginning of the `sk_buff`, because that is what probes get.
    pub control_block: bool,
    /// The key of the field that replaced it in newer kernels. A kernel has only one of the two.
    pub replaced_by: Option<&'static str>,
    /// For a bit-field that begins on a byte, its width in bits. Its name ends with it, as in a declaration:
    /// `sock.sk_protocol:8`.
    pub bits: Option<u8>,
}

/// The control block of an `sk_buff`: an array of bytes, in which the protocol that has the packet keeps a structure of
/// its own.
pub(crate) const CONTROL_BLOCK: &str = "sk_buff.cb";
/// The size of the control block in bytes, the same on all kernels since 2.6.
pub(crate) const CONTROL_BLOCK_SIZE: u32 = 48;
/// The offset of the control block, for kernels without type information. On all kernels since 3.12, four pointers (two
/// neighbours, the socket and the device) and a time of 8 bytes come before it, in varying order. `cargo vm test`
/// compares this with type information.
const CONTROL_BLOCK_START: u32 = 4 * WORD + 8;

/// A kernel function and its needed arguments.
#[derive(Debug, Clone, Copy)]
pub struct FunctionSpec {
    /// The function's name in the kernel.
    pub name: &'static str,
    /// The needed arguments, in the kernel's order. Older kernels may not have all of them. Empty if only its return
    /// value, or that it is called, matters.
    pub arguments: &'static [ArgumentSpec],
    /// Whether only IPv6 needs it.
    pub ipv6: bool,
    /// The kernel release that removed the function. Keys of a removed function do not count as missing.
    pub removed_in: Option<&'static str>,
}

/// A needed argument of a kernel function.
#[derive(Debug, Clone, Copy)]
pub struct ArgumentSpec {
    /// Its name in the kernel and in probes.
    pub name: &'static str,
    /// The structure that it points to; `None` for a number.
    pub points_to: Option<&'static str>,
}

const fn field(name: &'static str, size: u32) -> FieldSpec {
    FieldSpec {
        name,
        size,
        alternatives: &[],
        ipv6: false,
        socket_events: false,
        control_block: false,
        replaced_by: None,
        bits: None,
    }
}

/// A field with the size of a pointer.
const fn word(name: &'static str) -> FieldSpec {
    field(name, WORD)
}

impl FieldSpec {
    const fn or_named(mut self, alternatives: &'static [&'static str]) -> Self {
        self.alternatives = alternatives;
        self
    }

    const fn v6(mut self) -> Self {
        self.ipv6 = true;
        self
    }

    const fn for_socket_events(mut self) -> Self {
        self.socket_events = true;
        self
    }

    /// The structure is in the control block of an `sk_buff`.
    const fn in_control_block(mut self) -> Self {
        self.control_block = true;
        self
    }

    /// Newer kernels have the field `key` instead.
    const fn replaced_by(mut self, key: &'static str) -> Self {
        self.replaced_by = Some(key);
        self
    }

    const fn bit_field(mut self, bits: u8) -> Self {
        self.bits = Some(bits);
        self
    }

    /// The offsets at which a guess may find it. A field of a structure in a control block lies within the block. Other
    /// fields are limited only by what their guesses capture.
    fn possible_offsets(&self) -> Range<u32> {
        if self.control_block {
            CONTROL_BLOCK_START..CONTROL_BLOCK_START + CONTROL_BLOCK_SIZE + 1 - self.size
        } else {
            0..u32::MAX
        }
    }
}

const fn function(name: &'static str, arguments: &'static [ArgumentSpec]) -> FunctionSpec {
    FunctionSpec { name, arguments, ipv6: false, removed_in: None }
}

impl FunctionSpec {
    const fn v6(mut self) -> Self {
        self.ipv6 = true;
        self
    }

    const fn removed_in(mut self, release: &'static str) -> Self {
        self.removed_in = Some(release);
        self
    }
}

const fn pointer(name: &'static str, to: &'static str) -> ArgumentSpec {
    ArgumentSpec { name, points_to: Some(to) }
}

const fn number(name: &'static str) -> ArgumentSpec {
    ArgumentSpec { name, points_to: None }
}

const NET: ArgumentSpec = pointer("net", "net");
const SK: ArgumentSpec = pointer("sk", "sock");
const SKB: ArgumentSpec = pointer("skb", "sk_buff");
const SOCK: ArgumentSpec = pointer("sock", "socket");
const UADDR: ArgumentSpec = pointer("uaddr", "sockaddr");

/// All needed fields.
pub const FIELDS: &[FieldSpec] = &[
    field("sock_common.skc_daddr", 4),
    field("sock_common.skc_rcv_saddr", 4),
    field("sock_common.skc_dport", 2),
    field("sock_common.skc_num", 2),
    field("sock_common.skc_family", 2),
    word("sock_common.skc_net"),
    field("sock_common.skc_v6_daddr", 16).v6(),
    field("sock_common.skc_v6_rcv_saddr", 16).v6(),
    field("sock.sk_err", 4),
    field("inet_sock.inet_sport", 2),
    field("tcp_sock.segs_in", 4),
    field("tcp_sock.segs_out", 4),
    word("socket.sk"),
    field("sk_buff.len", 4),
    word("sk_buff.data"),
    field("sk_buff.transport_header", 2),
    field("sk_buff.network_header", 2),
    word("sk_buff.dev"),
    word("sk_buff.sk"),
    field("inet_skb_parm.frag_max_size", 2).in_control_block(),
    field("inet6_skb_parm.frag_max_size", 2).in_control_block().v6(),
    word("net_device.nd_net"),
    field("flowi6.saddr", 16).v6(),
    field("flowi6.daddr", 16).v6(),
    field("flowi6.flowi6_proto", 1).or_named(&["flowi6.__fl_common.flowic_proto"]).v6(),
    field("cred.uid", 4),
    field("cred.gid", 4),
    field("cred.euid", 4),
    field("cred.egid", 4),
    word("linux_binprm.p"),
    word("linux_binprm.filename"),
    word("linux_binprm.interp"),
    field("linux_binprm.argc", 4),
    word("linux_binprm.file"),
    word("file.dentry").or_named(&["file.f_path.dentry"]),
    word("file.mnt").or_named(&["file.f_path.mnt"]),
    word("dentry.name").or_named(&["dentry.d_name.name"]),
    word("dentry.d_parent"),
    word("dentry.pprev").or_named(&["dentry.d_hash.pprev"]),
    word("vfsmount.mnt_root"),
    word("mount.mnt_root").or_named(&["mount.mnt.mnt_root"]),
    word("mount.mnt_parent"),
    word("mount.mnt_mountpoint"),
    field("task_struct.pid", 4),
    field("task_struct.tgid", 4),
    field("task_struct.start_boottime", 8).or_named(&["task_struct.real_start_time"]),
    // Before Linux 3.17 the time is a `struct timespec`.
    field("task_struct.real_start_time", 2 * WORD).replaced_by("task_struct.start_boottime"),
    field("socket.type", 2).for_socket_events(),
    word("socket_alloc.i_ino").or_named(&["socket_alloc.vfs_inode.i_ino"]).for_socket_events(),
    field("sock_common.skc_state", 1).for_socket_events(),
    field("sock_common.skc_bound_dev_if", 4).for_socket_events(),
    field("sock.sk_protocol", 2).for_socket_events(),
    // Before Linux 5.6 it is a bit-field.
    field("sock.sk_protocol:8", 1).bit_field(8).for_socket_events().replaced_by("sock.sk_protocol"),
];

/// Further fields that programs at hooks need. Kernels without kprobes cannot be made to give guesses, so only type information has
/// them.
pub const HOOK_FIELDS: &[FieldSpec] = &[
    word("task_struct.cred"),
    word("task_struct.files"),
    word("task_struct.mm"),
    word("mm_struct.arg_start"),
    word("files_struct.fdt"),
    word("fdtable.fd"),
    word("file.private_data"),
    field("net_device.mtu", 4),
    field("sock.sk_type", 2),
];

/// All functions whose arguments are needed, or whose calls alone matter to a probe.
pub const FUNCTIONS: &[FunctionSpec] = &[
    function("ip_local_out", &[NET, SK, SKB]),
    function("__ip_local_out", &[NET, SK, SKB]),
    function("__ip_local_out_sk", &[SK, SKB]).removed_in("4.4"),
    function("ip_local_out_sk", &[SK, SKB]).removed_in("4.4"),
    function("ip6_local_out", &[NET, SK, SKB]).v6(),
    function("__ip6_local_out", &[NET, SK, SKB]).v6(),
    function("__ip6_local_out_sk", &[SK, SKB]).v6().removed_in("4.4"),
    function("ip6_xmit", &[SK, SKB, pointer("fl6", "flowi6")]).v6(),
    function("tcp_v4_rcv", &[SKB]),
    function("tcp_v6_rcv", &[SKB]).v6(),
    function("udp_queue_rcv_skb", &[SK, SKB]),
    function("udpv6_queue_rcv_skb", &[SK, SKB]).v6(),
    function("tcp_v4_connect", &[SK, UADDR]),
    function("tcp_v6_connect", &[SK, UADDR]).v6(),
    function("tcp_set_state", &[SK, number("state")]),
    function("sock_init_data", &[SOCK, SK]),
    function("security_sock_graft", &[SK, pointer("parent", "socket")]),
    function("inet_csk_accept", &[]),
    function("inet_release", &[SOCK]),
    function("inet_sock_destruct", &[SK]),
    function("sock_def_error_report", &[SK]),
    function("commit_creds", &[pointer("new", "cred")]),
    function("security_bprm_committed_creds", &[pointer("bprm", "linux_binprm")]),
    function("wake_up_new_task", &[pointer("p", "task_struct")]),
];

/// The key of an argument: `function(argument)`.
pub fn argument_key(function: &str, argument: &str) -> String {
    format!("{function}({argument})")
}

/// Splits a key `function(argument)` into function and argument. `None` for a field's key.
pub fn split_argument_key(key: &str) -> Option<(&str, &str)> {
    key.strip_suffix(')')?.split_once('(')
}

/// The keys of the arguments that come after this one in a function that has both.
pub fn later_arguments(key: &str) -> Vec<String> {
    let Some((function, argument)) = split_argument_key(key) else { return Vec::new() };
    let arguments = FUNCTIONS.iter().filter(|spec| spec.name == function).flat_map(|spec| spec.arguments);
    let later = arguments.skip_while(|spec| spec.name != argument).skip(1);
    later.map(|spec| argument_key(function, spec.name)).collect()
}

/// Whether only older kernels have a key: a field that was replaced, or an argument of a function that was removed.
pub fn is_obsolete(key: &str) -> bool {
    let function = split_argument_key(key).map(|(function, _)| function);
    FUNCTIONS.iter().any(|spec| spec.removed_in.is_some() && Some(spec.name) == function)
        || FIELDS.iter().any(|spec| spec.replaced_by.is_some() && spec.name == key)
}

/// The older or newer form of a field. A kernel has one of the two forms, so a layout needs only one.
pub fn other_form(key: &str) -> Option<&'static str> {
    FIELDS.iter().find_map(|spec| match spec.replaced_by {
        Some(newer) if spec.name == key => Some(newer),
        Some(newer) if newer == key => Some(spec.name),
        _ => None,
    })
}

/// The bit-field that older kernels have instead of this field, and its width in bits.
pub(crate) fn as_bit_field(key: &str) -> Option<(&'static str, u8)> {
    FIELDS.iter().find(|spec| spec.replaced_by == Some(key)).and_then(|spec| Some((spec.name, spec.bits?)))
}

/// Whether a key may have this value.
pub(crate) fn is_possible_value(key: &str, value: u32) -> bool {
    FIELDS.iter().find(|spec| spec.name == key).is_none_or(|spec| spec.possible_offsets().contains(&value))
}

/// Whether only socket events need a key.
pub fn is_for_socket_events(key: &str) -> bool {
    FIELDS.iter().any(|spec| spec.socket_events && spec.name == key)
}

/// A key that is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogKey {
    /// `struct.field` or `function(argument)`.
    pub name: String,
    /// Whether only IPv6 needs it.
    pub only_ipv6: bool,
}

/// Every key that is needed.
pub fn keys() -> impl Iterator<Item = CatalogKey> {
    let fields = FIELDS.iter().map(|spec| CatalogKey { name: spec.name.to_owned(), only_ipv6: spec.ipv6 });
    let arguments = FUNCTIONS.iter().flat_map(|spec| {
        let key =
            |argument: &ArgumentSpec| CatalogKey { name: argument_key(spec.name, argument.name), only_ipv6: spec.ipv6 };
        spec.arguments.iter().map(key)
    });
    fields.chain(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn keys_are_listed_once() {
        let all: Vec<_> = keys().map(|key| key.name).collect();
        let distinct: BTreeSet<_> = all.iter().collect();
        assert_eq!(all.len(), distinct.len());
    }

    #[test]
    fn keys_of_arguments_are_split() {
        assert_eq!(split_argument_key("ip_local_out(skb)"), Some(("ip_local_out", "skb")));
        assert_eq!(split_argument_key("sock_common.skc_daddr"), None);
    }

    #[test]
    fn only_old_kernels_need_a_field_that_was_replaced() {
        let (new, old) = ("task_struct.start_boottime", "task_struct.real_start_time");
        assert_eq!((other_form(new), other_form(old), other_form("task_struct.pid")), (Some(old), Some(new), None));
        assert!(is_obsolete(old) && !is_obsolete(new));
        for newer in FIELDS.iter().filter_map(|spec| spec.replaced_by) {
            assert!(FIELDS.iter().any(|spec| spec.name == newer && spec.replaced_by.is_none()), "{newer}");
        }
    }

    #[test]
    fn a_field_in_a_control_block_lies_within_it() {
        for key in ["inet_skb_parm.frag_max_size", "inet6_skb_parm.frag_max_size"] {
            let end = CONTROL_BLOCK_START + CONTROL_BLOCK_SIZE;
            let offsets = [CONTROL_BLOCK_START - 2, CONTROL_BLOCK_START, end - 2, end];
            assert_eq!(offsets.map(|value| is_possible_value(key, value)), [false, true, true, false], "{key}");
        }
        assert!(is_possible_value("sk_buff.len", 128) && is_possible_value("ip_local_out(skb)", 3));
    }

    #[test]
    fn a_bit_field_is_named_by_its_declaration() {
        assert_eq!(as_bit_field("sock.sk_protocol"), Some(("sock.sk_protocol:8", 8)));
        assert_eq!((as_bit_field("sock.sk_err"), as_bit_field("task_struct.start_boottime")), (None, None));
        for spec in FIELDS {
            let bits = spec.name.split_once(':').map(|(_, bits)| bits.parse().unwrap());
            assert_eq!(spec.bits, bits, "{}", spec.name);
        }
    }

    #[test]
    fn names_have_the_form_struct_dot_field() {
        for spec in FIELDS {
            assert_eq!(spec.name.split('.').count(), 2, "{}", spec.name);
            assert!(spec.alternatives.iter().all(|form| form.contains('.')), "{}", spec.name);
        }
    }
}
