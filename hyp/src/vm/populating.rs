//! POPULATE and RELEASE: a part of RAM is mapped before it is touched, or is as if it had never been touched.
//!
//! POPULATE does what faults do, one page or block after the other, by the same lock-free installs under the same policy; so it
//! needs nobody's turn, and several vCPUs may populate at once. It stops where a slot is in transition.
//!
//! In a [recovery window](super::recovery) POPULATE is what gives memory to RAM, by pages. Where the scratch page is shown by then, it
//! takes turn and claim, and puts memory in its place: Drain, one flush for a batch, grace period, the pages. An access
//! meanwhile waits.
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

use hyp_abi::call::{RANGE_MAX, Stat};
use stage2::space::{Batch, Notes, Progress, Release, ReplaceError, Replacements};
use stage2::{Flushed, Former, Frames, Ipa, IpaRange, Owner, Pa, View};

use super::copying::retire_page;
use super::fault::Populate;
use super::moving::Moving;
use super::outcome::{Part, Refused};
use super::payload::Source;
use super::policy::{Room, plain, publish};
use super::protecting::{first_part, wanted};
use super::run::Env;
use super::{blocks, edges, recovery};
use crate::event::trace;
use crate::lock::relax;
use crate::mem::PAGE;
use crate::mem::cache::{BLOCK, BLOCK_FRAMES, FULL, wipe};

/// Bytes that one call maps, at the most: those are zeroed.
const POPULATED: u64 = 2 * BLOCK;
/// Bytes of a range that one call looks at, at the most.
const LOOKED: u64 = 16 * BLOCK;
/// Bytes that one call gives back, at the most: those are poisoned.
const RELEASED: u64 = 8 * BLOCK;
/// Slots that are taken away under one flush.
const BATCH: usize = 4096;
/// Times that a page is tried again when the stock was empty, or somebody else has just changed it.
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
            Ok((_, Found::Scratch)) => match unscratch(env, at, end) {
                // Another vCPU was faster, and a third may take it away again.
                Ok(0) if tries > 0 => tries -= 1,
                Ok(0) if at > range.start() => break,
                Ok(0) => return Err(Refused::Busy),
                // The page itself is looked at again.
                Ok(pages) => {
                    count += pages;
                    mapped += pages * PAGE;
                }
                Err(Refused::NoMemory | Refused::Busy) if at > range.start() => break,
                Err(why) => return Err(why),
            },
            Ok((leaf, found)) => {
                if found == Found::Nothing {
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

/// What was mapped where RAM was to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing: memory is now.
    Nothing,
    /// Memory.
    Memory,
    /// The scratch page, which is there still.
    Scratch,
}

/// Maps the page of RAM at `at`, or the block that it is in; returns what is mapped there, and what was before.
pub(super) fn one(env: Env<'_>, at: Ipa) -> Result<(IpaRange, Found), Refused> {
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
    };
    let found = env.vm.space.lookup(&guard, at).map(|lookup| lookup.view());
    drop(guard);
    // On its way already.
    let Some(View::Leaf(leaf)) = found else { return Err(Refused::Busy) };
    let bytes = leaf.level().slot_bytes();
    if is_new && bytes == BLOCK {
        env.cpu.stock.refill_block();
    }
    let range = IpaRange::new(at.align_down(bytes), bytes).map_err(|_| Refused::Invalid)?;
    let found = match is_new {
        true => Found::Nothing,
        false if leaf.owner() == Owner::Other => Found::Scratch,
        false => Found::Memory,
    };
    Ok((range, found))
}

/// Puts memory where the scratch page is shown, from `at` on, within the same 2 MiB and up to `end`; returns how many pages.
fn unscratch(env: Env<'_>, at: Ipa, end: Ipa) -> Result<u64, Refused> {
    let Env { vm, cpu, guards } = env;
    let Some(_turn) = vm.moving.try_lock() else { return Err(Refused::Busy) };
    let end = end.get().min(at.align_down(BLOCK).get().saturating_add(BLOCK));
    let most = IpaRange::new(at, end.saturating_sub(at.get())).map_err(|_| Refused::Invalid)?;
    let (range, mapping) = {
        let guard = guards.enter();
        let policy = vm.policy(&guard);
        // All of it is mapped alike, or it is a page.
        let alike = Some(most).filter(|most| policy.is_limited_alike(*most));
        let range = alike.or_else(|| IpaRange::page_of(at)).ok_or(Refused::Invalid)?;
        (range, *policy.page(at))
    };
    let mut claim = vm.space.claim(range).map_err(|_| Refused::Busy)?;
    if !cpu.stock.has(FULL) {
        cpu.stock.refill();
    }
    let batch = Batch { from: at, slots: BLOCK_FRAMES };
    let mut pages = Fresh(env);
    let scratch = &vm.scratch;
    match vm.space.replace_scratch(guards, &mut claim, batch, scratch, &mapping, &mut pages, relax)
    {
        Ok(replaced) => Ok(replaced.replaced),
        Err(ReplaceError::OutOfFrames { .. }) => Err(Refused::NoMemory),
        Err(error) => Err(Refused::Broken(format!("no memory in the place of scratch: {error}"))),
    }
}

/// Pages of RAM as their first touch finds them.
struct Fresh<'a>(Env<'a>);

// SAFETY: (1) frames of the stock, which are pages of RAM that are nobody else's, and come back to the pool only against a
// completed flush; (2) zeroed and cleaned, or filled and cleaned, each with its DSB.
unsafe impl Replacements for Fresh<'_> {
    fn take(&mut self, ipa: Ipa) -> Option<Pa> {
        Source::new(&self.0.cpu.stock, &self.0.vm.plan.payload, ipa.get()).take()
    }

    fn give_back(&mut self, _ipa: Ipa, page: Pa) {
        // SAFETY: (1) taken above, and never mapped. It may hold bytes of the payload.
        unsafe { wipe(page.get(), PAGE) };
        trace::frame_given_back(page.get(), PAGE);
        // There is room: it was taken from here.
        let _fits = self.0.cpu.stock.put_back(page.get());
    }
}

/// Takes the first part of a range away. Called at a safe point.
pub(crate) fn release(env: Env<'_>, start: u64, bytes: u64) -> Result<Part, Refused> {
    let Env { vm, cpu, guards } = env;
    if let Some(holes) = in_windows(env, start, bytes) {
        return recovery::release(env, holes);
    }
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

/// The range of a call, if it is in windows outside of RAM, all of it.
fn in_windows(env: Env<'_>, start: u64, bytes: u64) -> Option<IpaRange> {
    let range = IpaRange::new(Ipa::new(start), bytes).ok().filter(|_| bytes <= RANGE_MAX)?;
    let guard = env.guards.enter();
    let policy = env.vm.policy(&guard);
    (!policy.main.overlaps(&range) && policy.windows.cover(plain(range))).then_some(range)
}

/// Where released memory goes.
#[derive(Default)]
pub(super) struct ToThePool {
    pages: u64,
    pub(super) tables: u64,
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
