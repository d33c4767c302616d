//! Splits and collapses against what they should give; what stands in their way; what is left of those that fail.

use super::map::{extent, leaves, map};
use super::unmap::{Released, Vm, range};
use super::*;
use crate::addr::PAGE_SIZE;
use crate::arch::host::Event as Logged;
use crate::space::{Batch, Collapse, CollapseError, Notes, Obstacle, Progress, SplitError};

const GIB: u64 = 1 << 30;
const MIB2: u64 = 2 << 20;
const BLOCK: Level = Level::L2;

fn split(
    space: &Space<'_, &Pages, Host>,
    epochs: &Epochs<1>,
    at: IpaRange,
    to: Level,
    budget: usize,
) -> Result<usize, SplitError> {
    let cpu = epochs.join(0).unwrap();
    let mut claim = space.claim(at).unwrap();
    let (mut from, mut batches) = (at.start(), 1);
    while let Progress::Until(next) =
        space.split(&cpu, &mut claim, Batch { from, slots: budget }, to)?
    {
        assert!(next >= from && batches < 10_000, "it ends");
        from = next;
        batches += 1;
    }
    assert!(cpu.is_quiescent());
    Ok(batches)
}

fn collapse(
    space: &Space<'_, &Pages, Host>,
    epochs: &Epochs<1>,
    at: IpaRange,
    to: Level,
    budget: usize,
) -> Result<Vec<(u64, Collapse)>, CollapseError> {
    let cpu = epochs.join(0).unwrap();
    let mut claim = space.claim(at).unwrap();
    let (mut from, mut told) = (at.start(), Vec::new());
    let mut heard = |ipa: Ipa, what| told.push((ipa.get(), what));
    loop {
        let batch = Batch { from, slots: budget };
        match space.collapse(&cpu, &mut claim, batch, to, || panic!("nobody"), &mut heard)? {
            Progress::Done => return Ok(told),
            Progress::Until(next) => {
                assert!(next > from, "a batch makes progress");
                from = next;
            }
        }
    }
}

#[test]
fn a_gigabyte_becomes_pages_and_a_gigabyte_again() {
    for budget in [1, 700, usize::MAX] {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let space = space(&pages, &epochs, 40);
        let at = range(GIB, GIB);
        map(&space, &epochs, at, &extent(8 * GIB, Level::L1), 1).unwrap();
        assert_eq!(leaves(&space, &epochs, at), [(GIB, 8 * GIB, 1)]);

        split(&space, &epochs, at, Level::L3, budget).unwrap();
        let found = leaves(&space, &epochs, at);
        assert_eq!(found.len(), 512 * 512);
        assert!(found.iter().all(|(ipa, pa, level)| *level == 3 && pa - ipa == 7 * GIB));
        let account = space.account();
        assert_eq!(
            (account.split, account.leaves_now(), account.tables_now()),
            (513, 512 * 512, 513)
        );

        let made = collapse(&space, &epochs, at, BLOCK, budget).unwrap();
        assert_eq!(made.len(), 512);
        assert!(made.iter().all(|(_, what)| *what == Collapse::Made));
        let found = leaves(&space, &epochs, at);
        assert!(found.iter().all(|(ipa, pa, level)| *level == 2 && pa - ipa == 7 * GIB));
        assert_eq!(
            collapse(&space, &epochs, at, Level::L1, budget).unwrap(),
            [(GIB, Collapse::Made)]
        );
        assert_eq!(leaves(&space, &epochs, at), [(GIB, 8 * GIB, 1)]);
        let account = space.account();
        assert_eq!((account.collapsed, account.leaves_now(), account.tables_now()), (513, 1, 0));
        assert_eq!(pages.live(), space.geometry.root_tables(), "every table came back");
    }
}

/// One sequence of barriers and invalidations for a batch, however many blocks there are.
#[test]
fn a_batch_has_one_flush() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    let at = range(GIB, 40 * MIB2);
    map(&space, &epochs, at, &extent(8 * GIB, BLOCK), usize::MAX).unwrap();
    let flushes = |work: &mut dyn FnMut()| {
        let before = space.account();
        work();
        let after = space.account();
        (after.whole_flushes - before.whole_flushes) + (after.flushes - before.flushes)
    };
    let went = flushes(&mut || {
        split(&space, &epochs, at, Level::L3, usize::MAX).unwrap();
    });
    assert_eq!(went, 1);
    let went = flushes(&mut || {
        collapse(&space, &epochs, at, BLOCK, usize::MAX).unwrap();
    });
    assert_eq!(went, 1);
}

#[test]
fn what_is_no_block_stays_as_it_is() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    let at = range(GIB - PAGE_SIZE, PAGE_SIZE + MIB2 + PAGE_SIZE);
    map(&space, &epochs, at, &extent(8 * GIB - PAGE_SIZE, BLOCK), 9).unwrap();
    split(&space, &epochs, at, BLOCK, 9).unwrap();
    let blocks = [(GIB - PAGE_SIZE, 3), (GIB, 2), (GIB + MIB2, 3)];
    let found = leaves(&space, &epochs, at);
    assert_eq!(found.iter().map(|(ipa, _, level)| (*ipa, *level)).collect::<Vec<_>>(), blocks);
    split(&space, &epochs, range(0, 4 * GIB), Level::L3, 9000).unwrap();
    assert_eq!(leaves(&space, &epochs, at).len(), 1 + 512 + 1);
}

#[test]
fn a_block_over_the_edge_of_the_claim_is_refused_and_stays() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    map(&space, &epochs, range(GIB, MIB2), &extent(8 * GIB, BLOCK), 1).unwrap();
    for at in [range(GIB + PAGE_SIZE, MIB2), range(GIB - PAGE_SIZE, 2 * PAGE_SIZE)] {
        let error = split(&space, &epochs, at, Level::L3, 9).unwrap_err();
        assert_eq!(error, SplitError::Straddles { ipa: Ipa::new(GIB), level: BLOCK });
    }
    for to in [Level::L0, Level::L1] {
        let error = split(&space, &epochs, range(GIB, MIB2), to, 9).unwrap_err();
        assert_eq!(error, SplitError::Level { to });
    }
    for to in [Level::L0, Level::L3] {
        let error = collapse(&space, &epochs, range(GIB, MIB2), to, 9).unwrap_err();
        assert_eq!(error, CollapseError::Level { to });
    }
    assert_eq!(leaves(&space, &epochs, range(GIB, MIB2)), [(GIB, 8 * GIB, 2)]);
}

#[test]
fn out_of_tables_leaves_each_block_whole_or_split() {
    for tables in 0..4 {
        let (pages, epochs) = (Pages::new(3 + tables), Epochs::<1>::new());
        let space = space(&pages, &epochs, 40);
        let at = range(GIB, 3 * MIB2);
        map(&space, &epochs, at, &extent(8 * GIB, BLOCK), 9).unwrap();
        assert_eq!(pages.live(), 3, "two root pages and one table");
        let done = split(&space, &epochs, at, Level::L3, usize::MAX);
        let whole = 3_u64.saturating_sub(tables as u64 + 1);
        let expected = if whole == 0 { 512 * 3 } else { (tables + 1) * 512 + whole as usize };
        assert_eq!(leaves(&space, &epochs, at).len(), expected);
        if whole != 0 {
            let ipa = Ipa::new(GIB + (3 - whole) * MIB2);
            assert_eq!(done, Err(SplitError::OutOfTables { ipa }));
        }
        assert_eq!(space.account().tables_now(), pages.live() as u64 - 2);
    }
}

/// Each obstacle, by the slot that is in the way; and nothing is changed.
#[test]
fn what_is_in_the_way_of_a_collapse_is_named() {
    let page = |n: u64| Ipa::new(GIB + n * PAGE_SIZE);
    type Spoil<'s> = &'s dyn Fn(&Vm<'_>);
    let cases: [(Spoil<'_>, Obstacle); 6] = [
        (&|vm| vm.put(page(511).get(), Descriptor::EMPTY), Obstacle::Hole { ipa: page(511) }),
        (
            &|vm| vm.put(page(7).get(), Descriptor::note(Note::new(1).unwrap())),
            Obstacle::Note { ipa: page(7) },
        ),
        (
            &|vm| {
                let held = vm.slot(page(8).get()).load(&vm.space.arch);
                vm.put(page(8).get(), held.to_busy().unwrap());
            },
            Obstacle::NoLeaf { ipa: page(8), seen: Descriptor::from_bits(0x0100_0002_0000_87fe) },
        ),
        (
            &|vm| {
                let held = vm.slot(page(9).get()).load(&vm.space.arch).bits();
                vm.put(page(9).get(), Descriptor::from_bits(held + PAGE_SIZE));
            },
            Obstacle::Elsewhere {
                ipa: page(9),
                pa: Pa::new(8 * GIB + 10 * PAGE_SIZE),
                wanted: Pa::new(8 * GIB + 9 * PAGE_SIZE),
            },
        ),
        (
            &|vm| {
                let held = vm.slot(page(10).get()).load(&vm.space.arch).bits();
                vm.put(page(10).get(), Descriptor::from_bits(held & !(1 << 7)));
            },
            Obstacle::Unlike { ipa: page(10) },
        ),
        (
            &|vm| {
                for n in 0..512 {
                    let held = vm.slot(page(n).get()).load(&vm.space.arch).bits();
                    vm.put(page(n).get(), Descriptor::from_bits(held + PAGE_SIZE));
                }
            },
            Obstacle::Unaligned { pa: Pa::new(8 * GIB + PAGE_SIZE) },
        ),
    ];
    for (spoil, obstacle) in cases {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let at = range(GIB, MIB2);
        let vm = Vm::new(&pages, &epochs);
        let Vm { space, cpu, .. } = &vm;
        let mut claim = space.claim(at).unwrap();
        let all = Batch::all_of(&claim);
        // SAFETY: (1, 2) no guest runs on the host.
        let mapped = unsafe { space.map(cpu, &mut claim, all, &extent(8 * GIB, Level::L3)) };
        assert_eq!(mapped, Ok(Progress::Done));
        spoil(&vm);
        let _ = space.arch.take_log();
        let mut told = Vec::new();
        let mut heard = |ipa: Ipa, what| told.push((ipa, what));
        let done = space.collapse(cpu, &mut claim, all, BLOCK, || {}, &mut heard);
        assert_eq!(done, Ok(Progress::Done));
        assert_eq!(told, [(Ipa::new(GIB), Collapse::Stays(obstacle))]);
        let wrote = space.arch.take_log().into_iter().any(|event| {
            matches!(event, crate::arch::host::Event::Tlbi(..) | crate::arch::host::Event::Dsb(..))
        });
        assert!(!wrote, "nothing was flushed, as nothing was broken");
        drop(claim);
    }
}

#[test]
fn a_range_that_was_split_and_collapsed_unmaps_whole() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    let at = range(GIB, 2 * MIB2);
    map(&space, &epochs, at, &extent(8 * GIB, BLOCK), 9).unwrap();
    split(&space, &epochs, at, Level::L3, 9).unwrap();
    collapse(&space, &epochs, range(GIB, MIB2), BLOCK, 9).unwrap();
    let cpu = epochs.join(0).unwrap();
    let mut claim = space.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let mut released = Released::default();
    let done = space.unmap(&cpu, &mut claim, all, Notes::Keep, || {}, &mut released);
    assert_eq!(done, Ok(Progress::Done));
    assert_eq!(released.0.len(), 1 + 512);
    assert_eq!(released.0[&GIB], (8 * GIB, MIB2));
    assert_eq!(
        pages.live(),
        space.geometry.root_tables() + 1,
        "the claim was not on the level 2 table"
    );
}

/// What was split before the tables ran out has to be split again, and is not passed over.
#[test]
fn parts_that_are_still_too_large_are_not_forgotten_when_tables_run_out() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    let at = range(0, 2 << 30);
    map(&space, &epochs, at, &extent(0, Level::L1), usize::MAX).unwrap();
    pages.budget.store(1, Ordering::Relaxed);
    let cpu = epochs.join(0).unwrap();
    let mut claim = space.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let split = space.split(&cpu, &mut claim, all, Level::L3);
    assert_eq!(split, Ok(Progress::Until(Ipa::new(0))), "the first GiB is blocks of 2 MiB now");
}

/// A callback may leave a guard open behind it: the batch is over by then, and no table is lost.
#[test]
fn whoever_hears_of_a_collapse_may_keep_a_guard() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    let at = range(GIB, 2 * MIB2);
    map(&space, &epochs, at, &extent(8 * GIB, BLOCK), 9).unwrap();
    split(&space, &epochs, at, Level::L3, usize::MAX).unwrap();
    let tables = pages.live();
    let cpu = epochs.join(0).unwrap();
    let mut claim = space.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let mut guards = Vec::new();
    let mut heard = |_, what| {
        assert_eq!(what, Collapse::Made);
        let guard = cpu.enter();
        for block in [GIB, GIB + MIB2] {
            let found = space.lookup(&guard, Ipa::new(block)).unwrap();
            assert!(matches!(found.view(), View::Leaf(_)), "all of the batch is in place");
        }
        assert_eq!(pages.live(), tables - 2, "and what went is given back");
        guards.push(guard);
    };
    let done = space.collapse(&cpu, &mut claim, all, BLOCK, || {}, &mut heard);
    assert_eq!((done, guards.len()), (Ok(Progress::Done), 2));
}

#[test]
fn nobody_resizes_inside_a_guard() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    let at = range(GIB, MIB2);
    map(&space, &epochs, at, &extent(8 * GIB, BLOCK), 9).unwrap();
    let cpu = epochs.join(0).unwrap();
    let mut claim = space.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let guard = cpu.enter();
    let lock = space.lookup_rw(&guard, Ipa::new(GIB)).unwrap().lock().unwrap();
    let split = space.split(&cpu, &mut claim, all, Level::L3);
    assert_eq!(split, Err(SplitError::NotQuiescent));
    let collapse = space.collapse(&cpu, &mut claim, all, BLOCK, || {}, &mut |_, _| {});
    assert_eq!(collapse, Err(CollapseError::NotQuiescent));
    drop(lock);
}

/// Somebody's guard, opened before, may still be in the table.
#[test]
fn a_table_serves_nobody_else_before_the_grace_period_is_over() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<2>::new());
    let space = space(&pages, &epochs, 40);
    let at = range(GIB, MIB2);
    map(&space, &epochs, at, &extent(8 * GIB, Level::L3), 9000).unwrap();
    let (cpu, other) = (epochs.join(0).unwrap(), epochs.join(1).unwrap());
    let mut claim = space.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let (tables, mut guard, mut waited) = (pages.live(), Some(other.enter()), false);
    let relax = || {
        assert_eq!(pages.live(), tables, "given back under a guard");
        (guard, waited) = (None, true);
    };
    let done = space.collapse(&cpu, &mut claim, all, BLOCK, relax, &mut |_, _| {});
    assert_eq!((done, pages.live()), (Ok(Progress::Done), tables - 1));
    assert!(waited, "the collapse waited for the guard");
}

/// Locks parent first; the flush before what is made; and a DSB after it.
#[test]
fn the_steps_come_in_order() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    let at = range(GIB, MIB2);
    map(&space, &epochs, at, &extent(8 * GIB, BLOCK), 9).unwrap();
    let table_of = |ipa| {
        let cpu = epochs.join(0).unwrap();
        let bits = space.lookup_rw(&cpu.enter(), Ipa::new(ipa)).unwrap().parent().unwrap();
        Pa::new(bits.bits() & 0xffff_ffff_f000)
    };
    let parent = table_of(GIB);
    let _ = space.arch.take_log();
    split(&space, &epochs, at, Level::L3, 9).unwrap();
    let child = table_of(GIB);
    let locks = |log: &[Logged]| -> Vec<Pa> {
        log.iter()
            .filter_map(|event| match event {
                Logged::Observe(crate::arch::Observation::Locked { table }) => Some(*table),
                _ => None,
            })
            .collect()
    };
    let made_last = |log: &[Logged]| {
        let store = log.iter().rposition(|event| matches!(event, Logged::Store(_))).unwrap();
        let flushed = log.iter().rposition(|event| matches!(event, Logged::Tlbi(..))).unwrap();
        assert!(flushed < store, "made before the flush: {log:?}");
        let dsb = log[store..].contains(&Logged::Dsb(Dsb::IshSt));
        assert!(dsb, "no DSB after what was made");
    };
    let log = space.arch.take_log();
    assert_eq!(locks(&log), [parent], "a split takes the lock of the block's table");
    made_last(&log);
    collapse(&space, &epochs, at, BLOCK, 9).unwrap();
    let log = space.arch.take_log();
    let both = [parent, child, parent, child];
    assert_eq!(locks(&log), both, "a collapse takes both locks, twice, the parent's first");
    made_last(&log);
}

#[test]
fn a_batch_ends_when_its_slots_are_used_up() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&pages, &epochs, 40);
    let at = range(GIB, 8 * MIB2);
    map(&space, &epochs, at, &extent(8 * GIB, BLOCK), 9).unwrap();
    assert_eq!(split(&space, &epochs, at, Level::L3, 1024), Ok(4), "two blocks at a time");
    let cpu = epochs.join(0).unwrap();
    let mut claim = space.claim(at).unwrap();
    let batch = Batch { from: at.start(), slots: 1024 };
    let done = space.collapse(&cpu, &mut claim, batch, BLOCK, || {}, &mut |_, _| {});
    assert_eq!(done, Ok(Progress::Until(Ipa::new(GIB + 2 * MIB2))), "two tables at a time");
}
