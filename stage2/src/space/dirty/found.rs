//! What a harvest was told, until its flush is over.

use core::mem::MaybeUninit;

use super::Session;
use crate::addr::{Ipa, IpaRange, Level, PAGE_SIZE};

/// Slots of a batch, at the most.
pub(super) const SLOTS: usize = if cfg!(any(loom, shuttle)) { 64 } else { 4096 };
/// Groups of slots that are told apart: a batch has one for each 64 slots, and some more where tables begin and end.
const GROUPS: usize = SLOTS / 64 + 16;

/// The dirty leaves of a batch, in groups of 64 slots.
pub(super) struct Found {
    /// The first `count` are initialised: the others are not, because a harvest of few slots would pay for all.
    groups: [MaybeUninit<(Group, u64)>; GROUPS],
    count: usize,
    /// What there was no place for: all between the first and the last of it is taken for dirty.
    rest: Option<IpaRange>,
}

/// First IPA of a group, with the level in the bits that are 0 in it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Group(u64);

impl Group {
    const fn new(first: Ipa, level: Level) -> Self {
        Self(first.get() | level as u64)
    }

    const fn first(self) -> Ipa {
        Ipa::new(self.0).page()
    }

    const fn level(self) -> Level {
        match self.0 & 3 {
            1 => Level::L1,
            2 => Level::L2,
            _ => Level::L3,
        }
    }

    fn range(self) -> Option<IpaRange> {
        IpaRange::new(self.first(), self.level().slot_bytes() * u64::from(u64::BITS)).ok()
    }
}

impl Found {
    pub(super) const fn new() -> Self {
        Self { groups: [const { MaybeUninit::uninit() }; GROUPS], count: 0, rest: None }
    }

    /// Bit n of `slots` is a dirty leaf n slots of `level` behind `first`. A group may be told of more than once, a leaf is not.
    #[inline]
    pub(super) fn told(&mut self, first: Ipa, level: Level, slots: u64) {
        let group = Group::new(first, level);
        if let Some(place) = self.groups.get_mut(self.count) {
            place.write((group, slots));
            self.count += 1;
        } else if let Some(range) = group.range() {
            self.rest = Some(self.rest.map_or(range, |rest| rest.hull(&range)));
        }
    }

    fn told_groups(&self) -> &[(Group, u64)] {
        // SAFETY: (1) `count` counts what was written, from the first on.
        unsafe { self.groups.get(..self.count).unwrap_or_default().assume_init_ref() }
    }

    /// Sets the bits, after the flush. Returns how many pages that is.
    pub(super) fn deliver(&self, session: &Session) -> u64 {
        let mut pages = 0;
        for (group, slots) in self.told_groups() {
            let level = group.level();
            session.mark_slots(group.first(), level, *slots);
            pages += u64::from(slots.count_ones()) * (level.slot_bytes() / PAGE_SIZE);
        }
        if let Some(rest) = self.rest {
            session.mark(rest);
            pages += rest.pages();
        }
        pages
    }
}
