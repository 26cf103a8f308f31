//! The demo on this machine: in a control group of its own, over loopback. Nothing else on the machine is observed or changed.

use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::LineCounter;
use crate::binaries;
use crate::options::EXIT_RUNNER;
use crate::process;

/// What a client asks for, and gets from the server.
const PAGE: &str = "Hello from this machine.\n";

/// Why this machine cannot show flows of a control group.
#[derive(Debug)]
pub enum Reason {
    /// The demo is not run by root.
    NotRoot,
    /// The kernel has no type information.
    NoTypeInformation,
    /// No hierarchy of cgroup v2 is mounted, or a group cannot be made there.
    NoControlGroup(String),
    /// `curl` is not installed.
    NoCurl,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRoot => f.write_str("it is not run by root"),
            Self::NoTypeInformation => f.write_str("this kernel has no type information (/sys/kernel/btf/vmlinux)"),
            Self::NoControlGroup(why) => write!(f, "there is no control group for it: {why}"),
            Self::NoCurl => f.write_str("curl is not installed here"),
        }
    }
}

/// A control group of the demo. Dropping it moves this process back and removes the group.
pub struct Place {
    group: PathBuf,
    /// The group of this process before.
    before: PathBuf,
}

impl Place {
    /// Makes the group, if this machine can show its flows.
    pub fn find() -> Result<Self, Reason> {
        if !geteuid().is_root() {
            return Err(Reason::NotRoot);
        }
        if !Path::new("/sys/kernel/btf/vmlinux").exists() {
            return Err(Reason::NoTypeInformation);
        }
        if !process::exists("curl") {
            return Err(Reason::NoCurl);
        }
        let mount = mount_of_cgroup2(&fs::read_to_string("/proc/self/mounts").unwrap_or_default());
        let mount = mount.ok_or_else(|| Reason::NoControlGroup("cgroup2 is not mounted".to_owned()))?;
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let place =
            Self { group: mount.join(format!("socktrail-demo-{}", std::process::id())), before: mount.join(own) };
        let made = fs::create_dir(&place.group);
        made.map_err(|error| Reason::NoControlGroup(format!("{}: {error}", place.group.display())))?;
        Ok(place)
    }

    /// Moves this process into the group. Its children follow.
    fn enter(&self) -> Result<()> {
        let file = self.group.join("cgroup.procs");
        fs::write(&file, "0").with_context(|| format!("write {}", file.display()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::write(self.before.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&self.group);
    }
}

/// The first mount point of cgroup v2 in the text of `/proc/self/mounts`.
fn mount_of_cgroup2(mounts: &str) -> Option<PathBuf> {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mut of_cgroup2 = fields.filter(|fields| fields.get(2) == Some(&"cgroup2"));
    of_cgroup2.next().map(|fields| fields[1].into())
}

/// Runs the demo in the group; documents go to standard output.
pub fn run(place: Place, timeout: Duration) -> Result<u8> {
    eprintln!("vm: building socktrail");
    let mut monitor = Monitor::start(&binaries::build_here()?, &place.group, timeout)?;
    place.enter()?;
    make_traffic()?;
    eprintln!("demo: stopping socktrail");
    let count = monitor.stop()?;
    eprintln!("vm: {count} documents");
    drop(place);
    if count == 0 {
        eprintln!("vm: the demo failed: there were no documents");
        return Ok(EXIT_RUNNER);
    }
    Ok(0)
}

/// A running `socktrail flows`, whose documents are copied to standard output.
struct Monitor {
    child: Child,
    copying: Option<thread::JoinHandle<io::Result<u64>>>,
    documents: LineCounter,
    deadline: Instant,
}

impl Monitor {
    fn start(socktrail: &Path, group: &Path, timeout: Duration) -> Result<Self> {
        let mut command = Command::new(socktrail);
        command.args(["flows", "--format", "ecs", "--cgroup"]).arg(group);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start socktrail")?;
        let mut stderr = BufReader::new(child.stderr.take().context("standard error")?);
        let mut said = String::new();
        while !said.contains("socktrail: ready") {
            if stderr.read_line(&mut said)? == 0 {
                bail!("socktrail ended too early: {said}");
            }
        }
        eprint!("{said}");
        thread::spawn(move || io::copy(&mut stderr, &mut io::stderr()));
        let documents = LineCounter::default();
        let (mut stdout, mut to) = (child.stdout.take().context("standard output")?, documents.clone());
        let copying = Some(thread::spawn(move || io::copy(&mut stdout, &mut to)));
        Ok(Self { child, copying, documents, deadline: Instant::now() + timeout })
    }

    /// Stops it, and waits until all documents are written. Returns their number.
    fn stop(&mut self) -> Result<u64> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT).context("stop socktrail")?;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < self.deadline, "socktrail does not end");
            thread::sleep(Duration::from_millis(10));
        }
        let status = self.child.wait()?;
        if let Some(copying) = self.copying.take() {
            copying.join().map_err(|_| anyhow::anyhow!("the thread that copies documents panicked"))??;
        }
        ensure!(status.success(), "socktrail failed: {status}");
        Ok(self.documents.lines())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A web server with its clients over IPv4 and IPv6, and a datagram each way.
fn make_traffic() -> Result<()> {
    for (version, address) in [("IPv4", "127.0.0.1:0"), ("IPv6", "[::1]:0")] {
        let server = match TcpListener::bind(address) {
            Ok(server) => server,
            Err(error) => {
                eprintln!("demo: there is no {version} here: {error}");
                continue;
            }
        };
        eprintln!("demo: curl, over {version}");
        let url = format!("http://{}/", server.local_addr()?);
        let answering = thread::spawn(move || server.accept().and_then(|(stream, _)| answer(stream)));
        // A proxy would be another connection than the one that is shown.
        let page = process::output(Command::new("curl").args(["--silent", "--show-error", "--noproxy", "*", &url]))?;
        ensure!(page == PAGE, "curl got {page:?}");
        answering.join().map_err(|_| anyhow::anyhow!("the web server panicked"))??;
    }
    eprintln!("demo: one datagram each way");
    let [one, other] = [UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?];
    one.send_to(b"ping\n", other.local_addr()?)?;
    let (_, from): (usize, SocketAddr) = other.recv_from(&mut [0; 16])?;
    other.send_to(b"pong\n", from)?;
    one.recv(&mut [0; 16])?;
    Ok(())
}

/// Answers one request with the page.
fn answer(stream: TcpStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line)? > 2 {
        line.clear();
    }
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", PAGE.len());
    stream.get_mut().write_all(format!("{head}{PAGE}").as_bytes())?;
    // The client closes first.
    stream.read_to_end(&mut Vec::new()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_of_cgroup_v2_is_found_beside_those_of_v1() {
        let mounts = "proc /proc proc rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_of_cgroup2(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_of_cgroup2("proc /proc proc rw 0 0\n"), None);
    }
}
