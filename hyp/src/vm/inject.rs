//! Exceptions that the guest takes because EL2 says so.

use aarch64_cpu::registers::{
    ELR_EL1, ESR_EL1, FAR_EL1, FAR_EL2, Readable, SCTLR_EL1, SPSR_EL1, TCR_EL1, TTBR0_EL1,
    TTBR1_EL1, VBAR_EL1, Writeable,
};
use hyp_core::PaRange;
use hyp_core::stage1::Regime;
use stage2::Ipa;
use stage2::fault::{Abort, El, Entry};

use super::context::Context;
use super::run::Env;
use crate::mem::clean;
use crate::sysreg;
use crate::window::{self, Session};

/// `ESR_EL1` of an undefined instruction: EC 0, IL.
const UNDEFINED: u64 = 1 << 25;
/// Makes the guest take an Undefined Instruction exception at its current instruction
/// \[AArch64.TakeException\].
pub(super) fn undefined(context: &mut Context) {
    take(context, UNDEFINED);
}

/// Makes the guest take an abort of its own instead of `abort`: what it has accessed at `far` is not there for it. On a
/// walk of its stage 1 `walk` is the level that the walk had come to.
pub(super) fn abort(context: &mut Context, abort: Abort, far: u64, walk: Option<i8>) {
    FAR_EL1.set(far);
    take(context, abort.injected(El::of_spsr(context.pstate), walk));
}

/// The same for an abort that has just been taken, of which `page` is known, if any.
pub(super) fn instead_of(env: Env<'_>, context: &mut Context, of: Abort, page: Option<Ipa>) {
    let far = FAR_EL2.get();
    let walked = page.filter(|_| of.is_stage1_walk());
    let walk = walked.and_then(|page| level_of_walk(env, far, page.get()));
    abort(context, of, far, walk);
}

/// The level of stage 1 at which a walk for `va` came to the page at `page`; `None` if none does any more, or the guest's
/// tables cannot be read through. They are read as they are: whoever changes them meanwhile may be told another level.
pub(super) fn level_of_walk(env: Env<'_>, va: u64, page: u64) -> Option<i8> {
    let (tcr, ttbr0, ttbr1) = (TCR_EL1.get(), TTBR0_EL1.get(), TTBR1_EL1.get());
    let guard = env.guards.enter();
    let regime = Regime { tcr, ttbr0, ttbr1 };
    let read = |session: &Session<'_>, at: u64| {
        let at = Ipa::new(at & !7);
        // What is not mapped is not to be populated for this.
        let pa = env.vm.space.translate(&guard, at)?.pa.get();
        // The guest may have written it past the caches.
        clean::from_guest(PaRange { start: pa, end: pa + 8 });
        let mut word = [0; 8];
        session.copy_in(at, &mut word).ok()?;
        Some(u64::from_le_bytes(word))
    };
    window::with(env, |session| regime.level_in(va, page, |at| read(session, at)))
}

/// The exception itself, synchronous, to EL1.
fn take(context: &mut Context, esr: u64) {
    ESR_EL1.set(esr);
    ELR_EL1.set(context.pc);
    SPSR_EL1.set(context.pstate);
    let has_pan = sysreg::read!("id_aa64mmfr1_el1") >> 20 & 0xf != 0;
    let entry = Entry::synchronous(context.pstate, VBAR_EL1.get(), SCTLR_EL1.get(), has_pan);
    (context.pc, context.pstate) = (entry.pc, entry.pstate);
}
