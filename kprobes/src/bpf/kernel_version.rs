//! The version of the running kernel as `LINUX_VERSION_CODE`. Up to Linux 4.20, programs at kprobes must state it.
//!
//! The stable kernels of distributions have another version in `uname -r`. Debian and Ubuntu write the real one to
//! other files. Every kernel has it in a note in its vDSO, unless the vDSO is switched off.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// The version of the running kernel; 0 if it cannot be found.
pub(super) fn running() -> u32 {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    of_debian(&text("/proc/version"))
        .or_else(|| of_ubuntu(&text("/proc/version_signature")))
        .or_else(|| of_vdso(&vdso().ok()?))
        .or_else(|| version(&text("/proc/sys/kernel/osrelease")))
        .unwrap_or(0)
}

/// `Linux version 4.9.0-19-amd64 (…) (… (Debian 6.3.0-18+deb9u1) ) #1 SMP Debian 4.9.320-2 (2022-06-30)`: the version
/// before `#` is the compiler's.
fn of_debian(proc_version: &str) -> Option<u32> {
    let (_, build) = proc_version.rsplit_once('#')?;
    version(build.split_once("Debian ")?.1)
}

/// `Ubuntu 4.15.0-213.224-generic 4.15.18`
fn of_ubuntu(signature: &str) -> Option<u32> {
    version(signature.split_ascii_whitespace().nth(2)?)
}

/// The three numbers at the beginning of a text, combined like `KERNEL_VERSION` in the kernel.
fn version(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let mut numbers = text[..end].split('.').map(|number| number.parse::<u32>().ok());
    let mut next = || numbers.next().flatten();
    let (major, minor, patch) = (next()?, next()?, next()?);
    // Long-lived kernels have more than 255 releases. Their last byte stays at 255.
    Some((major & 0xff) << 16 | (minor & 0xff) << 8 | patch.min(255))
}

/// The bytes of the vDSO in this process.
fn vdso() -> io::Result<Vec<u8>> {
    let range = |line: &str| {
        let (start, end) = line.strip_suffix("[vdso]")?.split_once(' ')?.0.split_once('-')?;
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    };
    let maps = fs::read_to_string("/proc/self/maps")?;
    let (start, end) = maps.lines().find_map(range).ok_or(io::ErrorKind::NotFound)?;
    /// Much more than the size of any vDSO.
    const MAX_SIZE: u64 = 1 << 20;
    let mut bytes = vec![0; end.saturating_sub(start).min(MAX_SIZE) as usize];
    File::open("/proc/self/mem")?.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

/// The note of type 0 and name `Linux` in a 64-bit ELF file of this machine's byte order.
fn of_vdso(elf: &[u8]) -> Option<u32> {
    const NOTE: u32 = 4;
    const CLASS_64: u8 = 2;
    if elf.get(..4)? != b"\x7fELF" || *elf.get(4)? != CLASS_64 {
        return None;
    }
    let (headers, size, count) = (double(elf, 0x20)?, usize::from(half(elf, 0x36)?), usize::from(half(elf, 0x38)?));
    (0..count).find_map(|index| {
        let header = elf.get(headers.checked_add(index.checked_mul(size)?)?..)?;
        if word(header, 0)? != NOTE {
            return None;
        }
        let (start, size) = (double(header, 0x08)?, double(header, 0x20)?);
        linux_note(elf.get(start..start.checked_add(size)?)?)
    })
}

/// Searches notes. Each has the sizes of name and content, the type, the name and the content; the last two are padded
/// to 4 bytes.
fn linux_note(mut notes: &[u8]) -> Option<u32> {
    loop {
        let (name_size, size, kind) = (word(notes, 0)? as usize, word(notes, 4)? as usize, word(notes, 8)?);
        let name = notes.get(12..12_usize.checked_add(name_size)?)?;
        let content = 12_usize.checked_add(name_size.checked_next_multiple_of(4)?)?;
        if kind == 0 && name == b"Linux\0" && size == 4 {
            return word(notes, content);
        }
        notes = notes.get(content.checked_add(size.checked_next_multiple_of(4)?)?..)?;
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn double(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_has_the_version_at_the_end() {
        for (text, code) in [
            (
                "Linux version 4.9.0-19-amd64 (debian-kernel@lists.debian.org) (gcc version 6.3.0 20170516 (Debian \
                 6.3.0-18+deb9u1) ) #1 SMP Debian 4.9.320-2 (2022-06-30)\n",
                Some(0x04_09_ff),
            ),
            (
                "Linux version 4.19.0-27-amd64 (debian-kernel@lists.debian.org) (gcc version 8.3.0 (Debian 8.3.0-6)) \
                 #1 SMP Debian 4.19.316-1 (2024-06-25)",
                Some(0x04_13_ff),
            ),
            ("Linux version 3.16.0-11-amd64 (…) #1 SMP Debian 3.16.84-1 (2020-06-09)", Some(0x03_10_54)),
            ("Linux version 4.14.336 (user@host) (gcc (Debian 8.3.0-6) 8.3.0) #1 SMP Tue Jan 9 2024", None),
            ("", None),
        ] {
            assert_eq!(of_debian(text), code, "{text}");
        }
    }

    #[test]
    fn ubuntu_has_the_version_third() {
        assert_eq!(of_ubuntu("Ubuntu 4.15.0-213.224-generic 4.15.18\n"), Some(0x04_0f_12));
        assert_eq!(of_ubuntu("Ubuntu 4.15.0"), None);
    }

    #[test]
    fn releases_have_three_numbers() {
        assert_eq!(version("4.14.98-mainline"), Some(0x04_0e_62));
        assert_eq!(version("4.14.300\n"), Some(0x04_0e_ff));
        for text in ["4.14", "4.14-1", "x", "", "4..1", "4.x.1"] {
            assert_eq!(version(text), None, "{text}");
        }
    }

    /// An ELF file with two program headers. The second holds two notes.
    fn elf() -> Vec<u8> {
        let mut elf = vec![0; 0x40 + 2 * 0x38];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[0x20..0x28].copy_from_slice(&0x40_u64.to_ne_bytes());
        elf[0x36..0x38].copy_from_slice(&0x38_u16.to_ne_bytes());
        elf[0x38..0x3a].copy_from_slice(&2_u16.to_ne_bytes());
        let mut notes = Vec::new();
        let mut note = |kind: u32, name: &[u8], content: &[u8]| {
            for number in [name.len() as u32, content.len() as u32, kind] {
                notes.extend(number.to_ne_bytes());
            }
            for part in [name, content] {
                notes.extend(part);
                notes.resize(notes.len().next_multiple_of(4), 0);
            }
        };
        note(3, b"GNU\0", &[7; 19]);
        note(0, b"Linux\0", &0x04_0e_62_u32.to_ne_bytes());
        let header = 0x40 + 0x38;
        let (start, size) = (elf.len() as u64, notes.len() as u64);
        elf[header..header + 4].copy_from_slice(&4_u32.to_ne_bytes());
        elf[header + 0x08..header + 0x10].copy_from_slice(&start.to_ne_bytes());
        elf[header + 0x20..header + 0x28].copy_from_slice(&size.to_ne_bytes());
        elf.extend(notes);
        elf
    }

    #[test]
    fn the_vdso_has_a_note() {
        assert_eq!(of_vdso(&elf()), Some(0x04_0e_62));
        for length in 0..elf().len() {
            assert_eq!(of_vdso(&elf()[..length]), None, "{length}");
        }
        let mut of_32_bits = elf();
        of_32_bits[4] = 1;
        assert_eq!(of_vdso(&of_32_bits), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(changes in proptest::collection::vec((0..256_usize, 0..=255_u8), 0..8), text in ".{0,40}") {
            let mut elf = elf();
            for (at, byte) in changes {
                if let Some(place) = elf.get_mut(at) {
                    *place = byte;
                }
            }
            let _ = (of_vdso(&elf), of_debian(&text), of_ubuntu(&text), version(&text));
        }
    }
}
