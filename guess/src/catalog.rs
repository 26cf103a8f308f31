//! What is needed of the kernel's layout: the one place that lists it.
//!
//! To need one more field or argument, add one line here. BTF then finds it by itself; a guess must say that it
//! gives it, and a test says so when none does.

use crate::engine::WORD;
use std::ops::Range;

/// A structure's field that is needed.
#[derive(Debug, Clone, Copy)]
pub struct FieldSpec {
    /// The name that probes use, `struct.field`.
    pub name: &'static str,
    /// Its size in bytes.
    pub size: u32,
    /// What else it is called, newest kernel first: other members, or members of members. Empty when the name says it.
    pub forms: &'static [&'static str],
    /// Whether only IPv6 needs it.
    pub ipv6: bool,
    /// Whether only socket events need it.
    pub socket_events: bool,
    /// Whether its structure is what a protocol keeps in the control block of an `sk_buff` (`sk_buff.cb`). Its offset
    /// is then the one from the start of the `sk_buff`, since that is what probes are given.
    pub control_block: bool,
    /// The key of what newer kernels have in its place: a kernel has one of the two, and only that is needed of it.
    pub replaced_by: Option<&'static str>,
    /// How many bits it has, of a bit-field that begins with a byte. Its name ends with that, as in a declaration:
    /// `sock.sk_protocol:8`.
    pub bits: Option<u8>,
}

/// The control block of an `sk_buff`, an array of bytes: whatever protocol has the packet keeps a structure of its own
/// in it.
pub(crate) const CONTROL_BLOCK: &str = "sk_buff.cb";
/// Its size in bytes, that of all kernels since 2.6.
pub(crate) const CONTROL_BLOCK_SIZE: u32 = 48;
/// Where it begins, where there is no type information to tell it. Before it are four pointers (two neighbours, socket and
/// device) and a time of 8 bytes, in whatever order, on all kernels since 3.12; `cargo vm test` compares this with type
/// information.
const CONTROL_BLOCK_START: u32 = 4 * WORD + 8;

/// A kernel function with the arguments that are needed of it.
#[derive(Debug, Clone, Copy)]
pub struct FunctionSpec {
    /// The kernel's name of it.
    pub name: &'static str,
    /// What is needed of its arguments; empty when only its return value or its being called matters.
    pub arguments: &'static [ArgumentSpec],
    /// Whether only IPv6 needs it.
    pub ipv6: bool,
    /// The release from which on there is no such function any more: to miss it there is no loss.
    pub until: Option<&'static str>,
}

/// An argument of a kernel function.
#[derive(Debug, Clone, Copy)]
pub struct ArgumentSpec {
    /// What the kernel and the probes call it.
    pub name: &'static str,
    /// The structure that it points to; none for a plain number.
    pub points_to: Option<&'static str>,
}

const fn field(name: &'static str, size: u32) -> FieldSpec {
    FieldSpec {
        name,
        size,
        forms: &[],
        ipv6: false,
        socket_events: false,
        control_block: false,
        replaced_by: None,
        bits: None,
    }
}

/// A pointer, or what is as long as one.
const fn word(name: &'static str) -> FieldSpec {
    field(name, WORD)
}

impl FieldSpec {
    const fn or(mut self, forms: &'static [&'static str]) -> Self {
        self.forms = forms;
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

    /// Its structure lies in the control block of an `sk_buff`: the offset is counted from the start of that.
    const fn in_control_block(mut self) -> Self {
        self.control_block = true;
        self
    }

    /// Newer kernels have that in its place.
    const fn replaced_by(mut self, key: &'static str) -> Self {
        self.replaced_by = Some(key);
        self
    }

    const fn bit_field(mut self, bits: u8) -> Self {
        self.bits = Some(bits);
        self
    }

    /// Where a guess may find it: the first offset, and the first behind the last. What is in a control block ends with
    /// that; other structures are no larger than what their guesses look at.
    fn places(&self) -> Range<u32> {
        if self.control_block {
            CONTROL_BLOCK_START..CONTROL_BLOCK_START + CONTROL_BLOCK_SIZE + 1 - self.size
        } else {
            0..u32::MAX
        }
    }
}

const fn function(name: &'static str, arguments: &'static [ArgumentSpec]) -> FunctionSpec {
    FunctionSpec { name, arguments, ipv6: false, until: None }
}

impl FunctionSpec {
    const fn v6(mut self) -> Self {
        self.ipv6 = true;
        self
    }

    const fn until(mut self, release: &'static str) -> Self {
        self.until = Some(release);
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

/// Every field that is needed.
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
    field("flowi6.flowi6_proto", 1).or(&["flowi6.__fl_common.flowic_proto"]).v6(),
    field("cred.uid", 4),
    field("cred.gid", 4),
    field("cred.euid", 4),
    field("cred.egid", 4),
    word("linux_binprm.p"),
    word("linux_binprm.filename"),
    word("linux_binprm.interp"),
    field("linux_binprm.argc", 4),
    word("linux_binprm.file"),
    word("file.dentry").or(&["file.f_path.dentry"]),
    word("file.mnt").or(&["file.f_path.mnt"]),
    word("dentry.name").or(&["dentry.d_name.name"]),
    word("dentry.d_parent"),
    word("dentry.pprev").or(&["dentry.d_hash.pprev"]),
    word("vfsmount.mnt_root"),
    word("mount.mnt_root").or(&["mount.mnt.mnt_root"]),
    word("mount.mnt_parent"),
    word("mount.mnt_mountpoint"),
    field("task_struct.pid", 4),
    field("task_struct.tgid", 4),
    field("task_struct.start_boottime", 8).or(&["task_struct.real_start_time"]),
    // A `struct timespec`, before Linux 3.17.
    field("task_struct.real_start_time", 2 * WORD).replaced_by("task_struct.start_boottime"),
    field("socket.type", 2).for_socket_events(),
    word("socket_alloc.i_ino").or(&["socket_alloc.vfs_inode.i_ino"]).for_socket_events(),
    field("sock_common.skc_state", 1).for_socket_events(),
    field("sock_common.skc_bound_dev_if", 4).for_socket_events(),
    field("sock.sk_protocol", 2).for_socket_events(),
    // Before Linux 5.6.
    field("sock.sk_protocol:8", 1).bit_field(8).for_socket_events().replaced_by("sock.sk_protocol"),
];

/// Every function that is probed, with its arguments by the names that probes use.
pub const FUNCTIONS: &[FunctionSpec] = &[
    function("ip_local_out", &[NET, SK, SKB]),
    function("__ip_local_out", &[NET, SK, SKB]),
    function("__ip_local_out_sk", &[SK, SKB]).until("4.4"),
    function("ip_local_out_sk", &[SK, SKB]).until("4.4"),
    function("ip6_local_out", &[NET, SK, SKB]).v6(),
    function("__ip6_local_out", &[NET, SK, SKB]).v6(),
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

/// How an argument is written: `function(argument)`.
pub fn argument_key(function: &str, argument: &str) -> String {
    format!("{function}({argument})")
}

/// Splits `function(argument)`.
pub fn split_argument_key(key: &str) -> Option<(&str, &str)> {
    key.strip_suffix(')')?.split_once('(')
}

/// Whether only older kernels have a key: a field that was replaced, or an argument of a function that is gone.
pub fn is_old(key: &str) -> bool {
    let function = split_argument_key(key).map(|(function, _)| function);
    FUNCTIONS.iter().any(|spec| spec.until.is_some() && Some(spec.name) == function)
        || FIELDS.iter().any(|spec| spec.replaced_by.is_some() && spec.name == key)
}

/// The other form of this field. Each kernel has one of the two, so a layout with one does not need the other.
pub fn other_form(key: &str) -> Option<&'static str> {
    FIELDS.iter().find_map(|spec| match spec.replaced_by {
        Some(newer) if spec.name == key => Some(newer),
        Some(newer) if newer == key => Some(spec.name),
        _ => None,
    })
}

/// The bit-field that older kernels have in place of this field, and how many bits it has.
pub(crate) fn as_bit_field(key: &str) -> Option<(&'static str, u8)> {
    FIELDS.iter().find(|spec| spec.replaced_by == Some(key)).and_then(|spec| Some((spec.name, spec.bits?)))
}

/// Whether a guess may find a key to have this value.
pub(crate) fn may_be(key: &str, value: u32) -> bool {
    FIELDS.iter().find(|spec| spec.name == key).is_none_or(|spec| spec.places().contains(&value))
}

/// Whether only socket events need a key.
pub fn is_for_socket_events(key: &str) -> bool {
    FIELDS.iter().any(|spec| spec.socket_events && spec.name == key)
}

/// Every key that is needed, and whether only IPv6 needs it: fields as `struct.field`, arguments as
/// `function(argument)`.
pub fn keys() -> impl Iterator<Item = (String, bool)> {
    let fields = FIELDS.iter().map(|spec| (spec.name.to_owned(), spec.ipv6));
    let arguments = FUNCTIONS.iter().flat_map(|spec| {
        let key = |argument: &ArgumentSpec| (argument_key(spec.name, argument.name), spec.ipv6);
        spec.arguments.iter().map(key)
    });
    fields.chain(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn nothing_is_listed_twice() {
        let all: Vec<_> = keys().map(|(key, _)| key).collect();
        let distinct: BTreeSet<_> = all.iter().collect();
        assert_eq!(all.len(), distinct.len());
    }

    #[test]
    fn keys_of_arguments_can_be_taken_apart() {
        assert_eq!(split_argument_key("ip_local_out(skb)"), Some(("ip_local_out", "skb")));
        assert_eq!(split_argument_key("sock_common.skc_daddr"), None);
    }

    #[test]
    fn a_field_that_was_replaced_is_needed_of_old_kernels_alone() {
        let (new, old) = ("task_struct.start_boottime", "task_struct.real_start_time");
        assert_eq!((other_form(new), other_form(old), other_form("task_struct.pid")), (Some(old), Some(new), None));
        assert!(is_old(old) && !is_old(new));
        for newer in FIELDS.iter().filter_map(|spec| spec.replaced_by) {
            assert!(FIELDS.iter().any(|spec| spec.name == newer && spec.replaced_by.is_none()), "{newer}");
        }
    }

    #[test]
    fn what_is_in_a_control_block_ends_with_it() {
        for key in ["inet_skb_parm.frag_max_size", "inet6_skb_parm.frag_max_size"] {
            let end = CONTROL_BLOCK_START + CONTROL_BLOCK_SIZE;
            let places = [CONTROL_BLOCK_START - 2, CONTROL_BLOCK_START, end - 2, end];
            assert_eq!(places.map(|value| may_be(key, value)), [false, true, true, false], "{key}");
        }
        assert!(may_be("sk_buff.len", 128) && may_be("ip_local_out(skb)", 3));
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
            assert!(spec.forms.iter().all(|form| form.contains('.')), "{}", spec.name);
        }
    }
}
