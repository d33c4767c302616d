//! Which CPU this is.

use core::fmt;

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTVCT_EL0, CurrentEL, MIDR_EL1, MPIDR_EL1};
use tock_registers::interfaces::Readable;

/// MIDR_EL1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Midr(pub u64);

impl Midr {
    /// This CPU's.
    pub fn read() -> Self {
        Self(MIDR_EL1.get())
    }

    fn implementer(self) -> u64 {
        self.0 >> 24 & 0xff
    }

    fn part(self) -> u64 {
        self.0 >> 4 & 0xfff
    }

    /// The CPU's name, where it is one of those that the tests run on.
    pub fn name(self) -> &'static str {
        match (self.implementer(), self.part()) {
            (0x41, 0xd03) => "Cortex-A53",
            (0x41, 0xd05) => "Cortex-A55",
            (0x41, 0xd07) => "Cortex-A57",
            (0x41, 0xd08) => "Cortex-A72",
            (0x41, 0xd0b) => "Cortex-A76",
            (0x41, 0xd0c) => "Neoverse-N1",
            (0x41, 0xd40) => "Neoverse-V1",
            (0x41, 0xd47) => "Cortex-A710",
            (0x41, 0xd49) => "Neoverse-N2",
            (0x00, _) => "QEMU max",
            _ => "unknown CPU",
        }
    }
}

impl fmt::Display for Midr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (variant, revision) = (self.0 >> 20 & 0xf, self.0 & 0xf);
        write!(f, "{} r{variant}p{revision} (MIDR {:#010x})", self.name(), self.0)
    }
}

/// The exception level that this code runs at.
pub fn exception_level() -> u64 {
    CurrentEL.read(CurrentEL::EL)
}

/// The virtual counter, read after everything before it in program order.
pub fn ticks() -> u64 {
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    CNTVCT_EL0.get()
}

/// Ticks a second.
pub fn tick_rate() -> u64 {
    CNTFRQ_EL0.get()
}

/// This CPU's affinity value, as PSCI and the device tree have it.
pub fn mpidr() -> u64 {
    MPIDR_EL1.get() & 0xff_00ff_ffff
}
