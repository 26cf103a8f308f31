//! Finds the catalog's fields and arguments in type information.

use super::reader::{Btf, MalformedBtf, Member, Type, kind, malformed_type, starts_with_string};
use crate::catalog::{self, ArgumentSpec, FieldSpec, FunctionSpec};
use crate::engine::WORD;
use crate::layout::{Layout, ValueOrigin};
use std::time::Instant;

/// How many members a search may visit. Only a malformed structure, such as one that contains itself, has more. The error
/// message has this number, too.
const MAX_MEMBERS: u32 = 100_000;

/// The maximum position of an argument that a [`Layout`] can hold.
const MAX_POSITION: u32 = u8::MAX as u32;

/// What type information says about the layout.
#[derive(Debug)]
pub struct BtfLayout {
    /// The keys that were found.
    pub layout: Layout,
    /// The keys that were not found, and why.
    pub missing: Vec<MissingKey>,
}

/// A key that is not in type information.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingKey {
    /// `struct.field` or `function(argument)`.
    pub key: String,
    /// Why it was not found.
    pub reason: String,
}

/// Looks up every field and argument of the catalog.
///
/// # Errors
///
/// The bytes are not type information in this machine's byte order, or are malformed.
pub fn find(bytes: &[u8]) -> Result<BtfLayout, MalformedBtf> {
    find_fields(bytes, &[catalog::FIELDS])
}

/// Like [`find`], and looks up the fields that programs at hooks need ([`HOOK_FIELDS`](catalog::HOOK_FIELDS)).
///
/// # Errors
///
/// Those of [`find`].
pub fn find_for_hooks(bytes: &[u8]) -> Result<BtfLayout, MalformedBtf> {
    find_fields(bytes, &[catalog::FIELDS, catalog::HOOK_FIELDS])
}

fn find_fields(bytes: &[u8], fields: &[&'static [FieldSpec]]) -> Result<BtfLayout, MalformedBtf> {
    let began = Instant::now();
    let mut names = WantedNames::of(fields);
    let btf = Btf::scan(bytes, |kind, id, name| names.note(kind, id, name))?;
    let mut values = Vec::new();
    for spec in fields.iter().copied().flatten() {
        values.push((spec.name.to_owned(), find_field(&btf, &names, spec)?));
    }
    for spec in catalog::FUNCTIONS {
        for argument in spec.arguments {
            let key = catalog::argument_key(spec.name, argument.name);
            values.push((key, find_argument(&btf, &names, spec, argument)?));
        }
    }
    let took = began.elapsed();
    let (mut layout, mut missing) = (Layout::new(), Vec::new());
    for (key, value) in values {
        match value {
            Ok(value) => layout.set(&key, value, ValueOrigin::Btf, took),
            Err(reason) => missing.push(MissingKey { key, reason }),
        }
    }
    Ok(BtfLayout { layout, missing })
}

/// An offset or a position, or why there is none.
type Value = Result<u32, String>;

/// The wanted names, and the types that have them.
struct WantedNames {
    names: Vec<WantedName>,
    /// For each two bytes: whether a wanted name begins with them. This rules out nearly all other names without a search.
    beginnings: Box<[bool; 1 << 16]>,
}

/// The name of a structure or a function.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct WantedName {
    kind: u8,
    name: &'static [u8],
    /// The types with this name.
    ids: Vec<u32>,
}

impl WantedNames {
    fn of(fields: &[&'static [FieldSpec]]) -> Self {
        let fields = fields.iter().copied().flatten();
        let paths = fields.flat_map(|spec| spec.alternatives.iter().copied().chain([spec.name]));
        let paths = paths.chain([catalog::CONTROL_BLOCK]);
        let structures = paths.map(|path| (kind::STRUCT, split_path(path).0));
        let functions = catalog::FUNCTIONS.iter().map(|spec| (kind::FUNC, spec.name));
        let name = |(kind, name): (u8, &'static str)| WantedName { kind, name: name.as_bytes(), ids: Vec::new() };
        let mut names: Vec<_> = structures.chain(functions).map(name).collect();
        names.sort();
        names.dedup();
        let mut beginnings = Box::new([false; 1 << 16]);
        for WantedName { name, .. } in &names {
            beginnings[two_bytes(name)] = true;
        }
        Self { names, beginnings }
    }

    /// Notes a type if its name is wanted. `name` ends at its first NUL.
    fn note(&mut self, kind: u8, id: u32, name: &[u8]) {
        if self.beginnings[two_bytes(name)] {
            let is_it = |wanted: &&mut WantedName| wanted.kind == kind && starts_with_string(name, wanted.name);
            if let Some(wanted) = self.names.iter_mut().find(is_it) {
                wanted.ids.push(id);
            }
        }
    }

    fn ids(&self, kind: u8, name: &str) -> &[u32] {
        let found = self.names.iter().find(|wanted| wanted.kind == kind && wanted.name == name.as_bytes());
        found.map_or(&[], |wanted| &wanted.ids)
    }
}

fn two_bytes(name: &[u8]) -> usize {
    match name {
        [first, second, ..] => usize::from(u16::from_ne_bytes([*first, *second])),
        _ => 0,
    }
}

fn split_path(path: &str) -> (&str, &str) {
    path.split_once('.').expect("the catalog's names are struct.field")
}

fn find_field(btf: &Btf<'_>, names: &WantedNames, spec: &FieldSpec) -> Result<Value, MalformedBtf> {
    let mut base = 0;
    if spec.control_block {
        match find_path(btf, names, catalog::CONTROL_BLOCK, MemberSize::Bytes(catalog::CONTROL_BLOCK_SIZE))? {
            Ok(offset) => base = offset,
            Err(why) => return Ok(Err(why)),
        }
    }
    let size = spec.bits.map_or(MemberSize::Bytes(spec.size), MemberSize::Bits);
    let mut why = None;
    for path in [spec.name].iter().chain(spec.alternatives) {
        match find_path(btf, names, path, size)? {
            Ok(offset) => return Ok(Ok(base.saturating_add(offset))),
            Err(reason) => why = why.or(Some(reason)),
        }
    }
    Ok(Err(why.expect("at least one path was tried")))
}

/// The size that a member must have.
#[derive(Clone, Copy)]
enum MemberSize {
    Bytes(u32),
    /// A bit-field of this width.
    Bits(u8),
}

/// The offset of `struct.member.member…`, which may end with the width of a bit-field (`:8`). If there are several
/// structures with this name, those that have the member must agree.
fn find_path(btf: &Btf<'_>, names: &WantedNames, path: &str, size: MemberSize) -> Result<Value, MalformedBtf> {
    let (structure, members) = split_path(path);
    let members = members.split(':').next().unwrap_or(members); // `size` has the width
    let ids = names.ids(kind::STRUCT, structure);
    if ids.is_empty() {
        return Ok(Err(format!("there is no struct {structure}")));
    }
    let mut offsets = Vec::new();
    let mut why = format!("struct {structure} has no member {members}");
    for &id in ids {
        match follow(btf, id, members, size)? {
            Some(Ok(offset)) => offsets.push(offset),
            Some(Err(reason)) => why = reason,
            None => {}
        }
    }
    offsets.sort_unstable();
    offsets.dedup();
    Ok(match offsets[..] {
        [] => Err(why),
        [offset] => Ok(offset),
        _ => Err(format!("the structs {structure} have {members} at different offsets: {offsets:?}")),
    })
}

/// The offset of `member.member…` in the structure `id`; `None` if it has no such member.
fn follow(btf: &Btf<'_>, id: u32, members: &str, size: MemberSize) -> Result<Option<Value>, MalformedBtf> {
    let (mut structure, mut offset, mut last) = (id, 0u32, None);
    for name in members.split('.') {
        let Some((member, base)) = find_member(btf, structure, name)? else { return Ok(None) };
        offset = offset.saturating_add(base).saturating_add(member.bit_offset);
        structure = member.type_id;
        last = Some(member);
    }
    let member = last.expect("a path has at least one member");
    // The position and width of a bit-field within its member: older BTF has them in the member's type.
    let (start, width) = match member.bits {
        0 => btf.int_bits(member.type_id)?.unwrap_or((0, 0)),
        width => (0, width),
    };
    let offset = offset.saturating_add(start);
    Ok(Some(match size {
        MemberSize::Bytes(_) if width != 0 || !offset.is_multiple_of(8) => Err(format!("{members} is a bit-field")),
        MemberSize::Bytes(size) => match btf.size(member.type_id)? {
            found if found == u64::from(size) => Ok(offset / 8),
            found => Err(format!("{members} has {found} bytes, not {size}")),
        },
        MemberSize::Bits(_) if width == 0 => Err(format!("{members} is not a bit-field")),
        MemberSize::Bits(wanted) if width != u32::from(wanted) => {
            Err(format!("{members} has {width} bits, not {wanted}"))
        }
        MemberSize::Bits(_) if !offset.is_multiple_of(8) => Err(format!("{members} begins within a byte")),
        MemberSize::Bits(_) => Ok(offset / 8),
    }))
}

/// Finds a member of the type `id` by name, also in anonymous members. Returns it with the bit offset of the structure or
/// union that contains it.
fn find_member(btf: &Btf<'_>, id: u32, name: &str) -> Result<Option<(Member, u32)>, MalformedBtf> {
    let mut budget = MAX_MEMBERS;
    let mut unsearched = vec![(btf.strip(id)?, 0u32)];
    while let Some((composite, base)) = unsearched.pop() {
        if !matches!(composite.kind, kind::STRUCT | kind::UNION) {
            continue;
        }
        for member in btf.members(&composite) {
            let member = member?;
            let too_many = malformed_type("at most 100,000 members in the structure", id);
            budget = budget.checked_sub(1).ok_or(too_many)?;
            if member.name == 0 {
                unsearched.push((btf.strip(member.type_id)?, base.saturating_add(member.bit_offset)));
            } else if btf.is_called(member.name, name)? {
                return Ok(Some((member, base)));
            }
        }
    }
    Ok(None)
}

fn find_argument(
    btf: &Btf<'_>,
    names: &WantedNames,
    function: &FunctionSpec,
    argument: &ArgumentSpec,
) -> Result<Value, MalformedBtf> {
    let mut positions = Vec::new();
    for &id in names.ids(kind::FUNC, function.name) {
        let prototype = btf.strip(btf.get(id)?.size_or_type)?;
        positions.push(position(btf, &prototype, argument)?);
    }
    positions.sort_unstable();
    positions.dedup();
    Ok(match positions[..] {
        [] => Err(format!("there is no function {}", function.name)),
        [Some(position)] => Ok(position),
        [None] => Err(format!("{} has no argument {}", function.name, argument.name)),
        _ => Err(format!("the functions {} have different arguments", function.name)),
    })
}

/// The position of an argument: of the parameter with its name, or else of the only parameter with its type.
fn position(btf: &Btf<'_>, prototype: &Type, argument: &ArgumentSpec) -> Result<Option<u32>, MalformedBtf> {
    if prototype.kind != kind::FUNC_PROTO {
        return Ok(None);
    }
    let mut of_type = Vec::new();
    let mut free = 1;
    for parameter in btf.parameters(prototype) {
        let parameter = parameter?;
        let (position, next) = place(free, WORD, btf.size(parameter.type_id)?);
        if position > MAX_POSITION {
            break;
        }
        free = next;
        let is_pointer = btf.strip(parameter.type_id)?.kind == kind::PTR;
        if is_pointer == argument.points_to.is_some() && btf.is_called(parameter.name, argument.name)? {
            return Ok(Some(position));
        }
        if let Some(structure) = argument.points_to
            && points_to(btf, parameter.type_id, structure)?
        {
            of_type.push(position);
        }
    }
    Ok(if let [only] = of_type[..] { Some(only) } else { None })
}

/// The position of an argument of `size` bytes, and the first free position after it. `free` is the first position that the
/// arguments before it left free.
///
/// With `-mregparm=3` on 32-bit x86, a 64-bit argument takes two positions. It is not split between a register and the
/// stack: the last register stays empty if it is the only one left.
fn place(free: u32, word: u32, size: u64) -> (u32, u32) {
    const REGISTERS: u32 = 3;
    match (word, size) {
        (4, 5..=8) if free == REGISTERS => (free + 1, free + 3),
        (4, 5..=8) => (free, free + 2),
        _ => (free, free + 1),
    }
}

fn points_to(btf: &Btf<'_>, type_id: u32, structure: &str) -> Result<bool, MalformedBtf> {
    let pointer = btf.strip(type_id)?;
    if pointer.kind != kind::PTR {
        return Ok(false);
    }
    let target = btf.strip(pointer.size_or_type)?;
    Ok(matches!(target.kind, kind::STRUCT | kind::FWD) && btf.is_called(target.name, structure)?)
}

#[cfg(test)]
mod tests {
    use super::place;

    /// As GCC passes them with `-m32 -mregparm=3` (`ix86_function_arg_advance`).
    #[test]
    fn a_64_bit_argument_takes_two_positions_on_a_32_bit_machine() {
        let positions = |word, sizes: &[u64]| {
            let next = |free: &mut u32, size: &u64| {
                let (position, after) = place(*free, word, *size);
                *free = after;
                Some(position)
            };
            sizes.iter().scan(1, next).collect::<Vec<_>>()
        };
        assert_eq!(positions(8, &[8, 8, 4, 8, 4]), [1, 2, 3, 4, 5]);
        assert_eq!(positions(4, &[4, 2, 1, 4, 4]), [1, 2, 3, 4, 5]);
        assert_eq!(positions(4, &[8, 4, 4]), [1, 3, 4], "%eax and %edx, then %ecx, then the stack");
        assert_eq!(positions(4, &[4, 8, 4]), [1, 2, 4]);
        assert_eq!(positions(4, &[4, 4, 8, 4]), [1, 2, 4, 6], "%ecx stays empty");
    }
}
