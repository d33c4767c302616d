//! Dirty records that a transaction takes while a [dirty session](crate::space::dirty) covers them, and that nobody else asks for.
//!
//! S2AP\[1\] is the record, and write-protecting a page takes it. So the pages of such a transaction get their bits in
//! the session's bitmap, **after the flush**: before, somebody could take the bit and copy a page that a guest goes on
//! writing by its TLB. Then the leaves are not told apart any more; all that the flush was for is taken for dirty.

use core::cell::Cell;

use super::Transaction;
use crate::arch::Arch;
use crate::descriptor::Leaf;
use crate::memory::Memory;

/// What a transaction takes from a session's log.
#[derive(Debug)]
pub(super) struct Logged {
    /// A session covers a part of the claim, and this is not its harvest.
    on: bool,
    /// A record was taken.
    lost: Cell<bool>,
}

impl Logged {
    pub(super) const fn new(on: bool) -> Self {
        Self { on, lost: Cell::new(false) }
    }

    /// Whether it matters what a leaf had recorded.
    pub(super) const fn is_on(&self) -> bool {
        self.on
    }

    /// A leaf was replaced by another.
    #[inline(always)]
    pub(super) fn changed(&self, was: &Leaf, now: &Leaf) {
        if self.on && was.may_be_written() && !now.may_be_written() {
            self.lost.set(true);
        }
    }

    /// Whether all that was flushed is to be marked.
    pub(super) fn lost(&self) -> bool {
        self.lost.take()
    }
}

impl<M: Memory, A: Arch> Transaction<'_, M, A> {
    /// Its records are taken for the session.
    pub(in crate::space) const fn harvests(&mut self) {
        self.log.on = false;
    }
}
