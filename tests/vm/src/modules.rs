//! The kernel modules of a guest: those named here, and their dependencies.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lzma_rust2::XzReader;

use crate::cpio::Writer;

/// The modules that a guest may load. Modules that a kernel has built in, or does not have, are skipped.
const WANTED: &[&str] = &[
    // Virtio ports to the host.
    "virtio_pci",
    "virtio_mmio",
    "virtio_console",
    // Interfaces.
    "veth",
    "dummy",
    "tun",
    "ifb",
    "bridge",
    "macvlan",
    "ipvlan",
    "8021q",
    "vxlan",
    "sit",
    "ip6_tunnel",
    "ipip",
    "wireguard",
    // Lists of sockets, over netlink.
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "unix_diag",
    "af_packet_diag",
    "netlink_diag",
    // Other transports.
    "sctp",
    "mptcp_diag",
    "vsock",
    "vsock_loopback",
    "af_key",
    "l2tp_ppp",
    "tls",
    "tcp_bbr",
    // Loss, delay and filters.
    "sch_netem",
    "sch_ingress",
    "sch_fq",
    "sch_htb",
    "sch_tbf",
    "sch_fq_codel",
    "sch_cake",
    "cls_u32",
    "cls_bpf",
    "cls_matchall",
    "act_mirred",
    "act_gact",
    "act_bpf",
    // A checksum, without which nf_tables cannot be loaded.
    "crc32c_generic",
    // Packet filters and address translation.
    "nf_tables",
    "nft_compat",
    "nft_ct",
    "nft_nat",
    "nft_chain_nat",
    "nft_masq",
    "nft_redir",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_limit",
    "nft_numgen",
    "nft_log",
    "nft_counter",
    "nft_hash",
    "nft_tproxy",
    "nft_socket",
    "nft_queue",
    "nf_conntrack_netlink",
    "iptable_filter",
    "iptable_nat",
    "iptable_mangle",
    "ip6table_filter",
    "ip6table_nat",
    "ip6table_mangle",
    "ipt_REJECT",
    "ip6t_REJECT",
    "xt_conntrack",
    "xt_tcpudp",
    "xt_MASQUERADE",
    "xt_REDIRECT",
    "xt_TPROXY",
    "xt_owner",
    "xt_mark",
    "xt_statistic",
    "xt_addrtype",
    "xt_LOG",
    // IPsec.
    "xfrm_user",
    // Overlays, as containers use them.
    "overlay",
];

/// A name that changes with [`WANTED`].
pub fn fingerprint() -> String {
    let mut hasher = DefaultHasher::new();
    WANTED.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Makes a cpio archive with the modules of a kernel release, and with the tables of `modprobe`.
pub fn archive(kernel_folder: &Path, release: &str) -> Result<Vec<u8>> {
    let available = available(kernel_folder)?;
    let picked = pick(&available)?;
    write(&picked, release).context("write the modules' archive")
}

/// The files of modules, and their paths for `modules.dep`, by module name.
type Available = BTreeMap<String, (PathBuf, String)>;

/// Every module below a folder.
fn available(folder: &Path) -> Result<Available> {
    let mut found = Available::new();
    let mut queue = vec![folder.join("kernel")];
    while let Some(at) = queue.pop() {
        for entry in fs::read_dir(&at).with_context(|| format!("read {}", at.display()))? {
            let path = entry.with_context(|| format!("read {}", at.display()))?.path();
            if path.is_dir() {
                queue.push(path);
                continue;
            }
            let relative = path.strip_prefix(folder).expect("the path lies in the folder").to_string_lossy();
            let plain = relative.strip_suffix(".xz").unwrap_or(&relative).to_owned();
            if let Some(name) = plain.strip_suffix(".ko").and_then(|stem| stem.rsplit('/').next()) {
                found.insert(module_name(name), (path.clone(), plain.clone()));
            }
        }
    }
    Ok(found)
}

/// A module's name with `_` for `-`, which mean the same.
fn module_name(name: &str) -> String {
    name.replace('-', "_")
}

/// A module of the guest.
#[derive(Debug)]
struct Module {
    path: String,
    content: Vec<u8>,
    depends: Vec<String>,
    aliases: Vec<String>,
}

/// The wanted modules and their dependencies.
fn pick(available: &Available) -> Result<BTreeMap<String, Module>> {
    let mut picked = BTreeMap::new();
    let mut queue: Vec<String> = WANTED.iter().map(|name| module_name(name)).collect();
    while let Some(name) = queue.pop() {
        if picked.contains_key(&name) {
            continue;
        }
        let Some((file, path)) = available.get(&name) else { continue };
        let content = content(file)?;
        let depends: Vec<_> = info(&content, "depends=")
            .flat_map(|list| list.split(','))
            .filter(|name| !name.is_empty())
            .map(module_name)
            .collect();
        let aliases = info(&content, "alias=").map(str::to_owned).collect();
        queue.extend(depends.iter().cloned());
        picked.insert(name, Module { path: path.clone(), content, depends, aliases });
    }
    Ok(picked)
}

/// A module's object file, decompressed.
fn content(file: &Path) -> Result<Vec<u8>> {
    let context = || format!("read the module {}", file.display());
    let raw = fs::read(file).with_context(context)?;
    if file.extension().is_none_or(|extension| extension != "xz") {
        return Ok(raw);
    }
    let mut content = Vec::new();
    XzReader::new(raw.as_slice(), true).read_to_end(&mut content).with_context(context)?;
    Ok(content)
}

/// The values of a key in a module's information, which is a list of `key=value` strings ended by NUL.
fn info<'a>(content: &'a [u8], key: &'a str) -> impl Iterator<Item = &'a str> {
    content.split(|&byte| byte == 0).filter_map(move |text| std::str::from_utf8(text).ok()?.strip_prefix(key))
}

/// Writes the archive: module files, `modules.dep`, `modules.alias`.
fn write(modules: &BTreeMap<String, Module>, release: &str) -> Result<Vec<u8>> {
    let root = format!("usr/lib/modules/{release}");
    let mut archive = Writer::new(Vec::new());
    let mut folders = BTreeSet::new();
    let (mut dep, mut alias) = (String::new(), String::new());
    for (name, module) in modules {
        let path = format!("{root}/{}", module.path);
        for (at, _) in path.match_indices('/') {
            if folders.insert(path[..at].to_owned()) {
                archive.directory(&path[..at], 0o755)?;
            }
        }
        archive.file(&path, 0o644, &module.content)?;
        let needs: Vec<_> = closure(modules, name).into_iter().map(|need| modules[&need].path.as_str()).collect();
        writeln!(dep, "{}: {}", module.path, needs.join(" "))?;
        for pattern in &module.aliases {
            writeln!(alias, "alias {pattern} {name}")?;
        }
    }
    archive.file(&format!("{root}/modules.dep"), 0o644, dep.as_bytes())?;
    archive.file(&format!("{root}/modules.alias"), 0o644, alias.as_bytes())?;
    Ok(archive.finish()?)
}

/// All dependencies of a module, each before its own dependencies: `modprobe` loads from the end.
fn closure(modules: &BTreeMap<String, Module>, name: &str) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    let mut queue: Vec<&str> = modules[name].depends.iter().map(String::as_str).collect();
    while let Some(need) = queue.pop() {
        let Some(module) = modules.get(need) else { continue };
        order.retain(|earlier| earlier != need);
        order.push(need.to_owned());
        queue.extend(module.depends.iter().map(String::as_str));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &[&str]) -> Module {
        Module {
            path: String::new(),
            content: Vec::new(),
            depends: depends.iter().map(|name| (*name).to_owned()).collect(),
            aliases: Vec::new(),
        }
    }

    #[test]
    fn information_is_found_in_an_object_file() {
        let content = b"\x7fELF\0\xff\xfe\0license=GPL\0alias=rtnl-link-veth\0alias=b\0depends=a,c-d\0depends\0";
        assert_eq!(info(content, "depends=").collect::<Vec<_>>(), ["a,c-d"]);
        assert_eq!(info(content, "alias=").collect::<Vec<_>>(), ["rtnl-link-veth", "b"]);
    }

    #[test]
    fn a_dependency_follows_the_modules_that_need_it() {
        let modules = BTreeMap::from([
            ("console".to_owned(), module(&["virtio", "ring"])),
            ("ring".to_owned(), module(&["virtio"])),
            ("virtio".to_owned(), module(&["core"])),
            ("core".to_owned(), module(&[])),
        ]);
        assert_eq!(closure(&modules, "console"), ["ring", "virtio", "core"]);
        assert_eq!(closure(&modules, "core"), [""; 0]);
    }

    #[test]
    fn files_are_listed_by_module_name() {
        let folder = tempfile::TempDir::new().unwrap();
        fs::create_dir_all(folder.path().join("kernel/net")).unwrap();
        fs::write(folder.path().join("kernel/net/tcp-x.ko"), "").unwrap();
        fs::write(folder.path().join("kernel/net/veth.ko.xz"), "").unwrap();
        fs::write(folder.path().join("kernel/net/readme"), "").unwrap();
        let names: Vec<_> =
            available(folder.path()).unwrap().into_iter().map(|(name, (_, path))| (name, path)).collect();
        assert_eq!(
            names,
            [("tcp_x".into(), "kernel/net/tcp-x.ko".into()), ("veth".into(), "kernel/net/veth.ko".into())]
                as [(String, String); 2]
        );
    }
}
