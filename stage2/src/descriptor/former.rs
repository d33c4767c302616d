//! What a slot in Drain remembers of what it was.
//!
//! A slot that was live keeps in its Drain descriptor where it pointed, what that was, and the final
//! accessed and dirty state. So whoever drained a range needs no list of it: after the flush a second
//! pass over the slots finds every frame and table again, and if the caller of an operation went away,
//! anybody who holds the claim on the range can finish it.

use super::{ADDRESS, Descriptor, NO_TRANSLATION, NON_OWNED, Owner, State, TAG_DRAIN};
use crate::addr::{Level, Pa};

const TABLE: u64 = 1 << 4;
const WRITABLE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 10;
const DIRTY_MODIFIER: u64 = 1 << 51;
const KEPT: u64 = ADDRESS | WRITABLE | ACCESSED | DIRTY_MODIFIER | NON_OWNED;

/// A leaf or table that was live.
///
/// | bits | |
/// | --- | --- |
/// | 3:0 | 0010, the tag of Drain |
/// | 4 | it pointed to a table, not to a block or page |
/// | 7, 10, 51, 57 | S2AP\[1\], AF, DBM and NON_OWNED, as they last were |
/// | 47:12 | the address |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Former {
    bits: u64,
    level: Level,
}

impl Former {
    #[inline]
    pub(super) const fn of(bits: u64, level: Level) -> Option<Self> {
        let stray = bits & !(KEPT | TABLE | TAG_DRAIN);
        let former = Self { bits, level };
        let (leaf, table) = (level.has_leaves(), !matches!(level, Level::L3));
        let kind = if former.is_table() {
            table && bits & (WRITABLE | ACCESSED | DIRTY_MODIFIER | NON_OWNED) == 0
        } else {
            leaf && former.pa().is_aligned(level.slot_bytes())
        };
        if stray == 0 && kind { Some(former) } else { None }
    }

    /// The Drain that says this.
    #[must_use]
    pub const fn descriptor(&self) -> Descriptor {
        Descriptor::from_bits(self.bits)
    }

    /// Whether it pointed to a table of the next level.
    #[must_use]
    pub const fn is_table(&self) -> bool {
        self.bits & TABLE != 0
    }

    /// Where it pointed: a table page, or a block or page of memory.
    #[must_use]
    pub const fn pa(&self) -> Pa {
        Pa::new(self.bits & ADDRESS)
    }

    /// Level of the slot.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// Whose the memory is. A table is the VM's.
    #[must_use]
    pub const fn owner(&self) -> Owner {
        if self.bits & NON_OWNED == 0 { Owner::Vm } else { Owner::Other }
    }

    /// Whether AF was set at the end. A hint: hardware may set it speculatively \[RLHQRX\], and with
    /// hardware updates it can be lost \[IGXGZY\].
    #[must_use]
    pub const fn accessed(&self) -> bool {
        self.bits & ACCESSED != 0
    }

    /// Whether S2AP\[1\] was set at the end: a guest may have written. Under hardware dirty
    /// management it is the dirty state; elsewhere it says that the leaf was writable.
    #[must_use]
    pub const fn written(&self) -> bool {
        self.bits & WRITABLE != 0
    }
}

impl Former {
    /// With DBM, S2AP\[1\] is the dirty record; without, it is a permission.
    const fn state_mask(&self) -> u64 {
        if self.bits & DIRTY_MODIFIER == 0 { ACCESSED } else { ACCESSED | WRITABLE }
    }

    /// Its accessed and dirty state.
    pub(crate) const fn state(&self) -> State {
        State(self.bits & self.state_mask())
    }

    /// The Drain that remembers the same, and this state of other members of its run, too.
    pub(crate) const fn of_run(&self, state: State) -> Descriptor {
        Descriptor::from_bits(self.bits | state.0 & self.state_mask())
    }
}

impl Descriptor {
    /// The Drain that remembers this live descriptor; `None` if it is not live and ours.
    #[inline]
    #[must_use]
    pub const fn to_drain(self, level: Level) -> Option<Self> {
        // Bit 16 of a block is nT, not address.
        let no_translation = if matches!(level, Level::L3) { 0 } else { NO_TRANSLATION };
        let kept = match (self.as_leaf(level), self.as_table(level)) {
            (Some(_), _) => self.bits() & KEPT & !no_translation,
            (None, Some(table)) => table.get() | TABLE,
            (None, None) => return None,
        };
        Some(Self::from_bits(kept | TAG_DRAIN))
    }
}
