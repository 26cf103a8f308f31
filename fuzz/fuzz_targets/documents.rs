//! Turns a recording into documents, and checks what must be true of every recording.

use std::collections::HashSet;
use std::io::sink;

use socktrail::documents::ecs::{Context, Directions};
use socktrail::output::{Format, Lines};
use socktrail::recording::{RecordingError, Replay, StateConfig};

/// The maximum size of the tables, small enough that they get full.
const MAX_ENTRIES: usize = 16;

pub fn replay(recording: &[u8]) {
    let mut config = StateConfig::default();
    (config.max_flows, config.max_sockets, config.max_processes) = (MAX_ENTRIES, MAX_ENTRIES, MAX_ENTRIES);
    let Ok(replay) = Replay::open(recording, config) else { return };
    let (host, agent, clock) = (replay.host().clone(), replay.agent().clone(), replay.clock());
    let mut lines = [Format::Ecs, Format::Text].map(|format| Lines::new(sink(), format));
    let (mut reported, mut ended) = (0, HashSet::new());
    let replayed = replay.run(|flow, names| {
        assert!(flow.start <= flow.end);
        assert!(!flow.is_final || ended.insert(flow.number), "a flow is final once");
        reported += 1;
        let context = Context { host: &host, agent: &agent, clock, names, directions: Directions::default() };
        lines.iter_mut().try_for_each(|lines| lines.write(&flow, &context)).map_err(RecordingError::from)
    });
    if let Ok(replayed) = replayed {
        let stats = replayed.stats;
        assert_eq!(stats.flows_reported, reported);
        assert_eq!(stats.flows_live, 0);
        let ended = stats.flows_reported + stats.flows_own + stats.flows_filtered + stats.flows_without_socket;
        assert_eq!(ended, stats.flows_started, "each flow is reported, or counted by the reason why not");
        assert!(stats.sockets_live <= MAX_ENTRIES as u64 && stats.processes_live <= MAX_ENTRIES as u64);
    }
}
