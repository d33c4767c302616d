//! The shape of a VM's tables: IPA size, start level, concatenated roots, VTCR_EL2.
//!
//! A stage-2 walk does not need to start at level 0. Where the IPA size leaves at most four bits to
//! the level above, up to 16 tables of the start level stand side by side (concatenated) and the
//! walk is one level shorter \[RHRSBS\]. This module always takes the shorter walk, which gives one
//! answer for each IPA size, and the only one that is legal below 44 bits of physical address \[RSRKBC\]:
//!
//! | IPA bits | starts at | root pages |
//! | --- | --- | --- |
//! | 25-34 | level 2 | 1-16 |
//! | 35-43 | level 1 | 1-16 |
//! | 44-48 | level 0 | 1 |
//!
//! The values here must be the same on every PE that runs the VM: VTCR_EL2 may be cached in a TLB.

use core::fmt;

use aarch64_cpu::registers::VTCR_EL2;

use crate::addr::{Level, PAGE_SHIFT, PAGE_SIZE, SLOTS};
use crate::features::{Caps, Features};
use crate::{Ipa, Pa};

/// Smallest IPA size that this crate lays out: below 25 bits FEAT_TTST would be needed.
pub const MIN_IPA_BITS: u32 = 25;
/// Largest IPA size without FEAT_LPA2.
pub const MAX_IPA_BITS: u32 = 48;

/// Bits that one table resolves.
const TABLE_BITS: u32 = SLOTS.trailing_zeros();
/// Bits that concatenation adds to the start level.
const CONCATENATED_BITS: u32 = 4;

/// Which parts of a leaf the hardware updates by itself [D8.5].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HwUpdate {
    /// Nothing: VTCR_EL2.HA = HD = 0.
    #[default]
    Off,
    /// The access flag: HA = 1.
    Access,
    /// The access flag and the dirty state: HA = HD = 1.
    AccessAndDirty,
}

/// The shape of one VM's stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The first IPA that is too large: two to the number of bits.
    ipa_end: u64,
    start: Level,
    root_tables: usize,
    hw_update: HwUpdate,
    vtcr: u64,
    features: Features,
}

/// Why a machine cannot have the wanted shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeometryError {
    /// The IPA size is outside what this crate lays out.
    IpaBits {
        /// Bits asked for.
        wanted: u32,
    },
    /// The IPA size exceeds the physical address size: what hardware makes of that is
    /// IMPLEMENTATION DEFINED (table D8-8).
    ExceedsPa {
        /// IPA bits asked for.
        wanted: u32,
        /// Physical address bits of the machine.
        pa_bits: u32,
    },
    /// No machine has physical addresses of this size.
    PaBits {
        /// What the features say.
        bits: u32,
    },
    /// The machine has no 4 KiB granule at stage 2.
    NoGranule4K,
    /// Hardware updates were asked for that the machine does not do.
    NoHwUpdate {
        /// What was asked for.
        wanted: HwUpdate,
    },
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IpaBits { wanted } => {
                write!(f, "{wanted}-bit IPAs: {MIN_IPA_BITS} to {MAX_IPA_BITS} bits are possible")
            }
            Self::ExceedsPa { wanted, pa_bits } => {
                write!(f, "{wanted}-bit IPAs exceed the machine's {pa_bits}-bit physical addresses")
            }
            Self::PaBits { bits } => write!(f, "no machine has {bits}-bit physical addresses"),
            Self::NoGranule4K => f.write_str("the machine has no 4 KiB granule at stage 2"),
            Self::NoHwUpdate { wanted } => {
                write!(f, "the machine has no hardware update of kind {wanted:?}")
            }
        }
    }
}

impl core::error::Error for GeometryError {}

impl Geometry {
    /// The shape for `ipa_bits` bits of IPA on a machine with `features`.
    ///
    /// # Errors
    /// [`GeometryError`], with the numbers, when the machine cannot do it.
    pub fn new(
        ipa_bits: u32,
        features: &Features,
        hw_update: HwUpdate,
    ) -> Result<Self, GeometryError> {
        if !(MIN_IPA_BITS..=MAX_IPA_BITS).contains(&ipa_bits) {
            return Err(GeometryError::IpaBits { wanted: ipa_bits });
        }
        if ipa_bits > features.pa_bits {
            return Err(GeometryError::ExceedsPa { wanted: ipa_bits, pa_bits: features.pa_bits });
        }
        if !features.has(Caps::GRANULE_4K) {
            return Err(GeometryError::NoGranule4K);
        }
        let needed = match hw_update {
            HwUpdate::Off => Caps::empty(),
            HwUpdate::Access => Caps::HW_ACCESS,
            HwUpdate::AccessAndDirty => Caps::HW_ACCESS | Caps::HW_DIRTY,
        };
        if !features.has(needed) {
            return Err(GeometryError::NoHwUpdate { wanted: hw_update });
        }
        let reach = |level: Level| level.shift() + TABLE_BITS + CONCATENATED_BITS;
        let start = if ipa_bits <= reach(Level::L2) {
            Level::L2
        } else if ipa_bits <= reach(Level::L1) {
            Level::L1
        } else {
            Level::L0
        };
        let root_tables = 1 << ipa_bits.saturating_sub(start.shift() + TABLE_BITS);
        let ps = ps_of(features.pa_bits).ok_or(GeometryError::PaBits { bits: features.pa_bits })?;
        let vtcr = vtcr(ipa_bits, start, ps, features, hw_update);
        let (ipa_end, features) = (1 << ipa_bits, *features);
        Ok(Self { ipa_end, start, root_tables, hw_update, vtcr, features })
    }

    /// What hardware updates in leaves.
    #[must_use]
    pub const fn hw_update(&self) -> HwUpdate {
        self.hw_update
    }

    /// The machine that the shape was made for.
    #[must_use]
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// Bits of IPA.
    #[must_use]
    pub const fn ipa_bits(&self) -> u32 {
        self.ipa_end.trailing_zeros()
    }

    /// The level at which a walk starts.
    #[must_use]
    pub const fn start(&self) -> Level {
        self.start
    }

    /// Tables of the start level that stand side by side: 1 to 16.
    #[must_use]
    pub const fn root_tables(&self) -> usize {
        self.root_tables
    }

    /// Bytes of the root, which is aligned to its size \[RVCLZN\].
    #[must_use]
    pub const fn root_bytes(&self) -> u64 {
        self.root_tables as u64 * PAGE_SIZE
    }

    /// The value of VTCR_EL2.
    #[must_use]
    pub const fn vtcr(&self) -> u64 {
        self.vtcr
    }

    /// Whether `ipa` can be translated at all; beyond it every access is a level-0 fault.
    #[must_use]
    pub const fn contains(&self, ipa: Ipa) -> bool {
        ipa.get() < self.ipa_end
    }

    /// The table page of a concatenated root that serves `ipa`, which must be inside.
    #[inline(always)]
    #[must_use]
    pub const fn root_page(&self, root: Pa, ipa: Ipa) -> Pa {
        if self.root_tables == 1 {
            // Nothing to compute, so that a walk's first load need not wait for it.
            return root;
        }
        let page = (ipa.get() >> (self.start.shift() + TABLE_BITS)) & (self.root_tables as u64 - 1);
        // The root is aligned to its size.
        Pa::new(root.get() | page << PAGE_SHIFT)
    }
}

/// VTCR_EL2.PS for a physical address size in bits.
const fn ps_of(pa_bits: u32) -> Option<u64> {
    Some(match pa_bits {
        32 => 0,
        36 => 1,
        40 => 2,
        42 => 3,
        44 => 4,
        48 => 5,
        _ => return None,
    })
}

/// The value of VTCR_EL2. What this crate does not use (DS, SL2, S2PIE, S2POE, HAFT, AssuredOnly,
/// HWU, NSA, NSW) stays 0.
fn vtcr(ipa_bits: u32, start: Level, ps: u64, features: &Features, hw_update: HwUpdate) -> u64 {
    let sl0 = match start {
        Level::L0 => 2,
        Level::L1 => 1,
        Level::L2 | Level::L3 => 0,
    };
    // Table walks must be Inner-shareable write-back, or hardware updates may abort [RWLTNL].
    let mut value = VTCR_EL2::RES1.val(1)
        + VTCR_EL2::TG0::Granule4KB
        + VTCR_EL2::SH0::Inner
        + VTCR_EL2::ORGN0::NormalWBRAWA
        + VTCR_EL2::IRGN0::NormalWBRAWA
        + VTCR_EL2::PS.val(ps)
        + VTCR_EL2::SL0.val(sl0)
        + VTCR_EL2::T0SZ.val(u64::from(64 - ipa_bits));
    if features.has(Caps::VMID16) {
        value += VTCR_EL2::VS.val(1);
    }
    if hw_update != HwUpdate::Off {
        value += VTCR_EL2::HA.val(1);
    }
    if hw_update == HwUpdate::AccessAndDirty {
        value += VTCR_EL2::HD.val(1);
    }
    value.value
}

#[cfg(test)]
mod tests;
