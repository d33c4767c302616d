//! Where a flush is still owed: for those who read a descriptor and rely on what it does *not* allow.
//!
//! ```text
//! PE 0, write-protects                PE 1, reads
//! its place here <- the table's span
//! page 7: writable -> read-only
//!                                     sees page 7 read-only: nobody writes to it     <- PE 2 still does
//! flush
//! its place here <- 0
//! ```
//!
//! So who has read such a descriptor asks here **afterwards**. The place is filled before the table's first
//! descriptor changes, and a change has release order: who has read what is new (acquire) finds the place filled, or
//! emptied again after the flush.
//!
//! A place is one word, so that readers need no lock: first unit and number of units of 2 MiB, rounded outwards. It says
//! too much at the edges of a range, never too little.

use crate::addr::{Ipa, Level};
use crate::claim::MAX_CLAIMS;
use crate::sync::{AtomicU64, Ordering};

/// One unit.
const UNIT: u64 = Level::L2.slot_bytes();
/// Bits of a unit's number: of 48 bits of IPA, 21 are inside.
const BITS: u32 = 48 - UNIT.trailing_zeros();

/// The spans of a VM in which a transaction has changed something and not flushed yet. Each has a claim.
#[derive(Debug)]
pub(in crate::space) struct Pending([AtomicU64; MAX_CLAIMS]);

/// One transaction's place.
#[derive(Debug)]
pub(super) struct Place<'s> {
    word: &'s AtomicU64,
    first: u64,
    end: u64,
}

impl Pending {
    pub(in crate::space) fn new() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }

    /// A free place for a transaction that begins at `from`, filled from now on; `None` if there is none.
    pub(super) fn place(&self, from: Ipa) -> Option<Place<'_>> {
        let first = from.get() / UNIT;
        let free = self.0.iter().find(|word| {
            word.compare_exchange(0, filled(first, 1), Ordering::Acquire, Ordering::Relaxed).is_ok()
        })?;
        Some(Place { word: free, first, end: first + 1 })
    }

    /// Whether a flush may be owed for `ipa`.
    pub(super) fn contains(&self, ipa: Ipa) -> bool {
        let unit = ipa.get() / UNIT;
        self.0.iter().any(|word| {
            let word = word.load(Ordering::Acquire);
            let first = word & ((1 << BITS) - 1);
            first <= unit && unit - first < word >> BITS
        })
    }
}

impl Place<'_> {
    /// What is from `start` to `end` may be changed from now on, too.
    pub(super) fn cover(&mut self, start: Ipa, end: u64) {
        self.first = self.first.min(start.get() / UNIT);
        self.end = self.end.max(end.div_ceil(UNIT));
        // The release order of the changes that follow publishes it.
        self.word.store(filled(self.first, self.end - self.first), Ordering::Relaxed);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // After the flush: who sees this need not wait for it.
        self.word.store(0, Ordering::Release);
    }
}

const fn filled(first: u64, units: u64) -> u64 {
    units << BITS | first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_pending_from_its_first_unit_to_its_last_and_until_it_is_dropped() {
        let pending = Pending::new();
        let is = |ipa| pending.contains(Ipa::new(ipa));
        let last = 1 << 48;
        for (from, end) in
            [(0, UNIT), (UNIT + 0x5000, 3 * UNIT + 0x1000), (7 * UNIT, last), (0, last)]
        {
            let mut place = pending.place(Ipa::new(from)).unwrap();
            assert!(is(from), "from the beginning on");
            place.cover(Ipa::new(from), end);
            assert!(is(from) && is(end - 1));
            assert!(from < UNIT || !is(from - UNIT), "{from:#x}");
            assert!(!is(end.next_multiple_of(UNIT)), "{end:#x}");
            place.cover(Ipa::new(0), UNIT);
            assert!(is(0) && is(from) && is(end - 1), "what was covered stays so");
            drop(place);
            assert!(!is(0) && !is(from) && !is(end - 1));
        }
    }

    #[test]
    fn there_are_as_many_places_as_claims() {
        let pending = Pending::new();
        let mut places: Vec<_> =
            (0..MAX_CLAIMS as u64).map(|n| pending.place(Ipa::new(n * UNIT)).unwrap()).collect();
        assert!(pending.place(Ipa::new(0)).is_none());
        places.remove(3);
        assert!(!pending.contains(Ipa::new(3 * UNIT)));
        assert!(pending.place(Ipa::new(99 * UNIT)).is_some());
    }
}
