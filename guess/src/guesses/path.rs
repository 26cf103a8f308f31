//! The fields that lead from an open file to its path: directory entries and mounts.
//!
//! All of them are observed at `security_file_fcntl(file, cmd, arg)`, which `fcntl(2)` calls. The call used changes
//! nothing, and the function has had the same arguments since Linux 2.6. The files are those of `/proc`, and one that no
//! path leads to.

use super::nameless_file::{NamelessFile, RANDOM_AT, random_part};
use crate::engine::{Clues, Guess, Probe, Scene, Shot, WORD, Window, bytes_of, is_kernel_pointer};
use crate::sys::PausedChild;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The probe that all guesses here use.
fn fcntl_calls() -> Probe {
    Probe::on("security_file_fcntl").arguments(2)
}

/// The guess's own calls. Calls of `fcntl(2)` with other commands are left out.
fn own_calls(shots: &[Shot]) -> Vec<&Shot> {
    shots.iter().filter(|shot| shot.argument(2) as u32 == libc::F_GETFL as u32).collect()
}

/// How many bytes of a file each of the two attempts looks at.
const FILE: u32 = 16 * WORD;
/// Offsets in a directory entry where the pointer to its name may be. Together with a file's words they are as many as
/// one kprobe can fetch. Several kprobes would not do: what one of them read could be taken for what another could not
/// read.
const NAME: [u32; 7] = [3 * WORD, 4 * WORD, 5 * WORD, 6 * WORD, 7 * WORD, 8 * WORD, 9 * WORD];

/// The file has a random name. The word of the file that leads, through another pointer, to this name is its directory
/// entry.
#[derive(Debug)]
pub(super) struct Name;

impl Guess for Name {
    /// The file's name.
    type Sent = String;

    fn name(&self) -> &'static str {
        "name"
    }

    fn needs(&self) -> Vec<String> {
        Vec::new()
    }

    fn gives(&self) -> Vec<String> {
        ["file.dentry", "dentry.name"].map(str::to_owned).into()
    }

    fn attempts(&self) -> u32 {
        2
    }

    fn probes(&self, attempt: u32) -> Vec<Probe> {
        let words = attempt * FILE..(attempt + 1) * FILE;
        let through = |probe: Probe, name: u32| {
            probe.through(&view(name), "{arg1}", words.clone(), &[name.to_string().as_str(), RANDOM_AT])
        };
        vec![NAME.into_iter().fold(fcntl_calls(), through)]
    }

    fn trigger(&mut self, stage: &mut dyn Scene) -> io::Result<String> {
        let made = NamelessFile::new(b"", stage.random())?;
        call_fcntl(&made.file)?;
        Ok(made.name)
    }

    fn solve(&self, name: &String, shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        let [shot] = own_calls(shots)[..] else { return clues };
        let begins = |word: u64| random_part(name) == Some(&bytes_of(word));
        let found =
            |offset: u32| shot.view(&view(offset)).words().filter(|&(_, word)| begins(word)).map(|(file, _)| file);
        let files: Vec<u32> = NAME.into_iter().flat_map(found).collect();
        if !files.is_empty() {
            clues.allow("file.dentry", files);
            clues.allow("dentry.name", NAME.into_iter().filter(|&offset| found(offset).next().is_some()));
        }
        clues
    }
}

/// The name of the view for this offset of the name.
fn view(name: u32) -> String {
    format!("names at {name}")
}

/// How many bytes of a directory entry are looked at.
const ENTRY: u32 = 128;
/// How many bytes of a file are looked at for its mount.
const TO_MOUNT: u32 = 24 * WORD;
/// Offsets in a `struct vfsmount` where its root entry may be.
const ROOT: [u32; 3] = [0, WORD, 2 * WORD];

/// The entry of a process's directory in `/proc` has the entry of `/proc`, the root of the mount, as its parent. When
/// the process has ended, the kernel removes the entry from the hash table of names, and `d_hash.pprev` becomes null.
#[derive(Debug)]
pub(super) struct Entry;

impl Guess for Entry {
    type Sent = ();

    fn name(&self) -> &'static str {
        "entry"
    }

    fn needs(&self) -> Vec<String> {
        vec!["file.dentry".to_owned()]
    }

    fn gives(&self) -> Vec<String> {
        ["dentry.d_parent", "dentry.pprev", "file.mnt", "vfsmount.mnt_root"].map(str::to_owned).into()
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        let probe = fcntl_calls().field("own", "{arg1}", "file.dentry", 8);
        let probe = probe.words("entry", "+{file.dentry}({arg1})", 0..ENTRY);
        let through =
            |probe: Probe, root: u32| probe.through(&view(root), "{arg1}", 0..TO_MOUNT, &[root.to_string().as_str()]);
        vec![ROOT.into_iter().fold(probe, through)]
    }

    fn trigger(&mut self, _stage: &mut dyn Scene) -> io::Result<()> {
        let child = PausedChild::new(c"", &[], &[])?;
        call_fcntl(directory("/proc")?)?;
        let of_child = directory(&format!("/proc/{}", child.pid()))?;
        call_fcntl(&of_child)?;
        drop(child);
        call_fcntl(&of_child)
    }

    fn solve(&self, (): &(), shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        let [proc, alive, gone] = own_calls(shots)[..] else { return clues };
        let Some(root) = proc.view("own").word(0).filter(|&root| is_kernel_pointer(root)) else { return clues };
        let (entry, left) = (alive.view("entry"), gone.view("entry"));
        clues.allow("dentry.d_parent", entry.find_word(root));
        let leaves = |&(offset, word): &(u32, u64)| is_kernel_pointer(word) && left.word(offset) == Some(0);
        clues.allow("dentry.pprev", entry.words().filter(leaves).map(|(offset, _)| offset));
        let mounts = |offset: u32| alive.view(&view(offset)).find_word(root);
        clues.allow("file.mnt", ROOT.into_iter().flat_map(mounts));
        clues.allow("vfsmount.mnt_root", ROOT.into_iter().filter(|&offset| !mounts(offset).is_empty()));
        clues
    }
}

/// How many bytes before `struct vfsmount`, the part of a mount that files point to, are looked at for the rest of
/// `struct mount`.
const BEFORE: u32 = 128;
/// How many bytes of `struct vfsmount` are looked at.
const KNOWN: u32 = 24;

/// `/proc` is mounted on an entry of that name below `/`, in the mount of `/`. So a word before `/proc`'s `struct
/// vfsmount` points a little before that of `/`: to the beginning of its `struct mount`.
#[derive(Debug)]
pub(super) struct Mount;

impl Guess for Mount {
    type Sent = ();

    fn name(&self) -> &'static str {
        "mount"
    }

    fn needs(&self) -> Vec<String> {
        ["file.dentry", "file.mnt", "dentry.name", "dentry.d_parent"].map(str::to_owned).into()
    }

    fn gives(&self) -> Vec<String> {
        ["mount.mnt_root", "mount.mnt_parent", "mount.mnt_mountpoint"].map(str::to_owned).into()
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        const MOUNT: &str = "+{file.mnt}({arg1})";
        let probe = fcntl_calls().field("entry", "{arg1}", "file.dentry", 8).field("mount", "{arg1}", "file.mnt", 8);
        let probe = probe.words("known", MOUNT, 0..KNOWN).words("before", MOUNT, 0..BEFORE).before();
        let probe = probe.through("names", MOUNT, 0..BEFORE, &["{dentry.name}", "0"]).before();
        vec![probe.through("parents", MOUNT, 0..BEFORE, &["{dentry.d_parent}"]).before()]
    }

    fn trigger(&mut self, _stage: &mut dyn Scene) -> io::Result<()> {
        call_fcntl(directory("/")?)?;
        call_fcntl(directory("/proc")?)
    }

    fn solve(&self, (): &(), shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        let [above, proc] = own_calls(shots)[..] else { return clues };
        let pointer = |shot: &Shot, name: &str| shot.view(name).word(0).filter(|&word| is_kernel_pointer(word));
        let of_both = |name: &str| Some((pointer(above, name)?, pointer(proc, name)?));
        if let (Some((parent, _)), Some((directory, root))) = (of_both("mount"), of_both("entry")) {
            let mountpoints = mountpoints(proc, directory);
            find(proc.view("before"), parent, &mountpoints, &proc.view("known").find_word(root), &mut clues);
        }
        clues
    }
}

/// The offsets before a mount that hold a directory entry called `proc` in this directory.
fn mountpoints(proc: &Shot, directory: u64) -> Vec<u32> {
    let (names, parents) = (proc.view("names"), proc.view("parents"));
    let called = &b"proc\0"[..5.min(WORD as usize)];
    let is_called = |&(_, word): &(u32, u64)| bytes_of(word).starts_with(called);
    let is_in = |&(offset, _): &(u32, u64)| parents.word(offset) == Some(directory);
    names.words().filter(is_called).filter(is_in).map(|(offset, _)| offset).collect()
}

/// `before` are the bytes before a `struct vfsmount`; `parent` is the address of the `struct vfsmount` that it is
/// mounted in.
fn find(before: &Window, parent: u64, mountpoints: &[u32], roots: &[u32], clues: &mut Clues) {
    for (offset, word) in before.words() {
        // The distance from the beginning of `struct mount` to its `struct vfsmount`, and to the word.
        let known = parent.wrapping_sub(word);
        if known > u64::from(BEFORE) || !known.is_multiple_of(WORD.into()) {
            continue;
        }
        let from_start = |offset: u32| (known as u32 + offset).checked_sub(BEFORE);
        if let Some(at) = from_start(offset) {
            clues.allow("mount.mnt_parent", [at]);
            clues.allow("mount.mnt_mountpoint", mountpoints.iter().filter_map(|&offset| from_start(offset)));
            clues.allow("mount.mnt_root", roots.iter().map(|&offset| known as u32 + offset));
        }
    }
}

/// Makes the kernel call the probed function with a file.
fn call_fcntl(file: impl AsFd) -> io::Result<()> {
    fcntl(file, FcntlArg::F_GETFL)?;
    Ok(())
}

fn directory(path: &str) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0xffff_8880_1234_5600;

    fn shot(guess: &impl Guess) -> Shot {
        let mut shot = Shot::blank(&guess.probes(0)[0]);
        shot.pass(2, libc::F_GETFL as u64);
        shot
    }

    #[test]
    fn a_name_is_found_behind_two_pointers() {
        let mut shot = shot(&Name);
        shot.put(&view(40), 72, b"abcdefgh");
        shot.put(&view(48), 80, b"xyzwefgh");
        let clues = Name.solve(&"memfd:abcdefgh".to_owned(), &[shot]);
        assert_eq!((clues.of("file.dentry"), clues.of("dentry.name")), (vec![72], vec![40]));
    }

    #[test]
    fn an_entry_has_a_parent_and_leaves_the_hash_table() {
        let [mut proc, mut alive, mut gone] = [(); 3].map(|()| shot(&Entry));
        proc.put("own", 0, &AT.to_ne_bytes());
        for shot in [&mut alive, &mut gone] {
            shot.put("entry", 16, &(AT + 512).to_ne_bytes());
            shot.put("entry", 24, &AT.to_ne_bytes());
            shot.put("entry", 48, &(AT + 768).to_ne_bytes());
            shot.put(&view(0), 64, &AT.to_ne_bytes());
        }
        gone.put("entry", 16, &[0; 8]);
        let clues = Entry.solve(&(), &[proc, alive, gone]);
        let found = ["dentry.d_parent", "dentry.pprev", "file.mnt", "vfsmount.mnt_root"].map(|key| clues.of(key));
        assert_eq!(found, [[24], [16], [64], [0]]);
    }

    #[test]
    fn a_mount_is_mounted_in_another() {
        let [mut above, mut proc] = [(); 2].map(|()| shot(&Mount));
        // `struct vfsmount` is at 32 in `struct mount`, the parent at 16 and the mountpoint at 24.
        above.put("mount", 0, &(AT + 32).to_ne_bytes());
        above.put("entry", 0, &(AT + 4096).to_ne_bytes());
        proc.put("mount", 0, &(AT + 1024).to_ne_bytes());
        proc.put("entry", 0, &(AT + 8192).to_ne_bytes());
        proc.put("known", 0, &(AT + 8192).to_ne_bytes());
        proc.put("before", BEFORE - 16, &AT.to_ne_bytes());
        proc.put("before", BEFORE - 8, &(AT + 6000).to_ne_bytes());
        proc.put("names", BEFORE - 8, b"proc\0xyz");
        proc.put("parents", BEFORE - 8, &(AT + 4096).to_ne_bytes());
        let clues = Mount.solve(&(), &[above, proc]);
        let found = ["mount.mnt_root", "mount.mnt_parent", "mount.mnt_mountpoint"].map(|key| clues.of(key));
        assert_eq!(found, [[32], [16], [24]]);
    }
}
