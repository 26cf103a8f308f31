//! Layouts in files, bound to the kernel that they are of.

use crate::{Error, Layout};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The form of saved layouts that this version writes and reads.
const VERSION: u32 = 1;

/// Which kernel a layout is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelIdentity {
    /// As `uname -r` tells it.
    pub release: String,
    /// As `uname -m` tells it.
    pub machine: String,
    /// The build id of vmlinux in hexadecimal, from `/sys/kernel/notes`; empty when the kernel has none.
    pub build_id: String,
}

impl fmt::Display for KernelIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {} {}", self.release, self.machine)?;
        if self.build_id.is_empty() { Ok(()) } else { write!(f, " build {}", self.build_id) }
    }
}

impl KernelIdentity {
    /// The kernel that runs here.
    ///
    /// # Errors
    ///
    /// When `/proc` is not mounted.
    pub fn running() -> Result<Self, Error> {
        let read = |path: &str| {
            let failed = |source| Error::Identity { path: path.into(), source };
            fs::read_to_string(path).map(|text| text.trim_end().to_owned()).map_err(failed)
        };
        let notes = fs::read("/sys/kernel/notes").unwrap_or_default();
        Ok(Self {
            release: read("/proc/sys/kernel/osrelease")?,
            // A 32-bit program may see another machine than this, but then the structures are the same.
            machine: std::env::consts::ARCH.to_owned(),
            build_id: build_id(&notes).unwrap_or_default(),
        })
    }
}

/// The GNU build id among ELF notes, in hexadecimal.
fn build_id(notes: &[u8]) -> Option<String> {
    const BUILD_ID: usize = 3;
    let mut rest = notes;
    while let Some((head, after)) = rest.split_first_chunk::<12>() {
        let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four bytes")) as usize;
        let (name, text, kind) = (word(0), word(4), word(8));
        let padded = |length: usize| length.checked_next_multiple_of(4);
        let (name_end, text_end) = (padded(name)?, padded(name)?.checked_add(padded(text)?)?);
        if kind == BUILD_ID && after.get(..name)? == b"GNU\0" {
            let bytes = after.get(name_end..name_end.checked_add(text)?)?;
            return Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        rest = after.get(text_end..)?;
    }
    None
}

/// A layout with the kernel that it is of: what is saved, and what `socktrail layout --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLayout {
    /// The form of the file.
    version: u32,
    /// The kernel that it is of.
    pub kernel: KernelIdentity,
    /// The layout.
    #[serde(flatten)]
    pub layout: Layout,
}

impl SavedLayout {
    /// A layout of the kernel that runs here.
    ///
    /// # Errors
    ///
    /// As [`KernelIdentity::running`].
    pub fn of_running(layout: Layout) -> Result<Self, Error> {
        Ok(Self { version: VERSION, kernel: KernelIdentity::running()?, layout })
    }

    /// Reads a saved layout, of whatever kernel.
    ///
    /// # Errors
    ///
    /// [`Error::SavedIo`], and [`Error::BadSaved`] when it is no saved layout, or one of another version.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::SavedIo { what: "reading", path: path.to_owned(), source };
        Self::parse(path, &fs::read_to_string(path).map_err(failed)?)
    }

    /// As [`SavedLayout::read`], of a file that nobody named: what somebody else could have written there is refused,
    /// for the kernel's memory is read where it says.
    pub(crate) fn read_trusted(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::SavedIo { what: "reading", path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !(metadata.is_file() && [0, geteuid().as_raw()].contains(&metadata.uid()) && metadata.mode() & 0o022 == 0) {
            let problem = "others than root can write it".to_owned();
            return Err(Error::BadSaved { path: path.to_owned(), problem });
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

    /// Writes it, in place of what is there: either wholly or not at all.
    ///
    /// # Errors
    ///
    /// [`Error::SavedIo`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::SavedIo { what: "writing", path: path.to_owned(), source };
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(io::Error::other(error)))?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        // Whatever is there under this name, a link of somebody's to somewhere else, is not written through.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&beside).map_err(failed)?;
        let written = file.write_all((text + "\n").as_bytes()).and_then(|()| fs::rename(&beside, path));
        written.map_err(|source| {
            // The half-written file is of no use to anyone.
            let _ = fs::remove_file(&beside);
            failed(source)
        })
    }

    /// Refuses a layout that is not of the kernel that runs here.
    ///
    /// # Errors
    ///
    /// [`Error::OtherKernel`]; `path` is where it came from.
    pub fn of_this_kernel(self, path: &Path) -> Result<Layout, Error> {
        let running = KernelIdentity::running()?;
        if self.kernel == running {
            return Ok(self.layout.saved());
        }
        Err(Error::OtherKernel { path: path.to_owned(), saved: Box::new(self.kernel), running: Box::new(running) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Origin;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    fn file(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("socktrail-guess-{}-{name}", std::process::id()))
    }

    fn sample() -> SavedLayout {
        let mut layout = Layout::new();
        layout.set("socket.sk", 24, Origin::Guess, std::time::Duration::ZERO);
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
        assert_eq!(layout.field("socket.sk").unwrap().source, Origin::File);
    }

    #[test]
    fn a_file_that_others_can_write_is_not_trusted() {
        let path = file("writable");
        sample().write(&path).unwrap();
        let with_mode = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            SavedLayout::read_trusted(&path)
        };
        let own = with_mode(0o644);
        let (group, everybody) = (with_mode(0o664), with_mode(0o646));
        fs::remove_file(&path).unwrap();
        assert_eq!(own.unwrap(), sample());
        for error in [group.unwrap_err(), everybody.unwrap_err()] {
            assert!(error.to_string().contains("others than root can write it"), "{error}");
        }
    }

    #[test]
    fn a_layout_of_another_kernel_is_refused() {
        let mut saved = sample();
        saved.kernel.build_id = "abcd".to_owned();
        let error = saved.of_this_kernel(Path::new("/x")).unwrap_err();
        assert!(error.to_string().contains("build abcd, but Linux"), "{error}");
    }

    #[test]
    fn what_is_no_saved_layout_is_refused() {
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
    fn nothing_half_written_stays() {
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
            assert_eq!(build_id(&notes[..length]), None, "cut at {length}");
        }
        assert_eq!(build_id(&[0xff; 64]), None);
    }
}
