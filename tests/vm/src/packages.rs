//! Debian packages with their dependencies as a cpio archive for an initramfs.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::apt::Archive;
use crate::cache::{Cache, LockedCache};
use crate::cpio::Writer;
use crate::matrix::{Arch, USERLAND};
use crate::process;

/// The folders of the root that are links into `/usr`.
pub const MERGED: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Folders that tests do not need: without them, the guest boots faster.
const LEFT_OUT: &[&str] =
    &["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian"];

/// The path of an archive with packages and their dependencies.
pub fn archive(cache: &Cache, arch: Arch, names: &[String]) -> Result<PathBuf> {
    make(cache, arch, names).with_context(|| format!("get the packages {} for {arch}", names.join(" ")))
}

fn make(cache: &Cache, arch: Arch, names: &[String]) -> Result<PathBuf> {
    for name in names {
        ensure!(is_package_name(name), "`{name}` is not a name of a Debian package");
    }
    cache.entry(&entry_name(arch, names), |cache, path| {
        eprintln!("vm: fetching {}", names.join(" "));
        build(cache, arch, names, path)
    })
}

/// The cache entry of a set of packages, in any order.
fn entry_name(arch: Arch, names: &[String]) -> String {
    let mut names = names.to_vec();
    names.sort();
    names.dedup();
    format!("packages/{}-{}/{}.cpio", USERLAND.name, arch.debian(), names.join(","))
}

/// Whether a text is a package name by Debian's policy. Such a name is also safe as a file name.
fn is_package_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c))
}

/// Fetches, unpacks and writes the archive.
fn build(cache: &LockedCache<'_>, arch: Arch, names: &[String], path: &Path) -> Result<()> {
    let files = Archive::open(cache, USERLAND, arch)?.download_closure(names)?;
    let root = TempDir::new().context("create a temporary folder")?;
    for file in files {
        process::output(Command::new("dpkg-deb").arg("--extract").arg(file).arg(root.path()))?;
    }
    let to = BufWriter::new(File::create(path).with_context(|| format!("create {}", path.display()))?);
    let mut archive = Writer::new(to);
    archive.tree_content(root.path(), "", &|path| LEFT_OUT.contains(&path) || MERGED.contains(&path))?;
    for name in MERGED {
        let folder = root.path().join(name);
        if folder.exists() {
            archive.tree_content(&folder, &in_usr(name), &|_| false)?;
        }
    }
    archive.finish().context("write the archive")?;
    Ok(())
}

/// A path of the guest with the links of the root resolved: writing `bin/x` would replace the link `bin` by a folder.
pub fn in_usr(path: &str) -> String {
    let first = path.split('/').next().unwrap_or_default();
    if MERGED.contains(&first) { format!("usr/{path}") } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_order_of_packages_does_not_matter() {
        assert_eq!(entry_name(Arch::X86_64, &names(&["jq", "curl", "jq"])), "packages/bookworm-amd64/curl,jq.cpio");
    }

    #[test]
    fn links_of_the_root_are_never_replaced() {
        assert_eq!(in_usr("bin"), "usr/bin");
        assert_eq!(in_usr("bin/x"), "usr/bin/x");
        assert_eq!(in_usr("lib/modules/y"), "usr/lib/modules/y");
        assert_eq!(in_usr("binary/x"), "binary/x");
        assert_eq!(in_usr("usr/bin/x"), "usr/bin/x");
    }

    #[test]
    fn names_are_checked() {
        for good in ["curl", "libstdc++6", "netcat-openbsd", "python3.11", "9base"] {
            assert!(is_package_name(good), "{good}");
        }
        for bad in ["", "../x", "-y", "a b", "Curl", "a/b"] {
            assert!(!is_package_name(bad), "{bad}");
        }
    }
}
