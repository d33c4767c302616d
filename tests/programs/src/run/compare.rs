//! The tables against the reference, slot by slot, once nothing is in transition.

use std::collections::BTreeSet;

use super::World;
use crate::walk::span;

impl World<'_> {
    /// Every VM, and every page of the machine.
    pub(super) fn compare(&self) {
        let mut linked = BTreeSet::new();
        let mut frames = BTreeSet::new();
        for vm in self.vms.keys() {
            linked.extend(self.compare_vm(*vm));
            let leaves = self.vms[vm].reference.leaves.values();
            let mapped: Vec<_> = leaves.map(|leaf| (leaf.frame.get(), span(leaf.level))).collect();
            assert_eq!(mapped.len(), mapped.iter().collect::<BTreeSet<_>>().len());
            frames.extend(mapped);
        }
        assert_eq!(
            linked,
            self.ground.store.tables(),
            "each table page is linked or was given back"
        );
        assert_eq!(frames, self.ground.store.frames(), "each frame is mapped or was given back");
    }

    /// A VM's tables say what its reference says, no more and no less. Returns its table pages.
    pub(super) fn compare_vm(&self, vm: usize) -> BTreeSet<u64> {
        let state = &self.vms[&vm];
        assert!(
            state.owed.is_empty() && state.held.is_empty() && state.reference.obstacles.is_empty()
        );
        let (linked, slots) = state.tables.all();
        let there: BTreeSet<(u64, usize)> = slots.keys().copied().collect();
        let leaves = state.reference.leaves.iter().map(|(start, leaf)| (*start, leaf.level));
        assert_eq!(there, leaves.collect::<BTreeSet<_>>(), "leaves by address and level");
        for (start, leaf) in &state.reference.leaves {
            let last = start + span(leaf.level) - 4096;
            assert!(state.same(*start, leaf, self.encoding()), "{start:#x}: {leaf:?}");
            assert!(state.same(last, leaf, self.encoding()), "{last:#x}: {leaf:?}");
            // stage2's own look, at both edges and beyond them, but for what lies between pages.
            if leaf.level == 3 && state.reference.leaves.contains_key(&(last + 4096)) {
                continue;
            }
            let edges = [start.wrapping_sub(4096), *start, last, last + 4096];
            edges.into_iter().for_each(|ipa| self.look(0, vm, ipa));
        }
        linked.into_keys().collect()
    }
}
