//! What is known to be wrong with CPUs, where it touches stage 2: by MIDR_EL1, as bits.
//!
//! | bit | what the CPU does | what is done about it | where |
//! | --- | --- | --- | --- |
//! | [`REPEAT_TLBI`](Errata::REPEAT_TLBI) | a broadcast TLBI and its DSB may complete before accesses that used the entry have | one more broadcast TLBI and DSB at the end of each flush | [`flush`](crate::flush) |
//! | [`SPECULATIVE_AT`](Errata::SPECULATIVE_AT) | a walk or AT may run speculatively while VTTBR_EL2 is one VM's and EL1's registers are another's, and its result stays in the TLB | no stage-1 walk can start while VTTBR_EL2 is switched | [`flush`](crate::flush) |
//! | [`NO_HW_DIRTY`](Errata::NO_HW_DIRTY) | the hardware update of dirty state loses or misorders updates | [`Caps::HW_DIRTY`](crate::Caps::HW_DIRTY) is not there | [`features`](crate::features) |
//! | [`NO_DIC`](Errata::NO_DIC) | instruction fetch may see what was there before, though CTR_EL0.DIC is 1 | [`Caps::DIC`](crate::Caps::DIC) is not there | [`features`](crate::features) |
//!
//! An erratum of any PE is one of the machine: where features are ANDed, errata are ORed. The table is what
//! the vendors' errata notices say, as the Linux kernel collects it (`Documentation/arch/arm64/silicon-errata.rst`,
//! `arch/arm64/kernel/cpu_errata.c`, `cpufeature.c`); each row has the vendor's number. The book's chapter on
//! hardware has the errata that are not here, and why.

use bitflags::bitflags;

bitflags! {
    /// Workarounds that a machine needs.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Errata: u32 {
        /// A flush that reaches other PEs ends with one more broadcast TLBI and DSB.
        const REPEAT_TLBI = 1 << 0;
        /// Stage-1 walks are held while VTTBR_EL2 is not that of EL1's registers.
        const SPECULATIVE_AT = 1 << 1;
        /// VTCR_EL2.HD stays 0.
        const NO_HW_DIRTY = 1 << 2;
        /// Instruction caches are invalidated whatever CTR_EL0.DIC says.
        const NO_DIC = 1 << 3;
    }
}

/// MIDR_EL1.Implementer.
const ARM: u8 = 0x41;
const MICROSOFT: u8 = 0x6d;
const NVIDIA: u8 = 0x4e;
const QUALCOMM: u8 = 0x51;

/// A variant and a revision, as in "r1p2"; ordered.
type Release = (u8, u8);

const FIRST: Release = (0, 0);
const LAST: Release = (0xf, 0xf);

/// CPUs, and what is wrong with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// MIDR_EL1.Implementer.
    pub implementer: u8,
    /// MIDR_EL1.PartNum, and which of its bits count.
    pub part: (u16, u16),
    /// The first release that has it: MIDR_EL1.Variant and Revision.
    pub from: Release,
    /// The last.
    pub to: Release,
    /// What it takes.
    pub errata: Errata,
    /// The CPU's name and the vendor's number.
    pub source: &'static str,
}

const fn arm(part: u16, from: Release, to: Release, errata: Errata, source: &'static str) -> Row {
    Row { implementer: ARM, part: (part, 0xfff), from, to, errata, source }
}

/// All releases of a CPU of Arm's.
const fn every(part: u16, errata: Errata, source: &'static str) -> Row {
    arm(part, FIRST, LAST, errata, source)
}

const fn other(
    implementer: u8,
    part: (u16, u16),
    from: Release,
    to: Release,
    errata: Errata,
    source: &'static str,
) -> Row {
    Row { implementer, part, from, to, errata, source }
}

const REPEAT: Errata = Errata::REPEAT_TLBI;
const AT: Errata = Errata::SPECULATIVE_AT;
const HD: Errata = Errata::NO_HW_DIRTY;
const DIC: Errata = Errata::NO_DIC;

/// Everything that is known, in order of workaround and part.
pub const TABLE: &[Row] = &[
    // Completion of a broadcast TLBI.
    arm(0xd0b, FIRST, (3, 0), REPEAT, "Cortex-A76 1286807"),
    every(0xd05, REPEAT, "Cortex-A55 2441007"),
    arm(0xd46, FIRST, (1, 1), REPEAT, "Cortex-A510 2441009"),
    other(QUALCOMM, (0x800, 0xfff), FIRST, FIRST, REPEAT, "Falkor v1 1009"),
    other(QUALCOMM, (0x200, 0xf00), FIRST, LAST, REPEAT, "Kryo 1009"),
    other(QUALCOMM, (0x804, 0xfff), (0xc, 0xe), (0xf, 0xe), REPEAT, "Kryo 4xx Gold 1286807"),
    // The same, CVE-2025-10263: every release of these.
    every(0xd0b, REPEAT, "Cortex-A76 4193800"),
    every(0xd0c, REPEAT, "Neoverse N1 4193800"),
    every(0xd0d, REPEAT, "Cortex-A77 4193798"),
    every(0xd0e, REPEAT, "Cortex-A76AE 4193801"),
    every(0xd40, REPEAT, "Neoverse V1 4193790"),
    every(0xd41, REPEAT, "Cortex-A78 4193791"),
    every(0xd42, REPEAT, "Cortex-A78AE 4193793"),
    every(0xd44, REPEAT, "Cortex-X1 4193791"),
    every(0xd47, REPEAT, "Cortex-A710 4193788"),
    every(0xd48, REPEAT, "Cortex-X2 4193788"),
    every(0xd49, REPEAT, "Neoverse N2 4193789"),
    every(0xd4b, REPEAT, "Cortex-A78C 4193794"),
    every(0xd4c, REPEAT, "Cortex-X1C 4193792"),
    every(0xd4e, REPEAT, "Cortex-X3 4193786"),
    every(0xd4f, REPEAT, "Neoverse V2 4193787"),
    every(0xd82, REPEAT, "Cortex-X4 4118414"),
    every(0xd83, REPEAT, "Neoverse V3AE 4193784"),
    every(0xd84, REPEAT, "Neoverse V3 4193784"),
    every(0xd85, REPEAT, "Cortex-X925 4193781"),
    every(0xd8c, REPEAT, "C1-Ultra 4193780"),
    every(0xd90, REPEAT, "C1-Premium 4193780"),
    other(MICROSOFT, (0xd49, 0xfff), FIRST, LAST, REPEAT, "Azure Cobalt 100 4193789"),
    other(NVIDIA, (0x010, 0xfff), FIRST, LAST, REPEAT, "Olympus T410-OLY-1029"),
    // Speculative walks between two VMs' registers.
    every(0xd07, AT, "Cortex-A57 1319537"),
    every(0xd08, AT, "Cortex-A72 1319367"),
    arm(0xd0b, FIRST, (2, 0), AT, "Cortex-A76 1165522"),
    arm(0xd05, FIRST, (2, 0), AT, "Cortex-A55 1530923"),
    other(QUALCOMM, (0x805, 0xfff), (0xd, 0xe), (0xd, 0xe), AT, "Kryo 4xx Silver 1530923"),
    // Dirty state.
    every(0xd05, HD, "Cortex-A55 1024718"),
    arm(0xd46, FIRST, (0, 2), HD, "Cortex-A510 2051678"),
    other(QUALCOMM, (0x805, 0xfff), (0xd, 0xe), (0xd, 0xe), HD, "Kryo 4xx Silver 1024718"),
    // Stale instructions with DIC.
    every(0xd0c, DIC, "Neoverse N1 1542419"),
];

impl Row {
    /// Whether a CPU with this MIDR_EL1 is meant.
    #[must_use]
    pub const fn applies(&self, midr: u64) -> bool {
        let (part, mask) = self.part;
        let release = (midr >> 16 & 0xf0 | midr & 0xf) as u8;
        (midr >> 24 & 0xff) as u8 == self.implementer
            && (midr >> 4 & 0xfff) as u16 & mask == part
            && release >= self.from.0 << 4 | self.from.1
            && release <= self.to.0 << 4 | self.to.1
    }
}

impl Errata {
    /// What a CPU with this MIDR_EL1 needs.
    #[must_use]
    pub fn of(midr: u64) -> Self {
        TABLE
            .iter()
            .filter(|row| row.applies(midr))
            .fold(Self::empty(), |all, row| all | row.errata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn midr(implementer: u8, part: u16, (variant, revision): Release) -> u64 {
        (implementer as u64) << 24
            | (variant as u64) << 20
            | 0xf << 16
            | (part as u64) << 4
            | revision as u64
    }

    #[test]
    fn cpus_have_the_errata_of_their_release_and_no_other() {
        let (repeat, at, hd, dic) = (REPEAT, AT, HD, DIC);
        let none = Errata::empty();
        let cases = [
            (midr(ARM, 0xd03, (0, 4)), none, "Cortex-A53 r0p4"),
            (midr(ARM, 0xd05, (0, 0)), repeat | at | hd, "Cortex-A55 r0p0"),
            (midr(ARM, 0xd05, (2, 0)), repeat | at | hd, "Cortex-A55 r2p0"),
            (midr(ARM, 0xd05, (2, 1)), repeat | hd, "Cortex-A55 r2p1"),
            (midr(ARM, 0xd07, (1, 3)), at, "Cortex-A57 r1p3"),
            (midr(ARM, 0xd08, (1, 0)), at, "Cortex-A72 r1p0"),
            (midr(ARM, 0xd09, (1, 0)), none, "Cortex-A73 r1p0"),
            (midr(ARM, 0xd0b, (2, 0)), repeat | at, "Cortex-A76 r2p0"),
            (midr(ARM, 0xd0b, (3, 0)), repeat, "Cortex-A76 r3p0"),
            (midr(ARM, 0xd0b, (4, 1)), repeat, "Cortex-A76 r4p1"),
            (midr(ARM, 0xd0c, (4, 1)), repeat | dic, "Neoverse N1 r4p1"),
            (midr(ARM, 0xd46, (0, 2)), repeat | hd, "Cortex-A510 r0p2"),
            (midr(ARM, 0xd46, (0, 3)), repeat, "Cortex-A510 r0p3"),
            (midr(ARM, 0xd46, (1, 1)), repeat, "Cortex-A510 r1p1"),
            (midr(ARM, 0xd46, (1, 2)), none, "Cortex-A510 r1p2"),
            (midr(ARM, 0xd49, (0, 3)), repeat, "Neoverse N2 r0p3"),
            (midr(ARM, 0xd4d, (1, 0)), none, "Cortex-A715 r1p0"),
            (midr(MICROSOFT, 0xd49, (0, 0)), repeat, "Azure Cobalt 100"),
            (midr(NVIDIA, 0x010, (0, 0)), repeat, "Olympus"),
            (midr(NVIDIA, 0xd0b, (0, 0)), none, "another vendor's part of the same number"),
            (midr(QUALCOMM, 0x800, (0, 0)), repeat, "Falkor v1 r0p0"),
            (midr(QUALCOMM, 0x800, (0, 1)), none, "Falkor v1 r0p1"),
            (midr(QUALCOMM, 0x211, (1, 1)), repeat, "Kryo"),
            (midr(QUALCOMM, 0x804, (0xc, 0xd)), none, "Kryo 4xx Gold rcpd"),
            (midr(QUALCOMM, 0x804, (0xd, 0x0)), repeat, "Kryo 4xx Gold rdp0"),
            (midr(QUALCOMM, 0x804, (0xf, 0xf)), none, "Kryo 4xx Gold rfpf"),
            (midr(QUALCOMM, 0x805, (0xd, 0xe)), at | hd, "Kryo 4xx Silver rdpe"),
            // QEMU's `max`: implementer 0.
            (0x000f_0510, none, "QEMU max"),
            (0, none, "nothing at all"),
        ];
        for (midr, errata, name) in cases {
            assert_eq!(Errata::of(midr), errata, "{name}, MIDR {midr:#x}");
        }
    }

    /// Each row alone: the releases at its ends have it, those beyond do not.
    #[test]
    fn every_row_ends_where_it_says() {
        let number = |release: Release| release.0 << 4 | release.1;
        for row in TABLE {
            for release in 0..=0xff_u8 {
                let at = midr(row.implementer, row.part.0, (release >> 4, release & 0xf));
                let inside = (number(row.from)..=number(row.to)).contains(&release);
                assert_eq!(row.applies(at), inside, "{}, release {release:#x}", row.source);
            }
            assert!(!row.errata.is_empty() && !row.source.is_empty());
            assert!(
                row.source.ends_with(|c: char| c.is_ascii_digit()),
                "no number: {}",
                row.source
            );
        }
    }

    #[test]
    fn no_row_stands_twice() {
        for (index, row) in TABLE.iter().enumerate() {
            assert!(!TABLE[..index].iter().any(|other| other.source == row.source), "{row:?}");
        }
    }
}
