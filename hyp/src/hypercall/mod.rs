//! Calls of the guest: PSCI by HVC or SMC, and our own in the vendor range (crate `hyp-abi`), of which those that change
//! memory are in `memory`.
//!
//! Every argument comes from the guest. A VM can only ask about itself; a bad argument gets
//! INVALID_PARAMETER and changes nothing; an unknown function NOT_SUPPORTED. Only immediate 0 is SMCCC:
//! with any other the call is unknown. x4-x17 keep their values, as SMCCC 1.1 allows.

mod memory;

use alloc::boxed::Box;

use hyp_abi::call::{self, Stat};
use hyp_core::diagnosis::Diagnosis;
use hyp_core::psci::Action;

use crate::event::counters;
use crate::vm::run::{Env, Step};
use crate::vm::stop::Reason;
use crate::vm::vcpu::{Entry, Vcpu};
use crate::vm::{NUMBER, Vm, schedule};

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
        call::VERDICT => vcpu.stop(Reason::Verdict(arguments[0])),
        call::STAT => match Stat::from_u64(arguments[0]) {
            Some(stat) => {
                vcpu.context.set_x(1, value(env.vm, stat));
                answer(vcpu, call::SUCCESS as u64)
            }
            None => answer(vcpu, call::INVALID_PARAMETER as u64),
        },
        #[cfg(feature = "selftest")]
        hyp_abi::probe::PROBE => memory::call(env, vcpu, function, arguments, esr),
        managing if call::manages(managing) => memory::call(env, vcpu, managing, arguments, esr),
        _ => psci(env, vcpu, function, arguments, esr),
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

fn answer(vcpu: &mut Vcpu, value: u64) -> Step {
    vcpu.context.set_x(0, value);
    Step::Resume
}

fn psci(env: Env<'_>, vcpu: &mut Vcpu, function: u32, arguments: [u64; 3], esr: u64) -> Step {
    let vm = env.vm;
    match vm.psci.call(vcpu.number, function, arguments) {
        Action::Return(value) => answer(vcpu, value),
        Action::Start { vcpu: target, entry, context } => {
            if let Some(mailbox) = vm.mailboxes.get(target) {
                mailbox.post(Entry { pc: entry, argument: context });
                schedule::kick(vm, target);
            }
            answer(vcpu, 0)
        }
        Action::Off { last: false } => Step::Off,
        Action::Off { last: true } => {
            let diagnosis = Diagnosis::new(NUMBER, vcpu.number as u32, vcpu.context.pc, esr)
                .with_hint(
                    "the last running vCPU switched itself off: nothing can start one again",
                );
            vcpu.stop(Reason::Diagnosis(Box::new(diagnosis)))
        }
        Action::Suspend => {
            vcpu.context.set_x(0, 0);
            Step::Wait
        }
        Action::SystemOff => vcpu.stop(Reason::PoweredOff),
        Action::SystemReset => vcpu.stop(Reason::Reset),
    }
}
