//! Operands of invalidations by address: what is in the register.

use core::fmt;

use crate::addr::{Ipa, Level, PAGE_SHIFT, PAGE_SIZE};
use crate::features::Caps;

/// What is known of the level of the leaves that an invalidation is to hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeafLevel {
    /// Nothing, or tables are involved: every level is invalidated.
    Unknown,
    /// Every leaf in question is a 1 GiB block, and no table changed.
    L1,
    /// Every leaf in question is a 2 MiB block, and no table changed.
    L2,
    /// Every leaf in question is a 4 KiB page, and no table changed.
    L3,
}

impl LeafLevel {
    const fn level(self) -> Option<Level> {
        match self {
            Self::Unknown => None,
            Self::L1 => Some(Level::L1),
            Self::L2 => Some(Level::L2),
            Self::L3 => Some(Level::L3),
        }
    }

    /// The two low bits of a hint, where there is one to give.
    const fn hint(self, caps: Caps) -> Option<u64> {
        match self.level() {
            Some(level) if caps.contains(Caps::TTL) => Some(level as u64),
            _ => None,
        }
    }

    /// Bytes of a leaf, as far as is known: at least a page.
    pub(super) const fn leaf_bytes(self) -> u64 {
        match self.level() {
            Some(level) => level.slot_bytes(),
            None => PAGE_SIZE,
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

    /// The page of `ipa`, with the level hint if `caps` has FEAT_TTL.
    #[must_use]
    pub const fn new(ipa: Ipa, level: LeafLevel, caps: Caps) -> Self {
        let address = (ipa.get() >> PAGE_SHIFT) & ((1 << Self::ADDRESS_BITS) - 1);
        let ttl = match level.hint(caps) {
            Some(level) => GRANULE_4K << 2 | level,
            None => 0,
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

/// Operand of `VAE2IS` (C5.5.63): bits 55:12 of the address, the level hint, and no ASID, as EL2's own regime has none.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaOperand(u64);

impl VaOperand {
    const ADDRESS_BITS: u32 = 44;

    /// The page of 4 KiB in which `va` lies: with the level hint if `caps` has FEAT_TTL.
    #[must_use]
    pub const fn page(va: u64, caps: Caps) -> Self {
        let address = (va >> PAGE_SHIFT) & ((1 << Self::ADDRESS_BITS) - 1);
        let ttl = match LeafLevel::L3.hint(caps) {
            Some(level) => GRANULE_4K << 2 | level,
            None => 0,
        };
        Self(ttl << PageOperand::TTL_SHIFT | address)
    }

    /// The register value.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The first byte of the page that is invalidated.
    #[must_use]
    pub const fn va(self) -> u64 {
        (self.0 & ((1 << Self::ADDRESS_BITS) - 1)) << PAGE_SHIFT
    }
}

impl fmt::Debug for VaOperand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} ttl={:#b}", self.va(), self.0 >> PageOperand::TTL_SHIFT & 0xf)
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

    /// The largest range at `ipa` that covers no more than `pages` pages, of which there are fewer
    /// than 2^21; `None` below two.
    pub(super) const fn largest(
        ipa: Ipa,
        pages: u64,
        level: LeafLevel,
        caps: Caps,
    ) -> Option<Self> {
        if pages < 2 {
            return None;
        }
        let base = (ipa.get() >> PAGE_SHIFT) & ((1 << Self::ADDRESS_BITS) - 1);
        let mut scale = Self::MAX_SCALE;
        while Self::covers(0, scale) > pages {
            scale -= 1;
        }
        // At most 31: a larger scale would have fitted, and at scale 3 the bound on `pages` says so.
        let num = (pages >> (5 * scale + 1)) - 1;
        let ttl = match level.hint(caps) {
            Some(hint) if ipa.is_aligned(level.leaf_bytes()) => hint,
            _ => 0,
        };
        Some(Self(
            base | ttl << Self::TTL_SHIFT
                | num << Self::NUM_SHIFT
                | scale << Self::SCALE_SHIFT
                | GRANULE_4K << Self::TG_SHIFT,
        ))
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
