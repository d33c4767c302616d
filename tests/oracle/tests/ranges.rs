//! The operations on ranges, on the oracle's machine: whole programs of them, alone and raced.

use std::sync::atomic::{AtomicBool, Ordering};

use mmu_oracle::{Defect, Event, Machine, OracleMachine};
use stage2::addr::PAGE_SIZE;
use stage2::arch::Dsb;
use stage2::epoch::Cpu;
use stage2::space::{Batch, Extent, Frames, Notes, Progress, Release};
use stage2::vmid::Vmids;
use stage2::{
    Arch, Attributes, Bbm, Caps, Epochs, Errata, Features, Flushed, Former, Geometry, HwUpdate,
    Install, InstallError, Ipa, IpaRange, Level, MemType, Note, Owner, Pa, Prot, Space, Tally,
    Vmid,
};

const CPUS: usize = 3;
const VMID: u16 = 3;

type OracleSpace<'m> = Space<'m, &'m OracleMachine, &'m OracleMachine>;

fn geometry(caps: Caps) -> Geometry {
    let features = Features {
        caps: caps | Caps::GRANULE_4K,
        bbm: Bbm::Level0,
        pa_bits: 40,
        errata: Errata::empty(),
    };
    Geometry::new(39, &features, HwUpdate::Off).unwrap()
}

fn machine(pages: usize) -> OracleMachine {
    OracleMachine::new(Machine { pes: CPUS, ..Machine::default() }, pages)
}

fn ram(pa: u64, coarsest: Level) -> Extent {
    let attributes = Attributes::new(Prot::RWX, MemType::Normal);
    Extent { pa: Pa::new(pa), attributes, owner: Owner::Vm, coarsest }
}

fn range(start: u64, bytes: u64) -> IpaRange {
    IpaRange::new(Ipa::new(start), bytes).unwrap()
}

/// The machine's only VMID.
fn vmids() -> Vmids<CPUS> {
    Vmids::only(Vmid::new(VMID, 8).unwrap())
}

/// PE `pe` runs the VM from now on.
fn enter_guest(machine: &OracleMachine, vmids: &Vmids<CPUS>, space: &OracleSpace<'_>, pe: usize) {
    machine.on_pe(pe, || {
        let mut cpu = vmids.join(pe).unwrap();
        // SAFETY: (1, 2) the guest of a PE is who was entered last.
        core::mem::forget(unsafe { space.enter(&mut cpu, 0) }.unwrap());
    });
}

/// PE `pe` runs another VM, under a VMID that is not of these.
fn run_another(machine: &OracleMachine, pe: usize) {
    machine.on_pe(pe, || {
        (&machine).dsb(Dsb::Ish);
        // SAFETY: (1) the value is that of the VM that runs; (2) the DSB above.
        unsafe { (&machine).set_vttbr(9 << 48 | 0x5000_0000) };
        (&machine).isb();
    });
}

/// Tells the machine of each frame that comes back, and counts the bytes.
struct Freed<'m>(&'m OracleMachine, Vec<u64>);

impl Release for Freed<'_> {
    fn frame(&mut self, _: Ipa, former: &Former, _: &Flushed) {
        let (frame, bytes) = (former.pa().get(), former.level().slot_bytes());
        self.0.note(|pe| Event::FreeFrame { pe, frame, bytes });
        self.1.extend((0..bytes).step_by(PAGE_SIZE as usize).map(|page| frame + page));
    }
}

fn map(space: &OracleSpace<'_>, cpu: &Cpu<'_>, at: IpaRange, extent: &Extent) {
    let mut claim = space.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    // SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
    let mapped = unsafe { space.map(cpu, &mut claim, all, extent) };
    assert_eq!(mapped, Ok(Progress::Done));
    space.memory().note(|pe| Event::Published { pe });
}

fn unmap(
    space: &OracleSpace<'_>,
    cpu: &Cpu<'_>,
    at: IpaRange,
    budget: usize,
    freed: &mut Freed<'_>,
) {
    let mut claim = space.claim(at).unwrap();
    let mut from = at.start();
    while let Progress::Until(next) = space
        .unmap(
            cpu,
            &mut claim,
            Batch { from, slots: budget },
            Notes::Remove,
            std::thread::yield_now,
            freed,
        )
        .unwrap()
    {
        from = next;
    }
}

/// Maps, unmaps by pieces, notes, maps anew over the same addresses, and destroys; on PE 0, while
/// the others may hold whatever the architecture allows.
#[test]
fn a_life_of_a_vm_is_sound_on_every_machine() {
    for caps in [Caps::empty(), Caps::TTL, Caps::TLBI_RANGE, Caps::TLBI_RANGE | Caps::TTL] {
        for (budget, elsewhere) in [(3, false), (600, true), (usize::MAX, false)] {
            let machine = machine(64);
            let epochs = Epochs::<CPUS>::new();
            let vmids = vmids();
            let space =
                Space::new(geometry(caps), &vmids, epochs.domain(), &machine, &machine).unwrap();
            (0..CPUS).for_each(|pe| enter_guest(&machine, &vmids, &space, pe));
            if elsewhere {
                // PE 0 has run another VM since.
                run_another(&machine, 0);
            }
            let cpu = epochs.join(0).unwrap();
            let mut freed = Freed(&machine, Vec::new());
            map(&space, &cpu, range(0x1f_e000, 0x3000), &ram(0x8000_0000, Level::L3));
            map(&space, &cpu, range(0x40_0000, 4 << 20), &ram(0x8040_0000, Level::L2));
            map(&space, &cpu, range(1 << 30, 0x5000), &ram(0x9000_0000, Level::L3));
            unmap(&space, &cpu, range(0x1f_f000, 0x1000), budget, &mut freed);
            unmap(&space, &cpu, range(0x20_0000, 4 << 20), budget, &mut freed);
            {
                let mut claim = space.claim(range(0x20_0000, 4 << 20)).unwrap();
                let all = Batch::all_of(&claim);
                let note = Note::new(1).unwrap();
                let noted = space.annotate(&cpu, &mut claim, all, note);
                assert_eq!(noted, Ok(Progress::Done));
                let gone = space.deannotate(&cpu, &mut claim, all, |_, _, _| {});
                assert_eq!(gone, Ok(Progress::Done));
            }
            // Other memory, other sizes, at the same addresses.
            map(&space, &cpu, range(0x20_0000, 0x20_1000), &ram(0xa000_1000, Level::L3));
            unmap(&space, &cpu, range(0x20_0000, 0x20_1000), budget, &mut freed);
            map(&space, &cpu, range(0x20_0000, 4 << 20), &ram(0xb000_0000, Level::L2));
            // A table in which nothing is mapped any more is given back, too.
            map(&space, &cpu, range(3 << 30, 0x1000), &ram(0xc000_0000, Level::L3));
            unmap(&space, &cpu, range(3 << 30, 0x1000), budget, &mut freed);
            unmap(&space, &cpu, range(3 << 30, 1 << 30), usize::MAX, &mut freed);
            // Far apart, for one flush.
            map(&space, &cpu, range(5 << 30, 0x1000), &ram(0xd000_0000, Level::L3));
            map(&space, &cpu, range(9 << 30, 0x1000), &ram(0xe000_0000, Level::L3));
            // What a PE runs is not destroyed under it.
            (0..CPUS).for_each(|pe| run_another(&machine, pe));
            // SAFETY: (1) every PE was given another value.
            unsafe { space.destroy(&cpu, || {}, &mut freed) }.unwrap();
            machine.note(|pe| Event::ReuseVmid { pe, vmid: VMID });
            let verdicts = machine.verdicts();
            assert!(verdicts.is_empty(), "{caps:?} {budget} {elsewhere}: {}", verdicts[0]);
            assert_eq!(freed.1.len(), 3 + 1024 + 5 + 513 + 1024 + 3);
        }
    }
}

struct Own(u64);

// SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
unsafe impl Frames for Own {
    fn take(&mut self) -> Option<Pa> {
        self.0 += PAGE_SIZE;
        Some(Pa::new(self.0))
    }

    fn give_back(&mut self, _: Pa) {
        self.0 -= PAGE_SIZE;
    }
}

/// Two PEs install in fault handlers while a third unmaps the same range again and again.
#[test]
fn installs_during_unmaps_are_sound_and_nothing_is_lost() {
    const ROUNDS: usize = 40;
    let machine = machine(256);
    let epochs = Epochs::<CPUS>::new();
    let vmids = vmids();
    let caps = Caps::TLBI_RANGE | Caps::TTL;
    let space = Space::new(geometry(caps), &vmids, epochs.domain(), &machine, &machine).unwrap();
    (0..CPUS).for_each(|pe| enter_guest(&machine, &vmids, &space, pe));
    let (stop, whole) = (AtomicBool::new(false), range(0, 1 << 30));
    let attributes = Attributes::new(Prot::RWX, MemType::Normal);
    let mapping = space.mapping(Level::L3, &attributes, Owner::Vm).unwrap();
    let install = |pe: usize| {
        machine.on_pe(pe, || {
            let cpu = epochs.join(pe).unwrap();
            let (mut frames, mut tally, mut met) = (Own((pe as u64) << 36), Tally::default(), 0);
            let mut installed = Vec::new();
            for n in 0u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let page = (n * 7 + pe as u64) % 24;
                let ipa = Ipa::new((page % 3) << 21 | (page / 3) << 12);
                match space.install(&cpu.enter(), ipa, &mapping, &mut frames, &mut tally) {
                    Ok(Install::Installed(pa)) => installed.push(pa.get()),
                    Ok(Install::Present(_)) => std::thread::yield_now(),
                    Err(InstallError::Retry { .. }) => met += 1,
                    Err(other) => panic!("{other}"),
                }
            }
            (installed, met)
        })
    };
    let (mut installed, met, freed) = std::thread::scope(|scope| {
        let threads = [1, 2].map(|pe| scope.spawn(move || install(pe)));
        let cpu = epochs.join(0).unwrap();
        let mut freed = Freed(&machine, Vec::new());
        for _ in 0..ROUNDS {
            unmap(&space, &cpu, whole, usize::MAX, &mut freed);
        }
        stop.store(true, Ordering::Relaxed);
        let results = threads.map(|thread| thread.join().unwrap());
        unmap(&space, &cpu, whole, usize::MAX, &mut freed);
        let met: usize = results.iter().map(|(_, met)| met).sum();
        (results.map(|(installed, _)| installed).concat(), met, freed.1)
    });
    let verdicts = machine.verdicts();
    assert!(verdicts.is_empty(), "{}", verdicts[0]);
    let mut freed = freed;
    installed.sort_unstable();
    freed.sort_unstable();
    assert_eq!(installed, freed, "each frame came back exactly once");
    println!("{} installs, {met} met a slot in transition", installed.len());
}

/// The order of `give_back` is needed: a table freed without it is found by the model.
#[test]
fn the_model_sees_a_table_that_is_freed_without_its_flush() {
    let machine = machine(16);
    let epochs = Epochs::<CPUS>::new();
    let vmids = vmids();
    let space =
        Space::new(geometry(Caps::empty()), &vmids, epochs.domain(), &machine, &machine).unwrap();
    (0..CPUS).for_each(|pe| enter_guest(&machine, &vmids, &space, pe));
    let cpu = epochs.join(0).unwrap();
    map(&space, &cpu, range(0, 0x3000), &ram(0x8000_0000, Level::L3));
    unmap(&space, &cpu, range(0, 1 << 30), usize::MAX, &mut Freed(&machine, Vec::new()));
    assert!(machine.verdicts().is_empty());
    let trace = machine.trace();
    let freed = trace.iter().position(|e| matches!(e, Event::FreeTable { .. })).unwrap();
    let mut found = std::collections::BTreeSet::new();
    for left_out in 0..trace.len() {
        if !matches!(
            trace[left_out],
            Event::Tlbi { .. } | Event::Dsb { kind: mmu_oracle::event::Dsb::Ish, .. }
        ) {
            continue;
        }
        let setup = Machine { pes: CPUS, ..Machine::default() };
        let mut model = mmu_oracle::Model::new(setup);
        let events = trace.iter().enumerate().filter(|(at, _)| *at != left_out);
        events.for_each(|(_, event)| model.apply(event));
        found.extend(model.verdicts().iter().map(|verdict| verdict.defect));
    }
    assert!(freed > 0 && found.contains(&Defect::TableStillWalked), "{found:?}");
    assert!(found.contains(&Defect::FrameStillReachable), "{found:?}");
}

#[test]
fn a_page_and_a_block_in_one_batch_share_no_hint() {
    for caps in [Caps::TTL, Caps::TLBI_RANGE | Caps::TTL] {
        let (machine, epochs) = (machine(8), Epochs::<CPUS>::new());
        let vmids = vmids();
        let space =
            Space::new(geometry(caps), &vmids, epochs.domain(), &machine, &machine).unwrap();
        (0..CPUS).for_each(|pe| enter_guest(&machine, &vmids, &space, pe));
        let cpu = epochs.join(0).unwrap();
        map(&space, &cpu, range(0x1f_f000, 0x1000), &ram(0x8000_0000, Level::L3));
        map(&space, &cpu, range(0x20_0000, 2 << 20), &ram(0x9000_0000, Level::L2));
        let mut freed = Freed(&machine, Vec::new());
        unmap(&space, &cpu, range(0x1f_f000, (2 << 20) + 0x1000), usize::MAX, &mut freed);
        assert_eq!(freed.1.len(), 513);
        assert_eq!(machine.verdicts(), []);
    }
}

/// Two tables of pages, side by side, and what a test does with the space.
fn with_two_tables(test: impl FnOnce(&OracleSpace<'_>, &Cpu<'_>)) {
    let (machine, epochs) = (machine(8), Epochs::<CPUS>::new());
    let vmids = vmids();
    let space =
        Space::new(geometry(Caps::empty()), &vmids, epochs.domain(), &machine, &machine).unwrap();
    let cpu = epochs.join(0).unwrap();
    map(&space, &cpu, range(0x1f_f000, 0x2000), &ram(0x8000_0000, Level::L3));
    test(&space, &cpu);
}

#[test]
fn a_locked_table_has_its_own_slots_and_no_others() {
    with_two_tables(|space, cpu| {
        let guard = cpu.enter();
        let locked = space.lookup_rw(&guard, Ipa::new(0x20_0000)).unwrap().lock().unwrap();
        for (ipa, inside) in
            [(0x1f_f000, false), (0x20_0000, true), (0x3f_f000, true), (0x40_0000, false)]
        {
            let slot = locked.slot(Ipa::new(ipa)).map(|slot| slot.load(space.arch()));
            assert_eq!(slot, locked.get(Ipa::new(ipa)).map(|found| found.descriptor));
            assert_eq!(slot.is_some(), inside, "{ipa:#x}");
        }
        assert!(locked.slot(Ipa::new(0x20_0000)).unwrap().load(space.arch()).is_valid());
    });
}

#[test]
fn addresses_beyond_the_ipa_size_have_no_table() {
    with_two_tables(|space, cpu| {
        let guard = cpu.enter();
        for beyond in [1 << 39, u64::MAX] {
            assert!(space.lookup_rw(&guard, Ipa::new(beyond)).is_none(), "a table for {beyond:#x}");
            assert!(space.lookup_ro(&guard, Ipa::new(beyond)).is_none(), "a table for {beyond:#x}");
        }
        assert!(space.lookup_ro(&guard, Ipa::new((1 << 39) - 1)).is_some());
    });
}

#[test]
#[cfg(debug_assertions)]
fn sibling_locks_out_of_order_are_caught() {
    let caught = std::panic::catch_unwind(|| {
        with_two_tables(|space, cpu| {
            let guard = cpu.enter();
            let table = |ipa| space.lookup_rw(&guard, Ipa::new(ipa)).unwrap();
            let _high = table(0x20_0000).lock().unwrap();
            drop(table(0x1f_f000).lock());
        });
    });
    let said = caught.expect_err("two PEs that do this may wait for each other for ever");
    let said = said.downcast_ref::<&str>().expect("a text");
    assert!(said.contains("siblings by IPA"), "{said}");
}

#[test]
fn sibling_locks_in_order_are_taken() {
    with_two_tables(|space, cpu| {
        let guard = cpu.enter();
        let table = |ipa| space.lookup_rw(&guard, Ipa::new(ipa)).unwrap();
        let low = table(0x1f_f000).lock().unwrap();
        let high = table(0x20_0000).lock().unwrap();
        drop((low, high));
        drop(guard);
        assert!(cpu.is_quiescent(), "locks and guard are given back");
    });
}

/// A PE drains a page and is seen no more, before any barrier; another claims the range.
#[test]
fn what_another_pe_gave_up_is_finished() {
    let (machine, epochs) = (machine(8), Epochs::<CPUS>::new());
    let vmids = vmids();
    let space =
        Space::new(geometry(Caps::empty()), &vmids, epochs.domain(), &machine, &machine).unwrap();
    (0..CPUS).for_each(|pe| enter_guest(&machine, &vmids, &space, pe));
    let cpu = epochs.join(0).unwrap();
    map(&space, &cpu, range(0x1000, 0x2000), &ram(0x8000_0000, Level::L3));
    {
        let guard = cpu.enter();
        let locked = space.lookup_rw(&guard, Ipa::new(0x1000)).unwrap().lock().unwrap();
        let slot = locked.slot(Ipa::new(0x1000)).unwrap();
        // SAFETY: (1) the table's lock is held.
        let drained = unsafe { slot.clear(space.arch(), Level::L3) };
        assert!(drained.is_some(), "it was live");
    }
    machine.on_pe(1, || {
        let cpu = epochs.join(1).unwrap();
        let mut freed = Freed(&machine, Vec::new());
        unmap(&space, &cpu, range(0x1000, 0x1000), usize::MAX, &mut freed);
        assert_eq!(freed.1, [0x8000_0000]);
    });
    assert_eq!(machine.verdicts(), []);
}
