//! The guest's interrupts: which INTID each source has. The numbers are those of QEMU's `virt` machine, and of the Base
//! System Architecture (Arm DEN 0094) where it has any.

/// First INTID of a private peripheral interrupt (PPI).
pub const FIRST_PPI: u32 = 16;

/// First INTID of a shared peripheral interrupt (SPI).
pub const FIRST_SPI: u32 = 32;

/// A PPI: the EL1 virtual timer.
pub const VIRTUAL_TIMER: u32 = 27;

/// A PPI: the EL1 physical timer.
pub const PHYSICAL_TIMER: u32 = 30;

/// An SPI: the PL011.
pub const UART: u32 = 33;
