//! Blocks become tables of smaller leaves, while the guest runs.
//!
//! First the tables are built, detached and with no lock held: 512 leaves that say what the block says. Then each
//! block is exchanged for its table, in one of three ways, by what the machine can do (FEAT_BBM \[RKFLJB\]):
//!
//! | level | the block's slot becomes | flushes | what a vCPU meets meanwhile |
//! | --- | --- | --- | --- |
//! | 0 | Busy, flush, table | 1 | translation faults, until the table is there |
//! | 1 | block with nT, flush, table, flush | 2 | perhaps translation faults while nT is set \[RMRRPW\] |
//! | 2 | table, flush | 1 | nothing |
//!
//! At levels 1 and 2 a TLB may hold a block and one of its pages at once, up to the last flush, and may then raise a
//! TLB conflict abort \[IHYQMB\]: whoever runs guests handles that. Without the break at level 0 worse could happen
//! \[RDDMVT\]. Each flush serves the whole batch. How the exchange is made, and why a block in which hardware may still
//! record something takes the way of level 0 on any machine: `split/exchange.rs`.
//!
//! Where nobody holds a lock through a flush, a Busy slot, or a block with nT, belongs to the claim on its range.

mod exchange;

use core::fmt;

use exchange::Block;

use super::tables::Node;
use super::{Batch, NotClaimed, Progress, Space};
use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::arch::Arch;
use crate::claim::Claim;
use crate::descriptor::Leaf;
use crate::epoch::{Cpu, Guard};
use crate::gather::Owed;
use crate::memory::{ARITY as SLOTS, Memory};
use crate::slot::Slot;

/// Blocks that are split under one flush, at the most. Few under a model checker, whose threads have small stacks.
const TOGETHER: usize = if cfg!(any(loom, shuttle)) { 2 } else { 64 };

/// Why a block was not split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitError {
    /// The claim does not cover it.
    Claim(NotClaimed),
    /// The CPU belongs to other epochs than the tables do.
    ForeignGuard,
    /// The CPU is inside a guard or holds a lock, perhaps the one that this takes.
    NotQuiescent,
    /// There are no leaves below a page, and no blocks above 1 GiB.
    Level {
        /// The level asked for.
        to: Level,
    },
    /// A block reaches over the edge of the claim: claim all of it.
    Straddles {
        /// First IPA of the block.
        ipa: Ipa,
        /// Its level.
        level: Level,
    },
    /// The block is a member of a contiguous run: dissolve that first.
    Contiguous {
        /// First IPA of the block.
        ipa: Ipa,
    },
    /// No table page at hand: refill where waiting is allowed, and repeat.
    OutOfTables {
        /// First IPA of the block that is still whole.
        ipa: Ipa,
    },
    /// The machine has no atomic install.
    Unsupported,
}

impl fmt::Display for SplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(error) => error.fmt(f),
            Self::ForeignGuard => f.write_str("the CPU belongs to other epochs than the tables"),
            Self::NotQuiescent => f.write_str("the CPU is inside a guard or holds a table's lock"),
            Self::Level { to } => write!(f, "blocks can be split to L2 or L3, not to {to}"),
            Self::Straddles { ipa, level } => {
                write!(f, "the {level} block at {ipa} reaches over the edge of the claim")
            }
            Self::Contiguous { ipa } => {
                write!(f, "the block at {ipa} is a member of a contiguous run")
            }
            Self::OutOfTables { ipa } => write!(f, "no table page at hand for the block at {ipa}"),
            Self::Unsupported => f.write_str("this machine has no atomic install"),
        }
    }
}

impl core::error::Error for SplitError {}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Splits the blocks of a batch of the claimed range until no leaf above level `to` is left in it: 2 for
    /// blocks of 2 MiB, 3 for pages. What is no block stays as it is; a block in which the batch begins is split
    /// as a whole.
    ///
    /// Counts as slots the parts that are made. Remote PEs translate by a block, then by its parts; what they may
    /// access stays the same, and no access or dirty record is lost. In between they may fault and retry, or
    /// meet a TLB conflict, by the machine's level of FEAT_BBM (see [`pin_bbm`](Self::pin_bbm)). Without a break a
    /// batch ends where another table's blocks begin. A range of 1 GiB blocks takes two rounds to pages, so
    /// [`Progress::Until`] may say where the batch began.
    ///
    /// # Errors
    /// [`SplitError`]: nothing has changed in this call. A batch that runs out of tables half way ends there,
    /// and the next one says so.
    pub fn split(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
        to: Level,
    ) -> Result<Progress, SplitError> {
        let range = self.claimed(claim, batch.from).map_err(SplitError::Claim)?;
        if !matches!(to, Level::L2 | Level::L3) {
            return Err(SplitError::Level { to });
        }
        if !cpu.is_quiescent() {
            return Err(SplitError::NotQuiescent);
        }
        let guard = cpu.enter();
        let mut blocks = [const { None }; TOGETHER];
        let mut split = Split {
            space: self,
            guard: &guard,
            range,
            to,
            at: batch.from,
            again: None,
            left: batch.slots.max(1),
            blocks: &mut blocks,
            built: 0,
            exchanged: 0,
            table: None,
            owed: Owed::new(self.tlb()),
        };
        let outcome = split.run();
        let changed = split.finish();
        match outcome {
            Err(error) if !changed => Err(error),
            Ok(()) if split.again.is_none() && split.at >= range.end() => Ok(Progress::Done),
            _ => Ok(Progress::Until(split.again.map_or(split.at, |again| again.min(split.at)))),
        }
    }
}

/// A batch on its way.
struct Split<'b, 'w, 'e, M, A: Arch> {
    space: &'w Space<'e, M, A>,
    guard: &'w Guard<'w>,
    range: IpaRange,
    to: Level,
    /// Everything of the range before this is done.
    at: Ipa,
    /// Where parts that this batch makes have to be split again.
    again: Option<Ipa>,
    left: usize,
    // By reference: they are some KiB of stack, which would be copied.
    blocks: &'b mut [Option<Block<'w>>; TOGETHER],
    /// Blocks whose tables are built, and how many of these have been exchanged.
    built: usize,
    exchanged: usize,
    /// The table of those that have not been.
    table: Option<Node<'w>>,
    owed: Owed<'w, A>,
}

impl<'w, M: Memory, A: Arch> Split<'_, 'w, '_, M, A> {
    /// Builds and exchanges. If that is refused somewhere, what comes before is exchanged all the same: the next
    /// batch says why.
    fn run(&mut self) -> Result<(), SplitError> {
        let walked = self.walk();
        self.exchange().and(walked)
    }

    /// Builds until the range or the budget ends, and exchanges wherever it leaves a table.
    fn walk(&mut self) -> Result<(), SplitError> {
        let (space, guard) = (self.space, self.guard);
        let mut held = None;
        while self.at < self.range.end() && self.left > 0 && self.built < TOGETHER {
            let node: Node<'w> = match held {
                Some(node) => node,
                None => {
                    let path = space.path(guard, self.at).ok_or(SplitError::ForeignGuard)?;
                    let Some(node) = path.leaf() else { return Ok(()) };
                    node
                }
            };
            let index = node.level.index(self.at);
            if index >= SLOTS {
                self.at = Ipa::new(node.end().min(self.range.end().get()));
                continue;
            }
            let (slot, ipa) = (node.table.slot(index), node.ipa_of(index));
            let end = ipa.get() + node.level.slot_bytes();
            let seen = slot.load(&space.arch);
            if seen.as_table(node.level).is_some() {
                // Go down.
                held = None;
                continue;
            }
            held = Some(node).filter(|node| end < node.end());
            if node.level < self.to
                && let Some(leaf) = seen.as_leaf(node.level)
            {
                if self.table.is_some_and(|table| !table.is(&node)) && !self.leave()? {
                    return Ok(());
                }
                self.build(node, slot, ipa, leaf)?;
                if node.level.next() != Some(self.to) {
                    self.again = self.again.or(Some(self.at));
                }
            }
            self.left = self.left.saturating_sub(1);
            self.at = Ipa::new(end.min(self.range.end().get()));
        }
        Ok(())
    }

    /// Builds the parts of a block.
    fn build(
        &mut self,
        node: Node<'w>,
        slot: &'w Slot,
        ipa: Ipa,
        leaf: Leaf,
    ) -> Result<(), SplitError> {
        let level = node.level;
        let end = ipa.get() + level.slot_bytes();
        if ipa < self.range.start() || end > self.range.end().get() {
            return Err(SplitError::Straddles { ipa, level });
        }
        if leaf.is_contiguous() {
            return Err(SplitError::Contiguous { ipa });
        }
        let parts = self.space.memory.alloc_table(1).ok_or(SplitError::OutOfTables { ipa })?;
        fill(self.space, parts, &leaf);
        self.blocks[self.built] = Some(Block::new(slot, ipa, leaf, parts));
        self.built += 1;
        self.table = Some(node);
        self.left = self.left.saturating_sub(SLOTS - 1);
        Ok(())
    }
}

/// Writes the parts of a block into a table that nobody else knows.
fn fill<M: Memory, A: Arch>(space: &Space<'_, M, A>, parts: Pa, block: &Leaf) {
    let (Some(first), Some(level)) = (block.first_part(), block.level().next()) else { return };
    // SAFETY: (1) just allocated.
    let table = unsafe { space.memory.table(parts) };
    let mut bits = first.bits();
    for slot in table.slots() {
        // SAFETY: (1) nobody walks the table yet; (2) a leaf for this level.
        unsafe { space.arch.store_detached(slot, bits) };
        bits += level.slot_bytes();
    }
}
