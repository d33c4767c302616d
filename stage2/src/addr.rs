//! Addresses that cannot be mixed up.
//!
//! A stage-2 walk turns an intermediate physical address ([`Ipa`], what the guest calls physical)
//! into a physical address ([`Pa`], what the machine calls physical). Both are 64-bit numbers, and
//! mixing them is the classic error of this field, so they are types without a common supertrait.

use core::fmt;

/// Bytes in a granule. This crate uses the 4 KiB translation granule only.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Descriptors in one table page.
pub const SLOTS: usize = 512;

/// Bits of an address that a 4 KiB-granule descriptor can hold without FEAT_LPA2.
const MAX_ADDR_BITS: u32 = 48;

/// An intermediate physical address in bytes: what a guest's stage 1 puts out and stage 2 takes in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Ipa(u64);

/// A physical address in bytes: what stage 2 puts out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Pa(u64);

macro_rules! address {
    ($name:ident, $label:literal) => {
        impl $name {
            /// Wraps an address in bytes. Any value is allowed; what uses it checks its range.
            #[must_use]
            pub const fn new(bytes: u64) -> Self {
                Self(bytes)
            }

            /// The address in bytes.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The address of the page that holds this byte.
            #[must_use]
            pub const fn page(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }

            /// Rounded down to a multiple of `size` bytes, which must be a power of two.
            #[must_use]
            pub const fn align_down(self, size: u64) -> Self {
                Self(self.0 & !(size - 1))
            }

            /// Whether the address is a multiple of `size` bytes, which must be a power of two.
            #[must_use]
            pub const fn is_aligned(self, size: u64) -> bool {
                self.0 & (size - 1) == 0
            }

            /// The address `bytes` further on, or `None` past the end of the 64-bit space.
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($label, "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(Ipa, "Ipa");
address!(Pa, "Pa");

impl Pa {
    /// Whether a descriptor can hold this address: page aligned and below 2^48.
    #[must_use]
    pub const fn fits_descriptor(self) -> bool {
        self.is_aligned(PAGE_SIZE) && self.0 >> MAX_ADDR_BITS == 0
    }
}

/// A half-open, page-aligned, non-empty range of IPAs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IpaRange {
    start: Ipa,
    end: Ipa,
}

/// Why a pair of addresses is no [`IpaRange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeError {
    /// The range would be empty, or would wrap past the end of the address space.
    EmptyOrWraps {
        /// First byte.
        start: Ipa,
        /// Length in bytes.
        len: u64,
    },
    /// Start or length is not a multiple of 4 KiB.
    Unaligned {
        /// First byte.
        start: Ipa,
        /// Length in bytes.
        len: u64,
    },
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyOrWraps { start, len } => {
                write!(f, "IPA range at {start} with {len:#x} bytes is empty or wraps")
            }
            Self::Unaligned { start, len } => {
                write!(f, "IPA range at {start} with {len:#x} bytes is not a multiple of 4 KiB")
            }
        }
    }
}

impl core::error::Error for RangeError {}

impl IpaRange {
    /// One that fills a place for others.
    pub(crate) const FIRST_PAGE: Self = Self { start: Ipa(0), end: Ipa(PAGE_SIZE) };

    /// The range of `len` bytes from `start`.
    ///
    /// # Errors
    /// [`RangeError`] when it is empty, wraps, or is not page aligned at both ends.
    pub const fn new(start: Ipa, len: u64) -> Result<Self, RangeError> {
        let Some(end) = start.checked_add(len) else {
            return Err(RangeError::EmptyOrWraps { start, len });
        };
        if len == 0 {
            return Err(RangeError::EmptyOrWraps { start, len });
        }
        if !start.is_aligned(PAGE_SIZE) || len & (PAGE_SIZE - 1) != 0 {
            return Err(RangeError::Unaligned { start, len });
        }
        Ok(Self { start, end })
    }

    /// The one page that holds `ipa`; `None` for the last page of the 64-bit space.
    #[must_use]
    pub const fn page_of(ipa: Ipa) -> Option<Self> {
        match Self::new(ipa.page(), PAGE_SIZE) {
            Ok(range) => Some(range),
            Err(_) => None,
        }
    }

    /// First address.
    #[must_use]
    pub const fn start(&self) -> Ipa {
        self.start
    }

    /// First address after the range.
    #[must_use]
    pub const fn end(&self) -> Ipa {
        self.end
    }

    /// Length in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Length in 4 KiB pages.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.bytes() >> PAGE_SHIFT
    }

    /// Whether `ipa` lies inside.
    #[must_use]
    pub const fn contains(&self, ipa: Ipa) -> bool {
        self.start.0 <= ipa.0 && ipa.0 < self.end.0
    }

    /// Whether every page of `other` lies inside.
    #[must_use]
    pub const fn covers(&self, other: &Self) -> bool {
        self.start.0 <= other.start.0 && other.end.0 <= self.end.0
    }

    /// The smallest range that holds both.
    #[must_use]
    pub(crate) fn hull(&self, other: &Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// Whether the two ranges share a page.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start.0 < other.end.0 && other.start.0 < self.end.0
    }
}

impl fmt::Debug for IpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.0, self.end.0)
    }
}

impl fmt::Display for IpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start.0, self.end.0 - 1)
    }
}

/// A virtual machine identifier: the tag of everything that stage 2 puts into a TLB.
///
/// Zero is allowed by the architecture but not by this crate: it is what VTTBR_EL2 holds before
/// anybody thought of VMIDs, and a forgotten VMID should not collide with a real one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Vmid(core::num::NonZeroU16);

impl Vmid {
    /// `None` for zero, and for a value that needs 16 bits when `bits` (8 or 16) is 8.
    #[must_use]
    pub const fn new(value: u16, bits: u32) -> Option<Self> {
        if bits < 16 && value >> bits != 0 {
            return None;
        }
        match core::num::NonZeroU16::new(value) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

/// A level of the translation tables. A walk starts at level 0, 1 or 2 and ends at level 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// 512 GiB a slot; tables only (without FEAT_LPA2).
    L0 = 0,
    /// 1 GiB a slot: block or table.
    L1 = 1,
    /// 2 MiB a slot: block or table.
    L2 = 2,
    /// 4 KiB a slot: page.
    L3 = 3,
}

impl Level {
    /// log2 of the bytes that one slot of this level translates: 39, 30, 21 or 12.
    #[must_use]
    pub const fn shift(self) -> u32 {
        PAGE_SHIFT + 9 * (3 - self as u32)
    }

    /// Bytes that one slot of this level translates.
    #[must_use]
    pub const fn slot_bytes(self) -> u64 {
        1 << self.shift()
    }

    /// Bytes that one table page of this level translates.
    #[must_use]
    pub const fn table_bytes(self) -> u64 {
        1 << (self.shift() + 9)
    }

    /// The level below, or `None` from level 3.
    #[must_use]
    pub const fn next(self) -> Option<Self> {
        match self {
            Self::L0 => Some(Self::L1),
            Self::L1 => Some(Self::L2),
            Self::L2 => Some(Self::L3),
            Self::L3 => None,
        }
    }

    /// Whether a slot of this level may hold a block or a page.
    #[must_use]
    pub const fn has_leaves(self) -> bool {
        !matches!(self, Self::L0)
    }

    /// The slot of `ipa` in a table page of this level, below 512.
    #[must_use]
    pub const fn index(self, ipa: Ipa) -> usize {
        (ipa.get() >> self.shift()) as usize & (SLOTS - 1)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "level {}", *self as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_refuses_empty_wrapping_and_unaligned() {
        assert!(matches!(IpaRange::new(Ipa::new(0), 0), Err(RangeError::EmptyOrWraps { .. })));
        assert!(matches!(
            IpaRange::new(Ipa::new(u64::MAX - 0xfff), 0x2000),
            Err(RangeError::EmptyOrWraps { .. })
        ));
        assert!(matches!(
            IpaRange::new(Ipa::new(0x800), 0x1000),
            Err(RangeError::Unaligned { .. })
        ));
        assert!(matches!(IpaRange::new(Ipa::new(0), 0x1800), Err(RangeError::Unaligned { .. })));
    }

    #[test]
    fn range_is_half_open() {
        let range = IpaRange::new(Ipa::new(0x1000), 0x2000).unwrap();
        assert!(range.contains(Ipa::new(0x1000)) && range.contains(Ipa::new(0x2fff)));
        assert!(!range.contains(Ipa::new(0x3000)) && !range.contains(Ipa::new(0xfff)));
        let next = IpaRange::new(Ipa::new(0x3000), 0x1000).unwrap();
        assert!(!range.overlaps(&next) && !next.overlaps(&range));
        assert_eq!(range.pages(), 2);
        assert_eq!(format!("{range}"), "0x1000-0x2fff");
    }

    #[test]
    fn vmid_zero_and_too_wide_are_refused() {
        assert_eq!(Vmid::new(0, 16), None);
        assert_eq!(Vmid::new(256, 8), None);
        assert_eq!(Vmid::new(255, 8).map(Vmid::get), Some(255));
        assert_eq!(Vmid::new(65535, 16).map(Vmid::get), Some(65535));
    }

    #[test]
    fn levels_cover_what_the_manual_says() {
        assert_eq!(Level::L1.slot_bytes(), 1 << 30);
        assert_eq!(Level::L2.slot_bytes(), 2 << 20);
        assert_eq!(Level::L3.slot_bytes(), 4096);
        assert_eq!(Level::L3.table_bytes(), Level::L2.slot_bytes());
        assert_eq!(Level::L2.index(Ipa::new(0x4020_0000)), 1);
    }
}
