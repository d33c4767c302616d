//! Trapped system registers and instructions.
//!
//! | what | answer |
//! | --- | --- |
//! | ID registers | the sanitised table |
//! | OS lock, breakpoints, watchpoints, debug channel | reads as zero (OSLSR: 8), writes ignored: debugging is not given to guests, and firmware-like guests write OSLAR once |
//! | set/way cache maintenance | all of the VM's memory is cleaned instead (`caches`) |
//! | the virtual memory registers, written while the caches are off | written; if that switches the caches, with all of the VM's memory cleaned before (`caches`) |
//! | the GIC's registers that make SGIs and that deactivate; those of the physical timer | emulated (`interrupts`) |
//! | ACTLR_EL1 | reads as zero, writes ignored |
//! | everything else | undefined, as on a CPU without the feature: PMU, trace, SVE, implementation-defined ones |

use hyp_core::idreg::Encoding;
use hyp_core::syndrome::SystemRegister;
use hyp_core::vgic;

use super::run::{Env, Step};
use super::vcpu::Vcpu;
use super::{caches, inject, interrupts};
use crate::event::counters::Own;

/// `OSLSR_EL1`: the OS lock is implemented and not locked.
const OSLSR: u64 = 1 << 3;

/// What a trapped access does.
enum Answer {
    /// A read gives this; a write does nothing.
    Value(u64),
    /// The guest takes an Undefined Instruction exception.
    Undefined,
}

fn answer(register: Encoding) -> Answer {
    match register {
        (2, 0, 1, 1, 4) => Answer::Value(OSLSR),
        // The debug registers; op1 1 would be trace.
        (2, 0 | 3, ..) => Answer::Value(0),
        // ACTLR_EL1.
        (3, 0, 1, 0, 1) => Answer::Value(0),
        _ => Answer::Undefined,
    }
}

/// A trapped MSR, MRS or system instruction.
pub(super) fn system_register(env: Env<'_>, vcpu: &mut Vcpu, access: SystemRegister) -> Step {
    // First: a kernel may read them tens of thousands of times.
    if let Some(value) = access.id_register().and_then(|number| env.vm.plan.ids.get(number)) {
        env.cpu.counters.bump_own(Own::Sysregs);
        step_over(vcpu, access, value);
        return Step::Resume;
    }
    // An instruction that takes several parts is one access.
    if !vcpu.cleaning.is_under_way(vcpu.context.pc) {
        env.cpu.counters.bump_own(Own::Sysregs);
    }
    if let Some(done) = caches::trapped(env, vcpu, access) {
        if done {
            vcpu.context.advance();
        }
        return Step::Resume;
    }
    if let Some(answer) = interrupts::trapped(env, vcpu, access) {
        match answer {
            vgic::Answer::Value(value) => step_over(vcpu, access, value),
            vgic::Answer::Again => {}
        }
        return Step::Resume;
    }
    match answer(access.encoding()) {
        Answer::Value(value) => step_over(vcpu, access, value),
        Answer::Undefined => inject::undefined(&mut vcpu.context),
    }
    Step::Resume
}

/// The access is done; a read has given `value`.
fn step_over(vcpu: &mut Vcpu, access: SystemRegister, value: u64) {
    if access.is_read() {
        vcpu.context.set_x(access.register(), value);
    }
    vcpu.context.advance();
}

/// An instruction of a feature that the ID registers hide.
pub(super) fn hidden_feature(env: Env<'_>, vcpu: &mut Vcpu) -> Step {
    env.cpu.counters.bump_own(Own::Sysregs);
    inject::undefined(&mut vcpu.context);
    Step::Resume
}
