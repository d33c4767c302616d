//! Pages that the guest's own table walker writes: stage-1 tables in which hardware sets the access flag (FEAT_HAFDBS).
//!
//! No instruction stores to the table then, so whoever logs writes has to hear of the walker's: an update of a stage-1
//! descriptor is a write to stage 2, and a permission fault on the walk if that is not allowed. First a flag is cleared,
//! by a store; some time later, when a harvest may have been between, the page is read through the alias.

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{ID_AA64MMFR1_EL1, Readable, TCR_EL1, Writeable};
use guest_rt::mmu::{self, ALIAS_SLOT, Attr, ROOT, Size, Table};
use guest_rt::{PAGE, check_eq};

/// AF of a descriptor.
const ACCESSED: u64 = 1 << 10;
/// HA of TCR_EL1.
const HARDWARE_ACCESS: u64 = 1 << 39;
/// Descriptors of a table.
const SLOTS: usize = 512;

/// A table whose access flags hardware sets.
pub(crate) struct Walked {
    table: &'static Table,
    alias: usize,
    target: usize,
    slot: usize,
    cleared: bool,
}

impl Walked {
    /// Two tables at `tables`, which lead to `target`, for this vCPU's walks alone. `None` where hardware has no access flag.
    pub(crate) fn new(number: usize, tables: usize, target: usize) -> Option<Self> {
        if ID_AA64MMFR1_EL1.get() & 0xf == 0 {
            return None;
        }
        TCR_EL1.set(TCR_EL1.get() | HARDWARE_ACCESS);
        barrier::isb(barrier::SY);
        // SAFETY: 1. RAM of this worker, in the identity map; 2. used as tables only.
        let (two, table) = unsafe { (Table::at(tables), Table::at(tables + PAGE)) };
        two.set(0, mmu::table(tables + PAGE));
        ROOT.set(ALIAS_SLOT + number, mmu::table(tables));
        let alias = mmu::slot_va(ALIAS_SLOT + number);
        Some(Self { table, alias, target, slot: 0, cleared: false })
    }

    /// Clears a flag, or has the walker set it.
    pub(crate) fn step(&mut self) {
        if !self.cleared {
            self.slot = (self.slot + 1) % SLOTS;
            let leaf = mmu::leaf(self.target, Size::Page, Attr::WriteBack, false);
            self.table.set(self.slot, leaf & !ACCESSED);
            mmu::publish();
            // Entries of an earlier turn of this slot have the flag.
            forget_stage1();
        } else {
            // SAFETY: 1. mapped by the alias; 2. any bits are a u64.
            let _ = unsafe { ((self.alias + self.slot * PAGE) as *const u64).read_volatile() };
            let flag = self.table.get(self.slot) & ACCESSED;
            check_eq!(flag, ACCESSED, "the access flag of slot {}, which was walked", self.slot);
        }
        self.cleared = !self.cleared;
    }
}

/// Drops this vCPU's stage-1 translations.
fn forget_stage1() {
    // SAFETY: 1. invalidating a TLB changes no mapping; 2. completed by the DSB.
    unsafe { core::arch::asm!("tlbi vmalle1", options(nostack, preserves_flags)) };
    barrier::dsb(barrier::NSH);
    barrier::isb(barrier::SY);
}
