//! Memory takes the place of scratch, page by page, and of nothing else.

use super::*;

/// Pages by address: that of `ipa` lies as many pages from [`REAL`] on as `ipa` from [`HOLE`].
pub(super) struct Real {
    left: usize,
    pub(super) taken: Vec<u64>,
    back: Vec<u64>,
    misplaced: bool,
}

const REAL: u64 = 0x20_0000_0000;

impl Real {
    pub(super) fn new(left: usize) -> Self {
        Self { left, taken: Vec::new(), back: Vec::new(), misplaced: false }
    }
}

// SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
unsafe impl Replacements for Real {
    fn take(&mut self, ipa: Ipa) -> Option<Pa> {
        self.left = self.left.checked_sub(1)?;
        self.taken.push(ipa.get());
        Some(Pa::new(REAL + (ipa.get() - HOLE) + u64::from(self.misplaced)))
    }

    fn give_back(&mut self, ipa: Ipa, page: Pa) {
        assert_eq!(page.get() & !1, REAL + (ipa.get() - HOLE));
        self.back.push(ipa.get());
    }
}

impl Vm<'_> {
    fn replace(
        &self,
        what: IpaRange,
        batch: Batch,
        real: &mut Real,
    ) -> Result<Replaced, ReplaceError> {
        let mut claim = self.space.claim(what).unwrap();
        let (scratch, mapping) = (scratch(&self.space), at(&self.space, PAGE));
        let nobody = || panic!("nobody to wait for");
        let done = self
            .space
            .replace_scratch(&self.cpu, &mut claim, batch, &scratch, &mapping, real, nobody);
        assert!(self.cpu.is_quiescent());
        done
    }
}

#[test]
fn memory_takes_the_place_of_scratch_and_of_nothing_else() {
    for budget in [1, 3, 64, 512, 100_000] {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let mut vm = Vm::new(&pages, &epochs);
        let mut tally = Tally::default();
        SHOWN_AT.iter().for_each(|n| _ = vm.reach(HOLE + n * 4096, &mut tally).unwrap());
        let others =
            [vm.map(HOLE + 0x5000, PAGE, Owner::Vm), vm.map(HOLE + 0x6000, PAGE, Owner::Other)];
        vm.put(HOLE + 0x7000, Descriptor::note(Note::new(9).unwrap()));
        let block = vm.map(HOLE + (8 << 20), Level::L2, Owner::Vm);
        vm.space.credit(&tally);
        let before = vm.space.account();
        let (what, mut real) = (range(HOLE, 10 << 20), Real::new(usize::MAX));
        let (mut from, mut replaced, mut occupied) = (Ipa::new(HOLE), 0, 0);
        loop {
            let done = vm.replace(what, Batch { from, slots: budget }, &mut real).unwrap();
            replaced += done.replaced;
            occupied += done.occupied;
            match done.progress {
                Progress::Done => break,
                Progress::Until(next) if next > from => from = next,
                other => panic!("{other:?} after {from}"),
            }
        }
        assert_eq!((replaced, occupied), (8, 3), "budget {budget}");
        for ipa in SHOWN_AT.map(|n| HOLE + n * 4096) {
            assert_eq!(vm.pa(ipa + 8), Some(REAL + ipa - HOLE + 8), "{ipa:#x}");
            let leaf = vm.leaf(ipa);
            assert_eq!(
                (leaf.owner(), leaf.attributes(vm.space.encoding())),
                (Owner::Vm, Some(ram()))
            );
        }
        assert_eq!([0x5000, 0x6000].map(|ipa| vm.pa(HOLE + ipa)), others.map(Some));
        assert_eq!(vm.pa(HOLE + (8 << 20)), Some(block));
        assert_eq!(
            vm.slot(HOLE + 0x7000).load(&vm.space.arch),
            Descriptor::note(Note::new(9).unwrap())
        );
        assert_eq!(
            vm.slot(HOLE + 0x8000).load(&vm.space.arch),
            Descriptor::EMPTY,
            "a hole stays one"
        );
        assert_eq!(real.taken, SHOWN_AT.map(|n| HOLE + n * 4096));
        assert_eq!(real.back, []);
        let now = vm.space.account();
        assert_eq!(now.leaves_now(), before.leaves_now(), "as many leaves as before");
        assert_eq!((now.mapped[2], now.others_unmapped), (8, 8));
    }
}

/// Drain, a flush that covers it, and only then the page: in this order, with one flush for a batch.
#[test]
fn scratch_is_broken_and_flushed_before_a_page_stands_there() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let mut tally = Tally::default();
    [0, 1, 2].iter().for_each(|n| _ = vm.reach(HOLE + n * 4096, &mut tally).unwrap());
    let _ = vm.space.arch.take_log();
    let what = range(HOLE, 3 * 4096);
    let batch = Batch { from: what.start(), slots: 512 };
    let done = vm.replace(what, batch, &mut Real::new(3)).unwrap();
    assert_eq!(done, Replaced { progress: Progress::Done, replaced: 3, occupied: 0 });
    let log = vm.space.arch.take_log();
    let of = |wanted: &dyn Fn(&Event) -> bool| -> Vec<usize> {
        (0..log.len()).filter(|n| wanted(&log[*n])).collect()
    };
    let swaps = of(&|event| matches!(event, Event::Swap(_)));
    let tlbis = of(&|event| matches!(event, Event::Tlbi(..)));
    let stores = of(&|event| matches!(event, Event::Store(_)));
    assert_eq!((swaps.len(), stores.len()), (3, 3), "{log:?}");
    assert_eq!(tlbis.len(), 4, "three pages and what is combined: {log:?}");
    assert!(swaps[2] < tlbis[0] && tlbis[3] < stores[0], "{log:?}");
    assert_eq!(log.last(), Some(&Event::Dsb(Dsb::IshSt)), "and it is made visible");
}

#[test]
fn a_batch_ends_where_there_is_no_page_and_the_next_says_so() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    let mut tally = Tally::default();
    SHOWN_AT.iter().for_each(|n| _ = vm.reach(HOLE + n * 4096, &mut tally).unwrap());
    vm.map(HOLE + 100 * 4096, PAGE, Owner::Vm);
    vm.map(HOLE + 600 * 4096, PAGE, Owner::Vm);
    let (what, mut real) = (range(HOLE, 8 << 20), Real::new(5));
    let all = |from| Batch { from: Ipa::new(from), slots: usize::MAX };
    let stopped = HOLE + 512 * 4096;
    let done = vm.replace(what, all(HOLE), &mut real).unwrap();
    let progress = Progress::Until(Ipa::new(stopped));
    assert_eq!(
        done,
        Replaced { progress, replaced: 5, occupied: 1 },
        "what comes later is not counted"
    );
    let ipa = Ipa::new(stopped);
    assert_eq!(vm.replace(what, all(stopped), &mut real), Err(ReplaceError::OutOfFrames { ipa }));
    assert_eq!(vm.pa(stopped), Some(PA), "scratch stays");
    let mut odd = Real { misplaced: true, ..Real::new(9) };
    let error = DescriptorError::Address { level: PAGE, pa: Pa::new(REAL + stopped - HOLE + 1) };
    assert_eq!(vm.replace(what, all(stopped), &mut odd), Err(ReplaceError::Descriptor(error)));
    assert_eq!(odd.back, [stopped]);
    real.left = usize::MAX;
    let done = vm.replace(what, all(stopped), &mut real).unwrap();
    assert_eq!(done, Replaced { progress: Progress::Done, replaced: 3, occupied: 1 });
}

#[test]
fn what_the_claim_should_have_kept_away_ends_a_batch_before_it() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    let mut tally = Tally::default();
    let _ = vm.reach(HOLE, &mut tally).unwrap();
    let odd = HOLE + 0x2000;
    vm.map(odd, PAGE, Owner::Vm);
    let live = vm.slot(odd).load(&vm.space.arch);
    let (what, all) = (range(HOLE, 0x4000), |from| Batch { from: Ipa::new(from), slots: 99 });
    for seen in [live.to_busy().unwrap(), Descriptor::DEAD, Descriptor::from_bits(0x1001)] {
        vm.put(odd, seen);
        vm.put(HOLE, scratch(&vm.space).descriptor());
        let done = vm.replace(what, all(HOLE), &mut Real::new(9)).unwrap();
        let progress = Progress::Until(Ipa::new(odd));
        assert_eq!(done, Replaced { progress, replaced: 1, occupied: 0 });
        let error = ReplaceError::Unexpected { ipa: Ipa::new(odd), level: PAGE, seen };
        assert_eq!(vm.replace(what, all(odd), &mut Real::new(9)), Err(error));
        assert_eq!(vm.slot(odd).load(&vm.space.arch), seen);
    }
}

#[test]
fn a_replacement_is_refused_where_it_could_not_wait_or_has_no_such_leaf() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let (vm, small) = (Vm::new(&pages, &epochs), space(&pages, &epochs, 30));
    let mut tally = Tally::default();
    let _ = vm.reach(HOLE, &mut tally).unwrap();
    let mut claim = vm.space.claim(range(HOLE, 0x1000)).unwrap();
    let (scratch, mut real) = (scratch(&vm.space), Real::new(9));
    let mut replace = |from, mapping: &Mapping| {
        let batch = Batch { from: Ipa::new(from), slots: 1 };
        vm.space.replace_scratch(&vm.cpu, &mut claim, batch, &scratch, mapping, &mut real, || {})
    };
    let page = at(&vm.space, PAGE);
    let guard = vm.cpu.enter();
    assert_eq!(replace(HOLE, &page), Err(ReplaceError::NotQuiescent));
    drop(guard);
    let level = Level::L2;
    assert_eq!(replace(HOLE, &at(&vm.space, level)), Err(ReplaceError::Level { level }));
    assert_eq!(replace(HOLE, &at(&small, PAGE)), Err(ReplaceError::ForeignMapping));
    let (from, range) = (Ipa::new(HOLE + 0x1000), range(HOLE, 0x1000));
    let outside = ReplaceError::Claim(NotClaimed::From { from, range });
    assert_eq!(replace(HOLE + 0x1000, &page), Err(outside));
    assert_eq!(vm.pa(HOLE), Some(PA));
    assert_eq!(real.taken, []);
}

/// Who gives pages may not leave a guard open: then scratch stands there again.
#[test]
fn a_guard_that_stays_open_puts_scratch_back() {
    struct Holds<'c>(&'c crate::epoch::Cpu<'c>, usize);
    // SAFETY: (1, 2) no guest runs.
    unsafe impl Replacements for Holds<'_> {
        fn take(&mut self, ipa: Ipa) -> Option<Pa> {
            core::mem::forget(self.0.enter());
            Some(Pa::new(REAL + (ipa.get() - HOLE)))
        }
        fn give_back(&mut self, _: Ipa, _: Pa) {
            self.1 += 1;
        }
    }
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let _ = vm.reach(HOLE, &mut Tally::default()).unwrap();
    let mut claim = vm.space.claim(range(HOLE, 0x1000)).unwrap();
    let (scratch, mapping, mut holds) =
        (scratch(&vm.space), at(&vm.space, PAGE), Holds(&vm.cpu, 0));
    let all = Batch::all_of(&claim);
    let done =
        vm.space.replace_scratch(&vm.cpu, &mut claim, all, &scratch, &mapping, &mut holds, || {});
    assert_eq!((done, holds.1), (Err(ReplaceError::NotQuiescent), 1));
    assert_eq!(vm.leaf(HOLE).bits(), scratch.descriptor().bits());
}

/// A page of the VM's that lies where the scratch page does, a block of others' there, and a page of others' elsewhere are none.
#[test]
fn what_is_like_scratch_is_not_taken_for_it() {
    const BLOCK: u64 = 0x7020_0000;
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    // SAFETY: (1, 2) no guest runs; (3) not kept beyond the space.
    let scratch = unsafe { vm.space.scratch(Pa::new(BLOCK)) }.unwrap();
    let leaf = |level, pa, owner| {
        Descriptor::leaf(level, Pa::new(pa), &ram(), vm.space.encoding(), owner).unwrap()
    };
    let block = leaf(Level::L2, BLOCK, Owner::Other);
    let like = [
        leaf(PAGE, BLOCK, Owner::Vm),
        leaf(PAGE, BLOCK + 0x1000, Owner::Other),
        scratch.descriptor(),
    ];
    (0..3).for_each(|n| _ = vm.map(HOLE + n * 4096, PAGE, Owner::Vm));
    let second = HOLE + (2 << 20);
    vm.map(second, Level::L2, Owner::Vm);
    vm.put(second, block);
    (0..3).zip(like).for_each(|(n, leaf)| vm.put(HOLE + n * 4096, leaf));
    let mut claim = vm.space.claim(range(HOLE, 4 << 20)).unwrap();
    let (mapping, mut real, all) = (at(&vm.space, PAGE), Real::new(9), Batch::all_of(&claim));
    let done =
        vm.space.replace_scratch(&vm.cpu, &mut claim, all, &scratch, &mapping, &mut real, || {});
    assert_eq!(done, Ok(Replaced { progress: Progress::Done, replaced: 1, occupied: 3 }));
    assert_eq!(vm.slot(HOLE).load(&vm.space.arch), like[0]);
    assert_eq!(vm.slot(HOLE + 0x1000).load(&vm.space.arch), like[1]);
    assert_eq!(vm.slot(second).load(&vm.space.arch), block);
}

/// Between the look and the break nobody takes scratch away but the claim; if somebody did, what he put there stays.
#[test]
fn what_is_no_scratch_any_more_is_left_alone_and_its_page_comes_back() {
    struct Meddler<'v, 't>(&'v Vm<'t>, Descriptor, Vec<u64>);
    // SAFETY: (1, 2) no guest runs.
    unsafe impl Replacements for Meddler<'_, '_> {
        fn take(&mut self, ipa: Ipa) -> Option<Pa> {
            if ipa.get() == HOLE + 0x1000 {
                self.0.put(ipa.get(), self.1);
            }
            Some(Pa::new(REAL + (ipa.get() - HOLE)))
        }
        fn give_back(&mut self, ipa: Ipa, _: Pa) {
            assert!(self.0.cpu.is_quiescent(), "neither a guard nor a lock is held");
            self.2.push(ipa.get());
        }
    }
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let mut tally = Tally::default();
    (0..3).for_each(|n| _ = vm.reach(HOLE + n * 4096, &mut tally).unwrap());
    let page = Descriptor::leaf(PAGE, Pa::new(0x9000), &ram(), vm.space.encoding(), Owner::Vm);
    let other = page.unwrap();
    let mut claim = vm.space.claim(range(HOLE, 0x3000)).unwrap();
    let (scratch, mapping, all) = (scratch(&vm.space), at(&vm.space, PAGE), Batch::all_of(&claim));
    let mut meddler = Meddler(&vm, other, Vec::new());
    let done =
        vm.space.replace_scratch(&vm.cpu, &mut claim, all, &scratch, &mapping, &mut meddler, || {});
    assert_eq!(done, Ok(Replaced { progress: Progress::Done, replaced: 2, occupied: 0 }));
    assert_eq!(meddler.2, [HOLE + 0x1000], "its page comes back");
    assert_eq!(vm.slot(HOLE + 0x1000).load(&vm.space.arch), other, "it is left alone");
}
