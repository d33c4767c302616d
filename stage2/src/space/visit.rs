//! Seeing all that is there.

use super::Space;
use super::lookup::Lookup;
use super::tables::Node;
use crate::addr::{Ipa, IpaRange, Level};
use crate::arch::Arch;
use crate::descriptor::{Owner, View};
use crate::epoch::Guard;
use crate::memory::{ARITY as SLOTS, Memory};

/// The slots of a range where walks end, Empty ones left out: see [`Space::visit`].
#[derive(Debug)]
pub struct Visit<'g, M, A> {
    space: &'g Space<'g, M, A>,
    guard: &'g Guard<'g>,
    node: Option<Node<'g>>,
    at: u64,
    end: u64,
}

/// How much of what is in a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Leaves of levels 1, 2 and 3: blocks of 1 GiB, of 2 MiB, pages.
    pub leaves: [u64; 3],
    /// How many of these leaves are members of contiguous runs.
    pub members: u64,
    /// How many of these leaves are of memory that is not the VM's ([`Owner::Other`]), such as a scratch page.
    pub not_owned: u64,
    /// Slots with a note.
    pub notes: u64,
    /// Slots in Busy, Drain or Dead, or with bits that this crate never writes.
    pub others: u64,
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// What the slots of `range` hold, in order of address, each with the first IPA of its slot.
    /// Lockless: each is as it was when it was read, and they may change at once.
    ///
    /// The guard lives as long as the visit: for much of a VM, visit it piece by piece.
    pub fn visit<'g>(&'g self, guard: &'g Guard<'_>, range: IpaRange) -> Visit<'g, M, A> {
        Visit { space: self, guard, node: None, at: range.start().get(), end: range.end().get() }
    }

    /// Counts what is in `range`.
    #[must_use]
    pub fn census(&self, guard: &Guard<'_>, range: IpaRange) -> Census {
        let mut census = Census::default();
        for (_, lookup) in self.visit(guard, range) {
            if let View::Leaf(leaf) = lookup.view() {
                census.members += u64::from(leaf.is_contiguous());
                census.not_owned += u64::from(leaf.owner() == Owner::Other);
            }
            match (lookup.view(), lookup.level) {
                (View::Leaf(_), Level::L1) => census.leaves[0] += 1,
                (View::Leaf(_), Level::L2) => census.leaves[1] += 1,
                (View::Leaf(_), _) => census.leaves[2] += 1,
                (View::Note(_), _) => census.notes += 1,
                _ => census.others += 1,
            }
        }
        census
    }
}

impl<M: Memory, A: Arch> Iterator for Visit<'_, M, A> {
    type Item = (Ipa, Lookup);

    fn next(&mut self) -> Option<Self::Item> {
        while self.at < self.end {
            let node = match self.node {
                Some(node) if self.at < node.end() => node,
                _ => self.space.path(self.guard, Ipa::new(self.at))?.leaf()?,
            };
            self.node = Some(node);
            let index = node.level.index(Ipa::new(self.at));
            if index >= SLOTS {
                self.at = node.end();
                continue;
            }
            let ipa = node.ipa_of(index);
            let descriptor = node.table.slot(index).load(&self.space.arch);
            if descriptor.as_table(node.level).is_some() {
                // Go down; a table that was linked since the walk is found by the next one.
                self.node = None;
                continue;
            }
            self.at = ipa.get() + node.level.slot_bytes();
            if descriptor.bits() != 0 {
                return Some((ipa, Lookup { level: node.level, descriptor }));
            }
        }
        None
    }
}
