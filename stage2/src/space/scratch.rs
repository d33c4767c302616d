//! Scratch pages: what a guest finds where nothing is meant to be, so that a wild access does no harm and all goes on.
//!
//! A VM has one page for it, which its hypervisor fills with a pattern. Wherever the guest reaches for a hole, a fault handler shows
//! it that page, by the same exchange of Empty by which memory is populated: no lock, no flush, no wait, nothing allocated but
//! tables. So it may run in a fault handler that is nested under any lock.
//!
//! ```text
//!  guard ── policy: a hole ── walk ──┬─ Empty ─ try_set ─┬ won ── the guest reads and writes the scratch page
//!                                    │                   └ lost ─ what the winner put there: scratch, or memory
//!                                    ├─ a leaf ───────────── present: resume the guest
//!                                    ├─ Busy, Drain, Dead ── Retry: return to the guest, fault again
//!                                    └─ Note, anything else ─ no scratch: inject
//! ```
//!
//! # A scratch leaf is not the VM's
//!
//! Its page is behind many addresses at once and belongs to none of them: NON_OWNED is set ([`Owner::Other`]). It is a page of
//! 4 KiB that is read and written and never executed, with AF set and without DBM, so that hardware has nothing to record in it.
//! **Nothing changes such a leaf but what takes it away**: unmap, the give-back of its table, [`remove_scratch`](Space::remove_scratch)
//! and real memory ([`replace_scratch`](Space::replace_scratch)).
//!
//! | who meets a leaf that is not the VM's | what he does |
//! | --- | --- |
//! | unmap, give-back, destroy | as any other leaf: Drain, flush, Empty; nobody is told of a frame, no page counts as dirty |
//! | a transaction: `protect`, `write_protect`, ageing, harvests | passes over it |
//! | `relax` | grants nothing: it allows what it allowed from the start |
//! | EL2's own write with its record | `NotOwned` |
//! | collapse, contiguous runs | in the way: it does not go on where its neighbour ends |
//! | copy into a block | in the way: `NotOwned` |
//! | map, annotate | in the way: `Occupied` |
//! | an install | present |
//!
//! # Real memory in its place
//!
//! The output address of a live translation changes, so it is broken first \[RDDMVT\], and the order is that of every such change:
//!
//! ```text
//!  look     without a lock: where scratch is. Then the caller gives a page for each: what can fail is over
//!  break    under the table's lock: scratch -> Drain; lock back
//!  flush    one for the batch
//!  grace    nobody who looked the scratch page up before still writes to it
//!  revoke   EL2's window, where it leads to the scratch page: `space/revoke.rs`
//!  make     Drain -> the page, by one release store; DSB ISHST
//! ```
//!
//! Without the break two pages would be behind one address, each by some TLB:
//!
//! ```text
//! PE 0, puts memory there             PE 1                                 PE 2
//!                                                                          has the scratch page in its TLB
//! scratch -> the page, by one store
//!                                     reads a lock word: 0, in the page
//!                                                                          takes the lock: in the scratch page  <- two holders
//! flush
//! ```
//!
//! What stands there otherwise stays: real memory that was mapped before the range became a hole, above all.

use core::ops::ControlFlow::{Break, Continue};

mod replace;

pub use replace::{ReplaceError, Replaced, Replacements};

use super::install::{Lost, Step, present};
use super::unmap::What;
use super::{
    Batch, Install, InstallError, MappingError, Notes, Progress, Release, Space, Tally, UnmapError,
};
use crate::addr::{Ipa, Level, Pa};
use crate::arch::Arch;
use crate::attr::{Attributes, MemType, Prot};
use crate::claim::Claim;
use crate::descriptor::{Descriptor, Leaf, LeafTemplate, Owner};
use crate::epoch::{Cpu, Guard};
use crate::memory::Memory;
use crate::slot::Slot;

/// What a scratch leaf says: loads and stores, no execution, nothing for hardware to record.
const SHOWN: Attributes = Attributes::new(Prot::RW, MemType::Normal);

/// A VM's scratch page, and the leaf that shows it: see [`Space::scratch`]. It is shown in that VM's tables only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    pa: Pa,
    leaf: Descriptor,
    /// Root of the tables that it was made for: no two spaces that live have the same.
    root: Pa,
}

impl Scratch {
    /// Where the page lies.
    #[must_use]
    pub const fn pa(&self) -> Pa {
        self.pa
    }

    /// The leaf, as it stands in a slot.
    #[must_use]
    pub const fn descriptor(&self) -> Descriptor {
        self.leaf
    }

    /// Whether a leaf shows this page.
    #[inline]
    #[must_use]
    pub const fn is_behind(&self, leaf: &Leaf) -> bool {
        let page = matches!(leaf.level(), Level::L3) && leaf.pa().get() == self.pa.get();
        page && matches!(leaf.owner(), Owner::Other)
    }
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// The VM's scratch page, to be shown where the guest reaches for what is not there. Remote PEs see nothing of this.
    ///
    /// # Errors
    /// [`MappingError`]: no descriptor can point there.
    ///
    /// # Safety
    /// 1. The page of 4 KiB at `pa` is below the machine's physical address size and serves nothing else, no other VM above all,
    ///    until every leaf that shows it was taken away and a flush has completed since; at the latest that is when the space
    ///    has been [destroyed](Self::destroy).
    /// 2. Its content is what the guest may see, and visible to the guest whatever its caches are:
    ///    [`Coherency`](crate::Coherency) says what that takes.
    /// 3. What this returns is not used any more once the space has been [destroyed](Self::destroy): others may have its root then.
    pub unsafe fn scratch(&self, pa: Pa) -> Result<Scratch, MappingError> {
        let made = LeafTemplate::new(Level::L3, &SHOWN, self.encoding, Owner::Other)
            .and_then(|template| template.at(pa));
        Ok(Scratch { pa, leaf: made?, root: self.root })
    }

    /// Shows the scratch page at `ipa`, unless something is there.
    ///
    /// The guard is the one under which the caller decided that nothing is meant to be there. For a fault handler: takes no lock,
    /// flushes nothing, waits for nobody, and allocates nothing but tables that are missing on the way. `tally` counts tables,
    /// errors included. Leaves are for the caller to count: it [credits](Self::credit_scratch) one for each
    /// [`Install::Installed`], or [`Account::leaves_now`](crate::Account::leaves_now) is wrong once they are unmapped. Remote PEs
    /// see the page as soon as they walk, and at the latest when this returns; one that faulted before finds it present.
    ///
    /// [`Install::Present`] may be any leaf: memory, also in a block, if somebody populated the address meanwhile.
    ///
    /// # Errors
    /// [`InstallError`]: nothing has changed but tables that were linked on the way. Another VM's scratch page is a
    /// [`ForeignMapping`](InstallError::ForeignMapping).
    // In one piece with its caller, as an install.
    #[inline(always)]
    pub fn install_scratch(
        &self,
        guard: &Guard<'_>,
        ipa: Ipa,
        scratch: &Scratch,
        tally: &mut Tally,
    ) -> Result<Install, InstallError> {
        if !self.domain.owns(guard) {
            return Err(InstallError::ForeignGuard);
        }
        if !self.geometry.contains(ipa) {
            return Err(InstallError::BeyondIpaSize { ipa, bits: self.geometry.ipa_bits() });
        }
        if scratch.root != self.root {
            return Err(InstallError::ForeignMapping);
        }
        let link = |slot: &Slot, level, _| match self.link(guard, slot, level, tally) {
            Ok(Step::Table(table)) => Continue(table),
            Ok(Step::Leaf(leaf)) => Break(Ok(Install::Present(leaf))),
            Err(error) => Break(Err(error)),
        };
        let slot = match self.descend(guard, ipa, Level::L3, link) {
            Continue(slot) => slot,
            Break(end) => return end,
        };
        let seen = slot.load(&self.arch);
        if seen != Descriptor::EMPTY {
            return Ok(Install::Present(present(seen, Level::L3)?));
        }
        match self.try_set(guard, slot, scratch.leaf) {
            Ok(()) => Ok(Install::Installed(scratch.pa)),
            Err(Lost::Race(seen)) => Ok(Install::Present(present(seen, Level::L3)?)),
            Err(Lost::Error(error)) => Err(error),
        }
    }

    /// Takes scratch out of a batch of the claimed range, and nothing else: memory, notes and whatever else is there stay. Tables
    /// in which nothing is left are given back.
    ///
    /// An [`unmap`](Self::unmap) in every other respect: the caller has seen to it that nobody shows scratch there any
    /// more. `release` hears of what an operation that was given up has left in Drain, and of tables. Another VM's scratch page
    /// is found nowhere, so that nothing but those is taken.
    ///
    /// # Errors
    /// As of [`unmap`](Self::unmap). What was drained before the error is flushed and released.
    pub fn remove_scratch(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
        scratch: &Scratch,
        relax: impl FnMut(),
        release: &mut impl Release,
    ) -> Result<Progress, UnmapError> {
        let what = What { notes: Notes::Keep, only: Some(scratch) };
        self.take_away(cpu, claim, batch, what, relax, release)
    }
}
