//! Checks whether only root and this process's user can change or replace a file or directory.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

/// The sticky bit (`inode(7)`): in such a directory, users can rename or remove only their own files.
const STICKY: u32 = 0o1000;

/// Whether this is a directory (not a link to one) whose entries only root and this process's user can change. The targets
/// of entries that are links are not checked.
pub(super) fn is_guarded_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && has_trusted_owner(&found) && !is_writable(&found))
}

/// The path of a program with all links resolved, if only root and this process's user can change or replace it.
pub(super) fn resolve_program(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    let found = fs::metadata(&path).ok()?;
    let is_safe_folder = |folder: &Path| {
        fs::metadata(folder)
            .is_ok_and(|found| has_trusted_owner(&found) && (!is_writable(&found) || found.mode() & STICKY != 0))
    };
    let is_guarded = found.is_file() && has_trusted_owner(&found) && !is_writable(&found);
    (is_guarded && path.ancestors().skip(1).all(is_safe_folder)).then_some(path)
}

fn has_trusted_owner(found: &Metadata) -> bool {
    [0, geteuid().as_raw()].contains(&found.uid())
}

/// Whether its group or other users can write to it.
fn is_writable(found: &Metadata) -> bool {
    found.mode() & 0o022 != 0
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn only_programs_that_no_other_user_can_replace_are_trusted() {
        let folder = tempfile::TempDir::new().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let (bin, link) = (root.join("bin"), root.join("link"));
        let path = bin.join("getent");
        fs::create_dir(&bin).unwrap();
        fs::write(&path, "").unwrap();
        symlink(&bin, &link).unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        mode(&bin, 0o755);
        mode(&path, 0o755);
        assert_eq!(resolve_program(&path).as_ref(), Some(&path));
        assert_eq!(resolve_program(&link.join("getent")).as_ref(), Some(&path), "through a trusted link");
        assert_eq!((resolve_program(&bin), resolve_program(&bin.join("none"))), (None, None));
        for (place, bad) in [(&path, 0o775), (&path, 0o757), (&bin, 0o777), (&bin, 0o775), (&root, 0o777)] {
            mode(place, bad);
            assert_eq!(resolve_program(&path), None, "{place:?} {bad:o}");
            mode(place, 0o755);
        }
        mode(&root, 0o1777);
        assert_eq!(resolve_program(&path).as_ref(), Some(&path), "sticky, as /tmp is");
        if geteuid().is_root() {
            chown(&bin, Some(1), None).unwrap();
            assert_eq!(resolve_program(&path), None, "another user's folder");
            chown(&bin, Some(0), None).unwrap();
            chown(&path, Some(1), None).unwrap();
            assert_eq!(resolve_program(&path), None, "another user's file");
        }
    }

    #[test]
    fn a_link_to_a_folder_is_not_a_folder() {
        let folder = tempfile::TempDir::new().unwrap();
        let (inside, link) = (folder.path().join("inside"), folder.path().join("link"));
        fs::create_dir(&inside).unwrap();
        symlink(&inside, &link).unwrap();
        fs::set_permissions(&inside, Permissions::from_mode(0o755)).unwrap();
        assert_eq!((is_guarded_folder(&inside), is_guarded_folder(&link)), (true, false));
        fs::set_permissions(&inside, Permissions::from_mode(0o1777)).unwrap();
        assert!(!is_guarded_folder(&inside), "others could add to it");
    }
}
