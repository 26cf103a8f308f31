//! The ids in a `cred`.

use crate::engine::{Clues, Guess, Probe, Random, Scene, Shot, Window};
use crate::sys::{self, Ids, Of};
use std::io;

/// Where in a `cred` its ids are.
const IDS: u32 = 96;
/// The first ids that nobody is likely to have, up to the last that every system knows.
const FREE: std::ops::RangeInclusive<u32> = 20_000..=60_000;

/// The thread of this guess, and it alone, takes on ids of its choice, each time through `commit_creds(new)`: first the
/// groups, which it may do at will, then users, keeping root as the saved one to come back by. The id for files follows
/// the effective one, so it is set apart once.
#[derive(Debug)]
pub(super) struct Cred;

/// The ids of one kind that a `cred` had, the one for files last.
type Chosen = (Of, Ids, u32);

impl Guess for Cred {
    /// What was chosen, in order; of calls in between nothing is known.
    type Sent = Vec<Option<Chosen>>;

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
        vec![probe.words("argument 1", "{arg1}", 0..IDS).words("argument 2", "{arg2}", 0..IDS)]
    }

    fn trigger(&mut self, stage: &mut dyn Scene) -> io::Result<Vec<Option<Chosen>>> {
        // Whether a crash may leave a core file is of the process, and changing ids takes it away.
        let dumpable = sys::dumpable();
        let (users, groups) = (sys::ids(Of::User), sys::ids(Of::Group));
        let sent = change(stage.random(), users.effective);
        let back = sys::set_ids(Of::User, Ids { effective: users.effective, ..KEEP })
            .and_then(|()| sys::set_ids(Of::User, users))
            .and_then(|()| sys::set_ids(Of::Group, groups));
        if dumpable {
            sys::set_dumpable();
        }
        back.and(sent)
    }

    fn solve(&self, sent: &Vec<Option<Chosen>>, shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        for (chosen, shot) in sent.iter().zip(shots) {
            let Some(chosen) = chosen else { continue };
            let views = [(1, "argument 1"), (2, "argument 2")].map(|(position, name)| (position, shot.view(name)));
            let holds_all = |&(_, cred): &(u32, &Window)| ids(chosen).iter().all(|&id| !cred.find_u32(id).is_empty());
            if let Some((position, cred)) = views.into_iter().find(holds_all) {
                clues.allow("commit_creds(new)", [position]);
                find(chosen, cred, &mut clues);
            }
        }
        clues
    }
}

/// Leaves an id as it is.
const KEEP: Ids = Ids { real: u32::MAX, effective: u32::MAX, saved: u32::MAX };

fn change(random: &mut Random, root: u32) -> io::Result<Vec<Option<Chosen>>> {
    let [gid, egid, sgid, fsgid, uid, euid] = distinct(random);
    let groups = Ids { real: gid, effective: egid, saved: sgid };
    sys::set_ids(Of::Group, groups)?;
    sys::set_file_id(Of::Group, fsgid);
    let users = Ids { real: uid, effective: euid, saved: root };
    sys::set_ids(Of::User, users)?;
    sys::set_file_id(Of::User, root);
    Ok(vec![None, Some((Of::Group, groups, fsgid)), None, Some((Of::User, users, root))])
}

/// Random ids, no two of them alike.
fn distinct(random: &mut Random) -> [u32; 6] {
    loop {
        let mut ids = [(); 6].map(|()| random.within(FREE));
        let chosen = ids;
        ids.sort_unstable();
        if ids.windows(2).all(|pair| pair[0] != pair[1]) {
            return chosen;
        }
    }
}

fn ids(&(_, ids, file): &Chosen) -> [u32; 4] {
    [ids.real, ids.effective, ids.saved, file]
}

fn find(chosen: &Chosen, cred: &Window, clues: &mut Clues) {
    let (of, ids, _) = chosen;
    let [real, effective] = match of {
        Of::User => ["cred.uid", "cred.euid"],
        Of::Group => ["cred.gid", "cred.egid"],
    };
    clues.allow(real, cred.find_u32(ids.real));
    clues.allow(effective, cred.find_u32(ids.effective));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cred(users: (Ids, u32), groups: (Ids, u32)) -> Shot {
        let mut cred = Window::new(0, vec![0; IDS as usize]);
        let at = [(8, users.0.real), (12, groups.0.real), (16, users.0.saved), (20, groups.0.saved)];
        let more = [(24, users.0.effective), (28, groups.0.effective), (32, users.1), (36, groups.1)];
        for (offset, id) in at.into_iter().chain(more) {
            cred.write(offset, &u32::to_ne_bytes(id));
        }
        let other = Window::new(0, vec![0; IDS as usize]);
        Shot::of("commit_creds", vec![("argument 1", cred), ("argument 2", other)])
    }

    #[test]
    fn chosen_ids_are_found() {
        let ids = |real, effective, saved| Ids { real, effective, saved };
        let (root, users, groups) = (ids(0, 0, 0), ids(501, 502, 0), ids(601, 602, 603));
        let shots = [
            cred((root, 0), (groups, 602)),
            cred((root, 0), (groups, 604)),
            cred((users, 502), (groups, 604)),
            cred((users, 0), (groups, 604)),
        ];
        let sent = vec![None, Some((Of::Group, groups, 604)), None, Some((Of::User, users, 0))];
        let clues = Cred.solve(&sent, &shots);
        for (key, value) in
            [("cred.uid", 8), ("cred.gid", 12), ("cred.euid", 24), ("cred.egid", 28), ("commit_creds(new)", 1)]
        {
            assert_eq!(clues.of(key), [value], "{key}");
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
