//! Stage-2 Permission and Access flag faults: the leaf is there, and gets what the access needs, or the guest has
//! done what it may not.
//!
//! | the access, as stage 2 finds it | what happens |
//! | --- | --- |
//! | the policy allows it | one exchange gives the leaf what is missing: AF, the permission, the dirty record; resume |
//! | the leaf allows it already | another vCPU was faster, or this CPU's TLB held something older: it is flushed; resume |
//! | meets a slot in transition, or none | back to the guest, which faults again |
//! | in a contiguous run | the run is dissolved, and the guest faults again |
//! | the policy does not allow it | the guest takes an abort ([`inject`]) |
//!
//! A dirty log without hardware's help comes down to this: write-protected by the log, the first write of a page ends here,
//! lock-free, under the guard that spans the look at the policy and the exchange.
//!
//! # Which page
//!
//! HPFAR_EL2 holds the address for Access flag faults and for any fault on a stage-1 walk (S1PTW). For a Permission fault
//! elsewhere it is UNKNOWN (D24.2.76), and FAR_EL2 is translated by `AT S1E1R`: stage 1 alone, so that no second permission
//! fault can come of it, and as a read at EL1, which stage 1 has allowed wherever it allowed the access. Another vCPU
//! may have changed stage 1 since, or taken away what the walk needs: if the translation fails, or is to no RAM, the guest goes
//! back and faults again; and if it is to another page, that is given what the policy allows anyway.
//!
//! # What the access needs
//!
//! WnR says so, but for two kinds of accesses. On a stage-1 walk it is set when hardware was updating the guest's
//! descriptor, which is a write and dirties the table's page \[RBDJJL\], and may be clear even then if an atomic instruction
//! was the cause (D24.2.46, WnR). For cache maintenance it is always set. Both count as what is allowed of reading and
//! writing. If a write is not allowed and the next fault is the same, though this CPU's TLB was flushed, a write it was.

use alloc::format;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{ESR_EL2, FAR_EL2, HPFAR_EL2, PAR_EL1, Readable, Writeable};
use hyp_abi::call::Stat;
use hyp_core::syndrome::{Abort, Syndrome};
use hyp_core::violation::{Outcome, Sighting};
use stage2::{Ipa, IpaRange, Level, Prot, RelaxError, Relaxed};

use super::create::RAM;
use super::fault::{diagnose, repeat};
use super::run::{Env, Step, decoded};
use super::vcpu::Vcpu;
use super::{inject, runs};
use crate::cpu::PerCpu;
use crate::event::violations;
use crate::mem::PAGE;
use crate::platform::timer;

/// Members of a contiguous run.
const RUN: u64 = 16;
/// `ESR_EL2.ISS`: S1PTW.
const WALK: u64 = 1 << 7;
/// `ESR_EL2.ISS`, data aborts: CM.
const MAINTENANCE: u64 = 1 << 8;
/// `ESR_EL2.ISS`, data aborts: WnR.
const WRITE: u64 = 1 << 6;
/// `ESR_EL2.EC`, bit 2: a data abort, where it is an abort from the guest.
const DATA: u64 = 1 << 28;
/// Fault status 0b0011LL and not 0b0010LL.
const PERMISSION: u64 = 1 << 2;
/// `SPSR_EL2.M`, bits 3:2: the Exception level.
const EXCEPTION_LEVEL: u64 = 0b11 << 2;
/// `PAR_EL1.F`.
const FAILED: u64 = 1;
/// `PAR_EL1.PA`: bits 51:12.
const PAR_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// EC, but for the bit that tells fetches from data, and status, but for the level.
const ABORT: u64 = 0b11_1011 << 26 | 0b11_1100;
/// The bits that make a data abort a store's, and no walk's and no maintenance's.
const STORE: u64 = DATA | WALK | MAINTENANCE | WRITE;
/// A Permission fault of a store: of `ABORT` and `STORE` these.
const STORED: u64 = 0x20 << 26 | 0b00_1100 | DATA | WRITE;

/// Whether a syndrome is that of an Access flag or Permission fault from the guest: EC 0x20 (fetch) or 0x24 (load,
/// store), fault status 0b0010LL or 0b0011LL.
const fn is_refault(esr: u64) -> bool {
    esr >> 26 & 0b11_1011 == 0x20 && esr & 0b11_1000 == 0b00_1000
}

/// Handles a synchronous exit that is no translation fault.
// One call for all of these, and decided here: what more the loop around the guest had to do it would do for
// populate faults, too, if it were only a copy of `env`.
#[inline(never)]
pub(super) fn or_else(env: &Env<'_>, vcpu: &mut Vcpu, esr: u64) -> Step {
    let env = *env;
    if esr & (ABORT | STORE) == STORED {
        return write(env, vcpu, esr);
    }
    if is_refault(esr) { fault(env, vcpu, esr) } else { decoded(env, vcpu, Syndrome(esr)) }
}

/// A Permission fault of a store, not on a walk: what a write to a clean page takes.
#[inline(always)]
fn write(env: Env<'_>, vcpu: &mut Vcpu, esr: u64) -> Step {
    let Env { vm, cpu, guards } = env;
    let Some(page) = accessed() else { return fault(env, vcpu, esr) };
    let at = Ipa::new(page);
    let guard = guards.enter();
    if vm.policy(&guard).ram.contains(at)
        && let Ok(Relaxed::Granted(_)) = vm.space.relax(&guard, at, Prot::WRITE, &page_of_ram)
    {
        drop(guard);
        return granted(cpu);
    }
    drop(guard);
    fault(env, vcpu, esr)
}

/// What is allowed in a page of [`Policy::ram`](super::policy::Policy); a block may reach beyond that.
#[inline(always)]
fn page_of_ram(level: Level) -> Option<Prot> {
    (level == Level::L3).then_some(RAM)
}

#[inline(always)]
fn granted(cpu: &PerCpu) -> Step {
    cpu.counters.bump(Stat::Faults);
    cpu.counters.bump(Stat::Relaxed);
    #[cfg(feature = "measure")]
    cpu.timing.relaxed();
    Step::Resume
}

/// Handles an Access flag or Permission fault.
#[inline(never)]
fn fault(env: Env<'_>, vcpu: &mut Vcpu, esr: u64) -> Step {
    let Env { vm, cpu, guards } = env;
    // HPFAR_EL2.FIPA, bits 47:4, holds bits 55:12 of the IPA.
    let reported =
        (esr & PERMISSION == 0 || esr & WALK != 0).then(|| HPFAR_EL2.read(HPFAR_EL2::FIPA) << 12);
    let Some(page) = reported.or_else(accessed) else { return again(env, vcpu) };
    let at = Ipa::new(page);
    let guard = guards.enter();
    let policy = vm.policy(&guard);
    let Some(allowed) = policy.allows(at) else {
        drop(guard);
        // Stage 1 may lead elsewhere by now: no leaf is there. What hardware reported is not to be understood.
        return match reported {
            Some(page) => {
                cpu.counters.bump(Stat::Faults);
                diagnose(env, vcpu, Some(page), None)
            }
            None => again(env, vcpu),
        };
    };
    let access = access(esr, vcpu.context.pstate, allowed);
    // A block is given what is allowed in all of it, or nothing: who changes the policy splits it before he goes on.
    let in_leaf =
        |level| if level == Level::L3 { Some(allowed) } else { policy.allows_in(at, level) };
    let end = vm.space.relax(&guard, at, access, &in_leaf);
    drop(guard);
    if let Ok(Relaxed::Granted(_)) = end {
        return granted(cpu);
    }
    cpu.counters.bump(Stat::Faults);
    unresolved(env, vcpu, page, end, allowed)
}

/// The page that FAR_EL2 is in, as stage 1 translates it now; `None` if it does not.
#[inline(always)]
fn accessed() -> Option<u64> {
    // The guest may be between an AT of its own and the read of what came of it.
    let guests = PAR_EL1.get();
    // SAFETY: (1) an address translation by the guest's stage 1, whose registers are live here and whose tables
    // stage 2 translates; a fault of it is reported in PAR_EL1, and nothing else changes but TLBs and what the guest lets
    // hardware update in its tables.
    unsafe {
        core::arch::asm!("at s1e1r, {}", in(reg) FAR_EL2.get(), options(nostack, preserves_flags));
    }
    barrier::isb(barrier::SY);
    let par = PAR_EL1.get();
    PAR_EL1.set(guests);
    (par & FAILED == 0).then_some(par & PAR_ADDRESS)
}

/// What an access needs, as far as the syndrome tells.
fn access(esr: u64, pstate: u64, allowed: Prot) -> Prot {
    if esr & WALK != 0 || esr & DATA != 0 && esr & MAINTENANCE != 0 {
        // The walk of an Access flag fault is a read, as far as is known.
        return if esr & PERMISSION == 0 { Prot::READ } else { Prot::READ | allowed & Prot::WRITE };
    }
    if esr & DATA == 0 {
        return if pstate & EXCEPTION_LEVEL == 0 { Prot::EXEC_EL0 } else { Prot::EXEC_EL1 };
    }
    if esr & WRITE != 0 { Prot::WRITE } else { Prot::READ }
}

/// A fault that did not end in a grant.
#[cold]
#[inline(never)]
fn unresolved(
    env: Env<'_>,
    vcpu: &mut Vcpu,
    page: u64,
    end: Result<Relaxed, RelaxError>,
    allowed: Prot,
) -> Step {
    let Some(abort) = Syndrome(ESR_EL2.get()).abort() else {
        return diagnose(env, vcpu, Some(page), None);
    };
    match end {
        Ok(_) => {
            let unclear = abort.is_stage1_walk() || abort.is_cache_maintenance();
            let faults = env.cpu.counters.own(Stat::Faults);
            if unclear && !allowed.contains(Prot::WRITE) && vcpu.was_spurious(page, faults) {
                return violation(env, vcpu, abort, page);
            }
            env.cpu.counters.bump(Stat::Spurious);
            repeat(env, vcpu, page)
        }
        Err(
            RelaxError::Retry { .. } | RelaxError::Nothing { .. } | RelaxError::Unsettled { .. },
        ) => {
            env.cpu.counters.bump(Stat::Retries);
            repeat(env, vcpu, page)
        }
        Err(RelaxError::Run { ipa, level }) => dissolve(env, vcpu, page, ipa, level),
        Err(RelaxError::Denied { .. }) => violation(env, vcpu, abort, page),
        Err(error) => {
            let hint = format!("stage 2 cannot resolve this fault: {error}");
            diagnose(env, vcpu, Some(page), Some(hint))
        }
    }
}

/// Stage 1 does not translate the address of the fault any more, or not to RAM: the guest tries again.
#[cold]
fn again(env: Env<'_>, vcpu: &mut Vcpu) -> Step {
    env.cpu.counters.bump(Stat::Faults);
    env.cpu.counters.bump(Stat::Retries);
    repeat(env, vcpu, FAR_EL2.get() & !(PAGE - 1))
}

/// A member of a run is to be changed alone: there is no run any more when the guest comes back.
#[cold]
fn dissolve(env: Env<'_>, vcpu: &mut Vcpu, page: u64, start: Ipa, level: Level) -> Step {
    env.cpu.counters.bump(Stat::Retries);
    let Some(_turn) = env.vm.moving.try_lock() else { return repeat(env, vcpu, page) };
    let run = IpaRange::new(start, RUN * level.slot_bytes());
    let Ok(mut claim) = run.map_err(|_| ()).and_then(|run| env.vm.space.claim(run).map_err(|_| ()))
    else {
        return repeat(env, vcpu, page);
    };
    match runs::dissolve_all(env, &mut claim) {
        Ok(()) => repeat(env, vcpu, page),
        Err(_) => {
            let hint = "the contiguous run that this page is in cannot be dissolved";
            diagnose(env, vcpu, Some(page), Some(hint.into()))
        }
    }
}

/// The guest has done what the policy does not allow: it hears of it by an abort of its own.
#[cold]
fn violation(env: Env<'_>, vcpu: &mut Vcpu, abort: Abort, page: u64) -> Step {
    env.cpu.counters.bump(Stat::Violations);
    let va = FAR_EL2.get();
    let offset = if abort.is_stage1_walk() { 0 } else { va & (PAGE - 1) };
    violations::record(
        env.cpu,
        &Sighting {
            ticks: timer::ticks(),
            esr: ESR_EL2.get(),
            pc: vcpu.context.pc,
            va,
            ipa: Some(page | offset),
            el: vcpu.context.exception_level(),
            outcome: Outcome::Injected,
        },
    );
    let walk = abort.is_stage1_walk().then(|| inject::level_of_walk(env, va, page));
    inject::abort(&mut vcpu.context, abort, va, walk.flatten());
    Step::Resume
}
