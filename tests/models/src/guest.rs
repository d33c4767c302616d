//! What a PE's hardware does while software changes the tables: it walks, and its guest reads.

use mmu_oracle::descriptor::{Kind, kind};
use stage2::{Descriptor, Ipa, Level, Pa, Slot, View};

use crate::sched::atomic::Ordering;
use crate::world::{RUBBISH, SECRET, World};

/// How a guest's read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A translation fault.
    Fault,
    /// It read this frame, and this word in it.
    Read(Pa, u64),
}

impl World {
    /// Walks as hardware does, and reads.
    ///
    /// A step of a walk depends on the descriptor before it, and so does the read. Loom has no such
    /// order: an acquire load stands for it.
    ///
    /// # Panics
    /// When the walk meets what an unallocated page holds, or the frame was not filled yet.
    #[must_use]
    pub fn guest_reads(&self, ipa: Ipa) -> Access {
        let (_, level, seen) = self.walk(ipa);
        let View::Leaf(leaf) = seen.view(level) else { return Access::Fault };
        let content = self.frame(leaf.pa()).load(Ordering::Relaxed);
        assert_ne!(content, SECRET, "a guest saw what the frame's last owner left");
        Access::Read(leaf.pa(), content)
    }

    /// Where a walk ends, and what it read there.
    ///
    /// # Panics
    /// When the walk meets what an unallocated page holds.
    #[must_use]
    pub fn walk(&self, ipa: Ipa) -> (&Slot, Level, Descriptor) {
        let mut level = self.space().geometry().start();
        let mut table = self.root(ipa);
        loop {
            let slot = &self.hardware().slots(table)[level.index(ipa)];
            let seen = slot.load(self.hardware());
            assert_ne!(seen.bits(), RUBBISH, "a walk met rubbish at {level}");
            match (kind(seen.bits(), level as u8), level.next()) {
                (Kind::Table(below), Some(next)) => (table, level) = (Pa::new(below), next),
                _ => return (slot, level, seen),
            }
        }
    }
}
