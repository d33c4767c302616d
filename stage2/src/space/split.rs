//! Blocks become tables of smaller leaves, while the guest runs.
//!
//! ```text
//!  build   for each block a table, detached: 512 leaves that say what the block says
//!  break   under the parent's lock: block -> Busy, which remembers the table. By compare-exchange from
//!          what the table was built for: if hardware changed A/D meanwhile, the parts get it, too
//!  flush   one for the batch: DSB, stage 2 by IPA, DSB ISH, VMALLE1IS, DSB ISH
//!  make    Busy -> table, by one release store each; DSB ISHST
//! ```
//!
//! Without the break a TLB could hold the block and one of its pages at once, which raises a TLB conflict
//! abort or worse \[RDDMVT, IHYQMB\]. Why the exchange compares:
//!
//! ```text
//! PE 0, splits                        PE 1, hardware
//! reads the block: clean
//! fills 512 pages: clean
//!                                     a store: S2AP[1] <- 1 in the block
//! block -> Busy, by a plain store     <- the write is recorded nowhere: the page is not sent
//! ```
//!
//! A vCPU that touches a block meanwhile faults, is sent back and faults again until its table is made. The locks
//! are given back before the flush: a Busy slot in a claimed range belongs to the claim.

use core::fmt;

use super::lookup::Node;
use super::{Batch, NotClaimed, Progress, Space};
use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::arch::{Arch, Dsb};
use crate::claim::Claim;
use crate::descriptor::{Descriptor, Leaf};
use crate::epoch::{Cpu, Guard};
use crate::gather::Owed;
use crate::memory::{ARITY as SLOTS, Memory};
use crate::slot::Slot;

/// Blocks that are broken under one flush, at the most.
const TOGETHER: usize = 64;

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

/// A block that was broken: its slot is Busy and remembers the table of its parts.
struct Broken<'g> {
    slot: &'g Slot,
    level: Level,
    table: Descriptor,
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Splits the blocks of a batch of the claimed range until no leaf above level `to` is left in it: 2 for
    /// blocks of 2 MiB, 3 for pages. What is no block stays as it is; a block in which the batch begins is split
    /// as a whole.
    ///
    /// Counts as slots the parts that are made. Remote PEs translate by a block until the flush within, then
    /// fault and retry, then translate by its parts; what they may access stays the same, and no access or
    /// dirty record is lost. A range of 1 GiB blocks takes two rounds to pages, so [`Progress::Until`] may
    /// say where the batch began.
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
        let mut split = Split {
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
        let outcome = split.run();
        let (at, count) = (split.at, split.count);
        split.make();
        match outcome {
            Err(error) if count == 0 => Err(error),
            Ok(true) => Ok(Progress::Done),
            _ => Ok(Progress::Until(at)),
        }
    }
}

/// A batch on its way.
struct Split<'w, 'e, M, A: Arch> {
    space: &'w Space<'e, M, A>,
    guard: &'w Guard<'w>,
    range: IpaRange,
    to: Level,
    /// Everything of the range before this is done.
    at: Ipa,
    left: usize,
    broken: [Option<Broken<'w>>; TOGETHER],
    count: usize,
    owed: Owed<'w, A>,
}

impl<'w, M: Memory, A: Arch> Split<'w, '_, M, A> {
    /// Breaks blocks until the range or the budget ends; `true` if it was the range, and nothing that was
    /// made needs another round.
    fn run(&mut self) -> Result<bool, SplitError> {
        let (space, guard) = (self.space, self.guard);
        // Where the parts that this batch makes have to be split again.
        let (mut again, mut held) = (None, None);
        while self.at < self.range.end() && self.left > 0 && self.count < TOGETHER {
            let node: Node<'w> = match held {
                Some(node) => node,
                None => {
                    let path = space.path(guard, self.at).ok_or(SplitError::ForeignGuard)?;
                    let Some(node) = path.leaf() else { break };
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
                match self.block(node, slot, ipa, leaf) {
                    Ok(()) => {}
                    Err(error) if self.count == 0 => return Err(error),
                    // The next batch says so. What this one has made may need another round before.
                    Err(_) => break,
                }
                if node.level.next() != Some(self.to) {
                    again = again.or(Some(self.at));
                }
            }
            self.left = self.left.saturating_sub(1);
            self.at = Ipa::new(end.min(self.range.end().get()));
        }
        let done = again.is_none() && self.at >= self.range.end();
        self.at = again.unwrap_or(self.at);
        Ok(done)
    }

    /// Builds the parts of a block and breaks it. A slot that is no block any more is left alone.
    fn block(
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
        let Some(below) = level.next() else { return Ok(()) };
        let arch = &self.space.arch;
        let pa = self.space.memory.alloc_table(1).ok_or(SplitError::OutOfTables { ipa })?;
        self.fill(pa, below, &leaf);
        let busy =
            Descriptor::table(level, pa).ok().and_then(|table| Some((table, table.to_busy()?)));
        let broke = match (busy, node.lock(arch, self.guard)) {
            (None, _) => Err(SplitError::OutOfTables { ipa }),
            // Of a claimed block the parent stays.
            (_, Err(_stale)) => Ok(None),
            (Some((table, busy)), Ok(_lock)) => {
                let mut built = leaf;
                loop {
                    // SAFETY: (1) the table's lock is held, and the claim covers the block; what Busy
                    // remembers is complete.
                    match unsafe { arch.compare_exchange(slot, built.bits(), busy.bits()) } {
                        Some(Ok(_)) => break Ok(Some(table)),
                        None => break Err(SplitError::Unsupported),
                        // Hardware has changed A/D, or the lock's last holder the leaf: it is a block still.
                        Some(Err(seen)) => match Descriptor::from_bits(seen).as_leaf(level) {
                            Some(now) if now.is_contiguous() => {
                                break Err(SplitError::Contiguous { ipa });
                            }
                            Some(now) => {
                                self.fill(pa, below, &now);
                                built = now;
                            }
                            None => break Ok(None),
                        },
                    }
                }
            }
        };
        if let Ok(Some(table)) = broke {
            self.owed.leaf(ipa, level);
            self.broken[self.count] = Some(Broken { slot, level, table });
            self.count += 1;
            self.left = self.left.saturating_sub(SLOTS - 1);
            return Ok(());
        }
        self.space.free_detached(pa, below);
        broke.map(|_| ())
    }

    /// Writes the parts of a block into a table that nobody else knows.
    fn fill(&self, pa: Pa, level: Level, block: &Leaf) {
        let Some(first) = block.first_part() else { return };
        // SAFETY: (1) just allocated.
        let table = unsafe { self.space.memory.table(pa) };
        let mut bits = first.bits();
        for slot in table.slots() {
            // SAFETY: (1) nobody walks the table yet; (2) a leaf for this level.
            unsafe { self.space.arch.store_detached(slot, bits) };
            bits += level.slot_bytes();
        }
    }

    /// Flushes, and makes what was broken live again, as tables.
    fn make(self) {
        let Self { space, broken, owed, .. } = self;
        if owed.settle().is_none() {
            return;
        }
        for Broken { slot, level, table } in broken.into_iter().flatten() {
            // SAFETY: (1) Busy, made so above under this claim; flushed since, so no TLB has the block; (2)
            // what it remembers, which is complete.
            unsafe { space.arch.store(slot, table.bits()) };
            space.ledger.split(level, SLOTS as u64);
        }
        space.arch.dsb(Dsb::IshSt);
    }
}
