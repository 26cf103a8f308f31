//! Layouts in files. Each is valid for one kernel.

use crate::{Error, Layout};
use nix::sys::utsname::uname;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The format version that is written and read.
const VERSION: u32 = 1;

/// Identifies a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelIdentity {
    /// The release, as from `uname -r`.
    pub release: String,
    /// The kernel's processor architecture, as from `uname -m`, such as `x86_64`.
    pub machine: String,
    /// The build id of vmlinux in hexadecimal, from `/sys/kernel/notes`; empty if the kernel has none.
    pub build_id: String,
}

impl fmt::Display for KernelIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {} {}", self.release, self.machine)?;
        if self.build_id.is_empty() { Ok(()) } else { write!(f, " build {}", self.build_id) }
    }
}

impl KernelIdentity {
    /// The running kernel.
    ///
    /// # Errors
    ///
    /// [`Error::Identity`] if `/proc` is not mounted or `uname(2)` fails.
    pub fn running() -> Result<Self, Error> {
        let failed = |what| move |source| Error::Identity { what, source };
        // `uname(2)` gives another release to a process with the personality `UNAME26`.
        let release = fs::read_to_string("/proc/sys/kernel/osrelease");
        let release = release.map_err(failed("reading /proc/sys/kernel/osrelease"))?.trim_end().to_owned();
        let names = uname().map_err(io::Error::from).map_err(failed("uname(2)"))?;
        let notes = fs::read("/sys/kernel/notes").unwrap_or_default();
        Ok(Self {
            release,
            machine: names.machine().to_string_lossy().into_owned(),
            build_id: build_id(&notes).unwrap_or_default(),
        })
    }
}

/// The GNU build id in ELF notes, in hexadecimal.
fn build_id(notes: &[u8]) -> Option<String> {
    const BUILD_ID: usize = 3;
    let mut rest = notes;
    while let Some((head, after)) = rest.split_first_chunk::<12>() {
        let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four bytes")) as usize;
        let (name, desc, kind) = (word(0), word(4), word(8));
        let padded = |length: usize| length.checked_next_multiple_of(4);
        let (name_end, desc_end) = (padded(name)?, padded(name)?.checked_add(padded(desc)?)?);
        if kind == BUILD_ID && after.get(..name)? == b"GNU\0" {
            let bytes = after.get(name_end..name_end.checked_add(desc)?)?;
            return Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        rest = after.get(desc_end..)?;
    }
    None
}

/// A layout and the kernel that it is valid for. It is what is saved, and what `socktrail layout --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLayout {
    /// The version of the format.
    version: u32,
    /// The kernel that the layout is valid for.
    pub kernel: KernelIdentity,
    /// The layout.
    #[serde(flatten)]
    pub layout: Layout,
}

impl SavedLayout {
    /// A layout of the running kernel.
    ///
    /// # Errors
    ///
    /// As for [`KernelIdentity::running`].
    pub fn of_running(layout: Layout) -> Result<Self, Error> {
        Ok(Self { version: VERSION, kernel: KernelIdentity::running()?, layout })
    }

    /// Reads a saved layout of any kernel.
    ///
    /// # Errors
    ///
    /// [`Error::SavedIo`], and [`Error::BadSaved`] if it is not a saved layout or has another version.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::SavedIo { what: "reading", path: path.to_owned(), source };
        Self::parse(path, &fs::read_to_string(path).map_err(failed)?)
    }

    /// Like [`SavedLayout::read`], for a file that the user did not name. It refuses a file that other users can write or
    /// replace, because a layout decides which kernel memory probes read.
    pub(crate) fn read_trusted(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::SavedIo { what: "reading", path: path.to_owned(), source };
        let untrusted =
            |writable: &Path| Error::UntrustedSaved { path: path.to_owned(), writable: writable.to_owned() };
        // The folder that counts is the one that holds the file, not one that holds a link to it.
        let resolved = path.canonicalize().map_err(failed)?;
        let folder = folder_of(&resolved);
        if !is_guarded(&fs::metadata(folder).map_err(failed)?) {
            return Err(untrusted(folder));
        }
        let mut file = File::open(&resolved).map_err(failed)?;
        if !is_guarded(&file.metadata().map_err(failed)?) {
            return Err(untrusted(&resolved));
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let bad = |problem: String| Error::BadSaved { path: path.to_owned(), problem };
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
        if version != VERSION {
            return Err(bad(format!("its version is {version}, not {VERSION}")));
        }
        serde_json::from_str(text).map_err(|error| bad(error.to_string()))
    }

    /// Writes the layout to a file, which it replaces atomically. A crash leaves the old file or the new one, never a
    /// part of one.
    ///
    /// # Errors
    ///
    /// [`Error::SavedIo`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::SavedIo { what: "writing", path: path.to_owned(), source };
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(io::Error::other(error)))? + "\n";
        let temporary = temporary_path(path, WRITES.fetch_add(1, Ordering::Relaxed));
        let file = create_or_replace(&temporary).map_err(failed)?;
        write_and_rename(file, text.as_bytes(), &temporary, path).map_err(|source| {
            // Do not leave a partly written file behind.
            let _ = fs::remove_file(&temporary);
            failed(source)
        })?;
        // The file is complete already. Only a crash in the next seconds could bring the old one back, so it is not an
        // error if this folder cannot be opened, or cannot be synced, as on some file systems.
        let _ = File::open(folder_of(path)).and_then(|folder| folder.sync_all());
        Ok(())
    }

    /// The layout, if it is of the running kernel.
    ///
    /// # Errors
    ///
    /// [`Error::OtherKernel`] if it is of another kernel. `path` is where it was read from.
    pub fn of_this_kernel(self, path: &Path) -> Result<Layout, Error> {
        let running = KernelIdentity::running()?;
        if self.kernel == running {
            return Ok(self.layout.loaded_from_file());
        }
        Err(Error::OtherKernel { path: path.to_owned(), saved: Box::new(self.kernel), running: Box::new(running) })
    }
}

/// How many files this process has written.
static WRITES: AtomicU32 = AtomicU32::new(0);

/// The path of the temporary file for a write. No other write of a running process in this pid namespace has it.
fn temporary_path(path: &Path, number: u32) -> PathBuf {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}-{number}", std::process::id()));
    temporary.into()
}

/// Creates a file in place of one that an earlier process with the same pid may have left. Does not follow a symbolic
/// link that another user may have put there.
fn create_or_replace(path: &Path) -> io::Result<File> {
    let create = || OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
    match create() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            create()
        }
        result => result,
    }
}

/// Gives a file its content and its final name. The content is on disk before the name is.
fn write_and_rename(mut file: File, content: &[u8], temporary: &Path, path: &Path) -> io::Result<()> {
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(temporary, path)
}

/// The folder that holds a file.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether only root and this process's user can write to a file or folder.
fn is_guarded(found: &Metadata) -> bool {
    [0, geteuid().as_raw()].contains(&found.uid()) && found.mode() & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ValueOrigin;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::fs::symlink;

    fn file(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("socktrail-guess-{}-{name}", std::process::id()))
    }

    /// A new folder that only this user can write to.
    fn folder(name: &str) -> PathBuf {
        let path = file(name);
        fs::create_dir(&path).unwrap();
        set_mode(&path, 0o755);
        path
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn sample() -> SavedLayout {
        let mut layout = Layout::new();
        layout.set("socket.sk", 24, ValueOrigin::Guess, std::time::Duration::ZERO);
        SavedLayout::of_running(layout).unwrap()
    }

    #[test]
    fn a_saved_layout_is_read_back_on_the_same_kernel() {
        let path = file("same");
        sample().write(&path).unwrap();
        let layout = SavedLayout::read(&path).unwrap().of_this_kernel(&path);
        fs::remove_file(&path).unwrap();
        let layout = layout.unwrap();
        assert!(layout.diff(&sample().layout).is_empty());
        assert_eq!(layout.field("socket.sk").unwrap().source, ValueOrigin::File);
    }

    #[test]
    fn a_file_that_other_users_can_write_is_not_trusted() {
        let folder = folder("writable");
        let path = folder.join("layout");
        sample().write(&path).unwrap();
        let with_mode = |mode| {
            set_mode(&path, mode);
            SavedLayout::read_trusted(&path)
        };
        let own = with_mode(0o644);
        let (group, others) = (with_mode(0o664), with_mode(0o646));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(own.unwrap(), sample());
        for error in [group.unwrap_err(), others.unwrap_err()] {
            assert!(
                matches!(&error, Error::UntrustedSaved { writable, .. } if writable.ends_with("layout")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_that_other_users_can_replace_is_not_trusted() {
        let folder = folder("replaceable");
        let (inner, path, link) = (folder.join("inner"), folder.join("inner/layout"), folder.join("link"));
        fs::create_dir(&inner).unwrap();
        sample().write(&path).unwrap();
        symlink(&path, &link).unwrap();
        let read = |mode| {
            set_mode(&inner, mode);
            [&path, &link].map(|path| SavedLayout::read_trusted(path))
        };
        let own = read(0o755);
        let others = [0o775, 0o757, 0o1777].map(read);
        fs::remove_dir_all(&folder).unwrap();
        own.into_iter().for_each(|result| assert_eq!(result.unwrap(), sample()));
        for error in others.into_iter().flatten().map(Result::unwrap_err) {
            assert!(matches!(&error, Error::UntrustedSaved { writable, .. } if writable.ends_with("inner")), "{error}");
        }
    }

    #[test]
    fn the_machine_is_that_of_the_kernel() {
        let uname = std::process::Command::new("uname").arg("-m").output().unwrap();
        let machine = String::from_utf8(uname.stdout).unwrap();
        assert_eq!(KernelIdentity::running().unwrap().machine, machine.trim_end());
    }

    #[test]
    fn a_temporary_file_of_an_earlier_process_is_replaced() {
        let folder = folder("leftover");
        let (path, other) = (folder.join("layout"), folder.join("other"));
        fs::write(&other, "other").unwrap();
        for leave in
            [|_: &Path, path: &Path| fs::write(path, "partly wr"), |other: &Path, path: &Path| symlink(other, path)]
        {
            let temporary = temporary_path(&path, 7);
            leave(&other, &temporary).unwrap();
            let file = create_or_replace(&temporary).unwrap();
            write_and_rename(file, b"whole", &temporary, &path).unwrap();
            assert_eq!((fs::read(&path).unwrap(), fs::read(&other).unwrap()), (b"whole".to_vec(), b"other".to_vec()));
        }
        // Whatever number the next write has, there is a file with it already.
        (0..100).for_each(|number| fs::write(temporary_path(&path, number), "").unwrap());
        let (first, second) = (sample().write(&path), sample().write(&path));
        let read = SavedLayout::read(&path);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!((first.is_ok(), second.is_ok(), read.unwrap()), (true, true, sample()));
    }

    #[test]
    fn a_file_in_the_working_directory_has_a_folder() {
        let folders = ["layout", "./layout", "/layout", "/var/layout"].map(|path| folder_of(Path::new(path)));
        assert_eq!(folders, [".", ".", "/", "/var"].map(Path::new));
    }

    #[test]
    fn a_layout_of_another_kernel_is_refused() {
        let mut saved = sample();
        saved.kernel.build_id = "abcd".to_owned();
        let error = saved.of_this_kernel(Path::new("/x")).unwrap_err();
        assert!(error.to_string().contains("build abcd, but Linux"), "{error}");
    }

    #[test]
    fn files_of_other_formats_are_refused() {
        let path = file("bad");
        for (text, problem) in [
            ("{}", "missing field `version`"),
            ("[", "EOF"),
            (r#"{"version":99,"more":1}"#, "its version is 99, not 1"),
            (r#"{"version":1}"#, "missing field `kernel`"),
        ] {
            fs::write(&path, text).unwrap();
            let error = SavedLayout::read(&path).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(SavedLayout::read(&path), Err(Error::SavedIo { .. })));
    }

    #[test]
    fn a_failed_write_is_an_error() {
        let path = file("absent").join("layout");
        assert!(matches!(sample().write(&path), Err(Error::SavedIo { what: "writing", .. })));
    }

    #[test]
    fn the_build_id_is_found_among_notes() {
        let note = |name: &[u8], kind: u32, text: &[u8]| {
            let mut note = [name.len() as u32, text.len() as u32, kind].map(u32::to_ne_bytes).concat();
            note.extend(name);
            note.resize(note.len().next_multiple_of(4), 0);
            note.extend(text);
            note.resize(note.len().next_multiple_of(4), 0);
            note
        };
        let notes = [note(b"Xen\0", 3, &[1]), note(b"GNU\0", 1, &[2; 5]), note(b"GNU\0", 3, &[0xab, 0x0c])].concat();
        assert_eq!(build_id(&notes).as_deref(), Some("ab0c"));
        for length in 0..notes.len() - 4 {
            assert_eq!(build_id(&notes[..length]), None, "truncated to {length}");
        }
        assert_eq!(build_id(&[0xff; 64]), None);
    }
}
