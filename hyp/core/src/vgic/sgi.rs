//! Software generated interrupts: what a write of `ICC_SGI1R_EL1` and its siblings asks for (Arm IHI 0069, section 12.2).

use super::set::VcpuSet;
use super::{Place, Vgic};

/// The register that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sgi {
    /// `ICC_SGI0R_EL1`: makes SGIs of group 0 pending.
    Zero,
    /// `ICC_SGI1R_EL1`: makes SGIs of group 1 pending.
    One,
    /// `ICC_ASGI1R_EL1`: group 1 of the other security state. With one security state the distributor takes
    /// these for group 0 (`GICD_CTLR.DS` = 1).
    Alternate,
}

impl Vgic {
    /// vCPU `from` writes `value` to one of the registers. A target takes the SGI if it has it in the register's group; others ignore
    /// it. Gives who has to look, `from` itself perhaps among them.
    pub fn sgi(&mut self, from: usize, register: Sgi, value: u64) -> VcpuSet {
        let intid = (value >> 24 & 0xf) as u32;
        let bit = 1_u32.wrapping_shl(intid);
        let group1 = register == Sgi::One;
        let targets = self.sgi_targets(from, value);
        let mut wake = VcpuSet::EMPTY;
        for vcpu in targets.iter() {
            let Some(bank) = self.private.get_mut(vcpu) else { continue };
            if (bank.group1 & bit != 0) == group1 {
                bank.latch |= bit;
                wake.add(self.lookers(Place::Private(vcpu), bit));
            }
        }
        wake
    }

    /// The vCPUs that a value names. Affinities are vCPU numbers: Aff1 to Aff3 are 0, and so is the range of Aff0.
    fn sgi_targets(&self, from: usize, value: u64) -> VcpuSet {
        let all = VcpuSet::first(self.vcpus);
        let all_but_self = value >> 40 & 1 != 0;
        // Aff3 in 55:48, RS in 47:44, Aff2 in 39:32, Aff1 in 23:16.
        let elsewhere = value & 0x00ff_f0ff_00ff_0000 != 0;
        if all_but_self {
            all.without(from)
        } else if elsewhere {
            VcpuSet::EMPTY
        } else {
            all.intersection(VcpuSet::from_bits(value as u32 & 0xffff))
        }
    }
}
