//! Dirty sessions on the oracle's machine, with guests and hardware between any two of their steps: each page that was
//! written is told by a harvest, or its leaf says so; and at the end, with the guests stopped, nothing is missed.

mod shaken;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use mmu_oracle::walker::{Access, Counts, Hardware, Walk};
use mmu_oracle::{Event, Machine, OracleMachine, Verdict};
use shaken::Shaken;
use stage2::arch::Dsb;
use stage2::epoch::Cpu;
use stage2::space::{Batch, Bitmaps, Extent, LogBlocks, Progress};
use stage2::vmid::Vmids;
use stage2::{
    Arch, Attributes, Bbm, Caps, Epochs, Errata, Features, Geometry, HwUpdate, Ipa, IpaRange,
    Level, MemType, Owner, Pa, Prot, Space, View, Vmid, Write,
};

const SEEDS: u64 = 5;
const ROUNDS: u64 = 12;
const PAGE: u64 = 0x1000;
const MIB2: u64 = 2 << 20;
/// Pages of two tables, and a block.
const BASE: u64 = 0x4000_0000;
const BLOCK: u64 = BASE + 2 * MIB2;
const RUN: u64 = BASE + 16 * PAGE;
const TOUCHED: [u64; 8] = [
    BASE,
    BASE + PAGE,
    RUN + 2 * PAGE,
    RUN + 9 * PAGE,
    BASE + MIB2,
    BASE + 2 * MIB2 - PAGE,
    BLOCK,
    BLOCK + 77 * PAGE,
];
/// What is mapped: few leaves, so that few steps lie between two looks at one.
const LEAVES: [(u64, u64); 5] = [
    (BASE, 2 * PAGE),
    (RUN, 16 * PAGE),
    (BASE + MIB2, PAGE),
    (BASE + 2 * MIB2 - PAGE, PAGE),
    (BLOCK, MIB2),
];
/// A page that EL2 writes.
const EL2S: u64 = RUN + 5 * PAGE;

type ShakenSpace<'m> = Space<'m, &'m OracleMachine, Shaken<'m>>;

fn everything() -> IpaRange {
    IpaRange::new(Ipa::new(BASE), 3 * MIB2).unwrap()
}

/// A session, and what is known of it.
struct Log<'v, 'm> {
    machine: &'m OracleMachine,
    hardware: &'m Mutex<Hardware<'m>>,
    space: &'v ShakenSpace<'m>,
    cpu: &'v Cpu<'v>,
    pages: &'v [AtomicU64],
    /// Pages that were told since the guests stopped last, or are dirty when they do.
    told: BTreeSet<u64>,
    missed: usize,
    counts: Counts,
}

impl<'m> Log<'_, 'm> {
    fn harvest(&mut self, slots: usize) {
        let mut claim = self.space.claim(everything()).unwrap();
        let mut from = everything().start();
        loop {
            let batch = Batch { from, slots };
            match self.space.dirty_harvest(self.cpu, &mut claim, batch).unwrap().progress {
                Progress::Done => break,
                Progress::Until(next) => from = next,
            }
        }
        for (index, word) in (0..).zip(self.pages) {
            let word = word.swap(0, Ordering::Acquire);
            let set = (0..64).filter(|bit| word >> bit & 1 != 0);
            self.told.extend(set.map(|bit| BASE + (index * 64 + bit) * PAGE));
        }
    }

    /// What a fault handler does for a write; a TLB that says otherwise faults once more.
    fn let_write(&self) {
        for ipa in TOUCHED {
            let granted =
                self.space.relax(&self.cpu.enter(), Ipa::new(ipa), Prot::WRITE, Prot::RWX);
            granted.unwrap();
        }
    }

    fn is_dirty(&self, ipa: u64) -> bool {
        let found = self.space.lookup(&self.cpu.enter(), Ipa::new(ipa)).unwrap();
        matches!(found.view(), View::Leaf(leaf) if leaf.may_be_written())
    }

    /// The guests stop, each with a DSB: what they have written was told, or the leaf says so. Then they go on.
    fn judge(&mut self, seed: u64, last: bool) {
        self.hardware.lock().unwrap().stop();
        (1..3).for_each(|pe| self.machine.on_pe(pe, || self.machine.dsb(Dsb::Ish)));
        let written: BTreeSet<u64> = self.hardware.lock().unwrap().written().collect();
        let now = self.hardware.lock().unwrap().counts();
        if last {
            // They touch what is not mapped, and so nothing.
            *self.hardware.lock().unwrap() = Hardware::new(self.machine, seed, &[1, 2], &[0]);
            self.harvest(usize::MAX);
            let dirty: Vec<_> = TOUCHED.into_iter().filter(|ipa| self.is_dirty(*ipa)).collect();
            assert!(dirty.is_empty(), "{dirty:x?}: the last harvest leaves nothing dirty");
        }
        let dirty: Vec<_> = TOUCHED.into_iter().filter(|ipa| self.is_dirty(*ipa)).collect();
        self.told.extend(dirty);
        for ipa in TOUCHED {
            let walk = Walk::begin(self.machine, 1, ipa, Access::Speculative).unwrap();
            self.machine.note(|pe| Event::Harvested { pe, slot: walk.slot(), count: 1 });
        }
        self.missed += written.difference(&self.told).count();
        self.counts.done += now.done;
        self.counts.by_held += now.by_held;
        self.told.clear();
        *self.hardware.lock().unwrap() = Hardware::new(self.machine, seed, &[1, 2], &TOUCHED);
    }
}

/// Maps leaves, lets guests at them, and has them logged; returns verdicts, writes missed, and what hardware did.
fn run(seed: u64, hw_update: HwUpdate, blocks: LogBlocks) -> (Vec<Verdict>, usize, Counts) {
    let (hw_access, hw_dirty) = (hw_update != HwUpdate::Off, hw_update == HwUpdate::AccessAndDirty);
    let machine =
        OracleMachine::new(Machine { pes: 3, hw_access, hw_dirty, ..Machine::default() }, 16);
    let (missed, counts) = {
        let hardware = Mutex::new(Hardware::new(&machine, seed, &[1, 2], &TOUCHED));
        let epochs = Epochs::<3>::new();
        let vmids = Vmids::<3>::only(Vmid::new(3, 8).unwrap());
        let caps = Caps::GRANULE_4K | Caps::HW_ACCESS | Caps::HW_DIRTY | Caps::TTL;
        let features = Features { caps, bbm: Bbm::Level0, pa_bits: 40, errata: Errata::empty() };
        let geometry = Geometry::new(39, &features, hw_update).unwrap();
        let arch = Shaken(&machine, &hardware);
        let space = Space::new(geometry, &vmids, epochs.domain(), &machine, arch).unwrap();
        let cpu = epochs.join(0).unwrap();
        let attributes = Attributes {
            write: Write::Allowed,
            accessed: true,
            ..Attributes::new(Prot::RWX, MemType::Normal)
        };
        for (at, bytes) in LEAVES {
            let pa = Pa::new(at + (1 << 32));
            let extent = Extent { pa, attributes, owner: Owner::Vm, coarsest: Level::L2 };
            let mut claim = space.claim(IpaRange::new(Ipa::new(at), bytes).unwrap()).unwrap();
            let all = Batch::all_of(&claim);
            // SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
            assert_eq!(unsafe { space.map(&cpu, &mut claim, all, &extent) }, Ok(Progress::Done));
        }
        for pe in 0..3 {
            machine.on_pe(pe, || {
                let mut cpu = vmids.join(pe).unwrap();
                // SAFETY: (1, 2) the guest of a PE is who was entered last.
                core::mem::forget(unsafe { space.enter(&mut cpu, 0) }.unwrap());
            });
        }
        let [pages, spans] = Bitmaps::words(everything())
            .map(|count| (0..count).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
        let bitmaps = Bitmaps { pages: &pages, spans: &spans };
        {
            let mut claim = space.claim(everything()).unwrap();
            // SAFETY: (1) it is stopped below.
            unsafe { space.dirty_start(&cpu, &mut claim, &bitmaps, blocks, || ()) }.unwrap();
        }
        let mut log = Log {
            machine: &machine,
            hardware: &hardware,
            space: &space,
            cpu: &cpu,
            pages: &pages,
            told: BTreeSet::new(),
            missed: 0,
            counts: Counts::default(),
        };
        for round in 0..ROUNDS {
            if round % 3 == 1 {
                space.write_through(&cpu.enter(), Ipa::new(EL2S), |_| ()).unwrap();
            }
            log.harvest([usize::MAX, 7, 200][round as usize % 3]);
            if round % 3 == 1 {
                assert!(log.told.contains(&EL2S), "EL2's write is told of");
            }
            if !hw_dirty {
                log.let_write();
            }
            log.judge(seed * 100 + round, round == ROUNDS - 1);
        }
        let (missed, counts) = (log.missed, log.counts);
        hardware.lock().unwrap().stop();
        let mut claim = space.claim(everything()).unwrap();
        while space.dirty_stop(&cpu, &mut claim, 300, || ()).unwrap().progress != Progress::Done {}
        (missed, counts)
    };
    machine.finish();
    (machine.verdicts(), missed, counts)
}

/// Whoever keeps the record, whatever the size of what is logged: no write is missed, and nothing is done that the
/// architecture forbids.
#[test]
fn every_write_is_told_by_a_harvest_or_the_leaf_says_so() {
    for hw_update in [HwUpdate::Off, HwUpdate::Access, HwUpdate::AccessAndDirty] {
        for blocks in [LogBlocks::Keep, LogBlocks::Split] {
            let mut all = Counts::default();
            for seed in 1..=SEEDS {
                let (verdicts, missed, counts) = run(seed, hw_update, blocks);
                let case = format!("{hw_update:?}, {blocks:?}, seed {seed}");
                assert!(verdicts.is_empty(), "{case}: {}", verdicts[0]);
                assert_eq!(missed, 0, "{case}: a write is missed");
                all.done += counts.done;
                all.by_held += counts.by_held;
            }
            println!("{hw_update:?}, {blocks:?}: {all:?}");
            assert!(all.done > 100 && all.by_held > 30, "{hw_update:?}, {blocks:?}: {all:?}");
        }
    }
}
