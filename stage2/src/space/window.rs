//! EL2's window of one VM: built, hooked, filled by faults. The design is in `window.rs`; how it is taken back in
//! `space/revoke.rs`.

use super::Space;
use super::lookup::Lookup;
use crate::addr::{Ipa, IpaRange, Level, PAGE_SIZE, Pa};
use crate::arch::{Arch, Dsb};
use crate::attr::MemType;
use crate::descriptor::View;
use crate::epoch::Guard;
use crate::memory::{Memory, Table};
use crate::slot::Slot;
use crate::tlbi::Tlbi;
use crate::window::descriptor::{DRAIN, as_table, is_valid, page, table};
use crate::window::{END, OpenError, Recovered, Site};

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Builds the tables of EL2's window for a range: afterwards faults of EL2 there can be
    /// [recovered](Self::recover_window). Ranges can be added at any time, by several PEs at once and while the window is in
    /// use; what is there already is left. Tables come from [`Memory`] one by one and stay until the VM ends.
    ///
    /// # Errors
    /// [`OpenError`]. After [`OpenError::OutOfTables`] the same call goes on where it stopped.
    pub fn open_window(&self, site: Site, range: IpaRange) -> Result<(), OpenError> {
        let size = END.min(1 << self.geometry.ipa_bits());
        if range.end().get() > size {
            return Err(OpenError::TooHigh { range });
        }
        if !self.window.fix(site) {
            return Err(OpenError::Elsewhere);
        }
        let built = self.build(range);
        // The winner of each exchange makes it observable, whatever became of the rest [RSPVBD].
        self.arch.dsb(Dsb::IshSt);
        self.arch.isb();
        built
    }

    fn build(&self, range: IpaRange) -> Result<(), OpenError> {
        let root = match self.window.root() {
            Some(root) => root,
            None => self.make_window_root()?,
        };
        let bytes = Level::L2.slot_bytes();
        let mut at = range.start().align_down(bytes);
        while at < range.end() {
            let below = self.window_link(root, Level::L1, at)?;
            let _pages = self.window_link(below, Level::L2, at)?;
            at = at.checked_add(bytes).ok_or(OpenError::TooHigh { range })?;
        }
        Ok(())
    }

    fn make_window_root(&self) -> Result<Pa, OpenError> {
        let fresh = self.memory.alloc_table(1).ok_or(OpenError::OutOfTables)?;
        if self.window.set_root(fresh) {
            return Ok(fresh);
        }
        // SAFETY: (1) allocated above, and in no tree; (2) never linked; (3) nothing was written to it.
        unsafe { self.memory.free_table(fresh, 1) };
        self.window.root().ok_or(OpenError::OutOfTables)
    }

    /// The table that the slot for `ipa` in a table of EL2's window leads to: a fresh one, if it is Empty.
    fn window_link(&self, above: Pa, level: Level, ipa: Ipa) -> Result<Pa, OpenError> {
        let slot = self.window_table(above).slot(level.index(ipa));
        if let Some(below) = as_table(self.arch.load(slot)) {
            return Ok(below);
        }
        let fresh = self.memory.alloc_table(1).ok_or(OpenError::OutOfTables)?;
        // SAFETY: (1) Empty may become a table, by whoever wins; the page is zeroed, and stays until the VM ends.
        let seen = match unsafe { self.arch.compare_exchange(slot, 0, table(fresh)) } {
            Some(Ok(_)) => return Ok(fresh),
            Some(Err(seen)) => as_table(seen),
            None => None,
        };
        // SAFETY: (1) allocated above, and in no tree; (2) never linked; (3) nothing was written to it.
        unsafe { self.memory.free_table(fresh, 1) };
        seen.ok_or(OpenError::Unsupported)
    }

    /// A table of EL2's window.
    pub(super) fn window_table(&self, pa: Pa) -> &Table {
        // SAFETY: (1) allocated for the window, and given back only when the space ends.
        unsafe { self.memory.table(pa) }
    }

    /// The table of EL2's window whose slots lead to the pages around `ipa`; where none was built, the level of the slot that
    /// leads nowhere. Beyond what the window can hold there is none, whatever the indices say.
    pub(super) fn window_pages(&self, root: Pa, ipa: Ipa) -> Result<&Table, Level> {
        if ipa.get() >= END {
            return Err(Level::L0);
        }
        let mut pa = root;
        for level in [Level::L1, Level::L2] {
            let slot = self.window_table(pa).slot(level.index(ipa));
            pa = as_table(self.arch.load(slot)).ok_or(level)?;
        }
        Ok(self.window_table(pa))
    }

    /// Whether EL2's window has a slot for a page: its tables were [built](Self::open_window) that far. They stay as long as the space
    /// does, so `true` stays true. Whether anything is there shows when it is touched.
    #[must_use]
    pub fn window_covers(&self, ipa: Ipa) -> bool {
        self.window_slot(ipa).is_some()
    }

    fn window_slot(&self, ipa: Ipa) -> Option<&Slot> {
        let pages = self.window_pages(self.window.root()?, ipa).ok()?;
        Some(pages.slot(Level::L3.index(ipa)))
    }

    /// The L1 table of EL2's window, for the slot of EL2's L0 table at its [base](Site::base); `None` before it is opened.
    #[must_use]
    pub fn window_root(&self) -> Option<Pa> {
        self.window.root()
    }

    /// The address at EL2 of a byte of the guest's memory; `None` before EL2's window is opened, and beyond what it can hold.
    /// Whether anything is there shows when it is touched.
    #[must_use]
    pub fn window_address(&self, ipa: Ipa) -> Option<u64> {
        let site = self.window.site()?;
        (ipa.get() < END).then_some(site.base() + ipa.get())
    }

    /// Hooks EL2's window into EL2's own tables: `slot` of an L0 table that every PE's TTBR0_EL2 names leads to it
    /// afterwards, on every PE. `false`, and no change, if it was not opened, or the slot is not Empty. The space cannot be
    /// [destroyed](Self::destroy) until it is [unhooked](Self::unhook_window).
    ///
    /// # Safety
    /// 1. `slot` is the one that translates the window's [base](Site::base), in a table of EL2's stage 1 which outlives
    ///    the space or [`unhook_window`](Self::unhook_window).
    /// 2. An access to the window's addresses is made only where its fault is recovered.
    /// 3. On every PE HCR_EL2.E2H is 0; TCR_EL2 says 4 KiB granule, 48-bit addresses (DS is 0) and Inner Shareable write-back
    ///    walks; and attribute [`Site::attribute`] of MAIR_EL2 is Normal write-back.
    #[must_use = "an access to the window faults for good if it is not hooked"]
    pub unsafe fn hook_window(&self, slot: &Slot) -> bool {
        let Some(root) = self.window.root() else { return false };
        // Before any PE can walk by it, so that nobody finds the window unhooked while it is not.
        self.window.hook();
        // SAFETY: (1) Empty may become a table; it stays until it is unhooked, by the caller's clause.
        let hooked =
            matches!(unsafe { self.arch.compare_exchange(slot, 0, table(root)) }, Some(Ok(_)));
        if !hooked {
            self.window.unhook();
        }
        // What faulted was not cached [RXCLRD].
        self.arch.dsb(Dsb::IshSt);
        self.arch.isb();
        hooked
    }

    /// Takes EL2's window out of EL2's own tables. Returns once no PE translates by any of it, not even as the next step of a
    /// walk. Nothing happens if the slot does not lead to it.
    ///
    /// # Safety
    /// 1. `slot` is one that [`hook_window`](Self::hook_window) has hooked, and nobody accesses the window any more by it.
    pub unsafe fn unhook_window(&self, slot: &Slot) {
        let hooked = self.window.root().map(table);
        if hooked != Some(self.arch.load(slot)) {
            return;
        }
        // SAFETY: (1, 2) a hooked slot is the caller's, and nobody changes it meanwhile.
        unsafe { self.arch.store(slot, DRAIN) };
        self.arch.dsb(Dsb::IshSt);
        self.el2_flush([Tlbi::Alle2Is].into_iter());
        // SAFETY: (1, 2) in Drain since above, and flushed.
        unsafe { self.arch.store(slot, 0) };
        self.arch.dsb(Dsb::IshSt);
        self.window.unhook();
    }

    /// Recovers a fault that EL2's own access at `ipa` of its window took: fills the slot with what stage 2 holds there.
    ///
    /// Takes no lock, allocates nothing, flushes nothing and never waits: it may run in a fault handler that is nested under
    /// any lock. The guard must be the one under which the caller does all of this, so that who takes the page
    /// away waits for it. `write` is whether the access was a write. Remote PEs see the translation as soon as their walks do.
    #[must_use]
    pub fn recover_window(&self, guard: &Guard<'_>, ipa: Ipa, write: bool) -> Recovered {
        let (Some(slot), Some(site)) = (self.window_slot(ipa), self.window.site()) else {
            return Recovered::NotCovered;
        };
        let Some(found) = self.lookup(guard, ipa) else { return Recovered::NotCovered };
        let pa = match self.reached(&found, ipa, write) {
            Ok(pa) => pa,
            Err(answer) => return answer,
        };
        let new = page(pa, site.attribute());
        // SAFETY: (1) Empty may become a page, by whoever wins; it is the VM's until who takes it away has waited for this guard
        // and revoked the slot.
        match unsafe { self.arch.compare_exchange(slot, 0, new) } {
            Some(Ok(_)) => {
                self.arch.dsb(Dsb::IshSt);
                self.arch.isb();
                Recovered::Mapped
            }
            Some(Err(seen)) if seen == new => Recovered::Mapped,
            Some(Err(seen)) => {
                debug_assert!(!is_valid(seen), "EL2's window holds what stage 2 does not");
                Recovered::Retry
            }
            None => Recovered::NotCovered,
        }
    }

    /// Which page of memory EL2 reaches at `ipa`, by what stage 2 holds.
    fn reached(&self, found: &Lookup, ipa: Ipa, write: bool) -> Result<Pa, Recovered> {
        let leaf = match found.view() {
            View::Leaf(leaf) => leaf,
            View::Empty => return Err(Recovered::Fill),
            View::Busy(_) | View::Drain(_) | View::Dead | View::Table(_) => {
                return Err(Recovered::Retry);
            }
            View::Note(_) | View::Foreign(_) => return Err(Recovered::NotCovered),
        };
        let attributes = leaf.attributes(self.encoding).ok_or(Recovered::NotCovered)?;
        if attributes.mem != MemType::Normal {
            return Err(Recovered::NotCovered);
        }
        if write && !leaf.is_writable() {
            return Err(Recovered::ReadOnly);
        }
        let offset = ipa.get() & (leaf.level().slot_bytes() - 1) & !(PAGE_SIZE - 1);
        leaf.pa().checked_add(offset).ok_or(Recovered::NotCovered)
    }

    /// Gives the tables of EL2's window back. Every stage-2 slot is Empty by now, so every slot that leads to a page is, too.
    ///
    /// # Safety
    /// 1. The window is hooked into no table.
    pub(super) unsafe fn free_window(&self) {
        if let Some(root) = self.window.root() {
            self.free_window_table(root, Level::L1);
        }
    }

    fn free_window_table(&self, pa: Pa, level: Level) {
        for slot in self.window_table(pa).slots() {
            let held = self.arch.load(slot);
            if let (Some(below), Some(next)) = (as_table(held), level.next()) {
                self.free_window_table(below, next);
            }
            debug_assert!(level < Level::L3 || !is_valid(held), "a page outlives its mapping");
            if held != 0 {
                // SAFETY: (1) unhooked, and flushed since; (2) a table that is given back is all zero.
                unsafe { self.arch.store_detached(slot, 0) };
            }
        }
        // SAFETY: (1) of the window; (2) unhooked, flushed, and EL2's accesses are over; (3) every slot is zero.
        unsafe { self.memory.free_table(pa, 1) };
    }
}
