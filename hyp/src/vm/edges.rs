//! Where a range begins or ends in the middle of a block or of a contiguous run: what reaches over the edge is split, or
//! dissolved, so that an operation may have the range and nothing else.
//!
//! What that takes is known before: a table page for each edge, from the CPU's stock. So nothing can be refused half way.
//! The caller has the turn, and has published a policy under which nobody installs a block over an edge.

use alloc::format;

use stage2::space::{Batch, Progress, SplitError};
use stage2::{Ipa, IpaRange, Level};

use super::blocks::count_splits;
use super::outcome::Refused;
use super::run::Env;
use super::runs;
use crate::mem::cache::BLOCK;

/// Slots that are split under one flush.
const BATCH: usize = 512;
/// Times that a split is tried again when the stock of table pages was empty.
const TRIES: usize = 4;

/// Sees to it that the edges of a range can be made free.
pub(super) fn prepare(env: Env<'_>) -> Result<(), Refused> {
    let stock = &env.cpu.stock;
    if !stock.has(2) {
        stock.refill();
    }
    if stock.has(2) { Ok(()) } else { Err(Refused::NoMemory) }
}

/// Makes them free; returns the number of blocks that were split.
pub(super) fn free(env: Env<'_>, range: IpaRange) -> Result<u64, Refused> {
    let [first, last] = [range.start(), range.end()].map(|edge| edge.align_down(BLOCK));
    let mut split = 0;
    if first != range.start() || first == last {
        split += clear(env, first)?;
    }
    if last != range.end() && last != first {
        split += clear(env, last)?;
    }
    Ok(split)
}

/// Leaves nothing but pages without runs in all 2 MiB that a range has a part of: two, at the most.
pub(super) fn pages_only(env: Env<'_>, range: IpaRange) -> Result<(), Refused> {
    let first = range.start().align_down(BLOCK);
    let last = Ipa::new(range.end().get() - 1).align_down(BLOCK);
    clear(env, first)?;
    if last != first {
        clear(env, last)?;
    }
    Ok(())
}

/// Leaves pages without runs in the 2 MiB from `span` on.
fn clear(env: Env<'_>, span: Ipa) -> Result<u64, Refused> {
    let space = &env.vm.space;
    let has_blocks = {
        let guard = env.guards.enter();
        env.vm.policy(&guard).blocks.is_some()
    };
    if !has_blocks {
        return Ok(0);
    }
    let gone = |why| Refused::Broken(format!("the span of an edge cannot be claimed: {why}"));
    let range = IpaRange::new(span, BLOCK).map_err(|_| Refused::Invalid)?;
    // Nobody claims without the turn.
    let mut claim = space.claim(range).map_err(gone)?;
    let before = space.account();
    let mut batch = Batch { from: range.start(), slots: BATCH };
    let mut tries = TRIES;
    let outcome = loop {
        if env.cpu.stock.is_low() {
            env.cpu.stock.refill();
        }
        match space.split(env.guards, &mut claim, batch, Level::L3) {
            Ok(Progress::Done) => break Ok(()),
            Ok(Progress::Until(next)) => batch.from = next,
            Err(SplitError::OutOfTables { .. }) if tries > 0 => tries -= 1,
            Err(error) => break Err(Refused::Broken(format!("cannot split: {error}"))),
        }
    };
    let split = count_splits(env, &before);
    outcome?;
    runs::dissolve_all(env, &mut claim)?;
    Ok(split)
}
