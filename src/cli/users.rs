//! Names of users, with this program as the getent helper.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context as _;
use socktrail::users::{GetentHelper, Sources, Users};

use super::exit::Status;

/// The hidden command that runs the getent helper.
pub const ASK_GETENT: &str = "ask-getent";

/// Starts the getent helper, if there is a `getent`. Without it, users that only `getent` knows have no names.
pub fn start_helper() -> Option<GetentHelper> {
    Sources::system().getent()?;
    let mut command = Command::new("/proc/self/exe");
    // A group of its own: an interrupt from the terminal is not for it.
    command.arg0("socktrail").arg(ASK_GETENT).process_group(0);
    GetentHelper::start(command)
        .inspect_err(|error| {
            tracing::warn!("the getent helper cannot be started: {error}; users that only getent knows have no names");
        })
        .ok()
}

/// Starts the helper and the thread that asks for names. For commands that keep their privileges.
pub fn start() -> anyhow::Result<Users> {
    let users = Users::new();
    start_with_helper(&users, start_helper())?;
    Ok(users)
}

/// Starts the thread that asks for names, with a helper that was started earlier.
pub fn start_with_helper(users: &Users, helper: Option<GetentHelper>) -> anyhow::Result<()> {
    users.start(helper).context("starting the thread that asks for names of users")
}

/// Runs `socktrail ask-getent`: this process is the helper.
pub fn ask_getent() -> anyhow::Result<Status> {
    GetentHelper::serve().context("asking getent for names of users")?;
    Ok(Status::Success)
}
