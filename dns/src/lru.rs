//! A hash table that keeps its values in the order of their last use, so that its user can remove the least recently
//! used one when a bound is reached.

use hashbrown::HashTable;

/// The index of a value's slot. It is valid until the value is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Index(u32);

/// In place of an index: no slot.
const NONE: u32 = u32::MAX;

/// The table. The caller gives hashes and equality, so that it can look a value up by borrowed parts without building a
/// key. Freed slots are used again, so a table that has reached its bound gets no more slots.
/// (`indices` may still grow once after that: removed entries take up room in it until `hashbrown` rehashes.)
#[derive(Clone, Debug)]
pub(crate) struct LruTable<T> {
    indices: HashTable<u32>,
    slots: Vec<Slot<T>>,
    oldest: u32,
    newest: u32,
    /// The first free slot. `newer` of a free slot is the next free one.
    free: u32,
}

#[derive(Clone, Debug)]
struct Slot<T> {
    hash: u64,
    older: u32,
    newer: u32,
    value: Option<T>,
}

impl<T> Default for LruTable<T> {
    fn default() -> Self {
        Self { indices: HashTable::new(), slots: Vec::new(), oldest: NONE, newest: NONE, free: NONE }
    }
}

impl<T> LruTable<T> {
    pub(crate) fn len(&self) -> usize {
        self.indices.len()
    }

    pub(crate) fn find(&self, hash: u64, mut matches: impl FnMut(&T) -> bool) -> Option<Index> {
        let slots = &self.slots;
        let is_match = |&at: &u32| slots[at as usize].value.as_ref().is_some_and(&mut matches);
        self.indices.find(hash, is_match).map(|&at| Index(at))
    }

    pub(crate) fn get(&self, index: Index) -> &T {
        self.slots[index.0 as usize].value.as_ref().expect("an index is valid until its value is removed")
    }

    pub(crate) fn get_mut(&mut self, index: Index) -> &mut T {
        self.slots[index.0 as usize].value.as_mut().expect("an index is valid until its value is removed")
    }

    /// The value that was used least recently.
    pub(crate) fn oldest(&self) -> Option<Index> {
        (self.oldest != NONE).then_some(Index(self.oldest))
    }

    /// The value that follows this one in the order of last use.
    pub(crate) fn newer(&self, index: Index) -> Option<Index> {
        let newer = self.slots[index.0 as usize].newer;
        (newer != NONE).then_some(Index(newer))
    }

    /// All values, the least recently used first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        let mut next = self.oldest();
        std::iter::from_fn(move || {
            let index = next?;
            next = self.newer(index);
            Some(self.get(index))
        })
    }

    /// Adds a value as the most recently used one, even if there is an equal one.
    pub(crate) fn insert(&mut self, hash: u64, value: T) -> Index {
        let at = self.allocate(Slot { hash, older: NONE, newer: NONE, value: Some(value) });
        let slots = &self.slots;
        self.indices.insert_unique(hash, at, |&at| slots[at as usize].hash);
        self.link(at);
        Index(at)
    }

    /// Makes a value the most recently used one.
    pub(crate) fn touch(&mut self, index: Index) {
        self.unlink(index.0);
        self.link(index.0);
    }

    pub(crate) fn remove(&mut self, index: Index) -> T {
        let Index(at) = index;
        self.unlink(at);
        let slot = &mut self.slots[at as usize];
        let value = slot.value.take().expect("an index is valid until its value is removed");
        slot.newer = self.free;
        self.free = at;
        if let Ok(entry) = self.indices.find_entry(slot.hash, |&other| other == at) {
            entry.remove();
        }
        value
    }

    /// Removes every value for which `keep` is false.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let mut next = self.oldest();
        while let Some(index) = next {
            next = self.newer(index);
            if !keep(self.get(index)) {
                self.remove(index);
            }
        }
    }

    fn allocate(&mut self, slot: Slot<T>) -> u32 {
        if self.free == NONE {
            self.slots.push(slot);
            return u32::try_from(self.slots.len() - 1).expect("tables are bounded far below this");
        }
        let at = self.free;
        self.free = self.slots[at as usize].newer;
        self.slots[at as usize] = slot;
        at
    }

    fn link(&mut self, at: u32) {
        let older = std::mem::replace(&mut self.newest, at);
        match older {
            NONE => self.oldest = at,
            older => self.slots[older as usize].newer = at,
        }
        let slot = &mut self.slots[at as usize];
        (slot.older, slot.newer) = (older, NONE);
    }

    fn unlink(&mut self, at: u32) {
        let Slot { older, newer, .. } = self.slots[at as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index(table: &LruTable<u32>, value: u32) -> Option<Index> {
        table.find(u64::from(value % 4), |&other| other == value)
    }

    proptest! {
        #[test]
        fn behaves_like_a_list(steps in prop::collection::vec((0..4_u8, 0..20_u32), 0..200)) {
            let mut table = LruTable::default();
            let mut list: Vec<u32> = Vec::new();
            for (step, value) in steps {
                let found = index(&table, value);
                prop_assert_eq!(found.is_some(), list.contains(&value));
                match (step, found) {
                    (0 | 1, None) => {
                        table.insert(u64::from(value % 4), value);
                        list.push(value);
                    }
                    (0 | 1, Some(index)) => {
                        table.touch(index);
                        list.retain(|&other| other != value);
                        list.push(value);
                    }
                    (2, Some(index)) => {
                        prop_assert_eq!(table.remove(index), value);
                        list.retain(|&other| other != value);
                    }
                    (3, _) => {
                        table.retain(|&other| other % 5 != value % 5);
                        list.retain(|&other| other % 5 != value % 5);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.iter().copied().collect::<Vec<_>>(), list.clone());
                prop_assert_eq!(table.len(), list.len());
            }
            prop_assert!(table.slots.len() <= 20);
        }
    }
}
