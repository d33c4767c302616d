//! How much of a range one call does, and where it has come to.

use crate::addr::Ipa;
use crate::claim::Claim;

/// A part of a claimed range: from an address on, so many slots.
///
/// A slot is a page, or a block or an empty stretch of 2 MiB or more. A table of pages that is filled, or a
/// table that ends, is done as a whole and may exceed the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Where to begin: at the start of the claimed range, or where the last batch ended. What lies before
    /// stays as it is.
    pub from: Ipa,
    /// Slots at the most; at least one is done.
    pub slots: usize,
}

impl Batch {
    /// All of a claimed range at once.
    #[must_use]
    pub const fn all_of(claim: &Claim<'_>) -> Self {
        Self { from: claim.range().start(), slots: usize::MAX }
    }
}

/// Where an operation in batches has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an operation may need further batches"]
pub enum Progress {
    /// The whole range.
    Done,
    /// Up to here: the next batch begins there.
    Until(Ipa),
}
