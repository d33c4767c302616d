//! What guests do: accesses, by walks that set the access flag and the dirty state where hardware manages them.

use mmu_oracle::walker::{Access, Choice, Fault, Outcome, Walk};
use stage2::Write;
use stage2::slot::native;

use super::World;
use crate::program::{PES, Place, Touch};
use crate::reference::{Expected, Leaf};
use crate::walk::Stop;

/// A walk that has read its leaf and has not updated it.
#[derive(Clone, Copy)]
pub(super) struct Flight<'m> {
    walk: Walk<'m>,
    vm: usize,
    /// The leaf that it read.
    leaf: Stop<'m>,
}

impl World<'_> {
    /// The guest that runs on the PE makes an access.
    pub(super) fn access(&mut self, pe: usize, at: Place, touch: Touch) {
        self.take_off(pe, at, touch);
        self.land(pe);
    }

    /// The first half of an access: the walk reads.
    pub(super) fn take_off(&mut self, pe: usize, at: Place, touch: Touch) {
        let Some(vm) = self.running[pe] else { return };
        let (ipa, access) = (self.ipa(at), touch.access());
        if ipa >> self.setup.ipa_bits() != 0 {
            return;
        }
        let walk = Walk::begin(self.ground.machine, pe, ipa, access);
        let expected = self.vms[&vm].reference.expected(ipa, self.start_level());
        match (&walk, expected) {
            (Ok(_), Expected::Leaf(_, leaf)) => assert!(self.goes_through(&leaf, access)),
            (Err(Fault::Translation), Expected::Nothing | Expected::Obstacle(..)) => {}
            (Err(Fault::AccessFlag), Expected::Leaf(_, leaf)) => {
                assert!(!leaf.attributes.accessed && !self.setup.hw_access());
            }
            (Err(Fault::Permission), Expected::Leaf(_, leaf)) => {
                assert!(!self.goes_through(&leaf, access));
            }
            (walk, expected) => panic!("{ipa:#x}: {walk:?} where {expected:?} was expected"),
        }
        let leaf = self.vms[&vm].tables.translate(ipa).map(|(stop, _)| stop);
        self.flying[pe % PES] = walk.ok().zip(leaf).map(|(walk, leaf)| Flight { walk, vm, leaf });
    }

    fn goes_through(&self, leaf: &Leaf, access: Access) -> bool {
        match leaf.attributes.write {
            Write::Denied => access != Access::Write,
            Write::Clean => access != Access::Write || self.setup.hw_dirty(),
            Write::Allowed | Write::Dirty => true,
        }
    }

    /// The second half: hardware updates the leaf if it still is what was read, and the access is made.
    pub(super) fn land(&mut self, pe: usize) {
        let Some(Flight { walk, vm, leaf: at }) = self.flying[pe].take() else { return };
        let new = match walk.finish(Choice::Faithful) {
            Outcome::Done(new) => new,
            Outcome::Again => return,
            other => panic!("{:#x}: {other:?} by faithful hardware", at.start),
        };
        // What hardware wrote is there to be read, even in a table that is out of reach meanwhile; an access
        // by an entry that is held writes nothing.
        let state = self.vms.get_mut(&vm).expect("a VM that runs");
        let leaf = state.reference.leaves.get_mut(&at.start).filter(|leaf| leaf.level == at.level);
        let Some(leaf) = leaf.filter(|_| native::load(at.slot) == new) else { return };
        let before = leaf.attributes;
        leaf.attributes.accessed |= new >> 10 & 1 == 1;
        if leaf.attributes.write == Write::Clean && new >> 7 & 1 == 1 {
            leaf.attributes.write = Write::Dirty;
        }
        self.report.recorded += usize::from(leaf.attributes != before);
    }
}
