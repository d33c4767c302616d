//! What holds in places of a range of addresses, where the rest has something in common.
//!
//! A sorted list of ranges, apart, each with a value; of two that touch the values differ. It is immutable: a change
//! makes a new list, of a bounded number of ranges, and may fail for lack of memory.

#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::iter;

use crate::range::IpaRange;

/// The places.
#[derive(Debug)]
pub struct Patches<T> {
    list: Vec<(IpaRange, T)>,
}

/// What holds in all of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over<T> {
    /// What the rest has in common.
    Rest,
    /// This.
    Patch(T),
    /// One thing here, another there.
    Mixed,
}

/// Why there is no new list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// It would have more ranges than it may.
    #[error("{wanted} ranges differ from the rest; {most} may")]
    TooMany {
        /// As many as it would have.
        wanted: usize,
        /// As many as it may have.
        most: usize,
    },
    /// There is no memory for it.
    #[error("no memory for a list of {0} ranges")]
    NoMemory(usize),
}

impl<T: Copy + PartialEq> Patches<T> {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self { list: Vec::new() }
    }

    /// The same, but for `range`: there `value` holds, or what the rest has in common. An empty range changes nothing.
    ///
    /// # Errors
    /// [`PatchError`]: more than `most` ranges, or no memory.
    pub fn with(&self, range: IpaRange, value: Option<T>, most: usize) -> Result<Self, PatchError> {
        let mut new = Self::new();
        // One of them may end up in two.
        let room = self.list.len().saturating_add(2);
        new.list.try_reserve_exact(room).map_err(|_| PatchError::NoMemory(room))?;
        for &(old, value) in &self.list {
            new.push(IpaRange { start: old.start, end: old.end.min(range.start) }, value);
        }
        if let Some(value) = value {
            new.push(range, value);
        }
        for &(old, value) in &self.list {
            new.push(IpaRange { start: old.start.max(range.end), end: old.end }, value);
        }
        let wanted = new.list.len();
        if wanted > most { Err(PatchError::TooMany { wanted, most }) } else { Ok(new) }
    }

    /// A second list like this one.
    ///
    /// # Errors
    /// [`PatchError::NoMemory`].
    pub fn again(&self) -> Result<Self, PatchError> {
        self.with(IpaRange { start: 0, end: 0 }, None, usize::MAX)
    }

    /// Appends a range, which may be empty, behind all others.
    fn push(&mut self, range: IpaRange, value: T) {
        if range.is_empty() {
            return;
        }
        match self.list.last_mut() {
            Some((last, same)) if last.end == range.start && *same == value => last.end = range.end,
            _ => self.list.push((range, value)),
        }
    }

    /// What holds at an address, if it is not what the rest has in common.
    #[must_use]
    pub fn at(&self, address: u64) -> Option<&T> {
        let before = self.list.partition_point(|(range, _)| range.end <= address);
        let (range, value) = self.list.get(before)?;
        range.contains(address).then_some(value)
    }

    /// The largest range around an address in which the same holds, and what, if it is not what the rest has in common.
    #[must_use]
    pub fn around(&self, address: u64) -> (IpaRange, Option<&T>) {
        let before = self.list.partition_point(|(range, _)| range.end <= address);
        match self.list.get(before) {
            Some((range, value)) if range.contains(address) => (*range, Some(value)),
            next => {
                let last = before.checked_sub(1).and_then(|last| self.list.get(last));
                let start = last.map_or(0, |(last, _)| last.end);
                (IpaRange { start, end: next.map_or(u64::MAX, |(next, _)| next.start) }, None)
            }
        }
    }

    /// What holds in all of a range that is not empty.
    #[must_use]
    pub fn over(&self, range: IpaRange) -> Over<T> {
        let before = self.list.partition_point(|(patch, _)| patch.end <= range.start);
        match self.list.get(before) {
            Some((patch, value)) if patch.contains_range(&range) => Over::Patch(*value),
            Some((patch, _)) if patch.overlaps(&range) => Over::Mixed,
            _ => Over::Rest,
        }
    }

    /// The parts of the ranges `within` that lie between the places.
    pub fn gaps(&self, within: &[IpaRange]) -> impl Iterator<Item = IpaRange> {
        within.iter().flat_map(|within| {
            let starts = iter::once(0).chain(self.list.iter().map(|(patch, _)| patch.end));
            let ends = self.list.iter().map(|(patch, _)| patch.start).chain(iter::once(u64::MAX));
            let between = starts.zip(ends).map(|(start, end)| IpaRange { start, end });
            between.filter_map(|gap| gap.intersection(within))
        })
    }

    /// The largest of [`gaps`](Self::gaps).
    #[must_use]
    pub fn largest_gap(&self, within: &[IpaRange]) -> Option<IpaRange> {
        self.gaps(within).max_by_key(IpaRange::len)
    }

    /// The places, sorted, each with its value.
    pub fn iter(&self) -> impl Iterator<Item = (IpaRange, T)> {
        self.list.iter().copied()
    }

    /// How many ranges there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether everything has the same in common.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl<T: Copy + PartialEq> Default for Patches<T> {
    fn default() -> Self {
        Self::new()
    }
}
