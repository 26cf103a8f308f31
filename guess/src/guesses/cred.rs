//! The fields of a `cred`, and the argument of `commit_creds`.

use crate::engine::{Call, Context, Evidence, Guess, Probe, Random, Window};
use crate::sys::{self, IdKind, Ids};
use std::io;

/// How many bytes of a `cred` are captured. All ids are in them.
const CRED: u32 = 96;
/// Ids that are most likely not in use, and that every system accepts.
const UNUSED_IDS: std::ops::RangeInclusive<u32> = 20_000..=60_000;

/// The guess changes the ids of its thread, and each change calls `commit_creds(new)`. It changes group ids first,
/// while it still has the right to, then user ids. It keeps root as the saved user id, so that it can return to root.
/// The file system id follows the effective id, so it is then set to another one.
#[derive(Debug)]
pub(super) struct Cred;

/// The user ids or group ids of a `cred`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chosen {
    kind: IdKind,
    ids: Ids,
    /// The file system id.
    file: u32,
}

impl Guess for Cred {
    /// The ids of each call. `None` if effective id and file system id are equal, so that they cannot be distinguished.
    type Expected = Vec<Option<Chosen>>;

    fn name(&self) -> &'static str {
        "cred"
    }

    fn needs(&self) -> Vec<String> {
        Vec::new()
    }

    fn gives(&self) -> Vec<String> {
        let keys = ["cred.uid", "cred.gid", "cred.euid", "cred.egid", "commit_creds(new)"];
        keys.map(str::to_owned).into()
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        let probe = Probe::on("commit_creds");
        vec![probe.words("argument 1", "{arg1}", 0..CRED).words("argument 2", "{arg2}", 0..CRED)]
    }

    fn trigger(&mut self, context: &mut dyn Context) -> io::Result<Vec<Option<Chosen>>> {
        // Changing ids makes the whole process not dumpable.
        let dumpable = sys::dumpable();
        let (users, groups) = (sys::ids(IdKind::User), sys::ids(IdKind::Group));
        let changed = change(context.random(), users.effective);
        let restored = sys::set_ids(IdKind::User, Ids { effective: users.effective, ..KEEP })
            .and_then(|()| sys::set_ids(IdKind::User, users))
            .and_then(|()| sys::set_ids(IdKind::Group, groups));
        if dumpable {
            sys::set_dumpable();
        }
        restored.and(changed)
    }

    fn solve(&self, expected: &Vec<Option<Chosen>>, calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        for (chosen, call) in expected.iter().zip(calls) {
            let Some(chosen) = chosen else { continue };
            let views = [(1, "argument 1"), (2, "argument 2")].map(|(position, name)| (position, call.view(name)));
            let holds_all =
                |&(_, cred): &(u32, &Window)| all_ids(chosen).iter().all(|&id| !cred.find_u32(id).is_empty());
            if let Some((position, cred)) = views.into_iter().find(holds_all) {
                evidence.one_of("commit_creds(new)", [position]);
                add_evidence(chosen, cred, &mut evidence);
            }
        }
        evidence
    }
}

/// Leaves all ids as they are.
const KEEP: Ids = Ids { real: u32::MAX, effective: u32::MAX, saved: u32::MAX };

fn change(random: &mut Random, root: u32) -> io::Result<Vec<Option<Chosen>>> {
    let [gid, egid, sgid, fsgid, uid, euid] = distinct(random);
    let groups = Ids { real: gid, effective: egid, saved: sgid };
    sys::set_ids(IdKind::Group, groups)?;
    sys::set_file_id(IdKind::Group, fsgid);
    let users = Ids { real: uid, effective: euid, saved: root };
    sys::set_ids(IdKind::User, users)?;
    sys::set_file_id(IdKind::User, root);
    let groups = Chosen { kind: IdKind::Group, ids: groups, file: fsgid };
    let users = Chosen { kind: IdKind::User, ids: users, file: root };
    Ok(vec![None, Some(groups), None, Some(users)])
}

/// Random ids that differ from each other.
fn distinct(random: &mut Random) -> [u32; 6] {
    loop {
        let mut ids = [(); 6].map(|()| random.within(UNUSED_IDS));
        let chosen = ids;
        ids.sort_unstable();
        if ids.windows(2).all(|pair| pair[0] != pair[1]) {
            return chosen;
        }
    }
}

fn all_ids(&Chosen { ids, file, .. }: &Chosen) -> [u32; 4] {
    [ids.real, ids.effective, ids.saved, file]
}

fn add_evidence(chosen: &Chosen, cred: &Window, evidence: &mut Evidence) {
    let Chosen { kind, ids, .. } = chosen;
    let [real, effective] = match kind {
        IdKind::User => ["cred.uid", "cred.euid"],
        IdKind::Group => ["cred.gid", "cred.egid"],
    };
    evidence.one_of(real, cred.find_u32(ids.real));
    evidence.one_of(effective, cred.find_u32(ids.effective));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cred(users: (Ids, u32), groups: (Ids, u32)) -> Call {
        let mut cred = Window::new(0, vec![0; CRED as usize]);
        let at = [(8, users.0.real), (12, groups.0.real), (16, users.0.saved), (20, groups.0.saved)];
        let more = [(24, users.0.effective), (28, groups.0.effective), (32, users.1), (36, groups.1)];
        for (offset, id) in at.into_iter().chain(more) {
            cred.write(offset, &u32::to_ne_bytes(id));
        }
        let other = Window::new(0, vec![0; CRED as usize]);
        Call::of("commit_creds", vec![("argument 1", cred), ("argument 2", other)])
    }

    #[test]
    fn chosen_ids_are_found() {
        let ids = |real, effective, saved| Ids { real, effective, saved };
        let (root, users, groups) = (ids(0, 0, 0), ids(501, 502, 0), ids(601, 602, 603));
        let calls = [
            cred((root, 0), (groups, 602)),
            cred((root, 0), (groups, 604)),
            cred((users, 502), (groups, 604)),
            cred((users, 0), (groups, 604)),
        ];
        let groups = Chosen { kind: IdKind::Group, ids: groups, file: 604 };
        let users = Chosen { kind: IdKind::User, ids: users, file: 0 };
        let expected = vec![None, Some(groups), None, Some(users)];
        let evidence = Cred.solve(&expected, &calls);
        for (key, value) in
            [("cred.uid", 8), ("cred.gid", 12), ("cred.euid", 24), ("cred.egid", 28), ("commit_creds(new)", 1)]
        {
            assert_eq!(evidence.values(key), [value], "{key}");
        }
    }

    #[test]
    fn ids_differ_from_each_other() {
        let mut ids = distinct(&mut Random::new()).to_vec();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 6);
    }
}
