//! Where control groups v2 are mounted.

use std::fs;
use std::path::{Path, PathBuf};

use procfs::process::{MountInfo, Process};

/// The namespace of control groups that the host's processes are in (`PROC_CGROUP_INIT_INO` of `include/linux/proc_ns.h`).
const HOST_NAMESPACE: &str = "cgroup:[4026531835]";

/// Where the first file system of control groups v2 is mounted.
pub fn topmost_group() -> Option<PathBuf> {
    hierarchies().next().map(|mount| mount.mount_point)
}

/// The path of the control group with this directory, from the root of its hierarchy.
///
/// # Errors
/// What is wrong and what to do about it, in words.
pub fn path_in_hierarchy(directory: &Path) -> Result<String, String> {
    let namespace = fs::read_link("/proc/self/ns/cgroup").map_err(|error| format!("/proc/self/ns/cgroup: {error}"))?;
    if namespace != Path::new(HOST_NAMESPACE) {
        return Err(
            "kprobes can observe one control group only from the host's cgroup namespace: start socktrail there \
                    (docker run --cgroupns host), or set backend to cgroup"
                .into(),
        );
    }
    let directory = directory.canonicalize().map_err(|error| format!("{}: {error}", directory.display()))?;
    let mounts = hierarchies().map(|mount| (mount.root, mount.mount_point)).collect::<Vec<_>>();
    let mounted = || format!("{}: no control groups v2 are mounted there", directory.display());
    below_mount(&directory, &mounts).ok_or_else(mounted)
}

fn hierarchies() -> impl Iterator<Item = MountInfo> {
    let mounts = Process::myself().and_then(|own| own.mountinfo()).map(|mounts| mounts.0).unwrap_or_default();
    mounts.into_iter().filter(|mount| mount.fs_type == "cgroup2")
}

/// The path of a directory from the root of its file system, by the file system's mounts: root and mount point of each.
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
