//! Splits and collapses on the oracle's machine, with hardware between any two of their steps: it sets AF and the
//! dirty state of blocks and pages, by tables that it found before, at any moment that the architecture permits.

mod shaken;

use std::sync::Mutex;

use mmu_oracle::descriptor::writes_freely;
use mmu_oracle::walker::{Counts, Hardware};
use mmu_oracle::{Event, Machine, Model, OracleMachine};
use shaken::Shaken;
use stage2::arch::Dsb;
use stage2::epoch::Cpu;
use stage2::space::{Batch, Collapse, Extent, Obstacle, Progress};
use stage2::vmid::Vmids;
use stage2::{
    Arch, Attributes, Bbm, Caps, Epochs, Errata, Features, Geometry, HwUpdate, Ipa, IpaRange,
    Level, MemType, Owner, Pa, Prot, Space, Vmid, Write,
};

const SEEDS: u64 = 4;
const MIB2: u64 = 2 << 20;
/// Two blocks; guests touch some pages of both.
const BASE: u64 = 0x4000_0000;
const TOUCHED: [u64; 5] =
    [BASE, BASE + 0x7000, BASE + 0x1f_f000, BASE + MIB2, BASE + MIB2 + 0x9000];

type ShakenSpace<'m> = Space<'m, &'m OracleMachine, Shaken<'m>>;

fn range(start: u64, bytes: u64) -> IpaRange {
    IpaRange::new(Ipa::new(start), bytes).unwrap()
}

/// Both blocks, writable-clean and never accessed.
fn extent() -> Extent {
    let attributes = Attributes {
        write: Write::Clean,
        accessed: false,
        ..Attributes::new(Prot::RWX, MemType::Normal)
    };
    Extent { pa: Pa::new(0x8000_0000), attributes, owner: Owner::Vm, coarsest: Level::L2 }
}

/// The machine's only VMID.
fn vmids() -> Vmids<3> {
    Vmids::only(Vmid::new(3, 8).unwrap())
}

/// A machine whose hardware updates both, with room for so many tables.
fn machine(bbm: Bbm, tables: usize) -> OracleMachine {
    let (hw_access, hw_dirty) = (true, true);
    let setup = Machine { pes: 3, bbm: bbm as u8, hw_access, hw_dirty, ..Machine::default() };
    OracleMachine::new(setup, tables)
}

/// Tables for such a machine, which has these features besides.
fn geometry(bbm: Bbm, caps: Caps) -> Geometry {
    let caps = caps | Caps::GRANULE_4K | Caps::HW_ACCESS | Caps::HW_DIRTY;
    let features = Features { caps, bbm, pa_bits: 40, errata: Errata::empty() };
    Geometry::new(39, &features, HwUpdate::AccessAndDirty).unwrap()
}

/// These PEs run the guest.
fn enter<A: Arch>(
    machine: &OracleMachine,
    vmids: &Vmids<3>,
    space: &Space<'_, &OracleMachine, A>,
    pes: std::ops::Range<usize>,
) {
    for pe in pes {
        machine.on_pe(pe, || {
            let mut cpu = vmids.join(pe).unwrap();
            // SAFETY: (1, 2) the guest of a PE is who was entered last.
            core::mem::forget(unsafe { space.enter(&mut cpu, 0) }.unwrap());
        });
    }
}

/// Maps both blocks.
fn map<A: Arch>(space: &Space<'_, &OracleMachine, A>, cpu: &Cpu<'_>, extent: &Extent) {
    let mut claim = space.claim(range(BASE, 2 * MIB2)).unwrap();
    let all = Batch::all_of(&claim);
    // SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
    assert_eq!(unsafe { space.map(cpu, &mut claim, all, extent) }, Ok(Progress::Done));
}

fn split<A: Arch>(space: &Space<'_, &OracleMachine, A>, cpu: &Cpu<'_>, at: IpaRange) {
    let mut claim = space.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    assert_eq!(space.split(cpu, &mut claim, all, Level::L3), Ok(Progress::Done));
}

fn collapse<A: Arch>(
    space: &Space<'_, &OracleMachine, A>,
    cpu: &Cpu<'_>,
    at: IpaRange,
) -> Vec<Collapse> {
    let mut claim = space.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let mut told = Vec::new();
    let mut heard = |ipa, what| {
        // Whoever hears may walk from the root: it finds what the guest finds.
        assert!(space.translate(&cpu.enter(), ipa).is_some(), "{ipa}: {what:?}");
        told.push(what);
    };
    let done = space.collapse(cpu, &mut claim, all, Level::L2, || {}, &mut heard);
    assert_eq!(done, Ok(Progress::Done));
    told
}

/// What one run showed.
struct Run {
    machine: OracleMachine,
    counts: Counts,
    /// Addresses that guests wrote and whose leaf does not say so.
    missed: Vec<u64>,
}

/// Maps the blocks, lets guests at them, and runs `software` meanwhile, which changes sizes by breaks.
fn run(seed: u64, caps: Caps, software: fn(&ShakenSpace<'_>, &Cpu<'_>)) -> Run {
    run_at(Bbm::Level0, seed, caps, software)
}

/// The same on a machine with this level of FEAT_BBM.
fn run_at(bbm: Bbm, seed: u64, caps: Caps, software: impl Fn(&ShakenSpace<'_>, &Cpu<'_>)) -> Run {
    let machine = machine(bbm, 16);
    let (counts, missed) = {
        let hardware = Mutex::new(Hardware::new(&machine, seed, &[1, 2], &TOUCHED));
        let geometry = geometry(bbm, caps);
        let epochs = Epochs::<3>::new();
        let (vmids, arch) = (vmids(), Shaken(&machine, &hardware));
        let space = Space::new(geometry, &vmids, epochs.domain(), &machine, arch).unwrap();
        let cpu = epochs.join(0).unwrap();
        map(&space, &cpu, &extent());
        enter(&machine, &vmids, &space, 0..3);
        software(&space, &cpu);
        let mut hardware = hardware.lock().unwrap();
        hardware.stop();
        (1..3).for_each(|pe| machine.on_pe(pe, || (&machine).dsb(Dsb::Ish)));
        let guard = cpu.enter();
        let clean = |ipa: &u64| {
            let found = space.lookup(&guard, Ipa::new(*ipa)).unwrap();
            !writes_freely(found.descriptor.bits())
        };
        (hardware.counts(), hardware.written().filter(clean).collect())
    };
    machine.finish();
    Run { machine, counts, missed }
}

fn back_and_forth(space: &ShakenSpace<'_>, cpu: &Cpu<'_>) {
    let all = range(BASE, 2 * MIB2);
    split(space, cpu, all);
    assert_eq!(collapse(space, cpu, range(BASE, MIB2)), [Collapse::Made]);
    split(space, cpu, range(BASE, MIB2));
    assert_eq!(collapse(space, cpu, all), [Collapse::Made; 2]);
}

/// Runs it with some seeds, on machines with and without what flushes have for blocks. Returns what hardware did in all.
fn sound_and_complete(software: fn(&ShakenSpace<'_>, &Cpu<'_>)) -> Counts {
    let mut all = Counts::default();
    for caps in [Caps::empty(), Caps::TTL, Caps::TLBI_RANGE | Caps::TTL] {
        for seed in 1..=SEEDS {
            let run = run(seed, caps, software);
            let verdicts = run.machine.verdicts();
            assert!(verdicts.is_empty(), "{caps:?}, seed {seed}: {}", verdicts[0]);
            assert_eq!(run.missed, [0_u64; 0], "{caps:?}, seed {seed}: written, and clean");
            all.done += run.counts.done;
            all.again += run.counts.again;
            all.by_held += run.counts.by_held;
            all.stored_first += run.counts.stored_first;
        }
    }
    all
}

#[test]
fn sizes_change_under_hardware_updates_and_no_write_is_lost() {
    let all = sound_and_complete(back_and_forth);
    println!("{all:?}");
    assert!(
        all.done > 1000 && all.again > 10 && all.by_held > 100 && all.stored_first > 10,
        "{all:?}"
    );
}

/// A fault handler that found the table before changes a leaf between break and harvest: the table is
/// linked again before anybody hears of it, each leaf as it was.
#[test]
fn a_collapse_that_fails_after_the_break_links_the_table_again() {
    let machine = OracleMachine::new(Machine { pes: 3, ..Machine::default() }, 16);
    let features =
        Features { caps: Caps::GRANULE_4K, bbm: Bbm::Level0, pa_bits: 40, errata: Errata::empty() };
    let geometry = Geometry::new(39, &features, HwUpdate::Off).unwrap();
    let epochs = Epochs::<3>::new();
    let vmids = vmids();
    let space = Space::new(geometry, &vmids, epochs.domain(), &machine, &machine).unwrap();
    let cpu = epochs.join(0).unwrap();
    let attributes = Attributes::new(Prot::RWX, MemType::Normal);
    map(&space, &cpu, &Extent { attributes, ..extent() });
    split(&space, &cpu, range(BASE, MIB2));
    let table = space.lookup_rw(&cpu.enter(), Ipa::new(BASE)).unwrap().parent().unwrap();
    let table = table.as_table(Level::L2).unwrap();
    // SAFETY: (1) linked, and nobody frees it.
    let table = unsafe { machine.table_at(table) };
    let before: Vec<u64> = table.slots().iter().map(|slot| (&machine).load(slot)).collect();
    for page in [0, 5, 511] {
        let wanted = before[page] & !(1 << 7);
        let handler = || {
            machine.on_pe(1, || {
                // SAFETY: (1, 2) a test: nothing is ever reached through these tables.
                _ = unsafe { (&machine).swap(table.slot(page), wanted) };
                (&machine).dsb(Dsb::IshSt);
            });
        };
        // The break is a swap, so the harvest's are the first exchanges.
        let (told, met) = machine.race_at(1, handler, || collapse(&space, &cpu, range(BASE, MIB2)));
        let ipa = Ipa::new(BASE + if page == 0 { 1 } else { page as u64 } * 0x1000);
        assert_eq!((told, met), (vec![Collapse::Stays(Obstacle::Unlike { ipa })], true));
        let after: Vec<u64> = table.slots().iter().map(|slot| (&machine).load(slot)).collect();
        let changed = |(at, (was, is)): (usize, (&u64, &u64))| {
            if at == page { *is == wanted } else { was == is }
        };
        assert!(before.iter().zip(&after).enumerate().all(changed), "each leaf is as it was");
        // SAFETY: (1, 2) as above.
        _ = unsafe { (&machine).swap(table.slot(page), before[page]) };
    }
    assert_eq!(collapse(&space, &cpu, range(BASE, MIB2)), [Collapse::Made]);
    assert!(machine.verdicts().is_empty(), "{}", machine.verdicts()[0]);
}

/// Each step of the two flushes is needed: without it some defect shows.
#[test]
fn each_step_of_a_split_and_of_a_collapse_is_needed() {
    let run = run(1, Caps::TTL, |space, cpu| {
        split(space, cpu, range(BASE, MIB2));
        collapse(space, cpu, range(BASE, MIB2));
    });
    let trace = run.machine.trace();
    // Before hardware has touched anything there is nothing to invalidate.
    let touched = |event: &Event| matches!(event, Event::HwUpdate { .. });
    let from = trace.iter().position(touched).expect("hardware was at work");
    assert!(needed(&run.machine, from) >= 6);
}

/// How many steps of flushes there were from an event on, all of them needed.
fn needed(machine: &OracleMachine, from: usize) -> usize {
    let trace = machine.trace();
    let (mut model, mut needed) = (Model::new(machine.setup()), 0);
    for (at, event) in trace.iter().enumerate() {
        let flush = matches!(event, Event::Tlbi { pe: 0, .. })
            || matches!(event, Event::Dsb { pe: 0, kind: mmu_oracle::event::Dsb::Ish });
        if flush && at > from {
            let mut without = model.clone();
            let shows = |event| {
                without.apply(event);
                !without.verdicts().is_empty()
            };
            assert!(trace[at + 1..].iter().any(shows), "event {at} is not needed: {event:?}");
            needed += 1;
        }
        model.apply(event);
    }
    needed
}

/// What another PE does to a block while its parts are built, what the parts say then, and whether it is split.
#[test]
fn a_split_notices_what_happens_to_the_block_meanwhile() {
    const DIRTY: u64 = 1 << 7;
    const ACCESSED: u64 = 1 << 10;
    type Change = fn(u64) -> u64;
    let cases: [(&str, Change); 3] = [
        ("hardware records a write", |bits| bits | DIRTY | ACCESSED),
        ("whoever held the lock moved it", |bits| bits + MIB2),
        ("whoever held the lock took it away", |_| 0),
    ];
    for (what, change) in cases {
        // The root, one below, and one for parts: it may not be lost.
        let machine = machine(Bbm::Level0, 3);
        let geometry = geometry(Bbm::Level0, Caps::empty());
        let (epochs, vmids) = (Epochs::<3>::new(), vmids());
        let space = Space::new(geometry, &vmids, epochs.domain(), &machine, &machine).unwrap();
        let cpu = epochs.join(0).unwrap();
        map(&space, &cpu, &extent());
        let at = |ipa| space.lookup(&cpu.enter(), Ipa::new(ipa)).unwrap();
        let before = at(BASE).descriptor.bits();
        let parent = space.lookup_rw(&cpu.enter(), Ipa::new(BASE)).unwrap().parent().unwrap();
        // SAFETY: (1) linked, and nobody frees it.
        let slot = unsafe { machine.table_at(parent.as_table(Level::L1).unwrap()) }.slot(0);
        let other = || {
            machine.on_pe(1, || {
                // SAFETY: (1, 2) a test: nothing is ever reached through these tables.
                _ = unsafe { (&machine).swap(slot, change(before)) };
                (&machine).dsb(Dsb::IshSt);
            });
        };
        let ((), met) = machine.race_at(1, other, || split(&space, &cpu, range(BASE, MIB2)));
        assert!(met, "{what}");
        let now = change(before);
        if now == 0 {
            assert_eq!(at(BASE).descriptor.bits(), 0, "{what}");
            let mut claim = space.claim(range(BASE + MIB2, MIB2)).unwrap();
            let all = Batch::all_of(&claim);
            let split = space.split(&cpu, &mut claim, all, Level::L3);
            assert_eq!(split, Ok(Progress::Done), "the table that was not used came back");
            continue;
        }
        for page in [0, 1, 511] {
            let found = at(BASE + page * 0x1000);
            // A page has bit 1 set.
            let wanted = (now | 0b10) + page * 0x1000;
            assert_eq!((found.level, found.descriptor.bits()), (Level::L3, wanted), "{what}");
        }
    }
}

/// Hardware records a write in one page while the leaves are gathered: it is in the block.
#[test]
fn a_write_that_is_recorded_during_the_harvest_is_in_the_block() {
    const DIRTY: u64 = 1 << 7;
    let machine = machine(Bbm::Level0, 3);
    let geometry = geometry(Bbm::Level0, Caps::empty());
    let (epochs, vmids) = (Epochs::<3>::new(), vmids());
    let space = Space::new(geometry, &vmids, epochs.domain(), &machine, &machine).unwrap();
    let cpu = epochs.join(0).unwrap();
    map(&space, &cpu, &extent());
    let block = || space.lookup(&cpu.enter(), Ipa::new(BASE)).unwrap().descriptor.bits();
    for page in [0, 1, 511] {
        let clean = block();
        split(&space, &cpu, range(BASE, MIB2));
        let table = space.lookup_rw(&cpu.enter(), Ipa::new(BASE)).unwrap().parent().unwrap();
        // SAFETY: (1) linked, and freed by nobody but this test's collapse.
        let slot = unsafe { machine.table_at(table.as_table(Level::L2).unwrap()) }.slot(page);
        let before = (&machine).load(slot);
        let hardware = || {
            // SAFETY: (1, 2) what hardware does to a leaf.
            machine.on_pe(1, || _ = unsafe { (&machine).swap(slot, before | DIRTY) });
        };
        let collapse = || collapse(&space, &cpu, range(BASE, MIB2));
        let (told, met) = machine.race_at(1, hardware, collapse);
        assert_eq!((told, met), (vec![Collapse::Made], true), "page {page}");
        assert_eq!(block(), clean | DIRTY, "page {page} was written, and the block is clean");
        // Clean again for the next round.
        let parent = space.lookup_rw(&cpu.enter(), Ipa::new(BASE)).unwrap().parent().unwrap();
        // SAFETY: (1) linked, and nobody frees it.
        let slot = unsafe { machine.table_at(parent.as_table(Level::L1).unwrap()) }.slot(0);
        // SAFETY: (1, 2) a test: no guest runs.
        _ = unsafe { (&machine).swap(slot, clean) };
    }
}

#[path = "resize/copy.rs"]
mod copy;

#[path = "resize/live.rs"]
mod live;

#[path = "resize/contiguous.rs"]
mod contiguous;
