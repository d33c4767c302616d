//! Descriptors of EL2's stage 1 as its window has them \[D8.3.1, D8.3.2\]: 4 KiB granule, 48-bit addresses.
//! With HCR_EL2.E2H = 0: otherwise AP\[1\] would be EL0's access, and PXN what bars EL2's fetches.
//!
//! | field of a page | bits | here |
//! | --- | --- | --- |
//! | valid, page | 1:0 | 11 |
//! | AttrIndx | 4:2 | the caller's: Normal write-back in MAIR_EL2 |
//! | AP\[1\] | 6 | 1: RES1 in a regime with one Exception level |
//! | AP\[2\] | 7 | 0: writable |
//! | SH | 9:8 | 11, Inner Shareable |
//! | AF | 10 | 1: EL2 keeps no working set of its own |
//! | nG | 11 | 0: RES0 in a regime without ASIDs |
//! | DBM, Contiguous | 51, 52 | 0 |
//! | PXN | 53 | 0: RES0 in a regime with one Exception level |
//! | XN | 54 | 1: never executable |
//!
//! A table has no attributes of its own: bits 63:59 are 0. A slot that is not valid is Empty, or in [`DRAIN`].

use crate::addr::Pa;

const VALID: u64 = 1 << 0;
const TABLE_OR_PAGE: u64 = 0b11;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const ATTRIBUTE_SHIFT: u32 = 2;
const AP_RES1: u64 = 1 << 6;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESSED: u64 = 1 << 10;
const XN: u64 = 1 << 54;

/// Was live; EL2's TLBs have not been told, or the page's new place is not settled.
pub(crate) const DRAIN: u64 = 0b10;

/// A page at `pa`, of the attribute of this index in MAIR_EL2.
pub(crate) const fn page(pa: Pa, attribute: u8) -> u64 {
    let attribute = (attribute as u64) << ATTRIBUTE_SHIFT;
    pa.get() | TABLE_OR_PAGE | attribute | AP_RES1 | INNER_SHAREABLE | ACCESSED | XN
}

/// The next table at `pa`.
pub(crate) const fn table(pa: Pa) -> u64 {
    pa.get() | TABLE_OR_PAGE
}

/// The next table, if a slot above level 3 leads to one.
pub(crate) const fn as_table(bits: u64) -> Option<Pa> {
    if bits & TABLE_OR_PAGE == TABLE_OR_PAGE { Some(Pa::new(bits & ADDRESS)) } else { None }
}

/// Whether walks of EL2 go on from here, or end in a page.
pub(crate) const fn is_valid(bits: u64) -> bool {
    bits & VALID != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the fields of D8.3.2, as numbers: no table checks itself.
    #[test]
    fn a_page_is_writable_shareable_accessed_and_never_executable() {
        assert_eq!(page(Pa::new(0x8765_4000), 1), 0x0040_0000_8765_4747);
        assert_eq!(page(Pa::new(0x0000_ffff_ffff_f000), 7), 0x0040_ffff_ffff_f75f);
        assert_eq!(table(Pa::new(0x8765_4000)), 0x8765_4003);
        assert_eq!(as_table(0x8765_4003), Some(Pa::new(0x8765_4000)));
        assert_eq!((as_table(0), as_table(DRAIN)), (None, None));
        assert!(!is_valid(DRAIN) && is_valid(0x8765_4003));
    }
}
