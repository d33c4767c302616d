//! Pages that lie anywhere move into one fresh block, while the guest runs.
//!
//! ```text
//!  look     without a lock: pages, alike, with few holes. Then the caller gives a block: what can fail is over
//!  break    under the parent's lock, then the child's: looked at again; parent slot -> Drain, which remembers
//!           the table; locks back
//!  flush    one for the batch, over each whole span, without a level hint: the table is cached as the
//!           next step of walks, too [RRVJDB]
//!  grace    nobody who looked a page or the table up before still uses it
//!  revoke   EL2's window, where it leads to a page of these: `space/revoke.rs`
//!  copy     looked at once more; every page into its place in the block, and each hole filled
//!  make     parent slot -> block, with the OR of the A/D, by one release store; DSB ISHST
//!  release  the pages to the caller, the table to Memory
//! ```
//!
//! The output address changes, so this is an unmap and a map in one: Drain, flush, then the new translation
//! \[RDDMVT\]. **No write is lost**, because from the grace period on nobody can write the old pages: guests
//! translate by nothing that leads there since the flush, and whoever else found a page did so under a guard:
//!
//! ```text
//! PE 0, copies                        PE 1, EL2 on behalf of a guest, under a guard
//!                                     translates: page 7 is in frame F
//! parent slot -> Drain; flush
//! copies F                            <- without the grace period before
//!                                     writes into F: nobody will ever read it
//! parent slot -> block
//! ```
//!
//! The same grace period ends the fault handlers that found the table before. Until it is over they may fill a hole,
//! or change a leaf, so what counts is what stands in the table afterwards. If that is not fit for a
//! block, the table is linked again by one store, before anybody hears of it. From the grace period on the table
//! is the claim's alone: it is in no tree, no TLB and nobody's hands. **So no lock is held while bytes are copied**, no
//! guard either, and the accessed and dirty state is final without an exchange.
//!
//! A vCPU that touches the span meanwhile faults, is sent back and faults again until the block is made. That takes as
//! long as copying does, so a batch breaks few tables, and makes each block live before it copies the next.

use super::tables::Link;
use super::{Batch, Progress, Release, Space};
use crate::addr::{Ipa, IpaRange, Level, PAGE_SIZE, Pa};
use crate::arch::Arch;
use crate::claim::Claim;
use crate::descriptor::{Leaf, Owner, State, View};
use crate::epoch::Cpu;
use crate::gather::Owed;
use crate::memory::{ARITY as SLOTS, Memory, Table};

mod make;
mod outcome;
pub use outcome::{CopyCollapse, CopyError, CopyObstacle};

/// Tables that are broken under one flush, at the most: a vCPU may wait for as many copies of 2 MiB.
const TOGETHER: usize = if cfg!(any(loom, shuttle)) { 2 } else { 4 };
/// Tables that a batch looks at, at the most.
const LOOKED: usize = if cfg!(any(loom, shuttle)) { 2 } else { 16 };

/// Where blocks come from, and how bytes get into them: by the hypervisor, which reaches memory.
///
/// What is called here holds no table's lock. Only [`Release::table`] and the other methods of this trait but
/// [`heard`](Self::heard) come while spans of the batch are out of the tree: they look up nothing, and wait for
/// nobody's guard.
///
/// # Safety
/// An implementation promises
/// 1. of each block that `take` gives: it is the VM's to use, 2 MiB, aligned to that, below the machine's physical
///    address size, and stays so until a flush has completed after it was taken out of the tables again;
/// 2. that after `copy` and `fill` of every page of it and after `finish` a block holds what it was told, visible to the
///    guest whatever its caches: [`Coherency`](crate::Coherency) says what that takes, before the old page is
///    read, too. Maintenance is completed by a DSB before `finish` returns.
pub unsafe trait Blocks: Release {
    /// A block of 2 MiB; its bytes do not matter. `None` when none is at hand.
    fn take(&mut self) -> Option<Pa>;

    /// A block that was not used after all. It was never mapped; some of its pages may have been written.
    fn give_back(&mut self, block: Pa);

    /// Writes the page at `to`, of a block, with the bytes of the page at `from`, where `ipa` lies until then. No
    /// PE can write to either meanwhile.
    fn copy(&mut self, ipa: Ipa, from: Pa, to: Pa);

    /// Writes the page at `to`, of a block, with what the guest finds at `ipa` when it touches it for the
    /// first time: zeros, if nothing else.
    fn fill(&mut self, ipa: Ipa, to: Pa);

    /// Every page of the block is written, and it is about to be mapped at `ipa`.
    fn finish(&mut self, ipa: Ipa, block: Pa);

    /// What became of a table, when all of the batch is in place again, no guard or lock is held and everything
    /// was given back: it may do what the caller of the operation may.
    fn heard(&mut self, ipa: Ipa, what: CopyCollapse);
}

/// What a table holds whose pages can move.
struct Found {
    /// One of the pages: the others are like it.
    first: Leaf,
    /// The OR of their accessed and dirty state.
    state: State,
    holes: usize,
}

/// A table whose parent slot is in Drain.
#[derive(Clone, Copy)]
struct Broken {
    ipa: Ipa,
    /// Where its pages are to go.
    block: Pa,
    /// Its place in what the caller will hear.
    told: usize,
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Moves the pages of tables in a batch of the claimed range into fresh blocks of 2 MiB, wherever the pages
    /// lie. At most `holes` slots of a table may be empty: they are filled.
    ///
    /// Tables that do not lie in the claim as a whole are passed over; one in which the batch begins counts as a
    /// whole. Pages that form a block already are copied like any others: try
    /// [`collapse`](Self::collapse) before, which copies nothing. `blocks` hears what became of each table at the end.
    ///
    /// Counts as slots those that a table has; a batch looks at 16 tables and moves the pages of 4 at the most.
    /// Remote PEs translate by the pages until the flush within, then fault and retry, then translate by the
    /// block. What they may access stays the same; no write and no dirty record is lost: guests', and that of
    /// everybody who writes while he holds the guard under which he found the page. `relax` runs while others'
    /// guards are waited for.
    ///
    /// # Errors
    /// [`CopyError`]: nothing has changed.
    pub fn copy_collapse<B: Blocks>(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
        holes: usize,
        blocks: &mut B,
        relax: impl FnMut(),
    ) -> Result<Progress, CopyError> {
        let range = self.claimed(claim, batch.from).map_err(CopyError::Claim)?;
        if !cpu.is_quiescent() {
            return Err(CopyError::NotQuiescent);
        }
        let mut sweep = Sweep {
            space: self,
            range,
            holes: holes.min(SLOTS - 1),
            at: batch.from,
            left: batch.slots.max(1),
            told: [None; LOOKED],
            looked: 0,
            broken: [None; TOGETHER],
            count: 0,
            owed: Owed::new(self.tlb()),
        };
        let outcome = sweep.run(cpu, blocks);
        let at = sweep.at;
        let told = sweep.finish(cpu, blocks, relax)?;
        told.iter().flatten().for_each(|(ipa, what)| blocks.heard(*ipa, *what));
        outcome?;
        Ok(if at < range.end() { Progress::Until(at) } else { Progress::Done })
    }
}

/// What the caller will hear, in order of address.
type Told = [Option<(Ipa, CopyCollapse)>; LOOKED];

/// A batch on its way.
struct Sweep<'w, 'e, M, A: Arch> {
    space: &'w Space<'e, M, A>,
    range: IpaRange,
    /// Empty slots that a table may have.
    holes: usize,
    /// Everything of the range before this is done.
    at: Ipa,
    left: usize,
    told: Told,
    looked: usize,
    broken: [Option<Broken>; TOGETHER],
    count: usize,
    owed: Owed<'w, A>,
}

impl<M: Memory, A: Arch> Sweep<'_, '_, M, A> {
    /// Breaks what can be moved, until the range or the budget ends.
    fn run(&mut self, cpu: &Cpu<'_>, blocks: &mut impl Blocks) -> Result<(), CopyError> {
        let bytes = Level::L2.slot_bytes();
        while self.at < self.range.end()
            && self.left > 0
            && self.looked < LOOKED
            && self.count < TOGETHER
        {
            let ipa = self.at.align_down(bytes);
            let end = ipa.get() + bytes;
            let inside = self.range.start() <= ipa && end <= self.range.end().get();
            if inside && let Some(fit) = self.look(cpu, ipa)? {
                let what = match fit {
                    Ok(()) => self.with_block(cpu, ipa, blocks)?,
                    Err(obstacle) => Some(CopyCollapse::Stays(obstacle)),
                };
                if let Some(what) = what {
                    self.told[self.looked] = Some((ipa, what));
                    self.looked += 1;
                }
            }
            self.left = self.left.saturating_sub(SLOTS);
            self.at = Ipa::new(end.min(self.range.end().get()));
        }
        Ok(())
    }

    /// Whether the table at `ipa` would do as it is now; `None` if there is none.
    fn look(&self, cpu: &Cpu<'_>, ipa: Ipa) -> Result<Option<Result<(), CopyObstacle>>, CopyError> {
        let guard = cpu.enter();
        let path = self.space.path(&guard, ipa).ok_or(CopyError::ForeignGuard)?;
        let child = path.pair(Level::L2).map(|(_, child)| child.table);
        Ok(child.map(|table| self.survey(table, ipa).map(|_| ())))
    }

    /// Takes a block and breaks the table, if it still does. `None` if it is none any more.
    fn with_block(
        &mut self,
        cpu: &Cpu<'_>,
        ipa: Ipa,
        blocks: &mut impl Blocks,
    ) -> Result<Option<CopyCollapse>, CopyError> {
        let Some(block) = blocks.take() else {
            return Ok(Some(CopyCollapse::Stays(CopyObstacle::NoBlock)));
        };
        let what = self.break_table(cpu, ipa);
        match &what {
            Ok(Some(CopyCollapse::Made { .. })) => {
                self.broken[self.count] = Some(Broken { ipa, block, told: self.looked });
                self.count += 1;
            }
            _ => blocks.give_back(block),
        }
        what
    }

    /// Takes a table out of the tree, if its pages can move.
    fn break_table(&mut self, cpu: &Cpu<'_>, ipa: Ipa) -> Result<Option<CopyCollapse>, CopyError> {
        let arch = &self.space.arch;
        let guard = cpu.enter();
        loop {
            let path = self.space.path(&guard, ipa).ok_or(CopyError::ForeignGuard)?;
            let Some((parent, child)) = path.pair(Level::L2) else { return Ok(None) };
            let Some(Link { slot, .. }) = child.link else { return Ok(None) };
            // Of a claimed table neither moves; if one did, the walk would find out.
            let Ok(_parent) = parent.lock(arch, &guard) else { continue };
            let Ok(table) = child.lock(arch, &guard) else { continue };
            let found = match self.survey(table.node.table, ipa) {
                Ok(found) => found,
                Err(obstacle) => return Ok(Some(CopyCollapse::Stays(obstacle))),
            };
            // SAFETY: (1) the lock of the slot's table is held, and the claim covers the span until the slot is
            // made live again.
            let Some(_drained) = (unsafe { slot.clear(arch, Level::L2) }) else { return Ok(None) };
            self.owed.table(ipa, Level::L2);
            return Ok(Some(CopyCollapse::Made { filled: found.holes }));
        }
    }

    /// What a table holds, if its pages can move.
    fn survey(&self, table: &Table, start: Ipa) -> Result<Found, CopyObstacle> {
        let arch = &self.space.arch;
        let mut first: Option<Leaf> = None;
        let (mut state, mut holes) = (State::default(), 0);
        for (index, slot) in table.slots().iter().enumerate() {
            let ipa = page_of(start, index);
            let seen = slot.load(arch);
            let leaf = match seen.view(Level::L3) {
                View::Leaf(leaf) => leaf,
                View::Empty => {
                    holes += 1;
                    continue;
                }
                View::Note(_) => return Err(CopyObstacle::Note { ipa }),
                _ => return Err(CopyObstacle::NoPage { ipa, seen }),
            };
            if leaf.owner() != Owner::Vm {
                return Err(CopyObstacle::NotOwned { ipa });
            }
            if !first.get_or_insert(leaf).is_like(&leaf) {
                return Err(CopyObstacle::Unlike { ipa });
            }
            state = state.or(leaf.state());
        }
        match first.filter(|_| holes <= self.holes) {
            Some(first) => Ok(Found { first, state, holes }),
            None => Err(CopyObstacle::Holes { holes, allowed: self.holes }),
        }
    }
}

/// The address of a page by its place in the table for the addresses from `start` on.
const fn page_of(start: Ipa, index: usize) -> Ipa {
    Ipa::new(start.get() + index as u64 * PAGE_SIZE)
}
