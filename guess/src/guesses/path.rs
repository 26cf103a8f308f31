//! The fields that lead from an open file to its path: directory entries and mounts.
//!
//! All are captured at `security_file_fcntl(file, cmd, arg)`, which `fcntl(2)` calls and whose arguments have been
//! the same since Linux 2.6. The guesses call `fcntl(2)` with `F_GETFL`, which changes nothing, on files in `/proc` and on an
//! anonymous file.

use super::anonymous_file::{AnonymousFile, RANDOM_AT, random_part};
use crate::engine::{Call, Context, Evidence, Guess, Probe, WORD, Window, bytes_of, is_kernel_pointer};
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
fn own_calls(calls: &[Call]) -> Vec<&Call> {
    calls.iter().filter(|call| call.argument(2) as u32 == libc::F_GETFL as u32).collect()
}

/// How many bytes of a `struct file` each of the two attempts captures.
const FILE: u32 = 16 * WORD;
/// Offsets in a `dentry` where the pointer to its name may be. Each is combined with each word of the file, and all
/// combinations fit into one kprobe. With several kprobes, a value that one of them cannot read could keep what another
/// has read.
const NAME_OFFSETS: [u32; 7] = [3 * WORD, 4 * WORD, 5 * WORD, 6 * WORD, 7 * WORD, 8 * WORD, 9 * WORD];

/// The file has a random name. The word of its `struct file` that leads to this name, through another pointer, is its
/// `dentry`.
#[derive(Debug)]
pub(super) struct DentryName;

impl Guess for DentryName {
    /// The file's name.
    type Expected = String;

    fn name(&self) -> &'static str {
        "dentry_name"
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
        let through = |probe: Probe, offset: u32| {
            probe.through(&view(offset), "{arg1}", words.clone(), &[offset.to_string().as_str(), RANDOM_AT])
        };
        vec![NAME_OFFSETS.into_iter().fold(fcntl_calls(), through)]
    }

    fn trigger(&mut self, context: &mut dyn Context) -> io::Result<String> {
        let made = AnonymousFile::new(b"", context.random())?;
        call_fcntl(&made.file)?;
        Ok(made.name)
    }

    fn solve(&self, name: &String, calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        let [call] = own_calls(calls)[..] else { return evidence };
        let begins = |word: u64| random_part(name) == Some(&bytes_of(word));
        let found =
            |offset: u32| call.view(&view(offset)).words().filter(|&(_, word)| begins(word)).map(|(file, _)| file);
        let files: Vec<u32> = NAME_OFFSETS.into_iter().flat_map(found).collect();
        if !files.is_empty() {
            evidence.one_of("file.dentry", files);
            evidence.one_of("dentry.name", NAME_OFFSETS.into_iter().filter(|&offset| found(offset).next().is_some()));
        }
        evidence
    }
}

/// The name of the view for an offset.
fn view(offset: u32) -> String {
    format!("at {offset}")
}

/// How many bytes of a `dentry` are captured.
const ENTRY: u32 = 128;
/// How many bytes of a `struct file` are captured to find its mount.
const MOUNT_WITHIN: u32 = 24 * WORD;
/// Offsets in a `struct vfsmount` where the pointer to its root may be.
const ROOT_OFFSETS: [u32; 3] = [0, WORD, 2 * WORD];

/// The `dentry` of a process's directory in `/proc` has the `dentry` of `/proc`, which is the root of the mount, as its
/// parent. When the process has ended, the kernel removes the `dentry` from the hash table of names, and `d_hash.pprev`
/// becomes null.
#[derive(Debug)]
pub(super) struct DentryLinks;

impl Guess for DentryLinks {
    type Expected = ();

    fn name(&self) -> &'static str {
        "dentry_links"
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
        let through = |probe: Probe, offset: u32| {
            probe.through(&view(offset), "{arg1}", 0..MOUNT_WITHIN, &[offset.to_string().as_str()])
        };
        vec![ROOT_OFFSETS.into_iter().fold(probe, through)]
    }

    fn trigger(&mut self, _context: &mut dyn Context) -> io::Result<()> {
        let child = PausedChild::new(c"", &[], &[])?;
        call_fcntl(directory("/proc")?)?;
        let of_child = directory(&format!("/proc/{}", child.pid()))?;
        call_fcntl(&of_child)?;
        drop(child);
        call_fcntl(&of_child)
    }

    fn solve(&self, (): &(), calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        let [proc, alive, gone] = own_calls(calls)[..] else { return evidence };
        let Some(root) = proc.view("own").word(0).filter(|&root| is_kernel_pointer(root)) else { return evidence };
        let (entry, removed) = (alive.view("entry"), gone.view("entry"));
        evidence.one_of("dentry.d_parent", entry.find_word(root));
        let becomes_null = |&(offset, word): &(u32, u64)| is_kernel_pointer(word) && removed.word(offset) == Some(0);
        evidence.one_of("dentry.pprev", entry.words().filter(becomes_null).map(|(offset, _)| offset));
        let mounts = |offset: u32| alive.view(&view(offset)).find_word(root);
        evidence.one_of("file.mnt", ROOT_OFFSETS.into_iter().flat_map(mounts));
        evidence.one_of("vfsmount.mnt_root", ROOT_OFFSETS.into_iter().filter(|&offset| !mounts(offset).is_empty()));
        evidence
    }
}

/// How many bytes before a `struct vfsmount` are captured. Files point to the `struct vfsmount` inside a `struct mount`,
/// so these bytes belong to the `struct mount`.
const BEFORE: u32 = 128;
/// How many bytes of a `struct vfsmount` are captured.
const VFSMOUNT: u32 = 24;

/// `/proc` is mounted on a directory named `proc` in the mount of `/`. So a word before the `struct vfsmount` of
/// `/proc` is the parent mount: it points to the beginning of the `struct mount` of `/`, which is a little before the
/// `struct vfsmount` of `/`.
#[derive(Debug)]
pub(super) struct Mount;

impl Guess for Mount {
    type Expected = ();

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
        let probe = probe.words("vfsmount", MOUNT, 0..VFSMOUNT).words("before", MOUNT, 0..BEFORE).ending_at_base();
        let probe = probe.through("names", MOUNT, 0..BEFORE, &["{dentry.name}", "0"]).ending_at_base();
        vec![probe.through("parents", MOUNT, 0..BEFORE, &["{dentry.d_parent}"]).ending_at_base()]
    }

    fn trigger(&mut self, _context: &mut dyn Context) -> io::Result<()> {
        call_fcntl(directory("/")?)?;
        call_fcntl(directory("/proc")?)
    }

    fn solve(&self, (): &(), calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        let [root, proc] = own_calls(calls)[..] else { return evidence };
        let pointer = |call: &Call, name: &str| call.view(name).word(0).filter(|&word| is_kernel_pointer(word));
        let of_root_and_proc = |name: &str| Some((pointer(root, name)?, pointer(proc, name)?));
        if let (Some((parent, _)), Some((directory, proc_root))) =
            (of_root_and_proc("mount"), of_root_and_proc("entry"))
        {
            let mountpoints = mountpoints(proc, directory);
            add_evidence(
                proc.view("before"),
                parent,
                &mountpoints,
                &proc.view("vfsmount").find_word(proc_root),
                &mut evidence,
            );
        }
        evidence
    }
}

/// The offsets of pointers to a `dentry` with the name `proc` whose parent is `directory`.
fn mountpoints(proc: &Call, directory: u64) -> Vec<u32> {
    let (names, parents) = (proc.view("names"), proc.view("parents"));
    let called = &b"proc\0"[..5.min(WORD as usize)];
    let is_called = |&(_, word): &(u32, u64)| bytes_of(word).starts_with(called);
    let is_in = |&(offset, _): &(u32, u64)| parents.word(offset) == Some(directory);
    names.words().filter(is_called).filter(is_in).map(|(offset, _)| offset).collect()
}

/// Finds the fields of a `struct mount`. `before` holds the bytes before its `struct vfsmount`; `parent` is the address
/// of the parent's `struct vfsmount`.
fn add_evidence(before: &Window, parent: u64, mountpoints: &[u32], roots: &[u32], evidence: &mut Evidence) {
    for (offset, word) in before.words() {
        // If the word points to the parent's `struct mount`, this is the offset of the `struct vfsmount` in it.
        let vfsmount = parent.wrapping_sub(word);
        if vfsmount > u64::from(BEFORE) || !vfsmount.is_multiple_of(WORD.into()) {
            continue;
        }
        let from_start = |offset: u32| (vfsmount as u32 + offset).checked_sub(BEFORE);
        if let Some(at) = from_start(offset) {
            evidence.one_of("mount.mnt_parent", [at]);
            evidence.one_of("mount.mnt_mountpoint", mountpoints.iter().filter_map(|&offset| from_start(offset)));
            evidence.one_of("mount.mnt_root", roots.iter().map(|&offset| vfsmount as u32 + offset));
        }
    }
}

/// Makes the kernel call the probed function.
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

    fn call(guess: &impl Guess) -> Call {
        let mut call = Call::blank(&guess.probes(0)[0]);
        call.pass(2, libc::F_GETFL as u64);
        call
    }

    #[test]
    fn a_name_is_found_behind_two_pointers() {
        let mut call = call(&DentryName);
        call.put(&view(40), 72, b"abcdefgh");
        call.put(&view(48), 80, b"xyzwefgh");
        let evidence = DentryName.solve(&"memfd:abcdefgh".to_owned(), &[call]);
        assert_eq!((evidence.values("file.dentry"), evidence.values("dentry.name")), (vec![72], vec![40]));
    }

    #[test]
    fn a_dentry_has_a_parent_and_is_removed_from_the_hash_table() {
        let [mut proc, mut alive, mut gone] = [(); 3].map(|()| call(&DentryLinks));
        proc.put("own", 0, &AT.to_ne_bytes());
        for call in [&mut alive, &mut gone] {
            call.put("entry", 16, &(AT + 512).to_ne_bytes());
            call.put("entry", 24, &AT.to_ne_bytes());
            call.put("entry", 48, &(AT + 768).to_ne_bytes());
            call.put(&view(0), 64, &AT.to_ne_bytes());
        }
        gone.put("entry", 16, &[0; 8]);
        let evidence = DentryLinks.solve(&(), &[proc, alive, gone]);
        let found =
            ["dentry.d_parent", "dentry.pprev", "file.mnt", "vfsmount.mnt_root"].map(|key| evidence.values(key));
        assert_eq!(found, [[24], [16], [64], [0]]);
    }

    #[test]
    fn a_mount_has_a_parent_mount() {
        let [mut root, mut proc] = [(); 2].map(|()| call(&Mount));
        // `struct vfsmount` is at 32 in `struct mount`, the parent at 16 and the mountpoint at 24.
        root.put("mount", 0, &(AT + 32).to_ne_bytes());
        root.put("entry", 0, &(AT + 4096).to_ne_bytes());
        proc.put("mount", 0, &(AT + 1024).to_ne_bytes());
        proc.put("entry", 0, &(AT + 8192).to_ne_bytes());
        proc.put("vfsmount", 0, &(AT + 8192).to_ne_bytes());
        proc.put("before", BEFORE - 16, &AT.to_ne_bytes());
        proc.put("before", BEFORE - 8, &(AT + 6000).to_ne_bytes());
        proc.put("names", BEFORE - 8, b"proc\0xyz");
        proc.put("parents", BEFORE - 8, &(AT + 4096).to_ne_bytes());
        let evidence = Mount.solve(&(), &[root, proc]);
        let found = ["mount.mnt_root", "mount.mnt_parent", "mount.mnt_mountpoint"].map(|key| evidence.values(key));
        assert_eq!(found, [[32], [16], [24]]);
    }
}
