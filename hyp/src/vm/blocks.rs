//! RAM in blocks of 2 MiB: populated so, split and collapsed when the guest asks.
//!
//! ```text
//!  fault in Policy::ram          page at once: the first 2 MiB of RAM if there are blocks, else all of it
//!  fault elsewhere in RAM        fault(): block from the stock, at level 2
//!      payload, end of RAM, no block in the stock, a table in the slot ──▶ a page
//! ```
//!
//! So the path of pages is the same instructions whether there are blocks or not: a block is looked for where a
//! device would be. While memory is moved (`moving`) nobody installs a block.
//!
//! SPLIT and COLLAPSE exist to be abused, like MOVE, COPY, CONTIGUOUS and DISSOLVE. Only one of these works at a time, or a
//! scan, and each call does a bounded part. A fault that meets a slot on its way returns to the guest and comes again.

use alloc::format;

use hyp_abi::call::{RESIZE_MAX, Stat};
use stage2::space::{Batch, Collapse, Progress, SplitError};
use stage2::{
    Account, Frames, Guard, Install, InstallError, Ipa, IpaRange, Level, Mapping, Pa, Tally,
};

use super::fault::{Populate, ended};
use super::outcome::{Part, Refused};
use super::payload::Source;
use super::policy::plain;
use super::run::Env;
use super::{Policy, protecting, scan};
use crate::event::counters::Own;
use crate::event::trace;
use crate::lock::relax;
use crate::mem::cache::{BLOCK, BLOCK_FRAMES, FULL, Stock};

/// Blocks that one call splits or makes, at the most, under one flush: as many as a stock has tables for.
pub(super) const BATCH: usize = FULL;

/// How RAM is populated by blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    /// How a block is mapped, where everything is allowed.
    pub(crate) mapping: Mapping,
}

impl Blocks {
    /// The part of RAM that is populated by pages whatever it holds: the first block; `None` if there is none.
    pub(super) fn split_off(ram: IpaRange) -> Option<IpaRange> {
        let first = IpaRange::new(ram.start(), BLOCK).ok()?;
        ram.covers(&first).then_some(first)
    }
}

/// The block of the stock, for an install.
struct Whole<'a>(&'a Stock);

// SAFETY: (1) a block of the stock is aligned RAM that is nobody else's, and comes back to the pool only against a
// completed flush; (2) it is zeroed and cleaned, with its DSB.
unsafe impl Frames for Whole<'_> {
    fn take(&mut self) -> Option<Pa> {
        self.0.take_block().map(Pa::new)
    }

    fn give_back(&mut self, block: Pa) {
        trace::frame_given_back(block.get(), BLOCK);
        self.0.put_back_block(block.get());
    }
}

/// How the block is mapped that a fault at a page may populate, if it may.
fn suiting(env: Env<'_>, policy: &Policy, page: u64) -> Option<Mapping> {
    let start = Ipa::new(page).align_down(BLOCK);
    let span = IpaRange::new(start, BLOCK).ok().filter(|_| !policy.paged.contains(start))?;
    policy.block(start).filter(|_| env.vm.plan.payload.leaves_alone(&plain(span)))
}

/// A fault at `page`, which is RAM outside [`Policy::ram`], under the guard that saw this.
#[cold]
pub(super) fn fault(env: Env<'_>, guard: &Guard<'_>, policy: &Policy, page: u64) -> Populate {
    let (space, stock, at) = (&env.vm.space, &env.cpu.stock, Ipa::new(page));
    let mut tally = Tally::default();
    if let Some(mapping) = suiting(env, policy, page) {
        match space.install(guard, at, &mapping, &mut Whole(stock), &mut tally) {
            // A table is there, or no block at hand: a page.
            Err(InstallError::Occupied { level: Level::L2, .. } | InstallError::OutOfFrames) => {}
            result => {
                if let Ok(Install::Installed(_)) = result {
                    protecting::installed(env, guard, at, Level::L2);
                    env.cpu.counters.bump(Stat::Blocks);
                }
                return ended(env, result, &tally);
            }
        }
    }
    let mut source = Source::new(stock, &env.vm.plan.payload, page);
    let result = space.install(guard, at, policy.page(at), &mut source, &mut tally);
    if let Ok(Install::Installed(_)) = result {
        protecting::installed(env, guard, at, Level::L3);
    }
    ended(env, result, &tally)
}

/// Checks the arguments of a call.
pub(super) fn wanted(env: Env<'_>, start: u64, bytes: u64) -> Result<IpaRange, Refused> {
    let guard = env.guards.enter();
    let policy = env.vm.policy(&guard);
    policy.blocks.ok_or(Refused::Unsupported)?;
    let range = IpaRange::new(Ipa::new(start), bytes).map_err(|_| Refused::Invalid)?;
    let aligned = (start | bytes).is_multiple_of(BLOCK) && bytes <= RESIZE_MAX;
    if aligned && policy.main.covers(&range) { Ok(range) } else { Err(Refused::Invalid) }
}

/// Splits the first blocks of a range into pages. Called at a safe point.
pub(crate) fn split(env: Env<'_>, start: u64, bytes: u64) -> Result<Part, Refused> {
    let range = wanted(env, start, bytes)?;
    let Env { vm, cpu, guards } = env;
    let Some(_turn) = vm.moving.try_lock() else { return Err(Refused::Busy) };
    let mut claim = vm.space.claim(range).map_err(|_| Refused::Busy)?;
    if !cpu.stock.has(BATCH.min((bytes / BLOCK) as usize)) {
        cpu.stock.refill();
    }
    let before = vm.space.account();
    let batch = Batch { from: range.start(), slots: BATCH * BLOCK_FRAMES };
    let progress = vm.space.split(guards, &mut claim, batch, Level::L3);
    let blocks = count_splits(env, &before);
    if blocks != 0 {
        scan::split(env, range);
    }
    match progress {
        Ok(progress) => Ok(Part::of(range, progress, blocks)),
        Err(SplitError::OutOfTables { .. }) => Err(Refused::NoMemory),
        Err(error) => Err(Refused::Broken(format!("cannot split: {error}"))),
    }
}

/// Counts the splits since an account was taken, and returns how many there were. Nobody else splits: the caller has
/// the turn.
pub(super) fn count_splits(env: Env<'_>, before: &Account) -> u64 {
    let (now, counters) = (env.vm.space.account(), &env.cpu.counters);
    let split = now.split - before.split;
    let [marked, live] = [0, 1].map(|way| now.split_live[way] - before.split_live[way]);
    counters.add(Stat::Split, split);
    counters.add_own(Own::SplitMarked, marked);
    counters.add_own(Own::SplitLive, live);
    split
}

/// Makes blocks of the pages of the first part of a range. Called at a safe point.
pub(crate) fn collapse(env: Env<'_>, start: u64, bytes: u64) -> Result<Part, Refused> {
    let range = wanted(env, start, bytes)?;
    let Some(_turn) = env.vm.moving.try_lock() else { return Err(Refused::Busy) };
    let mut blocks = 0;
    let mut heard = |_, outcome| blocks += u64::from(outcome == Collapse::Made);
    let progress = collapse_spans(env, range, &mut heard)?;
    Ok(Part::of(range, progress, blocks))
}

/// The same for a range of whole blocks of RAM; `heard` is told what became of each table that was looked at. The
/// caller has the turn ([`Vm::moving`](super::Vm)).
pub(super) fn collapse_spans(
    env: Env<'_>,
    range: IpaRange,
    heard: &mut impl FnMut(Ipa, Collapse),
) -> Result<Progress, Refused> {
    let Env { vm, cpu, guards } = env;
    let mut claim = vm.space.claim(range).map_err(|_| Refused::Busy)?;
    let batch = Batch { from: range.start(), slots: BATCH * BLOCK_FRAMES };
    let mut made = 0;
    let mut hear = |ipa, outcome| {
        made += u64::from(outcome == Collapse::Made);
        heard(ipa, outcome);
    };
    let progress = vm.space.collapse(guards, &mut claim, batch, Level::L2, relax, &mut hear);
    cpu.counters.add(Stat::Collapsed, made);
    cpu.counters.add(Stat::TablesFreed, made);
    progress.map_err(|error| Refused::Broken(format!("cannot collapse: {error}")))
}
