//! The control groups of a process, and the containers that they belong to.

mod container;

use serde::{Deserialize, Serialize};

pub(crate) use container::container;

/// The maximum number of hierarchies whose container is remembered; cgroup v1 has one for each of a dozen
/// controllers.
const MAX_HIERARCHIES: usize = 16;

/// The number of cgroup v2's hierarchy; see `cgroups(7)`.
pub(crate) const CGROUP_V2: u32 = 0;

/// The control groups of a process. It is in one group of each hierarchy, of which cgroup v1 has many. Of these groups: the
/// path of the one in cgroup v2, and the containers that their paths name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ControlGroups {
    /// Containers by hierarchy, in the order of `/proc/PID/cgroup`: the highest number first.
    named: Vec<(u32, String)>,
    /// The path in the hierarchy of cgroup v2, if it is known. Not in older recordings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

impl ControlGroups {
    /// Parses the text of `/proc/PID/cgroup`: lines of `hierarchy:controllers:path`, see `cgroups(7)`.
    pub(crate) fn of_proc(text: &[u8]) -> Self {
        let mut all = Self::default();
        for line in text.split(|byte| *byte == b'\n') {
            let mut parts = line.splitn(3, |byte| *byte == b':');
            let (Some(hierarchy), Some(_), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
            if let Some(hierarchy) = std::str::from_utf8(hierarchy).ok().and_then(|number| number.parse().ok()) {
                all.moved(hierarchy, path);
            }
        }
        all
    }

    /// The process was moved: in this hierarchy it is now in the group with this path.
    pub(crate) fn moved(&mut self, hierarchy: u32, path: &[u8]) {
        if hierarchy == CGROUP_V2 {
            self.path = Some(String::from_utf8_lossy(path).into_owned());
        }
        self.named.retain(|(one, _)| *one != hierarchy);
        if let Some(id) = container(path)
            && self.named.len() < MAX_HIERARCHIES
        {
            let at = self.named.partition_point(|(one, _)| *one > hierarchy);
            self.named.insert(at, (hierarchy, id));
        }
    }

    /// The container's id. If several hierarchies name a container, the first in `/proc/PID/cgroup` counts.
    pub fn container_id(&self) -> Option<&str> {
        self.named.first().map(|(_, id)| id.as_str())
    }

    /// The path of the group in cgroup v2, from the root of the hierarchy, or from that of Socktrail's cgroup namespace.
    /// `None` if it is not known or there is no cgroup v2.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Whether the process is in the group of cgroup v2 with this path, or in one below it. `None` if that is not known.
    pub fn is_in(&self, group: &str) -> Option<bool> {
        let below = self.path()?.strip_prefix(group.trim_end_matches('/'));
        Some(below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hierarchy_that_names_a_container_counts() {
        let text = b"12:pids:/\n11:memory:/lxc/web\n3:cpu:/lxc/other\n1:name=systemd:/init.scope\n0::/\n";
        let mut containers = ControlGroups::of_proc(text);
        assert_eq!(containers.container_id(), Some("web"));
        containers.moved(12, b"/");
        assert_eq!(containers.container_id(), Some("web"), "hierarchy 12 named no container");
        containers.moved(11, b"/");
        assert_eq!(containers.container_id(), Some("other"));
        containers.moved(3, b"/");
        assert_eq!((containers.container_id(), containers.path()), (None, Some("/")));
        containers.moved(0, b"/lxc/new");
        assert_eq!(containers.container_id(), Some("new"));
    }

    #[test]
    fn a_process_is_in_a_group_by_whole_names() {
        let in_group = |text: &[u8], group| ControlGroups::of_proc(text).is_in(group);
        for (path, group, expected) in [
            ("/a/b", "/a", true),
            ("/a/b", "/a/b", true),
            ("/a/b", "/a/b/", true),
            ("/a/b", "/", true),
            ("/", "/", true),
            ("/a/bc", "/a/b", false),
            ("/a", "/a/b", false),
        ] {
            assert_eq!(in_group(format!("1:cpu:/x\n0::{path}\n").as_bytes(), group), Some(expected), "{path} {group}");
        }
        assert_eq!(in_group(b"1:cpu:/a\n", "/"), None, "there is no cgroup v2");
    }

    /// `/proc/PID/cgroup` of hosts with cgroup v1, with both versions, and with v2.
    #[test]
    fn each_runtime_is_recognised_with_either_cgroup_version() {
        const ID: &str = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970";
        const POD: &str = "pod2c48913c-b29f-11e7-9350-020968147796";
        for (text, wanted) in [
            // Docker: v1 with cgroupfs, v1 with systemd, v2 with systemd
            (
                "11:memory:/docker/ID\n10:pids:/docker/ID\n1:name=systemd:/docker/ID\n0::/system.slice/containerd.service\n",
                ID,
            ),
            ("4:pids:/system.slice/docker-ID.scope\n1:name=systemd:/system.slice/docker-ID.scope\n", ID),
            ("0::/system.slice/docker-ID.scope\n", ID),
            // Kubernetes: v1 with cgroupfs, v1 with systemd, v2 with systemd by CRI-O
            ("11:cpuset:/kubepods/besteffort/POD/ID\n1:name=systemd:/kubepods/besteffort/POD/ID\n", ID),
            ("6:cpu,cpuacct:/kubepods.slice/kubepods-pod1.slice/cri-containerd-ID.scope\n0::/\n", ID),
            ("0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/crio-ID.scope\n", ID),
            // Podman: v1, where some controllers are not used; v2 by a user
            (
                "9:freezer:/\n8:pids:/machine.slice/libpod-ID.scope\n1:name=systemd:/machine.slice/libpod-ID.scope\n0::/\n",
                ID,
            ),
            ("0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container\n", ID),
            // LXC: v1 before and since 4.0, v2
            ("12:rdma:/\n11:memory:/lxc/web\n1:name=systemd:/lxc/web/init.scope\n0::/lxc/web\n", "web"),
            ("11:memory:/lxc.payload.web\n1:name=systemd:/lxc.payload.web/init.scope\n0::/lxc.payload.web\n", "web"),
            ("0::/lxc.payload.web/system.slice/ssh.service\n", "web"),
            // systemd-nspawn: only systemd's own hierarchy has the inner group with v1
            (
                "4:pids:/machine.slice/machine-web.scope\n1:name=systemd:/machine.slice/machine-web.scope/payload/init.scope\n",
                "web",
            ),
            ("0::/machine.slice/systemd-nspawn@web.service/payload\n", "web"),
        ] {
            let text = text.replace("POD", POD).replace("ID", ID);
            assert_eq!(ControlGroups::of_proc(text.as_bytes()).container_id(), Some(wanted), "{text}");
        }
    }

    #[test]
    fn helpers_beside_a_container_are_not_in_it_with_either_cgroup_version() {
        for text in [
            "11:memory:/machine.slice/libpod-conmon-ID.scope\n1:name=systemd:/machine.slice/libpod-conmon-ID.scope\n0::/\n",
            "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-conmon-ID.scope\n",
            "11:memory:/system.slice/crio-conmon-ID.scope\n1:name=systemd:/system.slice/crio-conmon-ID.scope\n",
            "11:memory:/lxc.monitor.web\n1:name=systemd:/lxc.monitor.web\n0::/lxc.monitor.web\n",
            "4:pids:/machine.slice/machine-web.scope\n1:name=systemd:/machine.slice/machine-web.scope/supervisor\n",
            "11:memory:/system.slice/containerd.service\n0::/system.slice/containerd.service\n",
        ] {
            let text = text.replace("ID", &"4f797c53".repeat(8));
            assert_eq!(ControlGroups::of_proc(text.as_bytes()).container_id(), None, "{text}");
        }
    }

    #[test]
    fn a_path_may_contain_the_separator() {
        assert_eq!(ControlGroups::of_proc(b"0::/lxc/a:b:c\n").container_id(), Some("a:b:c"));
        assert_eq!(ControlGroups::of_proc(b"x::/lxc/a\n\n0:\n::\n"), ControlGroups::default());
    }

    #[test]
    fn the_number_of_hierarchies_is_bounded() {
        let mut containers = ControlGroups::default();
        (0..100).for_each(|hierarchy| containers.moved(hierarchy, b"/lxc/web"));
        assert_eq!(containers.named.len(), MAX_HIERARCHIES);
    }
}
