//! The catalog, looked up in type information.

use super::reader::{Btf, Malformed, Member, Type, kind, starts_with_string};
use crate::catalog::{self, ArgumentSpec, FieldSpec, FunctionSpec};
use crate::engine::WORD;
use crate::layout::{Layout, Origin};
use std::time::Instant;

/// How many members may be looked at for one field: far above what any structure has, far below what takes long.
const MEMBERS: u32 = 100_000;

/// What type information told.
#[derive(Debug)]
pub struct Found {
    /// Everything that it told.
    pub layout: Layout,
    /// What it did not tell, by key, and why.
    pub missing: Vec<(String, String)>,
}

/// Looks up every field and argument of the catalog.
///
/// # Errors
///
/// When the bytes are not type information in this machine's byte order, or contradict themselves.
pub fn find(bytes: &[u8]) -> Result<Found, Malformed> {
    let began = Instant::now();
    let mut names = Names::of_catalog();
    let btf = Btf::scan(bytes, |kind, id, name| names.note(kind, id, name))?;
    let mut told = Vec::new();
    for spec in catalog::FIELDS {
        told.push((spec.name.to_owned(), find_field(&btf, &names, spec)?));
    }
    for spec in catalog::FUNCTIONS {
        for argument in spec.arguments {
            let key = catalog::argument_key(spec.name, argument.name);
            told.push((key, find_argument(&btf, &names, spec, argument)?));
        }
    }
    let took = began.elapsed();
    let (mut layout, mut missing) = (Layout::new(), Vec::new());
    for (key, told) in told {
        match told {
            Ok(value) => layout.set(&key, value, Origin::Btf, took),
            Err(why) => missing.push((key, why)),
        }
    }
    Ok(Found { layout, missing })
}

/// A number, or why there is none.
type Told = Result<u32, String>;

/// The wanted structures and functions, and the types of those names.
struct Names {
    /// Sorted by kind and name.
    wanted: Vec<(u8, &'static [u8], Vec<u32>)>,
    /// Whether any wanted name starts with these two bytes: nearly all other names end here.
    starts: Box<[bool; 1 << 16]>,
}

impl Names {
    fn of_catalog() -> Self {
        let fields = catalog::FIELDS.iter();
        let paths = fields.flat_map(|spec| spec.forms.iter().copied().chain([spec.name]));
        let paths = paths.chain([catalog::CONTROL_BLOCK]);
        let structs = paths.map(|path| (kind::STRUCT, split_path(path).0.as_bytes(), Vec::new()));
        let functions = catalog::FUNCTIONS.iter();
        let functions = functions.map(|spec| (kind::FUNC, spec.name.as_bytes(), Vec::new()));
        let mut wanted: Vec<_> = structs.chain(functions).collect();
        wanted.sort();
        wanted.dedup();
        let mut starts = Box::new([false; 1 << 16]);
        for (_, name, _) in &wanted {
            starts[two_bytes(name)] = true;
        }
        Self { wanted, starts }
    }

    /// `name` ends at its first NUL.
    fn note(&mut self, kind: u8, id: u32, name: &[u8]) {
        if self.starts[two_bytes(name)] {
            let same = |wanted: &&mut (u8, &[u8], Vec<u32>)| wanted.0 == kind && starts_with_string(name, wanted.1);
            if let Some((_, _, ids)) = self.wanted.iter_mut().find(same) {
                ids.push(id);
            }
        }
    }

    fn ids(&self, kind: u8, name: &str) -> &[u32] {
        let mut wanted = self.wanted.iter();
        let found = wanted.find(|wanted| wanted.0 == kind && wanted.1 == name.as_bytes());
        found.map_or(&[], |(_, _, ids)| ids)
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

fn find_field(btf: &Btf<'_>, names: &Names, spec: &FieldSpec) -> Result<Told, Malformed> {
    let mut base = 0;
    if spec.control_block {
        match find_path(btf, names, catalog::CONTROL_BLOCK, Extent::Bytes(catalog::CONTROL_BLOCK_SIZE))? {
            Ok(offset) => base = offset,
            Err(why) => return Ok(Err(why)),
        }
    }
    let extent = spec.bits.map_or(Extent::Bytes(spec.size), Extent::Bits);
    let mut why = None;
    for path in [spec.name].iter().chain(spec.forms) {
        match find_path(btf, names, path, extent)? {
            Ok(offset) => return Ok(Ok(base.saturating_add(offset))),
            Err(reason) => why = why.or(Some(reason)),
        }
    }
    Ok(Err(why.expect("at least one path was tried")))
}

/// How large a member must be.
#[derive(Clone, Copy)]
enum Extent {
    Bytes(u32),
    /// A bit-field.
    Bits(u8),
}

/// Looks `struct.member.member…` up in every structure of that name; those that have it must agree.
fn find_path(btf: &Btf<'_>, names: &Names, path: &str, extent: Extent) -> Result<Told, Malformed> {
    let (structure, members) = split_path(path);
    let members = members.split(':').next().unwrap_or(members);
    let ids = names.ids(kind::STRUCT, structure);
    if ids.is_empty() {
        return Ok(Err(format!("there is no struct {structure}")));
    }
    let mut offsets = Vec::new();
    let mut why = format!("struct {structure} has no member {members}");
    for &id in ids {
        match follow(btf, id, members, extent)? {
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

/// The offset of a member of a member of … the structure `id`; none when it has no such member.
fn follow(btf: &Btf<'_>, id: u32, members: &str, extent: Extent) -> Result<Option<Told>, Malformed> {
    let (mut within, mut bits, mut last) = (id, 0u32, None);
    for name in members.split('.') {
        let mut budget = MEMBERS;
        let Some((member, base)) = find_member(btf, &btf.strip(within)?, name, &mut budget)? else {
            return Ok(None);
        };
        bits = bits.saturating_add(base).saturating_add(member.bit_offset);
        within = member.type_id;
        last = Some(member);
    }
    let member = last.expect("a path has at least one member");
    let (start, width) = match member.bits {
        0 => btf.odd_bits(member.type_id)?.unwrap_or((0, 0)),
        width => (0, width),
    };
    let bits = bits.saturating_add(start);
    Ok(Some(match extent {
        Extent::Bytes(_) if width != 0 || !bits.is_multiple_of(8) => Err(format!("{members} is a bit field")),
        Extent::Bytes(size) => match btf.size(member.type_id)? {
            found if found == u64::from(size) => Ok(bits / 8),
            found => Err(format!("{members} has {found} bytes, not {size}")),
        },
        Extent::Bits(_) if width == 0 => Err(format!("{members} is no bit field")),
        Extent::Bits(wanted) if width != u32::from(wanted) => Err(format!("{members} has {width} bits, not {wanted}")),
        Extent::Bits(_) if !bits.is_multiple_of(8) => Err(format!("{members} begins within a byte")),
        Extent::Bits(_) => Ok(bits / 8),
    }))
}

/// The member of that name, also inside anonymous members, and the bits before the structure that it is in.
fn find_member(btf: &Btf<'_>, of: &Type, name: &str, budget: &mut u32) -> Result<Option<(Member, u32)>, Malformed> {
    let mut open = vec![(*of, 0u32)];
    while let Some((of, base)) = open.pop() {
        if !matches!(of.kind, kind::STRUCT | kind::UNION) {
            continue;
        }
        for member in btf.members(&of) {
            let member = member?;
            let what = "a structure without endless members";
            let at = member.type_id as usize;
            *budget = budget.checked_sub(1).ok_or(Malformed { what, at })?;
            if member.name == 0 {
                open.push((btf.strip(member.type_id)?, base.saturating_add(member.bit_offset)));
            } else if btf.is_called(member.name, name)? {
                return Ok(Some((member, base)));
            }
        }
    }
    Ok(None)
}

fn find_argument(
    btf: &Btf<'_>,
    names: &Names,
    function: &FunctionSpec,
    argument: &ArgumentSpec,
) -> Result<Told, Malformed> {
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

/// An argument's position by its name, else by its type when only one is of that type.
fn position(btf: &Btf<'_>, prototype: &Type, argument: &ArgumentSpec) -> Result<Option<u32>, Malformed> {
    if prototype.kind != kind::FUNC_PROTO {
        return Ok(None);
    }
    let mut of_type = Vec::new();
    let mut next = 1;
    for parameter in btf.parameters(prototype).take(250) {
        let parameter = parameter?;
        let position = next;
        next = next_position(position, WORD, btf.size(parameter.type_id)?);
        // All of it is on the stack, as a single register is not used for half of it.
        let position = if next == position + 3 { position + 1 } else { position };
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

/// The position of the next argument. With `-mregparm=3` on 32-bit x86 a 64-bit argument takes two positions, and goes to the
/// stack if fewer than two registers are left.
fn next_position(position: u32, word: u32, size: u64) -> u32 {
    const REGISTERS: u32 = 3;
    match (word, size) {
        (4, 5..=8) if position == REGISTERS => position + 3,
        (4, 5..=8) => position + 2,
        _ => position + 1,
    }
}

fn points_to(btf: &Btf<'_>, type_id: u32, structure: &str) -> Result<bool, Malformed> {
    let pointer = btf.strip(type_id)?;
    if pointer.kind != kind::PTR {
        return Ok(false);
    }
    let target = btf.strip(pointer.size_or_type)?;
    Ok(matches!(target.kind, kind::STRUCT | kind::FWD) && btf.is_called(target.name, structure)?)
}

#[cfg(test)]
mod tests {
    use super::next_position;

    /// As GCC passes them with `-m32 -mregparm=3` (`ix86_function_arg_advance`).
    #[test]
    fn a_number_of_64_bits_is_two_words_on_a_32_bit_machine() {
        let positions = |word, sizes: &[u64]| {
            let next = |position: &mut u32, size: &u64| {
                let this = *position;
                *position = next_position(this, word, *size);
                Some(this)
            };
            sizes.iter().scan(1, next).collect::<Vec<_>>()
        };
        assert_eq!(positions(8, &[8, 8, 4, 8, 4]), [1, 2, 3, 4, 5]);
        assert_eq!(positions(4, &[4, 2, 1, 4, 4]), [1, 2, 3, 4, 5]);
        assert_eq!(positions(4, &[8, 4, 4]), [1, 3, 4], "%ax and %dx, then %cx, then the stack");
        assert_eq!(positions(4, &[4, 8, 4]), [1, 2, 4]);
        assert_eq!(positions(4, &[4, 4, 8, 4]), [1, 2, 3, 6], "a single register is not used for half of it");
    }
}
