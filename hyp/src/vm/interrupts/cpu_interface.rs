//! The hardware's virtual CPU interface: what EL2 reaches of it (Arm IHI 0069, chapter 12, "System register descriptions").
//!
//! How many list registers and active priority registers there are is what `ICH_VTR_EL2` says, and no other is touched. A write takes effect
//! for the guest at the next return to it, which is a context synchronization.

use aarch64_cpu::asm::barrier;
use hyp_core::vgic::{self, ListRegisters, Maintenance, Vmcr};

use crate::sysreg;

/// Active priority registers of a group that an implementation may have.
const PRIORITIES: usize = 4;

/// `ICH_HCR_EL2.En`: the virtual CPU interface is on.
const EN: u64 = 1 << 0;
/// `ICH_HCR_EL2.TDIR`: writes of `ICC_DIR_EL1` trap.
const TDIR: u64 = 1 << 14;
/// `ICH_VMCR_EL2.VFIQEn`: virtual group 0 interrupts are FIQs, as always with system registers.
const VFIQ_EN: u64 = 1 << 3;

/// Registers whose number is part of their name. One that the executing CPU does not have must not be asked for.
macro_rules! numbered {
    ($(#[$doc:meta])* $read:ident, $write:ident: $($n:literal => $name:literal)*) => {
        $(#[$doc])*
        pub(super) fn $read(number: usize) -> u64 {
            match number {
                $($n => sysreg::read!($name),)*
                _ => 0,
            }
        }

        $(#[$doc])*
        pub(super) fn $write(number: usize, value: u64) {
            match number {
                $($n => sysreg::write!($name, value),)*
                _ => {}
            }
        }
    };
}

numbered! {
    /// `ICH_LR<n>_EL2`: `ICH_VTR_EL2.ListRegs` + 1 of them.
    list, set_list:
    0 => "S3_4_C12_C12_0" 1 => "S3_4_C12_C12_1" 2 => "S3_4_C12_C12_2" 3 => "S3_4_C12_C12_3"
    4 => "S3_4_C12_C12_4" 5 => "S3_4_C12_C12_5" 6 => "S3_4_C12_C12_6" 7 => "S3_4_C12_C12_7"
    8 => "S3_4_C12_C13_0" 9 => "S3_4_C12_C13_1" 10 => "S3_4_C12_C13_2" 11 => "S3_4_C12_C13_3"
    12 => "S3_4_C12_C13_4" 13 => "S3_4_C12_C13_5" 14 => "S3_4_C12_C13_6" 15 => "S3_4_C12_C13_7"
}

numbered! {
    /// `ICH_AP0R<n>_EL2`: of [`active_registers`].
    active0, set_active0:
    0 => "S3_4_C12_C8_0" 1 => "S3_4_C12_C8_1" 2 => "S3_4_C12_C8_2" 3 => "S3_4_C12_C8_3"
}

numbered! {
    /// `ICH_AP1R<n>_EL2`: of [`active_registers`].
    active1, set_active1:
    0 => "S3_4_C12_C9_0" 1 => "S3_4_C12_C9_1" 2 => "S3_4_C12_C9_2" 3 => "S3_4_C12_C9_3"
}

/// The list registers of a vCPU.
#[derive(Debug)]
pub(super) struct Lists {
    /// As the model has them.
    pub(super) values: ListRegisters,
    /// How many were filled, the first ones: hardware has 0 in the others.
    used: usize,
}

impl Lists {
    /// Empty ones, as many as the executing CPU has.
    pub(super) fn new() -> Self {
        let count = (type_register() & 0x1f) as usize + 1;
        Self { values: ListRegisters::new(count), used: 0 }
    }

    /// Reads those that were filled: hardware fills none.
    pub(super) fn take(&mut self) {
        for (number, value) in self.values.values.iter_mut().enumerate().take(self.used) {
            *value = list(number);
        }
    }

    /// Writes the first `used`, and 0 to those that were filled beyond.
    pub(super) fn put(&mut self, used: usize) {
        for (number, value) in self.values.values.iter().enumerate().take(used.max(self.used)) {
            set_list(number, *value);
        }
        self.used = used;
    }
}

/// How many bits of priority the executing CPU's interface has.
pub(super) fn priority_bits() -> u32 {
    (type_register() >> 29 & 0b111) as u32 + 1
}

fn type_register() -> u64 {
    sysreg::read!("S3_4_C12_C11_1") // ICH_VTR_EL2
}

/// How many bits of priority preempt: 5, 6 or 7.
fn preemption_bits() -> u32 {
    (type_register() >> 26 & 0b111) as u32 + 1
}

/// Whether EL2 may have the guest's writes of `ICC_DIR_EL1` for itself (`ICH_VTR_EL2.TDS`).
fn traps_deactivation() -> bool {
    type_register() >> 19 & 1 != 0
}

/// `ICH_HCR_EL2`, with EOIcount.
pub(super) fn control() -> u64 {
    sysreg::read!("S3_4_C12_C11_0")
}

/// Switches the interface on, with these maintenance interrupts. EOIcount is 0 then.
pub(super) fn switch_on(maintenance: Maintenance) {
    let traps = if traps_deactivation() { TDIR } else { 0 };
    set_control(EN | traps | maintenance.bits());
}

/// Switches the interface off: nothing of it reaches EL1, or is counted.
pub(super) fn switch_off() {
    set_control(0);
}

fn set_control(value: u64) {
    sysreg::write!("S3_4_C12_C11_0", value);
}

/// `ICH_VMCR_EL2`: the priority mask, the groups and the modes that the guest has set in its CPU interface.
pub(super) fn machine_control() -> Vmcr {
    Vmcr(sysreg::read!("S3_4_C12_C11_7"))
}

/// What a vCPU has in its CPU interface beyond list registers, while it is not in the hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CpuInterface {
    machine_control: u64,
    group0: [u64; PRIORITIES],
    group1: [u64; PRIORITIES],
}

impl CpuInterface {
    /// After reset: no group is enabled, every priority is masked, nothing is active, the binary points are the least there are.
    pub(super) const fn new() -> Self {
        Self { machine_control: VFIQ_EN, group0: [0; PRIORITIES], group1: [0; PRIORITIES] }
    }

    /// What decides whether it signals an interrupt.
    pub(super) fn view(&self) -> vgic::Interface {
        let mut active = [0; PRIORITIES];
        for ((active, group0), group1) in active.iter_mut().zip(self.group0).zip(self.group1) {
            *active = (group0 | group1) as u32;
        }
        let running = vgic::running_priority(active, preemption_bits());
        vgic::Interface { vmcr: Vmcr(self.machine_control), running }
    }

    /// Takes it out of the hardware.
    pub(super) fn take() -> Self {
        // What the guest has last done to it is complete.
        barrier::isb(barrier::SY);
        let mut taken = Self { machine_control: machine_control().0, ..Self::new() };
        for number in active_registers() {
            taken.group0[number] = active0(number);
            taken.group1[number] = active1(number);
        }
        taken
    }

    /// Puts it into the hardware.
    pub(super) fn put(&self) {
        sysreg::write!("S3_4_C12_C11_7", self.machine_control);
        for number in active_registers() {
            set_active0(number, self.group0[number]);
            set_active1(number, self.group1[number]);
        }
    }
}

/// The active priority registers of a group that there are: one for each 32 levels that preempt.
fn active_registers() -> core::ops::Range<usize> {
    let levels = 1_usize << preemption_bits();
    0..(levels / 32).clamp(1, PRIORITIES)
}
