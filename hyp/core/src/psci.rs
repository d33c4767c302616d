//! PSCI for guests: which virtual CPUs run, and what each call answers.
//!
//! A pure state machine (Arm DEN 0022, version 1.1, over SMCCC 1.1). Each virtual CPU is Off, OnPending or
//! On; all states live in one atomic word, so that every transition is one compare-exchange, exactly one of
//! several racing CPU_ON calls wins, and the last CPU_OFF of a VM knows that it is the last.
//!
//! ```text
//!        CPU_ON by another            the target begins to run: started()
//!  Off ---------------------> OnPending ---------------------> On
//!   ^                                                           |
//!   +-----------------------------------------------------------+
//!                             CPU_OFF
//! ```
//!
//! CPU_SUSPEND is a standby, whatever was asked for: it waits as a WFI does, loses nothing, and returns. A power-down that
//! finds a wake-up pending may always end so (DEN 0022, 5.4), and nobody can tell ours from one that did.
//!
//! [`Psci::call`] decides and changes the state; the caller does what the [`Action`] says. For
//! [`Action::Start`] it hands entry and context to the target and wakes it. Between CPU_ON and
//! [`Psci::started`] nobody else can start that target, so one mailbox for each virtual CPU is enough:
//! the target has to empty it *before* it calls [`Psci::started`]. The winner's writes before the wake-up are the
//! caller's to publish; the word itself is read and written with acquire and release order.

#[cfg(test)]
mod tests;

use core::sync::atomic::{AtomicU32, Ordering};

use hyp_abi::MAX_VCPUS;
use smccc::arch::{SMCCC_ARCH_FEATURES, SMCCC_VERSION};
use smccc::psci;
use smccc::psci::error;

use crate::range::IpaRange;

/// What a call asks the caller to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Put this into `x0` and go on.
    Return(u64),
    /// Start another virtual CPU, then put 0 (success) into the caller's own `x0` and go on.
    Start {
        /// The virtual CPU to start; it is OnPending now.
        vcpu: usize,
        /// Its first instruction, an IPA inside RAM.
        entry: u64,
        /// Its `x0`.
        context: u64,
    },
    /// Stop the calling virtual CPU; it is Off now.
    Off {
        /// Whether no other virtual CPU runs or is about to: nobody is left who could start one.
        last: bool,
    },
    /// Wait as in WFI; then put 0 (success) into `x0` and go on.
    Suspend,
    /// Power the VM off.
    SystemOff,
    /// Reset the VM.
    SystemReset,
}

/// Power state of a virtual CPU. The numbers are what AFFINITY_INFO answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Power {
    /// Running.
    On = 0,
    /// Not running.
    Off = 1,
    /// Told to run, not running yet.
    OnPending = 2,
}

/// Two bits a virtual CPU, holding its [`Power`].
#[derive(Clone, Copy)]
struct States(u32);

impl States {
    const fn shift(vcpu: usize) -> u32 {
        (vcpu as u32).wrapping_mul(2)
    }

    const fn get(self, vcpu: usize) -> Power {
        match self.0.wrapping_shr(Self::shift(vcpu)) & 3 {
            0 => Power::On,
            2 => Power::OnPending,
            _ => Power::Off,
        }
    }

    const fn with(self, vcpu: usize, power: Power) -> Self {
        let shift = Self::shift(vcpu);
        let cleared = self.0 & !3_u32.wrapping_shl(shift);
        Self(cleared | (power as u32).wrapping_shl(shift))
    }
}

/// The PSCI state of one VM.
#[derive(Debug)]
pub struct Psci {
    states: AtomicU32,
    vcpus: usize,
    ram: IpaRange,
}

/// The bits of an MPIDR that name a virtual CPU, Aff3 to Aff0. Ours is number *n* at Aff0 = *n*.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// What CPU_SUSPEND's power_state has in its original format: PowerLevel 25:24, StateType 16, StateID 15:0. The others are 0.
const POWER_STATE: u64 = 0x0301_ffff;
/// StateType: power down, rather than standby.
const POWER_DOWN: u64 = 1 << 16;

impl Psci {
    /// A VM with virtual CPU 0 On and the others Off. `vcpus` beyond [`MAX_VCPUS`] do not exist. Entry
    /// points must lie in `ram`.
    #[must_use]
    pub fn new(vcpus: usize, ram: IpaRange) -> Self {
        let vcpus = vcpus.min(MAX_VCPUS);
        let off = (1..MAX_VCPUS).fold(States(0), |all, vcpu| all.with(vcpu, Power::Off));
        Self { states: AtomicU32::new(off.0), vcpus, ram }
    }

    /// The state of a virtual CPU; one that does not exist is Off.
    #[must_use]
    pub fn power(&self, vcpu: usize) -> Power {
        if vcpu < self.vcpus { self.load().get(vcpu) } else { Power::Off }
    }

    /// The target of a CPU_ON begins to run: it calls this itself, once, when it has taken over entry and
    /// context. Does nothing for a virtual CPU that is not OnPending.
    pub fn started(&self, vcpu: usize) {
        let _ = self.change(vcpu, Power::OnPending, Power::On);
    }

    fn load(&self) -> States {
        States(self.states.load(Ordering::Acquire))
    }

    /// `from` → `to` for one virtual CPU: the new states, or the state that stood in the way. The loop
    /// ends: it repeats only when some other transition succeeded.
    fn change(&self, vcpu: usize, from: Power, to: Power) -> Result<States, Power> {
        if vcpu >= self.vcpus {
            return Err(Power::Off);
        }
        let mut seen = self.load();
        loop {
            let current = seen.get(vcpu);
            if current != from {
                return Err(current);
            }
            let next = seen.with(vcpu, to);
            let order = (Ordering::AcqRel, Ordering::Acquire);
            match self.states.compare_exchange_weak(seen.0, next.0, order.0, order.1) {
                Ok(_) => return Ok(next),
                Err(now) => seen = States(now),
            }
        }
    }

    /// Answers a call by `vcpu`: function identifier in `w0`, arguments in `x1` to `x3`.
    ///
    /// Any value is safe; the 32-bit forms use the low half of each argument.
    pub fn call(&self, vcpu: usize, function: u32, args: [u64; 3]) -> Action {
        let narrow = args.map(|argument| argument & 0xffff_ffff);
        match function {
            psci::PSCI_VERSION => Action::Return(psci::Version { major: 1, minor: 1 }.into_u64()),
            SMCCC_VERSION => Action::Return(0x1_0001),
            psci::PSCI_FEATURES | SMCCC_ARCH_FEATURES => {
                let known = function_is_known(narrow[0] as u32, function);
                answer(if known { error::SUCCESS } else { error::NOT_SUPPORTED })
            }
            psci::PSCI_CPU_ON_32 => self.cpu_on(narrow),
            psci::PSCI_CPU_ON_64 => self.cpu_on(args),
            psci::PSCI_CPU_OFF => self.cpu_off(vcpu),
            psci::PSCI_AFFINITY_INFO_32 => self.affinity_info(narrow),
            psci::PSCI_AFFINITY_INFO_64 => self.affinity_info(args),
            psci::PSCI_CPU_SUSPEND_32 => self.cpu_suspend(narrow),
            psci::PSCI_CPU_SUSPEND_64 => self.cpu_suspend(args),
            psci::PSCI_MIGRATE_INFO_TYPE => {
                Action::Return(psci::MigrateType::MigrationNotRequired as u64)
            }
            psci::PSCI_SYSTEM_OFF => Action::SystemOff,
            psci::PSCI_SYSTEM_RESET => Action::SystemReset,
            _ => answer(error::NOT_SUPPORTED),
        }
    }

    /// The virtual CPU with this affinity.
    fn target(&self, affinity: u64) -> Option<usize> {
        if affinity & !AFFINITY != 0 {
            return None;
        }
        usize::try_from(affinity).ok().filter(|&vcpu| vcpu < self.vcpus)
    }

    fn cpu_on(&self, [affinity, entry, context]: [u64; 3]) -> Action {
        let Some(vcpu) = self.target(affinity) else {
            return answer(error::INVALID_PARAMETERS);
        };
        if !self.is_entry(entry) {
            return answer(error::INVALID_ADDRESS);
        }
        match self.change(vcpu, Power::Off, Power::OnPending) {
            Ok(_) => Action::Start { vcpu, entry, context },
            Err(Power::OnPending) => answer(error::ON_PENDING),
            Err(_) => answer(error::ALREADY_ON),
        }
    }

    fn cpu_off(&self, vcpu: usize) -> Action {
        match self.change(vcpu, Power::On, Power::Off) {
            Ok(states) => {
                let last = (0..self.vcpus).all(|other| states.get(other) == Power::Off);
                Action::Off { last }
            }
            // Who calls is On, unless the caller of this function is confused about who that is.
            Err(_) => answer(error::DENIED),
        }
    }

    fn cpu_suspend(&self, [state, entry, _]: [u64; 3]) -> Action {
        if state & !POWER_STATE != 0 {
            return answer(error::INVALID_PARAMETERS);
        }
        // A standby has no entry point.
        if state & POWER_DOWN != 0 && !self.is_entry(entry) {
            return answer(error::INVALID_ADDRESS);
        }
        Action::Suspend
    }

    /// Whether there is memory for the first instruction as a whole.
    fn is_entry(&self, entry: u64) -> bool {
        entry.is_multiple_of(4) && self.ram.contains(entry)
    }

    fn affinity_info(&self, [affinity, level, _]: [u64; 3]) -> Action {
        // At level n, fields below Aff<n> are ignored: all our virtual CPUs are in the cluster 0.0.0.
        let ignored = match level {
            0 => 0,
            1 => 0xff,
            2 => 0xffff,
            3 => 0xff_ffff,
            _ => return answer(error::INVALID_PARAMETERS),
        };
        if level == 0 {
            return match self.target(affinity) {
                Some(vcpu) => Action::Return(self.power(vcpu) as u64),
                None => answer(error::INVALID_PARAMETERS),
            };
        }
        if affinity & !ignored != 0 {
            return answer(error::INVALID_PARAMETERS);
        }
        let states = self.load();
        let has = |power| (0..self.vcpus).any(|vcpu| states.get(vcpu) == power);
        let power = [Power::On, Power::OnPending].into_iter().find(|&power| has(power));
        Action::Return(power.unwrap_or(Power::Off) as u64)
    }
}

/// What PSCI_FEATURES and SMCCC_ARCH_FEATURES say of a function.
fn function_is_known(function: u32, asked_by: u32) -> bool {
    let arch = matches!(function, SMCCC_VERSION | SMCCC_ARCH_FEATURES);
    if asked_by == SMCCC_ARCH_FEATURES {
        return arch;
    }
    // PSCI_FEATURES answers for SMCCC_VERSION as well: that is how SMCCC 1.1 is found.
    function == SMCCC_VERSION
        || matches!(
            function,
            psci::PSCI_VERSION
                | psci::PSCI_FEATURES
                | psci::PSCI_CPU_ON_32
                | psci::PSCI_CPU_ON_64
                | psci::PSCI_CPU_OFF
                | psci::PSCI_AFFINITY_INFO_32
                | psci::PSCI_AFFINITY_INFO_64
                | psci::PSCI_CPU_SUSPEND_32
                | psci::PSCI_CPU_SUSPEND_64
                | psci::PSCI_MIGRATE_INFO_TYPE
                | psci::PSCI_SYSTEM_OFF
                | psci::PSCI_SYSTEM_RESET
        )
}

/// A status code, sign-extended as SMCCC has it.
fn answer(code: i32) -> Action {
    Action::Return(i64::from(code) as u64)
}

trait IntoU64 {
    fn into_u64(self) -> u64;
}

impl IntoU64 for psci::Version {
    fn into_u64(self) -> u64 {
        u64::from(u32::from(self))
    }
}
