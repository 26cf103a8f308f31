//! The thread that asks the slow sources.

use std::io;
use std::sync::Arc;
use std::thread::Builder;
use std::time::Instant;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;

use super::table::Table;
use super::{GetentHelper, Id, Sources};

/// Starts the thread. It ends once all clones of [`Users`](super::Users) are dropped.
pub(super) fn start(
    sources: Sources,
    mut helper: Option<GetentHelper>,
    to_ask: Receiver<Id>,
    table: Arc<Mutex<Table>>,
) -> io::Result<()> {
    let run = move || {
        for id in to_ask {
            let answer = sources.ask_services(id, helper.as_mut());
            table.lock().learn(id, answer, Instant::now());
        }
    };
    Builder::new().name("socktrail-users".to_owned()).spawn(run).map(drop)
}
