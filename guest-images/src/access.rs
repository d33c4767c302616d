//! Accesses whose instruction is known, and what is to come of them.

use core::arch::global_asm;

use crate::exception::{
    EC_DATA_ABORT, EC_DATA_ABORT_EL0, EC_INSTRUCTION_ABORT, EC_INSTRUCTION_ABORT_EL0, FSC_EXTERNAL,
    Fault, Resume, catch, probe_call,
};
use crate::{check_eq, el0, fail};

unsafe extern "C" {
    fn access_load(at: usize) -> u64;
    fn access_store(at: usize, value: u64);
}

global_asm!(
    r#"
.pushsection .text, "ax"
access_load:
    ldr     x0, [x0]
    ret
access_store:
    str     x1, [x0]
    ret
.popsection
"#
);

/// ESR_EL1.IL and WnR.
const IL: u64 = 1 << 25;
const WRITE: u64 = 1 << 6;
/// SPSR_EL1: level and stack, masks, IL, SS.
const STATE: u64 = 0x3df | 3 << 20;
/// Of these, how EL1 and EL0 run here.
const EL1: u64 = 0x3c5;
const EL0: u64 = 0x3c0;

/// Reads 8 bytes at EL1.
pub fn load(at: usize) -> Result<u64, Fault> {
    // SAFETY: 1. a load that faults is skipped by `catch`; 2. any bits are a u64.
    catch(Resume::Next, || unsafe { access_load(at) })
}

/// Writes 8 bytes at EL1. Callers give addresses of memory of theirs.
pub fn store(at: usize, value: u64) -> Result<(), Fault> {
    // SAFETY: 1. a store that faults is skipped by `catch`; 2. RAM of the arena, which the caller took.
    catch(Resume::Next, || unsafe { access_store(at, value) })
}

/// Runs what is at `at` at EL1: RET, whatever is in x0.
pub fn fetch(at: usize) -> Result<(), Fault> {
    // SAFETY: 1. a RET, or it faults.
    unsafe { probe_call(at) }.map(|_| ())
}

/// Who accesses, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load of 8 bytes at EL1.
    Load,
    /// A store of 8 bytes at EL1.
    Store,
    /// An instruction fetch at EL1.
    Fetch,
    /// A load at EL0.
    LoadEl0,
    /// A store at EL0.
    StoreEl0,
    /// An instruction fetch at EL0.
    FetchEl0,
}

impl Access {
    /// All of them.
    pub const EVERY: [Self; 6] =
        [Self::Load, Self::Store, Self::Fetch, Self::LoadEl0, Self::StoreEl0, Self::FetchEl0];

    /// Whether permissions of PROTECT allow it.
    pub fn is_allowed(self, prot: u64) -> bool {
        let bit = match self {
            Self::Load | Self::LoadEl0 => hyp_abi::call::PROT_READ,
            Self::Store | Self::StoreEl0 => hyp_abi::call::PROT_WRITE,
            Self::Fetch => hyp_abi::call::PROT_EXEC_EL1,
            Self::FetchEl0 => hyp_abi::call::PROT_EXEC_EL0,
        };
        prot & bit != 0
    }

    /// Makes it, at an address of RAM that holds code: RET for EL1, SVC for EL0.
    fn make(self, at: usize) -> Result<(), Fault> {
        match self {
            Self::Load => load(at).map(|_| ()),
            Self::Store => store(at, RET_AND_SVC),
            Self::Fetch => fetch(at),
            Self::LoadEl0 => el0::read(el0::data(at)).map(|_| ()),
            // SAFETY: 1. RAM of the arena, which the caller took.
            Self::StoreEl0 => unsafe { el0::write(el0::data(at), RET_AND_SVC) },
            // SAFETY: 1. SVC is there, or it faults.
            Self::FetchEl0 => unsafe { el0::call(el0::code(at + 4)) },
        }
    }

    /// Makes it, and fails unless it is allowed, or is the abort that it should be.
    pub fn expect(self, at: usize, allowed: bool) {
        let fault = match (self.make(at), allowed) {
            (Ok(()), true) => return,
            (Ok(()), false) => fail!("{self:?} at {at:#x} was allowed"),
            (Err(fault), true) => fail!("{self:?} at {at:#x} was refused: {fault}"),
            (Err(fault), false) => fault,
        };
        let (class, far, state) = match self {
            Self::Load | Self::Store => (EC_DATA_ABORT, at, EL1),
            Self::Fetch => (EC_INSTRUCTION_ABORT, at, EL1),
            Self::LoadEl0 | Self::StoreEl0 => (EC_DATA_ABORT_EL0, el0::data(at), EL0),
            Self::FetchEl0 => (EC_INSTRUCTION_ABORT_EL0, el0::code(at + 4), EL0),
        };
        let write = if matches!(self, Self::Store | Self::StoreEl0) { WRITE } else { 0 };
        let what = format_args!("{self:?} at {at:#x}");
        check_eq!(fault.esr, class << 26 | IL | write | FSC_EXTERNAL, "ESR of {what}");
        check_eq!(fault.far, far as u64, "FAR of {what}");
        check_eq!(fault.spsr & STATE, state, "SPSR of {what}");
        let instruction = match self {
            Self::Load => Some(access_load as *const () as usize),
            Self::Store => Some(access_store as *const () as usize),
            Self::Fetch | Self::FetchEl0 => Some(far),
            Self::LoadEl0 | Self::StoreEl0 => None,
        };
        if let Some(instruction) = instruction {
            check_eq!(fault.elr, instruction as u64, "ELR of {what}");
        }
    }
}

/// What a page begins with: RET, then SVC #0.
pub const RET_AND_SVC: u64 = 0xd65f_03c0 | 0xd400_0001 << 32;

/// Fails unless a page allows what `prot` says, and nothing else.
pub fn expect(at: usize, prot: u64) {
    Access::EVERY.into_iter().for_each(|access| access.expect(at, access.is_allowed(prot)));
}
