//! Pages that move into a block, against those who reach them: EL2 under a guard, fault handlers, lock holders, guests.

use mmu_oracle::Event;
use stage2::arch::Dsb;
use stage2::space::{Batch, Blocks, CopyCollapse, CopyObstacle, Frames, Progress, Release};
use stage2::{
    Arch, Descriptor, Flushed, Former, Install, InstallError, Ipa, Level, Owner, PAGE_SIZE, Pa,
    Tally,
};

use crate::guest::Access;
use crate::outcome::reached;
use crate::ranges::{pages, table};
use crate::sched::atomic::Ordering;
use crate::world::{FILLED, Pe, SECRET, Shape, World, page};

/// A block has as many pages here as a table has slots.
pub(super) const PAGES: u64 = 4;
/// What somebody writes into a page.
const WRITTEN: u64 = 0xbeef;
/// What somebody without a claim may change in a leaf: whose the page is.
const NOT_OWNED: u64 = 1 << 57;
/// The number of the frame that is the block.
const BLOCK: usize = 1;

/// Copies words, and tells the oracle: whoever reaches a page that is copied reaches what is nobody's.
struct Copier<'w> {
    world: &'w World,
    block: Option<Pa>,
    told: Option<CopyCollapse>,
}

impl Release for Copier<'_> {
    fn frame(&mut self, _: Ipa, former: &Former, _: &Flushed) {
        self.world.frame(former.pa()).store(SECRET, Ordering::Relaxed);
        self.world.free_frame(former.pa());
    }
}

// SAFETY: (1) the memory is taken for this VM; (2) it is filled word by word, and there are no caches.
unsafe impl Blocks for Copier<'_> {
    fn take(&mut self) -> Option<Pa> {
        let block = self.world.take_memory(BLOCK, PAGES * PAGE_SIZE);
        for number in 0..PAGES {
            let word = self.world.frame(Pa::new(block.get() + number * PAGE_SIZE));
            word.store(SECRET, Ordering::Relaxed);
        }
        self.block = Some(block);
        self.block
    }

    fn give_back(&mut self, block: Pa) {
        self.world.give_memory(block, PAGES * PAGE_SIZE);
    }

    fn copy(&mut self, _: Ipa, from: Pa, to: Pa) {
        let (frame, bytes) = (from.get(), PAGE_SIZE);
        self.world.oracle().note(|pe| Event::FreeFrame { pe, frame, bytes });
        let word = self.world.frame(from).load(Ordering::Relaxed);
        self.world.frame(to).store(word, Ordering::Relaxed);
    }

    fn fill(&mut self, _: Ipa, to: Pa) {
        self.world.frame(to).store(FILLED, Ordering::Relaxed);
    }

    fn finish(&mut self, _: Ipa, _: Pa) {}

    fn heard(&mut self, _: Ipa, what: CopyCollapse) {
        assert_eq!(self.told.replace(what), None, "told twice");
    }
}

/// Maps the first pages of table 0.
pub(super) fn map(world: &World, count: u64) -> Pa {
    world.pe(0, &[], |pe| {
        let pa = world.take_memory(0, count * PAGE_SIZE);
        let (mut claim, _) = pe.claim(pages(0, count));
        assert_eq!(pe.map(&mut claim, pa, Level::L3), Ok(Progress::Done));
        pa
    })
}

/// Copies table 0 into a block, one page of which may be missing.
pub(super) fn copy(pe: &Pe<'_>) -> CopyCollapse {
    let world = pe.world;
    let (mut claim, _) = pe.claim(table(0));
    let (all, relax) = (Batch::all_of(&claim), world.patience());
    let mut copier = Copier { world, block: None, told: None };
    let done = world.space().copy_collapse(&pe.cpu, &mut claim, all, 1, &mut copier, relax);
    assert_eq!(done, Ok(Progress::Done));
    let told = copier.told.expect("it is told");
    if let (CopyCollapse::Made { .. }, Some(block)) = (told, copier.block) {
        // A block counts once, by where it begins.
        world.forget_taken(Pa::new(block.get() + PAGE_SIZE), (PAGES - 1) * PAGE_SIZE);
    }
    told
}

/// What page `number` holds in the end, as a guest finds it.
fn content(world: &World, number: u64) -> u64 {
    let found = world.walk(page(number));
    let leaf = found.seen.as_leaf(found.level).expect("something is mapped");
    let offset = page(number).get() & (found.level.slot_bytes() - 1);
    let pa = Pa::new(leaf.pa().get() + offset);
    world.frame(pa).load(Ordering::Relaxed)
}

/// EL2 writes a page, as it does for a guest: wherever it lies, while the guard is open.
fn write(pe: &Pe<'_>, number: u64) -> bool {
    let guard = pe.cpu.enter();
    let Some(there) = pe.world.space().translate(&guard, page(number)) else {
        reached("EL2 found nothing");
        return false;
    };
    reached(if there.leaf.level() == Level::L3 {
        "EL2 wrote the page"
    } else {
        "EL2 wrote the block"
    });
    pe.world.frame(there.pa).store(WRITTEN, Ordering::Relaxed);
    true
}

/// One PE copies a table, another writes for its guest what it has translated under a guard.
pub fn a_copy_against_an_access_of_el2() {
    let world = World::new(Shape::small(2, 2));
    let _ = map(&world, PAGES);
    let writer = world.spawn(1, &[], |pe| write(pe, 1));
    assert_eq!(world.pe(0, &[], copy), CopyCollapse::Made { filled: 0 });
    if writer.join().unwrap() {
        assert_eq!(content(&world, 1), WRITTEN, "a write under a guard was lost");
    }
    world.settle();
}

/// One PE copies a table, another populates a page that is missing, and writes it.
pub fn a_copy_against_install() {
    let world = World::new(Shape::small(2, 3));
    let _ = map(&world, PAGES - 1);
    let handler = world.spawn(1, &[2], |pe| {
        match pe.install(page(3), Level::L3) {
            Ok(Install::Installed(_)) => reached("installed"),
            Ok(Install::Present(leaf)) => {
                assert_eq!(leaf.level(), Level::L2);
                reached("found the block");
            }
            Err(InstallError::Retry { .. }) => {
                reached("met Drain");
                return false;
            }
            other => panic!("{other:?}"),
        }
        write(pe, 3)
    });
    let told = world.pe(0, &[], copy);
    let CopyCollapse::Made { filled } = told else { panic!("{told:?}") };
    reached(if filled == 0 { "copied its page" } else { "filled the hole" });
    let wanted = if handler.join().unwrap() { WRITTEN } else { FILLED };
    assert_eq!(content(&world, 3), wanted, "what was written into a new page was lost");
    world.settle();
}

/// A frame that is not the VM's.
struct Scratch(Option<Pa>);

// SAFETY: (1, 2) it is filled, and lives as long as the world.
unsafe impl Frames for Scratch {
    fn take(&mut self) -> Option<Pa> {
        self.0.take()
    }

    fn give_back(&mut self, frame: Pa) {
        self.0 = Some(frame);
    }
}

/// One PE copies a table, another maps memory that is not the VM's where a page is missing: then the table stays, with
/// every page where it was.
pub fn a_copy_that_fails_against_install() {
    let world = World::new(Shape::small(2, 3));
    let pa = map(&world, PAGES - 1);
    let handler = world.spawn(1, &[], |pe| {
        let (space, scratch) = (pe.world.space(), pe.world.take_memory(2, PAGE_SIZE));
        let mapping = space.mapping(Level::L3, pe.world.leaf(), Owner::Other).expect("a page");
        let (mut frames, mut tally) = (Scratch(Some(scratch)), Tally::default());
        let done = space.install(&pe.cpu.enter(), page(3), &mapping, &mut frames, &mut tally);
        if let Some(scratch) = frames.0 {
            assert!(!matches!(done, Ok(Install::Installed(_))));
            pe.world.give_memory(scratch, PAGE_SIZE);
        }
        matches!(done, Ok(Install::Installed(_)))
    });
    let told = world.pe(0, &[], copy);
    if handler.join().unwrap() {
        assert_eq!(told, CopyCollapse::Stays(CopyObstacle::NotOwned { ipa: page(3) }));
        let first = world.walk(page(0));
        assert_eq!(
            (first.level, first.seen.as_leaf(Level::L3).map(|l| l.pa())),
            (Level::L3, Some(pa))
        );
        reached("it stays");
    } else {
        assert_eq!(told, CopyCollapse::Made { filled: 1 });
        reached("it is a block");
    }
    world.settle();
}

/// One PE copies a table, another looks one of its leaves up to change it under the lock.
pub fn a_copy_against_a_write() {
    let world = World::new(Shape::small(2, 2));
    let _ = map(&world, PAGES);
    let writer = world.spawn(1, &[], |pe| {
        let (hardware, guard) = (pe.world.hardware(), pe.cpu.enter());
        let found = pe.world.space().lookup_rw(&guard, page(1)).expect("inside the IPA size");
        if found.level() != Level::L3 {
            reached("found no table");
            return false;
        }
        let parent = found.parent();
        let Ok(locked) = found.lock() else {
            reached("Stale");
            return false;
        };
        let slot = locked.slot(page(1)).expect("in this table");
        let old = slot.load(hardware);
        let new = Descriptor::from_bits(old.bits() | NOT_OWNED);
        // SAFETY: (1) the table's lock is held; (2) the same translation.
        let was = unsafe { hardware.swap(slot, new.bits()) };
        hardware.dsb(Dsb::IshSt);
        assert_eq!(was, old.bits(), "nobody else writes it");
        let link = &hardware.slots(pe.world.root(page(1)))[Level::L2.index(page(1))];
        assert_eq!(Some(link.load(hardware)), parent, "a table whose lock is held is in the tree");
        reached("wrote");
        true
    });
    let told = world.pe(0, &[], copy);
    let wrote = writer.join().unwrap();
    let last = world.walk(page(1));
    if wrote {
        assert_eq!(told, CopyCollapse::Stays(CopyObstacle::NotOwned { ipa: page(1) }));
        assert_eq!(
            (last.level, last.seen.bits() & NOT_OWNED),
            (Level::L3, NOT_OWNED),
            "it is in the tree"
        );
    } else {
        assert_eq!((told, last.level), (CopyCollapse::Made { filled: 0 }, Level::L2));
    }
    world.settle();
}

/// A PE holds the lock of a table whose child another copies.
pub fn a_copy_against_a_locked_parent() {
    let world = World::new(Shape::small(2, 2));
    let _ = map(&world, PAGES);
    let looker = world.spawn(1, &[], |pe| {
        let guard = pe.cpu.enter();
        // The walk to the second table's addresses ends in the root, since there is none.
        let root =
            pe.world.space().lookup_ro(&guard, page(512)).expect("inside the IPA size").lock();
        let seen = root.get(page(0)).expect("in the root").descriptor;
        if seen.as_table(Level::L2).is_none() {
            return reached("it was broken");
        }
        let again = root.get(page(0)).expect("in the root").descriptor;
        assert_eq!(seen, again, "a table stays linked while its parent's lock is held");
        reached("it was linked");
    });
    assert_eq!(world.pe(0, &[], copy), CopyCollapse::Made { filled: 0 });
    looker.join().unwrap();
    world.settle();
}

/// One PE copies a table, and a guest reads there: the page, or the block when it is complete.
pub fn a_copy_against_a_guest() {
    let world = World::new(Shape::small(2, 2));
    let pa = map(&world, PAGES);
    let guest = world.thread(move |world| match world.guest_reads_meanwhile(page(1)) {
        Access::Fault => reached("guest faulted"),
        Access::Read(from, _) if from.get() == pa.get() + PAGE_SIZE => {
            reached("guest read the page")
        }
        Access::Read(..) => reached("guest read the block"),
    });
    assert_eq!(world.pe(0, &[], copy), CopyCollapse::Made { filled: 0 });
    guest.join().unwrap();
    world.settle();
}
