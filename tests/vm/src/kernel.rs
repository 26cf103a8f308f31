//! A kernel to boot: its image and its modules.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use tempfile::TempDir;

use crate::apt::{Archive, Package};
use crate::cache::{Cache, LockedCache};
use crate::matrix::{Arch, Kernel};
use crate::{modules, process};

/// A kernel on this machine's disk.
#[derive(Debug)]
pub struct Image {
    /// The compressed kernel.
    pub vmlinuz: PathBuf,
    /// A cpio archive of its modules.
    pub modules: PathBuf,
    /// Its release, as `uname -r` prints it.
    pub release: String,
}

/// Finds a kernel in the cache, or fetches the newest of its series.
pub fn image(cache: &Cache, kernel: Kernel, arch: Arch) -> Result<Image> {
    let context = || format!("get kernel {kernel} for {arch}");
    // The entry of a series is a link to a version, so that a fetched version never changes.
    let series = cache
        .entry(&format!("kernels/{kernel}-{}", arch.debian()), |cache, link| {
            let version = newest(cache, kernel, arch)?;
            Ok(symlink(version.file_name().context("a version's path has no name")?, link)?)
        })
        .with_context(context)?;
    let folder = series.canonicalize().with_context(context)?;
    let (module_folder, release) = module_folder(&folder).with_context(context)?;
    let name = folder.file_name().context("a version's path has no name")?.to_string_lossy().into_owned();
    let modules = cache
        .entry(&format!("kernels/{name}.modules-{}.cpio", modules::fingerprint()), |_, path| {
            Ok(fs::write(path, modules::archive(&module_folder, &release)?)?)
        })
        .with_context(context)?;
    Ok(Image { vmlinuz: vmlinuz(&folder, &module_folder).with_context(context)?, modules, release })
}

/// The folder of the newest version that can be fetched: mirrors of old releases list files that they no longer have.
fn newest(cache: &LockedCache<'_>, kernel: Kernel, arch: Arch) -> Result<PathBuf> {
    let archive = Archive::open(cache, kernel.suite(), arch)?;
    let meta = kernel.meta_package(arch);
    let mut failure = anyhow!("Debian {} has no {meta} of series {kernel}", kernel.suite().name);
    for Package { version, depends } in archive.versions(&meta)? {
        if !version.starts_with(&format!("{kernel}.")) {
            continue;
        }
        let made = cache.entry(&format!("kernels/{version}-{}", arch.debian()), |_, folder| {
            eprintln!("vm: fetching Linux {version} for {arch}");
            unpack(&archive, &packages(&archive, depends)?, folder)
        });
        match made {
            Ok(folder) => return Ok(folder),
            Err(error) => eprintln!("vm: no Linux {version}: {error:#}"),
        }
        failure = anyhow!("no version of {meta} could be fetched, see above");
    }
    Err(failure)
}

/// The packages with the kernel's files: the dependencies of a meta package, followed recursively.
fn packages(archive: &Archive, depends: Vec<String>) -> Result<Vec<String>> {
    let mut packages = Vec::new();
    let mut queue = depends;
    while let Some(name) = queue.pop() {
        if !holds_kernel_files(&name) || packages.contains(&name) {
            continue;
        }
        let newest = archive.versions(&name)?.into_iter().next();
        queue.extend(newest.with_context(|| format!("{name} has no version"))?.depends);
        packages.push(name);
    }
    ensure!(!packages.is_empty(), "the meta package depends on no package of kernel files");
    Ok(packages)
}

/// Whether a package has files of a kernel.
fn holds_kernel_files(package: &str) -> bool {
    ["linux-image-", "linux-binary-", "linux-modules-"].iter().any(|prefix| package.starts_with(prefix))
}

/// Downloads the packages, and unpacks all of them into one folder.
fn unpack(archive: &Archive, packages: &[String], folder: &Path) -> Result<()> {
    let downloads = TempDir::new().context("create a temporary folder")?;
    archive.download(packages, downloads.path())?;
    fs::create_dir(folder).with_context(|| format!("create {}", folder.display()))?;
    for file in fs::read_dir(downloads.path()).context("read the downloads")? {
        process::output(Command::new("dpkg-deb").arg("--extract").arg(file?.path()).arg(folder))?;
    }
    Ok(())
}

/// The folder of a kernel's modules, and its name, which is the release.
fn module_folder(folder: &Path) -> Result<(PathBuf, String)> {
    for place in ["usr/lib/modules", "lib/modules"] {
        let Ok(mut entries) = fs::read_dir(folder.join(place)) else { continue };
        if let Some(entry) = entries.next() {
            let entry = entry?;
            return Ok((entry.path(), entry.file_name().to_string_lossy().into_owned()));
        }
    }
    anyhow::bail!("{} has no modules", folder.display())
}

/// The path of the kernel: in `/boot`, or, since Debian's 7.2, beside its modules.
fn vmlinuz(folder: &Path, module_folder: &Path) -> Result<PathBuf> {
    let beside = module_folder.join("vmlinuz");
    if beside.exists() {
        return Ok(beside);
    }
    let boot = folder.join("boot");
    fs::read_dir(&boot)
        .with_context(|| format!("read {}", boot.display()))?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"))
        .map(|entry| entry.path())
        .with_context(|| format!("{} has no kernel", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packages_of_kernel_files_are_followed() {
        assert!(holds_kernel_files("linux-image-6.1.0-56-cloud-amd64"));
        assert!(holds_kernel_files("linux-modules-7.2.13+deb14-cloud-amd64"));
        for other in ["linux-base", "kmod", "initramfs-tools", "linux-base-7.2.13+deb14-cloud-amd64"] {
            assert!(!holds_kernel_files(other), "{other}");
        }
    }

    #[test]
    fn the_kernel_is_found_in_either_place() {
        let folder = TempDir::new().unwrap();
        let old = folder.path().join("old");
        fs::create_dir_all(old.join("boot")).unwrap();
        fs::create_dir_all(old.join("lib/modules/6.1.0-56")).unwrap();
        fs::write(old.join("boot/vmlinuz-6.1.0-56"), "").unwrap();
        let (modules, release) = module_folder(&old).unwrap();
        assert_eq!(release, "6.1.0-56");
        assert_eq!(vmlinuz(&old, &modules).unwrap(), old.join("boot/vmlinuz-6.1.0-56"));

        let new = folder.path().join("new");
        fs::create_dir_all(new.join("usr/lib/modules/7.2.13")).unwrap();
        fs::write(new.join("usr/lib/modules/7.2.13/vmlinuz"), "").unwrap();
        let (modules, release) = module_folder(&new).unwrap();
        assert_eq!(release, "7.2.13");
        assert_eq!(vmlinuz(&new, &modules).unwrap(), new.join("usr/lib/modules/7.2.13/vmlinuz"));

        assert!(module_folder(folder.path()).is_err());
    }
}
