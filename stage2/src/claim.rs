//! Claims: one operation at a time on a range of IPAs.
//!
//! Operations that change what is mapped take several steps, and between the steps of one (a flush, a
//! grace period) its slots are in Drain or Busy. A claim on the range keeps a second operation out:
//! it gets a [`Conflict`](ClaimError::Conflict) at once instead of meeting half of the first one's work. Fault handlers claim
//! nothing; they only ever fill Empty slots.
//!
//! Three rules hang on it. **Drain, Busy and Dead slots that lie in a claimed range belong to the claim**, so
//! an operation that was given up in the middle is finished by whoever claims the range next. **A
//! table is given back only by who claims its whole span**, so a table that a claimed range touches
//! stays where it is, even outside a guard. And **a claim has one user at a time**: operations take it
//! by `&mut`, because two of them would both finish what they find in Drain, and release it twice:
//!
//! ```text
//! PE 0, unmap                         PE 1, unmap by the same claim
//! live -> Drain, flush, grace
//!                                     finds Drain: given up, mine to finish; flush, grace
//! releases the frame; Drain -> 0
//!                                     releases the frame   <- the race: it has a new owner by now
//! ```
//!
//! A slot above the pages may reach over the edge of a claim. If it is Empty, a map whose claim covers a
//! part of it makes it Busy for the moment in which it links a table. A neighbour's map then has to be
//! repeated ([`MapError::Retry`](crate::space::MapError::Retry)); a neighbour's unmap has nothing to do
//! there, because nothing was mapped.

use core::fmt;

use crate::addr::IpaRange;
use crate::sync::Lock;

/// Operations under way in one VM at a time.
pub const MAX_CLAIMS: usize = 8;

/// The ranges of a VM that operations work on.
#[derive(Debug)]
pub(crate) struct Claims(Lock<[Option<IpaRange>; MAX_CLAIMS]>);

/// The right to change what is mapped in a range. Ends when dropped.
#[derive(Debug)]
#[must_use = "the claim ends when it is dropped"]
pub struct Claim<'s> {
    claims: &'s Claims,
    range: IpaRange,
}

/// Why a range cannot be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimError {
    /// Another operation works on a range that shares a page with this one.
    Conflict {
        /// The range asked for.
        wanted: IpaRange,
        /// The other operation's.
        held: IpaRange,
    },
    /// As many operations are under way as a VM can have.
    TooMany {
        /// The range asked for.
        wanted: IpaRange,
    },
    /// The range ends beyond the VM's IPA size.
    BeyondIpaSize {
        /// The range asked for.
        wanted: IpaRange,
        /// Bits of IPA.
        bits: u32,
    },
}

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict { wanted, held } => {
                write!(f, "{wanted} overlaps {held}, on which another operation works")
            }
            Self::TooMany { wanted } => {
                write!(f, "{wanted}: {MAX_CLAIMS} operations are under way already")
            }
            Self::BeyondIpaSize { wanted, bits } => {
                write!(f, "{wanted} ends beyond the VM's {bits}-bit IPAs")
            }
        }
    }
}

impl core::error::Error for ClaimError {}

impl Claims {
    pub(crate) fn new() -> Self {
        Self(Lock::new([None; MAX_CLAIMS]))
    }

    /// Claims `range`. Never waits for another operation.
    pub(crate) fn claim(&self, range: IpaRange) -> Result<Claim<'_>, ClaimError> {
        let mut held = self.0.lock();
        if let Some(other) = held.iter().flatten().find(|other| other.overlaps(&range)) {
            return Err(ClaimError::Conflict { wanted: range, held: *other });
        }
        let free = held.iter_mut().find(|slot| slot.is_none());
        *free.ok_or(ClaimError::TooMany { wanted: range })? = Some(range);
        Ok(Claim { claims: self, range })
    }
}

impl Claim<'_> {
    /// What is claimed.
    #[must_use]
    pub const fn range(&self) -> IpaRange {
        self.range
    }

    /// Whether it is a claim of the VM with these claims.
    pub(crate) fn is_of(&self, claims: &Claims) -> bool {
        core::ptr::eq(self.claims, claims)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut held = self.claims.0.lock();
        // Claims are disjoint, so the range names its entry.
        if let Some(mine) = held.iter_mut().find(|slot| **slot == Some(self.range)) {
            *mine = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ipa;

    fn pages(first: u64, count: u64) -> IpaRange {
        IpaRange::new(Ipa::new(first << 12), count << 12).unwrap()
    }

    #[test]
    fn neighbours_are_no_conflict_and_overlaps_are() {
        let claims = Claims::new();
        let held = claims.claim(pages(4, 4)).unwrap();
        for (first, count) in [(0, 4), (8, 1)] {
            assert!(claims.claim(pages(first, count)).is_ok());
        }
        for (first, count) in [(0, 5), (4, 4), (5, 1), (7, 9), (0, 99)] {
            let wanted = pages(first, count);
            let error = claims.claim(wanted).unwrap_err();
            assert_eq!(error, ClaimError::Conflict { wanted, held: held.range() });
        }
    }

    #[test]
    fn a_claim_ends_when_it_is_dropped() {
        let claims = Claims::new();
        drop(claims.claim(pages(4, 4)).unwrap());
        let all: std::vec::Vec<_> =
            (0..MAX_CLAIMS as u64).map(|n| claims.claim(pages(n, 1)).unwrap()).collect();
        let wanted = pages(100, 1);
        assert_eq!(claims.claim(wanted).unwrap_err(), ClaimError::TooMany { wanted });
        drop(all);
        assert!(claims.claim(wanted).is_ok());
    }
}
