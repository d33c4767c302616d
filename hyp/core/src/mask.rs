//! Parts of the architecture that are not made use of, though the machine has them: the word `mask=`.
//!
//! So that every path for machines that lack something runs on one that does not. The names are those of
//! `stage2::Caps`, in lower case and with dashes.

use core::fmt;

use bitflags::bitflags;

bitflags! {
    /// What is hidden from stage 2. The bits are those of `stage2::Caps`, which this crate does not know; the hypervisor
    /// is not compiled if they differ.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Mask: u32 {
        /// 16-bit VMIDs.
        const VMID16 = 1 << 1;
        /// Hardware management of the access flag, and so of the dirty state, which needs it.
        const HW_ACCESS = 1 << 2;
        /// Hardware management of the dirty state.
        const HW_DIRTY = 1 << 3;
        /// TLBI by range.
        const TLBI_RANGE = 1 << 4;
        /// Atomic instructions.
        const LSE = 1 << 5;
        /// The level hint of TLBI by address.
        const TTL = 1 << 6;
        /// Stage 2 forces write-back.
        const FWB = 1 << 7;
        /// Separate execute permissions for EL1 and EL0.
        const XNX = 1 << 8;
        /// No cleaning to the point of unification for instruction fetch.
        const IDC = 1 << 9;
        /// No invalidation of the instruction cache for fresh code.
        const DIC = 1 << 10;
    }
}

impl Mask {
    /// Reads names with commas between them; `None` if one is unknown or missing.
    #[must_use]
    pub fn parse(names: &str) -> Option<Self> {
        let mask = names.split(',').try_fold(Self::empty(), |mask, name| {
            let mut all = Self::all().iter_names();
            let (_, one) = all.find(|(known, _)| written(known).eq(name.chars()))?;
            Some(mask | one)
        })?;
        let dirty = if mask.contains(Self::HW_ACCESS) { Self::HW_DIRTY } else { Self::empty() };
        Some(mask | dirty)
    }
}

/// A name as it is written on the command line.
fn written(name: &str) -> impl Iterator<Item = char> {
    name.chars().map(|letter| if letter == '_' { '-' } else { letter.to_ascii_lowercase() })
}

impl fmt::Display for Mask {
    /// As [`Mask::parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, _)) in self.iter_names().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            written(name).try_for_each(|letter| fmt::Write::write_char(f, letter))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_mask_is_read_as_it_is_written() {
        for bits in 0..Mask::all().bits() + 1 {
            let Some(mask) = Mask::from_bits(bits).filter(|mask| !mask.is_empty()) else {
                continue;
            };
            let access = mask.contains(Mask::HW_ACCESS);
            let expected = if access { mask | Mask::HW_DIRTY } else { mask };
            assert_eq!(Mask::parse(&mask.to_string()), Some(expected));
        }
        assert_eq!(Mask::parse("hw-dirty,tlbi-range"), Some(Mask::HW_DIRTY | Mask::TLBI_RANGE));
    }

    #[test]
    fn without_the_access_flag_there_is_no_dirty_state() {
        assert_eq!(Mask::parse("hw-access"), Some(Mask::HW_ACCESS | Mask::HW_DIRTY));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for names in ["", ",", "lse,", "LSE", "hw_dirty", "lse ttl", "granule-4k", "hw", "lse,,ttl"]
        {
            assert_eq!(Mask::parse(names), None, "{names:?}");
        }
    }
}
