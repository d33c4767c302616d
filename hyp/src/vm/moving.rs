//! Moving guest memory to other frames while the guest runs.
//!
//! The order is that of every change of an output address, and each step waits for the one before it:
//!
//! | step | a fault in the range meanwhile |
//! | --- | --- |
//! | new frames are taken: all, or nothing is changed | |
//! | a policy is published that populates nothing there; grace period | tries again |
//! | what there is of blocks is split, contiguous runs are dissolved | meets Busy: tries again |
//! | unmap: Drain, one flush for a batch, grace period | meets Drain, or Empty: tries again |
//! | bytes are copied to the new frames, the old ones poisoned and given back | tries again |
//! | a policy is published that knows the new frames | installs the page's new frame |
//! | every page is installed that no fault has installed | likewise |
//! | the old policy is published again; grace period | |
//!
//! Poison makes a mistake visible: whoever still translates by an old entry reads it. Faults and the
//! mover race for the same slots, each with the same frame for a page, so whoever loses has
//! nothing to give back.
//!
//! One CPU moves at a time; a second is told so and does not wait.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hyp_abi::call::{MOVE_MAX, Stat};
use hyp_core::PaRange;
use stage2::claim::Claim;
use stage2::epoch::Cpu;
use stage2::space::{Batch, Notes, Progress, Release, SplitError};
use stage2::{Flushed, Former, Frames, Guard, InstallError, Ipa, IpaRange, Level, Pa, Tally, View};

use super::blocks::count_splits;
use super::copying::{copy_page, retire_page};
use super::outcome::Refused;
use super::payload::Source;
use super::run::Env;
use super::{Policy, Stage2, runs};
use crate::lock::relax;
use crate::mem::cache::BLOCK;
use crate::mem::{PAGE, clean, frames};

/// Slots that are taken away under one flush.
const BATCH: usize = 512;
/// Times that a page is tried again when the stock of table pages was empty.
const TRIES: usize = 4;

/// Memory on its way.
#[derive(Debug)]
pub(crate) struct Moving {
    /// All of RAM.
    ram: IpaRange,
    /// What is moved.
    range: IpaRange,
    /// Where each page is now, sorted by address; none while they are away.
    pages: Option<Box<[Page]>>,
}

/// A page on its way.
#[derive(Clone, Copy, Debug)]
struct Page {
    ipa: Ipa,
    frame: Pa,
}

/// The page that is on its way, for an install.
struct Its(Option<Pa>);

// SAFETY: (1) a frame of the VM's whose old mapping was flushed; (2) it was cleaned after the last byte.
unsafe impl Frames for Its {
    fn take(&mut self) -> Option<Pa> {
        self.0.take()
    }

    fn give_back(&mut self, _frame: Pa) {
        // The other CPU has installed the same frame.
    }
}

impl Moving {
    /// A fault at `page`, under the guard that saw this; `None` if it is not RAM.
    pub(super) fn fault(
        &self,
        env: Env<'_>,
        guard: &Guard<'_>,
        page: u64,
    ) -> Option<Result<(), InstallError>> {
        let ipa = Ipa::new(page);
        if !self.ram.contains(ipa) {
            return None;
        }
        let policy = env.vm.policy(guard);
        let mut tally = Tally::default();
        let space = &env.vm.space;
        let result = match &self.pages {
            None if self.range.contains(ipa) => {
                let met = space.lookup(guard, ipa).map(|lookup| lookup.view());
                let drained = matches!(met, Some(View::Drain(_)));
                env.cpu.counters.bump(if drained { Stat::Drained } else { Stat::Retries });
                return Some(Ok(()));
            }
            Some(pages) if let Some(frame) = frame_of(pages, ipa) => {
                space.install(guard, ipa, &policy.ram_page, &mut Its(Some(frame)), &mut tally)
            }
            _ => {
                let mut source = Source::new(&env.cpu.stock, &env.vm.plan.payload, page);
                space.install(guard, ipa, &policy.ram_page, &mut source, &mut tally)
            }
        };
        count(env, &tally);
        Some(match result {
            Ok(_) | Err(InstallError::Retry { .. }) => Ok(()),
            Err(InstallError::OutOfTables | InstallError::OutOfFrames) => Ok(()),
            Err(error) => Err(error),
        })
    }
}

/// Gives back what a move that went wrong has not mapped again; returns how many frames. No CPU runs the VM.
pub(super) fn abandon(moving: Moving, space: &Stage2, guards: &Cpu<'_>) -> u64 {
    let guard = guards.enter();
    let mut given = 0;
    for page in moving.pages.unwrap_or_default() {
        let held = space.lookup(&guard, page.ipa).map(|lookup| lookup.view());
        if !matches!(held, Some(View::Leaf(leaf)) if leaf.pa() == page.frame) {
            // SAFETY: (1) from the pool, by `Stash`; (2) it is not mapped, and no CPU is about to map it.
            unsafe { frames::give_back(page.frame.get(), 1) };
            given += 1;
        }
    }
    given
}

fn frame_of(pages: &[Page], ipa: Ipa) -> Option<Pa> {
    let at = pages.binary_search_by_key(&ipa, |page| page.ipa).ok()?;
    pages.get(at).map(|page| page.frame)
}

fn count(env: Env<'_>, tally: &Tally) {
    let counters = &env.cpu.counters;
    counters.add(Stat::Installed, tally.installed);
    counters.add(Stat::LostRaces, tally.lost_races);
    counters.add(Stat::Tables, tally.tables);
    counters.add(Stat::LostTables, tally.lost_tables);
}

/// Moves `bytes` bytes from `start`; returns how many pages there were. Called at a safe point.
pub(crate) fn move_memory(env: Env<'_>, start: u64, bytes: u64) -> Result<u64, Refused> {
    let Env { vm, cpu, guards } = env;
    let range = IpaRange::new(Ipa::new(start), bytes).map_err(|_| Refused::Invalid)?;
    if bytes > MOVE_MAX {
        return Err(Refused::Invalid);
    }
    let Some(_turn) = vm.moving.try_lock() else { return Err(Refused::Busy) };
    let (paged, blocks) = {
        let guard = guards.enter();
        let policy = vm.policy(&guard);
        (policy.ram, policy.blocks)
    };
    let ram = blocks.map_or(paged, |blocks| blocks.ram);
    let rest = rest(ram, range).ok_or(Refused::Invalid)?;
    let mut stash = Stash::new(range.pages() as usize)?;
    // Blocks that reach over an edge of the range are split, too.
    let claimed = if blocks.is_some() { whole_blocks(range) } else { Some(range) };
    let claimed = claimed.ok_or(Refused::Invalid)?;
    let mut claim = vm.space.claim(claimed).map_err(|_| Refused::Busy)?;

    publish(env, rest, Some(Moving { ram, range, pages: None }))?;
    if blocks.is_some() {
        // Nobody installs a block any more: the policy says so.
        split(env, &mut claim)?;
        runs::dissolve_all(env, &mut claim)?;
        drop(claim);
        claim = vm.space.claim(range).map_err(|_| Refused::Broken("the claim is lost".into()))?;
    }
    let mut batch = Batch { from: range.start(), slots: BATCH };
    while let Progress::Until(next) = vm
        .space
        .unmap(guards, &mut claim, batch, Notes::Keep, relax, &mut stash)
        .map_err(|error| Refused::Broken(format!("cannot unmap: {error}")))?
    {
        batch.from = next;
    }
    cpu.counters.add(Stat::TablesFreed, stash.tables);
    let pages: Box<[Page]> = core::mem::take(&mut stash.pages).into_boxed_slice();
    let moved = pages.len() as u64;
    // The guest may fetch instructions from the new frames.
    clean::instructions_for_guest();
    publish(env, rest, Some(Moving { ram, range, pages: Some(pages) }))?;
    for number in 0..moved as usize {
        install(env, number)?;
    }
    publish(env, paged, None)?;
    cpu.counters.add(Stat::Moved, moved);
    Ok(moved)
}

/// The range with all of each block that it touches.
fn whole_blocks(range: IpaRange) -> Option<IpaRange> {
    let start = range.start().align_down(BLOCK);
    let end = range.end().get().checked_next_multiple_of(BLOCK)?;
    IpaRange::new(start, end - start.get()).ok()
}

/// Splits the blocks of the claimed range, all of them.
fn split(env: Env<'_>, claim: &mut Claim<'_>) -> Result<(), Refused> {
    let space = &env.vm.space;
    let before = space.account();
    let mut batch = Batch { from: claim.range().start(), slots: BATCH };
    let mut tries = TRIES;
    let outcome = loop {
        if env.cpu.stock.is_low() {
            env.cpu.stock.refill();
        }
        match space.split(env.guards, claim, batch, Level::L3) {
            Ok(Progress::Done) => break Ok(()),
            Ok(Progress::Until(next)) => batch.from = next,
            Err(SplitError::OutOfTables { .. }) if tries > 0 => tries -= 1,
            Err(error) => break Err(Refused::Broken(format!("cannot split: {error}"))),
        }
    };
    count_splits(env, &before);
    outcome
}

/// A part of RAM outside the range.
fn rest(ram: IpaRange, range: IpaRange) -> Option<IpaRange> {
    if !ram.covers(&range) {
        return None;
    }
    let between = |start: Ipa, end: Ipa| IpaRange::new(start, end.get() - start.get()).ok();
    let (below, above) = (between(ram.start(), range.start()), between(range.end(), ram.end()));
    [below, above].into_iter().flatten().max_by_key(IpaRange::bytes)
}

/// Replaces the policy, and waits until nobody goes by the old one.
fn publish(env: Env<'_>, ram: IpaRange, moving: Option<Moving>) -> Result<(), Refused> {
    let guard = env.guards.enter();
    let now = env.vm.policy(&guard);
    let new = Policy {
        ram,
        blocks: now.blocks,
        moving,
        ram_page: now.ram_page,
        regions: now.regions.clone(),
    };
    drop(guard);
    let old = env.vm.policy.swap(Box::into_raw(Box::new(new)), Ordering::AcqRel);
    env.guards.wait(relax).map_err(|inside| Refused::Broken(format!("{inside}")))?;
    // SAFETY: (1) from a box, here or in `create`; (2) replaced, and everyone has been outside a guard
    // since.
    drop(unsafe { Box::from_raw(old) });
    Ok(())
}

/// Installs a page of those that are on their way, unless a fault has.
fn install(env: Env<'_>, number: usize) -> Result<(), Refused> {
    for _ in 0..TRIES {
        if env.cpu.stock.is_low() {
            env.cpu.stock.refill();
        }
        let guard = env.guards.enter();
        let policy = env.vm.policy(&guard);
        let pages = policy.moving.as_ref().and_then(|moving| moving.pages.as_deref());
        let Some(page) = pages.and_then(|pages| pages.get(number)) else { return Ok(()) };
        let (mut its, mut tally) = (Its(Some(page.frame)), Tally::default());
        let result = env.vm.space.install(&guard, page.ipa, &policy.ram_page, &mut its, &mut tally);
        count(env, &tally);
        match result {
            Ok(_) => return Ok(()),
            Err(InstallError::OutOfTables) => {}
            Err(error) => return Err(Refused::Broken(format!("cannot map again: {error}"))),
        }
    }
    Err(Refused::Broken("no table page is left to map moved memory again".into()))
}

/// Where unmapped pages go: each into a fresh frame.
struct Stash {
    fresh: Vec<u64>,
    pages: Vec<Page>,
    tables: u64,
}

impl Stash {
    /// Room and frames for `pages` pages.
    fn new(pages: usize) -> Result<Self, Refused> {
        let mut stash = Self { fresh: Vec::new(), pages: Vec::new(), tables: 0 };
        let room = stash.fresh.try_reserve_exact(pages).is_ok()
            && stash.pages.try_reserve_exact(pages).is_ok();
        if !room {
            return Err(Refused::NoMemory);
        }
        stash.fresh.resize(pages, 0);
        let taken = frames::take_batch(&mut stash.fresh);
        stash.fresh.truncate(taken);
        // What is short goes back when the stash is dropped.
        if taken < pages { Err(Refused::NoMemory) } else { Ok(stash) }
    }
}

impl Release for Stash {
    fn frame(&mut self, ipa: Ipa, former: &Former, _flushed: &Flushed) {
        // What was a block has been split, and there is a fresh frame for each.
        let Some(fresh) = self.fresh.pop() else { return };
        let old = former.pa().get();
        // SAFETY: (1) the old frame was flushed, the grace period is over, and nobody maps it; the new one was just
        // taken.
        unsafe { copy_page(old, fresh) };
        clean::for_guest(PaRange { start: fresh, end: fresh + PAGE });
        // SAFETY: (1) a page of guest RAM came from the pool; (2) as above.
        unsafe { retire_page(old) };
        self.pages.push(Page { ipa, frame: Pa::new(fresh) });
    }

    fn table(&mut self, _ipa: Ipa) {
        self.tables += 1;
    }
}

impl Drop for Stash {
    fn drop(&mut self) {
        // Pages are left only if the unmap stopped half way.
        let filled = self.pages.drain(..).map(|page| page.frame.get());
        for frame in self.fresh.drain(..).chain(filled) {
            // SAFETY: (1) taken in `new`; (2) never handed on: no policy has known it.
            unsafe { frames::give_back(frame, 1) };
        }
    }
}
