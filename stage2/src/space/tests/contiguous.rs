//! Runs of 16: made, dissolved, and in the way of everything else.

use super::map::extent;
use super::unmap::{Vm, range};
use super::*;
use crate::account::TLBI_KINDS;
use crate::arch::Observation;
use crate::arch::host::Event as Logged;
use crate::descriptor::Former;
use crate::flush::Flushed;
use crate::space::{
    Batch, Collapse, Contiguous, ContiguousError, Notes, Obstacle, Progress, Release, SplitError,
    UnmapError,
};

const GIB: u64 = 1 << 30;
const MIB2: u64 = 2 << 20;
/// Bytes of a run of pages.
const RUN: u64 = 16 * PAGE_SIZE;
const DIRTY: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 10;
const DIRTY_MODIFIER: u64 = 1 << 51;
const CONTIGUOUS: u64 = 1 << 52;

type Told = Vec<(u64, Contiguous)>;

impl Vm<'_> {
    /// Maps a range to memory 7 GiB further on.
    fn fill(&self, at: IpaRange, coarsest: Level) {
        let mut claim = self.space.claim(at).unwrap();
        let all = Batch::all_of(&claim);
        let extent = extent(at.start().get() + 7 * GIB, coarsest);
        // SAFETY: (1, 2) no guest runs on the host.
        let mapped = unsafe { self.space.map(&self.cpu, &mut claim, all, &extent) };
        assert_eq!(mapped, Ok(Progress::Done));
    }

    fn make(&self, at: IpaRange, level: Level, slots: usize) -> Result<Told, ContiguousError> {
        let mut claim = self.space.claim(at).unwrap();
        let (mut from, mut told) = (at.start(), Vec::new());
        let mut heard = |ipa: Ipa, what| {
            assert!(self.cpu.is_quiescent(), "whoever hears may do what the caller may");
            told.push((ipa.get(), what));
        };
        loop {
            let batch = Batch { from, slots };
            match self.space.make_contiguous(&self.cpu, &mut claim, batch, level, &mut heard)? {
                Progress::Done => return Ok(told),
                Progress::Until(next) => {
                    assert!(next > from, "a batch makes progress");
                    from = next;
                }
            }
        }
    }

    fn dissolve(&self, at: IpaRange, slots: usize) -> Result<(), ContiguousError> {
        let mut claim = self.space.claim(at).unwrap();
        let mut from = at.start();
        while let Progress::Until(next) =
            self.space.dissolve(&self.cpu, &mut claim, Batch { from, slots })?
        {
            assert!(next > from, "a batch makes progress");
            from = next;
        }
        Ok(())
    }

    /// What the slot of a page holds.
    fn bits(&self, ipa: u64) -> u64 {
        self.slot(ipa).load(&self.space.arch).bits()
    }

    /// Members of runs among the leaves of a range.
    fn members(&self, at: IpaRange) -> usize {
        let guard = self.cpu.enter();
        let member = |(_, lookup): &(Ipa, crate::space::Lookup)| matches!(lookup.view(), View::Leaf(leaf) if leaf.is_contiguous());
        self.space.visit(&guard, at).filter(member).count()
    }

    /// Flushes, of either kind.
    fn flushes(&self) -> u64 {
        let account = self.space.account();
        account.flushes + account.whole_flushes
    }
}

#[test]
fn runs_are_made_and_dissolved_at_both_levels() {
    for (level, bytes) in [(Level::L3, 4 * MIB2), (Level::L2, 64 * MIB2)] {
        for budget in [1, 40, usize::MAX] {
            let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
            let vm = Vm::new(&pages, &epochs);
            let at = range(GIB, bytes);
            vm.fill(at, level);
            let slots = (bytes / level.slot_bytes()) as usize;
            let told = vm.make(at, level, budget).unwrap();
            let places = (0..slots as u64 / 16).map(|n| GIB + n * 16 * level.slot_bytes());
            let wanted: Told = places.map(|ipa| (ipa, Contiguous::Made)).collect();
            assert_eq!(told, wanted, "{level}, {budget}");
            assert_eq!(vm.members(at), slots);
            assert_eq!(vm.space.census(&vm.cpu.enter(), at).members, slots as u64);

            let flushes = vm.flushes();
            assert_eq!(vm.make(at, level, budget), Ok(vec![]), "they are runs already");
            assert_eq!(vm.flushes(), flushes, "nothing was broken");

            vm.dissolve(at, budget).unwrap();
            assert_eq!(vm.members(at), 0);
            vm.dissolve(at, budget).unwrap();
            let account = vm.space.account();
            let runs = slots as u64 / 16;
            assert_eq!((account.runs_made, account.runs_dissolved), (runs, runs));
            let guard = vm.cpu.enter();
            for (ipa, lookup) in vm.space.visit(&guard, at) {
                let View::Leaf(leaf) = lookup.view() else { panic!("{ipa}: {lookup:?}") };
                assert_eq!((lookup.level, leaf.pa().get()), (level, ipa.get() + 7 * GIB));
            }
        }
    }
}

/// Each leaf of 16 gets what any of them has, and a run hands it on when it ends.
#[test]
fn what_one_member_has_recorded_all_have_in_the_end() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let at = range(GIB, 2 * RUN);
    vm.fill(at, Level::L3);
    let page = |n: u64| GIB + n * PAGE_SIZE;
    let put = |n, clear: u64, set: u64| {
        vm.put(page(n), Descriptor::from_bits(vm.bits(page(n)) & !clear | set));
    };
    let all =
        |n: std::ops::Range<u64>, bits| n.into_iter().all(|n| vm.bits(page(n)) & bits == bits);
    (0..32).for_each(|n| put(n, DIRTY | ACCESSED, DIRTY_MODIFIER));
    put(3, 0, DIRTY);
    put(9, 0, ACCESSED);
    vm.make(at, Level::L3, usize::MAX).unwrap();
    assert!(all(0..16, DIRTY | ACCESSED | CONTIGUOUS), "made with the OR");
    assert!((16..32).all(|n| vm.bits(page(n)) & (DIRTY | ACCESSED) == 0), "another run is another");

    put(31, 0, DIRTY);
    put(16, 0, ACCESSED);
    vm.dissolve(at, usize::MAX).unwrap();
    assert!(all(16..32, DIRTY | ACCESSED), "dissolved with the OR");
    assert_eq!(vm.members(at), 0);
}

/// Without dirty management S2AP\[1\] is a permission: leaves that differ in it are unlike, and it is no state.
#[test]
fn a_permission_is_no_state() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let at = range(GIB, RUN);
    vm.fill(at, Level::L3);
    let ipa = GIB + 5 * PAGE_SIZE;
    vm.put(ipa, Descriptor::from_bits(vm.bits(ipa) & !DIRTY));
    let unlike = Contiguous::Stays(Obstacle::Unlike { ipa: Ipa::new(ipa) });
    assert_eq!(vm.make(at, Level::L3, 16), Ok(vec![(GIB, unlike)]));
    // Somebody who holds the lock takes it from a member.
    for page in 0..16 {
        let ipa = GIB + page * PAGE_SIZE;
        vm.put(ipa, Descriptor::from_bits(vm.bits(ipa) | CONTIGUOUS));
    }
    // Another is dirty.
    vm.put(GIB, Descriptor::from_bits(vm.bits(GIB) | DIRTY_MODIFIER | DIRTY));
    vm.dissolve(at, 16).unwrap();
    assert_eq!(vm.bits(ipa) & DIRTY, 0, "nobody grants it");
}

#[test]
fn what_is_in_the_way_of_a_run_is_named_and_the_others_are_made() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let at = range(GIB, MIB2);
    vm.fill(at, Level::L3);
    let page = |run: u64, n: u64| GIB + run * RUN + n * PAGE_SIZE;
    vm.put(page(1, 15), Descriptor::EMPTY);
    vm.put(page(2, 7), Descriptor::note(Note::new(1).unwrap()));
    let busy = Descriptor::from_bits(vm.bits(page(3, 0))).to_busy().unwrap();
    vm.put(page(3, 0), busy);
    vm.put(page(4, 1), Descriptor::from_bits(vm.bits(page(4, 1)) + PAGE_SIZE));
    (0..16).for_each(|n| {
        vm.put(page(5, n), Descriptor::from_bits(vm.bits(page(5, n)) + PAGE_SIZE));
    });
    let told = vm.make(at, Level::L3, usize::MAX).unwrap();
    let (ipa, pa) = (|run, n| Ipa::new(page(run, n)), |run, n| Pa::new(page(run, n) + 7 * GIB));
    let stays = [
        Obstacle::Hole { ipa: ipa(1, 15) },
        Obstacle::Note { ipa: ipa(2, 7) },
        Obstacle::NoLeaf { ipa: ipa(3, 0), seen: busy },
        Obstacle::Elsewhere { ipa: ipa(4, 1), pa: pa(4, 2), wanted: pa(4, 1) },
        Obstacle::Unaligned { pa: pa(5, 1) },
    ];
    for (run, (ipa, what)) in told.iter().enumerate() {
        let wanted = match run {
            1..6 => Contiguous::Stays(stays[run - 1]),
            _ => Contiguous::Made,
        };
        assert_eq!((*ipa, *what), (page(run as u64, 0), wanted));
    }
    assert_eq!((told.len(), vm.members(at)), (32, 27 * 16));
}

/// A table is in the way of a run of blocks; where larger leaves or nothing is, there is no place for one.
#[test]
fn a_level_that_is_not_there_is_passed_over() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = Vm::new(&pages, &epochs);
    vm.map(0, Level::L1, Owner::Vm);
    vm.map(2 * GIB, Level::L3, Owner::Vm);
    let seen = vm.bits(2 * GIB);
    assert_eq!(vm.make(range(0, 2 * GIB), Level::L3, usize::MAX), Ok(vec![]));
    let told = vm.make(range(2 * GIB, 16 * MIB2), Level::L2, usize::MAX).unwrap();
    let [(at, Contiguous::Stays(Obstacle::NoLeaf { ipa, .. }))] = told[..] else {
        panic!("{told:?}")
    };
    assert_eq!((at, ipa, vm.bits(2 * GIB)), (2 * GIB, Ipa::new(2 * GIB), seen));
}

/// An entry for all of a run goes only by an address in each of its granules.
#[test]
fn a_batch_has_one_flush_with_an_invalidation_for_each_granule() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let at = range(GIB, MIB2);
    vm.fill(at, Level::L3);
    let by_ipa = TLBI_KINDS.iter().position(|name| *name == "IPAS2E1IS").unwrap();
    let of = |work: &mut dyn FnMut()| {
        let before = (vm.flushes(), vm.space.account().tlbi[by_ipa]);
        work();
        (vm.flushes() - before.0, vm.space.account().tlbi[by_ipa] - before.1)
    };
    let two = range(GIB + RUN, 2 * RUN);
    assert_eq!(of(&mut || drop(vm.make(two, Level::L3, usize::MAX).unwrap())), (1, 32));
    assert_eq!(of(&mut || vm.dissolve(at, usize::MAX).unwrap()), (1, 32), "and of nothing else");
}

#[test]
fn the_flush_comes_before_what_is_made_and_a_dsb_after() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let at = range(GIB, RUN);
    vm.fill(at, Level::L3);
    for make in [true, false] {
        let _ = vm.space.arch.take_log();
        if make {
            vm.make(at, Level::L3, 16).unwrap();
        } else {
            vm.dissolve(at, 16).unwrap();
        }
        let log = vm.space.arch.take_log();
        let first = log.iter().position(|event| matches!(event, Logged::Store(_))).unwrap();
        let last = log.iter().rposition(|event| matches!(event, Logged::Store(_))).unwrap();
        let flushed = log.iter().rposition(|event| matches!(event, Logged::Tlbi(..))).unwrap();
        let locked = |event: &Logged| matches!(event, Logged::Observe(Observation::Locked { .. }));
        assert!(log[..flushed].iter().any(locked), "broken without the table's lock");
        assert!(flushed < first, "made before the flush: {log:?}");
        assert!(log[last..].contains(&Logged::Dsb(Dsb::IshSt)), "no DSB after what was made");
    }
}

/// Where the memory of frames goes, with what was recorded.
#[derive(Default)]
struct Records(Vec<(u64, bool)>);

impl Release for Records {
    fn frame(&mut self, ipa: Ipa, former: &Former, _: &Flushed) {
        self.0.push((ipa.get(), former.written()));
    }
}

/// Also where a batch ends in the middle of it, and where its table goes; and each frame is told as written, when
/// one was.
#[test]
fn unmap_takes_a_run_as_a_whole() {
    for (first, slots, whole) in
        [(0, 5, false), (0, usize::MAX, false), (0, 512, true), (32, 3, false)]
    {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = Vm::new(&pages, &epochs);
        vm.fill(range(GIB, MIB2), Level::L3);
        let start = GIB + first * PAGE_SIZE;
        let at = if whole { range(GIB, MIB2) } else { range(start, RUN) };
        for page in 0..16 {
            let ipa = start + page * PAGE_SIZE;
            let record = if page == 11 { DIRTY } else { 0 };
            let bits = vm.bits(ipa) & !DIRTY | DIRTY_MODIFIER | CONTIGUOUS | record;
            vm.put(ipa, Descriptor::from_bits(bits));
        }
        let mut claim = vm.space.claim(at).unwrap();
        let (batch, mut records) = (Batch { from: at.start(), slots }, Records::default());
        let done =
            vm.space.unmap(&vm.cpu, &mut claim, batch, Notes::Keep, || {}, &mut records).unwrap();
        let went = if whole { 512 } else { 16 };
        assert_eq!(records.0.len(), went, "all of the run is gone when one of it is");
        assert!(records.0.iter().all(|(_, written)| *written), "a record of one is one of all");
        if let Progress::Until(next) = done {
            assert!(slots < 16 && next < at.end());
            let batch = Batch { from: next, slots: usize::MAX };
            let rest = vm.space.unmap(&vm.cpu, &mut claim, batch, Notes::Keep, || {}, &mut records);
            assert_eq!((rest, records.0.len()), (Ok(Progress::Done), went));
        }
    }
}

/// The unmap of a run that was given up after its first slots: what these have recorded is one of all, too.
#[test]
fn a_member_in_drain_speaks_for_the_others() {
    for whole in [false, true] {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = Vm::new(&pages, &epochs);
        vm.fill(range(GIB, MIB2), Level::L3);
        for page in 0..16 {
            let ipa = GIB + page * PAGE_SIZE;
            let record = if page == 1 { DIRTY } else { 0 };
            let live = vm.bits(ipa) & !DIRTY | DIRTY_MODIFIER | CONTIGUOUS | record;
            let live = Descriptor::from_bits(live);
            vm.put(ipa, if page < 2 { live.to_drain(Level::L3).unwrap() } else { live });
        }
        let at = range(GIB, if whole { MIB2 } else { RUN });
        let (mut claim, mut records) = (vm.space.claim(at).unwrap(), Records::default());
        let all = Batch::all_of(&claim);
        let done = vm.space.unmap(&vm.cpu, &mut claim, all, Notes::Keep, || {}, &mut records);
        assert_eq!(done, Ok(Progress::Done));
        assert_eq!(records.0.len(), if whole { 512 } else { 16 });
        assert!(records.0[..16].iter().all(|(_, written)| *written), "a record was lost");
    }
}

/// A claim that has a part of a run changes nothing of it, and says which.
#[test]
fn a_part_of_a_run_is_refused_and_stays() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let at = range(GIB, 4 * RUN);
    vm.fill(at, Level::L3);
    vm.make(range(GIB + RUN, 2 * RUN), Level::L3, usize::MAX).unwrap();
    let (ipa, level) = (Ipa::new(GIB + RUN), Level::L3);
    let cuts = UnmapError::CutsRun { ipa, level };
    let straddles = ContiguousError::Straddles { ipa, level };
    for part in [range(GIB + RUN + PAGE_SIZE, 15 * PAGE_SIZE), range(GIB + RUN, 15 * PAGE_SIZE)] {
        assert_eq!(vm.unmap(part, usize::MAX, Notes::Keep).err(), Some(cuts));
        assert_eq!(vm.dissolve(part, usize::MAX), Err(straddles));
        assert_eq!(vm.members(at), 32);
        assert_eq!(vm.make(part, Level::L3, 16), Ok(vec![]), "no place for a run lies in it");
    }
    // What is before it goes, and a batch that begins inside takes nothing away behind its beginning.
    let error = vm.unmap(range(GIB, RUN + 3 * PAGE_SIZE), usize::MAX, Notes::Keep).err();
    assert_eq!((error, vm.members(at)), (Some(cuts), 32));
    assert_eq!(vm.space.visit(&vm.cpu.enter(), at).count(), 48);
    let mut claim = vm.space.claim(at).unwrap();
    let batch = Batch { from: Ipa::new(GIB + RUN + PAGE_SIZE), slots: 64 };
    let unmap =
        vm.space.unmap(&vm.cpu, &mut claim, batch, Notes::Keep, || {}, &mut Records::default());
    assert_eq!((unmap, vm.members(at)), (Err(cuts), 32));
    // A dissolve does its own half way: what it began it ends, and the next batch says why.
    drop(claim);
    let far = range(GIB + RUN, 31 * PAGE_SIZE);
    let straddles = ContiguousError::Straddles { ipa: Ipa::new(GIB + 2 * RUN), level };
    assert_eq!(vm.dissolve(far, usize::MAX), Err(straddles));
    assert_eq!((vm.members(at), vm.space.account().runs_dissolved), (16, 1));
}

#[test]
fn a_collapse_takes_runs_and_a_split_does_not() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let at = range(GIB, MIB2);
    vm.fill(range(GIB, 16 * MIB2), Level::L2);
    vm.make(range(GIB, 16 * MIB2), Level::L2, 16).unwrap();
    let mut claim = vm.space.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let split = vm.space.split(&vm.cpu, &mut claim, all, Level::L3);
    assert_eq!(split, Err(SplitError::Contiguous { ipa: Ipa::new(GIB) }));
    drop(claim);
    vm.dissolve(range(GIB, 16 * MIB2), 16).unwrap();
    let block = vm.bits(GIB);
    let mut claim = vm.space.claim(at).unwrap();
    assert_eq!(vm.space.split(&vm.cpu, &mut claim, all, Level::L3), Ok(Progress::Done));
    drop(claim);
    vm.make(range(GIB, 5 * RUN), Level::L3, usize::MAX).unwrap();
    let (mut claim, mut told) = (vm.space.claim(at).unwrap(), None);
    let mut heard = |_, what| told = Some(what);
    let done = vm.space.collapse(&vm.cpu, &mut claim, all, Level::L2, || {}, &mut heard);
    assert_eq!((done, told), (Ok(Progress::Done), Some(Collapse::Made)));
    assert_eq!(vm.bits(GIB), block, "a block for itself");
}

#[test]
fn only_pages_and_small_blocks_form_runs_and_nobody_makes_them_inside_a_guard() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let at = range(GIB, RUN);
    vm.fill(at, Level::L3);
    for level in [Level::L0, Level::L1] {
        assert_eq!(vm.make(at, level, 16), Err(ContiguousError::Level { level }));
    }
    let guard = vm.cpu.enter();
    let lock = vm.space.lookup_rw(&guard, Ipa::new(GIB)).unwrap().lock().unwrap();
    assert_eq!(vm.make(at, Level::L3, 16), Err(ContiguousError::NotQuiescent));
    assert_eq!(vm.dissolve(at, 16), Err(ContiguousError::NotQuiescent));
    drop(lock);
}

#[test]
fn a_batch_ends_when_its_slots_are_used_up() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let at = range(GIB, 8 * RUN);
    vm.fill(at, Level::L3);
    let mut claim = vm.space.claim(at).unwrap();
    let batch = Batch { from: at.start(), slots: 32 };
    let end = Ok(Progress::Until(Ipa::new(GIB + 2 * RUN)));
    let made = vm.space.make_contiguous(&vm.cpu, &mut claim, batch, Level::L3, &mut |_, _| {});
    assert_eq!((made, vm.members(at)), (end, 32), "two runs at a time");
    assert_eq!(vm.space.dissolve(&vm.cpu, &mut claim, batch), end, "two runs at a time");
}

/// A VM ends with its runs.
#[test]
fn a_range_with_runs_unmaps_whole() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = Vm::new(&pages, &epochs);
    let at = range(GIB, 2 * MIB2);
    vm.fill(at, Level::L3);
    vm.make(at, Level::L3, usize::MAX).unwrap();
    for budget in [7, usize::MAX] {
        let released = vm.unmap(range(0, 4 * GIB), budget, Notes::Keep).unwrap();
        assert_eq!(released.0.len(), 1024);
        assert_eq!(vm.space.census(&vm.cpu.enter(), at), Default::default());
        vm.fill(at, Level::L3);
        vm.make(at, Level::L3, usize::MAX).unwrap();
    }
}
