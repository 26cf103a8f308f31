//! The path of the executed file, read in the kernel at the exec.
//!
//! The path is built as the kernel itself does it from a `struct path` (`d_path` in `fs/d_path.c`): the names of
//! directory entries from the file up to the root of its mount, then from its mount point up to the root of the mount
//! there, and so on up to the topmost mount. A probe fetches a fixed number of each (see [`dentries`]), and two probes
//! share the work because one record has no room for all. Like the root of a file system, the topmost mount is its own
//! parent. A path with more or longer components is reported as [`ExecutedFile::TooDeep`], never truncated.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use socktrail_kprobes::{StringWindow, Word, sample};

use super::dentries::{self, Names, ancestor, climb, entry_name, name};
use super::{Decoded, Interpret};
use crate::model::process::ExecutedFile;

/// What the kernel appends to the path of a deleted file.
const DELETED: &[u8] = b" (deleted)";

/// The name of a directory, up to 127 bytes.
type Name = StringWindow<16>;
/// The name of a mount point or of a directory above it, up to 95 bytes.
type MountPointName = StringWindow<12>;
/// The name of the program, up to the 255 bytes that most file systems allow.
type OwnName = StringWindow<32>;

/// The template of the executed file's `struct file`.
macro_rules! file {
    () => {
        "+{linux_binprm.file}({bprm})"
    };
}

/// The template of the file's directory entry.
macro_rules! entry {
    () => {
        concat!("+{file.dentry}(", file!(), ")")
    };
}

/// The template of the mount (`struct vfsmount`) through which the file was opened.
macro_rules! vfsmount {
    () => {
        concat!("+{file.mnt}(", file!(), ")")
    };
}

/// The template of a field of the `struct mount` that contains this `struct vfsmount`.
macro_rules! own_mount {
    ($field:literal) => {
        concat!("+{mount.", $field, "-mount.mnt_root+vfsmount.mnt_root}(", vfsmount!(), ")")
    };
}

/// The template of a parent of this `struct mount`: one mount up for each `up`.
macro_rules! mount {
    (up) => {
        own_mount!("mnt_parent")
    };
    (up $($up:tt)+) => {
        concat!("+{mount.mnt_parent}(", mount!($($up)+), ")")
    };
}

/// The template of the mount point, in this mount, of the next mount on the way down to the file.
macro_rules! mountpoint {
    (up) => {
        own_mount!("mnt_mountpoint")
    };
    (up $($up:tt)+) => {
        concat!("+{mount.mnt_mountpoint}(", mount!($($up)+), ")")
    };
}

/// The template of a mount's root directory entry.
macro_rules! root {
    ($($up:tt)+) => {
        concat!("+{mount.mnt_root}(", mount!($($up)+), ")")
    };
}

sample! {
    /// `security_bprm_committed_creds`: the file, within its mount.
    pub struct ExecFile {
        /// Null if the file has been removed.
        hash_link: Word = concat!("+{dentry.pprev}(", entry!(), ")"),
        root: Word = concat!("+{vfsmount.mnt_root}(", vfsmount!(), ")"),
        at_0: Word = ancestor!(entry!();),
        at_1: Word = ancestor!(entry!(); up),
        at_2: Word = ancestor!(entry!(); up up),
        at_3: Word = ancestor!(entry!(); up up up),
        at_4: Word = ancestor!(entry!(); up up up up),
        at_5: Word = ancestor!(entry!(); up up up up up),
        at_6: Word = ancestor!(entry!(); up up up up up up),
        at_7: Word = ancestor!(entry!(); up up up up up up up),
        name_0: OwnName = name!(entry!();),
        name_1: Name = name!(entry!(); up),
        name_2: Name = name!(entry!(); up up),
        name_3: Name = name!(entry!(); up up up),
        name_4: Name = name!(entry!(); up up up up),
        name_5: Name = name!(entry!(); up up up up up),
        name_6: Name = name!(entry!(); up up up up up up),
    }

    /// `security_bprm_committed_creds`: where the file's mount is mounted, and the mounts above that.
    pub struct ExecMounts {
        root_1: Word = root!(up),
        first_at_0: Word = ancestor!(mountpoint!(up);),
        first_at_1: Word = ancestor!(mountpoint!(up); up),
        first_at_2: Word = ancestor!(mountpoint!(up); up up),
        first_at_3: Word = ancestor!(mountpoint!(up); up up up),
        first_at_4: Word = ancestor!(mountpoint!(up); up up up up),
        first_at_5: Word = ancestor!(mountpoint!(up); up up up up up),
        first_at_6: Word = ancestor!(mountpoint!(up); up up up up up up),
        first_name_0: MountPointName = name!(mountpoint!(up);),
        first_name_1: MountPointName = name!(mountpoint!(up); up),
        first_name_2: MountPointName = name!(mountpoint!(up); up up),
        first_name_3: MountPointName = name!(mountpoint!(up); up up up),
        first_name_4: MountPointName = name!(mountpoint!(up); up up up up),
        first_name_5: MountPointName = name!(mountpoint!(up); up up up up up),
        root_2: Word = root!(up up),
        second_at_0: Word = ancestor!(mountpoint!(up up);),
        second_at_1: Word = ancestor!(mountpoint!(up up); up),
        second_at_2: Word = ancestor!(mountpoint!(up up); up up),
        second_at_3: Word = ancestor!(mountpoint!(up up); up up up),
        second_at_4: Word = ancestor!(mountpoint!(up up); up up up up),
        second_at_5: Word = ancestor!(mountpoint!(up up); up up up up up),
        second_name_0: MountPointName = name!(mountpoint!(up up);),
        second_name_1: MountPointName = name!(mountpoint!(up up); up),
        second_name_2: MountPointName = name!(mountpoint!(up up); up up),
        second_name_3: MountPointName = name!(mountpoint!(up up); up up up),
        second_name_4: MountPointName = name!(mountpoint!(up up); up up up up),
        root_3: Word = root!(up up up),
        third_at_0: Word = ancestor!(mountpoint!(up up up);),
        third_at_1: Word = ancestor!(mountpoint!(up up up); up),
        third_at_2: Word = ancestor!(mountpoint!(up up up); up up),
        third_at_3: Word = ancestor!(mountpoint!(up up up); up up up),
        third_at_4: Word = ancestor!(mountpoint!(up up up); up up up up),
        third_name_0: MountPointName = name!(mountpoint!(up up up);),
        third_name_1: MountPointName = name!(mountpoint!(up up up); up),
        third_name_2: MountPointName = name!(mountpoint!(up up up); up up),
        third_name_3: MountPointName = name!(mountpoint!(up up up); up up up),
        root_4: Word = root!(up up up up),
        mountpoint_4: Word = mountpoint!(up up up up),
        root_5: Word = root!(up up up up up),
        mountpoint_5: Word = mountpoint!(up up up up up),
        mount_5: Word = mount!(up up up up up),
        mount_6: Word = mount!(up up up up up up),
    }
}

/// One of the two halves of a path.
#[derive(Debug)]
pub(in crate::source) enum PathHalf {
    /// The half within the file's mount.
    File(File),
    /// The half from the mount up to the topmost mount.
    Mounts(Names),
}

/// The executed file, within its mount.
#[derive(Debug)]
pub(in crate::source) enum File {
    /// A file in a directory tree.
    InTree {
        /// Its own name and those of its directories.
        names: Names,
        /// Whether it had been removed before the exec.
        deleted: bool,
    },
    /// A file in memory only: it has a name but no directory.
    InMemory(Vec<u8>),
}

impl File {
    /// The path of the file, given the path of its mount.
    pub(super) fn at(self, mounts: Names) -> ExecutedFile {
        let whole = match self {
            Self::InMemory(name) => Some([b"/", &name[..], DELETED].concat()),
            Self::InTree { names, deleted } => names.zip(mounts).map(|(names, mounts)| {
                [&dentries::path(&[names, mounts].concat())[..], if deleted { DELETED } else { b"" }].concat()
            }),
        };
        whole.map_or(ExecutedFile::TooDeep, |path| ExecutedFile::Path(OsString::from_vec(path).into()))
    }
}

impl Interpret for ExecFile {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        let at = [self.at_0, self.at_1, self.at_2, self.at_3, self.at_4, self.at_5, self.at_6, self.at_7];
        let mut names = vec![self.name_0.bytes(raw)];
        names.extend(
            [self.name_1, self.name_2, self.name_3, self.name_4, self.name_5, self.name_6].map(|name| name.bytes(raw)),
        );
        let file = if at[0] == at[1] && at[0] != self.root {
            entry_name(names[0]).map_or(File::InTree { names: None, deleted: false }, File::InMemory)
        } else {
            File::InTree { names: climb(&at, &names, self.root), deleted: self.hash_link == 0 && at[0] != at[1] }
        };
        Decoded::Half(PathHalf::File(file))
    }
}

impl Interpret for ExecMounts {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        let first = climb(
            &[
                self.first_at_0,
                self.first_at_1,
                self.first_at_2,
                self.first_at_3,
                self.first_at_4,
                self.first_at_5,
                self.first_at_6,
            ],
            &[
                self.first_name_0,
                self.first_name_1,
                self.first_name_2,
                self.first_name_3,
                self.first_name_4,
                self.first_name_5,
            ]
            .map(|name| name.bytes(raw)),
            self.root_1,
        );
        let second = climb(
            &[
                self.second_at_0,
                self.second_at_1,
                self.second_at_2,
                self.second_at_3,
                self.second_at_4,
                self.second_at_5,
            ],
            &[self.second_name_0, self.second_name_1, self.second_name_2, self.second_name_3, self.second_name_4]
                .map(|name| name.bytes(raw)),
            self.root_2,
        );
        let third = climb(
            &[self.third_at_0, self.third_at_1, self.third_at_2, self.third_at_3, self.third_at_4],
            &[self.third_name_0, self.third_name_1, self.third_name_2, self.third_name_3].map(|name| name.bytes(raw)),
            self.root_3,
        );
        // The mounts above these are often mounted over the root of another mount, which adds no name to the path; the
        // topmost is its own parent.
        let at_the_top =
            self.mountpoint_4 == self.root_4 && self.mountpoint_5 == self.root_5 && self.mount_5 == self.mount_6;
        let all = [first, second, third].into_iter().collect::<Option<Vec<_>>>().filter(|_| at_the_top);
        Decoded::Half(PathHalf::Mounts(all.map(|names| names.concat())))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use socktrail_kprobes::{Fetch, Format, Record, Sample, Type};

    use super::super::processes::CommitCreds;
    use super::super::{Feature, Probes};
    use super::*;
    use crate::model::event::EventKind;
    use crate::source::kprobes::dentries::longest_expression;

    /// A window with this name, and whatever follows it in memory.
    fn window(name: &str) -> Vec<u8> {
        [name.as_bytes(), b"\0left over"].concat()
    }

    fn climbed(at: &[u64], names: &[&str], root: u64) -> Names {
        let windows: Vec<_> = names.iter().map(|name| window(name)).collect();
        climb(at, &windows.iter().map(Vec::as_slice).collect::<Vec<_>>(), root)
    }

    fn in_tree(names: Names, deleted: bool) -> File {
        File::InTree { names, deleted }
    }

    fn path(path: &str) -> ExecutedFile {
        ExecutedFile::Path(PathBuf::from(path))
    }

    #[test]
    fn names_go_up_to_the_root_of_the_mount() {
        let bin = climbed(&[3, 2, 1, 1], &["nc", "bin", "/"], 1);
        assert_eq!(in_tree(bin.clone(), false).at(Some(Vec::new())), path("/bin/nc"));
        let usr = climbed(&[20, 10, 10], &["usr", "/"], 10);
        assert_eq!(in_tree(bin.clone(), false).at(usr.clone()), path("/usr/bin/nc"));
        assert_eq!(in_tree(bin, true).at(usr), path("/usr/bin/nc (deleted)"));
        // A file that is a mount itself.
        assert_eq!(in_tree(climbed(&[3, 2, 1], &["nc", "bin"], 3), false).at(Some(vec![b"f".to_vec()])), path("/f"));
    }

    #[test]
    fn an_incomplete_path_is_too_deep() {
        assert_eq!(climbed(&[4, 3, 2], &["nc", "bin"], 1), None, "deeper than was read");
        assert_eq!(climbed(&[3, 2, 2, 2], &["nc", "/", "/"], 1), None, "outside of its mount");
        assert_eq!(climb(&[3, 1], &[b"no end"], 1), None, "longer than was read");
        assert_eq!(climbed(&[3, 2, 1], &["", "bin"], 1), None, "no name");
        assert_eq!(in_tree(None, true).at(Some(Vec::new())), ExecutedFile::TooDeep);
        assert_eq!(in_tree(Some(vec![b"nc".to_vec()]), false).at(None), ExecutedFile::TooDeep);
    }

    #[test]
    fn a_file_in_memory_has_the_path_that_the_kernel_shows() {
        assert_eq!(File::InMemory(b"memfd:x".to_vec()).at(None), path("/memfd:x (deleted)"));
    }

    /// The format of a probe's records.
    fn format(id: u16, fetches: &[Fetch<'_>]) -> Format {
        let mut text = format!("name: probe\nID: {id}\nformat:\n");
        for (fetch, (at, size)) in fetches.iter().zip(places(fetches)) {
            let count = if size > 8 { format!("[{}]", size / 8) } else { String::new() };
            let kind = if size == 4 { "u32" } else { "u64" };
            text += &format!("\tfield:{kind} {}{count};\toffset:{at};\tsize:{size};\tsigned:0;\n", fetch.name);
        }
        Format::parse(text.as_bytes()).unwrap()
    }

    /// Offset and size of each field.
    fn places(fetches: &[Fetch<'_>]) -> impl Iterator<Item = (usize, usize)> {
        let size = |fetch: &Fetch<'_>| match fetch.kind {
            Type::StringWindow(count) => 8 * usize::from(count),
            Type::U32 => 4,
            _ => 8,
        };
        fetches.iter().map(size).scan(16, |end, size| {
            *end += size;
            Some((*end - size, size))
        })
    }

    /// A record with these numbers; a field that is not named has the number of the one before.
    fn record(fetches: &[Fetch<'_>], numbers: &[(&str, u64)], names: &[(&str, &str)]) -> Vec<u8> {
        let (mut raw, mut number) = (vec![0; 16], 0);
        for (fetch, (_, size)) in fetches.iter().zip(places(fetches)) {
            if size > 8 {
                let name = names.iter().find(|(field, _)| *field == fetch.name).map_or("/", |(_, name)| name);
                let mut window = window(name);
                window.resize(size, b'.');
                raw.extend(window);
            } else {
                number = numbers.iter().find(|(field, _)| *field == fetch.name).map_or(number, |(_, number)| *number);
                raw.extend(&number.to_ne_bytes()[..size]);
            }
        }
        raw
    }

    fn file(hash_link: u64, at: [u64; 3]) -> Vec<u8> {
        let [at_0, at_1, at_2] = at;
        let numbers = [("hash_link", hash_link), ("root", 1), ("at_0", at_0), ("at_1", at_1), ("at_2", at_2)];
        record(ExecFile::FETCHES, &numbers, &[("name_0", "nc"), ("name_1", "bin")])
    }

    /// The file's mount is at `/usr` of a mount that is at `/srv`. If `mountpoint_4` is 60, each mount above is mounted over
    /// the root of the next one.
    fn mounts(mountpoint_4: u64) -> Vec<u8> {
        let numbers = [
            ("root_1", 10),
            ("first_at_0", 20),
            ("first_at_1", 10),
            ("root_2", 30),
            ("second_at_0", 40),
            ("second_at_1", 30),
            ("root_3", 50),
            ("root_4", 60),
            ("mountpoint_4", mountpoint_4),
            ("root_5", 70),
            ("mount_5", 80),
        ];
        record(ExecMounts::FETCHES, &numbers, &[("first_name_0", "usr"), ("second_name_0", "srv")])
    }

    const FILE: u16 = 7;
    const MOUNTS: u16 = 8;
    const CREDENTIALS: u16 = 9;

    fn probes() -> Probes {
        let mut probes = Probes::none();
        let function = "security_bprm_committed_creds";
        probes.add_recorded(Feature::ProcessFile, function, &format(FILE, ExecFile::FETCHES)).unwrap();
        probes.add_recorded(Feature::ProcessMounts, function, &format(MOUNTS, ExecMounts::FETCHES)).unwrap();
        probes.add_recorded(Feature::Credentials, "commit_creds", &format(CREDENTIALS, CommitCreds::FETCHES)).unwrap();
        probes
    }

    fn executed_file(probes: &mut Probes, id: u16, raw: &[u8]) -> Option<ExecutedFile> {
        let sample = Record::Sample { time: 1, cpu: 0, pid: 5, tid: 5, id, raw };
        match probes.event(&sample)?.kind {
            EventKind::ExecutedFile(ran) => Some(*ran),
            _ => None,
        }
    }

    #[test]
    fn two_records_are_one_path() {
        for (link, at, expected) in [
            (9, [3, 2, 1], "/srv/usr/bin/nc"),
            (0, [3, 2, 1], "/srv/usr/bin/nc (deleted)"),
            // A file that is itself the root of a mount has the path of its mount point.
            (0, [1, 1, 1], "/srv/usr"),
            // The entry of a file in memory is its own parent, but not the root of the mount.
            (0, [3, 3, 3], "/nc (deleted)"),
        ] {
            let mut probes = probes();
            assert_eq!(executed_file(&mut probes, FILE, &file(link, at)), None, "half a path");
            assert_eq!(executed_file(&mut probes, MOUNTS, &mounts(60)), Some(path(expected)));
        }
        let mut probes = probes();
        executed_file(&mut probes, MOUNTS, &mounts(61));
        assert_eq!(
            executed_file(&mut probes, FILE, &file(9, [3, 2, 1])),
            Some(ExecutedFile::TooDeep),
            "there is a mount above these"
        );
    }

    #[test]
    fn halves_of_two_programs_are_no_path() {
        let mut probes = probes();
        executed_file(&mut probes, FILE, &file(9, [3, 2, 1]));
        probes.event(&Record::Lost { since: 0, time: 2, cpu: 0, count: 1 });
        assert_eq!(executed_file(&mut probes, MOUNTS, &mounts(60)), None, "samples between them were lost");
        let mut probes = self::probes();
        executed_file(&mut probes, FILE, &file(9, [3, 2, 1]));
        executed_file(&mut probes, CREDENTIALS, &record(CommitCreds::FETCHES, &[], &[]));
        assert_eq!(executed_file(&mut probes, MOUNTS, &mounts(60)), None, "another exec has begun");
    }

    #[test]
    fn a_name_with_a_slash_is_not_part_of_a_path() {
        assert_eq!(climbed(&[3, 2, 1], &["nc", "/"], 1), None);
        assert_eq!(climbed(&[3, 2, 1], &["nc", "a/b"], 1), None);
    }

    /// The kernel takes up to 63 bytes of an expression; offsets have at most two digits.
    #[test]
    fn every_expression_is_short_enough() {
        for fetch in ExecFile::FETCHES.iter().chain(ExecMounts::FETCHES) {
            let short = fetch.template.replace("{mount.mnt_mountpoint-mount.mnt_root+vfsmount.mnt_root}", "8");
            let text = longest_expression(&short, fetch.kind);
            assert!(text.len() <= 63, "{}: {text}", fetch.name);
        }
    }
}
