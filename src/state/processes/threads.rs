//! The living threads of one process, which lives as long as one of them does.

use std::collections::HashSet;

/// Thread ids. Most processes have only the main thread (the kernel's thread group leader), whose id is the process's own.
#[derive(Debug, Default)]
pub struct Threads {
    leader: bool,
    others: HashSet<u32, foldhash::fast::RandomState>,
}

impl Threads {
    /// Only the main thread.
    pub fn leader() -> Self {
        Self { leader: true, ..Self::default() }
    }

    /// The number of threads besides the main thread.
    pub fn others(&self) -> usize {
        self.others.len()
    }

    /// Whether all have ended.
    pub fn is_empty(&self) -> bool {
        !self.leader && self.others.is_empty()
    }

    /// Whether this thread of process `pid` is among them.
    pub fn contains(&self, pid: u32, tid: u32) -> bool {
        if tid == pid { self.leader } else { self.others.contains(&tid) }
    }

    /// Adds a thread of process `pid`.
    pub fn insert(&mut self, pid: u32, tid: u32) {
        if tid == pid {
            self.leader = true;
        } else {
            self.others.insert(tid);
        }
    }

    /// Removes a thread of process `pid`. Returns whether it was there.
    pub fn remove(&mut self, pid: u32, tid: u32) -> bool {
        if tid == pid { std::mem::take(&mut self.leader) } else { self.others.remove(&tid) }
    }
}
