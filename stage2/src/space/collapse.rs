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

use super::lookup::{Link, LockedTable, Node};
use super::{Batch, NotClaimed, Progress, Space};
use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::arch::{Arch, Dsb};
use crate::claim::Claim;
use crate::descriptor::{Descriptor, Leaf, View};
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

/// Why a table stays. Each names the first slot in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Nothing is mapped there.
    Hole {
        /// First IPA of the slot.
        ipa: Ipa,
    },
    /// A note stands there.
    Note {
        /// First IPA of the slot.
        ipa: Ipa,
    },
    /// Not a leaf of the level below the block: a table, which has to be collapsed first, or a slot that is being
    /// changed.
    NoLeaf {
        /// First IPA of the slot.
        ipa: Ipa,
        /// What it holds.
        seen: Descriptor,
    },
    /// Its memory does not follow that of the slot before it.
    Elsewhere {
        /// First IPA of the slot.
        ipa: Ipa,
        /// Where its memory is.
        pa: Pa,
        /// Where it would have to be.
        wanted: Pa,
    },
    /// It allows something else than the first, belongs to somebody else, or is a member of a contiguous run.
    Unlike {
        /// First IPA of the slot.
        ipa: Ipa,
    },
    /// The first leaf's memory is not aligned to the block.
    Unaligned {
        /// Where it is.
        pa: Pa,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hole { ipa } => write!(f, "nothing is mapped at {ipa}"),
            Self::Note { ipa } => write!(f, "a note stands at {ipa}"),
            Self::NoLeaf { ipa, seen } => write!(f, "the slot at {ipa} holds {:#x}", seen.bits()),
            Self::Elsewhere { ipa, pa, wanted } => {
                write!(f, "the memory at {ipa} is at {pa}, and would have to be at {wanted}")
            }
            Self::Unlike { ipa } => write!(f, "the leaf at {ipa} is unlike the first"),
            Self::Unaligned { pa } => write!(f, "the memory begins at {pa}, where no block can"),
        }
    }
}

/// What became of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collapse {
    /// It is a block now.
    Made,
    /// It stays.
    Stays(Obstacle),
}

/// What became of the tables of a batch, in order of address.
type Told = [Option<(Ipa, Collapse)>; TOGETHER];

/// A table whose parent slot is Busy.
#[derive(Clone, Copy)]
struct Broken<'g> {
    parent: Node<'g>,
    child: Node<'g>,
    /// What the parent slot held.
    live: Descriptor,
}

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
        let (mut free, mut told) = ([None; TOGETHER], [None; TOGETHER]);
        let at = {
            let guard = cpu.enter();
            let mut sweep = Sweep {
                space: self,
                guard: &guard,
                range,
                to,
                at: batch.from,
                left: batch.slots.max(1),
                broken: [const { None }; TOGETHER],
                count: 0,
                owed: Owed::new(self.tlb()),
            };
            let outcome = sweep.run(&mut told);
            let at = sweep.at;
            sweep.make(&mut free, &mut told);
            outcome?;
            at
        };
        self.retire(cpu, relax, &free)?;
        told.iter().flatten().for_each(|(ipa, what)| heard(*ipa, *what));
        Ok(if at < range.end() { Progress::Until(at) } else { Progress::Done })
    }

    /// Gives tables back that are out of the tree and flushed.
    fn retire(
        &self,
        cpu: &Cpu<'_>,
        relax: impl FnMut(),
        tables: &[Option<Pa>],
    ) -> Result<(), CollapseError> {
        if tables.iter().flatten().next().is_none() {
            return Ok(());
        }
        // Nothing is held here, so this cannot fail; if it did, the tables would be lost, not reused.
        cpu.wait(relax).map_err(|_| CollapseError::NotQuiescent)?;
        for pa in tables.iter().flatten() {
            // SAFETY: (1) out of the tree, and not given back yet.
            let table = unsafe { self.memory.table(*pa) };
            for slot in table.slots() {
                // SAFETY: (1) flushed, and the grace period is over; (2) Busy, made so under the claim.
                unsafe { self.arch.store_detached(slot, Descriptor::EMPTY.bits()) };
            }
            // SAFETY: (1) taken out of the tree; (2) flushed, and the grace period is over; (3) every slot is
            // Empty.
            unsafe { self.memory.free_table(*pa, 1) };
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
    broken: [Option<Broken<'w>>; TOGETHER],
    /// Tables that were looked at.
    count: usize,
    owed: Owed<'w, A>,
}

impl<'w, M: Memory, A: Arch> Sweep<'w, '_, M, A> {
    /// Breaks what can be collapsed, until the range or the budget ends.
    fn run(&mut self, told: &mut Told) -> Result<(), CollapseError> {
        let (space, guard) = (self.space, self.guard);
        let bytes = self.to.slot_bytes();
        while self.at < self.range.end() && self.left > 0 && self.count < TOGETHER {
            let ipa = self.at.align_down(bytes);
            let end = ipa.get() + bytes;
            let inside = self.range.start() <= ipa && end <= self.range.end().get();
            if inside {
                let path = space.path(guard, ipa).ok_or(CollapseError::ForeignGuard)?;
                if let Some((parent, child)) = path.pair(self.to) {
                    told[self.count] = match self.table(parent, child) {
                        Ok(()) => Some((ipa, Collapse::Made)),
                        Err(Some(obstacle)) => Some((ipa, Collapse::Stays(obstacle))),
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
        let Some(Link { slot, seen: live }) = child.link else { return Ok(()) };
        let Some(busy) = live.to_busy() else { return Ok(()) };
        let _parent = parent.lock(arch, self.guard).map_err(|_| None)?;
        let table = child.lock(arch, self.guard).map_err(|_| None)?;
        block_of(&table, |slot| slot.load(arch)).map_err(Some)?;
        // SAFETY: (1) the parent's lock is held, and the claim covers the span; the slot holds `live`, as the
        // child's lock compared, and hardware does not write table descriptors here.
        unsafe { arch.swap(slot, busy.bits()) };
        self.owed.table(child.start, parent.level);
        self.broken[self.count] = Some(Broken { parent, child, live });
        Ok(())
    }

    /// Flushes; then each broken table becomes a block, or is linked again.
    // By reference: what a batch remembers is some KiB of stack.
    fn make(&mut self, free: &mut [Option<Pa>; TOGETHER], told: &mut Told) {
        let (space, guard) = (self.space, self.guard);
        if core::mem::replace(&mut self.owed, Owed::new(space.tlb())).settle().is_none() {
            return;
        }
        for ((broken, free), told) in self.broken.iter().zip(free).zip(told) {
            let Some(broken) = broken else { continue };
            match harvest(space, guard, broken) {
                Ok(()) => {
                    *free = broken.live.as_table(broken.parent.level);
                    space.ledger.collapsed(broken.parent.level, SLOTS as u64);
                }
                Err(obstacle) => *told = Some((broken.child.start, Collapse::Stays(obstacle))),
            }
        }
        space.arch.dsb(Dsb::IshSt);
    }
}

/// The last step of one table, under both locks: its leaves become the block, or live again.
fn harvest<M: Memory, A: Arch>(
    space: &Space<'_, M, A>,
    guard: &Guard<'_>,
    broken: &Broken<'_>,
) -> Result<(), Obstacle> {
    let Broken { parent, child, live } = *broken;
    let arch = &space.arch;
    let Some(Link { slot, .. }) = child.link else { return Ok(()) };
    // The claim keeps both where they are.
    let _parent = parent.hold(arch, guard);
    let table = child.hold(arch, guard);
    let block = block_of(&table, |slot| to_busy(arch, slot, child.level));
    let (new, outcome) = match block {
        Ok(block) => (block, Ok(())),
        Err(obstacle) => {
            for slot in table.node.table.slots() {
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
    outcome
}

/// Makes a live leaf Busy; returns what it was, or what else stands there.
fn to_busy<A: Arch>(arch: &A, slot: &Slot, level: Level) -> Descriptor {
    loop {
        let seen = slot.load(arch);
        let Some(busy) = seen.to_busy().filter(|_| seen.as_leaf(level).is_some()) else {
            return seen;
        };
        // SAFETY: (1) the table's lock is held: the holder may make a leaf Busy.
        match unsafe { arch.compare_exchange(slot, seen.bits(), busy.bits()) } {
            // A machine without the exchange has no leaves to collapse but those of `map`, which needs it, too.
            Some(Ok(_)) | None => return seen,
            // A fault handler or hardware has changed it: at the most as often as it has such bits.
            Some(Err(_)) => {}
        }
    }
}

/// The block that the leaves of a table form. `read` says what a slot holds.
fn block_of<A: Arch>(
    table: &LockedTable<'_, A>,
    mut read: impl FnMut(&Slot) -> Descriptor,
) -> Result<Descriptor, Obstacle> {
    let node = table.node;
    let mut slots = node.table.slots().iter().enumerate();
    // A table has slots.
    let Some((_, slot)) = slots.next() else { return Err(Obstacle::Hole { ipa: node.start }) };
    let first = leaf(read(slot), node.level, node.start)?;
    if first.is_contiguous() {
        return Err(Obstacle::Unlike { ipa: node.start });
    }
    let mut state = first.state();
    for (index, slot) in slots {
        let seen = read(slot);
        match first.state_of_part(index as u64, seen) {
            Some(its) => state = state.or(its),
            None => return Err(obstacle(&first, index, seen, node)),
        }
    }
    first.whole(state).ok_or(Obstacle::Unaligned { pa: first.pa() })
}

/// The leaf that a slot holds.
fn leaf(seen: Descriptor, level: Level, ipa: Ipa) -> Result<Leaf, Obstacle> {
    match seen.view(level) {
        View::Leaf(leaf) => Ok(leaf),
        View::Empty => Err(Obstacle::Hole { ipa }),
        View::Note(_) => Err(Obstacle::Note { ipa }),
        _ => Err(Obstacle::NoLeaf { ipa, seen }),
    }
}

/// Why what a slot holds does not go on from the first leaf.
#[cold]
fn obstacle(first: &Leaf, index: usize, seen: Descriptor, node: Node<'_>) -> Obstacle {
    let ipa = node.ipa_of(index);
    let wanted = Pa::new(first.pa().get() + (ipa.get() - node.start.get()));
    match leaf(seen, node.level, ipa) {
        Ok(leaf) if leaf.pa() != wanted => Obstacle::Elsewhere { ipa, pa: leaf.pa(), wanted },
        Ok(_) => Obstacle::Unlike { ipa },
        Err(obstacle) => obstacle,
    }
}
