//! Set/way operations and cache toggles of a guest, done: `hyp_core::caches` has what they mean and decides.
//!
//! The registers are those of the executing CPU, which has the vCPU loaded that traps here (`el1`), so HCR_EL2.TVM *is* the vCPU's
//! state and a trapped write goes to the live EL1 register. Only the [`Walk`] is kept beside.
//!
//! One part of a walk runs under one guard: what it finds mapped stays the VM's until the guard is
//! closed. Memory that is taken away or moved meanwhile is cleaned by who does that (`moving`), and a page that is
//! populated meanwhile comes clean; so at the end nothing that was mapped at the beginning is left in a cache,
//! unless a vCPU whose caches are on has written it since. That one is answerable for itself.

use aarch64_cpu::registers::{HCR_EL2, Readable};
use hyp_core::caches::{Answer, BUDGET, Event, VmRegister, Walk, answer, is_set_way};
use hyp_core::syndrome::SystemRegister;
use hyp_core::{IpaRange, PaRange};
use stage2::{Backing, Coherency, Ipa, MemType, View};

use super::run::Env;
use super::vcpu::Vcpu;
use super::{Vm, control};
use crate::event::counters::Own;
use crate::mem::{PAGE, clean};
use crate::sysreg;

/// Whether guests of this VM always look into the caches, whatever they switch.
fn forced(vm: &Vm) -> bool {
    Coherency::of(&vm.plan.features, vm.space.encoding()).forced(MemType::Normal)
}

/// Whether a vCPU begins with its writes of the virtual memory registers trapped: its caches are off, and from the first
/// instruction on it is seen when it switches them on.
pub(super) fn begins_trapped(vm: &Vm) -> bool {
    !forced(vm)
}

/// A trapped access: `None` if it is none of ours, else whether it is done. If not, the guest has to come back with
/// the same instruction.
pub(super) fn trapped(env: Env<'_>, vcpu: &mut Vcpu, access: SystemRegister) -> Option<bool> {
    if access.is_read() {
        return None;
    }
    let counters = &env.cpu.counters;
    if is_set_way(access.encoding()) {
        if forced(env.vm) {
            counters.bump_own(Own::SetWay);
            return Some(true);
        }
        let done = done(env, vcpu, Event::SetWay);
        if done {
            counters.bump_own(Own::SetWay);
        }
        return Some(done);
    }
    let register = VmRegister::of(access.encoding())?;
    let value = vcpu.context.x(access.register());
    let before = sysreg::read!("sctlr_el1");
    let after = if register == VmRegister::Sctlr { value } else { before };
    let done = done(env, vcpu, Event::Write { before, after });
    if done {
        write(register, value);
        counters.bump_own(Own::VmRegisters);
    }
    Some(done)
}

/// Does what the event asks, or a part of it; returns whether that was all.
fn done(env: Env<'_>, vcpu: &mut Vcpu, event: Event) -> bool {
    let tvm = HCR_EL2.is_set(HCR_EL2::TVM);
    let Answer { clean, tvm: wanted } = answer(tvm, event);
    if clean {
        let pc = vcpu.context.pc;
        if clean_part(env, pc, &mut vcpu.cleaning) {
            return false;
        }
        vcpu.cleaning.end();
        env.cpu.counters.bump_own(Own::CacheWalks);
        if let Event::Write { .. } = event {
            env.cpu.counters.bump_own(Own::CacheToggles);
        }
    }
    if wanted != tvm {
        control::trap_vm_registers(wanted);
    }
    true
}

/// Cleans and invalidates the next part of the VM's memory; returns whether more is left.
fn clean_part(env: Env<'_>, pc: u64, walk: &mut Walk) -> bool {
    let guard = env.guards.enter();
    let Some(part) = walk.part(pc, memory(env, &guard)) else { return false };
    let Ok(range) = stage2::IpaRange::new(Ipa::new(part.start), part.len()) else { return false };
    let (mut left, mut reached) = (BUDGET, part.end);
    for (ipa, found) in env.vm.space.visit(&guard, range) {
        let leaf = match found.view() {
            View::Leaf(leaf) => leaf,
            // A block that is being split or made is mapped: it is cleaned when it is.
            View::Busy(_) => {
                reached = ipa.get().max(part.start);
                break;
            }
            _ => continue,
        };
        // What of it lies in this part, and in the budget.
        let first = ipa.get().max(part.start);
        let end = part.end.min(ipa.get().saturating_add(found.level.slot_bytes()));
        let end = end.min(first.saturating_add(left));
        let start = leaf.pa().get().saturating_add(first - ipa.get());
        clean::lines(PaRange { start, end: start.saturating_add(end.saturating_sub(first)) });
        env.cpu.counters.add_own(Own::PagesCleaned, end.saturating_sub(first) / PAGE);
        left = left.saturating_sub(end.saturating_sub(first));
        if left == 0 {
            reached = end;
            break;
        }
    }
    drop(guard);
    clean::complete();
    env.cpu.counters.bump_own(Own::CacheParts);
    walk.reached(pc, reached);
    true
}

/// From the first byte of RAM to the last.
fn memory(env: Env<'_>, guard: &stage2::Guard<'_>) -> IpaRange {
    let regions = env.vm.policy(guard).regions.all().iter();
    let ram = regions.filter(|region| matches!(region.backing, Backing::Ram { .. }));
    let none = IpaRange { start: u64::MAX, end: 0 };
    ram.fold(none, |all, region| IpaRange {
        start: all.start.min(region.range.start().get()),
        end: all.end.max(region.range.end().get()),
    })
}

/// Writes EL1's register, as the guest would have.
fn write(register: VmRegister, value: u64) {
    match register {
        VmRegister::Sctlr => sysreg::write!("sctlr_el1", value),
        VmRegister::Ttbr0 => sysreg::write!("ttbr0_el1", value),
        VmRegister::Ttbr1 => sysreg::write!("ttbr1_el1", value),
        VmRegister::Tcr => sysreg::write!("tcr_el1", value),
        VmRegister::Afsr0 => sysreg::write!("afsr0_el1", value),
        VmRegister::Afsr1 => sysreg::write!("afsr1_el1", value),
        VmRegister::Esr => sysreg::write!("esr_el1", value),
        VmRegister::Far => sysreg::write!("far_el1", value),
        VmRegister::Mair => sysreg::write!("mair_el1", value),
        VmRegister::Amair => sysreg::write!("amair_el1", value),
        VmRegister::ContextIdr => sysreg::write!("contextidr_el1", value),
    }
}
