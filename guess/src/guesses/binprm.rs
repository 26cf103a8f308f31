//! What a `linux_binprm` holds of a program that is about to run.

use super::nameless_file::{NamelessFile, RANDOM_AT, random_part};
use crate::engine::{Clues, Guess, Probe, Random, Scene, Shot, WORD, Window, bytes_of, is_kernel_pointer};
use crate::sys::PausedChild;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// How much of a `linux_binprm` is looked at.
const BINPRM: u32 = 384;
/// Strings are laid out from the top of a page, under an empty word.
const PAGE: u64 = 4096;
const TOP: u64 = WORD as u64;

/// A child of this process executes a script without a path. Its interpreter has no path either and ends at once. Both are
/// named by a spelling chosen at random from a thousand for the same file (`/././proc/self/fd/7`), which tells `filename` from
/// `interp`. The program's strings have random lengths: `p` lies that far below the top of a page.
///
/// Who audits what is executed will see it: `…-socktrail-guess`, a few times.
#[derive(Debug)]
pub(super) struct Binprm;

/// Where `linux_binprm` keeps the opened file. The trigger executes a file with a random name: the pointer that leads to
/// that name is the file.
///
/// If the host audits executed programs, the audit log shows this too.
#[derive(Debug)]
pub(super) struct Opened;

impl Guess for Opened {
    /// The file's name.
    type Sent = String;

    fn name(&self) -> &'static str {
        "opened"
    }

    fn needs(&self) -> Vec<String> {
        ["security_bprm_committed_creds(bprm)", "file.dentry", "dentry.name"].map(str::to_owned).into()
    }

    fn gives(&self) -> Vec<String> {
        vec!["linux_binprm.file".to_owned()]
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        let probe = Probe::on("security_bprm_committed_creds");
        vec![probe.through("names", "{bprm}", 0..BINPRM, &["{file.dentry}", "{dentry.name}", RANDOM_AT])]
    }

    fn trigger(&mut self, stage: &mut dyn Scene) -> io::Result<String> {
        let program = NamelessFile::new(&program(), stage.random())?;
        let path = CString::new(path_of(&program.file, stage.random()))?;
        let child = PausedChild::new(&path, std::slice::from_ref(&path), &[])?;
        stage.watch(child.pid())?;
        child.run()?;
        Ok(program.name)
    }

    fn solve(&self, name: &String, shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        if let ([shot], Some(random_part)) = (shots, random_part(name)) {
            clues.allow("linux_binprm.file", shot.view("names").find(random_part, WORD));
        }
        clues
    }
}

/// A program that was executed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Executed {
    script: String,
    interpreter: String,
    /// How many arguments it was left with.
    arguments: u32,
    /// Bytes of all strings that were laid out.
    strings: u64,
}

impl Guess for Binprm {
    type Sent = Executed;

    fn name(&self) -> &'static str {
        "binprm"
    }

    fn needs(&self) -> Vec<String> {
        Vec::new()
    }

    fn gives(&self) -> Vec<String> {
        let fields = ["p", "filename", "interp", "argc"].map(|field| format!("linux_binprm.{field}"));
        fields.into_iter().chain(["security_bprm_committed_creds(bprm)".to_owned()]).collect()
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        let probe = Probe::on("security_bprm_committed_creds");
        vec![probe.words("binprm", "{arg1}", 0..BINPRM).targets("targets", "{arg1}", 0..BINPRM)]
    }

    fn trigger(&mut self, stage: &mut dyn Scene) -> io::Result<Executed> {
        let random = stage.random();
        let program = NamelessFile::new(&program(), random)?;
        let interpreter = path_of(&program.file, random);
        let script = NamelessFile::new(format!("#!{interpreter}\n").as_bytes(), random)?;
        let script_name = path_of(&script.file, random);
        let arguments: Vec<_> = (0..random.within(3..=50)).map(|_| word(random)).collect();
        let environment: Vec<_> = (0..random.within(3..=50)).map(|_| word(random)).collect();
        let path = CString::new(script_name.as_str())?;
        let child = PausedChild::new(&path, &arguments, &environment)?;
        stage.watch(child.pid())?;
        child.run()?;
        Ok(executed(script_name, interpreter, &arguments, &environment))
    }

    fn solve(&self, sent: &Executed, shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        if let [shot] = shots {
            find(sent, shot.view("binprm"), shot.view("targets"), &mut clues);
        }
        clues
    }
}

/// What is left when the name of the script and its interpreter have taken the place of the first argument.
fn executed(script: String, interpreter: String, arguments: &[CString], environment: &[CString]) -> Executed {
    let bytes = |strings: &[CString]| strings.iter().map(|string| string.count_bytes() + 1).sum::<usize>();
    let names = 2 * (script.len() + 1) + interpreter.len() + 1;
    Executed {
        arguments: arguments.len() as u32 + 1,
        strings: (names + bytes(environment) + bytes(&arguments[1..])) as u64,
        script,
        interpreter,
    }
}

fn find(sent: &Executed, binprm: &Window, targets: &Window, clues: &mut Clues) {
    let called = |name: &str| {
        // The strings of the program, which user pointers point to, are called the same.
        let in_kernel = |offset| binprm.word(offset).is_some_and(is_kernel_pointer);
        let begins =
            |&(offset, target): &(u32, u64)| name.as_bytes().starts_with(&bytes_of(target)) && in_kernel(offset);
        targets.words().filter(begins).map(|(offset, _)| offset).collect::<Vec<_>>()
    };
    let came_down = |&(_, word): &(u32, u64)| {
        word > PAGE && word >> 56 == 0 && !is_kernel_pointer(word) && (word + TOP + sent.strings).is_multiple_of(PAGE)
    };
    let script = called(&sent.script);
    if !script.is_empty() {
        clues.allow("security_bprm_committed_creds(bprm)", [1]);
    }
    clues.allow("linux_binprm.filename", script);
    clues.allow("linux_binprm.interp", called(&sent.interpreter));
    clues.allow("linux_binprm.p", binprm.words().filter(came_down).map(|(offset, _)| offset));
    clues.allow("linux_binprm.argc", binprm.find_u32(sent.arguments));
}

/// One of the many paths of an open file, beginning differently from others.
fn path_of(file: &OwnedFd, random: &mut Random) -> String {
    let step = |_| if random.within(0..=1) == 0 { "/." } else { "//" };
    let steps: String = (0..10).map(step).collect();
    format!("{steps}/proc/self/fd/{}", file.as_raw_fd())
}

fn word(random: &mut Random) -> CString {
    CString::new(vec![b'x'; random.within(1..=40) as usize]).expect("there is no NUL in it")
}

/// A program that ends at once: an ELF header, one segment that is the whole file, one that says that its stack is not to
/// be executed (32-bit kernels write of programs without it into their log), and the code.
fn program() -> Vec<u8> {
    const BASE: usize = 0x40_0000;
    const ELF: usize = if WORD == 4 { 52 } else { 64 };
    const SEGMENT: usize = if WORD == 4 { 32 } else { 56 };
    let (machine, code): (u16, &[u8]) = if cfg!(target_arch = "aarch64") {
        // mov x0, #0; mov x8, #93 (exit); svc #0
        (183, &[0x00, 0x00, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4])
    } else if cfg!(target_arch = "x86") {
        // xor ebx, ebx; mov eax, 1 (exit); int 0x80
        (3, &[0x31, 0xdb, 0xb8, 0x01, 0x00, 0x00, 0x00, 0xcd, 0x80])
    } else {
        // xor edi, edi; mov eax, 60 (exit); syscall
        (62, &[0x31, 0xff, 0xb8, 0x3c, 0x00, 0x00, 0x00, 0x0f, 0x05])
    };
    let words = |words: &[usize]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    const CODE: usize = ELF + 2 * SEGMENT;
    let size = CODE + code.len();
    let class = (WORD / 4) as u8;
    let mut out = [b"\x7fELF", &[class, 1, 1][..]].concat();
    out.resize(16, 0);
    // An executable for this machine, version 1.
    out.extend([2, machine].map(u16::to_ne_bytes).concat());
    out.extend(1u32.to_ne_bytes());
    // Its entry, where the program headers are, no section headers, no flags.
    out.extend(words(&[BASE + CODE, ELF, 0]));
    out.extend(0u32.to_ne_bytes());
    // Sizes and counts: two program headers.
    out.extend([ELF as u16, SEGMENT as u16, 2, 0, 0, 0].map(u16::to_ne_bytes).concat());
    let segment = |kind: u32, flags: u32, place: [usize; 5], align: usize| {
        let ([kind, flags], place, align) = ([kind, flags].map(u32::to_ne_bytes), words(&place), words(&[align]));
        if WORD == 4 {
            [&kind[..], &place, &flags, &align].concat()
        } else {
            [&kind[..], &flags, &place, &align].concat()
        }
    };
    // To be loaded, readable and executable, from the start of the file.
    out.extend(segment(1, 5, [0, BASE, BASE, size, size], 0x1_0000));
    // The stack (`PT_GNU_STACK`), readable and writable.
    out.extend(segment(0x6474_e551, 6, [0; 5], 16));
    out.extend(code);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_runs_and_ends_well() {
        let mut random = Random::new();
        let file = NamelessFile::new(&program(), &mut random).unwrap();
        let name = path_of(&file.file, &mut random);
        let script = NamelessFile::new(format!("#!{name}\n").as_bytes(), &mut random).unwrap();
        // The child of a shell has no such file, so it is this process' own.
        let path = path_of(&script.file, &mut random).replace("self", &std::process::id().to_string());
        let program = name.replace("self", &std::process::id().to_string());
        assert!(std::process::Command::new(program).status().unwrap().success());
        assert!(std::fs::read_to_string(path).unwrap().starts_with("#!/"));
    }

    fn sent() -> Executed {
        Executed { script: "/.//././x".into(), interpreter: "//./././y".into(), arguments: 37, strings: 1234 }
    }

    #[test]
    fn names_and_counts_are_found() {
        let (mut binprm, mut targets) =
            (Window::new(0, vec![0; BINPRM as usize]), Window::new(0, vec![0; BINPRM as usize]));
        binprm.write(24, &(0x7fff_ffff_f000u64 - TOP - 1234).to_ne_bytes());
        binprm.write(88, &37u32.to_ne_bytes());
        for (offset, pointer, target) in [
            (96, 0xffff_8880_1111_0000, b"/.//././"),
            (104, 0xffff_8880_2222_0000, b"//./././"),
            (136, 0x7fff_ffff_e000u64, b"/.//././"),
        ] {
            binprm.write(offset, &pointer.to_ne_bytes());
            targets.write(offset, target);
        }
        let shot = Shot::of("security_bprm_committed_creds", vec![("binprm", binprm), ("targets", targets)]);
        let clues = Binprm.solve(&sent(), &[shot]);
        for (key, offset) in [("p", 24), ("argc", 88), ("filename", 96), ("interp", 104)] {
            assert_eq!(clues.of(&format!("linux_binprm.{key}")), [offset], "{key}");
        }
        assert_eq!(clues.of("security_bprm_committed_creds(bprm)"), [1]);
    }

    #[test]
    fn the_file_is_found_by_its_name() {
        let mut shot = Shot::blank(&Opened.probes(0)[0]);
        shot.put("names", 64, b"socktest");
        shot.put("names", 72, b"somebody");
        assert_eq!(Opened.solve(&"memfd:socktest-socktrail-guess".to_owned(), &[shot]).of("linux_binprm.file"), [64]);
    }

    #[test]
    fn the_name_of_the_script_is_laid_out_twice() {
        let words = |count: usize| vec![CString::new("abc").unwrap(); count];
        let executed = executed("/s".into(), "/in".into(), &words(4), &words(2));
        assert_eq!((executed.arguments, executed.strings), (5, 3 + 3 + 4 + 2 * 4 + 3 * 4));
    }
}
