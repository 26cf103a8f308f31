//! Where control groups v2 are mounted.

use std::fs;
use std::path::{Path, PathBuf};

use procfs::process::{MountInfo, Process};

/// The namespace of control groups that the host's processes are in (`PROC_CGROUP_INIT_INO` of `include/linux/proc_ns.h`).
const HOST_NAMESPACE: &str = "cgroup:[4026531835]";

/// The directory of the topmost control group (v2) that this process sees, if one is mounted.
pub fn topmost_group() -> Option<PathBuf> {
    let of_root = mounts_of_v2().find(|mount| mount.root == "/")?;
    Some(unescaped(&of_root.mount_point.to_string_lossy()).into())
}

/// Whether process 1 sees control groups v2.
pub fn host_has_control_groups() -> bool {
    let mounts = Process::new(1).and_then(|init| init.mountinfo()).map(|mounts| mounts.0).unwrap_or_default();
    mounts.iter().any(|mount| mount.fs_type == "cgroup2")
}

/// Whether this process is in the host's cgroup namespace, so that it sees the whole hierarchy. Before Linux 4.6 there are no
/// others.
pub fn sees_all_control_groups() -> bool {
    fs::read_link("/proc/self/ns/cgroup").map_or(true, |namespace| namespace == Path::new(HOST_NAMESPACE))
}

/// The path, from the root of the hierarchy, of the control group that is at this directory.
///
/// # Errors
/// What is wrong and what to do about it, in words.
pub fn path_in_hierarchy(directory: &Path) -> Result<String, String> {
    if !sees_all_control_groups() {
        return Err(
            "with kprobes, it needs the host's cgroup namespace: start socktrail there (docker run --cgroupns host), \
                    or observe flows with backend cgroup"
                .into(),
        );
    }
    let directory = directory.canonicalize().map_err(|error| format!("{}: {error}", directory.display()))?;
    let unescaped = |mount: MountInfo| (unescaped(&mount.root), unescaped(&mount.mount_point.to_string_lossy()).into());
    let mounts: Vec<(String, PathBuf)> = mounts_of_v2().map(unescaped).collect();
    let mounted = || format!("{}: no control groups v2 are mounted there", directory.display());
    below_mount(&directory, &mounts).ok_or_else(mounted)
}

fn mounts_of_v2() -> impl Iterator<Item = MountInfo> {
    let mounts = Process::myself().and_then(|own| own.mountinfo()).map(|mounts| mounts.0).unwrap_or_default();
    mounts.into_iter().filter(|mount| mount.fs_type == "cgroup2")
}

/// Replaces `\040` and the like, as the kernel writes spaces, tabs, newlines and backslashes in `/proc/self/mountinfo`.
fn unescaped(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(text.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

/// Translates a directory below a mount into its path in the mounted file system. `mounts` are root and mount point of each.
fn below_mount(directory: &Path, mounts: &[(String, PathBuf)]) -> Option<String> {
    let below = mounts.iter().filter_map(|(root, point)| Some((root, point, directory.strip_prefix(point).ok()?)));
    let (root, _, below) = below.max_by_key(|(_, point, _)| point.as_os_str().len())?;
    let parts = Path::new(root).join(below).components().collect::<PathBuf>();
    Some(parts.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_mountinfo_are_characters() {
        assert_eq!(unescaped(r"/machine\134x2dweb\040one"), r"/machine\x2dweb one");
        assert_eq!(unescaped(r"\134040"), r"\040");
    }

    #[test]
    fn a_path_begins_at_the_root_of_the_hierarchy() {
        let mounts = [("/", "/sys/fs/cgroup"), ("/a/b", "/mnt"), ("/", "/mnt/unified")];
        let mounts = mounts.map(|(root, point)| (root.to_owned(), PathBuf::from(point)));
        for (directory, path) in [
            ("/sys/fs/cgroup/system.slice/a.service", Some("/system.slice/a.service")),
            ("/sys/fs/cgroup", Some("/")),
            ("/mnt/c", Some("/a/b/c")),
            ("/mnt", Some("/a/b")),
            ("/mnt/unified/d", Some("/d")),
            ("/sys/fs/cgroups", None),
        ] {
            assert_eq!(below_mount(Path::new(directory), &mounts).as_deref(), path, "{directory}");
        }
    }
}
