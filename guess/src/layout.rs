//! [`Layout`]: names to numbers, each with where it was learnt.

use crate::{abi, catalog};
use serde::{Deserialize, Serialize};
use socktrail_kprobes::{Resolver, Term};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Where a number was learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// By triggering a system call with chosen values and finding them in kernel memory.
    Guess,
    /// From the kernel's type information.
    Btf,
    /// From a layout saved earlier.
    File,
    /// It is part of the kernel's interface to programs, or of a network standard.
    Abi,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guess => "guess",
            Self::Btf => "btf",
            Self::File => "file",
            Self::Abi => "abi",
        })
    }
}

/// Where a field lies in its structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Bytes from the start of the structure.
    pub offset: u32,
    /// Where this was learnt.
    pub source: Origin,
    /// How long it took to learn it, together with what was learnt in the same go.
    #[serde(rename = "took_ns", with = "nanoseconds")]
    pub took: Duration,
}

/// Which of a function's arguments carries what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argument {
    /// The first argument is 1.
    pub position: u8,
    /// Where this was learnt.
    pub source: Origin,
    /// How long it took to learn it, together with what was learnt in the same go.
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

/// Where kernel structures keep their fields, and which argument of a function carries what.
///
/// Names are the kernel's. A field is `struct.field`, an argument `function(argument)`; both together are called keys.
/// What belongs to the kernel's interface (`sockaddr_in.sin_port`, `iphdr.saddr`, …) is there from the start.
///
/// ```
/// use socktrail_guess::{Layout, Origin};
///
/// let mut layout = Layout::new();
/// assert_eq!(layout.offset("sockaddr_in.sin_port"), Some(2));
/// layout.set("sock_common.skc_num", 14, Origin::Btf, Default::default());
/// layout.set("tcp_v4_rcv(skb)", 1, Origin::Btf, Default::default());
/// assert_eq!(layout.offset("sock_common.skc_num"), Some(14));
/// assert_eq!(layout.position("tcp_v4_rcv", "skb"), Some(1));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    fields: BTreeMap<String, Field>,
    arguments: BTreeMap<String, Argument>,
}

impl Default for Layout {
    fn default() -> Self {
        Self::new()
    }
}

impl Layout {
    /// A layout that knows only what the kernel promises.
    pub fn new() -> Self {
        let known = |&(name, offset): &(&str, u32)| {
            let field = Field { offset, source: Origin::Abi, took: Duration::ZERO };
            (name.to_owned(), field)
        };
        let passed = |&(key, position): &(&str, u8)| {
            let argument = Argument { position, source: Origin::Abi, took: Duration::ZERO };
            (key.to_owned(), argument)
        };
        Self { fields: abi::FIELDS.iter().map(known).collect(), arguments: abi::ARGUMENTS.iter().map(passed).collect() }
    }

    /// The field called `struct.field`.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.get(name)
    }

    /// The offset in bytes of the field called `struct.field`.
    pub fn offset(&self, name: &str) -> Option<u32> {
        self.field(name).map(|field| field.offset)
    }

    /// A function's argument of that name.
    pub fn argument(&self, function: &str, name: &str) -> Option<&Argument> {
        self.arguments.get(&catalog::argument_key(function, name))
    }

    /// The position of a function's argument of that name; the first one is 1. Where nothing is known of the function
    /// itself, it is the position in another function that is given the same in every release.
    pub fn position(&self, function: &str, name: &str) -> Option<u8> {
        let argument = self.argument(function, name);
        let argument = argument.or_else(|| self.argument(self.followed_by(function)?, name));
        argument.map(|argument| argument.position)
    }

    /// The function that is given the same as another, where there is one and its packet is known.
    fn followed_by(&self, function: &str) -> Option<&'static str> {
        let (_, others) = abi::FOLLOWERS.iter().find(|(follower, _)| *follower == function)?;
        others.iter().copied().find(|other| self.argument(other, "skb").is_some())
    }

    /// The offset or the position of a key.
    pub fn value(&self, key: &str) -> Option<u32> {
        match self.arguments.get(key) {
            Some(argument) => Some(u32::from(argument.position)),
            None => self.offset(key),
        }
    }

    /// Whether a key is known.
    pub fn knows(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// Where a key was learnt, and how long that took.
    pub fn origin(&self, key: &str) -> Option<(Origin, Duration)> {
        let argument = self.arguments.get(key).map(|known| (known.source, known.took));
        argument.or_else(|| self.fields.get(key).map(|known| (known.source, known.took)))
    }

    /// Sets a key, `struct.field` to an offset or `function(argument)` to a position.
    ///
    /// # Panics
    ///
    /// When the position of an argument is 0 or above 255.
    pub fn set(&mut self, key: &str, value: u32, source: Origin, took: Duration) {
        if catalog::split_argument_key(key).is_some() {
            let position = u8::try_from(value).ok().filter(|&position| position > 0);
            let position = position.expect("an argument's position is from 1 to 255");
            let argument = Argument { position, source, took };
            self.arguments.insert(key.to_owned(), argument);
        } else {
            let offset = value;
            self.fields.insert(key.to_owned(), Field { offset, source, took });
        }
    }

    /// Every field, by name.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Field)> {
        self.fields.iter().map(|(name, field)| (name.as_str(), field))
    }

    /// Every argument, by key.
    pub fn arguments(&self) -> impl Iterator<Item = (&str, &Argument)> {
        self.arguments.iter().map(|(key, argument)| (key.as_str(), argument))
    }

    /// Whether a key need not be looked for: it is known, or its other form is, and no kernel has both.
    pub(crate) fn needs_no(&self, key: &str) -> bool {
        self.knows(key) || catalog::other_form(key).is_some_and(|other| self.knows(other))
    }

    /// What the catalog needs and this layout does not have: without what only older kernels have, and without what only
    /// IPv6 needs when that is not wanted.
    pub fn missing(&self, ipv6: bool) -> Vec<String> {
        let wanted = catalog::keys().filter(|&(_, only_ipv6)| ipv6 || !only_ipv6).map(|(key, _)| key);
        wanted.filter(|key| !self.needs_no(key) && !catalog::is_old(key)).collect()
    }

    /// Takes from `other` what is not known yet.
    pub fn fill_from(&mut self, other: &Self) {
        for (name, field) in &other.fields {
            self.fields.entry(name.clone()).or_insert(*field);
        }
        for (key, argument) in &other.arguments {
            self.arguments.entry(key.clone()).or_insert(*argument);
        }
    }

    /// The same, as learnt from a file; what the kernel promises needs none.
    pub(crate) fn saved(mut self) -> Self {
        let fields = self.fields.values_mut().map(|field| &mut field.source);
        let arguments = self.arguments.values_mut().map(|argument| &mut argument.source);
        fields.chain(arguments).filter(|source| **source != Origin::Abi).for_each(|source| *source = Origin::File);
        self
    }

    /// In what this layout and `other` differ: keys that one of them does not have, or has otherwise. Sources and times
    /// do not matter.
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

/// In a probe's template `{struct.field}` is an offset, or a bit-field if an older kernel has one instead, and `{name}` is an
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

/// A key that two layouts do not agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `struct.field` or `function(argument)`.
    pub key: String,
    /// Offset or position in the one; none when it does not know the key.
    pub left: Option<u32>,
    /// Offset or position in the other.
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
        layout.set("sock_common.skc_num", 14, Origin::Btf, Duration::from_micros(3));
        layout.set("ip_local_out(skb)", 3, Origin::Guess, Duration::from_millis(2));
        layout
    }

    #[test]
    fn json_brings_back_what_was_written() {
        let text = serde_json::to_string(&sample()).unwrap();
        assert!(text.contains(r#""sock_common.skc_num":{"offset":14,"source":"btf","took_ns":3000}"#));
        assert!(text.contains(r#""ip_local_out(skb)":{"position":3,"source":"guess","took_ns":2000000}"#));
        assert_eq!(serde_json::from_str::<Layout>(&text).unwrap(), sample());
    }

    #[test]
    fn diff_names_what_differs_and_what_is_missing() {
        let (left, mut right) = (sample(), sample());
        right.set("sock_common.skc_num", 16, Origin::Guess, Duration::ZERO);
        right.set("socket.sk", 24, Origin::Guess, Duration::ZERO);
        let told: Vec<_> = left.diff(&right).iter().map(ToString::to_string).collect();
        assert_eq!(told, ["sock_common.skc_num: 14 / 16", "socket.sk: - / 24"]);
        assert!(left.diff(&left).is_empty());
    }

    #[test]
    fn what_only_ipv6_needs_is_missing_only_when_ipv6_is_wanted() {
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
        layout.set(old, 1184, Origin::Guess, Duration::ZERO);
        assert_eq!(missing(&layout).count(), 0);
        assert!(layout.needs_no(new) && layout.needs_no(old) && !layout.needs_no("task_struct.pid"));
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
    fn a_field_may_be_of_fewer_bits_on_an_older_kernel() {
        let mut layout = Layout::new();
        layout.set("sock.sk_protocol:8", 517, Origin::Guess, Duration::ZERO);
        let resolve = |layout: &Layout| layout.resolve("tcp_connect", "sock.sk_protocol");
        assert_eq!(resolve(&layout), Some(Term::BitField { offset: 517, bits: 8 }));
        assert!(!layout.missing(true).iter().any(|key| key.starts_with("sock.sk_protocol")));
        let text = serde_json::to_string(&layout).unwrap();
        assert_eq!(serde_json::from_str::<Layout>(&text).unwrap(), layout);
        layout.set("sock.sk_protocol", 534, Origin::Guess, Duration::ZERO);
        assert_eq!(resolve(&layout), Some(Term::Offset(534)));
    }

    /// A layout that knows these arguments.
    fn passing(arguments: &[(&str, u32)]) -> Layout {
        let mut layout = Layout::new();
        for &(key, position) in arguments {
            layout.set(key, position, Origin::Guess, Duration::ZERO);
        }
        layout
    }

    #[test]
    fn some_functions_are_given_what_others_are_given() {
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
                let layout = passing(known);
                assert_eq!(["net", "sk", "skb"].map(|name| layout.position(function, name)), expected, "{known:?}");
            }
            assert_eq!(passing(&before[..2]).position(function, "skb"), None, "it cannot be told from this alone");
        }
        let layout = passing(&[("udp_queue_rcv_skb(sk)", 1), ("udp_queue_rcv_skb(skb)", 2)]);
        assert_eq!(layout.resolve("udp_queue_rcv_one_skb", "skb"), Some(Term::Argument(2)));
        assert_eq!(layout.resolve("udpv6_queue_rcv_one_skb", "skb"), None);
        assert_eq!(layout.resolve("udp_lib_setsockopt", "optname"), Some(Term::Argument(3)));
    }

    #[test]
    fn what_follows_others_is_no_key() {
        let layout = passing(&[("udp_queue_rcv_skb(skb)", 2)]);
        assert!(
            !layout.knows("udp_queue_rcv_one_skb(skb)") && layout.argument("udp_queue_rcv_one_skb", "skb").is_none()
        );
        assert!(!serde_json::to_string(&layout).unwrap().contains("one_skb"));
        assert!(!layout.missing(true).iter().any(|key| key.contains("one_skb")));
        let own = passing(&[("udp_queue_rcv_skb(skb)", 2), ("udp_queue_rcv_one_skb(skb)", 4)]);
        assert_eq!(own.position("udp_queue_rcv_one_skb", "skb"), Some(4), "what is known of itself comes first");
    }

    #[test]
    fn filling_keeps_what_is_known() {
        let mut layout = sample();
        let mut other = Layout::new();
        other.set("sock_common.skc_num", 99, Origin::File, Duration::ZERO);
        other.set("socket.sk", 24, Origin::File, Duration::ZERO);
        layout.fill_from(&other);
        assert_eq!(layout.offset("sock_common.skc_num"), Some(14));
        assert_eq!(layout.offset("socket.sk"), Some(24));
    }
}
