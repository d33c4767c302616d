//! Stage-2 aborts: populate, emulate, or stop the VM.
//!
//! | fault | region | what happens |
//! | --- | --- | --- |
//! | translation | RAM | a frame is installed, or a block ([`blocks`]); whoever loses the race resumes |
//! | translation | emulated, decoded load or store | the device model |
//! | translation | emulated, cache maintenance | nothing: a device has no cached data |
//! | translation | emulated, not decoded, fetch, or table walk | the VM stops |
//! | translation | none | the VM stops |
//! | access flag, permission | not asked here | the leaf is given what the access needs: `relaxing` |
//! | TLB conflict | not asked | what this CPU's TLBs hold of the VM goes: [`conflict`] |
//! | anything else | any | the VM stops |
//!
//! HPFAR_EL2 is valid for translation, access-flag and address-size faults and for faults on a stage-1
//! walk. Of the faults that are acted upon here only translation faults have an address that is asked for, so it is
//! always valid.
//!
//! The populate path takes no lock and allocates nothing: frames and tables come from the CPU's stock. One
//! guard spans the look into the region map and the install. When the stock is empty the fault is
//! left unhandled; the run loop refills, and the guest faults again.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use aarch64_cpu::registers::{ESR_EL2, FAR_EL2, HPFAR_EL2, Readable};
use hyp_abi::call::Stat;
use hyp_core::diagnosis::{Diagnosis, locate};
use hyp_core::syndrome::{Abort, Status, Syndrome};
use stage2::fault::{Place, Recovery};
use stage2::{Install, InstallError, Ipa, Tally};

use super::payload::Source;
use super::run::{Env, Step};
use super::stop::Reason;
use super::vcpu::Vcpu;
use super::{NUMBER, blocks, recovery};
use crate::device;
use crate::event::counters::Own;
use crate::event::trace;
use crate::lock::{fault_path, relax};
use crate::mem::PAGE;

/// What the populate path comes to.
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
    /// It is not RAM.
    Elsewhere,
    /// It cannot be done.
    Failed(InstallError),
}

/// Whether a syndrome is that of a translation fault from the guest: EC 0x20 (fetch) or 0x24 (load, store),
/// fault status 0b0001LL. The first thing an exit is asked, so that the populate path is decoded by two
/// comparisons.
#[inline]
pub(super) const fn is_translation(esr: u64) -> bool {
    esr >> 26 & 0b11_1011 == 0x20 && esr & 0b11_1100 == 0b00_0100
}

/// Handles a translation fault.
#[inline(never)]
pub(super) fn translation(env: Env<'_>, vcpu: &mut Vcpu, esr: u64) -> Step {
    env.cpu.counters.bump(Stat::Faults);
    // HPFAR_EL2.FIPA, bits 47:4, holds bits 55:12 of the IPA.
    let page = HPFAR_EL2.read(HPFAR_EL2::FIPA) << 12;
    match populate(env, page) {
        Populate::Done => Step::Resume,
        other => unpopulated(env, vcpu, esr, page, other),
    }
}

/// A translation fault that did not end in a mapped page.
#[inline(never)]
fn unpopulated(env: Env<'_>, vcpu: &mut Vcpu, esr: u64, page: u64, why: Populate) -> Step {
    let Some(abort) = Syndrome(esr).abort() else {
        return diagnose(env, vcpu, Some(page), None);
    };
    match why {
        Populate::Done => Step::Resume,
        Populate::Present { raced } => {
            env.cpu.counters.bump(if raced { Stat::LostRaces } else { Stat::Spurious });
            repeat(env, vcpu, page)
        }
        Populate::Again => {
            env.cpu.counters.bump(Stat::Retries);
            repeat(env, vcpu, page)
        }
        Populate::Elsewhere => {
            let guard = env.guards.enter();
            let policy = env.vm.policy(&guard);
            if policy.ram.contains(Ipa::new(page)) {
                // It was being moved a moment ago.
                drop(guard);
                return repeat(env, vcpu, page);
            }
            if let Some(moving) = &policy.moving
                && let Some(end) = moving.fault(env, &guard, page)
            {
                drop(guard);
                return match end {
                    // Not counted: how long it takes is up to the CPU that moves, and that goes on.
                    Ok(()) => {
                        relax();
                        Step::Resume
                    }
                    Err(error) => {
                        let hint = format!("stage 2 cannot map this page: {error}");
                        diagnose(env, vcpu, Some(ipa(page, abort)), Some(hint))
                    }
                };
            }
            if policy.is_populated(Ipa::new(page)) {
                let end = blocks::fault(env, &guard, policy, page);
                drop(guard);
                return match end {
                    Populate::Done if env.vm.plan.blocks => Step::Restock,
                    // Never `Elsewhere`.
                    other => unpopulated(env, vcpu, esr, page, other),
                };
            }
            let action = match policy.place(Ipa::new(page)) {
                Place::Recovery { policy, .. } | Place::Nothing(policy) => policy,
                // There is no slot for it.
                Place::BeyondIpaSize(Recovery::Stop) => Recovery::Stop,
                Place::BeyondIpaSize(_) => Recovery::Inject,
                Place::Ram { .. } | Place::Emulated => {
                    drop(guard);
                    return emulate(env, vcpu, abort, ipa(page, abort));
                }
            };
            match action {
                Recovery::Scratch if !abort.is_instruction() => {
                    recovery::scratch(env, guard, vcpu, abort, page)
                }
                Recovery::Scratch | Recovery::Inject => {
                    drop(guard);
                    recovery::refuse(env, vcpu, abort, page)
                }
                Recovery::Stop => {
                    drop(guard);
                    recovery::stop(env, vcpu, abort, page, None)
                }
            }
        }
        Populate::Failed(error) => {
            let hint = format!("stage 2 cannot map this page: {error}");
            diagnose(env, vcpu, Some(ipa(page, abort)), Some(hint))
        }
    }
}

#[inline]
fn populate(env: Env<'_>, page: u64) -> Populate {
    let Env { vm, cpu, guards } = env;
    let _path = fault_path(cpu);
    let guard = guards.enter();
    let at = Ipa::new(page);
    let policy = vm.policy(&guard);
    if !policy.ram.contains(at) {
        return Populate::Elsewhere;
    }
    let mut source = Source::new(&cpu.stock, &vm.plan.payload, page);
    let mut tally = Tally::default();
    let result = vm.space.install(&guard, at, &policy.ram_page, &mut source, &mut tally);
    drop(guard);
    let end = ended(env, result, &tally);
    #[cfg(feature = "measure")]
    if let Populate::Done = end {
        cpu.timing.populated(source.filled);
    }
    end
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

/// Handles an abort that is no translation fault: a TLB conflict is resolved, for anything else the VM stops.
#[cold]
pub(super) fn other(env: Env<'_>, vcpu: &mut Vcpu, abort: Abort) -> Step {
    env.cpu.counters.bump(Stat::Faults);
    if abort.status() == Status::TlbConflict {
        return conflict(env, vcpu);
    }
    // HPFAR_EL2 is valid for these, and for any fault on a walk.
    let valid = abort.is_stage1_walk()
        || matches!(abort.status(), Status::AccessFlag(_) | Status::AddressSize(_));
    let page = valid.then(|| HPFAR_EL2.read(HPFAR_EL2::FIPA) << 12);
    diagnose(env, vcpu, page.map(|page| ipa(page, abort)), None)
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

/// The address of the access: the page from HPFAR_EL2, the offset from FAR_EL2, except on a walk, where FAR
/// is the address that was being translated.
#[cold]
fn ipa(page: u64, abort: Abort) -> u64 {
    if abort.is_stage1_walk() { page } else { page | FAR_EL2.get() & (PAGE - 1) }
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

/// An access to an emulated device.
#[inline(never)]
fn emulate(env: Env<'_>, vcpu: &mut Vcpu, abort: Abort, ipa: u64) -> Step {
    if abort.is_instruction() || abort.is_stage1_walk() {
        return diagnose(env, vcpu, Some(ipa), None);
    }
    if abort.is_cache_maintenance() {
        vcpu.context.advance();
        return Step::Resume;
    }
    let Some(access) = abort.access() else {
        let hint = "the access is not decoded (a pair, writeback or SIMD): use plain loads and stores on devices";
        return diagnose(env, vcpu, Some(ipa), Some(hint.into()));
    };
    env.cpu.counters.bump(Stat::Mmio);
    let register = vcpu.context.x(access.register);
    match device::access(env.vm, ipa, access, register) {
        Some(value) => {
            if !access.is_write {
                vcpu.context.set_x(access.register, value);
            }
            vcpu.context.advance();
            Step::Resume
        }
        None => diagnose(env, vcpu, Some(ipa), None),
    }
}

/// Stops the VM for an abort.
#[cold]
pub(super) fn diagnose(env: Env<'_>, vcpu: &Vcpu, ipa: Option<u64>, hint: Option<String>) -> Step {
    let mut diagnosis = Diagnosis::new(NUMBER, vcpu.number as u32, vcpu.context.pc, ESR_EL2.get())
        .with_va(FAR_EL2.get());
    if let Some(ipa) = ipa {
        diagnosis = diagnosis.with_ipa(ipa).with_region(where_is(env, ipa));
    }
    if let Some(hint) = hint {
        diagnosis = diagnosis.with_hint(hint);
    }
    Step::Stop(Reason::Diagnosis(Box::new(diagnosis)))
}

/// What lies at an address, in words.
fn where_is(env: Env<'_>, ipa: u64) -> String {
    let guard = env.guards.enter();
    let all: Vec<_> = env.vm.policy(&guard).all().collect();
    locate(ipa, &all)
}
