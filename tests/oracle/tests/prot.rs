//! Protection transactions on the oracle's machine, with hardware between any two of their steps: it sets AF and the
//! dirty state of what they change, at any moment that the architecture permits, and fails where that lets it.

mod shaken;

use std::collections::BTreeSet;
use std::sync::Mutex;

use mmu_oracle::walker::{Access, Choice, Counts, Hardware, Outcome, Walk, store_by_held};
use mmu_oracle::{Defect, Event, Machine, OracleMachine, Verdict};
use shaken::Shaken;
use stage2::arch::Dsb;
use stage2::epoch::Cpu;
use stage2::space::{Batch, Engine, Extent, Modified, Progress, Relax};
use stage2::vmid::Vmids;
use stage2::{
    Arch, Attributes, Bbm, Caps, Change, Epochs, Errata, Features, Geometry, HwUpdate, Ipa,
    IpaRange, Leaf, Level, MemType, Owner, Pa, Prot, Space, View, Vmid, Write,
};

const SEEDS: u64 = 6;
const ROUNDS: usize = 20;
const PAGE: u64 = 0x1000;
const MIB2: u64 = 2 << 20;
const DIRTY: u64 = 1 << 7;
const DIRTY_MODIFIER: u64 = 1 << 51;
/// Pages of two tables, and a block.
const BASE: u64 = 0x4000_0000;
const BLOCK: u64 = BASE + 2 * MIB2;
const RUN: u64 = BASE + 16 * PAGE;
/// What guests touch: pages apart and side by side, members of what may be a run, places of the block.
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

type ShakenSpace<'m> = Space<'m, &'m OracleMachine, Shaken<'m>>;

/// The machine's only VMID.
fn vmids() -> Vmids<3> {
    Vmids::only(Vmid::new(3, 8).unwrap())
}

fn everything() -> IpaRange {
    IpaRange::new(Ipa::new(BASE), 3 * MIB2).unwrap()
}

fn geometry(hw_update: HwUpdate, caps: Caps) -> Geometry {
    let caps = caps | Caps::GRANULE_4K | Caps::HW_ACCESS | Caps::HW_DIRTY;
    let features = Features { caps, bbm: Bbm::Level0, pa_bits: 40, errata: Errata::empty() };
    Geometry::new(39, &features, hw_update).unwrap()
}

fn machine(hw_update: HwUpdate) -> OracleMachine {
    let (hw_access, hw_dirty) = (hw_update != HwUpdate::Off, hw_update == HwUpdate::AccessAndDirty);
    OracleMachine::new(Machine { pes: 3, hw_access, hw_dirty, ..Machine::default() }, 16)
}

/// Few leaves, so that few steps lie between two looks at one: single pages of two tables, 16 that can be a run, and the
/// block.
const LEAVES: [(u64, u64); 5] = [
    (BASE, 2 * PAGE),
    (RUN, 16 * PAGE),
    (BASE + MIB2, PAGE),
    (BASE + 2 * MIB2 - PAGE, PAGE),
    (BLOCK, MIB2),
];
const COUNT: u64 = 2 + 16 + 1 + 1 + 1;

/// Maps them.
fn map<A: Arch>(space: &Space<'_, &OracleMachine, A>, cpu: &Cpu<'_>, write: Write) {
    let accessed = space.geometry().hw_update() == HwUpdate::Off;
    let attributes = Attributes { write, accessed, ..Attributes::new(Prot::RWX, MemType::Normal) };
    for (at, bytes) in LEAVES {
        let pa = Pa::new(at + (1 << 32));
        let extent = Extent { pa, attributes, owner: Owner::Vm, coarsest: Level::L2 };
        let mut claim = space.claim(IpaRange::new(Ipa::new(at), bytes).unwrap()).unwrap();
        let all = Batch::all_of(&claim);
        // SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
        assert_eq!(unsafe { space.map(cpu, &mut claim, all, &extent) }, Ok(Progress::Done));
    }
}

/// A VM under hardware that never stops but when told.
struct Vm<'v, 'm> {
    machine: &'m OracleMachine,
    hardware: &'m Mutex<Hardware<'m>>,
    space: &'v ShakenSpace<'m>,
    cpu: &'v Cpu<'v>,
    /// Leaves of which the dirty state was found and taken, or is there when the guests stop.
    found: BTreeSet<u64>,
    /// Of these, what was there when they began.
    before: BTreeSet<u64>,
    counts: Counts,
    /// Leaves that were written and not found, and the other way round.
    missed: usize,
    invented: usize,
}

/// First IPA of the leaf of an address.
fn leaf_of(ipa: u64) -> u64 {
    if ipa >= BLOCK { BLOCK } else { ipa }
}

impl<'m> Vm<'_, 'm> {
    /// In batches of so many slots; `None` leaves a leaf alone.
    fn modify(
        &self,
        slots: usize,
        mut decide: impl FnMut(Ipa, &Leaf) -> Option<Change>,
    ) -> Modified {
        let mut claim = self.space.claim(everything()).unwrap();
        let (mut from, guard) = (everything().start(), self.cpu.enter());
        let mut all = Modified { progress: Progress::Done, changed: 0, broken: 0 };
        loop {
            let batch = Batch { from, slots };
            let mut open =
                self.space.modify_prot(&guard, &mut claim, batch, Relax::Everywhere).unwrap();
            open.each(&mut decide).unwrap();
            let Modified { progress, changed, broken } = open.finish();
            (all.changed, all.broken) = (all.changed + changed, all.broken + broken);
            match progress {
                Progress::Done => return all,
                Progress::Until(next) => from = next,
            }
        }
    }

    /// Takes the dirty state of all that has it.
    fn harvest(&mut self, slots: usize) {
        let mut found = core::mem::take(&mut self.found);
        self.modify(slots, |ipa, leaf| {
            found.extend(leaf.is_dirty().then_some(ipa.get()));
            leaf.is_dirty().then_some(Change::CLEAN)
        });
        self.found = found;
    }

    fn change(&self, change: Change) {
        self.modify(usize::MAX, |_, _| Some(change));
    }

    fn leaf(&self, ipa: u64) -> Leaf {
        let found = self.space.lookup(&self.cpu.enter(), Ipa::new(ipa)).unwrap();
        let View::Leaf(leaf) = found.view() else { panic!("{ipa:#x}: {found:?}") };
        leaf
    }

    /// The guests stop, each with a DSB. What they have written is known: it was found, or the leaf says so. Then
    /// they go on.
    fn judge(&mut self, seed: u64) {
        let mut hardware = self.hardware.lock().unwrap();
        hardware.stop();
        (1..3).for_each(|pe| self.machine.on_pe(pe, || self.machine.dsb(Dsb::Ish)));
        let leaves: BTreeSet<u64> = TOUCHED.into_iter().map(leaf_of).collect();
        let dirty = leaves.iter().filter(|ipa| self.leaf(**ipa).is_dirty());
        let dirty: BTreeSet<u64> = dirty.copied().collect();
        self.found.extend(&dirty);
        for ipa in &leaves {
            let walk = Walk::begin(self.machine, 1, *ipa, Access::Speculative).unwrap();
            self.machine.note(|pe| Event::Harvested { pe, slot: walk.slot(), count: 1 });
        }
        let written: BTreeSet<u64> = hardware.written().map(leaf_of).collect();
        self.missed += written.difference(&self.found).count();
        let told: BTreeSet<u64> = self.found.difference(&self.before).copied().collect();
        self.invented += told.difference(&written).count();
        let now = hardware.counts();
        self.counts.done += now.done;
        self.counts.again += now.again;
        self.counts.by_held += now.by_held;
        self.counts.stored_first += now.stored_first;
        self.counts.access_lost += now.access_lost;
        self.counts.dirty_lost += now.dirty_lost;
        self.counts.dirty_invented += now.dirty_invented;
        self.found.clear();
        self.before = dirty;
        *hardware = Hardware::new(self.machine, seed, &[1, 2], &TOUCHED);
    }
}

/// What runs showed.
struct Shown {
    verdicts: Vec<Verdict>,
    counts: Counts,
    missed: usize,
    invented: usize,
}

/// Maps leaves, lets guests at them, and runs `software` meanwhile.
fn run(
    seed: u64,
    caps: Caps,
    hw_update: HwUpdate,
    engine: Option<Engine>,
    software: impl FnOnce(&mut Vm<'_, '_>),
) -> Shown {
    let machine = machine(hw_update);
    let (counts, missed, invented) = {
        let hardware = Mutex::new(Hardware::new(&machine, seed, &[1, 2], &TOUCHED));
        let epochs = Epochs::<3>::new();
        let (vmids, arch) = (vmids(), Shaken(&machine, &hardware));
        let geometry = geometry(hw_update, caps);
        let space = Space::new(geometry, &vmids, epochs.domain(), &machine, arch).unwrap();
        space.pin_engine(engine);
        let cpu = epochs.join(0).unwrap();
        let write =
            if hw_update == HwUpdate::AccessAndDirty { Write::Clean } else { Write::Allowed };
        map(&space, &cpu, write);
        for pe in 0..3 {
            machine.on_pe(pe, || {
                let mut cpu = vmids.join(pe).unwrap();
                // SAFETY: (1, 2) the guest of a PE is who was entered last.
                core::mem::forget(unsafe { space.enter(&mut cpu, 0) }.unwrap());
            });
        }
        let mut vm = Vm {
            machine: &machine,
            hardware: &hardware,
            space: &space,
            cpu: &cpu,
            found: BTreeSet::new(),
            before: BTreeSet::new(),
            counts: Counts::default(),
            missed: 0,
            invented: 0,
        };
        software(&mut vm);
        (vm.counts, vm.missed, vm.invented)
    };
    machine.finish();
    Shown { verdicts: machine.verdicts(), counts, missed, invented }
}

/// Takes and gives everything that there is, in batches large and small; after each the guests stop for a moment.
fn log_and_protect(vm: &mut Vm<'_, '_>, seed: u64) {
    let protect = |prot| Change::protect(prot, vm.space.encoding()).unwrap();
    let (rw, rwx) = (protect(Prot::RW), protect(Prot::RWX));
    for round in 0..ROUNDS as u64 {
        match round % 5 {
            0 => vm.harvest(usize::MAX),
            1 => vm.change(rw),
            2 => vm.harvest(200),
            3 => vm.change(Change::UNACCESSED),
            _ => vm.change(rwx),
        }
        vm.judge(seed * 100 + round);
    }
    // Of those that are clean, too.
    vm.harvest(usize::MAX);
    let mut found = core::mem::take(&mut vm.found);
    vm.modify(usize::MAX, |ipa, leaf| {
        found.extend(leaf.is_dirty().then_some(ipa.get()));
        Some(Change::WRITE_PROTECT)
    });
    vm.found = found;
    vm.judge(seed);
}

const CAPS: [Caps; 3] = [Caps::empty(), Caps::TTL, Caps::TLBI_RANGE.union(Caps::TTL)];

fn sum(total: &mut Counts, counts: Counts) {
    total.done += counts.done;
    total.again += counts.again;
    total.by_held += counts.by_held;
    total.stored_first += counts.stored_first;
    total.access_lost += counts.access_lost;
    total.dirty_lost += counts.dirty_lost;
    total.dirty_invented += counts.dirty_invented;
}

/// By a break the dirty state is exact: what is told is what was written, and AF is never lost.
#[test]
fn protections_change_under_hardware_updates_and_the_dirty_state_is_exact() {
    for engine in [None, Some(Engine::Break)] {
        let mut all = Counts::default();
        for (caps, seed) in CAPS.into_iter().flat_map(|caps| (1..=SEEDS).map(move |s| (caps, s))) {
            let shown = run(seed, caps, HwUpdate::AccessAndDirty, engine, |vm| {
                log_and_protect(vm, seed);
            });
            let Shown { verdicts, counts, missed, invented } = shown;
            assert!(verdicts.is_empty(), "{engine:?}, {caps:?}, seed {seed}: {}", verdicts[0]);
            assert_eq!((missed, invented), (0, 0), "{engine:?}, {caps:?}, seed {seed}: missed");
            sum(&mut all, counts);
        }
        println!("{engine:?}: {all:?}");
        // What is settled before and after needs no record any more: hardware may well fail to make it.
        if engine == Some(Engine::Break) {
            assert_eq!((all.dirty_lost, all.access_lost), (0, 0), "{engine:?}");
        }
        assert_eq!(all.dirty_invented, 0, "{engine:?}");
        let busy = all.done > 1000 && all.again > 50 && all.by_held > 100 && all.stored_first > 50;
        assert!(busy, "{all:?}");
    }
}

/// In place under hardware dirty management: the oracle says so, and writes are missed and made up.
#[test]
fn in_place_under_dirty_management_writes_are_lost_and_invented() {
    let (mut all, mut lost, mut made_up) = (Counts::default(), 0, 0);
    for seed in 1..=4 * SEEDS {
        let shown = run(seed, Caps::TTL, HwUpdate::AccessAndDirty, Some(Engine::InPlace), |vm| {
            log_and_protect(vm, seed);
        });
        let Shown { verdicts, counts, missed, invented } = shown;
        let at_risk = verdicts.iter().any(|verdict| verdict.defect == Defect::DirtyAtRisk);
        assert!(at_risk, "seed {seed}: the oracle takes it for sound");
        (lost, made_up) = (lost + missed, made_up + invented);
        sum(&mut all, counts);
    }
    println!("{all:?}: {lost} missed, {made_up} invented");
    assert!(all.dirty_lost > 0 && lost > 0, "no write was lost: {all:?}, {lost}");
    assert!(all.dirty_invented > 0 && made_up > 0, "none was invented: {all:?}, {made_up}");
}

/// Without dirty management nothing is broken, and nothing is wrong but AF, which is lost in place and not by a break.
#[test]
fn without_dirty_management_a_change_in_place_is_sound_and_may_lose_the_access_flag() {
    let mut lost = [0; 2];
    for (lost, engine) in lost.iter_mut().zip([None, Some(Engine::Break)]) {
        for (caps, seed) in CAPS.into_iter().flat_map(|caps| (1..=SEEDS).map(move |s| (caps, s))) {
            let shown = run(seed, caps, HwUpdate::Access, engine, |vm| {
                let protect = |prot| Change::protect(prot, vm.space.encoding()).unwrap();
                let (rx, rwx) = (protect(Prot::RX), protect(Prot::RWX));
                for _ in 0..ROUNDS / 5 {
                    vm.change(rx);
                    vm.change(Change::UNACCESSED);
                    let modified = vm.modify(300, |_, _| Some(rwx));
                    assert_eq!(modified.changed, COUNT);
                    assert_eq!(modified.broken, if engine.is_none() { 0 } else { COUNT });
                }
                vm.judge(seed);
            });
            let Shown { verdicts, counts, .. } = shown;
            assert!(verdicts.is_empty(), "{engine:?}, {caps:?}, seed {seed}: {}", verdicts[0]);
            *lost += counts.access_lost;
        }
    }
    println!("AF lost in place and by a break: {lost:?}");
    assert!(lost[0] > 0 && lost[1] == 0, "{lost:?}");
}

/// A run is broken before its first member is shown, also where one of it speaks for another.
#[test]
fn runs_are_changed_under_hardware_updates_and_no_write_is_lost() {
    let mut by_held = 0;
    for (engine, seed) in
        [None, Some(Engine::Break)].into_iter().flat_map(|e| (1..=2 * SEEDS).map(move |s| (e, s)))
    {
        let shown = run(seed, Caps::TTL, HwUpdate::AccessAndDirty, engine, |vm| {
            for round in 0..ROUNDS as u64 / 2 {
                let place = IpaRange::new(Ipa::new(RUN), 16 * PAGE).unwrap();
                let mut claim = vm.space.claim(place).unwrap();
                let (all, mut none) = (Batch::all_of(&claim), |_, _| {});
                let made = vm.space.make_contiguous(vm.cpu, &mut claim, all, Level::L3, &mut none);
                assert_eq!(made, Ok(Progress::Done));
                drop(claim);
                vm.modify(7, |_, _| None);
                vm.harvest(if round % 2 == 0 { 3 } else { usize::MAX });
                vm.harvest(usize::MAX);
                // No run: what its members say counts one by one.
                let mut claim = vm.space.claim(place).unwrap();
                let done = vm.space.dissolve(vm.cpu, &mut claim, all);
                assert_eq!(done, Ok(Progress::Done));
                drop(claim);
                vm.judge(seed * 100 + round);
            }
        });
        let Shown { verdicts, counts, missed, .. } = shown;
        assert!(verdicts.is_empty(), "{engine:?}, seed {seed}: {}", verdicts[0]);
        assert_eq!(missed, 0, "{engine:?}, seed {seed}: written, and not told");
        by_held += counts.by_held;
    }
    assert!(by_held > 100, "{by_held}");
}

/// A fault handler changes a leaf between look and exchange: `each` asks again, and loses nothing of it.
#[test]
fn what_a_fault_handler_grants_meanwhile_is_not_overwritten() {
    const ACCESSED: u64 = 1 << 10;
    for engine in [Engine::InPlace, Engine::Break] {
        let machine = machine(HwUpdate::Off);
        let (epochs, vmids) = (Epochs::<3>::new(), vmids());
        let geometry = geometry(HwUpdate::Off, Caps::empty());
        let space = Space::new(geometry, &vmids, epochs.domain(), &machine, &machine).unwrap();
        space.pin_engine(Some(engine));
        let cpu = epochs.join(0).unwrap();
        map(&space, &cpu, Write::Allowed);
        let at = IpaRange::new(Ipa::new(BASE), 3 * PAGE).unwrap();
        let mut claim = space.claim(at).unwrap();
        let all = Batch::all_of(&claim);
        let table = space.lookup_rw(&cpu.enter(), Ipa::new(BASE)).unwrap().parent().unwrap();
        // SAFETY: (1) linked, and nobody frees it.
        let table = unsafe { machine.table_at(table.as_table(Level::L2).unwrap()) };
        let held = |page| (&machine).load(table.slot(page));
        let before = held(0) & !(0x3 << 12);
        for page in 0..3 {
            let put = |page: usize, bits| {
                // SAFETY: (1, 2) a test: nothing is ever reached through these tables.
                _ = unsafe { (&machine).swap(table.slot(page), bits + page as u64 * PAGE) };
            };
            (0..3).for_each(|page| put(page, before & !ACCESSED));
            let handler = || {
                machine.on_pe(1, || {
                    put(page, before);
                    (&machine).dsb(Dsb::IshSt);
                });
            };
            let (mut told, guard) = (Vec::new(), cpu.enter());
            let (done, met) = machine.race_at(page + 1, handler, || {
                let mut open =
                    space.modify_prot(&guard, &mut claim, all, Relax::Everywhere).unwrap();
                open.each(|ipa, leaf| {
                    told.push(((ipa.get() - BASE) / PAGE, leaf.is_accessed()));
                    Some(Change::WRITE_PROTECT)
                })
                .unwrap();
                open.finish()
            });
            assert!(met);
            assert_eq!(done.changed, 3);
            let mut wanted: Vec<(u64, bool)> = (0..3).map(|page| (page, false)).collect();
            wanted.insert(page + 1, (page as u64, true));
            assert_eq!(told, wanted, "it is asked again");
            for number in 0..3 {
                let accessed = if number == page { ACCESSED } else { 0 };
                let wanted = before & !(DIRTY | ACCESSED) | accessed;
                assert_eq!(held(number) - number as u64 * PAGE, wanted, "{engine:?}, {page}");
            }
        }
        assert!(machine.verdicts().is_empty(), "{}", machine.verdicts()[0]);
    }
}

/// A member is dirty, another was written by way of it: when the run is taken apart, both are told.
#[test]
fn a_write_that_a_neighbour_excuses_is_told() {
    let machine = machine(HwUpdate::AccessAndDirty);
    let (epochs, vmids) = (Epochs::<3>::new(), vmids());
    let geometry = geometry(HwUpdate::AccessAndDirty, Caps::empty());
    let space = Space::new(geometry, &vmids, epochs.domain(), &machine, &machine).unwrap();
    let cpu = epochs.join(0).unwrap();
    map(&space, &cpu, Write::Clean);
    machine.on_pe(1, || {
        let mut cpu = vmids.join(1).unwrap();
        // SAFETY: (1, 2) the guest of a PE is who was entered last.
        core::mem::forget(unsafe { space.enter(&mut cpu, 0) }.unwrap());
    });
    let mut claim = space.claim(IpaRange::new(Ipa::new(RUN), 16 * PAGE).unwrap()).unwrap();
    let all = Batch::all_of(&claim);
    let made = space.make_contiguous(&cpu, &mut claim, all, Level::L3, &mut |_, _| {});
    assert_eq!(made, Ok(Progress::Done));
    let (dirty, excused) = (RUN + 3 * PAGE, RUN + 7 * PAGE);
    let walk = Walk::begin(&machine, 1, dirty, Access::Write).unwrap();
    assert!(matches!(walk.finish(Choice::Faithful), Outcome::Done(_)));
    assert!(store_by_held(&machine, 1, excused).is_some());
    let guard = cpu.enter();
    let mut open = space.modify_prot(&guard, &mut claim, all, Relax::Everywhere).unwrap();
    let mut told = Vec::new();
    while let Some(started) = open.start().unwrap() {
        let ipa = started.ipa().get();
        if started.commit(&Change::CLEAN).unwrap().is_dirty() {
            told.push(ipa);
        }
    }
    assert!(told.contains(&dirty) && told.contains(&excused), "a record is lost: {told:x?}");
    let _ = open.finish();
    for ipa in [dirty, excused] {
        let found = space.lookup(&guard, Ipa::new(ipa)).unwrap();
        let state = found.descriptor.bits() & (DIRTY | DIRTY_MODIFIER | 1);
        assert_eq!(state, DIRTY_MODIFIER | 1, "clean, and live");
        let walk = Walk::begin(&machine, 1, ipa, Access::Speculative).unwrap();
        machine.note(|pe| Event::Harvested { pe, slot: walk.slot(), count: 1 });
    }
    assert!(machine.verdicts().is_empty(), "{}", machine.verdicts()[0]);
}
