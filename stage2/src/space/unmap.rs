//! Taking a range away: frames back to their owner, tables back to [`Memory`].
//!
//! ```text
//!  claim   the caller has published a policy under which nobody populates the range, and has waited
//!  sweep   live -> Drain; in tables that end, Empty -> Dead, then their parent slot -> Drain
//!  flush   one for the batch: DSB ISH, stage 2 by IPA, DSB ISH, VMALLE1IS, DSB ISH
//!  grace   nobody who looked up a translation or a table before still uses it
//!  revoke  EL2's window, where it leads to a page of these: `space/revoke.rs`
//!  release frames to the caller against the flush's token, tables to Memory; Drain and Dead -> Empty
//! ```
//!
//! **A slot in Drain needs no lock.** It stays what it is for installers (not Empty), for lookups (not a
//! table) and for other operations (their claims are elsewhere), so the locks are given back before
//! the flush and one flush serves a whole batch, however many tables it touched. What a Drain remembers
//! ([`Former`]) replaces a list of what was taken.
//!
//! A contiguous run is drained as a whole, also where a batch ends in the middle of it: see `space/contiguous.rs`.
//!
//! Tables that end with what they map go by the same batch: `unmap/tables.rs`.

mod release;
mod tables;

use release::Releaser;

use super::contiguous::{members_of, run_bytes};
use super::tables::{LockedTable, Node};
use super::{Batch, Progress, Scratch, Space, UnmapError};
use crate::addr::{Ipa, IpaRange, Level};
use crate::arch::Arch;
use crate::claim::Claim;
use crate::descriptor::{Descriptor, Former, State, View};
use crate::epoch::{Cpu, Guard};
use crate::flush::Flushed;
use crate::gather::Owed;
use crate::memory::{ARITY as SLOTS, Memory};
use crate::slot::Slot;

/// What becomes of the memory that an unmap takes away.
pub trait Release {
    /// The block or page that was mapped at `ipa` is the caller's again: no PE, no TLB and no lookup
    /// reaches it. `former` has its address, its size and the final state of its leaf.
    ///
    /// Memory that was mapped as [`Owner::Other`](crate::Owner::Other) is not told: it is not the VM's.
    fn frame(&mut self, ipa: Ipa, former: &Former, flushed: &Flushed);

    /// The table for the addresses from `ipa` on was given back. For statistics.
    fn table(&mut self, _ipa: Ipa) {}
}

/// What an unmap does with notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notes {
    /// They stay, and so do the tables that hold them.
    Keep,
    /// They go.
    Remove,
}

/// What goes, of all that is there.
#[derive(Clone, Copy)]
pub(super) struct What<'s> {
    pub(super) notes: Notes,
    /// Of leaves only those that show this page. The others stay.
    pub(super) only: Option<&'s Scratch>,
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Takes away what is mapped in a batch of the claimed range.
    ///
    /// The caller has seen to it that nobody populates the range: it published a region map without it
    /// and waited for a grace period. It holds no guard and no lock; `relax` runs while it waits for
    /// others'. Remote PEs translate by the old entries until the flush within; afterwards they
    /// fault. A fault that meets a slot on its way gets [`InstallError::Retry`](super::InstallError::Retry).
    ///
    /// # Errors
    /// [`UnmapError`]. What was drained before the error is flushed and released.
    pub fn unmap(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
        notes: Notes,
        relax: impl FnMut(),
        release: &mut impl Release,
    ) -> Result<Progress, UnmapError> {
        self.take_away(cpu, claim, batch, What { notes, only: None }, relax, release)
    }

    /// The same; of leaves, if so wanted, those alone that show a scratch page.
    pub(super) fn take_away(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
        what: What<'_>,
        relax: impl FnMut(),
        release: &mut impl Release,
    ) -> Result<Progress, UnmapError> {
        let range = self.claimed(claim, batch.from).map_err(UnmapError::Claim)?;
        if !cpu.is_quiescent() {
            return Err(UnmapError::NotQuiescent);
        }
        let mut sweep = Sweep {
            space: self,
            range,
            from: batch.from,
            at: batch.from,
            high: batch.from.get(),
            left: batch.slots.max(1),
            what,
            owed: Owed::new(self.tlb()),
        };
        let outcome = sweep.run(cpu);
        let Sweep { at, high, mut owed, .. } = sweep;
        if let Some(flushed) = owed.flush() {
            // Nothing is held here, so this cannot fail; if it did, nothing would be released.
            cpu.wait(relax).map_err(|_| UnmapError::NotQuiescent)?;
            let revoked = self.revoke_window(owed.ranges().iter());
            let log = self.log.covering(&self.arch, range);
            let mut releaser = Releaser {
                space: self,
                flushed: &flushed,
                release,
                log,
                revoked,
                leaves: [0; 4],
                others: 0,
                tables: 0,
            };
            releaser.roots(batch.from.get(), high);
            self.ledger.unmapped(releaser.leaves, releaser.tables);
            self.ledger.others_unmapped(releaser.others);
        }
        outcome?;
        Ok(if at < range.end() { Progress::Until(at) } else { Progress::Done })
    }
}

/// The first pass: live → Drain.
struct Sweep<'w, 'e, M: Memory, A: Arch> {
    space: &'w Space<'e, M, A>,
    range: IpaRange,
    /// Where the batch begins: what lies before is done, or is to stay.
    from: Ipa,
    /// Everything of the batch before this is done.
    at: Ipa,
    /// End of the highest slot that was drained.
    high: u64,
    left: usize,
    what: What<'w>,
    owed: Owed<'w, A>,
}

/// Why a table stays.
enum Stays {
    /// The parent moved: look again.
    Stale,
    /// A slot cannot be made non-installable.
    InUse,
}

impl<M: Memory, A: Arch> Sweep<'_, '_, M, A> {
    fn run(&mut self, cpu: &Cpu<'_>) -> Result<(), UnmapError> {
        while self.at < self.range.end() && self.left > 0 {
            // A guard for each table, so that nobody's grace period waits for a whole range.
            let guard = cpu.enter();
            self.step(&guard)?;
            self.give_back_finished(&guard);
        }
        Ok(())
    }

    /// One table's share of what is left.
    fn step(&mut self, guard: &Guard<'_>) -> Result<(), UnmapError> {
        let path = self.space.path(guard, self.at).ok_or(UnmapError::ForeignGuard)?;
        let Some(node) = path.leaf() else { return Ok(()) };
        let whole = node.level == Level::L3
            && self.at == node.start
            && node.end() <= self.range.end().get();
        if whole
            && self.left >= SLOTS
            && let Some(parent) = path.above(&node)
            && self.give_back(guard, parent, node).is_ok()
        {
            self.left -= SLOTS;
            self.at = Ipa::new(node.end());
            return Ok(());
        }
        match node.lock(&self.space.arch, guard) {
            Ok(table) => self.drain(&table),
            Err(_stale) => Ok(()),
        }
    }

    /// Drains the slots of a table from `at` to its end or the range's, or to the first that leads to a
    /// table.
    fn drain(&mut self, table: &LockedTable<'_, A>) -> Result<(), UnmapError> {
        let node = table.node;
        let end = node.end().min(self.range.end().get());
        while self.at.get() < end && self.left > 0 {
            let index = node.level.index(self.at);
            if index >= SLOTS {
                self.at = Ipa::new(end);
                break;
            }
            let (slot, ipa) = (node.table.slot(index), node.ipa_of(index));
            if self.drain_slot(node, slot, ipa)? == Drain::Table {
                return Ok(());
            }
            self.left -= 1;
            self.at = Ipa::new((ipa.get() + node.level.slot_bytes()).min(end));
        }
        Ok(())
    }

    fn drain_slot(&mut self, node: Node<'_>, slot: &Slot, ipa: Ipa) -> Result<Drain, UnmapError> {
        let (arch, level) = (&self.space.arch, node.level);
        let seen = slot.load(arch);
        let within = ipa.get() + level.slot_bytes() <= self.range.end().get();
        let (claimed, inside) = (within && self.range.start() <= ipa, within && self.from <= ipa);
        match seen.view(level) {
            View::Empty => Ok(Drain::Empty),
            View::Table(_) => Ok(Drain::Table),
            // Of an operation that was given up: the claim makes it ours. Its flush may not have been. Or a table
            // that this batch, which may have begun in the middle of it, has just taken out.
            View::Drain(former) if inside || claimed && former.is_table() => {
                // SAFETY: (1) in Drain, and the claim makes it ours; (2) it stays what it is. Written again,
                // because this PE's DSB completes this PE's stores only [RSPVBD], and with them older ones there.
                unsafe { arch.store(slot, seen.bits()) };
                self.drained(ipa, level, former.is_table());
                Ok(Drain::Shut)
            }
            View::Leaf(leaf) if self.what.only.is_some_and(|scratch| !scratch.is_behind(&leaf)) => {
                Ok(Drain::Stays)
            }
            View::Leaf(leaf) if inside && leaf.is_contiguous() => self.drain_run(node, ipa),
            View::Leaf(_) if inside => {
                // SAFETY: (1) the table's lock is held, and the claim covers the slot.
                if unsafe { slot.clear(arch, level) }.is_none() {
                    return Err(UnmapError::Unexpected { ipa, level, seen });
                }
                self.drained(ipa, level, false);
                Ok(Drain::Shut)
            }
            View::Leaf(_) | View::Drain(_) => Err(UnmapError::Straddles { ipa, level }),
            View::Note(_) if self.what.notes == Notes::Remove && inside => {
                // SAFETY: (1) the table's lock is held, and the claim covers the slot; (2) a Note was
                // never live, so no flush stands between it and Empty.
                unsafe { arch.store(slot, Descriptor::EMPTY.bits()) };
                Ok(Drain::Empty)
            }
            View::Note(_) => Ok(Drain::Stays),
            // A subtree that another claim's map is about to link. The slot was Empty: nothing in the
            // part that is claimed here can be mapped.
            View::Busy(live) if !claimed && live.as_table(level).is_some() => Ok(Drain::Stays),
            View::Busy(_) | View::Dead | View::Foreign(_) => {
                Err(UnmapError::Unexpected { ipa, level, seen })
            }
        }
    }

    /// Drains the contiguous run that a leaf is a member of: until all have gone, any may translate for those that
    /// have \[IPGVGZ\]. Each remembers what any has recorded \[INFFSV\]. The table's lock is held.
    #[cold]
    fn drain_run(&mut self, node: Node<'_>, ipa: Ipa) -> Result<Drain, UnmapError> {
        let (arch, level) = (&self.space.arch, node.level);
        let start = ipa.align_down(run_bytes(level));
        let end = start.get() + run_bytes(level);
        if start < self.from || end > self.range.end().get() {
            return Err(UnmapError::CutsRun { ipa: start, level });
        }
        let members = members_of(node, start);
        let mut state = State::default();
        for slot in members {
            // SAFETY: (1) the table's lock is held, and the claim covers the run.
            let _ = unsafe { slot.clear(arch, level) };
            // One that was in Drain already, by an operation that was given up, speaks for the others, too.
            if let Some(former) = slot.load(arch).as_drain(level) {
                state = state.or(former.state());
            }
        }
        for (index, slot) in members.iter().enumerate() {
            if let Some(former) = slot.load(arch).as_drain(level) {
                // SAFETY: (1) in Drain since above, and the claim makes it ours.
                unsafe { arch.store(slot, former.of_run(state).bits()) };
                self.drained(node.ipa_of(level.index(start) + index), level, false);
            }
        }
        Ok(Drain::Shut)
    }

    fn drained(&mut self, ipa: Ipa, level: Level, table: bool) {
        if table {
            self.owed.table(ipa, level)
        } else {
            self.owed.leaf(ipa, level)
        }
        self.high = self.high.max(ipa.get() + level.slot_bytes());
    }
}

/// What a slot came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    /// It is in Drain.
    Shut,
    /// It is Empty.
    Empty,
    /// It holds what is to stay.
    Stays,
    /// It leads to a table.
    Table,
}
