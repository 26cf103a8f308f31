//! Names of users. The getent helper is a second process of this program.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context as _;
use socktrail::users::{GetentHelper, Sources, Users};

use super::exit::Status;
use crate::agent::start_user_lookups;

/// The hidden command that runs the getent helper.
pub const ASK_GETENT: &str = "ask-getent";

/// Starts the getent helper, if the host has a `getent`. Without it, users that only `getent` knows have no names.
pub fn start_helper() -> Option<GetentHelper> {
    Sources::system().getent()?;
    let mut command = Command::new("/proc/self/exe");
    // In a process group of its own, it does not get the terminal's Ctrl-C.
    command.arg0("socktrail").arg(ASK_GETENT).process_group(0);
    GetentHelper::start(command)
        .inspect_err(|error| {
            tracing::warn!("the getent helper cannot be started: {error}; users that only getent knows have no names");
        })
        .ok()
}

/// Starts the helper, and the thread that looks up names. For commands that keep their privileges.
pub fn start() -> anyhow::Result<Users> {
    let users = Users::new();
    start_user_lookups(&users, start_helper())?;
    Ok(users)
}

/// Runs `socktrail ask-getent`: this process is the helper.
pub fn ask_getent() -> anyhow::Result<Status> {
    GetentHelper::serve().context("asking getent for names of users")?;
    Ok(Status::Success)
}
