//! List registers as values: `ICH_LR<n>_EL2` (GICv3 and GICv4, Arm IHI 0069, section 12.4).
//!
//! | bits | field | meaning here |
//! | --- | --- | --- |
//! | 63:62 | State | 0 none, 1 pending, 2 active, 3 active and pending |
//! | 61 | HW | linked to the physical interrupt in pINTID: deactivating the one deactivates the other |
//! | 60 | Group | 1: group 1, signalled as IRQ; 0: group 0, signalled as FIQ |
//! | 55:48 | Priority | |
//! | 44:32 | pINTID | with HW=0 bit 41 is EOI: a maintenance interrupt when the guest deactivates it |
//! | 31:0 | vINTID | |

/// The most list registers that a CPU can have.
pub const MAX_LIST_REGISTERS: usize = 16;

/// The list registers of one vCPU, as plain values: read from hardware before [`Vgic::sync`](super::Vgic::sync),
/// written to it after [`Vgic::fill`](super::Vgic::fill).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListRegisters {
    /// `ICH_LR0_EL2` and so on; those from `count` on are 0 and stay it.
    pub values: [u64; MAX_LIST_REGISTERS],
    /// How many the CPU has: `ICH_VTR_EL2.ListRegs` + 1.
    pub count: usize,
}

impl ListRegisters {
    /// Empty ones of a CPU that has `count`: 1 to [`MAX_LIST_REGISTERS`], others are brought to the nearest.
    #[must_use]
    pub const fn new(count: usize) -> Self {
        let count = match count {
            0 => 1,
            1..=MAX_LIST_REGISTERS => count,
            _ => MAX_LIST_REGISTERS,
        };
        Self { values: [0; MAX_LIST_REGISTERS], count }
    }

    /// How many there are, in bounds whatever the field says.
    pub(super) fn capacity(&self) -> usize {
        self.count.clamp(1, MAX_LIST_REGISTERS)
    }
}

/// One list register's value, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListRegister {
    /// The interrupt.
    pub intid: u32,
    /// It waits to be acknowledged.
    pub pending: bool,
    /// It was acknowledged and not yet deactivated.
    pub active: bool,
    /// Group 1.
    pub group1: bool,
    /// Its priority, 0 the highest.
    pub priority: u8,
    /// What its deactivation does besides.
    pub link: Link,
}

/// What a deactivation by the guest does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Nothing.
    None,
    /// It raises the maintenance interrupt, so that EL2 looks whether the line is still up.
    Maintenance,
    /// It deactivates this physical interrupt.
    Physical(u32),
}

const PENDING: u64 = 1 << 62;
const ACTIVE: u64 = 1 << 63;
const HW: u64 = 1 << 61;
const GROUP1: u64 = 1 << 60;
const EOI: u64 = 1 << 41;
const PRIORITY_SHIFT: u32 = 48;
const PINTID_SHIFT: u32 = 32;
const PINTID_MASK: u64 = 0x1fff;

impl ListRegister {
    /// The register's value.
    #[must_use]
    pub const fn encode(self) -> u64 {
        let mut value = self.intid as u64 | (self.priority as u64) << PRIORITY_SHIFT;
        if self.pending {
            value |= PENDING;
        }
        if self.active {
            value |= ACTIVE;
        }
        if self.group1 {
            value |= GROUP1;
        }
        value
            | match self.link {
                Link::None => 0,
                Link::Maintenance => EOI,
                Link::Physical(physical) => HW | (physical as u64 & PINTID_MASK) << PINTID_SHIFT,
            }
    }

    /// What a value says. Any value decodes.
    #[must_use]
    pub const fn decode(value: u64) -> Self {
        Self {
            intid: value as u32,
            pending: value & PENDING != 0,
            active: value & ACTIVE != 0,
            group1: value & GROUP1 != 0,
            priority: (value >> PRIORITY_SHIFT) as u8,
            link: if value & HW != 0 {
                Link::Physical((value >> PINTID_SHIFT & PINTID_MASK) as u32)
            } else if value & EOI != 0 {
                Link::Maintenance
            } else {
                Link::None
            },
        }
    }
}
