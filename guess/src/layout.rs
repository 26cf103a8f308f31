//! [`Layout`]: offsets of fields and positions of arguments.

use crate::{abi, catalog};
use serde::{Deserialize, Serialize};
use socktrail_kprobes::{Resolver, Term};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Where an offset or a position comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueOrigin {
    /// From a guess: the values of a system call's arguments were found in kernel memory.
    Guess,
    /// From the kernel's type information.
    Btf,
    /// From a saved layout.
    File,
    /// From the kernel's interface to programs, or a network standard.
    Abi,
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guess => "guess",
            Self::Btf => "btf",
            Self::File => "file",
            Self::Abi => "abi",
        })
    }
}

/// The offset of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldOffset {
    /// Bytes from the beginning of the structure.
    pub offset: u32,
    /// Where it comes from.
    pub source: ValueOrigin,
    /// How long it took to find it, together with everything that was found at the same time.
    #[serde(rename = "took_ns", with = "nanoseconds")]
    pub took: Duration,
}

/// The position of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArgumentPosition {
    /// The first argument is at 1.
    pub position: u8,
    /// Where it comes from.
    pub source: ValueOrigin,
    /// How long it took to find it, together with everything that was found at the same time.
    #[serde(rename = "took_ns", with = "nanoseconds")]
    pub took: Duration,
}

mod nanoseconds {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(took: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_nanos)
    }
}

/// The offsets of fields in kernel structures, and the positions of arguments of kernel functions.
///
/// Names are the kernel's. A key is `struct.field` for a field and `function(argument)` for an argument. A new layout
/// has what the kernel's interface fixes (`sockaddr_in.sin_port`, `iphdr.saddr`, …).
///
/// ```
/// use socktrail_guess::{Layout, ValueOrigin};
///
/// let mut layout = Layout::new();
/// assert_eq!(layout.offset("sockaddr_in.sin_port"), Some(2));
/// layout.set("sock_common.skc_num", 14, ValueOrigin::Btf, Default::default());
/// layout.set("tcp_v4_rcv(skb)", 1, ValueOrigin::Btf, Default::default());
/// assert_eq!(layout.offset("sock_common.skc_num"), Some(14));
/// assert_eq!(layout.position("tcp_v4_rcv", "skb"), Some(1));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    fields: BTreeMap<String, FieldOffset>,
    arguments: BTreeMap<String, ArgumentPosition>,
}

impl Default for Layout {
    fn default() -> Self {
        Self::new()
    }
}

impl Layout {
    /// A layout with what the kernel's interface and network standards fix, and nothing else.
    pub fn new() -> Self {
        let field = |&(name, offset): &(&str, u32)| {
            let field = FieldOffset { offset, source: ValueOrigin::Abi, took: Duration::ZERO };
            (name.to_owned(), field)
        };
        let argument = |&(key, position): &(&str, u8)| {
            let argument = ArgumentPosition { position, source: ValueOrigin::Abi, took: Duration::ZERO };
            (key.to_owned(), argument)
        };
        Self {
            fields: abi::FIELDS.iter().map(field).collect(),
            arguments: abi::ARGUMENTS.iter().map(argument).collect(),
        }
    }

    /// The field called `struct.field`.
    pub fn field(&self, name: &str) -> Option<&FieldOffset> {
        self.fields.get(name)
    }

    /// The offset in bytes of the field called `struct.field`.
    pub fn offset(&self, name: &str) -> Option<u32> {
        self.field(name).map(|field| field.offset)
    }

    /// The argument of a function with this name.
    pub fn argument(&self, function: &str, name: &str) -> Option<&ArgumentPosition> {
        self.arguments.get(&catalog::argument_key(function, name))
    }

    /// The position of a function's argument; the first is 1. If it is not known for this function, it is taken from
    /// another function that has the same arguments in every release.
    pub fn position(&self, function: &str, name: &str) -> Option<u8> {
        let argument = self.argument(function, name);
        let argument = argument.or_else(|| self.argument(self.function_with_same_arguments(function)?, name));
        argument.map(|argument| argument.position)
    }

    /// Another function that has the same arguments, if there is one and the position of its `skb` is known.
    fn function_with_same_arguments(&self, function: &str) -> Option<&'static str> {
        let (_, others) = abi::SAME_ARGUMENTS.iter().find(|(name, _)| *name == function)?;
        others.iter().copied().find(|other| self.argument(other, "skb").is_some())
    }

    /// The offset or the position for a key.
    pub fn value(&self, key: &str) -> Option<u32> {
        match self.arguments.get(key) {
            Some(argument) => Some(u32::from(argument.position)),
            None => self.offset(key),
        }
    }

    /// Whether the layout has a key.
    pub fn contains(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// Where the value of a key comes from, and how long it took to find it.
    pub fn origin(&self, key: &str) -> Option<(ValueOrigin, Duration)> {
        let argument = self.arguments.get(key).map(|known| (known.source, known.took));
        argument.or_else(|| self.fields.get(key).map(|known| (known.source, known.took)))
    }

    /// Sets a key: `struct.field` to an offset, `function(argument)` to a position.
    ///
    /// # Panics
    ///
    /// If the position of an argument is 0 or above 255.
    pub fn set(&mut self, key: &str, value: u32, source: ValueOrigin, took: Duration) {
        if catalog::split_argument_key(key).is_some() {
            let position = u8::try_from(value).ok().filter(|&position| position > 0);
            let position = position.expect("an argument's position is from 1 to 255");
            let argument = ArgumentPosition { position, source, took };
            self.arguments.insert(key.to_owned(), argument);
        } else {
            let offset = value;
            self.fields.insert(key.to_owned(), FieldOffset { offset, source, took });
        }
    }

    /// Every field, by name.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &FieldOffset)> {
        self.fields.iter().map(|(name, field)| (name.as_str(), field))
    }

    /// Every argument, by key.
    pub fn arguments(&self) -> impl Iterator<Item = (&str, &ArgumentPosition)> {
        self.arguments.iter().map(|(key, argument)| (key.as_str(), argument))
    }

    /// Whether the layout has a key or the other form of it. No kernel has both.
    pub(crate) fn has_either_form(&self, key: &str) -> bool {
        self.contains(key) || catalog::other_form(key).is_some_and(|other| self.contains(other))
    }

    /// The keys that are needed and that this layout does not have. Keys that only older kernels have are left out, and
    /// with `ipv6` false those that only IPv6 needs.
    pub fn missing(&self, ipv6: bool) -> Vec<String> {
        let wanted = catalog::keys().filter(|key| ipv6 || !key.only_ipv6).map(|key| key.name);
        wanted.filter(|key| !self.has_either_form(key) && !catalog::is_obsolete(key)).collect()
    }

    /// Adds the keys of `other` that this layout does not have.
    pub fn fill_from(&mut self, other: &Self) {
        for (name, field) in &other.fields {
            self.fields.entry(name.clone()).or_insert(*field);
        }
        for (key, argument) in &other.arguments {
            self.arguments.entry(key.clone()).or_insert(*argument);
        }
    }

    /// This layout with [`ValueOrigin::File`] for all values except those of the kernel's interface.
    pub(crate) fn loaded_from_file(mut self) -> Self {
        let fields = self.fields.values_mut().map(|field| &mut field.source);
        let arguments = self.arguments.values_mut().map(|argument| &mut argument.source);
        fields
            .chain(arguments)
            .filter(|source| **source != ValueOrigin::Abi)
            .for_each(|source| *source = ValueOrigin::File);
        self
    }

    /// The keys that only one of the two layouts has, or for which they have different values. Origins and times are
    /// not compared.
    pub fn diff(&self, other: &Self) -> Vec<Difference> {
        let keys_of = |layout: &Self| {
            let fields = layout.fields.keys().cloned();
            fields.chain(layout.arguments.keys().cloned()).collect::<Vec<_>>()
        };
        let mut keys = keys_of(self);
        keys.extend(keys_of(other));
        keys.sort();
        keys.dedup();
        let pair = |key: String| Difference { left: self.value(&key), right: other.value(&key), key };
        let differs = |pair: &Difference| pair.left != pair.right;
        keys.into_iter().map(pair).filter(differs).collect()
    }
}

/// In a template, `{struct.field}` is an offset, or a bit-field if an older kernel has that instead, and `{name}` is an
/// argument of the probed function.
impl Resolver for Layout {
    fn resolve(&self, function: &str, name: &str) -> Option<Term> {
        if name.contains('.') {
            let bit_field = || {
                let (key, bits) = catalog::as_bit_field(name)?;
                self.offset(key).map(|offset| Term::BitField { offset: i64::from(offset), bits })
            };
            return self.offset(name).map(|offset| Term::Offset(i64::from(offset))).or_else(bit_field);
        }
        self.position(function, name).map(Term::Argument)
    }
}

/// A key whose values in two layouts differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `struct.field` or `function(argument)`.
    pub key: String,
    /// The value in this layout; `None` if it does not have the key.
    pub left: Option<u32>,
    /// The value in the other layout.
    pub right: Option<u32>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        write!(f, "{}: {} / {}", self.key, text(self.left), text(self.right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Layout {
        let mut layout = Layout::new();
        layout.set("sock_common.skc_num", 14, ValueOrigin::Btf, Duration::from_micros(3));
        layout.set("ip_local_out(skb)", 3, ValueOrigin::Guess, Duration::from_millis(2));
        layout
    }

    #[test]
    fn json_round_trips() {
        let text = serde_json::to_string(&sample()).unwrap();
        assert!(text.contains(r#""sock_common.skc_num":{"offset":14,"source":"btf","took_ns":3000}"#));
        assert!(text.contains(r#""ip_local_out(skb)":{"position":3,"source":"guess","took_ns":2000000}"#));
        assert_eq!(serde_json::from_str::<Layout>(&text).unwrap(), sample());
    }

    #[test]
    fn diff_names_keys_that_differ_or_are_missing() {
        let (left, mut right) = (sample(), sample());
        right.set("sock_common.skc_num", 16, ValueOrigin::Guess, Duration::ZERO);
        right.set("socket.sk", 24, ValueOrigin::Guess, Duration::ZERO);
        let differences: Vec<_> = left.diff(&right).iter().map(ToString::to_string).collect();
        assert_eq!(differences, ["sock_common.skc_num: 14 / 16", "socket.sk: - / 24"]);
        assert!(left.diff(&left).is_empty());
    }

    #[test]
    fn keys_that_only_ipv6_needs_are_missing_only_if_ipv6_is_wanted() {
        let layout = Layout::new();
        assert!(layout.missing(true).contains(&"flowi6.saddr".to_owned()));
        assert!(!layout.missing(false).contains(&"flowi6.saddr".to_owned()));
        assert!(layout.missing(false).contains(&"ip_local_out(net)".to_owned()));
    }

    #[test]
    fn of_two_forms_of_a_field_one_is_enough() {
        let (new, old) = ("task_struct.start_boottime", "task_struct.real_start_time");
        let missing = |layout: &Layout| layout.missing(true).into_iter().filter(|key| [new, old].contains(&&**key));
        let mut layout = Layout::new();
        assert_eq!(missing(&layout).collect::<Vec<_>>(), [new]);
        layout.set(old, 1184, ValueOrigin::Guess, Duration::ZERO);
        assert_eq!(missing(&layout).count(), 0);
        assert!(
            layout.has_either_form(new) && layout.has_either_form(old) && !layout.has_either_form("task_struct.pid")
        );
    }

    #[test]
    fn templates_name_fields_and_arguments() {
        let layout = sample();
        let resolve = |name| layout.resolve("ip_local_out", name);
        assert_eq!(resolve("sock_common.skc_num"), Some(Term::Offset(14)));
        assert_eq!(resolve("skb"), Some(Term::Argument(3)));
        assert_eq!(resolve("sk"), None);
        assert_eq!(layout.resolve("tcp_v4_rcv", "skb"), None);
    }

    #[test]
    fn an_older_kernel_may_have_a_bit_field_instead() {
        let mut layout = Layout::new();
        layout.set("sock.sk_protocol:8", 517, ValueOrigin::Guess, Duration::ZERO);
        let resolve = |layout: &Layout| layout.resolve("tcp_connect", "sock.sk_protocol");
        assert_eq!(resolve(&layout), Some(Term::BitField { offset: 517, bits: 8 }));
        assert!(!layout.missing(true).iter().any(|key| key.starts_with("sock.sk_protocol")));
        let text = serde_json::to_string(&layout).unwrap();
        assert_eq!(serde_json::from_str::<Layout>(&text).unwrap(), layout);
        layout.set("sock.sk_protocol", 534, ValueOrigin::Guess, Duration::ZERO);
        assert_eq!(resolve(&layout), Some(Term::Offset(534)));
    }

    /// A layout with these arguments.
    fn with_arguments(arguments: &[(&str, u32)]) -> Layout {
        let mut layout = Layout::new();
        for &(key, position) in arguments {
            layout.set(key, position, ValueOrigin::Guess, Duration::ZERO);
        }
        layout
    }

    #[test]
    fn some_functions_have_the_same_arguments_as_others() {
        let since_4_4 = [("__ip_local_out(net)", 1), ("__ip_local_out(sk)", 2), ("__ip_local_out(skb)", 3)];
        let since_4_1 = [("__ip_local_out(skb)", 1), ("__ip_local_out_sk(sk)", 1), ("__ip_local_out_sk(skb)", 2)];
        let before = [("ip_local_out_sk(sk)", 1), ("ip_local_out_sk(skb)", 2), ("__ip_local_out(skb)", 1)];
        let inlined = [("ip_local_out(net)", 1), ("ip_local_out(sk)", 2), ("ip_local_out(skb)", 3)];
        for function in ["ip_do_fragment", "ip_fragment", "ip6_fragment"] {
            for (known, expected) in [
                (&since_4_4, [Some(1), Some(2), Some(3)]),
                (&since_4_1, [None, Some(1), Some(2)]),
                (&before, [None, None, Some(1)]),
                (&inlined, [Some(1), Some(2), Some(3)]),
            ] {
                let layout = with_arguments(known);
                assert_eq!(["net", "sk", "skb"].map(|name| layout.position(function, name)), expected, "{known:?}");
            }
            assert_eq!(
                with_arguments(&before[..2]).position(function, "skb"),
                None,
                "`ip_local_out_sk` alone is not enough"
            );
        }
        let layout = with_arguments(&[("udp_queue_rcv_skb(sk)", 1), ("udp_queue_rcv_skb(skb)", 2)]);
        assert_eq!(layout.resolve("udp_queue_rcv_one_skb", "skb"), Some(Term::Argument(2)));
        assert_eq!(layout.resolve("udpv6_queue_rcv_one_skb", "skb"), None);
        assert_eq!(layout.resolve("udp_lib_setsockopt", "optname"), Some(Term::Argument(3)));
    }

    #[test]
    fn arguments_taken_from_another_function_are_not_keys() {
        let layout = with_arguments(&[("udp_queue_rcv_skb(skb)", 2)]);
        assert!(
            !layout.contains("udp_queue_rcv_one_skb(skb)") && layout.argument("udp_queue_rcv_one_skb", "skb").is_none()
        );
        assert!(!serde_json::to_string(&layout).unwrap().contains("one_skb"));
        assert!(!layout.missing(true).iter().any(|key| key.contains("one_skb")));
        let own = with_arguments(&[("udp_queue_rcv_skb(skb)", 2), ("udp_queue_rcv_one_skb(skb)", 4)]);
        assert_eq!(own.position("udp_queue_rcv_one_skb", "skb"), Some(4), "its own arguments come first");
    }

    #[test]
    fn filling_keeps_existing_keys() {
        let mut layout = sample();
        let mut other = Layout::new();
        other.set("sock_common.skc_num", 99, ValueOrigin::File, Duration::ZERO);
        other.set("socket.sk", 24, ValueOrigin::File, Duration::ZERO);
        layout.fill_from(&other);
        assert_eq!(layout.offset("sock_common.skc_num"), Some(14));
        assert_eq!(layout.offset("socket.sk"), Some(24));
    }
}
