//! What EL2 sees of a vCPU's virtual CPU interface: `ICH_VMCR_EL2`, the running priority, and the bits of
//! `ICH_HCR_EL2` that the emulation asks for (Arm IHI 0069, section 12.4).

use bitflags::bitflags;

bitflags! {
    /// Maintenance interrupts of `ICH_HCR_EL2` that a fill needs. The bits are the register's.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Maintenance: u64 {
        /// Underflow: none or one list register is in use.
        const UIE = 1 << 1;
        /// The guest ended an interrupt that is in no list register; EOIcount counts these.
        const LRENPIE = 1 << 2;
        /// No list register is pending.
        const NPIE = 1 << 3;
        /// Group 0 is enabled at the interface.
        const VGRP0EIE = 1 << 4;
        /// Group 0 is disabled at the interface.
        const VGRP0DIE = 1 << 5;
        /// Group 1 is enabled at the interface.
        const VGRP1EIE = 1 << 6;
        /// Group 1 is disabled at the interface.
        const VGRP1DIE = 1 << 7;
    }
}

/// `ICH_HCR_EL2.EOIcount`: how often the guest ended an interrupt that was in no list register, modulo 32.
#[must_use]
pub const fn eoi_count(hcr: u64) -> u32 {
    (hcr >> 27) as u32 & 0x1f
}

/// A vCPU's `ICH_VMCR_EL2`: what its `ICC_*` registers hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vmcr(pub u64);

impl Vmcr {
    /// Whether the interface signals this group: VENG0 and VENG1, bits 0 and 1.
    #[must_use]
    pub const fn enables(self, group1: bool) -> bool {
        self.0 >> (group1 as u32) & 1 != 0
    }

    /// VEOIM: an end of interrupt only drops the priority, and a write of `ICC_DIR_EL1` deactivates.
    #[must_use]
    pub const fn splits_eoi(self) -> bool {
        self.0 >> 9 & 1 != 0
    }

    /// VPMR: only interrupts of a higher priority, a lower number, are signalled.
    #[must_use]
    pub const fn priority_mask(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// The bits of a priority that decide who interrupts whom: VBPR0, VBPR1 and VCBPR.
    #[must_use]
    pub const fn preemption_mask(self, group1: bool) -> u8 {
        let common = self.0 >> 4 & 1 != 0;
        let bpr0 = (self.0 >> 21 & 7) as u32;
        // Of group 1 the point lies one bit higher; its field is never 0.
        let point = match (self.0 >> 18 & 7) as u32 {
            bpr1 if group1 && !common => bpr1.saturating_sub(1),
            _ => bpr0,
        };
        (0xfe_u32 << point) as u8
    }
}

/// The running priority when nothing is active.
pub const IDLE: u8 = 0xff;

/// The priority of the most urgent active interrupt, or [`IDLE`]. `active` has `ICH_AP0R<n>_EL2` and `ICH_AP1R<n>_EL2`
/// ORed, those that the CPU lacks 0; `preemption_bits` is `ICH_VTR_EL2.PREbits` + 1.
#[must_use]
pub fn running_priority(active: [u32; 4], preemption_bits: u32) -> u8 {
    let shift = 8_u32.saturating_sub(preemption_bits);
    let first = active.iter().zip([0_u32, 32, 64, 96]).find(|(word, _)| **word != 0);
    first.map_or(IDLE, |(word, base)| (base.wrapping_add(word.trailing_zeros()) << shift) as u8)
}

/// What [`Vgic::signals`](super::Vgic::signals) is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// `ICH_VMCR_EL2`.
    pub vmcr: Vmcr,
    /// The [`running_priority`].
    pub running: u8,
}

impl Interface {
    /// Whether an interrupt that is pending is signalled to the guest, whatever the guest's PSTATE masks
    /// (pseudocode `CanSignalVirtualInterrupt`).
    #[must_use]
    pub const fn signals(&self, priority: u8, group1: bool) -> bool {
        let mask = self.vmcr.preemption_mask(group1);
        self.vmcr.enables(group1)
            && priority < self.vmcr.priority_mask()
            && (self.running == IDLE || priority & mask < self.running & mask)
    }
}
