//! The machine, its pages, and software's steps with hardware between them.

use std::collections::BTreeSet;

use mmu_oracle::descriptor::writes_freely;
use mmu_oracle::walker::{Counts, Hardware};
use mmu_oracle::{Defect, Event, Machine, OracleMachine};
use stage2::arch::Dsb;
use stage2::tlbi::{LeafLevel, PageOperand, Tlbi};
use stage2::{Arch, Caps, Ipa, Memory, Pa, Slot};

pub(crate) const PAGES: usize = 3;
pub(crate) const GUESTS: [usize; 2] = [1, 2];
pub(crate) const SEEDS: u64 = 300;

pub(crate) const VALID: u64 = 1;
pub(crate) const AF: u64 = 1 << 10;
pub(crate) const DIRTY: u64 = 1 << 7;
pub(crate) const DBM: u64 = 1 << 51;
pub(crate) const DRAIN: u64 = 0b10;

/// A writable-clean page that was never accessed.
pub(crate) fn clean(page: usize) -> u64 {
    (0x8000_0000 + page as u64 * 0x1000) | DBM | 0b11 << 8 | 1 << 6 | 0b1111 << 2 | 0b11
}

pub(crate) fn ipa(page: usize) -> u64 {
    page as u64 * 0x1000
}

/// The machine, its one leaf table, and the hardware.
pub(crate) struct Rig<'m> {
    pub(crate) machine: &'m OracleMachine,
    pub(crate) leaves: u64,
    pub(crate) hardware: Hardware<'m>,
}

impl Rig<'_> {
    pub(crate) fn slot(&self, page: usize) -> &Slot {
        // SAFETY: (1) allocated, and never freed.
        unsafe { self.machine.table_at(Pa::new(self.leaves)) }.slot(page)
    }

    pub(crate) fn address(&self, page: usize) -> u64 {
        self.leaves + page as u64 * 8
    }

    /// Hardware gets its chance.
    pub(crate) fn step(&mut self) {
        (0..4).for_each(|_| self.hardware.act());
    }

    pub(crate) fn swap(&mut self, page: usize, bits: u64) -> u64 {
        self.step();
        // SAFETY: (1, 2) a test: nothing is ever reached through these tables.
        unsafe { self.machine.swap(self.slot(page), bits) }
    }

    pub(crate) fn store(&mut self, page: usize, bits: u64) {
        self.step();
        // SAFETY: (1, 2) as above.
        unsafe { self.machine.store(self.slot(page), bits) };
    }

    /// Read, change, compare-exchange, until it goes through. Returns what was there.
    pub(crate) fn update(&mut self, page: usize, change: impl Fn(u64) -> u64) -> u64 {
        loop {
            let seen = self.machine.load(self.slot(page));
            self.step();
            // SAFETY: (1) as above.
            let done = unsafe {
                self.machine.compare_exchange(self.slot(page), seen, change(seen)).unwrap()
            };
            if done.is_ok() {
                return seen;
            }
        }
    }

    /// All pages, by IPA.
    pub(crate) fn flush(&mut self) {
        self.step();
        self.machine.dsb(Dsb::IshSt);
        for page in 0..PAGES {
            let operand = PageOperand::new(Ipa::new(ipa(page)), LeafLevel::L3, Caps::TTL);
            self.machine.tlbi(Tlbi::Ipas2e1Is(operand));
            self.step();
        }
        self.machine.dsb(Dsb::Ish);
        self.step();
        self.machine.tlbi(Tlbi::Vmalle1Is);
        self.step();
        self.machine.dsb(Dsb::Ish);
        self.machine.isb();
    }

    pub(crate) fn harvested(&mut self, page: usize) {
        self.step();
        let slot = self.address(page);
        self.machine.note(|pe| Event::Harvested { pe, slot, count: 1 });
    }
}

/// What one run showed.
pub(crate) struct Run {
    pub(crate) defects: BTreeSet<Defect>,
    pub(crate) counts: Counts,
    /// Pages that guests wrote and that software took for clean.
    pub(crate) missed: Vec<u64>,
}

/// Maps the pages, lets guests at them, runs `software`, which returns the pages that it took for
/// written.
pub(crate) fn run(seed: u64, software: fn(&mut Rig<'_>) -> BTreeSet<usize>) -> Run {
    let setup = Machine { pes: 3, hw_access: true, hw_dirty: true, ..Machine::default() };
    let machine = OracleMachine::new(setup, 3);
    let table = || (&machine).alloc_table(1).unwrap().get();
    let (root, middle, leaves) = (table(), table(), table());
    // SAFETY: (1, 2) a test: nothing is ever reached through these tables.
    unsafe {
        (&machine).store(machine.table_at(Pa::new(middle)).slot(0), leaves | 3);
        (&machine).store(machine.table_at(Pa::new(root)).slot(0), middle | 3);
    }
    let ipas: Vec<u64> = (0..PAGES).map(ipa).collect();
    let hardware = Hardware::new(&machine, seed, &GUESTS, &ipas);
    let mut rig = Rig { machine: &machine, leaves, hardware };
    for page in 0..PAGES {
        // SAFETY: (1, 2) as above.
        unsafe { (&machine).store(rig.slot(page), clean(page)) };
    }
    (&machine).dsb(Dsb::Ish);
    for pe in 0..3 {
        machine.on_pe(pe, || {
            // SAFETY: (1, 2) no guest ran before.
            unsafe { (&machine).set_vttbr((1 << 48) | root) };
            (&machine).isb();
        });
    }
    (0..10).for_each(|_| rig.step());
    let harvest = software(&mut rig);
    (0..10).for_each(|_| rig.step());
    rig.hardware.stop();
    machine.finish();
    let written: BTreeSet<u64> = rig.hardware.written().collect();
    let missed = written.into_iter().filter(|at| !harvest.contains(&((*at / 0x1000) as usize)));
    Run {
        missed: missed.collect(),
        counts: rig.hardware.counts(),
        defects: machine.verdicts().iter().map(|verdict| verdict.defect).collect(),
    }
}

/// Every seed is sound, and the hardware was not idle.
pub(crate) fn sound(software: fn(&mut Rig<'_>) -> BTreeSet<usize>) -> Counts {
    let mut all = Counts::default();
    for seed in 1..=SEEDS {
        let run = run(seed, software);
        assert!(run.defects.is_empty(), "seed {seed}: {:?}", run.defects);
        assert_eq!(run.missed, Vec::<u64>::new(), "seed {seed}: written, and taken for clean");
        all.done += run.counts.done;
        all.again += run.counts.again;
        all.by_held += run.counts.by_held;
        all.stored_first += run.counts.stored_first;
    }
    println!("{all:?}");
    assert!(all.done > 1000 && all.again > 100 && all.stored_first > 100, "{all:?}");
    all
}

/// Some seed shows the defect. Returns how many did, and how many missed a page.
pub(crate) fn wrong(
    software: fn(&mut Rig<'_>) -> BTreeSet<usize>,
    defect: Defect,
) -> (usize, usize) {
    let runs: Vec<Run> = (1..=SEEDS).map(|seed| run(seed, software)).collect();
    let found = runs.iter().filter(|run| run.defects.contains(&defect)).count();
    let missed = runs.iter().filter(|run| !run.missed.is_empty());
    for run in missed.clone() {
        assert!(!run.defects.is_empty(), "a page was missed, and nobody said so");
    }
    let missed = missed.count();
    println!("{defect}: in {found} runs of {SEEDS}; pages were missed in {missed}");
    assert!(found > 0, "{defect} was not found");
    (found, missed)
}

/// Those of the pages whose descriptor says written.
pub(crate) fn dirty(pages: impl IntoIterator<Item = (usize, u64)>) -> BTreeSet<usize> {
    pages.into_iter().filter(|(_, bits)| writes_freely(*bits)).map(|(page, _)| page).collect()
}
