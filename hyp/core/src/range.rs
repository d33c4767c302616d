//! Half-open address ranges, one type for each address space.
//!
//! [`PaRange`] is physical (what the machine's device tree speaks of), [`IpaRange`] intermediate
//! physical (what a guest takes for physical). Mixing them is a type error.

use core::fmt;

/// Bytes in a page: the granule of everything here.
pub const PAGE_SIZE: u64 = 4096;

/// Rounds up to a multiple of `align`, a power of two; `None` past the end of the address space.
#[must_use]
pub(crate) const fn align_up(address: u64, align: u64) -> Option<u64> {
    let mask = align.wrapping_sub(1);
    match address.checked_add(mask) {
        Some(sum) => Some(sum & !mask),
        None => None,
    }
}

/// Rounds down to a multiple of `align`, a power of two.
#[must_use]
pub(crate) const fn align_down(address: u64, align: u64) -> u64 {
    address & !align.wrapping_sub(1)
}

macro_rules! address_range {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            /// First byte.
            pub start: u64,
            /// First byte after the range.
            pub end: u64,
        }

        impl $name {
            /// The range `start..end`; `None` when it would run backwards.
            #[must_use]
            pub const fn new(start: u64, end: u64) -> Option<Self> {
                if start <= end { Some(Self { start, end }) } else { None }
            }

            /// The range of `len` bytes from `start`; `None` when it leaves the address space.
            #[must_use]
            pub const fn from_len(start: u64, len: u64) -> Option<Self> {
                match start.checked_add(len) {
                    Some(end) => Some(Self { start, end }),
                    None => None,
                }
            }

            /// Its size in bytes (0 for a range that runs backwards).
            #[must_use]
            pub const fn len(&self) -> u64 {
                self.end.saturating_sub(self.start)
            }

            /// Whether it holds no byte.
            #[must_use]
            pub const fn is_empty(&self) -> bool {
                self.end <= self.start
            }

            /// Whether `address` lies inside.
            #[must_use]
            pub const fn contains(&self, address: u64) -> bool {
                self.start <= address && address < self.end
            }

            /// Whether all of `other` lies inside; an empty `other` does when its place does.
            #[must_use]
            pub const fn contains_range(&self, other: &Self) -> bool {
                self.start <= other.start && other.start <= other.end && other.end <= self.end
            }

            /// Whether some byte belongs to both.
            #[must_use]
            pub const fn overlaps(&self, other: &Self) -> bool {
                !self.is_empty()
                    && !other.is_empty()
                    && self.start < other.end
                    && other.start < self.end
            }

            /// What both have in common, if that is anything.
            #[must_use]
            pub fn intersection(&self, other: &Self) -> Option<Self> {
                self.overlaps(other).then(|| Self {
                    start: self.start.max(other.start),
                    end: self.end.min(other.end),
                })
            }

            /// The pages that the range touches; `None` past the end of the address space.
            #[must_use]
            pub fn grow_to_pages(&self) -> Option<Self> {
                let end = align_up(self.end, PAGE_SIZE)?;
                Some(Self { start: align_down(self.start, PAGE_SIZE), end })
            }

            /// The pages that lie wholly inside the range; empty when there are none.
            #[must_use]
            pub fn shrink_to_pages(&self) -> Self {
                let end = align_down(self.end, PAGE_SIZE);
                let start = align_up(self.start, PAGE_SIZE).unwrap_or(end).min(end);
                Self { start, end }
            }
        }

        impl fmt::Display for $name {
            /// First and last byte: `0x40000000-0x401fffff`.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                if self.is_empty() {
                    write!(f, "{:#x} (empty)", self.start)
                } else {
                    write!(f, "{:#x}-{:#x}", self.start, self.end.saturating_sub(1))
                }
            }
        }
    };
}

address_range! {
    /// A range of physical addresses.
    PaRange
}

address_range! {
    /// A range of intermediate physical addresses: what a guest takes for physical.
    IpaRange
}

/// Something with a name, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named<T> {
    /// What people call it.
    pub name: alloc::string::String,
    /// The thing itself.
    pub value: T,
}

impl<T> Named<T> {
    /// `value`, called `name`.
    pub fn new(name: impl Into<alloc::string::String>, value: T) -> Self {
        Self { name: name.into(), value }
    }
}

impl<T: fmt::Display> fmt::Display for Named<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.value)
    }
}

/// A number of bytes for people: `512 KiB`, `1 GiB`, `4097 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        let units = [(30_u32, "GiB"), (20, "MiB"), (10, "KiB")];
        for (shift, unit) in units {
            let whole = self.0.wrapping_shr(shift);
            if whole != 0 && whole.wrapping_shl(shift) == self.0 && (shift > 10 || self.0 < MIB) {
                return write!(f, "{whole} {unit}");
            }
        }
        if self.0 < MIB {
            return write!(f, "{} bytes", self.0);
        }
        // Rounded down: what is left or free is never said to be more than it is.
        let tenths = (self.0 % MIB).saturating_mul(10) / MIB;
        write!(f, "{}.{tenths} MiB", self.0 / MIB)
    }
}

/// A number of things, for people: "1 CPU", "4 CPUs".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub u64, pub &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        write!(f, "{} {}{plural}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, end: u64) -> PaRange {
        PaRange::new(start, end).unwrap()
    }

    #[test]
    fn a_range_is_shown_with_its_last_byte() {
        assert_eq!(range(0x4000_0000, 0x4020_0000).to_string(), "0x40000000-0x401fffff");
        assert_eq!(range(0x1000, 0x1000).to_string(), "0x1000 (empty)");
    }

    #[test]
    fn a_range_past_the_address_space_is_none() {
        assert_eq!(PaRange::from_len(u64::MAX, 2), None);
        assert_eq!(PaRange::new(2, 1), None);
        assert_eq!(range(0, u64::MAX).grow_to_pages(), None);
    }

    #[test]
    fn neighbours_do_not_overlap() {
        assert!(!range(0, 0x1000).overlaps(&range(0x1000, 0x2000)));
        assert!(range(0, 0x1001).overlaps(&range(0x1000, 0x2000)));
        assert!(!range(0x1000, 0x1000).overlaps(&range(0, 0x2000)));
    }

    #[test]
    fn shrinking_less_than_a_page_leaves_nothing() {
        assert!(range(0x1001, 0x1fff).shrink_to_pages().is_empty());
        assert!(range(u64::MAX - 1, u64::MAX).shrink_to_pages().is_empty());
    }

    #[test]
    fn sizes_are_shown_in_the_largest_whole_unit() {
        assert_eq!(Bytes(1 << 30).to_string(), "1 GiB");
        assert_eq!(Bytes(1536 << 20).to_string(), "1536 MiB");
        assert_eq!(Bytes(64 << 10).to_string(), "64 KiB");
        assert_eq!(Bytes(4097).to_string(), "4097 bytes");
        assert_eq!(Bytes(520384 << 10).to_string(), "508.1 MiB");
        assert_eq!(Bytes((2 << 20) - 1).to_string(), "1.9 MiB");
        assert_eq!(Count(1, "CPU").to_string(), "1 CPU");
        assert_eq!(Count(0, "CPU").to_string(), "0 CPUs");
        assert_eq!(Bytes(0).to_string(), "0 bytes");
    }

    proptest! {
        #[test]
        fn pages_inside_are_inside_and_pages_around_are_around(start in 0..1_u64 << 52, len in 0..1_u64 << 40) {
            let whole = PaRange::from_len(start, len).unwrap();
            prop_assert!(whole.grow_to_pages().unwrap().contains_range(&whole));
            let inner = whole.shrink_to_pages();
            prop_assert!(inner.is_empty() || whole.contains_range(&inner));
            prop_assert_eq!(inner.start % PAGE_SIZE, 0);
            prop_assert_eq!(inner.end % PAGE_SIZE, 0);
        }

        #[test]
        fn overlap_is_a_common_byte(a in 0..64_u64, al in 0..16_u64, b in 0..64_u64, bl in 0..16_u64) {
            let (x, y) = (range(a, a + al), range(b, b + bl));
            let common = (0..96).any(|byte| x.contains(byte) && y.contains(byte));
            prop_assert_eq!(x.overlaps(&y), common);
            prop_assert_eq!(x.intersection(&y).is_some(), common);
        }
    }
}
