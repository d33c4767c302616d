//! Runs of 16 on the same machine, whose TLBs may make one entry of a run and keep it, and whose hardware records
//! in one member what was written by way of another.

use mmu_oracle::walker::{Access, Choice, Outcome, Walk, store_by_held};
use stage2::space::{Contiguous, Notes, Release};
use stage2::{Flushed, Former};

use super::*;

const RUN: u64 = 16 * 0x1000;
/// Pages of two runs, and one of neither.
const PAGES: [u64; 6] =
    [BASE, BASE + 0x3000, BASE + 0xf000, BASE + RUN, BASE + RUN + 0x8000, BASE + 40 * 0x1000];

fn make(space: &ShakenSpace<'_>, cpu: &Cpu<'_>, at: IpaRange) -> usize {
    let mut claim = space.claim(at).unwrap();
    let (all, mut made) = (Batch::all_of(&claim), 0);
    let mut heard = |ipa, what| {
        assert!(space.translate(&cpu.enter(), ipa).is_some(), "{ipa}: {what:?}");
        made += usize::from(what == Contiguous::Made);
    };
    let done = space.make_contiguous(cpu, &mut claim, all, Level::L3, &mut heard);
    assert_eq!(done, Ok(Progress::Done));
    made
}

fn dissolve(space: &ShakenSpace<'_>, cpu: &Cpu<'_>, at: IpaRange) {
    let mut claim = space.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    assert_eq!(space.dissolve(cpu, &mut claim, all), Ok(Progress::Done));
}

/// Frames that are free from the moment on in which they come back.
struct Frees<'m>(&'m OracleMachine, Vec<(u64, bool)>);

impl Release for Frees<'_> {
    fn frame(&mut self, ipa: Ipa, former: &Former, _: &Flushed) {
        let (frame, bytes) = (former.pa().get(), former.level().slot_bytes());
        self.0.note(|pe| Event::FreeFrame { pe, frame, bytes });
        self.1.push((ipa.get(), former.written()));
    }
}

/// A VM of writable-clean pages under hardware that never stops; `software` is told which of them were written.
fn shaken(
    seed: u64,
    caps: Caps,
    software: impl FnOnce(&ShakenSpace<'_>, &Cpu<'_>, &dyn Fn() -> Vec<u64>),
) -> (OracleMachine, Counts) {
    let machine = machine(Bbm::Level0, 16);
    let counts;
    {
        let hardware = Mutex::new(Hardware::new(&machine, seed, &[1, 2], &PAGES));
        let geometry = geometry(Bbm::Level0, caps);
        let (epochs, vmids) = (Epochs::<3>::new(), vmids());
        let arch = Shaken(&machine, &hardware);
        let space = Space::new(geometry, &vmids, epochs.domain(), &machine, arch).unwrap();
        let cpu = epochs.join(0).unwrap();
        map(&space, &cpu, &Extent { coarsest: Level::L3, ..extent() });
        enter(&machine, &vmids, &space, 0..3);
        software(&space, &cpu, &|| {
            let mut hardware = hardware.lock().unwrap();
            hardware.stop();
            (1..3).for_each(|pe| machine.on_pe(pe, || (&machine).dsb(Dsb::Ish)));
            hardware.written().collect()
        });
        counts = hardware.lock().unwrap().counts();
    }
    machine.finish();
    (machine, counts)
}

fn is_clean(space: &ShakenSpace<'_>, cpu: &Cpu<'_>, ipa: u64) -> bool {
    let found = space.lookup(&cpu.enter(), Ipa::new(ipa)).unwrap();
    !writes_freely(found.descriptor.bits())
}

#[test]
fn runs_come_and_go_under_hardware_updates_and_no_write_is_lost() {
    let (mut by_held, mut again) = (0, 0);
    for caps in [Caps::empty(), Caps::TTL, Caps::TLBI_RANGE | Caps::TTL] {
        for seed in 1..=SEEDS {
            let (machine, counts) = shaken(seed, caps, |space, cpu, written| {
                let both = range(BASE, 2 * RUN);
                for _ in 0..6 {
                    assert_eq!(make(space, cpu, both), 2);
                    dissolve(space, cpu, range(BASE, RUN));
                    assert_eq!(make(space, cpu, both), 1);
                    dissolve(space, cpu, both);
                }
                let written = written();
                let lost = written.iter().filter(|ipa| is_clean(space, cpu, **ipa));
                assert_eq!(lost.count(), 0, "{caps:?}, seed {seed}: written, and clean");
                // With a run in it the table collapses as any other.
                make(space, cpu, both);
                assert_eq!(collapse(space, cpu, range(BASE, MIB2)), [Collapse::Made]);
            });
            let verdicts = machine.verdicts();
            assert!(verdicts.is_empty(), "{caps:?}, seed {seed}: {}", verdicts[0]);
            by_held += counts.by_held;
            again += counts.again;
        }
    }
    assert!(by_held > 100 && again > 10, "{by_held}, {again}");
}

/// While guests write: each frame comes back when nobody reaches it, and those that were written are told so.
#[test]
fn an_unmap_of_a_run_hands_on_what_any_member_has_recorded() {
    for seed in 1..=3 * SEEDS {
        let (machine, _) = shaken(seed, Caps::TTL, |space, cpu, written| {
            make(space, cpu, range(BASE, 2 * RUN));
            let at = range(BASE, 2 * RUN);
            let mut claim = space.claim(at).unwrap();
            let (mut from, mut frees) = (at.start(), Frees(space.memory(), Vec::new()));
            loop {
                let batch = Batch { from, slots: 5 };
                match space.unmap(cpu, &mut claim, batch, Notes::Keep, || {}, &mut frees).unwrap() {
                    Progress::Done => break,
                    Progress::Until(next) => from = next,
                }
            }
            assert_eq!(frees.1.len(), 32);
            let written = written();
            let lost = frees.1.iter().filter(|(ipa, told)| !told && written.contains(ipa));
            assert_eq!(lost.count(), 0, "seed {seed}: written, and released as clean");
        });
        let verdicts = machine.verdicts();
        assert!(verdicts.is_empty(), "seed {seed}: {}", verdicts[0]);
    }
}

/// A member is dirty, another was written by way of it: what hardware need not record \[RJKCXG\] is in all of the
/// run when it ends, however it ends.
#[test]
fn a_write_that_a_neighbour_excuses_is_not_lost() {
    for end in ["dissolved", "unmapped", "collapsed"] {
        let machine = machine(Bbm::Level0, 16);
        let geometry = geometry(Bbm::Level0, Caps::empty());
        let (epochs, vmids) = (Epochs::<3>::new(), vmids());
        let space = Space::new(geometry, &vmids, epochs.domain(), &machine, &machine).unwrap();
        let cpu = epochs.join(0).unwrap();
        map(&space, &cpu, &Extent { coarsest: Level::L3, ..extent() });
        enter(&machine, &vmids, &space, 1..2);
        let is_clean = |ipa| {
            let found = space.lookup(&cpu.enter(), Ipa::new(ipa)).unwrap();
            !writes_freely(found.descriptor.bits())
        };
        let (dirty, excused) = (BASE + 0x3000, BASE + 0x7000);
        let mut claim = space.claim(range(BASE, MIB2)).unwrap();
        let (all, batch) = (Batch::all_of(&claim), Batch { from: Ipa::new(BASE), slots: 16 });
        let made = space.make_contiguous(&cpu, &mut claim, batch, Level::L3, &mut |_, _| {});
        assert_eq!(made, Ok(Progress::Until(Ipa::new(BASE + RUN))));
        let walk = Walk::begin(&machine, 1, dirty, Access::Write).unwrap();
        assert!(matches!(walk.finish(Choice::Faithful), Outcome::Done(_)));
        assert!(store_by_held(&machine, 1, excused).is_some());
        assert!(!is_clean(dirty) && is_clean(excused), "one record for both");
        match end {
            "dissolved" => {
                let done = space.dissolve(&cpu, &mut claim, batch);
                assert_eq!(done, Ok(Progress::Until(Ipa::new(BASE + RUN))));
                assert!(!is_clean(excused), "dissolved, and the record is lost");
                assert!(is_clean(BASE + RUN), "of another run");
            }
            "unmapped" => {
                let mut frees = Frees(&machine, Vec::new());
                let done =
                    space.unmap(&cpu, &mut claim, batch, Notes::Keep, || {}, &mut frees).unwrap();
                assert_eq!(done, Progress::Until(Ipa::new(BASE + RUN)));
                assert!(frees.1.contains(&(excused, true)), "unmapped, and the record is lost");
            }
            _ => {
                let done = space.collapse(&cpu, &mut claim, all, Level::L2, || {}, &mut |_, _| {});
                assert_eq!(done, Ok(Progress::Done));
                assert!(!is_clean(excused), "collapsed, and the record is lost");
            }
        }
        assert!(machine.verdicts().is_empty(), "{}", machine.verdicts()[0]);
    }
}

/// A fault handler changes a leaf between look and break: what was broken is live again, as it was.
#[test]
fn a_leaf_that_changes_meanwhile_keeps_the_run_from_being_made() {
    let machine = OracleMachine::new(Machine { pes: 3, ..Machine::default() }, 16);
    let features =
        Features { caps: Caps::GRANULE_4K, bbm: Bbm::Level0, pa_bits: 40, errata: Errata::empty() };
    let geometry = Geometry::new(39, &features, HwUpdate::Off).unwrap();
    let (epochs, vmids) = (Epochs::<3>::new(), vmids());
    let space = Space::new(geometry, &vmids, epochs.domain(), &machine, &machine).unwrap();
    let cpu = epochs.join(0).unwrap();
    let attributes = Attributes::new(Prot::RWX, MemType::Normal);
    map(&space, &cpu, &Extent { attributes, coarsest: Level::L3, ..extent() });
    let table = space.lookup_rw(&cpu.enter(), Ipa::new(BASE)).unwrap().parent().unwrap();
    // SAFETY: (1) linked, and nobody frees it.
    let table = unsafe { machine.table_at(table.as_table(Level::L2).unwrap()) };
    let held = || table.slots().iter().map(|slot| (&machine).load(slot)).collect::<Vec<u64>>();
    let before = held();
    for page in [0, 5, 15] {
        let handler = || {
            machine.on_pe(1, || {
                // SAFETY: (1, 2) a test: nothing is ever reached through these tables.
                _ = unsafe { (&machine).swap(table.slot(page), before[page] & !(1 << 7)) };
                (&machine).dsb(Dsb::IshSt);
            });
        };
        let (mut claim, mut told) = (space.claim(range(BASE, RUN)).unwrap(), Vec::new());
        let all = Batch::all_of(&claim);
        let mut heard = |_, what| told.push(what);
        // Before the exchange of this very leaf, which it makes fail.
        let (done, met) = machine.race_at(page + 1, handler, || {
            space.make_contiguous(&cpu, &mut claim, all, Level::L3, &mut heard)
        });
        assert_eq!((done, met), (Ok(Progress::Done), true));
        // Of the first the others differ.
        let ipa = Ipa::new(BASE + if page == 0 { 1 } else { page as u64 } * 0x1000);
        assert_eq!(told, [Contiguous::Stays(Obstacle::Unlike { ipa })]);
        let mut wanted = before.clone();
        wanted[page] &= !(1 << 7);
        assert_eq!(held(), wanted, "each leaf is as it was");
        // SAFETY: (1, 2) as above.
        _ = unsafe { (&machine).swap(table.slot(page), before[page]) };
    }
    assert!(machine.verdicts().is_empty(), "{}", machine.verdicts()[0]);
}
