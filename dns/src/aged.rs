//! A hash table that knows in which order its values were last renewed, so that a bound can drop the oldest.

use hashbrown::HashTable;

/// Where a value lies, until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u32);

/// No slot.
const NONE: u32 = u32::MAX;

/// The table. Hashes and equality come from the caller, so that a value can be looked up by parts that nobody has put
/// together. Freed slots are used again: at its bound the table allocates nothing.
#[derive(Clone, Debug)]
pub(crate) struct Aged<T> {
    places: HashTable<u32>,
    slots: Vec<Slot<T>>,
    oldest: u32,
    newest: u32,
    free: u32,
}

#[derive(Clone, Debug)]
struct Slot<T> {
    hash: u64,
    older: u32,
    newer: u32,
    value: Option<T>,
}

impl<T> Default for Aged<T> {
    fn default() -> Self {
        Self { places: HashTable::new(), slots: Vec::new(), oldest: NONE, newest: NONE, free: NONE }
    }
}

impl<T> Aged<T> {
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn find(&self, hash: u64, mut is: impl FnMut(&T) -> bool) -> Option<Place> {
        let slots = &self.slots;
        let equal = |&at: &u32| slots[at as usize].value.as_ref().is_some_and(&mut is);
        self.places.find(hash, equal).map(|&at| Place(at))
    }

    pub(crate) fn get(&self, place: Place) -> &T {
        self.slots[place.0 as usize].value.as_ref().expect("a place is of a value")
    }

    pub(crate) fn get_mut(&mut self, place: Place) -> &mut T {
        self.slots[place.0 as usize].value.as_mut().expect("a place is of a value")
    }

    /// The value that has been renewed longest ago.
    pub(crate) fn oldest(&self) -> Option<Place> {
        (self.oldest != NONE).then_some(Place(self.oldest))
    }

    /// The value renewed next after this one.
    pub(crate) fn newer(&self, place: Place) -> Option<Place> {
        let newer = self.slots[place.0 as usize].newer;
        (newer != NONE).then_some(Place(newer))
    }

    /// All values, the oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        let mut next = self.oldest();
        std::iter::from_fn(move || {
            let place = next?;
            next = self.newer(place);
            Some(self.get(place))
        })
    }

    /// Adds a value as the newest, even if an equal one is there.
    pub(crate) fn insert(&mut self, hash: u64, value: T) -> Place {
        let at = self.slot(Slot { hash, older: NONE, newer: NONE, value: Some(value) });
        let slots = &self.slots;
        self.places.insert_unique(hash, at, |&at| slots[at as usize].hash);
        self.link(at);
        Place(at)
    }

    /// Makes a value the newest.
    pub(crate) fn renew(&mut self, place: Place) {
        self.unlink(place.0);
        self.link(place.0);
    }

    pub(crate) fn remove(&mut self, place: Place) -> T {
        let Place(at) = place;
        self.unlink(at);
        let slot = &mut self.slots[at as usize];
        let value = slot.value.take().expect("a place is of a value");
        slot.newer = self.free;
        self.free = at;
        if let Ok(entry) = self.places.find_entry(slot.hash, |&other| other == at) {
            entry.remove();
        }
        value
    }

    /// Removes every value for which `keep` is false.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let mut next = self.oldest();
        while let Some(place) = next {
            next = self.newer(place);
            if !keep(self.get(place)) {
                self.remove(place);
            }
        }
    }

    fn slot(&mut self, slot: Slot<T>) -> u32 {
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

    fn place(table: &Aged<u32>, value: u32) -> Option<Place> {
        table.find(u64::from(value % 4), |&other| other == value)
    }

    proptest! {
        #[test]
        fn does_what_a_list_does(steps in prop::collection::vec((0..4_u8, 0..20_u32), 0..200)) {
            let mut table = Aged::default();
            let mut list: Vec<u32> = Vec::new();
            for (step, value) in steps {
                let found = place(&table, value);
                prop_assert_eq!(found.is_some(), list.contains(&value));
                match (step, found) {
                    (0 | 1, None) => {
                        table.insert(u64::from(value % 4), value);
                        list.push(value);
                    }
                    (0 | 1, Some(place)) => {
                        table.renew(place);
                        list.retain(|&other| other != value);
                        list.push(value);
                    }
                    (2, Some(place)) => {
                        prop_assert_eq!(table.remove(place), value);
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
