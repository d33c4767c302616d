//! Takes one kind of record from all leaves of a batch, and says of which: what harvests are made of.

use super::{ProtError, Transaction};
use crate::addr::{Ipa, Level};
use crate::arch::Arch;
use crate::descriptor::{Change, Leaf, Owner};
use crate::memory::Memory;

/// Slots that are reported together.
const GROUP: u64 = u64::BITS as u64;

/// A record that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// S2AP\[1\]: what is writable becomes writable-clean, and its dirty state is managed from then on. What is
    /// writable with its dirty state not managed may have been written to.
    Dirty,
    /// AF: a hint.
    Accessed,
}

impl Taken {
    const fn change(self) -> Change {
        match self {
            Self::Dirty => Change::CLEAN,
            Self::Accessed => Change::UNACCESSED,
        }
    }

    const fn is_in(self, leaf: &Leaf) -> bool {
        let recorded = match self {
            Self::Dirty => leaf.may_be_written(),
            Self::Accessed => leaf.is_accessed(),
        };
        recorded && matches!(leaf.owner(), Owner::Vm)
    }
}

impl<M: Memory, A: Arch> Transaction<'_, M, A> {
    /// Takes a record from each leaf of the batch that has it and is the VM's. `report(first, level, slots)` says which:
    /// bit n of `slots` is the leaf n slots of `level` behind `first`, where a multiple of 64 such slots begins.
    /// Those come in ascending order, perhaps one more than once, and none is 0.
    ///
    /// What has no record costs no more than to be read. Of a contiguous run each member has what any has; a run that loses
    /// its records is dissolved.
    ///
    /// Guests may go on writing by the old leaves until [`finish`](Self::finish), unrecorded: who copies pages that were
    /// reported does so afterwards.
    ///
    /// # Errors
    /// [`ProtError`]: what is in the way. What comes before it is taken, and reported.
    pub fn take(
        &mut self,
        what: Taken,
        mut report: impl FnMut(Ipa, Level, u64),
    ) -> Result<(), ProtError> {
        let change = what.change();
        let (mut first, mut level, mut slots) = (Ipa::new(0), Level::L3, 0);
        let outcome = self.each(|ipa, leaf| {
            if !what.is_in(leaf) {
                return None;
            }
            let bytes = leaf.level().slot_bytes();
            let group = ipa.align_down(GROUP * bytes);
            if (group, leaf.level()) != (first, level) {
                if slots != 0 {
                    report(first, level, slots);
                }
                (first, level, slots) = (group, leaf.level(), 0);
            }
            slots |= 1 << ((ipa.get() - group.get()) / bytes);
            Some(change)
        });
        if slots != 0 {
            report(first, level, slots);
        }
        outcome
    }
}
