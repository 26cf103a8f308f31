//! `process.executable` is the path that `/proc/PID/exe` has, however the program is started, and even if it is
//! short-lived.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;
use crate::workloads::{EXECUTABLE, PROGRAM, RUN, escape};

tests![
    executables_are_as_in_proc,
    executables_are_as_in_proc_without_arrays,
    executables_are_as_in_proc_without_arrays_and_strings,
    arguments_that_are_not_kept_are_counted,
    no_program_is_wrong_without_exec_probes,
];

/// The program that the tests copy. It connects if its name is `nc`.
const BUSYBOX: &str = "/usr/bin/busybox";
/// The directory of this module's files.
const HERE: &str = "/programs";
/// The function whose probe shows execs.
const EXEC: &str = "security_bprm_committed_creds";
/// The number of path components within a mount that the probe reads.
const COMPONENTS: usize = 7;

/// A way to start a program.
struct Invocation {
    /// A description.
    name: &'static str,
    /// The method of the workload `become`.
    method: &'static str,
    directory: PathBuf,
    file: PathBuf,
    /// Whether the path is known even if the program is short-lived.
    known: bool,
}

/// A program that has run and connected.
struct Ran {
    name: &'static str,
    pid: u32,
    /// The expected path; `None` if it cannot be known.
    wanted: Option<String>,
    /// Whether it lived long enough to be found in `/proc`.
    is_long_lived: bool,
}

fn executables_are_as_in_proc() -> Result<()> {
    check_executables(&[])
}

/// Before Linux 4.20 probes cannot fetch arrays, so names are fetched as strings, and the values of an exec are divided among
/// several trace events.
fn executables_are_as_in_proc_without_arrays() -> Result<()> {
    check_executables(&["--mask", "arrays"])
}

/// If warnings make the kernel panic (`panic_on_warn`), names are fetched word by word.
fn executables_are_as_in_proc_without_arrays_and_strings() -> Result<()> {
    check_executables(&["--mask", "arrays", "--mask", "strings"])
}

fn check_executables(options: &[&str]) -> Result<()> {
    let _here = Here::prepare()?;
    let monitor = Socktrail::flows(options)?;
    let mut all = Vec::new();
    for invocation in invocations()? {
        let long_lived = run_long_lived(&invocation).with_context(|| format!("{}, long-lived", invocation.name))?;
        let wanted = long_lived.wanted.clone().filter(|_| invocation.known);
        all.push(long_lived);
        let pid = run_short_lived(&invocation).with_context(|| format!("{}, short-lived", invocation.name))?;
        all.push(Ran { name: invocation.name, pid, wanted, is_long_lived: false });
    }
    let mut wrong = Vec::new();
    for ran in all {
        let document = monitor.wait_for(ran.name, |document| document["process"]["pid"] == ran.pid)?;
        let wanted = ran.wanted.map_or(Value::Null, Value::String);
        let found = &document["process"]["executable"];
        if *found != wanted {
            wrong.push(format!("{} (long-lived: {}): {found}, not {wanted}", ran.name, ran.is_long_lived));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// `process.args_count` is right even if the program has more arguments than a sample holds.
fn arguments_that_are_not_kept_are_counted() -> Result<()> {
    let whole = kept_arguments(&[])?;
    let pieces = kept_arguments(&["--mask", "arrays"])?;
    ensure!(whole == pieces, "{whole:?} with arrays, {pieces:?} without");
    Ok(())
}

/// The `process.args` of a program with many arguments.
fn kept_arguments(options: &[&str]) -> Result<Value> {
    let monitor = Socktrail::flows(options)?;
    let address = "127.0.0.1:7"; // without a listener
    let long = "x".repeat(400);
    let mut args = vec![PROGRAM, RUN, "tcp-ask", address, "0"];
    args.extend([long.as_str(); 8]);
    let client = Process::start(&args)?.finish()?;
    let document = monitor.wait_for("the client", |document| document["process"]["pid"] == client.pid)?;
    let process = &document["process"];
    ensure!(process["args_count"] == args.len(), "{} arguments, not {}", process["args_count"], args.len());
    let kept = process["args"].as_array().context("no process.args")?.len();
    let cut = document["system"]["audit"]["socket"]["args_cut"] == true;
    ensure!(cut == (kept < args.len()), "{kept} are kept, but args_cut is {cut}");
    Ok(process["args"].clone())
}

/// Without exec probes, a process has its own program or none, never its parent's. Long-lived processes have theirs, from
/// `/proc`, if a probe shows that their credentials have not changed since.
fn no_program_is_wrong_without_exec_probes() -> Result<()> {
    const CLIENTS: usize = 10;
    let _here = Here::prepare()?;
    let invocation = &invocations()?[0];
    for (masks, known) in [(&["--mask", EXEC][..], true), (&["--mask", EXEC, "--mask", "commit_creds"], false)] {
        let monitor = Socktrail::flows(masks)?;
        let long_lived = (0..CLIENTS).map(|_| run_long_lived(invocation)).collect::<Result<Vec<_>>>()?;
        let short_lived = (0..CLIENTS).map(|_| run_short_lived(invocation)).collect::<Result<Vec<_>>>()?;
        let itself = Process::start(&[PROGRAM, RUN, "tcp-ask", &unused_address()?, "0"])?.finish()?.pid;
        let document = |pid: u32| monitor.wait_for("a client", move |document| document["process"]["pid"] == pid);
        let mut wrong = Vec::new();
        let mut check = |pid: u32, name: &str, is_known: bool| {
            let process = &document(pid)?["process"];
            let args = process["args"].as_array().map_or(&[][..], Vec::as_slice);
            let is_right = process["name"] == name && args.first().is_some_and(|first| *first == name);
            let is_absent = ["name", "executable", "args"].iter().all(|field| process[field].is_null());
            if !is_right && (is_known || !is_absent) {
                wrong.push(format!("{name}: {process}"));
            }
            anyhow::Ok(())
        };
        long_lived.iter().try_for_each(|ran| check(ran.pid, "nc", known))?;
        short_lived.into_iter().try_for_each(|pid| check(pid, "nc", false))?;
        check(itself, "guest-tests", false)?;
        ensure!(wrong.is_empty(), "{masks:?}: {}", wrong.join("\n"));
    }
    Ok(())
}

fn invocations() -> Result<Vec<Invocation>> {
    let here = Path::new(HERE);
    let invocation = |name, method, directory: &Path, file: PathBuf| Invocation {
        name,
        method,
        directory: directory.into(),
        file,
        known: true,
    };
    let path = |name, file: PathBuf| invocation(name, "path", Path::new("/"), file);
    let mut invocations = vec![
        path("an absolute path", copy(&here.join("nc"))?),
        path("a link", link("nc", &here.join("link"))?),
        path("a path through a link to a directory", {
            link(HERE, &here.join("itself"))?;
            here.join("itself/nc")
        }),
        invocation("a relative path", "path", here, "./nc".into()),
        invocation("a path that climbs", "path", &here.join("sub"), "../sub/../nc".into()),
        path("a name with odd bytes", copy(&here.join(odd(b"a b\nc\xff\xfe(\"")))?),
        path("a name that ends with (deleted)", copy(&here.join("nc (deleted)"))?),
        path("a name of 255 bytes", copy(&here.join("n".repeat(255)))?),
        path("a directory of 127 bytes", copy(&here.join("d".repeat(127)).join("nc"))?),
        path("directories of 127 bytes", copy(&long(COMPONENTS))?),
        invocation("a descriptor", "descriptor", here, here.join("nc")),
        invocation("a descriptor's path", "descriptor-path", here, here.join("nc")),
        invocation("a deleted file", "deleted", here, here.join("gone")),
        invocation("memory", "memory", here, here.join("nc")),
        path("a mount in a mount", copy(&here.join("outer/inner/bin/nc"))?),
        path("a directory that is mounted elsewhere", here.join("bound/nc")),
        path("a file that is mounted elsewhere", here.join("bound-file")),
        invocation("a chroot", "root", &here.join("root"), "/bin/nc".into()),
        invocation("a chroot in a mount", "root", &here.join("outer"), "/inner/bin/nc".into()),
        invocation("a container", "container", &here.join("root"), "/bin/nc".into()),
        invocation("a container of a mount", "container", &here.join("outer"), "/bin/nc".into()),
        path("as many components as are read", copy(&deep(COMPONENTS))?),
        Invocation { known: false, ..path("one more component", copy(&deep(COMPONENTS + 1))?) },
        Invocation { known: false, ..path("a longer directory", copy(&here.join("d".repeat(128)).join("nc"))?) },
    ];
    if here.join("overlay/bin").exists() {
        invocations.push(path("an overlay", here.join("overlay/bin/nc")));
    }
    Ok(invocations)
}

/// The path of a program with this many components.
fn deep(components: usize) -> PathBuf {
    let mut path = PathBuf::from(HERE);
    path.extend((2..components).map(|part| format!("part{part}")));
    path.join("nc")
}

/// The path of a program with this many components, most of them as long as the probe can read.
fn long(components: usize) -> PathBuf {
    let mut path = PathBuf::from(HERE);
    path.extend((2..components).map(|part| part.to_string().repeat(127)));
    path.join("nc")
}

fn odd(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()))
}

/// Starts a program, reads its `/proc/PID/exe`, and lets it end after a while.
fn run_long_lived(invocation: &Invocation) -> Result<Ran> {
    let server = TcpListener::bind("127.0.0.1:0")?;
    let process = start(invocation, server.local_addr()?)?;
    let (mut connection, _) = server.accept()?;
    let exe = fs::read_link(format!("/proc/{}/exe", process.pid))?;
    ensure!(exe != Path::new(EXECUTABLE), "the program was not executed");
    // Gives socktrail time to read /proc, before the process ends.
    std::thread::sleep(Duration::from_millis(400));
    connection.write_all(b"answer!\n")?;
    drop(connection);
    let pid = process.pid;
    process.finish()?;
    Ok(Ran { name: invocation.name, pid, wanted: Some(exe.to_string_lossy().into_owned()), is_long_lived: true })
}

/// Starts a program that ends at once, because its connect is refused. Returns its pid.
fn run_short_lived(invocation: &Invocation) -> Result<u32> {
    Ok(start(invocation, unused_address()?.parse()?)?.finish()?.pid)
}

fn start(invocation: &Invocation, there: SocketAddr) -> Result<Process> {
    if invocation.method == "deleted" {
        copy(&invocation.file)?;
    }
    let (directory, file) =
        (escape(invocation.directory.as_os_str().as_bytes()), escape(invocation.file.as_os_str().as_bytes()));
    let (ip, port) = (there.ip().to_string(), there.port().to_string());
    Process::start(&[PROGRAM, RUN, "become", invocation.method, &directory, &file, "nc", "-w", "20", &ip, &port])
}

/// An address without a listener.
fn unused_address() -> Result<String> {
    // It is unlikely that another socket gets this port soon: the kernel chooses among thousands.
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn copy(to: &Path) -> Result<PathBuf> {
    fs::create_dir_all(to.parent().context("no directory in the path")?)?;
    fs::copy(BUSYBOX, to).with_context(|| format!("copy to {to:?}"))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    Ok(to.to_owned())
}

fn link(to: &str, at: &Path) -> Result<PathBuf> {
    symlink(to, at)?;
    Ok(at.to_owned())
}

/// The directory of this module and its mounts; dropping it removes them.
struct Here(Vec<PathBuf>);

impl Here {
    fn prepare() -> Result<Self> {
        let here = Path::new(HERE);
        let mut mounted = Self(Vec::new());
        for directory in ["sub", "bound", "outer", "low/bin", "over", "overlay"] {
            fs::create_dir_all(here.join(directory))?;
        }
        fs::create_dir_all("/mnt")?;
        fs::write(here.join("bound-file"), "")?;
        copy(&here.join("nc"))?;
        copy(&here.join("root/bin/nc"))?;
        copy(&here.join("low/bin/nc"))?;
        let none = None::<&str>;
        mounted.mount(&here.join("outer"), |at| mount(Some("outer"), at, Some("tmpfs"), MsFlags::empty(), none))?;
        copy(&here.join("outer/bin/nc"))?;
        fs::create_dir_all(here.join("outer/inner"))?;
        mounted
            .mount(&here.join("outer/inner"), |at| mount(Some("inner"), at, Some("tmpfs"), MsFlags::empty(), none))?;
        let root = here.join("root/bin");
        mounted.mount(&here.join("bound"), |at| mount(Some(&root), at, none, MsFlags::MS_BIND, none))?;
        mounted
            .mount(&here.join("bound-file"), |at| mount(Some(&root.join("nc")), at, none, MsFlags::MS_BIND, none))?;
        let (low, over) = (here.join("low"), here.join("over"));
        mounted.mount(&over, |at| mount(Some("over"), at, Some("tmpfs"), MsFlags::empty(), none))?;
        let (up, work) = (over.join("up"), over.join("work"));
        fs::create_dir_all(&up)?;
        fs::create_dir_all(&work)?;
        let options = format!("lowerdir={},upperdir={},workdir={}", low.display(), up.display(), work.display());
        // Not every kernel has overlayfs.
        let overlay = |at: &Path| mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(options.as_str()));
        mounted.mount(&here.join("overlay"), overlay).ok();
        Ok(mounted)
    }

    fn mount(&mut self, at: &Path, mount: impl Fn(&Path) -> nix::Result<()>) -> Result<()> {
        mount(at).with_context(|| format!("mount {at:?}"))?;
        self.0.push(at.to_owned());
        Ok(())
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        for mounted in self.0.iter().rev() {
            umount2(mounted, MntFlags::MNT_DETACH).ok();
        }
        fs::remove_dir_all(HERE).ok();
    }
}
