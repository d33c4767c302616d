//! What is not the VM's, scratch above all, is left as it is by everything but what takes it away, and has no records.

use super::dirty::Maps;
use super::prot::{ACCESSED, CONTIGUOUS, ENGINES, GIB, MIB2, page, vm_with};
use super::scratch::{PA, scratch};
use super::unmap::{Vm, range};
use super::*;
use crate::descriptor::Change;
use crate::space::{
    Batch, Census, Collapse, Contiguous, Extent, IdlePages, LogBlocks, Notes, Obstacle, Progress,
    Relax, RelaxError, Relaxed, Stopped, Taken,
};

const UPDATES: [HwUpdate; 3] = [HwUpdate::Off, HwUpdate::Access, HwUpdate::AccessAndDirty];
/// Where scratch is among 1024 pages: at ends, in groups, next to each other.
const WILD: [u64; 7] = [0, 9, 10, 63, 511, 512, 1023];

/// 1024 pages, and scratch among them.
fn vm_among<'t>(hw_update: HwUpdate, pages: &'t Pages, epochs: &'t Epochs<1>) -> Vm<'t> {
    let vm = vm_with(hw_update, pages, epochs);
    vm.lay(range(GIB, 2 * MIB2), Level::L3);
    let scratch = scratch(&vm.space).descriptor();
    WILD.iter().for_each(|number| vm.put(page(*number), scratch));
    let _ = vm.space.arch.take_log();
    vm
}

#[track_caller]
fn stays(vm: &Vm<'_>, what: &dyn core::fmt::Debug) {
    let scratch = scratch(&vm.space).descriptor().bits();
    for number in WILD {
        assert_eq!(
            vm.held(page(number)),
            scratch,
            "{what:?}: scratch at page {number} has changed"
        );
    }
}

/// Scratch alone, so that nothing else is changed or flushed.
fn alone<'t>(pages: &'t Pages, epochs: &'t Epochs<1>) -> Vm<'t> {
    let vm = vm_with(HwUpdate::AccessAndDirty, pages, epochs);
    let mut tally = Tally::default();
    (0..1024).for_each(|number| _ = vm.reach(page(number), &mut tally).unwrap());
    vm.space.credit(&tally);
    vm.space.credit_scratch(1024);
    let _ = vm.space.arch.take_log();
    vm
}

#[test]
fn a_change_of_protections_passes_over_scratch() {
    let prots = [Prot::empty(), Prot::RO, Prot::RX, Prot::RW, Prot::RWX];
    for (hw_update, engine) in UPDATES.into_iter().flat_map(|hw| ENGINES.map(|e| (hw, e))) {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_among(hw_update, &pages, &epochs);
        vm.space.pin_engine(Some(engine));
        let mut claim = vm.space.claim(range(GIB, 2 * MIB2)).unwrap();
        let all = Batch::all_of(&claim);
        for prot in prots {
            let done = vm.space.protect(&vm.cpu, &mut claim, all, prot, Relax::Everywhere);
            assert_eq!(done, Ok(Progress::Done));
            stays(&vm, &prot);
            let other = vm.leaf(page(1)).attributes(vm.space.encoding()).unwrap();
            assert_eq!(other.prot(), prot, "the page beside it is changed");
        }
        let _ = vm.space.write_protect(&vm.cpu, &mut claim, all).unwrap();
        stays(&vm, &"write_protect");
        let guard = vm.cpu.enter();
        for what in [Taken::Dirty, Taken::Accessed] {
            let mut open =
                vm.space.modify_prot(&guard, &mut claim, all, Relax::Everywhere).unwrap();
            open.take(what, |first, _, slots| {
                let wild = |number: &u64| page(*number) & !0x3_ffff == first.get();
                let theirs = WILD.iter().filter(|number| wild(number));
                theirs.for_each(|number| assert_eq!(slots >> (number % 64) & 1, 0, "{number}"));
            })
            .unwrap();
            let _ = open.finish();
            stays(&vm, &what);
        }
    }
}

/// Neither one by one nor all together: it cannot even be asked for.
#[test]
fn a_transaction_shows_no_scratch() {
    for engine in ENGINES {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_among(HwUpdate::AccessAndDirty, &pages, &epochs);
        vm.space.pin_engine(Some(engine));
        // In a run, as if somebody had mapped it so.
        (32..48).for_each(|number| vm.alter(page(number), 0, 1 << 57 | CONTIGUOUS));
        let run: Vec<u64> = (32..48).map(|number| vm.held(page(number))).collect();
        let mut claim = vm.space.claim(range(GIB, 2 * MIB2)).unwrap();
        let (guard, all) = (vm.cpu.enter(), Batch::all_of(&claim));
        let mine = |ipa: u64| {
            let number = (ipa - GIB) / PAGE_SIZE;
            !WILD.contains(&number) && !(32..48).contains(&number)
        };
        let mut shown = 0;
        let mut open = vm.space.modify_prot(&guard, &mut claim, all, Relax::Everywhere).unwrap();
        while let Some(started) = open.start().unwrap() {
            assert!(mine(started.ipa().get()), "{} is shown", started.ipa());
            shown += 1;
            started.commit(&Change::WRITE_PROTECT).unwrap();
        }
        assert_eq!((shown, open.finish().changed), (1024 - 7 - 16, 1024 - 7 - 16));
        let mut open = vm.space.modify_prot(&guard, &mut claim, all, Relax::Everywhere).unwrap();
        open.each(|ipa, _| {
            assert!(mine(ipa.get()), "{ipa} is shown");
            Some(Change::UNACCESSED)
        })
        .unwrap();
        assert_eq!(open.finish().changed, 1024 - 7 - 16);
        stays(&vm, &engine);
        assert!((32..48).map(|number| vm.held(page(number))).eq(run), "nor a run of others'");
    }
}

/// Where nothing else is nothing is changed, and nothing flushed.
#[test]
fn nothing_is_flushed_for_scratch() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = alone(&pages, &epochs);
    let at = range(GIB, 2 * MIB2);
    let mut claim = vm.space.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let done = vm.space.protect(&vm.cpu, &mut claim, all, Prot::RO, Relax::Everywhere);
    assert_eq!(done, Ok(Progress::Done));
    let aged = vm.space.age(&vm.cpu, &mut claim, all, None).unwrap();
    assert_eq!((aged.accessed, aged.idle), (0, 0), "it has no age");
    let log = vm.space.arch.take_log();
    let changes = |event: &Event| !matches!(event, Event::Observe(_));
    assert!(!log.iter().any(changes), "neither changed nor flushed: {log:?}");
    let account = vm.space.account();
    assert_eq!((account.changed, account.scratched, account.installed), (0, 1024, 0));
}

#[test]
fn ageing_says_nothing_of_scratch() {
    for hw_update in UPDATES {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let (vm, at) = (vm_among(hw_update, &pages, &epochs), range(GIB, 2 * MIB2));
        (0..1024).filter(|n| !WILD.contains(n)).for_each(|n| vm.alter(page(n), ACCESSED, 0));
        let mut claim = vm.space.claim(at).unwrap();
        let mut words = vec![0; IdlePages::words(at)];
        let mut idle = IdlePages::new(at, &mut words).unwrap();
        let all = Batch::all_of(&claim);
        let aged = vm.space.age(&vm.cpu, &mut claim, all, Some(&mut idle)).unwrap();
        assert_eq!((aged.accessed, aged.idle), (0, 1024 - 7), "{hw_update:?}");
        (0..1024).for_each(|n| {
            assert_eq!(idle.is_idle(Ipa::new(page(n))), !WILD.contains(&n), "page {n}");
        });
        stays(&vm, &hw_update);
    }
}

/// From the first harvest to the last, and by unmap and map, which mark what they take and bring.
#[test]
fn scratch_is_never_dirty() {
    for hw_update in UPDATES {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let (mut vm, at) = (vm_among(hw_update, &pages, &epochs), range(GIB, 2 * MIB2));
        let maps = Maps::of(at);
        let wild = |page: &u64| WILD.contains(page);
        vm.start(&maps, LogBlocks::Split).unwrap();
        assert_eq!(vm.harvest(at, 4096), 1024 - 7);
        let taken = maps.take();
        assert!(!taken.iter().any(wild) && taken.len() == 1024 - 7, "{hw_update:?}");
        assert_eq!(vm.harvest(at, 4096), 0);
        assert_eq!(maps.take(), [], "what was written to scratch is nobody's");
        let written = vm.space.write_through(&vm.cpu.enter(), Ipa::new(page(9)), |_| ());
        assert_eq!(written, Err(crate::space::WriteError::NotOwned { ipa: Ipa::new(page(9)) }));
        // Pages 8 to 11, of which two are scratch.
        vm.unmap(range(page(8), 4 * PAGE_SIZE), 99, Notes::Keep).unwrap();
        assert_eq!(maps.take(), [8, 11], "{hw_update:?}: what was the VM's is told");
        let _ = vm.reach(page(9), &mut Tally::default()).unwrap();
        let mut claim = vm.space.claim(range(page(10), PAGE_SIZE)).unwrap();
        let extent = Extent {
            pa: Pa::new(PA + PAGE_SIZE),
            attributes: Attributes { write: crate::Write::Denied, ..ram() },
            owner: Owner::Other,
            coarsest: Level::L3,
        };
        let all = Batch::all_of(&claim);
        // SAFETY: (1, 2) no guest runs.
        let _ = unsafe { vm.space.map(&vm.cpu, &mut claim, all, &extent) }.unwrap();
        drop(claim);
        vm.map(page(8), Level::L3, Owner::Vm);
        vm.harvest(at, 4096);
        assert_eq!(maps.take(), [8], "{hw_update:?}: what came new is told");
        let mut claim = vm.space.claim(at).unwrap();
        let stopped = vm.space.dirty_stop(&vm.cpu, &mut claim, 4096, || ()).unwrap();
        let done = Stopped { progress: Progress::Done, collapsed: 0, stay: 0 };
        assert_eq!(stopped, done);
        vm.put(page(10), scratch(&vm.space).descriptor());
        stays(&vm, &hw_update);
    }
}

/// A page that comes in the place of scratch is new, also where its leaf cannot say so.
#[test]
fn what_takes_the_place_of_scratch_is_dirty() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let (vm, at) = (vm_among(HwUpdate::Off, &pages, &epochs), range(GIB, 2 * MIB2));
    let maps = Maps::of(at);
    vm.start(&maps, LogBlocks::Keep).unwrap();
    vm.harvest(at, 4096);
    let _ = maps.take();
    let read_only = Attributes { write: crate::Write::Denied, ..ram() };
    let mapping = vm.space.mapping(Level::L3, &read_only, Owner::Vm).unwrap();
    let mut claim = vm.space.claim(at).unwrap();
    let (all, scratch) = (Batch::all_of(&claim), scratch(&vm.space));
    struct Any;
    // SAFETY: (1, 2) no guest runs.
    unsafe impl crate::space::Replacements for Any {
        fn take(&mut self, ipa: Ipa) -> Option<Pa> {
            Some(Pa::new(ipa.get() + 99 * GIB))
        }
        fn give_back(&mut self, _: Ipa, _: Pa) {}
    }
    let done =
        vm.space.replace_scratch(&vm.cpu, &mut claim, all, &scratch, &mapping, &mut Any, || ());
    assert_eq!(done.unwrap().replaced, 7);
    assert_eq!(maps.take(), WILD);
}

#[test]
fn a_fault_gives_scratch_nothing_that_it_had_not() {
    for hw_update in UPDATES {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_among(hw_update, &pages, &epochs);
        let leaf = vm.leaf(page(9));
        for access in [Prot::empty(), Prot::READ, Prot::WRITE, Prot::RW] {
            let fault = vm.space.relax(&vm.cpu.enter(), Ipa::new(page(9)), access, Prot::RWX);
            assert_eq!(fault, Ok(Relaxed::Spurious(leaf)));
            let log = vm.space.arch.take_log();
            let local = |event: &Event| matches!(event, Event::Tlbi(Tlbi::Ipas2e1(_), _));
            assert!(log.iter().any(local), "this PE had something else in its TLB");
        }
        for access in [Prot::EXEC, Prot::EXEC_EL1, Prot::EXEC_EL0, Prot::RX] {
            // Whatever the policy says of the address.
            for allowed in [Prot::RWX, Prot::RO] {
                let fault = vm.space.relax(&vm.cpu.enter(), Ipa::new(page(9)), access, allowed);
                let allowed = Prot::RW;
                assert_eq!(fault, Err(RelaxError::Denied { access, allowed }), "{hw_update:?}");
            }
        }
        assert_eq!(vm.space.arch.take_log(), [], "nothing is exchanged or flushed");
        stays(&vm, &hw_update);
    }
}

/// One page behind all addresses is no block and no run, nor a part of one.
#[test]
fn scratch_is_no_part_of_a_block_or_a_run() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = alone(&pages, &epochs);
    let block = GIB + 2 * MIB2;
    vm.lay(range(block, MIB2), Level::L3);
    // The page that would be right, but for whose it is; and its neighbours are in order.
    vm.alter(block + 5 * PAGE_SIZE, 0, 1 << 57);
    let mut claim = vm.space.claim(range(GIB, 3 * MIB2)).unwrap();
    let (all, mut told) = (Batch::all_of(&claim), Vec::new());
    let mut heard = |ipa: Ipa, what| told.push((ipa.get(), what));
    let before: Vec<u64> = (0..1536).map(|number| vm.held(page(number))).collect();
    let _ = vm.space.collapse(&vm.cpu, &mut claim, all, Level::L2, || (), &mut heard).unwrap();
    let elsewhere = |number: u64, first: u64| Obstacle::Elsewhere {
        ipa: Ipa::new(page(number)),
        pa: Pa::new(PA),
        wanted: Pa::new(first + PAGE_SIZE),
    };
    let unlike = Obstacle::Unlike { ipa: Ipa::new(block + 5 * PAGE_SIZE) };
    let wanted = [
        (GIB, Collapse::Stays(elsewhere(1, PA))),
        (GIB + MIB2, Collapse::Stays(elsewhere(513, PA))),
        (block, Collapse::Stays(unlike)),
    ];
    assert_eq!(told, wanted);
    let mut runs = Vec::new();
    let mut heard = |_: Ipa, what| runs.push(what);
    let _ = vm.space.make_contiguous(&vm.cpu, &mut claim, all, Level::L3, &mut heard).unwrap();
    assert!(runs.iter().take(64).all(|run| matches!(run, Contiguous::Stays(_))), "{runs:?}");
    let done = vm.space.split(&vm.cpu, &mut claim, all, Level::L3);
    assert_eq!(done, Ok(Progress::Done));
    let _ = vm.space.dissolve(&vm.cpu, &mut claim, all).unwrap();
    assert!((0..1536).map(|number| vm.held(page(number))).eq(before), "nothing has changed");
}

#[test]
fn a_census_tells_what_is_not_the_vms() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_among(HwUpdate::Off, &pages, &epochs);
    let census = vm.space.census(&vm.cpu.enter(), range(GIB, GIB));
    assert_eq!(census, Census { leaves: [0, 0, 1024], not_owned: 7, ..Census::default() });
}
