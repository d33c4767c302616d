//! The oracle's machine, whose table pages are rubbish until they are allocated and after they were given back.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64 as PlainU64, AtomicUsize};
use std::sync::{Arc, Mutex};

use mmu_oracle::{Machine, OracleMachine};
use stage2::arch::{Dsb, Observation};
use stage2::slot::native;
use stage2::tlbi::Tlbi;
use stage2::{Arch, Memory, PAGE_SIZE, Pa, Slot, Table, TableMeta};

use super::{RUBBISH, lock};
use crate::sched::atomic::{AtomicU64, Ordering};
use crate::sched::thread;

/// The oracle's machine, with dirty pages and a record of who has them.
#[derive(Clone, Debug)]
pub struct Hardware(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    oracle: OracleMachine,
    allocated: Mutex<BTreeSet<u64>>,
    /// The pool's order, for each page by itself.
    pool: Vec<AtomicU64>,
    /// Flushes that completed, as plain data.
    flushes: PlainU64,
    /// Flushes of EL2's own regime that completed, as plain data.
    el2_flushes: PlainU64,
    /// Walks of hardware that are in flight, as plain data.
    walks: AtomicUsize,
    /// Invalidations that no barrier has completed, as plain data.
    invalidations: PlainU64,
}

impl Hardware {
    /// A machine with so many table pages, all of them zero yet.
    pub(super) fn new(machine: Machine, tables: usize) -> Self {
        Self(Arc::new(Inner {
            oracle: OracleMachine::new(machine, tables),
            allocated: Mutex::default(),
            pool: (0..tables).map(|_| AtomicU64::new(0)).collect(),
            flushes: PlainU64::new(0),
            el2_flushes: PlainU64::new(0),
            walks: AtomicUsize::new(0),
            invalidations: PlainU64::new(0),
        }))
    }

    /// The machine that judges.
    pub(super) fn oracle(&self) -> &OracleMachine {
        &self.0.oracle
    }

    /// Table pages that are allocated.
    pub(super) fn allocated(&self) -> BTreeSet<u64> {
        lock(&self.0.allocated).clone()
    }

    /// How many flushes have completed. Each has ended all walks, and accesses by what they found, that
    /// began before it.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.0.flushes.load(Ordering::Relaxed)
    }

    /// How many flushes of EL2's own regime have completed: each has ended its walks and accesses that began before.
    #[must_use]
    pub fn el2_flushes(&self) -> u64 {
        self.0.el2_flushes.load(Ordering::Relaxed)
    }

    /// Runs a walk of hardware: whoever waits for an invalidation waits for its end.
    pub fn in_flight<T>(&self, walk: impl FnOnce() -> T) -> T {
        self.0.walks.fetch_add(1, Ordering::Relaxed);
        let result = walk();
        self.0.walks.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// The slots of a table page.
    #[must_use]
    pub fn slots(&self, table: Pa) -> &[Slot] {
        // SAFETY: (1) the oracle's arena lives as long as the machine.
        unsafe { self.0.oracle.table_at(table) }.slots()
    }

    /// The page changes hands: what its last holder did comes before what the next one does.
    fn through_pool(&self, table: Pa) {
        let number = (table.get() / PAGE_SIZE) as usize % self.0.pool.len();
        self.0.pool[number].swap(0, Ordering::AcqRel);
    }

    /// Writes all slots of a page that is in no tree. No event: it is no descriptor yet.
    pub(super) fn fill(&self, table: Pa, bits: u64) {
        for slot in self.slots(table) {
            // SAFETY: (1, 2) nobody walks the page.
            unsafe { native::store(slot, bits) };
        }
    }
}

// SAFETY: (1) the oracle's machine gives a page to one caller at a time, and it is zeroed here. (2, 3)
// As the oracle's.
unsafe impl Memory for Hardware {
    fn alloc_table(&self, pages: usize) -> Option<Pa> {
        let start = (&self.0.oracle).alloc_table(pages)?;
        for page in 0..pages as u64 {
            let table = Pa::new(start.get() + page * PAGE_SIZE);
            self.through_pool(table);
            self.fill(table, 0);
            assert!(lock(&self.0.allocated).insert(table.get()), "table {table} is in use");
        }
        Some(start)
    }

    unsafe fn free_table(&self, pa: Pa, pages: usize) {
        for page in 0..pages as u64 {
            let table = Pa::new(pa.get() + page * PAGE_SIZE);
            assert!(lock(&self.0.allocated).remove(&table.get()), "table {table} came back twice");
            for slot in self.slots(table) {
                assert_eq!(native::load(slot), 0, "clause 3 of free_table: every slot is zero");
            }
            self.fill(table, RUBBISH);
            self.through_pool(table);
        }
        // SAFETY: the caller's clauses.
        unsafe { (&self.0.oracle).free_table(pa, pages) };
    }

    unsafe fn table(&self, pa: Pa) -> &Table {
        // SAFETY: the caller's clause.
        unsafe { self.0.oracle.table_at(pa) }
    }

    unsafe fn meta(&self, pa: Pa) -> &TableMeta {
        // SAFETY: the caller's clause.
        unsafe { self.0.oracle.meta_at(pa) }
    }
}

// SAFETY: each method is the oracle's machine's.
unsafe impl Arch for Hardware {
    fn load(&self, slot: &Slot) -> u64 {
        (&self.0.oracle).load(slot)
    }

    unsafe fn store(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        unsafe { (&self.0.oracle).store(slot, bits) };
    }

    unsafe fn store_detached(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        unsafe { (&self.0.oracle).store_detached(slot, bits) };
    }

    unsafe fn swap(&self, slot: &Slot, bits: u64) -> u64 {
        // SAFETY: the caller's clauses.
        unsafe { (&self.0.oracle).swap(slot, bits) }
    }

    unsafe fn compare_exchange(&self, slot: &Slot, old: u64, new: u64) -> Option<Result<u64, u64>> {
        // SAFETY: the caller's clause.
        unsafe { (&self.0.oracle).compare_exchange(slot, old, new) }
    }

    unsafe fn clear_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        // SAFETY: the caller's clause.
        unsafe { (&self.0.oracle).clear_bits(slot, bits) }
    }

    unsafe fn set_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        // SAFETY: the caller's clause.
        unsafe { (&self.0.oracle).set_bits(slot, bits) }
    }

    /// After an invalidation it waits for the updates of walks that have read what is invalidated \[RYNJCP\]. Loom
    /// switches threads between a walk's look and its update, which are one for hardware.
    fn dsb(&self, kind: Dsb) {
        if self.0.invalidations.swap(0, Ordering::Relaxed) != 0 {
            while self.0.walks.load(Ordering::Relaxed) != 0 {
                thread::yield_now();
            }
        }
        (&self.0.oracle).dsb(kind);
    }

    fn isb(&self) {
        (&self.0.oracle).isb();
    }

    fn tlbi(&self, op: Tlbi) {
        self.0.invalidations.fetch_add(1, Ordering::Relaxed);
        (&self.0.oracle).tlbi(op);
    }

    fn vttbr(&self) -> u64 {
        (&self.0.oracle).vttbr()
    }

    unsafe fn set_vttbr(&self, value: u64) {
        // SAFETY: the caller's clauses.
        unsafe { (&self.0.oracle).set_vttbr(value) };
    }

    fn observe(&self, what: Observation) {
        if matches!(what, Observation::Flushed { .. }) {
            self.0.flushes.fetch_add(1, Ordering::Relaxed);
        }
        if what == Observation::El2Flushed {
            self.0.el2_flushes.fetch_add(1, Ordering::Relaxed);
        }
        (&self.0.oracle).observe(what);
    }
}
