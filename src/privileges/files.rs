//! Restricts access to files, ports and signals with Landlock (Linux 5.13).

use std::fmt;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::PrivilegesError;

/// The newest version of Landlock that is used. Older kernels enforce only the part that they know.
const NEWEST: ABI = ABI::V6;

/// The restrictions that are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confined {
    /// The Landlock version in use; 0 if the kernel does not support Landlock.
    abi: u32,
    /// Whether the kernel enforces all restrictions.
    complete: bool,
}

impl Confined {
    /// Whether at least some restrictions are in force.
    pub fn is_restricted(self) -> bool {
        self.abi > 0
    }
}

impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.abi, self.complete) {
            (0, _) => {
                f.write_str("files are not restricted: this kernel has no Landlock (Linux 5.13, with landlock in the boot parameter lsm=)")
            }
            (abi, true) => write!(f, "files and listening are restricted (Landlock {abi})"),
            // Landlock 3 added truncation, 4 ports, 6 signals.
            (abi, false) => write!(f, "files are restricted (Landlock {abi}: as far as this kernel supports it)"),
        }
    }
}

/// Restricts this thread and the threads that it starts later, as far as the kernel supports it. They can read all files, but
/// write only in these directories, execute nothing, listen only on these TCP ports, and send no signals to other processes.
///
/// A missing directory is skipped, so create it first.
///
/// # Errors
/// [`PrivilegesError::Files`]. A kernel without Landlock is not an error.
pub fn restrict_files(writable: &[&Path], ports: &[u16]) -> Result<Confined, PrivilegesError> {
    restrict(writable, ports).map_err(|error| PrivilegesError::Files(error.to_string()))
}

fn restrict(writable: &[&Path], ports: &[u16]) -> Result<Confined, RulesetError> {
    let everything = AccessFs::from_all(NEWEST);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(everything)?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::Signal)?
        .create()?;
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    if let Ok(root) = PathFd::new("/") {
        rules = rules.add_rule(PathBeneath::new(root, reading))?;
    }
    let writing = everything & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock);
    for folder in writable.iter().filter(|path| path.is_dir()).filter_map(|path| PathFd::new(path).ok()) {
        rules = rules.add_rule(PathBeneath::new(folder, writing))?;
    }
    for port in ports {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
    }
    let status = rules.restrict_self()?;
    Ok(Confined {
        abi: match status.landlock {
            LandlockStatus::Available { effective_abi, .. } => effective_abi as u32,
            _ => 0,
        },
        complete: status.ruleset == RulesetStatus::FullyEnforced,
    })
}
