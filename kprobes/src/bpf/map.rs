//! Maps that programs and user space share.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::program::object_name;
use crate::sys::bpf::{self, MapType};
use crate::sys::limits;
use crate::sys::shared_memory::SharedMemory;
use crate::{Error, cpus};

/// The flags of [`Helper::Output`](super::Helper::Output): the CPU that the program runs on (`BPF_F_CURRENT_CPU`). They
/// need a [64-bit load](super::Assembler::load64), because a 32-bit number would be sign-extended.
pub const CURRENT_CPU: u64 = 0xffff_ffff;

/// A map in the kernel: an array whose elements are numbered from 0. Values are bytes in the machine's byte order.
///
/// Its memory is allocated when it is created, so that a program never has to allocate. The map is freed with its last
/// user: this handle and its clones, or the last program that uses it.
#[derive(Clone, Debug)]
pub struct Map {
    name: String,
    map: Arc<bpf::Map>,
}

/// A [`Map`] of values that programs change and user space reads.
///
/// Its memory is shared, so reading it takes no system call and no privileges. Nor does it keep programs from running,
/// unlike `bpf(2)`: while a CPU executes that call for a map, the kernel runs no program on it.
#[derive(Clone, Debug)]
pub struct Array {
    map: Map,
    memory: Arc<SharedMemory>,
    /// The size of a value in words of 8 bytes.
    words: usize,
}

impl Array {
    /// Creates an array of `entries` values of `value_size` bytes, a multiple of 8. All bytes are 0. The name has at most 15
    /// letters, digits and underscores; `bpftool map` shows it.
    ///
    /// # Errors
    /// [`Error::NoBpf`], [`Error::Permission`]; [`Error::Limit`] before Linux 5.11, if `RLIMIT_MEMLOCK` cannot be
    /// raised; [`Error::Io`] before Linux 5.5, which does not share such memory, and, of kind
    /// [`Limit`](crate::Kind::Limit), if there is not enough memory; [`Error::BadName`].
    pub fn new(name: &str, value_size: u32, entries: u32) -> Result<Self, Error> {
        let kernel_name = object_name("a BPF map", name)?;
        let what = format!("the BPF map {name} of {entries} values of {value_size} bytes");
        let size = usize::try_from(u64::from(value_size) * u64::from(entries)).unwrap_or(0);
        if size == 0 || !value_size.is_multiple_of(8) {
            return Err(Error::io(what, io::ErrorKind::InvalidInput));
        }
        let made = with_memory(|| bpf::Map::new(MapType::Array, kernel_name, (4, value_size), entries));
        let map = made.map_err(|error| limits::bpf_error(&what, error))?;
        let memory = SharedMemory::new(map.descriptor(), size).map_err(|error| Error::io(&what, error))?;
        let map = Map { name: name.to_owned(), map: Arc::new(map) };
        Ok(Self { map, memory: Arc::new(memory), words: value_size as usize / 8 })
    }

    /// Copies the value at an index to `words`. Returns `false`, and copies nothing, if there is no such value or `words` does
    /// not have its size. Each 8 bytes are read as a whole, but a program may change some of them while others are read.
    pub fn read(&self, index: u32, words: &mut [u64]) -> bool {
        words.len() == self.words && self.memory.read(index as usize * self.words * 8, words)
    }
}

impl AsRef<Map> for Array {
    fn as_ref(&self) -> &Map {
        &self.map
    }
}

impl Map {
    /// Creates an array of outputs, one for each CPU, into which programs write records with
    /// [`Helper::Output`](super::Helper::Output). [`Rings::receive`](crate::Rings::receive) connects them with rings.
    ///
    /// # Errors
    /// Those of [`Array::new`].
    pub fn outputs(name: &str) -> Result<Self, Error> {
        let kernel_name = object_name("a BPF map", name)?;
        let cpus = cpus::possible()?.last().map_or(1, |last| last + 1);
        let made = with_memory(|| bpf::Map::new(MapType::PerfEventArray, kernel_name, (4, 4), cpus));
        let map = made.map_err(|error| limits::bpf_error(&format!("the BPF map {name} of {cpus} outputs"), error))?;
        Ok(Self { name: name.to_owned(), map: Arc::new(map) })
    }

    /// Creates a map with one value of `size` bytes on each CPU, a multiple of 8, in which a program builds what does not fit the
    /// stack.
    ///
    /// # Errors
    /// Those of [`Array::new`].
    pub fn scratch(name: &str, size: u32) -> Result<Self, Error> {
        let kernel_name = object_name("a BPF map", name)?;
        let made = with_memory(|| bpf::Map::new(MapType::PerCpuArray, kernel_name, (4, size), 1));
        let map = made.map_err(|error| limits::bpf_error(&format!("the BPF map {name} of {size} bytes"), error))?;
        Ok(Self { name: name.to_owned(), map: Arc::new(map) })
    }

    /// Sets the value of a key.
    pub(crate) fn update(&self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.map.update(key, value).map_err(|source| self.failed("setting a key", source))
    }

    /// Removes the value of a key.
    pub(crate) fn delete(&self, key: &[u8]) -> Result<(), Error> {
        self.map.delete(key).map_err(|source| self.failed("removing a key", source))
    }

    /// The descriptor by which a program refers to the map while it is loaded.
    pub(super) fn descriptor(&self) -> i32 {
        self.map.descriptor().as_raw_fd()
    }

    fn failed(&self, what: &str, source: io::Error) -> Error {
        Error::io(format!("{what} in the BPF map {}", self.name), source)
    }
}

/// Whether this thread may change the elements of maps, as [`Rings`](crate::Rings) with [outputs](Map::outputs) do when CPUs
/// come and go. Since Linux 5.19 every thread may; before that, if `kernel.unprivileged_bpf_disabled` is set, it takes
/// `CAP_BPF`.
pub fn may_change_maps() -> bool {
    bpf::may_change_maps()
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
        for (value, entries) in [(0, 1), (12, 1), (8, 0)] {
            assert!(matches!(Array::new("m", value, entries), Err(Error::Io { .. })), "{value} {entries}");
        }
        assert_eq!(Array::new("a map", 8, 1).unwrap_err().kind(), Kind::Declaration);
    }
}
