//! `host.*`: facts about this host for all documents, gathered once at start.

pub mod agent;
mod os;

use std::path::Path;

use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

use crate::model::bounded;

pub use os::Os;

/// `host.*`: the machine. Unknown fields are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The same as [`hostname`](Self::hostname).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The host name, as `uname -n` gives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The machine's id: `/etc/machine-id`, or that of D-Bus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The machine's architecture, as `uname -m` gives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Its operating system.
    pub os: Os,
    /// Whether this program runs in a container. Other fields may then be about the container, not the host.
    pub containerized: bool,
    /// The current boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
}

/// `host.boot.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// A random id for each boot: `/proc/sys/kernel/random/boot_id`.
    pub id: String,
}

/// The result of `uname(2)`.
#[derive(Debug, Clone, Default)]
struct Uname {
    node: String,
    release: String,
    machine: String,
}

impl Host {
    /// Gathers the facts of this host. A field is left out if its file is missing, unreadable or malformed.
    pub fn gather() -> Self {
        let name = uname().map(|name| Uname {
            node: name.nodename().to_string_lossy().into_owned(),
            release: name.release().to_string_lossy().into_owned(),
            machine: name.machine().to_string_lossy().into_owned(),
        });
        Self::gather_from(Path::new("/"), name.unwrap_or_default())
    }

    fn gather_from(root: &Path, uname: Uname) -> Self {
        let hostname = non_empty(uname.node);
        Self {
            name: hostname.clone(),
            hostname,
            id: machine_id(root),
            architecture: non_empty(uname.machine),
            os: Os::gather_from(root, non_empty(uname.release)),
            containerized: is_container(root),
            boot: bounded::line(&root.join("proc/sys/kernel/random/boot_id")).map(|id| Boot { id }),
        }
    }
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// The machine's id: 32 hexadecimal digits. During the first boot, systemd writes `uninitialized` instead.
fn machine_id(root: &Path) -> Option<String> {
    let is_id = |id: &String| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let places = ["etc/machine-id", "var/lib/dbus/machine-id"];
    places.iter().filter_map(|place| bounded::line(&root.join(place))).find(is_id)
}

/// Whether this is a container. Docker and Podman create a file, systemd's container interface another one. The name of the
/// container manager is in the cgroup of process 1, unless a cgroup namespace hides it.
fn is_container(root: &Path) -> bool {
    let marks = [".dockerenv", "run/.containerenv", "run/systemd/container"];
    let managers = ["/docker", "/kubepods", "/lxc", "/libpod", "/containerd", "/crio"];
    marks.iter().any(|mark| root.join(mark).exists())
        || bounded::text(&root.join("proc/1/cgroup"))
            .is_ok_and(|cgroups| cgroups.lines().any(|line| managers.iter().any(|manager| line.contains(manager))))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn uname() -> Uname {
        Uname { node: "stretch".into(), release: "4.9.0-8-amd64".into(), machine: "x86_64".into() }
    }

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn without_any_files_a_host_has_only_the_facts_of_uname() {
        let host = Host::gather_from(root(&[]).path(), uname());
        let json = serde_json::to_value(&host).unwrap();
        let expected = serde_json::json!({
            "name": "stretch", "hostname": "stretch", "architecture": "x86_64", "containerized": false,
            "os": {"type": "linux", "kernel": "4.9.0-8-amd64"},
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn ids_are_read_and_checked() {
        let id = "b3531219b5b4449eadbec59d47945649";
        let of = |files: &[(&str, &str)]| Host::gather_from(root(files).path(), uname()).id;
        assert_eq!(of(&[("etc/machine-id", &format!("{id}\n"))]).as_deref(), Some(id));
        assert_eq!(of(&[("etc/machine-id", "uninitialized\n")]), None);
        assert_eq!(of(&[("etc/machine-id", ""), ("var/lib/dbus/machine-id", id)]).as_deref(), Some(id));
    }

    #[test]
    fn containers_are_detected() {
        let of = |files: &[(&str, &str)]| Host::gather_from(root(files).path(), uname()).containerized;
        assert!(of(&[(".dockerenv", "")]));
        assert!(of(&[("proc/1/cgroup", "12:pids:/docker/0123abcd\n")]));
        assert!(!of(&[("proc/1/cgroup", "0::/init.scope\n")]));
    }

    #[test]
    fn the_kernel_release_of_this_host_is_that_of_proc() {
        let host = Host::gather();
        assert_eq!(host.os.kernel.unwrap(), fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
    }
}
