//! The cache of downloads, outside the repository.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

/// The prefix of folders in which an entry is being made.
const UNFINISHED: &str = "making-";

/// The cache. Its entries are complete or absent: they are made in another folder and then renamed.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the user's cache, creating the folder when it is missing.
    pub fn open() -> Result<Self> {
        let root = env::var_os("SOCKTRAIL_VM_CACHE")
            .map(PathBuf::from)
            .or_else(|| env::var_os("XDG_CACHE_HOME").map(|base| Path::new(&base).join("socktrail")))
            .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache/socktrail")))
            .context("no folder for downloads: set SOCKTRAIL_VM_CACHE to a folder")?;
        Self::at(&root)
    }

    /// Opens a cache in the given folder.
    pub fn at(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("create the cache folder {}", root.display()))?;
        let root = root.canonicalize().with_context(|| format!("find {}", root.display()))?;
        Ok(Self { root })
    }

    /// A path in the cache. It may not exist.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The path of an entry. If it is missing, `make` creates it at a path that it is given.
    ///
    /// One process at a time makes entries; others wait.
    pub fn entry(&self, name: &str, make: impl FnOnce(&LockedCache<'_>, &Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.path(name);
        if path.exists() {
            return Ok(path);
        }
        let _lock = self.lock()?;
        self.remove_unfinished()?;
        LockedCache { cache: self }.entry(name, make)
    }

    /// Removes the unfinished work of processes that were killed.
    fn remove_unfinished(&self) -> Result<()> {
        let context = || format!("remove unfinished entries in {}", self.root.display());
        for entry in fs::read_dir(&self.root).with_context(context)? {
            let entry = entry.with_context(context)?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_dir_all(entry.path()).with_context(context)?;
            }
        }
        Ok(())
    }

    /// Locks the cache; waits while another process makes entries.
    fn lock(&self) -> Result<Flock<File>> {
        let path = self.path("lock");
        let open = || File::create(&path).with_context(|| format!("create {}", path.display()));
        match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) => eprintln!("vm: waiting for another run to finish fetching"),
            Err((_, error)) => return Err(error).with_context(|| format!("lock {}", path.display())),
        }
        Flock::lock(open()?, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("lock {}", path.display()))
    }
}

/// The locked cache. An entry may be made from others.
#[derive(Debug)]
pub struct LockedCache<'a> {
    cache: &'a Cache,
}

impl LockedCache<'_> {
    /// A path in the cache.
    pub fn path(&self, name: &str) -> PathBuf {
        self.cache.path(name)
    }

    /// Like [`Cache::entry`].
    pub fn entry(&self, name: &str, make: impl FnOnce(&Self, &Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.path(name);
        if path.exists() {
            return Ok(path);
        }
        let parent = path.parent().context("the entry's path has no parent")?;
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        let folder = TempDir::with_prefix_in(UNFINISHED, &self.cache.root).context("create a folder in the cache")?;
        let made = folder.path().join("entry");
        make(self, &made)?;
        fs::rename(&made, &path).with_context(|| format!("rename an entry to {}", path.display()))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use anyhow::bail;

    use super::*;

    #[test]
    fn an_entry_is_made_once() {
        let folder = TempDir::new().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let made = Cell::new(0);
        for _ in 0..2 {
            let path = cache
                .entry("a/b", |_, path| {
                    made.set(made.get() + 1);
                    Ok(fs::write(path, "content")?)
                })
                .unwrap();
            assert_eq!(fs::read_to_string(path).unwrap(), "content");
        }
        assert_eq!(made.get(), 1);
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let folder = TempDir::new().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let result = cache.entry("entry", |_, path| {
            fs::write(path, "half")?;
            bail!("the mirror went away")
        });
        assert!(result.is_err());
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"]);
    }

    #[test]
    fn unfinished_entries_are_removed() {
        let folder = TempDir::new().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        fs::create_dir_all(cache.path("making-x/entry")).unwrap();
        cache.entry("entry", |_, path| Ok(fs::write(path, "")?)).unwrap();
        assert!(!cache.path("making-x").exists());
    }

    #[test]
    fn an_entry_can_be_made_from_another() {
        let folder = TempDir::new().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let path = cache
            .entry("outer", |cache, path| {
                let inner = cache.entry("inner", |_, path| Ok(fs::write(path, "x")?))?;
                Ok(fs::copy(inner, path).map(drop)?)
            })
            .unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "x");
    }
}
