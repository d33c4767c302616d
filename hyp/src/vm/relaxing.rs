//! Stage-2 Permission and Access flag faults: the leaf is there, and gets what the access needs, or the guest has
//! done what it may not.
//!
//! What the access is, which page it is about, and whether the policy allows it, is [`decide`]d by crate `stage2`; here it is done:
//!
//! | the access, as stage 2 finds it | what happens |
//! | --- | --- |
//! | the policy allows it | one exchange gives the leaf what is missing: AF, the permission, the dirty record; resume |
//! | the leaf allows it already | another vCPU was faster, or this CPU's TLB held something older: it is flushed; resume |
//! | meets a slot in transition, or none | back to the guest, which faults again |
//! | in a contiguous run | the run is dissolved, and the guest faults again |
//! | the policy does not allow it | the guest takes an abort ([`inject`]) |
//! | a fetch from the scratch page | likewise ([`recovery`](super::recovery)) |
//!
//! A dirty log without hardware's help comes down to this: write-protected by the log, the first write of a page ends here,
//! lock-free, under the guard that spans the look at the policy and the exchange.
//!
//! If FAR_EL2 has to be translated, and stage 1 leads to another page by now, that is given what the policy allows anyway.

use alloc::format;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{ESR_EL2, FAR_EL2, HPFAR_EL2, PAR_EL1, Readable, Writeable};
use hyp_abi::call::Stat;
#[cfg(feature = "measure")]
use hyp_core::report::Cause;
use hyp_core::syndrome::Syndrome;
use hyp_core::violation::{Outcome, Sighting};
use stage2::fault::{
    Abort, Action, Fault, First, Seen, decide, is_leaf_fault, is_plain_store, reported, translated,
};
use stage2::{Ipa, IpaRange, Level, Prot, RelaxError, Relaxed};

use super::create::RAM;
use super::fault::{diagnose, in_no_memory, repeat, seen};
use super::run::{Env, Step, decoded};
use super::vcpu::Vcpu;
use super::{inject, runs};
use crate::cpu::PerCpu;
use crate::event::violations;
use crate::lock::fault_path;
use crate::mem::PAGE;
use crate::platform::timer;

/// Members of a contiguous run.
const RUN: u64 = 16;

/// Handles a synchronous exit that is no translation fault.
// Part of the loop around the guest, as populate faults are (`run`).
#[inline(always)]
pub(super) fn or_else(env: Env<'_>, vcpu: &mut Vcpu, esr: u64) -> Step {
    if is_plain_store(esr) {
        return write(env, vcpu, esr);
    }
    if is_leaf_fault(esr) { fault(env, vcpu, esr) } else { decoded(env, vcpu, Syndrome(esr)) }
}

/// A Permission fault of a store, not on a walk: what a write to a clean page takes.
#[inline(always)]
fn write(env: Env<'_>, vcpu: &mut Vcpu, esr: u64) -> Step {
    let Env { vm, cpu, guards } = env;
    let Some(at) = accessed() else { return fault(env, vcpu, esr) };
    {
        let _path = fault_path(cpu);
        let guard = guards.enter();
        if vm.policy(&guard).ram.contains(at)
            && let Ok(Relaxed::Granted(_)) = vm.space.relax(&guard, at, Prot::WRITE, &page_of_ram)
        {
            drop(guard);
            return granted(cpu, esr);
        }
    }
    fault(env, vcpu, esr)
}

/// What is allowed in a page of [`Policy::ram`](super::policy::Policy); a block may reach beyond that.
#[inline(always)]
fn page_of_ram(level: Level) -> Option<Prot> {
    (level == Level::L3).then_some(RAM)
}

#[inline(always)]
fn granted(cpu: &PerCpu, _esr: u64) -> Step {
    cpu.counters.bump(Stat::Faults);
    cpu.counters.bump(Stat::Relaxed);
    #[cfg(feature = "measure")]
    if is_plain_store(_esr) {
        cpu.timing.is(Cause::Write);
    }
    Step::Resume
}

/// Handles an Access flag or Permission fault.
#[inline(never)]
fn fault(env: Env<'_>, vcpu: &mut Vcpu, esr: u64) -> Step {
    let Env { vm, cpu, guards } = env;
    let Some(fault) = Fault::new(esr, vcpu.context.pstate) else {
        return diagnose(env, vcpu, None, None);
    };
    let page = match fault.first() {
        First::Reported => Some(reported(HPFAR_EL2.get())),
        First::Translate | First::Act(_) => accessed(),
    };
    let Some(at) = page else { return again(env, vcpu) };
    let path = fault_path(cpu);
    let guard = guards.enter();
    let policy = vm.policy(&guard);
    let place = policy.place(at);
    let seen = seen(env, &guard, at);
    let action = decide(fault, seen, place);
    let (Action::Relax(access), Some(allowed)) = (action, place.allows(seen)) else {
        drop((guard, path));
        cpu.counters.bump(Stat::Faults);
        return match action {
            Action::Inject if seen == Seen::Owned => violation(env, vcpu, fault.abort, at),
            action => in_no_memory(env, vcpu, fault, at, action),
        };
    };
    // A block is given what is allowed in all of it, or nothing: who changes the policy splits it before he goes on.
    let in_leaf =
        |level| if level == Level::L3 { Some(allowed) } else { policy.allows_in(at, level) };
    let end = vm.space.relax(&guard, at, access, &in_leaf);
    drop((guard, path));
    if let Ok(Relaxed::Granted(_)) = end {
        return granted(cpu, esr);
    }
    cpu.counters.bump(Stat::Faults);
    unresolved(env, vcpu, fault, at, end, allowed)
}

/// The page that FAR_EL2 is in, as stage 1 translates it now; `None` if it does not.
#[inline(always)]
fn accessed() -> Option<Ipa> {
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
    translated(par)
}

/// A fault that did not end in a grant.
#[cold]
#[inline(never)]
fn unresolved(
    env: Env<'_>,
    vcpu: &mut Vcpu,
    fault: Fault,
    at: Ipa,
    end: Result<Relaxed, RelaxError>,
    allowed: Prot,
) -> Step {
    match end {
        Ok(_) => {
            let faults = env.cpu.counters.own(Stat::Faults);
            let again = vcpu.was_spurious(at.get(), faults);
            if fault.spurious(allowed, again) == Action::Inject {
                return violation(env, vcpu, fault.abort, at);
            }
            env.cpu.counters.bump(Stat::Spurious);
            repeat(env, vcpu, at.get())
        }
        Err(
            RelaxError::Retry { .. } | RelaxError::Nothing { .. } | RelaxError::Unsettled { .. },
        ) => {
            env.cpu.counters.bump(Stat::Retries);
            repeat(env, vcpu, at.get())
        }
        Err(RelaxError::Run { ipa, level }) => dissolve(env, vcpu, at.get(), ipa, level),
        Err(RelaxError::Denied { .. }) => violation(env, vcpu, fault.abort, at),
        Err(error) => {
            let hint = format!("stage 2 cannot resolve this fault: {error}");
            diagnose(env, vcpu, Some(at.get()), Some(hint))
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
fn violation(env: Env<'_>, vcpu: &mut Vcpu, abort: Abort, at: Ipa) -> Step {
    env.cpu.counters.bump(Stat::Violations);
    let va = FAR_EL2.get();
    violations::record(
        env.cpu,
        &Sighting {
            ticks: timer::ticks(),
            esr: ESR_EL2.get(),
            pc: vcpu.context.pc,
            va,
            ipa: Some(abort.ipa_in(at, va).get()),
            el: vcpu.context.exception_level(),
            outcome: Outcome::Injected,
        },
    );
    inject::instead_of(env, &mut vcpu.context, abort, Some(at));
    Step::Resume
}
