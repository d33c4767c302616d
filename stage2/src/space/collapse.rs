//! Tables whose leaves form one block become that block, while the guest runs.
//!
//! ```text
//!  check    parent's lock, then the child's: 512 leaves, alike, one behind the other, aligned
//!  break    parent slot -> Busy, which remembers the table; locks back
//!  flush    one for the batch, over each whole span, without a level hint: the table is cached as
//!           the next step of walks, too [RRVJDB]
//!  harvest  both locks again; each leaf -> Busy, by compare-exchange: the final A/D
//!  make     parent slot -> block, with the OR of the A/D, by one release store; locks back
//!  grace    nobody who looked the table up before still uses it; then it goes to Memory
//! ```
//!
//! A/D are final only after the flush: until then a walker with the table in its walk cache may still set them in
//! a leaf, and whoever read them before the flush has lost a write:
//!
//! ```text
//! PE 0, collapses                     PE 1, hardware
//! leaf 7 is clean
//! parent -> Busy
//!                                     a store to page 7, the table from its walk cache: leaf 7 dirty
//! flush; block <- clean               <- the write is recorded nowhere
//! ```
//!
//! Between check and harvest a fault handler that found the table before may install nothing, for there are no
//! holes, but it may change a leaf. So the harvest checks again. If the leaves are not alike any more, they are made
//! live and the table is linked again **before the locks are given back**. The caller hears of all at the end: he
//! may walk from the root, and a walk that finds Busy would wait for somebody who waits for him.
//!
//! A vCPU that touches the span meanwhile faults, is sent back and faults again until the block is made.

use core::fmt;

use super::alike::{parts, to_busy};
use super::tables::{Link, Node};
use super::{Batch, NotClaimed, Obstacle, Progress, Space};
use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::arch::{Arch, Dsb};
use crate::claim::Claim;
use crate::descriptor::{Descriptor, View};
use crate::epoch::{Cpu, Guard};
use crate::gather::Owed;
use crate::memory::{ARITY as SLOTS, Memory};
use crate::slot::Slot;

/// Tables that a batch looks at, at the most, and breaks under one flush. Few under a model checker, whose threads
/// have small stacks.
const TOGETHER: usize = if cfg!(any(loom, shuttle)) { 2 } else { 64 };

/// Why a collapse could not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollapseError {
    /// The claim does not cover it.
    Claim(NotClaimed),
    /// The CPU belongs to other epochs than the tables do.
    ForeignGuard,
    /// The CPU is inside a guard or holds a lock: it could not wait for others.
    NotQuiescent,
    /// Blocks are of level 1 or 2, and not above the level where this VM's walks start.
    Level {
        /// The level asked for.
        to: Level,
    },
}

impl fmt::Display for CollapseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(error) => error.fmt(f),
            Self::ForeignGuard => f.write_str("the CPU belongs to other epochs than the tables"),
            Self::NotQuiescent => f.write_str("the CPU is inside a guard or holds a table's lock"),
            Self::Level { to } => write!(f, "this VM has no blocks of {to}"),
        }
    }
}

impl core::error::Error for CollapseError {}

/// What became of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collapse {
    /// It is a block now.
    Made,
    /// It stays.
    Stays(Obstacle),
}

/// What has become of one table so far. There is nothing else to remember of one that is broken: its parent slot
/// leads to it.
#[derive(Clone, Copy)]
enum Fate {
    /// Its parent slot is Busy.
    Broken,
    /// Its parent slot is the block. It is out of the tree and flushed.
    Made(Pa),
    /// It stays.
    Stays(Obstacle),
}

/// The tables of a batch, in order of address.
type Fates = [Option<(Ipa, Fate)>; TOGETHER];

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Makes blocks of level `to` (1 or 2) in a batch of the claimed range, from tables whose leaves form one.
    ///
    /// Tables that do not lie in the claim as a whole are passed over; one in which the batch begins counts as
    /// a whole. `heard` is told what became of each of the others when all of the batch is in place again, no guard
    /// or lock is held and the tables that went are given back: it may do what the caller may.
    ///
    /// Counts as slots those that a table has. Remote PEs translate by the leaves until the flush within,
    /// then fault and retry, then translate by the block; what they may access stays the same, and no dirty record
    /// is lost. Tables are given back after a grace period; `relax` runs while it lasts.
    ///
    /// # Errors
    /// [`CollapseError`]: nothing has changed.
    // A function of its own: what a batch remembers is not to be in the frame of every caller's caller.
    #[inline(never)]
    pub fn collapse(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
        to: Level,
        relax: impl FnMut(),
        heard: &mut impl FnMut(Ipa, Collapse),
    ) -> Result<Progress, CollapseError> {
        let range = self.claimed(claim, batch.from).map_err(CollapseError::Claim)?;
        if !matches!(to, Level::L1 | Level::L2) || to < self.geometry.start() {
            return Err(CollapseError::Level { to });
        }
        if !cpu.is_quiescent() {
            return Err(CollapseError::NotQuiescent);
        }
        let mut fates: Fates = [None; TOGETHER];
        let at = {
            let guard = cpu.enter();
            let mut sweep = Sweep {
                space: self,
                guard: &guard,
                range,
                to,
                at: batch.from,
                left: batch.slots.max(1),
                fates: &mut fates,
                count: 0,
                owed: Owed::new(self.tlb()),
            };
            let outcome = sweep.run();
            let at = sweep.at;
            sweep.make();
            outcome?;
            at
        };
        self.retire(cpu, relax, &fates)?;
        for (ipa, fate) in fates.iter().flatten() {
            match fate {
                Fate::Made(_) => heard(*ipa, Collapse::Made),
                Fate::Stays(obstacle) => heard(*ipa, Collapse::Stays(*obstacle)),
                Fate::Broken => {}
            }
        }
        Ok(if at < range.end() { Progress::Until(at) } else { Progress::Done })
    }

    /// Gives tables back that are out of the tree and flushed.
    fn retire(
        &self,
        cpu: &Cpu<'_>,
        relax: impl FnMut(),
        fates: &Fates,
    ) -> Result<(), CollapseError> {
        let tables = fates.iter().flatten().filter_map(|(_, fate)| match fate {
            Fate::Made(table) => Some(*table),
            _ => None,
        });
        if tables.clone().next().is_none() {
            return Ok(());
        }
        // Nothing is held here, so this cannot fail; if it did, the tables would be lost, not reused.
        cpu.wait(relax).map_err(|_| CollapseError::NotQuiescent)?;
        for pa in tables {
            // SAFETY: (1) out of the tree, and not given back yet.
            let table = unsafe { self.memory.table(pa) };
            for slot in table.slots() {
                // SAFETY: (1) flushed, and the grace period is over; (2) Busy, made so under the claim.
                unsafe { self.arch.store_detached(slot, Descriptor::EMPTY.bits()) };
            }
            // SAFETY: (1) taken out of the tree; (2) flushed, and the grace period is over; (3) every slot is
            // Empty.
            unsafe { self.memory.free_table(pa, 1) };
        }
        Ok(())
    }
}

/// A batch on its way.
struct Sweep<'w, 'e, M, A: Arch> {
    space: &'w Space<'e, M, A>,
    guard: &'w Guard<'w>,
    range: IpaRange,
    to: Level,
    /// Everything of the range before this is done.
    at: Ipa,
    left: usize,
    // By reference: the CPU's stack is small.
    fates: &'w mut Fates,
    /// Tables that were looked at.
    count: usize,
    owed: Owed<'w, A>,
}

impl<'w, M: Memory, A: Arch> Sweep<'w, '_, M, A> {
    /// Breaks what can be collapsed, until the range or the budget ends.
    fn run(&mut self) -> Result<(), CollapseError> {
        let (space, guard) = (self.space, self.guard);
        let bytes = self.to.slot_bytes();
        while self.at < self.range.end() && self.left > 0 && self.count < TOGETHER {
            let ipa = self.at.align_down(bytes);
            let end = ipa.get() + bytes;
            let inside = self.range.start() <= ipa && end <= self.range.end().get();
            if inside {
                let path = space.path(guard, ipa).ok_or(CollapseError::ForeignGuard)?;
                if let Some((parent, child)) = path.pair(self.to) {
                    self.fates[self.count] = match self.table(parent, child) {
                        Ok(()) => Some((ipa, Fate::Broken)),
                        Err(Some(obstacle)) => Some((ipa, Fate::Stays(obstacle))),
                        // The parent moved: look again.
                        Err(None) => continue,
                    };
                    self.count += 1;
                }
            }
            self.left = self.left.saturating_sub(SLOTS);
            self.at = Ipa::new(end.min(self.range.end().get()));
        }
        Ok(())
    }

    /// Breaks one table, if its leaves form a block.
    fn table(&mut self, parent: Node<'w>, child: Node<'w>) -> Result<(), Option<Obstacle>> {
        let arch = &self.space.arch;
        // A child has a parent slot, which is live.
        let link = child.link.and_then(|link| Some((link, link.seen.to_busy()?)));
        let Some((Link { slot, .. }, busy)) = link else {
            return Err(Some(Obstacle::Hole { ipa: child.start }));
        };
        let _parent = parent.lock(arch, self.guard).map_err(|_| None)?;
        let _table = child.lock(arch, self.guard).map_err(|_| None)?;
        block_of(child, |slot| slot.load(arch)).map_err(Some)?;
        // SAFETY: (1) the parent's lock is held, and the claim covers the span; the slot holds `live`, as the
        // child's lock compared, and hardware does not write table descriptors here.
        unsafe { arch.swap(slot, busy.bits()) };
        self.owed.table(child.start, parent.level);
        Ok(())
    }

    /// Flushes; then each broken table becomes a block, or is linked again.
    fn make(self) {
        let Self { space, guard, to, fates, owed, .. } = self;
        if owed.settle().is_none() {
            return;
        }
        for (ipa, fate) in fates.iter_mut().flatten() {
            if let Fate::Broken = fate {
                *fate = match harvest(space, guard, *ipa, to) {
                    Ok(table) => Fate::Made(table),
                    Err(obstacle) => Fate::Stays(obstacle),
                };
            }
        }
        space.arch.dsb(Dsb::IshSt);
    }
}

/// The last step of one table, under both locks: its leaves become the block, and the table comes out of the tree;
/// or they live again, and it is linked.
// A function of its own: its share of the stack is not that of the whole batch.
#[inline(never)]
fn harvest<M: Memory, A: Arch>(
    space: &Space<'_, M, A>,
    guard: &Guard<'_>,
    ipa: Ipa,
    to: Level,
) -> Result<Pa, Obstacle> {
    let arch = &space.arch;
    // Three times nothing but the break itself is to be found: the slot is Busy, and the claim keeps others away.
    let found = space.path(guard, ipa).and_then(|path| path.leaf());
    let Some(parent) = found.filter(|node| node.level == to) else {
        return Err(Obstacle::Hole { ipa });
    };
    // The claim keeps both where they are.
    let _parent = parent.hold(arch, guard);
    let Some((pa, child)) = space.below_busy(guard, &parent, ipa) else {
        return Err(Obstacle::Hole { ipa });
    };
    let _table = child.hold(arch, guard);
    let Some(Link { slot, seen: live }) = child.link else { return Err(Obstacle::Hole { ipa }) };
    let block = block_of(child, |slot| to_busy(arch, slot, child.level));
    let (new, outcome) = match block {
        Ok(block) => (block, Ok(pa)),
        Err(obstacle) => {
            for slot in child.table.slots() {
                if let View::Busy(live) = slot.load(arch).view(child.level) {
                    // SAFETY: (1) made Busy above, under this lock; (2) what it was.
                    unsafe { arch.store(slot, live.bits()) };
                }
            }
            (live, Err(obstacle))
        }
    };
    // SAFETY: (1) Busy, made so under this claim; flushed since, so no TLB has the table; (2) the block of
    // its leaves with their final state, or the table as it was.
    unsafe { arch.store(slot, new.bits()) };
    if outcome.is_ok() {
        space.ledger.collapsed(to, SLOTS as u64);
    }
    outcome
}

/// The block that the leaves of a table form. `read` says what a slot holds.
fn block_of(node: Node<'_>, read: impl FnMut(&Slot) -> Descriptor) -> Result<Descriptor, Obstacle> {
    let (first, state) = parts(node, 0..SLOTS, read)?;
    first.whole(state).ok_or(Obstacle::Unaligned { pa: first.pa() })
}
