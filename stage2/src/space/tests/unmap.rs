//! Unmap from every state of a slot, tables given back, and installers in the way.

use super::*;
use crate::arch::{Observation, host};
use crate::descriptor::Former;
use crate::flush::Flushed;
use crate::slot::Slot;
use crate::space::{Batch, NotClaimed, Notes, Progress, Release, UnmapError};

/// Where released memory goes: a map of IPA to address and bytes.
#[derive(Default)]
pub(super) struct Released(pub(super) BTreeMap<u64, (u64, u64)>);

impl Release for Released {
    fn frame(&mut self, ipa: Ipa, former: &Former, _: &Flushed) {
        let what = (former.pa().get(), former.level().slot_bytes());
        assert_eq!(self.0.insert(ipa.get(), what), None, "released twice");
    }
}

pub(super) fn range(start: u64, bytes: u64) -> IpaRange {
    IpaRange::new(Ipa::new(start), bytes).unwrap()
}

pub(super) struct Vm<'t> {
    pub(super) pages: &'t Pages,
    pub(super) space: Space<'t, &'t Pages, Host>,
    pub(super) cpu: crate::epoch::Cpu<'t>,
    pub(super) frames: Counted,
}

impl<'t> Vm<'t> {
    pub(super) fn new(pages: &'t Pages, epochs: &'t Epochs<1>) -> Self {
        let frames = Counted::new(1 << 40, 1 << 30, usize::MAX);
        Self { pages, space: space(pages, epochs, 40), cpu: epochs.join(0).unwrap(), frames }
    }

    pub(super) fn map(&mut self, ipa: u64, level: Level, owner: Owner) -> u64 {
        let mapping = self.space.mapping(level, &ram(), owner).unwrap();
        let (guard, tally) = (self.cpu.enter(), &mut Tally::default());
        match self.space.install(&guard, Ipa::new(ipa), &mapping, &mut self.frames, tally) {
            Ok(Install::Installed(pa)) => pa.get(),
            other => panic!("{other:?}"),
        }
    }

    /// The slot where the walk to `ipa` ends.
    pub(super) fn slot(&self, ipa: u64) -> &'t Slot {
        let guard = self.cpu.enter();
        let lookup = self.space.lookup(&guard, Ipa::new(ipa)).unwrap();
        let mut pa = self.space.geometry.root_page(self.space.root, Ipa::new(ipa));
        let mut level = self.space.geometry.start();
        loop {
            // SAFETY: (1) linked, and this is the only thread.
            let slot = unsafe { self.pages_table(pa) }.slot(level.index(Ipa::new(ipa)));
            if level == lookup.level {
                return slot;
            }
            pa = slot.load(&self.space.arch).as_table(level).unwrap();
            level = level.next().unwrap();
        }
    }

    /// # Safety
    /// 1. As of [`Memory::table`].
    pub(super) unsafe fn pages_table(&self, pa: Pa) -> &'t Table {
        &self.pages.arena[usize::try_from(pa.get() / PAGE_SIZE).unwrap()]
    }

    pub(super) fn put(&self, ipa: u64, held: Descriptor) {
        // SAFETY: (1, 2) nothing walks these tables.
        unsafe { self.space.arch.swap(self.slot(ipa), held.bits()) };
    }

    pub(super) fn unmap(
        &self,
        range: IpaRange,
        budget: usize,
        notes: Notes,
    ) -> Result<Released, UnmapError> {
        let mut claim = self.space.claim(range).unwrap();
        let (mut released, mut from) = (Released::default(), range.start());
        loop {
            let unmap = self.space.unmap(
                &self.cpu,
                &mut claim,
                Batch { from, slots: budget },
                notes,
                || panic!("nobody to wait for"),
                &mut released,
            );
            assert!(self.cpu.is_quiescent());
            match unmap? {
                Progress::Done => return Ok(released),
                Progress::Until(next) => {
                    assert!(next > from, "a batch makes progress");
                    from = next;
                }
            }
        }
    }
}

#[test]
fn every_frame_comes_back_once_and_every_table() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    let roots = vm.space.geometry.root_tables();
    let all = range(0, 1 << 40);
    for budget in [1, 7, 511, 512, 513, 100_000] {
        let mut expected = BTreeMap::new();
        for (ipa, level) in [
            (0, Level::L3),
            (0x1000, Level::L3),
            (0x1f_f000, Level::L3),
            (0x20_0000, Level::L2),
            (0x3fff_f000, Level::L3),
            (1 << 30, Level::L1),
            (0x80_0000_0000, Level::L3),
            (0xff_ffff_f000, Level::L3),
        ] {
            expected.insert(ipa, (vm.map(ipa, level, Owner::Vm), level.slot_bytes()));
        }
        let released = vm.unmap(all, budget, Notes::Keep).unwrap();
        assert_eq!(released.0, expected, "budget {budget}");
        assert_eq!(linked_tables(&vm.space), roots, "no table is left in the tree");
        assert_eq!(pages.live(), roots, "every table was given back");
    }
}

#[test]
fn a_part_of_a_table_leaves_the_table_and_the_rest() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    let frames: Vec<u64> = (0..4).map(|page| vm.map(page << 12, Level::L3, Owner::Vm)).collect();
    let tables = pages.live();
    let released = vm.unmap(range(0x1000, 0x2000), usize::MAX, Notes::Keep).unwrap();
    assert_eq!(released.0, [(0x1000, (frames[1], 4096)), (0x2000, (frames[2], 4096))].into());
    assert_eq!(pages.live(), tables);
    let guard = vm.cpu.enter();
    let pa = |ipa| vm.space.translate(&guard, Ipa::new(ipa)).map(|t| t.pa.get());
    assert_eq!(pa(0x123), Some(frames[0] + 0x123));
    assert_eq!(pa(0x1000), None);
    assert_eq!(pa(0x3fff), Some(frames[3] + 0xfff));
    drop(guard);
    vm.map(0x1000, Level::L3, Owner::Vm);
}

#[test]
fn one_flush_serves_a_batch_however_many_tables_it_touches() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    (0..64).for_each(|block| _ = vm.map(block << 21, Level::L3, Owner::Vm));
    let _ = vm.space.arch.take_log();
    vm.unmap(range(0, 1 << 30), usize::MAX, Notes::Keep).unwrap();
    let log = vm.space.arch.take_log();
    let count = |wanted: fn(&host::Event) -> bool| log.iter().filter(|e| wanted(e)).count();
    assert_eq!(
        count(|e| matches!(e, Event::Dsb(Dsb::Ish))),
        2,
        "before the switch and after VMALLS12"
    );
    assert_eq!(count(|e| matches!(e, Event::Tlbi(..))), 1, "no ranges here: the whole VMID");
}

#[test]
fn memory_that_is_not_the_vms_is_not_released() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    vm.map(0x5000, Level::L3, Owner::Other);
    let released = vm.unmap(range(0x5000, 0x1000), 1, Notes::Keep).unwrap();
    assert!(released.0.is_empty());
    assert_eq!(vm.slot(0x5000).load(&vm.space.arch), Descriptor::EMPTY);
}

#[test]
fn a_block_over_the_edge_is_refused_and_what_was_drained_is_finished() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    let page = vm.map(0x1f_f000, Level::L3, Owner::Vm);
    vm.map(0x20_0000, Level::L2, Owner::Vm);
    let mut claim = vm.space.claim(range(0x1f_f000, 0x2000)).unwrap();
    let mut released = Released::default();
    let start = claim.range().start();
    let unmap = || {
        vm.space.unmap(
            &vm.cpu,
            &mut claim,
            Batch { from: start, slots: 99 },
            Notes::Keep,
            || {},
            &mut released,
        )
    };
    let edge = UnmapError::Straddles { ipa: Ipa::new(0x20_0000), level: Level::L2 };
    assert_eq!({ unmap }(), Err(edge));
    assert_eq!(released.0, [(0x1f_f000, (page, 4096))].into());
    assert_eq!(vm.slot(0x1f_f000).load(&vm.space.arch), Descriptor::EMPTY);
}

#[test]
fn notes_stay_or_go_as_asked_and_keep_their_table() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    let frame = vm.map(0x1000, Level::L3, Owner::Vm);
    let note = Descriptor::note(Note::new(5).unwrap());
    vm.put(0x2000, note);
    let tables = pages.live();
    let released = vm.unmap(range(0, 1 << 30), usize::MAX, Notes::Keep).unwrap();
    assert_eq!(released.0, [(0x1000, (frame, 4096))].into());
    assert_eq!(vm.slot(0x2000).load(&vm.space.arch), note);
    assert_eq!(pages.live(), tables);
    let thawed = vm.slot(0x3000).load(&vm.space.arch);
    assert_eq!(thawed, Descriptor::EMPTY, "the slots of a table that stays can be installed in");
    vm.unmap(range(0, 1 << 30), usize::MAX, Notes::Remove).unwrap();
    assert_eq!(pages.live(), vm.space.geometry.root_tables());
}

#[test]
fn a_batch_from_the_middle_of_a_table_leaves_what_lies_before() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    let frames = [0x1000, 0x3000].map(|ipa| vm.map(ipa, Level::L3, Owner::Vm));
    let (mut claim, mut released) =
        (vm.space.claim(range(0, 1 << 21)).unwrap(), Released::default());
    let batch = Batch { from: Ipa::new(0x2000), slots: usize::MAX };
    let relax = || panic!("nobody to wait for");
    let done = vm.space.unmap(&vm.cpu, &mut claim, batch, Notes::Keep, relax, &mut released);
    assert_eq!(done, Ok(Progress::Done));
    assert_eq!(released.0, [(0x3000, (frames[1], 4096))].into());
    let kept = vm.space.translate(&vm.cpu.enter(), Ipa::new(0x1000)).map(|found| found.pa.get());
    assert_eq!(kept, Some(frames[0]), "what lies before the batch stays");
}

/// A machine on which something happens as a table's lock is taken for the n-th time.
struct AtLock<F> {
    host: Host,
    left: AtomicUsize,
    then: F,
}

// SAFETY: it is the host, but for what the test does.
unsafe impl<F: Fn(&Host) + Sync> Arch for AtLock<F> {
    fn load(&self, slot: &Slot) -> u64 {
        self.host.load(slot)
    }
    unsafe fn store(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        unsafe { self.host.store(slot, bits) };
    }
    unsafe fn swap(&self, slot: &Slot, bits: u64) -> u64 {
        // SAFETY: the caller's clauses.
        unsafe { self.host.swap(slot, bits) }
    }
    unsafe fn compare_exchange(&self, slot: &Slot, old: u64, new: u64) -> Option<Result<u64, u64>> {
        // SAFETY: the caller's clause.
        unsafe { self.host.compare_exchange(slot, old, new) }
    }
    fn dsb(&self, kind: Dsb) {
        self.host.dsb(kind);
    }
    fn isb(&self) {
        self.host.isb();
    }
    fn tlbi(&self, op: Tlbi) {
        self.host.tlbi(op);
    }
    fn vttbr(&self) -> u64 {
        self.host.vttbr()
    }
    unsafe fn set_vttbr(&self, value: u64) {
        // SAFETY: the caller's clauses.
        unsafe { self.host.set_vttbr(value) };
    }
    fn observe(&self, what: Observation) {
        if matches!(what, Observation::Locked { .. })
            && self.left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            (self.then)(&self.host);
        }
    }
}

/// A late fault handler fills a slot of a table after it was swept, and before it is found to hold a note.
#[test]
fn what_is_drained_in_a_table_that_stays_comes_back() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let late = LeafTemplate::new(PAGE, &ram(), Encoding::of(&features(48)), Owner::Vm);
    let late = late.and_then(|leaf| leaf.at(Pa::new(0x7000))).unwrap();
    let target = std::sync::OnceLock::<&Slot>::new();
    let arch = AtLock {
        host: Host::new(),
        // Parent and table to take it out, the table to sweep it, both to take it out now.
        left: AtomicUsize::new(5),
        then: |host: &Host| {
            // SAFETY: (1) the slot is Empty; (2) nothing walks these tables.
            let old = unsafe { host.swap(target.get().unwrap(), late.bits()) };
            assert_eq!(old, 0, "it was swept");
        },
    };
    let space = Space::new(geometry(39), vmids(), epochs.domain(), &pages, arch).unwrap();
    let cpu = epochs.join(0).unwrap();
    let (mut frames, mut tally) = (Counted::new(0, 4096, 1), Tally::default());
    let at = at(&space, PAGE);
    space.install(&cpu.enter(), Ipa::new(0x1000), &at, &mut frames, &mut tally).unwrap();
    let table = &pages.arena[2];
    target.set(table.slot(3)).unwrap();
    // SAFETY: (1, 2) nothing walks these tables.
    unsafe { space.arch.swap(table.slot(5), Descriptor::note(Note::new(5).unwrap()).bits()) };

    let (mut claim, mut released) = (space.claim(range(0, 1 << 21)).unwrap(), Released::default());
    let (all, relax) = (Batch::all_of(&claim), || panic!("nobody to wait for"));
    let done = space.unmap(&cpu, &mut claim, all, Notes::Keep, relax, &mut released);
    assert_eq!(done, Ok(Progress::Done));
    assert_eq!(released.0.get(&0x3000), Some(&(0x7000, 4096)), "the late frame is released");
}

/// Found by another operation that was given up: the claim makes it ours to finish.
#[test]
fn drained_slots_of_an_operation_that_was_given_up_are_finished() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    let frame = vm.map(0x1000, Level::L3, Owner::Vm);
    let live = vm.slot(0x1000).load(&vm.space.arch);
    vm.put(0x1000, live.to_drain(Level::L3).unwrap());
    let released = vm.unmap(range(0x1000, 0x1000), 1, Notes::Keep).unwrap();
    assert_eq!(released.0, [(0x1000, (frame, 4096))].into());
}

#[test]
fn slots_that_nobody_explains_are_named_and_left() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    vm.map(0x1000, Level::L3, Owner::Vm);
    let live = vm.slot(0x1000).load(&vm.space.arch);
    for seen in [live.to_busy().unwrap(), Descriptor::DEAD, Descriptor::from_bits(0x1003)] {
        vm.put(0x2000, seen);
        let unmap = vm.unmap(range(0x2000, 0x1000), 9, Notes::Keep);
        let error = UnmapError::Unexpected { ipa: Ipa::new(0x2000), level: Level::L3, seen };
        assert_eq!(unmap.err(), Some(error));
        assert_eq!(vm.slot(0x2000).load(&vm.space.arch), seen);
    }
}

#[test]
fn wrong_calls_are_refused_and_change_nothing() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let (other_pages, other_epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let (mut vm, other) = (Vm::new(&pages, &epochs), Vm::new(&other_pages, &other_epochs));
    vm.map(0x1000, Level::L3, Owner::Vm);
    let wanted = range(0x1000, 0x1000);
    let mut claim = vm.space.claim(wanted).unwrap();
    let mut unmap = |vm: &Vm<'_>, cpu, from| {
        vm.space.unmap(
            cpu,
            &mut claim,
            Batch { from: Ipa::new(from), slots: 1 },
            Notes::Keep,
            || {},
            &mut Released::default(),
        )
    };
    assert_eq!(unmap(&other, &other.cpu, 0x1000), Err(UnmapError::Claim(NotClaimed::ForeignClaim)));
    assert_eq!(unmap(&vm, &other.cpu, 0x1000), Err(UnmapError::ForeignGuard));
    for from in [0, 0x1008, 0x2000] {
        let error = NotClaimed::From { from: Ipa::new(from), range: wanted };
        assert_eq!(unmap(&vm, &vm.cpu, from), Err(UnmapError::Claim(error)));
    }
    let guard = vm.cpu.enter();
    assert_eq!(unmap(&vm, &vm.cpu, 0x1000), Err(UnmapError::NotQuiescent));
    assert!(vm.space.translate(&guard, Ipa::new(0x1000)).is_some());
}

#[test]
fn a_stale_table_cannot_be_locked_for_writing() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    vm.map(0x1000, Level::L3, Owner::Vm);
    let guard = vm.cpu.enter();
    let rw = |ipa| vm.space.lookup_rw(&guard, Ipa::new(ipa)).unwrap();
    let (stale, fresh, ro) =
        (rw(0x1000), rw(0x1000), vm.space.lookup_ro(&guard, Ipa::new(0x1000)).unwrap());
    assert_eq!(fresh.level(), Level::L3);
    drop(fresh.lock().unwrap());
    // Somebody takes the table out of the tree.
    let path = vm.space.path(&guard, Ipa::new(0x1000)).unwrap();
    let link = path.leaf().unwrap().link.unwrap();
    // SAFETY: (1) this is the only thread.
    let drained = unsafe { link.slot.clear(&vm.space.arch, Level::L2) }.unwrap();
    let error = stale.lock().unwrap_err();
    assert_eq!((error.seen, error.found.is_valid()), (drained.old(), false));
    assert!(ro.lock().get(Ipa::new(0x1000)).is_some(), "reading needs no comparison");
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "parent before child")]
fn locks_out_of_order_are_caught() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    vm.map(0x1000, Level::L3, Owner::Vm);
    let guard = vm.cpu.enter();
    let path = vm.space.path(&guard, Ipa::new(0x1000)).unwrap();
    let child = path.leaf().unwrap();
    let _held = child.lock(&vm.space.arch, &guard).unwrap();
    let _parent = path.above(&child).unwrap().lock(&vm.space.arch, &guard);
}

/// Threads install, also behind a sweep that goes by batches, while another unmaps: in the end nothing is lost and
/// nothing is there. One table stays, because there is a note in its last slot.
#[test]
fn installers_and_unmappers_together_lose_nothing() {
    const INSTALLERS: usize = 2;
    const ROUNDS: usize = 60;
    let mut pages = Pages::new(usize::MAX);
    pages.yields = true;
    let epochs = Epochs::<{ INSTALLERS + 1 }>::new();
    let space = space(&pages, &epochs, 39);
    let stop = AtomicBool::new(false);
    let whole = range(0, 1 << 30);
    {
        let cpu = epochs.join(0).unwrap();
        let mut claim = space.claim(range(1023 << 12, 0x1000)).unwrap();
        let all = Batch::all_of(&claim);
        let noted = space.annotate(&cpu, &mut claim, all, Note::new(1).unwrap());
        assert_eq!(noted, Ok(Progress::Done));
    }
    struct Frames<'v>(&'v mut Vec<u64>);
    impl Release for Frames<'_> {
        fn frame(&mut self, _: Ipa, former: &Former, _: &Flushed) {
            self.0.push(former.pa().get());
        }
    }
    let (installed, released) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..INSTALLERS)
            .map(|thread| {
                let (space, epochs, stop) = (&space, &epochs, &stop);
                scope.spawn(move || {
                    let cpu = epochs.join(thread).unwrap();
                    let first = (thread as u64 + 1) << 40;
                    let mut frames = Counted::new(first, 4096, usize::MAX);
                    let (mut tally, mut done) = (Tally::default(), Vec::new());
                    let mut page = thread as u64;
                    while !stop.load(Ordering::Relaxed) {
                        page = (page * 5 + 7) % 2048;
                        let (at, guard) = (Ipa::new(page << 12), cpu.enter());
                        let mapping = self::at(space, PAGE);
                        match space.install(&guard, at, &mapping, &mut frames, &mut tally) {
                            Ok(Install::Installed(pa)) => done.push(pa.get()),
                            Ok(Install::Present(_)) => {}
                            Err(InstallError::Retry { .. } | InstallError::Note { .. }) => {}
                            Err(InstallError::OutOfTables) => panic!("the arena is too small"),
                            other => panic!("{other:?}"),
                        }
                    }
                    done
                })
            })
            .collect();
        // Also when an assertion fails: the threads would go on for ever.
        struct Stop<'s>(&'s AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let stopper = Stop(&stop);
        let cpu = epochs.join(INSTALLERS).unwrap();
        let mut released = Vec::new();
        let sweep = |released: &mut Vec<u64>, slots, notes| {
            let mut claim = space.claim(whole).unwrap();
            let mut batch = Batch { slots, ..Batch::all_of(&claim) };
            let mut given = Frames(released);
            let relax = std::thread::yield_now;
            while let Progress::Until(next) =
                space.unmap(&cpu, &mut claim, batch, notes, relax, &mut given).unwrap()
            {
                batch.from = next;
            }
            let left = space.census(&cpu.enter(), whole);
            assert_eq!(left.others, 0, "nothing is left in transition");
        };
        for round in 0..ROUNDS {
            sweep(&mut released, [usize::MAX, 100, 600][round % 3], Notes::Keep);
        }
        drop(stopper);
        let installed: Vec<u64> =
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        sweep(&mut released, usize::MAX, Notes::Remove);
        (installed, released)
    });
    let distinct: HashSet<u64> = installed.iter().copied().collect();
    assert_eq!(distinct.len(), installed.len());
    assert_eq!(released.len(), installed.len(), "each frame came back exactly once");
    assert_eq!(released.into_iter().collect::<HashSet<u64>>(), distinct);
    assert_eq!(pages.live(), space.geometry.root_tables());
}
