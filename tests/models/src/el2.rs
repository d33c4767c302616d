//! EL2's own regime: what a PE reaches at EL2 by way of EL2's window, and how it recovers from its faults there.

use std::collections::BTreeSet;

use stage2::window::{Recovered, Site};
use stage2::{Arch, Ipa, Level, PAGE_SIZE, Pa, Slot};

use crate::guest::Access;
use crate::ranges::pages;
use crate::sched::atomic::{AtomicU64, Ordering, fence};
use crate::world::{Pe, RUBBISH, SECRET, World, page};

/// Tables of EL2's window over the first pages: its root, and one of each level below.
pub const TABLES: usize = 3;

/// A walk of EL2 reads valid, and a page, in bits 1:0.
const VALID: u64 = 0b11;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

impl World {
    /// Opens EL2's window over the first four pages.
    ///
    /// # Panics
    /// If there are no tables for it.
    pub fn open_window(&self) {
        let site = Site::new(1 << 47, 1).expect("a site");
        self.pe(0, &[], |pe| pe.world.space().open_window(site, pages(0, 4)).expect("tables"));
    }

    /// The slot of EL2's window for `ipa`, and what a walk of EL2 finds there.
    ///
    /// # Panics
    /// If the window does not cover it, or its tables hold rubbish.
    pub fn el2_walk(&self, ipa: Ipa) -> (&Slot, u64) {
        let mut table = self.space().window_root().expect("it is open");
        for level in [Level::L1, Level::L2] {
            let bits = self.hardware().load(&self.hardware().slots(table)[level.index(ipa)]);
            assert_ne!(bits, RUBBISH, "a walk of EL2 met rubbish at {level}");
            assert_eq!(bits & VALID, VALID, "tables of EL2's window are built beforehand");
            table = Pa::new(bits & ADDRESS);
        }
        let slot = &self.hardware().slots(table)[Level::L3.index(ipa)];
        let bits = self.hardware().load(slot);
        assert_ne!(bits, RUBBISH, "a walk of EL2 met rubbish");
        (slot, bits)
    }

    /// What EL2 reads at `ipa` without any guard: an access that a flush of EL2's own regime ends, or that has ended before.
    ///
    /// # Panics
    /// When it reads what a frame's next owner has written.
    pub fn el2_reads_meanwhile(&self, ipa: Ipa) -> Access {
        loop {
            let flushes = self.hardware().el2_flushes();
            fence(Ordering::SeqCst);
            let (_, bits) = self.el2_walk(ipa);
            let ended = || self.hardware().el2_flushes() != flushes;
            if bits & VALID != VALID {
                return Access::Fault;
            }
            let pa = Pa::new(bits & ADDRESS);
            let content = self.frame(pa).load(Ordering::Relaxed);
            if !ended() {
                assert_ne!(content, SECRET, "EL2 read a frame that was given back");
                return Access::Read(pa, content);
            }
        }
    }

    /// The tables of EL2's window. Each slot that leads to a page leads to the one that stage 2 has there.
    pub(crate) fn collect_window(
        &self,
        table: Pa,
        level: Level,
        start: Ipa,
        tables: &mut BTreeSet<u64>,
    ) {
        assert!(tables.insert(table.get()), "table {table} is linked twice");
        for (index, slot) in self.hardware().slots(table).iter().enumerate() {
            let bits = self.hardware().load(slot);
            let at = Ipa::new(start.get() + index as u64 * level.slot_bytes());
            match level.next() {
                Some(next) if bits & VALID == VALID => {
                    self.collect_window(Pa::new(bits & ADDRESS), next, at, tables);
                }
                None if bits & VALID == VALID => {
                    let found = self.walk(at);
                    let leaf = found
                        .seen
                        .as_leaf(found.level)
                        .map(|leaf| leaf.pa().get() + (at.get() & (found.level.slot_bytes() - 1)));
                    assert_eq!(
                        leaf,
                        Some(bits & ADDRESS),
                        "EL2's window holds what stage 2 does not"
                    );
                }
                _ => assert_eq!(bits, 0, "a slot of EL2's window was left in transition"),
            }
        }
    }
}

/// How an access of EL2 ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum El2Access<T> {
    /// It was made.
    Done(T),
    /// Its fault was not recovered: it ends through its fix-up.
    Ended(Recovered),
}

impl Pe<'_> {
    /// EL2 reaches for page `number` as `access` does: the fault that it takes is recovered, under a guard of its own, and
    /// the instruction repeated.
    ///
    /// # Panics
    /// When it faults again and again though its fault was recovered.
    pub fn el2<T>(&self, number: u64, write: bool, access: impl Fn() -> Option<T>) -> El2Access<T> {
        for _ in 0..4 {
            if let Some(done) = access() {
                return El2Access::Done(done);
            }
            let recovered =
                self.world.space().recover_window(&self.cpu.enter(), page(number), write);
            if recovered != Recovered::Mapped {
                return El2Access::Ended(recovered);
            }
        }
        panic!("EL2 faults though its window was filled");
    }

    /// The word behind page `number` as EL2's walk finds it; `None` if it faults. For accesses under a guard: nobody
    /// revokes what was found while it is open.
    pub fn el2_word(&self, number: u64) -> Option<&AtomicU64> {
        let (_, bits) = self.world.el2_walk(page(number));
        let pa = Pa::new(bits & ADDRESS & !(PAGE_SIZE - 1));
        (bits & VALID == VALID).then(|| self.world.frame(pa))
    }
}
