//! Stage-2 aborts: populate, recover, emulate, inject, or stop the VM.
//!
//! What is done about an abort is [`decide`]d by crate `stage2`, whose table has every class; here it is done. Two kinds of
//! faults are acted upon before anything is decoded, and a test of that crate shows that it is what would be decided:
//!
//! | fault | asked of the syndrome | what happens |
//! | --- | --- | --- |
//! | translation, in the ordinary part of RAM | [`is_translation`](stage2::fault::is_translation) | a frame is installed; whoever loses the race resumes |
//! | permission, a store, in the ordinary part of RAM | [`is_plain_store`](stage2::fault::is_plain_store) | `relaxing` |
//!
//! And what RAM is more than ordinary is this file's: memory on its way ([`moving`](super::moving)), or a block
//! ([`blocks`]).
//!
//! The path to an install takes no lock and allocates nothing: frames and tables come from the CPU's stock. One
//! guard spans the look into the policy and the install. When the stock is empty the fault is
//! left unhandled; the run loop refills, and the guest faults again.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use aarch64_cpu::registers::{ESR_EL2, FAR_EL2, HPFAR_EL2, Readable};
use hyp_abi::call::Stat;
use hyp_core::diagnosis::{Diagnosis, locate};
#[cfg(feature = "measure")]
use hyp_core::report::Cause;
use hyp_core::vgic::Answer;
use stage2::fault::{
    Action, Fault, First, LoadStore, Seen, Why, decide, is_no_fetch, missing, reported,
};
use stage2::{Guard, Install, InstallError, Ipa, Tally};

use super::payload::Source;
use super::run::{Env, Step};
use super::stop::Reason;
use super::vcpu::Vcpu;
use super::{NUMBER, blocks, inject, recovery};
use crate::device;
use crate::event::counters::Own;
use crate::event::trace;
use crate::lock::{fault_path, relax};
use crate::mem::PAGE;

/// What an install comes to.
pub(super) enum Populate {
    /// Resume.
    Done,
    /// Another vCPU was faster: by an instruction (`raced`), or by so much that its page was seen on
    /// the walk. Resume.
    Present {
        /// The install was tried and lost.
        raced: bool,
    },
    /// Nothing was done; resume and fault again.
    Again,
    /// It cannot be done.
    Failed(InstallError),
}

/// Handles a Translation fault of the guest, of whatever access.
#[inline(always)]
pub(super) fn translation(env: Env<'_>, vcpu: &mut Vcpu) -> Step {
    let Env { vm, cpu, guards } = env;
    cpu.counters.bump(Stat::Faults);
    let at = reported(HPFAR_EL2.get());
    let path = fault_path(cpu);
    let guard = guards.enter();
    let policy = vm.policy(&guard);
    if !policy.ram.contains(at) {
        let esr = ESR_EL2.get();
        if vcpu.hole.has(policy, at) && is_no_fetch(esr) {
            drop(path);
            return recovery::scratch(env, guard, vcpu, esr, at);
        }
        drop(path);
        return elsewhere(env, vcpu, at, guard);
    }
    let mut source = Source::new(&cpu.stock, &vm.plan.payload, at.get());
    let mut tally = Tally::default();
    let result = vm.space.install(&guard, at, &policy.ram_page, &mut source, &mut tally);
    drop(guard);
    drop(path);
    match ended(env, result, &tally) {
        Populate::Done => {
            #[cfg(feature = "measure")]
            cpu.timing.populated(source.filled);
            Step::Resume
        }
        other => unpopulated(env, vcpu, at, other),
    }
}

/// A Translation fault that is not in the ordinary part of RAM, under the guard that saw that.
#[inline(never)]
fn elsewhere(env: Env<'_>, vcpu: &mut Vcpu, at: Ipa, guard: Guard<'_>) -> Step {
    let esr = ESR_EL2.get();
    let policy = env.vm.policy(&guard);
    if is_no_fetch(esr)
        && policy.moving.is_none()
        && let Some(hole) = policy.hole_around(at)
    {
        vcpu.hole = hole;
        return recovery::scratch(env, guard, vcpu, esr, at);
    }
    let Some(fault) = Fault::new(esr, vcpu.context.pstate) else {
        return diagnose(env, vcpu, Some(at.get()), None);
    };
    // What installs looks at the slot itself.
    let action = missing(fault, Seen::Empty, policy.place(at));
    extraordinary(env, vcpu, fault, at, guard, action)
}

/// The same, where more is to be done than to show the scratch page.
#[inline(never)]
fn extraordinary(
    env: Env<'_>,
    vcpu: &mut Vcpu,
    fault: Fault,
    at: Ipa,
    guard: Guard<'_>,
    action: Action,
) -> Step {
    let policy = env.vm.policy(&guard);
    // Before all else: where memory is on its way, nothing else is to take its place.
    if let Some(moving) = &policy.moving
        && let Some(end) = moving.fault(env, &guard, at.get())
    {
        drop(guard);
        return on_its_way(env, vcpu, fault, at, end);
    }
    match action {
        Action::Scratch => recovery::scratch_apart(env, guard, vcpu, at),
        Action::Install => {
            let end = blocks::fault(env, &guard, policy, at.get());
            drop(guard);
            match end {
                Populate::Done if env.vm.plan.blocks => Step::Restock,
                Populate::Done => Step::Resume,
                other => unpopulated(env, vcpu, at, other),
            }
        }
        action => {
            drop(guard);
            in_no_memory(env, vcpu, fault, at, action)
        }
    }
}

/// A fault where memory is being moved, or was.
#[cold]
fn on_its_way(
    env: Env<'_>,
    vcpu: &mut Vcpu,
    fault: Fault,
    at: Ipa,
    end: Result<(), InstallError>,
) -> Step {
    match end {
        // Not counted: how long it takes is up to the CPU that moves, and that goes on.
        Ok(()) => {
            relax();
            Step::Resume
        }
        Err(error) => {
            let hint = format!("stage 2 cannot map this page: {error}");
            let ipa = fault.abort.ipa_in(at, FAR_EL2.get());
            diagnose(env, vcpu, Some(ipa.get()), Some(hint))
        }
    }
}

/// A Translation fault that did not end in a mapped page.
#[inline(never)]
fn unpopulated(env: Env<'_>, vcpu: &mut Vcpu, at: Ipa, why: Populate) -> Step {
    match why {
        Populate::Done => Step::Resume,
        Populate::Present { raced } => {
            env.cpu.counters.bump(if raced { Stat::LostRaces } else { Stat::Spurious });
            repeat(env, vcpu, at.get())
        }
        Populate::Again => {
            env.cpu.counters.bump(Stat::Retries);
            repeat(env, vcpu, at.get())
        }
        Populate::Failed(error) => {
            let hint = format!("stage 2 cannot map this page: {error}");
            let fault = Fault::new(ESR_EL2.get(), vcpu.context.pstate);
            let ipa = fault.map_or(at, |fault| fault.abort.ipa_in(at, FAR_EL2.get()));
            diagnose(env, vcpu, Some(ipa.get()), Some(hint))
        }
    }
}

/// Counts what an install did, and says what it comes to.
#[inline(always)]
pub(super) fn ended(
    env: Env<'_>,
    result: Result<Install, InstallError>,
    tally: &Tally,
) -> Populate {
    let counters = &env.cpu.counters;
    if (tally.tables | tally.lost_tables) != 0 {
        counters.add(Stat::Tables, tally.tables);
        counters.add(Stat::LostTables, tally.lost_tables);
    }
    match result {
        Ok(Install::Installed(_)) => {
            counters.bump(Stat::Installed);
            trace::published();
            Populate::Done
        }
        Ok(Install::Present(_)) => Populate::Present { raced: tally.lost_races != 0 },
        Err(InstallError::OutOfFrames | InstallError::OutOfTables | InstallError::Retry { .. }) => {
            Populate::Again
        }
        Err(error) => Populate::Failed(error),
    }
}

/// Handles an abort that neither a look at its class and status nor a leaf has settled.
#[cold]
pub(super) fn other(env: Env<'_>, vcpu: &mut Vcpu, fault: Fault) -> Step {
    env.cpu.counters.bump(Stat::Faults);
    match fault.first() {
        First::Reported => {}
        First::Act(action) => return act(env, vcpu, fault, None, action),
        // A fault on a leaf, which does not come here.
        First::Translate => return act(env, vcpu, fault, None, Action::Retry),
    }
    let at = reported(HPFAR_EL2.get());
    let guard = env.guards.enter();
    let place = env.vm.policy(&guard).place(at);
    let action = decide(fault, seen(env, &guard, at), place);
    drop(guard);
    in_no_memory(env, vcpu, fault, at, action)
}

/// What the slot holds that translates an address.
pub(super) fn seen(env: Env<'_>, guard: &Guard<'_>, at: Ipa) -> Seen {
    let found = env.vm.space.lookup(guard, at);
    found.map_or(Seen::Empty, |found| Seen::new(found.level, found.descriptor))
}

/// Does what was decided where the guest has no memory: in a device, or in nothing.
#[inline(never)]
pub(super) fn in_no_memory(
    env: Env<'_>,
    vcpu: &mut Vcpu,
    fault: Fault,
    at: Ipa,
    action: Action,
) -> Step {
    match action {
        Action::Inject => recovery::refuse(env, vcpu, at),
        Action::Stop(Why::Nothing) => recovery::stop(env, vcpu, at, None),
        action => act(env, vcpu, fault, Some(at), action),
    }
}

/// Does what was decided, if no slot has to be changed for it. Of the address as much as is known.
#[inline(never)]
fn act(env: Env<'_>, vcpu: &mut Vcpu, fault: Fault, page: Option<Ipa>, action: Action) -> Step {
    let ipa = page.map(|page| fault.abort.ipa_in(page, FAR_EL2.get()).get());
    let hint = match action {
        Action::Emulate(access) => return emulate(env, vcpu, access, ipa),
        Action::Ignore => {
            vcpu.context.advance();
            return Step::Resume;
        }
        Action::Inject => {
            inject::instead_of(env, &mut vcpu.context, fault.abort, page);
            return Step::Resume;
        }
        Action::FlushVm => return conflict(env, vcpu),
        // What is done to a slot is done by who has decided it, under his guard.
        Action::Retry | Action::Install | Action::Scratch | Action::Relax(_) => {
            env.cpu.counters.bump(Stat::Retries);
            let page = page.map_or(FAR_EL2.get() & !(PAGE - 1), Ipa::get);
            return repeat(env, vcpu, page);
        }
        Action::Note(note) => Some(format!("a note is here that nobody wrote: {:#x}", note.get())),
        // For these the syndrome alone has words.
        Action::Stop(Why::Nothing | Why::Memory | Why::Unknown) => None,
        Action::Stop(why) => Some(format!("{why}")),
    };
    diagnose(env, vcpu, ipa, hint)
}

/// Two entries of this CPU's TLBs match an address. It happens while the size of a live block changes on another
/// CPU (FEAT_BBM), and is reported to EL2 then \[RQWTKL\]; a guest's own stage 1 may bring it about, too. Nothing was
/// accessed. Only if all of the VM's entries go, both stages, it is sure that these do \[RBLRKC, IJCCRT\]. If the other CPU
/// is not through yet, it may happen again.
#[cold]
fn conflict(env: Env<'_>, vcpu: &mut Vcpu) -> Step {
    env.cpu.counters.bump_own(Own::Conflicts);
    env.vm.space.tlb().vm_local();
    if vcpu.may_repeat(FAR_EL2.get() & !(PAGE - 1)) {
        return Step::Resume;
    }
    let hint = "this TLB conflict came back without end, though all of the VM's entries were invalidated each time: \
                suspect stage 1 of the guest";
    diagnose(env, vcpu, None, Some(hint.into()))
}

/// Lets the guest try again, within reason: a fault must not come back for ever. While memory is moved or resized it is not
/// counted: how long that takes is up to the CPU that does it, which may have 8 MiB to copy and to clean.
#[cold]
pub(super) fn repeat(env: Env<'_>, vcpu: &mut Vcpu, page: u64) -> Step {
    if env.vm.moving.is_locked() || vcpu.may_repeat(page) {
        relax();
        return Step::Resume;
    }
    let hint = "this fault came back without end: suspect the hypervisor (a slot in transition, no frames, or a \
                translation that is there and does not help)";
    diagnose(env, vcpu, Some(page), Some(hint.into()))
}

/// A decoded access to an emulated device.
fn emulate(env: Env<'_>, vcpu: &mut Vcpu, access: LoadStore, ipa: Option<u64>) -> Step {
    env.cpu.counters.bump(Stat::Mmio);
    #[cfg(feature = "measure")]
    env.cpu.timing.is(Cause::Device);
    let register = vcpu.context.x(access.register);
    match ipa.and_then(|ipa| device::access(env, vcpu, ipa, access, register)) {
        Some(Answer::Again) => Step::Resume,
        Some(Answer::Value(value)) => {
            if !access.is_write {
                vcpu.context.set_x(access.register, value);
            }
            vcpu.context.advance();
            Step::Resume
        }
        None => diagnose(env, vcpu, ipa, None),
    }
}

/// Stops the VM for an abort.
#[cold]
pub(super) fn diagnose(
    env: Env<'_>,
    vcpu: &mut Vcpu,
    ipa: Option<u64>,
    hint: Option<String>,
) -> Step {
    let mut diagnosis = Diagnosis::new(NUMBER, vcpu.number as u32, vcpu.context.pc, ESR_EL2.get())
        .with_va(FAR_EL2.get());
    if let Some(ipa) = ipa {
        diagnosis = diagnosis.with_ipa(ipa).with_region(where_is(env, ipa));
    }
    if let Some(hint) = hint {
        diagnosis = diagnosis.with_hint(hint);
    }
    vcpu.stop(Reason::Diagnosis(Box::new(diagnosis)))
}

/// What lies at an address, in words.
fn where_is(env: Env<'_>, ipa: u64) -> String {
    let guard = env.guards.enter();
    let all: Vec<_> = env.vm.policy(&guard).all().collect();
    locate(ipa, &all)
}
