//! Which files can be written to, with Landlock (Linux 5.13).

use std::fmt;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::PrivilegesError;

/// The newest of what is asked for; an older kernel gives what it has.
const NEWEST: ABI = ABI::V6;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confined {
    /// The version of Landlock that the kernel and we understand; 0 where it has none.
    abi: u32,
    whole: bool,
}

impl Confined {
    /// Whether anything is restricted at all.
    pub fn is_something(self) -> bool {
        self.abi > 0
    }
}

impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.abi, self.whole) {
            (0, _) => {
                f.write_str("files not: no Landlock here (Linux 5.13 has it, where the boot parameter lsm= names it)")
            }
            (abi, true) => write!(f, "files and listening (Landlock {abi})"),
            // Truncating came with 3, ports with 4, signals with 6.
            (abi, false) => write!(f, "files (Landlock {abi}: as much as this kernel can)"),
        }
    }
}

/// From now on this thread, and those that it starts, read any file, write only in these folders, execute nothing, listen
/// on TCP only on these ports, and send signals to nobody outside, as far as the kernel has the means.
///
/// A folder that is not there is left out: make it before.
///
/// # Errors
/// [`PrivilegesError::Files`]. That the kernel has no Landlock is none.
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
        whole: status.ruleset == RulesetStatus::FullyEnforced,
    })
}
