//! Protection transactions: what they change and what not, when it is flushed, and what is left of those that are
//! refused, aborted or dropped.

use super::map::extent;
use super::unmap::{Vm, range};
use super::*;
use crate::arch::Observation;
use crate::arch::host::Event as Logged;
use crate::attr::{AttributeError, Write};
use crate::descriptor::Change;
use crate::space::{
    Batch, Engine, Modified, NotClaimed, Obstacle, Progress, ProtError, Relax, Transaction,
};

pub(super) const GIB: u64 = 1 << 30;
pub(super) const MIB2: u64 = 2 << 20;
pub(super) const RUN: u64 = 16 * PAGE_SIZE;
pub(super) const DIRTY: u64 = 1 << 7;
pub(super) const ACCESSED: u64 = 1 << 10;
pub(super) const DIRTY_MODIFIER: u64 = 1 << 51;
pub(super) const CONTIGUOUS: u64 = 1 << 52;
pub(super) const ENGINES: [Engine; 3] = [Engine::InPlace, Engine::BreakUnsettled, Engine::Break];

/// A VM that the host runs, whose hardware updates this.
pub(super) fn vm_with<'t>(hw_update: HwUpdate, pages: &'t Pages, epochs: &'t Epochs<1>) -> Vm<'t> {
    let caps = Caps::GRANULE_4K | Caps::HW_ACCESS | Caps::HW_DIRTY;
    let geometry = Geometry::new(40, &Features { caps, ..features(48) }, hw_update).unwrap();
    let vmids = vmids();
    let space = Space::new(geometry, vmids, epochs.domain(), pages, Host::new()).unwrap();
    let mut cpu = vmids.join(0).unwrap();
    // SAFETY: (1, 2) no guest runs on the host.
    core::mem::forget(unsafe { space.enter(&mut cpu, 0) }.unwrap());
    let frames = Counted::new(1 << 40, 1 << 30, usize::MAX);
    Vm { pages, space, cpu: epochs.join(0).unwrap(), frames }
}

pub(super) fn vm<'t>(pages: &'t Pages, epochs: &'t Epochs<1>) -> Vm<'t> {
    vm_with(HwUpdate::Off, pages, epochs)
}

pub(super) type Tx<'t, 'p> = Transaction<'t, &'p Pages, Host>;

impl<'p> Vm<'p> {
    /// Maps a range to memory 7 GiB further on.
    pub(super) fn lay(&self, at: IpaRange, coarsest: Level) {
        let mut claim = self.space.claim(at).unwrap();
        let all = Batch::all_of(&claim);
        let extent = extent(at.start().get() + 7 * GIB, coarsest);
        // SAFETY: (1, 2) no guest runs on the host.
        let mapped = unsafe { self.space.map(&self.cpu, &mut claim, all, &extent) };
        assert_eq!(mapped, Ok(Progress::Done));
    }

    /// One batch of all of a range.
    pub(super) fn modify(
        &self,
        at: IpaRange,
        relax: Relax,
        work: impl FnOnce(&mut Tx<'_, 'p>),
    ) -> Modified {
        let (guard, mut claim) = (self.cpu.enter(), self.space.claim(at).unwrap());
        let all = Batch::all_of(&claim);
        let mut transaction = self.space.modify_prot(&guard, &mut claim, all, relax).unwrap();
        work(&mut transaction);
        transaction.finish()
    }

    /// The same change for all.
    fn change(&self, at: IpaRange, change: Change) -> Modified {
        self.modify(at, Relax::Everywhere, |transaction| {
            transaction.each(|_, _| Some(change)).unwrap();
        })
    }

    pub(super) fn held(&self, ipa: u64) -> u64 {
        self.slot(ipa).load(&self.space.arch).bits()
    }

    /// Clears and sets bits of what a slot holds.
    pub(super) fn alter(&self, ipa: u64, clear: u64, set: u64) {
        self.put(ipa, Descriptor::from_bits(self.held(ipa) & !clear | set));
    }

    fn write(&self, ipa: u64) -> Write {
        let found = self.space.lookup(&self.cpu.enter(), Ipa::new(ipa)).unwrap();
        let View::Leaf(leaf) = found.view() else { panic!("{found:?}") };
        leaf.attributes(self.space.encoding()).unwrap().write
    }
}

/// How many events of a kind there are.
fn count(log: &[Logged], which: impl Fn(&Logged) -> bool) -> usize {
    log.iter().filter(|event| which(event)).count()
}

pub(super) const fn page(number: u64) -> u64 {
    GIB + number * PAGE_SIZE
}

/// Pages, holes and a note, then blocks; in batches of any size, by any engine.
#[test]
fn every_leaf_of_a_range_is_changed_and_nothing_else() {
    for (engine, budget) in
        ENGINES.into_iter().flat_map(|engine| [1, 7, 511, 513, usize::MAX].map(|n| (engine, n)))
    {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(HwUpdate::AccessAndDirty, &pages, &epochs);
        vm.space.pin_engine(Some(engine));
        assert_eq!(vm.space.engine(), engine);
        vm.lay(range(GIB, 3 * MIB2), Level::L3);
        vm.lay(range(GIB + 3 * MIB2, 2 * MIB2), Level::L2);
        vm.put(page(5), Descriptor::EMPTY);
        vm.put(page(600), Descriptor::note(Note::new(DIRTY | ACCESSED).unwrap()));
        // The first and the last page stay.
        let at = range(page(1), 5 * MIB2 - PAGE_SIZE);
        let before: Vec<u64> = (0..1536).map(|n| vm.held(page(n))).collect();
        let (mut claim, mut from) = (vm.space.claim(at).unwrap(), at.start());
        loop {
            let batch = Batch { from, slots: budget };
            match vm.space.write_protect(&vm.cpu, &mut claim, batch).unwrap() {
                Progress::Done => break,
                Progress::Until(next) => {
                    assert!(next > from, "a batch makes progress");
                    let slots = (next.get() - from.get()) / PAGE_SIZE;
                    assert!(next.get() > GIB + 3 * MIB2 || slots as usize <= budget, "and no more");
                    from = next;
                }
            }
        }
        assert!(vm.cpu.is_quiescent(), "every lock and guard is given back");
        for number in 0..1536 {
            let (was, now) = (before[number as usize], vm.held(page(number)));
            let leaf = !matches!(number, 0 | 5 | 600);
            assert_eq!(now, if leaf { was & !DIRTY } else { was }, "{engine:?}: page {number}");
        }
        for block in [3, 4] {
            assert_eq!(vm.write(GIB + block * MIB2), Write::Denied, "{engine:?}, {budget}");
        }
    }
}

/// Tables and blocks in turn: no table behind a block is taken for something to be passed over.
#[test]
fn a_table_between_blocks_is_gone_through() {
    for engine in ENGINES {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(HwUpdate::AccessAndDirty, &pages, &epochs);
        vm.space.pin_engine(Some(engine));
        let level = |span| if [1, 4, 5].contains(&span) { Level::L3 } else { Level::L2 };
        (0..8).for_each(|span| vm.lay(range(GIB + span * MIB2, MIB2), level(span)));
        let modified = vm.change(range(GIB, 8 * MIB2), Change::WRITE_PROTECT);
        assert_eq!(modified.changed, 3 * 512 + 5, "{engine:?}");
        assert!((0..4096).all(|n| vm.held(page(n)) & DIRTY == 0), "{engine:?}");
    }
}

#[test]
fn the_engine_is_what_the_hardware_updates_ask_for() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let of = |hw_update| vm_with(hw_update, &pages, &epochs).space.engine();
    assert_eq!(of(HwUpdate::Off), Engine::InPlace);
    assert_eq!(of(HwUpdate::Access), Engine::InPlace);
    assert_eq!(of(HwUpdate::AccessAndDirty), Engine::BreakUnsettled);
}

/// By a break a leaf is invalid until the flush, in place never; what hardware can set nothing in need not be broken.
#[test]
fn what_is_broken_lives_again_after_the_flush() {
    for (engine, broken) in [(Engine::InPlace, 0), (Engine::BreakUnsettled, 3), (Engine::Break, 4)]
    {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(HwUpdate::AccessAndDirty, &pages, &epochs);
        vm.space.pin_engine(Some(engine));
        vm.lay(range(GIB, MIB2), Level::L3);
        // Clean; dirty, and not accessed; clean and not accessed; nothing is left to be set.
        vm.alter(page(0), DIRTY, DIRTY_MODIFIER);
        vm.alter(page(1), ACCESSED, DIRTY_MODIFIER);
        vm.alter(page(2), ACCESSED | DIRTY, DIRTY_MODIFIER);
        vm.alter(page(3), 0, DIRTY_MODIFIER);
        let _ = vm.space.arch.take_log();
        let modified = vm.change(range(GIB, 4 * PAGE_SIZE), Change::WRITE_PROTECT);
        let expected = Modified { progress: Progress::Done, changed: 4, broken };
        assert_eq!(modified, expected, "{engine:?}");
        let account = vm.space.account();
        assert_eq!((account.changed, account.broken), (4, broken), "{engine:?}: counted");
        (0..4).for_each(|n| assert_eq!(vm.held(page(n)) & (DIRTY | DIRTY_MODIFIER | 1), 1));

        let log = vm.space.arch.take_log();
        let place = |which: &dyn Fn(&Logged) -> bool| log.iter().position(which).unwrap();
        let last = |which: &dyn Fn(&Logged) -> bool| log.iter().rposition(which).unwrap();
        let won = |event: &Logged| matches!(event, Logged::CompareExchange(true));
        let tlbi = |event: &Logged| matches!(event, Logged::Tlbi(..));
        let store = |event: &Logged| matches!(event, Logged::Store(_));
        let lock = |event: &Logged| matches!(event, Logged::Observe(Observation::Locked { .. }));
        let unlock =
            |event: &Logged| matches!(event, Logged::Observe(Observation::Unlocked { .. }));
        assert_eq!((count(&log, won), count(&log, store)), (4, broken as usize), "{engine:?}");
        assert!(place(&lock) < place(&won) && last(&won) < place(&unlock), "under the lock");
        assert!(last(&unlock) < place(&tlbi), "the lock is given back before the flush");
        assert_eq!(log[place(&tlbi) - 1], Logged::Dsb(Dsb::Ish));
        if broken > 0 {
            assert!(last(&tlbi) < place(&store), "made before the flush: {log:?}");
            assert!(log[last(&store)..].contains(&Logged::Dsb(Dsb::IshSt)), "no DSB at the end");
        }
    }
}

#[test]
fn one_flush_serves_a_batch_however_many_tables_it_touches() {
    for engine in ENGINES {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(HwUpdate::AccessAndDirty, &pages, &epochs);
        vm.space.pin_engine(Some(engine));
        vm.lay(range(GIB, 8 * MIB2), Level::L3);
        // Two far apart, of one table.
        (100..400).for_each(|n| vm.put(page(n), Descriptor::EMPTY));
        let modified = vm.change(range(GIB, 8 * MIB2), Change::WRITE_PROTECT);
        assert_eq!(modified.changed, 8 * 512 - 300);
        let account = vm.space.account();
        assert_eq!((account.flushes, account.whole_flushes), (0, 1), "without ranges");

        vm.space.pin_flushes(Some(crate::cost::Pinned::PerPage));
        let change = Change::protect(Prot::RW, vm.space.encoding()).unwrap();
        assert_eq!(vm.change(range(GIB, MIB2), change).changed, 212);
        let account = vm.space.account();
        assert_eq!((account.flushes, account.pages_flushed), (2, 212), "{engine:?}: no hole");
    }
}

#[test]
fn what_stays_as_it_is_costs_no_flush() {
    for engine in ENGINES {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(HwUpdate::AccessAndDirty, &pages, &epochs);
        vm.space.pin_engine(Some(engine));
        vm.lay(range(GIB, MIB2), Level::L3);
        (0..512).for_each(|n| vm.alter(page(n), DIRTY, DIRTY_MODIFIER));
        let before: Vec<u64> = (0..512).map(|n| vm.held(page(n))).collect();
        let _ = vm.space.arch.take_log();
        let nothing = Modified { progress: Progress::Done, changed: 0, broken: 0 };
        assert_eq!(vm.change(range(GIB, MIB2), Change::CLEAN), nothing, "all are clean");
        let aborted = vm.modify(range(GIB, MIB2), Relax::Everywhere, |transaction| {
            while let Some(started) = transaction.start().unwrap() {
                started.abort();
            }
        });
        assert_eq!(aborted, nothing);
        let log = vm.space.arch.take_log();
        let quiet = |event: &Logged| matches!(event, Logged::Observe(_));
        assert!(log.iter().all(quiet), "a leaf that is left alone costs nothing: {log:?}");
        assert!((0..512).all(|n| vm.held(page(n)) == before[n as usize]));
    }
}

/// Each leaf is shown once, in order; committed, aborted, and dropped with its transaction.
#[test]
fn a_dropped_transaction_aborts_what_is_open_and_flushes_the_rest() {
    for engine in ENGINES {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(HwUpdate::AccessAndDirty, &pages, &epochs);
        vm.space.pin_engine(Some(engine));
        vm.lay(range(GIB, MIB2), Level::L3);
        (0..4).for_each(|n| vm.alter(page(n), 0, DIRTY_MODIFIER));
        let (guard, mut claim) =
            (vm.cpu.enter(), vm.space.claim(range(GIB, 4 * PAGE_SIZE)).unwrap());
        let all = Batch::all_of(&claim);
        let _ = vm.space.arch.take_log();
        let mut open = vm.space.modify_prot(&guard, &mut claim, all, Relax::Everywhere).unwrap();
        assert!(!vm.space.pending_flush(Ipa::new(GIB + 3 * GIB)));
        for number in 0..3 {
            let started = open.start().unwrap().unwrap();
            assert_eq!(started.ipa().get(), page(number));
            assert_eq!(started.leaf().pa().get(), page(number) + 7 * GIB);
            match number {
                1 => started.abort(),
                _ => {
                    let was = started.commit(&Change::CLEAN).unwrap();
                    assert!(was.is_dirty());
                }
            }
            assert!(vm.space.pending_flush(Ipa::new(page(number))), "a flush is owed");
        }
        drop(open.start().unwrap().unwrap());
        drop(open);
        assert!(!vm.space.pending_flush(Ipa::new(GIB)), "no flush is owed any more");
        let log = vm.space.arch.take_log();
        assert!(count(&log, |event| matches!(event, Logged::Tlbi(..))) > 0, "not flushed");
        drop(claim);
        drop(guard);
        assert!(vm.cpu.is_quiescent(), "the lock is given back");
        let writes: Vec<Write> = (0..4).map(|n| vm.write(page(n))).collect();
        assert_eq!(writes, [Write::Clean, Write::Dirty, Write::Clean, Write::Dirty], "{engine:?}");
    }
}

/// Somebody changes a leaf between start and commit: the commit goes by what is there then, and says so.
#[test]
fn a_commit_returns_what_it_replaced() {
    for engine in ENGINES {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(HwUpdate::AccessAndDirty, &pages, &epochs);
        vm.space.pin_engine(Some(engine));
        vm.lay(range(GIB, MIB2), Level::L3);
        vm.alter(GIB, DIRTY | ACCESSED, DIRTY_MODIFIER);
        let slot = vm.slot(GIB);
        vm.modify(range(GIB, PAGE_SIZE), Relax::Everywhere, |transaction| {
            let started = transaction.start().unwrap().unwrap();
            let before = (started.leaf().is_dirty(), started.leaf().is_accessed());
            assert_eq!(before, (false, false));
            // SAFETY: (1, 2) what hardware does to a leaf.
            unsafe { vm.space.arch.swap(slot, native::load(slot) | DIRTY | ACCESSED) };
            let was = started.commit(&Change::WRITE_PROTECT).unwrap();
            assert_eq!((was.is_dirty(), was.is_accessed()), (true, true), "{engine:?}");
        });
        assert_eq!(vm.held(GIB) & (DIRTY | ACCESSED | DIRTY_MODIFIER), ACCESSED);
    }
}

#[test]
fn a_grant_is_flushed_here_and_what_takes_something_away_everywhere() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm(&pages, &epochs);
    let encoding = vm.space.encoding();
    vm.lay(range(GIB, MIB2), Level::L3);
    let run = |pages, relax, to| {
        let change = Change::protect(to, encoding).unwrap();
        let _ = vm.space.arch.take_log();
        let modified = vm.modify(range(GIB, pages * PAGE_SIZE), relax, |transaction| {
            transaction.each(|_, _| Some(change)).unwrap();
        });
        assert_eq!(modified.changed, pages);
        let log = vm.space.arch.take_log();
        let of = |which: fn(&Tlbi) -> bool| {
            count(&log, |event| matches!(event, Logged::Tlbi(op, _) if which(op)))
        };
        [
            of(|op| matches!(op, Tlbi::Ipas2e1Is(_))),
            of(|op| matches!(op, Tlbi::Ipas2e1(_))),
            of(|op| matches!(op, Tlbi::Vmalls12e1)),
        ]
    };
    assert_eq!(run(1, Relax::Here, Prot::RX), [1, 0, 0], "taken");
    assert_eq!(run(1, Relax::Here, Prot::RWX), [0, 1, 0], "granted");
    assert_eq!(run(5, Relax::Here, Prot::RO), [5, 0, 0]);
    assert_eq!(run(5, Relax::Here, Prot::RW), [0, 0, 1], "several: all of this PE's");
    assert_eq!(run(5, Relax::Here, Prot::RX), [5, 0, 0], "one granted, one taken");
    assert_eq!(run(5, Relax::Everywhere, Prot::RWX), [5, 0, 0]);
    let account = vm.space.account();
    assert_eq!((account.changed, account.broken, account.local_grants), (22, 0, 2));
}

/// A change of all members leaves a run; a change of one dissolves it. Either way each has what any had recorded.
#[test]
fn a_contiguous_run_is_broken_as_a_whole_by_any_engine() {
    for (engine, budget) in ENGINES.into_iter().flat_map(|engine| [1, 99].map(|n| (engine, n))) {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(HwUpdate::AccessAndDirty, &pages, &epochs);
        vm.space.pin_engine(Some(engine));
        let at = range(GIB, 3 * RUN);
        vm.lay(range(GIB, MIB2), Level::L3);
        (0..48).for_each(|n| vm.alter(page(n), 0, DIRTY_MODIFIER));
        let mut claim = vm.space.claim(at).unwrap();
        let all = Batch::all_of(&claim);
        let made = vm.space.make_contiguous(&vm.cpu, &mut claim, all, Level::L3, &mut |_, _| {});
        assert_eq!(made, Ok(Progress::Done));
        // One member says that the first run is dirty.
        (0..16).filter(|n| *n != 9).for_each(|n| vm.alter(page(n), DIRTY, 0));
        let (mut from, mut told) = (at.start(), Vec::new());
        let guard = vm.cpu.enter();
        loop {
            let batch = Batch { from, slots: budget };
            let mut open =
                vm.space.modify_prot(&guard, &mut claim, batch, Relax::Everywhere).unwrap();
            open.each(|ipa, leaf| {
                let number = (ipa.get() - GIB) / PAGE_SIZE;
                told.push((number, leaf.bits() & DIRTY != 0));
                let before = number.checked_sub(1).filter(|_| !number.is_multiple_of(16));
                let live = before.is_some_and(|before| vm.held(page(before)) & 1 != 0);
                assert!(!live, "a member lives before the flush");
                // All of the first run, one of the second, none of the third.
                (number < 16 || number == 20).then_some(Change::WRITE_PROTECT)
            })
            .unwrap();
            match open.finish().progress {
                Progress::Done => break,
                Progress::Until(next) => from = next,
            }
        }
        drop(guard);
        let wanted: Vec<_> = (0..48).map(|n| (n, true)).collect();
        assert_eq!(told, wanted, "{engine:?}: each once, with what any of its run has recorded");
        for number in 0..48 {
            let contiguous = vm.held(page(number)) & CONTIGUOUS != 0;
            assert_eq!(contiguous, !(16..32).contains(&number), "{engine:?}: page {number}");
            let wanted = if number < 16 || number == 20 { Write::Denied } else { Write::Dirty };
            assert_eq!(vm.write(page(number)), wanted);
        }
        assert_eq!(vm.space.account().runs_dissolved, 1);
    }
}

/// What was recorded in a run is in each leaf, also of a run that stays.
#[test]
fn the_records_of_a_run_are_those_of_each_member() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::AccessAndDirty, &pages, &epochs);
    vm.lay(range(GIB, MIB2), Level::L3);
    (0..16).for_each(|n| vm.alter(page(n), DIRTY | ACCESSED, DIRTY_MODIFIER | CONTIGUOUS));
    vm.alter(page(3), 0, DIRTY | ACCESSED);
    // It begins in the middle.
    let mut claim = vm.space.claim(range(GIB, RUN)).unwrap();
    let guard = vm.cpu.enter();
    let batch = Batch { from: Ipa::new(page(14)), slots: 1 };
    let mut open = vm.space.modify_prot(&guard, &mut claim, batch, Relax::Everywhere).unwrap();
    let mut told = Vec::new();
    open.each(|ipa, _| {
        told.push(ipa.get());
        None
    })
    .unwrap();
    assert_eq!(told, [page(14), page(15)]);
    assert_eq!(open.finish(), Modified { progress: Progress::Done, changed: 0, broken: 16 });
    let all = DIRTY | ACCESSED | CONTIGUOUS | 1;
    assert!((0..16).all(|n| vm.held(page(n)) & all == all));
}

#[test]
fn what_is_in_the_way_is_refused_and_what_comes_before_it_is_done() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm(&pages, &epochs);
    vm.lay(range(GIB, MIB2), Level::L3);
    vm.lay(range(GIB + MIB2, 2 * MIB2), Level::L2);
    let run = |at: IpaRange| {
        let mut claim = vm.space.claim(at).unwrap();
        let all = Batch::all_of(&claim);
        vm.space.write_protect(&vm.cpu, &mut claim, all)
    };
    let straddles = |ipa| Err(ProtError::Straddles { ipa: Ipa::new(ipa), level: Level::L2 });
    let block = GIB + MIB2;
    assert_eq!(run(range(block + PAGE_SIZE, MIB2)), straddles(block), "over its end");
    assert_eq!(run(range(block, MIB2 - PAGE_SIZE)), straddles(block), "over its beginning");
    assert_eq!(vm.write(block), Write::Allowed, "nothing has changed");
    let second = block + MIB2;
    let until = Ok(Progress::Until(Ipa::new(second)));
    assert_eq!(run(range(block, 2 * MIB2 - PAGE_SIZE)), until, "it is like the first");
    assert_eq!((vm.write(block), vm.write(second)), (Write::Denied, Write::Allowed));
    vm.alter(block, 0, DIRTY);
    assert_eq!(run(range(page(510), MIB2)), Ok(Progress::Until(Ipa::new(block))));
    assert_eq!((vm.write(page(511)), vm.write(block)), (Write::Denied, Write::Allowed));
    assert!(!vm.space.pending_flush(Ipa::new(GIB)), "no flush is owed");

    (0..16).for_each(|n| vm.alter(page(n), 0, CONTIGUOUS));
    let cuts = Err(ProtError::CutsRun { ipa: Ipa::new(GIB), level: Level::L3 });
    assert_eq!(run(range(page(3), RUN)), cuts);
    assert_eq!(run(range(GIB, RUN - PAGE_SIZE)), cuts);
    assert!((0..16).all(|n| vm.held(page(n)) & (1 | DIRTY) == 1 | DIRTY), "it stays");

    for seen in [Descriptor::from_bits(vm.held(page(40))).to_busy().unwrap(), Descriptor::DEAD] {
        vm.put(page(40), seen);
        let unexpected = ProtError::Unexpected { ipa: Ipa::new(page(40)), level: Level::L3, seen };
        assert_eq!(run(range(page(40), PAGE_SIZE)), Err(unexpected));
        assert_eq!(vm.held(page(40)), seen.bits(), "and this is another's");
    }
}

#[test]
fn a_transaction_that_cannot_be_opened_says_why() {
    let (pages, epochs, other) = (Pages::new(usize::MAX), Epochs::<1>::new(), Epochs::<1>::new());
    let vm = vm(&pages, &epochs);
    let stranger = other.join(0).unwrap();
    vm.lay(range(GIB, MIB2), Level::L3);
    let mut claim = vm.space.claim(range(GIB, MIB2)).unwrap();
    let all = Batch::all_of(&claim);
    let guard = vm.cpu.enter();
    let open = |guard: &Guard<'_>, claim: &mut crate::claim::Claim<'_>, batch| {
        vm.space.modify_prot(guard, claim, batch, Relax::Everywhere).err()
    };
    assert_eq!(open(&stranger.enter(), &mut claim, all), Some(ProtError::ForeignGuard));
    let from = Ipa::new(GIB - PAGE_SIZE);
    let outside = NotClaimed::From { from, range: claim.range() };
    let batch = Batch { from, ..all };
    assert_eq!(open(&guard, &mut claim, batch), Some(ProtError::Claim(outside)));
    let table = vm.space.lookup_rw(&guard, Ipa::new(GIB)).unwrap().lock().unwrap();
    assert_eq!(open(&guard, &mut claim, all), Some(ProtError::HoldsLock));
    drop(table);
    assert_eq!(open(&guard, &mut claim, all), None);

    // Those that are forgotten keep their places, and what they may have changed pending.
    for _ in 0..crate::claim::MAX_CLAIMS {
        assert!(!vm.space.pending_flush(Ipa::new(3 * GIB)));
        let forgotten = vm.space.modify_prot(&guard, &mut claim, all, Relax::Here).unwrap();
        core::mem::forget(forgotten);
    }
    assert!(vm.space.pending_flush(Ipa::new(GIB)));
    assert_eq!(open(&guard, &mut claim, all), Some(ProtError::TooMany));
    drop(guard);

    let apart = vm.space.protect(&vm.cpu, &mut claim, all, Prot::EXEC_EL1, Relax::Everywhere);
    assert_eq!(apart, Err(ProtError::Attributes(AttributeError::ExecuteNeedsXnx)));
}

/// A change of permissions and a block that is made of the pages afterwards.
#[test]
fn protected_pages_are_alike() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let (vm, at) = (vm(&pages, &epochs), range(GIB, MIB2));
    vm.lay(at, Level::L3);
    let protect = |at: IpaRange| {
        let mut claim = vm.space.claim(at).unwrap();
        let all = Batch::all_of(&claim);
        vm.space.protect(&vm.cpu, &mut claim, all, Prot::RO, Relax::Everywhere)
    };
    let collapse = || {
        let (mut claim, mut told) = (vm.space.claim(at).unwrap(), None);
        let (all, mut heard) = (Batch::all_of(&claim), |_, what| told = Some(what));
        let _ = vm.space.collapse(&vm.cpu, &mut claim, all, Level::L2, || {}, &mut heard).unwrap();
        told.unwrap()
    };
    assert_eq!(protect(range(page(1), MIB2 - PAGE_SIZE)), Ok(Progress::Done));
    let unlike = Obstacle::Unlike { ipa: Ipa::new(page(1)) };
    assert_eq!(collapse(), crate::space::Collapse::Stays(unlike));
    assert_eq!(protect(range(GIB, PAGE_SIZE)), Ok(Progress::Done));
    assert_eq!(collapse(), crate::space::Collapse::Made);
    assert_eq!(vm.write(GIB), Write::Denied);
}
