//! Finds and mounts tracefs, and reads the features of its probes.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;

use crate::probe::check_name;
use crate::sys::files::{self, FileSystem};
use crate::sys::privileges;
use crate::{Error, Format, FormatField, WordSize};

/// A mounted tracefs.
///
/// If we have to mount it ourselves, the mount is attached nowhere; before Linux 5.2 it is attached and at once
/// detached. An open directory keeps it alive, so nothing is left of it when this process ends, even after a crash.
#[derive(Debug)]
pub struct Tracefs {
    /// Its mount point. If only this process has it mounted, the usual one.
    root: PathBuf,
    /// The path by which its files are opened.
    access: PathBuf,
    features: OnceLock<Features>,
    /// Keeps a detached mount alive, and keeps other processes from unmounting it.
    pin: File,
}

/// The features of this kernel's probes, read from the `README` of tracefs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// Arrays (`x64[8]`), since Linux 4.20. Without them each value is fetched separately.
    pub arrays: bool,
    /// A syntax of its own for user memory (`+u0(…)`), since Linux 5.3. Without it `+u0(…)` is written as `+0(…)`.
    pub user_memory: bool,
    /// `$argN`, since Linux 4.20.
    pub arguments: bool,
    /// `r16:`, the number of calls in progress that a kretprobe follows, since Linux 4.12.
    pub maxactive: bool,
    /// `$comm`, the name of the running thread, since Linux 4.8.
    pub comm: bool,
    /// Constants (`\1`), since Linux 5.4.
    pub constants: bool,
    /// Strings in place of arrays: a [`StringWindow`](crate::StringWindow) may be fetched as a `string`. Not where
    /// `kernel.panic_on_warn` is set, because the kernel warns if strings are too long for perf.
    pub strings: bool,
    /// The kernel's word size, which may differ from this program's.
    pub word: WordSize,
}

impl Features {
    /// Parses the texts of `README` and `events/header_page`.
    pub(crate) fn parse(readme: &str, header_page: &str, panics_on_warning: bool) -> Self {
        Self {
            arrays: readme.contains("\\[<array-size>\\]"),
            user_memory: readme.contains("ustring"),
            arguments: readme.contains("$arg<N>"),
            maxactive: readme.contains("r[maxactive]"),
            comm: readme.contains("$comm"),
            constants: readme.contains("\\imm-value"),
            strings: !panics_on_warning,
            word: word_size(header_page).unwrap_or(WordSize::OURS),
        }
    }
}

/// The word size: the size of `commit`, a `local_t`, in the page header of the kernel's own rings.
fn word_size(header_page: &str) -> Option<WordSize> {
    let mut fields = header_page.lines().filter_map(|line| FormatField::parse(line.trim_ascii()).ok());
    match fields.find(|field| field.name == "commit")?.size {
        4 => Some(WordSize::Four),
        8 => Some(WordSize::Eight),
        _ => None,
    }
}

impl Tracefs {
    /// Finds tracefs at `/sys/kernel/tracing` or `/sys/kernel/debug/tracing`. If neither is mounted, it mounts tracefs
    /// (debugfs on kernels before 4.1) for this process alone.
    ///
    /// # Errors
    /// [`Error::NoTracefs`] if the kernel has none, [`Error::Permission`] if we may not use it.
    pub fn find() -> Result<Self, Error> {
        const TRACEFS: &str = "/sys/kernel/tracing";
        const DEBUGFS: &str = "/sys/kernel/debug";
        const WITHIN_DEBUGFS: &str = "/sys/kernel/debug/tracing";
        for path in [TRACEFS, WITHIN_DEBUGFS] {
            match Self::at(Path::new(path)) {
                Err(Error::NotTracefs { .. }) => {}
                found_or_forbidden => return found_or_forbidden,
            }
        }
        // Errors are ignored: they would name one of our descriptors, which does not help a user.
        if let Ok(mount) = files::detached("tracefs")
            && let Ok(mut tracefs) = Self::at(&files::by_descriptor(&mount))
        {
            tracefs.root = TRACEFS.into();
            tracefs.access = files::by_descriptor(&tracefs.pin);
            return Ok(tracefs);
        }
        match files::mount("tracefs", Path::new(TRACEFS)) {
            Ok(()) => return Self::detach_mounted(TRACEFS, TRACEFS),
            Err(error) if forbids(&error) => return Err(forbidden("mounting tracefs", error)),
            Err(_) => {}
        }
        match files::mount("debugfs", Path::new(DEBUGFS)) {
            Ok(()) => Self::detach_mounted(DEBUGFS, WITHIN_DEBUGFS),
            Err(error) if forbids(&error) => Err(forbidden("mounting debugfs", error)),
            Err(source) => Err(Error::NoTracefs { source }),
        }
    }

    /// Uses the tracefs at `path`; mounts nothing.
    ///
    /// # Errors
    /// [`Error::NotTracefs`] if the path does not exist or is something else, [`Error::Permission`].
    pub fn at(path: &Path) -> Result<Self, Error> {
        let not = |problem: &str| Error::NotTracefs { path: path.to_owned(), problem: problem.to_owned() };
        let unreadable = |error: io::Error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => not(&error.to_string()),
            _ if forbids(&error) => forbidden(&format!("reading {}", path.display()), error),
            _ => Error::io(format!("reading {}", path.display()), error),
        };
        let pin = File::open(path).map_err(unreadable)?;
        match files::file_system(path).map_err(unreadable)? {
            FileSystem::Tracefs => {}
            FileSystem::Debugfs if path.join("tracing").exists() => {
                return Err(not("it is debugfs, and tracefs is its directory tracing"));
            }
            FileSystem::Debugfs => {}
            FileSystem::Other => return Err(not("another file system is there")),
        }
        if fs::read_dir(path).map_err(unreadable)?.next().is_none() {
            // A kernel in lockdown mode `confidentiality` shows it like this, even to root.
            return Err(forbidden(&format!("tracefs at {}, which is empty", path.display()), Errno::EPERM.into()));
        }
        // An instance, or any other directory within tracefs, lacks one of these files.
        if !path.join("events").is_dir() || !path.join("README").exists() {
            return Err(not("it has no events or no README"));
        }
        Ok(Self { root: path.to_owned(), access: path.to_owned(), features: OnceLock::new(), pin })
    }

    /// Opens the tracefs at `root`, which was just mounted, and detaches the mount.
    fn detach_mounted(mount_point: &str, root: &str) -> Result<Self, Error> {
        let found = Self::at(Path::new(root));
        let mount_point = Path::new(mount_point);
        let unmounted = files::unmount(mount_point);
        let mut tracefs = found?;
        unmounted.map_err(|source| Error::io(format!("unmounting {}", mount_point.display()), source))?;
        tracefs.access = files::by_descriptor(&tracefs.pin);
        Ok(tracefs)
    }

    /// Its mount point, for messages. If only this process has it mounted, the usual one. To open its files, use
    /// [`Tracefs::path`].
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path by which this process can open one of its files, for instance `kprobe_events`.
    pub fn path(&self, file: &str) -> PathBuf {
        self.access.join(file)
    }

    /// Whether this kernel has kprobe events.
    pub fn has_kprobes(&self) -> bool {
        self.path("kprobe_events").exists()
    }

    /// Pretends that the kernel is older and lacks these features, given by the names of the fields of [`Features`].
    /// Other names are ignored.
    #[must_use]
    pub fn without(self, names: &[impl AsRef<str>]) -> Self {
        let mut features = self.features();
        for name in names {
            match name.as_ref() {
                "arrays" => features.arrays = false,
                "user_memory" => features.user_memory = false,
                "arguments" => features.arguments = false,
                "maxactive" => features.maxactive = false,
                "comm" => features.comm = false,
                "constants" => features.constants = false,
                "strings" => features.strings = false,
                _ => {}
            }
        }
        Self { features: OnceLock::from(features), ..self }
    }

    /// The features of its probes. They are read once.
    pub fn features(&self) -> Features {
        let text = |file| fs::read_to_string(self.path(file)).unwrap_or_default();
        let panics = || fs::read_to_string("/proc/sys/kernel/panic_on_warn").is_ok_and(|setting| setting.trim() != "0");
        *self.features.get_or_init(|| Features::parse(&text("README"), &text("events/header_page"), panics()))
    }

    /// The format of an event, for instance of a static tracepoint.
    ///
    /// # Errors
    /// [`Error::Refused`] of kind [`NoFunction`](crate::Kind::NoFunction) if the event does not exist;
    /// [`Error::Format`] if its format cannot be parsed.
    pub fn format(&self, category: &str, name: &str) -> Result<Format, Error> {
        check_name("an event category", category, 63)?;
        check_name("an event", name, 63)?;
        let file = format!("events/{category}/{name}/format");
        let path = self.root.join(&file);
        let text = fs::read(self.path(&file)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Refused {
                probe: name.to_owned(),
                target: format!("tracepoint {category}:{name}"),
                message: "this kernel has no such event".to_owned(),
                source,
            },
            io::ErrorKind::PermissionDenied => forbidden(&format!("reading {}", path.display()), source),
            _ => Error::io(format!("reading {}", path.display()), source),
        })?;
        Format::parse(&text)
    }

    /// Returns those of `functions` that are in `available_filter_functions`. Probes on these are fast. For the others,
    /// the probe is slower, or the kernel has no such function. The file has about 50,000 names and is read at each
    /// call, so ask for all functions at once.
    ///
    /// # Errors
    /// [`Error::Io`]: the kernel has no function tracer, or the file cannot be read.
    pub fn traceable<'a>(&self, functions: &[&'a str]) -> Result<HashSet<&'a str>, Error> {
        let file = "available_filter_functions";
        let path = self.root.join(file);
        let failed = |source| Error::io(format!("reading {}", path.display()), source);
        let wanted: HashSet<&'a str> = functions.iter().copied().collect();
        let mut found = HashSet::new();
        let mut lines = BufReader::with_capacity(1 << 16, File::open(self.path(file)).map_err(failed)?);
        let mut line = Vec::new();
        while found.len() < wanted.len() && lines.read_until(b'\n', &mut line).map_err(failed)? > 0 {
            // `name`, or `name [module]`.
            let name = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
            if let Some(known) = std::str::from_utf8(name).ok().and_then(|name| wanted.get(name)) {
                found.insert(*known);
            }
            line.clear();
        }
        Ok(found)
    }
}

/// Whether an error means that access is forbidden, rather than that the file is missing.
pub(crate) fn forbids(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

/// An [`Error::Permission`] about tracefs.
pub(crate) fn forbidden(what: &str, source: io::Error) -> Error {
    Error::Permission { what: what.to_owned(), remedy: privileges::remedy("CAP_SYS_ADMIN"), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_of_6_1() {
        let readme = "\t   Format: p[:[<group>/][<event>]] <place> [<args>]\n\
            \t           r[maxactive][:[<group>/][<event>]] <place> [<args>]\n\
            \t           $stack<index>, $stack, $retval, $comm, $arg<N>,\n\
            \t           +|-[u]<offset>(<fetcharg>), \\imm-value, \\\"imm-string\"\n\
            \t           b<bit-width>@<bit-offset>/<container-size>, ustring,\n\
            \t           symstr, <type>\\[<array-size>\\]\n";
        let all = Features {
            arrays: true,
            user_memory: true,
            arguments: true,
            maxactive: true,
            comm: true,
            constants: true,
            strings: true,
            word: WordSize::Eight,
        };
        assert_eq!(Features::parse(readme, &header_page(8), false), all);
        let none = Features::parse("r[:[<group>/]<event>] <place>", &header_page(8), true);
        assert_eq!(none, Features::default());
    }

    /// As Linux 6.1 writes it.
    fn header_page(word: u8) -> String {
        format!(
            "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n\
             \tfield: local_t commit;\toffset:8;\tsize:{word};\tsigned:1;\n\
             \tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n\
             \tfield: char data;\toffset:16;\tsize:4080;\tsigned:0;\n"
        )
    }

    #[test]
    fn word_sizes_are_the_kernels() {
        for (bytes, word) in [(4, WordSize::Four), (8, WordSize::Eight), (2, WordSize::OURS)] {
            assert_eq!(Features::parse("", &header_page(bytes), false).word, word);
        }
        assert_eq!(Features::parse("", "", false).word, WordSize::OURS);
    }

    #[test]
    fn other_directories_are_not_tracefs() {
        for (path, problem) in [("/proc", "another file system"), ("/no/such/place", "No such file")] {
            match Tracefs::at(Path::new(path)) {
                Err(Error::NotTracefs { problem: said, .. }) => assert!(said.contains(problem), "{said}"),
                other => panic!("{path}: {other:?}"),
            }
        }
    }
}
