//! What a span of 2 MiB holds, seen without a lock.

use crate::addr::{Ipa, Level, PAGE_SIZE, Pa};
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Leaf, Owner, View};
use crate::epoch::Guard;
use crate::memory::{ARITY as SLOTS, Memory};
use crate::space::Space;

/// What the slots of 2 MiB hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing.
    Empty,
    /// A block of 2 MiB or more.
    Block,
    /// A table, with pages of the VM's own that allow the same.
    Pages(Pages),
    /// Something that no block can be made of: notes, slots that are being changed, memory of somebody else's, pages
    /// that are unlike, a table without pages.
    Other,
}

/// Pages, and what is between them and a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Slots where nothing is mapped.
    pub holes: u16,
    /// Pages that do not lie where a block would have them in which the first is where it is: all, if there is no such block.
    pub misplaced: u16,
}

impl Look {
    /// What the span of 2 MiB that `ipa` is in holds. Each slot is as it was when it was read. A guard of other
    /// epochs, and an address beyond the IPA size, see [`Other`](Self::Other).
    #[must_use]
    pub fn of<M: Memory, A: Arch>(space: &Space<'_, M, A>, guard: &Guard<'_>, ipa: Ipa) -> Self {
        let start = ipa.align_down(Level::L2.slot_bytes());
        // Most of RAM is no table, and this walk is the shorter one.
        match space.lookup(guard, start) {
            Some(slot) if slot.level == Level::L3 => {}
            Some(slot) => {
                return match slot.view() {
                    View::Empty => Self::Empty,
                    View::Leaf(_) => Self::Block,
                    _ => Self::Other,
                };
            }
            None => return Self::Other,
        }
        match space.lookup_ro(guard, start) {
            Some(table) if table.level() == Level::L3 => Self::of_pages(table.descriptors()),
            // It has become a block, or nothing, this moment.
            _ => Self::Other,
        }
    }

    /// What the slots of a table of pages come to.
    fn of_pages(slots: impl Iterator<Item = Descriptor>) -> Self {
        let (mut first, mut holes, mut misplaced) = (None, 0, 0);
        for (index, slot) in slots.enumerate() {
            if slot == Descriptor::EMPTY {
                holes += 1;
                continue;
            }
            let page = slot.as_leaf(Level::L3).filter(|page| page.owner() == Owner::Vm);
            let Some(page) = page else { return Self::Other };
            let (one, begin) = *first.get_or_insert((page, begin(&page, index)));
            if !one.is_like(&page) {
                return Self::Other;
            }
            let at = index as u64 * PAGE_SIZE;
            let placed = begin.is_some_and(|begin| begin.get() + at == page.pa().get());
            misplaced += u16::from(!placed);
        }
        if first.is_some() { Self::Pages(Pages { holes, misplaced }) } else { Self::Other }
    }

    /// Slots that were looked at, at the most.
    #[must_use]
    pub const fn slots(&self) -> usize {
        if matches!(self, Self::Empty | Self::Block) { 1 } else { SLOTS }
    }
}

/// Where the block begins in which slot `index` holds this leaf, if a block can.
fn begin(leaf: &Leaf, index: usize) -> Option<Pa> {
    let begin = Pa::new(leaf.pa().get().checked_sub(index as u64 * PAGE_SIZE)?);
    begin.is_aligned(Level::L2.slot_bytes()).then_some(begin)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::attr::{Attributes, Encoding, MemType, Prot, Write};
    use crate::descriptor::Note;

    const BASE: u64 = 0x4_0000_0000;

    fn page(pa: u64, write: Write, owner: Owner) -> Descriptor {
        let attributes = Attributes { write, ..Attributes::new(Prot::RWX, MemType::Normal) };
        let encoding = Encoding { fwb: false, xnx: false };
        Descriptor::leaf(Level::L3, Pa::new(pa), &attributes, encoding, owner).unwrap()
    }

    fn ours(pa: u64) -> Descriptor {
        page(pa, Write::Allowed, Owner::Vm)
    }

    /// 512 pages that form a block, some of them replaced.
    fn table(changes: &[(usize, Descriptor)]) -> Look {
        let mut all: Vec<_> = (0..512).map(|n| ours(BASE + n * 4096)).collect();
        changes.iter().for_each(|(index, slot)| all[*index] = *slot);
        Look::of_pages(all.into_iter())
    }

    const fn pages(holes: u16, misplaced: u16) -> Look {
        Look::Pages(Pages { holes, misplaced })
    }

    #[test]
    fn pages_that_form_a_block_have_neither_holes_nor_misplaced() {
        assert_eq!(table(&[]), pages(0, 0));
    }

    #[test]
    fn holes_and_pages_elsewhere_are_counted() {
        let elsewhere = ours(BASE + (2 << 20));
        assert_eq!(table(&[(0, Descriptor::EMPTY), (9, Descriptor::EMPTY)]), pages(2, 0));
        assert_eq!(table(&[(511, elsewhere)]), pages(0, 1));
        assert_eq!(table(&[(5, Descriptor::EMPTY), (6, elsewhere), (7, elsewhere)]), pages(1, 2));
    }

    #[test]
    fn without_a_block_that_fits_the_first_all_are_elsewhere() {
        let shifted = |n: u64| ours(BASE + (n + 1) * 4096);
        assert_eq!(Look::of_pages((0..512).map(shifted)), pages(0, 512));
        // The first would need memory below zero.
        let low = (0..512).map(|n| if n == 0 { Descriptor::EMPTY } else { ours((n - 1) * 4096) });
        assert_eq!(Look::of_pages(low), pages(1, 511));
    }

    #[test]
    fn a_table_that_holds_something_else_is_no_block_to_be() {
        let at = BASE + 7 * 4096;
        for slot in [
            Descriptor::note(Note::new(3).unwrap()),
            Descriptor::DEAD,
            Descriptor::from_bits(3),
            ours(at).to_busy().unwrap(),
            ours(at).to_drain(Level::L3).unwrap(),
            page(at, Write::Denied, Owner::Vm),
            page(at, Write::Allowed, Owner::Other),
        ] {
            assert_eq!(table(&[(7, slot)]), Look::Other, "{slot:?}");
        }
        let theirs = |n: u64| page(BASE + n * 4096, Write::Allowed, Owner::Other);
        let all = Look::of_pages((0..512).map(theirs));
        assert_eq!(all, Look::Other, "memory of somebody else's");
        assert_eq!(Look::of_pages((0..512).map(|_| Descriptor::EMPTY)), Look::Other);
    }

    #[test]
    fn the_dirty_state_makes_no_difference() {
        let clean = |n: u64| {
            page(BASE + n * 4096, if n < 7 { Write::Clean } else { Write::Dirty }, Owner::Vm)
        };
        assert_eq!(Look::of_pages((0..512).map(clean)), pages(0, 0));
    }
}
