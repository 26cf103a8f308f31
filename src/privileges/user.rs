//! Becoming a user with no privileges.

use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};
use rustix::thread::CapabilitySet;

use super::PrivilegesError;
use super::capabilities::{keep_only, limit_bounding_set_to};

/// The user and group that a root process becomes. No other service uses them, so only root can trace or signal it.
///
/// Other services use `nobody` as well. systemd's list of ids (`docs/UIDS-GIDS.md` of its sources) has nothing in this
/// range, and it lies above the ids that SSSD makes up for users of a directory (below 2,000,200,000).
pub const UNPRIVILEGED: u32 = 2_100_044_411;

/// Gives up all privileges: all capabilities and, if the effective user is root, also user and groups. Only for a
/// process with one thread.
///
/// # Errors
/// [`PrivilegesError::User`], [`PrivilegesError::Capabilities`], [`PrivilegesError::NoNewPrivileges`]: the process should
/// not go on.
pub fn drop_all_privileges() -> Result<(), PrivilegesError> {
    // First, because `CAP_SETPCAP` is gone afterwards.
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
