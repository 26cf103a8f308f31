//! The container of a process is known from the start of the process, and is never that of another process.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::helpers::cgroups::{Hierarchy, procs};
use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::web::WebServer;
use crate::workloads::{PROGRAM, RUN};

tests![
    programs_that_live_for_milliseconds,
    children_that_run_no_program,
    a_process_moves_in_and_out,
    a_supervisor_of_a_container,
    a_container_older_than_the_monitor,
    a_process_that_starts_in_a_container,
    children_that_start_in_a_container_and_run_no_program,
    a_container_of_cgroup_v1,
    groups_of_every_runtime,
    groups_of_every_runtime_with_cgroup_v1,
];

const PORT: u16 = 8080;
const ID: &str = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970";
const OTHER: &str = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d";
/// The number of programs that a shell runs.
const PROGRAMS: usize = 30;
/// The number of children that a process forks.
const CHILDREN: usize = 100;

/// A shell in a Podman container runs one program after the other.
fn programs_that_live_for_milliseconds() -> Result<()> {
    let v2 = Hierarchy::v2()?;
    let (monitor, _server) = (start_monitor()?, WebServer::start(PORT)?);
    let shell = Shell::waiting(&format!("for i in $(seq {PROGRAMS}); do {REQUEST}; done"))?;
    v2.put(shell.pid(), &format!("/machine.slice/libpod-{ID}.scope/container"))?;
    let containers = shell.run(monitor, PORT)?;
    ensure!(containers == vec![Some(ID.to_owned()); PROGRAMS], "{containers:?}");
    Ok(())
}

/// A process in a Kubernetes container forks children, which send at once.
fn children_that_run_no_program() -> Result<()> {
    let v2 = Hierarchy::v2()?;
    let (monitor, receiver) = (start_monitor()?, UdpSocket::bind("127.0.0.1:0")?);
    let there = receiver.local_addr()?;
    let shell = Shell::waiting(&format!("exec {PROGRAM} {RUN} fork-and-send {there} {CHILDREN}"))?;
    v2.put(shell.pid(), &format!("/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-{ID}.scope"))?;
    let containers = shell.run(monitor, there.port())?;
    ensure!(containers == vec![Some(ID.to_owned()); CHILDREN], "{containers:?}");
    Ok(())
}

/// Flows before and after a process is in a container are not the container's.
fn a_process_moves_in_and_out() -> Result<()> {
    let v2 = Hierarchy::v2()?;
    let (monitor, _server) = (start_monitor()?, WebServer::start(PORT)?);
    let into = |path: &str| Ok::<_, anyhow::Error>(format!("echo $$ >{}", procs(&v2.make(path)?).display()));
    let (one, other) = (into(&format!("/docker/{ID}"))?, into(&format!("/docker/{OTHER}"))?);
    let out = into("/system.slice/ssh.service")?;
    let shell = Shell::waiting(&format!(
        "{REQUEST}; {one}; {REQUEST}; {other}; {REQUEST}; {out}; {REQUEST}; {one}; {REQUEST}"
    ))?;
    let containers = shell.run(monitor, PORT)?;
    let wanted = [None, Some(ID), Some(OTHER), None, Some(ID)].map(|id| id.map(str::to_owned));
    ensure!(containers == wanted, "{containers:?}");
    Ok(())
}

/// The cgroup of a container's supervisor (conmon) has the container's id in its name, but is not the container's.
fn a_supervisor_of_a_container() -> Result<()> {
    let v2 = Hierarchy::v2()?;
    let (monitor, _server) = (start_monitor()?, WebServer::start(PORT)?);
    let shell = Shell::waiting(&format!("{REQUEST}; {REQUEST}"))?;
    v2.put(shell.pid(), &format!("/machine.slice/libpod-conmon-{ID}.scope"))?;
    let containers = shell.run(monitor, PORT)?;
    ensure!(containers == [None, None], "{containers:?}");
    Ok(())
}

/// The process is in the container before the monitor starts, and its children start there.
fn a_container_older_than_the_monitor() -> Result<()> {
    let v2 = Hierarchy::v2()?;
    let _server = WebServer::start(PORT)?;
    let shell = Shell::waiting(&format!("for i in $(seq {PROGRAMS}); do {REQUEST}; done"))?;
    v2.put(shell.pid(), &format!("/system.slice/docker-{ID}.scope"))?;
    let monitor = start_monitor()?;
    let containers = shell.run(monitor, PORT)?;
    ensure!(containers == vec![Some(ID.to_owned()); PROGRAMS], "{containers:?}");
    Ok(())
}

/// A command that starts in a running container (`CLONE_INTO_CGROUP`), while its parent is elsewhere.
fn a_process_that_starts_in_a_container() -> Result<()> {
    let v2 = Hierarchy::v2()?;
    let (monitor, _server) = (start_monitor()?, WebServer::start(PORT)?);
    let (inside, outside) =
        (v2.make(&format!("/system.slice/docker-{ID}.scope"))?, v2.make("/system.slice/ssh.service")?);
    let start_in =
        |group: &Path| format!("{PROGRAM} {RUN} fork-into {} sh -c 'sleep 1; {REQUEST}; {REQUEST}'", group.display());
    let move_in = format!("echo $$ >{}", procs(&inside).display());
    let shell =
        Shell::waiting(&format!("{}; {REQUEST}; {move_in}; {}; {REQUEST}", start_in(&inside), start_in(&outside)))?;
    let containers = shell.run(monitor, PORT)?;
    let wanted = [Some(ID), Some(ID), None, None, None, Some(ID)].map(|id| id.map(str::to_owned));
    ensure!(containers == wanted, "{containers:?}");
    Ok(())
}

/// Children start in a container and end within a millisecond. Their parent and siblings are not in it.
fn children_that_start_in_a_container_and_run_no_program() -> Result<()> {
    let v2 = Hierarchy::v2()?;
    let (monitor, receiver) = (start_monitor()?, UdpSocket::bind(("127.0.0.1", PORT))?);
    let (group, there) = (v2.make(&format!("/system.slice/docker-{ID}.scope/init.scope"))?, receiver.local_addr()?);
    let shell =
        Shell::waiting(&format!("exec {PROGRAM} {RUN} fork-into-and-send {} {there} {CHILDREN}", group.display()))?;
    let documents = shell.documents(monitor)?;
    let (inside, beside) = (containers(&documents, PORT), containers(&documents, PORT + 1));
    ensure!(inside == vec![Some(ID.to_owned()); CHILDREN], "{inside:?}");
    ensure!(beside == vec![None; CHILDREN], "{beside:?}");
    Ok(())
}

/// The process has a container's group in cgroup v1 only.
fn a_container_of_cgroup_v1() -> Result<()> {
    let (v1, v2) = (Hierarchy::v1()?, Hierarchy::v2()?);
    let (monitor, _server) = (start_monitor()?, WebServer::start(PORT)?);
    let shell = Shell::waiting(&format!("{REQUEST}; {REQUEST}"))?;
    v1.put(shell.pid(), "/lxc/web")?;
    v2.put(shell.pid(), "/user.slice")?;
    let containers = shell.run(monitor, PORT)?;
    ensure!(containers == vec![Some("web".to_owned()); 2], "{containers:?}");
    Ok(())
}

/// Groups as container runtimes make them, with the container id of each.
const GROUPS: &[(&str, Option<&str>)] = &[
    ("/docker/ID", Some(ID)),
    ("/docker/buildkit/gpzz5x1wvkbq6pwsdwzgk4ek9", None),
    ("/system.slice/docker-ID.scope/system.slice/ssh.service", Some(ID)),
    ("/system.slice/containerd.service", None),
    ("/default/redis", Some("redis")),
    ("/kubepods/besteffort/pod2c48913c-b29f-11e7-9350-020968147796/ID", Some(ID)),
    ("/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-ID.scope", Some(ID)),
    ("/system.slice/containerd.service/kubepods-pod1_2.slice:cri-containerd:ID", Some(ID)),
    ("/kubepods.slice/kubepods-pod1_2.slice/crio-ID.scope/container", Some(ID)),
    ("/kubepods.slice/kubepods-pod1_2.slice/crio-conmon-ID.scope", None),
    ("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container", Some(ID)),
    ("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-conmon-ID.scope", None),
    ("/lxc/web/init.scope", Some("web")),
    ("/lxc.payload.web/init.scope", Some("web")),
    ("/lxc.monitor.web", None),
    (r"/machine.slice/machine-my\x2dweb.scope/payload/init.scope", Some("my-web")),
    (r"/machine.slice/machine-my\x2dweb.scope/supervisor", None),
];

fn groups_of_every_runtime() -> Result<()> {
    move_through_groups(&Hierarchy::v2()?)
}

fn groups_of_every_runtime_with_cgroup_v1() -> Result<()> {
    move_through_groups(&Hierarchy::v1()?)
}

/// A shell moves itself into each group, and makes a flow there.
fn move_through_groups(hierarchy: &Hierarchy) -> Result<()> {
    let (monitor, _server) = (start_monitor()?, WebServer::start(PORT)?);
    let mut script = String::new();
    for (path, _) in GROUPS {
        let group = hierarchy.make(&path.replace("ID", ID))?;
        script += &format!("echo $$ >'{}'; {REQUEST}; ", procs(&group).display());
    }
    let containers = Shell::waiting(&format!("{script}true"))?.run(monitor, PORT)?;
    let wanted: Vec<_> = GROUPS.iter().map(|(_, id)| id.map(str::to_owned)).collect();
    ensure!(containers == wanted, "{containers:?}");
    Ok(())
}

fn start_monitor() -> Result<Socktrail> {
    Socktrail::flows(&[])
}

/// The command that makes a flow. The shell forks for it, because it is not the last command.
const REQUEST: &str = "wget -q -O /dev/null http://127.0.0.1:8080/";

/// A shell that waits before it runs a script.
struct Shell {
    process: Process,
}

const CONTINUE: &str = "/tmp/go-on";

impl Shell {
    fn waiting(script: &str) -> Result<Self> {
        fs::remove_file(CONTINUE).ok();
        let script = format!("until [ -e {CONTINUE} ]; do usleep 10000; done; {script}; true");
        Ok(Self { process: Process::start(&["sh", "-c", &script])? })
    }

    fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Runs the script, stops the monitor, and returns the containers of the outgoing flows to a port, in order.
    fn run(self, monitor: Socktrail, port: u16) -> Result<Vec<Option<String>>> {
        Ok(containers(&self.documents(monitor)?, port))
    }

    /// Runs the script, stops the monitor, and returns its documents.
    fn documents(self, monitor: Socktrail) -> Result<Vec<Value>> {
        fs::write(CONTINUE, "")?;
        let shell = self.process.finish()?;
        ensure!(shell.status == 0, "{shell:?}");
        Ok(monitor.stop()?.documents)
    }
}

/// The containers of the outgoing flows to a port, in order.
fn containers(documents: &[Value], port: u16) -> Vec<Option<String>> {
    let is_outgoing =
        |document: &&Value| document["destination"]["port"] == port && document["network"]["direction"] == "egress";
    let mut documents: Vec<_> = documents.iter().filter(is_outgoing).collect();
    documents.sort_by_key(|document| document["event"]["start"].as_str().map(str::to_owned));
    let container = |document: &&Value| document.pointer("/container/id")?.as_str().map(str::to_owned);
    documents.iter().map(container).collect()
}
