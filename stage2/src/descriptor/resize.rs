//! One leaf as 512 smaller ones, and 512 as one.
//!
//! Between a block and its parts only three things differ: the address, the bits that tell a block from
//! a page, and nT, which only a block has. The accessed and dirty state of the whole is that of each
//! part after a split, and the OR of the parts' after a collapse: AF is a hint, and a dirty record may
//! say too much but never too little.

use super::{ADDRESS, ATTRIBUTES, BLOCK, Descriptor, Leaf, MANAGED, NON_OWNED, TABLE_OR_PAGE};
use crate::addr::{Level, Pa};

pub(super) const WRITABLE: u64 = 1 << 7;
pub(super) const ACCESSED: u64 = 1 << 10;
pub(super) const DIRTY_MODIFIER: u64 = 1 << 51;
const CONTIGUOUS: u64 = 1 << 52;

/// Members of a contiguous run: table D8-104, 4 KiB granule. All of a table under a model checker, where it has four.
pub(crate) const RUN: usize = if cfg!(any(loom, shuttle)) { 4 } else { 16 };

/// The accessed and dirty state of leaves: what hardware may change in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State(pub(super) u64);

impl State {
    /// What either has.
    pub(crate) const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Leaf {
    /// Bits that say what it allows, apart from its [`State`].
    const fn kind(&self) -> u64 {
        self.bits & (ATTRIBUTES | NON_OWNED) & !(self.state_mask() | CONTIGUOUS)
    }

    /// With DBM, S2AP\[1\] is the dirty record; without, it is a permission.
    const fn state_mask(&self) -> u64 {
        if self.bits & DIRTY_MODIFIER == 0 { ACCESSED } else { ACCESSED | WRITABLE }
    }

    /// Whether the other allows the same and belongs to the same, wherever either lies, whatever hardware has
    /// recorded in it, and in a contiguous run or not.
    pub(crate) const fn is_like(&self, other: &Self) -> bool {
        self.kind() == other.kind()
    }

    /// Its accessed and dirty state.
    pub(crate) const fn state(&self) -> State {
        State(self.bits & self.state_mask())
    }

    /// The state of the leaf that stands `index` slots behind this one, if that goes on from here: the
    /// same but for its state and for contiguous runs, and the memory behind.
    #[inline]
    pub(crate) const fn state_of_part(&self, index: u64, seen: Descriptor) -> Option<State> {
        let expected = self.bits.wrapping_add(index.wrapping_mul(self.level.slot_bytes()));
        let differs = (seen.0 ^ expected) & !(self.state_mask() | CONTIGUOUS);
        if differs == 0 { Some(State(seen.0 & self.state_mask())) } else { None }
    }

    /// Whether it is one of 16 that a TLB may hold as one, and that speak for each other: see
    /// [`Space::make_contiguous`](crate::Space::make_contiguous).
    #[must_use]
    pub const fn is_contiguous(&self) -> bool {
        self.bits & CONTIGUOUS != 0
    }

    /// The same as a member of a run, or as none, and with this state, too.
    pub(crate) const fn of_run(&self, contiguous: bool, state: State) -> Descriptor {
        let bits = self.bits & !CONTIGUOUS | state.0 & self.state_mask();
        Descriptor(if contiguous { bits | CONTIGUOUS } else { bits })
    }

    /// Its first part, a leaf of the next level: the other parts follow by that level's slot size. `None`
    /// for a page.
    pub(crate) const fn first_part(&self) -> Option<Descriptor> {
        let form = match self.level.next() {
            Some(Level::L3) => TABLE_OR_PAGE,
            Some(_) => BLOCK,
            None => return None,
        };
        let attributes = self.bits & (ATTRIBUTES | NON_OWNED);
        Some(Descriptor(self.pa().get() | attributes | form | MANAGED))
    }

    /// The block of the level above whose first part it is, with this state. `None` if it does not begin
    /// where such a block could.
    pub(crate) const fn whole(&self, state: State) -> Option<Descriptor> {
        let above = match self.level {
            Level::L3 => Level::L2,
            Level::L2 => Level::L1,
            _ => return None,
        };
        if !self.pa().is_aligned(above.slot_bytes()) {
            return None;
        }
        Some(Descriptor(self.pa().get() | self.kind() | state.0 | BLOCK | MANAGED))
    }

    /// A block of 2 MiB at `pa` that allows what this page allows, with this state. `None` if the leaf is no
    /// page, or no block can be there.
    pub(crate) const fn block_at(&self, pa: Pa, state: State) -> Option<Descriptor> {
        let block = Level::L2.slot_bytes();
        if !matches!(self.level, Level::L3) || pa.get() & !(ADDRESS & !(block - 1)) != 0 {
            return None;
        }
        Some(Descriptor(pa.get() | self.kind() | state.0 | BLOCK | MANAGED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::{Attributes, Encoding, MemType, Prot, Write};
    use crate::descriptor::Owner;

    const ENCODING: Encoding = Encoding { fwb: false, xnx: false };

    fn leaf(level: Level, pa: u64, write: Write, owner: Owner) -> Leaf {
        let attributes = Attributes { write, ..Attributes::new(Prot::RWX, MemType::Normal) };
        let bits = Descriptor::leaf(level, Pa::new(pa), &attributes, ENCODING, owner).unwrap();
        bits.as_leaf(level).unwrap()
    }

    #[test]
    fn the_parts_of_a_block_make_it_again() {
        for owner in [Owner::Vm, Owner::Other] {
            for write in [Write::Denied, Write::Allowed, Write::Clean, Write::Dirty] {
                for (level, below) in [(Level::L1, Level::L2), (Level::L2, Level::L3)] {
                    let block = leaf(level, 0x1_4000_0000, write, owner);
                    let part = block.first_part().unwrap().as_leaf(below).unwrap();
                    assert_eq!(part, leaf(below, 0x1_4000_0000, write, owner));
                    assert_eq!(part.state(), block.state());
                    assert_eq!(part.whole(part.state()).unwrap().bits(), block.bits);
                }
            }
        }
        assert!(leaf(Level::L3, 0x1000, Write::Denied, Owner::Vm).first_part().is_none());
        assert!(leaf(Level::L1, 0, Write::Denied, Owner::Vm).whole(State::default()).is_none());
        let off = leaf(Level::L3, 0x1_4000_1000, Write::Denied, Owner::Vm);
        assert!(off.whole(off.state()).is_none(), "no block can begin there");
    }

    #[test]
    fn a_block_that_is_marked_as_untranslatable_has_parts_that_are_not() {
        let block = Descriptor(leaf(Level::L2, 0x4020_0000, Write::Allowed, Owner::Vm).bits);
        let marked =
            block.with_no_translation(Level::L2, true).unwrap().as_leaf(Level::L2).unwrap();
        let part = marked.first_part().unwrap().as_leaf(Level::L3).unwrap();
        assert_eq!(part, leaf(Level::L3, 0x4020_0000, Write::Allowed, Owner::Vm));
    }

    #[test]
    fn with_dirty_management_clean_and_dirty_are_alike_and_the_whole_is_dirty() {
        let page = |write| leaf(Level::L3, 0x4020_0000, write, Owner::Vm);
        let follows = |first: Leaf, other: Leaf| {
            let next = Descriptor(other.bits + 3 * 4096);
            first.state_of_part(3, next) == Some(other.state())
        };
        assert!(follows(page(Write::Clean), page(Write::Dirty)));
        assert!(!follows(page(Write::Denied), page(Write::Allowed)), "S2AP[1] is a permission");
        assert!(!follows(page(Write::Allowed), page(Write::Dirty)));
        let other = leaf(Level::L3, 0x4020_0000, Write::Clean, Owner::Other);
        assert!(!follows(page(Write::Clean), other), "whose it is makes a difference");
        let elsewhere = Descriptor(page(Write::Clean).bits + 4096);
        assert!(page(Write::Clean).state_of_part(3, elsewhere).is_none());

        let state = page(Write::Clean).state().or(page(Write::Dirty).state());
        let whole = page(Write::Clean).whole(state).unwrap();
        assert_eq!(whole.bits(), leaf(Level::L2, 0x4020_0000, Write::Dirty, Owner::Vm).bits);
    }

    #[test]
    fn a_page_says_what_a_block_elsewhere_is_to_allow() {
        let page = |pa, write, owner| leaf(Level::L3, pa, write, owner);
        let first = page(0x7000, Write::Clean, Owner::Vm);
        assert!(first.is_like(&page(0x9_3000, Write::Dirty, Owner::Vm)), "state and address apart");
        assert!(!first.is_like(&page(0x9_3000, Write::Allowed, Owner::Vm)));
        assert!(!first.is_like(&page(0x9_3000, Write::Clean, Owner::Other)));
        let of_run = Leaf { bits: first.bits | CONTIGUOUS, level: Level::L3 };
        assert!(first.is_like(&of_run) && of_run.is_like(&first));

        let dirty = page(0x7000, Write::Dirty, Owner::Vm).state();
        let wanted = leaf(Level::L2, 0x4020_0000, Write::Dirty, Owner::Vm).bits;
        for part in [first, of_run] {
            let block = part.block_at(Pa::new(0x4020_0000), part.state().or(dirty)).unwrap();
            assert_eq!(block.bits(), wanted);
        }
        for pa in [0x4020_1000, 1 << 48] {
            assert!(first.block_at(Pa::new(pa), dirty).is_none(), "no block can be at {pa:#x}");
        }
        let block = leaf(Level::L2, 0, Write::Clean, Owner::Vm);
        assert!(block.block_at(Pa::new(0), dirty).is_none(), "of a block no block is made here");
    }
}
