//! `process.executable` is always the path in `/proc/PID/exe`, however the program was started and however short-lived
//! it was.

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

use crate::actors::{ACT, EXECUTABLE, PROGRAM, escaped};
use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;

tests![
    executables_have_one_spelling,
    executables_have_one_spelling_without_arrays,
    arguments_are_counted_that_are_not_kept,
    no_program_is_wrong_where_execs_are_not_seen,
];

/// A program that connects when its name is `nc`, and where it is copied from.
const BUSYBOX: &str = "/usr/bin/busybox";
/// The folder of this test's files.
const HERE: &str = "/programs";
/// The function whose probe sees execs.
const EXEC: &str = "security_bprm_committed_creds";
/// How many parts of a path within a mount are read in the kernel.
const PARTS: usize = 7;

/// One way to start a program.
struct Way {
    /// What it is.
    what: &'static str,
    how: &'static str,
    directory: PathBuf,
    file: PathBuf,
    /// Whether the path is known even for a program that has ended.
    known: bool,
}

/// A program that was started in some way and has talked.
struct Ran {
    what: &'static str,
    pid: u32,
    /// The path that it should have; `None` if it cannot be known.
    wanted: Option<String>,
    lived: bool,
}

fn executables_have_one_spelling() -> Result<()> {
    one_spelling(&[])
}

/// Before Linux 4.20 an exec is fetched word by word, by several events.
fn executables_have_one_spelling_without_arrays() -> Result<()> {
    one_spelling(&["--mask", "arrays"])
}

fn one_spelling(options: &[&str]) -> Result<()> {
    let _here = Here::prepare()?;
    let watch = Socktrail::flows(options)?;
    let mut all = Vec::new();
    for way in ways()? {
        let alive = alive(&way).with_context(|| format!("{}, alive", way.what))?;
        let wanted = alive.wanted.clone().filter(|_| way.known);
        all.push(alive);
        let pid = short(&way).with_context(|| format!("{}, short-lived", way.what))?;
        all.push(Ran { what: way.what, pid, wanted, lived: false });
    }
    let mut wrong = Vec::new();
    for ran in all {
        let document = watch.wait_for(ran.what, |document| document["process"]["pid"] == ran.pid)?;
        let wanted = ran.wanted.map_or(Value::Null, Value::String);
        let found = &document["process"]["executable"];
        if *found != wanted {
            wrong.push(format!("{} (lived: {}): {found}, not {wanted}", ran.what, ran.lived));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The number of arguments is right even if the program has more than are captured.
fn arguments_are_counted_that_are_not_kept() -> Result<()> {
    let whole = kept_arguments(&[])?;
    let pieces = kept_arguments(&["--mask", "arrays"])?;
    ensure!(whole == pieces, "{whole:?} with arrays, {pieces:?} without");
    Ok(())
}

/// The arguments that are kept of many.
fn kept_arguments(options: &[&str]) -> Result<Value> {
    let watch = Socktrail::flows(options)?;
    let port = "127.0.0.1:7"; // nobody listens there
    let long = "x".repeat(400);
    let mut args = vec![PROGRAM, ACT, "tcp-ask", port, "0"];
    args.extend([long.as_str(); 8]);
    let client = Process::start(&args)?.finish()?;
    let document = watch.wait_for("the client", |document| document["process"]["pid"] == client.pid)?;
    let process = &document["process"];
    ensure!(process["args_count"] == args.len(), "{} arguments, not {}", process["args_count"], args.len());
    let kept = process["args"].as_array().context("some are kept")?.len();
    let cut = document["system"]["audit"]["socket"]["args_cut"] == true;
    ensure!(cut == (kept < args.len()), "{kept} are kept, and cut is {cut}");
    Ok(process["args"].clone())
}

/// Without events of execs, a process has its own program or none, never its parent's. Those that live for a while have
/// theirs, from `/proc`, if it is seen that their credentials did not change since.
fn no_program_is_wrong_where_execs_are_not_seen() -> Result<()> {
    const CLIENTS: usize = 10;
    let _here = Here::prepare()?;
    let way = &ways()?[0];
    for (masks, known) in [(&["--mask", EXEC][..], true), (&["--mask", EXEC, "--mask", "commit_creds"], false)] {
        let watch = Socktrail::flows(masks)?;
        let alive = (0..CLIENTS).map(|_| alive(way)).collect::<Result<Vec<_>>>()?;
        let short = (0..CLIENTS).map(|_| short(way)).collect::<Result<Vec<_>>>()?;
        let itself = Process::start(&[PROGRAM, ACT, "tcp-ask", &closed()?, "0"])?.finish()?.pid;
        let document = |pid: u32| watch.wait_for("a client", move |document| document["process"]["pid"] == pid);
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
        alive.iter().try_for_each(|ran| check(ran.pid, "nc", known))?;
        short.into_iter().try_for_each(|pid| check(pid, "nc", false))?;
        check(itself, "guest-tests", false)?;
        ensure!(wrong.is_empty(), "{masks:?}: {}", wrong.join("\n"));
    }
    Ok(())
}

fn ways() -> Result<Vec<Way>> {
    let here = Path::new(HERE);
    let way =
        |what, how, directory: &Path, file: PathBuf| Way { what, how, directory: directory.into(), file, known: true };
    let path = |what, file: PathBuf| way(what, "path", Path::new("/"), file);
    let mut ways = vec![
        path("an absolute path", copy(&here.join("nc"))?),
        path("a link", link("nc", &here.join("link"))?),
        path("a path through a link to a directory", {
            link(HERE, &here.join("itself"))?;
            here.join("itself/nc")
        }),
        way("a relative path", "path", here, "./nc".into()),
        way("a path that climbs", "path", &here.join("sub"), "../sub/../nc".into()),
        path("a name with odd bytes", copy(&here.join(odd(b"a b\nc\xff\xfe(\"")))?),
        path("a name that says that it was deleted", copy(&here.join("nc (deleted)"))?),
        path("a name of 255 bytes", copy(&here.join("n".repeat(255)))?),
        path("a directory of 127 bytes", copy(&here.join("d".repeat(127)).join("nc"))?),
        way("a descriptor", "descriptor", here, here.join("nc")),
        way("a descriptor's path", "descriptor-path", here, here.join("nc")),
        way("a deleted file", "deleted", here, here.join("gone")),
        way("memory", "memory", here, here.join("nc")),
        path("a mount in a mount", copy(&here.join("outer/inner/bin/nc"))?),
        path("a directory that is mounted elsewhere", here.join("bound/nc")),
        path("a file that is mounted elsewhere", here.join("bound-file")),
        way("a chroot", "root", &here.join("root"), "/bin/nc".into()),
        way("a chroot in a mount", "root", &here.join("outer"), "/inner/bin/nc".into()),
        way("a container", "container", &here.join("root"), "/bin/nc".into()),
        way("a container of a mount", "container", &here.join("outer"), "/bin/nc".into()),
        path("as deep as is read", copy(&deep(PARTS))?),
        Way { known: false, ..path("deeper", copy(&deep(PARTS + 1))?) },
        Way { known: false, ..path("a longer directory", copy(&here.join("d".repeat(128)).join("nc"))?) },
    ];
    if here.join("overlay/bin").exists() {
        ways.push(path("an overlay", here.join("overlay/bin/nc")));
    }
    Ok(ways)
}

/// The path of a program, with this many parts.
fn deep(parts: usize) -> PathBuf {
    let mut path = PathBuf::from(HERE);
    path.extend((2..parts).map(|part| format!("part{part}")));
    path.join("nc")
}

fn odd(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()))
}

/// Starts a program that stays alive, and reads its `/proc/PID/exe`.
fn alive(way: &Way) -> Result<Ran> {
    let server = TcpListener::bind("127.0.0.1:0")?;
    let process = start(way, server.local_addr()?)?;
    let (mut connection, _) = server.accept()?;
    let exe = fs::read_link(format!("/proc/{}/exe", process.pid))?;
    ensure!(exe != Path::new(EXECUTABLE), "it has become another program");
    // Gives socktrail time to ask /proc, and then changes what it would find there.
    std::thread::sleep(Duration::from_millis(400));
    connection.write_all(b"answer!\n")?;
    drop(connection);
    let pid = process.pid;
    process.finish()?;
    Ok(Ran { what: way.what, pid, wanted: Some(exe.to_string_lossy().into_owned()), lived: true })
}

/// Starts a program that ends at once, since nobody listens; returns its id.
fn short(way: &Way) -> Result<u32> {
    Ok(start(way, closed()?.parse()?)?.finish()?.pid)
}

fn start(way: &Way, there: SocketAddr) -> Result<Process> {
    if way.how == "deleted" {
        copy(&way.file)?;
    }
    let (directory, file) = (escaped(way.directory.as_os_str().as_bytes()), escaped(way.file.as_os_str().as_bytes()));
    let (ip, port) = (there.ip().to_string(), there.port().to_string());
    Process::start(&[PROGRAM, ACT, "become", way.how, &directory, &file, "nc", "-w", "20", &ip, &port])
}

/// An address where nobody listens.
fn closed() -> Result<String> {
    // The kernel does not give the port of a closed socket to another for a while.
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn copy(to: &Path) -> Result<PathBuf> {
    fs::create_dir_all(to.parent().context("it has a directory")?)?;
    fs::copy(BUSYBOX, to).with_context(|| format!("copy to {to:?}"))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    Ok(to.to_owned())
}

fn link(to: &str, at: &Path) -> Result<PathBuf> {
    symlink(to, at)?;
    Ok(at.to_owned())
}

/// The directory of this test and the mounts in it, which are removed on drop.
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
        // Not every kernel of the tests has overlays.
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
