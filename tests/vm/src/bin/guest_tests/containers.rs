//! The container of a process is known from its first instruction, and is never another process's.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::actors::{ACT, PROGRAM};
use crate::helpers::cgroups::{Hierarchy, procs};
use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::web::WebServer;

tests![
    programs_that_live_for_milliseconds,
    children_that_run_no_program,
    a_process_moves_in_and_out,
    a_monitor_of_a_container,
    a_container_older_than_the_monitor,
    a_process_that_begins_in_a_container,
    children_that_begin_in_a_container_and_run_no_program,
    a_container_of_cgroup_v1,
    groups_of_every_runtime,
    groups_of_every_runtime_with_cgroup_v1,
];

const PORT: u16 = 8080;
const ID: &str = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970";
const OTHER: &str = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d";
/// How many programs and children there are.
const PROGRAMS: usize = 30;
const CHILDREN: usize = 100;

/// A shell that a runtime has moved into a Podman container runs one program after the other.
fn programs_that_live_for_milliseconds() -> Result<()> {
    let v2 = Hierarchy::v2()?;
    let (watch, _server) = (watch()?, WebServer::start(PORT)?);
    let shell = Shell::waiting(&format!("for i in $(seq {PROGRAMS}); do {ASK}; done"))?;
    v2.put(shell.pid(), &format!("/machine.slice/libpod-{ID}.scope/container"))?;
    let asked = shell.go_on(watch, PORT)?;
    ensure!(asked == vec![Some(ID.to_owned()); PROGRAMS], "{asked:?}");
    Ok(())
}

/// A process in a Kubernetes container forks, and its children talk at once.
fn children_that_run_no_program() -> Result<()> {
    let v2 = Hierarchy::v2()?;
    let (watch, receiver) = (watch()?, UdpSocket::bind("127.0.0.1:0")?);
    let there = receiver.local_addr()?;
    let shell = Shell::waiting(&format!("exec {PROGRAM} {ACT} fork-and-send {there} {CHILDREN}"))?;
    v2.put(shell.pid(), &format!("/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-{ID}.scope"))?;
    let asked = shell.go_on(watch, there.port())?;
    ensure!(asked == vec![Some(ID.to_owned()); CHILDREN], "{asked:?}");
    Ok(())
}

/// What a process does before and after it is in the container does not belong to the container.
fn a_process_moves_in_and_out() -> Result<()> {
    let v2 = Hierarchy::v2()?;
    let (watch, _server) = (watch()?, WebServer::start(PORT)?);
    let into = |path: &str| Ok::<_, anyhow::Error>(format!("echo $$ >{}", procs(&v2.make(path)?).display()));
    let (one, other) = (into(&format!("/docker/{ID}"))?, into(&format!("/docker/{OTHER}"))?);
    let out = into("/system.slice/ssh.service")?;
    let shell = Shell::waiting(&format!("{ASK}; {one}; {ASK}; {other}; {ASK}; {out}; {ASK}; {one}; {ASK}"))?;
    let asked = shell.go_on(watch, PORT)?;
    let wanted = [None, Some(ID), Some(OTHER), None, Some(ID)].map(|id| id.map(str::to_owned));
    ensure!(asked == wanted, "{asked:?}");
    Ok(())
}

/// A monitor has the container's id in the name of its group, but is not in the container.
fn a_monitor_of_a_container() -> Result<()> {
    let v2 = Hierarchy::v2()?;
    let (watch, _server) = (watch()?, WebServer::start(PORT)?);
    let shell = Shell::waiting(&format!("{ASK}; {ASK}"))?;
    v2.put(shell.pid(), &format!("/machine.slice/libpod-conmon-{ID}.scope"))?;
    let asked = shell.go_on(watch, PORT)?;
    ensure!(asked == [None, None], "{asked:?}");
    Ok(())
}

/// No move is seen: the process is in the container already, and its children start there.
fn a_container_older_than_the_monitor() -> Result<()> {
    let v2 = Hierarchy::v2()?;
    let _server = WebServer::start(PORT)?;
    let shell = Shell::waiting(&format!("for i in $(seq {PROGRAMS}); do {ASK}; done"))?;
    v2.put(shell.pid(), &format!("/system.slice/docker-{ID}.scope"))?;
    let watch = watch()?;
    let asked = shell.go_on(watch, PORT)?;
    ensure!(asked == vec![Some(ID.to_owned()); PROGRAMS], "{asked:?}");
    Ok(())
}

/// A command executed in a running container: it is never moved, and its parent is elsewhere (`CLONE_INTO_CGROUP`).
fn a_process_that_begins_in_a_container() -> Result<()> {
    let v2 = Hierarchy::v2()?;
    let (watch, _server) = (watch()?, WebServer::start(PORT)?);
    let (inside, outside) =
        (v2.make(&format!("/system.slice/docker-{ID}.scope"))?, v2.make("/system.slice/ssh.service")?);
    let start_in =
        |group: &Path| format!("{PROGRAM} {ACT} fork-into {} sh -c 'sleep 1; {ASK}; {ASK}'", group.display());
    let go_in = format!("echo $$ >{}", procs(&inside).display());
    let shell = Shell::waiting(&format!("{}; {ASK}; {go_in}; {}; {ASK}", start_in(&inside), start_in(&outside)))?;
    let asked = shell.go_on(watch, PORT)?;
    let wanted = [Some(ID), Some(ID), None, None, None, Some(ID)].map(|id| id.map(str::to_owned));
    ensure!(asked == wanted, "{asked:?}");
    Ok(())
}

/// Children begin in a container and end within a millisecond. Their parent and their siblings are not in it.
fn children_that_begin_in_a_container_and_run_no_program() -> Result<()> {
    let v2 = Hierarchy::v2()?;
    let (watch, receiver) = (watch()?, UdpSocket::bind(("127.0.0.1", PORT))?);
    let (group, there) = (v2.make(&format!("/system.slice/docker-{ID}.scope/init.scope"))?, receiver.local_addr()?);
    let shell =
        Shell::waiting(&format!("exec {PROGRAM} {ACT} fork-into-and-send {} {there} {CHILDREN}", group.display()))?;
    let documents = shell.documents(watch)?;
    let (inside, beside) = (containers(&documents, PORT), containers(&documents, PORT + 1));
    ensure!(inside == vec![Some(ID.to_owned()); CHILDREN], "{inside:?}");
    ensure!(beside == vec![None; CHILDREN], "{beside:?}");
    Ok(())
}

/// Only one of two hierarchies names the container.
fn a_container_of_cgroup_v1() -> Result<()> {
    let (v1, v2) = (Hierarchy::v1()?, Hierarchy::v2()?);
    let (watch, _server) = (watch()?, WebServer::start(PORT)?);
    let shell = Shell::waiting(&format!("{ASK}; {ASK}"))?;
    v1.put(shell.pid(), "/lxc/web")?;
    v2.put(shell.pid(), "/user.slice")?;
    let asked = shell.go_on(watch, PORT)?;
    ensure!(asked == vec![Some("web".to_owned()); 2], "{asked:?}");
    Ok(())
}

/// The groups that runtimes make, and the containers that these are of.
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
    visits(&Hierarchy::v2()?)
}

fn groups_of_every_runtime_with_cgroup_v1() -> Result<()> {
    visits(&Hierarchy::v1()?)
}

/// A shell moves itself into one group after the other, and makes a flow in each.
fn visits(hierarchy: &Hierarchy) -> Result<()> {
    let (watch, _server) = (watch()?, WebServer::start(PORT)?);
    let mut script = String::new();
    for (path, _) in GROUPS {
        let group = hierarchy.make(&path.replace("ID", ID))?;
        script += &format!("echo $$ >'{}'; {ASK}; ", procs(&group).display());
    }
    let asked = Shell::waiting(&format!("{script}true"))?.go_on(watch, PORT)?;
    let wanted: Vec<_> = GROUPS.iter().map(|(_, id)| id.map(str::to_owned)).collect();
    ensure!(asked == wanted, "{asked:?}");
    Ok(())
}

fn watch() -> Result<Socktrail> {
    Socktrail::flows(&[])
}

/// What a shell runs to make a flow. As it is not the last command, the shell forks for it.
const ASK: &str = "wget -q -O /dev/null http://127.0.0.1:8080/";

/// A shell that waits until it has been moved.
struct Shell {
    process: Process,
}

const GO: &str = "/tmp/go-on";

impl Shell {
    fn waiting(script: &str) -> Result<Self> {
        fs::remove_file(GO).ok();
        let script = format!("until [ -e {GO} ]; do usleep 10000; done; {script}; true");
        Ok(Self { process: Process::start(&["sh", "-c", &script])? })
    }

    fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Lets the shell go on, stops the monitor, and returns the containers of the outgoing flows to a port, in order.
    fn go_on(self, watch: Socktrail, port: u16) -> Result<Vec<Option<String>>> {
        Ok(containers(&self.documents(watch)?, port))
    }

    /// Lets the shell go on, stops the monitor, and returns its documents.
    fn documents(self, watch: Socktrail) -> Result<Vec<Value>> {
        fs::write(GO, "")?;
        let shell = self.process.finish()?;
        ensure!(shell.status == 0, "{shell:?}");
        Ok(watch.stop()?.documents)
    }
}

/// The containers of the outgoing flows to a port, in order.
fn containers(documents: &[Value], port: u16) -> Vec<Option<String>> {
    let is_asked_for =
        |document: &&Value| document["destination"]["port"] == port && document["network"]["direction"] == "egress";
    let mut documents: Vec<_> = documents.iter().filter(is_asked_for).collect();
    documents.sort_by_key(|document| document["event"]["start"].as_str().map(str::to_owned));
    let container = |document: &&Value| document.pointer("/container/id")?.as_str().map(str::to_owned);
    documents.iter().map(container).collect()
}
