//! Where the linker put what: the symbols of `link.ld` as ranges.

use hyp_core::PaRange;

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __stacks_start: u8;
    static __image_end: u8;
}

macro_rules! between {
    ($start:ident, $end:ident) => {
        PaRange { start: &raw const $start as u64, end: &raw const $end as u64 }
    };
}

/// Everything: code, data, heap and stacks.
pub(crate) fn whole() -> PaRange {
    between!(__image_start, __image_end)
}

/// Code: executable, read-only.
pub(crate) fn text() -> PaRange {
    between!(__image_start, __text_end)
}

/// Constants and the embedded guest: read-only.
pub(crate) fn rodata() -> PaRange {
    between!(__text_end, __rodata_end)
}

/// Writable data, up to the stacks.
pub(crate) fn data() -> PaRange {
    between!(__rodata_end, __stacks_start)
}
