//! The TLB invalidations of stage 2 and their operands, exactly as chapter C5.5 spells them.
//!
//! Two traps of the encoding, both of which shipped in real hypervisors:
//!
//! * The level hint TTL is the level of the **leaf**. A wrong hint, or a wrong granule in a range,
//!   obliges hardware to invalidate **nothing** \[RXKMMX\]. So hints are a type, and leaving them out
//!   is the default.
//! * A range covers `(NUM + 1) · 2^(5·SCALE + 1)` granules: two at the least, so an odd page needs
//!   an invalidation of its own; and with a level hint its base must be aligned to that level.

use core::fmt;

use crate::addr::{Ipa, IpaRange, Level, PAGE_SHIFT};
use crate::features::{Caps, Features};

/// One invalidation.
///
/// `IPAS2*`, `RIPAS2*` and `VMALL*` act on the **current** VMID, the one in VTTBR_EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tlbi {
    /// Stage-2 entries of one IPA, all PEs. Does not touch combined stage-1-and-2 entries.
    Ipas2e1Is(PageOperand),
    /// Last-level stage-2 entries of one IPA, all PEs. Not for a table that goes away.
    Ipas2le1Is(PageOperand),
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
    /// All entries of all VMIDs, all PEs.
    Alle1Is,
}

impl Tlbi {
    /// The instruction's name, as the Arm ARM has it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ipas2e1Is(_) => "IPAS2E1IS",
            Self::Ipas2le1Is(_) => "IPAS2LE1IS",
            Self::Ripas2e1Is(_) => "RIPAS2E1IS",
            Self::Ipas2e1(_) => "IPAS2E1",
            Self::Vmalle1Is => "VMALLE1IS",
            Self::Vmalle1 => "VMALLE1",
            Self::Vmalls12e1Is => "VMALLS12E1IS",
            Self::Alle1Is => "ALLE1IS",
        }
    }
}

/// What is known of the level of the leaves that an invalidation is to hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeafLevel {
    /// Nothing, or tables are involved: every level is invalidated.
    Unknown,
    /// Every leaf in question is at this level, and no table changed.
    Only(Level),
}

impl LeafLevel {
    /// The two low bits of a hint, or `None` for no hint. Level 0 has no leaves, hence no hint.
    const fn bits(self) -> Option<u64> {
        match self {
            Self::Only(level) if level.has_leaves() => Some(level as u64),
            _ => None,
        }
    }
}

/// Operand of `IPAS2E1IS` and its kin.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageOperand(u64);

/// The 4 KiB granule in a TTL field, and in a TG field.
const GRANULE_4K: u64 = 0b01;

impl PageOperand {
    const TTL_SHIFT: u32 = 44;
    const ADDRESS_BITS: u32 = 40;

    /// One page of `ipa`. The level hint is used only where `features` has FEAT_TTL: elsewhere
    /// those bits are RES0.
    #[must_use]
    pub const fn new(ipa: Ipa, level: LeafLevel, features: Caps) -> Self {
        let address = (ipa.get() >> PAGE_SHIFT) & ((1 << Self::ADDRESS_BITS) - 1);
        let ttl = match level.bits() {
            Some(level) if features.contains(Caps::TTL) => GRANULE_4K << 2 | level,
            _ => 0,
        };
        Self(ttl << Self::TTL_SHIFT | address)
    }

    /// The register value.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The page that is invalidated.
    #[must_use]
    pub const fn ipa(self) -> Ipa {
        Ipa::new((self.0 & ((1 << Self::ADDRESS_BITS) - 1)) << PAGE_SHIFT)
    }
}

impl fmt::Debug for PageOperand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ttl={:#b}", self.ipa(), self.0 >> Self::TTL_SHIFT & 0xf)
    }
}

/// Operand of `RIPAS2E1IS`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RangeOperand(u64);

impl RangeOperand {
    const TTL_SHIFT: u32 = 37;
    const NUM_SHIFT: u32 = 39;
    const SCALE_SHIFT: u32 = 44;
    const TG_SHIFT: u32 = 46;
    const ADDRESS_BITS: u32 = 37;
    const MAX_SCALE: u64 = 3;
    const NUM_MASK: u64 = 0x1f;

    /// Pages that `num` and `scale` cover.
    const fn covers(num: u64, scale: u64) -> u64 {
        (num + 1) << (5 * scale + 1)
    }

    /// The largest range at `ipa` that covers no more than `pages` pages; `None` below two pages,
    /// or where the base does not fit.
    const fn largest(ipa: Ipa, pages: u64, level: LeafLevel) -> Option<Self> {
        let base = ipa.get() >> PAGE_SHIFT;
        if pages < 2 || base >> Self::ADDRESS_BITS != 0 {
            return None;
        }
        let mut scale = Self::MAX_SCALE;
        while Self::covers(0, scale) > pages {
            scale -= 1;
        }
        let fits = pages >> (5 * scale + 1);
        let num = if fits > Self::NUM_MASK + 1 { Self::NUM_MASK } else { fits - 1 };
        let ttl = match level.bits() {
            // An unaligned base with a hint makes the range unpredictable.
            Some(hint) if ipa.is_aligned(Self::hinted_bytes(level)) => hint,
            _ => 0,
        };
        Some(Self(
            base | ttl << Self::TTL_SHIFT
                | num << Self::NUM_SHIFT
                | scale << Self::SCALE_SHIFT
                | GRANULE_4K << Self::TG_SHIFT,
        ))
    }

    const fn hinted_bytes(level: LeafLevel) -> u64 {
        match level {
            LeafLevel::Only(level) => level.slot_bytes(),
            LeafLevel::Unknown => 1,
        }
    }

    /// The register value.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// First page of the range.
    #[must_use]
    pub const fn ipa(self) -> Ipa {
        Ipa::new((self.0 & ((1 << Self::ADDRESS_BITS) - 1)) << PAGE_SHIFT)
    }

    /// Pages in the range, from the fields as hardware reads them.
    #[must_use]
    pub const fn pages(self) -> u64 {
        Self::covers(self.0 >> Self::NUM_SHIFT & Self::NUM_MASK, self.0 >> Self::SCALE_SHIFT & 0b11)
    }
}

impl fmt::Debug for RangeOperand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{} ttl={:#b}", self.ipa(), self.pages(), self.0 >> Self::TTL_SHIFT & 0b11)
    }
}

/// Ranges stay below 4 GiB each, which some emulators cannot take in one instruction.
const MAX_PAGES: u64 = (4 << 30 >> PAGE_SHIFT) - 1;

/// The invalidations that together hit every stage-2 entry of `range`, by range where the machine
/// can and by page where it cannot or where a single page is left over.
///
/// Every page of the range is covered once and no page outside it is.
pub fn by_ipa(range: IpaRange, level: LeafLevel, features: Caps) -> impl Iterator<Item = Tlbi> {
    // Without ranges, one invalidation serves a whole block [RTVTYQ].
    let step = match level {
        LeafLevel::Only(level) if range.start().is_aligned(level.slot_bytes()) => {
            level.slot_bytes() >> PAGE_SHIFT
        }
        _ => 1,
    };
    let mut next = range.start().get() >> PAGE_SHIFT;
    let end = range.end().get() >> PAGE_SHIFT;
    core::iter::from_fn(move || {
        let left = end.checked_sub(next).filter(|left| *left > 0)?;
        let ipa = Ipa::new(next << PAGE_SHIFT);
        let by_range = features.contains(Caps::TLBI_RANGE);
        let wanted = left.min(MAX_PAGES);
        match RangeOperand::largest(ipa, wanted, level).filter(|_| by_range) {
            Some(operand) => {
                next += operand.pages();
                Some(Tlbi::Ripas2e1Is(operand))
            }
            None => {
                next += step.min(left);
                Some(Tlbi::Ipas2e1Is(PageOperand::new(ipa, level, features)))
            }
        }
    })
}

/// Capabilities that matter for invalidation, of a machine with `features`.
#[must_use]
pub const fn tlbi_caps(features: &Features) -> Caps {
    features.caps.intersection(Caps::TLBI_RANGE.union(Caps::TTL))
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
        let count = |pages, level| by_ipa(range(512, pages), level, Caps::empty()).count();
        assert_eq!(count(512, LeafLevel::Unknown), 512);
        assert_eq!(count(512, LeafLevel::Only(Level::L3)), 512);
        assert_eq!(count(1024, LeafLevel::Only(Level::L2)), 2);
    }

    #[test]
    fn operand_fields_stand_where_the_manual_puts_them() {
        let page = |level, caps| PageOperand::new(Ipa::new(0x8_4020_1000), level, caps).bits();
        assert_eq!(page(LeafLevel::Unknown, Caps::TTL), 0x84_0201);
        assert_eq!(page(LeafLevel::Only(Level::L3), Caps::TTL), 0b0111 << 44 | 0x84_0201);
        assert_eq!(page(LeafLevel::Only(Level::L2), Caps::TTL), 0b0110 << 44 | 0x84_0201);
        assert_eq!(page(LeafLevel::Only(Level::L0), Caps::TTL), 0x84_0201);
        assert_eq!(page(LeafLevel::Only(Level::L3), Caps::empty()), 0x84_0201, "RES0 without TTL");

        let range = RangeOperand::largest(Ipa::new(0x4020_0000), 512, LeafLevel::Unknown).unwrap();
        // 512 pages: SCALE 1 (64 pages), NUM 7; TG 4K; no hint.
        assert_eq!(range.bits(), 0b01 << 46 | 1 << 44 | 7 << 39 | 0x4_0200);
    }

    #[test]
    fn a_range_hint_needs_an_aligned_base() {
        let ttl = |ipa| {
            let level = LeafLevel::Only(Level::L2);
            RangeOperand::largest(Ipa::new(ipa), 512, level).unwrap().bits() >> 37 & 3
        };
        assert_eq!(ttl(0x4020_0000), 2);
        assert_eq!(ttl(0x4020_1000), 0);
    }
}
