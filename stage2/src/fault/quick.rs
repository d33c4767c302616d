//! Four questions to a syndrome, each by a comparison or two: for the faults that a handler acts upon before it decodes anything.
//!
//! What is done after a yes must be what [`decide`](super::decide) says; tests compare the two for every syndrome.

/// `ESR_EL2.EC`, without the bit that tells fetches (0x20) from data (0x24).
const CLASS: u64 = 0b11_1011 << 26;
/// An abort from a lower Exception level.
const LOWER: u64 = 0x20 << 26;
/// `ESR_EL2.EC`, bit 2: data.
const DATA: u64 = 1 << 28;
/// S1PTW.
const WALK: u64 = 1 << 7;
/// CM, of data aborts.
const MAINTENANCE: u64 = 1 << 8;
/// WnR, of data aborts.
const WRITE: u64 = 1 << 6;

/// A Translation fault of a guest, level 0 to 3, of whatever access: status 0b0001LL.
#[inline(always)]
#[must_use]
pub const fn is_translation(esr: u64) -> bool {
    esr & (CLASS | 0b11_1100) == LOWER | 0b00_0100
}

/// Of a guest's Translation fault: whether it is no fetch, so that the scratch page can take it. A walk for a fetch is none.
#[inline(always)]
#[must_use]
pub const fn is_no_fetch(esr: u64) -> bool {
    esr & (DATA | WALK) != 0
}

/// An Access flag or Permission fault of a guest, level 0 to 3, of whatever access: status 0b0010LL or 0b0011LL.
#[inline(always)]
#[must_use]
pub const fn is_leaf_fault(esr: u64) -> bool {
    esr & (CLASS | 0b11_1000) == LOWER | 0b00_1000
}

/// A Permission fault of a guest's store, level 0 to 3, that is no walk and no maintenance: what a write to a clean page takes.
#[inline(always)]
#[must_use]
pub const fn is_plain_store(esr: u64) -> bool {
    esr & (CLASS | DATA | WALK | MAINTENANCE | WRITE | 0b11_1100)
        == LOWER | DATA | WRITE | 0b00_1100
}
