//! The 64 bits of a slot, seen through enums.
//!
//! A slot is in one of six states. Hardware knows two of them, valid and invalid; it ignores bits
//! \[63:1\] of an invalid descriptor, and there software keeps the rest.
//!
//! | state | bit 0 | bit 56 | bits 3:1 | what it means | who may change it |
//! | --- | --- | --- | --- | --- | --- |
//! | Empty | 0 | 0 | 0, and all others | nothing here | whoever wins the compare-exchange from 0 |
//! | leaf, table | 1 | 1 | as hardware says | live | the table's lock, by read-modify-write |
//! | Busy | 0 | 1 | as it was | live a moment ago or about to be, kept as it was | who made it Busy: the table's lock, or a map's claim |
//! | Drain | 0 | 0 | 001 | was live, its flush is not complete; remembers what it was ([`Former`]) | who drained it |
//! | Note | 0 | 0 | 010 | software's own: ballooned, owned by, trap | the table's lock |
//! | Dead | 0 | 0 | 011 | slot of a table that is going away | who tears the table down |
//!
//! Two bits of a valid stage-2 descriptor are software's in every configuration, 57:56 (table D8-53).
//! **56, MANAGED**, is set in every leaf and table that this crate writes, so that Busy, which
//! clears only the valid bit, can be told from the other invalid states. **57, NON_OWNED**, marks a
//! leaf whose page does not belong to the VM (a scratch page): unmap, teardown and the dirty log
//! skip it. Bits 55, 58 and 62:59 stay 0: other extensions give them meaning (NS, AssuredOnly, PBHA).
//! Bit 16 of a block is **nT** (FEAT_BBM): while it is set, hardware may fault instead of caching it.
//!
//! Decoding takes the level, because `0b11` is a table above level 3 and a page at level 3. It is
//! total: bits that this crate never writes decode to [`View::Foreign`].

use core::fmt;

use crate::addr::{Level, Pa};
use crate::attr::{Attributes, Encoding};

mod change;
mod error;
mod former;
mod grant;
mod resize;
mod settled;
mod template;
pub use change::Change;
pub use error::DescriptorError;
pub use former::Former;
pub(crate) use grant::Grant;
pub(crate) use resize::{RUN, State};
pub use template::LeafTemplate;

const VALID: u64 = 1 << 0;
/// Bits 1:0 of a table descriptor, and of a page descriptor at level 3.
const TABLE_OR_PAGE: u64 = 0b11;
/// Bits 1:0 of a block descriptor.
const BLOCK: u64 = 0b01;

/// Software bit: written by this crate.
const MANAGED: u64 = 1 << 56;
/// Software bit: the page does not belong to the VM.
const NON_OWNED: u64 = 1 << 57;
/// Bits 47:12, where an address stands.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// nT of a block.
const NO_TRANSLATION: u64 = 1 << 16;
/// Attribute bits of a leaf: 10:2 (bit 11, FnXS, stays 0) and 54:51.
const ATTRIBUTES: u64 = 0x0078_0000_0000_07fc;

/// Bits 3:0 of the invalid states that are not Busy.
const TAG: u64 = 0b1111;
const TAG_DRAIN: u64 = 0b0010;
const TAG_NOTE: u64 = 0b0100;
const TAG_DEAD: u64 = 0b0110;
const NOTE_SHIFT: u32 = 4;

/// The 64 bits of a slot, as read or as about to be written.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Descriptor(u64);

/// What a descriptor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Exactly zero.
    Empty,
    /// A live block (levels 1 and 2) or page (level 3).
    Leaf(Leaf),
    /// A live pointer to the table of the next level.
    Table(Pa),
    /// A leaf or table with its valid bit cleared and everything else kept. The descriptor within
    /// is the live one that it remembers.
    Busy(Descriptor),
    /// Was live; its flush is not complete. What it was.
    Drain(Former),
    /// Software's own.
    Note(Note),
    /// Slot of a table that is going away.
    Dead,
    /// Bits that this crate never writes.
    Foreign(u64),
}

/// A live block or page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    bits: u64,
    level: Level,
}

/// The payload of a Note: 51 bits, at most [`Note::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Note(u64);

/// Whose the page behind a leaf is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The VM's: it ends with the mapping, or with the VM.
    Vm,
    /// Somebody else's, such as a scratch page: NON_OWNED is set. Nothing is recorded in such a leaf, and no fault changes it:
    /// it is mapped accessed, and not writable-clean.
    Other,
}

impl Descriptor {
    /// Nothing here.
    pub const EMPTY: Self = Self(0);
    /// Slot of a table that is going away.
    pub const DEAD: Self = Self(TAG_DEAD);

    /// Wraps 64 bits as they stand in memory.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The 64 bits as they stand in memory.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// A block or page that points to `pa`.
    ///
    /// # Errors
    /// [`DescriptorError`]: level 0, an address that does not fit, attributes without encoding.
    pub const fn leaf(
        level: Level,
        pa: Pa,
        attributes: &Attributes,
        encoding: Encoding,
        owner: Owner,
    ) -> Result<Self, DescriptorError> {
        match LeafTemplate::new(level, attributes, encoding, owner) {
            Ok(template) => template.at(pa),
            Err(error) => Err(error),
        }
    }

    /// A pointer from a slot of `level` to the table page at `pa`.
    ///
    /// # Errors
    /// [`DescriptorError`]: level 3, or an address that does not fit.
    pub const fn table(level: Level, pa: Pa) -> Result<Self, DescriptorError> {
        if matches!(level, Level::L3) {
            return Err(DescriptorError::Level { level });
        }
        if !pa.fits_descriptor() {
            return Err(DescriptorError::Address { level, pa });
        }
        Ok(Self(pa.get() | TABLE_OR_PAGE | MANAGED))
    }

    /// A live block with nT set or cleared; `None` if it is not a live block of ours.
    #[must_use]
    pub const fn with_no_translation(self, level: Level, set: bool) -> Option<Self> {
        match self.view(level) {
            View::Leaf(_) if !matches!(level, Level::L3) => {
                let bits = self.0 & !NO_TRANSLATION;
                Some(Self(if set { bits | NO_TRANSLATION } else { bits }))
            }
            _ => None,
        }
    }

    /// A note with its payload.
    #[must_use]
    pub const fn note(note: Note) -> Self {
        Self(note.0 << NOTE_SHIFT | TAG_NOTE)
    }

    /// The next table, if that is what it points to: [`view`](Self::view) for the way down, where
    /// nearly every slot is a table.
    #[inline]
    #[must_use]
    pub const fn as_table(self, level: Level) -> Option<Pa> {
        // If everything but the address is that of a table, this leaves the address.
        let address = self.0 ^ (TABLE_OR_PAGE | MANAGED);
        let table = address & !ADDRESS == 0 && !matches!(level, Level::L3);
        if table { Some(Pa::new(address)) } else { None }
    }

    /// The block or page, if that is what it points to: [`view`](Self::view) for where a leaf is expected.
    #[inline]
    #[must_use]
    pub const fn as_leaf(self, level: Level) -> Option<Leaf> {
        self.leaf_but_for(level, NON_OWNED)
    }

    /// The same, whatever these bits say.
    #[inline(always)]
    const fn leaf_but_for(self, level: Level, any: u64) -> Option<Leaf> {
        let kind = if matches!(level, Level::L3) { TABLE_OR_PAGE } else { BLOCK };
        let leaf = Leaf { bits: self.0, level };
        let fixed = self.0 & !(ADDRESS | ATTRIBUTES | any);
        let placed = level.has_leaves() && leaf.pa().is_aligned(level.slot_bytes());
        if fixed == kind | MANAGED && placed { Some(leaf) } else { None }
    }

    /// The block or page, if it is the VM's. What is not, nobody changes: it is only taken away.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn as_own_leaf(self, level: Level) -> Option<Leaf> {
        self.leaf_but_for(level, 0)
    }

    /// Whether it is a live block or page that is not the VM's.
    #[must_use]
    pub(crate) const fn is_others_leaf(self, level: Level) -> bool {
        self.0 & NON_OWNED != 0 && self.as_leaf(level).is_some()
    }

    /// What it was, if it is in Drain.
    #[inline]
    #[must_use]
    pub const fn as_drain(self, level: Level) -> Option<Former> {
        if self.0 & TAG == TAG_DRAIN { Former::of(self.0, level) } else { None }
    }

    /// Whether hardware translates through it.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// A live descriptor with its valid bit cleared; `None` if it is not live and ours.
    #[must_use]
    pub const fn to_busy(self) -> Option<Self> {
        if self.is_valid() && self.0 & MANAGED != 0 { Some(Self(self.0 & !VALID)) } else { None }
    }

    /// What the bits say in a slot of `level`.
    #[must_use]
    pub const fn view(self, level: Level) -> View {
        if self.0 == 0 {
            return View::Empty;
        }
        if self.is_valid() {
            return self.view_live(level);
        }
        if self.0 & MANAGED != 0 {
            let live = Self(self.0 | VALID);
            return match live.view_live(level) {
                View::Foreign(_) => View::Foreign(self.0),
                _ => View::Busy(live),
            };
        }
        match self.0 & TAG {
            TAG_DRAIN => match self.as_drain(level) {
                Some(former) => View::Drain(former),
                None => View::Foreign(self.0),
            },
            TAG_DEAD if self.0 == TAG_DEAD => View::Dead,
            TAG_NOTE => match Note::new(self.0 >> NOTE_SHIFT) {
                Some(note) => View::Note(note),
                None => View::Foreign(self.0),
            },
            _ => View::Foreign(self.0),
        }
    }

    const fn view_live(self, level: Level) -> View {
        match (self.as_table(level), self.as_leaf(level)) {
            (Some(table), _) => View::Table(table),
            (None, Some(leaf)) => View::Leaf(leaf),
            (None, None) => View::Foreign(self.0),
        }
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Descriptor({:#018x})", self.0)
    }
}

impl Leaf {
    /// The 64 bits as they stand in memory.
    pub(crate) const fn bits(&self) -> u64 {
        self.bits
    }

    /// Where the block or page lies.
    #[must_use]
    pub const fn pa(&self) -> Pa {
        let block = !matches!(self.level, Level::L3);
        Pa::new(self.bits & ADDRESS & !(if block { NO_TRANSLATION } else { 0 }))
    }

    /// Whether nT is set: a block on its way to another size.
    #[must_use]
    pub const fn has_no_translation(&self) -> bool {
        !matches!(self.level, Level::L3) && self.bits & NO_TRANSLATION != 0
    }

    /// Level of the slot: 1 GiB, 2 MiB or 4 KiB.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// Whose the page is.
    #[must_use]
    pub const fn owner(&self) -> Owner {
        if self.bits & NON_OWNED == 0 { Owner::Vm } else { Owner::Other }
    }

    /// What the leaf allows; `None` if its attributes are not ones that this crate writes.
    #[must_use]
    pub const fn attributes(&self, encoding: Encoding) -> Option<Attributes> {
        Attributes::decode(self.bits & ATTRIBUTES, encoding)
    }
}

impl Note {
    /// Largest payload: it stands in bits 54:4; bit 55 stays 0 and bit 56 is MANAGED.
    pub const MAX: u64 = (1 << 51) - 1;

    /// `None` above [`Note::MAX`].
    #[must_use]
    pub const fn new(payload: u64) -> Option<Self> {
        if payload <= Self::MAX { Some(Self(payload)) } else { None }
    }

    /// The payload.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests;
