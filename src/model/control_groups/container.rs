//! Which container a control group's path names: a table of the names that runtimes give to the groups of their
//! containers.
//!
//! The innermost container counts: with nested containers a process is in the inner one, while the inner runtime and
//! its monitors are in the outer one. A group that matches nothing here is not a container: no id is better than a
//! wrong one.

/// Hexadecimal digits in the id of a container of Docker, Podman, CRI-O or Kubernetes.
const ID_LENGTH: usize = 64;

/// Prefixes of an id of [`ID_LENGTH`] digits: in `PREFIX-ID.scope` (systemd's cgroup driver), in `PREFIX-ID` (cgroupfs), and
/// between slice and id in `SLICE:PREFIX:ID` (cgroupfs, with a name meant for systemd). `libpod-conmon` and
/// `crio-conmon` are missing on purpose: they are the groups of monitors.
const PREFIXES: [&str; 7] = ["docker", "cri-containerd", "crio", "libpod", "libpod-payload", "nerdctl", "isulad"];

/// Runtimes that, when used directly, put a container with a freely chosen name into `PREFIX-NAME.scope`.
const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// containerd's usual namespaces, which by default are the parent groups of its containers: `/default/NAME`.
const NAMESPACES: [&str; 3] = ["default", "k8s.io", "moby"];

/// Groups below which a name of 64 digits is not a container: a Podman pod, or the monitor and hypervisor of a Kata
/// sandbox.
const NO_CONTAINERS_BELOW: [&str; 2] = ["libpod_parent", "kata_overhead"];

/// The innermost container that a control group's path names: its id, or its name if the runtime has no ids.
pub(crate) fn container(path: &[u8]) -> Option<String> {
    let path = String::from_utf8_lossy(path);
    let groups: Vec<&str> = path.split('/').filter(|group| !group.is_empty()).collect();
    (0..groups.len()).rev().find_map(|at| {
        let (above, below) = groups.split_at(at);
        group(above, below[0], below.get(1).copied())
    })
}

/// The container that this group belongs to, if any: `above` are the groups that it lies in, `below` is the next group
/// in the path.
fn group(above: &[&str], name: &str, below: Option<&str>) -> Option<String> {
    let parent = above.last().copied();
    let by_id = prefixed(name).or(Some(name).filter(|_| !parent.is_some_and(|one| NO_CONTAINERS_BELOW.contains(&one))));
    if let Some(id) = by_id.filter(|id| is_id(id)) {
        return Some(id.to_owned());
    }
    if let Some(name) = runtime_scope(name).or_else(|| lxc(parent, name)) {
        return Some(name.to_owned());
    }
    if let [namespace] = above
        && NAMESPACES.contains(namespace)
        && name != "buildkit"
    {
        return Some(name.to_owned());
    }
    nspawn(name, below).map(unescaped)
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LENGTH && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The id in `PREFIX-ID.scope`, `PREFIX-ID` and `SLICE:PREFIX:ID`.
fn prefixed(name: &str) -> Option<&str> {
    let mut parts = name.split(':');
    if let (Some(_), Some(prefix), Some(id), None) = (parts.next(), parts.next(), parts.next(), parts.next()) {
        return Some(id).filter(|_| PREFIXES.contains(&prefix));
    }
    let (prefix, id) = name.strip_suffix(".scope").unwrap_or(name).rsplit_once('-')?;
    Some(id).filter(|_| PREFIXES.contains(&prefix))
}

/// The name in `runc-NAME.scope`.
fn runtime_scope(name: &str) -> Option<&str> {
    let (prefix, name) = name.strip_suffix(".scope")?.split_once('-')?;
    Some(name).filter(|name| RUNTIMES.contains(&prefix) && !name.is_empty())
}

/// The name in `lxc.payload.NAME` (LXC 4.0, LXD, Incus), `lxc.payload/NAME` and `lxc/NAME`. The monitor is in
/// `lxc.monitor.NAME` or `lxc.monitor/NAME`.
fn lxc<'a>(parent: Option<&str>, name: &'a str) -> Option<&'a str> {
    let below = matches!(parent, Some("lxc" | "lxc.payload")).then_some(name);
    name.strip_prefix("lxc.payload.").or(below).filter(|name| !name.is_empty())
}

/// The name of a machine whose processes are in `machine-NAME.scope/payload` or `systemd-nspawn@NAME.service/payload`;
/// systemd-nspawn itself is in `supervisor` there. A scope without `payload` may be a virtual machine's.
fn nspawn<'a>(name: &'a str, below: Option<&str>) -> Option<&'a str> {
    let of_scope = name.strip_prefix("machine-").and_then(|name| name.strip_suffix(".scope"));
    let of_service = || name.strip_prefix("systemd-nspawn@").and_then(|name| name.strip_suffix(".service"));
    of_scope.or_else(of_service).filter(|name| below == Some("payload") && !name.is_empty())
}

/// Undoes systemd's escaping of a name in a unit's name: `\x2d` is `-`. See `systemd.unit(5)`.
fn unescaped(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = name_code(rest);
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &rest[4..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The byte that a leading `\xHH` stands for.
fn name_code(text: &[u8]) -> Option<u8> {
    let [high, low] = *text.strip_prefix(b"\\x")?.first_chunk::<2>()?;
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970";
    const OUTER: &str = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d";
    const POD: &str = "pod2c48913c-b29f-11e7-9350-020968147796";
    const SLICE: &str = "kubepods-burstable-pod2c48913c_b29f_11e7_9350_020968147796.slice";

    /// The container of a path as runtimes write it, with `ID`, `OUTER`, `POD` and `SLICE` standing for the constants
    /// above.
    fn of(path: &str) -> Option<String> {
        let path = path.replace("POD", POD).replace("SLICE", SLICE).replace("OUTER", OUTER).replace("ID", ID);
        container(path.as_bytes())
    }

    #[test]
    fn containers_with_an_id() {
        for path in [
            // Docker
            "/docker/ID",
            "/system.slice/docker-ID.scope",
            "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope",
            "/system.slice/docker-ID.scope/init.scope",
            "/docker/ID/system.slice/ssh.service",
            "/actions_job/ID",
            "/ecs/0123456789abcdef0123456789abcdef/ID",
            // Kubernetes: containerd, CRI-O, Docker, with both cgroup drivers
            "/kubepods/burstable/POD/ID",
            "/kubepods/POD/ID",
            "/kubepods.slice/kubepods-burstable.slice/SLICE/cri-containerd-ID.scope",
            "/kubepods.slice/kubepods-burstable.slice/SLICE/docker-ID.scope",
            "/kubepods.slice/kubepods-burstable.slice/SLICE/crio-ID.scope",
            "/kubepods.slice/kubepods-burstable.slice/SLICE/crio-ID.scope/container",
            "/kubepods/besteffort/POD/crio-ID",
            "/system.slice/containerd.service/SLICE:cri-containerd:ID",
            "/system.slice:cri-containerd:ID",
            "/k8s.io/ID",
            // Podman, with both cgroup managers, in a pod, rootless, split
            "/machine.slice/libpod-ID.scope",
            "/machine.slice/libpod-ID.scope/container",
            "/machine.slice/machine-libpod_pod_OUTER.slice/libpod-ID.scope/container",
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/web.service/libpod-payload-ID",
            "/libpod_parent/libpod-ID",
            "/libpod_parent/OUTER/libpod-ID",
            // nerdctl, iSulad
            "/system.slice/nerdctl-ID.scope",
            "/default/ID",
            "/isulad/ID",
            "/system.slice/isulad-ID.scope",
            // nested: the inner one
            "/docker/OUTER/docker/ID",
            "/system.slice/docker-OUTER.scope/kubelet.slice/kubelet-kubepods.slice/cri-containerd-ID.scope",
            "/lxc.payload.outer/system.slice/docker-ID.scope",
            // seen from another cgroup namespace
            "/../docker-ID.scope",
        ] {
            assert_eq!(of(path).as_deref(), Some(ID), "{path}");
        }
    }

    #[test]
    fn containers_with_a_name() {
        for (path, name) in [
            ("/default/redis-server", "redis-server"),
            ("/default/redis/inner", "redis"),
            ("/k8s.io/redis", "redis"),
            ("/moby/redis", "redis"),
            ("/system.slice/runc-my-box.scope", "my-box"),
            ("/user.slice/user-1000.slice/crun-box.scope", "box"),
            ("/lxc/web", "web"),
            ("/lxc/101/ns/init.scope", "101"),
            ("/lxc.payload/web/init.scope", "web"),
            ("/lxc.payload.web", "web"),
            ("/lxc.payload.shop_web/system.slice/nginx.service", "shop_web"),
            ("/machine.slice/machine-web.scope/payload", "web"),
            (r"/machine.slice/machine-my\x2dweb.scope/payload/system.slice/ssh.service", "my-web"),
            (r"/machine.slice/systemd-nspawn@my\x2dweb.service/payload/init.scope", "my-web"),
            (r"/machine.slice/machine-my\x+2\x2.scope/payload", r"my\x+2\x2"),
        ] {
            assert_eq!(of(path).as_deref(), Some(name), "{path}");
        }
    }

    #[test]
    fn a_group_beside_a_container_is_not_in_it() {
        for path in [
            "/machine.slice/libpod-conmon-ID.scope",
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-conmon-ID.scope",
            "/system.slice/web.service/supervisor",
            "/libpod_parent/libpod-conmon-ID",
            "/libpod_parent/conmon",
            "/libpod_parent/ID/conmon",
            "/machine.slice/machine-libpod_pod_ID.slice",
            "/system.slice/crio-conmon-ID.scope",
            "/kubepods/besteffort/POD/crio-conmon-ID",
            "/system.slice:crio-conmon:ID",
            "/kubepods.slice/kubepods-burstable.slice/SLICE",
            "/kubepods/burstable/POD",
            "/kata_overhead/ID",
            "/lxc.monitor.web",
            "/lxc.monitor/web",
            "/lxc",
            "/lxc.payload",
            "/machine.slice/machine-web.scope/supervisor",
            r"/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/emulator",
            "/machine.slice/systemd-nspawn@web.service/supervisor",
            "/docker/buildkit/gpzz5x1wvkbq6pwsdwzgk4ek9",
            "/default/buildkit",
            "/user.slice/default/redis",
            "/system.slice/docker.service",
            "/system.slice/containerd.service",
            "/user.slice/user-1000.slice/session-1.scope",
            "/default",
            "/",
            "",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
        let outer = "/docker/OUTER/machine.slice/libpod-conmon-ID.scope";
        assert_eq!(of(outer).as_deref(), Some(OUTER), "it is in the outer one");
    }

    #[test]
    fn names_that_resemble_ids_are_not_ids() {
        for path in [
            "/docker/ID0",
            "/docker/IDID",
            "/system.slice/docker-ID.slice",
            "/system.slice/docker-ID.scope.d",
            "/system.slice/backup-ID.service",
            "/system.slice/unheard-of-ID.scope",
            "/system.slice/docker-.scope",
            "/a:b:c:ID",
            "/system.slice/runc-.scope",
            "/lxc.payload.",
            "/machine.slice/machine-.scope/payload",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
        assert_eq!(container(ID.to_uppercase().as_bytes()), None);
    }

    proptest::proptest! {
        #[test]
        fn no_path_panics_and_no_id_is_longer_than_its_group(path in "(/|-|:|\\\\x|\\PC|lxc\\.payload\\.|machine-|\\.scope/payload){0,40}") {
            let longest = path.split('/').map(str::len).max().unwrap_or_default();
            proptest::prop_assert!(container(path.as_bytes()).is_none_or(|id| id.len() <= longest));
        }

        #[test]
        fn no_bytes_panic(path: Vec<u8>) {
            let _ = container(&path);
        }
    }
}
