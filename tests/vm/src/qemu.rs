//! QEMU's command line, and its installation if it is missing.

use std::fmt::Display;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;
use socktrail_vm::{ALL_PORTS, Port};

use crate::matrix::Arch;
use crate::process;

/// The machine that QEMU emulates.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Its architecture.
    pub arch: Arch,
    /// Number of processors.
    pub smp: u8,
    /// Memory in MiB.
    pub mem: u64,
    /// Whether guest time counts instructions.
    pub icount: bool,
    /// The kernel.
    pub vmlinuz: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
    /// More kernel arguments.
    pub append: Option<&'a str>,
    /// The inherited descriptor of the console's socket.
    pub console: i32,
    /// The inherited descriptors of the ports' sockets.
    pub ports: [(Port, i32); ALL_PORTS.len()],
}

/// The command that boots a machine. QEMU ends with this process, even if this process is killed.
pub fn command(machine: &Machine<'_>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program(machine.arch)]);
    let mut option = |name: &str, value: &dyn Display| {
        command.arg(name).arg(value.to_string());
    };
    if machine.arch == Arch::Aarch64 {
        option("-M", &"virt");
    }
    option("-cpu", &cpu(machine.arch));
    // Not KVM: where it does not work, it hangs, and emulation is the same everywhere. One thread for all CPUs: with
    // several, a CPU may execute instructions that another one has just replaced. A kernel that patches its code then
    // sometimes hits a breakpoint that it has already removed.
    option("-accel", &"tcg,thread=single");
    if machine.icount {
        option("-icount", &"shift=0,sleep=off");
    }
    option("-smp", &machine.smp);
    option("-m", &machine.mem);
    option("-kernel", &machine.vmlinuz.display());
    option("-initrd", &machine.initramfs.display());
    option("-append", &kernel_arguments(machine));
    option("-chardev", &format_args!("socket,id=console,fd={}", machine.console));
    option("-serial", &"chardev:console");
    option("-device", &"virtio-serial-pci");
    for (port, descriptor) in machine.ports {
        let (name, number) = (port.name(), port.number());
        option("-chardev", &format_args!("socket,id={name},fd={descriptor}"));
        option("-device", &format_args!("virtserialport,chardev={name},name={name},nr={number}"));
    }
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none"]);
    command
}

/// The CPU with all features that QEMU emulates.
fn cpu(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "max",
        // The default family and model make a 32-bit kernel warn that the CPU is not suitable for SMP.
        Arch::I686 => "max,family=15,model=107,stepping=1",
        // Emulating the architecture's pointer authentication algorithm takes half of all time.
        Arch::Aarch64 => "max,pauth-impdef=on",
    }
}

/// The kernel's command line: only errors go to the console, and an oops ends the guest.
fn kernel_arguments(machine: &Machine<'_>) -> String {
    let own = match machine.arch {
        // On a busy host, the kernel's timer check may fail, and the kernel panics.
        Arch::X86_64 | Arch::I686 => "console=ttyS0 no_timer_check",
        Arch::Aarch64 => "console=ttyAMA0",
    };
    let mut arguments = format!("{own} quiet panic=-1 oops=panic");
    if let Some(more) = machine.append {
        arguments.push(' ');
        arguments.push_str(more);
    }
    arguments
}

/// The name of QEMU's program.
fn program(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "qemu-system-x86_64",
        Arch::Aarch64 => "qemu-system-aarch64",
        Arch::I686 => "qemu-system-i386",
    }
}

/// The Debian package of QEMU.
fn package(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 | Arch::I686 => "qemu-system-x86",
        Arch::Aarch64 => "qemu-system-arm",
    }
}

/// Installs QEMU with apt if it is missing.
pub fn ensure_installed(arch: Arch) -> Result<()> {
    if process::exists(program(arch)) {
        return Ok(());
    }
    let package = package(arch);
    eprintln!("vm: {} is missing, installing {package}", program(arch));
    let remedy = || format!("{} is needed; install it with `apt-get install {package}` as root", program(arch));
    install(package).with_context(remedy)?;
    if !process::exists(program(arch)) {
        bail!("{}", remedy());
    }
    Ok(())
}

/// Installs a package on this machine. If that fails, updates the package lists and tries again.
fn install(package: &str) -> Result<()> {
    let install =
        || process::visible(as_root()?.args(["apt-get", "-q", "-y", "--no-install-recommends", "install", package]));
    if install().is_ok() {
        return Ok(());
    }
    process::visible(as_root()?.args(["apt-get", "-q", "update"]))?;
    install()
}

/// The start of a command that runs as root.
fn as_root() -> Result<Command> {
    let mut command = if Uid::effective().is_root() {
        Command::new("env")
    } else if process::exists("sudo") {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "env"]);
        sudo
    } else {
        bail!("not root, and sudo is not installed");
    };
    command.arg("DEBIAN_FRONTEND=noninteractive");
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(arch: Arch, icount: bool) -> String {
        let machine = Machine {
            arch,
            smp: 2,
            mem: 512,
            icount,
            vmlinuz: Path::new("/k"),
            initramfs: Path::new("/i"),
            append: Some("ipv6.disable=1"),
            console: 10,
            ports: [(Port::Stdout, 11), (Port::Stderr, 12), (Port::Out, 13), (Port::Status, 14)],
        };
        format!("{:?}", command(&machine)).replace('"', "")
    }

    #[test]
    fn emulation_is_asked_for() {
        let text = shown(Arch::X86_64, false);
        for part in [
            "-accel tcg,thread=single",
            "-smp 2",
            "-m 512",
            "console=ttyS0",
            "ipv6.disable=1",
            "socket,id=out,fd=13",
            "virtserialport,chardev=out,name=out,nr=3",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("icount"));
    }

    #[test]
    fn instructions_are_counted_without_sleep() {
        let text = shown(Arch::X86_64, true);
        assert!(text.contains("-icount shift=0,sleep=off"), "{text}");
    }

    #[test]
    fn arm_has_its_own_console() {
        let text = shown(Arch::Aarch64, false);
        assert!(text.contains("qemu-system-aarch64 -M virt") && text.contains("console=ttyAMA0"), "{text}");
    }
}
