//! Calls that change the caller's memory, or how it is kept: who does what they ask for, and how they are answered.
//!
//! A guest that is not allowed to make them (`Plan::manage`) is told that there are none.
//!
//! | calls | file |
//! | --- | --- |
//! | MOVE | `vm/moving.rs` |
//! | SPLIT, COLLAPSE | `vm/blocks.rs` |
//! | COPY | `vm/copying.rs` |
//! | CONTIGUOUS, DISSOLVE | `vm/runs.rs` |
//! | SCAN | `vm/scan.rs` |
//! | PROTECT | `vm/protecting.rs` |
//! | POPULATE, RELEASE | `vm/populating.rs` |
//! | AGE | `vm/ageing.rs` |
//! | DIRTY_START, DIRTY_HARVEST, DIRTY_STOP | `vm/logging.rs` |
//! | SHADOW | `vm/shadow.rs` |
//! | RECOVER | `vm/recovery.rs` |
//! | MEASURE, in builds with the feature `measure` | `vm/measuring.rs` |
//! | PROBE, in builds with the feature `selftest` | `vm/probing.rs` |

use alloc::boxed::Box;

#[cfg(feature = "measure")]
use hyp_abi::measure::MEASURE;
use hyp_abi::{call, map};
use hyp_core::diagnosis::Diagnosis;

use super::answer;
#[cfg(feature = "measure")]
use crate::event::resizing;
#[cfg(feature = "measure")]
use crate::vm::measuring;
use crate::vm::outcome::{Part, Refused};
use crate::vm::run::{Env, Step};
use crate::vm::scan::Scanned;
use crate::vm::stop::Reason;
use crate::vm::vcpu::Vcpu;
use crate::vm::{
    NUMBER, ageing, blocks, copying, logging, moving, populating, protecting, recovery, runs, scan,
    shadow,
};

/// Answers one of [`call::MANAGING`]; `esr` is the syndrome of the instruction.
#[inline(never)]
pub(super) fn call(
    env: Env<'_>,
    vcpu: &mut Vcpu,
    function: u32,
    arguments: [u64; 3],
    esr: u64,
) -> Step {
    if !env.vm.plan.manage {
        return answer(vcpu, call::NOT_SUPPORTED as u64);
    }
    match asked(env, function, arguments) {
        Ok(values) => {
            for (number, value) in (1..).zip(values) {
                vcpu.context.set_x(number, value);
            }
            answer(vcpu, call::SUCCESS as u64)
        }
        Err(why) => refused(vcpu, esr, function, arguments, why),
    }
}

/// Does what is asked for; returns `x1` and `x2`.
fn asked(env: Env<'_>, function: u32, arguments: [u64; 3]) -> Result<[u64; 2], Refused> {
    let [start, bytes, more] = arguments;
    let part = || match function {
        call::SPLIT => blocks::split(env, start, bytes),
        call::COLLAPSE => blocks::collapse(env, start, bytes),
        call::COPY => copying::copy(env, start, bytes, more),
        call::CONTIGUOUS => runs::make(env, start, bytes),
        call::DISSOLVE => runs::dissolve(env, start, bytes),
        call::PROTECT => protecting::protect(env, start, bytes, more),
        call::POPULATE => populating::populate(env, start, bytes),
        call::RELEASE => populating::release(env, start, bytes),
        call::AGE => ageing::age(env, start, bytes, more),
        call::DIRTY_START => logging::start(env, start, bytes, more),
        call::DIRTY_HARVEST => logging::harvest(env, start, bytes, more),
        call::RECOVER => recovery::recover(env, start, bytes, more),
        call::DIRTY_STOP => logging::stop(env),
        _ => Err(Refused::Unsupported),
    };
    #[cfg(feature = "measure")]
    let part = || resizing::noted(env.vm, function, part);
    match function {
        // It has one answer: x2 keeps its value.
        call::MOVE => moving::move_memory(env, start, bytes).map(|pages| [pages, bytes]),
        call::SCAN => {
            scan::by_call(env, start).map(|Scanned { made, ended, .. }| [made, u64::from(ended)])
        }
        call::SHADOW => shadow::call(env, start, bytes, more),
        #[cfg(feature = "selftest")]
        hyp_abi::probe::PROBE => crate::vm::probing::probe(env, start, bytes, more),
        #[cfg(feature = "measure")]
        MEASURE => measuring::measure(env, start, bytes, more).map(|ticks| [ticks, bytes]),
        _ => part().map(|Part { bytes, count }| [bytes, count]),
    }
}

/// The answer to a call that did nothing, or the end of the VM if it did half.
#[cold]
fn refused(vcpu: &mut Vcpu, esr: u64, function: u32, [start, ..]: [u64; 3], why: Refused) -> Step {
    let code = match why {
        Refused::Unsupported => call::NOT_SUPPORTED,
        Refused::Invalid => call::INVALID_PARAMETER,
        Refused::Busy => call::BUSY,
        Refused::NoMemory => call::NO_MEMORY,
        Refused::Broken(why) => {
            // Where in RAM a scan went wrong the reason says.
            let ipa = if function == call::SCAN { map::RAM_BASE } else { start };
            let diagnosis = Diagnosis::new(NUMBER, vcpu.number as u32, vcpu.context.pc, esr)
                .with_ipa(ipa)
                .with_hint(why);
            return vcpu.stop(Reason::Diagnosis(Box::new(diagnosis)));
        }
    };
    answer(vcpu, code as u64)
}
