//! PSCI against a reference that has no shortcuts (Arm DEN 0022, version 1.1).

use arbitrary::Arbitrary;
use hyp_core::IpaRange;
use hyp_core::psci::{Action, Power, Psci};

/// The most virtual CPUs that a VM has.
const MOST: usize = 8;

/// Function identifiers, by table 6 of DEN 0022 and by DEN 0028.
const KNOWN: [u32; 14] = [
    0x8400_0000, // PSCI_VERSION
    0x8400_0002, // CPU_OFF
    0x8400_0003, // CPU_ON
    0xc400_0003, // CPU_ON, 64-bit
    0x8400_0004, // AFFINITY_INFO
    0xc400_0004, // AFFINITY_INFO, 64-bit
    0x8400_0001, // CPU_SUSPEND
    0xc400_0001, // CPU_SUSPEND, 64-bit
    0x8400_0006, // MIGRATE_INFO_TYPE
    0x8400_0008, // SYSTEM_OFF
    0x8400_0009, // SYSTEM_RESET
    0x8400_000a, // PSCI_FEATURES
    0x8000_0000, // SMCCC_VERSION
    0x8000_0001, // SMCCC_ARCH_FEATURES
];

const NOT_SUPPORTED: u64 = -1_i64 as u64;
const INVALID_PARAMETERS: u64 = -2_i64 as u64;
const DENIED: u64 = -3_i64 as u64;
const ALREADY_ON: u64 = -4_i64 as u64;
const ON_PENDING: u64 = -5_i64 as u64;
const INVALID_ADDRESS: u64 = -9_i64 as u64;

/// A function, as a fuzzer chooses it.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub(super) enum Function {
    /// One of the list.
    Known(u8),
    /// Any number.
    Any(u32),
}

/// The reference.
pub(super) struct Reference {
    power: Vec<Power>,
    ram: IpaRange,
}

impl Reference {
    pub(super) fn new(vcpus: usize, ram: IpaRange) -> Self {
        let power = |vcpu| if vcpu == 0 { Power::On } else { Power::Off };
        Self { power: (0..vcpus.min(MOST)).map(power).collect(), ram }
    }

    fn state(&self, vcpu: usize) -> Power {
        self.power.get(vcpu).copied().unwrap_or(Power::Off)
    }

    pub(super) fn started(&mut self, psci: &Psci, vcpu: usize) {
        psci.started(vcpu);
        if let Some(state) = self.power.get_mut(vcpu).filter(|state| **state == Power::OnPending) {
            *state = Power::On;
        }
        self.agrees(psci);
    }

    pub(super) fn call(&mut self, psci: &Psci, vcpu: usize, function: Function, args: [u64; 3]) {
        let number = match function {
            Function::Known(at) => KNOWN[usize::from(at) % KNOWN.len()],
            Function::Any(number) => number,
        };
        let action = psci.call(vcpu, number, args);
        assert_eq!(action, self.answer(vcpu, number, args), "{number:#x} {args:#x?}");
        self.agrees(psci);
    }

    fn agrees(&self, psci: &Psci) {
        (0..MOST + 2).for_each(|vcpu| assert_eq!(psci.power(vcpu), self.state(vcpu), "{vcpu}"));
    }

    fn answer(&mut self, vcpu: usize, number: u32, args: [u64; 3]) -> Action {
        let wide = number >> 30 & 1 == 1;
        let args = args.map(|argument| if wide { argument } else { u64::from(argument as u32) });
        Action::Return(match number {
            0x8400_0000 => 0x1_0001,
            0x8000_0000 => 0x1_0001,
            0x8400_000a if args[0] != 0x8000_0001 && KNOWN.map(u64::from).contains(&args[0]) => 0,
            0x8000_0001 if [0x8000_0000, 0x8000_0001].contains(&args[0]) => 0,
            0x8400_0002 if self.state(vcpu) == Power::On => {
                self.power[vcpu] = Power::Off;
                return Action::Off { last: self.power.iter().all(|state| *state == Power::Off) };
            }
            0x8400_0002 => DENIED,
            0x8400_0003 | 0xc400_0003 => return self.cpu_on(args),
            0x8400_0004 | 0xc400_0004 => self.affinity_info(args),
            0x8400_0001 | 0xc400_0001 => return self.cpu_suspend(args),
            // No trusted OS, or none that needs to migrate.
            0x8400_0006 => 2,
            0x8400_0008 => return Action::SystemOff,
            0x8400_0009 => return Action::SystemReset,
            _ => NOT_SUPPORTED,
        })
    }

    fn cpu_on(&mut self, [target, entry, context]: [u64; 3]) -> Action {
        if target >= self.power.len() as u64 {
            return Action::Return(INVALID_PARAMETERS);
        }
        if entry % 4 != 0 || entry < self.ram.start || entry >= self.ram.end {
            return Action::Return(INVALID_ADDRESS);
        }
        let state = &mut self.power[target as usize];
        match state {
            Power::On => Action::Return(ALREADY_ON),
            Power::OnPending => Action::Return(ON_PENDING),
            Power::Off => {
                *state = Power::OnPending;
                Action::Start { vcpu: target as usize, entry, context }
            }
        }
    }

    fn cpu_suspend(&self, [state, entry, _]: [u64; 3]) -> Action {
        // Figure 3 of DEN 0022: PowerLevel 25:24, StateType 16, StateID 15:0, everything else reserved.
        let reserved = (0..64).filter(|bit| !matches!(bit, 0..=16 | 24 | 25));
        if reserved.into_iter().any(|bit| state >> bit & 1 == 1) {
            return Action::Return(INVALID_PARAMETERS);
        }
        let powers_down = state >> 16 & 1 == 1;
        let fits = entry % 4 == 0 && entry >= self.ram.start && entry < self.ram.end;
        match powers_down && !fits {
            true => Action::Return(INVALID_ADDRESS),
            false => Action::Suspend,
        }
    }

    fn affinity_info(&self, [target, level, _]: [u64; 3]) -> u64 {
        // Every virtual CPU is in cluster 0 of each level above.
        let named = match level {
            0 => {
                return match self.power.get(target as usize) {
                    Some(state) if target < MOST as u64 => *state as u64,
                    _ => INVALID_PARAMETERS,
                };
            }
            1..=3 => target >> (8 * level),
            _ => return INVALID_PARAMETERS,
        };
        if named != 0 {
            return INVALID_PARAMETERS;
        }
        let any = |power| self.power.contains(&power);
        match (any(Power::On), any(Power::OnPending)) {
            (true, _) => Power::On as u64,
            (false, true) => Power::OnPending as u64,
            (false, false) => Power::Off as u64,
        }
    }
}
