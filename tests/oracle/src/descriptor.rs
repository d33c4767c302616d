//! A stage-2 descriptor as hardware reads it \[D8.3\]: 4 KiB granule, 48-bit addresses.
//!
//! Deliberately not shared with the code under test: written from the text once more.

/// Log2 of the granule.
pub const GRANULE: u32 = 12;
/// The last level.
pub const LEAF_LEVEL: u8 = 3;

const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const AF: u64 = 1 << 10;
const S2AP_WRITE: u64 = 1 << 7;
const DBM: u64 = 1 << 51;
const CONTIGUOUS: u64 = 1 << 52;
/// nT, in blocks only \[IPJZBK\].
const NO_TRANSLATION: u64 = 1 << 16;
/// What hardware sets for an access that is allowed.
pub(crate) const RECORD_ACCESS: u64 = AF;
/// What hardware sets for a write: the access flag and the dirty state.
pub(crate) const RECORD: u64 = AF | S2AP_WRITE;
/// MemAttr, SH and FnXS: what RWHZWS calls memory type, Shareability and Cacheability.
const MEMORY: u64 = 0b1111 << 2 | 0b11 << 8;

/// Log2 of the bytes that a slot of `level` translates.
#[must_use]
pub const fn shift(level: u8) -> u32 {
    GRANULE + 9 * (LEAF_LEVEL - level) as u32
}

/// What hardware makes of 64 bits in a slot of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A translation fault, never cached \[RXCLRD\].
    Fault,
    /// The next table is at this address.
    Table(u64),
    /// A block or page at this address.
    Leaf(u64),
}

/// What hardware makes of `bits` in a slot of `level`.
#[must_use]
pub const fn kind(bits: u64, level: u8) -> Kind {
    let address = bits & ADDRESS;
    match (bits & 0b11, level) {
        (0b11, LEAF_LEVEL) => Kind::Leaf(address),
        (0b11, _) => Kind::Table(address),
        (0b01, 1 | 2) => Kind::Leaf(address & !((1 << shift(level)) - 1)),
        _ => Kind::Fault,
    }
}

/// A leaf whose access flag is clear faults and is never cached, unless hardware sets it first.
#[must_use]
pub const fn accessed(bits: u64) -> bool {
    bits & AF != 0
}

/// Whether a write through the descriptor is recorded first, if hardware manages the dirty state.
#[must_use]
pub const fn writable_clean(bits: u64) -> bool {
    bits & (S2AP_WRITE | DBM) == DBM
}

/// Whether a write through the descriptor records nothing: it is dirty, or not tracked.
#[must_use]
pub const fn writes_freely(bits: u64) -> bool {
    bits & S2AP_WRITE != 0
}

/// Whether hardware has recorded a write.
#[must_use]
pub const fn dirty(bits: u64) -> bool {
    bits & (S2AP_WRITE | DBM) == S2AP_WRITE | DBM
}

/// The fields that RWHZWS calls memory type, Shareability and Cacheability.
#[must_use]
pub const fn memory(bits: u64) -> u64 {
    bits & MEMORY
}

/// Whether the descriptor is one of 16 that may be cached as one.
#[must_use]
pub const fn contiguous(bits: u64) -> bool {
    bits & CONTIGUOUS != 0
}

/// Whether a block may fault instead of being cached, so that its size can be changed in place
/// (FEAT_BBM level 1).
#[must_use]
pub const fn no_translation(bits: u64, level: u8) -> bool {
    matches!(kind(bits, level), Kind::Leaf(_)) && level < LEAF_LEVEL && bits & NO_TRANSLATION != 0
}
