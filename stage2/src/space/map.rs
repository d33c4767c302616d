//! Mapping a range, by the largest leaves that fit.
//!
//! ```text
//!  prepare  slots that are Empty -> Busy(leaf), or Busy(table) whose subtree is complete
//!           anything else there, or no table page at hand: every Busy -> Empty, subtrees freed, error
//!  commit   each Busy -> live, by one release store that sets the valid bit; DSB ISHST
//! ```
//!
//! A subtree is built detached, by plain stores, because nobody walks it yet; its slot is won by one
//! compare-exchange, and one store publishes all that is below \[D8.2\]. Until the commit nothing is
//! valid, so hardware sees nothing of a map that fails, and taking it back needs no flush and no grace
//! period: neither walkers nor lookups descend through Busy. A fault handler that meets it lets the
//! guest fault again.
//!
//! Where a table is in the way of a block, the pages below it are mapped one by one. A slot on
//! the way that somebody populates meanwhile is reported as it was found.

use super::content::{Content, Leaves};
use super::tables::Node;
use super::{Batch, Extent, MapError, Progress, Space};
use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::arch::{Arch, Dsb};
use crate::claim::Claim;
use crate::descriptor::{Descriptor, View};
use crate::epoch::{Cpu, Guard};
use crate::memory::{ARITY as SLOTS, Memory};
use crate::slot::{Slot, TrySetError};

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Maps a batch of the claimed range: all of the batch, or nothing of it.
    ///
    /// Remote PEs see the translations as soon as their walks do, and at the latest when this returns.
    ///
    /// # Errors
    /// [`MapError`]. Of this batch nothing is left; earlier ones stay as they are.
    ///
    /// # Safety
    /// 1. The memory of `extent` is the VM's to use (or, for [`Owner::Other`](crate::Owner::Other), meant to be), until a
    ///    flush has completed after it was unmapped again.
    /// 2. Its content is what the guest may see, and visible to the guest whatever its caches are:
    ///    [`Coherency`](crate::Coherency) says what that takes.
    pub unsafe fn map(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
        extent: &Extent,
    ) -> Result<Progress, MapError> {
        let range = self.claimed(claim, batch.from).map_err(MapError::Claim)?;
        let leaves = Leaves::new(self, range, extent)?;
        self.fill(cpu, range, batch, &leaves)
    }

    /// Fills Empty slots of a batch of `range` with `content`: prepare, then commit.
    pub(super) fn fill<C: Content>(
        &self,
        cpu: &Cpu<'_>,
        range: IpaRange,
        batch: Batch,
        content: &C,
    ) -> Result<Progress, MapError> {
        let (at, left) = (batch.from, batch.slots.max(1));
        let mut prepare = Prepare { space: self, content, range, at, left, made: Made::default() };
        let result = prepare.run(cpu);
        let Prepare { at, made, .. } = prepare;
        self.finish(batch.from, at, result.is_ok());
        result?;
        if content.is_the_vms()
            && let Ok(filled) = IpaRange::new(batch.from, at.get() - batch.from.get())
        {
            // What cannot be written is dirty nowhere else.
            self.mark_logged(filled);
        }
        self.ledger.mapped(if C::LEAVES { made.slots } else { [0; 4] }, made.tables);
        Ok(if at < range.end() { Progress::Until(at) } else { Progress::Done })
    }

    /// Makes what was prepared in `[from, until)` live, or nothing.
    fn finish(&self, from: Ipa, until: Ipa, commit: bool) {
        if from == until {
            // Not even the slot that `from` lies in was prepared: it is somebody else's.
            return;
        }
        let start = self.geometry.start();
        let mut first = from.align_down(start.table_bytes());
        while first < until {
            let root = self.geometry.root_page(self.root, first);
            self.finish_table(root, start, first, (from, until), commit);
            let Some(next) = first.checked_add(start.table_bytes()) else { break };
            first = next;
        }
        if commit {
            self.arch.dsb(Dsb::IshSt);
        }
    }

    fn finish_table(
        &self,
        pa: Pa,
        level: Level,
        first: Ipa,
        (from, until): (Ipa, Ipa),
        commit: bool,
    ) {
        // SAFETY: (1) linked, and the claim covers some of its span: it stays allocated.
        let table = unsafe { self.memory.table(pa) };
        let bytes = level.slot_bytes();
        let skip = from.get().saturating_sub(first.get()) / bytes;
        for (index, slot) in table.slots().iter().enumerate().skip(skip as usize) {
            let ipa = Ipa::new(first.get() + index as u64 * bytes);
            if ipa >= until {
                return;
            }
            match (slot.load(&self.arch).view(level), level.next()) {
                (View::Table(below), Some(next)) => {
                    self.finish_table(below, next, ipa, (from, until), commit);
                }
                (View::Busy(live), _) if commit => {
                    // SAFETY: (1) made Busy under this claim; (2) the live form of what it remembers,
                    // which is complete.
                    unsafe { self.arch.store(slot, live.bits()) };
                }
                (View::Busy(live), below) => {
                    // SAFETY: (1) made Busy under this claim; (2) it was never live, so no TLB holds it.
                    unsafe { self.arch.store(slot, Descriptor::EMPTY.bits()) };
                    if let (Some(table), Some(below)) = (live.as_table(level), below) {
                        self.free_detached(table, below);
                    }
                }
                (View::Note(_), _) if !commit => {
                    // SAFETY: (1) written under this claim: the slot was Empty; (2) it was never live.
                    unsafe { self.arch.store(slot, Descriptor::EMPTY.bits()) };
                }
                _ => {}
            }
        }
    }

    /// Gives back a subtree that was never linked.
    pub(super) fn free_detached(&self, pa: Pa, level: Level) {
        // SAFETY: (1) allocated for a subtree that nobody else knows.
        let table = unsafe { self.memory.table(pa) };
        for slot in table.slots() {
            let held = slot.load(&self.arch);
            if let (Some(below), Some(next)) = (held.as_table(level), level.next()) {
                self.free_detached(below, next);
            }
            if held != Descriptor::EMPTY {
                // SAFETY: (1) nobody walks the subtree.
                unsafe { self.arch.store_detached(slot, Descriptor::EMPTY.bits()) };
            }
        }
        // SAFETY: (1) from `alloc_table`, in no tree; (2) never linked; (3) zeroed above.
        unsafe { self.memory.free_table(pa, 1) };
    }
}

/// The first phase: Empty → Busy.
struct Prepare<'w, 'e, M, A, C> {
    space: &'w Space<'e, M, A>,
    content: &'w C,
    range: IpaRange,
    /// Everything of the range before this is prepared.
    at: Ipa,
    left: usize,
    made: Made,
}

/// What was prepared: slots that end a walk, by level, and tables.
#[derive(Clone, Copy, Default)]
struct Made {
    slots: [u64; 4],
    tables: u64,
}

impl Made {
    /// So many slots of one level.
    fn slots(level: Level, count: u64) -> Self {
        let mut made = Self::default();
        made.slots[level as usize] = count;
        made
    }

    fn add(&mut self, other: &Self) {
        self.slots.iter_mut().zip(other.slots).for_each(|(sum, count)| *sum += count);
        self.tables += other.tables;
    }

    /// What of a budget it used up.
    fn cost(&self) -> usize {
        self.slots.iter().sum::<u64>() as usize
    }
}

impl<M: Memory, A: Arch, C: Content> Prepare<'_, '_, M, A, C> {
    fn run(&mut self, cpu: &Cpu<'_>) -> Result<(), MapError> {
        while self.at < self.range.end() && self.left > 0 {
            let guard = cpu.enter();
            self.step(&guard)?;
        }
        Ok(())
    }

    /// The slots of one table that the walk ends in.
    fn step(&mut self, guard: &Guard<'_>) -> Result<(), MapError> {
        let path = self.space.path(guard, self.at).ok_or(MapError::ForeignGuard)?;
        let Some(node) = path.leaf() else { return Ok(()) };
        let end = node.end().min(self.range.end().get());
        while self.at.get() < end && self.left > 0 {
            if node.level.index(self.at) >= SLOTS {
                self.at = Ipa::new(end);
                break;
            }
            if !self.slot(guard, node)? {
                // It leads to a table now.
                return Ok(());
            }
        }
        Ok(())
    }

    /// Prepares the slot at `at`; `false` if another PE has just linked a table there.
    fn slot(&mut self, guard: &Guard<'_>, node: Node<'_>) -> Result<bool, MapError> {
        let level = node.level;
        let slot = node.table.slot(level.index(self.at));
        let end = node.ipa_of(level.index(self.at)).get() + level.slot_bytes();
        let end = Ipa::new(end.min(self.range.end().get()));
        let seen = slot.load(&self.space.arch);
        if seen.as_table(level).is_some() {
            return Ok(false);
        }
        if seen != Descriptor::EMPTY {
            return Err(self.occupied(level, seen));
        }
        let (live, made, end) = if self.content.level_at(self.at, level) == level {
            (self.content.at(self.at, level)?, Made::slots(level, 1), end)
        } else {
            self.subtree(level, self.at, end, self.left)?
        };
        // A note is complete in itself.
        let busy = live.to_busy().unwrap_or(live);
        // SAFETY: (1) found under this guard. (2) Not valid; what it remembers is complete.
        match unsafe { slot.try_set(&self.space.arch, guard, busy) } {
            Ok(()) => {
                self.left = self.left.saturating_sub(made.cost());
                self.made.add(&made);
                self.at = end;
                Ok(true)
            }
            Err(lost) => {
                if let (Some(table), Some(below)) = (live.as_table(level), level.next()) {
                    self.space.free_detached(table, below);
                }
                match lost {
                    TrySetError::Unsupported => Err(MapError::Unsupported),
                    TrySetError::Occupied(seen) if seen.as_table(level).is_some() => Ok(false),
                    TrySetError::Occupied(seen) => Err(self.occupied(level, seen)),
                }
            }
        }
    }

    /// Why the slot at `at`, which holds `seen`, cannot be prepared.
    fn occupied(&self, level: Level, seen: Descriptor) -> MapError {
        let (ipa, bytes) = (self.at, level.slot_bytes());
        let first = ipa.align_down(bytes);
        let claimed = self.range.start() <= first
            && first.checked_add(bytes).is_some_and(|end| end <= self.range.end());
        match seen.view(level) {
            View::Busy(_) if !claimed => MapError::Retry { ipa, level, seen },
            _ => MapError::Occupied { ipa, level, seen },
        }
    }

    /// A table, not yet linked, for a slot of `level`, that maps `[from, to)` or as much of it as `left`
    /// slots allow; the slots it took, and where it ends.
    fn subtree(
        &self,
        level: Level,
        from: Ipa,
        to: Ipa,
        left: usize,
    ) -> Result<(Descriptor, Made, Ipa), MapError> {
        let space = self.space;
        let below = level.next().ok_or(MapError::OutOfTables)?;
        let pa = space.memory.alloc_table(1).ok_or(MapError::OutOfTables)?;
        match self.fill(pa, below, from, to, left) {
            Ok((made, end)) => match Descriptor::table(level, pa) {
                Ok(table) => Ok((table, Made { tables: made.tables + 1, ..made }, end)),
                Err(error) => {
                    space.free_detached(pa, below);
                    Err(MapError::Mapping(error.into()))
                }
            },
            Err(error) => {
                space.free_detached(pa, below);
                Err(error)
            }
        }
    }

    fn fill(
        &self,
        pa: Pa,
        level: Level,
        from: Ipa,
        to: Ipa,
        left: usize,
    ) -> Result<(Made, Ipa), MapError> {
        // SAFETY: (1) just allocated.
        let table = unsafe { self.space.memory.table(pa) };
        let bytes = level.slot_bytes();
        let (first, mut at, mut made) = (level.index(from), from, Made::default());
        if level == Level::L3 {
            let count = ((to.get() - from.get()) / bytes) as usize;
            let run = table.slots().get(first..first + count).unwrap_or_default();
            self.pages(run, self.content.at(from, level)?.bits());
            return Ok((Made::slots(level, count as u64), to));
        }
        for slot in table.slots().iter().skip(first) {
            if at >= to || made.cost() >= left {
                break;
            }
            let end = at.align_down(bytes).checked_add(bytes).map_or(to, |end| end.min(to));
            let (live, below, end) = if self.content.level_at(at, level) == level {
                (self.content.at(at, level)?, Made::slots(level, 1), end)
            } else {
                self.subtree(level, at, end, left - made.cost())?
            };
            // SAFETY: (1) nobody walks the table yet; (2) a leaf, note or table for this level.
            unsafe { self.space.arch.store_detached(slot, live.bits()) };
            made.add(&below);
            at = end;
        }
        Ok((made, at))
    }

    /// A run of pages, one after another: by far the most frequent.
    // A function of its own: a loop of four instructions, whatever is around it.
    #[inline(never)]
    fn pages(&self, run: &[Slot], mut bits: u64) {
        for slot in run {
            // SAFETY: (1) nobody walks the table yet; (2) a leaf or note for this level.
            unsafe { self.space.arch.store_detached(slot, bits) };
            bits = bits.wrapping_add(C::STEP);
        }
    }
}
