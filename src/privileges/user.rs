//! Changes a root process to a user without privileges.

use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};
use rustix::thread::CapabilitySet;

use super::PrivilegesError;
use super::capabilities::{keep_only, limit_bounding_set_to};

/// The user and group that a root process changes to. No other process uses them, so only root can trace or signal it.
///
/// `nobody` would not do, because other services use it. This id is in no range of systemd's list (`docs/UIDS-GIDS.md` in its
/// sources), and above the ids that SSSD assigns to users of an LDAP directory (below 2,000,200,000).
pub const UNPRIVILEGED: u32 = 2_100_044_411;

/// Drops all privileges: all capabilities and, if the effective user is root, also user and groups. Only for a
/// process with one thread.
///
/// # Errors
/// [`PrivilegesError::User`], [`PrivilegesError::Capabilities`], [`PrivilegesError::NoNewPrivileges`]: the process should
/// exit.
pub fn drop_all_privileges() -> Result<(), PrivilegesError> {
    // This needs `CAP_SETPCAP`, which the next steps drop.
    limit_bounding_set_to(CapabilitySet::empty());
    if geteuid().is_root() {
        switch_user().map_err(|errno| PrivilegesError::User(errno.into()))?;
    }
    keep_only(CapabilitySet::empty())
}

fn switch_user() -> nix::Result<()> {
    let (user, group) = (Uid::from_raw(UNPRIVILEGED), Gid::from_raw(UNPRIVILEGED));
    setgroups(&[])?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)
}
