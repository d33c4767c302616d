//! Pages of a VM taken out of EL2's window: before what they hold is copied, or they are released.
//!
//! ```text
//!  stage-2 slots -> Drain; flush; grace            who calls this has done that
//!  revoke    slots of EL2's window behind them: page -> Drain; DSB ISHST; VAE2IS for each; DSB ISH; ISB
//!  copy, release                                    the caller; each stage-2 slot -> 0 or the new leaf
//!  reopen    its slot of EL2's window: Drain -> 0
//! ```
//!
//! The grace period comes first: a fault handler of EL2 that has read the page in stage 2, and has not filled its slot yet, holds the
//! guard under which it read ([`Space::recover_window`]). Afterwards every such handler finds Drain in stage 2, so a slot that is
//! 0 here stays 0 until the stage-2 slot is live again. That is why only slots that are live are drained.
//!
//! Whose slots: those behind stage-2 slots in Drain. The caller's claim makes these his, and with them the slots here; nobody else
//! drains or reopens them meanwhile. A slot that is found in Drain is of an operation that was given up, and is treated as live:
//! its flush may be missing \[RSPVBD\].

use super::Space;
use crate::addr::{Ipa, IpaRange, Level, PAGE_SIZE};
use crate::arch::{Arch, Dsb, Observation};
use crate::errata::Errata;
use crate::features::Caps;
use crate::memory::{ARITY as SLOTS, Memory, Table};
use crate::slot::Slot;
use crate::tlbi::{Tlbi, VaOperand};
use crate::window::descriptor::DRAIN;

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Takes the pages behind stage-2 slots in Drain out of EL2's window: where `ranges` hold such, each slot that leads to
    /// one is in Drain afterwards, and no PE reaches the page by it. Returns how many, to be
    /// [reopened](Self::reopen_window).
    ///
    /// The caller has claimed the ranges, has flushed what the stage-2 slots held and waited for a grace period since.
    #[must_use = "slots of EL2's window stay in Drain, and every access to them ends, until they are reopened"]
    pub(super) fn revoke_window<'r>(&self, ranges: impl Iterator<Item = &'r IpaRange>) -> usize {
        match self.window.site() {
            Some(site) => self.revoke(site.base(), ranges),
            None => 0,
        }
    }

    #[cold]
    fn revoke<'r>(&self, base: u64, ranges: impl Iterator<Item = &'r IpaRange>) -> usize {
        let operands = [VaOperand::page(base, Caps::empty()); GATHERED];
        let mut owed = El2Owed { space: self, base, operands, held: 0 };
        let mut drained = 0;
        for range in ranges {
            self.each_shut(range, |slot, ipa| {
                // SAFETY: (1, 2) a page behind a stage-2 slot that the caller's claim has drained, so this one is the
                // caller's to drain; or Drain of an operation that was given up, under the same claim.
                unsafe { self.arch.store(slot, DRAIN) };
                owed.add(ipa);
                drained += 1;
            });
        }
        owed.settle();
        drained
    }

    /// Makes slots of EL2's window Empty again that were [revoked](Self::revoke_window), for so many bytes from `ipa` on. The
    /// stage-2 slot there is Empty, or leads to what is there now. Returns how many they were.
    pub(super) fn reopen_window(&self, ipa: Ipa, bytes: u64) -> usize {
        let mut count = 0;
        self.each_window_slot(ipa, ipa.get() + bytes, |slot, _| {
            if self.arch.load(slot) == DRAIN {
                // SAFETY: (1) in Drain, and the caller's; (2) flushed when it was revoked.
                unsafe { self.arch.store(slot, 0) };
                count += 1;
            }
        });
        count
    }

    /// Shows the slots of EL2's window in a claimed range that are not Empty and lie behind a stage-2 slot in Drain.
    fn each_shut(&self, range: &IpaRange, mut show: impl FnMut(&Slot, Ipa)) {
        // Of a page, of a block, or of a table that was taken out.
        let is_shut = |ipa| {
            // SAFETY: (1) in a range that the caller has claimed; used here and now.
            let (level, slot) = unsafe { self.claimed_slot(ipa, Level::L3) };
            slot.load(&self.arch).as_drain(level).is_some()
        };
        self.each_window_slot(range.start(), range.end().get(), |slot, ipa| {
            if self.arch.load(slot) != 0 && is_shut(ipa) {
                show(slot, ipa);
            }
        });
    }

    /// Shows the slots of EL2's window from one address to another, as far as it was built there.
    fn each_window_slot(&self, from: Ipa, end: u64, mut show: impl FnMut(&Slot, Ipa)) {
        let Some(root) = self.window.root() else { return };
        let mut at = from.page();
        while at.get() < end {
            let (pages, span) = match self.window_pages(root, at) {
                Ok(pages) => (Some(pages), Level::L2),
                Err(level) => (None, level),
            };
            let next = after(at, span).min(end);
            for (slot, ipa) in pages.into_iter().flat_map(|pages| slots_of(pages, at, next)) {
                show(slot, ipa);
            }
            at = Ipa::new(next);
        }
    }

    /// Invalidates entries of EL2's own regime on every PE, and returns when none is in use any more. What the tables hold
    /// instead is visible to walks already.
    pub(super) fn el2_flush(&self, operations: impl Iterator<Item = Tlbi> + Clone) {
        let issue = |operation: Tlbi| {
            self.ledger.tlbi(&operation);
            self.arch.tlbi(operation);
        };
        operations.clone().for_each(issue);
        self.arch.dsb(Dsb::Ish);
        if self.arch.errata().contains(Errata::REPEAT_TLBI) {
            // The DSB may have ended too early: any one more makes up for all of them. See `flush.rs`.
            operations.take(1).for_each(issue);
            self.arch.dsb(Dsb::Ish);
        }
        // For this PE they are complete after a context synchronization [RBLDZX].
        self.arch.isb();
        self.arch.observe(Observation::El2Flushed);
    }
}

/// Operands that are gathered before the next invalidations: they want one DSB before them.
const GATHERED: usize = 32;

/// Slots of EL2's window in Drain, of which EL2's TLBs have not been told.
struct El2Owed<'s, 'e, M: Memory, A: Arch> {
    space: &'s Space<'e, M, A>,
    /// Where EL2's window begins.
    base: u64,
    /// So many are held.
    operands: [VaOperand; GATHERED],
    held: usize,
}

impl<M: Memory, A: Arch> El2Owed<'_, '_, M, A> {
    fn add(&mut self, ipa: Ipa) {
        let caps = self.space.geometry.features().caps;
        if let Some(place) = self.operands.get_mut(self.held) {
            *place = VaOperand::page(self.base + ipa.get(), caps);
            self.held += 1;
        }
        if self.held == GATHERED {
            self.settle();
        }
    }

    fn settle(&mut self) {
        let count = core::mem::take(&mut self.held);
        let operands = self.operands.get(..count).unwrap_or_default();
        if operands.is_empty() {
            return;
        }
        // The descriptors are visible to every walk before the entries go.
        self.space.arch.dsb(Dsb::IshSt);
        self.space.el2_flush(operands.iter().map(|operand| Tlbi::Vae2Is(*operand)));
    }
}

/// First address after the slot of a level in which `ipa` lies.
const fn after(ipa: Ipa, level: Level) -> u64 {
    ipa.align_down(level.slot_bytes()).get() + level.slot_bytes()
}

/// Slots of a table of pages from one address to another, of its span.
fn slots_of(pages: &Table, from: Ipa, end: u64) -> impl Iterator<Item = (&Slot, Ipa)> {
    let count = ((end - from.page().get()) / PAGE_SIZE) as usize;
    let first = Level::L3.index(from);
    let slots = pages.slots().iter().enumerate().skip(first).take(count.min(SLOTS));
    let start = from.align_down(Level::L3.table_bytes()).get();
    slots.map(move |(index, slot)| (slot, Ipa::new(start + index as u64 * PAGE_SIZE)))
}
