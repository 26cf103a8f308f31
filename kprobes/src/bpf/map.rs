//! Maps that programs and user space share.

use std::io;
use std::sync::Arc;

use super::program::object_name;
use crate::sys::bpf::{self, MapType};
use crate::sys::limits;
use crate::{Error, cpus};

/// The maximum size of a key in bytes: a program keeps it on its stack (`MAX_BPF_STACK`).
const MAX_KEY_SIZE: u32 = 512;
/// The flags of [`Helper::Output`](super::Helper::Output): the CPU that the program runs on (`BPF_F_CURRENT_CPU`). It
/// needs a [64-bit load](super::Assembler::load64), because all its bits are set.
pub const CURRENT_CPU: u64 = 0xffff_ffff;

/// A map in the kernel. Keys and values are bytes in the machine's byte order. Their sizes are fixed when the map is
/// created.
///
/// Its memory is allocated when it is created (no `BPF_F_NO_PREALLOC`), so that a program never has to allocate. The
/// map is freed with its last user: this handle and its clones, or the last program that uses it.
#[derive(Clone, Debug)]
pub struct Map {
    name: String,
    map: Arc<bpf::Map>,
}

impl Map {
    /// Creates a map for `entries` keys of `key_size` bytes (at most 512), each with a value of `value_size` bytes. The
    /// name has at most 15 letters, digits and underscores; `bpftool map` shows it since Linux 4.15.
    ///
    /// # Errors
    /// [`Error::NoBpf`], [`Error::Permission`]; [`Error::Limit`] before Linux 5.11, if `RLIMIT_MEMLOCK` cannot be
    /// raised; [`Error::Io`] of kind [`Limit`](crate::Kind::Limit) if there is not enough memory; [`Error::BadName`].
    pub fn hash(name: &str, key_size: u32, value_size: u32, entries: u32) -> Result<Self, Error> {
        let kernel_name = object_name("BPF map", name)?;
        let what = format!("the BPF map {name} of {entries} keys");
        if !(1..=MAX_KEY_SIZE).contains(&key_size) || value_size == 0 || entries == 0 {
            let sizes = format!("{what}, with {key_size} bytes each and values of {value_size} bytes");
            return Err(Error::io(sizes, io::ErrorKind::InvalidInput));
        }
        let made = with_memory(|| bpf::Map::new(MapType::Hash, kernel_name, (key_size, value_size), entries));
        let map = made.map_err(|error| limits::bpf_error(&what, error))?;
        Ok(Self { name: name.to_owned(), map: Arc::new(map) })
    }

    /// Creates an array of outputs, one for each CPU, into which programs write records with
    /// [`Helper::Output`](super::Helper::Output). [`Rings::receive`](crate::Rings::receive) connects them with rings.
    ///
    /// # Errors
    /// Those of [`Map::hash`].
    pub fn outputs(name: &str) -> Result<Self, Error> {
        let kernel_name = object_name("BPF map", name)?;
        let cpus = cpus::possible()?.last().map_or(1, |last| last + 1);
        let made = with_memory(|| bpf::Map::new(MapType::PerfEventArray, kernel_name, (4, 4), cpus));
        let map = made.map_err(|error| limits::bpf_error(&format!("the BPF map {name} of {cpus} outputs"), error))?;
        Ok(Self { name: name.to_owned(), map: Arc::new(map) })
    }

    /// Copies the value of a key to `value`. Returns whether the key exists; if not, `value` is unchanged.
    ///
    /// # Errors
    /// [`Error::Io`]: a wrong size, or missing permission. Before Linux 5.19 this needs the same privileges as creating
    /// the map.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> Result<bool, Error> {
        self.found("looking a key up", self.map.lookup(key, value))
    }

    /// Sets the value of a key, whether the key exists or not.
    ///
    /// # Errors
    /// Those of [`Map::lookup`]; of kind [`Limit`](crate::Kind::Limit) if the map is full.
    pub fn update(&self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.map.update(key, value).map_err(|source| self.failed("setting a key", source))
    }

    /// Removes a key. Returns whether it existed.
    ///
    /// # Errors
    /// Those of [`Map::lookup`].
    pub fn delete(&self, key: &[u8]) -> Result<bool, Error> {
        self.found("removing a key", self.map.delete(key))
    }

    /// Its number in a program that is being loaded.
    pub(super) fn descriptor(&self) -> i32 {
        self.map.descriptor()
    }

    fn found(&self, what: &str, answer: io::Result<()>) -> Result<bool, Error> {
        match answer {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(self.failed(what, error)),
        }
    }

    fn failed(&self, what: &str, source: io::Error) -> Error {
        Error::io(format!("{what} in the BPF map {}", self.name), source)
    }
}

/// Calls `make`. If the limit on locked memory may have prevented it, raises the limit and tries once more.
pub(super) fn with_memory<T>(mut make: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match make() {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && limits::raise_memory() => make(),
        made_or_not => made_or_not,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn sizes_are_checked_before_the_kernel_is_asked() {
        for (key, value, entries) in [(0, 8, 1), (513, 8, 1), (8, 0, 1), (8, 8, 0)] {
            assert!(matches!(Map::hash("m", key, value, entries), Err(Error::Io { .. })), "{key} {value} {entries}");
        }
        assert_eq!(Map::hash("a map", 8, 8, 1).unwrap_err().kind(), Kind::Declaration);
    }
}
