//! What the machine's stage 2 can do.
//!
//! [`Features`] is read once from every PE's ID registers and **ANDed over all of them**: a table is
//! shared by all PEs of a VM, so only what each of them understands may be used in it. What is wrong
//! with a PE ([`Errata`]) is **ORed**: one PE that needs a workaround is enough. Both are plain data, so
//! a test on the host can build any machine, and hide what it has ([`Features::without`]) or break it
//! ([`Features::with_errata`]), which is how every fallback path gets exercised.

use core::fmt;

use bitflags::bitflags;

use crate::errata::Errata;

bitflags! {
    /// One bit for each optional part of the architecture that changes what this crate does.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Caps: u32 {
        /// The 4 KiB granule at stage 2 (ID_AA64MMFR0_EL1.TGran4_2, TGran4). Required.
        const GRANULE_4K = 1 << 0;
        /// 16-bit VMIDs (ID_AA64MMFR1_EL1.VMIDBits).
        const VMID16 = 1 << 1;
        /// Hardware management of the access flag (FEAT_HAFDBS, VTCR_EL2.HA).
        const HW_ACCESS = 1 << 2;
        /// Hardware management of the dirty state (FEAT_HAFDBS, VTCR_EL2.HD).
        const HW_DIRTY = 1 << 3;
        /// TLBI by range (FEAT_TLBIRANGE).
        const TLBI_RANGE = 1 << 4;
        /// Atomic instructions (FEAT_LSE).
        const LSE = 1 << 5;
        /// The level hint of TLBI by address (FEAT_TTL).
        const TTL = 1 << 6;
        /// Stage 2 forces write-back (FEAT_S2FWB, HCR_EL2.FWB).
        const FWB = 1 << 7;
        /// Separate execute permissions for EL1 and EL0 (FEAT_XNX).
        const XNX = 1 << 8;
        /// The data cache needs no cleaning to the point of unification for instruction fetch: the
        /// Effective value of CTR_EL0.IDC, which CLIDR_EL1 may make 1 \[D24.2.42\].
        const IDC = 1 << 9;
        /// The instruction cache needs no invalidation for freshly written code (CTR_EL0.DIC).
        const DIC = 1 << 10;
    }
}

/// How a change of block size may be made while the mapping is live (FEAT_BBM).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bbm {
    /// Break-before-make only.
    Level0,
    /// The nT bit may stand in for the break; translation faults are possible meanwhile.
    Level1,
    /// Sizes may change directly; a TLB conflict abort is possible until the flush.
    Level2,
}

/// The raw ID registers of one PE, as read by `mrs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdRegisters {
    /// ID_AA64MMFR0_EL1.
    pub mmfr0: u64,
    /// ID_AA64MMFR1_EL1.
    pub mmfr1: u64,
    /// ID_AA64MMFR2_EL1.
    pub mmfr2: u64,
    /// ID_AA64ISAR0_EL1.
    pub isar0: u64,
    /// CTR_EL0.
    pub ctr: u64,
    /// CLIDR_EL1.
    pub clidr: u64,
    /// MIDR_EL1.
    pub midr: u64,
}

/// What every PE of the machine supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Features {
    /// The optional parts.
    pub caps: Caps,
    /// How block sizes may change.
    pub bbm: Bbm,
    /// Physical address bits that a 4 KiB-granule stage 2 can put out: 32 to 48. A machine with 52
    /// bits counts as 48, because this crate does not use FEAT_LPA2.
    pub pa_bits: u32,
    /// What one PE or another does wrong.
    pub errata: Errata,
}

/// The 4-bit unsigned ID field at `shift`.
const fn field(register: u64, shift: u32) -> u64 {
    (register >> shift) & 0xf
}

/// Physical address bits by ID_AA64MMFR0_EL1.PARange; `None` where the encoding is reserved.
#[must_use]
pub const fn pa_bits_of(pa_range: u64) -> Option<u32> {
    match pa_range {
        0 => Some(32),
        1 => Some(36),
        2 => Some(40),
        3 => Some(42),
        4 => Some(44),
        5 => Some(48),
        // 52 and 56 bits need FEAT_LPA2 or another granule.
        6 | 7 => Some(48),
        _ => None,
    }
}

/// The Effective value of CTR_EL0.IDC \[D24.2.42\]: the bit, or no level of cache before the point of
/// coherency, or none before both points of unification.
const fn idc(ctr: u64, clidr: u64) -> bool {
    let [louis, loc, louu] = [clidr >> 21 & 7, clidr >> 24 & 7, clidr >> 27 & 7];
    ctr >> 28 & 1 != 0 || loc == 0 || (louis == 0 && louu == 0)
}

/// What cannot be used on a machine with these errata.
fn broken(errata: Errata) -> Caps {
    let mut caps = Caps::empty();
    caps.set(Caps::HW_DIRTY, errata.contains(Errata::NO_HW_DIRTY));
    caps.set(Caps::DIC, errata.contains(Errata::NO_DIC));
    caps
}

impl Features {
    /// What one PE's registers promise. A reserved PARange counts as the smallest, 32 bits.
    #[must_use]
    pub fn from_id_registers(id: &IdRegisters) -> Self {
        // TGran4_2: 0 refers to TGran4 (0xf there means absent), 1 means absent, 2 and 3 present.
        let granule_4k = match field(id.mmfr0, 40) {
            0 => field(id.mmfr0, 28) != 0xf,
            1 => false,
            _ => true,
        };
        let hafdbs = field(id.mmfr1, 0);
        let present = [
            (Caps::GRANULE_4K, granule_4k),
            (Caps::VMID16, field(id.mmfr1, 4) == 2),
            (Caps::HW_ACCESS, hafdbs >= 1),
            (Caps::HW_DIRTY, hafdbs >= 2),
            (Caps::TLBI_RANGE, field(id.isar0, 56) >= 2),
            (Caps::LSE, field(id.isar0, 20) >= 2),
            (Caps::TTL, field(id.mmfr2, 48) >= 1),
            (Caps::FWB, field(id.mmfr2, 40) >= 1),
            (Caps::XNX, field(id.mmfr1, 28) >= 1),
            (Caps::IDC, idc(id.ctr, id.clidr)),
            (Caps::DIC, id.ctr >> 29 & 1 != 0),
        ];
        let caps = present
            .into_iter()
            .filter(|(_, there)| *there)
            .fold(Caps::empty(), |all, (c, _)| all | c);
        let bbm = match field(id.mmfr2, 52) {
            0 => Bbm::Level0,
            1 => Bbm::Level1,
            _ => Bbm::Level2,
        };
        let pa_bits = pa_bits_of(field(id.mmfr0, 0)).unwrap_or(32);
        Self { caps, bbm, pa_bits, errata: Errata::empty() }.with_errata(Errata::of(id.midr))
    }

    /// What both support: the features of a machine are the `and` over its PEs.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            caps: self.caps & other.caps,
            bbm: self.bbm.min(other.bbm),
            pa_bits: self.pa_bits.min(other.pa_bits),
            errata: self.errata | other.errata,
        }
    }

    /// The same machine with `hidden` taken away.
    #[must_use]
    pub fn without(self, hidden: Caps) -> Self {
        Self { caps: self.caps - hidden, ..self }
    }

    /// The same machine with FEAT_BBM of this level at the most.
    #[must_use]
    pub fn with_bbm_at_most(self, most: Bbm) -> Self {
        Self { bbm: self.bbm.min(most), ..self }
    }

    /// The same machine with `more` wrong with it, and without what cannot be used then.
    #[must_use]
    pub fn with_errata(self, more: Errata) -> Self {
        let errata = self.errata | more;
        Self { caps: self.caps - broken(errata), errata, ..self }
    }

    /// Whether all of `caps` are there.
    #[must_use]
    pub const fn has(&self, caps: Caps) -> bool {
        self.caps.contains(caps)
    }

    /// Width of a VMID: 8 or 16 bits.
    #[must_use]
    pub const fn vmid_bits(&self) -> u32 {
        if self.has(Caps::VMID16) { 16 } else { 8 }
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-bit PA, BBM {}", self.pa_bits, self.bbm as u8)?;
        for (name, _) in self.caps.iter_names() {
            write!(f, ", {name}")?;
        }
        if !self.errata.is_empty() {
            f.write_str("; errata")?;
        }
        for (name, _) in self.errata.iter_names() {
            write!(f, " {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ID registers of a Cortex-A53 (r0p4), from its technical reference manual.
    const CORTEX_A53: IdRegisters = IdRegisters {
        mmfr0: 0x1122,
        mmfr1: 0,
        mmfr2: 0,
        isar0: 0x11120,
        ctr: 0x8444_8004,
        clidr: 0x0a20_0023,
        midr: 0x410f_d034,
    };

    #[test]
    fn cortex_a53_has_the_granule_and_nothing_optional() {
        let features = Features::from_id_registers(&CORTEX_A53);
        assert_eq!(features.caps, Caps::GRANULE_4K);
        assert_eq!(features.bbm, Bbm::Level0);
        assert_eq!(features.pa_bits, 40);
        assert_eq!(features.vmid_bits(), 8);
    }

    #[test]
    fn each_field_sets_its_capability() {
        let id = IdRegisters {
            mmfr0: 0x2 << 40 | 0x6,
            mmfr1: 1 << 28 | 2 << 4 | 2,
            mmfr2: 2 << 52 | 1 << 48 | 1 << 40,
            isar0: 2 << 56 | 2 << 20,
            ctr: 1 << 29 | 1 << 28,
            clidr: CORTEX_A53.clidr,
            midr: 0,
        };
        let features = Features::from_id_registers(&id);
        assert_eq!(features.caps, Caps::all());
        assert_eq!(features.bbm, Bbm::Level2);
        assert_eq!(features.pa_bits, 48, "52 bits need FEAT_LPA2");
    }

    /// Every value of every field against the table in the manual.
    #[test]
    fn each_value_of_each_field_is_read_as_the_manual_says() {
        let features = |id: IdRegisters| Features::from_id_registers(&id);
        for value in 0..16u64 {
            let mmfr0 = features(IdRegisters { mmfr0: value, ..IdRegisters::default() });
            let bits = [32, 36, 40, 42, 44, 48, 48, 48].get(value as usize).copied().unwrap_or(32);
            assert_eq!(mmfr0.pa_bits, bits, "PARange {value}");
            let mmfr1 = |shift| {
                features(IdRegisters { mmfr1: value << shift, ..IdRegisters::default() }).caps
            };
            assert_eq!(mmfr1(0).contains(Caps::HW_ACCESS), value >= 1, "HAFDBS {value}");
            assert_eq!(mmfr1(0).contains(Caps::HW_DIRTY), value >= 2, "HAFDBS {value}");
            assert_eq!(mmfr1(4).contains(Caps::VMID16), value == 2, "VMIDBits {value}");
            assert_eq!(mmfr1(28).contains(Caps::XNX), value >= 1, "XNX {value}");
            let mmfr2 =
                |shift| features(IdRegisters { mmfr2: value << shift, ..IdRegisters::default() });
            assert_eq!(mmfr2(40).has(Caps::FWB), value >= 1, "FWB {value}");
            assert_eq!(mmfr2(48).has(Caps::TTL), value >= 1, "TTL {value}");
            assert_eq!(mmfr2(52).bbm as u64, value.min(2), "BBM {value}");
            let isar0 =
                |shift| features(IdRegisters { isar0: value << shift, ..IdRegisters::default() });
            assert_eq!(isar0(20).has(Caps::LSE), value >= 2, "Atomic {value}");
            assert_eq!(isar0(56).has(Caps::TLBI_RANGE), value >= 2, "TLB {value}");
        }
    }

    #[test]
    fn granule_can_be_absent_in_either_field() {
        let absent = |mmfr0| {
            !Features::from_id_registers(&IdRegisters { mmfr0, ..CORTEX_A53 }).has(Caps::GRANULE_4K)
        };
        assert!(absent(0xf << 28));
        assert!(absent(0x1 << 40));
        assert!(!absent(0x2 << 40 | 0xf << 28));
    }

    #[test]
    fn and_keeps_what_both_have() {
        let errata = Errata::empty();
        let big = Features { caps: Caps::all(), bbm: Bbm::Level2, pa_bits: 48, errata };
        let little = Features::from_id_registers(&CORTEX_A53);
        assert_eq!(big.and(little), little);
        assert_eq!(little.and(big), little);
        assert!(!big.without(Caps::LSE).has(Caps::LSE));
    }

    #[test]
    fn the_level_of_bbm_can_be_hidden_and_not_made_up() {
        let machine = Features::from_id_registers(&CORTEX_A53);
        let levels = [Bbm::Level0, Bbm::Level1, Bbm::Level2];
        for (has, most) in levels.into_iter().flat_map(|has| levels.map(|most| (has, most))) {
            let masked = Features { bbm: has, ..machine }.with_bbm_at_most(most);
            assert_eq!(masked, Features { bbm: has.min(most), ..machine });
        }
    }

    /// CTR_EL0.IDC and CLIDR_EL1: the three ways to an Effective value of 1, and those that are none.
    #[test]
    fn cleaning_for_fetch_is_not_needed_where_the_manual_says_so() {
        let clidr = |louu: u64, loc: u64, louis: u64| louu << 27 | loc << 24 | louis << 21;
        let cases = [
            (0, clidr(1, 2, 1), false),
            (1 << 28, clidr(1, 2, 1), true),
            (0, clidr(1, 0, 1), true),
            (0, clidr(0, 2, 0), true),
            (0, clidr(1, 2, 0), false),
            (0, clidr(0, 2, 1), false),
            (1 << 29, clidr(1, 2, 1), false),
        ];
        for (ctr, clidr, expected) in cases {
            let id = IdRegisters { ctr, clidr, ..CORTEX_A53 };
            let idc = Features::from_id_registers(&id).has(Caps::IDC);
            assert_eq!(idc, expected, "CTR_EL0 {ctr:#x}, CLIDR_EL1 {clidr:#x}");
        }
    }

    #[test]
    fn an_erratum_of_one_pe_is_the_machines() {
        let all = IdRegisters { mmfr1: 2, ctr: 1 << 29 | 1 << 28, ..CORTEX_A53 };
        let (healthy, a55, n1) = (
            Features::from_id_registers(&all),
            Features::from_id_registers(&IdRegisters { midr: 0x412f_d050, ..all }),
            Features::from_id_registers(&IdRegisters { midr: 0x413f_d0c1, ..all }),
        );
        let both = Caps::HW_DIRTY | Caps::DIC;
        assert!(healthy.has(both) && healthy.errata.is_empty());
        assert_eq!(a55.caps & both, Caps::DIC, "dirty state of a Cortex-A55 is not used");
        assert!(a55.has(Caps::HW_ACCESS), "its access flag is");
        assert_eq!(n1.caps & both, Caps::HW_DIRTY, "DIC of a Neoverse N1 is not believed");
        for machine in [healthy.and(a55).and(n1), n1.and(healthy).and(a55)] {
            assert_eq!(machine.errata, a55.errata | n1.errata, "errata are ORed");
            assert_eq!(machine.caps & both, Caps::empty());
        }
        assert_eq!(healthy.with_errata(a55.errata), a55, "a mask does the same");
    }
}
