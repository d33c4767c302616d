//! Calls of the guest: PSCI by HVC or SMC, and our own in the vendor range (crate `hyp-abi`).
//!
//! Every argument comes from the guest. A VM can only ask about itself; a bad argument gets
//! INVALID_PARAMETER and changes nothing; an unknown function NOT_SUPPORTED. Only immediate 0 is SMCCC:
//! with any other the call is unknown. x4-x17 keep their values, as SMCCC 1.1 allows.

use alloc::boxed::Box;
use core::sync::atomic::Ordering;

use hyp_abi::call::{self, Stat};
use hyp_abi::map;
use hyp_core::diagnosis::Diagnosis;
use hyp_core::psci::Action;

use crate::cpu;
use crate::event::counters;
#[cfg(feature = "measure")]
use crate::event::resizing;
use crate::platform::gic;
use crate::vm::blocks::{self, Resized};
#[cfg(feature = "measure")]
use crate::vm::measuring;
use crate::vm::moving::{self, Refused};
use crate::vm::run::{Env, Step};
use crate::vm::scan::{self, Scanned};
use crate::vm::stop::Reason;
use crate::vm::vcpu::{Entry, Vcpu};
use crate::vm::{NUMBER, Vm, copying, runs};

/// Answers a call; `immediate` is that of the instruction, `esr` its syndrome.
pub(crate) fn call(env: Env<'_>, vcpu: &mut Vcpu, immediate: u16, esr: u64) -> Step {
    env.cpu.counters.bump(Stat::Hypercalls);
    let [function, arguments @ ..] = [0, 1, 2, 3].map(|number| vcpu.context.x(number));
    let function = function as u32;
    if immediate != 0 {
        return answer(vcpu, call::NOT_SUPPORTED as u64);
    }
    match function {
        call::VENDOR_UID => {
            for (number, word) in (0..).zip(call::UID) {
                vcpu.context.set_x(number, u64::from(word));
            }
            Step::Resume
        }
        call::VERDICT => Step::Stop(Reason::Verdict(arguments[0])),
        call::STAT => match Stat::from_u64(arguments[0]) {
            Some(stat) => {
                vcpu.context.set_x(1, value(env.vm, stat));
                answer(vcpu, call::SUCCESS as u64)
            }
            None => answer(vcpu, call::INVALID_PARAMETER as u64),
        },
        call::SPLIT | call::COLLAPSE | call::COPY | call::CONTIGUOUS | call::DISSOLVE => {
            let [start, bytes, more] = arguments;
            let work = || match function {
                call::SPLIT => blocks::split(env, start, bytes),
                call::COLLAPSE => blocks::collapse(env, start, bytes),
                call::CONTIGUOUS => runs::make(env, start, bytes),
                call::DISSOLVE => runs::dissolve(env, start, bytes),
                _ => copying::copy(env, start, bytes, more),
            };
            #[cfg(feature = "measure")]
            let work = || resizing::noted(env.vm, function, work);
            resized(vcpu, esr, start, work())
        }
        call::SCAN => match scan::by_call(env, arguments[0]) {
            Ok(Scanned { made, ended, .. }) => {
                vcpu.context.set_x(1, made);
                vcpu.context.set_x(2, u64::from(ended));
                answer(vcpu, call::SUCCESS as u64)
            }
            // Where in RAM it went wrong the reason says.
            Err(why) => refused(vcpu, esr, map::RAM_BASE, why),
        },
        #[cfg(feature = "measure")]
        hyp_abi::measure::MEASURE => {
            let [start, bytes, way] = arguments;
            match measuring::measure(env, start, bytes, way) {
                Ok(ticks) => {
                    vcpu.context.set_x(1, ticks);
                    answer(vcpu, call::SUCCESS as u64)
                }
                Err(why) => refused(vcpu, esr, start, why),
            }
        }
        call::MOVE => match moving::move_memory(env, arguments[0], arguments[1]) {
            Ok(pages) => {
                vcpu.context.set_x(1, pages);
                answer(vcpu, call::SUCCESS as u64)
            }
            Err(why) => refused(vcpu, esr, arguments[0], why),
        },
        _ => psci(env.vm, vcpu, function, arguments, esr),
    }
}

/// A counter of the VM's: its space counts flushes, the CPUs everything else.
fn value(vm: &Vm, stat: Stat) -> u64 {
    match stat {
        Stat::Tlbis => vm.space.account().tlbis(),
        Stat::Flushes => {
            let account = vm.space.account();
            account.flushes + account.whole_flushes
        }
        counted => counters::sum(counted),
    }
}

/// The answer to a call that changes the size of mappings from `start` on.
fn resized(vcpu: &mut Vcpu, esr: u64, start: u64, result: Result<Resized, Refused>) -> Step {
    match result {
        Ok(Resized { bytes, blocks }) => {
            vcpu.context.set_x(1, bytes);
            vcpu.context.set_x(2, blocks);
            answer(vcpu, call::SUCCESS as u64)
        }
        Err(why) => refused(vcpu, esr, start, why),
    }
}

/// The answer to a call at `ipa` that did nothing, or the end of the VM if it did half.
fn refused(vcpu: &mut Vcpu, esr: u64, ipa: u64, why: Refused) -> Step {
    let code = match why {
        Refused::Unsupported => call::NOT_SUPPORTED,
        Refused::Invalid => call::INVALID_PARAMETER,
        Refused::Busy => call::BUSY,
        Refused::NoMemory => call::NO_MEMORY,
        Refused::Broken(why) => {
            let diagnosis = Diagnosis::new(NUMBER, vcpu.number as u32, vcpu.context.pc, esr)
                .with_ipa(ipa)
                .with_hint(why);
            return Step::Stop(Reason::Diagnosis(Box::new(diagnosis)));
        }
    };
    answer(vcpu, code as u64)
}

fn answer(vcpu: &mut Vcpu, value: u64) -> Step {
    vcpu.context.set_x(0, value);
    Step::Resume
}

fn psci(vm: &Vm, vcpu: &mut Vcpu, function: u32, arguments: [u64; 3], esr: u64) -> Step {
    match vm.psci.call(vcpu.number, function, arguments) {
        Action::Return(value) => answer(vcpu, value),
        Action::Start { vcpu: target, entry, context } => {
            if let (Some(mailbox), Some(other)) = (vm.mailboxes.get(target), cpu::all().get(target))
            {
                mailbox.post(Entry { pc: entry, argument: context });
                gic::kick(other.mpidr.load(Ordering::Relaxed));
            }
            answer(vcpu, 0)
        }
        Action::Off { last: false } => Step::Off,
        Action::Off { last: true } => {
            let diagnosis = Diagnosis::new(NUMBER, vcpu.number as u32, vcpu.context.pc, esr)
                .with_hint(
                    "the last running vCPU switched itself off: nothing can start one again",
                );
            Step::Stop(Reason::Diagnosis(Box::new(diagnosis)))
        }
        Action::SystemOff => Step::Stop(Reason::PoweredOff),
        Action::SystemReset => Step::Stop(Reason::Reset),
    }
}
