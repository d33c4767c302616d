//! Populating: hardware finds what was installed, and nothing is lost, whoever interferes and
//! whatever runs out.

use stage2::space::Tally;
use stage2::{
    Arch, Attributes, Caps, Descriptor, Epochs, Install, InstallError, Ipa, Level, Note, Owner,
    View,
};

use crate::rig::{PES, Pool, Rig, Vm, fault, map, ram};

const PAGE: u64 = 0x4000_0000;

/// Every IPA size: all start levels and all sizes of a root. The ends of the address space and each
/// index of the root are told apart.
#[test]
fn hardware_finds_what_was_installed_and_nothing_else() {
    for ipa_bits in 25..=48 {
        let rig = Rig::new(ipa_bits, Caps::empty());
        let vm = rig.vm();
        rig.enter(&vm, 1);
        let end = 1u64 << ipa_bits;
        let mut ipas = vec![0, 4096, end - 4096];
        ipas.extend((13..ipa_bits).map(|bit| 1 << bit));
        ipas.sort_unstable();
        ipas.dedup();
        let mut pool = Pool::new(1, Level::L3, ipas.len() as u64);
        let frames: Vec<u64> =
            ipas.iter().map(|ipa| map(&rig, &vm, ipa | 0x123, Level::L3, &mut pool)).collect();
        assert_eq!(pool.taken().len(), ipas.len(), "{ipa_bits} bits: one frame, two addresses");
        let cpu = rig.epochs.join(0).unwrap();
        for (ipa, frame) in ipas.iter().zip(&frames) {
            let pa = rig.translate(1, ipa | 0xabc).map(|found| found.pa);
            assert_eq!(
                pa,
                Some(frame | 0xabc),
                "{ipa_bits} bits: {ipa:#x} is not where it was put"
            );
            let lookup = vm.lookup(&cpu.enter(), Ipa::new(*ipa)).expect("inside the IPA size");
            let View::Leaf(leaf) = lookup.view() else {
                panic!("lookup finds no leaf: {lookup:?}")
            };
            assert_eq!(leaf.pa().get(), *frame, "lookup and hardware disagree at {ipa:#x}");
        }
        for hole in ipas.iter().map(|ipa| ipa ^ 0x2000).filter(|hole| !ipas.contains(hole)) {
            assert_eq!(
                rig.translate(1, hole),
                None,
                "{ipa_bits} bits: {hole:#x} was not installed"
            );
        }
        assert_eq!(rig.translate(1, end), None, "beyond the IPA size");
        assert_eq!(rig.live(), rig.reachable(&vm), "{ipa_bits} bits: a table is lost");
        rig.assert_sound(&ipa_bits);
    }
}

#[test]
fn blocks_stand_where_hardware_looks_for_them() {
    for level in [Level::L1, Level::L2, Level::L3] {
        let rig = Rig::new(40, Caps::empty());
        let vm = rig.vm();
        rig.enter(&vm, 1);
        let mut pool = Pool::new(1, level, 1);
        let inside = 0x1234_5678 & (level.slot_bytes() - 1);
        let frame = map(&rig, &vm, PAGE + inside, level, &mut pool);
        let pa = rig.translate(1, PAGE + inside).map(|found| (found.pa, found.level));
        assert_eq!(pa, Some((frame + inside, level as u8)), "the block is not where it was put");
        let cpu = rig.epochs.join(0).unwrap();
        let found = vm.translate(&cpu.enter(), Ipa::new(PAGE + inside));
        let found = found.map(|found| (found.pa.get(), found.leaf.level()));
        assert_eq!(found, Some((frame + inside, level)), "EL2 and hardware disagree");
        drop(cpu);
        let again = fault(&rig, &vm, 1, PAGE, level, &mut pool);
        let Ok(Install::Present(leaf)) = again.0 else { panic!("not present: {again:?}") };
        assert_eq!((leaf.pa().get(), pool.taken().len()), (frame, 1), "a frame is lost");
        // A page inside of the block, or beside the page, is no hole.
        let pages = fault(&rig, &vm, 1, PAGE, Level::L3, &mut pool);
        assert!(matches!(pages.0, Ok(Install::Present(_))), "the block is there: {pages:?}");
        rig.assert_sound(&level);
    }
}

/// The tables run out after each number of them; with more at hand the same fault succeeds.
#[test]
fn without_tables_an_install_leaves_what_is_useful_and_loses_nothing() {
    for ipa_bits in [32, 40, 48] {
        for count in 0..4 {
            let rig = Rig::new(ipa_bits, Caps::empty());
            let vm = rig.vm();
            rig.enter(&vm, 1);
            let root = rig.live();
            let mut pool = Pool::new(1, Level::L3, 1);
            rig.machine.limit_allocations(count);
            let (result, tally) = fault(&rig, &vm, 0, PAGE, Level::L3, &mut pool);
            let linked = tally.tables as usize;
            assert_eq!(rig.live(), rig.reachable(&vm), "{ipa_bits} {count}: a table is lost");
            assert_eq!(rig.live(), root + linked, "{ipa_bits} {count}: tables are counted");
            if result.is_err() {
                assert_eq!(result, Err(InstallError::OutOfTables));
                assert_eq!((linked, pool.taken().len()), (count, 0), "what was at hand is used");
            }
            rig.machine.limit_allocations(9);
            let (again, _) = fault(&rig, &vm, 0, PAGE, Level::L3, &mut pool);
            assert!(again.is_ok(), "with tables at hand the fault succeeds: {again:?}");
            assert_eq!(rig.live(), rig.reachable(&vm), "{ipa_bits} {count}: a table is lost");
            rig.assert_sound(&(ipa_bits, count));
        }
    }
}

#[test]
fn without_frames_the_tables_are_published_all_the_same() {
    let rig = Rig::new(40, Caps::empty());
    let vm = rig.vm();
    rig.enter(&vm, 1);
    let mut none = Pool::new(1, Level::L3, 0);
    let (result, tally) = fault(&rig, &vm, 0, PAGE, Level::L3, &mut none);
    assert_eq!(result, Err(InstallError::OutOfFrames));
    assert_eq!(rig.live(), rig.reachable(&vm), "a table is lost");
    assert_eq!((tally.tables, tally.installed), (2, 0), "what was done is counted");
    rig.assert_sound(&"out of frames");
}

/// What a competing PE does in the middle of an install.
type Rival<'a> = &'a (dyn Fn(&Rig, &Vm<'_>, &mut Pool) + Sync);

/// Runs an install at `PAGE` with `rival` before each of its compare-exchanges in turn; whatever
/// happens, every page is in one pair of hands afterwards.
fn against(what: &str, rival: Rival<'_>, check: impl Fn(&Rig, &Vm<'_>, &Run)) -> usize {
    for n in 1.. {
        let rig = Rig::new(40, Caps::empty());
        let vm = rig.vm();
        rig.enter(&vm, 0);
        rig.enter(&vm, 1);
        let (mut mine, mut theirs) = (Pool::new(1, Level::L3, 2), Pool::new(2, Level::L3, 2));
        let race = || rig.machine.on_pe(1, || rival(&rig, &vm, &mut theirs));
        let install = || fault(&rig, &vm, 0, PAGE, Level::L3, &mut mine);
        let ((result, tally), met) = rig.machine.race_at(n, race, install);
        if !met {
            return n - 1;
        }
        let pa = rig.translate(1, PAGE).map(|found| found.pa);
        let used: Vec<u64> = mine.taken().iter().copied().collect();
        assert!(
            used.len() <= 1 && used.first().is_none_or(|mine| pa == Some(*mine)),
            "{what} {n}: a frame is lost: {used:x?} taken, {pa:x?} mapped"
        );
        assert_eq!(rig.live(), rig.reachable(&vm), "{what} {n}: a table is lost");
        match result {
            Ok(Install::Installed(frame)) => {
                assert_eq!(pa, Some(frame.get()), "{what} {n}: it says installed, but");
            }
            Ok(Install::Present(leaf)) => {
                assert_eq!(pa, Some(leaf.pa().get()), "{what} {n}: it says present, but");
            }
            Err(_) => assert!(used.is_empty(), "{what} {n}: it failed and keeps a frame"),
        }
        assert_eq!(tally.installed as usize, used.len(), "{what} {n}: installs are counted");
        check(&rig, &vm, &Run { n, result, tally, theirs: theirs.taken().first().copied() });
        rig.assert_sound(&(what, n));
    }
    unreachable!("an install has an end")
}

struct Run {
    n: usize,
    result: Result<Install, InstallError>,
    tally: Tally,
    /// The rival's frame.
    theirs: Option<u64>,
}

#[test]
fn a_rival_at_the_same_page_wins_it_and_nothing_is_lost() {
    let rival: Rival<'_> = &|rig, vm, pool| {
        let (result, _) = fault(rig, vm, 1, PAGE, Level::L3, pool);
        assert!(result.is_ok(), "the rival installs: {result:?}");
    };
    let races = against("same page", rival, |rig, _, run| {
        assert!(matches!(run.result, Ok(Install::Present(_))), "the loser: {:?}", run.result);
        assert_eq!(rig.translate(0, PAGE).map(|found| found.pa), run.theirs, "the winner's stays");
        let lost = (run.tally.lost_races + run.tally.lost_tables) as usize;
        assert_eq!(lost, 1, "one race was lost: {:?}", run.tally);
    });
    assert_eq!(races, 3, "two tables and a page");
}

#[test]
fn a_rival_at_the_next_page_shares_the_tables() {
    let rival: Rival<'_> = &|rig, vm, pool| {
        let (result, _) = fault(rig, vm, 1, PAGE + 4096, Level::L3, pool);
        assert!(result.is_ok(), "the rival installs: {result:?}");
    };
    let races = against("next page", rival, |rig, _, run| {
        assert!(matches!(run.result, Ok(Install::Installed(_))), "{:?}", run.result);
        let next = rig.translate(0, PAGE + 4096).map(|found| found.pa);
        assert_eq!(next, run.theirs, "the rival's page stays");
        assert_eq!(run.tally.lost_tables, u64::from(run.n < 3), "tables lost are counted");
    });
    assert_eq!(races, 3, "two tables and a page");
}

/// A 2 MiB block appears where a table was to go.
#[test]
fn a_rival_with_a_block_wins_the_page_with_it() {
    let rival: Rival<'_> = &|rig, vm, _| {
        let mut blocks = Pool::new(3, Level::L2, 1);
        let _ = fault(rig, vm, 1, PAGE, Level::L2, &mut blocks);
    };
    against("block", rival, |_, _, run| {
        let block = matches!(run.result, Ok(Install::Present(leaf)) if leaf.level() == Level::L2);
        assert_eq!(block, run.n < 3, "{}: {:?}", run.n, run.result);
    });
}

/// The invalid states that are not Empty belong to somebody: an install overwrites none of them.
#[test]
fn an_install_overwrites_no_state_but_empty() {
    let note = Note::new(77).unwrap();
    let busy = Descriptor::table(Level::L2, stage2::Pa::new(0x9000)).unwrap().to_busy().unwrap();
    let page = Descriptor::from_bits(0x0100_0000_0000_97ff);
    let drain = page.to_drain(Level::L3).unwrap();
    for held in [drain, Descriptor::DEAD, Descriptor::note(note), busy] {
        let rival: Rival<'_> = &|rig, vm, _| {
            let slot = rig.slot(vm, PAGE);
            // SAFETY: (1) Empty, and nothing is pointed to.
            let _ = unsafe { (&rig.machine).compare_exchange(slot, 0, held.bits()) };
        };
        against("somebody's state", rival, |rig, vm, run| {
            let stands = rig.slot(vm, PAGE).load(&&rig.machine);
            assert_eq!(stands, held, "{}: the state was overwritten", run.n);
            let refused = match run.result {
                Err(InstallError::Note { note: seen, .. }) => seen == note,
                Err(InstallError::Retry { seen, .. } | InstallError::Occupied { seen, .. }) => {
                    seen == held
                }
                _ => false,
            };
            assert!(refused, "{}: {:?}", run.n, run.result);
            let is_note = held == Descriptor::note(note);
            let noted = matches!(run.result, Err(InstallError::Note { .. }));
            let seen = (run.n, run.result);
            assert_eq!(noted, is_note, "{seen:?}: a note is told from what passes");
            let pass = matches!(run.result, Err(InstallError::Retry { .. }));
            assert!(pass != is_note || run.n < 3, "what passes is retried: {:?}", run.result);
        });
        // The same state, met by the load before any compare-exchange.
        let rig = Rig::new(40, Caps::empty());
        let vm = rig.vm();
        rival(&rig, &vm, &mut Pool::new(2, Level::L3, 0));
        let mut pool = Pool::new(1, Level::L3, 1);
        let (result, tally) = fault(&rig, &vm, 0, PAGE, Level::L3, &mut pool);
        assert!(result.is_err(), "{result:?}");
        assert_eq!((pool.taken().len(), tally), (0, Tally::default()), "nothing was touched");
        assert_eq!(rig.live(), rig.reachable(&vm), "a table is lost");
    }
}

/// A guard of other epochs protects nothing here, and an address beyond the VM has no slot.
#[test]
fn what_must_be_refused_changes_nothing() {
    let rig = Rig::new(40, Caps::empty());
    let vm = rig.vm();
    rig.enter(&vm, 1);
    let (others, mut pool) = (Epochs::<PES>::new(), Pool::new(1, Level::L3, 1));
    let (stranger, cpu) = (others.join(0).unwrap(), rig.epochs.join(0).unwrap());
    let mapping = vm.mapping(Level::L3, &ram(), Owner::Vm).unwrap();
    let mut tally = Tally::default();
    let foreign = vm.install(&stranger.enter(), Ipa::new(PAGE), &mapping, &mut pool, &mut tally);
    assert_eq!(foreign, Err(InstallError::ForeignGuard), "a foreign guard was accepted");
    assert_eq!(vm.lookup(&stranger.enter(), Ipa::new(PAGE)), None, "a foreign guard may look");
    let ipa = Ipa::new(1 << 40 | PAGE);
    let beyond = vm.install(&cpu.enter(), ipa, &mapping, &mut pool, &mut tally);
    assert_eq!(beyond, Err(InstallError::BeyondIpaSize { ipa, bits: 40 }), "it has no slot");
    assert_eq!(vm.lookup(&cpu.enter(), ipa), None, "beyond the IPA size");
    assert_eq!(rig.translate(1, PAGE), None, "an alias of the address was installed");
    assert_eq!((tally, pool.taken().len()), (Tally::default(), 0), "nothing was touched");
    let member = Attributes { contiguous: true, ..ram() };
    assert!(vm.mapping(Level::L3, &member, Owner::Vm).is_err(), "one member of a run");
    let low = Rig::new(32, Caps::empty());
    let above = low.vm().mapping(Level::L1, &ram(), Owner::Vm);
    assert!(above.is_err(), "no leaf is above the root: its walks start at level 2");
    rig.assert_sound(&"refusals");
}
