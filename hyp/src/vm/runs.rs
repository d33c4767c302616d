//! Contiguous runs of 16 pages of RAM: made and dissolved when the guest asks.
//!
//! CONTIGUOUS and DISSOLVE exist to be abused, like MOVE, SPLIT and COLLAPSE, and exclude these and each other. A call
//! changes up to 64 runs under one flush.
//!
//! | who meets a run | what becomes of it |
//! | --- | --- |
//! | MOVE | dissolves what lies in the 2 MiB that it claims, before it takes pages away |
//! | COLLAPSE, COPY | take the table as a whole; the block has the OR of accessed and dirty |
//! | SPLIT | meets none: there are no runs of blocks here |

use alloc::format;

use hyp_abi::call::Stat;
use stage2::Level;
use stage2::claim::Claim;
use stage2::space::{Batch, Contiguous, Progress};

use super::blocks::{BATCH, wanted};
use super::outcome::{Part, Refused};
use super::run::Env;
use crate::mem::cache::BLOCK_FRAMES;

/// Makes runs in the first part of a range, where 16 pages form one. Called at a safe point.
pub(crate) fn make(env: Env<'_>, start: u64, bytes: u64) -> Result<Part, Refused> {
    let range = wanted(env, start, bytes)?;
    let Env { vm, cpu, guards } = env;
    let Some(_turn) = vm.moving.try_lock() else { return Err(Refused::Busy) };
    let mut claim = vm.space.claim(range).map_err(|_| Refused::Busy)?;
    let batch = Batch { from: range.start(), slots: BATCH * BLOCK_FRAMES };
    let mut made = 0;
    let mut heard = |_, what| made += u64::from(what == Contiguous::Made);
    let progress = vm.space.make_contiguous(guards, &mut claim, batch, Level::L3, &mut heard);
    cpu.counters.add(Stat::Runs, made);
    let progress =
        progress.map_err(|error| Refused::Broken(format!("cannot make runs: {error}")))?;
    Ok(Part::of(range, progress, made))
}

/// Dissolves the runs in the first part of a range. Called at a safe point.
pub(crate) fn dissolve(env: Env<'_>, start: u64, bytes: u64) -> Result<Part, Refused> {
    let range = wanted(env, start, bytes)?;
    let Some(_turn) = env.vm.moving.try_lock() else { return Err(Refused::Busy) };
    let mut claim = env.vm.space.claim(range).map_err(|_| Refused::Busy)?;
    let batch = Batch { from: range.start(), slots: BATCH * BLOCK_FRAMES };
    let (progress, blocks) = dissolve_batch(env, &mut claim, batch)?;
    Ok(Part::of(range, progress, blocks))
}

/// Dissolves all runs in the claimed range, which are to lie in it as a whole. The caller has the turn
/// ([`Vm::moving`](super::Vm)).
pub(super) fn dissolve_all(env: Env<'_>, claim: &mut Claim<'_>) -> Result<(), Refused> {
    let mut batch = Batch { from: claim.range().start(), slots: BATCH * BLOCK_FRAMES };
    while let (Progress::Until(next), _) = dissolve_batch(env, claim, batch)? {
        batch.from = next;
    }
    Ok(())
}

/// Dissolves the runs of a batch; returns how far it came, and how many there were.
fn dissolve_batch(
    env: Env<'_>,
    claim: &mut Claim<'_>,
    batch: Batch,
) -> Result<(Progress, u64), Refused> {
    let space = &env.vm.space;
    let before = space.account().runs_dissolved;
    let progress = space.dissolve(env.guards, claim, batch);
    // Nobody else dissolves: that takes the turn.
    let dissolved = space.account().runs_dissolved - before;
    env.cpu.counters.add(Stat::Dissolved, dissolved);
    match progress {
        Ok(progress) => Ok((progress, dissolved)),
        Err(error) => Err(Refused::Broken(format!("cannot dissolve runs: {error}"))),
    }
}
