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

use alloc::format;
use alloc::vec::Vec;

use hyp_abi::call::{MOVE_MAX, Stat};
use hyp_core::PaRange;
use stage2::epoch::Cpu;
use stage2::space::{Batch, Notes, Progress, Release};
use stage2::{
    Flushed, Former, Frames, Guard, Install, InstallError, Ipa, IpaRange, Level, Pa, Tally, View,
};

use super::copying::{copy_page, retire_page};
use super::outcome::Refused;
use super::payload::Source;
use super::policy::{Room, publish};
use super::run::Env;
use super::{Stage2, edges, protecting};
use crate::lock::relax;
use crate::mem::{PAGE, clean, frames};

/// Slots that are taken away under one flush.
const BATCH: usize = 512;
/// Times that a page is tried again when the stock of table pages was empty.
const TRIES: usize = 4;

/// Memory on its way.
#[derive(Debug)]
pub(crate) struct Moving {
    /// What is moved.
    range: IpaRange,
    /// Where each page is now, sorted by address; none while they are away.
    pages: Option<Vec<Page>>,
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
    /// A range of which nothing is mapped, and nothing is to be.
    pub(super) const fn away(range: IpaRange) -> Self {
        Self { range, pages: None }
    }

    /// What is moved.
    pub(super) const fn range(&self) -> IpaRange {
        self.range
    }

    /// A fault at `page`, under the guard that saw this; `None` if it is not RAM, or a hole that nothing is on its way to.
    pub(super) fn fault(
        &self,
        env: Env<'_>,
        guard: &Guard<'_>,
        page: u64,
    ) -> Option<Result<(), InstallError>> {
        let ipa = Ipa::new(page);
        let policy = env.vm.policy(guard);
        if !policy.main.contains(ipa) {
            return None;
        }
        let mapping = policy.page(ipa);
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
                space.install(guard, ipa, mapping, &mut Its(Some(frame)), &mut tally)
            }
            _ if !policy.is_populated(ipa) => return None,
            _ => {
                let mut source = Source::new(&env.cpu.stock, &env.vm.plan.payload, page);
                space.install(guard, ipa, mapping, &mut source, &mut tally)
            }
        };
        count(env, &tally);
        if let Ok(Install::Installed(_)) = result {
            protecting::installed(env, guard, ipa, Level::L3);
        }
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
    {
        let guard = guards.enter();
        let main = vm.policy(&guard).main;
        if !main.covers(&range) || main == range {
            return Err(Refused::Invalid);
        }
    }
    let mut stash = Stash::new(range.pages() as usize)?;
    let [first, second, last] = [Room::new(env)?, Room::new(env)?, Room::new(env)?];
    edges::prepare(env)?;

    publish(env, first, Some(Moving::away(range)))?;
    // Nobody installs a block any more: the policy says so.
    edges::pages_only(env, range)?;
    let gone = |why| Refused::Broken(format!("what is moved cannot be claimed: {why}"));
    let mut claim = vm.space.claim(range).map_err(gone)?;
    let mut batch = Batch { from: range.start(), slots: BATCH };
    while let Progress::Until(next) = vm
        .space
        .unmap(guards, &mut claim, batch, Notes::Keep, relax, &mut stash)
        .map_err(|error| Refused::Broken(format!("cannot unmap: {error}")))?
    {
        batch.from = next;
    }
    cpu.counters.add(Stat::TablesFreed, stash.tables);
    // As it is: a list without spare room would be another allocation.
    let pages = core::mem::take(&mut stash.pages);
    let moved = pages.len() as u64;
    // The guest may fetch instructions from the new frames.
    clean::instructions_for_guest();
    publish(env, second, Some(Moving { range, pages: Some(pages) }))?;
    for number in 0..moved as usize {
        install(env, number)?;
    }
    publish(env, last, None)?;
    cpu.counters.add(Stat::Moved, moved);
    Ok(moved)
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
        let result =
            env.vm.space.install(&guard, page.ipa, policy.page(page.ipa), &mut its, &mut tally);
        count(env, &tally);
        match result {
            Ok(_) => {
                protecting::installed(env, &guard, page.ipa, Level::L3);
                return Ok(());
            }
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
