//! What a guest sees in the AArch64 ID registers.
//!
//! HCR_EL2.TID3 traps every read of the ID register space (op0=3, op1=0, CRn=0, CRm=1-7). [`sanitise`] answers
//! it from the hardware value. The rule: **what a field promises must work, or the field does not promise
//! it.** So a field is shown only when it is listed here, never above the hardware's value, and never above
//! the highest value that was looked at. Fields that are not listed read as 0, reserved registers too.
//!
//! Not listed, and why:
//! - needs enabling that EL2 does not do: SVE, SME, MTE, MOPS, LS64, TCR2/SCTLR2, PIE, POE, GCS, FPMR, D128, THE;
//! - would let a guest look or write past EL2: PMU, SPE, TRBE, trace, BRBE, AMU, MPAM;
//! - EL2 would have to handle its faults or state: RAS, CSV2_2 (SCXTNUM), LORegions, NMI;
//! - there is none for guests: EL2, EL3, nested virtualisation, stage-2 features;
//! - emulation assumes the contrary: big-endian data, AArch32 at any level, WFxT (WFI is trapped);
//! - LPA2, because the guest's physical addresses end at 48 bits.
//!
//! Most fields are unsigned, a larger value being a superset; some are signed, 0xf meaning "absent" (Arm
//! DDI 0487, "Principles of the ID scheme for fields in ID registers").

#[cfg(test)]
mod tests;

/// A register as MRS names it: (op0, op1, CRn, CRm, op2).
pub type Encoding = (u8, u8, u8, u8, u8);

/// How a 4-bit field is shown.
#[derive(Clone, Copy)]
enum Rule {
    /// Unsigned: the hardware's value, at most this.
    AtMost(u8),
    /// Signed: negative (absent) as it is, otherwise at most this.
    Signed(u8),
    /// The hardware's value, whatever it is: it says how a register that is not trapped is to be read.
    AsIs,
}

use Rule::{AsIs, AtMost, Signed};

/// A field: its lowest bit and its rule.
type Field = (u32, Rule);

const PFR0: &[Field] = &[
    (0, AtMost(1)),  // EL0: AArch64 only
    (4, AtMost(1)),  // EL1: AArch64 only
    (16, Signed(1)), // FP, half precision
    (20, Signed(1)), // AdvSIMD, half precision
    (24, AtMost(1)), // GIC: its system registers, of GICv3 and GICv4.0
    (48, AtMost(1)), // DIT
    (56, AtMost(1)), // CSV2: not CSV2_2, which has SCXTNUM_EL1
    (60, AtMost(1)), // CSV3
];

const PFR1: &[Field] = &[
    (0, AtMost(1)), // BT
    (4, AtMost(2)), // SSBS
];

const DFR0: &[Field] = &[
    (0, AtMost(6)),  // DebugVer: Armv8.0, the least there is
    (12, AtMost(1)), // BRPs: two, the least there is
    (20, AtMost(1)), // WRPs: two, the least there is
    (36, Signed(0)), // DoubleLock
];

const ISAR0: &[Field] = &[
    (4, AtMost(2)),  // AES, PMULL
    (8, AtMost(1)),  // SHA1
    (12, AtMost(2)), // SHA2
    (16, AtMost(1)), // CRC32
    (20, AtMost(3)), // Atomic: LSE, LSE128
    (28, AtMost(1)), // RDM
    (32, AtMost(1)), // SHA3
    (36, AtMost(1)), // SM3
    (40, AtMost(1)), // SM4
    (44, AtMost(1)), // DP
    (48, AtMost(1)), // FHM
    (52, AtMost(2)), // TS: FlagM2
    (56, AtMost(2)), // TLB: outer shareable, range
    (60, AtMost(1)), // RNDR
];

const ISAR1: &[Field] = &[
    (0, AtMost(2)),  // DPB
    (4, AtMost(5)),  // APA: up to FPACCOMBINE
    (8, AtMost(5)),  // API: likewise
    (12, AtMost(1)), // JSCVT
    (16, AtMost(1)), // FCMA
    (20, AtMost(3)), // LRCPC
    (24, AtMost(1)), // GPA
    (28, AtMost(1)), // GPI
    (32, AtMost(1)), // FRINTTS
    (36, AtMost(1)), // SB
    (40, AtMost(1)), // SPECRES
    (44, AtMost(2)), // BF16
    (48, AtMost(1)), // DGH
    (52, AtMost(1)), // I8MM
    (56, AtMost(1)), // XS
];

const ISAR2: &[Field] = &[
    (4, AtMost(1)),  // RPRES
    (8, AtMost(1)),  // GPA3
    (12, AtMost(5)), // APA3: up to FPACCOMBINE
    (20, AtMost(1)), // BC
    (24, AtMost(1)), // PAC_frac
    (28, AtMost(1)), // CLRBHB
    (40, AtMost(1)), // PRFMSLC
    (48, AtMost(1)), // RPRFM
    (52, AtMost(1)), // CSSC
];

const MMFR0: &[Field] = &[
    (4, AtMost(2)),  // ASIDBits
    (20, AtMost(1)), // TGran16, without LPA2
    (24, Signed(0)), // TGran64
    (28, Signed(0)), // TGran4, without LPA2
    (44, AtMost(1)), // ExS
];

const MMFR1: &[Field] = &[
    (0, AtMost(2)),  // HAFDBS: access flag and dirty state, not HAFT
    (12, AtMost(2)), // HPDS
    (20, AtMost(3)), // PAN
    (24, AtMost(1)), // SpecSEI
    (36, AtMost(3)), // ETS
    (44, AtMost(1)), // AFP
    (48, AtMost(1)), // nTLBPA
    (52, AtMost(1)), // TIDCP1
    (56, AtMost(1)), // CMOW
    (60, AtMost(1)), // ECBHB
];

const MMFR2: &[Field] = &[
    (0, AtMost(1)),  // CnP
    (4, AtMost(1)),  // UAO
    (16, AtMost(1)), // VARange
    (20, AsIs),      // CCIDX: the form of CCSIDR_EL1, which is not trapped
    (28, AtMost(1)), // ST
    (32, AtMost(1)), // AT
    (36, AtMost(1)), // IDS
    (48, AtMost(1)), // TTL
    (52, AtMost(2)), // BBM
    (60, AtMost(1)), // E0PD
];

/// The fields shown of a register; none for those that read as zero.
fn fields(crm: u8, op2: u8) -> &'static [Field] {
    match (crm, op2) {
        (4, 0) => PFR0,
        (4, 1) => PFR1,
        (5, 0) => DFR0,
        (6, 0) => ISAR0,
        (6, 1) => ISAR1,
        (6, 2) => ISAR2,
        (7, 0) => MMFR0,
        (7, 1) => MMFR1,
        (7, 2) => MMFR2,
        // CRm 1 to 3 are the AArch32 ones, which read as zero where there is no AArch32.
        _ => &[],
    }
}

/// Whether a register belongs to the space that HCR_EL2.TID3 traps, so that [`sanitise`] answers for it.
#[must_use]
pub const fn is_id_register(register: Encoding) -> bool {
    matches!(register, (3, 0, 0, 1..=7, 0..=7))
}

/// Whether [`sanitise`] looks at the hardware's value of this register. When not, any value will do as
/// `raw`, so the caller needs to be able to read only these.
#[must_use]
pub fn needs_raw(register: Encoding) -> bool {
    let (_, _, _, crm, op2) = register;
    is_id_register(register) && !fields(crm, op2).is_empty()
}

/// The guest's value of an ID register, from the hardware's (`raw`, already the least over all CPUs where
/// they differ). `ipa_bits` is the size of the VM's physical address space. `None` for a register that is
/// not in the ID space.
#[must_use]
pub fn sanitise(register: Encoding, raw: u64, ipa_bits: u32) -> Option<u64> {
    if !is_id_register(register) {
        return None;
    }
    let (_, _, _, crm, op2) = register;
    let mut value = 0;
    for &(lsb, rule) in fields(crm, op2) {
        let field = (raw.wrapping_shr(lsb) & 0xf) as u8;
        let shown = match rule {
            AtMost(cap) => field.min(cap),
            Signed(_) if field >= 8 => field,
            Signed(cap) => field.min(cap),
            AsIs => field,
        };
        value |= u64::from(shown).wrapping_shl(lsb);
    }
    if (crm, op2) == (7, 0) {
        value |= u64::from(((raw & 0xf) as u8).min(pa_range(ipa_bits)));
    }
    Some(value)
}

/// The largest PARange encoding that fits in `ipa_bits`; 48 bits at the most, as LPA2 is not shown.
const fn pa_range(ipa_bits: u32) -> u8 {
    match ipa_bits {
        48.. => 5,
        44..=47 => 4,
        42..=43 => 3,
        40..=41 => 2,
        36..=39 => 1,
        _ => 0,
    }
}
