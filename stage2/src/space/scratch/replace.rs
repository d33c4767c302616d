//! Real memory takes the place of scratch: a break for each page, one flush for a batch.
//!
//! The steps are in the module above. What a batch remembers is where scratch was and which page comes there, on the
//! caller's stack: Drain says the rest.

use core::fmt;

use super::Scratch;
use crate::addr::{Ipa, IpaRange, Level, PAGE_SIZE, Pa};
use crate::arch::{Arch, Dsb};
use crate::claim::Claim;
use crate::descriptor::{Descriptor, DescriptorError, View};
use crate::epoch::{Cpu, Guard};
use crate::gather::Owed;
use crate::memory::Memory;
use crate::space::tables::{LockedTable, Node};
use crate::space::{Batch, Mapping, NotClaimed, Progress, Space};

/// Scratch leaves that are broken under one flush, at the most. Few under a model checker, whose threads have small stacks.
const TOGETHER: usize = if cfg!(any(loom, shuttle)) { 2 } else { 64 };

/// Where the pages come from that take the place of scratch.
///
/// What is called here holds no guard and no table's lock.
///
/// # Safety
/// An implementation promises of each page that `take` gives
/// 1. that it is the VM's to use, 4 KiB, aligned to that, below the machine's physical address size, and stays so until a flush
///    has completed after it was taken out of the tables again;
/// 2. that its content is what the guest may see at that address, and visible to the guest whatever its caches are:
///    [`Coherency`](crate::Coherency) says what that takes. Maintenance is completed by a DSB before `take` returns.
pub unsafe trait Replacements {
    /// A page for the address `ipa`. `None` when none is at hand.
    fn take(&mut self, ipa: Ipa) -> Option<Pa>;

    /// A page that did not come to `ipa` after all. It was never mapped.
    fn give_back(&mut self, ipa: Ipa, page: Pa);
}

/// What a batch of replacements did. A slot that is no scratch any more when it is to be broken counts as neither replaced nor
/// occupied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Where it has come to.
    pub progress: Progress,
    /// Scratch leaves in whose place is memory now.
    pub replaced: u64,
    /// Leaves that are something else, memory above all. They stay.
    pub occupied: u64,
}

/// Why nothing was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplaceError {
    /// The claim does not cover it.
    Claim(NotClaimed),
    /// The CPU belongs to other epochs than the tables do.
    ForeignGuard,
    /// The CPU is inside a guard or holds a lock: it could not wait for others. Or [`Replacements::take`] left one open.
    NotQuiescent,
    /// The mapping was made for tables of another shape, or the scratch page is another VM's.
    ForeignMapping,
    /// The mapping is of blocks: in the place of a scratch leaf comes a page.
    Level {
        /// Level of its leaves.
        level: Level,
    },
    /// [`Replacements::take`] had no page for it.
    OutOfFrames {
        /// Where scratch stays.
        ipa: Ipa,
    },
    /// The page's address does not fit into a descriptor.
    Descriptor(DescriptorError),
    /// A slot is in a state that the claim should have kept away.
    Unexpected {
        /// First IPA of the slot.
        ipa: Ipa,
        /// Its level.
        level: Level,
        /// What it holds.
        seen: Descriptor,
    },
}

impl fmt::Display for ReplaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(error) => error.fmt(f),
            Self::ForeignGuard => f.write_str("the CPU belongs to other epochs than the tables"),
            Self::NotQuiescent => f.write_str("the CPU is inside a guard or holds a table's lock"),
            Self::ForeignMapping => {
                f.write_str("the mapping or the scratch page was made for other tables")
            }
            Self::Level { level } => {
                write!(f, "a leaf of {level} cannot take the place of scratch")
            }
            Self::OutOfFrames { ipa } => write!(f, "no frame at hand for {ipa}"),
            Self::Descriptor(error) => error.fmt(f),
            Self::Unexpected { ipa, level, seen } => {
                write!(f, "the {level} slot at {ipa} holds {:#x}", seen.bits())
            }
        }
    }
}

impl core::error::Error for ReplaceError {}

/// A scratch leaf that a batch has found.
#[derive(Clone, Copy)]
struct Found {
    ipa: Ipa,
    /// Leaves of others that come before it in the batch.
    occupied: u64,
    /// What comes there: the page, and its leaf.
    page: Pa,
    new: Descriptor,
    /// The slot is in Drain.
    broken: bool,
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Puts memory where the scratch page is shown, in a batch of the claimed range. Everything else stays as it is.
    ///
    /// The caller has seen to it that nobody shows scratch in the range any more: it published a policy in which that is
    /// no hole, and waited for a grace period. It holds no guard and no lock; `relax` runs while it waits for others'.
    /// A batch counts the slots it looks at, and ends after 64 replacements.
    ///
    /// Remote PEs read and write the scratch page until the flush within; then they fault, and are to retry; then they
    /// translate by the new page. What was written to the scratch page is not in it. A dirty session that covers it is told
    /// of it.
    ///
    /// # Errors
    /// [`ReplaceError`]: nothing has changed in this call. A batch that comes to something in the way ends before it, and
    /// the next one says so.
    #[expect(clippy::too_many_arguments, reason = "an unmap and a map in one")]
    pub fn replace_scratch(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
        scratch: &Scratch,
        mapping: &Mapping,
        pages: &mut impl Replacements,
        relax: impl FnMut(),
    ) -> Result<Replaced, ReplaceError> {
        let range = self.claimed(claim, batch.from).map_err(ReplaceError::Claim)?;
        if !cpu.is_quiescent() {
            return Err(ReplaceError::NotQuiescent);
        }
        if scratch.root != self.root {
            return Err(ReplaceError::ForeignMapping);
        }
        if mapping.shape != self.shape {
            return Err(ReplaceError::ForeignMapping);
        }
        if mapping.template.level() != Level::L3 {
            return Err(ReplaceError::Level { level: mapping.template.level() });
        }
        let mut sweep = Sweep {
            space: self,
            scratch,
            range,
            at: batch.from,
            left: batch.slots.max(1),
            found: [None; TOGETHER],
            count: 0,
            occupied: 0,
            owed: Owed::new(self.tlb()),
        };
        let looked = sweep.look(cpu);
        let taken = sweep.take(mapping, pages);
        sweep.break_all(cpu, pages);
        let replaced = sweep.make_all(cpu, pages, relax)?;
        if sweep.at == batch.from {
            taken.and(looked)?;
        }
        let Sweep { at, occupied, .. } = sweep;
        let progress = if at < range.end() { Progress::Until(at) } else { Progress::Done };
        Ok(Replaced { progress, replaced, occupied })
    }
}

/// A batch on its way.
struct Sweep<'w, 'e, M, A: Arch> {
    space: &'w Space<'e, M, A>,
    scratch: &'w Scratch,
    range: IpaRange,
    /// Everything of the range before this is done.
    at: Ipa,
    left: usize,
    /// In order of address; so many.
    found: [Option<Found>; TOGETHER],
    count: usize,
    occupied: u64,
    owed: Owed<'w, A>,
}

impl<M: Memory, A: Arch> Sweep<'_, '_, M, A> {
    /// Finds scratch, until the range or the budget ends.
    fn look(&mut self, cpu: &Cpu<'_>) -> Result<(), ReplaceError> {
        while self.goes_on(self.range.end()) {
            // A guard for each table, so that nobody's grace period waits for a whole range.
            let guard = cpu.enter();
            let node = self.space.lowest(&guard, self.at).ok_or(ReplaceError::ForeignGuard)?;
            self.look_through(node)?;
        }
        Ok(())
    }

    fn goes_on(&self, end: Ipa) -> bool {
        self.at < end && self.left > 0 && self.count < TOGETHER
    }

    /// The slots of a table, to its end, the range's or the budget's, or to one that leads to a table.
    fn look_through(&mut self, node: Node<'_>) -> Result<(), ReplaceError> {
        let (level, bytes) = (node.level, node.level.slot_bytes());
        let end = Ipa::new(node.end().min(self.range.end().get()));
        while self.goes_on(end) {
            let index = level.index(self.at);
            let Some(slot) = node.table.slots().get(index) else {
                self.at = end;
                return Ok(());
            };
            let (ipa, seen) = (node.ipa_of(index), slot.load(&self.space.arch));
            let covered = self.range.start() <= ipa && ipa.get() + bytes <= self.range.end().get();
            match seen.view(level) {
                View::Table(_) => return Ok(()),
                View::Leaf(leaf) if self.scratch.is_behind(&leaf) => {
                    let (occupied, page, new) = (self.occupied, Pa::new(0), Descriptor::EMPTY);
                    self.found[self.count] =
                        Some(Found { ipa, occupied, page, new, broken: false });
                    self.count += 1;
                }
                View::Leaf(_) => self.occupied += 1,
                View::Empty | View::Note(_) | View::Drain(_) => {}
                // A subtree that a neighbour's map is about to link.
                View::Busy(live) if !covered && live.as_table(level).is_some() => {}
                View::Busy(_) | View::Dead | View::Foreign(_) => {
                    return Err(ReplaceError::Unexpected { ipa, level, seen });
                }
            }
            self.left -= 1;
            self.at = Ipa::new((ipa.get() + bytes).min(end.get()));
        }
        Ok(())
    }

    /// Takes a page for each that was found; where there is none, the batch ends.
    fn take(
        &mut self,
        mapping: &Mapping,
        pages: &mut impl Replacements,
    ) -> Result<(), ReplaceError> {
        for number in 0..self.count {
            let Some(found) = &mut self.found[number] else { continue };
            let ipa = found.ipa;
            let refused = match pages.take(ipa) {
                Some(page) => match mapping.template.at(page) {
                    Ok(new) => {
                        (found.page, found.new) = (page, new);
                        continue;
                    }
                    Err(error) => {
                        pages.give_back(ipa, page);
                        ReplaceError::Descriptor(error)
                    }
                },
                None => ReplaceError::OutOfFrames { ipa },
            };
            (self.at, self.occupied) = (ipa, found.occupied);
            self.found[number..].fill(None);
            return Err(refused);
        }
        Ok(())
    }

    /// Scratch -> Drain. A slot that holds something else by now gets nothing.
    fn break_all(&mut self, cpu: &Cpu<'_>, pages: &mut impl Replacements) {
        let Self { space, scratch, found, owed, .. } = self;
        let guard = cpu.enter();
        let mut held: Option<LockedTable<'_, A>> = None;
        for found in found.iter_mut().flatten() {
            if !held.as_ref().is_some_and(|table| table.slot(found.ipa).is_some()) {
                // One table's lock at a time: the last one's is given back before the next is asked for.
                drop(held.take());
                held = space.locked_pages(&guard, found.ipa);
            }
            let Some(slot) = held.as_ref().and_then(|table| table.slot(found.ipa)) else {
                continue;
            };
            let seen = slot.load(&space.arch).as_leaf(Level::L3);
            if seen.is_some_and(|leaf| scratch.is_behind(&leaf)) {
                // SAFETY: (1) the table's lock is held, and the claim covers the slot until it is live again.
                found.broken = unsafe { slot.clear(&space.arch, Level::L3) }.is_some();
                owed.leaf(found.ipa, Level::L3);
            }
        }
        drop(held);
        drop(guard);
        for place in found {
            if let Some(Found { ipa, page, .. }) = place.take_if(|found| !found.broken) {
                pages.give_back(ipa, page);
            }
        }
    }

    /// Flushes and waits; then each page is where scratch was. Returns how many.
    fn make_all(
        &mut self,
        cpu: &Cpu<'_>,
        pages: &mut impl Replacements,
        relax: impl FnMut(),
    ) -> Result<u64, ReplaceError> {
        let Self { space, scratch, found, owed, .. } = self;
        if owed.flush().is_none() {
            return Ok(0);
        }
        // Nothing of ours is held, so this fails only after a `take` that left a guard open.
        let waited = cpu.wait(relax);
        let revoked = match waited {
            Ok(()) => space.revoke_window(owed.ranges().iter()),
            Err(_) => 0,
        };
        let mut replaced = 0;
        for Found { ipa, page, new, .. } in found.iter().flatten() {
            // SAFETY: (1) this batch has broken the slot under the claim, and gives back no table.
            let (Level::L3, slot) = (unsafe { space.claimed_slot(*ipa, Level::L3) }) else {
                pages.give_back(*ipa, *page);
                continue;
            };
            let new = if waited.is_ok() { new } else { &scratch.leaf };
            // SAFETY: (1) in Drain since this batch broke it, under the claim; flushed since, so no TLB has scratch there;
            // (2) a page that `Replacements` promises to be the VM's, and complete; or scratch again.
            unsafe { space.arch.store(slot, new.bits()) };
            if revoked > 0 {
                space.reopen_window(*ipa, PAGE_SIZE);
            }
            if waited.is_ok() {
                replaced += 1;
            } else {
                pages.give_back(*ipa, *page);
            }
        }
        space.arch.dsb(Dsb::IshSt);
        waited.map_err(|_| ReplaceError::NotQuiescent)?;
        space.ledger.mapped([0, 0, 0, replaced], 0);
        space.ledger.others_unmapped(replaced);
        for Found { ipa, new, .. } in found.iter().flatten() {
            // Its leaf may say that it cannot be written, and it is new. What is not the VM's is never dirty.
            let own = new.as_own_leaf(Level::L3).is_some();
            if let Some(page) = IpaRange::page_of(*ipa).filter(|_| own) {
                space.mark_logged(page);
            }
        }
        Ok(replaced)
    }
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// The table of pages that translates `ipa`, locked; `None` if there is none.
    fn locked_pages<'g>(&'g self, guard: &'g Guard<'_>, ipa: Ipa) -> Option<LockedTable<'g, A>> {
        loop {
            let node = self.lowest(guard, ipa).filter(|node| node.level == Level::L3)?;
            // Of a claimed table the parent stays. If it moved, the walk would find out.
            if let Ok(table) = node.lock(&self.arch, guard) {
                return Some(table);
            }
        }
    }
}
