//! The control group that a process begins in, if that is not its parent's (`CLONE_INTO_CGROUP` of `clone3(2)`).
//!
//! The caller of `clone3(2)` gives a descriptor of the group's directory. `css_tryget_online_from_dir` looks the group up by
//! the directory entry of that descriptor. This happens in the caller's task, before the process is put into the group
//! ([`CgroupPostFork`](super::processes::CgroupPostFork)). Other forks do not call this function. But the kernel also calls it
//! for other uses of a group's descriptor, for instance to attach a BPF program. The directory entries lead up to the root of
//! the hierarchy, even in a cgroup namespace.

use socktrail_kprobes::{Array, Word, sample};

use super::dentries::{ancestor, climb, name, path};
use super::{Decoded, Interpret};
use crate::model::event::{EventKind, FoundGroup};

/// The group's own name, up to 255 bytes, which is the limit of file systems.
type OwnName = Array<u64, 32>;
/// The name of a group above it, up to 159 bytes.
type Name = Array<u64, 20>;

sample! {
    /// `css_tryget_online_from_dir`: the kernel looks up the control group whose descriptor the running task has
    /// passed. `docs/accuracy.md` states how deep a group may be, and how long the names of those above it.
    pub struct GroupLookup {
        /// The controller (`struct cgroup_subsys`) that the group is wanted for; null for the group itself.
        ss: Word = "{ss}",
        dentry_0: Word = ancestor!("{dentry}";),
        dentry_1: Word = ancestor!("{dentry}"; up),
        dentry_2: Word = ancestor!("{dentry}"; up up),
        dentry_3: Word = ancestor!("{dentry}"; up up up),
        dentry_4: Word = ancestor!("{dentry}"; up up up up),
        dentry_5: Word = ancestor!("{dentry}"; up up up up up),
        dentry_6: Word = ancestor!("{dentry}"; up up up up up up),
        dentry_7: Word = ancestor!("{dentry}"; up up up up up up up),
        dentry_8: Word = ancestor!("{dentry}"; up up up up up up up up),
        dentry_9: Word = ancestor!("{dentry}"; up up up up up up up up up),
        dentry_10: Word = ancestor!("{dentry}"; up up up up up up up up up up),
        name_0: OwnName = name!("{dentry}";),
        name_1: Name = name!("{dentry}"; up),
        name_2: Name = name!("{dentry}"; up up),
        name_3: Name = name!("{dentry}"; up up up),
        name_4: Name = name!("{dentry}"; up up up up),
        name_5: Name = name!("{dentry}"; up up up up up),
        name_6: Name = name!("{dentry}"; up up up up up up),
        name_7: Name = name!("{dentry}"; up up up up up up up),
        name_8: Name = name!("{dentry}"; up up up up up up up up),
    }
}

impl Interpret for GroupLookup {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        let at = [
            self.dentry_0,
            self.dentry_1,
            self.dentry_2,
            self.dentry_3,
            self.dentry_4,
            self.dentry_5,
            self.dentry_6,
            self.dentry_7,
            self.dentry_8,
            self.dentry_9,
            self.dentry_10,
        ];
        let above =
            [self.name_1, self.name_2, self.name_3, self.name_4, self.name_5, self.name_6, self.name_7, self.name_8];
        let names: Vec<_> = [self.name_0.bytes(raw)].into_iter().chain(above.map(|name| name.bytes(raw))).collect();
        Decoded::Event(EventKind::ControlGroupLookup(group(&at, &names)))
    }
}

/// The group of the first entry. The root is its own parent.
fn group(at: &[u64], names: &[&[u8]]) -> FoundGroup {
    let root = at.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
    let names = root.and_then(|root| climb(at, names, root));
    names.map_or(FoundGroup::Unknown, |names| FoundGroup::At(path(&names)))
}

#[cfg(test)]
mod tests {
    use socktrail_kprobes::Sample;

    use super::*;
    use crate::source::kprobes::dentries::longest_expression;

    const ID: &str = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970";

    /// What is found of the group at this path. The directory entries are numbered 1000, 999, … up to the root, whose name is
    /// `/`.
    fn group_of(path: &str) -> FoundGroup {
        let groups: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        let root = 1000 - groups.len() as u64;
        let at: [u64; 11] = std::array::from_fn(|up| (1000 - up as u64).max(root));
        let mut names = groups.iter().rev().map(|name| [name.as_bytes(), b"\0left over"].concat()).collect::<Vec<_>>();
        names.resize(9, b"/\0".to_vec());
        group(&at, &names.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    #[test]
    fn a_path_leads_from_the_root_to_the_group() {
        for path in [
            "/docker/ID",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-ID.scope",
            "/1/2/3/4/5/6/7/8/docker-ID.scope",
            "/system.slice/ssh.service",
            "",
        ] {
            let path = path.replace("ID", ID);
            assert_eq!(group_of(&path), FoundGroup::At(path.into_bytes()));
        }
    }

    #[test]
    fn the_group_of_an_incomplete_path_is_unknown() {
        let deep = format!("/1/2/3/4/5/6/7/8/9/docker-{ID}.scope");
        assert_eq!(group_of(&deep), FoundGroup::Unknown, "the root was not reached");
        assert_eq!(group(&[3, 2, 2], &[b"docker-truncated", b"/\0"]), FoundGroup::Unknown, "the name has no end");
        assert_eq!(group(&[3, 2, 1], &[b"a\0", b"b\0"]), FoundGroup::Unknown, "there is no root");
    }

    /// The kernel takes up to 63 bytes of an expression.
    #[test]
    fn every_expression_is_short_enough() {
        for fetch in GroupLookup::FETCHES {
            let text = longest_expression(&fetch.template, fetch.kind);
            assert!(text.len() <= 63, "{}: {text}", fetch.name);
        }
    }
}
