//! Runs of 16 leaves that a TLB may hold as one: made, dissolved and broken as a whole, while the guest runs.
//!
//! The Contiguous bit in each of 16 pages or blocks, alike, one behind the other and aligned to all of them, lets one
//! TLB entry serve 64 KiB, or 32 MiB (table D8-104). It is the smaller collapse: no table comes or goes.
//!
//! ```text
//!  check   under the table's lock: 16 leaves, alike, one behind the other, aligned
//!  break   each of the 16 -> Busy, by compare-exchange: it remembers the leaf with its final A/D; lock back
//!  flush   one for the batch, with the leaves' level, for each granule of each run [IJQPNP]
//!  make    each of the 16 -> the leaf with the bit, or without it, and with the OR of the A/D; DSB ISHST
//! ```
//!
//! The break is needed because members with the bit and members without may be in a TLB at once otherwise, which
//! raises a TLB conflict abort or worse \[RQTRPM, RNGLXZ\]. While some are invalid and the others have the bit, or
//! none has it, nothing is misprogrammed \[IPGVGZ\]. FEAT_BBM would do without the break, at the price of conflict
//! aborts \[RKHRBC, RFCPSG\]; with few slots at stake for so short a time nobody pays it here.
//!
//! **Members speak for each other**, and that is why a run is only ever broken as a whole. An entry that was made from
//! one may translate for all, also for one that is invalid by now:
//!
//! ```text
//! PE 0, unmaps page 3 of a run        PE 1
//!                                     walks for page 2: its TLB has one entry for all 16
//! page 3 -> Drain; TLBI for page 3
//!                                     walks for page 2 again: the entry is back, for page 3, too
//! the frame is somebody else's        <- and PE 1 writes to it [IPGVGZ]
//! ```
//!
//! And what one of them has recorded excuses the rest from recording \[RGPHKF, RJKCXG\], or stands for a write to
//! another \[IQDCMP\]. So whoever ends a run takes the OR for each of them \[INFFSV\]:
//!
//! ```text
//! PE 0, dissolves the run             PE 1, hardware
//!                                     a store to page 2: page 2 is dirty
//!                                     a store to page 5: by the entry for all 16, which is dirty; nothing to do
//! page 5 -> without the bit, clean    <- the write is recorded in page 2 alone
//! ```
//!
//! No fault handler changes one member. Where a fault has to record an access or a write, or to grant something, the run is
//! dissolved first. That is rare: while a dirty session covers the range none is made, as it would have one record for 16
//! pages; ageing dissolves those that it takes the access flag from; hardware records where it can.
//!
//! | who meets a run | what he does |
//! | --- | --- |
//! | unmap | drains all of it at once, each with the OR; `CutsRun` if a part is not to go |
//! | split of a block in it | `Contiguous`: it is dissolved first |
//! | collapse of a table that has it | as any other leaves: the OR of all is in the block, the bit goes |
//! | an install into its table | finds its leaves; a run has no Empty slot |
//! | a fault that has to grant something | `Run`: it is dissolved first (`space/relax.rs`) |
//! | who writes slots under a table's lock | see [`Slot::clear`](crate::Slot::clear) |
//!
//! A Busy slot in a claimed range belongs to the claim, and remembers all that is needed: so the lock is given back
//! before the flush, and nothing is taken down but where the runs are.

mod outcome;

pub use outcome::{Contiguous, ContiguousError};

use super::alike::{Obstacle, parts, to_busy};
use super::tables::Node;
use super::{Batch, Progress, Space};
use crate::addr::{Ipa, IpaRange, Level};
use crate::arch::{Arch, Dsb};
use crate::claim::Claim;
use crate::descriptor::{RUN, State, View};
use crate::epoch::{Cpu, Guard};
use crate::gather::Owed;
use crate::memory::{ARITY as SLOTS, Memory};
use crate::slot::Slot;

/// Runs that a batch looks at, at the most, and breaks under one flush. Few under a model checker, whose threads have
/// small stacks.
const TOGETHER: usize = if cfg!(any(loom, shuttle)) { 2 } else { 64 };

/// The places of a batch that were looked at, in order of address, and what became of them: of one that can be
/// a run, `Made` stands there from the break on.
type Fates = [Option<(Ipa, Contiguous)>; TOGETHER];

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Makes runs of 16 pages (`level` 3) or of 16 blocks of 2 MiB (`level` 2) in a batch of the claimed range.
    ///
    /// Places for a run that do not lie in the claim as a whole are passed over; so are runs that are there
    /// already, and what lies under a larger block or where no table of that level is. `heard` is told what became
    /// of each of the others when all of the batch is in place and no guard or lock is held.
    ///
    /// Counts as slots the leaves. Remote PEs translate by the leaves until the flush within, then fault and retry,
    /// then translate by the run; what they may access stays the same, and no access or dirty record is lost. From
    /// then on a record in one member is one of all.
    ///
    /// # Errors
    /// [`ContiguousError`]: nothing has changed.
    // A function of its own: what a batch remembers is not to be in the frame of every caller's caller.
    #[inline(never)]
    pub fn make_contiguous(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
        level: Level,
        heard: &mut impl FnMut(Ipa, Contiguous),
    ) -> Result<Progress, ContiguousError> {
        let mut fates: Fates = [None; TOGETHER];
        let progress = self.runs(cpu, claim, batch, Some(level), &mut fates)?;
        fates.iter().flatten().for_each(|(ipa, what)| heard(*ipa, *what));
        Ok(progress)
    }

    /// Dissolves the runs in a batch of the claimed range: their leaves stand for themselves again, each as accessed
    /// and as dirty as any of its run was. A run in which the batch begins is dissolved as a whole.
    ///
    /// Counts as slots the leaves, and what else walks end in. Remote PEs: as for
    /// [`make_contiguous`](Self::make_contiguous).
    ///
    /// # Errors
    /// [`ContiguousError`]: nothing has changed in this call. A batch that comes to a run which reaches over the edge
    /// of the claim ends before it, and the next one says so.
    #[inline(never)]
    pub fn dissolve(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
    ) -> Result<Progress, ContiguousError> {
        self.runs(cpu, claim, batch, None, &mut [None; TOGETHER])
    }

    /// Makes runs of leaves of a level; or, without one, dissolves all.
    fn runs(
        &self,
        cpu: &Cpu<'_>,
        claim: &Claim<'_>,
        batch: Batch,
        make: Option<Level>,
        fates: &mut Fates,
    ) -> Result<Progress, ContiguousError> {
        let range = self.claimed(claim, batch.from).map_err(ContiguousError::Claim)?;
        if let Some(level) = make
            && !(matches!(level, Level::L2 | Level::L3) && level >= self.geometry.start())
        {
            return Err(ContiguousError::Level { level });
        }
        if !cpu.is_quiescent() {
            return Err(ContiguousError::NotQuiescent);
        }
        let guard = cpu.enter();
        let mut sweep = Sweep {
            space: self,
            guard: &guard,
            range,
            at: batch.from,
            left: batch.slots.max(1),
            fates,
            count: 0,
            owed: Owed::new(self.tlb()),
        };
        let outcome = match make {
            Some(level) => sweep.gather(level),
            None => sweep.scatter(),
        };
        let at = sweep.at;
        sweep.make(make.is_some());
        outcome?;
        Ok(if at < range.end() { Progress::Until(at) } else { Progress::Done })
    }
}

/// A batch on its way.
struct Sweep<'w, 'e, M, A: Arch> {
    space: &'w Space<'e, M, A>,
    guard: &'w Guard<'w>,
    range: IpaRange,
    /// Everything of the range before this is done.
    at: Ipa,
    left: usize,
    // By reference: the CPU's stack is small.
    fates: &'w mut Fates,
    count: usize,
    owed: Owed<'w, A>,
}

impl<'w, M: Memory, A: Arch> Sweep<'w, '_, M, A> {
    /// Breaks what can become a run, until the range or the budget ends.
    fn gather(&mut self, level: Level) -> Result<(), ContiguousError> {
        let bytes = run_bytes(level);
        while self.at < self.range.end() && self.left > 0 && self.count < TOGETHER {
            let ipa = self.at.align_down(bytes);
            let mut end = ipa.get() + bytes;
            if self.covers(ipa, level) {
                let path = self.space.path(self.guard, ipa).ok_or(ContiguousError::ForeignGuard)?;
                if let Some(node) = path.of(level) {
                    match self.alike(node, ipa) {
                        Ok(true) => self.note(ipa, Contiguous::Made),
                        Ok(false) => {}
                        Err(Some(obstacle)) => self.note(ipa, Contiguous::Stays(obstacle)),
                        // The parent moved: look again.
                        Err(None) => continue,
                    }
                } else if let Some(node) = path.leaf() {
                    let bytes = node.level.slot_bytes();
                    end = ipa.align_down(bytes).get() + bytes;
                }
            }
            self.left = self.left.saturating_sub(RUN);
            self.at = Ipa::new(end.min(self.range.end().get()));
        }
        Ok(())
    }

    /// Breaks 16 leaves that can be a run; `false` if they are one.
    fn alike(&mut self, node: Node<'w>, ipa: Ipa) -> Result<bool, Option<Obstacle>> {
        let (arch, level) = (&self.space.arch, node.level);
        let run = node.level.index(ipa)..node.level.index(ipa) + RUN;
        let _table = node.lock(arch, self.guard).map_err(|_| None)?;
        let mut members = 0;
        let (first, _) = parts(node, run.clone(), |slot| {
            let seen = slot.load(arch);
            members += usize::from(seen.as_leaf(level).is_some_and(|leaf| leaf.is_contiguous()));
            seen
        })
        .map_err(Some)?;
        if !first.pa().is_aligned(run_bytes(level)) {
            return Err(Some(Obstacle::Unaligned { pa: first.pa() }));
        }
        if members == RUN {
            return Ok(false);
        }
        if IpaRange::new(ipa, run_bytes(level)).is_ok_and(|run| self.space.logs(run)) {
            return Err(Some(Obstacle::Logged { ipa }));
        }
        if let Err(obstacle) = parts(node, run, |slot| to_busy(arch, slot, level)) {
            // A fault handler has changed one since. The others were not away for long enough to need a flush: what
            // comes back is what TLBs may hold.
            for slot in members_of(node, ipa) {
                if let View::Busy(live) = slot.load(arch).view(level) {
                    // SAFETY: (1) made Busy above, under the lock; (2) what it was.
                    unsafe { arch.store(slot, live.bits()) };
                }
            }
            arch.dsb(Dsb::IshSt);
            return Err(Some(obstacle));
        }
        self.owe(node, ipa);
        Ok(true)
    }

    /// Breaks every run, until the range or the budget ends.
    fn scatter(&mut self) -> Result<(), ContiguousError> {
        let mut held: Option<Node<'w>> = None;
        while self.at < self.range.end() && self.left > 0 && self.count < TOGETHER {
            let node = match held.take() {
                Some(node) => node,
                None => {
                    let path = self.space.path(self.guard, self.at);
                    let path = path.ok_or(ContiguousError::ForeignGuard)?;
                    let Some(node) = path.leaf() else { break };
                    node
                }
            };
            let level = node.level;
            let index = level.index(self.at);
            if index >= SLOTS {
                self.at = Ipa::new(node.end().min(self.range.end().get()));
                continue;
            }
            let (seen, mut end) =
                (node.table.slot(index).load(&self.space.arch), node.ipa_of(index + 1).get());
            if seen.as_table(level).is_some() {
                // Go down.
                continue;
            }
            if seen.as_leaf(level).is_some_and(|leaf| leaf.is_contiguous()) {
                let ipa = node.ipa_of(index).align_down(run_bytes(level));
                if !self.covers(ipa, level) {
                    // If something is broken already, the next batch says so.
                    let error = ContiguousError::Straddles { ipa, level };
                    return if self.count == 0 { Err(error) } else { Ok(()) };
                }
                end = ipa.get() + run_bytes(level);
                // The claim keeps the table where it is.
                let table = node.hold(&self.space.arch, self.guard);
                for slot in members_of(node, ipa) {
                    to_busy(&self.space.arch, slot, level);
                }
                drop(table);
                self.owe(node, ipa);
                self.note(ipa, Contiguous::Made);
                self.left = self.left.saturating_sub(RUN - 1);
            }
            held = Some(node).filter(|node| end < node.end());
            self.left = self.left.saturating_sub(1);
            self.at = Ipa::new(end.min(self.range.end().get()));
        }
        Ok(())
    }

    /// Whether a place for a run lies in the claim.
    fn covers(&self, ipa: Ipa, level: Level) -> bool {
        self.range.start() <= ipa && ipa.get() + run_bytes(level) <= self.range.end().get()
    }

    /// A run was broken: each member has to be invalidated.
    fn owe(&mut self, node: Node<'_>, ipa: Ipa) {
        let first = node.level.index(ipa);
        (first..first + RUN).for_each(|index| self.owed.leaf(node.ipa_of(index), node.level));
    }

    fn note(&mut self, ipa: Ipa, what: Contiguous) {
        if let Some(place) = self.fates.get_mut(self.count) {
            *place = Some((ipa, what));
            self.count += 1;
        }
    }

    /// Flushes, and makes what was broken live again, as runs or not.
    fn make(self, contiguous: bool) {
        let Self { space, guard, fates, owed, .. } = self;
        if owed.settle().is_none() {
            return;
        }
        for (ipa, what) in fates.iter().flatten() {
            if *what == Contiguous::Made
                && let Some(node) = space.path(guard, *ipa).and_then(|path| path.leaf())
            {
                space.revive(node, *ipa, contiguous);
                space.ledger.run(contiguous);
            }
        }
        space.arch.dsb(Dsb::IshSt);
    }
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Makes the Busy members of a run live, each with what any of them has recorded.
    fn revive(&self, node: Node<'_>, ipa: Ipa, contiguous: bool) {
        let (arch, level) = (&self.arch, node.level);
        let busy = |slot: &Slot| match slot.load(arch).view(level) {
            View::Busy(live) => live.as_leaf(level),
            _ => None,
        };
        let mut state = State::default();
        for leaf in members_of(node, ipa).iter().filter_map(busy) {
            state = state.or(leaf.state());
        }
        for slot in members_of(node, ipa) {
            if let Some(leaf) = busy(slot) {
                // SAFETY: (1) Busy, made so under this claim; flushed since, with all of its run; (2) the same
                // translation.
                unsafe { arch.store(slot, leaf.of_run(contiguous, state).bits()) };
            }
        }
    }
}

/// Bytes of a run of leaves of a level.
pub(super) const fn run_bytes(level: Level) -> u64 {
    RUN as u64 * level.slot_bytes()
}

/// The slots of a run.
pub(super) fn members_of(node: Node<'_>, ipa: Ipa) -> &[Slot] {
    let first = node.level.index(ipa);
    node.table.slots().get(first..first + RUN).unwrap_or_default()
}
