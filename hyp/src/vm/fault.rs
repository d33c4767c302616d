//! Stage-2 aborts: populate, emulate, or stop the VM.
//!
//! | fault | region | what happens |
//! | --- | --- | --- |
//! | translation | RAM | a frame is installed; whoever loses the race resumes |
//! | translation | emulated, decoded load or store | the device model |
//! | translation | emulated, cache maintenance | nothing: a device has no cached data |
//! | translation | emulated, not decoded, fetch, or table walk | the VM stops |
//! | translation | none | the VM stops |
//! | anything else | any | the VM stops: leaves in RAM permit everything and have AF set |
//!
//! HPFAR_EL2 is valid for translation, access-flag and address-size faults and for faults on a stage-1
//! walk. Only translation faults are acted upon, so it is always valid here.
//!
//! The populate path takes no lock and allocates nothing: frames and tables come from the CPU's stock. One
//! guard spans the look into the region map and the install. When the stock is empty the fault is
//! left unhandled; the run loop refills, and the guest faults again.

use aarch64_cpu::registers::{ESR_EL2, FAR_EL2, HPFAR_EL2, Readable};
use alloc::boxed::Box;
use hyp_abi::call::Stat;
use hyp_core::diagnosis::{Diagnosis, locate};
use hyp_core::syndrome::{Abort, Status};
use stage2::{Attributes, Backing, Install, InstallError, Ipa, Level, Region, Tally};

use super::payload::Source;
use super::run::{Env, Step};
use super::stop::Reason;
use super::vcpu::Vcpu;
use super::NUMBER;
use crate::device;
use crate::mem::PAGE;

/// What the populate path comes to.
enum Populate {
    /// Resume.
    Done,
    /// Nothing was done; resume and fault again.
    Again,
    /// It is not RAM.
    Elsewhere(Option<Region>),
    /// It cannot be done.
    Failed(InstallError),
}

/// Handles an instruction or data abort from the guest.
#[inline]
pub(super) fn abort(env: Env<'_>, vcpu: &mut Vcpu, abort: Abort) -> Step {
    env.cpu.counters.bump(Stat::Faults);
    if !matches!(abort.status(), Status::Translation(_)) {
        return unexpected(env, vcpu, abort);
    }
    // HPFAR_EL2.FIPA, bits 47:4, holds bits 55:12 of the IPA.
    let page = HPFAR_EL2.read(HPFAR_EL2::FIPA) << 12;
    match populate(env, page) {
        Populate::Done => Step::Resume,
        Populate::Again => {
            env.cpu.counters.bump(Stat::Retries);
            repeat(env, vcpu, page)
        }
        Populate::Elsewhere(Some(_)) => emulate(env, vcpu, abort, ipa(page, abort)),
        Populate::Elsewhere(None) => diagnose(env, vcpu, Some(ipa(page, abort)), None),
        Populate::Failed(error) => {
            let hint = alloc::format!("stage 2 cannot map this page: {error}");
            diagnose(env, vcpu, Some(ipa(page, abort)), Some(hint))
        }
    }
}

#[inline]
fn populate(env: Env<'_>, page: u64) -> Populate {
    let Env { vm, cpu, guards } = env;
    let guard = guards.enter();
    let at = Ipa::new(page);
    let region = match vm.regions(&guard).find(at) {
        Some(region) => region,
        None => return Populate::Elsewhere(None),
    };
    let Backing::Ram { prot, mem } = region.backing else {
        return Populate::Elsewhere(Some(*region));
    };
    let attributes = Attributes::new(prot, mem);
    let mut source = Source::new(&cpu.stock, &vm.payload, page);
    let mut tally = Tally::default();
    let result = vm.space.install(&guard, at, Level::L3, &attributes, &mut source, &mut tally);
    drop(guard);
    let counters = &cpu.counters;
    counters.add(Stat::Tables, tally.tables);
    counters.add(Stat::LostTables, tally.lost_tables);
    match result {
        Ok(Install::Installed(_)) => {
            counters.bump(Stat::Installed);
            #[cfg(feature = "measure")]
            crate::event::measure::populated(source.filled);
            Populate::Done
        }
        Ok(Install::Present(_)) if tally.lost_races != 0 => {
            counters.add(Stat::LostRaces, tally.lost_races);
            Populate::Done
        }
        // Another PE was faster, before we looked at the slot or on the way to it.
        Ok(Install::Present(_)) => {
            counters.bump(Stat::Spurious);
            Populate::Done
        }
        Err(InstallError::OutOfFrames | InstallError::OutOfTables | InstallError::Retry { .. }) => {
            Populate::Again
        }
        Err(error) => Populate::Failed(error),
    }
}

/// The address of the access: the page from HPFAR_EL2, the offset from FAR_EL2, except on a walk, where FAR
/// is the address that was being translated.
#[cold]
fn ipa(page: u64, abort: Abort) -> u64 {
    if abort.is_stage1_walk() { page } else { page | FAR_EL2.get() & (PAGE - 1) }
}

/// Lets the guest fault again, within reason.
#[cold]
fn repeat(env: Env<'_>, vcpu: &mut Vcpu, page: u64) -> Step {
    if vcpu.may_repeat(page) {
        core::hint::spin_loop();
        return Step::Resume;
    }
    let hint = "this fault came back without end: suspect the hypervisor (a slot in transition, or no frames)";
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

/// A fault of another kind than translation.
#[cold]
fn unexpected(env: Env<'_>, vcpu: &Vcpu, abort: Abort) -> Step {
    // HPFAR_EL2 is valid for these, and for any fault on a walk.
    let valid = abort.is_stage1_walk()
        || matches!(abort.status(), Status::AccessFlag(_) | Status::AddressSize(_));
    let page = valid.then(|| HPFAR_EL2.read(HPFAR_EL2::FIPA) << 12);
    diagnose(env, vcpu, page.map(|page| ipa(page, abort)), None)
}

/// Stops the VM for an abort.
#[cold]
fn diagnose(env: Env<'_>, vcpu: &Vcpu, ipa: Option<u64>, hint: Option<alloc::string::String>) -> Step {
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
fn where_is(env: Env<'_>, ipa: u64) -> alloc::string::String {
    let guard = env.guards.enter();
    let all: alloc::vec::Vec<_> = env.vm.all_regions(&guard).collect();
    locate(ipa, &all)
}
