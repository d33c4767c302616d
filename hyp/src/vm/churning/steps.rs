//! The manager's steps: what a guest's calls do, by the same functions.

use alloc::format;
use alloc::string::String;

use hyp_core::IpaRange;
use hyp_core::churn::Step;
use stage2::space::{Batch, Progress};

use super::noted;
use crate::vm::outcome::{Part, Refused};
use crate::vm::run::Env;
use crate::vm::{ageing, blocks, copying, moving, runs};

/// Leaves that are write-protected under one flush.
const BATCH: usize = 4096;

/// Takes a step in RAM; returns how much it has changed. A harvest is the session's, and none here.
pub(super) fn take(env: Env<'_>, step: Step) -> Result<u64, Refused> {
    let counted = |part: Result<Part, Refused>| part.map(|part| part.count);
    match step {
        Step::Harvest => Ok(0),
        Step::WriteProtect(range) => write_protect(env, range),
        Step::Age(range) => counted(ageing::age(env, range.start, range.len(), 0)),
        Step::Split(range) => counted(blocks::split(env, range.start, range.len())),
        Step::Collapse(range) => counted(blocks::collapse(env, range.start, range.len())),
        Step::Copy { range, holes } => counted(copying::copy(env, range.start, range.len(), holes)),
        Step::Move(range) => moving::move_memory(env, range.start, range.len()),
        Step::Run { range, .. } => counted(runs::make(env, range.start, range.len())),
        Step::Dissolve(range) => counted(runs::dissolve(env, range.start, range.len())),
    }
}

/// Makes runs where blocks are split for it, and perhaps dissolves them; counts each.
///
/// # Errors
/// A step went wrong half way.
pub(super) fn run(env: Env<'_>, range: IpaRange, and_dissolve: bool) -> Result<(), String> {
    let step = |step: Step| noted(step.kind(), take(env, step));
    step(Step::Split(range))?;
    let made = step(Step::Run { range, and_dissolve })?;
    if and_dissolve && made.is_some_and(|made| made != 0) {
        step(Step::Dissolve(range))?;
    }
    Ok(())
}

/// Takes the permission to write from all leaves of whole blocks of RAM; returns how many had it. The policy stays: the next write of each
/// gives it back.
fn write_protect(env: Env<'_>, range: IpaRange) -> Result<u64, Refused> {
    let range = blocks::wanted(env, range.start, range.len())?;
    let (vm, guards) = (env.vm, env.guards);
    let Some(_turn) = vm.moving.try_lock() else { return Err(Refused::Busy) };
    let mut claim = vm.space.claim(range).map_err(|_| Refused::Busy)?;
    let before = vm.space.account().changed;
    let mut batch = Batch { from: range.start(), slots: BATCH };
    loop {
        match vm.space.write_protect(guards, &mut claim, batch) {
            Ok(Progress::Done) => break,
            Ok(Progress::Until(next)) => batch.from = next,
            Err(error) => {
                return Err(Refused::Broken(format!("cannot write-protect: {error}")));
            }
        }
    }
    // Nobody else changes protections: that takes the turn.
    Ok(vm.space.account().changed - before)
}
