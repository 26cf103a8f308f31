//! The fields of a `linux_binprm`.

use super::anonymous_file::{AnonymousFile, RANDOM_AT, random_part};
use crate::engine::{Call, Context, Evidence, Guess, Probe, Random, WORD, Window, bytes_of, is_kernel_pointer};
use crate::sys::PausedChild;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// How many bytes of a `linux_binprm` are captured.
const BINPRM: u32 = 384;
/// The smallest size of a page in bytes. Larger sizes are multiples of it.
const PAGE: u64 = 4096;
/// The size of the word at the upper end of the new stack, which the kernel leaves empty. It copies the program's strings below
/// it.
const TOP: u64 = WORD as u64;

/// A child of this process executes a script. Script and interpreter are anonymous files, and the interpreter ends at
/// once. Each is named by one of a thousand spellings of its path, chosen at random (`/././proc/self/fd/7`), which
/// distinguishes `filename` from `interp`. The program's strings have random lengths; `p` is below the end of a page by
/// the sum of these lengths.
///
/// If the host audits executed programs, the audit log shows `…-socktrail-guess` a few times.
#[derive(Debug)]
pub(super) struct Binprm;

/// Finds `linux_binprm.file`. The trigger executes a file with a random name; the pointer that leads to this name is
/// the file.
///
/// If the host audits executed programs, the audit log shows this file's name, too: `…-socktrail-guess`.
#[derive(Debug)]
pub(super) struct BinprmFile;

impl Guess for BinprmFile {
    /// The file's name.
    type Expected = String;

    fn name(&self) -> &'static str {
        "binprm_file"
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

    fn trigger(&mut self, context: &mut dyn Context) -> io::Result<String> {
        let program = AnonymousFile::new(&program(), context.random())?;
        let path = CString::new(path_of(&program.file, context.random()))?;
        let child = PausedChild::new(&path, std::slice::from_ref(&path), &[])?;
        context.follow(child.pid())?;
        child.run()?;
        Ok(program.name)
    }

    fn solve(&self, name: &String, calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        if let ([call], Some(random_part)) = (calls, random_part(name)) {
            evidence.one_of("linux_binprm.file", call.view("names").find(random_part, WORD));
        }
        evidence
    }
}

/// A program that was executed, as its `linux_binprm` should describe it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Executed {
    script: String,
    interpreter: String,
    /// How many arguments it has in the end.
    arguments: u32,
    /// The size of all its strings on the new stack, in bytes.
    strings: u64,
}

impl Guess for Binprm {
    type Expected = Executed;

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

    fn trigger(&mut self, context: &mut dyn Context) -> io::Result<Executed> {
        let random = context.random();
        let program = AnonymousFile::new(&program(), random)?;
        let interpreter = path_of(&program.file, random);
        let script = AnonymousFile::new(format!("#!{interpreter}\n").as_bytes(), random)?;
        let script_name = path_of(&script.file, random);
        let arguments: Vec<_> = (0..random.within(3..=50)).map(|_| word(random)).collect();
        let environment: Vec<_> = (0..random.within(3..=50)).map(|_| word(random)).collect();
        let path = CString::new(script_name.as_str())?;
        let child = PausedChild::new(&path, &arguments, &environment)?;
        context.follow(child.pid())?;
        child.run()?;
        Ok(executed(script_name, interpreter, &arguments, &environment))
    }

    fn solve(&self, expected: &Executed, calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        if let [call] = calls {
            add_evidence(expected, call.view("binprm"), call.view("targets"), &mut evidence);
        }
        evidence
    }
}

/// What the `linux_binprm` should hold. The kernel replaces the first argument of a script with the interpreter and the
/// name of the script.
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

fn add_evidence(expected: &Executed, binprm: &Window, targets: &Window, evidence: &mut Evidence) {
    let pointers_to = |name: &str| {
        // The strings of the program hold the same names, but pointers to them are user addresses.
        let in_kernel = |offset| binprm.word(offset).is_some_and(is_kernel_pointer);
        let begins =
            |&(offset, target): &(u32, u64)| name.as_bytes().starts_with(&bytes_of(target)) && in_kernel(offset);
        targets.words().filter(begins).map(|(offset, _)| offset).collect::<Vec<_>>()
    };
    let is_stack_pointer = |&(_, word): &(u32, u64)| {
        word > PAGE
            && word >> 56 == 0
            && !is_kernel_pointer(word)
            && (word + TOP + expected.strings).is_multiple_of(PAGE)
    };
    let script = pointers_to(&expected.script);
    if !script.is_empty() {
        evidence.one_of("security_bprm_committed_creds(bprm)", [1]);
    }
    evidence.one_of("linux_binprm.filename", script);
    evidence.one_of("linux_binprm.interp", pointers_to(&expected.interpreter));
    evidence.one_of("linux_binprm.p", binprm.words().filter(is_stack_pointer).map(|(offset, _)| offset));
    evidence.one_of("linux_binprm.argc", binprm.find_u32(expected.arguments));
}

/// A path of an open file that begins with random spellings of `/`.
fn path_of(file: &OwnedFd, random: &mut Random) -> String {
    let step = |_| if random.within(0..=1) == 0 { "/." } else { "//" };
    let steps: String = (0..10).map(step).collect();
    format!("{steps}/proc/self/fd/{}", file.as_raw_fd())
}

fn word(random: &mut Random) -> CString {
    CString::new(vec![b'x'; random.within(1..=40) as usize]).expect("the text should contain no NUL")
}

/// A program that ends at once: an ELF header, a segment with the whole file, a segment that marks the stack as not
/// executable (32-bit kernels log a message about programs without one), and the code.
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
    // Type (executable), machine and version.
    out.extend([2, machine].map(u16::to_ne_bytes).concat());
    out.extend(1u32.to_ne_bytes());
    // Entry point, offset of the program headers, no section headers, no flags.
    out.extend(words(&[BASE + CODE, ELF, 0]));
    out.extend(0u32.to_ne_bytes());
    // Size of this header, size and number of program headers, no section headers.
    out.extend([ELF as u16, SEGMENT as u16, 2, 0, 0, 0].map(u16::to_ne_bytes).concat());
    let segment = |kind: u32, flags: u32, place: [usize; 5], align: usize| {
        let ([kind, flags], place, align) = ([kind, flags].map(u32::to_ne_bytes), words(&place), words(&[align]));
        if WORD == 4 {
            [&kind[..], &place, &flags, &align].concat()
        } else {
            [&kind[..], &flags, &place, &align].concat()
        }
    };
    // The whole file (`PT_LOAD`), readable and executable.
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
    fn the_program_runs_and_succeeds() {
        let mut random = Random::new();
        let file = AnonymousFile::new(&program(), &mut random).unwrap();
        let name = path_of(&file.file, &mut random);
        let script = AnonymousFile::new(format!("#!{name}\n").as_bytes(), &mut random).unwrap();
        // The child does not inherit the files, so use those of this process.
        let path = path_of(&script.file, &mut random).replace("self", &std::process::id().to_string());
        let program = name.replace("self", &std::process::id().to_string());
        assert!(std::process::Command::new(program).status().unwrap().success());
        assert!(std::fs::read_to_string(path).unwrap().starts_with("#!/"));
    }

    fn expected() -> Executed {
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
        let call = Call::of("security_bprm_committed_creds", vec![("binprm", binprm), ("targets", targets)]);
        let evidence = Binprm.solve(&expected(), &[call]);
        for (key, offset) in [("p", 24), ("argc", 88), ("filename", 96), ("interp", 104)] {
            assert_eq!(evidence.values(&format!("linux_binprm.{key}")), [offset], "{key}");
        }
        assert_eq!(evidence.values("security_bprm_committed_creds(bprm)"), [1]);
    }

    #[test]
    fn the_file_is_found_by_its_name() {
        let mut call = Call::blank(&BinprmFile.probes(0)[0]);
        call.put("names", 64, b"socktest");
        call.put("names", 72, b"somebody");
        assert_eq!(
            BinprmFile.solve(&"memfd:socktest-socktrail-guess".to_owned(), &[call]).values("linux_binprm.file"),
            [64]
        );
    }

    #[test]
    fn the_name_of_the_script_is_counted_twice() {
        let words = |count: usize| vec![CString::new("abc").unwrap(); count];
        let executed = executed("/s".into(), "/in".into(), &words(4), &words(2));
        assert_eq!((executed.arguments, executed.strings), (5, 3 + 3 + 4 + 2 * 4 + 3 * 4));
    }
}
