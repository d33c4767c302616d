//! Takes one kind of record from all leaves of a batch, and says of which: what harvests are made of.

use super::bulk::Run;
use super::{ProtError, Transaction};
use crate::addr::{Ipa, Level};
use crate::arch::Arch;
use crate::descriptor::{Change, Leaf};
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
        match self {
            Self::Dirty => leaf.may_be_written(),
            Self::Accessed => leaf.is_accessed(),
        }
    }
}

impl<M: Memory, A: Arch> Transaction<'_, M, A> {
    /// Takes a record from each leaf of the batch that has it and is the VM's. `report(first, level, slots)` says which:
    /// bit n of `slots` is the leaf n slots of `level` behind `first`, where a multiple of 64 such slots begins.
    /// Those come in ascending order, perhaps one more than once, but no leaf is in two; and none is 0.
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
        report: impl FnMut(Ipa, Level, u64),
    ) -> Result<(), ProtError> {
        let mut groups = Groups { report, first: Ipa::new(0), level: Level::L3, slots: 0 };
        let outcome = self.all(&what.change(), |leaf| what.is_in(leaf), |run| groups.add(run));
        groups.close();
        outcome
    }
}

/// Leaves are reported in groups.
struct Groups<R> {
    report: R,
    /// The group that is not reported yet.
    first: Ipa,
    level: Level,
    slots: u64,
}

impl<R: FnMut(Ipa, Level, u64)> Groups<R> {
    #[inline(always)]
    fn add(&mut self, run: &Run) {
        let shift = run.level.slot_bytes().trailing_zeros();
        let (mut number, end) = (run.ipa.get() >> shift, (run.ipa.get() >> shift) + run.count);
        while number < end {
            let first = Ipa::new((number / GROUP * GROUP) << shift);
            if (first, run.level) != (self.first, self.level) {
                self.close();
                (self.first, self.level) = (first, run.level);
            }
            let next = end.min((number / GROUP + 1) * GROUP);
            self.slots |= u64::MAX >> (GROUP - (next - number)) << (number % GROUP);
            number = next;
        }
    }

    fn close(&mut self) {
        if self.slots != 0 {
            (self.report)(self.first, self.level, self.slots);
            self.slots = 0;
        }
    }
}
