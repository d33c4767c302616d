//! Addresses without memory: what becomes of an access there, and the call that says so.
//!
//! [`hyp_core::recovery`] says what a recovery window is. Here is what is done:
//!
//! ```text
//!  fault ── guard ── policy: a hole, scratch ── install_scratch ─┬ installed, or somebody's scratch ── count, record, resume
//!                                                                ├ memory by now, in transition ────── resume
//!                                                                └ cannot be ───────────────────────── abort in the guest
//! ```
//!
//! A fault takes no lock and allocates nothing but table pages from the CPU's stock, and prints nothing: it records
//! what has happened (`event/violations.rs`). One guard spans the look into the policy and the install, so whoever declares
//! another policy can wait for decisions that were made under the old one:
//!
//! | RECOVER | an access to a hole in the range meanwhile |
//! | --- | --- |
//! | the next policy is made: all that may be refused is found out | as before |
//! | it is published; grace period | by the one or the other |
//! | scratch pages are taken away, if it is `scratch` no longer: Drain, one flush for a batch, grace period | where one is, goes to it; else as it will be |
//!
//! Without the grace period a handler that decided by the old policy would install the scratch page behind the sweep.
//!
//! # The scratch page
//!
//! One for each life of the VM, from the pool, filled with [`PATTERN`]: what the guest of an earlier life has written is gone. A
//! guest that reads it finds no zeros, which would look like memory, and no valid descriptor, should it be walked as a table.

use alloc::format;
use alloc::string::String;
use core::ptr;
use core::sync::atomic::Ordering;

use aarch64_cpu::registers::{ESR_EL2, FAR_EL2, Readable};
use hyp_abi::call::{RANGE_MAX, RECOVER_NONE, Stat};
use hyp_core::PaRange;
use hyp_core::recovery::{Past, Recovery, SCRATCH_TABLES, WindowError, by_number};
#[cfg(feature = "measure")]
use hyp_core::report::Cause;
use hyp_core::violation::{Outcome, Sighting};
use stage2::fault::Abort;
use stage2::space::{Batch, Progress};
use stage2::{Claim, Guard, Install, InstallError, Ipa, IpaRange, Level, Pa, Scratch, Tally};

use super::fault::{diagnose, repeat};
use super::outcome::{Part, Refused};
use super::policy::{Room, plain, publish};
use super::populating::ToThePool;
use super::protecting::first_part;
use super::run::{Env, Step};
use super::vcpu::Vcpu;
use super::{Stage2, inject};
use crate::boot::Refusal;
use crate::cpu::PerCpu;
use crate::event::{trace, violations};
use crate::lock::{self, FaultPath, relax};
use crate::mem::cache::BLOCK;
use crate::mem::{PAGE, clean, frames};
use crate::platform::timer;
use crate::window;

/// What a scratch page is filled with, byte by byte. Bit 0 of every aligned word is 0: no descriptor is valid.
const PATTERN: u8 = 0x5c;

/// `ESR_EL2.ISS`: S1PTW.
const WALK: u64 = 1 << 7;

/// What one RECOVER does at the most, in bytes.
const PART: u64 = 64 * BLOCK;
/// Slots that are looked at under one flush.
const BATCH: usize = 4096;
/// Up to where a guest may have EL2's window opened: what it takes is given back at the VM's end only, 8 MiB of tables for all of it.
const CALLED_TO_EL2: Ipa = Ipa::new(4 << 30);

/// Makes the scratch page of a VM.
pub(super) fn page(space: &Stage2) -> Result<Scratch, Refusal> {
    let frame = frames::take(1).ok_or("no frame is left for the VM's scratch page")?;
    let page = ptr::with_exposed_provenance_mut::<u8>(frame as usize);
    // SAFETY: (1) just taken: a page that EL2 maps, and nobody else's.
    unsafe { page.write_bytes(PATTERN, PAGE as usize) };
    clean::for_guest(PaRange { start: frame, end: frame + PAGE });
    // SAFETY: (1) a page of RAM that `give_back` gives back, after the VM's end; (2) filled and cleaned, with its DSB;
    // (3) it goes with the VM.
    Ok(unsafe { space.scratch(Pa::new(frame)) }?)
}

/// Gives it back.
///
/// # Safety
/// 1. The VM's tables are gone, and no CPU has the VM.
pub(super) unsafe fn give_back(scratch: &Scratch) {
    let frame = scratch.pa().get();
    trace::frame_given_back(frame, PAGE);
    // SAFETY: (1) from the pool, by `page`, and given back once; (2) the caller's clause.
    unsafe { frames::give_back(frame, 1) };
}

/// A guest has reached for `page`, where it has no memory, and goes on without: it gets the scratch page. Not by a fetch. The guard
/// is the one under which that was decided.
#[inline(always)]
pub(super) fn scratch(
    env: Env<'_>,
    guard: Guard<'_>,
    vcpu: &mut Vcpu,
    esr: u64,
    page: Ipa,
) -> Step {
    let Env { vm, cpu, .. } = env;
    let path = lock::fault_path(cpu);
    if let Err(why) = show(env, &guard, page) {
        return not_shown(env, vcpu, (path, guard), page, why);
    }
    drop(guard);
    let ticks = timer::ticks();
    if let Err(past) = vm.meter.count(&vm.plan.quota, ticks / vm.plan.frequency) {
        return too_many(env, vcpu, path, page, past);
    }
    cpu.counters.bump(Stat::Recovered);
    record(cpu, vcpu, esr, page, (ticks, Outcome::Scratch));
    #[cfg(feature = "measure")]
    cpu.timing.is(Cause::Recover);
    Step::Resume
}

/// The same, apart from a path on which it is rare.
#[inline(never)]
pub(super) fn scratch_apart(env: Env<'_>, guard: Guard<'_>, vcpu: &mut Vcpu, page: Ipa) -> Step {
    scratch(env, guard, vcpu, ESR_EL2.get(), page)
}

/// Shows the scratch page at `page`, for a fault of the guest's or of EL2's, under the guard by which that was decided; or
/// somebody else has. Outside of RAM it takes [`SCRATCH_TABLES`] at the most, and the two or three that each CPU on its way may link.
#[inline(always)]
pub(super) fn show(env: Env<'_>, guard: &Guard<'_>, page: Ipa) -> Result<(), NotShown> {
    let Env { vm, cpu, .. } = env;
    let is_full = vm.outlying.load(Ordering::Relaxed) >= SCRATCH_TABLES;
    if is_full && takes_table(env, guard, page) {
        return Err(NotShown::Full);
    }
    let mut tally = Tally::default();
    let end = vm.space.install_scratch(guard, page, &vm.scratch, &mut tally);
    if (tally.tables | tally.lost_tables) != 0 {
        linked(env, guard, page, &tally);
    }
    match end {
        Ok(Install::Installed(_)) => {
            cpu.counters.bump(Stat::Scratched);
            trace::published();
            Ok(())
        }
        // Another CPU has reached for it, too.
        Ok(Install::Present(leaf)) if vm.scratch.is_behind(&leaf) => Ok(()),
        Ok(Install::Present(_)) => Err(NotShown::Memory),
        Err(error) => Err(NotShown::Error(error)),
    }
}

/// Why the scratch page is not shown.
pub(super) enum NotShown {
    /// Memory is there by now.
    Memory,
    /// Scratch took as many tables as it may.
    Full,
    /// It cannot be.
    Error(InstallError),
}

/// Records what a vCPU has reached for, when, and what comes of it.
#[inline(always)]
fn record(cpu: &PerCpu, vcpu: &Vcpu, esr: u64, page: Ipa, (ticks, outcome): (u64, Outcome)) {
    let va = FAR_EL2.get();
    let sighting = Sighting {
        ticks,
        esr,
        pc: vcpu.context.pc,
        va,
        ipa: Some(address(esr, page, va)),
        el: vcpu.context.exception_level(),
        outcome,
    };
    violations::record(cpu, &sighting);
}

/// The address of an access to `page`: on a walk of stage 1 no more is known than that.
#[inline(always)]
fn address(esr: u64, page: Ipa, va: u64) -> u64 {
    let offset = if esr & WALK != 0 { 0 } else { va & (PAGE - 1) };
    page.get() | offset
}

/// Whether the scratch page at `at`, outside of RAM, would take another table.
#[cold]
fn takes_table(env: Env<'_>, guard: &Guard<'_>, at: Ipa) -> bool {
    let found = env.vm.space.lookup(guard, at);
    !env.vm.policy(guard).main.contains(at) && found.is_none_or(|found| found.level != Level::L3)
}

/// Counts the tables that the scratch page took on its way to `at`. A bounded number of them lies outside of RAM, whose tables
/// RAM needs anyway.
#[cold]
fn linked(env: Env<'_>, guard: &Guard<'_>, at: Ipa, tally: &Tally) {
    let Env { vm, cpu, .. } = env;
    cpu.counters.add(Stat::Tables, tally.tables);
    cpu.counters.add(Stat::LostTables, tally.lost_tables);
    if !vm.policy(guard).main.contains(at) {
        vm.outlying.fetch_add(tally.tables, Ordering::Relaxed);
    }
}

/// The scratch page is not at `page`, and this is why. The fault path ends here.
#[cold]
fn not_shown(
    env: Env<'_>,
    vcpu: &mut Vcpu,
    held: (FaultPath<'_>, Guard<'_>),
    page: Ipa,
    why: NotShown,
) -> Step {
    drop(held);
    let stat = match why {
        NotShown::Memory => Stat::Spurious,
        NotShown::Error(InstallError::Retry { .. }) => Stat::Retries,
        // Nothing is held: as at a safe point. If memory is used up there will be no table.
        NotShown::Error(InstallError::OutOfTables) if env.cpu.stock.refill() => Stat::Retries,
        // There is no place for a page: no table, or what is there is larger, or says something else.
        NotShown::Full | NotShown::Error(_) => return refuse(env, vcpu, page),
    };
    env.cpu.counters.bump(stat);
    repeat(env, vcpu, page.get())
}

/// More has been recovered than may be: the VM ends. The fault path, too.
#[cold]
fn too_many(env: Env<'_>, vcpu: &mut Vcpu, path: FaultPath<'_>, page: Ipa, past: Past) -> Step {
    drop(path);
    stop(env, vcpu, page, Some(format!("{past}")))
}

/// A guest has reached for `page`, where it has no memory: it hears of it by an abort of its own.
#[cold]
pub(super) fn refuse(env: Env<'_>, vcpu: &mut Vcpu, page: Ipa) -> Step {
    let esr = ESR_EL2.get();
    let Some(abort) = Abort::new(esr) else { return diagnose(env, vcpu, Some(page.get()), None) };
    env.cpu.counters.bump(Stat::Injected);
    record(env.cpu, vcpu, esr, page, (timer::ticks(), Outcome::Injected));
    inject::instead_of(env, &mut vcpu.context, abort, Some(page));
    Step::Resume
}

/// A guest has reached for `page`, where it has no memory: the VM ends.
#[cold]
pub(super) fn stop(env: Env<'_>, vcpu: &mut Vcpu, page: Ipa, hint: Option<String>) -> Step {
    let esr = ESR_EL2.get();
    record(env.cpu, vcpu, esr, page, (timer::ticks(), Outcome::Stopped));
    diagnose(env, vcpu, Some(address(esr, page, FAR_EL2.get())), hint)
}

/// Declares the first part of a range a recovery window, or none. Called at a safe point.
pub(crate) fn recover(env: Env<'_>, start: u64, bytes: u64, number: u64) -> Result<Part, Refused> {
    let Env { vm, cpu, guards } = env;
    let policy = match number {
        RECOVER_NONE => None,
        number => Some(by_number(number).ok_or(Refused::Invalid)?),
    };
    let whole = IpaRange::new(Ipa::new(start), bytes).map_err(|_| Refused::Invalid)?;
    if bytes > RANGE_MAX {
        return Err(Refused::Invalid);
    }
    let Some(_turn) = vm.moving.try_lock() else { return Err(Refused::Busy) };
    let range = first_part(whole, PART);
    let (room, ram) = {
        let guard = guards.enter();
        let now = vm.policy(&guard);
        let map = vm.plan.map();
        // If all of it cannot be none of it is.
        drop(now.windows.with(plain(whole), policy, &map).map_err(refused)?);
        let next = now.windows.with_part(plain(range), policy, &map).map_err(refused)?;
        (Room::opening(now, next)?, now.main)
    };
    let claim = vm.space.claim(range).map_err(|_| Refused::Busy)?;
    if policy == Some(Recovery::Scratch) && range.end() <= CALLED_TO_EL2 {
        open_to_el2(&vm.space, cpu, ram, plain(range)).map_err(|_| Refused::NoMemory)?;
    }
    publish(env, room, None)?;
    let stays = policy == Some(Recovery::Scratch);
    let count = if stays { 0 } else { take_away(env, claim)? };
    Ok(Part { bytes: range.bytes(), count })
}

/// Makes the first part of a range outside of RAM, all of it in windows, holes again. Called at a safe point.
pub(super) fn release(env: Env<'_>, range: IpaRange) -> Result<Part, Refused> {
    let Some(_turn) = env.vm.moving.try_lock() else { return Err(Refused::Busy) };
    let range = first_part(range, PART);
    take_away(env, env.vm.space.claim(range).map_err(|_| Refused::Busy)?)?;
    Ok(Part { bytes: range.bytes(), count: 0 })
}

/// Takes the scratch pages of a claimed range away; returns how many. The caller has the turn.
fn take_away(env: Env<'_>, mut claim: Claim<'_>) -> Result<u64, Refused> {
    let Env { vm, cpu, guards } = env;
    let before = vm.space.account();
    let outside = {
        let guard = guards.enter();
        !vm.policy(&guard).main.overlaps(&claim.range())
    };
    // Of the VM's nothing goes, but what an operation that was given up has left behind.
    let mut pool = ToThePool::default();
    let mut batch = Batch { from: claim.range().start(), slots: BATCH };
    while let Progress::Until(next) = vm
        .space
        .remove_scratch(guards, &mut claim, batch, &vm.scratch, relax, &mut pool)
        .map_err(|error| Refused::Broken(format!("cannot take scratch pages away: {error}")))?
    {
        batch.from = next;
    }
    cpu.counters.add(Stat::TablesFreed, pool.tables);
    if outside {
        let fewer = pool.tables.min(vm.outlying.load(Ordering::Relaxed));
        // Who has the turn is the only one to count them off.
        vm.outlying.fetch_sub(fewer, Ordering::Relaxed);
    }
    // Nobody else takes any away without the turn.
    Ok(vm.space.account().others_unmapped - before.others_unmapped)
}

/// Lets EL2 reach a window as the guest does, where that is not RAM. For a safe point.
pub(super) fn open_to_el2(
    space: &Stage2,
    cpu: &PerCpu,
    ram: IpaRange,
    range: hyp_core::IpaRange,
) -> Result<(), Refusal> {
    match IpaRange::new(Ipa::new(range.start), range.len()) {
        Ok(range) if !ram.covers(&range) => Ok(window::open(space, cpu, range)?),
        _ => Ok(()),
    }
}

fn refused(why: WindowError) -> Refused {
    match why {
        WindowError::TooMany { .. } | WindowError::NoMemory(_) => Refused::NoMemory,
        _ => Refused::Invalid,
    }
}
