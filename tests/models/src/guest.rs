//! What a PE's hardware does while software changes the tables: it walks, and its guest reads.

use mmu_oracle::descriptor::{Kind, kind};
use mmu_oracle::walker::{Access as Purpose, Choice, Outcome, Walk};
use stage2::{Descriptor, Ipa, Level, Pa, Slot, View};

use crate::sched::atomic::{Ordering, fence};
use crate::sched::thread;
use crate::world::{RUBBISH, SECRET, World};

/// Where a walk ended.
#[derive(Clone, Copy, Debug)]
pub struct Found<'w> {
    /// The slot.
    pub slot: &'w Slot,
    /// Its level.
    pub level: Level,
    /// What it held.
    pub seen: Descriptor,
    /// Its physical address.
    pub address: u64,
}

impl Found<'_> {
    /// What the slot held, decoded.
    #[must_use]
    pub const fn view(&self) -> View {
        self.seen.view(self.level)
    }
}

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
        let found = self.walk(ipa);
        let View::Leaf(leaf) = found.view() else { return Access::Fault };
        let content = self.frame(leaf.pa()).load(Ordering::Relaxed);
        assert_ne!(content, SECRET, "a guest saw what the frame's last owner left");
        Access::Read(leaf.pa(), content)
    }

    /// As [`guest_reads`](Self::guest_reads), where memory and tables are taken away meanwhile: a
    /// flush that completes has ended every walk and access under way, so what they read until then
    /// counts, and they begin again. Loom's stores take effect at any time; a barrier's before it are
    /// seen by a walk that begins after it.
    ///
    /// # Panics
    /// When a walk meets a table page after it was given back, or an access a frame.
    #[must_use]
    pub fn guest_reads_meanwhile(&self, ipa: Ipa) -> Access {
        'walk: loop {
            let flushes = self.hardware().flushes();
            let ended = || self.hardware().flushes() != flushes;
            fence(Ordering::SeqCst);
            let mut level = self.space().geometry().start();
            let mut table = self.root(ipa);
            let leaf = loop {
                let seen = self.hardware().slots(table)[level.index(ipa)].load(self.hardware());
                if ended() {
                    continue 'walk;
                }
                assert_ne!(seen.bits(), RUBBISH, "a walk met a table that was given back");
                match (kind(seen.bits(), level as u8), level.next()) {
                    (Kind::Table(below), Some(next)) => (table, level) = (Pa::new(below), next),
                    _ => break seen.view(level),
                }
            };
            let View::Leaf(leaf) = leaf else { return Access::Fault };
            let content = self.frame(leaf.pa()).load(Ordering::Relaxed);
            if !ended() {
                assert_ne!(content, SECRET, "a guest read a frame that was given back");
                return Access::Read(leaf.pa(), content);
            }
        }
    }

    /// Walks to where a walk ends.
    ///
    /// # Panics
    /// When the walk meets what an unallocated page holds.
    #[must_use]
    pub fn walk(&self, ipa: Ipa) -> Found<'_> {
        let mut level = self.space().geometry().start();
        let mut table = self.root(ipa);
        loop {
            let index = level.index(ipa);
            let slot = &self.hardware().slots(table)[index];
            let seen = slot.load(self.hardware());
            assert_ne!(seen.bits(), RUBBISH, "a walk met rubbish at {level}");
            match (kind(seen.bits(), level as u8), level.next()) {
                (Kind::Table(below), Some(next)) => (table, level) = (Pa::new(below), next),
                _ => return Found { slot, level, seen, address: table.get() + index as u64 * 8 },
            }
        }
    }

    /// What the hardware of PE `pe` does for a guest's access: it walks, sets the access flag and the
    /// dirty state by one atomic update, and begins again when the leaf has changed.
    ///
    /// Returns whether the access was made: not where the walk faults, and not where something else
    /// interrupts it, as it does after a few walks in vain.
    ///
    /// # Panics
    /// When hardware fails where it must not.
    #[must_use]
    pub fn hardware_accesses(&self, pe: usize, ipa: Ipa, access: Purpose) -> bool {
        for _ in 0..4 {
            let walk = || {
                let walk = Walk::begin(self.oracle(), pe, ipa.get(), access).ok()?;
                Some(walk.finish(Choice::Faithful))
            };
            match self.hardware().in_flight(walk) {
                None => return false,
                Some(Outcome::Done(_)) => return true,
                Some(Outcome::Again) => thread::yield_now(),
                Some(other) => panic!("{other:?} without a choice of it"),
            }
        }
        false
    }
}
