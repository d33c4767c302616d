//! The TLB invalidations of stage 2 and their operands, exactly as chapter C5.5 spells them.
//!
//! Two traps of the encoding, both of which shipped in real hypervisors:
//!
//! * The level hint TTL is the level of the **leaf**. A wrong hint obliges hardware to invalidate
//!   **nothing** (C5.5.14, field TTL), and so does a wrong granule in a range \[RXKMMX\]. So hints are
//!   a type, and leaving them out is the default. Without FEAT_TTL their bits are RES0, in ranges too.
//! * A range covers `(NUM + 1) · 2^(5·SCALE + 1)` granules: two at the least, so an odd page needs
//!   an invalidation of its own. With a hint its base must be aligned to that level, or the range is
//!   unpredictable (C5.5.22).

mod operand;

pub use operand::{LeafLevel, PageOperand, RangeOperand, VaOperand};

use crate::addr::{Ipa, IpaRange, PAGE_SHIFT};
use crate::features::Caps;

/// One invalidation.
///
/// `IPAS2*`, `RIPAS2*` and `VMALL*` act on the **current** VMID, the one in VTTBR_EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tlbi {
    /// Stage-2 entries of one IPA, all PEs. Does not touch combined stage-1-and-2 entries.
    Ipas2e1Is(PageOperand),
    /// Stage-2 entries of a range of IPAs, all PEs.
    Ripas2e1Is(RangeOperand),
    /// Stage-2 entries of one IPA, this PE.
    Ipas2e1(PageOperand),
    /// Stage-1 and combined entries of the VMID, all PEs.
    Vmalle1Is,
    /// Stage-1 and combined entries of the VMID, this PE.
    Vmalle1,
    /// All entries of the VMID, both stages, all PEs.
    Vmalls12e1Is,
    /// All entries of the VMID, both stages, this PE.
    Vmalls12e1,
    /// All entries of all VMIDs, all PEs.
    Alle1Is,
    /// Entries of EL2's own regime for one page, of any level of its walk, all PEs. No VMID: EL2 has none.
    Vae2Is(VaOperand),
    /// All entries of EL2's own regime, all PEs.
    Alle2Is,
}

/// Where an invalidation stands among the `SYS` instructions with CRn = 8 (C5.5): op1, CRm, op2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sys {
    /// op1: 0 for EL1's own, 4 for those of EL2.
    pub op1: u8,
    /// CRm.
    pub crm: u8,
    /// op2.
    pub op2: u8,
}

impl Sys {
    /// `TLBI IPAS2E1IS`.
    pub const IPAS2E1IS: Self = Self { op1: 4, crm: 0, op2: 1 };
    /// `TLBI RIPAS2E1IS`.
    pub const RIPAS2E1IS: Self = Self { op1: 4, crm: 0, op2: 2 };
    /// `TLBI IPAS2E1`.
    pub const IPAS2E1: Self = Self { op1: 4, crm: 4, op2: 1 };
    /// `TLBI VMALLE1IS`.
    pub const VMALLE1IS: Self = Self { op1: 0, crm: 3, op2: 0 };
    /// `TLBI VMALLE1`.
    pub const VMALLE1: Self = Self { op1: 0, crm: 7, op2: 0 };
    /// `TLBI VMALLS12E1IS`.
    pub const VMALLS12E1IS: Self = Self { op1: 4, crm: 3, op2: 6 };
    /// `TLBI VMALLS12E1`.
    pub const VMALLS12E1: Self = Self { op1: 4, crm: 7, op2: 6 };
    /// `TLBI ALLE1IS`.
    pub const ALLE1IS: Self = Self { op1: 4, crm: 3, op2: 4 };
    /// `TLBI VAE2IS`.
    pub const VAE2IS: Self = Self { op1: 4, crm: 3, op2: 1 };
    /// `TLBI ALLE2IS`.
    pub const ALLE2IS: Self = Self { op1: 4, crm: 3, op2: 0 };

    /// The instruction word, with its operand in register `rt`.
    #[must_use]
    pub const fn word(self, rt: u8) -> u32 {
        0xd508_8000
            | (self.op1 as u32) << 16
            | (self.crm as u32) << 8
            | (self.op2 as u32) << 5
            | rt as u32
    }
}

impl Tlbi {
    /// The instruction's name, as the Arm ARM has it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ipas2e1Is(_) => "IPAS2E1IS",
            Self::Ripas2e1Is(_) => "RIPAS2E1IS",
            Self::Ipas2e1(_) => "IPAS2E1",
            Self::Vmalle1Is => "VMALLE1IS",
            Self::Vmalle1 => "VMALLE1",
            Self::Vmalls12e1Is => "VMALLS12E1IS",
            Self::Vmalls12e1 => "VMALLS12E1",
            Self::Alle1Is => "ALLE1IS",
            Self::Vae2Is(_) => "VAE2IS",
            Self::Alle2Is => "ALLE2IS",
        }
    }
}

/// Ranges stay below 4 GiB each, which some emulators cannot take in one instruction.
const MAX_PAGES: u64 = (4 << 30 >> PAGE_SHIFT) - 1;

/// The invalidations that together hit every stage-2 entry of `range`, by range where the machine
/// can and by page where it cannot or where a single page is left over.
///
/// Every page of the range is covered once and no page outside it is; where leaves are known to be
/// blocks and there are no ranges, one page of each block, which is enough \[RTVTYQ\].
pub fn by_ipa(range: IpaRange, level: LeafLevel, caps: Caps) -> impl Iterator<Item = Tlbi> + Clone {
    let (mut next, end) = (range.start().get(), range.end().get());
    let by_range = caps.contains(Caps::TLBI_RANGE);
    core::iter::from_fn(move || {
        let pages = end.checked_sub(next).filter(|left| *left > 0)? >> PAGE_SHIFT;
        let ipa = Ipa::new(next);
        let operand = RangeOperand::largest(ipa, pages.min(MAX_PAGES), level, caps);
        match operand.filter(|_| by_range) {
            Some(operand) => {
                next += operand.pages() << PAGE_SHIFT;
                Some(Tlbi::Ripas2e1Is(operand))
            }
            None => {
                // To the next leaf: its start, wherever in a leaf this one was met.
                let leaf = ipa.align_down(level.leaf_bytes());
                next = leaf.checked_add(level.leaf_bytes()).map_or(end, Ipa::get).min(end);
                Some(Tlbi::Ipas2e1Is(PageOperand::new(ipa, level, caps)))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start_page: u64, pages: u64) -> IpaRange {
        IpaRange::new(Ipa::new(start_page << PAGE_SHIFT), pages << PAGE_SHIFT).unwrap()
    }

    /// Pages covered, from the operands as hardware decodes them.
    fn covered(op: Tlbi) -> (u64, u64) {
        match op {
            Tlbi::Ipas2e1Is(page) => (page.ipa().get() >> PAGE_SHIFT, 1),
            Tlbi::Ripas2e1Is(range) => (range.ipa().get() >> PAGE_SHIFT, range.pages()),
            other => panic!("{other:?}"),
        }
    }

    /// Instruction words as an assembler gives them, so that no table checks itself.
    #[test]
    fn instructions_are_those_that_an_assembler_gives() {
        assert_eq!(Sys::IPAS2E1IS.word(0), 0xd50c_8020, "tlbi ipas2e1is, x0");
        assert_eq!(Sys::RIPAS2E1IS.word(1), 0xd50c_8041, "tlbi ripas2e1is, x1");
        assert_eq!(Sys::IPAS2E1.word(2), 0xd50c_8422, "tlbi ipas2e1, x2");
        assert_eq!(Sys::VMALLE1IS.word(31), 0xd508_831f, "tlbi vmalle1is");
        assert_eq!(Sys::VMALLE1.word(31), 0xd508_871f, "tlbi vmalle1");
        assert_eq!(Sys::VMALLS12E1IS.word(31), 0xd50c_83df, "tlbi vmalls12e1is");
        assert_eq!(Sys::VMALLS12E1.word(31), 0xd50c_87df, "tlbi vmalls12e1");
        assert_eq!(Sys::ALLE1IS.word(31), 0xd50c_839f, "tlbi alle1is");
        assert_eq!(Sys::VAE2IS.word(3), 0xd50c_8323, "tlbi vae2is, x3");
        assert_eq!(Sys::ALLE2IS.word(31), 0xd50c_831f, "tlbi alle2is");
    }

    #[test]
    fn ranges_cover_every_page_once_and_nothing_else() {
        let sizes = (1..=2100).chain((1..=40).flat_map(|n| {
            let near = 1u64 << (n / 2) | 1 << (n % 23);
            [near, near + 1, near.saturating_sub(1).max(1)]
        }));
        for pages in sizes {
            let mut next = 7;
            for op in by_ipa(range(7, pages), LeafLevel::Unknown, Caps::TLBI_RANGE) {
                let (start, count) = covered(op);
                assert_eq!(start, next);
                next += count;
            }
            assert_eq!(next, 7 + pages);
        }
    }

    #[test]
    fn a_range_takes_few_instructions() {
        let count = |pages| by_ipa(range(0, pages), LeafLevel::Unknown, Caps::TLBI_RANGE).count();
        assert_eq!(count(1), 1, "an odd page by itself");
        assert_eq!(count(2), 1);
        assert_eq!(count(512), 1);
        assert_eq!(count(513), 2);
        assert_eq!(count(1 << 18), 1, "1 GiB");
        assert!(count(4 << 18) > 1, "4 GiB is split");
    }

    #[test]
    fn without_ranges_each_leaf_gets_one() {
        let count = |start, pages, level| by_ipa(range(start, pages), level, Caps::empty()).count();
        assert_eq!(count(512, 512, LeafLevel::Unknown), 512);
        assert_eq!(count(512, 512, LeafLevel::L3), 512);
        assert_eq!(count(512, 1024, LeafLevel::L2), 2);
        assert_eq!(count(0, 1 << 18, LeafLevel::L1), 1);
        // From within one block to within another: each block that is met gets one.
        let pages: Vec<u64> = by_ipa(range(511, 1024), LeafLevel::L2, Caps::empty())
            .map(|op| covered(op).0)
            .collect();
        assert_eq!(pages, [511, 512, 1024]);
    }

    #[test]
    fn operand_fields_stand_where_the_manual_puts_them() {
        let page = |level, caps| PageOperand::new(Ipa::new(0x8_4020_1000), level, caps).bits();
        assert_eq!(page(LeafLevel::Unknown, Caps::TTL), 0x84_0201);
        assert_eq!(page(LeafLevel::L3, Caps::TTL), 0b0111 << 44 | 0x84_0201);
        assert_eq!(page(LeafLevel::L2, Caps::TTL), 0b0110 << 44 | 0x84_0201);
        assert_eq!(page(LeafLevel::L1, Caps::TTL), 0b0101 << 44 | 0x84_0201);
        assert_eq!(page(LeafLevel::L3, Caps::empty()), 0x84_0201, "RES0 without FEAT_TTL");

        let range = |pages, level, caps| {
            RangeOperand::largest(Ipa::new(0x4020_0000), pages, level, caps).unwrap().bits()
        };
        // 512 pages: SCALE 1 (64 pages), NUM 7; TG 4K; no hint.
        let plain = 0b01 << 46 | 1 << 44 | 7 << 39 | 0x4_0200;
        assert_eq!(range(512, LeafLevel::Unknown, Caps::TTL), plain);
        assert_eq!(range(512, LeafLevel::L3, Caps::TTL), plain | 3 << 37);
        assert_eq!(range(512, LeafLevel::L2, Caps::TTL), plain | 2 << 37);
        assert_eq!(range(512, LeafLevel::L2, Caps::empty()), plain, "RES0 without FEAT_TTL");
        assert_eq!(range(2, LeafLevel::Unknown, Caps::TTL), 0b01 << 46 | 0x4_0200);
        let most = RangeOperand::largest(Ipa::new(0), MAX_PAGES, LeafLevel::Unknown, Caps::TTL);
        assert_eq!(most.unwrap().bits(), 0b01 << 46 | 3 << 44 | 14 << 39);
    }

    #[test]
    fn an_address_of_el2_stands_where_the_manual_puts_it() {
        let bits = |va, caps| VaOperand::page(va, caps).bits();
        assert_eq!(bits(0x8000_4020_1fff, Caps::TTL), 0b0111 << 44 | 0x8_0004_0201);
        assert_eq!(bits(0x8000_4020_1fff, Caps::empty()), 0x8_0004_0201, "RES0 without FEAT_TTL");
        assert_eq!(VaOperand::page(0x8000_4020_1fff, Caps::TTL).va(), 0x8000_4020_1000);
    }

    #[test]
    fn a_range_hint_needs_an_aligned_base() {
        let ttl = |ipa| {
            let range = RangeOperand::largest(Ipa::new(ipa), 512, LeafLevel::L2, Caps::TTL);
            range.unwrap().bits() >> 37 & 3
        };
        assert_eq!(ttl(0x4020_0000), 2);
        assert_eq!(ttl(0x4020_1000), 0);
    }

    #[test]
    fn hints_reach_the_operands_that_are_issued() {
        let issue = |pages, caps| by_ipa(range(512, pages), LeafLevel::L3, caps).next().unwrap();
        let page = PageOperand::new(Ipa::new(0x20_0000), LeafLevel::L3, Caps::TTL);
        assert_eq!(issue(1, Caps::TTL), Tlbi::Ipas2e1Is(page));
        assert_eq!(issue(1, Caps::TTL | Caps::TLBI_RANGE), Tlbi::Ipas2e1Is(page));
        let two = RangeOperand::largest(Ipa::new(0x20_0000), 2, LeafLevel::L3, Caps::TTL).unwrap();
        assert_eq!(issue(2, Caps::TTL | Caps::TLBI_RANGE), Tlbi::Ripas2e1Is(two));
    }
}
