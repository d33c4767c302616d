//! POPULATE and RELEASE: a part of RAM is mapped before it is touched, or is as if it had never been touched.
//!
//! POPULATE does what faults do, one page or block after the other, by the same lock-free installs under the same policy; so it
//! needs nobody's turn, and several vCPUs may populate at once. It stops where a slot is in transition.
//!
//! RELEASE takes the range away as a move does, under a policy by which nothing is populated there, and has nothing to
//! put back:
//!
//! | step | a fault in the range meanwhile |
//! | --- | --- |
//! | a policy is published that populates nothing there; grace period | tries again |
//! | blocks and runs that reach over an edge are split, dissolved | meets Busy: tries again |
//! | unmap: Drain, one flush for a batch, grace period; frames are poisoned and given back | tries again |
//! | the old policy is published again; grace period | is populated anew |

use alloc::format;

use hyp_abi::call::Stat;
use stage2::space::{Batch, Notes, Progress, Release};
use stage2::{Flushed, Former, Ipa, IpaRange, View};

use super::copying::retire_page;
use super::fault::Populate;
use super::moving::Moving;
use super::outcome::{Part, Refused};
use super::policy::{Room, publish};
use super::protecting::{first_part, wanted};
use super::run::Env;
use super::{blocks, edges};
use crate::event::trace;
use crate::lock::relax;
use crate::mem::PAGE;
use crate::mem::cache::BLOCK;

/// Bytes that one call maps, at the most: those are zeroed.
const POPULATED: u64 = 2 * BLOCK;
/// Bytes of a range that one call looks at, at the most.
const LOOKED: u64 = 16 * BLOCK;
/// Bytes that one call gives back, at the most: those are poisoned.
const RELEASED: u64 = 8 * BLOCK;
/// Slots that are taken away under one flush.
const BATCH: usize = 4096;
/// Times that a page is tried again when the stock was empty.
const TRIES: usize = 4;

/// Maps the first part of a range. Called at a safe point.
pub(crate) fn populate(env: Env<'_>, start: u64, bytes: u64) -> Result<Part, Refused> {
    let range = wanted(env, start, bytes)?;
    let end = first_part(range, LOOKED).end();
    let (mut at, mut mapped, mut count) = (range.start(), 0, 0);
    let mut tries = TRIES;
    while at < end && mapped < POPULATED {
        if env.cpu.stock.is_low() {
            env.cpu.stock.refill();
        }
        match one(env, at) {
            Ok((leaf, is_new)) => {
                if is_new {
                    count += 1;
                    mapped += leaf.bytes();
                }
                at = leaf.end();
                tries = TRIES;
            }
            Err(Refused::NoMemory) if tries > 0 => tries -= 1,
            // What is done is done.
            Err(Refused::NoMemory | Refused::Busy) if at > range.start() => break,
            Err(why) => return Err(why),
        }
    }
    let bytes = at.min(range.end()).get() - range.start().get();
    Ok(Part { bytes, count })
}

/// Maps the page of RAM at `at`, or the block that it is in; returns what is mapped there, and whether it was not before.
pub(super) fn one(env: Env<'_>, at: Ipa) -> Result<(IpaRange, bool), Refused> {
    let guard = env.guards.enter();
    let policy = env.vm.policy(&guard);
    // Who moves memory has its pages, and wants no blocks.
    if policy.moving.is_some() {
        return Err(Refused::Busy);
    }
    let is_new = match blocks::fault(env, &guard, policy, at.get()) {
        Populate::Done => true,
        Populate::Present { .. } => false,
        Populate::Again => {
            let empty = !env.cpu.stock.has(1);
            return Err(if empty { Refused::NoMemory } else { Refused::Busy });
        }
        Populate::Failed(error) => {
            return Err(Refused::Broken(format!("cannot populate: {error}")));
        }
        Populate::Elsewhere => return Err(Refused::Invalid),
    };
    let found = env.vm.space.lookup(&guard, at).map(|lookup| lookup.view());
    drop(guard);
    // On its way already.
    let Some(View::Leaf(leaf)) = found else { return Err(Refused::Busy) };
    let bytes = leaf.level().slot_bytes();
    if is_new && bytes == BLOCK {
        env.cpu.stock.refill_block();
    }
    let leaf = IpaRange::new(at.align_down(bytes), bytes).map_err(|_| Refused::Invalid)?;
    Ok((leaf, is_new))
}

/// Takes the first part of a range away. Called at a safe point.
pub(crate) fn release(env: Env<'_>, start: u64, bytes: u64) -> Result<Part, Refused> {
    let Env { vm, cpu, guards } = env;
    let range = first_part(wanted(env, start, bytes)?, RELEASED);
    let Some(_turn) = vm.moving.try_lock() else { return Err(Refused::Busy) };
    drop(vm.space.claim(range).map_err(|_| Refused::Busy)?);
    let [first, last] = [Room::new(env)?, Room::new(env)?];
    edges::prepare(env)?;

    publish(env, first, Some(Moving::away(range)))?;
    edges::free(env, range)?;
    let gone = |why| Refused::Broken(format!("what is released cannot be claimed: {why}"));
    let mut claim = vm.space.claim(range).map_err(gone)?;
    let mut batch = Batch { from: range.start(), slots: BATCH };
    let mut pool = ToThePool::default();
    while let Progress::Until(next) = vm
        .space
        .unmap(guards, &mut claim, batch, Notes::Keep, relax, &mut pool)
        .map_err(|error| Refused::Broken(format!("cannot unmap: {error}")))?
    {
        batch.from = next;
    }
    publish(env, last, None)?;
    cpu.counters.add(Stat::TablesFreed, pool.tables);
    cpu.counters.add(Stat::Released, pool.pages);
    Ok(Part { bytes: range.bytes(), count: pool.pages })
}

/// Where released memory goes.
#[derive(Default)]
struct ToThePool {
    pages: u64,
    tables: u64,
}

impl Release for ToThePool {
    fn frame(&mut self, _ipa: Ipa, former: &Former, _flushed: &Flushed) {
        let (first, bytes) = (former.pa().get(), former.level().slot_bytes());
        trace::frame_given_back(first, bytes);
        for page in (first..first + bytes).step_by(PAGE as usize) {
            // SAFETY: (1) RAM is mapped by pages and blocks from the pool; (2) it was flushed, the grace period is over,
            // and nobody maps it.
            unsafe { retire_page(page) };
        }
        self.pages += bytes / PAGE;
    }

    fn table(&mut self, _ipa: Ipa) {
        self.tables += 1;
    }
}
