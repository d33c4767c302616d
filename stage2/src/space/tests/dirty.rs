//! Dirty sessions: what harvests report, what is left of a session, and what is refused.

use super::map::extent;
use super::prot::{ACCESSED, DIRTY, DIRTY_MODIFIER, GIB, MIB2, page, vm_with};
use super::unmap::{Released, Vm, range};
use super::*;
use crate::descriptor::{Former, Note};
use crate::flush::Flushed;
use crate::space::{
    Batch, Bitmaps, Blocks, Contiguous, CopyCollapse, DirtyError, Extent, Harvested, LogBlocks,
    NotClaimed, Notes, Obstacle, Progress, ProtError, Relax, Release, Stopped,
};
use crate::sync::{AtomicU64, Ordering};

pub(super) const VALID_LEAF: u64 = 1;
pub(super) const NON_OWNED: u64 = 1 << 57;
pub(super) const UPDATES: [HwUpdate; 3] =
    [HwUpdate::Off, HwUpdate::Access, HwUpdate::AccessAndDirty];

/// The bitmaps of a range.
pub(super) struct Maps {
    range: IpaRange,
    pages: Vec<AtomicU64>,
    spans: Vec<AtomicU64>,
}

impl Maps {
    pub(super) fn of(range: IpaRange) -> Self {
        let [pages, spans] =
            Bitmaps::words(range).map(|count| (0..count).map(|_| AtomicU64::new(0)).collect());
        Self { range, pages, spans }
    }

    pub(super) fn bitmaps(&self) -> Bitmaps<'_> {
        Bitmaps { pages: &self.pages, spans: &self.spans }
    }

    /// Takes the bits: numbers of pages from 1 GiB on.
    pub(super) fn take(&self) -> Vec<u64> {
        let first = (self.range.start().get() - GIB) / PAGE_SIZE;
        let words = self.pages.iter().zip(0_u64..);
        let bits = |(word, index): (&AtomicU64, u64)| {
            let word = word.swap(0, Ordering::Acquire);
            (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| index * 64 + bit)
        };
        words.flat_map(bits).map(|page| first + page).collect()
    }
}

impl Vm<'_> {
    pub(super) fn start(&self, maps: &Maps, blocks: LogBlocks) -> Result<(), DirtyError> {
        let mut claim = self.space.claim(maps.range).unwrap();
        // SAFETY: (1) the session, or the space, ends before the bitmaps in each test.
        unsafe { self.space.dirty_start(&self.cpu, &mut claim, &maps.bitmaps(), blocks, || ()) }
    }

    /// Harvests all of a range in batches; returns the pages that were dirty.
    pub(super) fn harvest(&self, at: IpaRange, slots: usize) -> u64 {
        let mut claim = self.space.claim(at).unwrap();
        let (mut from, mut pages) = (at.start(), 0);
        loop {
            let batch = Batch { from, slots };
            let done = self.space.dirty_harvest(&self.cpu, &mut claim, batch).unwrap();
            assert!(self.cpu.is_quiescent(), "every lock and guard is given back");
            pages += done.pages;
            match done.progress {
                Progress::Done => return pages,
                Progress::Until(next) => {
                    assert!(next > from, "a batch makes progress");
                    from = next;
                }
            }
        }
    }

    /// Stops the session in batches; returns how many blocks were made again, and how many tables stay.
    fn stop(&self, at: IpaRange, slots: usize) -> (u64, u64) {
        let (mut collapsed, mut stay) = (0, 0);
        loop {
            let mut claim = self.space.claim(at).unwrap();
            let done = self.space.dirty_stop(&self.cpu, &mut claim, slots, || ()).unwrap();
            assert!(self.cpu.is_quiescent(), "every lock and guard is given back");
            collapsed += done.collapsed;
            stay += done.stay;
            if done.progress == Progress::Done {
                return (collapsed, stay);
            }
        }
    }
}

/// Pages with the record and without, with DBM and without; then what is read-only, not the VM's, or no leaf at all.
#[test]
fn the_first_harvest_reports_what_is_mapped_and_the_next_what_was_written() {
    for (hw_update, slots) in
        UPDATES.into_iter().flat_map(|updates| [1, 63, 700, 4096].map(|slots| (updates, slots)))
    {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(hw_update, &pages, &epochs);
        // From the middle of a span and of a word on.
        let at = range(page(100), 2 * MIB2);
        let maps = Maps::of(at);
        vm.lay(range(GIB, 4 * MIB2), Level::L3);
        vm.put(page(205), Descriptor::EMPTY);
        vm.put(page(206), Descriptor::note(Note::new(DIRTY).unwrap()));
        vm.alter(page(207), DIRTY, 0);
        vm.alter(page(208), 0, NON_OWNED);
        vm.start(&maps, LogBlocks::Keep).unwrap();
        assert_eq!(vm.space.dirty_range(), Some(at));

        assert_eq!(vm.harvest(at, slots), 1020, "{hw_update:?}, {slots}");
        let mapped: Vec<u64> = (100..1124).filter(|page| ![205, 206, 208].contains(page)).collect();
        assert_eq!(maps.take(), mapped, "{hw_update:?}, {slots}");
        for page_number in 100..1124 {
            let held = vm.held(page(page_number));
            match page_number {
                205 | 206 => {}
                207 => assert_eq!(held & (DIRTY | DIRTY_MODIFIER), 0, "nobody may write there now"),
                208 => assert_eq!(held & (DIRTY | DIRTY_MODIFIER), DIRTY, "not the VM's"),
                _ => assert_eq!(held & (DIRTY | DIRTY_MODIFIER), DIRTY_MODIFIER),
            }
        }
        // Outside nothing was touched.
        assert!([99, 1124].iter().all(|n| vm.held(page(*n)) & DIRTY_MODIFIER == 0));

        // More places than a flush tells apart.
        let mut written: Vec<u64> = (100..1124).filter(|page| page % 41 == 18).collect();
        written.extend([163, 164, 612, 613, 1123]);
        written.sort_unstable();
        written.iter().for_each(|n| vm.alter(page(*n), 0, DIRTY | ACCESSED));
        assert_eq!(vm.harvest(at, slots), written.len() as u64, "{hw_update:?}, {slots}");
        assert_eq!(maps.take(), written, "{hw_update:?}, {slots}");
    }
}

/// Parts of a range in any order: each reports what is mapped there at least once, and in the end nothing but writes.
#[test]
fn parts_are_harvested_in_any_order() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::Off, &pages, &epochs);
    let at = range(page(100), 3 * MIB2);
    let maps = Maps::of(at);
    vm.lay(range(GIB, 4 * MIB2), Level::L3);
    (100..1636).for_each(|n| vm.alter(page(n), DIRTY, 0));
    vm.start(&maps, LogBlocks::Keep).unwrap();
    for (first, count) in [(600, 40), (512, 512), (1024, 612), (100, 30), (130, 382)] {
        assert_eq!(vm.harvest(range(page(first), count * PAGE_SIZE), 4096), 0);
        assert_eq!(maps.take(), (first..first + count).collect::<Vec<_>>(), "from {first} on");
    }
    for (first, count) in [(600, 40), (100, 30), (100, 1536)] {
        assert_eq!(vm.harvest(range(page(first), count * PAGE_SIZE), 4096), 0);
        assert_eq!(maps.take(), [], "from {first} on");
    }
}

#[test]
fn a_harvest_of_clean_pages_flushes_nothing() {
    for hw_update in UPDATES {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(hw_update, &pages, &epochs);
        let at = range(GIB, 2 * MIB2);
        let maps = Maps::of(at);
        vm.lay(at, Level::L3);
        vm.start(&maps, LogBlocks::Split).unwrap();
        assert_eq!(vm.harvest(at, 4096), 1024);
        assert_eq!(maps.take().len(), 1024);
        let before = vm.space.account();
        assert_eq!((vm.harvest(at, 4096), maps.take().len()), (0, 0));
        assert_eq!(vm.space.account(), before, "{hw_update:?}: a flush, or a split");
    }
}

/// What was mapped is gone, and with it what the leaf said: the pages are reported, clean or dirty.
#[test]
fn what_takes_pages_away_or_brings_them_reports_them() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::AccessAndDirty, &pages, &epochs);
    let mut released = Released::default();
    let at = range(GIB, 4 * MIB2);
    let maps = Maps::of(range(GIB, 3 * MIB2));
    vm.lay(range(GIB, MIB2), Level::L3);
    vm.lay(range(GIB + MIB2, 3 * MIB2), Level::L2);
    vm.start(&maps, LogBlocks::Keep).unwrap();
    vm.harvest(maps.range, 4096);
    assert_eq!(maps.take().len(), 1536);

    let gone = range(page(510), 2 * PAGE_SIZE + MIB2);
    let mut claim = vm.space.claim(gone).unwrap();
    let all = Batch::all_of(&claim);
    let done = vm.space.unmap(&vm.cpu, &mut claim, all, Notes::Keep, || (), &mut released).unwrap();
    assert_eq!(done, Progress::Done);
    drop(claim);
    assert_eq!(maps.take(), (510..1024).collect::<Vec<_>>(), "a part of a table, and a block");

    // Memory that nobody can write to is new, too.
    let new = range(page(510), 2 * PAGE_SIZE);
    let mut claim = vm.space.claim(new).unwrap();
    let all = Batch::all_of(&claim);
    let read_only = Extent {
        attributes: Attributes::new(Prot::READ, MemType::Normal),
        ..extent(7 * GIB, Level::L3)
    };
    // SAFETY: (1, 2) no guest runs on the host.
    let mapped = unsafe { vm.space.map(&vm.cpu, &mut claim, all, &read_only) };
    assert_eq!(mapped, Ok(Progress::Done));
    drop(claim);
    assert_eq!(maps.take(), [510, 511]);
    assert_eq!(vm.harvest(maps.range, 4096), 0);
    assert_eq!(maps.take(), [], "once");
    vm.space.dirty_mark(&vm.cpu.enter(), range(page(300), 2 * PAGE_SIZE));
    assert_eq!(maps.take(), [300, 301], "an install that no leaf tells of");

    // Beyond the session there is nothing to report.
    let mut claim = vm.space.claim(range(GIB + 3 * MIB2, MIB2)).unwrap();
    let all = Batch::all_of(&claim);
    let _ = vm.space.unmap(&vm.cpu, &mut claim, all, Notes::Keep, || (), &mut released).unwrap();
    drop(claim);
    assert_eq!(maps.take(), []);
    assert_eq!(vm.stop(maps.range, 4096), (0, 0));
    assert_eq!(vm.space.census(&vm.cpu.enter(), at).leaves, [0, 1, 512]);
}

/// What write-protects a dirty page takes its record, and hands it on; what changes something else does not.
#[test]
fn a_record_that_another_transaction_takes_is_reported() {
    for (hw_update, run) in
        UPDATES.into_iter().flat_map(|updates| [(updates, false), (updates, true)])
    {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(hw_update, &pages, &epochs);
        let at = range(GIB, MIB2);
        let maps = Maps::of(at);
        vm.lay(at, Level::L3);
        vm.start(&maps, LogBlocks::Keep).unwrap();
        vm.harvest(at, 4096);
        assert_eq!(maps.take().len(), 512);
        let _ = vm
            .space
            .write_protect(
                &vm.cpu,
                &mut vm.space.claim(range(page(0), 16 * PAGE_SIZE)).unwrap(),
                Batch { from: Ipa::new(GIB), slots: 99 },
            )
            .unwrap();
        assert_eq!(maps.take(), [], "of clean pages there is nothing to report");
        (32..48).for_each(|n| vm.alter(page(n), 0, DIRTY | ACCESSED));
        if run {
            (32..48).for_each(|n| vm.alter(page(n), 0, 1 << 52));
        }
        let mut claim = vm.space.claim(range(page(16), 64 * PAGE_SIZE)).unwrap();
        let all = Batch::all_of(&claim);
        let _ = vm
            .space
            .protect(&vm.cpu, &mut claim, all, Prot::READ | Prot::WRITE, Relax::Everywhere)
            .unwrap();
        assert_eq!(maps.take(), [], "what stays writable keeps its record");
        let _ = vm.space.protect(&vm.cpu, &mut claim, all, Prot::READ, Relax::Everywhere).unwrap();
        drop(claim);
        let told = maps.take();
        assert!((32..48).all(|n| told.contains(&n)), "a record is lost: {hw_update:?}: {told:?}");
        assert!(
            told.iter().all(|n| (16..80).contains(n)),
            "and its neighbours at the most: {told:?}"
        );
    }
}

#[test]
fn stop_leaves_the_tables_as_if_there_had_been_no_session() {
    for (hw_update, slots) in
        UPDATES.into_iter().flat_map(|updates| [100, 4096].map(|n| (updates, n)))
    {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(hw_update, &pages, &epochs);
        let at = range(GIB, 8 * MIB2);
        let maps = Maps::of(at);
        vm.lay(range(GIB, 2 * MIB2), Level::L3);
        vm.lay(range(GIB + 2 * MIB2, 6 * MIB2), Level::L2);
        vm.alter(page(7), DIRTY, 0);
        let before: Vec<u64> = (0..4096).map(|n| vm.held(page(n))).collect();
        vm.start(&maps, LogBlocks::Split).unwrap();
        assert_eq!(vm.harvest(at, slots), 4095, "{hw_update:?}, {slots}");
        assert_eq!(maps.take().len(), 4096);
        assert_eq!(vm.space.census(&vm.cpu.enter(), at).leaves, [0, 0, 4096], "all is split");
        vm.alter(page(1100), 0, DIRTY | ACCESSED);
        // One that was written cannot be a block again if a page of it lies elsewhere.
        let elsewhere = vm.held(page(2000)) ^ (1 << 40);
        vm.put(page(2000), Descriptor::from_bits(elsewhere));
        assert_eq!(vm.stop(at, slots), (5, 1), "{hw_update:?}, {slots}");
        assert_eq!(vm.space.dirty_range(), None);
        for number in 0..4096 {
            let held = vm.held(page(number));
            match number {
                1536..2048 => assert_eq!(held & (DIRTY | DIRTY_MODIFIER), DIRTY),
                _ => assert_eq!(held | ACCESSED, before[number as usize] | ACCESSED, "{number}"),
            }
        }
        let back = vm.held(page(2000)) ^ (1 << 40);
        vm.put(page(2000), Descriptor::from_bits(back));
        vm.start(&maps, LogBlocks::Keep).unwrap();
        assert_eq!(vm.harvest(at, 4096), 4095, "the next session reports all again");
        assert_eq!(maps.take().len(), 4096, "what cannot be written, too");
        assert_eq!(vm.space.census(&vm.cpu.enter(), at).leaves, [0, 5, 1536], "and splits nothing");
    }
}

/// Without table pages blocks are harvested as they are; a block in which a batch begins or ends, too.
#[test]
fn a_block_that_stays_is_dirty_as_a_whole() {
    let (pages, epochs) = (Pages::new(3), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::Off, &pages, &epochs);
    let at = range(GIB, 4 * MIB2);
    let maps = Maps::of(at);
    vm.lay(at, Level::L2);
    vm.start(&maps, LogBlocks::Split).unwrap();
    assert_eq!(vm.harvest(at, 4096), 2048);
    assert_eq!(maps.take().len(), 2048);
    let leaves = vm.space.census(&vm.cpu.enter(), at).leaves;
    assert!(leaves[1] >= 3 && leaves[2] <= 512, "{leaves:?}: as many as there are tables");
    vm.alter(GIB + 3 * MIB2, 0, DIRTY | ACCESSED);
    assert_eq!(vm.harvest(at, 1), 512);
    assert_eq!(maps.take(), (1536..2048).collect::<Vec<_>>());
    let (collapsed, _) = vm.stop(at, 4096);
    assert_eq!(
        (collapsed, vm.space.census(&vm.cpu.enter(), at).leaves),
        (leaves[2] / 512, [0, 4, 0])
    );
}

#[test]
fn what_is_no_session_or_not_its_range_is_refused_with_the_numbers() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::Off, &pages, &epochs);
    let at = range(GIB, 3 * MIB2);
    let maps = Maps::of(at);
    vm.lay(range(GIB, 2 * MIB2), Level::L3);
    vm.lay(range(GIB + 2 * MIB2, MIB2), Level::L2);
    let before: Vec<u64> = (0..1024).map(|n| vm.held(page(n))).collect();
    let harvest = |at: IpaRange| {
        let mut claim = vm.space.claim(at).unwrap();
        let all = Batch::all_of(&claim);
        vm.space.dirty_harvest(&vm.cpu, &mut claim, all)
    };
    let stop = |at: IpaRange| {
        let mut claim = vm.space.claim(at).unwrap();
        vm.space.dirty_stop(&vm.cpu, &mut claim, 4096, || ())
    };
    assert_eq!(harvest(at), Err(DirtyError::NoSession));
    assert_eq!(stop(at), Err(DirtyError::NoSession));
    for (grow_pages, grow_spans) in [(1_i64, 0), (-1, 0), (0, 1), (0, -1)] {
        let mut maps = Maps::of(at);
        let [wanted_pages, wanted_spans] = Bitmaps::words(at);
        let grown = |words: usize, by: i64| (words as i64 + by) as usize;
        maps.pages.resize_with(grown(wanted_pages, grow_pages), Default::default);
        maps.spans.resize_with(grown(wanted_spans, grow_spans), Default::default);
        let error = if grow_pages != 0 {
            DirtyError::PageWords { words: maps.pages.len(), wanted: wanted_pages }
        } else {
            DirtyError::SpanWords { words: maps.spans.len(), wanted: wanted_spans }
        };
        assert_eq!(vm.start(&maps, LogBlocks::Keep), Err(error));
        assert_eq!(vm.space.dirty_range(), None);
    }
    let guard = vm.cpu.enter();
    assert_eq!(vm.start(&maps, LogBlocks::Keep), Err(DirtyError::NotQuiescent));
    drop(guard);
    assert_eq!(vm.space.dirty_range(), None);

    vm.start(&maps, LogBlocks::Keep).unwrap();
    let other = Maps::of(range(page(5000), MIB2));
    assert_eq!(vm.start(&other, LogBlocks::Keep), Err(DirtyError::Running { range: at }));
    for wanted in [range(page(1500), 99 * PAGE_SIZE), range(GIB - PAGE_SIZE, 2 * PAGE_SIZE)] {
        assert_eq!(harvest(wanted), Err(DirtyError::Outside { claimed: wanted, session: at }));
    }
    let part = range(GIB, MIB2);
    assert_eq!(stop(part), Err(DirtyError::NotAll { claimed: part, session: at }));
    let cut = range(GIB + 2 * MIB2, PAGE_SIZE);
    let straddles = ProtError::Straddles { ipa: Ipa::new(GIB + 2 * MIB2), level: Level::L2 };
    assert_eq!(harvest(cut), Err(DirtyError::Prot(straddles)));
    let mut claim = vm.space.claim(part).unwrap();
    let batch = Batch { from: Ipa::new(GIB + MIB2), slots: 1 };
    let outside = NotClaimed::From { from: batch.from, range: part };
    let harvested = vm.space.dirty_harvest(&vm.cpu, &mut claim, batch);
    assert_eq!(harvested, Err(DirtyError::Claim(outside)));
    drop(claim);
    let guard = vm.cpu.enter();
    assert_eq!(harvest(at), Err(DirtyError::NotQuiescent));
    assert_eq!(stop(at), Err(DirtyError::NotQuiescent));
    drop(guard);
    assert!((0..1024).all(|n| vm.held(page(n)) == before[n as usize]), "nothing has changed");
    assert_eq!(maps.take(), []);

    let mut claim = vm.space.claim(at).unwrap();
    let some = vm.space.dirty_stop(&vm.cpu, &mut claim, 700, || ()).unwrap();
    let until = Progress::Until(Ipa::new(page(700)));
    assert_eq!(some, Stopped { progress: until, collapsed: 0, stay: 0 });
    drop(claim);
    assert_eq!(harvest(at), Err(DirtyError::Stopping { range: at }));
    assert_eq!(vm.start(&maps, LogBlocks::Keep), Err(DirtyError::Stopping { range: at }));
    assert_eq!(vm.space.dirty_range(), None);
    assert_eq!(vm.stop(at, 4096), (0, 0));
    assert_eq!(stop(at), Err(DirtyError::NoSession));
    vm.start(&maps, LogBlocks::Keep).unwrap();
    let done = Harvested { progress: Progress::Done, pages: 1536 };
    assert_eq!(harvest(at), Ok(done));
}

/// Blocks for a copy, which nobody looks into.
struct Blank(Pa);

impl Release for Blank {
    fn frame(&mut self, _: Ipa, _: &Former, _: &Flushed) {}
}

// SAFETY: (1, 2) no guest runs on the host.
unsafe impl Blocks for Blank {
    fn take(&mut self) -> Option<Pa> {
        Some(self.0)
    }

    fn give_back(&mut self, _: Pa) {}

    fn copy(&mut self, _: Ipa, _: Pa, _: Pa) {}

    fn fill(&mut self, _: Ipa, _: Pa) {}

    fn finish(&mut self, _: Ipa, _: Pa) {}

    fn heard(&mut self, _: Ipa, _: CopyCollapse) {}
}

/// Clean pages make a clean block; what was missing among them is new.
#[test]
fn what_is_filled_in_to_make_a_block_is_reported() {
    for holes in [false, true] {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(HwUpdate::Off, &pages, &epochs);
        let at = range(GIB, MIB2);
        let maps = Maps::of(at);
        vm.lay(at, Level::L3);
        if holes {
            vm.put(page(7), Descriptor::EMPTY);
        }
        vm.start(&maps, LogBlocks::Keep).unwrap();
        vm.harvest(at, 4096);
        maps.take();
        let mut claim = vm.space.claim(at).unwrap();
        let (all, mut blocks) = (Batch::all_of(&claim), Blank(Pa::new(1 << 42)));
        let done = vm.space.copy_collapse(&vm.cpu, &mut claim, all, 1, &mut blocks, || ());
        assert_eq!(done, Ok(Progress::Done));
        drop(claim);
        assert_eq!(vm.space.census(&vm.cpu.enter(), at).leaves, [0, 1, 0]);
        assert_eq!(vm.harvest(at, 4096), 0, "the block is clean");
        assert_eq!(maps.take().contains(&7), holes, "what was filled in is new");
    }
}

/// A run would have one record for 16 pages: none is made where writes are logged, and again when they are not.
#[test]
fn no_run_is_made_while_a_session_covers_the_place() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::Off, &pages, &epochs);
    vm.lay(range(GIB, 2 * MIB2), Level::L3);
    let maps = Maps::of(range(GIB, MIB2));
    vm.start(&maps, LogBlocks::Keep).unwrap();
    let make = |at: u64| {
        let mut claim = vm.space.claim(range(at, 16 * PAGE_SIZE)).unwrap();
        let (all, mut told) = (Batch::all_of(&claim), Vec::new());
        let heard = &mut |ipa: Ipa, what| told.push((ipa.get(), what));
        let done = vm.space.make_contiguous(&vm.cpu, &mut claim, all, Level::L3, heard);
        assert_eq!(done, Ok(Progress::Done));
        told
    };
    let stays = Contiguous::Stays(Obstacle::Logged { ipa: Ipa::new(page(16)) });
    assert_eq!(make(page(16)), [(page(16), stays)], "writes are logged here");
    assert_eq!(make(page(512)), [(page(512), Contiguous::Made)], "not logged");
    vm.stop(maps.range, usize::MAX);
    assert_eq!(make(page(16)), [(page(16), Contiguous::Made)], "logged no more");
}
