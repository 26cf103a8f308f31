//! The host's network interfaces, as far as they matter for counting.

use std::fs;
use std::path::Path;

/// The smallest MTU of this network namespace's interfaces, in bytes; those of tunnels and of containers' pairs are among
/// them. `None` where sysfs does not say.
pub(crate) fn smallest_mtu() -> Option<u32> {
    smallest_in(Path::new("/sys/class/net"))
}

fn smallest_in(interfaces: &Path) -> Option<u32> {
    let interfaces = fs::read_dir(interfaces).ok()?.flatten();
    interfaces.filter_map(|one| fs::read_to_string(one.path().join("mtu")).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_of_all_interfaces_counts() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(smallest_in(folder.path()), None);
        for (name, mtu) in [("lo", "65536\n"), ("eth0", "1500\n"), ("wg0", "1420\n"), ("odd", "?\n")] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("mtu"), mtu).unwrap();
        }
        fs::write(folder.path().join("bonding_masters"), "").unwrap();
        assert_eq!(smallest_in(folder.path()), Some(1420));
    }
}
