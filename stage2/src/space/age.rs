//! Ageing: which pages were accessed since it was last asked.
//!
//! A pass over a range takes the access flag of each leaf, under one flush a batch, and says of each page whether it had it.
//! A page that had not is idle: nobody accessed it since the last pass. On that rests what to give away first, and how much
//! of its memory a VM works with ([`WorkingSet`]).
//!
//! ```text
//!  pass n     AF: 1 -> 0, flush                                     accessed
//!             the guest touches the page: hardware or a fault sets AF
//!  pass n+1   AF: 1 -> 0, flush                                     accessed
//!  pass n+2   AF is 0: nothing to change, nothing to flush          idle
//! ```
//!
//! **It is a hint.** Hardware may set AF for an access that never happens \[RLHQRX\]. Where HA is set and the leaf changes in
//! place, AF may be lost \[IGXGZY\]. What a TLB holds from before the flush is used without being noted. A block has one flag for
//! all its pages, and a contiguous run counts as accessed if a member is. So idle is never a reason to discard a page:
//! who takes it away saves it first, and the next access brings it back.
//!
//! Who takes AF does so by the engine that the VM has, as any change of records
//! ([`modify_prot`](Space::modify_prot)): dirty records stay exact. A run whose members lose AF is dissolved, so that no fault
//! has to set a flag in one.

mod working_set;

use core::fmt;

pub use working_set::WorkingSet;

use super::prot::{ProtError, Relax};
use super::{Batch, Progress, Space};
use crate::addr::{Ipa, IpaRange, PAGE_SIZE};
use crate::arch::Arch;
use crate::claim::Claim;
use crate::descriptor::Change;
use crate::epoch::Cpu;
use crate::memory::Memory;

/// Bits of a word.
const BITS: u64 = u64::BITS as u64;

/// What a batch of a pass has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aged {
    /// Where it has come to.
    pub progress: Progress,
    /// Pages of 4 KiB that were accessed since the last pass, with all of the block that any of them is in.
    pub accessed: u64,
    /// Pages that are mapped, and were not.
    pub idle: u64,
}

/// Why nothing was aged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgeError {
    /// What a change of records would have said.
    Prot(ProtError),
    /// The bitmap is of another range than the claim.
    Bitmap {
        /// What the bitmap is of.
        bitmap: IpaRange,
        /// What is claimed.
        claimed: IpaRange,
    },
    /// A bitmap has another number of words than its range asks for.
    Words {
        /// Words given.
        given: usize,
        /// Words wanted: one for each 64 pages.
        wanted: usize,
    },
}

impl fmt::Display for AgeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prot(error) => error.fmt(f),
            Self::Bitmap { bitmap, claimed } => {
                write!(f, "the bitmap is of {bitmap}, the claim of {claimed}")
            }
            Self::Words { given, wanted } => {
                write!(f, "the bitmap has {given} words, its range asks for {wanted}")
            }
        }
    }
}

impl core::error::Error for AgeError {}

/// A bitmap of the pages of a range, in the caller's memory: bit *n* is page *n*. For one pass: what is no leaf in a pass keeps the
/// bit that it had.
#[derive(Debug)]
pub struct IdlePages<'b> {
    range: IpaRange,
    words: &'b mut [u64],
}

impl<'b> IdlePages<'b> {
    /// Words that the bitmap of a range has.
    #[must_use]
    pub const fn words(range: IpaRange) -> usize {
        range.pages().div_ceil(BITS) as usize
    }

    /// A bitmap of a range in which no page is idle.
    ///
    /// # Errors
    /// [`AgeError::Words`].
    pub fn new(range: IpaRange, words: &'b mut [u64]) -> Result<Self, AgeError> {
        let (given, wanted) = (words.len(), Self::words(range));
        if given != wanted {
            return Err(AgeError::Words { given, wanted });
        }
        words.fill(0);
        Ok(Self { range, words })
    }

    /// Whether a page is idle, as far as the passes have come.
    #[must_use]
    pub fn is_idle(&self, ipa: Ipa) -> bool {
        let page = ipa.get().wrapping_sub(self.range.start().get()) / PAGE_SIZE;
        let word = self.words.get((page / BITS) as usize);
        self.range.contains(ipa) && word.is_some_and(|word| word >> (page % BITS) & 1 != 0)
    }

    /// The pages of a leaf, which lies in the range, are idle or not.
    fn mark(&mut self, ipa: Ipa, pages: u64, idle: bool) {
        let mut page = (ipa.get() - self.range.start().get()) / PAGE_SIZE;
        let end = page + pages;
        while page < end {
            let here = (end - page).min(BITS - page % BITS);
            let mask = u64::MAX >> (BITS - here) << (page % BITS);
            if let Some(word) = self.words.get_mut((page / BITS) as usize) {
                *word = if idle { *word | mask } else { *word & !mask };
            }
            page += here;
        }
    }
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Takes the access flags in a batch of the claimed range, and says what had them; in `idle`, which is of all of the
    /// range, also where. Leaves that are not the VM's are passed over.
    ///
    /// Counts as slots those of leaves, and what else walks end in. Remote PEs may access pages by what their TLBs hold until
    /// the flush within, unnoted. What is broken meanwhile faults, and is repeated: see [`Engine`](super::Engine).
    ///
    /// # Errors
    /// [`AgeError`]: nothing has changed in this call. A batch that comes to something in the way ends before it, and the
    /// next one says so.
    pub fn age(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
        mut idle: Option<&mut IdlePages<'_>>,
    ) -> Result<Aged, AgeError> {
        let claimed = claim.range();
        if let Some(IdlePages { range: bitmap, .. }) =
            idle.as_deref().filter(|b| b.range != claimed)
        {
            return Err(AgeError::Bitmap { bitmap: *bitmap, claimed });
        }
        let guard = cpu.enter();
        let transaction = self.modify_prot(&guard, claim, batch, Relax::Everywhere);
        let mut transaction = transaction.map_err(AgeError::Prot)?;
        let mut aged = Aged { progress: Progress::Done, accessed: 0, idle: 0 };
        let mut last = None;
        let outcome = transaction.each(|ipa, leaf| {
            let (accessed, pages) = (leaf.is_accessed(), leaf.level().slot_bytes() / PAGE_SIZE);
            // Once more, if it changed in the meantime: AF was set then, and is.
            if last.replace(ipa) != Some(ipa) {
                *(if accessed { &mut aged.accessed } else { &mut aged.idle }) += pages;
                if let Some(bitmap) = idle.as_deref_mut() {
                    bitmap.mark(ipa, pages, !accessed);
                }
            }
            accessed.then_some(Change::UNACCESSED)
        });
        aged.progress = transaction.finish().progress;
        match outcome {
            Err(error) if aged.progress == Progress::Until(batch.from) => {
                Err(AgeError::Prot(error))
            }
            _ => Ok(aged),
        }
    }
}
